//! SUBSCRIBE and UNSUBSCRIBE (MQTT 5.0 §3.8 to §3.11).

use headgate_codec::{
    Packet, QoS, ReasonCode, ReasonProperties, SubAck, Subscribe, SubscriptionOptions, Text,
    Unsubscribe,
};
use headgate_topics::Subscriber;

use crate::{
    ConnId, Output, Record, Session, Shared, StorageState,
    close::End,
    conns::AckBody,
    counters::{add, sub},
    hub::{Hub, levels},
    lanes::{self, Way},
    options::{Options, filters_overlap},
    reasons,
    session::Replay,
    share,
    subscriptions::{Place, Subscription, Subscriptions},
};

/// A session with more subscriptions takes it for granted that a new filter overlaps one of them:
/// to look at all would cost more than the merging does.
const OVERLAP_SEARCH_MAX: usize = 32;

/// A SUBACK with a Reason String and without Reason Codes is shorter.
const EXPLANATION_BYTES: usize = 128;

impl Hub {
    /// SUBSCRIBE: each filter by itself, one answer for all \[MQTT-3.8.4-5\].
    pub(crate) fn on_subscribe(
        &mut self,
        conn: ConnId,
        slot: u32,
        packet: &Subscribe,
        out: &mut Vec<Output>,
    ) {
        // [MQTT-3.8.3-4]
        let is_wrong = |(filter, options): &(Text, SubscriptionOptions)| {
            options.no_local && filter.as_str().starts_with("$share/")
        };
        if packet.filters.iter().any(is_wrong) {
            return self.protocol_error(conn, ReasonCode::PROTOCOL_ERROR, out);
        }
        let before = self.env.last_persist;
        let way = Way {
            stream: self.stream,
            datagram: lanes::wants_datagrams(&packet.user_properties)
                && self.env.limits.datagrams
                && self.conns.get(conn).is_some_and(|c| c.is_quic),
        };
        let mut reasons = Vec::with_capacity(packet.filters.len());
        for (filter, options) in &packet.filters {
            let id = packet.subscription_id.unwrap_or(0);
            let reason = self.subscribe(slot, filter, *options, id, out);
            if reason.0 < 0x80
                && let Some(session) = self.slots.session(slot)
            {
                session.add_route(filter, way);
            }
            reasons.push(reason);
        }
        // [MQTT-3.8.4-1] [MQTT-3.8.4-2] [MQTT-2.2.1-6] [MQTT-3.8.4-6] [MQTT-3.9.3-1]
        let suback = SubAck {
            packet_id: packet.packet_id,
            properties: self.explained(slot, &reasons),
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
        // [MQTT-3.10.4-4] [MQTT-3.10.4-5] [MQTT-2.2.1-6] [MQTT-3.11.3-1]
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

    /// A Reason String for the first error, if the client wants it and has room for it
    /// \[MQTT-3.1.2-29\] \[MQTT-3.9.2-1\].
    fn explained(&mut self, slot: u32, reasons: &[ReasonCode]) -> ReasonProperties {
        let error = reasons.iter().find(|reason| reason.0 >= 0x80);
        let text = error.and_then(|reason| reasons::explain(*reason));
        let wants = self.slots.session(slot).is_some_and(|s| {
            s.problem_info && s.packet_bytes_max as usize >= reasons.len() + EXPLANATION_BYTES
        });
        ReasonProperties {
            reason_string: text.filter(|_| wants).map(Text::from),
            ..ReasonProperties::default()
        }
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
        // [MQTT-3.1.2-24]: there is no shorter answer, and none at all would leave the client waiting.
        if bytes.len() > session.packet_bytes_max as usize {
            return self.close(conn, End::Server(ReasonCode::PACKET_TOO_LARGE), out);
        }
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
        let Ok(of_group) = share::parse(text) else {
            return ReasonCode::TOPIC_FILTER_INVALID;
        };
        if headgate_topics::validate_filter(of_group.unwrap_or(text)).is_err() {
            return ReasonCode::TOPIC_FILTER_INVALID;
        }
        let (denied, reason) = &self.config.denied_filters;
        if denied
            .iter()
            .any(|denied| *denied == of_group.unwrap_or(text))
        {
            return *reason;
        }
        let Self {
            env, slots, shared, ..
        } = self;
        let Some(session) = slots.session(slot) else {
            return ReasonCode::UNSPECIFIED_ERROR;
        };
        if env.storage != StorageState::Ok && session.is_recorded {
            add(&mut env.counters.storage_refused_subscribe, 1);
            return ReasonCode::QUOTA_EXCEEDED;
        }
        // [MQTT-3.8.4-3]
        let existing = session.subscriptions.find(text);
        let is_full = existing.is_none()
            && session.subscriptions.len() >= env.subscriptions_max(session.quota_class);
        if is_full || levels(text) > usize::from(env.limits.topic_levels) {
            add(&mut env.counters.limit_subscriptions, 1);
            return ReasonCode::QUOTA_EXCEEDED;
        }
        let wanted = Wanted {
            filter: text,
            of_group,
            options: requested,
            id,
        };
        shared.enter(session, &wanted, existing);
        if existing.is_none() {
            add(&mut env.counters.subscriptions, 1);
        }
        let record = Record::Subscribed {
            filter: Text::from(text),
            options: wire(requested),
            subscription_id: (id != 0).then_some(id),
        };
        session.persist(env, record, out);
        // [MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11]; none for a Shared Subscription (§4.8.2).
        let is_wanted = match requested.retain_handling {
            0 => true,
            1 => existing.is_none(),
            _ => false,
        };
        if is_wanted && of_group.is_none() {
            let is_any = !shared.retained.is_loaded() || !shared.retained.is_empty();
            session.replay_retained(text, id, requested.qos, is_any);
        }
        // [MQTT-3.8.4-7]: what is asked for is granted.
        ReasonCode(requested.qos as u8)
    }

    fn unsubscribe(&mut self, slot: u32, filter: &Text, out: &mut Vec<Output>) -> ReasonCode {
        let text = filter.as_str();
        let is_valid = share::parse(text).is_ok_and(|of_group| {
            headgate_topics::validate_filter(of_group.unwrap_or(text)).is_ok()
        });
        if !is_valid {
            return ReasonCode::TOPIC_FILTER_INVALID;
        }
        let Self {
            env, slots, shared, ..
        } = self;
        let Some(session) = slots.session(slot) else {
            return ReasonCode::UNSPECIFIED_ERROR;
        };
        // [MQTT-3.10.4-1]
        let Some(place) = session.subscriptions.find(text) else {
            return ReasonCode::NO_SUBSCRIPTION_EXISTED;
        };
        shared.remove(session.subscriptions.at(place), session.handle);
        session.subscriptions.remove(place);
        sub(&mut env.counters.subscriptions, 1);
        session.remove_route(text);
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

/// A subscription that is to be made.
pub(crate) struct Wanted<'a> {
    pub(crate) filter: &'a str,
    /// The filter behind `$share/ShareName/`, if it is one of a group.
    pub(crate) of_group: Option<&'a str>,
    pub(crate) options: SubscriptionOptions,
    /// Subscription Identifier; 0 = none.
    pub(crate) id: u32,
}

impl Shared {
    /// Gives a session a subscription, in place of the `existing` one, and puts it into the topic table or into its
    /// group.
    pub(crate) fn enter(
        &self,
        session: &mut Session,
        wanted: &Wanted<'_>,
        existing: Option<Place>,
    ) {
        let text = wanted.filter;
        let options = Options::new(wanted.options, wanted.id != 0)
            .with(Options::PERSISTENT, session.is_persistent())
            .with(
                Options::OVERLAPS,
                wanted.of_group.is_none() && overlaps(&session.subscriptions, text, existing),
            )
            .with(Options::SHARED, wanted.of_group.is_some());
        let entry = Subscriber::new(session.handle.0, options.0);
        let group = match wanted.of_group {
            // The entry is replaced in one step: nothing is lost between [MQTT-3.8.4-4].
            None => {
                self.topics.subscribe(text, entry);
                0
            }
            Some(filter) => {
                let state = session.member_state();
                self.shares.join(&self.topics, (text, filter), entry, state)
            }
        };
        let subscription = Subscription {
            filter: text,
            id: wanted.id,
            group,
            options,
        };
        match existing {
            Some(place) => session.subscriptions.replace(place, subscription),
            None => session.subscriptions.push(subscription),
        }
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
fn overlaps(subscriptions: &Subscriptions, filter: &str, existing: Option<Place>) -> bool {
    if subscriptions.len() > OVERLAP_SEARCH_MAX {
        return true;
    }
    subscriptions
        .places()
        .filter(|place| Some(*place) != existing)
        .map(|place| subscriptions.at(place))
        .any(|s| s.group == 0 && filters_overlap(s.filter, filter))
}

/// Subscription Options as on the wire (§3.8.3.1).
fn wire(options: SubscriptionOptions) -> u8 {
    options.qos as u8
        | u8::from(options.no_local) << 2
        | u8::from(options.retain_as_published) << 3
        | (options.retain_handling & 0b11) << 4
}
