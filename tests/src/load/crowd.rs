//! Many clients over TCP, TLS or WebSocket in one thread, on sockets that don't block. The broker may be any.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use headgate_codec::QoS;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rustls::{ClientConfig, ClientConnection};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Data, OpCode};

use super::client::{self, Cutter, Reply};

/// What a socket is read into at a time, bytes.
const READ_BYTES: usize = 64 * 1024;

/// What carries MQTT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// TCP.
    Tcp,
    /// TLS 1.3 over TCP; the certificate isn't looked at.
    Tls,
    /// WebSocket over TCP.
    WebSocket,
}

/// Clients of one broker.
pub struct Crowd {
    server: SocketAddr,
    carrier: Carrier,
    tls: Arc<ClientConfig>,
    poll: Poll,
    events: Events,
    members: Vec<Member>,
    buffer: Vec<u8>,
    counts: Counts,
    expiry_s: Option<u32>,
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Sessions that are connected and have their subscriptions.
    pub ready: usize,
    /// PUBLISH packets that came in.
    pub deliveries: u64,
    /// PUBLISH packets with QoS 1 that the broker has acknowledged.
    pub acknowledged: u64,
}

/// One client of a [`Crowd`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MemberRef(usize);

struct Member {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
    web_socket: Option<WebSocket>,
    session: Session,
    /// For the socket, or for TLS.
    unsent: Vec<u8>,
}

/// The MQTT of a client.
struct Session {
    id: String,
    filters: Vec<String>,
    qos: QoS,
    cutter: Cutter,
    deliveries: u64,
    acknowledged: u64,
    expiry_s: Option<u32>,
    /// Packets for the broker.
    output: Vec<u8>,
}

#[derive(Default)]
struct WebSocket {
    is_open: bool,
    /// What has come and isn't a whole answer or frame.
    pending: Vec<u8>,
}

impl Crowd {
    /// A crowd without members, for the broker at `server`.
    ///
    /// # Panics
    /// When the kernel gives no epoll.
    pub fn new(server: SocketAddr, carrier: Carrier) -> Self {
        Self {
            server,
            carrier,
            tls: Arc::new(client::tls()),
            poll: Poll::new().expect("an epoll"),
            events: Events::with_capacity(1024),
            members: Vec::new(),
            buffer: vec![0; READ_BYTES],
            counts: Counts::default(),
            expiry_s: None,
        }
    }

    /// Sessions that are connected from now on outlive their connections by an hour.
    #[must_use]
    pub fn with_lasting_sessions(mut self) -> Self {
        self.expiry_s = Some(3_600);
        self
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// PUBLISH packets that came to one member.
    pub fn deliveries(&self, member: MemberRef) -> u64 {
        self.members[member.0].session.deliveries
    }

    /// PUBLISH packets with QoS 1 of one member that the broker has acknowledged.
    pub fn acknowledged(&self, member: MemberRef) -> u64 {
        self.members[member.0].session.acknowledged
    }

    /// Begins to connect a client that subscribes to `filters` with `qos`. PUBLISH packets with QoS 1 are acknowledged.
    ///
    /// # Panics
    /// When the broker doesn't listen.
    pub fn connect(&mut self, id: String, filters: Vec<String>, qos: QoS) -> MemberRef {
        let socket = std::net::TcpStream::connect(self.server).expect("the broker listens");
        socket.set_nonblocking(true).expect("it is a socket");
        socket.set_nodelay(true).expect("it is a socket");
        let mut stream = TcpStream::from_std(socket);
        let place = self.members.len();
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered = self
            .poll
            .registry()
            .register(&mut stream, Token(place), interest);
        registered.expect("it is a socket");
        let tls = (self.carrier == Carrier::Tls).then(|| {
            let name = "localhost".try_into().expect("a name");
            let tls = ClientConnection::new(Arc::clone(&self.tls), name);
            let mut tls = Box::new(tls.expect("a configuration"));
            tls.set_buffer_limit(None);
            tls
        });
        let web_socket = (self.carrier == Carrier::WebSocket).then(WebSocket::default);
        let mut session = Session {
            id,
            filters,
            qos,
            cutter: Cutter::default(),
            deliveries: 0,
            acknowledged: 0,
            expiry_s: self.expiry_s,
            output: Vec::new(),
        };
        let mut unsent = Vec::new();
        match web_socket {
            Some(_) => unsent.extend_from_slice(UPGRADE.as_bytes()),
            None => session.begin(),
        }
        self.members.push(Member {
            stream,
            tls,
            web_socket,
            session,
            unsent,
        });
        self.members[place].flush();
        MemberRef(place)
    }

    /// Connects `count` clients, never more than `at_once` at the same time, and waits until all are ready.
    pub fn connect_all(
        &mut self,
        count: usize,
        at_once: usize,
        qos: QoS,
        plan: impl Fn(usize) -> (String, Vec<String>),
    ) -> Vec<MemberRef> {
        let before = self.counts.ready;
        let mut members = Vec::with_capacity(count);
        while self.counts.ready - before < count {
            while members.len() < count && members.len() - (self.counts.ready - before) < at_once {
                let (id, filters) = plan(members.len());
                members.push(self.connect(id, filters, qos));
            }
            self.turn(Duration::from_millis(20));
        }
        members
    }

    /// Sends packets of a member.
    pub fn send(&mut self, member: MemberRef, packets: &[u8]) {
        let member = &mut self.members[member.0];
        member.session.output.extend_from_slice(packets);
        member.flush();
    }

    /// Waits until there is something to do, at most `wait`, and does it.
    ///
    /// # Panics
    /// When a client loses its connection, or gets what it didn't ask for.
    pub fn turn(&mut self, wait: Duration) {
        if let Err(error) = self.poll.poll(&mut self.events, Some(wait)) {
            assert_eq!(error.kind(), ErrorKind::Interrupted, "poll: {error}");
            return;
        }
        for event in &self.events {
            let member = &mut self.members[event.token().0];
            member.read(&mut self.buffer, &mut self.counts);
            member.flush();
        }
    }
}

/// RFC 6455 §4.1; the key is that of the standard's example, the answer isn't verified.
const UPGRADE: &str = "GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";

impl Session {
    fn begin(&mut self) {
        self.output
            .extend_from_slice(&client::connect(&self.id, self.expiry_s));
    }

    /// Takes bytes of the broker.
    fn take(&mut self, bytes: &[u8], counts: &mut Counts) {
        let Self {
            id,
            filters,
            qos,
            cutter,
            deliveries,
            acknowledged,
            output,
            expiry_s: _,
        } = self;
        cutter.cut(bytes, |reply| match reply {
            Reply::Publish { packet_id } => {
                *deliveries += 1;
                counts.deliveries += 1;
                if let Some([high, low]) = packet_id {
                    // PUBACK without a Reason Code: success (MQTT 5.0 §3.4.2.1).
                    output.extend_from_slice(&[0x40, 2, high, low]);
                }
            }
            Reply::PubAck => {
                *acknowledged += 1;
                counts.acknowledged += 1;
            }
            Reply::ConnAck { accepted } => {
                assert!(accepted, "{id} is refused");
                match filters.is_empty() {
                    true => counts.ready += 1,
                    false => output.extend_from_slice(&client::subscribe(filters, *qos)),
                }
            }
            Reply::SubAck { accepted } => {
                assert!(accepted, "{id}'s subscription is refused");
                counts.ready += 1;
            }
            Reply::Other => panic!("{id} got what it didn't ask for"),
        });
    }
}

impl Member {
    fn read(&mut self, buffer: &mut [u8], counts: &mut Counts) {
        loop {
            let length = match self.stream.read(buffer) {
                Ok(0) => panic!("{} has lost its connection", self.session.id),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => panic!("{}: {error}", self.session.id),
            };
            match &mut self.tls {
                None => receive(
                    &mut self.web_socket,
                    &mut self.session,
                    &buffer[..length],
                    counts,
                ),
                Some(tls) => {
                    let mut wire = &buffer[..length];
                    let mut plain = Vec::new();
                    while !wire.is_empty() {
                        tls.read_tls(&mut wire).expect("it is memory");
                        tls.process_new_packets().expect("the broker speaks TLS");
                        let end = tls.reader().read_to_end(&mut plain);
                        assert!(is_more_to_come(&end), "{}: {end:?}", self.session.id);
                    }
                    receive(&mut self.web_socket, &mut self.session, &plain, counts);
                }
            }
        }
    }

    /// Sends what there is, as far as the socket takes it.
    fn flush(&mut self) {
        let output = &mut self.session.output;
        match &mut self.web_socket {
            None => self.unsent.append(output),
            Some(web_socket) if web_socket.is_open && !output.is_empty() => {
                masked(output, &mut self.unsent);
                output.clear();
            }
            Some(_) => {}
        }
        let Some(tls) = &mut self.tls else {
            let written = write_some(&mut self.stream, &self.unsent);
            self.unsent.drain(..written);
            return;
        };
        tls.writer().write_all(&self.unsent).expect("it is memory");
        self.unsent.clear();
        while tls.wants_write() {
            match tls.write_tls(&mut self.stream) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("{}: {error}", self.session.id),
            }
        }
    }
}

/// Takes bytes that are no longer TLS.
fn receive(
    web_socket: &mut Option<WebSocket>,
    session: &mut Session,
    bytes: &[u8],
    counts: &mut Counts,
) {
    let Some(web_socket) = web_socket else {
        session.take(bytes, counts);
        return;
    };
    web_socket.pending.extend_from_slice(bytes);
    if !web_socket.is_open {
        let end = web_socket
            .pending
            .windows(4)
            .position(|four| four == b"\r\n\r\n");
        let Some(end) = end else { return };
        let answer = String::from_utf8_lossy(&web_socket.pending[..end]);
        assert!(
            answer.starts_with("HTTP/1.1 101 "),
            "{}: {answer}",
            session.id
        );
        web_socket.pending.drain(..end + 4);
        web_socket.is_open = true;
        session.begin();
    }
    let mut at = 0;
    loop {
        let mut rest = io::Cursor::new(&web_socket.pending[at..]);
        let parsed = FrameHeader::parse(&mut rest).expect("the broker speaks WebSocket");
        let Some((header, length)) = parsed else {
            break;
        };
        let from = at + usize::try_from(rest.position()).expect("a header is short");
        let to = from + usize::try_from(length).expect("a frame fits into memory");
        let Some(payload) = web_socket.pending.get(from..to) else {
            break;
        };
        match header.opcode {
            OpCode::Data(Data::Binary | Data::Continue) => session.take(payload, counts),
            other => panic!("{} got a frame that it didn't ask for: {other}", session.id),
        }
        at = to;
    }
    web_socket.pending.drain(..at);
}

/// A client's frame. The mask is zero: XOR with it costs the broker what any other does, and this side nothing.
fn masked(payload: &[u8], to: &mut Vec<u8>) {
    let header = FrameHeader {
        opcode: OpCode::Data(Data::Binary),
        mask: Some([0; 4]),
        ..FrameHeader::default()
    };
    header
        .format(payload.len() as u64, to)
        .expect("it is memory");
    to.extend_from_slice(payload);
}

fn write_some(stream: &mut TcpStream, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match stream.write(&bytes[written..]) {
            Ok(length) => written += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("the broker has closed a connection: {error}"),
        }
    }
    written
}

/// rustls says so with an error when all that came was read.
fn is_more_to_come(end: &io::Result<usize>) -> bool {
    end.as_ref()
        .is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}
