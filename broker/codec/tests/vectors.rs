//! Packets written out by hand from the standard, both ways.

use bytes::{Bytes, BytesMut};
use headgate_codec::{
    Ack, ConnAck, Connect, ConnectProperties, Disconnect, Packet, PacketId, Publish,
    PublishProperties, PublishTemplate, QoS, ReasonCode, ReasonProperties, SubAck, Subscribe,
    SubscriptionOptions, Text, Unsubscribe, Version, Will, decode, encode, encoded_len, frame_len,
};

const MAX: u32 = 1 << 20;

fn id(value: u16) -> PacketId {
    PacketId::new(value).expect("not zero")
}

/// `bytes` decode to `packet`, and `packet` encodes to `bytes`.
fn both_ways(bytes: &[u8], packet: &Packet, version: Version) {
    let expected = matches!(packet, Packet::Connect(_));
    let mut input = Bytes::copy_from_slice(bytes);
    let decoded = decode(&mut input, (!expected).then_some(version), MAX);
    assert_eq!(decoded, Ok(Some(packet.clone())));
    assert!(input.is_empty(), "the packet is taken from the input");
    let mut out = BytesMut::new();
    encode(packet, version, &mut out);
    assert_eq!(&out[..], bytes);
    assert_eq!(encoded_len(packet, version), bytes.len());
    assert_eq!(frame_len(bytes, MAX), Ok(Some(bytes.len())));
}

fn publish(qos: QoS, packet_id: Option<PacketId>) -> Publish {
    Publish {
        dup: false,
        qos,
        retain: false,
        topic: "a/b".into(),
        packet_id,
        properties: None,
        payload: Bytes::from_static(b"hi"),
    }
}

#[test]
fn connect_v5_with_everything() {
    let packet = Packet::Connect(Box::new(Connect {
        version: Version::V5,
        clean_start: true,
        keep_alive_s: 60,
        client_id: "c".into(),
        will: Some(Will {
            qos: QoS::AtLeastOnce,
            retain: true,
            topic: "w".into(),
            payload: Bytes::from_static(b"bye"),
            delay_s: Some(5),
            properties: None,
        }),
        user_name: Some("u".into()),
        password: Some(Bytes::from_static(b"p")),
        properties: ConnectProperties {
            session_expiry_s: Some(10),
            receive_maximum: Some(20),
            ..ConnectProperties::default()
        },
    }));
    let bytes = b"\x10\x2a\0\x04MQTT\x05\xee\0\x3c\x08\x11\0\0\0\x0a\x21\0\x14\0\x01c\
        \x05\x18\0\0\0\x05\0\x01w\0\x03bye\0\x01u\0\x01p";
    both_ways(bytes, &packet, Version::V5);
}

#[test]
fn connect_3x() {
    let mut connect = Connect {
        version: Version::V311,
        clean_start: false,
        keep_alive_s: 10,
        client_id: "ab".into(),
        will: None,
        user_name: None,
        password: None,
        properties: ConnectProperties::default(),
    };
    let packet = Packet::Connect(Box::new(connect.clone()));
    both_ways(
        b"\x10\x0e\0\x04MQTT\x04\0\0\x0a\0\x02ab",
        &packet,
        Version::V311,
    );
    connect.version = Version::V31;
    let packet = Packet::Connect(Box::new(connect));
    both_ways(
        b"\x10\x10\0\x06MQIsdp\x03\0\0\x0a\0\x02ab",
        &packet,
        Version::V31,
    );
}

#[test]
fn publish_of_each_qos() {
    let qos0 = Packet::Publish(publish(QoS::AtMostOnce, None));
    both_ways(b"\x30\x08\0\x03a/b\0hi", &qos0, Version::V5);
    both_ways(b"\x30\x07\0\x03a/bhi", &qos0, Version::V311);
    let qos1 = Packet::Publish(publish(QoS::AtLeastOnce, Some(id(258))));
    both_ways(b"\x32\x0a\0\x03a/b\x01\x02\0hi", &qos1, Version::V5);
    both_ways(b"\x32\x09\0\x03a/b\x01\x02hi", &qos1, Version::V31);
    let qos2 = Publish {
        dup: true,
        retain: true,
        ..publish(QoS::ExactlyOnce, Some(id(1)))
    };
    both_ways(
        b"\x3d\x0a\0\x03a/b\0\x01\0hi",
        &Packet::Publish(qos2),
        Version::V5,
    );
}

#[test]
fn publish_with_properties() {
    let packet = Packet::Publish(Publish {
        properties: Some(Box::new(PublishProperties {
            payload_format_utf8: Some(true),
            topic_alias: PacketId::new(3),
            user_properties: vec![("k".into(), "v".into())],
            subscription_ids: vec![1, 300],
            ..PublishProperties::default()
        })),
        topic: Text::default(),
        ..publish(QoS::AtMostOnce, None)
    });
    both_ways(
        b"\x30\x16\0\0\x11\x23\0\x03\x01\x01\x26\0\x01k\0\x01v\x0b\x01\x0b\xac\x02hi",
        &packet,
        Version::V5,
    );
}

#[test]
fn acknowledgements() {
    let short = Ack {
        packet_id: id(7),
        reason: ReasonCode::SUCCESS,
        properties: None,
    };
    both_ways(
        b"\x40\x02\0\x07",
        &Packet::PubAck(short.clone()),
        Version::V5,
    );
    both_ways(
        b"\x50\x02\0\x07",
        &Packet::PubRec(short.clone()),
        Version::V311,
    );
    both_ways(
        b"\x62\x02\0\x07",
        &Packet::PubRel(short.clone()),
        Version::V5,
    );
    both_ways(b"\x70\x02\0\x07", &Packet::PubComp(short), Version::V5);
    let refused = Ack {
        packet_id: id(7),
        reason: ReasonCode::QUOTA_EXCEEDED,
        properties: None,
    };
    both_ways(
        b"\x40\x03\0\x07\x97",
        &Packet::PubAck(refused.clone()),
        Version::V5,
    );
    let said = Ack {
        properties: Some(Box::new(ReasonProperties {
            reason_string: Some("no".into()),
            ..ReasonProperties::default()
        })),
        ..refused
    };
    both_ways(
        b"\x50\x09\0\x07\x97\x05\x1f\0\x02no",
        &Packet::PubRec(said),
        Version::V5,
    );
}

#[test]
fn subscribe_and_suback() {
    let options = SubscriptionOptions {
        qos: QoS::AtLeastOnce,
        no_local: true,
        retain_as_published: true,
        retain_handling: 2,
    };
    let mut packet = Subscribe {
        packet_id: id(10),
        subscription_id: Some(5),
        user_properties: vec![],
        filters: vec![("a/#".into(), options)],
    };
    let subscribe = Packet::Subscribe(Box::new(packet.clone()));
    both_ways(
        b"\x82\x0b\0\x0a\x02\x0b\x05\0\x03a/#\x2d",
        &subscribe,
        Version::V5,
    );
    packet.subscription_id = None;
    packet.filters[0].1 = SubscriptionOptions {
        qos: QoS::ExactlyOnce,
        ..Default::default()
    };
    let subscribe = Packet::Subscribe(Box::new(packet));
    both_ways(b"\x82\x08\0\x0a\0\x03a/#\x02", &subscribe, Version::V311);
    let suback = Packet::SubAck(Box::new(SubAck {
        packet_id: id(10),
        properties: ReasonProperties::default(),
        reasons: vec![ReasonCode::GRANTED_QOS_1, ReasonCode::UNSPECIFIED_ERROR],
    }));
    both_ways(b"\x90\x05\0\x0a\0\x01\x80", &suback, Version::V5);
    both_ways(b"\x90\x04\0\x0a\x01\x80", &suback, Version::V311);
}

#[test]
fn unsubscribe_and_unsuback() {
    let packet = Packet::Unsubscribe(Box::new(Unsubscribe {
        packet_id: id(10),
        user_properties: vec![],
        filters: vec!["a".into(), "b/+".into()],
    }));
    both_ways(b"\xa2\x0b\0\x0a\0\0\x01a\0\x03b/+", &packet, Version::V5);
    both_ways(b"\xa2\x0a\0\x0a\0\x01a\0\x03b/+", &packet, Version::V31);
    let ack = |reasons| {
        let properties = ReasonProperties::default();
        Packet::UnsubAck(Box::new(SubAck {
            packet_id: id(10),
            properties,
            reasons,
        }))
    };
    let reasons = vec![ReasonCode::NO_SUBSCRIPTION_EXISTED];
    both_ways(b"\xb0\x04\0\x0a\0\x11", &ack(reasons), Version::V5);
    both_ways(b"\xb0\x02\0\x0a", &ack(vec![]), Version::V311);
}

#[test]
fn the_short_ones() {
    for version in [Version::V31, Version::V311, Version::V5] {
        both_ways(b"\xc0\0", &Packet::PingReq, version);
        both_ways(b"\xd0\0", &Packet::PingResp, version);
        both_ways(
            b"\xe0\0",
            &Packet::Disconnect(Disconnect::default()),
            version,
        );
    }
    let reason = ReasonCode::SERVER_SHUTTING_DOWN;
    let packet = Packet::Disconnect(Disconnect {
        reason,
        properties: None,
    });
    both_ways(b"\xe0\x01\x8b", &packet, Version::V5);
}

#[test]
fn connack_maps_reason_codes_for_3x() {
    let refused = |reason| {
        Packet::ConnAck(Box::new(ConnAck {
            reason,
            ..ConnAck::default()
        }))
    };
    let pairs = [
        (ReasonCode::UNSUPPORTED_PROTOCOL_VERSION, 1),
        (ReasonCode::CLIENT_IDENTIFIER_NOT_VALID, 2),
        (ReasonCode::SERVER_UNAVAILABLE, 3),
        (ReasonCode::BAD_USER_NAME_OR_PASSWORD, 4),
        (ReasonCode::NOT_AUTHORIZED, 5),
    ];
    for (reason, code) in pairs {
        both_ways(&[0x20, 2, 0, code], &refused(reason), Version::V311);
        both_ways(&[0x20, 2, 0, code], &refused(reason), Version::V31);
        both_ways(&[0x20, 3, 0, reason.0, 0], &refused(reason), Version::V5);
    }
    let mut out = BytesMut::new();
    encode(
        &refused(ReasonCode::QUOTA_EXCEEDED),
        Version::V311,
        &mut out,
    );
    assert_eq!(
        &out[..],
        b"\x20\x02\0\x03",
        "no return code fits: Server unavailable"
    );
    let present = ConnAck {
        session_present: true,
        ..ConnAck::default()
    };
    both_ways(
        b"\x20\x02\x01\0",
        &Packet::ConnAck(Box::new(present)),
        Version::V311,
    );
}

#[test]
fn two_packets_in_one_buffer() {
    let mut input = Bytes::from_static(b"\xc0\0\x30\x07\0\x03a/bhi\xc0");
    let version = Some(Version::V311);
    assert_eq!(decode(&mut input, version, MAX), Ok(Some(Packet::PingReq)));
    let qos0 = Packet::Publish(publish(QoS::AtMostOnce, None));
    assert_eq!(decode(&mut input, version, MAX), Ok(Some(qos0)));
    assert_eq!(decode(&mut input, version, MAX), Ok(None));
    assert_eq!(&input[..], b"\xc0", "what is incomplete stays");
}

#[test]
fn a_template_is_the_encoded_publish() {
    let properties = PublishProperties {
        content_type: Some("t".into()),
        // Of the publisher's connection: not sent on.
        topic_alias: PacketId::new(1),
        ..PublishProperties::default()
    };
    for version in [Version::V31, Version::V311, Version::V5] {
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            let template = PublishTemplate::new(
                version,
                qos,
                true,
                &"a/b".into(),
                Some(&properties),
                &[9],
                b"hi",
            );
            let packet_id = (qos != QoS::AtMostOnce).then(|| id(3));
            let mut written = BytesMut::new();
            template.write(packet_id, true, &mut written);
            let sent = PublishProperties {
                content_type: Some("t".into()),
                subscription_ids: vec![9],
                ..PublishProperties::default()
            };
            let expected = Publish {
                retain: true,
                dup: packet_id.is_some(),
                properties: (version == Version::V5).then(|| Box::new(sent)),
                ..publish(qos, packet_id)
            };
            assert_eq!(template.encoded_len(), written.len());
            assert_eq!(template.tail.is_empty(), qos == QoS::AtMostOnce);
            let decoded = decode(&mut written.freeze(), Some(version), MAX);
            assert_eq!(decoded, Ok(Some(Packet::Publish(expected))));
        }
    }
}

/// A text is its characters, however it is looked at.
#[test]
fn a_text_is_its_characters() {
    let text = Text::from("a/ü");
    let as_ref: &str = text.as_ref();
    let borrowed: &str = std::borrow::Borrow::borrow(&text);
    assert_eq!((as_ref, borrowed, &*text), ("a/ü", "a/ü", "a/ü"));
    assert!(text == "a/ü" && text != "a/");
    assert_eq!(
        (format!("{text}"), format!("{text:?}")),
        ("a/ü".into(), "\"a/ü\"".into())
    );
}
