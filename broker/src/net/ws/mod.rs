//! WebSocket (RFC 6455) for MQTT (MQTT 5.0 §6): the HTTP upgrade, then frames. Bytes in, bytes out; the socket, and TLS
//! between, are the connection's.

mod frames;
#[cfg(test)]
mod tests;
mod upgrade;

use headgate_codec::ReasonCode;
use std::ops::Range;

pub use frames::{BINARY_HEADER_BYTES_MAX, Frames, binary_header};
pub use upgrade::{REQUEST_BYTES_MAX, Upgrade};

/// Why a WebSocket connection doesn't go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The client has closed it; the answer to that is among the replies.
    PeerClosed,
    /// The client breaks a rule: the reason for MQTT. What the HTTP or WebSocket layer says to it is among the replies,
    /// or said by [`WebSocket::close`].
    Refused(ReasonCode),
}

/// One WebSocket connection, from its first byte on.
#[derive(Debug)]
pub enum WebSocket {
    /// The request has not come whole.
    Upgrading {
        /// What has come of it.
        upgrade: Upgrade,
        /// For the frames after it.
        frame_bytes_max: u32,
    },
    /// Frames.
    Open(Frames),
}

impl WebSocket {
    /// Waits for the request. Frames may be `frame_bytes_max` long.
    pub fn new(frame_bytes_max: u32) -> Self {
        Self::Upgrading {
            upgrade: Upgrade::default(),
            frame_bytes_max,
        }
    }

    /// Whether MQTT can flow.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }

    /// Takes bytes of the client. Returns where in `data` the bytes of MQTT are now; what is to be sent back is appended
    /// to `replies`. With a `Stop` the connection is to be ended, once these bytes have been used.
    pub fn receive(
        &mut self,
        data: &mut [u8],
        replies: &mut Vec<u8>,
    ) -> (Range<usize>, Result<(), Stop>) {
        let mut from = 0;
        if let Self::Upgrading {
            upgrade,
            frame_bytes_max,
        } = self
        {
            match upgrade.receive(data, replies) {
                Ok(None) => return (0..0, Ok(())),
                Ok(Some(consumed)) => from = consumed,
                Err(stop) => return (0..0, Err(stop)),
            }
            *self = Self::Open(Frames::new(*frame_bytes_max));
        }
        let Self::Open(frames) = self else {
            return (0..0, Ok(()));
        };
        let (length, end) = frames.receive(&mut data[from..], replies);
        (from..from + length, end)
    }

    /// Appends a Close frame for `reason` to `out`, unless there was one already.
    pub fn close(&mut self, reason: ReasonCode, out: &mut Vec<u8>) {
        if let Self::Open(frames) = self {
            frames.close(reason, out);
        }
    }
}
