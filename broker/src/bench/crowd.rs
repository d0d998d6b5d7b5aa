//! Clients over TCP, TLS or WebSocket in one thread, on sockets that don't block.

use super::{
    engine::Carrier,
    layers::{Layers, WebSocket},
    session::{Listener, Session},
    wait::wait_for,
};
use mio::{Events, Interest, Poll, Token, net::TcpStream};
use nix::{
    poll::{PollFd, PollFlags},
    sys::socket::{setsockopt, sockopt},
};
use rustls::{ClientConfig, ClientConnection, pki_types::ServerName};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io::{self, ErrorKind, Read},
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

/// What a socket is read into at a time, bytes.
const READ_BYTES: usize = 64 * 1024;
/// Reads of one socket in a turn: others have their turn then.
const READS_PER_TURN: usize = 16;
/// Events that are taken at a time.
const EVENTS: usize = 1_024;

/// What the clients of a crowd have in common.
pub struct CrowdOptions {
    /// The broker.
    pub server: SocketAddr,
    /// Its name, for its certificate and for HTTP.
    pub server_name: String,
    /// What carries MQTT; not QUIC.
    pub carrier: Carrier,
    /// TLS of the clients, where the carrier has it.
    pub tls: Option<Arc<ClientConfig>>,
    /// Local addresses, which the clients take in turn; the system chooses if there are none.
    pub local: Vec<IpAddr>,
}

/// Clients of one broker.
pub struct Crowd {
    options: CrowdOptions,
    poll: Poll,
    events: Events,
    members: Vec<Option<Box<Member>>>,
    /// Whose sockets may have more than was read.
    unread: Vec<u32>,
    /// Who has something to send.
    touched: Vec<u32>,
    buffer: Vec<u8>,
}

struct Member {
    stream: TcpStream,
    is_connected: bool,
    /// It only stays connected, and holds no buffer.
    is_idle: bool,
    layers: Layers,
    session: Session,
}

impl Crowd {
    /// A crowd without members.
    ///
    /// # Errors
    /// When the kernel gives no epoll.
    pub fn new(options: CrowdOptions) -> io::Result<Self> {
        Ok(Self {
            options,
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS),
            members: Vec::new(),
            unread: Vec::new(),
            touched: Vec::new(),
            buffer: vec![0; READ_BYTES],
        })
    }

    /// Begins to connect the client of a number that isn't in use, or not any more.
    ///
    /// # Errors
    /// When the system gives no socket, or TLS is not given though the carrier has it.
    pub fn connect_as(&mut self, client: u32, session: Session, is_idle: bool) -> io::Result<()> {
        let options = &self.options;
        let mut stream = open(options.server, local(&options.local, client))?;
        let mut layers = Layers::default();
        if options.carrier.is_encrypted() {
            let tls = options.tls.clone();
            let tls = tls.ok_or_else(|| io::Error::other("TLS needs a configuration"))?;
            let name = ServerName::try_from(options.server_name.clone());
            let name = name.map_err(io::Error::other)?;
            let mut tls = ClientConnection::new(tls, name).map_err(io::Error::other)?;
            tls.set_buffer_limit(None);
            layers.tls = Some(Box::new(tls));
        }
        if options.carrier.is_web_socket() {
            let mut key = [0; 16];
            ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut key)
                .map_err(|_| io::Error::other("the system gives no random bytes"))?;
            layers.web_socket = Some(Box::new(WebSocket::new(key)));
        }
        let (name, port) = (&options.server_name, options.server.port());
        layers.begin(&match name.contains(':') {
            true => format!("[{name}]:{port}"),
            false => format!("{name}:{port}"),
        });
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registry = self.poll.registry();
        registry.register(&mut stream, Token(client as usize), interest)?;
        if self.members.len() <= client as usize {
            self.members.resize_with(client as usize + 1, || None);
        }
        self.members[client as usize] = Some(Box::new(Member {
            stream,
            is_connected: false,
            is_idle,
            layers,
            session,
        }));
        Ok(())
    }

    /// The session of a client. What it has to send leaves with the next turn.
    pub fn session(&mut self, client: u32) -> Option<&mut Session> {
        self.touched.push(client);
        let member = self.members.get_mut(client as usize)?.as_mut()?;
        Some(&mut member.session)
    }

    /// Forgets a client, as if its network had gone: without DISCONNECT.
    pub fn cut(&mut self, client: u32) {
        if let Some(member) = self.members.get_mut(client as usize) {
            *member = None;
        }
    }

    /// Lets a client disconnect and close its connection.
    pub fn leave(&mut self, client: u32) {
        if let Some(Some(member)) = self.members.get_mut(client as usize) {
            member.session.push(&[0xe0, 0]);
            // What the socket doesn't take now is not said.
            let _ = member.flush();
        }
        self.cut(client);
    }

    /// Waits until there is something to do, at most `wait`, and does it.
    ///
    /// # Errors
    /// Of epoll.
    pub fn turn(&mut self, wait: Duration, listener: &mut impl Listener) -> io::Result<()> {
        self.flush(listener);
        if self.unread.is_empty() {
            // SAFETY: the epoll lives as long as `poll`, which is borrowed until the call has returned.
            let epoll = unsafe { BorrowedFd::borrow_raw(self.poll.as_raw_fd()) };
            wait_for(&mut [PollFd::new(epoll, PollFlags::POLLIN)], wait);
        }
        match self.poll.poll(&mut self.events, Some(Duration::ZERO)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let mut ready = std::mem::take(&mut self.unread);
        ready.extend(self.events.iter().map(|event| event.token().0 as u32));
        for client in ready {
            let Some(Some(member)) = self.members.get_mut(client as usize) else {
                continue;
            };
            match member.read(&mut self.buffer, client, listener) {
                Ok(true) => self.unread.push(client),
                Ok(false) => {}
                Err(why) => {
                    self.members[client as usize] = None;
                    listener.lost(client, &why);
                    continue;
                }
            }
            self.touched.push(client);
        }
        self.flush(listener);
        Ok(())
    }

    fn flush(&mut self, listener: &mut impl Listener) {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        for client in touched.drain(..) {
            if let Some(Some(member)) = self.members.get_mut(client as usize)
                && let Err(error) = member.flush()
            {
                self.members[client as usize] = None;
                listener.lost(client, &error.to_string());
            }
        }
        self.touched = touched;
    }
}

impl Member {
    /// Whether there may be more. `Err`: the connection is over; why.
    fn read(
        &mut self,
        buffer: &mut [u8],
        client: u32,
        listener: &mut impl Listener,
    ) -> Result<bool, String> {
        if !self.is_connected && !self.connected().map_err(|error| error.to_string())? {
            return Ok(false);
        }
        for _ in 0..READS_PER_TURN {
            let length = match self.stream.read(buffer) {
                Ok(0) => return Err("the server closed the connection".to_owned()),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.to_string()),
            };
            listener.arrived();
            let bytes = &buffer[..length];
            self.layers
                .receive(bytes, &mut self.session, (client, &mut *listener))?;
        }
        Ok(true)
    }

    fn connected(&mut self) -> io::Result<bool> {
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        match self.stream.peer_addr() {
            Ok(_) => self.is_connected = true,
            Err(error) if error.kind() == ErrorKind::NotConnected => {}
            Err(error) => return Err(error),
        }
        Ok(self.is_connected)
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.is_connected {
            return Ok(());
        }
        self.layers.flush(&mut self.session, &mut self.stream)?;
        self.session.rest(self.is_idle);
        if self.is_idle {
            self.layers.rest();
        }
        Ok(())
    }
}

/// The address that a client's turn is.
fn local(addresses: &[IpAddr], client: u32) -> Option<IpAddr> {
    match addresses {
        [] => None,
        _ => Some(addresses[client as usize % addresses.len()]),
    }
}

/// Begins to connect, from an address of this machine if it is said.
fn open(server: SocketAddr, local: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(server),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(local) = local {
        // The port is chosen when the peer is known: one may serve several peers then.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(local, 0).into())?;
    }
    match socket.connect(&server.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    Ok(TcpStream::from_std(socket.into()))
}
