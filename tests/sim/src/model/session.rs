//! Connections and sessions: who has one, since when, and until when.

use headgate_codec::{ConnAck, Packet, ReasonCode, Version};
use headgate_core::{SessionId, Time, WhenFull};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    Conn, End, LATE_MS, LateWill, Met, Model, PendingWill, Phase, Session, SessionNo, number_of,
};
use crate::network::LinkId;

impl Model {
    /// The server has a new connection.
    pub(crate) fn opened(&mut self, link: LinkId, worker: usize, client: usize, version: Version) {
        assert_eq!(link, self.conns.len());
        self.conns.push(Conn {
            client,
            worker,
            phase: Phase::New,
            session: None,
            version,
            connect: None,
            connect_at: self.now,
            last_packet: self.now,
            publishing: VecDeque::new(),
            answers: VecDeque::new(),
            held: VecDeque::new(),
            pubrels: VecDeque::new(),
            pings: 0,
            outstanding: BTreeSet::new(),
            receive_maximum: u16::MAX,
            packet_max: u32::MAX,
            alias_max: 0,
            aliases_in: BTreeMap::new(),
            aliases_out: BTreeMap::new(),
            open: 0,
            goodbye: None,
            faults: Vec::new(),
            has_left: false,
            unflushed: 0,
        });
    }

    /// The server takes a packet in.
    pub(crate) fn handled(&mut self, link: LinkId, packet: &Packet) {
        self.answering = None;
        let now = self.now;
        let conn = &mut self.conns[link];
        conn.last_packet = now;
        match (conn.phase, packet) {
            (Phase::New, Packet::Connect(connect)) => {
                conn.phase = Phase::Connecting;
                conn.connect_at = now;
                conn.receive_maximum = connect.properties.receive_maximum.unwrap_or(u16::MAX);
                conn.packet_max = connect.properties.maximum_packet_size.unwrap_or(u32::MAX);
                conn.alias_max = connect.properties.topic_alias_maximum.unwrap_or(0);
                conn.connect = Some((**connect).clone());
                self.connecting[conn.client] += 1;
            }
            (Phase::Up(_), packet) if self.must_wait(link, packet) => {
                self.conns[link].held.push_back(packet.clone());
            }
            (Phase::Up(session), packet) => self.handled_up(link, session, packet),
            (phase, packet) => panic!("{link}: {packet:?} was taken in while {phase:?}"),
        }
    }

    /// The server has been told that bytes are not MQTT.
    pub(crate) fn malformed(&mut self, link: LinkId, reason: ReasonCode) {
        self.answering = None;
        self.conns[link].faults.push(reason);
    }

    /// The server has been told that a connection is gone.
    pub(crate) fn lost(&mut self, link: LinkId) {
        self.answering = None;
        self.end(link, End::Lost);
    }

    /// CONNACK leaves.
    pub(super) fn connected(&mut self, link: LinkId, connack: &ConnAck) {
        let (client, worker) = (self.conns[link].client, self.conns[link].worker);
        assert_eq!(
            self.conns[link].phase,
            Phase::Connecting,
            "{link}: CONNACK without CONNECT"
        );
        if connack.reason != ReasonCode::SUCCESS {
            // After too many lost races for the session.
            assert_eq!(
                connack.reason,
                ReasonCode::SERVER_BUSY,
                "{link}: refused without a cause"
            );
            self.conns[link].goodbye = Some(connack.reason);
            return;
        }
        self.connecting[client] -= 1;
        let (may_be_present, may_be_absent) = self.presence(link);
        let is_present = self.said_present(link, connack, (may_be_present, may_be_absent));
        match is_present {
            true => assert!(
                may_be_present,
                "{link}: c{client} was told of a session that it doesn't have"
            ),
            false => assert!(may_be_absent, "{link}: the session of c{client} is lost"),
        }
        let session = match self.current[client] {
            Some(current) if is_present => {
                self.resumed(current, self.conns[link].connect_at);
                current
            }
            former => {
                if let Some(former) = former {
                    self.end_session(former);
                    self.ended.push(former);
                    let is_alone = self.connecting[client] + self.ghosts[client] == 0;
                    if let Some(will) = self.sessions[former].will.as_mut().filter(|_| is_alone) {
                        will.may_be_revoked = false;
                    }
                }
                self.begin_session(client)
            }
        };
        self.attach(link, session, worker);
        self.check_connack(link, connack);
    }

    /// MQTT 3.1 has no Session Present: where both are possible, the store knows which session it is.
    fn said_present(&self, link: LinkId, connack: &ConnAck, may_be: (bool, bool)) -> bool {
        let client = self.conns[link].client;
        match (self.conns[link].version, may_be) {
            (Version::V31, (true, true)) => self.current[client]
                .is_some_and(|s| self.sessions[s].core_id == self.core_ids.get(&client).copied()),
            (Version::V31, (may_be_present, _)) => may_be_present,
            _ => connack.session_present,
        }
    }

    /// Whether Session Present may be 1, and whether it may be 0 [MQTT-3.2.2-2] [MQTT-3.2.2-3].
    fn presence(&self, link: LinkId) -> (bool, bool) {
        let conn = &self.conns[link];
        let Some(connect) = &conn.connect else {
            return (false, false);
        };
        let Some(current) = self.current[conn.client] else {
            return (false, true);
        };
        let s = &self.sessions[current];
        if connect.clean_start || s.expiry_s == 0 {
            return (false, true);
        }
        let offline_until = s.expires_at.filter(|_| s.link.is_none());
        let is_over = offline_until.is_some_and(|at| at.after_ms(LATE_MS) < conn.connect_at);
        // Another CONNECT may have come in time, and its connection is gone.
        let is_surely_gone = is_over && !s.lingers && !self.is_in_limbo(conn.client);
        let may_be_gone = s.is_doubtful
            || self.is_in_limbo(conn.client)
            || offline_until.is_some_and(|at| at <= self.now);
        (!is_surely_gone, may_be_gone)
    }

    fn check_connack(&self, link: LinkId, connack: &ConnAck) {
        let conn = &self.conns[link];
        let (Some(connect), Version::V5) = (&conn.connect, conn.version) else {
            return;
        };
        let p = &connack.properties;
        assert_eq!(p.receive_maximum, Some(self.limits.receive_maximum));
        assert_eq!(p.maximum_packet_size, Some(self.limits.packet_bytes));
        let aliases = Some(self.limits.topic_aliases).filter(|max| *max > 0);
        assert_eq!(p.topic_alias_maximum, aliases);
        let asked_s = connect.properties.session_expiry_s.unwrap_or(0);
        let granted_s = asked_s.min(self.limits.session_expiry_max_s);
        assert_eq!(
            p.session_expiry_s,
            (granted_s != asked_s).then_some(granted_s)
        );
        assert!(
            p.assigned_client_id.is_none(),
            "{link}: a Client Identifier that wasn't asked for"
        );
    }

    fn resumed(&mut self, session: SessionNo, connect_at: Time) {
        let s = &mut self.sessions[session];
        assert!(s.link.is_none(), "c{} has two connections", s.client);
        if let Some(n) = s.early_will.take() {
            panic!("the will {n} was published although its client came back in time");
        }
        // [MQTT-3.1.3-9]
        let will = s.will.take();
        let (now, is_restoring) = (self.now, self.is_restoring);
        let late = will.filter(|w| w.due.is_some_and(|at| at <= now));
        self.late_wills.extend(late.map(|w| LateWill {
            n: w.n,
            owner: Some(session),
            since: now,
            is_sure: is_restoring
                && w.due < Some(connect_at)
                && !w.may_be_revoked
                && !w.is_doubtful,
        }));
    }

    pub(super) fn begin_session(&mut self, client: usize) -> SessionNo {
        self.sessions.push(Session {
            client,
            expiry_s: 0,
            link: None,
            link_since: self.now,
            expires_at: None,
            has_ended: false,
            lingers: false,
            is_doubtful: false,
            home: None,
            recent_homes: BTreeSet::new(),
            moves: 0,
            core_id: None,
            subscriptions: BTreeMap::new(),
            changes: 0,
            ids_ever: BTreeSet::new(),
            shared_ever: BTreeMap::new(),
            will: None,
            early_will: None,
            received: BTreeSet::new(),
            expected: Vec::new(),
            replays: Vec::new(),
            sent: BTreeMap::new(),
            order: BTreeMap::new(),
            is_unordered: false,
            packet_max_ever: u32::MAX,
        });
        self.current[client] = Some(self.sessions.len() - 1);
        self.sessions.len() - 1
    }

    fn attach(&mut self, link: LinkId, session: SessionNo, worker: usize) {
        let Self {
            conns,
            sessions,
            limits,
            core_ids,
            messages,
            ..
        } = self;
        let (conn, s) = (&mut conns[link], &mut sessions[session]);
        let Some(connect) = &conn.connect else { return };
        (conn.phase, conn.session) = (Phase::Up(session), Some(session));
        let asked_s = match (connect.version, connect.clean_start) {
            (Version::V5, _) => connect.properties.session_expiry_s.unwrap_or(0),
            (_, true) => 0,
            (_, false) => u32::MAX,
        };
        s.expiry_s = asked_s.min(limits.session_expiry_max_s);
        (s.link, s.link_since, s.expires_at) = (Some(link), self.now, None);
        s.is_doubtful = self.clean_ghosts[s.client];
        s.moves += 1;
        s.home = Some(worker);
        s.recent_homes.insert(worker);
        // One that ends with its connection is not named in the store, and may have had a name before.
        if s.expiry_s > 0 {
            s.core_id = core_ids.get(&s.client).copied();
        }
        s.packet_max_ever = s.packet_max_ever.min(conn.packet_max);
        for replay in &mut s.replays {
            for replayed in replay.topics.values_mut() {
                let size = |n: &usize| Self::size_max(&messages[*n], &[replay.id]);
                let size = replayed.versions.iter().map(size).max();
                replayed.must &= size <= Some(conn.packet_max as usize);
            }
        }
        for sent in s.sent.values_mut() {
            // One for each subscription that may match.
            let ids = [u32::MAX >> 4; 8];
            sent.may_vanish |= Self::size_max(&messages[sent.n], &ids) > conn.packet_max as usize;
        }
        s.will = connect.will.as_ref().map(|will| PendingWill {
            n: number_of(&will.payload).expect("wills have numbers"),
            delay_s: will.delay_s.unwrap_or(0),
            due: None,
            may_be_revoked: false,
            is_doubtful: false,
        });
    }

    /// A connection ends.
    pub(super) fn end(&mut self, link: LinkId, how: End) {
        let phase = std::mem::replace(&mut self.conns[link].phase, Phase::Gone);
        let client = self.conns[link].client;
        self.conns[link].held.clear();
        match phase {
            Phase::Connecting => {
                self.connecting[client] -= 1;
                self.ghosts[client] += 1;
                let clean = self.conns[link]
                    .connect
                    .as_ref()
                    .is_some_and(|c| c.clean_start);
                self.clean_ghosts[client] |= clean;
                if let Some(current) = self.current[client] {
                    self.sessions[current].is_doubtful |= clean;
                }
            }
            Phase::Up(session) => self.disconnected(session, how),
            Phase::New | Phase::Gone => {}
        }
    }

    fn disconnected(&mut self, session: SessionNo, how: End) {
        let now = self.now;
        let s = &mut self.sessions[session];
        s.link = None;
        // What a member of a group hasn't acknowledged goes to another.
        for sent in s.sent.values_mut() {
            sent.may_vanish |= matches!(sent.met, Some(Met::Share(_)));
        }
        // [MQTT-3.1.2-10]
        if how == End::Client(ReasonCode::SUCCESS) {
            s.will = None;
        }
        s.expires_at = (s.expiry_s != u32::MAX).then(|| now.after_s(s.expiry_s));
        let expiry_s = s.expiry_s;
        let mut published = None;
        if let Some(will) = &mut s.will {
            // [MQTT-3.1.2-8]: the delay is no longer than the session.
            will.may_be_revoked = how == End::Server(ReasonCode::SESSION_TAKEN_OVER);
            will.due = Some(now.after_s(will.delay_s.min(expiry_s)));
            // While sessions are to come it waits: they may be meant.
            if will.due == Some(now) && !self.is_restoring {
                published = s.will.take().map(|w| w.n);
            }
        }
        if expiry_s == 0 {
            self.end_session(session);
            if self.is_restoring {
                self.ended.push(session);
            }
        }
        if let Some(n) = published {
            self.messages[n].is_kept = expiry_s > 0;
            self.route(n, Some(session), None);
        }
    }

    pub(super) fn end_session(&mut self, session: SessionNo) {
        let s = &mut self.sessions[session];
        assert!(
            s.link.is_none(),
            "the session of c{} ended and its connection did not",
            s.client
        );
        s.has_ended = true;
        // [MQTT-3.1.2-8]: a will doesn't wait longer than the session.
        if let Some(due) = s.will.as_mut().and_then(|w| w.due.as_mut()) {
            *due = (*due).min(self.now);
        }
        if self.current[s.client] == Some(session) {
            self.current[s.client] = None;
        }
    }

    /// Time has passed, and every timer has fired.
    pub(crate) fn advanced(&mut self) {
        for session in 0..self.sessions.len() {
            if self.sessions[session].has_ended {
                continue;
            }
            let s = &self.sessions[session];
            let is_over = |at: Time| at.after_ms(LATE_MS) < self.now;
            let has_expired = s.link.is_none() && s.expires_at.is_some_and(is_over);
            if has_expired && !s.lingers && !self.is_in_limbo(s.client) {
                self.end_session(session);
            }
            if !self.is_in_limbo(self.sessions[session].client)
                && !self.sessions[session].is_doubtful
            {
                self.check_overdue_wills(session, self.now);
            }
        }
        for (link, conn) in self.conns.iter().enumerate() {
            let Some(limit_ms) = self.silence_ms_max(conn) else {
                continue;
            };
            let at = conn.last_packet.after_ms(limit_ms + LATE_MS);
            // A client that isn't read, because storage is behind, can't show that it is alive.
            assert!(
                at >= self.now || !conn.answers.is_empty(),
                "{link}: silent since {:?}, and still open at {:?}",
                conn.last_packet,
                self.now
            );
        }
    }

    /// How long a client may be silent [MQTT-3.1.2-22], ms.
    fn silence_ms_max(&self, conn: &Conn) -> Option<u64> {
        let connect = conn.connect.as_ref()?;
        match (conn.phase, connect.keep_alive_s) {
            (Phase::Up(_), 0) => Some(u64::from(self.limits.idle_ceiling_s) * 1_000),
            (Phase::Up(_), s) => Some(u64::from(s) * 1_500),
            _ => None,
        }
    }

    /// The server closes a connection.
    pub(crate) fn closed(&mut self, link: LinkId, reason: ReasonCode) {
        let conn = &self.conns[link];
        let is_up = matches!(conn.phase, Phase::Up(_));
        if is_up && conn.version == Version::V5 && !conn.has_left {
            assert_eq!(
                conn.goodbye,
                Some(reason),
                "{link}: closed without a word ({reason:?})"
            );
        }
        self.check_cause(link, reason);
        let how = match conn.has_left {
            true => End::Client(reason_left(conn)),
            false => End::Server(reason),
        };
        self.end(link, how);
    }

    /// Every connection that the server closes has given a reason to.
    fn check_cause(&self, link: LinkId, reason: ReasonCode) {
        let conn = &self.conns[link];
        let silent_ms = self.now.0 - conn.last_packet.0;
        let has_cause = conn.faults.contains(&reason)
            || match reason {
                ReasonCode::SUCCESS => conn.has_left,
                ReasonCode::SESSION_TAKEN_OVER => self.is_in_limbo(conn.client),
                ReasonCode::KEEP_ALIVE_TIMEOUT => {
                    self.silence_ms_max(conn).is_some_and(|ms| silent_ms >= ms)
                }
                ReasonCode::MAXIMUM_CONNECT_TIME => {
                    silent_ms >= u64::from(self.limits.connect_timeout_s) * 1_000
                }
                ReasonCode::SERVER_BUSY => conn.goodbye == Some(reason) || self.has_crashed,
                // Too slow for its class.
                ReasonCode::QUOTA_EXCEEDED => {
                    self.scenario.tight && self.scenario.when_full == WhenFull::Disconnect
                }
                _ => false,
            };
        assert!(
            has_cause,
            "{link}: closed with {reason:?} without a cause, in {:?}",
            conn.phase
        );
    }

    /// DISCONNECT (§3.14).
    pub(super) fn left(
        &mut self,
        link: LinkId,
        session: SessionNo,
        packet: &headgate_codec::Disconnect,
    ) {
        let conn = &mut self.conns[link];
        let s = &mut self.sessions[session];
        let expiry_s = packet.properties.as_ref().and_then(|p| p.session_expiry_s);
        if let Some(expiry_s) = expiry_s {
            if s.expiry_s == 0 && expiry_s != 0 {
                return conn.faults.push(ReasonCode::PROTOCOL_ERROR);
            }
            s.expiry_s = expiry_s.min(self.limits.session_expiry_max_s);
        }
        conn.has_left = true;
        conn.faults.push(packet.reason);
    }

    /// A worker has panicked: its connections and sessions are gone, and those that were moving may be.
    pub(crate) fn crashed(&mut self, worker: usize) {
        self.has_crashed = true;
        self.answering = None;
        for link in 0..self.conns.len() {
            if self.conns[link].worker != worker || self.conns[link].phase == Phase::Gone {
                continue;
            }
            let phase = std::mem::replace(&mut self.conns[link].phase, Phase::Gone);
            let client = self.conns[link].client;
            match phase {
                Phase::Connecting => {
                    self.connecting[client] -= 1;
                    self.ghosts[client] += 1;
                }
                Phase::Up(session) => self.sessions[session].link = None,
                Phase::New | Phase::Gone => {}
            }
        }
        for client in 0..self.current.len() {
            let Some(session) = self.current[client] else {
                continue;
            };
            let is_moving = self.is_in_limbo(client);
            let s = &mut self.sessions[session];
            let is_touched = is_moving || s.home.is_none() || s.recent_homes.contains(&worker);
            if s.home == Some(worker) && !is_moving && s.link.is_none() {
                s.will = None;
                self.end_session(session);
            } else if is_touched {
                s.is_doubtful |= is_moving || s.home.is_none();
                s.is_unordered = true;
                s.expected.iter_mut().for_each(|e| e.is_excused = true);
                s.replays
                    .iter_mut()
                    .flat_map(|r| r.topics.values_mut())
                    .for_each(|t| t.must = false);
            }
        }
    }

    /// The core's name of a client's session.
    pub(super) fn named(&mut self, client_id: &str, id: SessionId) {
        let client = client_id
            .trim_start_matches('c')
            .parse()
            .expect("a client's number");
        self.core_ids.insert(client, id);
    }
}

fn reason_left(conn: &Conn) -> ReasonCode {
    conn.faults.last().copied().unwrap_or_default()
}
