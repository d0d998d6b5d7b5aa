//! A client that sleeps: of its QUIC connection only keys, connection ID, packet numbers and stream offsets are left.
//!
//! It acknowledges what comes, follows key updates, answers PATH_CHALLENGE, and pings. It does not send again by itself: what
//! was not answered is sent again when it is asked to. Bytes of the control stream that come out of turn are not
//! acknowledged, so that the server sends them again.

use super::frames::{self, Frame};
use crate::net::tls::ClientKeys;

/// Longest packet that is taken apart.
const PACKET_BYTES_MAX: usize = 2_048;
/// Longest connection ID (RFC 9000 §17.2).
const CID_BYTES_MAX: usize = 20;
/// Its first packet number; those that it had awake are below.
const FIRST_NUMBER: u32 = 1 << 20;
/// The control stream.
const CONTROL: u64 = 0;
/// PINGREQ (MQTT 5.0 §3.12).
const PINGREQ: [u8; 2] = [0xc0, 0];
/// DISCONNECT without an error (MQTT 5.0 §3.14).
const DISCONNECT: [u8; 2] = [0xe0, 0];

/// A connection ID of the server's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ServerCid {
    bytes: [u8; CID_BYTES_MAX],
    len: u8,
}

impl ServerCid {
    /// The Source Connection ID of a packet with a long header (RFC 9000 §17.2).
    pub(super) fn of_long_header(packet: &[u8]) -> Option<Self> {
        let rest = packet.get(5..)?;
        let (len, rest) = rest.split_first()?;
        let rest = rest.get(usize::from(*len)..)?;
        let (len, rest) = rest.split_first()?;
        let cid = rest.get(..usize::from(*len))?;
        let mut bytes = [0; CID_BYTES_MAX];
        bytes.get_mut(..cid.len())?.copy_from_slice(cid);
        Some(Self { bytes, len: *len })
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// A sleeping client.
pub(super) struct Sleeper {
    keys: ClientKeys,
    server: ServerCid,
    key_phase: bool,
    /// A PINGREQ is on its way.
    pinging: bool,
    /// Of the next packet.
    next_number: u32,
    /// One above the highest that came.
    expected: u32,
    /// Bytes sent on the control stream, without an unanswered PINGREQ.
    sent: u32,
    /// Bytes received on it.
    received: u32,
}

/// What a packet brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Brought {
    /// It could be read.
    pub is_authentic: bool,
    /// The connection is over.
    pub is_closed: bool,
    /// The keys changed.
    pub is_updated: bool,
}

impl Sleeper {
    /// From what a client knows that is awake: bytes sent and received on the control stream, and 1-RTT packets received.
    pub(super) fn new(
        keys: ClientKeys,
        server: ServerCid,
        (sent, received): (u32, u32),
        packets: u32,
    ) -> Self {
        Self {
            keys,
            server,
            key_phase: false,
            pinging: false,
            next_number: FIRST_NUMBER,
            expected: packets,
            sent,
            received,
        }
    }

    /// Whether a PINGREQ is on its way.
    pub(super) fn is_pinging(&self) -> bool {
        self.pinging
    }

    /// The packet of a PINGREQ, the one that is on its way once more if there is one.
    pub(super) fn ping(&mut self, packet: &mut Vec<u8>) {
        self.pinging = true;
        let mut payload = Vec::with_capacity(16);
        frames::push_stream(&mut payload, CONTROL, self.sent.into(), &PINGREQ);
        self.seal(&payload, packet);
    }

    /// The packet with which it disconnects: DISCONNECT (MQTT 5.0 §3.14), and CONNECTION_CLOSE (RFC 9000 §19.19) without
    /// an error.
    pub(super) fn leave(&mut self, packet: &mut Vec<u8>) {
        let mut payload = Vec::with_capacity(16);
        frames::push_stream(&mut payload, CONTROL, self.sent.into(), &DISCONNECT);
        payload.extend_from_slice(&[0x1d, 0, 0]);
        self.seal(&payload, packet);
    }

    /// The PINGRESP has come. `false`: nothing was asked.
    pub(super) fn answered(&mut self) -> bool {
        let was_pinging = std::mem::take(&mut self.pinging);
        if was_pinging {
            self.sent += PINGREQ.len() as u32;
        }
        was_pinging
    }

    /// Takes a packet; the bytes of the control stream go to `read`, and what has to be answered is in `answer`, if
    /// anything has.
    pub(super) fn receive(
        &mut self,
        datagram: &[u8],
        (own_cid_len, answer): (usize, &mut Vec<u8>),
        mut read: impl FnMut(&[u8]),
    ) -> Brought {
        let mut brought = Brought::default();
        let mut bytes = [0; PACKET_BYTES_MAX];
        let Some(packet) = bytes.get_mut(..datagram.len()) else {
            return brought;
        };
        packet.copy_from_slice(datagram);
        let Some((number, payload)) = self.open(packet, own_cid_len, &mut brought) else {
            return brought;
        };
        brought.is_authentic = true;
        let mut reply = Vec::new();
        let (mut is_eliciting, mut is_in_turn) = (false, true);
        let mut rest = &*payload;
        while let Some(frame) = frames::next(&mut rest) {
            is_eliciting |= !matches!(frame, Frame::Quiet | Frame::Close);
            match frame {
                Frame::Stream {
                    id: CONTROL,
                    offset,
                    data,
                } => match offset.checked_sub(self.received.into()) {
                    Some(0) => {
                        self.received += data.len() as u32;
                        read(data);
                    }
                    // It had come before, unless it reaches further.
                    None => is_in_turn &= offset + data.len() as u64 <= u64::from(self.received),
                    Some(_) => is_in_turn = false,
                },
                Frame::PathChallenge(data) => {
                    reply.push(0x1b);
                    reply.extend_from_slice(&data);
                }
                Frame::Close => brought.is_closed = true,
                _ => {}
            }
        }
        if is_eliciting && is_in_turn && !brought.is_closed {
            frames::push_ack(&mut reply, number);
        }
        if !reply.is_empty() {
            self.seal(&reply, answer);
        }
        brought
    }

    /// Packet number and payload.
    fn open<'a>(
        &mut self,
        packet: &'a mut [u8],
        own_cid_len: usize,
        brought: &mut Brought,
    ) -> Option<(u64, &'a mut [u8])> {
        let number_at = 1 + own_cid_len;
        if !self.keys.uncover(packet, number_at) {
            return None;
        }
        let number_len = usize::from(packet[0] & 0x03) + 1;
        let truncated = packet[number_at..number_at + number_len]
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte));
        let number = expanded(truncated, number_len, self.expected.into());
        let header_len = number_at + number_len;
        let phase = packet[0] & 0x04 != 0;
        let keys = match phase == self.key_phase {
            true => self.keys,
            false => self.keys.next_phase(),
        };
        let payload = keys.open(number, packet, header_len)?;
        if phase != self.key_phase {
            (self.keys, self.key_phase) = (keys, phase);
            brought.is_updated = true;
        }
        self.expected = self.expected.max(number as u32 + 1);
        Some((number, payload))
    }

    fn seal(&mut self, payload: &[u8], packet: &mut Vec<u8>) {
        let number = self.next_number;
        self.next_number += 1;
        packet.clear();
        // Fixed bit, key phase, four bytes of packet number (RFC 9000 §17.3.1).
        packet.push(0x43 | u8::from(self.key_phase) << 2);
        packet.extend_from_slice(self.server.as_slice());
        packet.extend_from_slice(&number.to_be_bytes());
        let header_len = packet.len();
        packet.extend_from_slice(payload);
        packet.extend_from_slice(&[0; 16]);
        self.keys.seal(number.into(), packet, header_len);
    }
}

/// The packet number that is meant (RFC 9000 §A.3).
fn expanded(truncated: u64, bytes: usize, expected: u64) -> u64 {
    let window = 1_u64 << (8 * bytes);
    let candidate = expected & !(window - 1) | truncated;
    if candidate + window / 2 <= expected {
        candidate + window
    } else if candidate > expected + window / 2 && candidate >= window {
        candidate - window
    } else {
        candidate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9000 §A.3.
    #[test]
    fn packet_numbers_are_expanded_as_in_the_standard() {
        assert_eq!(expanded(0x9b32, 2, 0xa82f_30ea + 1), 0xa82f_9b32);
        assert_eq!(expanded(3, 1, 0), 3);
        assert_eq!(expanded(0, 1, 255), 256);
    }

    #[test]
    fn the_servers_connection_id_is_found() {
        let packet = [0xc0, 0, 0, 0, 1, 2, 7, 7, 3, 1, 2, 3, 0];
        let cid = ServerCid::of_long_header(&packet).map(|cid| cid.as_slice().to_vec());
        assert_eq!(cid, Some(vec![1, 2, 3]));
        assert!(ServerCid::of_long_header(&packet[..9]).is_none());
    }

    #[test]
    fn a_sleeper_is_small() {
        assert!(size_of::<Sleeper>() <= 200, "{}", size_of::<Sleeper>());
    }
}
