//! What a connected client sends, and the answers to it: which, in which order, with which reason, and not before
//! everything is recorded that they stand for.

use headgate_codec::{Ack, Packet, Publish, QoS, ReasonCode, Version};
use headgate_core::{OpId, Record, SessionId};

use super::{Model, Phase, SessionNo, number_of};
use crate::network::LinkId;

/// A kind of answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    PubAck,
    PubRec,
    PubComp,
    SubAck,
    UnsubAck,
}

/// An answer that the server owes a client.
#[derive(Debug)]
pub(crate) struct Answer {
    kind: Kind,
    packet_id: u16,
    /// For each filter (or for the message) the reasons that are right.
    reasons: Vec<Vec<ReasonCode>>,
    /// The message that it acknowledges, and how many have been routed by then.
    message: Option<(usize, u64)>,
    /// The last record that has to be safe before.
    op: OpId,
}

impl Answer {
    /// The message that it acknowledges, and with QoS 2 its Packet Identifier.
    pub(super) fn of_message(&self) -> Option<(usize, Option<u16>)> {
        let id = (self.kind == Kind::PubRec).then_some(self.packet_id);
        self.message.map(|(n, _)| (n, id))
    }
}

impl Model {
    /// A packet on a connection that is up.
    pub(super) fn handled_up(&mut self, link: LinkId, session: SessionNo, packet: &Packet) {
        match packet {
            Packet::Publish(publish) => self.published_by_client(link, session, publish),
            Packet::PubAck(ack) => self.acknowledged(link, session, ack, QoS::AtLeastOnce),
            Packet::PubRec(ack) if ack.reason.0 >= 0x80 => {
                self.acknowledged(link, session, ack, QoS::ExactlyOnce)
            }
            Packet::PubRec(ack) => {
                let id = ack.packet_id.get();
                let sent = self.sessions[session].sent.get_mut(&id);
                let is_known = sent.is_some();
                if let Some(sent) = sent {
                    assert_eq!(sent.qos, QoS::ExactlyOnce);
                    sent.is_released = true;
                }
                self.conns[link].pubrels.push_back((id, is_known));
            }
            Packet::PubComp(ack) => self.acknowledged(link, session, ack, QoS::ExactlyOnce),
            Packet::PubRel(ack) => {
                let id = ack.packet_id.get();
                let reason = match self.sessions[session].received.remove(&id) {
                    true => ReasonCode::SUCCESS,
                    false => ReasonCode::PACKET_IDENTIFIER_NOT_FOUND,
                };
                self.owe(link, Kind::PubComp, id, vec![vec![reason]], None);
            }
            Packet::PingReq => self.conns[link].pings += 1,
            Packet::Subscribe(packet) => {
                let reasons = packet
                    .filters
                    .iter()
                    .map(|(filter, options)| {
                        let id = packet.subscription_id.unwrap_or(0);
                        vec![self.subscribed(session, filter, *options, id)]
                    })
                    .collect();
                self.owe(link, Kind::SubAck, packet.packet_id.get(), reasons, None);
            }
            Packet::Unsubscribe(packet) => {
                let reasons = packet
                    .filters
                    .iter()
                    .map(|f| vec![self.unsubscribed(session, f)])
                    .collect();
                self.owe(link, Kind::UnsubAck, packet.packet_id.get(), reasons, None);
            }
            Packet::Disconnect(packet) => self.left(link, session, packet),
            other => panic!("{link}: no client sends {other:?}"),
        }
    }

    fn owe(
        &mut self,
        link: LinkId,
        kind: Kind,
        packet_id: u16,
        reasons: Vec<Vec<ReasonCode>>,
        message: Option<(usize, u64)>,
    ) {
        let answer = Answer {
            kind,
            packet_id,
            reasons,
            message,
            op: OpId(0),
        };
        self.conns[link].answers.push_back(answer);
        self.answering = Some(link);
    }

    fn acknowledged(&mut self, link: LinkId, session: SessionNo, ack: &Ack, qos: QoS) {
        let id = ack.packet_id.get();
        if let Some(sent) = self.sessions[session].sent.remove(&id) {
            assert_eq!(sent.qos, qos, "{link}: the client answers what was sent");
        }
        self.conns[link].outstanding.remove(&id);
    }

    /// PUBLISH of a client: who is to get it.
    fn published_by_client(&mut self, link: LinkId, session: SessionNo, packet: &Publish) {
        let Some(reason) = self.fault_of(link, packet) else {
            let n = self.conns[link]
                .publishing
                .pop_front()
                .expect("a client has sent it");
            self.check_arrived(n, packet);
            return self.take_message(link, session, n, packet);
        };
        self.conns[link].faults.push(reason);
    }

    /// Why a PUBLISH is refused with the connection.
    fn fault_of(&mut self, link: LinkId, packet: &Publish) -> Option<ReasonCode> {
        let conn = &mut self.conns[link];
        let properties = packet.properties.as_deref();
        if let Some(alias) = properties.and_then(|p| p.topic_alias) {
            // [MQTT-3.3.2-9]
            if alias.get() > self.limits.topic_aliases {
                return Some(ReasonCode::TOPIC_ALIAS_INVALID);
            }
            if !packet.topic.is_empty() {
                conn.aliases_in
                    .insert(alias.get(), packet.topic.to_string());
            }
        }
        if properties.is_some_and(|p| !p.subscription_ids.is_empty()) {
            return Some(ReasonCode::PROTOCOL_ERROR);
        }
        if packet.topic.contains(['+', '#']) {
            return Some(ReasonCode::TOPIC_NAME_INVALID);
        }
        if packet.qos != QoS::AtMostOnce {
            // [MQTT-3.3.4-7]
            if conn.version == Version::V5 && conn.open >= self.limits.receive_maximum {
                return Some(ReasonCode::RECEIVE_MAXIMUM_EXCEEDED);
            }
            conn.open = conn.open.saturating_add(1);
        }
        None
    }

    /// The codec on the way has left the message as it was.
    fn check_arrived(&self, n: usize, packet: &Publish) {
        let message = &self.messages[n];
        assert_eq!(
            (&message.payload, message.qos),
            (&packet.payload, packet.qos),
            "message {n} on its way"
        );
        assert_eq!(message.retain, packet.retain, "message {n} on its way");
    }

    fn take_message(&mut self, link: LinkId, session: SessionNo, n: usize, packet: &Publish) {
        let Some(id) = packet.packet_id.map(|id| id.get()) else {
            self.route(n, Some(session), Some(link));
            return;
        };
        let kind = match packet.qos {
            QoS::ExactlyOnce => Kind::PubRec,
            _ => Kind::PubAck,
        };
        // [MQTT-4.3.3-10]
        if kind == Kind::PubRec && !self.sessions[session].received.insert(id) {
            let reasons = vec![vec![
                ReasonCode::SUCCESS,
                ReasonCode::NO_MATCHING_SUBSCRIBERS,
            ]];
            return self.owe(link, kind, id, reasons, None);
        }
        let matched = self.route(n, Some(session), Some(link));
        let mut reasons = Vec::new();
        if matched.maybe || self.conns[link].version != Version::V5 {
            reasons.push(ReasonCode::SUCCESS);
        }
        if !matched.surely {
            reasons.push(ReasonCode::NO_MATCHING_SUBSCRIBERS);
        }
        self.owe(link, kind, id, vec![reasons], Some((n, self.seq)));
    }

    /// A record is being written.
    pub(crate) fn persisting(&mut self, worker: usize, op: OpId, id: SessionId, record: &Record) {
        match record {
            Record::SessionOpened { client_id, .. } => self.named(client_id, id),
            Record::Queued { message, .. } => {
                if let Some(n) = number_of(&message.payload) {
                    // A later one is of the retained message.
                    self.queued.entry((n, id)).or_insert((worker, op));
                }
            }
            _ => {}
        }
        let Some(answer) = self
            .answering
            .and_then(|link| self.conns[link].answers.back_mut())
        else {
            return;
        };
        let is_of = |payload: &[u8]| {
            number_of(payload).is_none_or(|n| answer.message.is_some_and(|(m, _)| m == n))
        };
        let belongs = match (answer.kind, record) {
            (
                Kind::PubAck | Kind::PubRec,
                Record::Queued { message, .. } | Record::Retained { message },
            ) => answer.message.is_some() && is_of(&message.payload),
            (Kind::PubRec, Record::Received { packet_id }) => packet_id.get() == answer.packet_id,
            (Kind::PubComp, Record::Released { packet_id }) => packet_id.get() == answer.packet_id,
            (Kind::SubAck, Record::Subscribed { .. }) => true,
            (Kind::UnsubAck, Record::Unsubscribed { .. }) => true,
            _ => false,
        };
        if belongs {
            answer.op = answer.op.max(op);
        }
    }

    /// The store has said that records are safe.
    pub(crate) fn persisted(&mut self, worker: usize, up_to: OpId) {
        self.answering = None;
        self.persisted[worker] = self.persisted[worker].max(up_to);
    }

    /// Another cause than a packet: no answer belongs to it.
    pub(crate) fn other_cause(&mut self) {
        self.answering = None;
    }

    /// An answer leaves: in the order of what it answers [MQTT-4.6.0-2] [MQTT-4.6.0-3] [MQTT-4.6.0-4].
    pub(super) fn answered(&mut self, link: LinkId, packet: &Packet) {
        let (kind, id, reasons) = match packet {
            Packet::PubAck(ack) => (Kind::PubAck, ack.packet_id, vec![ack.reason]),
            Packet::PubRec(ack) => (Kind::PubRec, ack.packet_id, vec![ack.reason]),
            Packet::PubComp(ack) => (Kind::PubComp, ack.packet_id, vec![ack.reason]),
            Packet::SubAck(ack) => (Kind::SubAck, ack.packet_id, ack.reasons.clone()),
            Packet::UnsubAck(ack) => (Kind::UnsubAck, ack.packet_id, ack.reasons.clone()),
            other => panic!("{other:?} is no answer"),
        };
        let is_v5 = self.conns[link].version == Version::V5;
        let Some(answer) = self.conns[link].answers.pop_front() else {
            panic!("{link}: an answer to nothing: {packet:?}");
        };
        assert_eq!(
            (answer.kind, answer.packet_id),
            (kind, id.get()),
            "{link}: answers in order, not {packet:?}"
        );
        if is_v5 {
            assert_eq!(
                reasons.len(),
                answer.reasons.len(),
                "{link}: one reason for each: {packet:?}"
            );
            let are_right = reasons
                .iter()
                .zip(&answer.reasons)
                .all(|(said, right)| right.contains(said));
            assert!(
                are_right,
                "{link}: {packet:?} where {:?} is right",
                answer.reasons
            );
        } else if kind == Kind::SubAck {
            let is_refused = |right: &Vec<ReasonCode>| right.iter().all(|r| r.0 >= 0x80);
            let are_right =
                reasons
                    .iter()
                    .zip(&answer.reasons)
                    .all(|(said, right)| match is_refused(right) {
                        true => said.0 >= 0x80,
                        false => right.contains(said),
                    });
            assert!(
                are_right,
                "{link}: {packet:?} where {:?} is right",
                answer.reasons
            );
        }
        let worker = self.conns[link].worker;
        assert!(
            answer.op <= self.persisted[worker],
            "{link}: {packet:?} left before record {:?} was safe",
            answer.op
        );
        if let Some((n, _)) = answer.message {
            self.messages[n].is_acknowledged = true;
        }
        if let Some((n, seq)) = answer.message {
            self.check_recorded_elsewhere(n, seq);
        }
        if matches!(kind, Kind::PubAck | Kind::PubComp) {
            self.conns[link].open = self.conns[link].open.saturating_sub(1);
        }
    }

    /// Every lasting session that is to get the message has it in the store.
    fn check_recorded_elsewhere(&self, n: usize, seq: u64) {
        // Payloads are what records are known by.
        if self.scenario.tight || self.has_crashed || self.messages[n].payload.is_empty() {
            return;
        }
        for &(session, index) in &self.messages[n].meant_for {
            let s = &self.sessions[session];
            let e = &s.expected[index];
            let has_moved = s.moves != e.moves || s.home.is_none() || !self.is_certain(session);
            let has_expired = e.expires_at.is_some_and(|at| at <= self.now);
            if e.seq > seq || !e.is_recorded || has_moved || has_expired || e.received > 0 {
                continue;
            }
            let Some(id) = s.core_id else { continue };
            let Some((worker, op)) = self.queued.get(&(n, id)) else {
                panic!(
                    "message {n} was acknowledged and not recorded for c{}",
                    s.client
                );
            };
            assert!(
                *op <= self.persisted[*worker],
                "message {n} was acknowledged before its record for c{} was safe",
                s.client
            );
        }
    }

    /// PUBREL leaves: after its PUBREC, in order, or again after a reconnect.
    pub(super) fn pubrel_sent(&mut self, link: LinkId, session: SessionNo, ack: &Ack) {
        let id = ack.packet_id.get();
        let conn = &mut self.conns[link];
        if let Some((_, is_known)) = conn
            .pubrels
            .front()
            .copied()
            .filter(|(first, _)| *first == id)
        {
            conn.pubrels.pop_front();
            let reason = match is_known || conn.version != Version::V5 {
                true => ReasonCode::SUCCESS,
                false => ReasonCode::PACKET_IDENTIFIER_NOT_FOUND,
            };
            return assert_eq!(ack.reason, reason, "{link}: PUBREL {id}");
        }
        let sent = self.sessions[session]
            .sent
            .get_mut(&id)
            .filter(|s| s.qos == QoS::ExactlyOnce);
        let is_given_up = sent.as_ref().is_some_and(|s| s.may_vanish);
        let is_again = sent.is_some_and(|s| {
            s.is_released |= s.may_vanish;
            s.is_released
        });
        assert!(
            is_again && (conn.pubrels.is_empty() || is_given_up),
            "{link}: PUBREL {id} without a PUBREC, or out of order"
        );
    }

    pub(super) fn pong_sent(&mut self, link: LinkId) {
        let conn = &mut self.conns[link];
        assert!(
            matches!(conn.phase, Phase::Up(_)) && conn.pings > 0,
            "{link}: PINGRESP without PINGREQ"
        );
        conn.pings -= 1;
    }
}
