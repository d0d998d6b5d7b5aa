//! Accepting connections over TCP.

use super::{Bound, Buffers, TcpSettings, TcpSide, canonical, layers::Layers, link::TcpLink};
use crate::{
    limits::{Admission, Permit},
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
};

/// Connections accepted from one listener in one turn, at most, so that accepting starves nobody.
const ACCEPTS_PER_TURN: usize = 64;

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

    /// Whether `accept` has more to do.
    pub fn is_acceptable(&self) -> bool {
        self.listening.iter().any(|listening| listening.acceptable)
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
        for listening in &mut self.listening {
            for _ in 0..ACCEPTS_PER_TURN {
                let Some((stream, peer)) = listening.next(metrics) else {
                    break;
                };
                let permit = match listening.proxy {
                    false => admission.admit(peer.ip(), clock.now),
                    true => admission.admit_proxied(clock.now),
                };
                let permit = match permit {
                    Ok(permit) => permit,
                    Err(limit) => {
                        metrics.refused[limit].inc();
                        continue;
                    }
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
