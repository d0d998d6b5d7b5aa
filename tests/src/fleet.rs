//! Many MQTT sessions over QUIC from one thread: quinn-proto driven directly, for load and for measuring.
//!
//! Each session connects, subscribes and then only keeps its connection alive.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use headgate::net::timer::Wheel;
use headgate::net::udp::{RecvBatch, SendBatch, UdpOptions, UdpSocket};
use headgate_codec::{
    Connect, ConnectProperties, Packet, PacketId, QoS, ReasonCode, Subscribe, SubscriptionOptions, Text, Version,
    decode, encode,
};
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig, Event, StreamEvent,
    StreamId, VarInt,
};

/// Datagrams of one connection in one GSO message.
const SEGMENTS: usize = 10;
/// How long the thread sleeps when nothing came.
const NAP: Duration = Duration::from_micros(200);

/// What a fleet does.
#[derive(Clone)]
pub struct FleetSettings {
    /// Where the broker listens.
    pub server: SocketAddr,
    /// Number of sessions.
    pub sessions: usize,
    /// UDP sockets, with a source port each, that the connections are spread over.
    pub sockets: usize,
    /// Connections that are being established at the same time.
    pub connecting_max: usize,
    /// Seconds; 0 for none.
    pub keep_alive_s: u16,
    /// TLS, transport parameters, and the rest.
    pub client: ClientConfig,
    /// The filters that session `n` subscribes to.
    pub filters: fn(usize) -> Vec<String>,
}

/// Sessions over QUIC that are served while [`Fleet::connect`] or [`Fleet::run`] run.
pub struct Fleet {
    settings: FleetSettings,
    lanes: Vec<Lane>,
    started: usize,
    ready: usize,
    lost: usize,
    /// When the fleet was made: zero of the timers.
    start: Instant,
}

/// One socket and its connections.
struct Lane {
    endpoint: Endpoint,
    socket: UdpSocket,
    recv: RecvBatch,
    send: SendBatch,
    members: Vec<Option<Member>>,
    timers: Wheel,
    /// Members that something happened to.
    dirty: VecDeque<u32>,
    buffer: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Handshake,
    Connect,
    Subscribe,
    Ready,
}

struct Member {
    connection: Box<Connection>,
    number: usize,
    state: State,
    input: BytesMut,
}

/// What became of a member when it was served.
#[derive(PartialEq, Eq)]
enum Change {
    None,
    Ready,
    Lost { was_ready: bool },
}

impl Fleet {
    /// Binds the sockets; connects nothing yet.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(settings: FleetSettings) -> io::Result<Self> {
        let local: SocketAddr = if settings.server.is_ipv4() {
            ([0, 0, 0, 0], 0).into()
        } else {
            ([0u16; 8], 0).into()
        };
        let start = Instant::now();
        let lanes = (0..settings.sockets).map(|_| Lane::new(local)).collect::<io::Result<_>>()?;
        Ok(Self { settings, lanes, started: 0, ready: 0, lost: 0, start })
    }

    /// Sessions that are connected and subscribed.
    pub fn ready(&self) -> usize {
        self.ready
    }

    /// Connections that ended, for whatever reason.
    pub fn lost(&self) -> usize {
        self.lost
    }

    /// Brings all sessions up, or as many as `timeout` allows; whether all are.
    ///
    /// # Errors
    /// The kernel's.
    pub fn connect(&mut self, timeout: Duration) -> io::Result<bool> {
        let end = Instant::now() + timeout;
        while self.ready < self.settings.sessions && Instant::now() < end {
            while self.started < self.settings.sessions
                && self.started - self.ready - self.lost < self.settings.connecting_max
            {
                self.start_one();
            }
            self.turn()?;
            if self.lost > 0 {
                break;
            }
        }
        Ok(self.ready == self.settings.sessions)
    }

    /// Serves the connections for a time.
    ///
    /// # Errors
    /// The kernel's.
    pub fn run(&mut self, duration: Duration) -> io::Result<()> {
        let end = Instant::now() + duration;
        while Instant::now() < end {
            self.turn()?;
        }
        Ok(())
    }

    fn start_one(&mut self) {
        let number = self.started;
        self.started += 1;
        let lane_index = number % self.lanes.len();
        let lane = &mut self.lanes[lane_index];
        let config = self.settings.client.clone();
        let (handle, connection) = lane
            .endpoint
            .connect(Instant::now(), config, self.settings.server, "localhost")
            .expect("the settings make a connection possible");
        lane.insert(handle, Member {
            connection: Box::new(connection),
            number,
            state: State::Handshake,
            input: BytesMut::new(),
        });
    }

    fn turn(&mut self) -> io::Result<()> {
        let mut quiet = true;
        for lane in &mut self.lanes {
            let now = Instant::now();
            quiet &= lane.receive(now)? == 0;
            lane.expire(now, self.start);
            while let Some(index) = lane.dirty.pop_front() {
                match lane.serve(index, now, self.start, &self.settings) {
                    Change::None => {}
                    Change::Ready => self.ready += 1,
                    Change::Lost { was_ready } => {
                        self.lost += 1;
                        self.ready -= usize::from(was_ready);
                    }
                }
            }
            lane.send.flush(&lane.socket)?;
        }
        if quiet {
            std::thread::sleep(NAP);
        }
        Ok(())
    }
}

impl Lane {
    fn new(local: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(local, &UdpOptions::default())?;
        Ok(Self {
            endpoint: Endpoint::new(Arc::new(EndpointConfig::default()), None, true, None),
            recv: RecvBatch::new(&socket),
            socket,
            send: SendBatch::new(),
            members: Vec::new(),
            timers: Wheel::new(0),
            dirty: VecDeque::new(),
            buffer: Vec::new(),
        })
    }

    fn insert(&mut self, handle: ConnectionHandle, member: Member) {
        if self.members.len() <= handle.0 {
            self.members.resize_with(handle.0 + 1, || None);
        }
        self.members[handle.0] = Some(member);
        self.dirty.push_back(handle.0 as u32);
    }

    fn receive(&mut self, now: Instant) -> io::Result<usize> {
        let Self { endpoint, socket, recv, send, members, dirty, buffer, .. } = self;
        recv.recv(socket, |datagram| {
            buffer.clear();
            let data = BytesMut::from(datagram.data);
            match endpoint.handle(now, datagram.source, datagram.destination_ip, datagram.ecn, data, buffer) {
                Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                    if let Some(member) = members.get_mut(handle.0).and_then(Option::as_mut) {
                        member.connection.handle_event(event);
                        dirty.push_back(handle.0 as u32);
                    }
                }
                Some(DatagramEvent::Response(transmit)) => send.push(&transmit, &buffer[..transmit.size]),
                Some(DatagramEvent::NewConnection(_)) | None => {}
            }
        })
    }

    fn expire(&mut self, now: Instant, start: Instant) {
        let mut due = Vec::new();
        self.timers.advance(now.duration_since(start).as_millis() as u64, &mut due);
        for index in due {
            if let Some(member) = &mut self.members[index as usize] {
                if member.connection.poll_timeout().is_some_and(|at| at <= now) {
                    member.connection.handle_timeout(now);
                }
                self.dirty.push_back(index);
            }
        }
    }

    fn serve(&mut self, index: u32, now: Instant, start: Instant, settings: &FleetSettings) -> Change {
        let handle = ConnectionHandle(index as usize);
        let Some(member) = self.members.get_mut(handle.0).and_then(Option::as_mut) else { return Change::None };
        let before = member.state;
        let mut lost = false;
        while let Some(event) = member.connection.poll() {
            match event {
                Event::Connected => member.open(settings),
                Event::Stream(StreamEvent::Readable { .. }) => lost |= member.read(settings).is_err(),
                Event::ConnectionLost { .. } => lost = true,
                _ => {}
            }
        }
        while let Some(event) = member.connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(handle, event) {
                member.connection.handle_event(event);
            }
        }
        loop {
            self.buffer.clear();
            let Some(transmit) = member.connection.poll_transmit(now, SEGMENTS, &mut self.buffer) else { break };
            self.send.push(&transmit, &self.buffer);
        }
        if let Some(at) = member.connection.poll_timeout() {
            let after = at.saturating_duration_since(start);
            self.timers.arm(index, after.as_nanos().div_ceil(1_000_000) as u64);
        }
        let after = member.state;
        if lost {
            self.timers.disarm(index);
            self.members[handle.0] = None;
            return Change::Lost { was_ready: before == State::Ready };
        }
        if after == State::Ready && before != State::Ready { Change::Ready } else { Change::None }
    }
}

/// The stream that MQTT runs on.
fn control_stream() -> StreamId {
    StreamId::new(quinn_proto::Side::Client, Dir::Bi, 0)
}

impl Member {
    fn open(&mut self, settings: &FleetSettings) {
        let opened = self.connection.streams().open(Dir::Bi);
        assert_eq!(opened, Some(control_stream()), "the broker grants the control stream");
        self.send(&Packet::Connect(Box::new(Connect {
            version: Version::V5,
            clean_start: true,
            keep_alive_s: settings.keep_alive_s,
            client_id: Text::from(format!("device-{:08}", self.number).as_str()),
            will: None,
            user_name: None,
            password: None,
            properties: ConnectProperties::default(),
        })));
        self.state = State::Connect;
    }

    fn send(&mut self, packet: &Packet) {
        let mut bytes = BytesMut::new();
        encode(packet, Version::V5, &mut bytes);
        let written = self.connection.send_stream(control_stream()).write(&bytes);
        assert_eq!(written.ok(), Some(bytes.len()), "a small packet fits the first window");
    }

    /// Reads and answers; an error if the broker refused something.
    fn read(&mut self, settings: &FleetSettings) -> Result<(), ()> {
        let mut stream = self.connection.recv_stream(control_stream());
        let Ok(mut chunks) = stream.read(true) else { return Err(()) };
        while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
            self.input.extend_from_slice(&chunk.bytes);
        }
        let _ = chunks.finalize();
        let mut input: Bytes = std::mem::take(&mut self.input).freeze();
        while let Some(packet) = decode(&mut input, Some(Version::V5), u32::MAX).map_err(drop)? {
            match packet {
                Packet::ConnAck(ack) if ack.reason == ReasonCode::SUCCESS => self.subscribe(settings),
                Packet::SubAck(ack) if ack.reasons.iter().all(|reason| reason.0 < 0x80) => {
                    self.state = State::Ready;
                }
                _ => return Err(()),
            }
        }
        self.input.extend_from_slice(&input);
        Ok(())
    }

    fn subscribe(&mut self, settings: &FleetSettings) {
        let filters = (settings.filters)(self.number);
        if filters.is_empty() {
            self.state = State::Ready;
            return;
        }
        let options = SubscriptionOptions { qos: QoS::AtLeastOnce, ..SubscriptionOptions::default() };
        self.send(&Packet::Subscribe(Box::new(Subscribe {
            packet_id: PacketId::MIN,
            subscription_id: None,
            user_properties: Vec::new(),
            filters: filters.iter().map(|filter| (Text::from(filter.as_str()), options)).collect(),
        })));
        self.state = State::Subscribe;
    }
}

/// Transport parameters of a client that spares memory, so that many fit into one process.
pub fn frugal_transport() -> quinn_proto::TransportConfig {
    let mut transport = quinn_proto::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_idle_timeout(Some(VarInt::from_u32(3_600_000).into()))
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(None);
    transport
}
