//! One connection over TCP: reading, writing, ending.

use super::{
    End, TcpSide,
    layers::{Layers, Proxied, Stop},
};
use crate::{
    metrics::Transport,
    net::ws::BINARY_HEADER_BYTES_MAX,
    worker::{Clock, conns::Outbox},
};
use bytes::{Buf, Bytes};
use headgate_codec::ReasonCode;
use headgate_core::ClientCertificate;
use mio::{Registry, net::TcpStream};
use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr},
    time::{Duration, Instant},
};

/// How long a connection that is to be closed may take to read what was sent to it.
const LINGER: Duration = Duration::from_secs(1);

/// Reads of a connection that is being closed, in one turn.
const DISCARDS_PER_TURN: usize = 16;

/// A connection over TCP.
#[derive(Debug)]
pub struct TcpLink {
    pub(super) stream: TcpStream,
    pub(super) transport: Transport,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// The poll has said that the peer sends nothing more: what is there is read to the end.
    pub(super) ended: bool,
    /// Our side is shut; the peer has until then to shut its own.
    pub(super) linger: Option<Instant>,
    /// `None` for plain TCP.
    pub(super) layers: Option<Box<Layers>>,
}

impl TcpLink {
    /// What it speaks.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// The poll has said what can be done; `ended`: the peer has shut its side, or the connection has failed.
    pub fn ready(&mut self, readable: bool, writable: bool, ended: bool) {
        self.readable |= readable || ended;
        self.writable |= writable || ended;
        self.ended |= ended;
    }

    /// Whether MQTT can flow: everything below it is set up.
    pub fn is_established(&self) -> bool {
        self.layers.as_ref().is_none_or(|layers| layers.is_ready())
    }

    /// Whether the socket has taken everything that was given to the link.
    pub fn is_flushed(&self) -> bool {
        self.layers
            .as_ref()
            .is_none_or(|layers| !layers.has_unsent())
    }

    /// Gives up what the socket has not taken.
    pub fn abandon(&mut self) {
        if let Some(layers) = &mut self.layers {
            layers.abandon();
        }
    }

    /// The client's verified certificate.
    pub fn certificate(&self) -> Option<ClientCertificate> {
        self.layers.as_ref()?.certificate()
    }

    /// What a PROXY header that has just come said: the client's address, or that of the socket.
    pub fn take_source(&mut self) -> Option<Option<SocketAddr>> {
        Some(match self.layers.as_mut()?.proxied.take()? {
            Proxied::Source(source) => Some(super::canonical(source)),
            Proxied::Nothing => None,
        })
    }

    /// Whether reading was stopped by answers that did not leave, and can go on.
    pub fn resumes(&mut self) -> bool {
        self.layers.as_mut().is_some_and(|layers| {
            layers.stalled && !layers.is_congested() && std::mem::take(&mut layers.stalled)
        })
    }

    /// Ends a connection: everything was written, so say that nothing follows, and wait a moment
    /// for the peer to do the same, so that a reset does not overtake the last bytes.
    /// Returns when to look again, or `None` if it is over.
    pub fn finish(&mut self, reason: ReasonCode, clock: Clock) -> Option<Instant> {
        if let Some(layers) = &mut self.layers {
            layers.say_goodbye(reason);
            self.flush().ok()?;
            if !self.is_flushed() {
                return Some(clock.now + LINGER);
            }
        }
        match self.linger {
            // After its own DISCONNECT the client closes; there is nothing to be read any more.
            None if reason == ReasonCode::SUCCESS => None,
            None => {
                self.stream.shutdown(Shutdown::Write).ok()?;
                let until = clock.now + LINGER;
                self.linger = Some(until);
                Some(until)
            }
            Some(until) if clock.now < until => Some(until),
            Some(_) => None,
        }
    }

    /// Stops watching a connection that is going to be dropped.
    pub fn forget(&mut self, registry: &Registry) {
        let _closing_does_it_too = registry.deregister(&mut self.stream);
    }

    /// Sends what the layers have for the socket. Returns how many bytes of MQTT have left.
    fn flush(&mut self) -> Result<usize, End> {
        let Some(layers) = &mut self.layers else {
            return Ok(0);
        };
        if !layers.has_unsent() || !self.writable {
            return Ok(0);
        }
        let written = write_some(&mut self.stream, &mut self.writable, layers.waiting())?;
        Ok(layers.sent(written))
    }
}

impl TcpSide {
    /// The next bytes of a connection for MQTT; `Ok(None)` when there are none now. They are empty when what came was
    /// for TLS or WebSocket alone: there may be more.
    pub fn read(&mut self, link: &mut TcpLink) -> Result<Option<Bytes>, End> {
        if link.layers.is_some() {
            return self.read_layers(link);
        }
        let wire = &mut self.buffers.wire;
        let length = read_some(&mut link.stream, &mut link.readable, link.ended, wire)?;
        Ok(length.map(|length| Bytes::copy_from_slice(&wire[..length])))
    }

    fn read_layers(&mut self, link: &mut TcpLink) -> Result<Option<Bytes>, End> {
        let Some(layers) = link.layers.as_deref_mut() else {
            return Ok(None);
        };
        match layers.stop {
            Some(Stop::PeerClosed) => return Err(End::Closed),
            Some(Stop::Refused(reason)) => return Err(End::Refused(reason)),
            None => {}
        }
        if layers.is_congested() {
            layers.stalled = true;
            return Ok(None);
        }
        let buffers = &mut self.buffers;
        let length = if layers.has_early() {
            let early = layers.take_early();
            buffers.wire[..early.len()].copy_from_slice(&early);
            early.len()
        } else {
            let wire = &mut buffers.wire;
            match read_some(&mut link.stream, &mut link.readable, link.ended, wire)? {
                Some(length) => length,
                None => return Ok(None),
            }
        };
        let range = layers.receive(length, buffers);
        let bytes = match layers.tls {
            Some(_) => &buffers.plain[range],
            None => &buffers.wire[range],
        };
        let chunk = Bytes::copy_from_slice(bytes);
        if layers.is_empty() {
            // Plain TCP behind a PROXY header.
            link.layers = None;
        }
        Ok(Some(chunk))
    }

    /// Gives the kernel what waits; returns how many bytes of MQTT have left.
    pub fn write(&mut self, link: &mut TcpLink, outbox: &mut Outbox) -> Result<usize, End> {
        if link.layers.is_some() {
            return self.write_layers(link, outbox);
        }
        if !link.writable || outbox.is_empty() {
            return Ok(0);
        }
        let mut taken = 0;
        let (stream, writable) = (&mut link.stream, &mut link.writable);
        if let Some(rest) = &mut outbox.rest {
            let written = write_some(stream, writable, rest)?;
            taken += written;
            rest.advance(written);
        }
        outbox.rest.take_if(|rest| rest.is_empty());
        if outbox.rest.is_none() && !outbox.frames.is_empty() {
            let joined = &mut self.buffers.joined;
            joined.clear();
            for frame in &outbox.frames {
                frame.append_to(joined);
            }
            outbox.frames.clear();
            let written = write_some(stream, writable, joined)?;
            taken += written;
            if written < joined.len() {
                outbox.rest = Some(Box::new(Bytes::copy_from_slice(&joined[written..])));
            }
            self.buffers.tidy();
        }
        Ok(taken)
    }

    fn write_layers(&mut self, link: &mut TcpLink, outbox: &mut Outbox) -> Result<usize, End> {
        let mut taken = link.flush()?;
        let Some(layers) = link.layers.as_deref_mut() else {
            return Ok(taken);
        };
        if layers.has_unsent() || !layers.is_ready() || outbox.is_empty() {
            return Ok(taken);
        }
        let buffers = &mut self.buffers;
        buffers.joined.clear();
        buffers.joined.resize(BINARY_HEADER_BYTES_MAX, 0);
        if let Some(rest) = outbox.rest.take() {
            buffers.joined.extend_from_slice(&rest);
        }
        for frame in outbox.frames.drain(..) {
            frame.append_to(&mut buffers.joined);
        }
        let length = buffers.joined.len() - BINARY_HEADER_BYTES_MAX;
        let range = layers.seal(length, buffers).map_err(|error| {
            tracing::debug!(%error, "TLS");
            End::Lost
        })?;
        let bytes = match layers.tls {
            Some(_) => &buffers.sealed[range],
            None => &buffers.joined[range],
        };
        let written = write_some(&mut link.stream, &mut link.writable, bytes)?;
        if written == bytes.len() {
            taken += length;
        } else {
            layers.unsent = bytes[written..].to_vec();
            layers.owed = length;
        }
        buffers.tidy();
        Ok(taken)
    }

    /// Reads and forgets what a connection that is being closed still sends.
    pub fn discard(&mut self, link: &mut TcpLink) -> Result<(), End> {
        let wire = &mut self.buffers.wire;
        for _ in 0..DISCARDS_PER_TURN {
            if read_some(&mut link.stream, &mut link.readable, link.ended, wire)?.is_none() {
                break;
            }
        }
        Ok(())
    }
}

/// `Ok(None)` when nothing is there now.
///
/// A read that doesn't fill the buffer has emptied the socket: what comes later is a new event of the poll, so that asking
/// once more is a system call saved. Only an end that the poll has already told comes without one.
fn read_some(
    stream: &mut TcpStream,
    readable: &mut bool,
    ended: bool,
    to: &mut [u8],
) -> Result<Option<usize>, End> {
    while *readable {
        match stream.read(to) {
            Ok(0) => return Err(End::Lost),
            Ok(length) => {
                *readable = ended || length == to.len();
                return Ok(Some(length));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => *readable = false,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Err(End::Lost),
        }
    }
    Ok(None)
}

/// Returns how many bytes the socket has taken.
fn write_some(stream: &mut TcpStream, writable: &mut bool, bytes: &[u8]) -> Result<usize, End> {
    let mut written = 0;
    while written < bytes.len() && *writable {
        match stream.write(&bytes[written..]) {
            Ok(length) => written += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => *writable = false,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Err(End::Lost),
        }
    }
    Ok(written)
}
