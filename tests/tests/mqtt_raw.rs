//! Bytes that a client may or may not send, over TCP, and the broker's bytes in answer.

use headgate_codec::{Packet, PacketId, QoS, ReasonCode, Version};
use headgate_tests::{
    broker::Broker,
    tcp_client::{TcpClient, connect, publish},
};

/// CONNECT of MQTT 5.0 with Clean Start, Keep Alive 30 and the Client Identifier "c".
const CONNECT: &[u8] = b"\x10\x0e\0\x04MQTT\x05\x02\0\x1e\0\0\x01c";

/// Everything that the broker sends until it closes the connection.
fn answer_to(broker: &Broker, bytes: &[u8]) -> Vec<u8> {
    let mut client = TcpClient::open(broker.tcp(), Version::V5);
    client.send_bytes(bytes);
    client.receive_bytes(usize::MAX)
}

/// The broker serves others as if nothing had happened.
fn is_well(broker: &Broker) {
    let mut client = TcpClient::connect(broker.tcp(), "bystander");
    client.send(&Packet::PingReq);
    assert_eq!(client.receive(), Some(Packet::PingResp));
}

/// [MQTT-3.1.4-1] [MQTT-3.1.0-1] [MQTT-3.14.0-1] [MQTT-3.1.2-1] [MQTT-3.1.2-2] [MQTT-3.1.2-3]
/// [MQTT-3.1.2-9] [MQTT-3.1.2-11] [MQTT-3.1.2-13] [MQTT-3.1.3-3] [MQTT-3.1.3-4]: a first packet that is
/// not a CONNECT by the standard's form is answered by closing, with a CONNACK at most.
#[test]
fn a_first_packet_that_is_no_connect_closes_the_connection() {
    let broker = Broker::start("");
    let refused = |code: u8| vec![0x20, 3, 0, code, 0];
    let cases: &[(&str, &[u8], Vec<u8>)] = &[
        ("PINGREQ", b"\xc0\0", vec![]),
        ("DISCONNECT", b"\xe0\0", vec![]),
        ("a browser", b"GET / HTTP/1.1\r\n\r\n", vec![]),
        (
            "flags",
            b"\x11\x0e\0\x04MQTT\x05\x02\0\x1e\0\0\x01c",
            vec![],
        ),
        (
            "name",
            b"\x10\x0e\0\x04MQTX\x05\x02\0\x1e\0\0\x01c",
            refused(0x84),
        ),
        (
            "version",
            b"\x10\x0e\0\x04MQTT\x09\x02\0\x1e\0\0\x01c",
            refused(0x84),
        ),
        (
            "the reserved flag",
            b"\x10\x0e\0\x04MQTT\x05\x03\0\x1e\0\0\x01c",
            vec![],
        ),
        (
            "Will QoS without a Will",
            b"\x10\x0e\0\x04MQTT\x05\x0a\0\x1e\0\0\x01c",
            vec![],
        ),
        (
            "Will Retain without a Will",
            b"\x10\x0e\0\x04MQTT\x05\x22\0\x1e\0\0\x01c",
            vec![],
        ),
        (
            "a Will that is missing",
            b"\x10\x0e\0\x04MQTT\x05\x06\0\x1e\0\0\x01c",
            vec![],
        ),
        (
            "no Client Identifier",
            b"\x10\x0b\0\x04MQTT\x05\x02\0\x1e\0",
            vec![],
        ),
        (
            "a Client Identifier that is no string",
            b"\x10\x0e\0\x04MQTT\x05\x02\0\x1e\0\0\x01\xff",
            vec![],
        ),
        (
            "something behind it",
            b"\x10\x0f\0\x04MQTT\x05\x02\0\x1e\0\0\x01cX",
            vec![],
        ),
        (
            "a length of five bytes",
            b"\x10\x80\x80\x80\x80\x01",
            vec![],
        ),
    ];
    for (what, bytes, expected) in cases {
        assert_eq!(answer_to(&broker, bytes), *expected, "{what}");
    }
    is_well(&broker);
}

/// [MQTT-4.13.1-1] [MQTT-4.13.2-1] [MQTT-3.14.1-1] [MQTT-3.14.4-1] [MQTT-3.14.4-2] [MQTT-2.1.3-1]
/// [MQTT-3.1.0-2] and what each case names: the reason, and then the end of the connection.
#[test]
fn a_client_that_breaks_the_protocol_is_told_and_closed() {
    let broker = Broker::start("");
    let cases: &[(&str, &[u8], u8)] = &[
        ("packet type 0", b"\0\0", 0x81),
        ("a second CONNECT", CONNECT, 0x82),
        ("flags of PUBREL [MQTT-3.6.1-1]", b"\x60\x02\0\x01", 0x81),
        (
            "flags of SUBSCRIBE [MQTT-3.8.1-1]",
            b"\x80\x07\0\x01\0\0\x01a\0",
            0x81,
        ),
        (
            "flags of UNSUBSCRIBE [MQTT-3.10.1-1]",
            b"\xa0\x06\0\x01\0\0\x01a",
            0x81,
        ),
        ("flags of DISCONNECT [MQTT-3.14.1-1]", b"\xe1\0", 0x81),
        ("flags of AUTH [MQTT-3.15.1-1]", b"\xf1\0", 0x81),
        ("QoS 3 [MQTT-3.3.1-4]", b"\x36\x07\0\x01a\0\x01\0x", 0x81),
        ("DUP with QoS 0 [MQTT-3.3.1-2]", b"\x38\x05\0\x01a\0x", 0x81),
        ("no string [MQTT-1.5.4-1]", b"\x30\x05\0\x01\xff\0x", 0x81),
        ("U+0000 [MQTT-1.5.4-2]", b"\x30\x05\0\x01\0\0x", 0x81),
        ("a length too long [MQTT-1.5.5-1]", b"\xc0\x80\0", 0x81),
        (
            "SUBSCRIBE to nothing [MQTT-3.8.3-2]",
            b"\x82\x03\0\x01\0",
            0x82,
        ),
        (
            "UNSUBSCRIBE from nothing [MQTT-3.10.3-2]",
            b"\xa2\x03\0\x01\0",
            0x82,
        ),
        (
            "reserved options [MQTT-3.8.3-5]",
            b"\x82\x07\0\x01\0\0\x01a\x40",
            0x81,
        ),
        (
            "No Local, shared [MQTT-3.8.3-4]",
            b"\x82\x10\0\x01\0\0\x0a$share/g/a\x04",
            0x82,
        ),
        ("a wildcard [MQTT-3.3.2-2]", b"\x30\x05\0\x01#\0x", 0x90),
        (
            "Subscription Identifier [MQTT-3.3.4-6]",
            b"\x30\x07\0\x01a\x02\x0b\x01x",
            0x82,
        ),
        (
            "a wildcard in Response Topic [MQTT-3.3.2-14]",
            b"\x30\x09\0\x01a\x04\x08\0\x01+x",
            0x82,
        ),
        (
            "Topic Alias 0 [MQTT-3.3.2-8]",
            b"\x30\x08\0\x01a\x03\x23\0\0x",
            0x94,
        ),
        (
            "AUTH without a method [MQTT-4.12.0-7]",
            b"\xf0\x06\x18\x04\x15\0\x01m",
            0x82,
        ),
        ("what only servers send", b"\x20\x03\0\0\0", 0x82),
    ];
    for (what, bytes, reason) in cases {
        let mut client = TcpClient::connect(broker.tcp(), "c");
        client.send_bytes(bytes);
        // Nothing behind it is looked at.
        client.send_bytes(b"\xc0\0");
        assert_eq!(client.disconnected(), ReasonCode(*reason), "{what}");
    }
    is_well(&broker);
}

/// [MQTT-3.2.0-1] [MQTT-3.2.0-2] [MQTT-3.2.2-1] [MQTT-3.1.4-5] [MQTT-3.12.4-1] [MQTT-3.8.4-1]: all in
/// one segment, and each answered in turn.
#[test]
fn packets_in_one_segment_are_answered_in_turn() {
    let broker = Broker::start("");
    let mut client = TcpClient::open(broker.tcp(), Version::V5);
    let subscribe = b"\x82\x07\0\x05\0\0\x01a\x01";
    let publish = b"\x32\x07\0\x01a\0\x07\0x";
    client.send_bytes(&[CONNECT, subscribe, publish, b"\xc0\0"].concat());
    let head = client.receive_bytes(2);
    assert_eq!((head[0], head[1] & 0x80), (0x20, 0));
    let connack = client.receive_bytes(usize::from(head[1]));
    assert_eq!(connack[..2], [0, 0], "no session, and Success");
    let suback = client.receive_bytes(6);
    assert_eq!(suback, b"\x90\x04\0\x05\0\x01");
    // The message, its PUBACK and PINGRESP, of which PUBACK waits for nothing here.
    let mut rest = Vec::new();
    for _ in 0..3 {
        rest.push(client.receive().expect("three more packets"));
    }
    assert!(
        rest.iter()
            .any(|p| matches!(p, Packet::PubAck(a) if a.packet_id.get() == 7))
    );
    assert!(
        rest.iter()
            .any(|p| matches!(p, Packet::Publish(m) if &*m.payload == b"x"))
    );
    assert!(rest.contains(&Packet::PingResp));
}

/// [MQTT-4.2-1]: packets are what counts, not how the stream is cut.
#[test]
fn a_stream_may_be_cut_anywhere() {
    let broker = Broker::start("");
    let mut subscriber = TcpClient::connect(broker.tcp(), "s");
    subscriber.subscribe(&["cut"], QoS::AtMostOnce);
    let mut client = TcpClient::open(broker.tcp(), Version::V5);
    for byte in CONNECT {
        client.send_bytes(&[*byte]);
    }
    assert!(matches!(client.receive(), Some(Packet::ConnAck(_))));
    let mut stream = Vec::new();
    for i in 0..100_u8 {
        stream.extend_from_slice(b"\x30\x07\0\x03cut\0");
        stream.push(i);
    }
    for piece in stream.chunks(13) {
        client.send_bytes(piece);
    }
    for i in 0..100_u8 {
        match subscriber.receive() {
            Some(Packet::Publish(message)) => assert_eq!(message.payload, [i][..]),
            other => panic!("message {i} expected, not {other:?}"),
        }
    }
}

/// [MQTT-3.1.4-3] [MQTT-3.14.4-2]: the older connection is told 0x8E and closed.
#[test]
fn a_second_connection_takes_the_session_over() {
    let broker = Broker::start("");
    let mut old = TcpClient::connect(broker.tcp(), "same");
    let mut new = TcpClient::connect(broker.tcp(), "same");
    assert_eq!(old.disconnected(), ReasonCode::SESSION_TAKEN_OVER);
    new.send(&Packet::PingReq);
    assert_eq!(new.receive(), Some(Packet::PingResp));
}

/// [MQTT-4.3.2-5] [MQTT-4.3.3-10]: on the wire, with DUP and without.
#[test]
fn repeated_messages_count_as_their_qos_says() {
    let broker = Broker::start("");
    let mut subscriber = TcpClient::connect(broker.tcp(), "s");
    subscriber.subscribe(&["t"], QoS::AtMostOnce);
    let (mut client, _) = TcpClient::try_connect(broker.tcp(), connect("p"));
    for (qos, dup, payload) in [
        (QoS::ExactlyOnce, false, "two"),
        (QoS::ExactlyOnce, true, "two"),
        (QoS::AtLeastOnce, false, "one"),
        (QoS::AtLeastOnce, true, "one"),
    ] {
        let mut message = publish("t", qos, payload);
        message.dup = dup;
        message.packet_id = PacketId::new(3 + u16::from(qos == QoS::AtLeastOnce));
        client.send(&Packet::Publish(message));
        assert!(matches!(
            client.receive(),
            Some(Packet::PubRec(_) | Packet::PubAck(_))
        ));
    }
    client.send(&Packet::Publish(publish("t", QoS::AtMostOnce, "end")));
    let mut got = Vec::new();
    while got.last().is_none_or(|last| last != "end") {
        let Some(Packet::Publish(message)) = subscriber.receive() else {
            panic!("a PUBLISH");
        };
        got.push(String::from_utf8_lossy(&message.payload).into_owned());
    }
    assert_eq!(got, ["two", "one", "one", "end"]);
}
