//! TLS over TCP (RFC 8446, RFC 5246): bytes of the socket to bytes of the client, and back.
//!
//! rustls is used without buffers of its own: what comes is decrypted from the worker's read buffer, what goes is
//! encrypted into the worker's write buffer. An idle connection keeps rustls's state and nothing else.

use super::clients;
use headgate_core::ClientCertificate;
use rustls::ServerConfig;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic,
};
use std::sync::Arc;

/// Bytes of records that have not come whole, at most, per connection. A record has up to 16.3 KiB, a client's
/// messages of the handshake (its certificates are the longest) have to fit in the rest.
pub const PENDING_BYTES_MAX: usize = 32 * 1024;

/// The stream is no TLS, or not TLS that the configuration allows; the alert says so to the client.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StreamError {
    /// What rustls says.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// The client sends a handshake that is too long.
    #[error("more than {PENDING_BYTES_MAX} bytes of TLS messages that are not complete")]
    TooLong,
    /// It is used in a way that its state does not allow.
    #[error("TLS in an unexpected state")]
    State,
}

/// Whether the client sends more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// It may.
    Open,
    /// It has said that it doesn't (close_notify).
    Closed,
}

/// The TLS state of one connection.
pub struct TlsStream {
    tls: UnbufferedServerConnection,
    /// The beginning of a record, or of a message of the handshake.
    pending: Vec<u8>,
    /// An error has ended it. rustls isn't asked again: it may hold offsets into what is no longer pending.
    failed: bool,
}

impl TlsStream {
    /// Waits for a ClientHello.
    ///
    /// # Errors
    /// rustls doesn't take the configuration.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        Ok(Self {
            tls: UnbufferedServerConnection::new(config)?,
            pending: Vec::new(),
            failed: false,
        })
    }

    /// Whether the handshake isn't complete.
    pub fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// The client's verified certificate, once the handshake is complete.
    pub fn certificate(&self) -> Option<ClientCertificate> {
        let chain = self
            .tls
            .peer_certificates()
            .filter(|_| !self.is_handshaking())?;
        chain.first().map(clients::certificate)
    }

    /// Bytes of records that have not come whole.
    pub fn pending_len(&self) -> usize {
        self.pending.len()
    }

    /// Takes bytes of the socket: what the client says is appended to `plain`, what TLS answers to `out`.
    ///
    /// # Errors
    /// The stream can't go on; the alert is in `out`.
    pub fn receive(
        &mut self,
        wire: &mut [u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<Peer, StreamError> {
        if self.failed {
            return Err(StreamError::State);
        }
        let received = self.decrypt(wire, plain, out);
        self.failed = received.is_err();
        received
    }

    fn decrypt(
        &mut self,
        wire: &mut [u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<Peer, StreamError> {
        let mut joined = std::mem::take(&mut self.pending);
        let bytes = match joined.is_empty() {
            true => wire,
            false => {
                joined.extend_from_slice(wire);
                &mut joined[..]
            }
        };
        let mut at = 0;
        let mut peer = Peer::Open;
        loop {
            let UnbufferedStatus { mut discard, state } =
                self.tls.process_tls_records(&mut bytes[at..]);
            let mut done = false;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        plain.extend_from_slice(record.payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(|to| data.encode(to), out)?,
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => peer = Peer::Closed,
                Ok(
                    ConnectionState::Closed
                    | ConnectionState::BlockedHandshake
                    | ConnectionState::WriteTraffic(_),
                ) => done = true,
                // Early data is not offered.
                Ok(_) => return Err(StreamError::State),
                Err(error) => {
                    self.alert(&mut bytes[at + discard..], out);
                    return Err(error.into());
                }
            }
            at += discard;
            if done {
                break;
            }
        }
        let rest = bytes.len() - at;
        if rest > PENDING_BYTES_MAX {
            return Err(StreamError::TooLong);
        }
        if rest > 0 {
            self.pending = bytes[at..].to_vec();
        }
        Ok(peer)
    }

    /// Encrypts `plain` and appends the records to `out`.
    ///
    /// # Errors
    /// The handshake isn't complete, or the keys are used up.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.writing(out, |traffic, out| {
            let records = plain.len().div_ceil(RECORD_BYTES).max(1);
            write(out, plain.len() + records * RECORD_OVERHEAD, |to| {
                traffic.encrypt(plain, to)
            })
        })
    }

    /// Says that nothing follows (close_notify).
    ///
    /// # Errors
    /// As [`TlsStream::seal`].
    pub fn close(&mut self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.writing(out, |traffic, out| {
            write(out, RECORD_OVERHEAD, |to| traffic.queue_close_notify(to))
        })
    }

    /// Does something with the state in which rustls writes.
    fn writing(
        &mut self,
        out: &mut Vec<u8>,
        mut work: impl FnMut(
            &mut WriteTraffic<'_, rustls::server::ServerConnectionData>,
            &mut Vec<u8>,
        ) -> Result<(), StreamError>,
    ) -> Result<(), StreamError> {
        if self.failed || self.is_handshaking() {
            return Err(StreamError::State);
        }
        // rustls wants to see what is pending each time: it may hold offsets into it.
        loop {
            let UnbufferedStatus { discard, state } =
                self.tls.process_tls_records(&mut self.pending);
            let done = match state? {
                ConnectionState::WriteTraffic(mut traffic) => Some(work(&mut traffic, out)),
                ConnectionState::EncodeTlsData(mut data) => {
                    encode(|to| data.encode(to), out)?;
                    None
                }
                ConnectionState::TransmitTlsData(data) => {
                    data.done();
                    None
                }
                _ => return Err(StreamError::State),
            };
            self.pending.drain(..discard);
            match done {
                Some(done) => return done,
                None => continue,
            }
        }
    }

    /// What rustls has to say after an error.
    fn alert(&mut self, rest: &mut [u8], out: &mut Vec<u8>) {
        if let Ok(ConnectionState::EncodeTlsData(mut data)) =
            self.tls.process_tls_records(rest).state
        {
            let _not_said = encode(|to| data.encode(to), out);
        }
    }
}

impl std::fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsStream")
            .field("handshaking", &self.is_handshaking())
            .field("pending", &self.pending.len())
            .finish_non_exhaustive()
    }
}

/// Plaintext of a record, at most, bytes (RFC 8446 §5.1).
const RECORD_BYTES: usize = 16 * 1024;
/// What a record has besides, at most, bytes: header, nonce or content type, tag.
const RECORD_OVERHEAD: usize = 64;

/// Appends what `encode` writes, which says how much room it needs.
fn encode(
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
    out: &mut Vec<u8>,
) -> Result<(), StreamError> {
    let from = out.len();
    let written = match encode(&mut []) {
        Ok(written) => written,
        Err(EncodeError::InsufficientSize(needed)) => {
            out.resize(from + needed.required_size, 0);
            encode(&mut out[from..]).map_err(|_| StreamError::State)?
        }
        Err(EncodeError::AlreadyEncoded) => return Err(StreamError::State),
    };
    out.truncate(from + written);
    Ok(())
}

/// Appends what `write` writes into `room` bytes, or more if it says so.
fn write(
    out: &mut Vec<u8>,
    room: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, EncryptError>,
) -> Result<(), StreamError> {
    let from = out.len();
    out.resize(from + room, 0);
    let mut written = write(&mut out[from..]);
    if let Err(EncryptError::InsufficientSize(needed)) = &written {
        out.resize(from + needed.required_size, 0);
        written = write(&mut out[from..]);
    }
    out.truncate(from + written.as_ref().map_or(0, |written| *written));
    written.map(|_| ()).map_err(|_| StreamError::State)
}

#[cfg(test)]
mod tests;
