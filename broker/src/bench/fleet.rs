//! Clients over QUIC on a few sockets, in one thread: awake while they connect, asleep afterwards.

use super::{
    awake::{Awake, Plan},
    cids::{CID_LEN, NumberedCids, Owners, owner_of},
    incoming::Incoming,
    port::{self, Port},
    session::{Listener, Session},
    sleeper::{ServerCid, Sleeper},
    wait::wait_for,
};
use crate::net::{
    tls::SecretsTap,
    udp::{RecvBatch, UdpSocket},
};
use bytes::{Bytes, BytesMut};
use headgate_codec::{Version, frame_len};
use nix::poll::{PollFd, PollFlags};
use quinn_proto::{
    ClientConfig, ConnectionHandle, DatagramEvent, Endpoint, EndpointConfig, EndpointEvent,
    IdleTimeout, TransportConfig, VarInt, crypto::rustls::QuicClientConfig,
};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Receive calls for one socket in a turn.
const RECEIVES_PER_TURN: usize = 8;
/// Datagrams of one connection that leave as one message, at most.
const GSO_DATAGRAMS_MAX: usize = 16;
/// So long a client stays awake once it is ready: what the server still has to say comes, and is acknowledged.
const LINGER: Duration = Duration::from_millis(400);
/// Flow control credit of a client that falls asleep, bytes.
const WINDOW_BYTES: u32 = 64 * 1024;
/// Flow control credit of a client that stays awake, bytes: what comes between two turns of a busy machine.
const AWAKE_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// What clients have in common.
#[derive(Clone)]
pub struct FleetOptions {
    /// The broker.
    pub server: SocketAddr,
    /// Its name in the certificate.
    pub server_name: String,
    /// TLS of the clients. AES-128-GCM must be the only suite; secrets are logged to where the clients find them.
    pub tls: rustls::ClientConfig,
    /// Local addresses; each has as many sockets as it stands here, and clients take the sockets in turn.
    pub local: Vec<IpAddr>,
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Clients that are connected and have their subscriptions.
    pub ready: u64,
    /// Those of them that sleep.
    pub asleep: u64,
    /// Clients that were refused, or have lost their connection.
    pub lost: u64,
    /// PINGRESPs.
    pub pongs: u64,
    /// Key updates of connections whose clients sleep.
    pub key_updates: u64,
    /// Packets for sleeping clients that could not be read.
    pub unreadable: u64,
}

/// Clients of one broker.
pub struct Fleet {
    options: FleetOptions,
    /// Of clients that fall asleep.
    config: ClientConfig,
    awake_config: ClientConfig,
    /// What all its clients speak.
    version: Version,
    endpoint: Endpoint,
    owners: Arc<Mutex<Owners>>,
    ports: Vec<Port>,
    received: RecvBatch,
    awake: Vec<Option<Awake>>,
    asleep: Vec<Option<Box<Sleeper>>>,
    /// Where clients that are awake have their connection.
    handles: HashMap<u32, usize>,
    /// Parts of MQTT packets for sleeping clients; few have one.
    partial: HashMap<u32, Vec<u8>>,
    touched: Vec<usize>,
    drowsy: VecDeque<(Instant, usize)>,
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    buffer: Vec<u8>,
    counts: Counts,
    last_loss: Option<String>,
}

impl Fleet {
    /// A fleet without clients.
    ///
    /// # Errors
    /// When its sockets can't be had, or TLS lacks what QUIC needs.
    pub fn new(mut options: FleetOptions) -> io::Result<Self> {
        options.tls.key_log = Arc::new(SecretsTap);
        let crypto = QuicClientConfig::try_from(options.tls.clone()).map_err(io::Error::other)?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        let mut awake_config = config.clone();
        config.transport_config(Arc::new(transport(WINDOW_BYTES)));
        awake_config.transport_config(Arc::new(transport(AWAKE_WINDOW_BYTES)));
        let owners: Arc<Mutex<Owners>> = Arc::default();
        let mut endpoint = EndpointConfig::default();
        let of_fleet = Arc::clone(&owners);
        endpoint.cid_generator(move || Box::new(NumberedCids(Arc::clone(&of_fleet))));
        let ports: Vec<Port> = options
            .local
            .iter()
            .map(|local| Port::new(*local))
            .collect::<io::Result<_>>()?;
        let Some(first) = ports.first() else {
            return Err(io::Error::other("a fleet needs a local address"));
        };
        Ok(Self {
            received: RecvBatch::new(&first.socket),
            endpoint: Endpoint::new(Arc::new(endpoint), None, true, None),
            options,
            config,
            awake_config,
            version: Version::V5,
            owners,
            ports,
            awake: Vec::new(),
            asleep: Vec::new(),
            handles: HashMap::new(),
            partial: HashMap::new(),
            touched: Vec::new(),
            drowsy: VecDeque::new(),
            timers: BinaryHeap::new(),
            buffer: Vec::with_capacity(64 * 1024),
            counts: Counts::default(),
            last_loss: None,
        })
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Why the last client was lost.
    pub fn last_loss(&self) -> Option<&str> {
        self.last_loss.as_deref()
    }

    /// Begins to connect one more client; its number.
    ///
    /// # Errors
    /// When quinn-proto refuses to.
    pub fn connect(&mut self, plan: Plan) -> io::Result<u32> {
        let client = self.asleep.len() as u32;
        self.connect_as(client, plan.session(), plan.sleeps)?;
        Ok(client)
    }

    /// Begins to connect the client of a number that isn't in use, or not any more. All clients of a fleet speak the same
    /// version. One that sleeps must not have subscribed with more than QoS 0.
    ///
    /// # Errors
    /// When quinn-proto refuses to.
    pub fn connect_as(&mut self, client: u32, session: Session, sleeps: bool) -> io::Result<()> {
        self.owners().current = client;
        self.version = session.version();
        let (server, name) = (self.options.server, &self.options.server_name);
        let config = match sleeps {
            true => self.config.clone(),
            false => self.awake_config.clone(),
        };
        let connected = self.endpoint.connect(Instant::now(), config, server, name);
        let (handle, connection) = connected.map_err(io::Error::other)?;
        if self.awake.len() <= handle.0 {
            self.awake.resize_with(handle.0 + 1, || None);
        }
        self.awake[handle.0] = Some(Awake::new(connection, client, session, sleeps));
        if self.asleep.len() <= client as usize {
            self.asleep.resize_with(client as usize + 1, || None);
        }
        self.asleep[client as usize] = None;
        self.handles.insert(client, handle.0);
        self.touched.push(handle.0);
        Ok(())
    }

    /// Sends bytes on the control stream of a client that is awake.
    pub fn send(&mut self, client: u32, bytes: Bytes) {
        if let Some(session) = self.session(client) {
            session.push(&bytes);
        }
    }

    /// The session of a client that is awake. What it has to send leaves with the next turn.
    pub fn session(&mut self, client: u32) -> Option<&mut Session> {
        let index = *self.handles.get(&client)?;
        self.touched.push(index);
        Some(&mut self.awake.get_mut(index)?.as_mut()?.session)
    }

    /// Forgets a client, awake or asleep, as if its network had gone: the server isn't told.
    pub fn cut(&mut self, client: u32) {
        self.partial.remove(&client);
        if let Some(asleep) = self.asleep.get_mut(client as usize) {
            *asleep = None;
        }
        if let Some(&index) = self.handles.get(&client) {
            self.forget(index);
        }
    }

    /// Lets a client, awake or asleep, disconnect and close its connection. What is lost on the way is not sent again.
    pub fn leave(&mut self, client: u32) {
        let place = client as usize % self.ports.len();
        if let Some(Some(sleeper)) = self.asleep.get_mut(client as usize) {
            let mut packet = Vec::with_capacity(64);
            sleeper.leave(&mut packet);
            self.ports[place].push(self.options.server, &packet);
        } else if let Some(&index) = self.handles.get(&client)
            && let Some(Some(awake)) = self.awake.get_mut(index)
        {
            let now = Instant::now();
            awake.session.push(&[0xe0, 0]);
            // It may be lost already, and has nothing to say then.
            let _ = awake.work(&mut Deaf);
            transmit(awake, now, (&mut self.ports[place], &mut self.buffer));
            awake
                .connection
                .close(now, VarInt::from_u32(0), Bytes::new());
            transmit(awake, now, (&mut self.ports[place], &mut self.buffer));
        }
        self.cut(client);
    }

    /// Sends a PINGREQ of a client that sleeps, or the one that was not answered once more. `false`: it doesn't sleep.
    pub fn ping(&mut self, client: u32) -> bool {
        let Some(Some(sleeper)) = self.asleep.get_mut(client as usize) else {
            return false;
        };
        let mut packet = Vec::with_capacity(64);
        sleeper.ping(&mut packet);
        let port = client as usize % self.ports.len();
        self.ports[port].push(self.options.server, &packet);
        true
    }

    /// Whether a client's PINGREQ has not been answered.
    pub fn is_pinging(&self, client: u32) -> bool {
        let sleeper = self.asleep.get(client as usize).and_then(Option::as_ref);
        sleeper.is_some_and(|sleeper| sleeper.is_pinging())
    }

    /// Waits until there is something to do, at most `wait`, and does it. Messages for the clients go to `read`.
    pub fn turn(&mut self, wait: Duration, read: impl FnMut(u32, &[u8])) {
        self.turn_with(wait, &mut Reader(read));
    }

    /// The same for somebody who wants to know all that happens.
    pub fn turn_with(&mut self, wait: Duration, listener: &mut impl Listener) {
        for port in self.readable(wait) {
            for _ in 0..RECEIVES_PER_TURN {
                if self.receive(port, listener) == 0 {
                    break;
                }
            }
        }
        let now = Instant::now();
        self.fire(now);
        listener.arrived();
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        for index in touched.drain(..) {
            self.drive(index, now, listener);
        }
        self.touched = touched;
        self.lay_down(now, listener);
        for port in &mut self.ports {
            port.flush();
        }
    }

    fn owners(&self) -> std::sync::MutexGuard<'_, Owners> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the sockets and timers; which sockets have something.
    fn readable(&self, wait: Duration) -> Vec<usize> {
        let now = Instant::now();
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        let drowsy = self.drowsy.front().map(|(at, _)| *at);
        let due = timer.into_iter().chain(drowsy).min();
        let wait = due.map_or(wait, |at| wait.min(at.saturating_duration_since(now)));
        let wait = match self.touched.is_empty() {
            true => wait,
            false => Duration::ZERO,
        };
        let mut fds: Vec<_> = self
            .ports
            .iter()
            .map(|port| PollFd::new(port.socket.as_fd(), PollFlags::POLLIN))
            .collect();
        wait_for(&mut fds, wait);
        let has_something = |port: &usize| fds[*port].any().unwrap_or(false);
        (0..fds.len()).filter(has_something).collect()
    }

    fn receive(&mut self, port: usize, listener: &mut impl Listener) -> usize {
        let now = Instant::now();
        let (server, version) = (self.options.server, self.version);
        let Self {
            received,
            ports,
            endpoint,
            owners,
            awake,
            asleep,
            partial,
            touched,
            buffer,
            counts,
            ..
        } = self;
        let Port { socket, outgoing } = &mut ports[port];
        let socket: &UdpSocket = socket;
        let mut answer = Vec::with_capacity(64);
        listener.arrived();
        let received = received.recv(socket, |datagram| {
            let is_short = datagram.data.first().is_some_and(|first| first & 0x80 == 0);
            if is_short
                && let Some(client) = owner_of(owners, datagram.data)
                && let Some(Some(sleeper)) = asleep.get_mut(client as usize)
            {
                answer.clear();
                let mut packets = Vec::new();
                let brought = sleeper.receive(datagram.data, (CID_LEN, &mut answer), |bytes| {
                    packets.extend(cut(partial, client, bytes));
                });
                for packet in packets {
                    hear(&packet, (client, version), sleeper, (counts, listener));
                }
                counts.key_updates += u64::from(brought.is_updated);
                counts.unreadable += u64::from(!brought.is_authentic);
                if brought.is_closed {
                    counts.lost += 1;
                    asleep[client as usize] = None;
                    listener.lost(client, "the server closed the connection");
                } else if !answer.is_empty() {
                    port::push(outgoing, socket, server, &answer);
                }
                return;
            }
            buffer.clear();
            let event = endpoint.handle(
                now,
                datagram.source,
                datagram.destination_ip,
                datagram.ecn,
                BytesMut::from(datagram.data),
                buffer,
            );
            if let Some(DatagramEvent::ConnectionEvent(handle, event)) = event
                && let Some(Some(client)) = awake.get_mut(handle.0)
            {
                if is_short {
                    client.packets += 1;
                } else if let Some(cid) = ServerCid::of_long_header(datagram.data) {
                    client.server = Some(cid);
                }
                client.connection.handle_event(event);
                if client.keys.is_none() {
                    client.keys = SecretsTap::client_keys();
                }
                touched.push(handle.0);
            }
        });
        // An ICMP message for an earlier datagram: nobody listens there, which shows otherwise.
        received.unwrap_or(0)
    }

    fn fire(&mut self, now: Instant) {
        while let Some(&Reverse((at, index))) = self.timers.peek() {
            if at > now {
                break;
            }
            self.timers.pop();
            if let Some(Some(client)) = self.awake.get_mut(index)
                && client.timer == Some(at)
            {
                client.timer = None;
                client.connection.handle_timeout(now);
                self.touched.push(index);
            }
        }
    }

    /// Takes what a connection has to say and lets it send.
    fn drive(&mut self, index: usize, now: Instant, listener: &mut impl Listener) {
        let Some(Some(client)) = self.awake.get_mut(index) else {
            return;
        };
        let was_ready = client.session.is_ready();
        if let Err(reason) = client.work(listener) {
            return self.lose(index, reason, listener);
        }
        if client.session.is_ready() && !was_ready {
            self.counts.ready += 1;
            if client.sleeps {
                self.drowsy.push_back((now + LINGER, index));
            }
        }
        let place = client.client as usize % self.ports.len();
        transmit(client, now, (&mut self.ports[place], &mut self.buffer));
        let number = client.client;
        while let Some(event) = client.connection.poll_endpoint_events() {
            self.owners
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .current = number;
            if let Some(event) = self.endpoint.handle_event(ConnectionHandle(index), event) {
                client.connection.handle_event(event);
            }
        }
        let due = client.connection.poll_timeout();
        if let Some(at) = due
            && client.timer.is_none_or(|timer| at < timer)
        {
            client.timer = Some(at);
            self.timers.push(Reverse((at, index)));
        }
    }

    /// Lets those sleep that have been ready for long enough.
    fn lay_down(&mut self, now: Instant, listener: &mut impl Listener) {
        while let Some(&(at, index)) = self.drowsy.front() {
            if at > now {
                break;
            }
            self.drowsy.pop_front();
            // It may be gone, and another one in its place.
            let Some(Some(awake)) = self.awake.get(index) else {
                continue;
            };
            if !awake.session.is_ready() || !awake.sleeps {
                continue;
            }
            let Some(sleeper) = awake.asleep() else {
                let reason = "it has no keys: another suite than AES-128-GCM".to_owned();
                self.lose(index, reason, listener);
                continue;
            };
            let client = awake.client;
            self.asleep[client as usize] = Some(Box::new(sleeper));
            self.counts.asleep += 1;
            self.forget(index);
        }
    }

    fn lose(&mut self, index: usize, reason: String, listener: &mut impl Listener) {
        self.counts.lost += 1;
        if let Some(Some(awake)) = self.awake.get(index) {
            listener.lost(awake.client, &reason);
        }
        self.last_loss = Some(reason);
        self.forget(index);
    }

    /// The endpoint knows nothing more of the connection, and the server isn't told.
    fn forget(&mut self, index: usize) {
        if let Some(awake) = self.awake.get_mut(index).and_then(Option::take) {
            self.handles.remove(&awake.client);
            let drained = EndpointEvent::drained();
            let _nothing = self.endpoint.handle_event(ConnectionHandle(index), drained);
        }
    }
}

/// Passes messages on, and nothing else.
struct Reader<F>(F);

impl<F: FnMut(u32, &[u8])> Listener for Reader<F> {
    fn message(&mut self, client: u32, message: &Incoming<'_>) {
        (self.0)(client, message.packet);
    }
}

/// Of a client that leaves nobody hears.
struct Deaf;

impl Listener for Deaf {}

/// Takes an MQTT packet for a client that sleeps. What else a server says to one that only listens, it says by closing the
/// connection too.
fn hear(
    packet: &[u8],
    (client, version): (u32, Version),
    sleeper: &mut Sleeper,
    (counts, listener): (&mut Counts, &mut impl Listener),
) {
    match packet.first().map(|first| first >> 4) {
        Some(13) => {
            counts.pongs += u64::from(sleeper.answered());
            // Also to a PINGREQ that it sent awake.
            listener.pong(client);
        }
        Some(3) => {
            if let Some(message) = Incoming::of(packet, version) {
                listener.message(client, &message);
            }
        }
        _ => {}
    }
}

/// Lets a connection send what it has.
fn transmit(client: &mut Awake, now: Instant, (port, buffer): (&mut Port, &mut Vec<u8>)) {
    loop {
        buffer.clear();
        let transmit = client
            .connection
            .poll_transmit(now, GSO_DATAGRAMS_MAX, buffer);
        let Some(transmit) = transmit else { break };
        port.outgoing.push(&transmit, buffer);
        if port.outgoing.is_full() {
            let _ = port.outgoing.flush(&port.socket);
        }
    }
}

/// The whole packets among a client's bytes; keeps the rest.
fn cut(partial: &mut HashMap<u32, Vec<u8>>, client: u32, bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut all = partial.remove(&client).unwrap_or_default();
    all.extend_from_slice(bytes);
    let (mut packets, mut rest) = (Vec::new(), &all[..]);
    while let Ok(Some(len)) = frame_len(rest, u32::MAX)
        && let Some((packet, behind)) = rest.split_at_checked(len)
    {
        packets.push(packet.to_vec());
        rest = behind;
    }
    if !rest.is_empty() {
        partial.insert(client, rest.to_vec());
    }
    packets
}

/// A device: no streams of the server's, small windows, no datagrams, no probing for a larger MTU.
fn transport(window_bytes: u32) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(window_bytes))
        .receive_window(VarInt::from_u32(window_bytes))
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(None)
        .max_idle_timeout(None::<IdleTimeout>);
    transport
}
