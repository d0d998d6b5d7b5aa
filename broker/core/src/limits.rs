//! Configuration and limits. Every limit has a default and states its worst case.

use headgate_codec::ReasonCode;
use std::sync::Arc;

use crate::{QuotaLimits, WorkerSlot};

/// What one worker's core has to know.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// Node id, for session ids and the directory.
    pub node: u16,
    /// The node's start number: session ids stay unique over restarts.
    pub epoch: u32,
    /// Start number of this worker within the node's run: handles and session ids of a worker
    /// that was restarted alone don't repeat.
    pub incarnation: u8,
    /// This worker.
    pub worker: WorkerSlot,
    /// All workers of the node, this one too.
    pub workers: Vec<WorkerSlot>,
    /// Secret random number, for client identifiers that the server assigns. It has to come from
    /// the operating system's random source and be different for each worker and start.
    pub seed: [u64; 2],
    /// Packet Identifiers of a session that has none in use begin after this one, and go on well ahead of those that
    /// the store knows. It has to be another one at each start where a power failure can make the store forget which are in
    /// use at the client, which would take a new QoS 2 message for one that it has \[MQTT-4.3.3-1\]. 0 = nothing is forgotten.
    pub first_packet_id: u16,
    /// Let clients in without asking who they are, if they show nothing: no User Name, no
    /// Password, no Authentication Method, no certificate. All others, and everybody if this is
    /// off, become an [`Output::Authenticate`](crate::Output::Authenticate).
    pub allow_anonymous: bool,
    /// Topic Filters, as they are written, that nobody may subscribe to, and the Reason Code that SUBACK
    /// has for them.
    pub denied_filters: (Vec<String>, ReasonCode),
    /// Quota classes of clients whose authentication names none, by [`crate::Transport`] in its order.
    pub listener_classes: [u8; 5],
    /// What the quota classes may use, by class; the first is the default one.
    pub quotas: Arc<[QuotaLimits]>,
    /// Limits.
    pub limits: CoreLimits,
}

impl CoreConfig {
    /// The configuration of a worker with defaults for all the rest.
    pub fn new(worker: WorkerSlot, workers: Vec<WorkerSlot>, seed: [u64; 2]) -> Self {
        Self {
            node: 0,
            epoch: 0,
            incarnation: 0,
            worker,
            workers,
            seed,
            first_packet_id: 0,
            allow_anonymous: true,
            denied_filters: (Vec::new(), ReasonCode::NOT_AUTHORIZED),
            listener_classes: [0; 5],
            quotas: Arc::new([QuotaLimits::default()]),
            limits: CoreLimits::default(),
        }
    }
}

/// Limits of one worker.
///
/// The worst case of a session is 2 × `session_bytes` (half of it only for the moment of a move) +
/// 16 MiB (what was under way to a session of a class that blocks, when its queue was found full) +
/// `packet_bytes` (its will) + `subscriptions_per_session` × the longest filter + 131,070 bytes
/// (every Packet Identifier in use by QoS 2 messages that the client never releases); that of a
/// connection 3 × `send_buffer_bytes` + `packet_bytes` of frames that the transport has not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreLimits {
    /// Sessions of this worker, connected or not (1,000,000; at most 16,777,215). Worst case:
    /// this many sessions. Above it CONNECT is refused with 0x97.
    pub sessions: u32,
    /// Client Identifier, bytes (256). Longer: CONNACK 0x85.
    pub client_id_bytes: u16,
    /// Time from opening a connection to CONNECT and to its completion, seconds (10). Then the
    /// connection is closed.
    pub connect_timeout_s: u32,
    /// Longest silence of a client, seconds (3,600): applies to Keep Alive 0 in every version,
    /// and in 5.0 also when 1.5 × Keep Alive is more (the client is told by Server Keep Alive).
    pub idle_ceiling_s: u32,
    /// Longest Keep Alive of a client of 5.0, seconds (65,535): one that asks for more, or for none, is
    /// told this much by Server Keep Alive.
    pub keep_alive_max_s: u16,
    /// Session Expiry Interval, seconds (604,800: a week): a longer one is shortened, and 3.x
    /// with Clean Session 0 gets this one. `u32::MAX` = sessions may last for ever.
    pub session_expiry_max_s: u32,
    /// Packets that arrive before CONNECT is completed (64), with together at most
    /// `packet_bytes`. More: CONNACK 0x97.
    pub held_packets: u16,
    /// Largest packet, bytes (262,144): announced as Maximum Packet Size, enforced by the codec
    /// (0x95).
    pub packet_bytes: u32,
    /// Receive Maximum that is announced (256): PUBLISH packets with QoS > 0 that a client may
    /// have open. More: DISCONNECT 0x93. Worst case: 24 bytes each for the acknowledgements.
    pub receive_maximum: u16,
    /// Messages with QoS > 0 that are on their way to a client (256); the client's Receive
    /// Maximum may be less.
    pub inflight_messages: u16,
    /// Messages that wait for a client (1,000). Above it the client's quota class says what happens
    /// ([`crate::WhenFull`]); by default the newest is dropped and counted.
    pub queued_messages: u32,
    /// Memory of the messages that wait or are on their way, per session, bytes (1,000,000). Above
    /// it as above it of messages. A message is counted in each session that has it.
    pub session_bytes: u32,
    /// Messages that wait beyond a short head are left to the store alone (off): it has to be one that answers
    /// [`Output::Load`](crate::Output::Load).
    pub spills: bool,
    /// Of the messages that only the store has, per session, bytes (16,777,216). Above it as above the
    /// other two. A class that drops the oldest may have twice as much until they have been read.
    pub session_store_bytes: u32,
    /// Bytes given to a connection that the transport has not taken yet (65,536). Above it
    /// messages wait in the session's queue; above twice this much (by acknowledgements) nothing
    /// is read from the client.
    pub send_buffer_bytes: u32,
    /// Bidirectional streams that a QUIC client may have open, the control stream too (10). More: the transport
    /// refuses them.
    pub streams: u16,
    /// Datagrams of QUIC clients that ask for them (on): the transport has to offer them.
    pub datagrams: bool,
    /// Subscriptions per session (1,000). More: SUBACK 0x97.
    pub subscriptions_per_session: u32,
    /// Levels of a Topic Filter or Topic Name (64). More: SUBACK 0x97, PUBLISH 0x90.
    pub topic_levels: u16,
    /// Topic Aliases of one connection, in each direction (16): announced as Topic Alias Maximum.
    /// More: DISCONNECT 0x94. Worst case: this many of the client's longest topics, and as many of
    /// 1,024 bytes.
    pub topic_aliases: u16,
    /// How long a client may go on above its quota class's rates before its packets are policed in the kernel,
    /// seconds (5).
    pub penalty_after_s: u32,
    /// How long it has to stay within them until that ends, seconds (10).
    pub penalty_ends_after_s: u32,
    /// How long a full queue may take until it is half empty, milliseconds (5,000). Until then publishers wait, if its
    /// class blocks ([`crate::WhenFull::Block`]); later they go on, and it drops what comes. And until then a client that
    /// has come back to one is not disconnected ([`crate::WhenFull::Disconnect`]).
    pub full_queue_ms_max: u32,
    /// Topics in the worker's match cache (4,096).
    pub topic_cache_entries: usize,
}

impl Default for CoreLimits {
    fn default() -> Self {
        Self {
            sessions: 1_000_000,
            client_id_bytes: 256,
            connect_timeout_s: 10,
            idle_ceiling_s: 3_600,
            keep_alive_max_s: u16::MAX,
            session_expiry_max_s: 7 * 24 * 3_600,
            held_packets: 64,
            packet_bytes: 256 * 1024,
            receive_maximum: 256,
            inflight_messages: 256,
            queued_messages: 1_000,
            session_bytes: 1_000_000,
            spills: false,
            session_store_bytes: 16 * 1024 * 1024,
            send_buffer_bytes: 64 * 1024,
            streams: 10,
            datagrams: true,
            subscriptions_per_session: 1_000,
            topic_levels: 64,
            topic_aliases: 16,
            penalty_after_s: 5,
            penalty_ends_after_s: 10,
            full_queue_ms_max: 5_000,
            topic_cache_entries: 4_096,
        }
    }
}

/// Limits of the store of retained messages, which all workers share. The server's own topics, which are few, don't count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetainedLimits {
    /// Messages (100,000). Above it a PUBLISH 5.0 with QoS > 0 is refused with 0x97; any other is
    /// delivered, not stored, and counted.
    pub messages: u32,
    /// Memory, bytes (268,435,456), counted with a fixed overhead for each message and level.
    pub bytes: u64,
}

impl Default for RetainedLimits {
    fn default() -> Self {
        Self {
            messages: 100_000,
            bytes: 256 * 1024 * 1024,
        }
    }
}
