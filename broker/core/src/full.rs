//! What becomes of a message that meets a full queue: the quota class of the session says it ([`WhenFull`]).
//!
//! Here is what a session does by itself. Whom it concerns besides (the slow client's connection, or the publisher) is
//! a [`Consequence`], which the hub draws at the end of the input ([`crate::block`]).

use std::collections::BTreeSet;

use headgate_codec::QoS;

use crate::{
    ConnId, DataStream, Output, Session, Time, WorkerSlot,
    block::Consequence,
    counters::add,
    env::Env,
    message::Message,
    quota::WhenFull,
    session::{Fenced, Flow, Waiting},
};

/// Messages that a session of a class that blocks takes beyond its limit: they were under way to it when it was found
/// full. As many as the rings towards one worker hold.
pub(crate) const UNDER_WAY_MESSAGES_MAX: usize = 16_384;
/// The same in bytes (16 MiB). They were in memory already: a queue holds references.
pub(crate) const UNDER_WAY_BYTES_MAX: u32 = 16 * 1024 * 1024;

/// A client that has published something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Publisher {
    /// Its worker.
    pub worker: WorkerSlot,
    /// Its connection.
    pub conn: ConnId,
}

/// The limit that has no room for one more message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    Messages,
    Bytes,
    /// Of what only the store has.
    StoreBytes,
}

/// What a queue holds, as the limits count it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Level {
    pub(crate) messages: usize,
    /// In memory.
    pub(crate) bytes: u32,
    /// In the store alone.
    pub(crate) spilled: u32,
}

/// A queue that was found full, and hasn't been half empty since.
#[derive(Debug)]
pub(crate) struct FullQueue {
    /// When that was.
    since: Time,
    /// Who was told to wait.
    publishers: BTreeSet<Publisher>,
}

impl FullQueue {
    fn new(since: Time) -> Box<Self> {
        Box::new(Self {
            since,
            publishers: BTreeSet::new(),
        })
    }

    /// It may still make room in time.
    fn has_time(&self, env: &Env) -> bool {
        let ms = u64::from(env.limits.full_queue_ms_max);
        env.now < self.since.after_ms(ms)
    }
}

/// A message that looks for room: where it will leave, what it costs, and its QoS there.
#[derive(Clone, Copy)]
struct Newest {
    stream: Option<DataStream>,
    cost: u32,
    qos: QoS,
}

/// What a message lacks.
#[derive(Clone, Copy)]
struct Lack {
    full: Full,
    /// Bytes that have to go; 0 = a message of any size.
    bytes: u32,
    /// The stream whose share of the queue is used up; `None` = the whole queue is.
    share: Option<DataStream>,
}

impl Session {
    /// What waits for it, and what is on its way.
    fn level(&self) -> Level {
        self.flow
            .as_ref()
            .map_or_else(Level::default, |f| f.level())
    }

    /// Room for one more message; what the class says is done if there is none. `false` = it is dropped, and that is
    /// counted.
    pub(crate) fn has_room(
        &mut self,
        env: &mut Env,
        stream: Option<DataStream>,
        (message, qos): (&Message, QoS),
        out: &mut Vec<Output>,
    ) -> bool {
        let cost = message.cost();
        if stream.is_none() && env.full(self.quota_class, self.level(), cost).is_none() {
            return true;
        }
        match self.lack(env, stream, cost) {
            None => true,
            Some(lack) => self.make_room(env, lack, Newest { stream, cost, qos }, out),
        }
    }

    #[cold]
    fn lack(&self, env: &Env, stream: Option<DataStream>, cost: u32) -> Option<Lack> {
        let (_, bytes_max) = env.queue_limits(self.quota_class);
        let level = self.level();
        if let Some(full) = env.full(self.quota_class, level, cost) {
            let bytes = (level.bytes.saturating_add(cost)).saturating_sub(bytes_max);
            let bytes = if full == Full::Bytes { bytes } else { 0 };
            let share = None;
            return Some(Lack { full, bytes, share });
        }
        let (share, parts) = self.share_of(stream)?;
        let full = env.full(self.quota_class, share, cost)?;
        let bytes = (share.bytes.saturating_add(cost)).saturating_sub(bytes_max);
        let bytes = if full == Full::Bytes {
            bytes.div_ceil(parts)
        } else {
            0
        };
        let share = stream;
        Some(Lack { full, bytes, share })
    }

    #[cold]
    fn make_room(
        &mut self,
        env: &mut Env,
        lack: Lack,
        newest: Newest,
        out: &mut Vec<Output>,
    ) -> bool {
        // What is too large for an empty queue says nothing of the client.
        let is_slow = !self.is_half_empty(env);
        if let Some(state) = self.share.as_ref().filter(|_| is_slow) {
            state.set_full(true);
        }
        let takes = match env.quotas.of(self.quota_class).when_full {
            WhenFull::DropNewest => false,
            WhenFull::DropOldest => self.drop_oldest(env, newest, out),
            WhenFull::Disconnect => {
                self.end_if_slow(env);
                false
            }
            WhenFull::Block => {
                let level = self.level();
                self.blocks(env, level, newest.cost)
            }
        };
        if !takes {
            env.count_dropped(lack.full, newest.qos);
        }
        takes
    }

    /// The client is too slow for its class: its connection is closed, unless it has come back to a full queue just now, or
    /// it is the message that is too large.
    fn end_if_slow(&self, env: &mut Env) {
        let full = self.flow.as_ref().and_then(|flow| flow.full.as_ref());
        let has_time = full.is_some_and(|full| full.has_time(env));
        if self.conn.is_some() && !has_time && !self.is_half_empty(env) {
            env.consequences.push(Consequence::Disconnect(self.handle));
        }
    }

    /// The client has come back. It would never get what waits for it if it were disconnected for the next message.
    pub(crate) fn give_time(&mut self, env: &Env) {
        if env.quotas.of(self.quota_class).when_full == WhenFull::Disconnect
            && !self.is_half_empty(env)
        {
            self.flow().full = Some(FullQueue::new(env.now));
        }
    }

    /// Has the publisher wait, if there is one and time is left. `true`: its message is taken beyond the limit.
    fn blocks(&mut self, env: &mut Env, level: Level, cost: u32) -> bool {
        let (Some(conn), Some(publisher)) = (self.conn, env.publisher) else {
            return false;
        };
        let itself = Publisher {
            worker: self.handle.worker(),
            conn,
        };
        // Its acknowledgements are what makes room.
        if publisher == itself {
            return false;
        }
        let (now, handle) = (env.now, self.handle);
        let (messages_max, bytes_max) = env.queue_limits(self.quota_class);
        let full = self.flow().full.get_or_insert_with(|| FullQueue::new(now));
        if !full.has_time(env) {
            return false;
        }
        full.publishers.insert(publisher);
        env.consequences.push(Consequence::Hold(publisher, handle));
        let fits = |bytes: u32, max: u32| {
            u64::from(bytes) + u64::from(cost) <= u64::from(max) + u64::from(UNDER_WAY_BYTES_MAX)
        };
        level.messages < messages_max as usize + UNDER_WAY_MESSAGES_MAX
            && fits(level.bytes, bytes_max)
            && fits(level.spilled, env.limits.session_store_bytes)
    }

    /// Lets publishers go on that wait for this session, if its queue is half empty or `gone` with its client.
    pub(crate) fn unblock(&mut self, env: &mut Env, gone: bool) {
        if !gone && !self.is_half_empty(env) {
            return;
        }
        let handle = self.handle;
        let full = self.flow.as_mut().and_then(|flow| flow.full.take());
        let publishers = full.into_iter().flat_map(|full| full.publishers);
        env.consequences
            .extend(publishers.map(|publisher| Consequence::GoOn(publisher, handle)));
        if let Some(state) = &self.share {
            state.set_full(false);
        }
    }

    /// Its queue was found full, and somebody has to know when it has room again.
    pub(crate) fn was_full(&self) -> bool {
        self.flow.as_ref().is_some_and(|flow| flow.full.is_some())
            || self.share.as_ref().is_some_and(|state| state.is_full())
    }

    fn is_half_empty(&self, env: &Env) -> bool {
        let (messages_max, bytes_max) = env.queue_limits(self.quota_class);
        let store_max = env.limits.session_store_bytes;
        let is_half = |level: Level| {
            level.messages <= messages_max as usize / 2
                && level.bytes <= bytes_max / 2
                && level.spilled <= store_max / 2
        };
        is_half(self.level()) && self.shares().into_iter().all(is_half)
    }

    /// Lets the oldest messages go that were not sent yet, those with QoS 0 first. One with QoS 0 takes the place of
    /// none with QoS 1 or 2. `false` = that makes no room.
    fn drop_oldest(&mut self, env: &mut Env, newest: Newest, out: &mut Vec<Output>) -> bool {
        loop {
            let Some(lack) = self.lack(env, newest.stream, newest.cost) else {
                return true;
            };
            if lack.full == Full::StoreBytes || !self.can_give(lack, newest.qos) {
                return self.drop_stored(env, lack, newest, out);
            }
            self.let_go(env, lack, newest.qos, out);
        }
    }

    /// Whether enough waits in memory that may go for a message with this QoS.
    fn can_give(&self, lack: Lack, qos: QoS) -> bool {
        let Some(flow) = &self.flow else { return false };
        let acked = flow.queue.iter().filter(|_| qos != QoS::AtMostOnce);
        let waiting = flow.queue_qos0.iter().chain(acked);
        let mut may_go = waiting.filter(|w| lack.share.is_none() || w.stream == lack.share);
        let mut bytes = 0_u32;
        let is_enough = |w: &Waiting| {
            bytes = bytes.saturating_add(w.message.cost());
            bytes >= lack.bytes
        };
        may_go.any(is_enough)
    }

    /// The oldest message that may go for one with this QoS is dropped.
    fn let_go(&mut self, env: &mut Env, lack: Lack, qos: QoS, out: &mut Vec<Output>) {
        let Some(flow) = &mut self.flow else { return };
        let of_share = |w: &Waiting| lack.share.is_none() || w.stream == lack.share;
        let oldest = match flow.queue_qos0.iter().position(of_share) {
            Some(place) => flow.queue_qos0.remove(place),
            None if qos == QoS::AtMostOnce => None,
            None => {
                let place = flow.queue.iter().position(of_share);
                place.and_then(|place| flow.queue.remove(place))
            }
        };
        if let Some(oldest) = oldest {
            self.drop_waiting(env, lack.full, &oldest, out);
        }
    }

    /// The oldest message with QoS 1 or 2 in memory is dropped; its cost, bytes.
    fn let_go_acked(&mut self, env: &mut Env, full: Full, out: &mut Vec<Output>) -> Option<u32> {
        let oldest = self.flow.as_mut()?.queue.pop_front()?;
        Some(self.drop_waiting(env, full, &oldest, out))
    }

    /// What was taken out of a queue is counted as dropped and forgotten; its cost, bytes.
    fn drop_waiting(
        &mut self,
        env: &mut Env,
        full: Full,
        waiting: &Waiting,
        out: &mut Vec<Output>,
    ) -> u32 {
        let cost = waiting.message.cost();
        if let Some(flow) = &mut self.flow {
            flow.bytes = flow.bytes.saturating_sub(cost);
        }
        env.count_oldest(full, waiting.qos);
        self.forget(env, waiting.queued, out);
        cost
    }

    /// The oldest are in the store: the message joins the queue's end there, and they go as soon as they have been read
    /// ([`Session::trim`]). The read begins here; while it lasts the queue has up to twice what it may have.
    fn drop_stored(
        &mut self,
        env: &mut Env,
        lack: Lack,
        newest: Newest,
        out: &mut Vec<Output>,
    ) -> bool {
        let (messages_max, _) = env.queue_limits(self.quota_class);
        let level = self.level();
        let is_stored = self.has_spilled() && newest.qos != QoS::AtMostOnce;
        let store_max = 2 * u64::from(env.limits.session_store_bytes);
        let fits = level.messages < messages_max as usize * 2
            && u64::from(level.spilled) + u64::from(newest.cost) <= store_max;
        if !is_stored || lack.full == Full::Bytes || !fits {
            return false;
        }
        // As much goes as comes, as far as it is here.
        let mut freed = 0;
        while freed < newest.cost
            && let Some(cost) = self.let_go_acked(env, lack.full, out)
        {
            freed += cost;
        }
        if let Some(mut flow) = self.flow.take() {
            self.load_oldest(env, &mut flow, out);
            self.flow = Some(flow);
        }
        true
    }

    /// A class whose oldest messages give way has more than it may, because they were in the store.
    pub(crate) fn is_over(&self, env: &Env, flow: &Flow) -> bool {
        let (messages_max, _) = env.queue_limits(self.quota_class);
        let level = flow.level();
        env.quotas.of(self.quota_class).when_full == WhenFull::DropOldest
            && (level.messages > messages_max as usize
                || level.spilled > env.limits.session_store_bytes)
    }

    /// Messages have been read from the store: those that have given way to others go.
    pub(crate) fn trim(&mut self, env: &mut Env, out: &mut Vec<Output>) {
        let (messages_max, _) = env.queue_limits(self.quota_class);
        while self
            .flow
            .as_ref()
            .is_some_and(|flow| self.is_over(env, flow))
        {
            let full = match self.level().messages > messages_max as usize {
                true => Full::Messages,
                false => Full::StoreBytes,
            };
            if self.let_go_acked(env, full, out).is_none() {
                return;
            }
        }
    }

    /// Room for one more message behind a fence, as [`Session::has_room`] has it in the queue.
    pub(crate) fn has_room_behind_fence(
        &mut self,
        env: &mut Env,
        (message, qos): (&Message, QoS),
        out: &mut Vec<Output>,
    ) -> bool {
        let cost = message.cost();
        loop {
            let Some(fence) = &self.fence else {
                return false;
            };
            let level = fence.level();
            let Some(full) = env.full(self.quota_class, level, cost) else {
                return true;
            };
            let takes = match env.quotas.of(self.quota_class).when_full {
                WhenFull::DropOldest if self.let_go_held(env, (full, cost), qos, out) => continue,
                WhenFull::DropNewest | WhenFull::DropOldest => false,
                WhenFull::Disconnect => {
                    self.end_if_slow(env);
                    false
                }
                WhenFull::Block => self.blocks(env, level, cost),
            };
            if !takes {
                env.count_dropped(full, qos);
            }
            return takes;
        }
    }

    /// Drops the oldest message behind the fence; `false` = none may go, or all of them together make no room.
    fn let_go_held(
        &mut self,
        env: &mut Env,
        (full, cost): (Full, u32),
        qos: QoS,
        out: &mut Vec<Output>,
    ) -> bool {
        let (_, bytes_max) = env.queue_limits(self.quota_class);
        let Some(fence) = &mut self.fence else {
            return false;
        };
        let of = |held: &crate::session::Held| held.message.qos.min(held.options.qos());
        let unacked = fence
            .held
            .iter()
            .position(|held| of(held) == QoS::AtMostOnce);
        let any = (qos != QoS::AtMostOnce && !fence.held.is_empty()).then_some(0);
        let Some(place) = unacked.or(any).filter(|_| cost <= bytes_max) else {
            return false;
        };
        let oldest = fence.held.remove(place);
        fence.held_bytes = fence.held_bytes.saturating_sub(oldest.message.cost());
        env.count_oldest(full, of(&oldest));
        self.forget(env, oldest.queued, out);
        true
    }
}

impl Flow {
    pub(crate) fn level(&self) -> Level {
        Level {
            messages: self.waiting(),
            bytes: self.bytes,
            spilled: self.spill.as_ref().map_or(0, |s| s.bytes),
        }
    }
}

impl Fenced {
    fn level(&self) -> Level {
        Level {
            messages: self.held.len(),
            bytes: self.held_bytes,
            spilled: 0,
        }
    }
}

impl Env {
    /// The limit at which a queue of a class that holds so much has no room for a message of this cost.
    pub(crate) fn full(&self, class: u8, level: Level, cost: u32) -> Option<Full> {
        let (messages_max, bytes_max) = self.queue_limits(class);
        let is_over = |bytes: u32, max: u32| u64::from(bytes) + u64::from(cost) > u64::from(max);
        if level.messages >= messages_max as usize {
            Some(Full::Messages)
        } else if is_over(level.bytes, bytes_max) {
            Some(Full::Bytes)
        } else if is_over(level.spilled, self.limits.session_store_bytes) {
            Some(Full::StoreBytes)
        } else {
            None
        }
    }

    /// A message is dropped that found no room.
    pub(crate) fn count_dropped(&mut self, full: Full, qos: QoS) {
        self.count_full(full);
        let counters = &mut self.counters;
        match qos {
            QoS::AtMostOnce => add(&mut counters.dropped_queue_full_qos0, 1),
            _ => add(&mut counters.dropped_queue_full, 1),
        }
    }

    /// A message is dropped that has given way to a newer one.
    fn count_oldest(&mut self, full: Full, qos: QoS) {
        self.count_full(full);
        let counters = &mut self.counters;
        match qos {
            QoS::AtMostOnce => add(&mut counters.dropped_oldest_qos0, 1),
            _ => add(&mut counters.dropped_oldest, 1),
        }
    }

    fn count_full(&mut self, full: Full) {
        let counters = &mut self.counters;
        let limit = match full {
            Full::Messages => &mut counters.limit_queued_messages,
            Full::Bytes => &mut counters.limit_session_bytes,
            Full::StoreBytes => &mut counters.limit_session_store_bytes,
        };
        add(limit, 1);
    }
}
