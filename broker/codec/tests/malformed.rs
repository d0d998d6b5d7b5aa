//! What must be refused, and with which Reason Code.

use bytes::Bytes;
use headgate_codec::{DecodeError as E, Packet, ReasonCode as R, Version, decode, frame_len};

const MAX: u32 = 1 << 20;

fn refused(bytes: &[u8], version: Option<Version>) -> E {
    match decode(&mut Bytes::copy_from_slice(bytes), version, MAX) {
        Err(error) => {
            assert!(!error.to_string().is_empty());
            error
        }
        Ok(packet) => panic!("{bytes:02x?} decoded to {packet:?}"),
    }
}

fn v5(bytes: &[u8], reason: R) -> E {
    let error = refused(bytes, Some(Version::V5));
    assert_eq!(error.reason(), reason, "{bytes:02x?}: {error}");
    error
}

fn v311(bytes: &[u8], reason: R) -> E {
    let error = refused(bytes, Some(Version::V311));
    assert_eq!(error.reason(), reason, "{bytes:02x?}: {error}");
    error
}

fn first(bytes: &[u8], reason: R) -> E {
    let error = refused(bytes, None);
    assert_eq!(error.reason(), reason, "{bytes:02x?}: {error}");
    error
}

fn accepted(bytes: &[u8], version: Option<Version>) -> Packet {
    let decoded = decode(&mut Bytes::copy_from_slice(bytes), version, MAX);
    decoded.expect("accepted").expect("complete")
}

/// A packet of MQTT 5.0: `head` (without Remaining Length), `before` the properties, `block` of
/// properties, `after` them.
fn with_properties(head: u8, before: &[u8], block: &[u8], after: &[u8]) -> Vec<u8> {
    let mut bytes = vec![head, (before.len() + 1 + block.len() + after.len()) as u8];
    bytes.extend_from_slice(before);
    bytes.push(block.len() as u8);
    bytes.extend_from_slice(block);
    bytes.extend_from_slice(after);
    bytes
}

fn connect(block: &[u8]) -> Vec<u8> {
    with_properties(0x10, b"\0\x04MQTT\x05\x02\0\0", block, b"\0\0")
}

fn publish(block: &[u8]) -> Vec<u8> {
    with_properties(0x30, b"\0\x01t", block, b"")
}

// [MQTT-2.1.3-1] [MQTT-3.6.1-1] [MQTT-3.8.1-1] [MQTT-3.10.1-1] [MQTT-3.14.1-1] [MQTT-3.15.1-1]
#[test]
fn flags_of_the_fixed_header() {
    for packet_type in (2..=15).filter(|t| *t != 3) {
        let required = if matches!(packet_type, 6 | 8 | 10) {
            2
        } else {
            0
        };
        for flags in (0..16).filter(|f| *f != required) {
            // Refused at the first octet, before the rest has come.
            let error = v5(&[packet_type << 4 | flags], R::MALFORMED_PACKET);
            assert!(matches!(error, E::FixedHeaderFlags { .. }));
            let reason = if packet_type == 15 {
                E::PacketType(15)
            } else {
                error
            };
            assert_eq!(
                v311(&[packet_type << 4 | flags], R::MALFORMED_PACKET),
                reason
            );
        }
    }
    for flags in 1..16 {
        first(&[0x10 | flags], R::MALFORMED_PACKET);
    }
    // MQTT 3.1 sets DUP when it repeats these.
    accepted(b"\x6a\x02\0\x01", Some(Version::V31));
    accepted(b"\x8a\x06\0\x01\0\x01a\x01", Some(Version::V31));
}

#[test]
fn packet_types() {
    v5(&[0x00], R::MALFORMED_PACKET);
    first(&[0x00], R::MALFORMED_PACKET);
    // AUTH exists in 5.0 only.
    assert_eq!(v311(b"\xf0\0", R::MALFORMED_PACKET), E::PacketType(15));
    // [MQTT-3.1.0-1]
    for packet_type in 2..=15_u8 {
        assert_eq!(
            first(&[packet_type << 4], R::PROTOCOL_ERROR),
            E::ExpectedConnect
        );
    }
    // [MQTT-3.1.0-2]
    assert_eq!(v5(&[0x10], R::PROTOCOL_ERROR), E::SecondConnect);
    assert_eq!(v311(&[0x10], R::PROTOCOL_ERROR), E::SecondConnect);
}

#[test]
fn remaining_length() {
    // More than four bytes.
    assert_eq!(
        v5(b"\x30\x80\x80\x80\x80", R::MALFORMED_PACKET),
        E::VariableByteInteger
    );
    assert_eq!(
        frame_len(b"\x30\xff\xff\xff\xff\x01", MAX),
        Err(E::VariableByteInteger)
    );
    // [MQTT-1.5.5-1]: not the shortest form. MQTT 3.1.1 has no such rule.
    assert_eq!(
        v5(b"\xc0\x80\0", R::MALFORMED_PACKET),
        E::VariableByteInteger
    );
    assert_eq!(
        accepted(b"\xc0\x80\0", Some(Version::V311)),
        Packet::PingReq
    );
    first(
        b"\x10\x8d\0\0\x04MQTT\x05\x02\0\0\0\0\0",
        R::MALFORMED_PACKET,
    );
    accepted(b"\x10\x8c\0\0\x04MQTT\x04\x02\0\0\0\0", None);
}

#[test]
fn maximum_packet_size_counts_the_whole_packet() {
    let bytes = b"\x30\x07\0\x03a/bhi";
    let decode = |max| decode(&mut Bytes::from_static(bytes), Some(Version::V311), max);
    assert!(decode(9).is_ok_and(|packet| packet.is_some()));
    let error = decode(8).expect_err("one byte too long");
    assert_eq!(error, E::TooLarge { len: 9, maximum: 8 });
    assert_eq!(error.reason(), R::PACKET_TOO_LARGE);
    // Known from the header alone: nothing needs to be buffered.
    assert_eq!(
        frame_len(b"\x30\xff\xff\xff\x7f", 100),
        Err(E::TooLarge {
            len: 268_435_460,
            maximum: 100
        })
    );
    assert_eq!(frame_len(b"\x30", 100), Ok(None));
    assert_eq!(frame_len(b"", 100), Ok(None));
    assert_eq!(frame_len(b"\x30\x80", 100), Ok(None));
    assert_eq!(frame_len(b"\x30\x07", 100), Ok(Some(9)));
}

#[test]
fn publish_header() {
    // [MQTT-3.3.1-4]
    for octet in [0x36, 0x37, 0x3e, 0x3f] {
        assert_eq!(v5(&[octet], R::MALFORMED_PACKET), E::Qos3);
        assert_eq!(v311(&[octet], R::MALFORMED_PACKET), E::Qos3);
    }
    // [MQTT-3.3.1-2]
    assert_eq!(v5(b"\x38", R::MALFORMED_PACKET), E::DupWithQos0);
    assert_eq!(v311(b"\x39", R::MALFORMED_PACKET), E::DupWithQos0);
    // [MQTT-2.2.1-3]
    assert_eq!(
        v5(b"\x32\x06\0\x01t\0\0\0", R::PROTOCOL_ERROR),
        E::ZeroPacketId
    );
    assert_eq!(
        v311(b"\x34\x05\0\x01t\0\0", R::PROTOCOL_ERROR),
        E::ZeroPacketId
    );
    // A Topic Name that is longer than the packet, no room for a Packet Identifier, none for
    // the Property Length.
    assert_eq!(v5(b"\x30\x04\0\x09t\0", R::MALFORMED_PACKET), E::Truncated);
    assert_eq!(v311(b"\x30\x03\0\x02t", R::MALFORMED_PACKET), E::Truncated);
    assert_eq!(
        v5(b"\x32\x04\0\x01t\x01", R::MALFORMED_PACKET),
        E::Truncated
    );
    assert_eq!(v5(b"\x30\x03\0\x01t", R::MALFORMED_PACKET), E::Truncated);
    assert_eq!(v5(b"\x30\x01\0", R::MALFORMED_PACKET), E::Truncated);
    assert_eq!(v5(b"\x30\0", R::MALFORMED_PACKET), E::Truncated);
    // §3.3.2.1: neither Topic Name nor Topic Alias.
    assert_eq!(v5(b"\x30\x03\0\0\0", R::PROTOCOL_ERROR), E::NoTopic);
    assert_eq!(v311(b"\x30\x02\0\0", R::PROTOCOL_ERROR), E::NoTopic);
}

// [MQTT-1.5.4-1] [MQTT-1.5.4-2] [MQTT-3.3.2-1]
#[test]
fn strings() {
    for text in [
        &b"\xff"[..],
        b"a\0b",
        b"\xed\xa0\x80",
        b"\xc0\x80",
        b"\xf4\x90\x80\x80",
        b"\xe2\x82",
    ] {
        let mut body = vec![0, text.len() as u8];
        body.extend_from_slice(text);
        let mut bytes = vec![0x30, body.len() as u8 + 1];
        bytes.extend_from_slice(&body);
        bytes.push(0);
        assert_eq!(v5(&bytes, R::MALFORMED_PACKET), E::NotUtf8);
        let block = [&[0x03], &body[..]].concat();
        assert_eq!(v5(&publish(&block), R::MALFORMED_PACKET), E::NotUtf8);
        let block = [b"\x26\0\x01k", &body[..]].concat();
        assert_eq!(v5(&publish(&block), R::MALFORMED_PACKET), E::NotUtf8);
    }
    // [MQTT-1.5.4-3]: a byte order mark is a character as any other.
    let Packet::Publish(kept) = accepted(b"\x30\x06\0\x04\xef\xbb\xbfa", Some(Version::V311))
    else {
        panic!("a PUBLISH");
    };
    assert_eq!(kept.topic, "\u{feff}a");
}

#[test]
fn properties_of_publish() {
    // [MQTT-3.3.2-8]
    assert_eq!(
        v5(&publish(b"\x23\0\0"), R::TOPIC_ALIAS_INVALID),
        E::TopicAliasZero
    );
    // Any that may appear once, twice.
    for one in [
        &b"\x01\x01"[..],
        b"\x02\0\0\0\x01",
        b"\x03\0\x01a",
        b"\x08\0\x01a",
        b"\x09\0\x01a",
        b"\x23\0\x01",
    ] {
        accepted(&publish(one), Some(Version::V5));
        let error = v5(&publish(&one.repeat(2)), R::PROTOCOL_ERROR);
        assert_eq!(error, E::DuplicateProperty(one[0]));
    }
    accepted(
        &publish(b"\x26\0\x01k\0\x01v\x26\0\x01k\0\x01v\x0b\x01\x0b\x01"),
        Some(Version::V5),
    );
    // Payload Format Indicator is 0 or 1; a Subscription Identifier isn't 0.
    assert_eq!(
        v5(&publish(b"\x01\x02"), R::PROTOCOL_ERROR),
        E::PropertyValue(1)
    );
    assert_eq!(
        v5(&publish(b"\x0b\0"), R::PROTOCOL_ERROR),
        E::PropertyValue(0x0b)
    );
    // §2.2.2.2: of other packets, or of none.
    for id in (0..=255).filter(|id| ![1, 2, 3, 8, 9, 0x0b, 0x23, 0x26].contains(id)) {
        let error = v5(&publish(&[id, 0, 0, 0, 0]), R::MALFORMED_PACKET);
        assert_eq!(error, E::InvalidProperty(id));
    }
    // The block ends inside a property, or the packet inside the block.
    assert_eq!(v5(&publish(b"\x02\0\0"), R::MALFORMED_PACKET), E::Truncated);
    assert_eq!(
        v5(b"\x30\x05\0\x01t\x05\x01", R::MALFORMED_PACKET),
        E::Truncated
    );
    assert_eq!(
        v5(b"\x30\x04\0\x01t\x80", R::MALFORMED_PACKET),
        E::Truncated
    );
    assert_eq!(
        v5(b"\x30\x05\0\x01t\x80\0", R::MALFORMED_PACKET),
        E::VariableByteInteger
    );
}

#[test]
fn properties_of_connect() {
    accepted(&connect(b""), None);
    for (one, reason) in [
        // Receive Maximum 0, Maximum Packet Size 0, flags that aren't 0 or 1.
        (&b"\x21\0\0"[..], R::PROTOCOL_ERROR),
        (b"\x27\0\0\0\0", R::PROTOCOL_ERROR),
        (b"\x17\x02", R::PROTOCOL_ERROR),
        (b"\x19\x02", R::PROTOCOL_ERROR),
        // Authentication Data without a method.
        (b"\x16\0\x01x", R::PROTOCOL_ERROR),
        // Topic Alias, Reason String and Will Delay belong elsewhere.
        (b"\x23\0\x01", R::MALFORMED_PACKET),
        (b"\x1f\0\x01a", R::MALFORMED_PACKET),
        (b"\x18\0\0\0\x01", R::MALFORMED_PACKET),
    ] {
        first(&connect(one), reason);
    }
    for one in [
        &b"\x11\0\0\0\x01"[..],
        b"\x21\0\x01",
        b"\x27\0\0\0\x01",
        b"\x22\0\x01",
        b"\x17\x01",
        b"\x19\x01",
        b"\x15\0\x01m",
    ] {
        accepted(&connect(one), None);
        let error = first(&connect(&one.repeat(2)), R::PROTOCOL_ERROR);
        assert_eq!(error, E::DuplicateProperty(one[0]));
    }
}

#[test]
fn connect_header() {
    // [MQTT-3.1.2-1] [MQTT-3.1.2-2]
    let error = first(
        b"\x10\x0c\0\x04MQTX\x04\x02\0\0\0\0",
        R::UNSUPPORTED_PROTOCOL_VERSION,
    );
    assert_eq!(error, E::ProtocolName);
    for (bytes, level) in [
        (&b"\x10\x0c\0\x04MQTT\x06\x02\0\0\0\0"[..], 6),
        (b"\x10\x0c\0\x04MQTT\x03\x02\0\0\0\0", 3),
        (b"\x10\x0e\0\x06MQIsdp\x04\x02\0\0\0\0", 4),
    ] {
        let error = first(bytes, R::UNSUPPORTED_PROTOCOL_VERSION);
        assert_eq!(error, E::ProtocolVersion(level));
    }
    let flags = |version: u8, flags: u8| {
        [b"\x10\x0d\0\x04MQTT", &[version, flags][..], b"\0\0\0\0\0"].concat()
    };
    // [MQTT-3.1.2-3] reserved bit; [MQTT-3.1.2-11] [MQTT-3.1.2-13] Will bits without a Will.
    for bits in [0x01, 0x08, 0x10, 0x20, 0x38] {
        first(&flags(5, bits), R::MALFORMED_PACKET);
        first(&flags(4, bits), R::MALFORMED_PACKET);
    }
    // [MQTT-3.1.2-12]
    assert_eq!(first(&flags(5, 0x1c), R::MALFORMED_PACKET), E::Qos3);
    // A password alone: 5.0 allows it (here it is missing, though), 3.1.1 doesn't.
    assert_eq!(
        first(&flags(4, 0x40), R::MALFORMED_PACKET),
        E::ReservedFlags(0x40)
    );
    // [MQTT-3.1.2-9] [MQTT-3.1.2-17] [MQTT-3.1.2-19]: what the flags promise must be there.
    for bits in [0x04, 0x40, 0x80] {
        assert_eq!(first(&flags(5, bits), R::MALFORMED_PACKET), E::Truncated);
    }
    // [MQTT-3.1.2-16] [MQTT-3.1.2-18]: and what they don't, not.
    let error = first(
        b"\x10\x0f\0\x04MQTT\x04\x02\0\0\0\0\0\x01u",
        R::MALFORMED_PACKET,
    );
    assert_eq!(error, E::TrailingBytes);
}

#[test]
fn subscribe_and_unsubscribe() {
    // [MQTT-3.8.3-2] [MQTT-3.10.3-2]
    assert_eq!(v5(b"\x82\x03\0\x01\0", R::PROTOCOL_ERROR), E::EmptyPayload);
    assert_eq!(v311(b"\x82\x02\0\x01", R::PROTOCOL_ERROR), E::EmptyPayload);
    assert_eq!(v5(b"\xa2\x03\0\x01\0", R::PROTOCOL_ERROR), E::EmptyPayload);
    assert_eq!(v311(b"\xa2\x02\0\x01", R::PROTOCOL_ERROR), E::EmptyPayload);
    // [MQTT-2.2.1-3]
    assert_eq!(
        v5(b"\x82\x07\0\0\0\0\x01a\0", R::PROTOCOL_ERROR),
        E::ZeroPacketId
    );
    assert_eq!(
        v5(b"\xa2\x06\0\0\0\0\x01a", R::PROTOCOL_ERROR),
        E::ZeroPacketId
    );
    let options = |o| [b"\x82\x07\0\x01\0\0\x01a", &[o][..]].concat();
    accepted(&options(0x2e), Some(Version::V5));
    // [MQTT-3.8.3-5]
    for o in [0x40, 0x80, 0xc1] {
        v5(&options(o), R::MALFORMED_PACKET);
    }
    // QoS 3, Retain Handling 3.
    for o in [0x03, 0x30] {
        assert_eq!(
            v5(&options(o), R::PROTOCOL_ERROR),
            E::SubscriptionOptions(o)
        );
    }
    v311(b"\x82\x06\0\x01\0\x01a\x04", R::MALFORMED_PACKET);
    v311(b"\x82\x06\0\x01\0\x01a\x03", R::PROTOCOL_ERROR);
    // [MQTT-3.8.3-4]
    let shared = b"\x82\x10\0\x01\0\0\x0a$share/g/a\x04";
    assert_eq!(v5(shared, R::PROTOCOL_ERROR), E::NoLocalShared);
    // Options missing; Subscription Identifier 0, twice, of five bytes.
    assert_eq!(
        v5(b"\x82\x06\0\x01\0\0\x01a", R::MALFORMED_PACKET),
        E::Truncated
    );
    let with = |block: &[u8]| with_properties(0x82, b"\0\x01", block, b"\0\x01a\0");
    v5(&with(b"\x0b\0"), R::PROTOCOL_ERROR);
    v5(&with(b"\x0b\x01\x0b\x01"), R::PROTOCOL_ERROR);
    v5(&with(b"\x0b\xff\xff\xff\xff\x01"), R::MALFORMED_PACKET);
    v5(&with(b"\x1f\0\x01a"), R::MALFORMED_PACKET);
    v5(
        &with_properties(0xa2, b"\0\x01", b"\x0b\x01", b"\0\x01a"),
        R::MALFORMED_PACKET,
    );
}

#[test]
fn reason_codes_that_a_packet_does_not_have() {
    for octet in [0x40, 0x50, 0x62, 0x70] {
        let error = v5(&[octet, 3, 0, 1, 0x8d], R::PROTOCOL_ERROR);
        assert_eq!(error, E::ReasonCode(R::KEEP_ALIVE_TIMEOUT));
        assert_eq!(v5(&[octet, 2, 0, 0], R::PROTOCOL_ERROR), E::ZeroPacketId);
        assert_eq!(
            v311(&[octet, 3, 0, 1, 0], R::MALFORMED_PACKET),
            E::TrailingBytes
        );
        assert_eq!(v5(&[octet, 1, 0], R::MALFORMED_PACKET), E::Truncated);
        // A Reason String twice; a property of another packet; something behind the properties.
        v5(
            &[octet, 12, 0, 1, 0, 8, 0x1f, 0, 1, b'a', 0x1f, 0, 1, b'a'],
            R::PROTOCOL_ERROR,
        );
        v5(&[octet, 7, 0, 1, 0, 3, 0x23, 0, 1], R::MALFORMED_PACKET);
        assert_eq!(
            v5(&[octet, 5, 0, 1, 0, 0, 9], R::MALFORMED_PACKET),
            E::TrailingBytes
        );
    }
    v5(b"\xe0\x01\x10", R::PROTOCOL_ERROR);
    v5(b"\x90\x04\0\x01\0\x10", R::PROTOCOL_ERROR);
    v5(b"\xb0\x04\0\x01\0\x01", R::PROTOCOL_ERROR);
    v5(b"\x20\x03\0\x10\0", R::PROTOCOL_ERROR);
    v5(b"\xf0\x01\x10", R::PROTOCOL_ERROR);
    v311(b"\x90\x03\0\x01\x87", R::PROTOCOL_ERROR);
    v311(b"\x20\x02\0\x06", R::PROTOCOL_ERROR);
}

#[test]
fn what_a_server_sends() {
    // [MQTT-3.2.2-1] [MQTT-3.2.2-6]
    assert_eq!(
        v5(b"\x20\x03\x02\0\0", R::MALFORMED_PACKET),
        E::ReservedFlags(2)
    );
    assert_eq!(
        v5(b"\x20\x03\x01\x87\0", R::PROTOCOL_ERROR),
        E::SessionPresentInRefusal
    );
    assert_eq!(
        v311(b"\x20\x02\x01\x05", R::PROTOCOL_ERROR),
        E::SessionPresentInRefusal
    );
    assert_eq!(v5(b"\x90\x03\0\x01\0", R::PROTOCOL_ERROR), E::EmptyPayload);
    assert_eq!(
        v311(b"\xb0\x03\0\x01\0", R::MALFORMED_PACKET),
        E::TrailingBytes
    );
}

#[test]
fn packets_without_a_body_and_auth() {
    assert_eq!(v5(b"\xc0\x01\0", R::MALFORMED_PACKET), E::TrailingBytes);
    assert_eq!(v5(b"\xd0\x02\0\0", R::MALFORMED_PACKET), E::TrailingBytes);
    assert_eq!(v311(b"\xe0\x01\0", R::MALFORMED_PACKET), E::TrailingBytes);
    assert_eq!(
        v5(b"\xf0\x02\x18\0", R::PROTOCOL_ERROR),
        E::AuthenticationMethodMissing
    );
    v5(b"\xe0\x07\0\x05\x23\0\x01\0\0", R::MALFORMED_PACKET);
}
