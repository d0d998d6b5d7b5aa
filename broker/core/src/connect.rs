//! CONNECT (MQTT 5.0 §3.1): from the packet to the session.
//!
//! A place in the session slab is reserved and claimed for the client in the directory. Whoever
//! wins the claim is the owner, and gets the session, if there is one, from the owner before:
//! owners form a chain by epoch, each handing over to the next, so there is never more than one.

use headgate_codec::{
    ConnAck, ConnAckProperties, Connect, Packet, ReasonCode, Text, Version, Will,
};

use std::sync::atomic::Ordering;

use crate::{
    ConnId, CoreLimits, Handed, Mesh, OpId, Output, Owner, Record, Session, SessionId, Shared,
    StorageState, Takeover, WorkerSlot,
    close::End,
    conns::{PAUSED_CONNECTING, State},
    counters::{add, sub},
    env::Waiter,
    hub::Hub,
    keep_alive::silence,
    options::Options,
    session::{NEVER, PendingWill},
    slots::{Handle, Slot, WaitingTakeover},
};

/// Claims that may fail in a row, because other workers win, before a CONNECT is refused (0x89).
const ATTEMPTS_MAX: u8 = 16;

/// Length of a CONNACK of MQTT 5.0 without properties, bytes.
const REFUSAL_BYTES: u32 = 5;

/// An operation that completes a CONNECT.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) slot: u32,
    /// The claim holds, and this worker was asked for the session.
    pub(crate) asked: Option<WorkerSlot>,
}

/// A connection that gets a session, once it is recorded that it has it.
#[derive(Debug)]
pub(crate) struct PendingConnack {
    acquire: Acquire,
    /// The session was there before.
    present: bool,
    op: OpId,
}

/// A CONNECT that is being completed.
#[derive(Debug)]
pub(crate) struct Acquire {
    pub(crate) client_id: Text,
    /// The owner that is or will be claimed.
    pub(crate) owner: Owner,
    /// Whom the session is expected from.
    pub(crate) former: Option<Owner>,
    /// `None`: the connection is gone.
    pub(crate) conn: Option<ConnId>,
    connect: Box<Connect>,
    assigned: bool,
    attempts: u8,
    /// It goes on when the handshake is complete.
    pub(crate) unconfirmed: bool,
    /// A session that was there before has ended, which may not be safe yet.
    ends_recorded: bool,
    /// The next owner, which has to wait.
    pub(crate) takeover: Option<WaitingTakeover>,
}

impl PendingConnack {
    pub(crate) fn conn(&self) -> Option<ConnId> {
        self.acquire.conn
    }
}

impl Hub {
    pub(crate) fn on_connect(
        &mut self,
        conn: ConnId,
        connect: Box<Connect>,
        out: &mut Vec<Output>,
    ) {
        // [MQTT-3.1.2-24] [MQTT-3.2.2-19]: not even a refusal could be said.
        let packet_bytes_max = connect.properties.maximum_packet_size;
        if packet_bytes_max.is_some_and(|max| max < REFUSAL_BYTES) {
            return self.close(conn, End::Silent(ReasonCode::PACKET_TOO_LARGE), out);
        }
        match self.check(&connect) {
            Ok(()) => self.authenticate(conn, connect, out),
            Err(reason) => self.refuse(conn, connect.version, reason, out),
        }
    }

    /// It is known who the client is: a place is reserved, and the session acquired.
    pub(crate) fn admit(&mut self, conn: ConnId, mut connect: Box<Connect>, out: &mut Vec<Output>) {
        if self.is_too_much_for_store(&connect) {
            add(&mut self.env.counters.storage_refused_connect, 1);
            return self.refuse(conn, connect.version, ReasonCode::QUOTA_EXCEEDED, out);
        }
        if !self.enter_class(conn) {
            return self.refuse(conn, connect.version, ReasonCode::QUOTA_EXCEEDED, out);
        }
        let assigned = connect.client_id.as_bytes().is_empty();
        let client_id = if assigned {
            self.make_client_id()
        } else {
            connect.client_id.detached()
        };
        connect.client_id = client_id.clone();
        if let Some(will) = &mut connect.will {
            *will = detached_will(will);
        }
        let version = connect.version;
        let (node, worker, epoch) = (self.config.node, self.config.worker, 0);
        let slot = self.slots.insert_with(|slot, _| {
            let owner = Owner {
                node,
                worker,
                slot,
                epoch,
            };
            let (conn, former, takeover) = (Some(conn), None, None);
            Slot::Acquiring(Box::new(Acquire {
                client_id,
                owner,
                former,
                conn,
                connect,
                assigned,
                attempts: 0,
                unconfirmed: false,
                ends_recorded: false,
                takeover,
            }))
        });
        let Some(slot) = slot else {
            add(&mut self.env.counters.limit_sessions, 1);
            if let Some(c) = self.conns.get(conn) {
                let class = c.quota_class;
                self.leave_class(class);
            }
            return self.refuse(conn, version, ReasonCode::QUOTA_EXCEEDED, out);
        };
        if let Some(c) = self.conns.get(conn) {
            c.state = State::Connecting(slot);
        }
        self.pause(conn, PAUSED_CONNECTING, true, out);
        self.claim(slot, None, out);
    }

    /// Answers CONNECT with an error and closes \[MQTT-3.2.2-7\] \[MQTT-3.1.4-2\] \[MQTT-4.13.2-1\]: what
    /// follows it finds no connection \[MQTT-3.1.4-6\].
    pub(crate) fn refuse(
        &mut self,
        conn: ConnId,
        version: Version,
        reason: ReasonCode,
        out: &mut Vec<Output>,
    ) {
        self.count_refused(reason);
        let mut connack = ConnAck {
            reason,
            ..ConnAck::default()
        };
        connack.properties.server_reference = self.server_reference(reason);
        let connack = Packet::ConnAck(Box::new(connack));
        let bytes = self.env.encode(&connack, version);
        out.push(Output::Send {
            conn,
            frame: crate::Frame::Bytes(bytes),
        });
        self.close(conn, End::Server(reason), out);
    }

    /// The directory has answered.
    pub(crate) fn on_claimed(
        &mut self,
        op: OpId,
        result: Result<(), Option<Owner>>,
        out: &mut Vec<Output>,
    ) {
        let Some(Claim { slot, .. }) = self.claims.remove(&op) else {
            return self.on_restore_claimed(op, result.is_ok());
        };
        let Some(Slot::Acquiring(acquire)) = self.slots.get_mut(slot) else {
            return;
        };
        match (result, acquire.former) {
            (Ok(()), None) => self.acquired(slot, (Handed::Nothing, self.config.worker), out),
            (Ok(()), Some(former)) => self.ask(slot, op, former, out),
            (Err(current), _) => {
                acquire.attempts += 1;
                let (attempts, conn, version) =
                    (acquire.attempts, acquire.conn, acquire.connect.version);
                let Some(conn) = conn else {
                    self.slots.remove(slot);
                    return;
                };
                if let Some(owner) = current
                    && self.is_early(conn)
                    && !self.may_continue_early(slot, owner)
                {
                    return self.wait_with_claim(slot, owner);
                }
                if current.is_some_and(|owner| self.resume_here(slot, owner, out)) {
                    return;
                }
                if attempts >= ATTEMPTS_MAX {
                    self.refuse(conn, version, ReasonCode::SERVER_BUSY, out);
                    self.slots.remove(slot);
                    return;
                }
                self.claim(slot, current, out);
            }
        }
    }

    /// The former owner has answered.
    pub(crate) fn on_moved(
        &mut self,
        from: WorkerSlot,
        op: OpId,
        handed: Handed,
        out: &mut Vec<Output>,
    ) {
        let slot = self.claims.remove(&op).map(|claim| claim.slot);
        let place = slot.and_then(|s| Some((s, self.slots.get_mut(s)?)));
        match (place, handed) {
            (Some((slot, Slot::Acquiring(_))), handed) => self.acquired(slot, (handed, from), out),
            // It was asked for by a former worker in this place, which has lost what it knew.
            (_, Handed::Session(session)) => self.forget_subscriptions(&session),
            _ => {}
        }
    }

    /// Nobody has the session any more: its entries in the topic table go, too.
    pub(crate) fn forget_subscriptions(&self, session: &Session) {
        for subscription in &session.subscriptions {
            self.shared.remove(subscription, session.handle);
        }
    }

    fn check(&mut self, connect: &Connect) -> Result<(), ReasonCode> {
        if let Some(reason) = self.turned_away() {
            return Err(reason);
        }
        let id = connect.client_id.as_bytes();
        // MQTT 3.1 knows no empty identifier, 3.1.1 only with Clean Session [MQTT-3.1.3-8].
        let may_be_empty = match connect.version {
            Version::V31 => false,
            Version::V311 => connect.clean_start,
            Version::V5 => true,
        };
        if id.is_empty() && !may_be_empty {
            return Err(ReasonCode::CLIENT_IDENTIFIER_NOT_VALID);
        }
        // The limit leaves room for what has to be taken [MQTT-3.1.3-5].
        if id.len() > usize::from(self.env.limits.client_id_bytes) {
            add(&mut self.env.counters.limit_client_id, 1);
            return Err(ReasonCode::CLIENT_IDENTIFIER_NOT_VALID);
        }
        match &connect.will {
            Some(will) if !self.is_topic_name(&will.topic) => Err(ReasonCode::TOPIC_NAME_INVALID),
            _ => Ok(()),
        }
    }

    /// The store can't take what this CONNECT asks for. While it is full, a session that is there may go on, because its
    /// client takes messages out of it.
    fn is_too_much_for_store(&self, connect: &Connect) -> bool {
        let is_recorded = Terms::of(connect, &self.env.limits).expiry_s > 0;
        match self.env.storage {
            StorageState::Ok => false,
            StorageState::Full => is_recorded && connect.clean_start,
            StorageState::Failed => is_recorded || !connect.clean_start,
        }
    }

    /// A Client Identifier that nobody else has or can guess \[MQTT-3.1.3-6\] \[MQTT-3.2.2-16\].
    fn make_client_id(&mut self) -> Text {
        self.ids_made += 1;
        let [high, low] = self.random(self.ids_made);
        Text::from(format!("auto-{high:016x}{low:016x}").as_str())
    }

    /// Claims the Client Identifier, which stands for the session \[MQTT-3.1.3-2\].
    pub(crate) fn claim(&mut self, slot: u32, expected: Option<Owner>, out: &mut Vec<Output>) {
        let op = self.env.op();
        let epoch = self
            .next_epoch
            .max(expected.map_or(0, |o| o.epoch.wrapping_add(1)));
        let Some(Slot::Acquiring(acquire)) = self.slots.get_mut(slot) else {
            return;
        };
        self.next_epoch = epoch.wrapping_add(1);
        acquire.owner.epoch = epoch;
        acquire.former = expected;
        let (client_id, new) = (acquire.client_id.clone(), Some(acquire.owner));
        self.claims.insert(op, Claim { slot, asked: None });
        out.push(Output::Claim {
            op,
            client_id,
            expected,
            new,
        });
    }

    /// Asks the former owner for the session.
    fn ask(&mut self, slot: u32, op: OpId, former: Owner, out: &mut Vec<Output>) {
        let handle = self.slots.handle(slot).0;
        let Some(Slot::Acquiring(acquire)) = self.slots.get_mut(slot) else {
            return;
        };
        let takeover = Box::new(Takeover {
            op,
            client_id: acquire.client_id.clone(),
            expected: former,
            new: acquire.owner,
            handle,
            // [MQTT-3.1.2-4] [MQTT-3.1.4-4]
            discard: acquire.connect.clean_start,
        });
        self.claims.insert(
            op,
            Claim {
                slot,
                asked: Some(former.worker),
            },
        );
        if former.worker == self.config.worker {
            self.on_takeover(self.config.worker, takeover, out);
        } else {
            out.push(Output::Mesh {
                to: former.worker,
                origin: None,
                message: Mesh::Takeover(takeover),
            });
        }
    }

    /// The client's session lives here and goes on with the new connection, in its place
    /// \[MQTT-3.1.2-5\].
    pub(crate) fn resume_here(&mut self, slot: u32, owner: Owner, out: &mut Vec<Output>) -> bool {
        if owner.worker != self.config.worker {
            return false;
        }
        let Some(Slot::Acquiring(acquire)) = self.slots.get_mut(slot) else {
            return false;
        };
        if acquire.connect.clean_start {
            return false;
        }
        let (client_id, now) = (acquire.client_id.clone(), self.env.now);
        let (expired, former) = match self.slots.owned(owner, &client_id) {
            Some(Slot::Live(s)) if s.is_persistent() => {
                let expired = s.conn.is_none() && s.expires_at <= now;
                let pending = s.pending.as_ref().and_then(|p| p.acquire.conn);
                (expired && pending.is_none(), s.conn.or(pending))
            }
            _ => return false,
        };
        if expired {
            self.end_session(owner.slot, true, out);
            return false;
        }
        if let Some(former) = former {
            self.close(former, End::TakenOver { resumed: true }, out);
        }
        // Its time had come before the new connection did.
        self.publish_due_will(owner.slot, out);
        if let Slot::Acquiring(acquire) = self.slots.remove(slot) {
            if let Some(c) = acquire.conn.and_then(|conn| self.conns.get(conn)) {
                c.state = State::Connecting(owner.slot);
            }
            self.attach(owner.slot, *acquire, true, out);
        }
        true
    }

    /// This worker is the owner, and the former one has given what it had.
    fn acquired(
        &mut self,
        slot: u32,
        (handed, from): (Handed, WorkerSlot),
        out: &mut Vec<Output>,
    ) {
        let handle = self.slots.handle(slot);
        let Slot::Acquiring(mut acquire) = self.slots.replace(slot, Slot::Free(None)) else {
            return;
        };
        let takeover = acquire.takeover.take();
        let present = matches!(handed, Handed::Session(_));
        acquire.ends_recorded = matches!(handed, Handed::Ended);
        match handed {
            Handed::Session(session) => {
                self.install(slot, session, (from, acquire.owner.epoch), out);
                if acquire.conn.is_none()
                    && let Some(session) = self.slots.session(slot)
                {
                    session.record_opened(&mut self.env, out);
                    session.record_closed(&mut self.env, out);
                    self.slots.park_later(slot);
                }
            }
            _ if acquire.conn.is_none() => {
                self.slots.remove(slot);
                self.release(&acquire.client_id, acquire.owner, out);
                if let Some(WaitingTakeover { from, takeover }) = takeover {
                    self.answer(from, takeover.op, Handed::Nothing, out);
                }
                return;
            }
            // A session that would be recorded can't begin while the store is full; what there was of the client is gone.
            _ if self.env.storage != StorageState::Ok
                && Terms::of(&acquire.connect, &self.env.limits).expiry_s > 0 =>
            {
                self.slots.remove(slot);
                self.release(&acquire.client_id, acquire.owner, out);
                if let Some(conn) = acquire.conn {
                    add(&mut self.env.counters.storage_refused_connect, 1);
                    let version = acquire.connect.version;
                    self.refuse(conn, version, ReasonCode::QUOTA_EXCEEDED, out);
                }
                if let Some(WaitingTakeover { from, takeover }) = takeover {
                    self.answer(from, takeover.op, Handed::Nothing, out);
                }
                return;
            }
            // [MQTT-3.1.2-6]
            _ => {
                let session = Session::new(
                    self.make_session_id(),
                    &acquire.client_id,
                    handle,
                    acquire.owner.epoch,
                );
                add(&mut self.env.counters.sessions, 1);
                self.slots.replace(slot, Slot::Live(Box::new(session)));
            }
        }
        if acquire.conn.is_some() {
            self.attach(slot, *acquire, present, out);
        }
        if let Some(WaitingTakeover { from, takeover }) = takeover {
            self.on_takeover(from, takeover, out);
        }
    }

    fn make_session_id(&mut self) -> SessionId {
        self.sessions_made += 1;
        let worker = u64::from(self.config.worker.0) << 56;
        let incarnation = u64::from(self.config.incarnation) << 48;
        SessionId {
            node: self.config.node,
            epoch: self.config.epoch,
            counter: worker | incarnation | self.sessions_made,
        }
    }

    /// Gives a session its connection: at once, or when that is recorded.
    fn attach(&mut self, slot: u32, acquire: Acquire, present: bool, out: &mut Vec<Output>) {
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

/// What a CONNECT asks of its session, and what it gets.
struct Terms {
    /// Session Expiry Interval that was asked for, seconds.
    requested_s: u32,
    expiry_s: u32,
    send_quota: u16,
}

impl Terms {
    fn of(connect: &Connect, limits: &CoreLimits) -> Self {
        let requested_s = match (connect.version, connect.clean_start) {
            (Version::V5, _) => connect.properties.session_expiry_s.unwrap_or(0),
            (_, true) => 0,
            (_, false) => u32::MAX,
        };
        let receive_maximum = connect.properties.receive_maximum.unwrap_or(u16::MAX);
        Self {
            requested_s,
            expiry_s: requested_s.min(limits.session_expiry_max_s),
            // [MQTT-4.9.0-1]
            send_quota: receive_maximum.min(limits.inflight_messages).max(1),
        }
    }
}

/// Brings a session's entries in the topic table up to date: its handle, and whether it is
/// persistent. A reader finds the old entry or the new one, never both or none.
pub(crate) fn repoint(session: &mut Session, shared: &Shared, former: Handle) {
    let (persistent, handle) = (session.is_persistent(), session.handle);
    for subscription in &mut session.subscriptions {
        subscription.options = subscription.options.with(Options::PERSISTENT, persistent);
        let entry = headgate_topics::Subscriber::new(handle.0, subscription.options.0);
        match subscription.group {
            0 => drop(shared.topics.replace(&subscription.filter, former.0, entry)),
            group => shared.shares.replace(group, former, entry),
        }
    }
}

/// A will whose text and payload share no buffer with the packet.
fn detached_will(will: &Will) -> Will {
    let message = crate::message::Message::from_will(will, crate::Time::default());
    Will {
        qos: will.qos,
        retain: will.retain,
        topic: message.topic,
        payload: message.payload,
        delay_s: will.delay_s,
        properties: message.properties,
    }
}

impl Hub {
    /// Gives the client's entry in the directory back, if it is still this owner's.
    pub(crate) fn release(&mut self, client_id: &Text, owner: Owner, out: &mut Vec<Output>) {
        let op = self.env.op();
        out.push(Output::Claim {
            op,
            client_id: client_id.clone(),
            expected: Some(owner),
            new: None,
        });
    }

    /// The version of a CONNECT that is being completed.
    pub(crate) fn connecting_version(&mut self, slot: u32) -> Option<Version> {
        match self.slots.get_mut(slot) {
            Some(Slot::Acquiring(acquire)) => Some(acquire.connect.version),
            Some(Slot::Live(session)) => {
                let pending = session.pending.as_ref()?;
                Some(pending.acquire.connect.version)
            }
            _ => None,
        }
    }

    /// The client's connection is gone while its CONNECT was being completed.
    pub(crate) fn abandon(&mut self, conn: ConnId, slot: u32, out: &mut Vec<Output>) {
        let session = match self.slots.get_mut(slot) {
            Some(Slot::Acquiring(acquire)) => {
                acquire.conn = None;
                // Otherwise the answer to its claim finds it.
                if acquire.unconfirmed {
                    self.slots.remove(slot);
                }
                return;
            }
            Some(Slot::Live(session)) => session,
            _ => return,
        };
        let is_its = |p: &mut Box<PendingConnack>| p.acquire.conn == Some(conn);
        let Some(pending) = session.pending.take_if(is_its) else {
            return;
        };
        if !pending.present {
            return self.end_session(slot, true, out);
        }
        // It stays as it was before.
        session.record_opened(&mut self.env, out);
        session.record_closed(&mut self.env, out);
        self.arm_slot(slot);
        self.slots.park_later(slot);
    }

    /// A session less.
    pub(crate) fn count_session_gone(&mut self, session: &Session) {
        sub(&mut self.env.counters.sessions, 1);
        sub(
            &mut self.env.counters.subscriptions,
            session.subscriptions.len() as u64,
        );
    }
}
