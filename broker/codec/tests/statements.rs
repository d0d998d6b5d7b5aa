//! Statements of the standard that are about a packet's form, each over all packets that it concerns.

use bytes::{Bytes, BytesMut};
use headgate_codec::{
    DecodeError, Packet, PacketId, Publish, QoS, ReasonCode, Text, Version, decode, encode,
};

const MAX: u32 = 1 << 20;

/// What is no UTF-8 Encoded String: a lone surrogate, U+0000, two bytes cut off, an overlong "/".
const NO_STRINGS: [&[u8]; 4] = [b"\xed\xbf\xbf", b"a\0", b"\xe2\x82", b"\xc0\xaf"];

/// A field of two length bytes and content.
fn field(content: &[u8]) -> Vec<u8> {
    [&(content.len() as u16).to_be_bytes(), content].concat()
}

fn framed(first: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let mut bytes = vec![first, body.len() as u8];
    assert!(body.len() < 0x80, "one byte of Remaining Length");
    bytes.extend(body);
    bytes
}

fn outcome(bytes: &[u8], version: Option<Version>) -> Result<Packet, DecodeError> {
    let packet = decode(&mut Bytes::copy_from_slice(bytes), version, MAX);
    packet.map(|packet| packet.expect("the packet is complete"))
}

/// The packet that `build` makes is taken with a string in that place, and malformed without one.
fn must_be_a_string(version: Option<Version>, build: impl Fn(&[u8]) -> Vec<u8>) {
    let good = build(&field("é\u{feff}".as_bytes()));
    assert!(outcome(&good, version).is_ok(), "{good:02x?}");
    for text in NO_STRINGS {
        let bytes = build(&field(text));
        assert_eq!(
            outcome(&bytes, version),
            Err(DecodeError::NotUtf8),
            "{bytes:02x?}"
        );
    }
}

const V5_HEAD: &[u8] = b"\0\x04MQTT\x05";

/// [MQTT-3.1.3-4] [MQTT-3.1.3-11] [MQTT-3.1.3-12]
#[test]
fn texts_of_connect_are_strings() {
    must_be_a_string(None, |id| framed(0x10, &[V5_HEAD, b"\x02\0\0\0", id]));
    must_be_a_string(None, |topic| {
        framed(0x10, &[V5_HEAD, b"\x06\0\0\0\0\x01c\0", topic, b"\0\0"])
    });
    must_be_a_string(None, |user| {
        framed(0x10, &[V5_HEAD, b"\x82\0\0\0\0\x01c", user])
    });
    // A password is binary.
    let binary = framed(0x10, &[V5_HEAD, b"\x42\0\0\0\0\x01c", &field(b"\xff\0")]);
    assert!(outcome(&binary, None).is_ok());
}

/// [MQTT-3.1.3-3]: the first field of the payload, also in front of a Will and a User Name.
#[test]
fn connect_has_a_client_identifier() {
    for (head, flags) in [(V5_HEAD, 0x02), (b"\0\x04MQTT\x04", 0x02)] {
        let properties: &[u8] = if head[6] == 5 { b"\0" } else { b"" };
        let without = framed(0x10, &[head, &[flags, 0, 0], properties]);
        assert_eq!(outcome(&without, None), Err(DecodeError::Truncated));
    }
    let all = framed(
        0x10,
        &[V5_HEAD, b"\xc6\0\0\0\0\x02id\0\0\x01t\0\x01m\0\x01u\0\x01p"],
    );
    let Ok(Packet::Connect(connect)) = outcome(&all, None) else {
        panic!("a CONNECT");
    };
    let will = connect.will.as_ref().expect("a Will");
    assert_eq!((&*connect.client_id, &*will.topic), ("id", "t"));
    assert_eq!(connect.user_name.as_deref(), Some("u"));
    assert_eq!(connect.password.as_deref(), Some(&b"p"[..]));
}

/// [MQTT-3.1.2-17] [MQTT-3.1.2-19] [MQTT-3.1.2-16] [MQTT-3.1.2-18]
#[test]
fn user_name_and_password_are_there_when_their_flags_say_so() {
    for (flags, fields) in [(0x02_u8, 0), (0x42, 1), (0x82, 1), (0xc2, 2)] {
        for present in 0..=2 {
            let payload = b"\0\x01x".repeat(present);
            let bytes = framed(0x10, &[V5_HEAD, &[flags, 0, 0, 0], b"\0\x01c", &payload]);
            let expected = match present.cmp(&fields) {
                std::cmp::Ordering::Less => Some(DecodeError::Truncated),
                std::cmp::Ordering::Equal => None,
                std::cmp::Ordering::Greater => Some(DecodeError::TrailingBytes),
            };
            assert_eq!(
                outcome(&bytes, None).err(),
                expected,
                "{flags:#x} {present}"
            );
        }
    }
}

/// [MQTT-3.1.2-12]
#[test]
fn a_will_has_qos_0_1_or_2() {
    for (bits, qos) in [
        (0, Some(QoS::AtMostOnce)),
        (1, Some(QoS::AtLeastOnce)),
        (2, Some(QoS::ExactlyOnce)),
        (3, None),
    ] {
        let bytes = framed(
            0x10,
            &[
                V5_HEAD,
                &[0x06 | bits << 3, 0, 0, 0],
                b"\0\x01c\0\0\x01t\0\0",
            ],
        );
        let found = match outcome(&bytes, None) {
            Ok(Packet::Connect(connect)) => connect.will.map(|will| will.qos),
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                assert_eq!(error, DecodeError::Qos3);
                None
            }
        };
        assert_eq!(found, qos);
    }
}

/// [MQTT-3.3.2-1] [MQTT-3.3.2-13] [MQTT-3.3.2-19] [MQTT-1.5.7-1]
#[test]
fn texts_of_publish_are_strings() {
    let v5 = Some(Version::V5);
    must_be_a_string(v5, |topic| framed(0x30, &[topic, b"\0"]));
    // Content Type, Response Topic, and both halves of a User Property.
    for (before, after) in [
        (&b"\x03"[..], &b""[..]),
        (b"\x08", b""),
        (b"\x26", b"\0\x01v"),
        (b"\x26\0\x01k", b""),
    ] {
        must_be_a_string(v5, |text| {
            let block = [before, text, after].concat();
            framed(0x30, &[b"\0\x01t", &[block.len() as u8], &block])
        });
    }
    // Correlation Data is binary.
    assert!(outcome(&framed(0x30, &[b"\0\x01t\x05\x09\0\x02\xff\0"]), v5).is_ok());
}

/// [MQTT-3.8.3-1] [MQTT-3.10.3-1]
#[test]
fn topic_filters_are_strings() {
    let v5 = Some(Version::V5);
    must_be_a_string(v5, |filter| framed(0x82, &[b"\0\x01\0", filter, b"\0"]));
    must_be_a_string(v5, |filter| framed(0xa2, &[b"\0\x01\0", filter]));
    must_be_a_string(v5, |filter| {
        framed(0x82, &[b"\0\x01\0\0\x01a\0", filter, b"\0"])
    });
    must_be_a_string(Some(Version::V311), |filter| {
        framed(0x82, &[b"\0\x01", filter, b"\0"])
    });
}

/// A packet's name, its Reason Codes, and how it looks with one.
type Row = (&'static str, Vec<u8>, fn(u8) -> Vec<u8>);

/// Reason Codes by packet, from table 2-6 of the standard.
fn reason_codes() -> Vec<Row> {
    let ack = |list: &[u8]| list.to_vec();
    let connack: Vec<u8> = (0x80..=0x8a)
        .chain([0, 0x8c, 0x90, 0x95, 0x97])
        .chain(0x99..=0x9d)
        .chain([0x9f])
        .collect();
    let disconnect: Vec<u8> = [0, 4, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89]
        .into_iter()
        .chain(0x8b..=0x90)
        .chain(0x93..=0xa2)
        .collect();
    vec![
        ("CONNACK", connack, |code| vec![0x20, 3, 0, code, 0]),
        (
            "PUBACK",
            ack(&[0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]),
            |code| vec![0x40, 3, 0, 1, code],
        ),
        (
            "PUBREC",
            ack(&[0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]),
            |code| vec![0x50, 3, 0, 1, code],
        ),
        ("PUBREL", ack(&[0, 0x92]), |code| vec![0x62, 3, 0, 1, code]),
        ("PUBCOMP", ack(&[0, 0x92]), |code| vec![0x70, 3, 0, 1, code]),
        (
            "SUBACK",
            ack(&[
                0, 1, 2, 0x80, 0x83, 0x87, 0x8f, 0x91, 0x97, 0x9e, 0xa1, 0xa2,
            ]),
            |code| vec![0x90, 4, 0, 1, 0, code],
        ),
        (
            "UNSUBACK",
            ack(&[0, 0x11, 0x80, 0x83, 0x87, 0x8f, 0x91]),
            |code| vec![0xb0, 4, 0, 1, 0, code],
        ),
        ("DISCONNECT", disconnect, |code| vec![0xe0, 1, code]),
        ("AUTH", ack(&[0, 0x18, 0x19]), |code| {
            vec![0xf0, 6, code, 4, 0x15, 0, 1, b'm']
        }),
    ]
}

/// [MQTT-3.2.2-8] [MQTT-3.4.2-1] [MQTT-3.5.2-1] [MQTT-3.6.2-1] [MQTT-3.7.2-1] [MQTT-3.9.3-2]
/// [MQTT-3.11.3-2] [MQTT-3.14.2-1]
#[test]
fn each_packet_has_its_reason_codes_and_no_others() {
    for (name, allowed, packet) in reason_codes() {
        for code in 0..=255 {
            let bytes = packet(code);
            let expected = allowed.contains(&code);
            match outcome(&bytes, Some(Version::V5)) {
                Ok(_) => assert!(expected, "{name} with {code:#04x}"),
                Err(error) => {
                    assert_eq!(error, DecodeError::ReasonCode(ReasonCode(code)), "{name}");
                    assert!(!expected, "{name} with {code:#04x}");
                }
            }
        }
    }
}

fn publish(qos: QoS, dup: bool) -> Publish {
    Publish {
        dup,
        qos,
        retain: false,
        topic: "t".into(),
        packet_id: (qos != QoS::AtMostOnce).then_some(PacketId::MIN),
        properties: None,
        payload: Bytes::from_static(b"p"),
    }
}

fn written(packet: Packet, version: Version) -> Vec<u8> {
    let mut out = BytesMut::new();
    encode(&packet, version, &mut out);
    out.to_vec()
}

/// [MQTT-2.2.1-2] [MQTT-3.3.1-2] [MQTT-2.2.2-1]: also when the caller asks for DUP.
#[test]
fn a_publish_with_qos_0_has_neither_identifier_nor_dup() {
    for dup in [false, true] {
        let packet = Packet::Publish(publish(QoS::AtMostOnce, dup));
        assert_eq!(written(packet.clone(), Version::V311), b"\x30\x04\0\x01tp");
        assert_eq!(written(packet, Version::V5), b"\x30\x05\0\x01t\0p");
    }
    let acked = Packet::Publish(publish(QoS::AtLeastOnce, true));
    assert_eq!(written(acked, Version::V5), b"\x3a\x07\0\x01t\0\x01\0p");
}

/// [MQTT-1.5.5-1]: at each length of a Variable Byte Integer.
#[test]
fn lengths_are_written_in_their_shortest_form() {
    for (payload, octets) in [(0, 1), (124, 1), (125, 2), (16_380, 2), (16_381, 3)] {
        let packet = Packet::Publish(Publish {
            payload: vec![0; payload].into(),
            ..publish(QoS::AtMostOnce, false)
        });
        let bytes = written(packet.clone(), Version::V311);
        assert_eq!(bytes.len(), 1 + octets + 3 + payload);
        assert_eq!(bytes[octets] & 0x80, 0, "the length ends there");
        assert_eq!(outcome(&bytes, Some(Version::V311)), Ok(packet));
    }
    // The same in a property: a Subscription Identifier, of which 128 needs two bytes.
    for (id, block) in [
        (127, &b"\x02\x0b\x7f"[..]),
        (128, b"\x03\x0b\x80\x01"),
        (16_384, b"\x04\x0b\x80\x80\x01"),
        (268_435_455, b"\x05\x0b\xff\xff\xff\x7f"),
    ] {
        let bytes = framed(0x82, &[b"\0\x01", block, b"\0\x01a\0"]);
        let packet = outcome(&bytes, Some(Version::V5)).expect("a SUBSCRIBE");
        assert!(matches!(&packet, Packet::Subscribe(p) if p.subscription_id == Some(id)));
        assert_eq!(written(packet, Version::V5), bytes);
    }
    let long = framed(0x82, &[b"\0\x01\x03\x0b\xff\0\0\x01a\0"]);
    assert_eq!(
        outcome(&long, Some(Version::V5)),
        Err(DecodeError::VariableByteInteger)
    );
}

/// [MQTT-4.7.3-3] [MQTT-4.7.3-2]: no string of the codec is longer than its length field can say, or holds U+0000.
#[test]
fn texts_fit_their_length_field_and_have_no_null() {
    let longest = Bytes::from(vec![b'x'; Text::LEN_MAX]);
    assert!(Text::new(longest).is_some_and(|text| text.len() == 65_535));
    assert!(Text::new(Bytes::from(vec![b'x'; Text::LEN_MAX + 1])).is_none());
    assert_eq!(
        Text::from("x".repeat(Text::LEN_MAX + 1).as_str()).len(),
        65_535
    );
    assert!(Text::new(Bytes::from_static(b"a\0b")).is_none());
    assert_eq!(Text::from("a\0b"), "ab");
}
