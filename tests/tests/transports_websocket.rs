//! MQTT over WebSocket: clients that this project did not write, and ones that break the rules.

use bytes::BytesMut;
use headgate_codec::{Packet, QoS, ReasonCode, Version, encode};
use headgate_tests::{
    broker::Broker,
    clients::{Client, Message},
    skip,
    streams::{self, WsStream},
    tcp_client::{TcpClient, connect, publish},
};
use std::{
    io::{Read, Write},
    net::TcpStream,
};
use tungstenite::Message as Frame;

#[test]
fn foreign_clients_hear_each_other_over_websocket() {
    for client in [Client::PahoWs, Client::PahoWss] {
        if let Err(reason) = client.available() {
            skip!("{reason}");
        }
    }
    let broker = Broker::start("");
    let clear = Client::PahoWs.subscribe(&broker, "ws/+", QoS::ExactlyOnce, 2);
    let secret = Client::PahoWss.subscribe(&broker, "ws/+", QoS::AtLeastOnce, 2);
    for (client, topic, payload) in [
        (Client::PahoWs, "ws/1", "in the clear"),
        (Client::PahoWss, "ws/2", "over TLS"),
    ] {
        client.publish(
            &broker,
            Message {
                topic,
                payload,
                qos: QoS::ExactlyOnce,
                retain: false,
            },
        );
    }
    for subscriber in [clear, secret] {
        assert_eq!(subscriber.messages(), ["in the clear", "over TLS"]);
    }
}

type Ws = TcpClient<WsStream<TcpStream>>;

/// A session of MQTT 5.0 over WebSocket.
fn session(broker: &Broker, id: &str) -> Ws {
    let socket = streams::web_socket(streams::tcp(broker.ws()));
    let mut client = TcpClient::over(socket, Version::V5);
    assert_eq!(client.shake_hands(connect(id)), ReasonCode::SUCCESS);
    client
}

fn encoded(packet: &Packet) -> BytesMut {
    let mut bytes = BytesMut::new();
    encode(packet, Version::V5, &mut bytes);
    bytes
}

fn payload(packet: Option<Packet>) -> Vec<u8> {
    match packet {
        Some(Packet::Publish(publish)) => publish.payload.to_vec(),
        other => panic!("expected PUBLISH, got {other:?}"),
    }
}

/// [MQTT-6.0.0-2], in both directions of the boundary: a byte per frame, and all in one.
#[test]
fn packets_are_found_wherever_frames_end() {
    let broker = Broker::start("");
    let mut hearer = session(&broker, "hearer");
    hearer.subscribe(&["ws/#"], QoS::AtMostOnce);
    let packets = |id: &str| {
        [
            encoded(&Packet::Connect(Box::new(connect(id)))),
            encoded(&Packet::Publish(publish("ws/1", QoS::AtMostOnce, "one"))),
            encoded(&Packet::Publish(publish("ws/2", QoS::AtMostOnce, "two"))),
        ]
        .concat()
    };
    let mut split = TcpClient::over(streams::web_socket(streams::tcp(broker.ws())), Version::V5);
    for byte in packets("split") {
        split.stream().write_all(&[byte]).expect("it is taken");
    }
    assert!(matches!(split.receive(), Some(Packet::ConnAck(_))));
    let mut joined = TcpClient::over(streams::web_socket(streams::tcp(broker.ws())), Version::V5);
    joined
        .stream()
        .write_all(&packets("joined"))
        .expect("it is taken");
    assert!(matches!(joined.receive(), Some(Packet::ConnAck(_))));
    for expected in ["one", "two", "one", "two"] {
        assert_eq!(payload(hearer.receive()), expected.as_bytes());
    }
}

/// A message that needs many reads and writes, and pings between.
#[test]
fn large_messages_and_pings_pass() {
    let broker = Broker::start("");
    let config = streams::tls_config(&broker.ca_certificate(), None);
    let tls = streams::tls(streams::tcp(broker.wss()), &config);
    let mut secret = TcpClient::over(streams::web_socket(tls), Version::V5);
    assert_eq!(secret.shake_hands(connect("secret")), ReasonCode::SUCCESS);
    let mut clear = session(&broker, "clear");
    let large = vec![7; 200_000];
    for round in 0..20 {
        secret.subscribe(&["large"], QoS::AtMostOnce);
        let socket = clear.stream().socket();
        socket
            .send(Frame::Ping(vec![round; 125].into()))
            .expect("it is taken");
        clear.send(&Packet::Publish(publish(
            "large",
            QoS::AtMostOnce,
            large.clone(),
        )));
        assert_eq!(payload(secret.receive()), large);
        assert_eq!(
            clear.stream().socket().read().expect("the answer"),
            Frame::Pong(vec![round; 125].into())
        );
    }
    drop(clear);
}

/// [MQTT-6.0.0-1]: nothing but binary frames; the status says why the connection ends.
#[test]
fn a_text_frame_ends_the_connection() {
    let broker = Broker::start("");
    let mut client = session(&broker, "text");
    let socket = client.stream().socket();
    socket.send(Frame::text("hello")).expect("it is sent");
    assert_eq!(client.stream().close_status(), 1003);
    let mut early = streams::web_socket(streams::tcp(broker.ws()));
    early
        .socket()
        .send(Frame::text("hello"))
        .expect("it is sent");
    assert_eq!(early.close_status(), 1003, "before CONNECT as well");
}

#[test]
fn a_frame_that_is_too_long_ends_the_connection() {
    let broker = Broker::start("[limits]\npacket_bytes_max = 10000");
    let mut client = session(&broker, "long");
    let long = Packet::Publish(publish("a", QoS::AtMostOnce, vec![0; 20_000]));
    client.send(&long);
    match client.receive() {
        Some(Packet::Disconnect(p)) => assert_eq!(p.reason, ReasonCode::PACKET_TOO_LARGE),
        other => panic!("expected DISCONNECT, got {other:?}"),
    }
    assert_eq!(client.stream().close_status(), 1009);
}

/// [MQTT-6.0.0-3] and [MQTT-6.0.0-4], and everything else that is no WebSocket.
#[test]
fn other_requests_get_an_answer_and_an_end() {
    let broker = Broker::start("");
    let good = "GET /mqtt HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
                Sec-WebSocket-Protocol: mqtt\r\n\r\n";
    for (request, status) in [
        (
            good.replace("Protocol: mqtt", "Protocol: chat"),
            "HTTP/1.1 400 ",
        ),
        (
            good.replace("Sec-WebSocket-Protocol: mqtt\r\n", ""),
            "HTTP/1.1 400 ",
        ),
        (
            "GET / HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(),
            "HTTP/1.1 426 ",
        ),
        ("\x10\x0c\r\n\r\n".to_owned(), "HTTP/1.1 400 "),
    ] {
        let mut stream = streams::tcp(broker.ws());
        stream.write_all(request.as_bytes()).expect("it is sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it is closed");
        assert!(answer.starts_with(status), "{request}: {answer}");
    }
    session(&broker, "next");
}

/// A client that closes as RFC 6455 §7 has it gets its answer; its Will is published, because DISCONNECT has not come.
#[test]
fn a_close_is_answered_and_ends_the_session_s_connection() {
    let broker = Broker::start("");
    let mut witness = session(&broker, "witness");
    witness.subscribe(&["wills"], QoS::AtMostOnce);
    let mut dying = connect("dying");
    dying.will = Some(headgate_codec::Will {
        qos: QoS::AtMostOnce,
        retain: false,
        topic: "wills".into(),
        payload: "gone".into(),
        delay_s: None,
        properties: None,
    });
    let socket = streams::web_socket(streams::tcp(broker.ws()));
    let mut client = TcpClient::over(socket, Version::V5);
    client.shake_hands(dying);
    let socket = client.stream().socket();
    socket.close(None).expect("it is sent");
    assert_eq!(client.receive(), None);
    assert_eq!(payload(witness.receive()), b"gone");
}
