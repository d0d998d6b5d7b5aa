//! MQTT 3.1 and 3.1.1 as they are on the wire, where they differ from 5.0.

use headgate_codec::{Packet, QoS, ReasonCode, Version};
use headgate_tests::{
    broker::Broker,
    tcp_client::{TcpClient, connect, publish},
};

const OLD: [Version; 2] = [Version::V31, Version::V311];

/// A CONNECT: Protocol Name and level, flags, Keep Alive 0, Client Identifier.
fn connect_bytes(version: Version, flags: u8, id: &str) -> Vec<u8> {
    let head: &[u8] = match version {
        Version::V31 => b"\0\x06MQIsdp\x03",
        _ => b"\0\x04MQTT\x04",
    };
    let body = [
        head,
        &[flags, 0, 0],
        &(id.len() as u16).to_be_bytes(),
        id.as_bytes(),
    ]
    .concat();
    let mut bytes = vec![0x10];
    let mut len = body.len();
    while len >= 0x80 {
        bytes.push((len & 0x7f) as u8 | 0x80);
        len >>= 7;
    }
    bytes.push(len as u8);
    bytes.extend(body);
    bytes
}

/// Connects and returns the CONNACK's four bytes.
fn connected(broker: &Broker, version: Version, flags: u8, id: &str) -> (TcpClient, Vec<u8>) {
    let mut client = TcpClient::open(broker.tcp(), version);
    client.send_bytes(&connect_bytes(version, flags, id));
    let connack = client.receive_bytes(4);
    (client, connack)
}

const CLEAN: u8 = 0x02;

/// 3.1.1 §3.2.2.2: Session Present; MQTT 3.1 leaves the octet 0.
#[test]
fn session_present_exists_since_3_1_1() {
    let broker = Broker::start("");
    for (version, present) in [(Version::V31, 0), (Version::V311, 1)] {
        let id = format!("{version:?}");
        let (mut client, connack) = connected(&broker, version, 0, &id);
        assert_eq!(connack, b"\x20\x02\0\0");
        client.send_bytes(b"\x82\x06\0\x01\0\x01t\x01");
        assert_eq!(client.receive_bytes(5), b"\x90\x03\0\x01\x01");
        client.send_bytes(b"\xe0\0");
        assert_eq!(client.receive_bytes(1), b"", "closed after DISCONNECT");
        let (_client, connack) = connected(&broker, version, 0, &id);
        assert_eq!(connack, [0x20, 2, present, 0]);
        let (_client, connack) = connected(&broker, version, CLEAN, &id);
        assert_eq!(connack, b"\x20\x02\0\0", "Clean Session");
    }
}

/// 3.1 names 23 characters as the most; brokers and clients in the field never kept to it. 3.1.1 §3.1.3.1
/// allows more.
#[test]
fn long_client_identifiers_are_taken() {
    let broker = Broker::start("");
    for version in OLD {
        let (_client, connack) = connected(&broker, version, CLEAN, &"x".repeat(200));
        assert_eq!(connack, b"\x20\x02\0\0");
    }
}

/// 3.1.1 [MQTT-3.1.3-8], 3.1 §3.1: "identifier rejected", and the connection ends.
#[test]
fn empty_client_identifiers_are_for_clean_sessions_of_3_1_1() {
    let broker = Broker::start("");
    for (version, flags, code) in [
        (Version::V31, CLEAN, 2),
        (Version::V31, 0, 2),
        (Version::V311, 0, 2),
        (Version::V311, CLEAN, 0),
    ] {
        let (mut client, connack) = connected(&broker, version, flags, "");
        assert_eq!(connack, [0x20, 2, 0, code], "{version:?} {flags}");
        if code == 0 {
            client.send_bytes(b"\xc0\0");
            assert_eq!(client.receive_bytes(2), b"\xd0\0");
        } else {
            assert_eq!(client.receive_bytes(1), b"");
        }
    }
}

/// 3.1.1 §3.9.3: 0x80 is the only failure; §3.11: UNSUBACK has no payload.
#[test]
fn a_failed_subscription_is_0x80_and_unsuback_is_bare() {
    let broker = Broker::start("");
    for version in OLD {
        let (mut client, _) = connected(&broker, version, CLEAN, "c");
        client.send_bytes(b"\x82\x12\0\x01\0\x01a\x02\0\x03b/#\x01\0\x03#/c\x01");
        assert_eq!(client.receive_bytes(7), b"\x90\x05\0\x01\x02\x01\x80");
        client.send_bytes(b"\xa2\x0a\0\x02\0\x01a\0\x03zzz");
        assert_eq!(client.receive_bytes(4), b"\xb0\x02\0\x02");
    }
}

/// 3.1.1 §3.4 to §3.7: acknowledgements are a Packet Identifier and nothing else, also where 5.0 has a
/// Reason Code. MQTT 3.1 sets DUP in a PUBREL that it repeats.
#[test]
fn acknowledgements_have_no_reason_codes() {
    let broker = Broker::start("[limits]\nretained_messages = 0");
    for version in OLD {
        let (mut client, _) = connected(&broker, version, CLEAN, "c");
        // Retained, which fails, and without a subscriber.
        client.send_bytes(b"\x33\x06\0\x01t\0\x07x");
        assert_eq!(client.receive_bytes(4), b"\x40\x02\0\x07");
        client.send_bytes(b"\x34\x06\0\x01t\0\x08x");
        assert_eq!(client.receive_bytes(4), b"\x50\x02\0\x08");
        client.send_bytes(b"\x62\x02\0\x08");
        assert_eq!(client.receive_bytes(4), b"\x70\x02\0\x08");
        let again: &[u8] = match version {
            Version::V31 => b"\x6a\x02\0\x08",
            _ => b"\x62\x02\0\x08",
        };
        client.send_bytes(again);
        assert_eq!(client.receive_bytes(4), b"\x70\x02\0\x08");
    }
}

/// Servers of 3.1 and 3.1.1 have no DISCONNECT: the connection just ends. 3.1.1 [MQTT-4.8.0-1]
#[test]
fn a_client_that_breaks_the_protocol_is_closed_without_a_word() {
    let broker = Broker::start("");
    for version in OLD {
        for bytes in [
            &b"\x36\x06\0\x01t\0\x01x"[..],
            b"\x82\x02\0\x01",
            b"\x30\x04\0\x01#x",
            b"\xf0\0",
            &connect_bytes(version, CLEAN, "c"),
        ] {
            let (mut client, _) = connected(&broker, version, CLEAN, "c");
            client.send_bytes(bytes);
            assert_eq!(client.receive_bytes(1), b"", "{bytes:02x?}");
        }
        // Nor does a client learn that another has taken its session.
        let (mut former, _) = connected(&broker, version, CLEAN, "same");
        let (_latter, _) = connected(&broker, version, CLEAN, "same");
        assert_eq!(former.receive_bytes(1), b"");
    }
}

/// 3.1.1 §3.2.2.3: the return codes that remain of 5.0's reasons.
#[test]
fn refusals_are_return_codes() {
    let broker = Broker::start("[limits]\nclient_id_bytes = 23");
    for version in OLD {
        let (mut client, connack) = connected(&broker, version, CLEAN, &"x".repeat(24));
        assert_eq!(connack, b"\x20\x02\0\x02");
        assert_eq!(client.receive_bytes(1), b"");
    }
}

/// A message of 5.0 with properties loses them on its way to an older client, and nothing else.
#[test]
fn versions_hear_each_other() {
    let broker = Broker::start("");
    let mut listeners: Vec<TcpClient> = OLD
        .map(|version| connected(&broker, version, CLEAN, &format!("{version:?}")).0)
        .into();
    for client in &mut listeners {
        client.send_bytes(b"\x82\x06\0\x01\0\x01t\x01");
        assert_eq!(client.receive_bytes(5), b"\x90\x03\0\x01\x01");
    }
    let (mut five, reason) = TcpClient::try_connect(broker.tcp(), connect("five"));
    assert_eq!(reason, ReasonCode::SUCCESS);
    five.subscribe(&["t"], QoS::AtLeastOnce);
    let mut message = publish("t", QoS::AtMostOnce, "hi");
    message.properties = Some(Box::new(headgate_codec::PublishProperties {
        content_type: Some("text/plain".into()),
        ..Default::default()
    }));
    five.send(&Packet::Publish(message.clone()));
    for client in &mut listeners {
        assert_eq!(client.receive_bytes(7), b"\x30\x05\0\x01thi");
    }
    assert_eq!(five.receive(), Some(Packet::Publish(message)));
    listeners[0].send_bytes(b"\x32\x07\0\x01t\0\x05yo");
    let Some(Packet::Publish(heard)) = five.receive() else {
        panic!("a PUBLISH");
    };
    assert_eq!((&*heard.payload, heard.qos), (&b"yo"[..], QoS::AtLeastOnce));
    assert_eq!(heard.properties, None);
}
