//! Packets to bytes.

mod alias;
mod body;
mod properties;
mod publish;
mod sink;

use crate::{Packet, Version, frame};
use bytes::BytesMut;
use sink::{Count, Sink};

pub use alias::AliasedPublish;
pub use publish::PublishTemplate;

/// Appends `packet` to `out` in the form of `version`.
///
/// For MQTT 3.x, Reason Codes become return codes (CONNACK, SUBACK) or are left out, and so are
/// properties. Nothing is appended for what can't be said: AUTH in MQTT 3.x, and a packet of more
/// than [`REMAINING_LENGTH_MAX`](crate::REMAINING_LENGTH_MAX) bytes behind its fixed header.
#[inline]
pub fn encode(packet: &Packet, version: Version, out: &mut BytesMut) {
    // Told apart from the others by a branch that is always predicted well.
    match packet {
        Packet::Publish(p) => publish::publish(p, version, out),
        _ => other(packet, version, out),
    }
}

/// Encodes what is no PUBLISH.
fn other(packet: &Packet, version: Version, out: &mut BytesMut) {
    match packet {
        Packet::PingReq => out.slice(&[frame::PINGREQ << 4, 0]),
        Packet::PingResp => out.slice(&[frame::PINGRESP << 4, 0]),
        Packet::PubAck(ack) if body::is_short(ack, version) => short_ack(0x40, ack.packet_id, out),
        Packet::PubRec(ack) if body::is_short(ack, version) => short_ack(0x50, ack.packet_id, out),
        // [MQTT-3.6.1-1]
        Packet::PubRel(ack) if body::is_short(ack, version) => short_ack(0x62, ack.packet_id, out),
        Packet::PubComp(ack) if body::is_short(ack, version) => short_ack(0x70, ack.packet_id, out),
        Packet::Auth(_) if version < Version::V5 => {}
        _ => {
            let mut count = Count(0);
            body::write(packet, version, &mut count);
            if count.0 > frame::REMAINING_LENGTH_MAX {
                return;
            }
            out.reserve(count.0 + 5);
            out.u8(body::first_octet(packet));
            out.varint(count.0);
            body::write(packet, version, out);
        }
    }
}

/// How many bytes [`encode`] would append: what a client's Maximum Packet Size is compared with
/// \[MQTT-3.1.2-24\].
pub fn encoded_len(packet: &Packet, version: Version) -> usize {
    let remaining = match packet {
        Packet::Publish(p) => publish::remaining_len(p, version),
        Packet::Auth(_) if version < Version::V5 => return 0,
        _ => {
            let mut count = Count(0);
            body::write(packet, version, &mut count);
            count.0
        }
    };
    if remaining > frame::REMAINING_LENGTH_MAX {
        return 0;
    }
    1 + frame::varint_len(remaining) + remaining
}

/// An acknowledgement without Reason Code and properties.
#[inline]
fn short_ack(first: u8, packet_id: crate::PacketId, out: &mut BytesMut) {
    let [high, low] = packet_id.get().to_be_bytes();
    out.slice(&[first, 2, high, low]);
}
