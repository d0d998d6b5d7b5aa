//! The reference model: what the server must, may and must not do, stated from MQTT's side and without any of the
//! core's code. It is told what each worker takes in and gives out, in order, and panics at the first thing that must not be.

mod acks;
mod deliver;
mod finish;
mod restart;
mod route;
mod session;
mod share;
mod topics;
mod wills;

use bytes::Bytes;
use headgate_codec::{Connect, Packet, PublishProperties, QoS, ReasonCode, Version};
use headgate_core::{OpId, SessionId, Time};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{network::LinkId, operations::Scenario};

pub(crate) use acks::Answer;
use share::Share;

/// A session of the model, by number: one for each time that a session begins.
pub(crate) type SessionNo = usize;

/// The longest that a timer may be late, ms: two ticks of the core's wheel, and rounding.
const LATE_MS: u64 = 300;

/// An Application Message as its publisher has made it.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) topic: &'static str,
    pub(crate) payload: Bytes,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) expiry_s: Option<u32>,
    /// Without expiry and alias.
    pub(crate) properties: Option<PublishProperties>,
    pub(crate) is_will: bool,
    /// How often the server has routed it: more than once only if its publisher had to send it again.
    pub(crate) routed: u32,
    /// The server has acknowledged it.
    pub(super) is_acknowledged: bool,
    /// A will that the store has known until it was published.
    is_kept: bool,
    /// Sessions that it was meant for, with the place in their expectations.
    meant_for: Vec<(SessionNo, usize)>,
}

/// A message that a session is to get because it matched its subscriptions.
#[derive(Debug)]
struct Expected {
    n: usize,
    qos: QoS,
    retain: bool,
    /// Subscription Identifiers; those that No Local makes doubtful apart.
    ids: Vec<u32>,
    doubtful_ids: Vec<u32>,
    /// The session's changes of subscriptions when it was routed.
    changes: u32,
    /// How many connections the session had had by then.
    moves: u32,
    /// The session had an expiry then: its message has to be recorded.
    is_recorded: bool,
    /// The connection that the session had.
    link: Option<LinkId>,
    expires_at: Option<Time>,
    /// Orders what was routed.
    seq: u64,
    publisher: Option<LinkId>,
    is_sent: bool,
    received: u32,
    /// The worker that could have lost it has crashed.
    is_excused: bool,
}

/// What a PUBLISH to a client meets: neither is a retained message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Met {
    /// An expectation of the session, by number.
    Own(usize),
    /// What one member of a group is to get, by number.
    Share(usize),
}

/// Retained messages that a new subscription is to get.
#[derive(Debug)]
struct Replay {
    filter: String,
    qos: QoS,
    id: u32,
    topics: BTreeMap<&'static str, Replayed>,
}

#[derive(Debug, Default)]
struct Replayed {
    /// Messages that have been retained since the subscription was made.
    versions: Vec<usize>,
    must: bool,
    is_sent: bool,
}

#[derive(Clone, Debug)]
struct Subscribed {
    qos: QoS,
    no_local: bool,
    retain_as_published: bool,
    id: u32,
    since: Time,
}

/// A PUBLISH with QoS > 0 that was sent to a client and isn't acknowledged.
#[derive(Debug)]
struct Sent {
    n: usize,
    met: Option<Met>,
    qos: QoS,
    /// PUBREC has come.
    is_released: bool,
    /// It may exceed the Maximum Packet Size of the present connection \[MQTT-3.1.2-25\].
    may_vanish: bool,
}

#[derive(Debug)]
struct PendingWill {
    n: usize,
    delay_s: u32,
    /// When it is to be published, once the connection is gone.
    due: Option<Time>,
    /// Another connection was about to go on with the session, and may be gone [MQTT-3.1.3-9].
    may_be_revoked: bool,
    /// That connection is gone.
    is_doubtful: bool,
}

/// A will that its session has no more, and that waits until all sessions are there.
#[derive(Debug)]
struct LateWill {
    n: usize,
    /// Whose it was, if that is known.
    owner: Option<SessionNo>,
    since: Time,
    /// It was surely not revoked.
    is_sure: bool,
}

#[derive(Debug)]
struct Session {
    client: usize,
    expiry_s: u32,
    link: Option<LinkId>,
    link_since: Time,
    expires_at: Option<Time>,
    has_ended: bool,
    /// It is a member of a group, and what it may leave to others is read before it expires.
    lingers: bool,
    /// It may have ended: a CONNECT with Clean Start was on its way and its connection is gone, or a worker crashed.
    is_doubtful: bool,
    /// `None`: moved by a CONNECT whose connection is gone.
    home: Option<usize>,
    /// Homes since all was quiet.
    recent_homes: BTreeSet<usize>,
    moves: u32,
    core_id: Option<SessionId>,
    subscriptions: BTreeMap<String, Subscribed>,
    changes: u32,
    ids_ever: BTreeSet<u32>,
    /// Shared Subscriptions that it has or has had.
    shared_ever: BTreeMap<String, BTreeSet<(QoS, u32)>>,
    will: Option<PendingWill>,
    /// A will that was published before its time.
    early_will: Option<usize>,
    /// QoS 2 messages from the client, by Packet Identifier, until PUBREL.
    received: BTreeSet<u16>,
    expected: Vec<Expected>,
    replays: Vec<Replay>,
    sent: BTreeMap<u16, Sent>,
    /// The last message of each (publisher's connection, topic, QoS) that was sent for the first time.
    order: BTreeMap<(LinkId, &'static str, QoS), u64>,
    /// A crash has lost marks of a move: order is not promised.
    is_unordered: bool,
    packet_max_ever: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    New,
    Connecting,
    Up(SessionNo),
    Gone,
}

/// A connection as the server has it.
#[derive(Debug)]
struct Conn {
    client: usize,
    worker: usize,
    phase: Phase,
    /// The session that it has or had.
    session: Option<SessionNo>,
    version: Version,
    connect: Option<Connect>,
    connect_at: Time,
    last_packet: Time,
    /// Messages that the client has sent on it and the server hasn't handled.
    publishing: VecDeque<usize>,
    answers: VecDeque<Answer>,
    /// Packets that wait until all sessions are there.
    held: VecDeque<Packet>,
    pubrels: VecDeque<(u16, bool)>,
    pings: u32,
    /// PUBLISH packets with QoS > 0 that were sent on it and aren't acknowledged.
    outstanding: BTreeSet<u16>,
    receive_maximum: u16,
    packet_max: u32,
    alias_max: u16,
    aliases_in: BTreeMap<u16, String>,
    aliases_out: BTreeMap<u16, String>,
    /// PUBLISH packets with QoS > 0 of the client that aren't answered (§4.9).
    open: u16,
    /// DISCONNECT or a refusing CONNACK was sent.
    goodbye: Option<ReasonCode>,
    /// What the client has done to deserve it.
    faults: Vec<ReasonCode>,
    has_left: bool,
    unflushed: u64,
}

/// A retained message.
#[derive(Clone, Copy, Debug)]
struct Kept {
    n: usize,
    expires_at: Option<Time>,
}

/// How a connection ends, as the server sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Lost,
    Client(ReasonCode),
    Server(ReasonCode),
}

/// The model of one run.
pub(crate) struct Model {
    pub(crate) now: Time,
    pub(crate) messages: Vec<Message>,
    scenario: Scenario,
    limits: headgate_core::CoreLimits,
    conns: Vec<Conn>,
    sessions: Vec<Session>,
    /// By client.
    current: Vec<Option<SessionNo>>,
    /// CONNECTs that are being completed, by client.
    connecting: Vec<u32>,
    /// Of these: the connection is gone, and what becomes of the session isn't known before all is quiet.
    ghosts: Vec<u32>,
    /// One of these had Clean Start, by client.
    clean_ghosts: Vec<bool>,
    retained: BTreeMap<&'static str, Kept>,
    /// The message that changed a topic's retained message last.
    last_retained: BTreeMap<&'static str, usize>,
    seq: u64,
    /// By worker.
    persisted: Vec<OpId>,
    queued: BTreeMap<(usize, SessionId), (usize, OpId)>,
    core_ids: BTreeMap<usize, SessionId>,
    /// The connection whose packet is being handled, if an answer to it was noted.
    answering: Option<LinkId>,
    has_crashed: bool,
    /// Sessions are still to come from the store.
    is_restoring: bool,
    /// Wills that had come due before their clients were back: while sessions are to come they are published later.
    late_wills: Vec<LateWill>,
    /// What groups are to get.
    shares: Vec<Share>,
    /// Sessions that have ended and whose wills are on their way.
    ended: Vec<SessionNo>,
}

impl Model {
    pub(crate) fn new(scenario: &Scenario, limits: headgate_core::CoreLimits) -> Self {
        Self {
            now: Time(0),
            messages: Vec::new(),
            scenario: scenario.clone(),
            limits,
            conns: Vec::new(),
            sessions: Vec::new(),
            current: vec![None; scenario.clients],
            connecting: vec![0; scenario.clients],
            ghosts: vec![0; scenario.clients],
            clean_ghosts: vec![false; scenario.clients],
            retained: BTreeMap::new(),
            last_retained: BTreeMap::new(),
            seq: 0,
            persisted: vec![OpId(0); scenario.workers],
            queued: BTreeMap::new(),
            core_ids: BTreeMap::new(),
            answering: None,
            has_crashed: false,
            is_restoring: false,
            late_wills: Vec::new(),
            shares: Vec::new(),
            ended: Vec::new(),
        }
    }

    /// A message that a client is going to publish; its number.
    pub(crate) fn add_message(&mut self, message: Message) -> usize {
        self.messages.push(message);
        self.messages.len() - 1
    }

    /// The client has sent a PUBLISH.
    pub(crate) fn publishing(&mut self, link: LinkId, n: usize) {
        self.conns[link].publishing.push_back(n);
    }

    /// The session that a connection has got, as its client learns it from CONNACK.
    pub(crate) fn session_of(&self, link: LinkId) -> Option<SessionNo> {
        match self.conns[link].phase {
            Phase::Up(session) => Some(session),
            _ => None,
        }
    }

    fn is_in_limbo(&self, client: usize) -> bool {
        self.connecting[client] + self.ghosts[client] > 0
    }

    /// The session has surely not ended, moved or expired.
    fn is_certain(&self, session: SessionNo) -> bool {
        let s = &self.sessions[session];
        let has_expired = s.link.is_none() && s.expires_at.is_some_and(|at| at <= self.now);
        !s.has_ended && !s.is_doubtful && !has_expired && !self.is_in_limbo(s.client)
    }

    fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }
}

impl Message {
    pub(crate) fn new(topic: &'static str, payload: Bytes, qos: QoS, retain: bool) -> Self {
        Self {
            topic,
            payload,
            qos,
            retain,
            expiry_s: None,
            properties: None,
            is_will: false,
            routed: 0,
            is_acknowledged: false,
            is_kept: false,
            meant_for: Vec::new(),
        }
    }
}

/// The number of the message with this payload; empty payloads have none.
pub(crate) fn number_of(payload: &[u8]) -> Option<usize> {
    let digits = payload.split(|b| *b == b'|').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
