//! PUBLISH from clients, and both sides' acknowledgements (MQTT 5.0 §3.3 to §3.7, §4.3).

use bytes::Bytes;
use headgate_codec::{Ack, PacketId, Publish, QoS, ReasonCode, Text, Version};
use headgate_topics::Subscriber;
use std::sync::Arc;

use crate::{
    ConnId, Core, Output, Receipt, Record, StorageState,
    acks::Wait,
    close::{DueWill, End},
    conns::AckBody,
    counters::add,
    hub::{Hub, is_reserved},
    message::{Fanout, Message},
    options::Options,
    share::group_of,
    slots::Handle,
};

impl Core {
    /// PUBLISH (§3.3).
    #[inline]
    pub(crate) fn on_publish(
        &mut self,
        conn: ConnId,
        slot: u32,
        publish: &Publish,
        out: &mut Vec<Output>,
    ) {
        let resolved;
        let mut publish = publish;
        if let Some(alias) = publish.properties.as_ref().and_then(|p| p.topic_alias) {
            resolved = match self.hub.resolve_alias(slot, publish, alias) {
                Ok(resolved) => resolved,
                Err(reason) => return self.hub.protocol_error(conn, reason, out),
            };
            publish = &resolved;
        }
        if let Err(reason) = self.hub.check_publish(publish) {
            return self.hub.protocol_error(conn, reason, out);
        }
        add(
            &mut self.hub.env.counters.publish_in_bytes,
            publish.payload.len() as u64,
        );
        if is_reserved(&publish.topic) {
            return self.hub.deny_publish(conn, slot, publish, out);
        }
        if !self.hub.within_quota(conn, slot, publish, out) {
            return;
        }
        match publish.packet_id {
            None => {
                add(&mut self.hub.env.counters.publish_in_qos0, 1);
                let mut fan = Fanout::of_publish(publish, self.hub.env.now);
                // [MQTT-3.3.1-8]: only then.
                if publish.retain && self.hub.env.storage != StorageState::Ok {
                    add(&mut self.hub.env.counters.storage_not_retained, 1);
                } else if publish.retain {
                    // Too many retained messages: it is delivered all the same.
                    self.hub.retain(slot, fan.message(), out);
                }
                let publisher = self.hub.slots.handle(slot);
                self.route(&mut fan, publisher, (Some(conn), None, false), out);
            }
            Some(packet_id) => self.on_publish_acked(conn, slot, (publish, packet_id), out),
        }
    }

    /// A PUBLISH with QoS 1 or 2: routed, recorded, and then acknowledged.
    fn on_publish_acked(
        &mut self,
        conn: ConnId,
        slot: u32,
        (publish, packet_id): (&Publish, PacketId),
        out: &mut Vec<Output>,
    ) {
        // What the store can't take is refused before anything of it is recorded.
        if self.hub.env.storage != StorageState::Ok && self.is_recorded(slot, publish) {
            let is_repeated = self.hub.refuse_publish(conn, slot, publish, out);
            if !is_repeated {
                return add(&mut self.hub.env.counters.storage_refused_publish, 1);
            }
        }
        let hub = &mut self.hub;
        let before = hub.env.last_persist;
        let Some((version, receipt, ties)) = hub.accept(conn, slot, (publish.qos, packet_id), out)
        else {
            return;
        };
        let mut fan = Fanout::of_publish(publish, hub.env.now);
        let mut reason = ReasonCode::SUCCESS;
        let is_kept = !publish.retain || hub.retain(slot, fan.message(), out);
        let mut remote = 0;
        if is_kept || version != Version::V5 {
            let publisher = hub.slots.handle(slot);
            let routed = self.route(&mut fan, publisher, (Some(conn), Some(receipt), ties), out);
            remote = routed.remote;
            if !routed.matched && version == Version::V5 {
                reason = ReasonCode::NO_MATCHING_SUBSCRIBERS;
            }
        } else {
            reason = ReasonCode::QUOTA_EXCEEDED;
        }
        let hub = &mut self.hub;
        let wait = hub.wait_since(before, remote);
        // [MQTT-3.3.4-1] [MQTT-2.2.1-5] [MQTT-4.3.2-4] [MQTT-4.3.3-8]
        let body = match publish.qos {
            QoS::ExactlyOnce => AckBody::PubRec(packet_id, reason),
            _ => AckBody::PubAck(packet_id, reason),
        };
        // [MQTT-4.3.3-9]
        if reason.0 >= 0x80
            && publish.qos == QoS::ExactlyOnce
            && let Some(session) = hub.slots.session(slot)
        {
            session.flow().received.retain(|id| *id != packet_id);
            session.persist(&mut hub.env, Record::Released { packet_id }, out);
        }
        hub.acknowledge(conn, slot, body, wait, out);
    }

    /// Something of a message with QoS > 0 would be recorded, or of its having come.
    fn is_recorded(&mut self, slot: u32, publish: &Publish) -> bool {
        let Self { hub, cache, .. } = self;
        let session = hub.slots.session(slot);
        let is_known = session.is_some_and(|s| s.is_recorded && publish.qos == QoS::ExactlyOnce);
        let matched = cache.matches(&hub.shared.topics, publish.topic.as_str());
        let may_be_recorded = |entry: &Subscriber| {
            let options = Options(entry.options());
            let is_persistent = options.has(Options::PERSISTENT) && options.qos() > QoS::AtMostOnce;
            match options.has(Options::SHARED) {
                true => hub.shared.shares.is_recorded(group_of(*entry)),
                false => is_persistent,
            }
        };
        publish.retain || is_known || matched.iter().any(may_be_recorded)
    }

    /// Publishes a message of the server itself.
    pub(crate) fn publish_own(&mut self, topic: Text, payload: Bytes, out: &mut Vec<Output>) {
        let message = Arc::new(Message {
            topic,
            payload,
            qos: QoS::AtMostOnce,
            retain: true,
            expires_at: None,
            properties: None,
        });
        let now = self.hub.env.now;
        if let Err(full) = self.hub.shared.retained.set(&message, now) {
            self.hub.env.count_retained_full(full);
        }
        let mut fan = Fanout::of_message(&message, now);
        self.route(&mut fan, Handle(0), (None, None, false), out);
    }

    /// Publishes the wills that have become due.
    pub(crate) fn publish_wills(&mut self, out: &mut Vec<Output>) {
        for due in std::mem::take(&mut self.hub.wills) {
            let DueWill {
                message,
                publisher,
                session,
                epoch,
                is_recorded,
                kept,
            } = due;
            let hub = &mut self.hub;
            if let Some(id) = kept {
                hub.env.persist(id, epoch, 2, Record::WillPublished, out);
            }
            if is_reserved(&message.topic) {
                add(&mut hub.env.counters.publish_denied, 1);
                continue;
            }
            add(&mut hub.env.counters.wills, 1);
            // [MQTT-3.1.2-15], and otherwise not [MQTT-3.1.2-14].
            if message.retain {
                if let Err(full) = hub.shared.retained.set(&message, hub.env.now) {
                    hub.env.count_retained_full(full);
                } else {
                    let record = Record::Retained {
                        message: Arc::clone(&message),
                    };
                    hub.env.persist(session, epoch, 0, record, out);
                }
            }
            let mut fan = Fanout::of_message(&message, hub.env.now);
            self.route(&mut fan, publisher, (None, None, is_recorded), out);
        }
    }
}

impl Hub {
    fn check_publish(&self, publish: &Publish) -> Result<(), ReasonCode> {
        if let Some(properties) = &publish.properties {
            // [MQTT-3.3.4-6]
            if !properties.subscription_ids.is_empty() {
                return Err(ReasonCode::PROTOCOL_ERROR);
            }
            // [MQTT-3.3.2-14]
            if properties
                .response_topic
                .as_ref()
                .is_some_and(|t| t.as_bytes().iter().any(|b| matches!(b, b'+' | b'#')))
            {
                return Err(ReasonCode::PROTOCOL_ERROR);
            }
        }
        // [MQTT-3.3.2-2]
        if !self.is_topic_name(publish.topic.as_str()) {
            return Err(ReasonCode::TOPIC_NAME_INVALID);
        }
        Ok(())
    }

    /// A PUBLISH to a topic that clients only read: answered, and not delivered (§4.7.2).
    fn deny_publish(&mut self, conn: ConnId, slot: u32, publish: &Publish, out: &mut Vec<Output>) {
        add(&mut self.env.counters.publish_denied, 1);
        let (Some(packet_id), Some(c)) = (publish.packet_id, self.conns.get(conn)) else {
            return;
        };
        c.open_publishes = c.open_publishes.saturating_add(1);
        let reason = ReasonCode::NOT_AUTHORIZED;
        let body = match publish.qos {
            QoS::ExactlyOnce => AckBody::PubRec(packet_id, reason),
            _ => AckBody::PubAck(packet_id, reason),
        };
        self.acknowledge(conn, slot, body, Wait::default(), out);
    }

    /// Takes a PUBLISH with QoS > 0 in, unless it is too many (then the connection is closed) or
    /// a repetition (then it is acknowledged once more).
    fn accept(
        &mut self,
        conn: ConnId,
        slot: u32,
        (qos, packet_id): (QoS, PacketId),
        out: &mut Vec<Output>,
    ) -> Option<(Version, Receipt, bool)> {
        let session = self.slots.session(slot)?;
        let (version, before) = (session.version, self.env.last_persist);
        let c = self.conns.get(conn)?;
        // Of PUBLISH alone [MQTT-3.3.4-8] [MQTT-4.9.0-3]. [MQTT-3.3.4-7]: a 3.x client was not told of a Receive Maximum.
        if version == Version::V5 && c.open_publishes >= self.env.limits.receive_maximum.max(1) {
            add(&mut self.env.counters.limit_receive_maximum, 1);
            self.close(conn, End::Server(ReasonCode::RECEIVE_MAXIMUM_EXCEEDED), out);
            return None;
        }
        c.open_publishes = c.open_publishes.saturating_add(1);
        let receipt = Receipt {
            worker: self.config.worker,
            conn,
            serial: c.ack_serial,
        };
        // [MQTT-4.3.2-5]: no QoS 1 identifier is remembered.
        if qos == QoS::AtLeastOnce {
            add(&mut self.env.counters.publish_in_qos1, 1);
            return Some((version, receipt, false));
        }
        let is_recorded = session.is_recorded;
        let place = session.flow().received.binary_search(&packet_id);
        if let Err(place) = place {
            session.flow().received.insert(place, packet_id);
        }
        // [MQTT-4.3.3-10]: a repetition is recorded once more, the first may not be safe yet.
        session.persist(&mut self.env, Record::Received { packet_id }, out);
        if place.is_err() {
            add(&mut self.env.counters.publish_in_qos2, 1);
            return Some((version, receipt, is_recorded));
        }
        add(&mut self.env.counters.publish_in_repeated, 1);
        let wait = self.wait_since(before, 0);
        let body = AckBody::PubRec(packet_id, ReasonCode::SUCCESS);
        self.acknowledge(conn, slot, body, wait, out);
        None
    }

    /// Sets the retained message of a topic. `false` = the store is full.
    fn retain(&mut self, slot: u32, message: &Arc<Message>, out: &mut Vec<Output>) -> bool {
        if let Err(full) = self.shared.retained.set(message, self.env.now) {
            self.env.count_retained_full(full);
            return false;
        }
        if let Some(session) = self.slots.session(slot) {
            let record = Record::Retained {
                message: Arc::clone(message),
            };
            self.env.persist(session.id, session.epoch, 0, record, out);
        }
        true
    }

    /// PUBACK (§3.4).
    pub(crate) fn on_puback(&mut self, conn: ConnId, slot: u32, ack: &Ack, out: &mut Vec<Output>) {
        let Some(session) = self.slots.session(slot) else {
            return;
        };
        match qos_of(session, ack.packet_id) {
            Some(QoS::AtLeastOnce) => {
                session.acknowledged(&mut self.env, ack.packet_id, out);
                self.pump(slot, out);
            }
            Some(_) => self.protocol_error(conn, ReasonCode::PROTOCOL_ERROR, out),
            // Of a message that is done: nothing to do.
            None => {}
        }
    }

    /// PUBREC (§3.5).
    pub(crate) fn on_pubrec(&mut self, conn: ConnId, slot: u32, ack: &Ack, out: &mut Vec<Output>) {
        let (before, stream) = (self.env.last_persist, self.stream);
        let Some(session) = self.slots.session(slot) else {
            return;
        };
        let packet_id = ack.packet_id;
        let reason = match qos_of(session, packet_id) {
            Some(QoS::ExactlyOnce) if ack.reason.0 >= 0x80 => {
                // [MQTT-4.4.0-2]
                session.acknowledged(&mut self.env, packet_id, out);
                return self.pump(slot, out);
            }
            Some(QoS::ExactlyOnce) => {
                session.received(&mut self.env, packet_id, out);
                session.note_received(stream, packet_id);
                ReasonCode::SUCCESS
            }
            Some(_) => return self.protocol_error(conn, ReasonCode::PROTOCOL_ERROR, out),
            None if ack.reason.0 >= 0x80 => return,
            None => ReasonCode::PACKET_IDENTIFIER_NOT_FOUND,
        };
        // [MQTT-4.3.3-4], once it is safe that the client has the message.
        let wait = self.wait_since(before, 0);
        self.acknowledge(conn, slot, AckBody::PubRel(packet_id, reason), wait, out);
    }

    /// PUBCOMP (§3.7).
    pub(crate) fn on_pubcomp(&mut self, conn: ConnId, slot: u32, ack: &Ack, out: &mut Vec<Output>) {
        let Some(session) = self.slots.session(slot) else {
            return;
        };
        let Some(flow) = &mut session.flow else {
            return;
        };
        let Some(position) = flow.position(ack.packet_id) else {
            return;
        };
        if flow.inflight[position].message.is_some() {
            return self.protocol_error(conn, ReasonCode::PROTOCOL_ERROR, out);
        }
        let queued = flow
            .remove_inflight(position)
            .map_or(0, |entry| entry.queued);
        session.note_done(ack.packet_id);
        if queued != 0 {
            session.persist(&mut self.env, Record::Completed { queued }, out);
        }
        self.pump(slot, out);
    }

    /// PUBREL (§3.6).
    pub(crate) fn on_pubrel(&mut self, conn: ConnId, slot: u32, ack: &Ack, out: &mut Vec<Output>) {
        let (before, packet_id) = (self.env.last_persist, ack.packet_id);
        let Some(session) = self.slots.session(slot) else {
            return;
        };
        let received = session.flow.as_mut().map(|f| &mut f.received);
        let place = received
            .as_ref()
            .and_then(|r| r.binary_search(&packet_id).ok());
        let reason = match (received, place) {
            // [MQTT-4.3.3-12]; whether the message has expired is of no interest [MQTT-4.3.3-13].
            (Some(received), Some(place)) => {
                received.remove(place);
                session.persist(&mut self.env, Record::Released { packet_id }, out);
                ReasonCode::SUCCESS
            }
            _ => ReasonCode::PACKET_IDENTIFIER_NOT_FOUND,
        };
        // [MQTT-4.3.3-11]
        let wait: Wait = self.wait_since(before, 0);
        self.acknowledge(conn, slot, AckBody::PubComp(packet_id, reason), wait, out);
    }
}

fn qos_of(session: &crate::Session, packet_id: PacketId) -> Option<QoS> {
    let flow = session.flow.as_ref()?;
    flow.position(packet_id)
        .map(|position| flow.inflight[position].qos)
}

impl crate::Session {
    /// PUBREC: the client has the message, its memory is free \[MQTT-4.3.3-6\].
    fn received(&mut self, env: &mut crate::env::Env, packet_id: PacketId, out: &mut Vec<Output>) {
        let Some(flow) = &mut self.flow else { return };
        let Some(position) = flow.position(packet_id) else {
            return;
        };
        let entry = &mut flow.inflight[position];
        let Some(message) = entry.message.take() else {
            return;
        };
        let queued = entry.queued;
        entry.ids = None;
        flow.bytes = flow.bytes.saturating_sub(message.cost());
        if queued != 0 {
            self.persist(env, Record::PubRec { queued }, out);
            let op = env.last_persist;
            if let Some(entry) = self
                .flow
                .as_mut()
                .and_then(|f| f.inflight.get_mut(position))
            {
                entry.op = op;
            }
        }
    }
}
