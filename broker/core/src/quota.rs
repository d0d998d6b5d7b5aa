//! Quota classes: what the sessions of a class may use, and what becomes of a client that uses more.
//!
//! Rates are kept by debts in time: each message costs a share of a second, which time pays back, and a second's worth
//! may be owed. The limits may change at any moment ([`crate::Input::Quotas`]); nothing is kept of the former ones.

use headgate_codec::{Publish, QoS, ReasonCode, Version};
use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use crate::{
    ConnId, Output, Time, WorkerSlot,
    acks::Wait,
    close::End,
    conns::{AckBody, PAUSED_QUOTA, State},
    counters::add,
    env::Env,
    hub::Hub,
    session::NEVER,
};

/// Quota classes, the default one included.
pub const QUOTA_CLASSES_MAX: usize = 64;

/// What is done about a client that publishes more than its class may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AboveQuota {
    /// It is read from more slowly, so that its acknowledgements come later (back pressure).
    #[default]
    Slow,
    /// PUBACK or PUBREC with 0x97 (Quota exceeded); QoS 0 is dropped. A client of 3.x, which knows no Reason Codes
    /// there, is disconnected instead of being told that its QoS 1 or 2 message is safe.
    Refuse,
    /// DISCONNECT with 0x97.
    Disconnect,
}

/// What is done when a message meets a full queue of a session: the limits of its class, or those of all, have no room
/// for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WhenFull {
    /// The message is dropped.
    #[default]
    DropNewest,
    /// The oldest one goes that was not sent yet: those with QoS 0 first, and one with QoS 1 or 2 only for another one
    /// with QoS 1 or 2.
    DropOldest,
    /// The message is dropped, and the client gets DISCONNECT with 0x97 (Quota exceeded). Its session stays for as long
    /// as its Session Expiry Interval says. A client that comes back to a full queue has `full_queue_ms_max` to make room.
    Disconnect,
    /// The message is queued, and its publisher is not read from until the queue is half empty, or for `full_queue_ms_max` at
    /// most (back pressure). A queue that has not been half empty for so long drops what comes, until it is.
    Block,
}

/// What the sessions of a class may use. 0 = no limit of the class; where `CoreLimits` has one, that applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct QuotaLimits {
    /// PUBLISH packets from one client per second; a second's worth may come at once.
    pub messages_per_s: u32,
    /// Bytes of topics and payloads of these per second; a second's worth may come at once.
    pub bytes_per_s: u32,
    /// Connections of the class, all workers together. More: CONNACK 0x97.
    pub connections: u32,
    /// Subscriptions of one session, in place of `subscriptions_per_session`. More: SUBACK 0x97.
    pub subscriptions: u32,
    /// Messages that wait for one session, in place of `queued_messages`.
    pub queued_messages: u32,
    /// Memory of the messages of one session, bytes, in place of `session_bytes`.
    pub memory_bytes: u32,
    /// Bidirectional streams of one QUIC connection, in place of `streams`.
    pub streams: u16,
    /// Whether the kernel has something to police: only then a connection is put under a penalty.
    pub is_policed: bool,
    /// What is done above the rates.
    pub above: AboveQuota,
    /// What is done when a session's queue is full.
    pub when_full: WhenFull,
}

impl QuotaLimits {
    fn has_rate(&self) -> bool {
        self.messages_per_s != 0 || self.bytes_per_s != 0
    }
}

/// The limits of all classes, by class; the first is the default one. A class that there is not (any more) has those
/// of the default one.
#[derive(Clone, Debug)]
pub(crate) struct Quotas {
    classes: Arc<[QuotaLimits]>,
    has_rates: bool,
}

impl Quotas {
    pub(crate) fn new(classes: Arc<[QuotaLimits]>) -> Self {
        let has_rates = classes.iter().any(QuotaLimits::has_rate);
        Self { classes, has_rates }
    }

    pub(crate) fn of(&self, class: u8) -> QuotaLimits {
        let default = || self.classes.first().copied().unwrap_or_default();
        let own = self.classes.get(usize::from(class)).copied();
        own.unwrap_or_else(default)
    }
}

/// The limit of the class, or the one that applies to all.
fn own_or(class: u32, all: u32) -> u32 {
    if class == 0 { all } else { class }
}

impl Env {
    /// Messages, and bytes of them, that may wait for a session of this class.
    pub(crate) fn queue_limits(&self, class: u8) -> (u32, u32) {
        let own = self.quotas.of(class);
        (
            own_or(own.queued_messages, self.limits.queued_messages),
            own_or(own.memory_bytes, self.limits.session_bytes),
        )
    }

    /// Bidirectional streams that a connection of this class may have open: at least the control stream.
    pub(crate) fn streams_max(&self, class: u8) -> u16 {
        let own = self.quotas.of(class).streams;
        let streams = if own == 0 { self.limits.streams } else { own };
        streams.max(1)
    }

    /// Subscriptions that a session of this class may have.
    pub(crate) fn subscriptions_max(&self, class: u8) -> usize {
        let own = self.quotas.of(class).subscriptions;
        own_or(own, self.limits.subscriptions_per_session) as usize
    }
}

/// Connections by worker and class: each worker writes to a row of its own, and all read them.
#[derive(Debug)]
pub(crate) struct ClassCounts(Box<[AtomicU32]>);

impl Default for ClassCounts {
    fn default() -> Self {
        let cells = (usize::from(u8::MAX) + 1) * QUOTA_CLASSES_MAX;
        Self((0..cells).map(|_| AtomicU32::new(0)).collect())
    }
}

impl ClassCounts {
    fn cell(&self, worker: WorkerSlot, class: u8) -> &AtomicU32 {
        let class = usize::from(class).min(QUOTA_CLASSES_MAX - 1);
        &self.0[usize::from(worker.0) * QUOTA_CLASSES_MAX + class]
    }

    /// Connections of a class on these workers.
    pub(crate) fn sum(&self, workers: &[WorkerSlot], class: u8) -> u64 {
        let count = |worker: &WorkerSlot| self.cell(*worker, class).load(Ordering::Relaxed);
        workers.iter().map(|worker| u64::from(count(worker))).sum()
    }

    /// One more; `false` = there are as many as may be (0 = any number).
    fn enter(&self, worker: WorkerSlot, workers: &[WorkerSlot], class: u8, max: u32) -> bool {
        let cell = self.cell(worker, class);
        cell.fetch_add(1, Ordering::Relaxed);
        let is_in = max == 0 || self.sum(workers, class) <= u64::from(max);
        if !is_in {
            cell.fetch_sub(1, Ordering::Relaxed);
        }
        is_in
    }

    fn leave(&self, worker: WorkerSlot, class: u8) {
        self.cell(worker, class).fetch_sub(1, Ordering::Relaxed);
    }

    /// A worker has lost its connections.
    pub(crate) fn forget_worker(&self, worker: WorkerSlot) {
        for class in 0..QUOTA_CLASSES_MAX {
            self.cell(worker, class as u8).store(0, Ordering::Relaxed);
        }
    }
}

/// What a connection owes. Connections of classes without rates have none.
#[derive(Debug)]
pub(crate) struct Meter {
    /// When what was published is paid back, by messages and by bytes; ns since the time's zero.
    messages_paid_ns: u64,
    bytes_paid_ns: u64,
    /// Since when the client has been above its quota without a pause; never = it is not.
    over_since: Time,
    last_over: Time,
    /// When something is to be done: reading goes on, or a penalty ends.
    wake: Time,
    is_penalized: bool,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            messages_paid_ns: 0,
            bytes_paid_ns: 0,
            over_since: NEVER,
            last_over: Time(0),
            wake: NEVER,
            is_penalized: false,
        }
    }
}

const SECOND_NS: u64 = 1_000_000_000;

/// Which rate is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Above {
    Messages,
    Bytes,
}

impl Meter {
    /// When the connection's timer has to fire for it.
    pub(crate) fn wake(&self) -> Time {
        self.wake
    }

    fn now_ns(now: Time) -> u64 {
        now.0.saturating_mul(1_000_000)
    }

    /// Whether all is paid back: the client has paused.
    fn is_paid(&self, now: Time) -> bool {
        self.messages_paid_ns.max(self.bytes_paid_ns) <= Self::now_ns(now)
    }

    /// The rate that has no room for another message.
    fn above(&self, limits: &QuotaLimits, now: Time) -> Option<Above> {
        let now_ns = Self::now_ns(now);
        let owed = |paid: u64| paid.saturating_sub(now_ns);
        if limits.messages_per_s != 0
            && owed(self.messages_paid_ns) + per(1, limits.messages_per_s)
                > SECOND_NS.max(per(1, limits.messages_per_s))
        {
            Some(Above::Messages)
        } else if limits.bytes_per_s != 0 && owed(self.bytes_paid_ns) > SECOND_NS {
            Some(Above::Bytes)
        } else {
            None
        }
    }

    fn charge(&mut self, limits: &QuotaLimits, bytes: u64, now: Time) {
        let now_ns = Self::now_ns(now);
        let charge = |paid: &mut u64, amount: u64, rate: u32| {
            if rate != 0 {
                *paid = (*paid).max(now_ns).saturating_add(per(amount, rate));
            }
        };
        charge(&mut self.messages_paid_ns, 1, limits.messages_per_s);
        charge(&mut self.bytes_paid_ns, bytes, limits.bytes_per_s);
    }

    /// The first time at which there is room for another message.
    fn room_at(&self, limits: &QuotaLimits) -> Time {
        let mut at_ns = 0;
        if limits.messages_per_s != 0 {
            let cost = per(1, limits.messages_per_s);
            at_ns = (self.messages_paid_ns + cost).saturating_sub(SECOND_NS.max(cost));
        }
        if limits.bytes_per_s != 0 {
            at_ns = at_ns.max(self.bytes_paid_ns.saturating_sub(SECOND_NS));
        }
        Time(at_ns.div_ceil(1_000_000))
    }
}

/// The time that an amount takes at a rate, ns.
fn per(amount: u64, rate: u32) -> u64 {
    amount.saturating_mul(SECOND_NS) / u64::from(rate)
}

impl Hub {
    /// The quotas have changed.
    pub(crate) fn on_quotas(&mut self, classes: Arc<[QuotaLimits]>) {
        self.env.quotas = Quotas::new(classes);
    }

    /// A place for a connection among those of its class. A refusal uses nothing up.
    pub(crate) fn enter_class(&mut self, conn: ConnId) -> bool {
        let Some(c) = self.conns.get(conn) else {
            return false;
        };
        let class = c.quota_class;
        let max = self.env.quotas.of(class).connections;
        let (worker, workers) = (self.config.worker, &self.config.workers);
        let is_in = self.shared.classes.enter(worker, workers, class, max);
        if !is_in {
            add(&mut self.env.counters.limit_class_connections, 1);
        }
        is_in
    }

    /// A connection of a class is gone, or is of another class now.
    pub(crate) fn leave_class(&self, class: u8) {
        self.shared.classes.leave(self.config.worker, class);
    }

    /// The class of a connection after a re-authentication. Whoever is connected stays so.
    pub(crate) fn change_class(&mut self, conn: ConnId, class: u8) {
        let Some(c) = self.conns.get(conn) else {
            return;
        };
        let (former, state) = (std::mem::replace(&mut c.quota_class, class), c.state);
        if former == class || !state.is_counted() {
            return;
        }
        let (worker, workers) = (self.config.worker, &self.config.workers);
        self.shared.classes.leave(worker, former);
        self.shared.classes.enter(worker, workers, class, 0);
        if let State::Up(slot) = state
            && let Some(session) = self.slots.session(slot)
        {
            session.quota_class = class;
        }
    }

    /// Whether a PUBLISH is to be processed. Above the client's quota it may not be, or the client is read from more
    /// slowly after it.
    #[inline]
    pub(crate) fn within_quota(
        &mut self,
        conn: ConnId,
        slot: u32,
        publish: &Publish,
        out: &mut Vec<Output>,
    ) -> bool {
        !self.env.quotas.has_rates || self.metered(conn, slot, publish, out)
    }

    fn metered(
        &mut self,
        conn: ConnId,
        slot: u32,
        publish: &Publish,
        out: &mut Vec<Output>,
    ) -> bool {
        let now = self.env.now;
        let Some(c) = self.conns.get(conn) else {
            return true;
        };
        let limits = self.env.quotas.of(c.quota_class);
        if !limits.has_rate() {
            return true;
        }
        let bytes = (publish.topic.as_bytes().len() + publish.payload.len()) as u64;
        let meter = c.meter.get_or_insert_default();
        if meter.is_paid(now) {
            meter.over_since = NEVER;
        }
        let Some(above) = meter.above(&limits, now) else {
            meter.charge(&limits, bytes, now);
            if limits.above == AboveQuota::Slow && meter.above(&limits, now).is_some() {
                self.slow_down(conn, &limits, out);
            }
            return true;
        };
        meter.last_over = now;
        if meter.over_since == NEVER {
            meter.over_since = now;
        }
        add(
            match above {
                Above::Messages => &mut self.env.counters.quota_messages,
                Above::Bytes => &mut self.env.counters.quota_bytes,
            },
            1,
        );
        self.penalize(conn, &limits, out);
        match limits.above {
            // It was under way when reading stopped.
            AboveQuota::Slow => {
                if let Some(meter) = self.conns.get(conn).and_then(|c| c.meter.as_deref_mut()) {
                    meter.charge(&limits, bytes, now);
                }
                self.slow_down(conn, &limits, out);
                true
            }
            AboveQuota::Refuse => self.refuse_publish(conn, slot, publish, out),
            AboveQuota::Disconnect => {
                self.close(conn, End::Server(ReasonCode::QUOTA_EXCEEDED), out);
                false
            }
        }
    }

    /// Stops reading from a connection until its debt has shrunk.
    fn slow_down(&mut self, conn: ConnId, limits: &QuotaLimits, out: &mut Vec<Output>) {
        let now = self.env.now;
        let Some(c) = self.conns.get(conn) else {
            return;
        };
        if let Some(meter) = c.meter.as_deref_mut() {
            if meter.over_since == NEVER {
                meter.over_since = now;
            }
            meter.last_over = now;
            meter.wake = meter.wake.min(meter.room_at(limits)).max(now.after_ms(1));
        }
        if c.paused & PAUSED_QUOTA == 0 {
            add(&mut self.env.counters.quota_slowed, 1);
        }
        self.penalize(conn, limits, out);
        self.pause(conn, PAUSED_QUOTA, true, out);
        self.arm_conn(conn);
    }

    /// Lets the kernel police a connection that goes on above its quota.
    fn penalize(&mut self, conn: ConnId, limits: &QuotaLimits, out: &mut Vec<Output>) {
        let now = self.env.now;
        let (after_s, ends_after_s) = (
            self.env.limits.penalty_after_s,
            self.env.limits.penalty_ends_after_s,
        );
        let Some(c) = self.conns.get(conn) else {
            return;
        };
        let class = c.quota_class;
        let Some(meter) = c.meter.as_deref_mut() else {
            return;
        };
        let is_due = meter.over_since != NEVER && now >= meter.over_since.after_s(after_s);
        if meter.is_penalized || !is_due || !limits.is_policed {
            return;
        }
        meter.is_penalized = true;
        meter.wake = meter.wake.min(now.after_s(ends_after_s));
        add(&mut self.env.counters.quota_penalties, 1);
        out.push(Output::Penalty {
            conn,
            class: Some(class),
        });
        self.arm_conn(conn);
    }

    /// The timer of a connection has fired: reading goes on, or a penalty ends, if it is time.
    pub(crate) fn on_quota_timer(&mut self, conn: ConnId, out: &mut Vec<Output>) {
        let now = self.env.now;
        let ends_after_s = self.env.limits.penalty_ends_after_s;
        let Some(c) = self.conns.get(conn) else {
            return;
        };
        let limits = self.env.quotas.of(c.quota_class);
        let is_slowed = c.paused & PAUSED_QUOTA != 0;
        let Some(meter) = c.meter.as_deref_mut().filter(|meter| meter.wake <= now) else {
            return;
        };
        meter.wake = NEVER;
        let is_room = meter.above(&limits, now).is_none();
        if is_slowed && !is_room {
            meter.wake = meter.room_at(&limits).max(now.after_ms(1));
        }
        if meter.is_penalized {
            let ends = meter.last_over.after_s(ends_after_s);
            if ends <= now {
                meter.is_penalized = false;
                meter.over_since = NEVER;
                out.push(Output::Penalty { conn, class: None });
            } else {
                meter.wake = meter.wake.min(ends);
            }
        }
        if !meter.is_penalized && meter.wake == NEVER && meter.is_paid(now) {
            c.meter = None;
        }
        if is_slowed && is_room {
            self.pause(conn, PAUSED_QUOTA, false, out);
        }
    }

    /// Answers a PUBLISH above the quota, or one that the store can't take, with 0x97. `true` = it has to be processed
    /// all the same.
    pub(crate) fn refuse_publish(
        &mut self,
        conn: ConnId,
        slot: u32,
        publish: &Publish,
        out: &mut Vec<Output>,
    ) -> bool {
        let reason = ReasonCode::QUOTA_EXCEEDED;
        let (Some(session), Some(packet_id)) = (self.slots.session(slot), publish.packet_id) else {
            return false;
        };
        // A repetition of what was accepted is no message of its own [MQTT-4.3.3-10].
        let received = session.flow.as_ref().map(|flow| &flow.received);
        if publish.qos == QoS::ExactlyOnce
            && received.is_some_and(|ids| ids.binary_search(&packet_id).is_ok())
        {
            return true;
        }
        if session.version != Version::V5 {
            self.close(conn, End::Silent(reason), out);
            return false;
        }
        if let Some(c) = self.conns.get(conn) {
            c.open_publishes = c.open_publishes.saturating_add(1);
        }
        let body = match publish.qos {
            QoS::ExactlyOnce => AckBody::PubRec(packet_id, reason),
            _ => AckBody::PubAck(packet_id, reason),
        };
        self.acknowledge(conn, slot, body, Wait::default(), out);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Messages of `bytes` bytes that pass when one is tried every `gap_ms` for ten seconds.
    fn passed(limits: &QuotaLimits, bytes: u64, gap_ms: u64) -> u64 {
        let (mut meter, mut passed) = (Meter::default(), 0);
        for now in (1_000_000..1_010_000).step_by(gap_ms as usize).map(Time) {
            if meter.above(limits, now).is_none() {
                meter.charge(limits, bytes, now);
                passed += 1;
            }
        }
        passed
    }

    proptest! {
        #[test]
        fn the_long_run_is_the_rate_and_a_second_may_come_at_once(rate in 1u32..900, bytes in 1u64..2_000) {
            let by_messages = QuotaLimits { messages_per_s: rate, ..QuotaLimits::default() };
            let allowed = 11 * u64::from(rate);
            let got = passed(&by_messages, bytes, 1);
            prop_assert!((allowed - 2..=allowed + 1).contains(&got), "{got} of {allowed}");
            let by_bytes = QuotaLimits { bytes_per_s: rate * 10, ..QuotaLimits::default() };
            let allowed = 11 * u64::from(rate) * 10;
            let got = passed(&by_bytes, bytes, 1) * bytes;
            prop_assert!(got <= allowed + 2 * bytes + 10, "{got} of {allowed}");
            prop_assert!(got + bytes >= allowed.min(10_000 * bytes) - 10, "{got} of {allowed}");
        }

        #[test]
        fn below_the_rate_everything_passes(rate in 2u32..400) {
            let limits = QuotaLimits { messages_per_s: rate, ..QuotaLimits::default() };
            let gap_ms = u64::from(1_000 / rate) + 1;
            prop_assert_eq!(passed(&limits, 1, gap_ms), 10_000_u64.div_ceil(gap_ms));
        }

        #[test]
        fn there_is_room_when_it_says_so(rate in 1u32..5_000, bytes_rate in 1u32..5_000, sizes in prop::collection::vec(1u64..3_000, 1..40)) {
            let limits = QuotaLimits { messages_per_s: rate, bytes_per_s: bytes_rate, ..QuotaLimits::default() };
            let (mut meter, now) = (Meter::default(), Time(77));
            for bytes in sizes {
                meter.charge(&limits, bytes, now);
            }
            let at = meter.room_at(&limits);
            prop_assert_eq!(meter.above(&limits, at), None);
            if at > now {
                prop_assert!(meter.above(&limits, Time(at.0 - 1)).is_some());
            }
        }
    }

    #[test]
    fn connections_are_counted_by_class_over_all_workers() {
        let counts = ClassCounts::default();
        let workers = [WorkerSlot(0), WorkerSlot(1)];
        assert!(counts.enter(workers[0], &workers, 3, 2));
        assert!(counts.enter(workers[1], &workers, 3, 2));
        assert!(!counts.enter(workers[0], &workers, 3, 2));
        assert!(counts.enter(workers[0], &workers, 4, 1), "another class");
        counts.leave(workers[1], 3);
        assert!(counts.enter(workers[0], &workers, 3, 2));
        counts.forget_worker(workers[0]);
        assert_eq!(counts.sum(&workers, 3), 0);
    }

    #[test]
    fn a_class_that_there_is_not_is_the_default_one() {
        let of = |connections| QuotaLimits {
            connections,
            ..QuotaLimits::default()
        };
        let quotas = Quotas::new([of(7), of(8)].into());
        assert_eq!(quotas.of(1).connections, 8);
        assert_eq!(quotas.of(9).connections, 7);
        assert_eq!(Quotas::new([].into()).of(0), QuotaLimits::default());
    }
}
