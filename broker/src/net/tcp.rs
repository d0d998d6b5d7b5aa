//! TCP connections of one worker, on the worker's own listener of a SO_REUSEPORT group.

use crate::{
    limits::Admission,
    metrics::{Transport, WorkerMetrics},
    net::framing::Inbox,
    worker::{
        Clock,
        conns::{Conn, Conns, Link, Outbox, append_frame},
    },
};
use bytes::Bytes;
use headgate_codec::ReasonCode;
use headgate_core::ConnId;
use mio::{
    Interest, Registry, Token,
    net::{TcpListener, TcpStream},
};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv6Addr, Shutdown, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

/// Pending connections of a listener.
const BACKLOG: i32 = 4096;

/// Connections accepted in one turn, at most, so that accepting starves nobody.
const ACCEPTS_PER_TURN: usize = 64;

/// How long a connection that is to be closed may take to read what was sent to it.
const LINGER: Duration = Duration::from_secs(1);

/// A TCP connection.
#[derive(Debug)]
pub struct TcpLink {
    stream: TcpStream,
    readable: bool,
    writable: bool,
    /// Our side is shut; the peer has until then to shut its own.
    linger: Option<Instant>,
}

/// The connection has ended (its peer closed it, or the network did).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended;

/// The TCP half of a worker.
pub struct TcpSide {
    listener: TcpListener,
    acceptable: bool,
    /// What one read takes from a socket.
    scratch: Box<[u8]>,
    joined: Vec<u8>,
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

impl TcpSide {
    /// Takes over a listener and registers it under `token`.
    pub fn new(
        listener: std::net::TcpListener,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        let mut listener = TcpListener::from_std(listener);
        registry.register(&mut listener, token, Interest::READABLE)?;
        Ok(Self {
            listener,
            acceptable: true,
            scratch: vec![0; 64 * 1024].into_boxed_slice(),
            joined: Vec::with_capacity(64 * 1024),
        })
    }

    /// The listener has something to accept.
    pub fn set_acceptable(&mut self) {
        self.acceptable = true;
    }

    /// Whether `accept` has more to do.
    pub fn is_acceptable(&self) -> bool {
        self.acceptable
    }

    /// Stops listening: the server shuts down.
    pub fn stop_accepting(&mut self, registry: &Registry) {
        let _not_registered_any_more = registry.deregister(&mut self.listener);
        self.acceptable = false;
    }

    /// Accepts what is there, a bounded number at a time; `opened` gets the new ones.
    /// `token` makes the token of a place.
    pub fn accept(
        &mut self,
        conns: &mut Conns,
        (registry, token): (&Registry, fn(u32) -> Token),
        admission: &Arc<Admission>,
        metrics: &WorkerMetrics,
        clock: Clock,
        opened: &mut Vec<ConnId>,
    ) {
        for _ in 0..ACCEPTS_PER_TURN {
            let (mut stream, peer) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.acceptable = false;
                    return;
                }
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    // Out of descriptors, most likely; the level is looked at again next turn.
                    metrics.accept_errors.inc();
                    tracing::warn!(%error, "accept failed; raise the limit of open files (LimitNOFILE=) if it is that");
                    self.acceptable = false;
                    return;
                }
            };
            let peer = canonical(peer);
            let permit = match admission.admit(peer.ip(), clock.now) {
                Ok(permit) => permit,
                Err(limit) => {
                    metrics.refused[limit].inc();
                    continue;
                }
            };
            metrics.connections_opened[Transport::Tcp].inc();
            let _latency_only = stream.set_nodelay(true);
            let id = conns.insert(|id| {
                let registered = registry.register(
                    &mut stream,
                    token(id.index),
                    Interest::READABLE | Interest::WRITABLE,
                );
                if let Err(error) = registered {
                    tracing::warn!(%error, "a TCP connection can't be watched and will time out");
                }
                Conn {
                    id,
                    peer,
                    permit,
                    version: None,
                    open: true,
                    reading: true,
                    held: 0,
                    flushed_in: 0,
                    closing: None,
                    close_by: None,
                    scheduled: false,
                    eventful: false,
                    inbox: Inbox::default(),
                    outbox: Outbox::default(),
                    link: Link::Tcp(TcpLink {
                        stream,
                        readable: true,
                        writable: true,
                        linger: None,
                    }),
                }
            });
            opened.push(id);
        }
    }

    /// The next bytes of a connection; `Ok(None)` when there are none now.
    pub fn read(&mut self, link: &mut TcpLink) -> Result<Option<Bytes>, Ended> {
        if !link.readable {
            return Ok(None);
        }
        loop {
            return match link.stream.read(&mut self.scratch) {
                Ok(0) => Err(Ended),
                Ok(length) => Ok(Some(Bytes::copy_from_slice(&self.scratch[..length]))),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    link.readable = false;
                    Ok(None)
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => Err(Ended),
            };
        }
    }

    /// Gives the kernel what waits; returns how many bytes it has taken.
    pub fn write(&mut self, link: &mut TcpLink, outbox: &mut Outbox) -> Result<usize, Ended> {
        if !link.writable || outbox.is_empty() {
            return Ok(0);
        }
        let mut taken = 0;
        if !outbox.rest.is_empty() {
            let written = write_some(link, &outbox.rest)?;
            taken += written;
            let _ = outbox.rest.split_to(written);
        }
        if outbox.rest.is_empty() && !outbox.frames.is_empty() {
            self.joined.clear();
            for frame in &outbox.frames {
                append_frame(frame, &mut self.joined);
            }
            outbox.frames.clear();
            let written = write_some(link, &self.joined)?;
            taken += written;
            if written < self.joined.len() {
                outbox.rest = Bytes::copy_from_slice(&self.joined[written..]);
            }
        }
        Ok(taken)
    }

    /// Ends a connection: everything was written, so say that nothing follows, and wait a moment
    /// for the peer to do the same, so that a reset does not overtake the last bytes.
    /// Returns when to look again, or `None` if it is over.
    pub fn finish(link: &mut TcpLink, reason: ReasonCode, clock: Clock) -> Option<Instant> {
        match link.linger {
            // After its own DISCONNECT the client closes; there is nothing to be read any more.
            None if reason == ReasonCode::SUCCESS => None,
            None => {
                link.stream.shutdown(Shutdown::Write).ok()?;
                let until = clock.now + LINGER;
                link.linger = Some(until);
                Some(until)
            }
            Some(until) if clock.now < until => Some(until),
            Some(_) => None,
        }
    }

    /// Reads and forgets what a connection that is being closed still sends.
    pub fn discard(&mut self, link: &mut TcpLink) -> Result<(), Ended> {
        while self.read(link)?.is_some() {}
        Ok(())
    }

    /// Stops watching a connection that is going to be dropped.
    pub fn forget(link: &mut TcpLink, registry: &Registry) {
        let _closing_does_it_too = registry.deregister(&mut link.stream);
    }
}

impl TcpLink {
    /// The poll has said what can be done.
    pub fn ready(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }
}

fn write_some(link: &mut TcpLink, bytes: &[u8]) -> Result<usize, Ended> {
    let mut written = 0;
    while written < bytes.len() {
        match link.stream.write(&bytes[written..]) {
            Ok(length) => written += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                link.writable = false;
                break;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Err(Ended),
        }
    }
    Ok(written)
}

/// A v4-mapped IPv6 address as the IPv4 address that it is.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
