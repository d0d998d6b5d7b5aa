//! QUIC connections of one worker: quinn-proto driven directly.
//!
//! MQTT runs on the first client-initiated bidirectional stream, the control stream. Its end is
//! the end of the connection. Further ones are data streams.

mod data;

pub use data::{Arrived, DataLimits, DataStreams, STREAMS_AT_FIRST};

use crate::{
    limits::{Admission, Limit},
    mesh::ForeignDatagram,
    metrics::{Transport, WorkerMetrics},
    net::{
        framing::Inbox,
        tcp::canonical,
        udp::{Datagram, SendBatch, SendCounters, UdpSocket},
    },
    worker::{
        Clock,
        conns::{Conn, Conns, Link, Outbox, PREFETCH_AHEAD, append_frame},
    },
};
use bytes::{Bytes, BytesMut};
use headgate_codec::ReasonCode;
use headgate_core::{ClientCertificate, ConnId};
use quinn_proto::{
    Connection, ConnectionEvent, ConnectionHandle, DatagramEvent, Dir, Endpoint, Event, Incoming,
    Side, StreamEvent, StreamId, VarInt, WriteError,
};
use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

/// Datagrams of one connection that leave in one GSO batch, at most.
const GSO_DATAGRAMS_MAX: usize = 32;

/// How long a closing connection may take to have its last bytes acknowledged.
const LINGER: Duration = Duration::from_secs(1);

/// The control stream: the first that the client opens.
fn control_stream() -> StreamId {
    StreamId::new(Side::Client, Dir::Bi, 0)
}

/// Application error codes on CONNECTION_CLOSE, as the field has them.
pub mod error_code {
    /// Normal end.
    pub const NORMAL: u32 = 0;
    /// The control stream went down, or MQTT ended with an error.
    pub const CONTROL_STREAM_DOWN: u32 = 1;
    /// The server has no room.
    pub const OVERLOADED: u32 = 2;
}

fn application_error(reason: ReasonCode) -> u32 {
    match reason {
        ReasonCode::SUCCESS | ReasonCode::SERVER_SHUTTING_DOWN | ReasonCode::SESSION_TAKEN_OVER => {
            error_code::NORMAL
        }
        ReasonCode::SERVER_BUSY
        | ReasonCode::SERVER_UNAVAILABLE
        | ReasonCode::QUOTA_EXCEEDED
        | ReasonCode::MESSAGE_RATE_TOO_HIGH
        | ReasonCode::CONNECTION_RATE_EXCEEDED => error_code::OVERLOADED,
        _ => error_code::CONTROL_STREAM_DOWN,
    }
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
    /// The session is up: data streams may be read.
    ready: bool,
    /// The client opens streams too fast.
    refused: bool,
    /// The connection's receive window, as far as it was raised, bytes.
    receive_window: u32,
    /// Data streams and datagrams, if the client uses them.
    data: Option<Box<DataStreams>>,
}

impl QuicLink {
    /// Whether the handshake is complete.
    pub fn is_established(&self) -> bool {
        self.connected
    }

    /// The client's verified certificate.
    pub fn certificate(&self) -> Option<Arc<ClientCertificate>> {
        let identity = self.connection.crypto_session().peer_identity()?;
        identity.downcast().ok().map(|certificate| *certificate)
    }
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
    socket: Arc<UdpSocket>,
    send: SendBatch,
    /// quinn-proto's handle → place in the slab.
    places: Vec<u32>,
    /// What has arrived in this batch, by place; at most as many as a batch holds.
    arrivals: VecDeque<(u32, ConnectionEvent)>,
    /// What quinn-proto writes datagrams into.
    buffer: Vec<u8>,
    /// Small frames of one connection, joined.
    joined: Vec<u8>,
    data_limits: DataLimits,
    accepting: bool,
}

/// A datagram that quinn-proto shall see.
#[derive(Debug)]
pub struct Arrival<'a> {
    /// Sender.
    pub source: SocketAddr,
    /// Address that it was sent to.
    pub destination: Option<IpAddr>,
    /// ECN codepoint.
    pub ecn: Option<quinn_proto::EcnCodepoint>,
    /// UDP payload.
    pub data: &'a [u8],
}

impl<'a> From<&'a ForeignDatagram> for Arrival<'a> {
    fn from(d: &'a ForeignDatagram) -> Self {
        Self {
            source: d.source,
            destination: d.destination,
            ecn: d.ecn,
            data: &d.data,
        }
    }
}

impl<'a> From<Datagram<'a>> for Arrival<'a> {
    fn from(d: Datagram<'a>) -> Self {
        Self {
            source: d.source,
            destination: d.destination_ip,
            ecn: d.ecn,
            data: d.data,
        }
    }
}

impl QuicSide {
    /// Sends through the worker's socket of the reuseport group.
    pub fn new(endpoint: Endpoint, socket: Arc<UdpSocket>, data_limits: DataLimits) -> Self {
        Self {
            endpoint,
            socket,
            send: SendBatch::new(),
            places: Vec::new(),
            arrivals: VecDeque::new(),
            buffer: Vec::with_capacity(64 * 1024),
            joined: Vec::with_capacity(64 * 1024),
            data_limits,
            accepting: true,
        }
    }

    /// No new connections from now on: the server shuts down.
    pub fn stop_accepting(&mut self) {
        self.accepting = false;
    }

    /// Shows quinn-proto a datagram. Returns the connection if this one is new; what belongs to a known one waits for
    /// [`QuicSide::deliver`].
    pub fn arrived(
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
        match event? {
            DatagramEvent::ConnectionEvent(handle, event) => {
                let index = *self.places.get(handle.0)?;
                conns.prefetch(index);
                self.arrivals.push_back((index, event));
                None
            }
            DatagramEvent::NewConnection(incoming) => {
                self.incoming(incoming, conns, admission, metrics, clock)
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
    pub fn deliver(&mut self, conns: &mut Conns) {
        for &(index, _) in self.arrivals.iter().take(PREFETCH_AHEAD) {
            conns.prefetch_link(index);
        }
        while let Some((index, event)) = self.arrivals.pop_front() {
            if let Some(&(ahead, _)) = self.arrivals.get(PREFETCH_AHEAD - 1) {
                conns.prefetch_link(ahead);
            }
            if let Some(Conn {
                link: Link::Quic(link),
                ..
            }) = conns.at(index)
            {
                link.connection.handle_event(event);
                conns.schedule(index);
            }
        }
    }

    fn incoming(
        &mut self,
        incoming: Incoming,
        conns: &mut Conns,
        admission: &Arc<Admission>,
        metrics: &WorkerMetrics,
        clock: Clock,
    ) -> Option<ConnId> {
        let peer = incoming.remote_address();
        self.buffer.clear();
        if !self.accepting {
            let refusal = self.endpoint.refuse(incoming, &mut self.buffer);
            self.send.push(&refusal, &self.buffer);
            return None;
        }
        let permit = match admission.admit(peer.ip().to_canonical(), clock.now) {
            Ok(permit) => permit,
            Err(limit) => {
                metrics.refused[limit].inc();
                if limit == Limit::HandshakesPerSecond {
                    // The client repeats its Initial: silence delays it, an answer turns it away.
                    self.endpoint.ignore(incoming);
                } else {
                    let refusal = self.endpoint.refuse(incoming, &mut self.buffer);
                    self.send.push(&refusal, &self.buffer);
                }
                return None;
            }
        };
        metrics.handshakes[Transport::Quic].inc();
        match self
            .endpoint
            .accept(incoming, clock.now, &mut self.buffer, None)
        {
            Ok((handle, connection)) => {
                let link = QuicLink {
                    handle,
                    connection,
                    control: false,
                    readable: false,
                    blocked: false,
                    linger: None,
                    connected: false,
                    ready: false,
                    refused: false,
                    receive_window: 0,
                    data: None,
                };
                let id = conns.insert(|id| Conn {
                    id,
                    peer: canonical(peer),
                    permit,
                    version: None,
                    open: false,
                    reading: true,
                    held: 0,
                    flushed_in: 0,
                    closing: None,
                    close_by: None,
                    scheduled: false,
                    eventful: false,
                    inbox: Inbox::default(),
                    outbox: Outbox::default(),
                    link: Link::Quic(Box::new(link)),
                });
                if self.places.len() <= handle.0 {
                    self.places.resize(handle.0 + 1, u32::MAX);
                }
                self.places[handle.0] = id.index;
                conns.schedule(id.index);
                Some(id)
            }
            Err(error) => {
                metrics.handshakes_failed[Transport::Quic].inc();
                if let Some(transmit) = error.response {
                    self.send.push(&transmit, &self.buffer);
                }
                None
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
        }
    }

    /// The next chunk of the control stream: `Ok(None)` when there is none now, `Err` at its end.
    pub fn read(link: &mut QuicLink, bytes_max: usize) -> Result<Option<Bytes>, StreamEnd> {
        if !link.control || !link.readable {
            return Ok(None);
        }
        let mut stream = link.connection.recv_stream(control_stream());
        let mut chunks = match stream.read(true) {
            Ok(chunks) => chunks,
            Err(_) => return Err(StreamEnd),
        };
        let next = chunks.next(bytes_max);
        // Window updates go out with the poll_transmit at the end of the turn.
        let _ = chunks.finalize();
        match next {
            Ok(Some(chunk)) => Ok(Some(chunk.bytes)),
            Ok(None) | Err(quinn_proto::ReadError::Reset(_)) => Err(StreamEnd),
            Err(quinn_proto::ReadError::Blocked) => {
                link.readable = false;
                Ok(None)
            }
        }
    }

    /// Gives the transport what waits; returns how many bytes it has taken.
    pub fn write(&mut self, link: &mut QuicLink, outbox: &mut Outbox) -> Result<usize, StreamEnd> {
        if !link.control || link.blocked || outbox.is_empty() {
            return Ok(0);
        }
        let (taken, open) = self.write_to(&mut link.connection, control_stream(), outbox)?;
        link.blocked = !open;
        Ok(taken)
    }

    /// Gives a stream what waits for it: how many bytes it has taken, and whether it takes more.
    fn write_to(
        &mut self,
        connection: &mut Connection,
        id: StreamId,
        outbox: &mut Outbox,
    ) -> Result<(usize, bool), StreamEnd> {
        let mut stream = connection.send_stream(id);
        let mut taken = 0;
        let mut write = |bytes: Bytes, rest: &mut Bytes| -> Result<bool, StreamEnd> {
            let length = bytes.len();
            let mut chunk = [bytes];
            match stream.write_chunks(&mut chunk) {
                Ok(written) => {
                    taken += written.bytes;
                    if written.bytes < length {
                        let [left] = chunk;
                        *rest = left;
                        return Ok(false);
                    }
                    Ok(true)
                }
                Err(WriteError::Blocked) => {
                    let [left] = chunk;
                    *rest = left;
                    Ok(false)
                }
                Err(WriteError::Stopped(_) | WriteError::ClosedStream) => Err(StreamEnd),
            }
        };
        let mut open = true;
        if !outbox.rest.is_empty() {
            open = write(std::mem::take(&mut outbox.rest), &mut outbox.rest)?;
        }
        if open && !outbox.frames.is_empty() {
            open = if let [headgate_core::Frame::Bytes(only)] = outbox.frames.as_slice() {
                // Shared with all its other receivers, as it is.
                write(only.clone(), &mut outbox.rest)?
            } else {
                self.joined.clear();
                for frame in &outbox.frames {
                    append_frame(frame, &mut self.joined);
                }
                write(Bytes::copy_from_slice(&self.joined), &mut outbox.rest)?
            };
            outbox.frames.clear();
        }
        Ok((taken, open))
    }

    /// Ends a connection for `reason` once all that was written has been acknowledged.
    pub fn finish(&mut self, link: &mut QuicLink, reason: ReasonCode, clock: Clock) {
        match link.linger {
            None if link.control && !link.connection.is_closed() => {
                let _already_reset = link.connection.send_stream(control_stream()).finish();
                link.linger = Some(clock.now + LINGER);
            }
            Some(until) if clock.now < until => {}
            _ => self.close(link, application_error(reason), clock),
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
            let transmit =
                link.connection
                    .poll_transmit(clock.now, GSO_DATAGRAMS_MAX, &mut self.buffer);
            let Some(transmit) = transmit else { break };
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
    pub fn forget(&mut self, link: &QuicLink) {
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

    /// What the sender has counted.
    pub fn send_counters(&self) -> &SendCounters {
        self.send.counters()
    }
}

/// A stream has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamEnd;
