//! The MQTT of one client: bytes in, bytes out. What carries them is the engine's.

use super::incoming::Incoming;
use bytes::{Buf, Bytes, BytesMut};
use headgate_codec::{
    Connect, Packet, PacketId, Publish, QoS, ReasonCode, Subscribe, SubscriptionOptions, Text,
    Version, decode, encode, frame_len,
};
use std::collections::{HashSet, VecDeque};

/// QoS 1 and 2 messages on their way from one client, at most, whatever the server allows: half of the Packet Identifiers.
const IN_FLIGHT_MAX: u16 = 32_767;
/// A buffer that a client keeps though nothing is in it, bytes.
const KEPT_BYTES_MAX: usize = 256 * 1024;

/// What clients tell whoever runs them.
pub trait Listener {
    /// Bytes have come from the server; what is told next was in them.
    fn arrived(&mut self) {}
    /// A client is connected and has its subscriptions.
    fn ready(&mut self, _client: u32) {}
    /// A message has come. With QoS 2 it is told once, however often it comes.
    fn message(&mut self, _client: u32, _message: &Incoming<'_>) {}
    /// The server has completed a QoS 1 or 2 message of the client; `false`: it has refused it.
    fn completed(&mut self, _client: u32, _accepted: bool) {}
    /// The server asks for another Keep Alive than CONNECT has, seconds; 0 = none \[MQTT-3.1.2-21\].
    fn keep_alive(&mut self, _seconds: u16) {}
    /// A PINGRESP.
    fn pong(&mut self, _client: u32) {}
    /// The client is refused, or has lost its connection; why.
    fn lost(&mut self, _client: u32, _why: &str) {}
}

/// How far a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// CONNACK has not come.
    Connecting,
    /// SUBACK has not come.
    Subscribing,
    Ready,
}

/// One client.
#[derive(Debug)]
pub struct Session {
    version: Version,
    stage: Stage,
    /// For after CONNACK; empty if nothing is.
    subscribe: Bytes,
    has_filters: bool,
    output: BytesMut,
    /// The beginning of a packet whose end hasn't come.
    partial: Vec<u8>,
    /// QoS 1 and 2 messages of the server's at a time; CONNACK may say less.
    receive_maximum: u16,
    last_id: u16,
    /// Packet Identifiers of messages that aren't completed, in the order in which they were sent.
    in_flight: VecDeque<u16>,
    /// QoS 2 messages of the server that it hasn't released.
    unreleased: HashSet<PacketId>,
}

impl Session {
    /// A client that has to connect. It subscribes when it is connected, or `eagerly`, right behind its CONNECT.
    pub fn new(connect: Connect, filters: &[(String, QoS)], eagerly: bool) -> Self {
        let version = connect.version;
        let mut output = BytesMut::new();
        encode(&Packet::Connect(Box::new(connect)), version, &mut output);
        let mut subscribe = BytesMut::new();
        if !filters.is_empty() {
            encode(&subscription(filters), version, &mut subscribe);
        }
        if eagerly {
            output.extend_from_slice(&subscribe);
            subscribe.clear();
        }
        Self {
            version,
            stage: Stage::Connecting,
            subscribe: subscribe.freeze(),
            has_filters: !filters.is_empty(),
            output,
            partial: Vec::new(),
            receive_maximum: IN_FLIGHT_MAX,
            last_id: 0,
            in_flight: VecDeque::new(),
            unreleased: HashSet::new(),
        }
    }

    /// The protocol version that it speaks.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Whether it is connected and has its subscriptions.
    pub fn is_ready(&self) -> bool {
        self.stage == Stage::Ready
    }

    /// What it has for the server.
    pub(super) fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// How much it has for the server that wasn't taken yet, bytes.
    pub fn unsent(&self) -> usize {
        self.output.len()
    }

    /// Adds a packet to what it has for the server.
    pub fn push(&mut self, packet: &[u8]) {
        self.output.extend_from_slice(packet);
    }

    /// Whether another QoS 1 or 2 message may go out: the server's Receive Maximum allows it \[MQTT-3.3.4-7\].
    pub fn has_room(&self) -> bool {
        let next = next_id(self.last_id);
        self.in_flight.len() < usize::from(self.receive_maximum)
            && self.in_flight.front() != Some(&next)
    }

    /// QoS 1 and 2 messages that aren't completed.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Publishes; the beginning of the payload is replaced by `header`, which mustn't be longer.
    pub fn publish(&mut self, topic: &Text, qos: QoS, payload: Bytes, header: &[u8]) {
        let packet_id = (qos != QoS::AtMostOnce).then(|| {
            self.last_id = next_id(self.last_id);
            self.in_flight.push_back(self.last_id);
            PacketId::new(self.last_id).unwrap_or(PacketId::MIN)
        });
        let len = payload.len();
        let packet = Packet::Publish(Publish {
            dup: false,
            qos,
            retain: false,
            topic: topic.clone(),
            packet_id,
            properties: None,
            payload,
        });
        encode(&packet, self.version, &mut self.output);
        let from = self.output.len() - len;
        self.output[from..from + header.len()].copy_from_slice(header);
    }

    /// Lets go of the buffers, if nothing is in them.
    pub(super) fn rest(&mut self, is_idle: bool) {
        let kept = if is_idle { 0 } else { KEPT_BYTES_MAX };
        if self.output.is_empty() && self.output.capacity() > kept {
            self.output = BytesMut::new();
        }
        if self.partial.is_empty() && self.partial.capacity() > kept {
            self.partial = Vec::new();
        }
    }

    /// Takes bytes of the server.
    ///
    /// # Errors
    /// Why the connection is over: the server refuses or ends it, or doesn't speak MQTT.
    pub(super) fn take(
        &mut self,
        bytes: &[u8],
        client: u32,
        listener: &mut impl Listener,
    ) -> Result<(), String> {
        if self.partial.is_empty() {
            let rest = self.take_all(bytes, client, listener)?;
            self.partial.extend_from_slice(rest);
            return Ok(());
        }
        let mut partial = std::mem::take(&mut self.partial);
        partial.extend_from_slice(bytes);
        let rest = self.take_all(&partial, client, listener)?.len();
        partial.drain(..partial.len() - rest);
        self.partial = partial;
        Ok(())
    }

    /// What is left is less than a packet.
    fn take_all<'a>(
        &mut self,
        mut bytes: &'a [u8],
        client: u32,
        listener: &mut impl Listener,
    ) -> Result<&'a [u8], String> {
        while let Some(length) = frame_len(bytes, u32::MAX).map_err(|error| error.to_string())?
            && let Some((packet, rest)) = bytes.split_at_checked(length)
        {
            self.packet(packet, client, listener)?;
            bytes = rest;
        }
        Ok(bytes)
    }

    fn packet(
        &mut self,
        packet: &[u8],
        client: u32,
        listener: &mut impl Listener,
    ) -> Result<(), String> {
        // The Packet Identifier of an acknowledgement, and whether its Reason Code is no error.
        let id = || match packet {
            [_, _, high, low, ..] => Ok(u16::from_be_bytes([*high, *low])),
            _ => Err("an acknowledgement without Packet Identifier"),
        };
        let is_success = packet.get(4).is_none_or(|reason| *reason < 0x80);
        match packet[0] >> 4 {
            3 => self.message(packet, client, listener)?,
            // PUBACK, PUBCOMP, and a PUBREC that refuses (MQTT 5.0 §4.3.3).
            4 | 7 => self.complete(id()?, is_success, client, listener),
            5 if !is_success => self.complete(id()?, false, client, listener),
            5 => self.acknowledge(0x62, id()?),
            // PUBREL
            6 => {
                let id = id()?;
                PacketId::new(id).map(|id| self.unreleased.remove(&id));
                self.acknowledge(0x70, id);
            }
            13 => listener.pong(client),
            _ => self.seldom(packet, client, listener)?,
        }
        Ok(())
    }

    /// CONNACK, SUBACK, DISCONNECT.
    fn seldom(
        &mut self,
        packet: &[u8],
        client: u32,
        listener: &mut impl Listener,
    ) -> Result<(), String> {
        let mut bytes = Bytes::copy_from_slice(packet);
        let packet = decode(&mut bytes, Some(self.version), u32::MAX);
        match packet.map_err(|error| error.to_string())? {
            Some(Packet::ConnAck(connack)) => {
                if connack.reason != ReasonCode::SUCCESS {
                    return Err(format!("CONNACK: {}", named(connack.reason)));
                }
                let theirs = connack.properties.receive_maximum.unwrap_or(u16::MAX);
                self.receive_maximum = theirs.min(IN_FLIGHT_MAX);
                if let Some(seconds) = connack.properties.server_keep_alive_s {
                    listener.keep_alive(seconds);
                }
                let subscribe = std::mem::take(&mut self.subscribe);
                self.output.extend_from_slice(&subscribe);
                self.stage = Stage::Subscribing;
                if !self.has_filters {
                    self.stage = Stage::Ready;
                    listener.ready(client);
                }
            }
            Some(Packet::SubAck(suback)) => {
                if let Some(reason) = suback.reasons.iter().find(|reason| reason.0 >= 0x80) {
                    return Err(format!("SUBACK: {}", named(*reason)));
                }
                if self.stage == Stage::Subscribing {
                    self.stage = Stage::Ready;
                    listener.ready(client);
                }
            }
            Some(Packet::Disconnect(disconnect)) => {
                return Err(format!("DISCONNECT: {}", named(disconnect.reason)));
            }
            _ => return Err("the server sends what a server doesn't send".to_owned()),
        }
        Ok(())
    }

    fn message(
        &mut self,
        packet: &[u8],
        client: u32,
        listener: &mut impl Listener,
    ) -> Result<(), String> {
        let message = Incoming::of(packet, self.version);
        let message = message.ok_or("a PUBLISH that is none")?;
        match (message.qos(), message.packet_id()) {
            (1, Some(id)) => self.acknowledge(0x40, id.get()),
            (2, Some(id)) => {
                self.acknowledge(0x50, id.get());
                if !self.unreleased.insert(id) {
                    return Ok(());
                }
            }
            _ => {}
        }
        listener.message(client, &message);
        Ok(())
    }

    /// An acknowledgement without a Reason Code: success (MQTT 5.0 §3.4.2.1).
    fn acknowledge(&mut self, first: u8, id: u16) {
        let [high, low] = id.to_be_bytes();
        self.output.extend_from_slice(&[first, 2, high, low]);
    }

    fn complete(&mut self, id: u16, accepted: bool, client: u32, listener: &mut impl Listener) {
        // The oldest, as a rule [MQTT-4.6.0-2].
        let place = self.in_flight.iter().position(|own| *own == id);
        if let Some(place) = place {
            self.in_flight.remove(place);
            listener.completed(client, accepted);
        }
    }

    /// Lets the transport take of the output; `Some(n)`: it has taken n bytes.
    pub(super) fn written(&mut self, bytes: usize) {
        self.output.advance(bytes);
    }
}

fn next_id(last: u16) -> u16 {
    last.wrapping_add(1).max(1)
}

fn subscription(filters: &[(String, QoS)]) -> Packet {
    let filter = |(filter, qos): &(String, QoS)| {
        let options = SubscriptionOptions {
            qos: *qos,
            ..SubscriptionOptions::default()
        };
        (Text::from(filter.as_str()), options)
    };
    Packet::Subscribe(Box::new(Subscribe {
        packet_id: PacketId::MIN,
        subscription_id: None,
        user_properties: Vec::new(),
        filters: filters.iter().map(filter).collect(),
    }))
}

/// A reason code for a reader.
fn named(reason: ReasonCode) -> String {
    let name = reason.name().unwrap_or("UNKNOWN_REASON").to_lowercase();
    format!("{} ({:#04x})", name.replace('_', " "), reason.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use headgate_codec::{Ack, ConnAck, SubAck};

    #[derive(Default)]
    struct Heard(Vec<String>);

    impl Listener for Heard {
        fn ready(&mut self, client: u32) {
            self.0.push(format!("ready {client}"));
        }
        fn message(&mut self, _: u32, message: &Incoming<'_>) {
            let payload = String::from_utf8_lossy(message.payload);
            self.0.push(format!("qos {} {payload}", message.qos()));
        }
        fn completed(&mut self, _: u32, accepted: bool) {
            self.0.push(format!("completed {accepted}"));
        }
        fn pong(&mut self, _: u32) {
            self.0.push("pong".to_owned());
        }
    }

    fn session(filters: &[(String, QoS)], version: Version) -> Session {
        let connect = Connect {
            version,
            clean_start: true,
            keep_alive_s: 60,
            client_id: Text::from("c"),
            will: None,
            user_name: None,
            password: None,
            properties: Default::default(),
        };
        Session::new(connect, filters, false)
    }

    fn bytes(packet: Packet, version: Version) -> Vec<u8> {
        let mut bytes = BytesMut::new();
        encode(&packet, version, &mut bytes);
        bytes.to_vec()
    }

    fn connack(receive_maximum: Option<u16>, version: Version) -> Vec<u8> {
        let mut connack = ConnAck::default();
        connack.properties.receive_maximum = receive_maximum;
        bytes(Packet::ConnAck(Box::new(connack)), version)
    }

    fn message(qos: QoS, id: Option<u16>) -> Packet {
        Packet::Publish(Publish {
            dup: false,
            qos,
            retain: false,
            topic: Text::from("a/b"),
            packet_id: id.and_then(PacketId::new),
            properties: None,
            payload: Bytes::from_static(b"payload"),
        })
    }

    fn ack(packet_id: u16, reason: u8) -> Ack {
        Ack {
            packet_id: PacketId::new(packet_id).expect("not 0"),
            reason: ReasonCode(reason),
            properties: None,
        }
    }

    /// What the session has for the server, as packets.
    fn sent(session: &mut Session) -> Vec<Packet> {
        let version = session.version;
        let mut bytes = session.output.split().freeze();
        std::iter::from_fn(|| decode(&mut bytes, Some(version), u32::MAX).expect("MQTT")).collect()
    }

    #[test]
    fn subscribes_once_it_is_connected_and_is_ready_then() {
        for version in [Version::V311, Version::V5] {
            let mut session = session(&[("a/#".to_owned(), QoS::AtLeastOnce)], version);
            session.output.clear();
            let mut heard = Heard::default();
            let connack = connack(None, version);
            session.take(&connack, 7, &mut heard).expect("accepted");
            let wanted = bytes(
                subscription(&[("a/#".to_owned(), QoS::AtLeastOnce)]),
                version,
            );
            assert_eq!(session.output.split(), wanted);
            assert!(heard.0.is_empty());
            let suback = bytes(
                Packet::SubAck(Box::new(SubAck {
                    packet_id: PacketId::MIN,
                    properties: Default::default(),
                    reasons: vec![ReasonCode(1)],
                })),
                version,
            );
            session.take(&suback, 7, &mut heard).expect("accepted");
            assert_eq!(heard.0, ["ready 7"]);
            assert!(session.is_ready());
        }
    }

    #[test]
    fn a_refusal_ends_it_and_says_why() {
        let mut session = session(&[], Version::V5);
        let connack = bytes(
            Packet::ConnAck(Box::new(ConnAck {
                reason: ReasonCode(0x89),
                ..ConnAck::default()
            })),
            Version::V5,
        );
        let refused = session.take(&connack, 0, &mut Heard::default());
        assert_eq!(refused, Err("CONNACK: server busy (0x89)".to_owned()));
    }

    #[test]
    fn messages_are_acknowledged_by_their_qos_and_told_once_however_they_are_cut() {
        let mut stream = bytes(message(QoS::AtMostOnce, None), Version::V5);
        for (qos, id) in [
            (QoS::AtLeastOnce, 5),
            (QoS::ExactlyOnce, 6),
            (QoS::ExactlyOnce, 6),
        ] {
            stream.extend(bytes(message(qos, Some(id)), Version::V5));
        }
        stream.extend(bytes(Packet::PubRel(ack(6, 0)), Version::V5));
        stream.extend(bytes(Packet::PingResp, Version::V5));
        for size in [1, 2, 7, 20, stream.len()] {
            let mut session = session(&[], Version::V5);
            session.output.clear();
            let mut heard = Heard::default();
            for chunk in stream.chunks(size) {
                session.take(chunk, 0, &mut heard).expect("MQTT");
            }
            let wanted = ["qos 0 payload", "qos 1 payload", "qos 2 payload", "pong"];
            assert_eq!(heard.0, wanted, "cut at {size}");
            // PUBACK, PUBREC twice, PUBCOMP.
            let wanted = [0x40, 2, 0, 5, 0x50, 2, 0, 6, 0x50, 2, 0, 6, 0x70, 2, 0, 6];
            assert_eq!(session.output[..], wanted);
            assert!(session.partial.is_empty() && session.unreleased.is_empty());
        }
    }

    #[test]
    fn the_receive_maximum_is_kept_and_qos_2_is_completed_by_pubcomp() {
        let mut session = session(&[], Version::V5);
        let mut heard = Heard::default();
        let connack = connack(Some(2), Version::V5);
        session.take(&connack, 0, &mut heard).expect("accepted");
        session.output.clear();
        let payload = Bytes::from_static(b"................!");
        for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
            assert!(session.has_room());
            session.publish(&Text::from("t"), qos, payload.clone(), b"header");
        }
        assert!(!session.has_room());
        let [Packet::Publish(one), Packet::Publish(two)] = &sent(&mut session)[..] else {
            panic!("two messages");
        };
        assert_eq!(&one.payload[..], b"header..........!");
        let ids = [one.packet_id, two.packet_id].map(|id| id.expect("QoS > 0").get());
        assert_eq!(ids, [1, 2]);
        let answers = [
            Packet::PubRec(ack(2, 0)),
            Packet::PubAck(ack(1, 0x10)),
            Packet::PubComp(ack(2, 0)),
        ];
        for answer in answers {
            let answer = bytes(answer, Version::V5);
            session.take(&answer, 0, &mut heard).expect("MQTT");
        }
        assert_eq!(heard.0, ["ready 0", "completed true", "completed true"]);
        assert_eq!(sent(&mut session), [Packet::PubRel(ack(2, 0))]);
        assert_eq!(session.in_flight(), 0);
    }

    #[test]
    fn packet_identifiers_skip_zero_and_none_is_used_twice() {
        assert_eq!(next_id(u16::MAX), 1);
        let mut session = session(&[], Version::V5);
        session.last_id = 4;
        session.in_flight.push_back(5);
        assert!(!session.has_room(), "5 is still in use");
    }
}
