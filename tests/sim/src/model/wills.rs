//! Wills (§3.1.2.5): published when their time has come, whatever crashes.

use headgate_core::Time;
use std::collections::BTreeSet;

use super::{LATE_MS, LateWill, Model, SessionNo, number_of};
use crate::store::Db;

impl Model {
    /// Something shows that a will is being published.
    pub(crate) fn sensed(&mut self, payload: &[u8]) {
        let Some(n) = number_of(payload) else { return };
        let is_new_will = self
            .messages
            .get(n)
            .is_some_and(|m| m.is_will && m.routed == 0);
        if !is_new_will {
            return;
        }
        let owner = self
            .sessions
            .iter()
            .position(|s| s.will.as_ref().is_some_and(|w| w.n == n && w.due.is_some()));
        let late = self.late_wills.iter().position(|late| late.n == n);
        if let Some(late) = late {
            let owner = self.late_wills.swap_remove(late).owner;
            self.messages[n].is_kept = true;
            // Its session has moved on meanwhile, and so may get it in spite of No Local.
            self.route(n, None, None);
            for (session, index) in self.messages[n].meant_for.clone() {
                let expected = &mut self.sessions[session].expected[index];
                expected.is_excused |= Some(session) == owner;
            }
            return;
        }
        let Some(owner) = owner else {
            panic!("the will {n} was published although it was revoked or its client is connected");
        };
        let now = self.now;
        let is_limbo = self.is_in_limbo(self.sessions[owner].client);
        let s = &mut self.sessions[owner];
        let due = s.will.take().and_then(|w| w.due).unwrap_or(now);
        if due > now && !s.has_ended {
            assert!(
                is_limbo || s.is_doubtful,
                "the will {n} was published at {now:?}, not at {due:?}"
            );
            s.early_will = Some(n);
        }
        self.messages[n].is_kept = s.expiry_s > 0;
        self.route(n, Some(owner), None);
    }

    /// Wills whose time had come by `until` were published, or nobody would have got them.
    pub(super) fn check_overdue_wills(&mut self, session: SessionNo, until: Time) {
        let s = &self.sessions[session];
        let Some(will) = s.will.as_ref().filter(|w| w.due.is_some()) else {
            return;
        };
        let is_due = s.has_ended || will.due.is_some_and(|at| at.after_ms(LATE_MS) < until);
        if !is_due || s.is_unordered || will.may_be_revoked || will.is_doubtful {
            return;
        }
        let (n, due) = (will.n, will.due.unwrap_or(until).min(until));
        self.check_nobody_missed(n, Some(session), due);
        self.sessions[session].will = None;
        self.pass_by(n, Some(session));
    }

    /// The same for those that had to wait until all sessions were there.
    pub(super) fn check_late_wills(&mut self) {
        if self.is_restoring {
            return;
        }
        for late in self
            .late_wills
            .extract_if(.., |late| late.is_sure)
            .collect::<Vec<_>>()
        {
            self.check_nobody_missed(late.n, late.owner, late.since);
            self.pass_by(late.n, late.owner);
        }
    }

    fn check_nobody_missed(&self, n: usize, owner: Option<SessionNo>, due: Time) {
        let message = &self.messages[n];
        assert!(!message.retain, "the retained will {n} was not published");
        for (other, s) in self.sessions.iter().enumerate() {
            // While a session moves, messages for it may be held back.
            let is_still = s.recent_homes.len() <= 1 && s.expected.iter().all(|e| e.is_sent);
            let is_small = Self::size_max(message, &[u32::MAX >> 4]) <= s.packet_max_ever as usize;
            let is_still = is_still && is_small && !self.scenario.tight;
            let is_idle = s
                .link
                .is_some_and(|link| self.conns[link].outstanding.is_empty());
            let is_up = is_idle && s.link_since < due && is_still && self.is_certain(other);
            let matching = s.subscriptions.iter().find(|(filter, sub)| {
                sub.since < due && super::topics::matches(filter, message.topic)
            });
            if let (true, Some((filter, _)), true) = (is_up, matching, Some(other) != owner) {
                panic!("the will {n} was not published: c{} has {filter}", s.client);
            }
        }
    }

    /// It waits somewhere, or nobody has subscribed: from now on it may arrive.
    fn pass_by(&mut self, n: usize, owner: Option<SessionNo>) {
        self.route(n, owner, None);
        self.excuse_shares(n);
        for (to, index) in self.messages[n].meant_for.clone() {
            self.sessions[to].expected[index].is_excused = true;
        }
    }

    /// A restart: of each will that was to be published still, the store knows. `connecting`: clients whose CONNECT was
    /// being completed.
    pub(super) fn check_kept_wills(&self, db: &Db, connecting: &BTreeSet<usize>) {
        let pending = pending_wills(db);
        let is_kept = |n: usize| {
            assert!(
                pending.contains(&n),
                "the will {n} was not published, and the store has forgotten it"
            );
        };
        for late in self.late_wills.iter().filter(|late| late.is_sure) {
            if self.is_restoring {
                is_kept(late.n);
            }
        }
        for s in &self.sessions {
            let Some(will) = &s.will else { continue };
            // Where nobody has subscribed, nothing shows that it was published.
            let waits =
                self.is_restoring || !s.has_ended && will.due.is_none_or(|due| due > self.now);
            let is_open = s.is_doubtful || will.may_be_revoked || will.is_doubtful;
            if waits && s.expiry_s > 0 && !is_open && !connecting.contains(&s.client) {
                is_kept(will.n);
            }
        }
    }

    /// A restart: what the store still has of wills is published (once more), and of those that it has not, what was
    /// recorded for others is there.
    pub(super) fn revive_wills(&mut self, db: &Db) {
        let pending = pending_wills(db);
        for n in 0..self.messages.len() {
            if !self.messages[n].is_will || self.messages[n].routed == 0 {
                continue;
            }
            let (is_pending, is_kept) = (pending.contains(&n), self.messages[n].is_kept);
            for (session, index) in self.messages[n].meant_for.clone() {
                let e = &mut self.sessions[session].expected[index];
                e.is_excused |= is_pending || !is_kept || !e.is_recorded;
                e.is_sent |= is_pending;
            }
            self.excuse_shares(n);
            if is_pending {
                self.messages[n].routed = 0;
            }
        }
        self.late_wills = db
            .wills
            .values()
            .filter_map(|message| number_of(&message.payload))
            .map(|n| LateWill {
                n,
                owner: None,
                since: self.now,
                is_sure: true,
            })
            .collect();
    }
}

/// Numbers of the wills that the store knows.
fn pending_wills(db: &Db) -> BTreeSet<usize> {
    let of_sessions = db
        .sessions
        .values()
        .filter_map(|s| s.restored.will.as_ref());
    let of_sessions = of_sessions.map(|will| &will.payload);
    let due = db.wills.values().map(|message| &message.payload);
    of_sessions
        .chain(due)
        .filter_map(|payload| number_of(payload))
        .collect()
}
