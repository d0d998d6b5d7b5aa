//! What workers say to each other.

use std::sync::Arc;

use headgate_codec::Text;

use crate::{ConnId, OpId, Owner, Publisher, Session, Txn, WorkerSlot, message::Message};

/// What workers say to each other. Between two workers everything stays in the order in which it
/// was sent, deliveries and control messages alike.
#[derive(Debug)]
pub enum Mesh {
    /// Deliver one message to sessions of the receiving worker.
    Deliver(Box<Delivery>),
    /// Control: give up the session of this client to the sender.
    Takeover(Box<Takeover>),
    /// Control: the answer to `Takeover`.
    Moved(Box<Moved>),
    /// Control: keeps the order of messages while a session moves.
    Fence(Fence),
    /// Control: the answer to a [`Delivery`] with a receipt. A driver that has to drop such a
    /// delivery answers in the receiver's place with `stored: false`.
    Stored {
        /// The delivery's receipt.
        receipt: Receipt,
        /// The delivery's weight.
        weight: u32,
        /// The receiving worker has recorded the message for all targets that need it.
        stored: bool,
    },
    /// Control: a publisher of the receiving worker has to wait, or may go on.
    Hold {
        /// The publisher's connection.
        conn: ConnId,
        /// The handle of the session whose queue is full, or has room.
        session: u64,
        /// It has to wait.
        on: bool,
    },
}

impl Mesh {
    /// Control messages use the ring's reserved slots and are never dropped.
    pub fn is_control(&self) -> bool {
        !matches!(self, Self::Deliver(_))
    }
}

/// Names an acknowledgement that the sender of a [`Delivery`] holds back until the receiver has
/// recorded the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The publisher's worker.
    pub worker: WorkerSlot,
    /// The publisher's connection.
    pub conn: ConnId,
    /// Counts the acknowledgements of that connection.
    pub serial: u32,
}

/// A mark that follows the last deliveries to a session's old home. The new home asks every
/// worker; each sends the mark to the old home, behind its deliveries; the old home sends it on
/// to the new one, behind what it forwarded. Until then the new home holds back what reaches it
/// directly, so that messages of one publisher stay in order \[MQTT-4.6.0-5\].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// How far it is.
    pub leg: FenceLeg,
    /// The session's handle at its new home.
    pub session: u64,
    /// The new home.
    pub home: WorkerSlot,
    /// The old home.
    pub via: WorkerSlot,
}

/// The legs of a [`Fence`]'s way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceLeg {
    /// New home → each worker.
    Ask,
    /// Each worker → old home.
    Pass,
    /// Old home → new home.
    Done,
}

/// One message and the sessions of one worker that get it.
#[derive(Debug)]
pub struct Delivery {
    /// The message, shared.
    pub message: Arc<Message>,
    /// Who has published it, if that client can be told to wait.
    pub publisher: Option<Publisher>,
    /// Who gets it.
    pub targets: Vec<Target>,
    /// The publisher's acknowledgement waits for [`Mesh::Stored`].
    pub receipt: Option<Receipt>,
    /// What is recorded because of it is a part of this. A driver that drops the delivery says
    /// [`crate::Output::Unjoin`] to the store.
    pub txn: Option<Txn>,
    /// This delivery's share of the receipt and of the transaction: one that is sent on is split.
    pub weight: u32,
}

/// One session in a delivery plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The subscriber's handle as it stands in the topic table.
    pub subscriber: headgate_topics::Subscriber,
    /// The group of a Shared Subscription that it gets the message as a member of; 0 = none.
    pub group: u32,
}

/// "Give me the session of this client."
#[derive(Debug)]
pub struct Takeover {
    /// The asking worker's operation.
    pub op: OpId,
    /// Client Identifier.
    pub client_id: Text,
    /// The owner that was found in the directory; anything newer refuses.
    pub expected: Owner,
    /// Who owns it from now on (the directory knows already).
    pub new: Owner,
    /// The session's handle there: late deliveries are sent on to it.
    pub handle: u64,
    /// Clean Start: the session ends instead of moving.
    pub discard: bool,
}

/// The session of a [`Takeover`], by value.
#[derive(Debug)]
pub struct Moved {
    /// The asking worker's operation.
    pub op: OpId,
    /// What becomes of the session.
    pub handed: Handed,
}

/// What a former owner gives of a session.
#[derive(Debug)]
pub enum Handed {
    /// There was none, or it was never recorded.
    Nothing,
    /// It has ended, and that is recorded.
    Ended,
    /// The session.
    Session(Box<Session>),
}
