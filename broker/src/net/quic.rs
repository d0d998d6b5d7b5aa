//! QUIC connections of one worker: quinn-proto driven directly.
//!
//! MQTT runs on the first client-initiated bidirectional stream, the control stream. Its end is
//! the end of the connection. Further ones are data streams.

mod arrival;
mod data;
pub mod error_code;
pub mod guard;
mod opening;
pub mod qlog;
mod resets;
mod streams;
mod unvalidated;
mod window;

use crate::{
    kernel::PenaltyOrder,
    limits::{Admission, Limit},
    metrics::{DatagramDrop, Transport, WorkerMetrics},
    net::{
        tls::{Decryptions, TicketStore},
        udp::{SendBatch, SendCounters, UdpSocket},
    },
    worker::{
        Clock,
        conns::{Conn, Conns, Link, PREFETCH_AHEAD},
    },
};
pub use arrival::Arrival;
use arrival::Arrived;
use bytes::{Bytes, BytesMut};
pub use data::{DataArrived, DataLimits, DataStreams, STREAMS_AT_FIRST};
use guard::{Guard, Record};
use headgate_codec::ReasonCode;
use headgate_core::{ClientCertificate, ConnId};
use opening::Queue;
use qlog::Qlogs;
use quinn_proto::{
    Connection, ConnectionError, ConnectionHandle, DatagramEvent, Dir, Endpoint, Event, Side,
    StreamEvent, StreamId, TransportErrorCode, VarInt,
};
use resets::ResetBudget;
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};
pub use streams::StreamEnd;
use unvalidated::Unvalidated;
use window::Window;

/// Datagrams of one connection that leave in one GSO batch, at most.
const GSO_DATAGRAMS_MAX: usize = 32;

/// How long a closing connection may take to have its last bytes acknowledged.
const LINGER: Duration = Duration::from_secs(1);

/// The control stream: the first that the client opens.
fn control_stream() -> StreamId {
    StreamId::new(Side::Client, Dir::Bi, 0)
}

/// A QUIC connection.
#[derive(Debug)]
pub struct QuicLink {
    handle: ConnectionHandle,
    connection: Connection,
    /// The client has opened the control stream.
    control: bool,
    /// The control stream may have something to read.
    readable: bool,
    /// What was written last has not been taken; wait for `Writable`.
    blocked: bool,
    /// FIN is written; close at the latest then.
    linger: Option<Instant>,
    /// Handshake confirmed (counted).
    connected: bool,
    /// Until the client has shown that it receives what is sent to its address.
    unvalidated: Option<Box<Unvalidated>>,
    window: Window,
    /// Its connection IDs, and how it behaves.
    record: Record,
    /// Bidirectional streams that it may have open once the session is up; 0 = data streams aren't read yet.
    streams_max: u16,
    /// The client opens streams too fast.
    refused: bool,
    /// Data streams and datagrams, if the client uses them.
    data: Option<Box<DataStreams>>,
}

impl QuicLink {
    /// Whether MQTT can flow: the handshake is complete, or the control stream was opened by 0-RTT data. Nothing else
    /// of a stream is read before the handshake is complete.
    pub fn is_established(&self) -> bool {
        self.connected || self.control
    }

    /// Whether what comes is 0-RTT data.
    pub fn is_early(&self) -> bool {
        self.control && !self.connected
    }

    /// Its memory, without what quinn-proto and rustls allocate.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.data.as_ref().map_or(0, |data| data.memory_bytes())
    }

    /// What is known of the path.
    pub fn path_account(&self) -> PathAccount {
        let stats = self.connection.stats();
        PathAccount {
            rtt: self.connection.rtt(),
            mtu: stats.path.current_mtu,
            congestion_window: stats.path.cwnd,
            packets_sent: stats.path.sent_packets,
            packets_lost: stats.path.lost_packets,
            datagrams_received: stats.udp_rx.datagrams,
            datagrams_sent: stats.udp_tx.datagrams,
            data_streams: self.data_places(),
        }
    }

    /// The client's verified certificate.
    pub fn certificate(&self) -> Option<Arc<ClientCertificate>> {
        let identity = self.connection.crypto_session().peer_identity()?;
        identity.downcast().ok().map(|certificate| *certificate)
    }
}

/// What QUIC knows of the path to a client (RFC 9002).
#[derive(Clone, Copy, Debug)]
pub struct PathAccount {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Maximum datagram size, bytes.
    pub mtu: u16,
    /// Congestion window, bytes.
    pub congestion_window: u64,
    /// QUIC packets sent.
    pub packets_sent: u64,
    /// Those of them that were declared lost.
    pub packets_lost: u64,
    /// UDP datagrams from the client.
    pub datagrams_received: u64,
    /// UDP datagrams to it.
    pub datagrams_sent: u64,
    /// Data streams that are open.
    pub data_streams: usize,
}

/// What became of a connection when it was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Goes on.
    Alive,
    /// The peer or the network has ended it: the core must hear of it.
    Lost,
    /// Nothing is left of it: remove it.
    Drained,
}

/// The QUIC half of a worker.
pub struct QuicSide {
    endpoint: Endpoint,
    settings: QuicSideSettings,
    resets: ResetBudget,
    socket: Arc<UdpSocket>,
    send: SendBatch,
    /// quinn-proto's handle → place in the slab.
    places: Vec<u32>,
    /// What has arrived in this batch, by place; at most as many as a batch holds.
    arrivals: VecDeque<Arrived>,
    /// What quinn-proto writes datagrams into.
    buffer: Vec<u8>,
    /// Small frames of one connection, joined.
    joined: Vec<u8>,
    accepting: bool,
    /// Packets of new connections that wait.
    queue: Queue,
    guard: Guard,
}

/// What the QUIC half of a worker has to know besides its endpoint.
#[derive(Clone, Debug)]
pub struct QuicSideSettings {
    /// Sessions that can be resumed, of all workers.
    pub tickets: Arc<TicketStore>,
    /// Stateless resets per second.
    pub resets_per_second: u32,
    /// Packets of new connections that may wait, of this worker.
    pub initials_waiting: usize,
    /// Bytes that a client may send before they are read, when it connects.
    pub receive_window_bytes: u32,
    /// The same for a client that uses them, and on one stream.
    pub receive_window_bytes_max: u32,
    /// Whose connection is written down.
    pub qlogs: Arc<Qlogs>,
    /// What data streams may have.
    pub data: DataLimits,
}

impl QuicSide {
    /// Sends through the worker's socket of the reuseport group.
    pub fn new(
        endpoint: Endpoint,
        settings: QuicSideSettings,
        socket: Arc<UdpSocket>,
        guard: Guard,
    ) -> Self {
        Self {
            endpoint,
            resets: ResetBudget::new(settings.resets_per_second),
            queue: Queue::new(settings.initials_waiting),
            settings,
            socket,
            send: SendBatch::new(),
            places: Vec::new(),
            arrivals: VecDeque::new(),
            buffer: Vec::with_capacity(64 * 1024),
            joined: Vec::with_capacity(64 * 1024),
            accepting: true,
            guard,
        }
    }

    /// Shows quinn-proto a datagram. Returns the connection if this one is new; what belongs to a known one waits for
    /// [`QuicSide::deliver`].
    fn show(
        &mut self,
        arrival: Arrival<'_>,
        conns: &mut Conns,
        admission: &Arc<Admission>,
        metrics: &WorkerMetrics,
        clock: Clock,
    ) -> Option<ConnId> {
        self.buffer.clear();
        let event = self.endpoint.handle(
            clock.now,
            arrival.source,
            arrival.destination,
            arrival.ecn,
            BytesMut::from(arrival.data),
            &mut self.buffer,
        );
        let is_known = match &event {
            Some(DatagramEvent::ConnectionEvent(..)) => true,
            // A Retry packet of ours named the connection ID, and its token has come back.
            Some(DatagramEvent::NewConnection(incoming)) => incoming.remote_address_validated(),
            _ => false,
        };
        if !is_known {
            self.guard.orphaned(arrival.data, clock.now);
        }
        match event? {
            DatagramEvent::ConnectionEvent(handle, event) => {
                let index = *self.places.get(handle.0)?;
                conns.prefetch(index);
                self.arrivals.push_back(Arrived {
                    index,
                    event,
                    bytes: arrival.data.len(),
                    is_own: arrival.is_own,
                });
                None
            }
            DatagramEvent::NewConnection(incoming) => {
                let bytes = arrival.data.len();
                self.accept((incoming, bytes), conns, admission, metrics, clock)
            }
            // Only a stateless reset answers a short header (RFC 9000 §17.3).
            DatagramEvent::Response(_)
                if arrival.data.first().is_some_and(|first| first & 0x80 == 0)
                    && !self.resets.take(clock.now) =>
            {
                metrics.datagrams_dropped[DatagramDrop::ResetBudget].inc();
                None
            }
            DatagramEvent::Response(transmit) => {
                metrics.stateless_responses.inc();
                self.send.push(&transmit, &self.buffer);
                None
            }
        }
    }

    /// Gives the connections what has arrived for them. The state of each is fetched while the ones before it work: a
    /// worker's connections are more than its cache holds.
    pub fn deliver(&mut self, conns: &mut Conns, clock: Clock) {
        for ahead in self.arrivals.iter().take(PREFETCH_AHEAD) {
            conns.prefetch_link(ahead.index);
        }
        while let Some(arrived) = self.arrivals.pop_front() {
            if let Some(ahead) = self.arrivals.get(PREFETCH_AHEAD - 1) {
                conns.prefetch_link(ahead.index);
            }
            if let Some(Conn {
                link: Link::Quic(link),
                ..
            }) = conns.at(arrived.index)
            {
                if arrived.is_own {
                    link.unvalidated = None;
                } else if let Some(address) = &mut link.unvalidated {
                    address.received(arrived.bytes);
                }
                let before = Decryptions::so_far();
                link.connection.handle_event(arrived.event);
                let opened = Decryptions::since(before);
                if opened.failed == 0 {
                    link.record.trust(opened.authentic);
                } else {
                    let peer = link.connection.remote_address().ip();
                    self.guard
                        .forged(&mut link.record, opened.failed, peer, clock.now);
                }
                conns.schedule(arrived.index);
            }
        }
    }

    /// Takes what quinn-proto has to say about a connection.
    pub fn poll_events(&mut self, link: &mut QuicLink, metrics: &WorkerMetrics) -> Progress {
        let mut progress = Progress::Alive;
        while let Some(event) = link.connection.poll() {
            match event {
                Event::Connected => {
                    link.connected = true;
                    metrics.connections_opened[Transport::Quic].inc();
                }
                Event::Stream(StreamEvent::Opened { dir: Dir::Bi }) => {
                    self.accept_streams(link, metrics);
                }
                Event::Stream(StreamEvent::Readable { id }) if id == control_stream() => {
                    link.readable = true;
                }
                Event::Stream(StreamEvent::Writable { id }) if id == control_stream() => {
                    link.blocked = false;
                }
                Event::Stream(StreamEvent::Finished { id }) if id == control_stream() => {
                    // All that we said has been acknowledged: no need to linger.
                    link.linger = link.linger.map(|_| Instant::now());
                }
                Event::Stream(StreamEvent::Stopped { id, .. }) if id == control_stream() => {
                    progress = Progress::Lost;
                }
                Event::Stream(StreamEvent::Readable { id }) => link.data_readable(id),
                Event::Stream(StreamEvent::Writable { id }) => link.data_writable(id),
                Event::Stream(StreamEvent::Finished { id }) => link.data_finished(id),
                Event::Stream(StreamEvent::Stopped { id, .. }) => link.data_stopped(id),
                Event::DatagramReceived => link.datagram_arrived(),
                Event::ConnectionLost { reason } => {
                    tracing::debug!(%reason, "connection lost");
                    if !link.connected {
                        metrics.handshakes_failed[Transport::Quic].inc();
                    }
                    if is_beyond_stream_limit(&reason) {
                        metrics.refused[Limit::StreamsPerConnection].inc();
                    }
                    progress = Progress::Lost;
                }
                _ => {}
            }
        }
        self.endpoint_events(link);
        progress
    }

    fn endpoint_events(&mut self, link: &mut QuicLink) {
        while let Some(event) = link.connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(link.handle, event) {
                link.connection.handle_event(event);
            }
            self.guard.note(&mut link.record);
        }
    }

    /// Has a connection's packets policed by the rates of a class, or anew if they are already.
    pub fn penalize(&mut self, link: &mut QuicLink, order: PenaltyOrder, clock: Clock) {
        self.guard.penalize(&mut link.record, order, clock.now);
    }

    /// Lets a connection go on as before.
    pub fn pardon(&mut self, link: &mut QuicLink) {
        self.guard.pardon(&mut link.record);
    }

    /// Ends a connection for `reason` once all that was written has been acknowledged.
    pub fn finish(&mut self, link: &mut QuicLink, reason: ReasonCode, clock: Clock) {
        match link.linger {
            None if link.control && !link.connection.is_closed() => {
                let _already_reset = link.connection.send_stream(control_stream()).finish();
                link.linger = Some(clock.now + LINGER);
            }
            Some(until) if clock.now < until => {}
            _ => self.close(link, error_code::of(reason), clock),
        }
    }

    /// Closes the connection at once.
    pub fn close(&mut self, link: &mut QuicLink, code: u32, clock: Clock) {
        if !link.connection.is_closed() {
            link.connection
                .close(clock.now, VarInt::from_u32(code), Bytes::new());
        }
    }

    /// Lets the connection send. Returns when its timer is due, and whether it is over.
    pub fn transmit(&mut self, link: &mut QuicLink, clock: Clock) -> (Option<Instant>, Progress) {
        loop {
            self.buffer.clear();
            let bytes = link.connection.current_mtu();
            let allowed = link.unvalidated.as_ref();
            let allowed = allowed.map_or(GSO_DATAGRAMS_MAX, |address| address.datagrams(bytes));
            if allowed == 0 {
                break;
            }
            let transmit = link.connection.poll_transmit(
                clock.now,
                allowed.min(GSO_DATAGRAMS_MAX),
                &mut self.buffer,
            );
            let Some(transmit) = transmit else { break };
            if let Some(address) = &mut link.unvalidated {
                address.sent(transmit.size);
            }
            self.send.push(&transmit, &self.buffer);
            if self.send.is_full() {
                self.flush();
            }
        }
        self.endpoint_events(link);
        if link.connection.is_drained() {
            return (None, Progress::Drained);
        }
        let timeout = match (link.connection.poll_timeout(), link.linger) {
            (Some(a), Some(b)) if !link.connection.is_closed() => Some(a.min(b)),
            (a, _) => a,
        };
        (timeout, Progress::Alive)
    }

    /// A timer of the connection may be due.
    pub fn timeout(link: &mut QuicLink, clock: Clock) {
        if link
            .connection
            .poll_timeout()
            .is_some_and(|at| at <= clock.now)
        {
            link.connection.handle_timeout(clock.now);
        }
    }

    /// Forgets a drained connection.
    pub fn forget(&mut self, link: &mut QuicLink) {
        self.guard.pardon(&mut link.record);
        if let Some(place) = self.places.get_mut(link.handle.0) {
            *place = u32::MAX;
        }
    }

    /// Sends what has been collected.
    pub fn flush(&mut self) {
        if let Err(error) = self.send.flush(&self.socket) {
            tracing::debug!(%error, "UDP send failed; QUIC repeats what was lost");
        }
    }

    /// Whether the socket was full: what is unsent goes with the next flush.
    pub fn has_unsent(&self) -> bool {
        !self.send.is_empty()
    }

    /// Tickets, of all workers, that were forgotten since because there were too many.
    pub fn take_forgotten_tickets(&self) -> u64 {
        self.settings.tickets.take_forgotten()
    }

    /// What the sender has counted.
    pub fn send_counters(&self) -> &SendCounters {
        self.send.counters()
    }
}

/// Whether a connection has ended because its client opened more streams than it had credit for (RFC 9000 §4.6).
fn is_beyond_stream_limit(reason: &ConnectionError) -> bool {
    matches!(reason, ConnectionError::TransportError(error)
        if error.code == TransportErrorCode::STREAM_LIMIT_ERROR)
}
