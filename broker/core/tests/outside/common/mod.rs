//! Several cores, a directory, a mesh and clients, with a clock that the test turns.

mod auth;
mod gauges;
mod lost;
mod packets;
mod reads;
pub mod stored;
pub mod streams;

use bytes::BytesMut;
use headgate_codec::{
    Connect, Packet, QoS, ReasonCode, SubscriptionOptions, Text, Version, frame_len,
};
use headgate_core::{
    ClientCertificate, Completion, ConnId, Core, CoreConfig, Frame, Input, Mesh, OpId, Output,
    Owner, Peer, Record, RetainedLimits, SessionId, Shared, Time, Transport, Txn, WorkerSlot,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

pub use packets::*;

/// A connection of the test, by number.
pub type Id = usize;

/// What the test knows of one connection.
#[derive(Debug)]
pub struct Wire {
    pub worker: usize,
    pub conn: ConnId,
    pub version: Version,
    pub client_id: String,
    /// The client's Maximum Packet Size, bytes.
    pub packet_bytes_max: usize,
    /// Bytes that the server has sent and the client hasn't read.
    pub unread: BytesMut,
    /// The server has closed it, and why.
    pub closed: Option<ReasonCode>,
    pub reading: bool,
    /// Packets that wait because the server doesn't read.
    pub unsent: VecDeque<Packet>,
    /// The transport takes nothing: no `Flushed`.
    pub stalled: bool,
    pub unflushed: u32,
    pub connected: bool,
    pub gone: bool,
    /// Data streams may be used, and whether datagrams may.
    pub ready: Option<bool>,
}

struct Node {
    core: Core,
    claims: VecDeque<Output>,
    completions: VecDeque<Completion>,
    persist: Option<OpId>,
    conns: u32,
}

pub struct World {
    pub now: Time,
    nodes: Vec<Node>,
    pub directory: BTreeMap<String, Owner>,
    /// Messages on their way, by sender and receiver.
    mesh: BTreeMap<(usize, usize), VecDeque<Mesh>>,
    pub wires: Vec<Wire>,
    /// Claims, Persists and mesh messages are answered when the test says so.
    pub manual: bool,
    /// Persists aren't answered at all.
    pub storage_stuck: bool,
    pub shared: Arc<Shared>,
    pub persisted: u64,
    /// Authentications that the test has to answer, with [`World::answer`].
    pub asked: VecDeque<auth::Asked>,
    /// Penalties that were put on connections and taken off, in their order.
    pub penalties: Vec<(usize, ConnId, Option<u8>)>,
    /// Parts of transactions, and those that were given up.
    pub joined: Vec<(Txn, u32)>,
    pub unjoined: Vec<Txn>,
    /// Loads that the test has to answer.
    pub loads: VecDeque<(usize, Output)>,
    /// Sessions of lost workers that the test has to find.
    pub recovers: VecDeque<(usize, OpId, Text)>,
    /// Every record, with its worker, session and sequence.
    pub records: Vec<(usize, SessionId, u64, Record)>,
    /// What was done with data streams and datagrams, in order.
    pub data: Vec<Output>,
    /// What carries the connections that are opened.
    pub transport: Transport,
    /// Where in `records` those of each input end: they are recorded together.
    pub units: Vec<usize>,
}

impl World {
    pub fn new(workers: u8) -> Self {
        Self::with(workers, RetainedLimits::default(), |_| {})
    }

    pub fn with(workers: u8, retained: RetainedLimits, change: impl Fn(&mut CoreConfig)) -> Self {
        Self::sharing(workers, Arc::new(Shared::new([1, 2], retained)), change)
    }

    pub fn sharing(workers: u8, shared: Arc<Shared>, change: impl Fn(&mut CoreConfig)) -> Self {
        let all: Vec<WorkerSlot> = (0..workers).map(WorkerSlot).collect();
        let node = |worker: &WorkerSlot| {
            let mut config = CoreConfig::new(*worker, all.clone(), [7, u64::from(worker.0)]);
            change(&mut config);
            Node {
                core: Core::new(config, Arc::clone(&shared)),
                claims: VecDeque::new(),
                completions: VecDeque::new(),
                persist: None,
                conns: 0,
            }
        };
        Self {
            now: Time(1_000),
            nodes: all.iter().map(node).collect(),
            directory: BTreeMap::new(),
            mesh: BTreeMap::new(),
            wires: Vec::new(),
            manual: false,
            storage_stuck: false,
            shared: Arc::clone(&shared),
            persisted: 0,
            asked: VecDeque::new(),
            penalties: Vec::new(),
            joined: Vec::new(),
            unjoined: Vec::new(),
            loads: VecDeque::new(),
            recovers: VecDeque::new(),
            records: Vec::new(),
            data: Vec::new(),
            transport: Transport::Tcp,
            units: Vec::new(),
        }
    }

    pub fn handle(&mut self, worker: usize, input: Input) {
        self.feed(worker, input);
        if !self.manual {
            self.run();
        }
    }

    fn execute(&mut self, worker: usize, output: Output) {
        match output {
            Output::Send { conn, frame } => self.transmit(worker, conn, frame),
            Output::Close { conn, reason } => {
                if let Some(wire) = self.wire(worker, conn) {
                    wire.closed = Some(reason);
                }
            }
            Output::Ready {
                conn, datagrams, ..
            } => {
                if let Some(wire) = self.wire(worker, conn) {
                    wire.ready = Some(datagrams);
                }
            }
            Output::SendData { .. }
            | Output::SendDatagram { .. }
            | Output::EndData { .. }
            | Output::ResetData { .. } => self.data.push(output),
            Output::Read { conn, enabled } => {
                if let Some(wire) = self.wire(worker, conn) {
                    wire.reading = enabled;
                }
            }
            Output::Mesh { to, message, .. } => {
                assert_ne!(
                    usize::from(to.0),
                    worker,
                    "a core doesn't send to itself: {message:?}"
                );
                self.mesh
                    .entry((worker, usize::from(to.0)))
                    .or_default()
                    .push_back(message);
            }
            Output::Persist {
                op,
                session,
                sequence,
                record,
                ..
            } => {
                assert!(self.nodes[worker].persist < Some(op), "operations count up");
                self.nodes[worker].persist = Some(op);
                self.persisted += 1;
                self.records.push((worker, session, sequence, record));
            }
            Output::Join { txn, weight } => self.joined.push((txn, weight)),
            Output::Unjoin { txn } => self.unjoined.push(txn),
            Output::Divide => self.units.push(self.records.len()),
            load @ Output::Load { .. } => self.loads.push_back((worker, load)),
            Output::Recover { op, client_id } => self.recovers.push_back((worker, op, client_id)),
            claim @ Output::Claim { .. } => self.nodes[worker].claims.push_back(claim),
            Output::Authenticate { op, conn, step } => self.ask(worker, (op, conn), step),
            Output::Penalty { conn, class } => self.penalties.push((worker, conn, class)),
        }
    }

    fn wire(&mut self, worker: usize, conn: ConnId) -> Option<&mut Wire> {
        self.wires
            .iter_mut()
            .rev()
            .find(|w| w.worker == worker && w.conn == conn)
    }

    fn transmit(&mut self, worker: usize, conn: ConnId, frame: Frame) {
        let Some(wire) = self.wire(worker, conn) else {
            panic!("a Send to nobody")
        };
        assert!(wire.closed.is_none(), "nothing is sent after Close");
        let before = wire.unread.len();
        frame.append_to(&mut wire.unread);
        wire.unflushed += (wire.unread.len() - before) as u32;
        // [MQTT-3.1.2-24], whatever a test is about. What is sent in one piece may be several packets.
        let mut rest = &wire.unread[before..];
        while let Ok(Some(len)) = frame_len(rest, u32::MAX) {
            let max = wire.packet_bytes_max;
            assert!(
                len <= max,
                "{len} bytes for a client that takes {max}: {rest:02x?}"
            );
            rest = &rest[len..];
        }
        // A CONNACK with success: from now on this is the client's one connection.
        let is_connack = wire.unread[before] == 0x20 && wire.unread[before + 3] == 0;
        if is_connack {
            wire.connected = true;
            let (client_id, conn) = (wire.client_id.clone(), (worker, conn));
            let others = self.wires.iter().filter(|w| {
                w.client_id == client_id
                    && !client_id.is_empty()
                    && w.connected
                    && w.closed.is_none()
                    && !w.gone
            });
            let others = others.filter(|w| (w.worker, w.conn) != conn).count();
            assert_eq!(others, 0, "two connections own {client_id}");
        }
    }

    /// Answers a claim as the driver would.
    fn execute_claim(&mut self, worker: usize) {
        let Some(Output::Claim {
            op,
            client_id,
            expected,
            new,
        }) = self.nodes[worker].claims.pop_front()
        else {
            return;
        };
        let current = self.directory.get(client_id.as_str()).copied();
        let result = if current == expected {
            match new {
                Some(new) => self.directory.insert(client_id.to_string(), new),
                None => self.directory.remove(client_id.as_str()),
            };
            Ok(())
        } else {
            Err(current)
        };
        self.nodes[worker]
            .completions
            .push_back(Completion::Claimed { op, result });
    }

    /// What may happen next, in a fixed order.
    pub fn events(&self) -> Vec<Event> {
        let mut events: Vec<Event> = self
            .mesh
            .iter()
            .filter(|(_, q)| !q.is_empty())
            .map(|(pair, _)| Event::Mesh(*pair))
            .collect();
        for (i, node) in self.nodes.iter().enumerate() {
            if !node.claims.is_empty() {
                events.push(Event::Claim(i));
            }
            if !node.completions.is_empty() {
                events.push(Event::Complete(i));
            }
            if node.persist.is_some() && !self.storage_stuck {
                events.push(Event::Persist(i));
            }
        }
        for (id, wire) in self.wires.iter().enumerate() {
            if wire.unflushed > 0 && !wire.stalled && wire.closed.is_none() && !wire.gone {
                events.push(Event::Flush(id));
            }
            if wire.reading && !wire.unsent.is_empty() && wire.closed.is_none() && !wire.gone {
                events.push(Event::Read(id));
            }
        }
        events
    }

    pub fn happen(&mut self, event: Event) {
        match event {
            Event::Mesh((from, to)) => {
                let Some(message) = self.mesh.get_mut(&(from, to)).and_then(VecDeque::pop_front)
                else {
                    return;
                };
                self.feed(
                    to,
                    Input::Mesh {
                        from: WorkerSlot(from as u8),
                        message,
                    },
                );
            }
            Event::Claim(i) => self.execute_claim(i),
            Event::Complete(i) => {
                if let Some(completion) = self.nodes[i].completions.pop_front() {
                    self.feed(i, Input::Completed(completion));
                }
            }
            Event::Persist(i) => {
                if let Some(up_to) = self.nodes[i].persist.take() {
                    self.feed(i, Input::Completed(Completion::Persisted { up_to }));
                }
            }
            Event::Flush(id) => {
                let wire = &mut self.wires[id];
                let (worker, conn, bytes) =
                    (wire.worker, wire.conn, std::mem::take(&mut wire.unflushed));
                self.feed(worker, Input::Flushed { conn, bytes });
            }
            Event::Read(id) => {
                let wire = &mut self.wires[id];
                let (worker, conn) = (wire.worker, wire.conn);
                if let Some(packet) = wire.unsent.pop_front() {
                    self.feed(worker, Input::Packet { conn, packet });
                }
            }
        }
    }

    fn feed(&mut self, worker: usize, input: Input) {
        let mut out = Vec::new();
        self.nodes[worker].core.handle(input, self.now, &mut out);
        for output in out {
            self.execute(worker, output);
        }
        self.units.push(self.records.len());
    }

    /// Everything happens that can, until nothing is left.
    pub fn run(&mut self) {
        for _ in 0..1_000_000 {
            match self.events().first() {
                Some(event) => self.happen(*event),
                None => {
                    for i in 0..self.nodes.len() {
                        if self.nodes[i].core.next_timeout() == Some(self.now) {
                            self.feed(i, Input::Timeout);
                        }
                    }
                    if self.events().is_empty() {
                        return;
                    }
                }
            }
        }
        panic!("it never comes to rest");
    }

    /// The clock moves on; every timer fires at its time, as a driver would do it.
    pub fn advance_ms(&mut self, ms: u64) {
        let until = self.now.after_ms(ms);
        loop {
            let due = (0..self.nodes.len())
                .filter_map(|i| self.nodes[i].core.next_timeout().map(|at| (at, i)))
                .min();
            let Some((at, i)) = due.filter(|(at, _)| *at <= until) else {
                break;
            };
            self.now = self.now.max(at);
            self.handle(i, Input::Timeout);
        }
        self.now = until;
    }

    pub fn advance_s(&mut self, s: u64) {
        self.advance_ms(s * 1_000);
    }

    pub fn open(&mut self, worker: usize) -> Id {
        self.open_with(worker, None)
    }

    pub fn open_with(&mut self, worker: usize, certificate: Option<Arc<ClientCertificate>>) -> Id {
        self.open_as(worker, certificate, false)
    }

    /// Opens a connection with 0-RTT data; [`World::confirm`] completes its handshake.
    pub fn open_early(&mut self, worker: usize) -> Id {
        self.open_as(worker, None, true)
    }

    /// The handshake of an early connection is complete.
    pub fn confirm(&mut self, id: Id) {
        let (worker, conn) = (self.wires[id].worker, self.wires[id].conn);
        self.handle(worker, Input::Confirmed { conn });
    }

    fn open_as(
        &mut self,
        worker: usize,
        certificate: Option<Arc<ClientCertificate>>,
        early: bool,
    ) -> Id {
        let index = self.nodes[worker].conns;
        self.nodes[worker].conns += 1;
        let conn = ConnId {
            index,
            generation: index + 9,
        };
        self.wires.push(Wire {
            worker,
            conn,
            version: Version::V5,
            client_id: String::new(),
            packet_bytes_max: usize::MAX,
            unread: BytesMut::new(),
            closed: None,
            reading: true,
            unsent: VecDeque::new(),
            stalled: false,
            unflushed: 0,
            connected: false,
            gone: false,
            ready: None,
        });
        let peer = Peer {
            address: ([192, 0, 2, 1], 7).into(),
            transport: self.transport,
            certificate,
            early,
        };
        self.handle(worker, Input::Opened { conn, peer });
        self.wires.len() - 1
    }

    /// The client sends a packet.
    pub fn send(&mut self, id: Id, packet: Packet) {
        let wire = &mut self.wires[id];
        if let Packet::Connect(connect) = &packet {
            wire.version = connect.version;
            wire.client_id = connect.client_id.to_string();
            let max = connect.properties.maximum_packet_size;
            wire.packet_bytes_max = max.map_or(usize::MAX, |max| max as usize);
        }
        if !wire.reading || !wire.unsent.is_empty() {
            wire.unsent.push_back(packet);
            if !self.manual {
                self.run();
            }
            return;
        }
        let (worker, conn) = (wire.worker, wire.conn);
        self.handle(worker, Input::Packet { conn, packet });
    }

    /// A packet that the driver had already read when it was told to stop.
    pub fn send_at_once(&mut self, id: Id, packet: Packet) {
        let (worker, conn) = (self.wires[id].worker, self.wires[id].conn);
        self.handle(worker, Input::Packet { conn, packet });
    }

    pub fn malformed(&mut self, id: Id, reason: ReasonCode) {
        let (worker, conn) = (self.wires[id].worker, self.wires[id].conn);
        self.handle(worker, Input::Malformed { conn, reason });
    }

    /// Opens a connection, connects, and asserts that it succeeds; the CONNACK's Session Present.
    pub fn connect(&mut self, worker: usize, connect: Connect) -> (Id, bool) {
        let id = self.open(worker);
        self.send(id, Packet::Connect(Box::new(connect)));
        let packets = self.read(id);
        match packets.first() {
            Some(Packet::ConnAck(connack)) if connack.reason == ReasonCode::SUCCESS => {
                let present = connack.session_present;
                // What came behind the CONNACK is still to be read.
                for packet in &packets[1..] {
                    let version = self.wires[id].version;
                    headgate_codec::encode(packet, version, &mut self.wires[id].unread);
                }
                (id, present)
            }
            other => panic!("CONNACK expected, not {other:?}"),
        }
    }

    /// A 5.0 client with Clean Start and without expiry.
    pub fn client(&mut self, worker: usize, name: &str) -> Id {
        self.connect(worker, connect(name)).0
    }

    pub fn subscribe(&mut self, id: Id, filter: &str, qos: QoS) {
        self.send(
            id,
            subscribe(
                1,
                filter,
                SubscriptionOptions {
                    qos,
                    ..SubscriptionOptions::default()
                },
            ),
        );
        let packets = self.read(id);
        assert!(
            matches!(packets.first(), Some(Packet::SubAck(a)) if a.reasons[0].0 < 0x80),
            "{packets:?}"
        );
        let version = self.wires[id].version;
        for packet in &packets[1..] {
            headgate_codec::encode(packet, version, &mut self.wires[id].unread);
        }
    }
}

/// Something that may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Mesh((usize, usize)),
    Claim(usize),
    Complete(usize),
    Persist(usize),
    Flush(Id),
    Read(Id),
}
