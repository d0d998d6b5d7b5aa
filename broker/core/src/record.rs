//! What must survive: the records that the core hands to the store, and what it takes back after a restart.

use headgate_codec::{PacketId, QoS, Text, Version, Will};
use std::sync::Arc;

use crate::{OpId, SessionId, Time, WorkerSlot, message::Message};

/// A record for the store. All records of a session together say what the session is.
///
/// A session's queue is what has a `Queued` and no `Acknowledged` or `Completed`, in the order of the
/// `Queued` records' sequences.
#[derive(Clone, Debug)]
pub enum Record {
    /// A session has a new connection, or its attributes have changed.
    SessionOpened {
        /// Client Identifier.
        client_id: Text,
        /// Session Expiry Interval, seconds; `u32::MAX` = it doesn't expire.
        expiry_s: u32,
        /// The client's version of MQTT.
        version: Version,
        /// Messages with QoS > 0 that may be on their way on this connection.
        send_quota: u16,
        /// The Will Message of the connection.
        will: Option<Box<Will>>,
    },
    /// A session goes on without a connection.
    SessionClosed {
        /// When it ends; `None` = never.
        expires_at: Option<Time>,
        /// When its will is published; `None` = it has no will any more.
        will_at: Option<Time>,
        /// Of the queue, everything up to this sequence has been sent to the client at least once.
        sent_up_to: u64,
    },
    /// The session's will was published, and the session goes on.
    WillGone,
    /// A session ended with all that it had.
    SessionEnded,
    /// A will has come due and waits until all sessions are there; its own session may be gone. The record's session id
    /// names the will and nothing else.
    WillDue {
        /// What is to be published.
        message: Arc<Message>,
    },
    /// What a `WillDue` with the same id announced was published.
    WillPublished,
    /// A subscription was made or replaced.
    Subscribed {
        /// Topic Filter as the client gave it, `$share/…` too.
        filter: Text,
        /// Options octet as on the wire (MQTT 5.0 §3.8.3.1).
        options: u8,
        /// Subscription Identifier.
        subscription_id: Option<u32>,
    },
    /// A subscription was removed.
    Unsubscribed {
        /// Topic Filter.
        filter: Text,
    },
    /// A message with QoS > 0 is in the session's queue; the record's sequence names it.
    Queued {
        /// The message.
        message: Arc<Message>,
        /// The QoS with which this session gets it.
        qos: QoS,
        /// RETAIN with which this session gets it.
        retain: bool,
        /// Subscription Identifiers that go with it.
        ids: Option<Box<[u32]>>,
        /// The Packet Identifier with which it is sent, however often that is.
        packet_id: PacketId,
        /// The Topic Filter of the Shared Subscription that it came through.
        group: Option<Text>,
    },
    /// A queued message is done: acknowledged (PUBACK, PUBREC with an error), expired, too large to send,
    /// or another member's of a group.
    Acknowledged {
        /// Sequence of its `Queued`.
        queued: u64,
    },
    /// PUBREC has come for a queued message: of it only the Packet Identifier is kept, for PUBREL.
    PubRec {
        /// Sequence of its `Queued`.
        queued: u64,
    },
    /// The last step of a QoS 2 delivery (PUBCOMP).
    Completed {
        /// Sequence of its `Queued`.
        queued: u64,
    },
    /// An incoming QoS 2 message was accepted (its PUBREC may leave).
    Received {
        /// Packet Identifier.
        packet_id: PacketId,
    },
    /// An incoming QoS 2 message was released.
    Released {
        /// Packet Identifier.
        packet_id: PacketId,
    },
    /// The retained message of a topic was set; an empty payload removes it. What counts is what
    /// [`Retained::get`](crate::Retained::get) says when it is written: another worker may have set a later one.
    Retained {
        /// The message.
        message: Arc<Message>,
    },
}

/// Records of several workers that are safe together or not at all: what a message is to the session that sent
/// it (its Packet Identifier is known) and to those that get it (it is in their queues).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Txn {
    /// The worker that began it.
    pub worker: WorkerSlot,
    /// That worker's operation.
    pub op: OpId,
    /// It is a client's PUBLISH, which the client sends again unless it is acknowledged: if some part of it will not
    /// come, none of it is to be recorded, and the workers are told by an [`Undone`].
    pub repeats: bool,
}

/// What was to be recorded of messages that a part is missing of, and was not. Their publishers know of no PUBREC, and
/// nobody was sent them with QoS 2: they are as if they had never come, and come again.
#[derive(Clone, Debug, Default)]
pub struct Undone {
    /// Packet Identifiers that the publishers' sessions don't know.
    pub received: Vec<(SessionId, PacketId)>,
    /// Messages that are in the queue of no session.
    pub queued: Vec<(SessionId, Arc<Message>)>,
}

impl Txn {
    /// The weights of all its parts come to this.
    pub const WHOLE: u32 = 1 << 30;
}

/// What the store can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum StorageState {
    /// Everything.
    #[default]
    Ok,
    /// There is little room left: it writes what it must, and nothing new should come.
    Full,
    /// It can neither write nor read at the moment.
    Failed,
}

/// A session as the store has it after a restart.
#[derive(Clone, Debug)]
pub struct RestoredSession {
    /// Its name.
    pub id: SessionId,
    /// Client Identifier.
    pub client_id: Text,
    /// Epoch of its last owner.
    pub epoch: u32,
    /// The highest sequence of its records.
    pub sequence: u64,
    /// Session Expiry Interval, seconds.
    pub expiry_s: u32,
    /// The client's version of MQTT.
    pub version: Version,
    /// It had a connection, which is lost now: expiry and will count from now.
    pub is_connected: bool,
    /// When it ends; `None` = never. Of no meaning if it had a connection.
    pub expires_at: Option<Time>,
    /// Its Will Message.
    pub will: Option<Box<Will>>,
    /// When that is due; of no meaning if it had a connection.
    pub will_at: Option<Time>,
    /// Its subscriptions.
    pub subscriptions: Vec<RestoredSubscription>,
    /// Incoming QoS 2 messages that were accepted and not released.
    pub received: Vec<PacketId>,
    /// Its queue, which stays in the store.
    pub queue: QueueSummary,
}

/// A will that had come due and was not published when the server, or the worker that had it, was lost.
#[derive(Clone, Debug)]
pub struct RestoredWill {
    /// As in its `WillDue`.
    pub id: SessionId,
    /// What is to be published.
    pub message: Arc<Message>,
}

/// A subscription as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoredSubscription {
    /// Topic Filter as the client gave it.
    pub filter: Text,
    /// Options octet as on the wire.
    pub options: u8,
    /// Subscription Identifier.
    pub subscription_id: Option<u32>,
}

/// What has to be known of a queue that is in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueSummary {
    /// Entries, those with PUBREC included.
    pub count: u32,
    /// Sum of [`Message::cost`] over the messages, bytes.
    pub bytes: u32,
    /// Packet Identifier of the first entry; 0 = there is none.
    pub first_packet_id: u16,
    /// Packet Identifier of the last entry; 0 = there is none.
    pub last_packet_id: u16,
    /// As in the last `SessionClosed`.
    pub sent_up_to: u64,
    /// As in the last `SessionOpened`.
    pub send_quota: u16,
}

/// An entry of a queue, read from the store.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Sequence of its `Queued`.
    pub sequence: u64,
    /// The message; `None`: PUBREC has come, PUBREL is to be sent.
    pub message: Option<Arc<Message>>,
    /// As in its `Queued`.
    pub qos: QoS,
    /// As in its `Queued`.
    pub retain: bool,
    /// As in its `Queued`.
    pub ids: Option<Box<[u32]>>,
    /// As in its `Queued`.
    pub packet_id: PacketId,
    /// As in its `Queued`.
    pub group: Option<Text>,
}
