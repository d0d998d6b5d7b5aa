//! What goes into the core and what comes out: every side effect is a variant of [`Output`].

use bytes::Bytes;
use headgate_codec::{Packet, ReasonCode, Text};
use std::{net::SocketAddr, sync::Arc};

use crate::{
    AuthResult, AuthStep, DataEnd, DataStream, Frame, Loaded, Mesh, QuotaLimits, Record,
    RestoredSession, RestoredWill, StorageState, Txn, Undone,
};

/// Milliseconds since the process started. The core has no clock: the driver says the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub u64);

impl Time {
    /// The time `seconds` later.
    #[must_use]
    pub fn after_s(self, seconds: u32) -> Self {
        self.after_ms(u64::from(seconds) * 1_000)
    }

    /// The time `milliseconds` later.
    #[must_use]
    pub fn after_ms(self, milliseconds: u64) -> Self {
        Self(self.0.saturating_add(milliseconds))
    }
}

/// Index of a worker in the `workers` map; the third part of a connection ID's server id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct WorkerSlot(pub u8);

/// A network connection of one worker. The driver gives them out; the generation tells a late
/// reference to a connection that is gone from its successor in the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    /// Place in the worker's slab.
    pub index: u32,
    /// Grows each time that the place is reused.
    pub generation: u32,
}

/// A session for as long as it lives, wherever it moves: unique over nodes and restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId {
    /// The node that made it.
    pub node: u16,
    /// That node's start number.
    pub epoch: u32,
    /// Worker slot in the top octet, then a counter.
    pub counter: u64,
}

/// Where a session is at home: {node, worker, slot in its core}, and which of the owners in
/// turn this is. A Persist or Deliver with an older `epoch` is stale and refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Node id.
    pub node: u16,
    /// Worker on the node.
    pub worker: WorkerSlot,
    /// Place in that worker's session slab.
    pub slot: u32,
    /// Grows by one with each owner: the session's epoch.
    pub epoch: u32,
}

/// An operation of one worker, counted up; its completion names it. The top 16 bits hold the
/// worker's incarnation, so that a late completion or answer names nothing of a successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct OpId(pub u64);

/// What carries a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// QUIC (RFC 9000), control stream.
    Quic,
    /// TCP.
    Tcp,
    /// TLS over TCP.
    Tls,
    /// WebSocket (RFC 6455) over TCP.
    WebSocket,
    /// WebSocket over TLS.
    WebSocketTls,
}

/// A client's certificate, which the transport has verified against the configured authorities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The subject's first Common Name (RFC 5280 §4.1.2.6); `None` if it has none, or one that
    /// is no UTF-8 Encoded String (MQTT 5.0 §1.5.4).
    pub common_name: Option<Text>,
}

/// What is known of the other side when a connection opens.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address (a v4-mapped v6 address is given as v4).
    pub address: SocketAddr,
    /// What carries the connection.
    pub transport: Transport,
    /// The client's certificate, if it has shown one. A word when it hasn't, as most don't.
    pub certificate: Option<Arc<ClientCertificate>>,
    /// Its handshake is not complete: what it says came as 0-RTT data (RFC 9001 §4.6), which somebody else may have
    /// recorded. [`Input::Confirmed`] ends that.
    pub early: bool,
}

/// Everything that can happen to the core.
#[derive(Debug)]
pub enum Input {
    /// A connection is open for MQTT (QUIC: its control stream was opened).
    Opened {
        /// The new connection.
        conn: ConnId,
        /// Who it is.
        peer: Peer,
    },
    /// The handshake of a connection that was opened `early` is complete.
    Confirmed {
        /// Which connection.
        conn: ConnId,
    },
    /// A packet arrived.
    Packet {
        /// On which connection.
        conn: ConnId,
        /// The packet.
        packet: Packet,
    },
    /// A packet arrived on a data stream; after [`Output::Ready`].
    DataPacket {
        /// On which connection.
        conn: ConnId,
        /// On which of its data streams.
        stream: DataStream,
        /// The packet.
        packet: Packet,
    },
    /// A packet arrived in a datagram (RFC 9221) of a connection; after [`Output::Ready`].
    Datagram {
        /// On which connection.
        conn: ConnId,
        /// The packet.
        packet: Packet,
    },
    /// A data stream has ended, in one way or the other.
    DataEnded {
        /// Which connection.
        conn: ConnId,
        /// Which of its data streams.
        stream: DataStream,
        /// How.
        how: DataEnd,
    },
    /// The bytes of a connection stopped being MQTT; nothing more will come from it.
    Malformed {
        /// Which connection.
        conn: ConnId,
        /// The reason code for DISCONNECT (or CONNACK, before the session is up).
        reason: ReasonCode,
    },
    /// A connection is gone, without anything having been said by the core. After an
    /// [`Output::Close`] the core has forgotten the connection, and this input is optional.
    Closed {
        /// Which connection.
        conn: ConnId,
    },
    /// The transport has taken bytes of earlier Sends; more may follow.
    Flushed {
        /// Which connection.
        conn: ConnId,
        /// How many bytes.
        bytes: u32,
    },
    /// The same for a data stream, and for datagrams that stand for its bytes, whatever became of them.
    DataFlushed {
        /// Which connection.
        conn: ConnId,
        /// Which of its data streams.
        stream: DataStream,
        /// How many bytes.
        bytes: u32,
    },
    /// A message of another worker.
    Mesh {
        /// Who sent it.
        from: WorkerSlot,
        /// What it says.
        message: Mesh,
    },
    /// An operation has completed.
    Completed(Completion),
    /// Another worker has stopped (a panic) and lost what it had; a successor may take its slot.
    /// What this worker expects from it will not come.
    WorkerGone {
        /// Which worker.
        worker: WorkerSlot,
    },
    /// `Core::next_timeout` has passed.
    Timeout,
    /// The server shuts down: say so to every client (0x8B).
    Shutdown,
    /// Send the clients to another server and take no new ones; `None` = take them again.
    Drain(Option<Drain>),
    /// What the quota classes may use from now on, by class; the first is the default one.
    Quotas(Arc<[QuotaLimits]>),
    /// How short the machine runs from now on.
    Pressure(Pressure),
    /// A retained message of the server itself, QoS 0, for a topic below `$SYS`. It is not recorded.
    Publish {
        /// Topic Name.
        topic: Text,
        /// Application Message.
        payload: Bytes,
    },
    /// What the store can do has changed. While it isn't all well, what would need it is refused before
    /// anything of it is recorded; all else goes on.
    Storage(StorageState),
    /// A session of an earlier run, or of a former worker in this place, lives here from now on. Until its
    /// Claim has been answered, no other Claim for the client may be.
    Restore(Box<RestoredSession>),
    /// A will that is still to be published, once all sessions are there. What this worker has recorded itself since it
    /// began may be among them.
    RestoreWill(RestoredWill),
    /// Messages that some worker has lost its part of are not recorded. Comes ahead of the completion of whatever was
    /// recorded behind them.
    Undone(Arc<Undone>),
    /// All sessions of an earlier run, or of a worker that was lost, are there
    /// ([`Shared::finish_restoring`](crate::Shared::finish_restoring)): what has waited for that goes on.
    SessionsRestored,
    /// All retained messages of an earlier run are there ([`Retained::finish_loading`](crate::Retained::finish_loading)).
    RetainedLoaded,
}

/// What a worker gives up because the machine runs short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// New clients: CONNACK 0x89 (Server busy).
    pub refuse_clients: bool,
    /// Messages with QoS 0 that would have to wait.
    pub drop_qos0: bool,
    /// Connections of consumers for which messages wait, those with the most bytes first, until so many bytes are free:
    /// DISCONNECT 0x97 (Quota exceeded). `None` = none; 0 = the slowest few in a while.
    pub close_slow_bytes: Option<u64>,
}

/// Where the clients of a node that is drained should go (MQTT 5.0 §4.11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Server Reference, for example `other.example:8883`.
    pub server_reference: Option<String>,
    /// For good (0x9D) rather than for now (0x9C).
    pub moved: bool,
    /// Clients of this worker that are sent away, per second; at least ten.
    pub clients_per_second: u32,
}

/// The end of an operation that an [`Output`] began.
#[derive(Debug)]
pub enum Completion {
    /// Every Persist up to this one is safe at the configured level.
    Persisted {
        /// The last one.
        up_to: OpId,
    },
    /// The directory's answer to a [`Output::Claim`].
    Claimed {
        /// The Claim's operation.
        op: OpId,
        /// `Ok`: the claim holds. `Err`: someone else is the owner (now).
        result: Result<(), Option<Owner>>,
    },
    /// The answer to an [`Output::Load`].
    Loaded {
        /// The Load's operation.
        op: OpId,
        /// Its handle.
        handle: u64,
        /// Entries of the queue, by sequence.
        messages: Vec<Loaded>,
        /// There were more.
        more: bool,
        /// The store can't read: nothing is known of the queue.
        failed: bool,
    },
    /// The answer to an [`Output::Recover`].
    Recovered {
        /// The operation of the Recover.
        op: OpId,
        /// What the store has; `None` = no session of this client.
        session: Option<Box<RestoredSession>>,
    },
    /// The answer to an [`Output::Authenticate`].
    Authenticated {
        /// The step's operation.
        op: OpId,
        /// Whose it is.
        conn: ConnId,
        /// Granted, refused, or more is needed.
        result: AuthResult,
    },
}

/// Everything that the core wants done. One executor (the worker's driver) does it, in order.
#[derive(Debug)]
pub enum Output {
    /// Append to what the connection sends.
    Send {
        /// Which connection.
        conn: ConnId,
        /// What.
        frame: Frame,
    },
    /// CONNACK with success was sent, and the handshake is complete: data streams may be read from now on.
    Ready {
        /// Which connection.
        conn: ConnId,
        /// Bidirectional streams that it may have open, the control stream too.
        streams: u16,
        /// Datagrams of the client as well.
        datagrams: bool,
    },
    /// Append to what a data stream sends. A stream that is gone sends nothing.
    SendData {
        /// Which connection.
        conn: ConnId,
        /// Which of its data streams.
        stream: DataStream,
        /// What.
        frame: Frame,
    },
    /// Send a PUBLISH in a datagram, if it fits into one; otherwise as Send or SendData do. It counts for the
    /// stream's bytes in either case.
    SendDatagram {
        /// Which connection.
        conn: ConnId,
        /// The data stream that stands in; `None` = the control stream.
        stream: Option<DataStream>,
        /// A whole PUBLISH with QoS 0 and without Topic Alias.
        publish: Bytes,
    },
    /// End a data stream once everything sent so far has left.
    EndData {
        /// Which connection.
        conn: ConnId,
        /// Which of its data streams.
        stream: DataStream,
    },
    /// Reset a data stream in both directions, because of what came on it. No [`Input::DataEnded`] is needed.
    ResetData {
        /// Which connection.
        conn: ConnId,
        /// Which of its data streams.
        stream: DataStream,
        /// Why: the application error code of RESET_STREAM and STOP_SENDING.
        reason: ReasonCode,
    },
    /// Close the connection once everything sent so far has left.
    Close {
        /// Which connection.
        conn: ConnId,
        /// Why: the MQTT reason (QUIC maps it to an application error code).
        reason: ReasonCode,
    },
    /// Stop or go on reading from a connection: back pressure.
    Read {
        /// Which connection.
        conn: ConnId,
        /// Go on, or stop.
        enabled: bool,
    },
    /// Send to another worker, in order. A full ring is the driver's business: it stops reading
    /// from `origin` until there is room.
    Mesh {
        /// Which worker.
        to: WorkerSlot,
        /// The publisher's connection, if one caused this.
        origin: Option<ConnId>,
        /// What.
        message: Mesh,
    },
    /// Record something that must survive; acknowledgements wait for its completion.
    Persist {
        /// This operation.
        op: OpId,
        /// Whose.
        session: SessionId,
        /// Its owner's epoch: an older one is refused.
        epoch: u32,
        /// Grows with the records of this session; 0 for `Retained`.
        sequence: u64,
        /// What.
        record: Record,
    },
    /// The records of this input (of one call of `Core::handle`) are a part of something bigger: they become
    /// safe together with all other parts, once the parts' weights come to [`Txn::WHOLE`].
    Join {
        /// Of what.
        txn: Txn,
        /// How much of it.
        weight: u32,
    },
    /// What was recorded of this input before, and what follows, need not become safe together.
    Divide,
    /// Some part will not come: the others become safe without it, or not at all if the transaction `repeats`.
    Unjoin {
        /// Of what.
        txn: Txn,
    },
    /// Read from a session's queue in the store. The answer knows every record that any worker has made
    /// before this.
    Load {
        /// This operation.
        op: OpId,
        /// Whose queue.
        session: SessionId,
        /// Goes back with the answer.
        handle: u64,
        /// Only what comes after this sequence.
        after: u64,
        /// At most this many entries, and at least one if there is any.
        messages_max: u16,
        /// No more entries once their messages cost this much, bytes.
        bytes_max: u32,
    },
    /// This worker owns a client now, and the worker that had its session was lost: find the session in the store. The
    /// answer knows every record that any worker, the lost one too, has made before this.
    Recover {
        /// This operation.
        op: OpId,
        /// Client Identifier.
        client_id: Text,
    },
    /// Compare-and-set in the directory: `client_id` belongs to `new` if its owner is `expected`.
    Claim {
        /// This operation.
        op: OpId,
        /// Client Identifier.
        client_id: Text,
        /// The owner that is replaced.
        expected: Option<Owner>,
        /// The new owner; `None` removes the entry.
        new: Option<Owner>,
    },
    /// Find out who a client is. Until the completion names the operation, the connection waits,
    /// at most for `connect_timeout_s`; after a [`Output::Close`] no completion is needed.
    Authenticate {
        /// This operation.
        op: OpId,
        /// Whose client.
        conn: ConnId,
        /// What the client shows.
        step: AuthStep,
    },
    /// Police a connection's packets in the kernel by what its quota class may use, or no more. A connection that is
    /// closed needs no end of it.
    Penalty {
        /// Which connection.
        conn: ConnId,
        /// Its quota class; `None` = the penalty is over.
        class: Option<u8>,
    },
}
