//! SUBSCRIBE and UNSUBSCRIBE (MQTT 5.0 §3.8 to §3.11).

use headgate_codec::{
    Packet, QoS, ReasonCode, ReasonProperties, SubAck, Subscribe, SubscriptionOptions, Text,
    Unsubscribe,
};
use headgate_topics::Subscriber;

use crate::{
    ConnId, Output, Record, Session,
    conns::AckBody,
    counters::{add, sub},
    hub::{Hub, levels},
    options::{Options, filters_overlap},
    session::{Replay, Subscription},
};

/// A session with more subscriptions takes it for granted that a new filter overlaps one of them:
/// to look at all would cost more than the merging does.
const OVERLAP_SEARCH_MAX: usize = 32;

impl Hub {
    /// SUBSCRIBE: each filter by itself, one answer for all \[MQTT-3.8.4-5\].
    pub(crate) fn on_subscribe(
        &mut self,
        conn: ConnId,
        slot: u32,
        packet: &Subscribe,
        out: &mut Vec<Output>,
    ) {
        let before = self.env.last_persist;
        let mut reasons = Vec::with_capacity(packet.filters.len());
        for (filter, options) in &packet.filters {
            reasons.push(self.subscribe(
                slot,
                filter,
                *options,
                packet.subscription_id.unwrap_or(0),
                out,
            ));
        }
        // [MQTT-3.8.4-1] [MQTT-3.8.4-2] [MQTT-3.9.3-1]
        let suback = SubAck {
            packet_id: packet.packet_id,
            properties: ReasonProperties::default(),
            reasons,
        };
        self.acknowledge_long(conn, slot, &Packet::SubAck(Box::new(suback)), before, out);
        self.pump(slot, out);
    }

    /// UNSUBSCRIBE \[MQTT-3.10.4-6\].
    pub(crate) fn on_unsubscribe(
        &mut self,
        conn: ConnId,
        slot: u32,
        packet: &Unsubscribe,
        out: &mut Vec<Output>,
    ) {
        let before = self.env.last_persist;
        let reasons = packet
            .filters
            .iter()
            .map(|filter| self.unsubscribe(slot, filter, out))
            .collect();
        // [MQTT-3.10.4-4] [MQTT-3.10.4-5]
        let unsuback = SubAck {
            packet_id: packet.packet_id,
            properties: ReasonProperties::default(),
            reasons,
        };
        self.acknowledge_long(
            conn,
            slot,
            &Packet::UnsubAck(Box::new(unsuback)),
            before,
            out,
        );
    }

    fn acknowledge_long(
        &mut self,
        conn: ConnId,
        slot: u32,
        packet: &Packet,
        before: crate::OpId,
        out: &mut Vec<Output>,
    ) {
        let Some(session) = self.slots.session(slot) else {
            return;
        };
        let bytes = self.env.encode(packet, session.version);
        let wait = self.wait_since(before, 0);
        self.acknowledge(conn, slot, AckBody::Other(Box::new(bytes)), wait, out);
    }

    fn subscribe(
        &mut self,
        slot: u32,
        filter: &Text,
        requested: SubscriptionOptions,
        id: u32,
        out: &mut Vec<Output>,
    ) -> ReasonCode {
        let text = filter.as_str();
        if text.starts_with("$share/") || text == "$share" {
            return ReasonCode::SHARED_SUBSCRIPTIONS_NOT_SUPPORTED;
        }
        if headgate_topics::validate_filter(text).is_err() {
            return ReasonCode::TOPIC_FILTER_INVALID;
        }
        let Self {
            env, slots, shared, ..
        } = self;
        let Some(session) = slots.session(slot) else {
            return ReasonCode::UNSPECIFIED_ERROR;
        };
        // [MQTT-3.8.4-3]
        let existing = session
            .subscriptions
            .iter()
            .position(|s| *s.filter == *text);
        let is_full = existing.is_none()
            && session.subscriptions.len() >= env.limits.subscriptions_per_session as usize;
        if is_full || levels(text) > usize::from(env.limits.topic_levels) {
            add(&mut env.counters.limit_subscriptions, 1);
            return ReasonCode::QUOTA_EXCEEDED;
        }
        let options = Options::new(requested, id != 0)
            .with(Options::PERSISTENT, session.is_persistent())
            .with(
                Options::OVERLAPS,
                overlaps(&session.subscriptions, text, existing),
            );
        // The entry is replaced in one step: nothing is lost between [MQTT-3.8.4-4].
        shared
            .topics
            .subscribe(text, Subscriber::new(session.handle.0, options.0));
        let subscription = Subscription {
            filter: text.into(),
            id,
            options,
        };
        if let Some(index) = existing {
            session.subscriptions[index] = subscription;
        } else {
            add(&mut env.counters.subscriptions, 1);
            reserve(&mut session.subscriptions);
            session.subscriptions.push(subscription);
        }
        let record = Record::Subscribed {
            filter: Text::from(text),
            options: wire(requested),
            subscription_id: (id != 0).then_some(id),
        };
        session.persist(env, record, out);
        // [MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11]
        if requested.retain_handling == 0 || (requested.retain_handling == 1 && existing.is_none())
        {
            session.replay_retained(text, id, requested.qos, !shared.retained.is_empty());
        }
        // [MQTT-3.8.4-7]: what is asked for is granted.
        ReasonCode(requested.qos as u8)
    }

    fn unsubscribe(&mut self, slot: u32, filter: &Text, out: &mut Vec<Output>) -> ReasonCode {
        let text = filter.as_str();
        if headgate_topics::validate_filter(text).is_err() {
            return ReasonCode::TOPIC_FILTER_INVALID;
        }
        let Self {
            env, slots, shared, ..
        } = self;
        let Some(session) = slots.session(slot) else {
            return ReasonCode::UNSPECIFIED_ERROR;
        };
        // [MQTT-3.10.4-1]
        let Some(index) = session
            .subscriptions
            .iter()
            .position(|s| *s.filter == *text)
        else {
            return ReasonCode::NO_SUBSCRIPTION_EXISTED;
        };
        session.subscriptions.swap_remove(index);
        sub(&mut env.counters.subscriptions, 1);
        shared.topics.unsubscribe(text, session.handle.0);
        if let Some(flow) = &mut session.flow {
            flow.replays.retain(|r| *r.filter != *text);
        }
        session.persist(
            env,
            Record::Unsubscribed {
                filter: Text::from(text),
            },
            out,
        );
        ReasonCode::SUCCESS
    }
}

impl Session {
    /// Begins to send the retained messages for a subscription; at most once for each filter.
    fn replay_retained(&mut self, filter: &str, id: u32, qos: QoS, is_any: bool) {
        if let Some(flow) = &mut self.flow {
            flow.replays.retain(|r| *r.filter != *filter);
        }
        if is_any {
            self.flow().replays.push_back(Replay {
                filter: filter.into(),
                after: None,
                id,
                qos,
            });
        }
    }
}

/// Another filter may match the same topics. It is enough to mark the later one: then a match of
/// both has a marked entry.
fn overlaps(subscriptions: &[Subscription], filter: &str, existing: Option<usize>) -> bool {
    if subscriptions.len() > OVERLAP_SEARCH_MAX {
        return true;
    }
    let others = subscriptions
        .iter()
        .enumerate()
        .filter(|(i, _)| Some(*i) != existing);
    others
        .into_iter()
        .any(|(_, s)| filters_overlap(&s.filter, filter))
}

/// Room for one more, and little else while there are few.
fn reserve(subscriptions: &mut Vec<Subscription>) {
    let len = subscriptions.len();
    if len == subscriptions.capacity() {
        subscriptions.reserve_exact(if len < 8 { 1 } else { len / 2 });
    }
}

/// Subscription Options as on the wire (§3.8.3.1).
fn wire(options: SubscriptionOptions) -> u8 {
    options.qos as u8
        | u8::from(options.no_local) << 2
        | u8::from(options.retain_as_published) << 3
        | (options.retain_handling & 0b11) << 4
}
