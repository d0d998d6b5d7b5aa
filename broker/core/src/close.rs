//! The end of connections and of sessions, wills (MQTT 5.0 §3.1.2.5), and time.

use headgate_codec::{Disconnect, Packet, ReasonCode, Version, encoded_len};
use std::sync::Arc;

use crate::{
    ConnId, Handed, Output, Owner, Record, SessionId, Time,
    conns::{PAUSED_ACKS, PAUSED_BLOCKED, PAUSED_QUOTA, PAUSED_RESTORING, State},
    counters::{add, sub},
    hub::Hub,
    message::Message,
    session::{NEVER, Session},
    slots::{Handle, Slot, WaitingTakeover},
    timers::TimerKey,
};

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The network says so.
    Lost,
    /// DISCONNECT came: 0x00 deletes the will \[MQTT-3.14.4-3\].
    Client(ReasonCode),
    /// The server ends it and says why.
    Server(ReasonCode),
    /// The server ends it without a word, where none may be said.
    Silent(ReasonCode),
    /// Another connection has the session \[MQTT-3.1.4-3\].
    TakenOver {
        /// And goes on with it.
        resumed: bool,
    },
}

/// A will that is due.
pub(crate) struct DueWill {
    pub(crate) message: Arc<Message>,
    pub(crate) publisher: Handle,
    pub(crate) session: SessionId,
    pub(crate) epoch: u32,
    pub(crate) is_recorded: bool,
    /// What the store knows it by, if it has to wait.
    pub(crate) kept: Option<SessionId>,
}

impl Hub {
    /// Ends a connection; its session goes on without it or ends. DISCONNECT is the last packet
    /// \[MQTT-3.14.4-1\] \[MQTT-3.14.4-2\] \[MQTT-4.13.2-1\].
    pub(crate) fn close(&mut self, conn: ConnId, end: End, out: &mut Vec<Output>) {
        let Some(gone) = self.conns.take(conn) else {
            return;
        };
        sub(&mut self.env.counters.connections, 1);
        self.held_publishers.forget(conn);
        if gone.state.is_counted() {
            self.leave_class(gone.quota_class);
        }
        let said = match end {
            End::Server(reason) => Some(reason),
            End::TakenOver { .. } => Some(ReasonCode::SESSION_TAKEN_OVER),
            _ => None,
        };
        match gone.state {
            State::Up(slot) => {
                let explained = said.and_then(|reason| self.explained_end(reason));
                if let (Some(reason), Some(session)) = (said, self.slots.session(slot)) {
                    let properties = explained;
                    let disconnect = Disconnect { reason, properties };
                    say_goodbye(session, &mut self.env, disconnect, out);
                }
                self.disconnected(slot, end, out);
            }
            State::Connecting(slot) => self.abandon(conn, slot, out),
            State::New | State::Authenticating | State::Free => {}
        }
        match (end, said) {
            (End::Lost, _) => {}
            (End::Client(_), _) => out.push(Output::Close {
                conn,
                reason: ReasonCode::SUCCESS,
            }),
            (End::Silent(reason), _) | (_, Some(reason)) => {
                out.push(Output::Close { conn, reason })
            }
            (_, None) => out.push(Output::Close {
                conn,
                reason: ReasonCode::UNSPECIFIED_ERROR,
            }),
        }
    }

    /// Ends a connection because of what the client did.
    pub(crate) fn protocol_error(
        &mut self,
        conn: ConnId,
        reason: ReasonCode,
        out: &mut Vec<Output>,
    ) {
        add(&mut self.env.counters.protocol_errors, 1);
        self.close(conn, End::Server(reason), out);
    }

    /// The bytes of a connection are not MQTT \[MQTT-4.13.1-1\].
    pub(crate) fn on_malformed(&mut self, conn: ConnId, reason: ReasonCode, out: &mut Vec<Output>) {
        let Some(c) = self.conns.get(conn) else {
            return;
        };
        add(&mut self.env.counters.protocol_errors, 1);
        match c.state {
            State::Authenticating | State::Connecting(_) => match self.early_version(conn) {
                Some(version) => self.refuse(conn, version, reason, out),
                None => self.close(conn, End::Silent(reason), out),
            },
            // [MQTT-3.1.2-2]: the one error that has an answer before the version is known.
            State::New if reason == ReasonCode::UNSUPPORTED_PROTOCOL_VERSION => {
                self.refuse(conn, Version::V5, reason, out);
            }
            // [MQTT-3.14.0-1]: no DISCONNECT before CONNACK.
            _ => self.close(conn, End::Server(reason), out),
        }
    }

    /// DISCONNECT (§3.14).
    pub(crate) fn on_disconnect(
        &mut self,
        conn: ConnId,
        slot: u32,
        packet: &Disconnect,
        out: &mut Vec<Output>,
    ) {
        let expiry_s = packet.properties.as_ref().and_then(|p| p.session_expiry_s);
        let limit_s = self.env.limits.session_expiry_max_s;
        if let (Some(expiry_s), Some(session)) = (expiry_s, self.slots.session(slot)) {
            // §3.14.2.2.2: it can't be raised from 0.
            if session.expiry_s == 0 && expiry_s != 0 {
                return self.protocol_error(conn, ReasonCode::PROTOCOL_ERROR, out);
            }
            if session.expiry_s != 0 {
                session.expiry_s = expiry_s.min(limit_s);
                session.record_opened(&mut self.env, out);
            }
        }
        self.close(conn, End::Client(packet.reason), out);
    }

    /// Ends a session with all that it has \[MQTT-4.1.0-2\]. `release`: the directory is told.
    pub(crate) fn end_session(&mut self, slot: u32, release: bool, out: &mut Vec<Output>) {
        let handle = self.slots.handle(slot);
        self.leave_group(slot, (true, self.is_shut_down), out);
        let Slot::Live(mut session) = self.slots.remove(slot) else {
            return;
        };
        // [MQTT-3.1.2-8]: a will doesn't wait longer than the session.
        self.will_due(&mut session);
        for subscription in session.subscriptions.iter() {
            self.shared.remove(subscription, handle);
        }
        self.count_session_gone(&session);
        // Without any record there is nothing to end in the store.
        let is_recorded = session.sequence > 0;
        if is_recorded {
            session.put(&mut self.env, Record::SessionEnded, out);
        }
        let (owner, client_id) = (self.owner(slot, session.epoch), session.client_id());
        let heir = session.heir.take();
        match (release && heir.is_none(), is_recorded) {
            (true, false) => self.release(&client_id, owner, out),
            // Until that is safe the session may come back, so whoever asks for it meanwhile has to know of it.
            (true, true) => {
                let op = self.env.last_persist;
                self.releasing.push_back((op, client_id, owner));
            }
            (false, _) => {}
        }
        let of_fence = session.fence.take().and_then(|f| f.takeover);
        let waiting = heir.map(|heir| *heir).into_iter().chain(of_fence);
        for WaitingTakeover { from, takeover } in waiting {
            self.answer(from, takeover.op, Handed::Ended, out);
        }
    }

    fn owner(&self, slot: u32, epoch: u32) -> Owner {
        Owner {
            node: self.config.node,
            worker: self.config.worker,
            slot,
            epoch,
        }
    }

    /// A session has lost its connection.
    fn disconnected(&mut self, slot: u32, end: End, out: &mut Vec<Output>) {
        let now = self.env.now;
        let Some(session) = self.slots.session(slot) else {
            return;
        };
        session.conn = None;
        session.unsent = 0;
        // [MQTT-3.3.2-7]
        session.aliases = None;
        session.leave_lanes();
        session.unblock(&mut self.env, true);
        session.shrink();
        sub(&mut self.env.counters.clients, 1);
        // [MQTT-3.1.2-10] [MQTT-3.14.4-3]
        if end == End::Client(ReasonCode::SUCCESS) {
            session.will = None;
        }
        // [MQTT-3.1.2-23], and not before the connection ends [MQTT-4.1.0-1].
        let expiry_s = session.expiry_s;
        session.expires_at = if expiry_s == u32::MAX {
            NEVER
        } else {
            now.after_s(expiry_s)
        };
        if let Some(pending) = &mut session.will {
            let delay_s = pending.will.delay_s.unwrap_or(0).min(expiry_s);
            match end {
                // The new connection came before the delay had passed [MQTT-3.1.3-9].
                End::TakenOver { resumed: true } if delay_s > 0 => session.will = None,
                _ if delay_s == 0 => self.publish_will(slot),
                _ => pending.at = Some(now.after_s(delay_s)),
            }
        }
        // A client that comes back at once keeps its messages, and in a shutdown everybody goes.
        let stays = end == (End::TakenOver { resumed: true }) || self.is_shut_down;
        self.leave_group(slot, (expiry_s == 0, stays), out);
        if expiry_s > 0
            && let Some(session) = self.slots.session(slot)
        {
            session.record_closed(&mut self.env, out);
            if let Some(flow) = session.flow.as_mut().filter(|_| self.env.limits.spills)
                && session.share.is_none()
            {
                flow.spill_all();
            }
        }
        if expiry_s == 0 && self.must_read(slot) {
            self.end_when_read(slot, out);
        } else if expiry_s == 0 {
            let release = !matches!(end, End::TakenOver { .. });
            self.end_session(slot, release, out);
        } else {
            self.arm_slot(slot);
            self.slots.park_later(slot);
        }
    }

    fn publish_will(&mut self, slot: u32) {
        let Some(Slot::Live(mut session)) = self
            .slots
            .get_mut(slot)
            .map(|s| std::mem::replace(s, Slot::Free(None)))
        else {
            return;
        };
        self.will_due(&mut session);
        self.slots.replace(slot, Slot::Live(session));
    }

    /// Publishes the will of a session that goes on without it, if its time has come.
    pub(crate) fn publish_due_will(&mut self, slot: u32, out: &mut Vec<Output>) {
        let now = self.env.now;
        let at = self.slots.session(slot).and_then(|s| s.will.as_ref()?.at);
        if at.is_none_or(|at| at > now) {
            return;
        }
        self.publish_will(slot);
        if let Some(session) = self.slots.session(slot) {
            session.persist(&mut self.env, Record::WillGone, out);
        }
    }

    /// The will is published at the end of this input \[MQTT-3.1.2-8\].
    pub(crate) fn will_due(&mut self, session: &mut Session) {
        let Some(pending) = session.will.take() else {
            return;
        };
        self.wills.push(DueWill {
            message: Arc::new(Message::from_will(&pending.will, self.env.now)),
            publisher: session.handle,
            session: session.id,
            epoch: session.epoch,
            is_recorded: session.is_recorded,
            kept: None,
        });
    }

    /// The clock has moved on.
    pub(crate) fn on_timeout(&mut self, out: &mut Vec<Output>) {
        let mut fired = std::mem::take(&mut self.fired);
        self.timers.expire(self.env.now, &mut fired);
        for key in fired.drain(..) {
            match key {
                TimerKey::Conn(index, generation) => self.on_conn_timer(index, generation, out),
                TimerKey::Slot(index, generation) => self.on_slot_timer(index, generation, out),
            }
        }
        self.fired = fired;
    }

    fn on_conn_timer(&mut self, index: u32, generation: u32, out: &mut Vec<Output>) {
        let now = self.env.now;
        let timeout_ms = u64::from(self.env.limits.connect_timeout_s) * 1_000;
        let Some((conn, c)) = self.conns.by_timer(index, generation) else {
            return;
        };
        c.armed = NEVER;
        // A client that isn't read, because storage or a subscriber is behind or it was too fast, can't show that it is
        // alive.
        if c.paused & (PAUSED_ACKS | PAUSED_QUOTA | PAUSED_RESTORING | PAUSED_BLOCKED) != 0 {
            c.last_seen = now;
        }
        if c.meter.is_some() {
            self.on_quota_timer(conn, out);
        }
        let Some(c) = self.conns.get(conn) else {
            return;
        };
        let (deadline, state) = (deadline_of(c, timeout_ms), c.state);
        if c.acks.as_ref().is_some_and(|a| a.is_empty()) {
            c.acks = None;
        }
        if deadline > now {
            if let State::Up(slot) = state
                && let Some(session) = self.slots.session(slot)
            {
                session.shrink();
            }
            return self.arm_conn(conn);
        }
        if let State::Up(_) = state {
            // [MQTT-3.1.2-22]
            add(&mut self.env.counters.keep_alive_timeouts, 1);
            return self.close(conn, End::Server(ReasonCode::KEEP_ALIVE_TIMEOUT), out);
        }
        add(&mut self.env.counters.connect_timeouts, 1);
        self.close(conn, End::Silent(ReasonCode::MAXIMUM_CONNECT_TIME), out);
    }

    fn on_slot_timer(&mut self, index: u32, generation: u32, out: &mut Vec<Output>) {
        let now = self.env.now;
        let handle = Handle::new(self.config.worker, index, generation);
        let (will_due, fence_late, reads) = match self.slots.by_handle(handle) {
            Some(Slot::Live(session)) => {
                session.armed = NEVER;
                session.shrink();
                let will = session
                    .will
                    .as_ref()
                    .and_then(|w| w.at)
                    .is_some_and(|at| at <= now);
                let fence = session.fence.as_ref().is_some_and(|f| f.until <= now);
                let reads = session.has_expired(now) && session.leaves_spilled(self.env.storage);
                (will && session.pending.is_none(), fence, reads)
            }
            Some(Slot::Moved(forward)) if forward.until <= now => {
                self.slots.remove(index);
                return;
            }
            Some(Slot::Moved(_)) => return self.arm_slot(index),
            _ => return,
        };
        if will_due {
            self.publish_due_will(index, out);
        }
        if fence_late {
            self.lift_fence(index, out);
        }
        if reads {
            self.pump(index, out);
        }
        if !self.end_if_expired(handle, out) {
            self.arm_slot(index);
            self.slots.park_later(index);
        }
    }

    /// Ends a session whose time is over, unless what other members of its groups have to get is still to be read; whether
    /// it has ended.
    pub(crate) fn end_if_expired(&mut self, handle: Handle, out: &mut Vec<Output>) -> bool {
        let (now, storage) = (self.env.now, self.env.storage);
        let Some(Slot::Live(session)) = self.slots.by_handle(handle) else {
            return false;
        };
        let is_free = session.pending.is_none();
        if !is_free || !session.has_expired(now) || session.leaves_spilled(storage) {
            return false;
        }
        // Otherwise its end waited for what it leaves.
        let has_aged = session.expiry_s > 0 && session.heir.is_none();
        add(&mut self.env.counters.sessions_expired, u64::from(has_aged));
        self.end_session(handle.slot(), true, out);
        true
    }

    /// Arms the connection's timer, if none fires early enough.
    pub(crate) fn arm_conn(&mut self, conn: ConnId) {
        let (now, timeout_ms) = (
            self.env.now,
            u64::from(self.env.limits.connect_timeout_s) * 1_000,
        );
        let Some(c) = self.conns.get(conn) else {
            return;
        };
        let deadline = deadline_of(c, timeout_ms);
        if deadline < c.armed {
            c.armed = deadline;
            self.timers
                .arm(TimerKey::Conn(conn.index, conn.generation), deadline, now);
        }
    }

    /// Arms the timer of what is in a place, if none fires early enough.
    pub(crate) fn arm_slot(&mut self, slot: u32) {
        let handle = self.slots.handle(slot);
        let deadline = match self.slots.get_mut(slot) {
            Some(Slot::Live(session)) => {
                let deadline = session.deadline();
                if deadline >= session.armed {
                    return;
                }
                session.armed = deadline;
                deadline
            }
            Some(Slot::Moved(forward)) => forward.until,
            _ => return,
        };
        let generation = handle.generation();
        self.timers
            .arm(TimerKey::Slot(slot, generation), deadline, self.env.now);
    }
}

impl Session {
    /// Its Session Expiry Interval is over, counted since it lost its connection (MQTT 5.0 §3.1.2.11.2).
    pub(crate) fn has_expired(&self, now: Time) -> bool {
        self.conn.is_none() && self.expires_at <= now
    }

    /// The next time at which something happens by itself.
    fn deadline(&self) -> Time {
        // The connection that gets it now decides of all that.
        let is_pending = self.pending.is_some();
        let offline = if self.conn.is_none() && !is_pending {
            self.expires_at
        } else {
            NEVER
        };
        let will = self.will.as_ref().filter(|_| !is_pending);
        let will = will.and_then(|w| w.at).unwrap_or(NEVER);
        let fence = self.fence.as_ref().map_or(NEVER, |f| f.until);
        offline.min(will).min(fence)
    }
}

fn deadline_of(conn: &crate::conns::Conn, connect_timeout_ms: u64) -> Time {
    match conn.state {
        State::Up(_) => {
            let wake = conn.meter.as_ref().map_or(NEVER, |meter| meter.wake());
            conn.last_seen.after_ms(conn.silence_ms_max).min(wake)
        }
        _ => conn.last_seen.after_ms(connect_timeout_ms),
    }
}

/// DISCONNECT, where the version has one for servers; without a Session Expiry Interval
/// \[MQTT-3.14.2-2\].
fn say_goodbye(
    session: &mut Session,
    env: &mut crate::env::Env,
    mut disconnect: Disconnect,
    out: &mut Vec<Output>,
) {
    if session.version != Version::V5 {
        return;
    }
    // [MQTT-3.14.2-3]
    let whole = Packet::Disconnect(disconnect.clone());
    if encoded_len(&whole, Version::V5) > session.packet_bytes_max as usize {
        disconnect.properties = None;
    }
    session.send(env, &Packet::Disconnect(disconnect), out);
}
