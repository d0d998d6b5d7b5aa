//! A client and a server of quinn-proto in memory, with a virtual clock and a link that may lose and delay: for tests.

use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig,
    Event, ServerConfig, StreamId, Transmit,
};

/// One-way delay of the link.
const DELAY: Duration = Duration::from_millis(10);

/// Which end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Client,
    Server,
}

/// A datagram under way. Ordered so that the one that arrives first is the greatest.
#[derive(PartialEq, Eq)]
struct Flight {
    arrives: Instant,
    number: u64,
    to: End,
    data: Vec<u8>,
}

impl Ord for Flight {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.arrives, other.number).cmp(&(self.arrives, self.number))
    }
}

impl PartialOrd for Flight {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// One end: an endpoint with at most one connection.
pub(crate) struct Peer {
    endpoint: Endpoint,
    address: SocketAddr,
    pub connection: Option<(ConnectionHandle, Connection)>,
    pub events: Vec<Event>,
    /// What arrived on each stream, in order of arrival.
    pub received: Vec<(StreamId, Vec<u8>)>,
    pub bytes_sent: usize,
    /// All datagrams since the connection was begun.
    pub datagrams_sent: Vec<Vec<u8>>,
}

impl Peer {
    pub(crate) fn new(config: EndpointConfig, server: Option<ServerConfig>, port: u16) -> Self {
        Self {
            endpoint: Endpoint::new(Arc::new(config), server.map(Arc::new), false, None),
            address: SocketAddr::from(([192, 0, 2, 1], port)),
            connection: None,
            events: Vec::new(),
            received: Vec::new(),
            bytes_sent: 0,
            datagrams_sent: Vec::new(),
        }
    }

    pub(crate) fn connection(&mut self) -> &mut Connection {
        &mut self.connection.as_mut().expect("a connection").1
    }

    /// Writes on `stream`; all of it must fit.
    pub(crate) fn write(&mut self, stream: StreamId, data: &[u8]) {
        assert_eq!(
            self.connection().send_stream(stream).write(data).unwrap(),
            data.len()
        );
    }

    /// What arrived on `stream`, joined.
    pub(crate) fn read(&self, stream: StreamId) -> Vec<u8> {
        self.received
            .iter()
            .filter(|(id, _)| *id == stream)
            .flat_map(|(_, data)| data.clone())
            .collect()
    }

    /// Takes a datagram; appends what is answered without a connection.
    pub(crate) fn handle(
        &mut self,
        now: Instant,
        source: SocketAddr,
        data: &[u8],
        out: &mut Vec<Vec<u8>>,
    ) {
        let mut response = Vec::new();
        match self
            .endpoint
            .handle(now, source, None, None, BytesMut::from(data), &mut response)
        {
            None => {}
            Some(DatagramEvent::ConnectionEvent(handle, event)) => match &mut self.connection {
                Some((known, connection)) if *known == handle => connection.handle_event(event),
                _ => {}
            },
            Some(DatagramEvent::NewConnection(incoming)) => {
                match self.endpoint.accept(incoming, now, &mut response, None) {
                    Ok(accepted) => self.connection = Some(accepted),
                    Err(error) => out.extend(
                        error
                            .response
                            .map(|transmit| response[..transmit.size].to_vec()),
                    ),
                }
            }
            Some(DatagramEvent::Response(transmit)) => out.push(response[..transmit.size].to_vec()),
        }
    }

    /// Does what there is to do now; appends the datagrams to send.
    pub(crate) fn work(&mut self, now: Instant, out: &mut Vec<Vec<u8>>) {
        let Some((handle, connection)) = &mut self.connection else {
            return;
        };
        loop {
            let mut again = false;
            while let Some(event) = connection.poll_endpoint_events() {
                if let Some(event) = self.endpoint.handle_event(*handle, event) {
                    connection.handle_event(event);
                    again = true;
                }
            }
            while let Some(event) = connection.poll() {
                if let Event::Stream(_) = event {
                    read_streams(connection, &mut self.received);
                }
                self.events.push(event);
                again = true;
            }
            let mut buffer = Vec::new();
            while let Some(Transmit {
                size, segment_size, ..
            }) = connection.poll_transmit(now, 10, &mut buffer)
            {
                self.bytes_sent += size;
                out.extend(
                    buffer[..size]
                        .chunks(segment_size.unwrap_or(size))
                        .map(<[u8]>::to_vec),
                );
                buffer.clear();
                again = true;
            }
            if !again {
                return;
            }
        }
    }

    fn timeout(&mut self) -> Option<Instant> {
        self.connection
            .as_mut()
            .and_then(|(_, connection)| connection.poll_timeout())
    }
}

/// The first four streams of each kind that the peer may have opened, and our own.
fn read_streams(connection: &mut Connection, received: &mut Vec<(StreamId, Vec<u8>)>) {
    while connection.streams().accept(Dir::Bi).is_some() {}
    for index in 0..4 {
        let id = StreamId::new(quinn_proto::Side::Client, Dir::Bi, index);
        let mut stream = connection.recv_stream(id);
        let Ok(mut chunks) = stream.read(true) else {
            continue;
        };
        while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
            received.push((id, chunk.bytes.to_vec()));
        }
        let _ = chunks.finalize();
    }
}

/// Both ends and the link between them.
pub(crate) struct Pair {
    pub client: Peer,
    pub server: Peer,
    pub now: Instant,
    flights: BinaryHeap<Flight>,
    sent: u64,
}

impl Pair {
    pub(crate) fn new(endpoint: EndpointConfig, server: ServerConfig) -> Self {
        Self {
            client: Peer::new(EndpointConfig::default(), None, 40_000),
            server: Peer::new(endpoint, Some(server), 14_567),
            now: Instant::now(),
            flights: BinaryHeap::new(),
            sent: 0,
        }
    }

    /// Starts a connection; run the pair to complete the handshake.
    pub(crate) fn connect(&mut self, config: ClientConfig) {
        let address = self.server.address;
        let connection = self
            .client
            .endpoint
            .connect(self.now, config, address, "localhost")
            .unwrap();
        self.client.connection = Some(connection);
        self.server.connection = None;
        for peer in [&mut self.client, &mut self.server] {
            peer.events.clear();
            peer.received.clear();
            peer.bytes_sent = 0;
            peer.datagrams_sent.clear();
        }
    }

    pub(crate) fn run(&mut self, duration: Duration) {
        self.run_over(duration, |_, _| Some(Duration::ZERO));
    }

    /// Runs for a time over a link where `link` decides how much longer each datagram takes, given its direction and
    /// number, or whether it is lost (`None`).
    pub(crate) fn run_over(
        &mut self,
        duration: Duration,
        mut link: impl FnMut(End, u64) -> Option<Duration>,
    ) {
        let end = self.now + duration;
        loop {
            for from in [End::Client, End::Server] {
                let (now, mut out) = (self.now, Vec::new());
                self.peer(from).work(now, &mut out);
                self.send(from, out, &mut link);
            }
            let timeouts = self
                .client
                .timeout()
                .into_iter()
                .chain(self.server.timeout());
            let Some(next) = timeouts
                .chain(self.flights.peek().map(|flight| flight.arrives))
                .min()
            else {
                break;
            };
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            while self
                .flights
                .peek()
                .is_some_and(|flight| flight.arrives <= self.now)
            {
                let flight = self.flights.pop().expect("just seen");
                let source = self.peer(flight.to.other()).address;
                let (now, mut out) = (self.now, Vec::new());
                self.peer(flight.to)
                    .handle(now, source, &flight.data, &mut out);
                self.send(flight.to, out, &mut link);
            }
            let now = self.now;
            for peer in [&mut self.client, &mut self.server] {
                if peer.timeout().is_some_and(|at| at <= now) {
                    peer.connection().handle_timeout(now);
                }
            }
        }
        self.now = end;
    }

    fn send(
        &mut self,
        from: End,
        out: Vec<Vec<u8>>,
        link: &mut impl FnMut(End, u64) -> Option<Duration>,
    ) {
        for data in out {
            self.sent += 1;
            self.peer(from).datagrams_sent.push(data.clone());
            if let Some(longer) = link(from, self.sent) {
                let arrives = self.now + DELAY + longer;
                self.flights.push(Flight {
                    arrives,
                    number: self.sent,
                    to: from.other(),
                    data,
                });
            }
        }
    }

    fn peer(&mut self, end: End) -> &mut Peer {
        match end {
            End::Client => &mut self.client,
            End::Server => &mut self.server,
        }
    }
}

impl End {
    fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}
