//! What the standard asks of clients: `headgate sub` against a server that the test plays.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytes::BytesMut;
use headgate_codec::{Packet, Version, decode};
use headgate_tests::broker::binary;

/// Much longer than what must happen takes, and shorter than the Keep Alive that the client asks for.
const PATIENCE: Duration = Duration::from_secs(30);

/// The server's side of one connection.
struct Served {
    stream: TcpStream,
    input: BytesMut,
    version: Option<Version>,
    client: Child,
}

impl Served {
    /// Starts `headgate sub` and takes its connection.
    fn start(arguments: &[&str]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("bound").port().to_string();
        let client = Command::new(binary())
            .args(["sub", "-h", "127.0.0.1", "-p", &port, "-t", "t"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("headgate starts");
        let (stream, _) = listener.accept().expect("it connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        Self {
            stream,
            input: BytesMut::new(),
            version: None,
            client,
        }
    }

    fn receive(&mut self) -> Packet {
        loop {
            let mut bytes = self.input.split().freeze();
            let packet = decode(&mut bytes, self.version, u32::MAX).expect("it is MQTT");
            self.input = BytesMut::from(bytes);
            if let Some(packet) = packet {
                if let Packet::Connect(connect) = &packet {
                    self.version = Some(connect.version);
                }
                return packet;
            }
            let mut buffer = [0; 4096];
            let len = self.stream.read(&mut buffer).expect("something comes");
            assert_ne!(len, 0, "the client has closed the connection");
            self.input.extend_from_slice(&buffer[..len]);
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the client reads");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

/// [MQTT-3.1.2-21]: it asks for 600 seconds and is told one.
#[test]
fn the_client_keeps_to_server_keep_alive() {
    let mut server = Served::start(&["-V", "5", "-k", "600"]);
    let Packet::Connect(connect) = server.receive() else {
        panic!("CONNECT comes first");
    };
    assert_eq!(connect.keep_alive_s, 600);
    // Server Keep Alive (0x13) 1.
    server.send(b"\x20\x06\0\0\x03\x13\0\x01");
    assert!(matches!(server.receive(), Packet::Subscribe(_)));
    server.send(b"\x90\x04\0\x01\0\0");
    for _ in 0..2 {
        assert_eq!(server.receive(), Packet::PingReq);
        server.send(b"\xd0\0");
    }
}

/// [MQTT-3.3.2-10]: it announces no Topic Aliases, so none has to be accepted.
#[test]
fn the_client_announces_no_topic_aliases() {
    let mut server = Served::start(&["-V", "5"]);
    let Packet::Connect(connect) = server.receive() else {
        panic!("CONNECT comes first");
    };
    assert_eq!(connect.properties.topic_alias_maximum.unwrap_or(0), 0);
}

/// [MQTT-4.3.3-4] [MQTT-4.3.3-8] [MQTT-4.3.3-10] [MQTT-4.3.3-11] [MQTT-4.3.2-4]: the receiving client's half.
#[test]
fn the_client_acknowledges_by_qos() {
    let mut server = Served::start(&["-V", "5", "-q", "2"]);
    assert!(matches!(server.receive(), Packet::Connect(_)));
    server.send(b"\x20\x03\0\0\0");
    assert!(matches!(server.receive(), Packet::Subscribe(_)));
    server.send(b"\x90\x04\0\x01\0\x02");
    server.send(b"\x32\x07\0\x01t\0\x05\0x");
    assert!(matches!(server.receive(), Packet::PubAck(ack) if ack.packet_id.get() == 5));
    for first in [0x34, 0x3c] {
        server.send(&[&[first][..], b"\x07\0\x01t\0\x06\0x"].concat());
        assert!(matches!(server.receive(), Packet::PubRec(ack) if ack.packet_id.get() == 6));
    }
    server.send(b"\x62\x02\0\x06");
    assert!(matches!(server.receive(), Packet::PubComp(ack) if ack.packet_id.get() == 6));
}
