//! Many clients in one thread on one UDP socket, with quinn-proto driven directly: cheap enough to keep a broker
//! busy from the other half of a small machine.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use headgate::net::udp::{RecvBatch, SendBatch, UdpOptions, UdpSocket};
use headgate_codec::QoS;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use quinn_proto::{
    Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig, Event, StreamId,
    VarInt, WriteError,
};

use super::client::Profile;
use super::session::{ClientRef, Counts, Plan, Progress, Session};

/// Receive calls in a turn.
const RECEIVES_PER_TURN: usize = 8;
/// Datagrams of one connection that leave as one message, at most.
const GSO_DATAGRAMS_MAX: usize = 16;

/// Clients of one broker.
pub struct Swarm {
    server: SocketAddr,
    profile: Profile,
    endpoint: Endpoint,
    ports: Vec<Port>,
    received: RecvBatch,
    clients: Vec<Option<Client>>,
    touched: Vec<usize>,
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    buffer: Vec<u8>,
    counts: Counts,
}

/// A socket; clients share them in turn.
struct Port {
    socket: UdpSocket,
    outgoing: SendBatch,
}

#[derive(Debug)]
struct Client {
    connection: Connection,
    session: Session,
    control: Option<StreamId>,
    unsent: VecDeque<Bytes>,
    /// The earliest of its timers in the heap.
    timer: Option<Instant>,
    leaving: bool,
}

impl Swarm {
    /// A swarm without clients, for the broker at `server`. All clients share one socket.
    ///
    /// # Panics
    /// When no socket can be had.
    pub fn new(server: SocketAddr, profile: Profile) -> Self {
        Self::with_sockets(server, profile, 1)
    }

    /// The same with `sockets` sockets, which the clients take in turn.
    ///
    /// # Panics
    /// When the sockets can't be had.
    pub fn with_sockets(server: SocketAddr, profile: Profile, sockets: usize) -> Self {
        let options = UdpOptions {
            gro: true,
            ..UdpOptions::default()
        };
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        let port = |_| Port {
            socket: UdpSocket::bind(address, &options).expect("a UDP socket on the loopback"),
            outgoing: SendBatch::new(),
        };
        let ports: Vec<_> = (0..sockets).map(port).collect();
        Self {
            server,
            profile,
            endpoint: Endpoint::new(Arc::new(EndpointConfig::default()), None, true, None),
            received: RecvBatch::new(&ports[0].socket),
            ports,
            clients: Vec::new(),
            touched: Vec::new(),
            timers: BinaryHeap::new(),
            buffer: Vec::with_capacity(64 * 1024),
            counts: Counts::default(),
        }
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Begins to connect a client that subscribes to `filters` with QoS 0.
    ///
    /// # Panics
    /// When quinn-proto refuses to.
    pub fn connect(&mut self, id: String, filters: Vec<String>) -> ClientRef {
        self.connect_as(Plan {
            id,
            filters,
            qos: QoS::AtMostOnce,
            expiry_s: None,
        })
    }

    /// Begins to connect a client.
    ///
    /// # Panics
    /// When quinn-proto refuses to.
    pub fn connect_as(&mut self, plan: Plan) -> ClientRef {
        let now = Instant::now();
        let config = self.profile.config.clone();
        let (handle, connection) = self
            .endpoint
            .connect(now, config, self.server, "localhost")
            .expect("a connection");
        if self.clients.len() <= handle.0 {
            self.clients.resize_with(handle.0 + 1, || None);
        }
        self.clients[handle.0] = Some(Client {
            connection,
            session: Session::new(plan),
            control: None,
            unsent: VecDeque::new(),
            timer: None,
            leaving: false,
        });
        self.touched.push(handle.0);
        ClientRef(handle.0)
    }

    /// Connects `count` clients, never more than `at_once` at the same time, and waits until all are ready.
    pub fn connect_all(
        &mut self,
        count: usize,
        at_once: usize,
        plan: impl Fn(usize) -> (String, Vec<String>),
    ) -> Vec<ClientRef> {
        let before = self.counts.ready;
        let mut clients = Vec::with_capacity(count);
        while self.counts.ready - before < count {
            while clients.len() < count && clients.len() - (self.counts.ready - before) < at_once {
                let (id, filters) = plan(clients.len());
                clients.push(self.connect(id, filters));
            }
            self.turn(Duration::from_millis(20));
        }
        clients
    }

    /// Sends bytes on a client's control stream.
    ///
    /// # Panics
    /// When the client is gone.
    pub fn send(&mut self, client: ClientRef, bytes: Bytes) {
        let state = self.clients[client.0]
            .as_mut()
            .expect("the client is connected");
        state.unsent.push_back(bytes);
        self.touched.push(client.0);
    }

    /// How far one client has come; `None` when it is gone.
    pub fn progress(&self, client: ClientRef) -> Option<Progress> {
        let client = self.clients[client.0].as_ref();
        client.map(|client| client.session.progress)
    }

    /// PUBLISH packets that came to one client; 0 when it is gone.
    pub fn deliveries(&self, client: ClientRef) -> u64 {
        self.progress(client).map_or(0, |of| of.deliveries)
    }

    /// Ends a connection at once (DISCONNECT isn't sent; the session has no will).
    pub fn close(&mut self, client: ClientRef) {
        if let Some(state) = self.clients[client.0].as_mut() {
            state.leaving = true;
            state
                .connection
                .close(Instant::now(), VarInt::from_u32(0), Bytes::new());
            self.touched.push(client.0);
        }
    }

    /// Waits until there is something to do, at most `wait`, and does it.
    ///
    /// # Panics
    /// When a client loses its connection, or gets what it didn't ask for.
    pub fn turn(&mut self, wait: Duration) {
        self.try_turn(wait)
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// The same.
    ///
    /// # Errors
    /// A client has lost its connection, or got what it didn't ask for.
    pub fn try_turn(&mut self, wait: Duration) -> Result<(), String> {
        let wait = if self.touched.is_empty() {
            wait
        } else {
            Duration::ZERO
        };
        for port in self.readable(wait) {
            for _ in 0..RECEIVES_PER_TURN {
                if self.receive(port) == 0 {
                    break;
                }
            }
        }
        let now = Instant::now();
        while let Some(&Reverse((at, index))) = self.timers.peek() {
            if at > now {
                break;
            }
            self.timers.pop();
            if let Some(client) = self.clients[index]
                .as_mut()
                .filter(|client| client.timer == Some(at))
            {
                client.timer = None;
                client.connection.handle_timeout(now);
                self.touched.push(index);
            }
        }
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        for index in touched.drain(..) {
            self.drive(index, now)?;
        }
        self.touched = touched;
        for port in &mut self.ports {
            port.flush();
        }
        Ok(())
    }

    /// Waits for the sockets and timers; which sockets have something.
    fn readable(&self, wait: Duration) -> Vec<usize> {
        let now = Instant::now();
        let timer = self
            .timers
            .peek()
            .map(|Reverse((at, _))| at.saturating_duration_since(now));
        let wait = timer.map_or(wait, |timer| timer.min(wait));
        // Rounded up: the timer has passed then.
        let milliseconds = u16::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
        let mut fds: Vec<_> = self
            .ports
            .iter()
            .map(|port| PollFd::new(port.socket.as_fd(), PollFlags::POLLIN))
            .collect();
        // Interrupted or not, the next turn looks.
        let _ = poll(&mut fds, PollTimeout::from(milliseconds));
        (0..fds.len())
            .filter(|&port| fds[port].any().unwrap_or(false))
            .collect()
    }

    fn receive(&mut self, port: usize) -> usize {
        let now = Instant::now();
        let Self {
            received,
            ports,
            endpoint,
            clients,
            touched,
            buffer,
            ..
        } = self;
        let count = received.recv(&ports[port].socket, |datagram| {
            let data = BytesMut::from(datagram.data);
            buffer.clear();
            let event = endpoint.handle(
                now,
                datagram.source,
                datagram.destination_ip,
                datagram.ecn,
                data,
                buffer,
            );
            if let Some(DatagramEvent::ConnectionEvent(handle, event)) = event
                && let Some(client) = &mut clients[handle.0]
            {
                client.connection.handle_event(event);
                touched.push(handle.0);
            }
        });
        count.expect("receiving on the loopback works")
    }

    /// Takes what the connection has to say and lets it send.
    fn drive(&mut self, index: usize, now: Instant) -> Result<(), String> {
        let Some(client) = self.clients[index].as_mut() else {
            return Ok(());
        };
        while let Some(event) = client.connection.poll() {
            match event {
                Event::Connected => client.start()?,
                Event::ConnectionLost { reason } if !client.leaving => {
                    let id = &client.session.plan.id;
                    return Err(format!("{id} lost its connection: {reason}"));
                }
                _ => {}
            }
        }
        client.read(&mut self.counts)?;
        client.write()?;
        let ports = self.ports.len();
        let port = &mut self.ports[index % ports];
        loop {
            self.buffer.clear();
            let Some(transmit) =
                client
                    .connection
                    .poll_transmit(now, GSO_DATAGRAMS_MAX, &mut self.buffer)
            else {
                break;
            };
            port.outgoing.push(&transmit, &self.buffer);
            if port.outgoing.is_full() {
                port.flush();
            }
        }
        while let Some(event) = client.connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(ConnectionHandle(index), event) {
                client.connection.handle_event(event);
            }
        }
        if client.connection.is_drained() {
            self.clients[index] = None;
            self.counts.gone += 1;
            return Ok(());
        }
        let due = client.connection.poll_timeout();
        if let Some(at) = due
            && client.timer.is_none_or(|timer| at < timer)
        {
            client.timer = Some(at);
            self.timers.push(Reverse((at, index)));
        }
        Ok(())
    }
}

impl Port {
    fn flush(&mut self) {
        while !self.outgoing.is_empty() {
            self.outgoing
                .flush(&self.socket)
                .expect("the socket is one");
        }
    }
}

impl Client {
    fn start(&mut self) -> Result<(), String> {
        self.control = self.connection.streams().open(Dir::Bi);
        if self.control.is_none() {
            return Err("the broker allows no control stream".to_owned());
        }
        self.session.begin();
        Ok(())
    }

    fn read(&mut self, counts: &mut Counts) -> Result<(), String> {
        let Some(control) = self.control else {
            return Ok(());
        };
        let mut stream = self.connection.recv_stream(control);
        let Ok(mut chunks) = stream.read(true) else {
            return Ok(());
        };
        while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
            self.session.take(&chunk.bytes, counts)?;
        }
        // What it says of window updates is done by the poll_transmit that follows.
        let _ = chunks.finalize();
        Ok(())
    }

    fn write(&mut self) -> Result<(), String> {
        let Some(control) = self.control else {
            return Ok(());
        };
        if !self.session.output.is_empty() {
            let output = std::mem::take(&mut self.session.output);
            self.unsent.push_back(output.into());
        }
        while let Some(bytes) = self.unsent.front_mut() {
            match self.connection.send_stream(control).write(bytes) {
                Ok(written) => {
                    bytes.advance(written);
                    if bytes.is_empty() {
                        self.unsent.pop_front();
                    }
                }
                Err(WriteError::Blocked) => break,
                Err(_) if self.leaving => break,
                Err(error) => return Err(format!("{}: {error}", self.session.plan.id)),
            }
        }
        Ok(())
    }
}
