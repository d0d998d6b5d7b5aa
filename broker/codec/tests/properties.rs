//! What holds for every packet and for every sequence of bytes.

mod common;

use bytes::{Bytes, BytesMut};
use headgate_codec::{
    Packet, PublishTemplate, QoS, Version, decode, encode, encoded_len, frame_len,
};
use proptest::prelude::*;

const MAX: u32 = 268_435_460;

/// A CONNECT comes before the version is known.
fn known(packet: &Packet, version: Version) -> Option<Version> {
    (!matches!(packet, Packet::Connect(_))).then_some(version)
}

fn encoded(packet: &Packet, version: Version) -> Bytes {
    let mut out = BytesMut::new();
    encode(packet, version, &mut out);
    out.freeze()
}

fn version_and_packet() -> impl Strategy<Value = (Version, Packet)> {
    common::version().prop_flat_map(|v| (Just(v), common::packet(v)))
}

proptest! {
    #[test]
    fn decoding_gives_back_what_was_encoded(
        (version, packet) in version_and_packet(),
        behind in proptest::collection::vec(any::<u8>(), 0..4),
    ) {
        let bytes = encoded(&packet, version);
        prop_assert_eq!(bytes.len(), encoded_len(&packet, version));
        prop_assert_eq!(frame_len(&bytes, MAX), Ok(Some(bytes.len())));
        let mut input = Bytes::from([&bytes[..], &behind].concat());
        let decoded = decode(&mut input, known(&packet, version), MAX);
        prop_assert_eq!(decoded, Ok(Some(packet)));
        prop_assert_eq!(&input[..], &behind[..], "what follows the packet stays");
    }

    #[test]
    fn a_truncated_packet_is_incomplete((version, packet) in version_and_packet()) {
        let bytes = encoded(&packet, version);
        for len in (0..bytes.len()).take(300) {
            let mut input = bytes.slice(..len);
            prop_assert_eq!(decode(&mut input, known(&packet, version), MAX), Ok(None));
            prop_assert_eq!(&input[..], &bytes[..len], "incomplete input stays as it is");
        }
    }

    /// As long as its Remaining Length says, but cut short inside: refused, or another packet
    /// that encodes to the same bytes.
    #[test]
    fn a_packet_cut_inside_is_refused_or_valid((version, packet) in version_and_packet()) {
        let bytes = encoded(&packet, version);
        let header = bytes[1..].iter().position(|b| *b < 0x80).expect("a length") + 2;
        for len in (0..bytes.len() - header).take(127) {
            let mut cut = BytesMut::from(&bytes[..1]);
            cut.extend_from_slice(&[len as u8]);
            cut.extend_from_slice(&bytes[header..header + len]);
            let cut = cut.freeze();
            match decode(&mut cut.clone(), known(&packet, version), MAX) {
                Ok(Some(other)) => prop_assert!(
                    encoded_len(&other, version) <= cut.len(),
                    "{:?} from {:?}", other, cut
                ),
                Ok(None) => prop_assert!(false, "complete: {:?}", cut),
                Err(error) => prop_assert!(error.reason().0 >= 0x80),
            }
        }
    }

    #[test]
    fn a_changed_octet_never_panics(
        (version, packet) in version_and_packet(),
        at in any::<prop::sample::Index>(),
        octet in any::<u8>(),
    ) {
        let mut bytes = BytesMut::from(&encoded(&packet, version)[..]);
        let at = at.index(bytes.len());
        bytes[at] = octet;
        let mut input = bytes.freeze();
        if let Err(error) = decode(&mut input, known(&packet, version), MAX) {
            prop_assert!(error.reason().0 >= 0x80);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        version in proptest::option::of(common::version()),
    ) {
        let mut input = Bytes::from(bytes);
        while let Ok(Some(packet)) = decode(&mut input, version, MAX) {
            let again = version.unwrap_or(Version::V5);
            prop_assert!(!encoded(&packet, again).is_empty());
        }
    }

    #[test]
    fn a_template_writes_what_encode_does((version, packet) in version_and_packet()) {
        if let Packet::Publish(mut publish) = packet {
            let mut ids = Vec::new();
            if let Some(properties) = &mut publish.properties {
                properties.topic_alias = None;
                ids = properties.subscription_ids.clone();
            }
            let template = PublishTemplate::new(
                version,
                publish.qos,
                publish.retain,
                &publish.topic,
                publish.properties.as_deref(),
                &ids,
                &publish.payload,
            );
            let mut written = BytesMut::new();
            template.write(publish.packet_id, publish.dup, &mut written);
            prop_assert_eq!(template.encoded_len(), written.len());
            prop_assert_eq!(template.tail.is_empty(), publish.qos == QoS::AtMostOnce || written.len() == template.head.len() + 2);
            prop_assert_eq!(written.freeze(), encoded(&Packet::Publish(publish), version));
        }
    }
}
