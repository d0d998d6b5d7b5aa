//! What the core gives a connection to send.

use bytes::{BufMut, Bytes};
use headgate_codec::{AliasedPublish, PacketId, frame_len};

/// The flag of a PUBLISH that is sent again (MQTT 5.0 §3.3.1.1).
const DUP: u8 = 0x08;

/// Bytes for a connection.
#[derive(Clone, Debug)]
pub enum Frame {
    /// Encoded packets as they are.
    Bytes(Bytes),
    /// A PUBLISH with QoS > 0, of which subscribers share all but flags and Packet Identifier.
    Publish {
        /// Fixed header and Topic Name, without DUP.
        head: Bytes,
        /// Packet Identifier.
        packet_id: PacketId,
        /// Set the DUP flag.
        dup: bool,
        /// Properties and payload.
        tail: Bytes,
    },
    /// A PUBLISH with a Topic Alias in the topic's place.
    Aliased(AliasedPublish),
}

impl Frame {
    /// How many bytes it is on the wire.
    pub fn encoded_len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Publish { head, tail, .. } => head.len() + 2 + tail.len(),
            Self::Aliased(aliased) => aliased.encoded_len(),
        }
    }

    /// How many packets it is.
    pub fn packets(&self) -> usize {
        let Self::Bytes(bytes) = self else { return 1 };
        let mut rest = &bytes[..];
        let mut count = 0;
        while let Ok(Some(len)) = frame_len(rest, u32::MAX) {
            count += 1;
            rest = rest.get(len..).unwrap_or_default();
        }
        count
    }

    /// Appends what it is on the wire.
    #[inline]
    pub fn append_to(&self, to: &mut impl BufMut) {
        match self {
            Self::Bytes(bytes) => to.put_slice(bytes),
            Self::Publish {
                head,
                packet_id,
                dup,
                tail,
            } => {
                match head.split_first() {
                    Some((first, rest)) if *dup => {
                        to.put_u8(first | DUP);
                        to.put_slice(rest);
                    }
                    _ => to.put_slice(head),
                }
                to.put_slice(&packet_id.get().to_be_bytes());
                to.put_slice(tail);
            }
            Self::Aliased(aliased) => {
                to.put_slice(aliased.head());
                to.put_slice(aliased.tail());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publish_gets_its_packet_id_and_dup_flag() {
        let frame = |dup| Frame::Publish {
            head: Bytes::from_static(&[0x32, 8, 0, 1, b'a']),
            packet_id: PacketId::new(0x0102).unwrap(),
            dup,
            tail: Bytes::from_static(b"\0hi"),
        };
        let mut bytes = vec![0xff];
        frame(false).append_to(&mut bytes);
        frame(true).append_to(&mut bytes);
        assert_eq!(bytes[..1], [0xff]);
        assert_eq!(bytes[1..11], [0x32, 8, 0, 1, b'a', 1, 2, 0, b'h', b'i']);
        assert_eq!(bytes[11..], [0x3a, 8, 0, 1, b'a', 1, 2, 0, b'h', b'i']);
        assert_eq!(frame(true).packets(), 1);
    }

    #[test]
    fn packets_in_one_piece_are_counted() {
        let pings = Frame::Bytes(Bytes::from_static(&[0xd0, 0, 0xd0, 0, 0x40, 2, 0, 1]));
        assert_eq!(pings.packets(), 3);
    }
}
