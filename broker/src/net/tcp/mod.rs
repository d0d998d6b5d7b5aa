//! Connections over TCP of one worker: plain, with TLS, as WebSocket, or both; each on the worker's own listeners of
//! SO_REUSEPORT groups.

mod layers;
mod link;
mod listener;
mod proxy;

use crate::{metrics::Transport, net::tls::LiveTls};
use headgate_codec::ReasonCode;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};

pub use layers::REPLIES_BYTES_MAX;
pub use link::TcpLink;

/// Pending connections of a listener.
const BACKLOG: i32 = 4096;

/// What one read takes from a socket, bytes.
const READ_BYTES: usize = 64 * 1024;

/// A buffer for writing that grew beyond this is not kept, bytes.
const SPARE_BUFFER_BYTES: usize = 1024 * 1024;

/// What connections over TCP need to know; the same for all workers.
#[derive(Clone)]
pub struct TcpSettings {
    /// For `listen.tls`.
    pub tls: Option<Arc<LiveTls>>,
    /// For `listen.wss`.
    pub wss: Option<Arc<LiveTls>>,
    /// The longest WebSocket frame that is taken, bytes.
    pub frame_bytes_max: u32,
}

/// A listener before a worker has it.
#[derive(Debug)]
pub struct Bound {
    /// What its connections speak.
    pub transport: Transport,
    /// Its connections begin with a PROXY header.
    pub proxy: bool,
    /// The socket.
    pub socket: std::net::TcpListener,
}

/// The connection can't go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer closed the socket, or the network did: nothing can be said any more.
    Lost,
    /// The peer has ended it in words (TLS close_notify, WebSocket Close): the answer waits to be sent.
    Closed,
    /// The peer breaks a rule below MQTT; what is said to it waits to be sent.
    Refused(ReasonCode),
}

/// The TCP half of a worker.
pub struct TcpSide {
    listening: Vec<listener::Listening>,
    /// Connections wait in the listeners until then.
    held_until: Option<Instant>,
    /// The worker's time is short: no connections are accepted.
    is_short: bool,
    settings: TcpSettings,
    buffers: Buffers,
}

/// What the worker's connections work in, one after the other.
struct Buffers {
    /// What one read took from a socket.
    wire: Box<[u8]>,
    /// What TLS made of it.
    plain: Vec<u8>,
    /// Answers of the layers.
    replies: Vec<u8>,
    /// Frames of a connection, joined, before TLS.
    joined: Vec<u8>,
    /// The same after TLS.
    sealed: Vec<u8>,
}

impl Buffers {
    fn new() -> Self {
        Self {
            wire: vec![0; READ_BYTES].into_boxed_slice(),
            plain: Vec::new(),
            replies: Vec::new(),
            joined: Vec::with_capacity(READ_BYTES),
            sealed: Vec::new(),
        }
    }

    /// A packet as large as the limits allow must not leave its size behind.
    fn tidy(&mut self) {
        for buffer in [&mut self.joined, &mut self.sealed] {
            if buffer.capacity() > SPARE_BUFFER_BYTES {
                buffer.clear();
                buffer.shrink_to(SPARE_BUFFER_BYTES);
            }
        }
    }
}

/// Opens a listener that shares its address with the other workers' listeners.
pub fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if let SocketAddr::V6(v6) = address {
        // [::] serves IPv4 too; any other address is meant as it is written.
        socket.set_only_v6(*v6.ip() != Ipv6Addr::UNSPECIFIED)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A v4-mapped IPv6 address as the IPv4 address that it is.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
