//! What the server sends: nothing that isn't expected, nothing twice, nothing changed, nothing out of order.

use headgate_codec::{Packet, Publish, PublishProperties, QoS, ReasonCode, Version, encoded_len};
use headgate_core::Time;

use super::{Conn, Expected, Message, Met, Model, Phase, Sent, SessionNo, number_of};
use crate::network::LinkId;

/// How closely a PUBLISH has to meet an expectation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    /// As it was when the message was routed, and it must come.
    Exact,
    /// Subscriptions may have changed since.
    Due,
    /// It has expired, or has been lost with another connection: what comes then is complained about by others.
    Possible,
}

impl Model {
    /// The server sends a packet of `len` bytes. A PUBLISH meets an expectation; its number.
    pub(crate) fn emitted(&mut self, link: LinkId, packet: &Packet, len: usize) -> Option<Met> {
        let conn = &mut self.conns[link];
        assert_ne!(
            conn.phase,
            Phase::Gone,
            "{link}: sent after the end: {packet:?}"
        );
        assert!(
            conn.goodbye.is_none(),
            "{link}: sent after {:?}: {packet:?}",
            conn.goodbye
        );
        // [MQTT-3.1.2-24]
        assert!(
            len <= conn.packet_max as usize,
            "{link}: {len} bytes exceed Maximum Packet Size: {packet:?}"
        );
        let limits = &self.limits;
        conn.unflushed += len as u64;
        let unflushed_max =
            3 * u64::from(limits.send_buffer_bytes) + u64::from(limits.packet_bytes);
        assert!(
            conn.unflushed <= unflushed_max,
            "{link}: {} bytes wait for the transport",
            conn.unflushed
        );
        let up = match conn.phase {
            Phase::Up(session) => Some(session),
            _ => None,
        };
        match (packet, up) {
            (Packet::ConnAck(connack), _) => self.connected(link, connack),
            (Packet::Publish(publish), Some(session)) => {
                return self.publish_sent(link, session, publish);
            }
            (Packet::PubRel(ack), Some(session)) => self.pubrel_sent(link, session, ack),
            (Packet::PingResp, Some(_)) => self.pong_sent(link),
            (Packet::Disconnect(packet), Some(_)) => {
                assert_eq!(
                    conn.version,
                    Version::V5,
                    "{link}: MQTT 3.x has no DISCONNECT from servers"
                );
                assert_ne!(packet.reason, ReasonCode::SUCCESS);
                conn.goodbye = Some(packet.reason);
            }
            (answer, Some(_)) => self.answered(link, answer),
            (other, None) => panic!("{link}: sent without a session: {other:?}"),
        }
        None
    }

    /// The transport has taken bytes.
    pub(crate) fn flushed(&mut self, link: LinkId, bytes: usize) {
        self.answering = None;
        self.conns[link].unflushed -= bytes as u64;
    }

    fn publish_sent(&mut self, link: LinkId, session: SessionNo, packet: &Publish) -> Option<Met> {
        let topic = self.topic_sent(link, packet);
        let conn = &mut self.conns[link];
        if let Some(id) = packet.packet_id.map(|id| id.get()) {
            assert!(
                conn.outstanding.insert(id),
                "{link}: Packet Identifier {id} is in use"
            );
            // [MQTT-3.3.4-9]
            assert!(
                conn.outstanding.len() <= usize::from(conn.receive_maximum),
                "{link}: more than Receive Maximum {}",
                conn.receive_maximum
            );
            assert!(conn.outstanding.len() <= usize::from(self.limits.inflight_messages));
            let is_known = self.sessions[session].sent.contains_key(&id);
            // Of a message with QoS 2 that waited for its record while others were sent, a store says only that it may have
            // been sent, which DUP means as well (§3.3.1.1).
            let may_be_first = self.scenario.spills && packet.qos == QoS::ExactlyOnce;
            if packet.dup && (is_known || !may_be_first) {
                return self.sent_again(link, session, packet, &topic);
            }
            let former = self.sessions[session].sent.get(&id);
            let is_free = former.is_none_or(|f| f.may_vanish && f.qos == QoS::AtLeastOnce);
            assert!(
                is_free,
                "{link}: Packet Identifier {id} is in use, or DUP is missing"
            );
        }
        let (found, n) = self.meet(link, session, packet, &topic);
        self.check_message(link, n, packet);
        if let Some(Met::Own(index)) = found {
            self.check_first(link, session, index, packet);
        }
        if let Some(id) = packet.packet_id {
            let sent = Sent {
                n,
                met: found,
                qos: packet.qos,
                is_released: false,
                may_vanish: false,
            };
            self.sessions[session].sent.insert(id.get(), sent);
        }
        found
    }

    /// The topic, by way of its alias if it has one [MQTT-3.1.2-26] [MQTT-3.1.2-27].
    fn topic_sent(&mut self, link: LinkId, packet: &Publish) -> String {
        let conn = &mut self.conns[link];
        let Some(alias) = packet.properties.as_ref().and_then(|p| p.topic_alias) else {
            return packet.topic.to_string();
        };
        assert!(
            alias.get() <= conn.alias_max,
            "{link}: alias {alias} of {}",
            conn.alias_max
        );
        if packet.topic.is_empty() {
            return conn
                .aliases_out
                .get(&alias.get())
                .expect("an alias that the client knows")
                .clone();
        }
        conn.aliases_out
            .insert(alias.get(), packet.topic.to_string());
        packet.topic.to_string()
    }

    /// [MQTT-4.4.0-1]
    fn sent_again(
        &mut self,
        link: LinkId,
        session: SessionNo,
        packet: &Publish,
        topic: &str,
    ) -> Option<Met> {
        let id = packet.packet_id.map_or(0, |id| id.get());
        let Some(sent) = self.sessions[session].sent.get(&id) else {
            panic!("{link}: DUP on a message that wasn't sent before: {packet:?}");
        };
        assert!(
            sent.qos == packet.qos && !sent.is_released,
            "{link}: not what {id} was: {packet:?}"
        );
        let (n, met) = (sent.n, sent.met);
        assert_eq!(self.messages[n].topic, topic, "{link}: not what {id} was");
        self.check_message(link, n, packet);
        met
    }

    /// The expectation that a PUBLISH meets (`None`: it is a retained message), and the message. First of all it is
    /// what must come, and then what may.
    fn meet(
        &mut self,
        link: LinkId,
        session: SessionNo,
        packet: &Publish,
        topic: &str,
    ) -> (Option<Met>, usize) {
        for fit in [Fit::Exact, Fit::Due, Fit::Possible] {
            if let Some(index) = self.find_expected(link, session, (packet, topic), fit) {
                return (
                    Some(Met::Own(index)),
                    self.sessions[session].expected[index].n,
                );
            }
            if let Some(n) = self.find_replay(session, packet, topic, fit == Fit::Exact) {
                return (None, n);
            }
            if fit != Fit::Possible
                && let Some((index, n)) = self.find_share(link, session, (packet, topic))
            {
                return (Some(Met::Share(index)), n);
            }
        }
        if let Some(n) = self.meet_other_way_round(session, packet, topic) {
            return (None, n);
        }
        panic!(
            "{link}: c{} isn't meant to get {packet:?}",
            self.conns[link].client
        )
    }

    /// A retained message and the same message as it was published may look alike: what came before was the retained
    /// one then, and this is the other.
    fn meet_other_way_round(
        &mut self,
        session: SessionNo,
        packet: &Publish,
        topic: &str,
    ) -> Option<usize> {
        let n = number_of(&packet.payload)?;
        let s = &self.sessions[session];
        let is_former = |e: &&Expected| e.n == n && e.is_sent && e.retain && e.qos == packet.qos;
        let former = s.expected.iter().find(is_former)?;
        if !self.ids_fit(session, former, (packet, Fit::Due)) {
            return None;
        }
        let message = &self.messages[n];
        let replays = self.sessions[session].replays.iter_mut();
        let fits = replays.filter(|r| message.qos.min(r.qos) == packet.qos);
        let mut topics = fits.filter_map(|r| r.topics.get_mut(topic));
        let replayed = topics.find(|r| !r.is_sent && r.versions.contains(&n))?;
        replayed.is_sent = true;
        Some(n)
    }

    fn find_expected(
        &self,
        link: LinkId,
        session: SessionNo,
        (packet, topic): (&Publish, &str),
        fit: Fit,
    ) -> Option<usize> {
        let s = &self.sessions[session];
        let version = self.conns[link].version;
        let fits = |index: &usize| {
            let e = &s.expected[*index];
            let message = &self.messages[e.n];
            // A will is published some time between the CONNECT that ends its session and what that is answered with, and
            // whoever gets it may have changed its subscription in between.
            let is_early = fit == Fit::Possible && message.is_will && packet.qos <= message.qos;
            !e.is_sent
                && (e.qos == packet.qos || is_early)
                && e.retain == packet.retain
                && message.topic == topic
                && message.payload == packet.payload
                && (version != Version::V5 || self.ids_fit(session, e, (packet, fit)))
                && (version != Version::V5 || has_properties_of(message, packet))
        };
        // One with QoS 0 that came before this connection may be lost.
        let left_s = packet.properties.as_ref().and_then(|p| p.message_expiry_s);
        let is_alive = |index: &usize| {
            s.expected[*index].expires_at.is_none_or(|at| {
                at > self.now && left_s.is_none_or(|s| u64::from(s) == seconds_left(at, self.now))
            })
        };
        let is_due = |index: &usize| {
            let e = &s.expected[*index];
            let is_lasting = e.qos > QoS::AtMostOnce || e.link == Some(link);
            fit == Fit::Possible || is_alive(index) && is_lasting
        };
        let found: Vec<usize> = match number_of(&packet.payload) {
            Some(n) => {
                let meant = self.messages.get(n)?.meant_for.iter();
                let meant = meant.filter(|(s, _)| *s == session);
                let meant = meant.map(|(_, index)| *index);
                meant.filter(is_due).filter(fits).collect()
            }
            // Without a payload it could be any that fits.
            None => (0..s.expected.len()).filter(is_due).filter(fits).collect(),
        };
        let is_owed = |index: &usize| is_alive(index) && !s.expected[*index].is_excused;
        let all = || found.iter().copied();
        let best = all().find(is_owed).or_else(|| all().find(is_alive));
        best.or_else(|| all().next())
    }

    /// [MQTT-3.3.4-3] [MQTT-3.3.4-4]; subscriptions that have changed since make it less exact.
    fn ids_fit(&self, session: SessionNo, e: &Expected, (packet, fit): (&Publish, Fit)) -> bool {
        let s = &self.sessions[session];
        let mut ids = packet
            .properties
            .as_ref()
            .map_or(Vec::new(), |p| p.subscription_ids.clone());
        ids.sort_unstable();
        if s.changes != e.changes && fit != Fit::Exact {
            return ids.iter().all(|id| s.ids_ever.contains(id));
        }
        if e.doubtful_ids.is_empty() {
            return ids == e.ids;
        }
        let is_known = |id: &u32| e.ids.contains(id) || e.doubtful_ids.contains(id);
        e.ids.iter().all(|id| ids.contains(id)) && ids.iter().all(is_known)
    }

    /// The retained message that a PUBLISH is.
    fn find_replay(
        &mut self,
        session: SessionNo,
        packet: &Publish,
        topic: &str,
        must: bool,
    ) -> Option<usize> {
        let n = number_of(&packet.payload)?;
        let message = self.messages.get(n)?;
        let ids: &[u32] = packet
            .properties
            .as_ref()
            .map_or(&[], |p| &p.subscription_ids);
        let now = self.now;
        // MQTT 3.x has none.
        let link = self.sessions[session].link;
        let is_v5 = link.is_some_and(|link| self.conns[link].version == Version::V5);
        let has_ids = |id: u32| match id {
            0 => ids.is_empty(),
            id => ids == [id] || !is_v5 && ids.is_empty(),
        };
        for replay in &mut self.sessions[session].replays {
            // §3.3.1.3
            let fits =
                packet.retain && packet.qos == message.qos.min(replay.qos) && has_ids(replay.id);
            let Some(replayed) = replay.topics.get_mut(topic).filter(|_| fits) else {
                continue;
            };
            if replayed.is_sent || !replayed.versions.contains(&n) || (must && !replayed.must) {
                continue;
            }
            replayed.is_sent = true;
            if let Some(kept) = self.retained.get(topic).filter(|kept| kept.n == n) {
                assert!(
                    kept.expires_at.is_none_or(|at| at > now),
                    "retained message {n} had expired"
                );
            }
            return Some(n);
        }
        None
    }

    /// What the client gets is what was published [MQTT-3.3.2-15] to [MQTT-3.3.2-20].
    fn check_message(&self, link: LinkId, n: usize, packet: &Publish) {
        let (message, conn) = (&self.messages[n], &self.conns[link]);
        assert_eq!(
            message.payload, packet.payload,
            "{link}: message {n} has changed"
        );
        let Conn {
            version: Version::V5,
            ..
        } = conn
        else {
            return assert!(packet.properties.is_none());
        };
        let mut got = packet.properties.as_deref().cloned().unwrap_or_default();
        (got.topic_alias, got.subscription_ids) = (None, Vec::new());
        let left_s = got.message_expiry_s.take();
        assert_eq!(
            got,
            message.properties.clone().unwrap_or_default(),
            "{link}: message {n} has changed"
        );
        assert_eq!(
            left_s.is_some(),
            message.expiry_s.is_some(),
            "{link}: expiry of message {n}"
        );
        assert!(
            left_s <= message.expiry_s,
            "{link}: message {n} lives longer now"
        );
    }

    /// A message is sent for the first time: not too late, and in order.
    fn check_first(&mut self, link: LinkId, session: SessionNo, index: usize, packet: &Publish) {
        let now = self.now;
        let s = &mut self.sessions[session];
        let e = &mut s.expected[index];
        e.is_sent = true;
        let message = &self.messages[e.n];
        if let Some(at) = e.expires_at {
            // [MQTT-3.3.2-5] [MQTT-3.3.2-6]
            assert!(
                at > now,
                "{link}: message {} had expired at {at:?}, and it is {now:?}",
                e.n
            );
            let left_s = packet.properties.as_ref().and_then(|p| p.message_expiry_s);
            assert!(
                left_s.is_none_or(|s| u64::from(s) == seconds_left(at, now)),
                "{link}: {left_s:?} s left"
            );
        }
        let Some(publisher) = e
            .publisher
            .filter(|_| message.routed == 1 && !s.is_unordered)
        else {
            return;
        };
        // [MQTT-4.6.0-5]
        let last = s
            .order
            .entry((publisher, message.topic, e.qos))
            .or_default();
        assert!(*last < e.seq, "{link}: message {} was overtaken", e.n);
        *last = e.seq;
    }

    /// The application of a client gets a message.
    pub(crate) fn received(&mut self, session: SessionNo, met: Met) {
        let index = match met {
            Met::Own(index) => index,
            Met::Share(index) => return self.received_share(index),
        };
        let e = &mut self.sessions[session].expected[index];
        e.received += 1;
        assert!(
            e.received == 1 || e.qos == QoS::AtLeastOnce,
            "message {} was received twice",
            e.n
        );
    }

    /// The most bytes that a message may take on its way to a client.
    pub(super) fn size_max(message: &Message, ids: &[u32]) -> usize {
        let properties = PublishProperties {
            message_expiry_s: message.expiry_s,
            subscription_ids: ids.to_vec(),
            topic_alias: std::num::NonZeroU16::new(1),
            ..message.properties.clone().unwrap_or_default()
        };
        let packet = Publish {
            dup: false,
            qos: QoS::ExactlyOnce,
            retain: true,
            topic: headgate_codec::Text::from(message.topic),
            packet_id: headgate_codec::PacketId::new(1),
            properties: Some(Box::new(properties)),
            payload: message.payload.clone(),
        };
        encoded_len(&Packet::Publish(packet), Version::V5)
    }
}

/// What the publisher has said of the message, but for how long it lives.
fn has_properties_of(message: &Message, packet: &Publish) -> bool {
    let mut got = packet.properties.as_deref().cloned().unwrap_or_default();
    (got.topic_alias, got.subscription_ids) = (None, Vec::new());
    let expires = got.message_expiry_s.take().is_some();
    expires == message.expiry_s.is_some() && got == message.properties.clone().unwrap_or_default()
}

fn seconds_left(at: Time, now: Time) -> u64 {
    at.0.saturating_sub(now.0).div_ceil(1_000).max(1)
}
