//! Subscriptions, retained messages, and who is to get a message.

use headgate_codec::{QoS, ReasonCode, SubscriptionOptions};

use super::{
    Expected, Kept, Model, Replay, Replayed, Session, SessionNo, Subscribed,
    topics::{is_filter, matches, shared},
};
use crate::network::LinkId;

/// Whether anybody gets a message.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Matched {
    pub(super) surely: bool,
    pub(super) maybe: bool,
}

impl Model {
    /// A message reaches the server: it is retained, and meant for every session that has subscribed.
    pub(super) fn route(
        &mut self,
        n: usize,
        publisher: Option<SessionNo>,
        link: Option<LinkId>,
    ) -> Matched {
        let seq = self.next_seq();
        self.messages[n].routed += 1;
        // Not yet, if it comes once more.
        self.messages[n].is_acknowledged = false;
        let message = self.messages[n].clone();
        let expires_at = message.expiry_s.map(|s| self.now.after_s(s));
        if message.retain {
            self.retain(n, expires_at);
        }
        let mut matched = self.route_shared(n, expires_at);
        for client in 0..self.current.len() {
            let Some(session) = self.current[client] else {
                continue;
            };
            let is_certain = self.is_certain(session);
            let s = &mut self.sessions[session];
            let mut all = s
                .subscriptions
                .iter()
                .filter(|(f, _)| shared(f).is_none() && matches(f, message.topic))
                .peekable();
            if all.peek().is_none() {
                continue;
            }
            matched.maybe = true;
            matched.surely |= is_certain;
            // [MQTT-3.8.3-3]
            let is_own = publisher == Some(session);
            let (local, effective): (Vec<_>, Vec<_>) =
                all.partition(|(_, sub)| is_own && sub.no_local);
            let Some(granted) = effective.iter().map(|(_, sub)| sub.qos).max() else {
                continue;
            };
            let with_ids = |subs: &[(&String, &Subscribed)]| {
                let mut ids: Vec<u32> = subs
                    .iter()
                    .map(|(_, s)| s.id)
                    .filter(|id| *id != 0)
                    .collect();
                ids.sort_unstable();
                ids
            };
            // [MQTT-3.3.4-2] [MQTT-3.8.4-8] [MQTT-3.3.1-12] [MQTT-3.3.1-13] [MQTT-3.3.4-3]
            let qos = message.qos.min(granted);
            let expected = Expected {
                n,
                qos,
                retain: message.retain && effective.iter().any(|(_, sub)| sub.retain_as_published),
                ids: with_ids(&effective),
                doubtful_ids: with_ids(&local),
                changes: s.changes,
                moves: s.moves,
                is_recorded: s.expiry_s > 0 && qos > QoS::AtMostOnce,
                link: s.link,
                expires_at,
                seq,
                publisher: link,
                is_sent: false,
                received: 0,
                is_excused: false,
            };
            s.expected.push(expected);
            self.messages[n]
                .meant_for
                .push((session, s.expected.len() - 1));
        }
        matched
    }

    /// [MQTT-3.3.1-5] [MQTT-3.3.1-6] [MQTT-3.3.1-7]
    fn retain(&mut self, n: usize, expires_at: Option<headgate_core::Time>) {
        let (topic, is_clear) = (self.messages[n].topic, self.messages[n].payload.is_empty());
        self.last_retained.insert(topic, n);
        match is_clear {
            true => self.retained.remove(topic),
            false => self.retained.insert(topic, Kept { n, expires_at }),
        };
        for session in self.current.iter().flatten() {
            for replay in &mut self.sessions[*session].replays {
                if !matches(&replay.filter, topic) {
                    continue;
                }
                let replayed = replay.topics.entry(topic).or_default();
                match is_clear {
                    true => replayed.must = false,
                    false => replayed.versions.push(n),
                }
                // A later one may expire before it is reached.
                replayed.must &= expires_at.is_none();
            }
        }
    }

    /// A filter of a SUBSCRIBE; the reason that answers it.
    pub(super) fn subscribed(
        &mut self,
        session: SessionNo,
        filter: &str,
        options: SubscriptionOptions,
        id: u32,
    ) -> ReasonCode {
        if !is_filter(filter) {
            return ReasonCode::TOPIC_FILTER_INVALID;
        }
        let s = &mut self.sessions[session];
        s.changes += 1;
        if id != 0 {
            s.ids_ever.insert(id);
        }
        let subscribed = Subscribed {
            qos: options.qos,
            no_local: options.no_local,
            retain_as_published: options.retain_as_published,
            id,
            since: self.now,
        };
        let is_new = s
            .subscriptions
            .insert(filter.to_owned(), subscribed)
            .is_none();
        if shared(filter).is_some() {
            let granted = s.shared_ever.entry(filter.to_owned()).or_default();
            granted.insert((options.qos, id));
            return ReasonCode(options.qos as u8);
        }
        // [MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11]
        if options.retain_handling == 0 || (options.retain_handling == 1 && is_new) {
            let found = self.retained.iter().filter(|(topic, kept)| {
                matches(filter, topic) && kept.expires_at.is_none_or(|at| at > self.now)
            });
            let (messages, packet_max) = (&self.messages, s.packet_max_ever as usize);
            let replayed = |kept: &Kept| {
                let is_small = Self::size_max(&messages[kept.n], &[id]) <= packet_max;
                Replayed {
                    versions: vec![kept.n],
                    must: kept.expires_at.is_none() && is_small,
                    is_sent: false,
                }
            };
            let topics = found
                .map(|(topic, kept)| (*topic, replayed(kept)))
                .collect();
            forget_replays(s, filter);
            s.replays.push(Replay {
                filter: filter.to_owned(),
                qos: options.qos,
                id,
                topics,
            });
        }
        ReasonCode(options.qos as u8)
    }

    /// A filter of an UNSUBSCRIBE; the reason that answers it.
    pub(super) fn unsubscribed(&mut self, session: SessionNo, filter: &str) -> ReasonCode {
        if !is_filter(filter) {
            return ReasonCode::TOPIC_FILTER_INVALID;
        }
        let s = &mut self.sessions[session];
        s.changes += 1;
        forget_replays(s, filter);
        match s.subscriptions.remove(filter) {
            Some(_) => ReasonCode::SUCCESS,
            None => ReasonCode::NO_SUBSCRIPTION_EXISTED,
        }
    }
}

/// The retained messages of a former subscription needn't come any more; one that waits already does.
fn forget_replays(session: &mut Session, filter: &str) {
    let replays = session.replays.iter_mut().filter(|r| r.filter == filter);
    let topics = replays.flat_map(|r| r.topics.values_mut());
    topics.for_each(|t| t.must = false);
}
