//! A session gets its connection, and CONNACK leaves (MQTT 5.0 §3.2).

use headgate_codec::{ConnAck, ConnAckProperties, Connect, Packet, ReasonCode};
use std::sync::atomic::Ordering;

use crate::{
    ConnId, CoreLimits, OpId, Output, Record, Session, Shared,
    acquire::Acquire,
    close::End,
    connect::Terms,
    conns::{PAUSED_CONNECTING, State},
    counters::add,
    env::Waiter,
    hub::Hub,
    keep_alive::silence,
    lanes,
    options::Options,
    session::{NEVER, PendingWill},
    share,
    slots::{Handle, Slot},
};

/// A connection that gets a session, once it is recorded that it has it.
#[derive(Debug)]
pub(crate) struct PendingConnack {
    pub(crate) acquire: Acquire,
    /// The session was there before.
    pub(crate) present: bool,
    op: OpId,
}

impl PendingConnack {
    pub(crate) fn conn(&self) -> Option<ConnId> {
        self.acquire.conn
    }
}

impl Hub {
    /// Gives a session its connection: at once, or when that is recorded.
    pub(crate) fn attach(
        &mut self,
        slot: u32,
        acquire: Acquire,
        present: bool,
        out: &mut Vec<Output>,
    ) {
        let handle = self.slots.handle(slot);
        let Self { env, slots, .. } = self;
        let Some(session) = slots.session(slot) else {
            return;
        };
        let terms = Terms::of(&acquire.connect, &env.limits);
        let is_recorded = session.is_recorded || terms.expiry_s > 0;
        if !is_recorded && !acquire.ends_recorded {
            return self.serve(slot, acquire, present, out);
        }
        // [MQTT-3.1.2-4]: nor may the session come back that another worker has ended. This record is behind that one.
        let record = match is_recorded {
            false => Record::SessionEnded,
            true => opened(session, &acquire.connect, &terms),
        };
        session.put(env, record, out);
        let op = env.last_persist;
        session.pending = Some(Box::new(PendingConnack {
            acquire,
            present,
            op,
        }));
        env.waiters.push_back((op, Waiter::ConnAck(handle)));
    }

    /// It is recorded who has the session.
    pub(crate) fn confirm_pending(&mut self, handle: Handle, out: &mut Vec<Output>) {
        let persisted = self.env.persisted;
        let Some(Slot::Live(session)) = self.slots.by_handle(handle) else {
            return;
        };
        if let Some(pending) = session.pending.take_if(|p| p.op <= persisted) {
            self.serve(handle.slot(), pending.acquire, pending.present, out);
        }
    }

    /// Gives a session its connection and says so \[MQTT-3.1.4-5\], once \[MQTT-3.2.0-2\] and before
    /// anything else \[MQTT-3.2.0-1\].
    fn serve(&mut self, slot: u32, acquire: Acquire, present: bool, out: &mut Vec<Output>) {
        let Acquire {
            conn: Some(conn),
            connect,
            assigned,
            client_id,
            ..
        } = acquire
        else {
            return;
        };
        let Self {
            env,
            slots,
            conns,
            shared,
            ..
        } = self;
        let (Some(session), Some(c)) = (slots.session(slot), conns.get(conn)) else {
            return;
        };
        let was_persistent = session.is_persistent();
        let requested_s = session.begin(conn, &connect, &env.limits);
        if was_persistent != session.is_persistent() {
            repoint(session, shared, session.handle);
        }
        c.state = State::Up(slot);
        session.quota_class = c.quota_class;
        let keep_alive = silence(&connect, &env.limits);
        c.silence_ms_max = keep_alive.silence_ms;
        add(&mut env.counters.clients, 1);
        add(&mut env.counters.connects_accepted, 1);
        add(&mut env.counters.sessions_resumed, u64::from(present));

        // [MQTT-4.12.0-5] [MQTT-4.12.0-6]
        let (authentication_method, authentication_data) = match &mut c.auth {
            Some(auth) => auth.for_connack(),
            None => (None, None),
        };
        let (datagrams, user_properties) =
            lanes::agree(c.is_quic && env.limits.datagrams, &connect);
        c.datagrams = datagrams;
        let is_ready = c.is_quic && !c.early;
        let streams = env.streams_max(c.quota_class);
        let properties = ConnAckProperties {
            session_expiry_s: (session.expiry_s != requested_s).then_some(session.expiry_s),
            receive_maximum: Some(env.limits.receive_maximum.max(1)),
            maximum_packet_size: Some(env.limits.packet_bytes),
            assigned_client_id: assigned.then_some(client_id),
            // [MQTT-3.2.2-17] [MQTT-3.2.2-18]: absent means none.
            topic_alias_maximum: (env.limits.topic_aliases > 0).then_some(env.limits.topic_aliases),
            server_keep_alive_s: keep_alive.server_s,
            authentication_method,
            authentication_data,
            user_properties,
            ..ConnAckProperties::default()
        };
        let connack = Packet::ConnAck(Box::new(ConnAck {
            // [MQTT-3.2.2-2] [MQTT-3.2.2-3]
            session_present: present,
            reason: ReasonCode::SUCCESS,
            properties,
        }));
        let bytes = env.encode(&connack, connect.version);
        // [MQTT-3.1.2-24]: a client that can't take a CONNACK can't be served.
        if bytes.len() > session.packet_bytes_max as usize {
            return self.close(conn, End::Silent(ReasonCode::PACKET_TOO_LARGE), out);
        }
        session.send_bytes(bytes, out);
        if is_ready {
            out.push(Output::Ready {
                conn,
                streams,
                datagrams,
            });
        }
        session.give_time(env);
        self.arm_conn(conn);
        self.pause(conn, PAUSED_CONNECTING, false, out);
        self.pump(slot, out);
        self.ready.push(conn);
    }
}

impl Session {
    /// What a CONNECT says of the session from now on. The Session Expiry Interval that was asked
    /// for, seconds.
    fn begin(&mut self, conn: ConnId, connect: &Connect, limits: &CoreLimits) -> u32 {
        let terms = Terms::of(connect, limits);
        self.expiry_s = terms.expiry_s;
        self.is_recorded |= self.expiry_s > 0;
        self.expires_at = NEVER;
        self.conn = Some(conn);
        if let Some(state) = &self.share {
            state.connected.store(true, Ordering::Relaxed);
        }
        self.unsent = 0;
        self.version = connect.version;
        self.packet_bytes_max = connect.properties.maximum_packet_size.unwrap_or(u32::MAX);
        self.send_quota = terms.send_quota;
        self.problem_info = connect
            .properties
            .request_problem_information
            .unwrap_or(true);
        let alias_max = connect.properties.topic_alias_maximum.unwrap_or(0);
        self.alias_max = alias_max.min(limits.topic_aliases);
        self.aliases = None;
        // [MQTT-3.1.2-7]; a will that was waiting is gone with the new connection [MQTT-3.1.3-9].
        let will = connect.will.clone();
        self.will = will.map(|will| Box::new(PendingWill { will, at: None }));
        if let Some(flow) = &mut self.flow {
            flow.sent = 0;
        }
        terms.requested_s
    }
}

/// What is recorded of a session's new connection.
fn opened(session: &Session, connect: &Connect, terms: &Terms) -> Record {
    Record::SessionOpened {
        client_id: session.client_id(),
        expiry_s: terms.expiry_s,
        version: connect.version,
        send_quota: terms.send_quota,
        will: connect.will.clone().map(Box::new),
    }
}

/// Brings a session's entries in the topic table up to date: its handle, and whether it is
/// persistent. A reader finds the old entry or the new one, never both or none.
pub(crate) fn repoint(session: &mut Session, shared: &Shared, former: Handle) {
    let (persistent, handle) = (session.is_persistent(), session.handle);
    let places: Vec<_> = session.subscriptions.places().collect();
    for place in places {
        let subscription = session.subscriptions.at(place);
        let options = subscription.options.with(Options::PERSISTENT, persistent);
        let entry = headgate_topics::Subscriber::new(handle.0, options.0);
        // Its former worker may be gone meanwhile, and the entries with it.
        let filter = subscription.filter;
        match subscription.group {
            0 => {
                if !shared.topics.replace(filter, former.0, entry) {
                    shared.topics.subscribe(filter, entry);
                }
            }
            group => {
                let state = session.share.get_or_insert_default();
                let is_there = shared.shares.replace(group, former, entry);
                if let (false, Ok(Some(of_group))) = (is_there, share::parse(filter)) {
                    let filters = (filter, of_group);
                    let group = shared.shares.join(&shared.topics, filters, entry, state);
                    session.subscriptions.set_group(place, group);
                }
            }
        }
        session.subscriptions.set_options(place, options);
    }
}
