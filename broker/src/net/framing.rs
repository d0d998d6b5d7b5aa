//! From stream bytes to MQTT packets, without a buffer for a connection that waits for nothing.

use bytes::{Buf, Bytes, BytesMut};
use headgate_codec::{DecodeError, Packet, Version, decode, frame_len};

/// What has arrived on a stream and was not consumed yet.
///
/// Packets that lie whole within one chunk are slices of it. Only a packet that is cut by the
/// chunk's end is copied, into a buffer that is as long as the packet and at most
/// `maximum_packet_size`. An idle connection holds no memory here.
#[derive(Debug, Default)]
pub struct Inbox {
    /// The chunk that is being taken apart.
    chunk: Bytes,
    /// The front of a packet whose end has not come.
    partial: BytesMut,
}

impl Inbox {
    /// Adds the next bytes of the stream.
    pub fn push(&mut self, bytes: Bytes) {
        if self.partial.is_empty() && self.chunk.is_empty() {
            self.chunk = bytes;
        } else {
            // The reader was stopped in the middle of a chunk, or a packet was cut.
            if !self.chunk.is_empty() {
                let rest = std::mem::take(&mut self.chunk);
                self.partial.extend_from_slice(&rest);
            }
            self.partial.extend_from_slice(&bytes);
        }
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.chunk.is_empty() && self.partial.is_empty()
    }

    /// A DISCONNECT is next (§3.14).
    pub fn begins_with_disconnect(&self) -> bool {
        let first = self.partial.first().or(self.chunk.first());
        first.is_some_and(|first| *first == DISCONNECT)
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.chunk.len() + self.partial.len()
    }

    /// The next whole packet, if there is one.
    pub fn next(
        &mut self,
        version: Option<Version>,
        maximum_packet_size: u32,
    ) -> Result<Option<Packet>, DecodeError> {
        if self.partial.is_empty() {
            if self.chunk.is_empty() {
                return Ok(None);
            }
            if let Some(packet) = decode(&mut self.chunk, version, maximum_packet_size)? {
                return Ok(Some(packet));
            }
            let rest = std::mem::take(&mut self.chunk);
            let whole = frame_len(&rest, maximum_packet_size)?.unwrap_or(rest.len());
            // A peer that announces much and sends little gets no memory for its word alone.
            self.partial
                .reserve(whole.min(rest.len() + MAX_RESERVE_BYTES));
            self.partial.extend_from_slice(&rest);
            return Ok(None);
        }
        match frame_len(&self.partial, maximum_packet_size)? {
            Some(whole) if whole <= self.partial.len() => {
                let mut packet = self.partial.split_to(whole).freeze();
                if self.partial.is_empty() {
                    self.partial = BytesMut::new();
                }
                let decoded = decode(&mut packet, version, maximum_packet_size)?;
                debug_assert!(!packet.has_remaining(), "frame_len and decode agree");
                Ok(decoded)
            }
            _ => Ok(None),
        }
    }
}

/// The first byte of a DISCONNECT: its type, and flags that are 0 (§3.14.1).
const DISCONNECT: u8 = 0xE0;

/// Room that is made for a cut packet beyond what has come.
const MAX_RESERVE_BYTES: usize = 16 * 1024;
