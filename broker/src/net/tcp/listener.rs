//! Accepting connections over TCP.

use super::{Bound, Buffers, TcpSettings, TcpSide, canonical, layers::Layers, link::TcpLink};
use crate::{
    limits::{Admission, Limit, Permit},
    metrics::{Transport, WorkerMetrics},
    net::{tls::stream::TlsStream, ws::WebSocket},
    worker::{
        Clock,
        conns::{Conn, Conns, Link},
    },
};
use headgate_core::ConnId;
use mio::{
    Interest, Registry, Token,
    net::{TcpListener, TcpStream},
};
use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// Connections accepted from one listener in one turn, at most, so that accepting starves nobody.
const ACCEPTS_PER_TURN: usize = 64;

/// How soon it is looked again whether the worker has time.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A listener of a worker.
#[derive(Debug)]
pub struct Listening {
    listener: TcpListener,
    transport: Transport,
    proxy: bool,
    acceptable: bool,
}

impl TcpSide {
    /// Takes over listeners and registers them under the tokens that `token` makes of their place.
    pub fn new(
        bound: Vec<Bound>,
        settings: TcpSettings,
        registry: &Registry,
        token: fn(usize) -> Token,
    ) -> io::Result<Self> {
        let mut listening = Vec::with_capacity(bound.len());
        for (place, bound) in bound.into_iter().enumerate() {
            let mut listener = TcpListener::from_std(bound.socket);
            registry.register(&mut listener, token(place), Interest::READABLE)?;
            listening.push(Listening {
                listener,
                transport: bound.transport,
                proxy: bound.proxy,
                acceptable: true,
            });
        }
        Ok(Self {
            listening,
            held_until: None,
            is_short: false,
            settings,
            buffers: Buffers::new(),
        })
    }

    /// The listener in this place has something to accept.
    pub fn set_acceptable(&mut self, place: usize) {
        if let Some(listening) = self.listening.get_mut(place) {
            listening.acceptable = true;
        }
    }

    /// When `accept` has something to do; `None` = nothing is there.
    pub fn accepts_at(&self, now: Instant) -> Option<Instant> {
        let is_acceptable = self.listening.iter().any(|listening| listening.acceptable);
        is_acceptable.then(|| self.held_until.unwrap_or(now))
    }

    /// Whether the worker's time is too short for new connections.
    pub fn set_short(&mut self, is_short: bool) {
        self.is_short = is_short;
    }

    /// Whether connections stay in the listeners, because the worker's time is short or they come too fast: the kernel
    /// keeps them, and when there are many, their clients' SYNs wait.
    fn holds(&mut self, admission: &Admission, now: Instant) -> bool {
        self.held_until = match self.is_short {
            true => Some(now + LOOK_AGAIN),
            false => admission.next_handshake(now),
        };
        self.held_until.is_some()
    }

    /// Stops listening: the server shuts down.
    pub fn stop_accepting(&mut self, registry: &Registry) {
        for mut listening in self.listening.drain(..) {
            let _not_registered_any_more = registry.deregister(&mut listening.listener);
        }
    }

    /// Accepts what is there, a bounded number at a time; `opened` gets the new ones.
    /// `token` makes the token of a connection's place.
    pub fn accept(
        &mut self,
        conns: &mut Conns,
        (registry, token): (&Registry, fn(u32) -> Token),
        admission: &Arc<Admission>,
        metrics: &WorkerMetrics,
        clock: Clock,
        opened: &mut Vec<ConnId>,
    ) {
        let mut has_waited = self.held_until.is_some();
        for place in 0..self.listening.len() {
            for _ in 0..ACCEPTS_PER_TURN {
                if self.holds(admission, clock.now) {
                    return;
                }
                let listening = &mut self.listening[place];
                let Some((stream, peer)) = listening.next(metrics) else {
                    break;
                };
                if std::mem::take(&mut has_waited) {
                    metrics.refused[Limit::HandshakesPerSecond].inc();
                }
                let permit = match listening.proxy {
                    false => admission.admit(peer.ip(), clock.now),
                    true => admission.admit_proxied(clock.now),
                };
                let permit = match permit {
                    Ok(permit) => permit,
                    Err(limit) => match listening.to_refuse(limit, admission) {
                        Some(permit) => permit,
                        None => {
                            metrics.refused[limit].inc();
                            continue;
                        }
                    },
                };
                let Some(link) = link(stream, listening, &self.settings) else {
                    continue;
                };
                match link.is_established() {
                    true => metrics.connections_opened[link.transport].inc(),
                    false => metrics.handshakes[link.transport].inc(),
                }
                opened.push(insert(conns, link, (peer, permit), (registry, token)));
            }
        }
    }
}

impl Listening {
    /// A place for a connection that MQTT can tell why it is refused, without the cost of TLS.
    fn to_refuse(&self, limit: Limit, admission: &Arc<Admission>) -> Option<Permit> {
        let is_plain = matches!(self.transport, Transport::Tcp | Transport::WebSocket);
        let is_short = limit == Limit::MemoryLimit;
        (is_short && is_plain && !self.proxy)
            .then(|| admission.admit_to_refuse())
            .flatten()
    }

    /// The next connection, if one waits.
    fn next(&mut self, metrics: &WorkerMetrics) -> Option<(TcpStream, SocketAddr)> {
        while self.acceptable {
            match self.listener.accept() {
                Ok((stream, peer)) => return Some((stream, canonical(peer))),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.acceptable = false,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // Out of descriptors, most likely; the level is looked at again next turn.
                    metrics.accept_errors.inc();
                    tracing::warn!(%error, "accept failed; raise the limit of open files (LimitNOFILE=) if it is that");
                    self.acceptable = false;
                }
            }
        }
        None
    }
}

/// The link with the layers that its listener asks for.
fn link(stream: TcpStream, listening: &Listening, settings: &TcpSettings) -> Option<TcpLink> {
    let _latency_only = stream.set_nodelay(true);
    let tls = match listening.transport {
        Transport::Tls => settings.tls.as_ref(),
        Transport::WebSocketTls => settings.wss.as_ref(),
        _ => None,
    };
    let tls = match tls.map(|config| TlsStream::new(config.current())) {
        None => None,
        Some(Ok(tls)) => Some(tls),
        Some(Err(error)) => {
            tracing::warn!(%error, "TLS refuses its configuration: a bug");
            return None;
        }
    };
    let is_web_socket = matches!(
        listening.transport,
        Transport::WebSocket | Transport::WebSocketTls
    );
    let web_socket = is_web_socket.then(|| WebSocket::new(settings.frame_bytes_max));
    let layers = Layers::new(listening.proxy, tls, web_socket);
    Some(TcpLink {
        stream,
        transport: listening.transport,
        readable: true,
        ended: false,
        writable: true,
        linger: None,
        layers: (!layers.is_empty()).then(|| Box::new(layers)),
    })
}

fn insert(
    conns: &mut Conns,
    mut link: TcpLink,
    (peer, permit): (SocketAddr, Permit),
    (registry, token): (&Registry, fn(u32) -> Token),
) -> ConnId {
    conns.insert(|id| {
        let registered = registry.register(
            &mut link.stream,
            token(id.index),
            Interest::READABLE | Interest::WRITABLE,
        );
        if let Err(error) = registered {
            tracing::warn!(%error, "a TCP connection can't be watched and will time out");
        }
        Conn::new(id, peer, permit, Link::Tcp(Box::new(link)))
    })
}
