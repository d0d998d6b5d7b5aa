//! What must have come true when all is quiet.

use headgate_codec::QoS;
use std::collections::BTreeMap;

use super::{Model, Phase, SessionNo};

impl Model {
    /// Nothing is on its way any more between workers, directory and store; `quiet`: clients whose connections have
    /// taken everything, too.
    pub(crate) fn settled(&mut self, quiet: &[bool]) {
        for session in std::mem::take(&mut self.ended) {
            self.check_overdue_wills(session, self.now);
        }
        self.check_late_wills();
        for (client, is_quiet) in quiet.iter().enumerate() {
            let is_ghostly = std::mem::take(&mut self.ghosts[client]) > 0;
            self.clean_ghosts[client] = false;
            let Some(session) = self.current[client] else {
                continue;
            };
            let s = &mut self.sessions[session];
            if let Some(will) = s.will.as_mut().filter(|_| is_ghostly) {
                will.is_doubtful |= will.may_be_revoked;
            }
            if is_ghostly && self.connecting[client] == 0 {
                s.home = s.link.map(|link| self.conns[link].worker);
            }
            s.is_doubtful &= s.link.is_none();
            s.lingers = false;
            s.recent_homes = s.home.into_iter().collect();
            if *is_quiet && s.link.is_some() {
                self.check_replays(session);
            }
        }
    }

    /// Every retained message that a new subscription had to get was sent.
    fn check_replays(&mut self, session: SessionNo) {
        let s = &mut self.sessions[session];
        for replay in std::mem::take(&mut s.replays) {
            for (topic, replayed) in &replay.topics {
                let sizes = replayed
                    .versions
                    .iter()
                    .map(|n| Self::size_max(&self.messages[*n], &[replay.id]));
                let is_small = sizes
                    .max()
                    .is_none_or(|size| size <= s.packet_max_ever as usize);
                assert!(
                    replayed.is_sent || !replayed.must || !is_small || self.scenario.tight,
                    "c{} subscribed to {} and did not get what is retained for {topic}",
                    s.client,
                    replay.filter
                );
            }
        }
    }

    /// Clients that have a session to come back to.
    pub(crate) fn unfinished(&self) -> Vec<usize> {
        let has_link = |s: SessionNo| self.sessions[s].link.is_some();
        let offline = |c: &usize| self.current[*c].is_some_and(|s| !has_link(s));
        (0..self.current.len()).filter(offline).collect()
    }

    /// Everybody has come back and has taken everything. `dropped`: messages that the server has counted as dropped
    /// because a queue was full.
    pub(crate) fn finished(&self, dropped: u64) {
        assert!(
            self.scenario.tight || dropped == 0,
            "{dropped} messages were dropped"
        );
        let mut missing = self.missing_shares();
        for session in self.current.iter().flatten() {
            let s = &self.sessions[*session];
            for e in &s.expected {
                let message = &self.messages[e.n];
                let has_expired = e.expires_at.is_some_and(|at| at <= self.now);
                let size = Self::size_max(message, &e.ids);
                let is_lossy = e.qos == QoS::AtMostOnce
                    && (e.link.is_none() || e.link != s.link || e.moves != s.moves);
                let is_too_large = size > s.packet_max_ever as usize;
                // After a restart its publisher had to send it again: one of them is enough.
                let came_again = message.routed > 1
                    && s.expected
                        .iter()
                        .any(|other| other.n == e.n && other.received > 0);
                let is_excused = e.is_excused || came_again;
                if e.received == 0 && !has_expired && !is_lossy && !is_too_large && !is_excused {
                    missing.push(format!(
                        "message {} of {} for c{} with {:?}",
                        e.n, message.topic, s.client, e.qos
                    ));
                }
            }
        }
        assert!(
            missing.len() as u64 <= dropped,
            "{} messages are missing, {dropped} were dropped: {missing:?}",
            missing.len()
        );
        for (link, conn) in self.conns.iter().enumerate() {
            let is_up = matches!(conn.phase, Phase::Up(_));
            let is_owed = !conn.answers.is_empty() || conn.pings > 0 || !conn.pubrels.is_empty();
            assert!(
                !(is_up && is_owed),
                "{link}: answers are missing: {:?}",
                conn.answers
            );
        }
    }

    /// Topics and payloads that are retained now.
    pub(crate) fn retained_now(&self) -> BTreeMap<String, bytes::Bytes> {
        let kept = self
            .retained
            .iter()
            .filter(|(_, kept)| kept.expires_at.is_none_or(|at| at > self.now));
        kept.map(|(topic, kept)| ((*topic).to_owned(), self.messages[kept.n].payload.clone()))
            .collect()
    }
}
