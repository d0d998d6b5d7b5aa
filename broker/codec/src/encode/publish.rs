//! PUBLISH (§3.3): the hot path.

use super::sink::{Count, Properties, Room, Sink, varint};
use crate::{PacketId, Publish, PublishProperties, QoS, Text, Version, frame, property as id};
use bytes::{Bytes, BytesMut};

/// A PUBLISH encoded once for many subscribers; only the Packet Identifier and DUP are theirs.
///
/// On the wire: [`head`](Self::head), for QoS > 0 the Packet Identifier (two bytes, big-endian),
/// then [`tail`](Self::tail). DUP is bit 3 of `head[0]` \[MQTT-3.3.1-1\].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishTemplate {
    /// Fixed header and Topic Name; with QoS 0 the whole packet.
    pub head: Bytes,
    /// What follows the Packet Identifier; empty with QoS 0.
    pub tail: Bytes,
}

impl PublishTemplate {
    /// Encodes the message. Of `properties` the Topic Alias and the Subscription Identifiers stay
    /// out: they belong to the connection that the message came on
    /// \[MQTT-3.3.2-7\] \[MQTT-3.3.4-6\]; those of the receiver are `subscription_ids`
    /// \[MQTT-3.3.4-3\]. MQTT 3.x takes neither.
    ///
    /// Empty if the packet would exceed what a Remaining Length can say.
    pub fn new(
        version: Version,
        qos: QoS,
        retain: bool,
        topic: &Text,
        properties: Option<&PublishProperties>,
        subscription_ids: &[u32],
        payload: &[u8],
    ) -> Self {
        let properties = Forwarded {
            properties,
            subscription_ids,
        };
        let mut remaining = 2 + topic.len() + payload.len();
        let has_id = qos != QoS::AtMostOnce;
        if has_id {
            remaining += 2;
        }
        if version == Version::V5 {
            let mut count = Count(0);
            properties.write(&mut count);
            remaining += frame::varint_len(count.0) + count.0;
        }
        if remaining > frame::REMAINING_LENGTH_MAX {
            return Self {
                head: Bytes::new(),
                tail: Bytes::new(),
            };
        }
        let mut out = BytesMut::with_capacity(remaining + 5);
        header(first_octet(false, qos, retain), remaining, topic, &mut out);
        let head_len = out.len();
        if version == Version::V5 {
            out.properties(&properties);
        }
        out.slice(payload);
        let mut head = out.freeze();
        let tail = if has_id {
            head.split_off(head_len)
        } else {
            Bytes::new()
        };
        Self { head, tail }
    }

    /// Length of the packet, bytes, the Packet Identifier included.
    pub fn encoded_len(&self) -> usize {
        let has_id = self.head.first().is_some_and(|first| first & 0b0110 != 0);
        self.head.len() + self.tail.len() + if has_id { 2 } else { 0 }
    }

    /// Appends the packet to `out`: for QoS > 0 with its Packet Identifier, and with DUP if it
    /// is sent again.
    pub fn write(&self, packet_id: Option<PacketId>, dup: bool, out: &mut BytesMut) {
        out.reserve(self.encoded_len());
        let first = out.len();
        out.slice(&self.head);
        if let Some(packet_id) = packet_id {
            out.u16(packet_id.get());
            if dup && let Some(octet) = out.get_mut(first) {
                *octet |= 0b1000;
            }
        }
        out.slice(&self.tail);
    }
}

pub(super) fn publish(p: &Publish, version: Version, out: &mut BytesMut) {
    if version == Version::V5
        && let Some(properties) = &p.properties
    {
        return with_properties(p, properties, out);
    }
    let remaining = remaining(p, version, 0);
    if remaining > frame::REMAINING_LENGTH_MAX {
        return;
    }
    out.reserve(remaining + 5);
    let first = first_octet(p.dup, p.qos, p.retain);
    header(first, remaining, &p.topic, out);
    match (sent_id(p).map(|id| id.get().to_be_bytes()), version) {
        (None, Version::V5) => out.u8(0),
        (Some([high, low]), Version::V5) => out.slice(&[high, low, 0]),
        (Some(packet_id), _) => out.slice(&packet_id),
        (None, _) => {}
    }
    out.slice(&p.payload);
}

#[inline(never)]
fn with_properties(p: &Publish, properties: &PublishProperties, out: &mut BytesMut) {
    let properties_len = count(properties);
    let remaining = remaining(p, Version::V5, properties_len);
    if remaining > frame::REMAINING_LENGTH_MAX {
        return;
    }
    let front = 1 + frame::varint_len(remaining) + remaining - p.payload.len();
    out.reserve(front + p.payload.len());
    Room::append(out, front, |room| {
        let first = first_octet(p.dup, p.qos, p.retain);
        header(first, remaining, &p.topic, room);
        if let Some(packet_id) = sent_id(p) {
            room.u16(packet_id.get());
        }
        room.varint(properties_len);
        properties.write(room);
    });
    out.slice(&p.payload);
}

/// The Packet Identifier, which goes with QoS > 0 only \[MQTT-2.2.1-2\].
#[inline]
fn sent_id(p: &Publish) -> Option<PacketId> {
    debug_assert!(
        p.packet_id.is_some() == (p.qos != QoS::AtMostOnce),
        "a Packet Identifier goes with QoS > 0"
    );
    // The lowest one stands in for a missing one, so that the packet keeps its shape.
    (p.qos != QoS::AtMostOnce).then(|| p.packet_id.unwrap_or(PacketId::MIN))
}

pub(super) fn remaining_len(p: &Publish, version: Version) -> usize {
    remaining(p, version, p.properties.as_deref().map_or(0, count))
}

/// The Remaining Length of a packet whose properties take `properties_len` bytes.
#[inline]
fn remaining(p: &Publish, version: Version, properties_len: usize) -> usize {
    let id = if p.qos == QoS::AtMostOnce { 0 } else { 2 };
    let properties = if version == Version::V5 {
        frame::varint_len(properties_len) + properties_len
    } else {
        0
    };
    2 + p.topic.len() + id + properties + p.payload.len()
}

/// How many bytes the properties take, without the Property Length.
#[inline(never)]
fn count(properties: &PublishProperties) -> usize {
    let mut count = Count(0);
    properties.write(&mut count);
    count.0
}

/// Packet type and flags; DUP only with QoS > 0 \[MQTT-3.3.1-2\].
#[inline]
fn first_octet(dup: bool, qos: QoS, retain: bool) -> u8 {
    let dup = dup && qos != QoS::AtMostOnce;
    frame::PUBLISH << 4 | u8::from(dup) << 3 | (qos as u8) << 1 | u8::from(retain)
}

/// Fixed header and Topic Name.
#[inline]
fn header<S: Sink>(first: u8, remaining: usize, topic: &Text, out: &mut S) {
    let (octets, len) = varint(remaining);
    let [high, low] = (topic.len() as u16).to_be_bytes();
    // What has a known length is stored; the rest is a call of memcpy.
    match (octets, len) {
        ([a, ..], 1) => out.slice(&[first, a, high, low]),
        ([a, b, ..], 2) => out.slice(&[first, a, b, high, low]),
        _ => {
            out.u8(first);
            out.slice(&octets[..len]);
            out.slice(&[high, low]);
        }
    }
    out.text_bytes(topic.as_bytes());
}

impl Properties for PublishProperties {
    fn write<S: Sink>(&self, s: &mut S) {
        s.property_u16(
            id::TOPIC_ALIAS,
            self.topic_alias.map(core::num::NonZeroU16::get),
        );
        message(self, s);
        subscription_ids(&self.subscription_ids, s);
    }
}

/// What a server sends on of a message's properties.
struct Forwarded<'a> {
    properties: Option<&'a PublishProperties>,
    subscription_ids: &'a [u32],
}

impl Properties for Forwarded<'_> {
    fn write<S: Sink>(&self, s: &mut S) {
        if let Some(properties) = self.properties {
            message(properties, s);
        }
        subscription_ids(self.subscription_ids, s);
    }
}

/// The properties of the message itself, which a Will has as well (§3.1.3.2).
pub(super) fn message<S: Sink>(p: &PublishProperties, s: &mut S) {
    s.property_bool(id::PAYLOAD_FORMAT_INDICATOR, p.payload_format_utf8);
    s.property_u32(id::MESSAGE_EXPIRY_INTERVAL, p.message_expiry_s);
    s.property_text(id::CONTENT_TYPE, p.content_type.as_ref());
    s.property_text(id::RESPONSE_TOPIC, p.response_topic.as_ref());
    s.property_binary(id::CORRELATION_DATA, p.correlation_data.as_ref());
    s.user_properties(&p.user_properties);
}

fn subscription_ids<S: Sink>(ids: &[u32], s: &mut S) {
    for &value in ids {
        s.u8(id::SUBSCRIPTION_IDENTIFIER);
        s.varint(value as usize);
    }
}
