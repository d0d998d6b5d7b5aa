//! Everything that a worker's core holds but its match cache, and what all parts of it need.

use headgate_codec::{Packet, ReasonCode, Text};
use std::{
    collections::{BTreeMap, VecDeque, hash_map::DefaultHasher},
    hash::Hasher,
    sync::Arc,
};

use crate::{
    ConnId, CoreConfig, DataStream, OpId, Output, Owner, Peer, Shared, Time, Transport, Txn,
    Undone,
    acquire::Claim,
    auth::AuthState,
    block::HeldPublishers,
    close::{DueWill, End},
    conns::{Conns, HeldInput, HeldInputs, PAUSED_EARLY, PAUSED_UNSENT, State},
    counters::add,
    drain::Draining,
    env::Env,
    share::LeftBehind,
    shed::Shedding,
    slots::{Handle, Slots},
    timers::{TimerKey, Timers},
};

/// Connections, sessions and timers of a worker.
pub(crate) struct Hub {
    pub(crate) config: CoreConfig,
    pub(crate) shared: Arc<Shared>,
    pub(crate) env: Env,
    pub(crate) slots: Slots,
    pub(crate) conns: Conns,
    pub(crate) timers: Timers,
    /// CONNECTs that are being completed, by operation; at most one for each connection.
    pub(crate) claims: BTreeMap<OpId, Claim>,
    /// Claims of sessions that were restored.
    pub(crate) restoring: BTreeMap<OpId, Handle>,
    /// Transactions of this worker, with the last Persist of its own part.
    pub(crate) txns: VecDeque<(OpId, Txn)>,
    /// Clients whose sessions have ended, and the record that has to be safe before the directory is told.
    pub(crate) releasing: VecDeque<(OpId, Text, Owner)>,
    /// Queues that the store couldn't read, and when to try again.
    pub(crate) loads_again: Vec<(Time, Handle)>,
    /// Publishers that wait for full queues.
    pub(crate) held_publishers: HeldPublishers,
    /// What was undone, and when: a session that is on its way from another worker may be concerned.
    pub(crate) undone: VecDeque<(Time, Arc<Undone>)>,
    /// Wills to be published at the end of this input.
    pub(crate) wills: Vec<DueWill>,
    /// Messages that members of groups left to others, to be delivered at the end of this input.
    pub(crate) left_behind: Vec<LeftBehind>,
    /// Connections that have got their session and may have packets that were held.
    pub(crate) ready: Vec<ConnId>,
    /// Sessions whose search for retained messages goes on with the next timeout.
    pub(crate) backlog: VecDeque<Handle>,
    /// The data stream of the packet that is being handled; `None` = the control stream.
    pub(crate) stream: Option<DataStream>,
    pub(crate) fired: Vec<TimerKey>,
    pub(crate) next_epoch: u32,
    pub(crate) sessions_made: u64,
    pub(crate) ids_made: u64,
    pub(crate) is_shut_down: bool,
    pub(crate) draining: Option<Draining>,
    pub(crate) shedding: Option<Shedding>,
}

impl Hub {
    pub(crate) fn new(config: CoreConfig, shared: Arc<Shared>) -> Self {
        let incarnation = config.incarnation;
        Self {
            env: Env::new(&config),
            slots: Slots::new(config.worker, config.limits.sessions, incarnation),
            conns: Conns::default(),
            timers: Timers::new(),
            claims: BTreeMap::new(),
            restoring: BTreeMap::new(),
            txns: VecDeque::new(),
            releasing: VecDeque::new(),
            loads_again: Vec::new(),
            held_publishers: HeldPublishers::default(),
            undone: VecDeque::new(),
            wills: Vec::new(),
            left_behind: Vec::new(),
            ready: Vec::new(),
            backlog: VecDeque::new(),
            stream: None,
            fired: Vec::new(),
            next_epoch: 1 + (u32::from(incarnation) << 20),
            sessions_made: 0,
            ids_made: 0,
            is_shut_down: false,
            draining: None,
            shedding: None,
            config,
            shared,
        }
    }

    pub(crate) fn opened(&mut self, conn: ConnId, peer: Peer, out: &mut Vec<Output>) {
        // A place that is used again: what was there is gone.
        if let Some(former) = self.conns.at(conn.index) {
            self.close(former, End::Lost, out);
        }
        let c = self.conns.open(conn, self.env.now);
        c.is_quic = peer.transport == Transport::Quic;
        c.auth = peer.certificate.map(AuthState::certified);
        c.quota_class = self.config.listener_classes[peer.transport as usize];
        c.early = peer.early;
        add(&mut self.env.counters.connections, 1);
        if self.is_shut_down {
            return self.close(conn, End::Silent(ReasonCode::SERVER_SHUTTING_DOWN), out);
        }
        self.arm_conn(conn);
    }

    /// A packet before CONNECT is completed: kept for later, within bounds.
    pub(crate) fn hold(&mut self, conn: ConnId, packet: Packet, out: &mut Vec<Output>) {
        // [MQTT-3.1.0-2]
        if let Packet::Connect(second) = &packet {
            let version = second.version;
            return self.refuse(conn, version, ReasonCode::PROTOCOL_ERROR, out);
        }
        let (count_max, bytes_max) = (self.env.limits.held_packets, self.env.limits.packet_bytes);
        let Some(c) = self.conns.get(conn) else {
            return;
        };
        let held: &mut HeldInputs = c.held.get_or_insert_default();
        held.bytes += size_of_held(&packet);
        if held.inputs.len() < usize::from(count_max) && held.bytes <= bytes_max as usize {
            return held.inputs.push_back(HeldInput::Packet(None, packet));
        }
        add(&mut self.env.counters.limit_held_packets, 1);
        if let Some(version) = self.early_version(conn) {
            self.refuse(conn, version, ReasonCode::QUOTA_EXCEEDED, out);
        }
    }

    /// Keeps a packet, or the end of a data stream, until what it waits for has come, for one of several reasons.
    /// Nothing more is read meanwhile, so that what waits is one packet, and what was read with it.
    pub(crate) fn hold_back(
        &mut self,
        conn: ConnId,
        input: HeldInput,
        reason: u8,
        out: &mut Vec<Output>,
    ) {
        let count_max = usize::from(self.env.limits.held_packets);
        let Some(c) = self.conns.get(conn) else {
            return;
        };
        let held = c.held.get_or_insert_default();
        if held.inputs.len() >= count_max {
            add(&mut self.env.counters.limit_held_packets, 1);
            return self.close(conn, End::Silent(ReasonCode::QUOTA_EXCEEDED), out);
        }
        held.inputs.push_back(input);
        let counter = match reason {
            PAUSED_EARLY => &mut self.env.counters.early_held,
            _ => &mut self.env.counters.restoring_held,
        };
        add(counter, 1);
        self.pause(conn, reason, true, out);
    }

    /// The transport has taken bytes.
    pub(crate) fn flushed(&mut self, conn: ConnId, bytes: u32, out: &mut Vec<Output>) {
        let Some(c) = self.conns.get(conn) else {
            return;
        };
        let (State::Up(slot), paused) = (c.state, c.paused) else {
            return;
        };
        let half = self.env.limits.send_buffer_bytes / 2;
        let Some(session) = self.slots.session(slot) else {
            return;
        };
        session.unsent = session.unsent.saturating_sub(bytes);
        if session.unsent > half {
            return;
        }
        if session.flow.is_some() {
            self.pump(slot, out);
        }
        if paused & PAUSED_UNSENT != 0 {
            self.pause(conn, PAUSED_UNSENT, false, out);
        }
    }

    /// Sends what waits for a session.
    pub(crate) fn pump(&mut self, slot: u32, out: &mut Vec<Output>) {
        let handle = self.slots.handle(slot);
        let Some(session) = self.slots.session(slot) else {
            return;
        };
        if session.pump(&mut self.env, &self.shared.retained, out)
            && !self.backlog.contains(&handle)
        {
            self.backlog.push_back(handle);
        }
        if session.was_full() {
            session.unblock(&mut self.env, false);
        }
    }

    /// Goes on with one search for retained messages.
    pub(crate) fn work_off_backlog(&mut self, out: &mut Vec<Output>) {
        if let Some(handle) = self.backlog.pop_front()
            && let Some(crate::slots::Slot::Live(_)) = self.slots.by_handle(handle)
        {
            self.pump(handle.slot(), out);
        }
    }

    /// Stops or goes on reading from a connection, for one of several reasons.
    pub(crate) fn pause(&mut self, conn: ConnId, reason: u8, on: bool, out: &mut Vec<Output>) {
        let Some(c) = self.conns.get(conn) else {
            return;
        };
        let before = c.paused;
        c.paused = if on {
            before | reason
        } else {
            before & !reason
        };
        if (before == 0) != (c.paused == 0) {
            out.push(Output::Read {
                conn,
                enabled: c.paused == 0,
            });
        }
    }

    /// Stops reading from a client that doesn't take what it asks for.
    pub(crate) fn check_unsent(&mut self, conn: ConnId, slot: u32, out: &mut Vec<Output>) {
        let limit = u64::from(self.env.limits.send_buffer_bytes) * 2;
        if self
            .slots
            .session(slot)
            .is_some_and(|s| u64::from(s.unsent) > limit)
        {
            let paused = self
                .conns
                .get(conn)
                .is_some_and(|c| c.paused & PAUSED_UNSENT != 0);
            if !paused {
                add(&mut self.env.counters.reads_paused, 1);
                self.pause(conn, PAUSED_UNSENT, true, out);
            }
        }
    }

    /// \[MQTT-4.7.0-1\] \[MQTT-4.7.3-1\], and the limit on levels.
    pub(crate) fn is_topic_name(&self, topic: &str) -> bool {
        headgate_topics::validate_topic_name(topic).is_ok()
            && levels(topic) <= usize::from(self.env.limits.topic_levels)
    }

    /// Unpredictable without the seed: SipHash of the secret and a number.
    pub(crate) fn random(&self, number: u64) -> [u64; 2] {
        [0, 1].map(|half| {
            let mut hasher = DefaultHasher::new();
            for word in [self.config.seed[0], number, self.config.seed[1], half] {
                hasher.write_u64(word);
            }
            hasher.finish()
        })
    }

    /// Says so to every client (0x8B) and closes. Wills are published: to sessions that outlive
    /// this, the clients are gone (§3.1.2.5).
    pub(crate) fn shut_down(&mut self, out: &mut Vec<Output>) {
        self.is_shut_down = true;
        for conn in self.conns.ids() {
            self.close(conn, End::Server(ReasonCode::SERVER_SHUTTING_DOWN), out);
        }
    }
}

/// Topics of the server itself: clients read them and don't write them (§4.7.2).
pub(crate) fn is_reserved(topic: &str) -> bool {
    topic == "$SYS" || topic.starts_with("$SYS/")
}

/// Levels of a name or filter.
pub(crate) fn levels(topic: &str) -> usize {
    1 + topic.bytes().filter(|b| *b == b'/').count()
}

/// About what a packet holds on to.
fn size_of_held(packet: &Packet) -> usize {
    let text = |t: &Text| t.as_bytes().len();
    let content = match packet {
        Packet::Publish(p) => text(&p.topic) + p.payload.len(),
        Packet::Subscribe(s) => s.filters.iter().map(|(filter, _)| text(filter) + 48).sum(),
        Packet::Unsubscribe(u) => u.filters.iter().map(|filter| text(filter) + 48).sum(),
        _ => 0,
    };
    size_of::<Packet>() + content
}
