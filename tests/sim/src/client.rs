//! A client's half of the protocol: what it remembers of its session, and how it answers.

use bytes::Bytes;
use headgate_codec::{
    Ack, ConnAck, Packet, PacketId, Publish, PublishProperties, QoS, ReasonCode, Text, Version,
};
use std::collections::{BTreeMap, BTreeSet};

use super::model::{Message, Met, Model, SessionNo};
use super::network::LinkId;
use super::operations::Content;

/// A message with QoS > 0 that the client has published and that isn't done.
#[derive(Debug)]
struct Open {
    n: usize,
    qos: QoS,
    /// PUBREC has come.
    is_released: bool,
}

/// A client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) link: Option<LinkId>,
    /// CONNACK has come on `link`, and the client has not broken the protocol since.
    pub(crate) is_up: bool,
    pub(crate) version: Version,
    /// The session that the client's memory belongs to.
    session: Option<SessionNo>,
    last_id: u16,
    open: BTreeMap<u16, Open>,
    /// Packet Identifiers in the order in which they were given out.
    order: Vec<u16>,
    /// SUBSCRIBE and UNSUBSCRIBE that aren't answered.
    asked: BTreeSet<u16>,
    /// Incoming QoS 2 messages until PUBREL.
    received: BTreeSet<u16>,
    pub(crate) holds_acks: bool,
    held: Vec<Packet>,
    aliases: BTreeMap<&'static str, u16>,
    alias_max: u16,
    receive_maximum: u16,
}

impl Client {
    pub(crate) fn new() -> Self {
        Self {
            link: None,
            is_up: false,
            version: Version::V5,
            session: None,
            last_id: 0,
            open: BTreeMap::new(),
            order: Vec::new(),
            asked: BTreeSet::new(),
            received: BTreeSet::new(),
            holds_acks: false,
            held: Vec::new(),
            aliases: BTreeMap::new(),
            alias_max: 0,
            receive_maximum: u16::MAX,
        }
    }

    /// A new connection takes the place of what there was.
    pub(crate) fn begin(&mut self, link: LinkId, version: Version) {
        (self.link, self.is_up, self.version) = (Some(link), false, version);
        self.held.clear();
        self.asked.clear();
        self.aliases.clear();
    }

    /// A Packet Identifier for SUBSCRIBE or UNSUBSCRIBE.
    pub(crate) fn ask(&mut self) -> PacketId {
        let id = self.next_id();
        self.asked.insert(id.get());
        id
    }

    /// The PUBLISH of a message; `None`: the server's Receive Maximum leaves no room, unless it is ignored.
    pub(crate) fn publish(
        &mut self,
        content: &Content,
        (n, message): (usize, &Message),
        may_exceed: bool,
    ) -> Option<Publish> {
        let open_max = usize::from(self.receive_maximum).min(50);
        if content.qos != QoS::AtMostOnce && self.open.len() >= open_max && !may_exceed {
            return None;
        }
        let packet_id = (content.qos != QoS::AtMostOnce).then(|| {
            let id = self.next_id();
            self.open.insert(
                id.get(),
                Open {
                    n,
                    qos: content.qos,
                    is_released: false,
                },
            );
            self.order.push(id.get());
            id
        });
        let mut publish = self.packet(message, packet_id, false);
        if content.alias && self.alias_max > 0 && self.version == Version::V5 {
            self.alias(&mut publish, message.topic);
        }
        Some(publish)
    }

    /// What is packed into a PUBLISH.
    fn packet(&self, message: &Message, packet_id: Option<PacketId>, dup: bool) -> Publish {
        let properties = PublishProperties {
            message_expiry_s: message.expiry_s,
            ..message.properties.clone().unwrap_or_default()
        };
        Publish {
            dup,
            qos: message.qos,
            retain: message.retain,
            topic: Text::from(message.topic),
            packet_id,
            properties: (properties != PublishProperties::default()).then(|| Box::new(properties)),
            payload: message.payload.clone(),
        }
    }

    fn alias(&mut self, publish: &mut Publish, topic: &'static str) {
        let next = self.aliases.len() as u16 % self.alias_max + 1;
        let alias = match self.aliases.get(topic) {
            Some(alias) => {
                publish.topic = Text::default();
                *alias
            }
            None => {
                // The alias may have been another topic's.
                self.aliases.retain(|_, alias| *alias != next);
                self.aliases.insert(topic, next);
                next
            }
        };
        publish.properties.get_or_insert_default().topic_alias = std::num::NonZeroU16::new(alias);
    }

    fn next_id(&mut self) -> PacketId {
        loop {
            self.last_id = self.last_id % 60 + 1;
            let is_used =
                self.open.contains_key(&self.last_id) || self.asked.contains(&self.last_id);
            if let (Some(id), false) = (PacketId::new(self.last_id), is_used) {
                return id;
            }
        }
    }

    /// The acknowledgements that were held back.
    pub(crate) fn release_acks(&mut self) -> Vec<Packet> {
        self.holds_acks = false;
        std::mem::take(&mut self.held)
    }

    /// Takes a packet; what the client sends because of it, each with the message that it publishes again.
    /// `session`: the one that the connection has; `expected`: what a PUBLISH meets.
    pub(crate) fn take(
        &mut self,
        packet: Packet,
        (session, expected): (Option<SessionNo>, Option<Met>),
        model: &mut Model,
    ) -> Vec<(Packet, Option<usize>)> {
        let answer = match packet {
            Packet::ConnAck(connack) => return self.connected(&connack, session, model),
            Packet::Publish(publish) => self.deliver(&publish, expected, model),
            Packet::PubRel(ack) => {
                self.received.remove(&ack.packet_id.get());
                Some(Packet::PubComp(positive(ack.packet_id)))
            }
            Packet::PubAck(ack) => {
                let open = self.open.remove(&ack.packet_id.get());
                assert!(
                    open.is_some_and(|o| o.qos == QoS::AtLeastOnce),
                    "PUBACK for what isn't open: {ack:?}"
                );
                None
            }
            Packet::PubRec(ack) => {
                let open = self.open.get_mut(&ack.packet_id.get());
                let open = open.unwrap_or_else(|| panic!("PUBREC for what isn't open: {ack:?}"));
                assert_eq!(open.qos, QoS::ExactlyOnce);
                open.is_released = true;
                return vec![(Packet::PubRel(positive(ack.packet_id)), None)];
            }
            Packet::PubComp(ack) => {
                let open = self.open.remove(&ack.packet_id.get());
                assert!(
                    open.is_some_and(|o| o.is_released),
                    "PUBCOMP for what isn't released: {ack:?}"
                );
                None
            }
            Packet::SubAck(ack) | Packet::UnsubAck(ack) => {
                assert!(
                    self.asked.remove(&ack.packet_id.get()),
                    "an answer to nothing: {ack:?}"
                );
                None
            }
            Packet::PingResp => None,
            Packet::Disconnect(_) => {
                self.is_up = false;
                None
            }
            other => panic!("no server sends {other:?}"),
        };
        if self.holds_acks {
            self.held.extend(answer);
            return Vec::new();
        }
        answer.into_iter().map(|packet| (packet, None)).collect()
    }

    /// A PUBLISH goes to the application, unless it is a repetition.
    fn deliver(
        &mut self,
        publish: &Publish,
        expected: Option<Met>,
        model: &mut Model,
    ) -> Option<Packet> {
        let id = publish.packet_id;
        let is_new = match (publish.qos, id) {
            (QoS::ExactlyOnce, Some(id)) => self.received.insert(id.get()),
            _ => true,
        };
        assert!(
            is_new || publish.dup,
            "a repetition without DUP: {publish:?}"
        );
        if let (true, Some(met), Some(session)) = (is_new, expected, self.session) {
            model.received(session, met);
        }
        match publish.qos {
            QoS::AtMostOnce => None,
            QoS::AtLeastOnce => id.map(|id| Packet::PubAck(positive(id))),
            QoS::ExactlyOnce => id.map(|id| Packet::PubRec(positive(id))),
        }
    }

    fn connected(
        &mut self,
        connack: &ConnAck,
        session: Option<SessionNo>,
        model: &mut Model,
    ) -> Vec<(Packet, Option<usize>)> {
        if connack.reason != ReasonCode::SUCCESS {
            return Vec::new();
        }
        self.is_up = true;
        let p = &connack.properties;
        self.alias_max = p.topic_alias_maximum.unwrap_or(0);
        self.receive_maximum = p.receive_maximum.unwrap_or(u16::MAX);
        // What is remembered belongs to one session; Session Present alone would leave that open after a lost CONNACK.
        if self.session != session {
            self.session = session;
            self.open.clear();
            self.order.clear();
            self.received.clear();
        }
        self.resend(model)
    }

    /// [MQTT-4.4.0-1]
    fn resend(&mut self, model: &mut Model) -> Vec<(Packet, Option<usize>)> {
        self.order.retain(|id| self.open.contains_key(id));
        // What went beyond the server's Receive Maximum is given up.
        while self.order.len() > usize::from(self.receive_maximum) {
            if let Some(id) = self.order.pop() {
                self.open.remove(&id);
            }
        }
        let mut packets = Vec::new();
        for &id in &self.order {
            let (Some(packet_id), Some(open)) = (PacketId::new(id), self.open.get_mut(&id)) else {
                continue;
            };
            if open.is_released {
                packets.push((Packet::PubRel(positive(packet_id)), None));
                continue;
            }
            let message = &model.messages[open.n];
            let has_more = message.expiry_s.is_some() || message.properties.is_some();
            if has_more && self.version != Version::V5 {
                open.n = plain_copy(open.n, model);
            }
            let n = open.n;
            let again = self.packet(&model.messages[n], Some(packet_id), true);
            packets.push((Packet::Publish(again), Some(n)));
        }
        packets
    }
}

/// A message without what MQTT 3.x can't say.
fn plain_copy(n: usize, model: &mut Model) -> usize {
    let (topic, qos, retain, is_empty) = {
        let m = &model.messages[n];
        (m.topic, m.qos, m.retain, m.payload.is_empty())
    };
    let number = model.messages.len().to_string();
    let payload = if is_empty {
        Bytes::new()
    } else {
        Bytes::from(number)
    };
    model.add_message(Message::new(topic, payload, qos, retain))
}

fn positive(packet_id: PacketId) -> Ack {
    Ack {
        packet_id,
        reason: ReasonCode::SUCCESS,
        properties: None,
    }
}
