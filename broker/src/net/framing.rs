//! From stream bytes to MQTT packets, without a buffer for a connection that waits for nothing.

use bytes::{Buf, Bytes, BytesMut};
use headgate_codec::{DecodeError, Packet, Version, decode, frame_len};

/// What has arrived on a stream and was not consumed yet.
///
/// Packets that lie whole within one chunk are slices of it. Only a packet that is cut by the
/// chunk's end is copied, into a buffer that is as long as the packet and at most
/// `maximum_packet_size`. An idle connection holds no memory here.
#[derive(Debug)]
pub enum Inbox {
    /// The chunk that is being taken apart.
    Chunk(Bytes),
    /// The front of a packet whose end has not come, and what came behind it.
    Partial(BytesMut),
}

impl Default for Inbox {
    fn default() -> Self {
        Self::Chunk(Bytes::new())
    }
}

impl Inbox {
    /// Adds the next bytes of the stream.
    pub fn push(&mut self, bytes: Bytes) {
        match self {
            Self::Chunk(chunk) if chunk.is_empty() => *chunk = bytes,
            // The reader was stopped in the middle of a chunk.
            Self::Chunk(chunk) => {
                let mut partial = BytesMut::with_capacity(chunk.len() + bytes.len());
                partial.extend_from_slice(chunk);
                partial.extend_from_slice(&bytes);
                *self = Self::Partial(partial);
            }
            // A packet was cut.
            Self::Partial(partial) => partial.extend_from_slice(&bytes),
        }
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.as_ref().is_empty()
    }

    /// A DISCONNECT is next (§3.14).
    pub fn begins_with_disconnect(&self) -> bool {
        self.as_ref().first() == Some(&DISCONNECT)
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.as_ref().len()
    }

    /// The next whole packet, if there is one.
    pub fn next(
        &mut self,
        version: Option<Version>,
        maximum_packet_size: u32,
    ) -> Result<Option<Packet>, DecodeError> {
        match self {
            Self::Chunk(chunk) => {
                if chunk.is_empty() {
                    return Ok(None);
                }
                if let Some(packet) = decode(chunk, version, maximum_packet_size)? {
                    return Ok(Some(packet));
                }
                let whole = frame_len(chunk, maximum_packet_size)?.unwrap_or(chunk.len());
                // A peer that announces much and sends little gets no memory for its word alone.
                let capacity = whole.min(chunk.len() + MAX_RESERVE_BYTES);
                let mut partial = BytesMut::with_capacity(capacity);
                partial.extend_from_slice(chunk);
                *self = Self::Partial(partial);
                Ok(None)
            }
            Self::Partial(partial) => match frame_len(partial, maximum_packet_size)? {
                Some(whole) if whole <= partial.len() => {
                    let mut packet = partial.split_to(whole).freeze();
                    if partial.is_empty() {
                        *self = Self::default();
                    }
                    let decoded = decode(&mut packet, version, maximum_packet_size)?;
                    debug_assert!(!packet.has_remaining(), "frame_len and decode agree");
                    Ok(decoded)
                }
                _ => Ok(None),
            },
        }
    }
}

impl AsRef<[u8]> for Inbox {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Chunk(chunk) => chunk,
            Self::Partial(partial) => partial,
        }
    }
}

/// The first byte of a DISCONNECT: its type, and flags that are 0 (§3.14.1).
const DISCONNECT: u8 = 0xE0;

/// Room that is made for a cut packet beyond what has come.
const MAX_RESERVE_BYTES: usize = 16 * 1024;
