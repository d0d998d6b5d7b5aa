//! What must hold for packets that have been decoded. The fuzz target and the replay of its corpus share this.

use bytes::{Bytes, BytesMut};
use headgate_codec::{Packet, Publish, PublishTemplate, Version, decode, encode, encoded_len};

const MAXIMUM_PACKET_SIZE: u32 = 1 << 20;

/// `data`: an octet that chooses the version (3, 4, 5; others: before CONNECT), then what the
/// peer sends. Each packet is encoded for every version that it can be said in: what comes out
/// decodes, and says the same from then on.
pub fn check(data: &[u8]) {
    let Some((&version, sent)) = data.split_first() else {
        return;
    };
    let mut version = match version {
        3 => Some(Version::V31),
        4 => Some(Version::V311),
        5 => Some(Version::V5),
        _ => None,
    };
    let mut input = Bytes::copy_from_slice(sent);
    while let Ok(Some(packet)) = decode(&mut input, version, MAXIMUM_PACKET_SIZE) {
        if let Packet::Connect(connect) = &packet {
            // It says its version itself.
            settles(&packet, connect.version, None);
            version = Some(connect.version);
            continue;
        }
        for to in [Version::V31, Version::V311, Version::V5] {
            settles(&packet, to, Some(to));
        }
        if let Packet::Publish(publish) = &packet {
            template_agrees(publish);
        }
    }
}

/// One round through bytes may lose what the version can't say; a second one loses nothing more.
fn settles(packet: &Packet, version: Version, known: Option<Version>) {
    let Some(once) = through_bytes(packet, version, known) else {
        return;
    };
    let twice = through_bytes(&once, version, known);
    assert_eq!(twice.as_ref(), Some(&once), "{version:?}: {packet:?}");
    if known.is_none() || version == Version::V5 {
        assert_eq!(&once, packet, "{version:?}");
    }
}

/// `None`: nothing to say in this version, or nothing that may be said.
fn through_bytes(packet: &Packet, version: Version, known: Option<Version>) -> Option<Packet> {
    let mut out = BytesMut::new();
    encode(packet, version, &mut out);
    assert_eq!(out.len(), encoded_len(packet, version), "{packet:?}");
    let mut bytes = out.freeze();
    let decoded = decode(&mut bytes, known, MAXIMUM_PACKET_SIZE).ok()??;
    assert!(bytes.is_empty(), "{packet:?} became two packets");
    Some(decoded)
}

/// The server's way of encoding a message for many is the same as the ordinary one.
fn template_agrees(publish: &Publish) {
    let mut plain = publish.clone();
    let ids = match &mut plain.properties {
        Some(properties) => {
            properties.topic_alias = None;
            properties.subscription_ids.clone()
        }
        None => Vec::new(),
    };
    for version in [Version::V311, Version::V5] {
        let template = PublishTemplate::new(
            version,
            plain.qos,
            plain.retain,
            &plain.topic,
            plain.properties.as_deref(),
            &ids,
            &plain.payload,
        );
        let (mut one, mut other) = (BytesMut::new(), BytesMut::new());
        template.write(plain.packet_id, plain.dup, &mut one);
        encode(&Packet::Publish(plain.clone()), version, &mut other);
        assert_eq!(one, other, "{version:?}: {plain:?}");
        assert_eq!(template.encoded_len(), one.len());
    }
}
