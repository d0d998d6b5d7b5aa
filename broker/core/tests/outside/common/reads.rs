//! What a client reads.

use super::{Id, World, publish_of};
use bytes::Bytes;
use headgate_codec::{DisconnectProperties, Packet, decode};

impl World {
    /// What the client reads now. A DISCONNECT comes without its Reason String, which says the same in words.
    pub fn read(&mut self, id: Id) -> Vec<Packet> {
        let mut packets = self.read_all(id);
        for packet in &mut packets {
            if let Packet::Disconnect(d) = packet {
                let is_explanation = |p: &DisconnectProperties| {
                    let expected = DisconnectProperties {
                        reason_string: p.reason_string.clone(),
                        ..DisconnectProperties::default()
                    };
                    p.reason_string.is_some() && *p == expected
                };
                d.properties.take_if(|p| is_explanation(p));
            }
        }
        packets
    }

    /// What the client reads now, as it is.
    pub fn read_all(&mut self, id: Id) -> Vec<Packet> {
        let wire = &mut self.wires[id];
        let mut bytes: Bytes = wire.unread.split().freeze();
        let mut packets = Vec::new();
        while let Some(packet) =
            decode(&mut bytes, Some(wire.version), u32::MAX).expect("the server sends MQTT")
        {
            packets.push(packet);
        }
        assert!(bytes.is_empty(), "the server sends whole packets");
        packets
    }

    /// What the client reads, and what it is if that is one packet.
    pub fn read_one(&mut self, id: Id) -> Packet {
        let mut packets = self.read(id);
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.remove(0)
    }

    /// The payloads of PUBLISH packets that the client reads.
    pub fn payloads(&mut self, id: Id) -> Vec<String> {
        let packets = self.read(id);
        packets
            .iter()
            .filter_map(|p| publish_of(p))
            .map(|p| String::from_utf8_lossy(&p.payload).into_owned())
            .collect()
    }
}
