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

use super::client;
use super::session::{ClientRef, Counts, Plan, Progress, Session};

/// What a socket is read into at a time, bytes.
const READ_BYTES: usize = 64 * 1024;
/// DISCONNECT without a Reason Code: normal disconnection.
const DISCONNECT: [u8; 2] = [0xe0, 0];

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
    members: Vec<Option<Member>>,
    /// Places of members that are gone.
    free: Vec<usize>,
    buffer: Vec<u8>,
    counts: Counts,
    expiry_s: Option<u32>,
}

struct Member {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
    web_socket: Option<WebSocket>,
    session: Session,
    /// For the socket, or for TLS.
    unsent: Vec<u8>,
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
            free: Vec::new(),
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

    /// Its members use this TLS.
    #[must_use]
    pub fn with_tls(mut self, tls: ClientConfig) -> Self {
        self.tls = Arc::new(tls);
        self
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// How far one member has come; `None` when it is gone.
    pub fn progress(&self, member: ClientRef) -> Option<Progress> {
        let member = self.members[member.0].as_ref();
        member.map(|member| member.session.progress)
    }

    /// PUBLISH packets that came to one member; 0 when it is gone.
    pub fn deliveries(&self, member: ClientRef) -> u64 {
        self.progress(member).map_or(0, |of| of.deliveries)
    }

    /// PUBLISH packets with QoS 1 or 2 of one member that the broker has taken over; 0 when it is gone.
    pub fn acknowledged(&self, member: ClientRef) -> u64 {
        self.progress(member).map_or(0, |of| of.acknowledged)
    }

    /// Begins to connect a client that subscribes to `filters` with `qos`. PUBLISH packets are acknowledged as their QoS
    /// asks for.
    ///
    /// # Panics
    /// When the broker doesn't listen.
    pub fn connect(&mut self, id: String, filters: Vec<String>, qos: QoS) -> ClientRef {
        let expiry_s = self.expiry_s;
        let plan = Plan {
            id,
            filters,
            qos,
            expiry_s,
        };
        self.try_connect(plan).expect("the broker listens")
    }

    /// The same.
    ///
    /// # Errors
    /// When the broker doesn't listen.
    ///
    /// # Panics
    /// When TLS refuses to begin: never.
    pub fn try_connect(&mut self, plan: Plan) -> io::Result<ClientRef> {
        let socket = std::net::TcpStream::connect(self.server)?;
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let mut stream = TcpStream::from_std(socket);
        let place = self.free.pop().unwrap_or(self.members.len());
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut stream, Token(place), interest)?;
        let tls = (self.carrier == Carrier::Tls).then(|| {
            let name = "localhost".try_into().expect("a name");
            let tls = ClientConnection::new(Arc::clone(&self.tls), name);
            let mut tls = Box::new(tls.expect("a configuration"));
            tls.set_buffer_limit(None);
            tls
        });
        let web_socket = (self.carrier == Carrier::WebSocket).then(WebSocket::default);
        let mut session = Session::new(plan);
        let mut unsent = Vec::new();
        match web_socket {
            Some(_) => unsent.extend_from_slice(UPGRADE.as_bytes()),
            None => session.begin(),
        }
        let mut member = Member {
            stream,
            tls,
            web_socket,
            session,
            unsent,
        };
        member.flush().map_err(io::Error::other)?;
        if place == self.members.len() {
            self.members.push(None);
        }
        self.members[place] = Some(member);
        Ok(ClientRef(place))
    }

    /// Connects `count` clients, never more than `at_once` at the same time, and waits until all are ready.
    pub fn connect_all(
        &mut self,
        count: usize,
        at_once: usize,
        qos: QoS,
        plan: impl Fn(usize) -> (String, Vec<String>),
    ) -> Vec<ClientRef> {
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
    ///
    /// # Panics
    /// When it has lost its connection.
    pub fn send(&mut self, member: ClientRef, packets: &[u8]) {
        self.try_send(member, packets)
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// The same.
    ///
    /// # Errors
    /// When it has lost its connection.
    pub fn try_send(&mut self, member: ClientRef, packets: &[u8]) -> Result<(), String> {
        match &mut self.members[member.0] {
            None => Err("the client is gone".to_owned()),
            Some(member) => {
                member.session.output.extend_from_slice(packets);
                member.flush()
            }
        }
    }

    /// Sends DISCONNECT and closes the connection.
    pub fn close(&mut self, member: ClientRef) {
        if let Some(mut leaving) = self.members[member.0].take() {
            leaving.session.output.extend_from_slice(&DISCONNECT);
            // A connection that is lost is closed as well.
            let _ = leaving.flush();
            self.free.push(member.0);
            self.counts.gone += 1;
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
    ///
    /// # Panics
    /// When the kernel's epoll fails.
    pub fn try_turn(&mut self, wait: Duration) -> Result<(), String> {
        if let Err(error) = self.poll.poll(&mut self.events, Some(wait)) {
            assert_eq!(error.kind(), ErrorKind::Interrupted, "poll: {error}");
            return Ok(());
        }
        for event in &self.events {
            // What is left of a place's last member, or for the next one, which then finds nothing to read.
            if let Some(member) = &mut self.members[event.token().0] {
                member.read(&mut self.buffer, &mut self.counts)?;
                member.flush()?;
            }
        }
        Ok(())
    }
}

/// RFC 6455 §4.1; the key is that of the standard's example, the answer isn't verified.
const UPGRADE: &str = "GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";

impl Member {
    fn read(&mut self, buffer: &mut [u8], counts: &mut Counts) -> Result<(), String> {
        loop {
            let length = match self.stream.read(buffer) {
                Ok(0) => return Err(format!("{} has lost its connection", self.id())),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(format!("{}: {error}", self.id())),
            };
            match &mut self.tls {
                None => receive(
                    &mut self.web_socket,
                    &mut self.session,
                    &buffer[..length],
                    counts,
                )?,
                Some(tls) => {
                    let mut wire = &buffer[..length];
                    let mut plain = Vec::new();
                    while !wire.is_empty() {
                        tls.read_tls(&mut wire).expect("it is memory");
                        let processed = tls.process_new_packets();
                        processed.map_err(|error| format!("{}: {error}", self.session.plan.id))?;
                        let end = tls.reader().read_to_end(&mut plain);
                        if !is_more_to_come(&end) {
                            return Err(format!("{}: {end:?}", self.session.plan.id));
                        }
                    }
                    receive(&mut self.web_socket, &mut self.session, &plain, counts)?;
                }
            }
        }
    }

    fn id(&self) -> &str {
        &self.session.plan.id
    }

    /// Sends what there is, as far as the socket takes it.
    fn flush(&mut self) -> Result<(), String> {
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
            let written = write_some(&mut self.stream, &self.unsent)?;
            self.unsent.drain(..written);
            return Ok(());
        };
        tls.writer().write_all(&self.unsent).expect("it is memory");
        self.unsent.clear();
        while tls.wants_write() {
            match tls.write_tls(&mut self.stream) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(format!("{}: {error}", self.id())),
            }
        }
        Ok(())
    }
}

/// Takes bytes that are no longer TLS.
fn receive(
    web_socket: &mut Option<WebSocket>,
    session: &mut Session,
    bytes: &[u8],
    counts: &mut Counts,
) -> Result<(), String> {
    let Some(web_socket) = web_socket else {
        return session.take(bytes, counts);
    };
    web_socket.pending.extend_from_slice(bytes);
    if !web_socket.is_open {
        let end = web_socket
            .pending
            .windows(4)
            .position(|four| four == b"\r\n\r\n");
        let Some(end) = end else { return Ok(()) };
        let answer = String::from_utf8_lossy(&web_socket.pending[..end]);
        if !answer.starts_with("HTTP/1.1 101 ") {
            return Err(format!("{}: {answer}", session.plan.id));
        }
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
            OpCode::Data(Data::Binary | Data::Continue) => session.take(payload, counts)?,
            other => return Err(format!("{} got a frame: {other}", session.plan.id)),
        }
        at = to;
    }
    web_socket.pending.drain(..at);
    Ok(())
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

fn write_some(stream: &mut TcpStream, bytes: &[u8]) -> Result<usize, String> {
    let mut written = 0;
    while written < bytes.len() {
        match stream.write(&bytes[written..]) {
            Ok(length) => written += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("the broker has closed a connection: {error}")),
        }
    }
    Ok(written)
}

/// rustls says so with an error when all that came was read.
fn is_more_to_come(end: &io::Result<usize>) -> bool {
    end.as_ref()
        .is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}
