//! MQTT over WebSocket (MQTT 5.0 §6), frame by frame. RFC 6455 has the frames.

use headgate_codec::Version;
use headgate_tests::{broker::Broker, tcp_client::TcpClient};

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;

/// CONNECT of MQTT 5.0 with Clean Start, Keep Alive 30 and the Client Identifier "c".
const CONNECT: &[u8] = b"\x10\x0e\0\x04MQTT\x05\x02\0\x1e\0\0\x01c";

/// Offers subprotocols; the connection and the head of the answer.
fn upgrade(broker: &Broker, offered: &str) -> (TcpClient, String) {
    let mut client = TcpClient::open(broker.ws(), Version::V5);
    client.send_bytes(
        format!(
            "GET /mqtt HTTP/1.1\r\nHost: broker.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Protocol: {offered}\r\n\r\n"
        )
        .as_bytes(),
    );
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let next = client.receive_bytes(1);
        if next.is_empty() {
            break;
        }
        head.extend(next);
    }
    (client, String::from_utf8(head).expect("HTTP"))
}

/// A frame of a client: masked, as RFC 6455 §5.3 wants it.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    assert!(payload.len() < 126, "a short frame");
    let mut bytes = vec![first, 0x80 | payload.len() as u8];
    bytes.extend(MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(b, m)| b ^ m));
    bytes
}

/// A frame with FIN.
fn whole(opcode: u8, payload: &[u8]) -> Vec<u8> {
    frame(0x80 | opcode, payload)
}

/// The next frame of the server, which is whole and not masked; `None` at the end.
fn received(client: &mut TcpClient) -> Option<(u8, Vec<u8>)> {
    let head = client.receive_bytes(2);
    let [first, len] = head[..] else {
        return None;
    };
    assert_eq!((first & 0xf0, len & 0x80), (0x80, 0), "{head:02x?}");
    assert!(len < 126, "a short frame");
    Some((first & 0x0f, client.receive_bytes(usize::from(len))))
}

/// Bytes of MQTT, whatever frames they come in; all of them are binary ones [MQTT-6.0.0-1].
fn mqtt(client: &mut TcpClient, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let (opcode, payload) = received(client).expect("more frames");
        assert_eq!(opcode, BINARY);
        bytes.extend(payload);
    }
    assert_eq!(bytes.len(), len, "{bytes:02x?}");
    bytes
}

/// Takes the CONNACK, whose length its second octet says.
fn connack(client: &mut TcpClient) {
    let (opcode, payload) = received(client).expect("CONNACK");
    assert_eq!(opcode, BINARY);
    assert_eq!((payload[0], payload[3]), (0x20, 0));
    assert_eq!(payload.len(), 2 + usize::from(payload[1]), "it alone");
}

/// [MQTT-6.0.0-4]; RFC 6455 §4.2.2 has this key and its answer as the example.
#[test]
fn the_subprotocol_is_mqtt() {
    let broker = Broker::start("");
    for offered in ["mqtt", "chat, mqtt", "mqtt,mqttv3.1"] {
        let (mut client, head) = upgrade(&broker, offered);
        let head = head.to_lowercase();
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"));
        assert!(
            head.contains("\r\nsec-websocket-protocol: mqtt\r\n"),
            "{head}"
        );
        client.send_bytes(&whole(BINARY, CONNECT));
        connack(&mut client);
    }
    let (mut client, head) = upgrade(&broker, "chat");
    assert!(head.starts_with("HTTP/1.1 4"), "{head}");
    assert!(!head.to_lowercase().contains("sec-websocket-protocol: chat"));
    client.receive_bytes(usize::MAX);
}

/// [MQTT-6.0.0-2]: a packet in several frames and messages, several packets in a frame.
#[test]
fn frames_and_packets_need_not_begin_and_end_together() {
    let broker = Broker::start("");
    let (mut client, _) = upgrade(&broker, "mqtt");
    for piece in CONNECT.chunks(3) {
        client.send_bytes(&whole(BINARY, piece));
    }
    connack(&mut client);
    // Two and a half PINGREQ, an empty message, and the rest in fragments of one message.
    client.send_bytes(&whole(BINARY, b"\xc0\0\xc0\0\xc0"));
    client.send_bytes(&whole(BINARY, b""));
    client.send_bytes(&frame(BINARY, b"\0"));
    client.send_bytes(&frame(CONTINUATION, b"\xc0"));
    client.send_bytes(&whole(CONTINUATION, b"\0"));
    assert_eq!(mqtt(&mut client, 8), b"\xd0\0".repeat(4));
}

/// [MQTT-6.0.0-1]: what isn't binary closes the connection; RFC 6455 §7.4.1 has the status 1003.
#[test]
fn a_text_frame_closes_the_connection() {
    let broker = Broker::start("");
    for is_connected in [false, true] {
        let (mut client, _) = upgrade(&broker, "mqtt");
        if is_connected {
            client.send_bytes(&whole(BINARY, CONNECT));
            connack(&mut client);
        }
        client.send_bytes(&whole(TEXT, b"hello"));
        client.send_bytes(&whole(BINARY, b"\xc0\0"));
        let mut last = None;
        while let Some(frame) = received(&mut client) {
            assert_ne!(frame, (BINARY, b"\xd0\0".to_vec()), "it is not served");
            last = Some(frame);
        }
        let (opcode, payload) = last.expect("a Close frame");
        assert_eq!(
            (opcode, &payload[..2]),
            (CLOSE, &1003_u16.to_be_bytes()[..])
        );
    }
}
