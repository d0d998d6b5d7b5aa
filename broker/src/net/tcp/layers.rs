//! What lies between a socket and MQTT: PROXY header, TLS, WebSocket, in this order, each there or not.

use super::{Buffers, proxy};
use crate::net::{
    tls::stream::{self, TlsStream},
    ws::{self, WebSocket, binary_header},
};
use headgate_codec::ReasonCode;
use headgate_core::ClientCertificate;
use std::{net::SocketAddr, ops::Range};

/// Answers of the layers (pongs, TLS's key updates) that the client has not taken, bytes: above it, nothing is read
/// from the client.
pub const REPLIES_BYTES_MAX: usize = 16 * 1024;

/// Why a connection with layers doesn't go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The client has said that it ends.
    PeerClosed,
    /// The client breaks a rule.
    Refused(ReasonCode),
}

/// What a PROXY header said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proxied {
    /// The client's address.
    Source(SocketAddr),
    /// Nothing of it: the socket's address holds.
    Nothing,
}

/// The layers of one connection.
#[derive(Debug, Default)]
pub(super) struct Layers {
    pub proxy: Option<proxy::Receiver>,
    pub tls: Option<Box<TlsStream>>,
    pub web_socket: Option<WebSocket>,
    /// What the PROXY header said, until somebody asks.
    pub proxied: Option<Proxied>,
    /// What came behind the PROXY header in the same read.
    early: Vec<u8>,
    /// Bytes for the socket that it has not taken.
    pub unsent: Vec<u8>,
    /// How many of them it has taken.
    unsent_from: usize,
    /// How many of them are answers of the layers.
    replies: usize,
    /// Bytes of MQTT that count as taken once `unsent` has left.
    pub owed: usize,
    /// The end that comes when what was before it has been used.
    pub stop: Option<Stop>,
    /// Nothing was read because the answers don't leave.
    pub stalled: bool,
    /// Close and close_notify were said.
    said_goodbye: bool,
}

impl Layers {
    /// Those that a connection has.
    pub fn new(proxy: bool, tls: Option<TlsStream>, web_socket: Option<WebSocket>) -> Self {
        Self {
            proxy: proxy.then(proxy::Receiver::default),
            tls: tls.map(Box::new),
            web_socket,
            ..Self::default()
        }
    }

    /// Whether MQTT can flow.
    pub fn is_ready(&self) -> bool {
        self.proxy.is_none()
            && self.tls.as_ref().is_none_or(|tls| !tls.is_handshaking())
            && self.web_socket.as_ref().is_none_or(WebSocket::is_open)
    }

    /// Whether there is no layer left.
    pub fn is_empty(&self) -> bool {
        self.proxy.is_none()
            && self.tls.is_none()
            && self.web_socket.is_none()
            && self.early.is_empty()
            && self.unsent.is_empty()
            && self.proxied.is_none()
    }

    /// The client's verified certificate.
    pub fn certificate(&self) -> Option<ClientCertificate> {
        self.tls.as_ref()?.certificate()
    }

    /// What came behind the PROXY header, once.
    pub fn take_early(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.early)
    }

    /// Whether there is something to be used before the socket is read.
    pub fn has_early(&self) -> bool {
        !self.early.is_empty()
    }

    /// Takes `length` bytes of `buffers.wire`. Returns the bytes of MQTT; they are in `buffers.plain` if there is TLS,
    /// otherwise in `buffers.wire`. An end is kept in `stop`.
    pub fn receive(&mut self, length: usize, buffers: &mut Buffers) -> Range<usize> {
        if let Some(receiver) = &mut self.proxy {
            match receiver.receive(&buffers.wire[..length]) {
                Ok(None) => {}
                Ok(Some(header)) => {
                    self.proxy = None;
                    self.proxied = Some(header.source.map_or(Proxied::Nothing, Proxied::Source));
                    // Whoever it is may not be let in: nothing is done for it before.
                    self.early = buffers.wire[header.consumed..length].to_vec();
                }
                Err(proxy::NoHeader) => {
                    self.stop = Some(Stop::Refused(ReasonCode::PROTOCOL_ERROR));
                }
            }
            return 0..0;
        }
        let Buffers {
            wire,
            plain,
            replies,
            ..
        } = buffers;
        let mut data = &mut wire[..length];
        if let Some(tls) = &mut self.tls {
            plain.clear();
            let before = self.unsent.len();
            match tls.receive(data, plain, &mut self.unsent) {
                Ok(stream::Peer::Open) => {}
                Ok(stream::Peer::Closed) => self.stop = Some(Stop::PeerClosed),
                Err(error) => {
                    tracing::debug!(%error, "TLS");
                    self.stop = Some(Stop::Refused(ReasonCode::PROTOCOL_ERROR));
                }
            }
            self.replies += self.unsent.len() - before;
            data = plain;
        }
        let Some(web_socket) = &mut self.web_socket else {
            return 0..data.len();
        };
        if data.is_empty() {
            return 0..0;
        }
        replies.clear();
        let (range, end) = web_socket.receive(data, replies);
        if let Err(stop) = end {
            self.stop = Some(match stop {
                ws::Stop::PeerClosed => Stop::PeerClosed,
                ws::Stop::Refused(reason) => Stop::Refused(reason),
            });
        }
        self.reply(replies);
        range
    }

    /// Takes `length` bytes of MQTT that stand in `buffers.joined` behind room for a WebSocket header, and says which
    /// bytes of `buffers.joined`, or of `buffers.sealed` if there is TLS, the socket is to get.
    pub fn seal(
        &mut self,
        length: usize,
        buffers: &mut Buffers,
    ) -> Result<Range<usize>, stream::StreamError> {
        let mut from = ws::BINARY_HEADER_BYTES_MAX;
        if self.web_socket.is_some() {
            let (header, header_len) = binary_header(length);
            from -= header_len;
            buffers.joined[from..from + header_len].copy_from_slice(&header[..header_len]);
        }
        let Some(tls) = &mut self.tls else {
            return Ok(from..buffers.joined.len());
        };
        buffers.sealed.clear();
        tls.seal(&buffers.joined[from..], &mut buffers.sealed)?;
        Ok(0..buffers.sealed.len())
    }

    /// Whether bytes wait for the socket.
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Whether too many answers wait for the socket.
    pub fn is_congested(&self) -> bool {
        self.replies > REPLIES_BYTES_MAX
    }

    /// The bytes that wait for the socket.
    pub fn waiting(&self) -> &[u8] {
        &self.unsent[self.unsent_from..]
    }

    /// The socket has taken `bytes` of [`Layers::waiting`]. Returns how many bytes of MQTT have left with that.
    pub fn sent(&mut self, bytes: usize) -> usize {
        self.unsent_from += bytes;
        if self.unsent_from < self.unsent.len() {
            return 0;
        }
        // An idle connection holds no buffer.
        self.unsent = Vec::new();
        self.unsent_from = 0;
        self.replies = 0;
        std::mem::take(&mut self.owed)
    }

    /// Nothing more is sent.
    pub fn abandon(&mut self) {
        self.sent(self.unsent.len() - self.unsent_from);
    }

    /// Says that nothing follows: a WebSocket Close, a TLS close_notify. Only once.
    pub fn say_goodbye(&mut self, reason: ReasonCode) {
        if std::mem::replace(&mut self.said_goodbye, true) {
            return;
        }
        if let Some(web_socket) = &mut self.web_socket {
            let mut close = Vec::new();
            web_socket.close(reason, &mut close);
            self.reply(&close);
        }
        if let Some(tls) = &mut self.tls
            && !tls.is_handshaking()
        {
            // After a fault of TLS there is nothing to be said but its alert, which was.
            let _fault = tls.close(&mut self.unsent);
        }
    }

    fn reply(&mut self, reply: &[u8]) {
        if reply.is_empty() {
            return;
        }
        let before = self.unsent.len();
        match &mut self.tls {
            None => self.unsent.extend_from_slice(reply),
            Some(tls) => {
                if let Err(error) = tls.seal(reply, &mut self.unsent) {
                    tracing::debug!(%error, "TLS");
                    self.stop = Some(Stop::Refused(ReasonCode::PROTOCOL_ERROR));
                }
            }
        }
        self.replies += self.unsent.len() - before;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a connection with layers keeps besides the TLS state.
    #[test]
    fn layers_are_as_small_as_stated() {
        assert!(size_of::<Layers>() <= 288, "{}", size_of::<Layers>());
    }
}
