//! A PUBLISH taken apart as far as a load needs it: nothing is copied, and no property is read.

use headgate_codec::{PacketId, Version};

/// A PUBLISH from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incoming<'a> {
    /// All of it.
    pub packet: &'a [u8],
    /// The application message.
    pub payload: &'a [u8],
    packet_id: Option<PacketId>,
}

impl<'a> Incoming<'a> {
    /// Finds the parts of a whole PUBLISH; `None` if it is none.
    pub fn of(packet: &'a [u8], version: Version) -> Option<Self> {
        let first = *packet.first()?;
        if first >> 4 != 3 {
            return None;
        }
        let mut rest = packet.get(1..)?;
        varint(&mut rest)?;
        let topic = rest.split_off(..2)?;
        let length = u16::from_be_bytes(topic.try_into().ok()?);
        rest.split_off(..usize::from(length))?;
        let mut packet_id = None;
        if first & 0x06 != 0 {
            let id = rest.split_off(..2)?;
            packet_id = Some(PacketId::new(u16::from_be_bytes(id.try_into().ok()?))?);
        }
        if version == Version::V5 {
            let length = varint(&mut rest)?;
            rest.split_off(..length)?;
        }
        Some(Self {
            packet,
            payload: rest,
            packet_id,
        })
    }

    /// Its Packet Identifier, with QoS 1 and 2.
    pub fn packet_id(&self) -> Option<PacketId> {
        self.packet_id
    }

    /// Its QoS, as a number.
    pub fn qos(&self) -> u8 {
        self.packet[0] >> 1 & 0x03
    }
}

/// A Variable Byte Integer (MQTT 5.0 §1.5.5), taken from the front.
fn varint(from: &mut &[u8]) -> Option<usize> {
    let mut value = 0;
    for place in 0..4 {
        let byte = *from.split_off_first()?;
        value |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::{Bytes, BytesMut};
    use headgate_codec::{Packet, Publish, PublishProperties, QoS, Text, encode};

    #[test]
    fn the_parts_are_found_in_each_version_and_what_is_cut_off_is_none() {
        let properties = PublishProperties {
            content_type: Some(Text::from("x".repeat(200).as_str())),
            ..PublishProperties::default()
        };
        for (version, qos, id) in [
            (Version::V311, QoS::AtMostOnce, None),
            (Version::V311, QoS::ExactlyOnce, Some(7)),
            (Version::V5, QoS::AtMostOnce, None),
            (Version::V5, QoS::AtLeastOnce, Some(0x1234)),
        ] {
            let packet_id = id.and_then(PacketId::new);
            let packet = Packet::Publish(Publish {
                dup: false,
                qos,
                retain: false,
                topic: Text::from("a/b"),
                packet_id,
                properties: Some(Box::new(properties.clone())),
                payload: Bytes::from_static(b"payload"),
            });
            let mut bytes = BytesMut::new();
            encode(&packet, version, &mut bytes);
            let found = Incoming::of(&bytes, version).expect("a PUBLISH");
            assert_eq!(found.payload, b"payload");
            assert_eq!((found.qos(), found.packet_id()), (qos as u8, packet_id));
            // Without its payload it could be one, shorter than that it couldn't.
            for len in 0..bytes.len() - b"payload".len() {
                assert_eq!(Incoming::of(&bytes[..len], version), None, "{len}");
            }
        }
        assert_eq!(Incoming::of(&[0xd0, 0], Version::V5), None);
    }
}
