//! A blocking MQTT client over TCP, or over what [`crate::streams`] lays on it, that does exactly what a test says, also what is not allowed.

use bytes::{Bytes, BytesMut};
use headgate_codec::{
    Connect, ConnectProperties, Packet, PacketId, Publish, QoS, ReasonCode, Subscribe,
    SubscriptionOptions, Text, Version, decode, encode,
};
use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
};

use crate::streams;

/// A connection to a broker.
#[derive(Debug)]
pub struct TcpClient<S = TcpStream> {
    stream: S,
    input: BytesMut,
    version: Version,
}

impl TcpClient {
    /// Connects, without a word of MQTT.
    ///
    /// # Panics
    /// When nobody listens.
    pub fn open(server: SocketAddr, version: Version) -> Self {
        Self::over(streams::tcp(server), version)
    }

    /// Connects and sends `connect`; returns the client and the reason of CONNACK.
    ///
    /// # Panics
    /// When something else than CONNACK comes.
    pub fn try_connect(server: SocketAddr, connect: Connect) -> (Self, ReasonCode) {
        let mut client = Self::open(server, connect.version);
        let reason = client.shake_hands(connect);
        (client, reason)
    }

    /// A session of MQTT 5.0 with this client identifier.
    ///
    /// # Panics
    /// When it is refused.
    pub fn connect(server: SocketAddr, id: &str) -> Self {
        let (client, reason) = Self::try_connect(server, connect(id));
        assert_eq!(reason, ReasonCode::SUCCESS, "CONNACK for {id}");
        client
    }
}

impl<S: Read + Write> TcpClient<S> {
    /// Takes over a connection, without a word of MQTT.
    pub fn over(stream: S, version: Version) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            version,
        }
    }

    /// Sends CONNECT and returns the reason of CONNACK.
    ///
    /// # Panics
    /// When something else than CONNACK comes.
    pub fn shake_hands(&mut self, connect: Connect) -> ReasonCode {
        self.send(&Packet::Connect(Box::new(connect)));
        match self.receive() {
            Some(Packet::ConnAck(ack)) => ack.reason,
            other => panic!("expected CONNACK, got {other:?}"),
        }
    }

    /// What carries it.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Sends a packet. That the broker has closed the connection shows when something is received.
    pub fn send(&mut self, packet: &Packet) {
        let mut bytes = BytesMut::new();
        encode(packet, self.version, &mut bytes);
        let _ = self.stream.write_all(&bytes);
        let _ = self.stream.flush();
    }

    /// Sends bytes as they are.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// The next `len` bytes as they are, or fewer when the broker closes the connection before.
    ///
    /// # Panics
    /// When nothing comes.
    pub fn receive_bytes(&mut self, len: usize) -> Vec<u8> {
        while self.input.len() < len {
            let mut buffer = [0; 65536];
            match self.stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => self.input.extend_from_slice(&buffer[..read]),
                Err(error) if is_reset(&error) => break,
                Err(error) => panic!("the broker sends nothing: {error}"),
            }
        }
        self.input.split_to(len.min(self.input.len())).to_vec()
    }

    /// The next packet; `None` when the broker has closed the connection.
    ///
    /// # Panics
    /// When nothing comes, or no MQTT.
    pub fn receive(&mut self) -> Option<Packet> {
        loop {
            let mut bytes = self.input.split().freeze();
            let packet = decode(&mut bytes, Some(self.version), u32::MAX).expect("it is MQTT");
            self.input = BytesMut::from(bytes);
            if packet.is_some() {
                return packet;
            }
            let mut buffer = [0; 65536];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(length) => self.input.extend_from_slice(&buffer[..length]),
                Err(error) if is_reset(&error) => return None,
                Err(error) => panic!("the broker sends nothing: {error}"),
            }
        }
    }

    /// The reason of the DISCONNECT that comes next, and that the connection is closed behind it.
    ///
    /// # Panics
    /// When something else comes.
    pub fn disconnected(&mut self) -> ReasonCode {
        let reason = match self.receive() {
            Some(Packet::Disconnect(disconnect)) => disconnect.reason,
            other => panic!("expected DISCONNECT, got {other:?}"),
        };
        assert_eq!(self.receive(), None, "the connection ends with DISCONNECT");
        reason
    }

    /// Subscribes and returns the reasons of SUBACK.
    ///
    /// # Panics
    /// When something else than SUBACK comes.
    pub fn subscribe(&mut self, filters: &[&str], qos: QoS) -> Vec<ReasonCode> {
        let options = SubscriptionOptions {
            qos,
            ..SubscriptionOptions::default()
        };
        self.send(&Packet::Subscribe(Box::new(Subscribe {
            packet_id: PacketId::MIN,
            subscription_id: None,
            user_properties: Vec::new(),
            filters: filters
                .iter()
                .map(|filter| (Text::from(*filter), options))
                .collect(),
        })));
        match self.receive() {
            Some(Packet::SubAck(ack)) => ack.reasons.clone(),
            other => panic!("expected SUBACK, got {other:?}"),
        }
    }

    /// Publishes with QoS 1 and returns the reason of PUBACK.
    ///
    /// # Panics
    /// When something else than PUBACK comes.
    pub fn publish_acked(&mut self, publish: Publish) -> ReasonCode {
        self.send(&Packet::Publish(publish));
        match self.receive() {
            Some(Packet::PubAck(ack)) => ack.reason,
            other => panic!("expected PUBACK, got {other:?}"),
        }
    }
}

/// CONNECT of MQTT 5.0 with Clean Start and nothing else.
pub fn connect(id: &str) -> Connect {
    Connect {
        version: Version::V5,
        clean_start: true,
        keep_alive_s: 0,
        client_id: Text::from(id),
        will: None,
        user_name: None,
        password: None,
        properties: ConnectProperties::default(),
    }
}

/// A PUBLISH; with QoS 1 and 2 the Packet Identifier is 1.
pub fn publish(topic: &str, qos: QoS, payload: impl Into<Bytes>) -> Publish {
    Publish {
        dup: false,
        qos,
        retain: false,
        topic: Text::from(topic),
        packet_id: (qos != QoS::AtMostOnce).then_some(PacketId::MIN),
        properties: None,
        payload: payload.into(),
    }
}

/// The other side has closed with bytes of ours unread, or before we had sent all.
fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof
    )
}
