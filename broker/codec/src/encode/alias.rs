//! A PUBLISH by Topic Alias (§3.3.2.3.4): what subscribers share of a message stays shared.

use super::sink::{Sink, varint};
use crate::{PacketId, PublishTemplate, frame, property as id};
use bytes::{Bytes, BytesMut};
use core::num::NonZeroU16;

/// The longest head: first octet, Remaining Length (4), an empty Topic Name (2), Packet Identifier (2), Property Length
/// (4), Topic Alias (3).
const HEAD_MAX: usize = 16;

/// A PUBLISH for a receiver that knows the topic by its alias: a short head of its own, and a tail that it shares with
/// all other receivers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AliasedPublish {
    head: [u8; HEAD_MAX],
    head_len: u8,
    tail: Bytes,
}

impl AliasedPublish {
    /// Fixed header to Topic Alias.
    pub fn head(&self) -> &[u8] {
        &self.head[..usize::from(self.head_len)]
    }

    /// The other properties and the payload.
    pub fn tail(&self) -> &Bytes {
        &self.tail
    }

    /// Length of the packet, bytes.
    pub fn encoded_len(&self) -> usize {
        usize::from(self.head_len) + self.tail.len()
    }
}

/// A template of MQTT 5.0, taken apart.
struct Parts {
    first: u8,
    /// With its length in front.
    topic: Bytes,
    properties_len: usize,
    /// Properties and payload.
    rest: Bytes,
}

impl PublishTemplate {
    /// The packet with an alias instead of the topic, for a receiver that was told the alias. `id` is Packet Identifier
    /// and DUP where QoS > 0. The template must be of MQTT 5.0; `None` if it is empty.
    pub fn by_alias(
        &self,
        alias: NonZeroU16,
        id: Option<(PacketId, bool)>,
    ) -> Option<AliasedPublish> {
        let parts = self.parts()?;
        let mut head = Head {
            bytes: [0; HEAD_MAX],
            len: 0,
        };
        write_head(&parts, &[0, 0], alias, id, &mut head);
        Some(AliasedPublish {
            head: head.bytes,
            head_len: head.len,
            tail: parts.rest,
        })
    }

    /// The packet with topic and alias, which tells the receiver the alias. As [`PublishTemplate::by_alias`]; `None`, too, if
    /// the packet would exceed what a Remaining Length can say.
    pub fn with_alias(&self, alias: NonZeroU16, id: Option<(PacketId, bool)>) -> Option<Bytes> {
        let parts = self.parts()?;
        if self.encoded_len() + 4 > frame::REMAINING_LENGTH_MAX {
            return None;
        }
        let mut out = BytesMut::with_capacity(self.encoded_len() + 8);
        write_head(&parts, &parts.topic, alias, id, &mut out);
        out.slice(&parts.rest);
        Some(out.freeze())
    }

    fn parts(&self) -> Option<Parts> {
        let first = *self.head.first()?;
        let (_, len) = frame::varint(self.head.get(1..)?).ok()??;
        let at = 1 + len;
        let [high, low] = *self.head.get(at..)?.first_chunk()?;
        let topic_end = at + 2 + usize::from(u16::from_be_bytes([high, low]));
        let behind = if first & 0b0110 == 0 {
            self.head.slice(topic_end..)
        } else {
            self.tail.clone()
        };
        let (properties_len, len) = frame::varint(&behind).ok()??;
        Some(Parts {
            first,
            topic: self.head.slice(at..topic_end),
            properties_len: properties_len as usize,
            rest: behind.slice(len..),
        })
    }
}

/// Fixed header, Topic Name, Packet Identifier, Property Length and Topic Alias.
fn write_head<S: Sink>(
    parts: &Parts,
    topic: &[u8],
    alias: NonZeroU16,
    packet_id: Option<(PacketId, bool)>,
    out: &mut S,
) {
    let properties_len = parts.properties_len + 3;
    let id_len = if packet_id.is_some() { 2 } else { 0 };
    let head_len = topic.len() + id_len + frame::varint_len(properties_len) + 3;
    let (octets, len) = varint(head_len + parts.rest.len());
    let dup = packet_id.is_some_and(|(_, dup)| dup);
    out.u8(parts.first | u8::from(dup) << 3);
    out.slice(&octets[..len]);
    out.slice(topic);
    if let Some((packet_id, _)) = packet_id {
        out.u16(packet_id.get());
    }
    out.varint(properties_len);
    out.u8(id::TOPIC_ALIAS);
    out.u16(alias.get());
}

/// A head that is being written.
struct Head {
    bytes: [u8; HEAD_MAX],
    len: u8,
}

impl Sink for Head {
    fn slice(&mut self, bytes: &[u8]) {
        let start = usize::from(self.len);
        if let Some(place) = self.bytes.get_mut(start..start + bytes.len()) {
            place.copy_from_slice(bytes);
            self.len += bytes.len() as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Packet, Publish, PublishProperties, QoS, Text, Version, decode};

    fn read(bytes: &[u8]) -> Publish {
        let mut bytes = Bytes::copy_from_slice(bytes);
        match decode(&mut bytes, Some(Version::V5), u32::MAX) {
            Ok(Some(Packet::Publish(publish))) if bytes.is_empty() => publish,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn aliased_packets_say_what_the_template_says() {
        let alias = NonZeroU16::new(0x1234).unwrap();
        for (topic, payload, qos, with_properties) in [
            ("a/b", 0, QoS::AtMostOnce, false),
            ("a/b", 100, QoS::AtMostOnce, true),
            ("topic/of/more/levels", 130, QoS::AtLeastOnce, true),
            ("t", 20_000, QoS::ExactlyOnce, false),
        ] {
            let properties = PublishProperties {
                content_type: Some(Text::from("x".repeat(120).as_str())),
                ..PublishProperties::default()
            };
            let properties = with_properties.then_some(properties);
            let payload = alloc::vec![7; payload];
            let template = PublishTemplate::new(
                Version::V5,
                qos,
                true,
                &Text::from(topic),
                properties.as_ref(),
                &[5],
                &payload,
            );
            let id = (qos != QoS::AtMostOnce).then_some((PacketId::new(77).unwrap(), true));
            let short = template.by_alias(alias, id).unwrap();
            let whole = template.with_alias(alias, id).unwrap();
            assert_eq!(short.encoded_len(), short.head().len() + short.tail().len());
            let short = read(&[short.head(), short.tail()].concat());
            let whole = read(&whole);
            assert_eq!((short.topic.as_str(), whole.topic.as_str()), ("", topic));
            for read in [short, whole] {
                let mut properties = properties.clone().unwrap_or_default();
                properties.topic_alias = Some(alias);
                properties.subscription_ids = alloc::vec![5];
                let expected = Publish {
                    dup: id.is_some(),
                    qos,
                    retain: true,
                    topic: read.topic.clone(),
                    packet_id: id.map(|(id, _)| id),
                    properties: Some(alloc::boxed::Box::new(properties)),
                    payload: Bytes::from(payload.clone()),
                };
                assert_eq!(read, expected);
            }
        }
    }

    #[test]
    fn the_tail_is_shared() {
        let topic = Text::from("a");
        let template = PublishTemplate::new(
            Version::V5,
            QoS::AtMostOnce,
            false,
            &topic,
            None,
            &[],
            b"payload",
        );
        let aliased = template.by_alias(NonZeroU16::MIN, None).unwrap();
        let end = template.head.len() - aliased.tail().len();
        assert!(core::ptr::eq(
            aliased.tail().as_ptr(),
            template.head[end..].as_ptr()
        ));
    }
}
