//! What a restart of everything leaves: all that was acknowledged, and of the rest what the disk happens to have kept.

use headgate_codec::{Packet, QoS};
use headgate_core::{Loaded, Time};
use std::collections::{BTreeMap, BTreeSet};

use super::{Kept, Met, Model, PendingWill, Phase, Sent, SessionNo, Subscribed, number_of};
use crate::{
    network::LinkId,
    store::{Db, Stored},
};

/// What was on its way when it happened.
#[derive(Default)]
struct Doubts {
    /// Clients whose CONNECT was being completed.
    connecting: BTreeSet<usize>,
    /// Sessions that had asked for something that isn't answered.
    asking: BTreeSet<SessionNo>,
    /// Messages that aren't acknowledged, and with QoS 2 their publisher's session and Packet Identifier.
    unacknowledged: BTreeMap<usize, Option<(SessionNo, u16)>>,
}

impl Model {
    /// Everything begins anew with what the store has: `db`, in the order in which sessions are spread over workers.
    pub(crate) fn restarted(&mut self, db: &Db, now: Time) {
        self.has_crashed = true;
        self.answering = None;
        let doubts = self.doubts();
        for conn in &mut self.conns {
            conn.phase = Phase::Gone;
            conn.held.clear();
        }
        self.check_kept_wills(db, &doubts.connecting);
        self.is_restoring = true;
        self.connecting.fill(0);
        self.ghosts.fill(0);
        self.clean_ghosts.fill(false);
        self.ended.clear();
        self.queued.clear();
        self.persisted.fill(headgate_core::OpId(0));
        self.check_retained(db);
        self.keep_sessions(db, &doubts);
        self.drop_unsafe(db, &doubts);
        for (place, stored) in db.sessions.values().enumerate() {
            self.take_over(stored, place % self.scenario.workers, &doubts, now);
        }
        for session in self.current.clone().into_iter().flatten() {
            let s = &mut self.sessions[session];
            let replays = s.replays.iter_mut().flat_map(|r| r.topics.values_mut());
            replays.for_each(|t| t.must = false);
        }
    }

    /// No session is to come any more.
    pub(crate) fn all_restored(&mut self) {
        self.is_restoring = false;
    }

    /// A message that is routed before all sessions are there would miss some, and what comes behind it stays there.
    pub(super) fn must_wait(&self, link: LinkId, packet: &Packet) -> bool {
        let is_routed = matches!(packet, Packet::Publish(p) if p.qos != QoS::AtMostOnce);
        !self.conns[link].held.is_empty() || self.is_restoring && is_routed
    }

    /// A worker learns that all sessions are there: what its connections, in this order, have sent goes on.
    pub(crate) fn go_on_restored(&mut self, links: &[LinkId]) {
        self.answering = None;
        let mut count = 0;
        for &link in links {
            for packet in std::mem::take(&mut self.conns[link].held) {
                let Phase::Up(session) = self.conns[link].phase else {
                    break;
                };
                let faults = self.conns[link].faults.len();
                self.handled_up(link, session, &packet);
                count += 1;
                if self.conns[link].faults.len() > faults {
                    break;
                }
            }
        }
        // Which of the answers a record belongs to doesn't show.
        if count > 1 {
            self.answering = None;
        }
    }

    fn doubts(&self) -> Doubts {
        let mut doubts = Doubts::default();
        for (client, count) in self.connecting.iter().enumerate() {
            if count + self.ghosts[client] > 0 {
                doubts.connecting.insert(client);
            }
        }
        for conn in &self.conns {
            let Some(publisher) = conn.session else {
                continue;
            };
            for answer in &conn.answers {
                doubts.asking.insert(publisher);
                // On an earlier connection: it may have been sent once more, and acknowledged then.
                let is_up = conn.phase != Phase::Gone;
                if let Some((n, id)) = answer.of_message() {
                    let id = id.filter(|_| is_up);
                    doubts
                        .unacknowledged
                        .insert(n, id.map(|id| (publisher, id)));
                }
            }
        }
        doubts
    }

    /// Which clients have a session.
    fn keep_sessions(&mut self, db: &Db, doubts: &Doubts) {
        for client in 0..self.current.len() {
            let name = format!("c{client}");
            let mut all = db
                .sessions
                .values()
                .filter(|s| *s.restored.client_id == *name);
            let stored = all.next();
            assert!(
                all.next().is_none(),
                "two sessions of {name} are in the store"
            );
            let current = self.current[client];
            let kept = stored.map(|s| s.restored.id);
            let former = self
                .sessions
                .iter()
                .rposition(|s| kept.is_some() && s.core_id == kept);
            assert!(
                former.is_none_or(|former| current.is_none_or(|current| former >= current)),
                "a session that {name} was told to be gone is back"
            );
            if let Some(session) = current.filter(|s| self.sessions[*s].core_id != kept) {
                let s = &self.sessions[session];
                let has_expired = s.link.is_none() && s.expires_at.is_some_and(|at| at <= self.now);
                assert!(
                    s.expiry_s == 0
                        || s.is_doubtful
                        || has_expired
                        || doubts.connecting.contains(&client),
                    "the session of {name} is lost"
                );
            }
            if current.is_none_or(|s| self.sessions[s].core_id != kept || kept.is_none()) {
                if let Some(session) = current {
                    self.sessions[session].link = None;
                    self.end_session(session);
                    self.sessions[session].will = None;
                }
                // One that ended a moment ago may be there again: nobody was told of its end.
                if kept.is_some() {
                    let former = self.sessions.iter().rposition(|s| s.core_id == kept);
                    let session = former.unwrap_or_else(|| self.begin_session(client));
                    self.sessions[session].has_ended = false;
                    self.sessions[session].core_id = kept;
                    self.current[client] = Some(session);
                }
            }
        }
        // The wills of those that have ended went with what had made them end, or wait no longer.
        for s in self.sessions.iter_mut().filter(|s| s.has_ended) {
            s.will = None;
        }
    }

    /// What wasn't acknowledged may be lost; with QoS 2 either its publisher's Packet Identifier is known and it is in
    /// every queue, or nothing is known of it.
    fn drop_unsafe(&mut self, db: &Db, doubts: &Doubts) {
        for (&n, of_publisher) in &doubts.unacknowledged {
            let publisher = of_publisher.map(|(session, id)| (&self.sessions[session], id));
            let known = publisher.map(|(s, id)| {
                let stored = s.core_id.and_then(|core_id| db.sessions.get(&core_id));
                stored.is_some_and(|stored| stored.received.contains(&id))
            });
            let lasts = publisher.is_some_and(|(s, _)| s.expiry_s > 0);
            for (session, index) in self.messages[n].meant_for.clone() {
                let e = &mut self.sessions[session].expected[index];
                match (lasts, known) {
                    (true, Some(true)) => {}
                    (true, Some(false)) => (e.is_excused, e.is_sent) = (true, true),
                    _ => e.is_excused = true,
                }
            }
            self.excuse_shares(n);
        }
        self.revive_wills(db);
    }

    /// A session is what the store says, as far as that was open.
    fn take_over(&mut self, stored: &Stored, worker: usize, doubts: &Doubts, now: Time) {
        let r = &stored.restored;
        let found = self.current.iter().flatten().copied();
        let Some(session) = found
            .into_iter()
            .find(|s| self.sessions[*s].core_id == Some(r.id))
        else {
            panic!("a session of nobody is in the store: {r:?}");
        };
        let is_open = doubts.asking.contains(&session)
            || doubts.connecting.contains(&self.sessions[session].client);
        self.take_subscriptions(session, stored, is_open);
        let s = &mut self.sessions[session];
        if !is_open {
            assert_eq!(
                s.received, stored.received,
                "Packet Identifiers of c{}",
                s.client
            );
        }
        s.received = stored.received.clone();
        (s.link, s.is_doubtful, s.moves) = (None, false, s.moves + 1);
        (s.home, s.recent_homes) = (Some(worker), BTreeSet::from([worker]));
        s.expiry_s = r.expiry_s;
        s.expires_at = match (r.is_connected, r.expiry_s) {
            (true, u32::MAX) => None,
            (true, expiry_s) => Some(now.after_s(expiry_s)),
            (false, _) => r.expires_at,
        };
        s.lingers = !s.shared_ever.is_empty();
        s.early_will = None;
        s.will = r.will.as_ref().map(|will| {
            let delay_s = will.delay_s.unwrap_or(0);
            PendingWill {
                n: number_of(&will.payload).expect("wills have numbers"),
                delay_s,
                due: match r.is_connected {
                    true => Some(now.after_s(delay_s.min(r.expiry_s))),
                    false => r.will_at,
                },
                may_be_revoked: false,
                is_doubtful: false,
            }
        });
        self.take_sent(session, stored);
    }

    fn take_subscriptions(&mut self, session: SessionNo, stored: &Stored, is_open: bool) {
        let now = self.now;
        let s = &mut self.sessions[session];
        let kept: BTreeMap<String, Subscribed> = stored
            .restored
            .subscriptions
            .iter()
            .map(|sub| {
                let former = s.subscriptions.get(sub.filter.as_str());
                let subscribed = Subscribed {
                    qos: match sub.options & 3 {
                        0 => QoS::AtMostOnce,
                        1 => QoS::AtLeastOnce,
                        _ => QoS::ExactlyOnce,
                    },
                    no_local: sub.options & 4 != 0,
                    retain_as_published: sub.options & 8 != 0,
                    id: sub.subscription_id.unwrap_or(0),
                    since: former.map_or(now, |f| f.since),
                };
                (sub.filter.to_string(), subscribed)
            })
            .collect();
        let names = |of: &BTreeMap<String, Subscribed>| {
            of.iter()
                .map(|(f, s)| (f.clone(), s.qos, s.id))
                .collect::<Vec<_>>()
        };
        if !is_open {
            assert_eq!(
                names(&s.subscriptions),
                names(&kept),
                "subscriptions of c{}",
                s.client
            );
        }
        s.changes += u32::from(names(&s.subscriptions) != names(&kept));
        s.subscriptions = kept;
    }

    /// What the client may have been sent is sent again, with DUP, or PUBREL is.
    fn take_sent(&mut self, session: SessionNo, stored: &Stored) {
        let mut former = std::mem::take(&mut self.sessions[session].sent);
        for loaded in stored.sent() {
            let id = loaded.packet_id.get();
            let old = former.remove(&id);
            // PUBREC has come: which message it was is of no interest.
            if loaded.message.is_none() {
                let (n, met) = old.map_or((0, None), |old| (old.n, old.met));
                let sent = Sent::again(n, met, loaded.qos, true);
                self.sessions[session].sent.insert(id, sent);
                continue;
            }
            let n = loaded.message.as_ref().and_then(|m| number_of(&m.payload));
            let Some(n) = n.or(old.as_ref().map(|old| old.n)).or_else(|| {
                let message = loaded.message.as_ref()?;
                let is_it = |m: &super::Message| {
                    let expires = m.expiry_s.is_some() == message.expires_at.is_some();
                    m.payload.is_empty() && *m.topic == *message.topic && expires
                };
                let awaits = |m: &super::Message| {
                    let mut meant = m.meant_for.iter().filter(|(to, _)| *to == session);
                    meant.any(|(_, index)| {
                        let e = &self.sessions[session].expected[*index];
                        e.qos == loaded.qos && e.received == 0
                    })
                };
                let mut all = self.messages.iter();
                let best = all.rposition(|m| is_it(m) && awaits(m));
                best.or_else(|| self.messages.iter().rposition(is_it))
            }) else {
                continue;
            };
            let index = self.queued_for(session, n, loaded);
            // What was sent to it before is the message itself, and this what is retained of it.
            let is_other =
                |index: &usize| old.is_some() || self.sessions[session].expected[*index].is_sent;
            let index = index.filter(|index| !loaded.retain || !is_other(index));
            let met = old
                .and_then(|old| old.met.filter(|_| old.n == n))
                .or(index.map(Met::Own));
            let met = met.or_else(|| self.take_share(session, n, loaded));
            if let Some(Met::Own(index)) = met {
                self.sessions[session].expected[index].is_sent = true;
            }
            let sent = Sent::again(n, met, loaded.qos, loaded.message.is_none());
            self.sessions[session].sent.insert(id, sent);
        }
    }

    /// The expectation that an entry of a session's queue is for. A message that was published once more has several, and
    /// the session may have changed its subscription in between.
    fn queued_for(&self, session: SessionNo, n: usize, loaded: &Loaded) -> Option<usize> {
        if loaded.group.is_some() {
            return None;
        }
        let meant = self.messages[n].meant_for.iter();
        let meant = || meant.clone().filter(|(to, _)| *to == session);
        let of_qos = |index: &usize| self.sessions[session].expected[*index].qos == loaded.qos;
        let all = || meant().map(|(_, index)| *index).filter(of_qos);
        let is_awaited = |index: &usize| self.sessions[session].expected[*index].received == 0;
        all().rev().find(is_awaited).or_else(|| all().next_back())
    }

    /// What only a queue had of a group's message: it is sent for the first time now, as if it were again.
    fn take_share(&mut self, session: SessionNo, n: usize, loaded: &Loaded) -> Option<Met> {
        let group = loaded.group.as_ref()?;
        let link = self
            .conns
            .iter()
            .rposition(|c| c.session == Some(session))?;
        let index = self.share_of(session, n, group, loaded.qos)?;
        self.shares[index].take(session, link, loaded.qos);
        Some(Met::Share(index))
    }

    /// Where the last change of a retained message was acknowledged, the store has it; elsewhere it says what is retained.
    fn check_retained(&mut self, db: &Db) {
        let topics: BTreeSet<&'static str> = self.last_retained.keys().copied().collect();
        for topic in topics {
            let last = self.last_retained[topic];
            let kept = db.retained.get(topic);
            let n = kept.and_then(|m| number_of(&m.payload));
            if self.messages[last].is_acknowledged {
                let expected = (!self.messages[last].payload.is_empty()).then_some(last);
                assert_eq!(n, expected, "the retained message of {topic}");
            }
            match (n, kept) {
                (Some(n), Some(message)) => {
                    let expires_at = message.expires_at;
                    self.retained.insert(topic, Kept { n, expires_at });
                }
                _ => drop(self.retained.remove(topic)),
            }
        }
    }
}

impl Sent {
    fn again(n: usize, met: Option<Met>, qos: QoS, is_released: bool) -> Self {
        Self {
            n,
            met,
            qos,
            is_released,
            may_vanish: true,
        }
    }
}
