//! The part of a session's queue that only the store has: everything behind a short head, and all of it while the
//! client isn't connected.

use std::collections::VecDeque;

use headgate_codec::{PacketId, QoS};

use crate::{
    DataStream, Loaded, OpId, Output, QueueSummary, Session, StorageState,
    counters::add,
    env::{Env, Waiter},
    hub::Hub,
    session::{Flow, Inflight, Waiting},
    share::GroupId,
    slots::{Handle, Slot},
};

/// Messages with QoS > 0 that a queue keeps in memory in front of what only the store has.
const HEAD_MESSAGES: usize = 16;
/// Entries that are read at a time, and what their messages may cost, bytes.
const PORTION: (u16, u32) = (64, 64 * 1024);
/// How long to wait after the store couldn't read, ms.
const AGAIN_MS: u64 = 1_000;
/// Packet Identifiers that a spilled queue may reach over: further, new ones could run out.
pub(crate) const IDS_SPAN_MAX: u16 = 0x8000;

/// What has to be known of the entries that only the store has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spill {
    pub(crate) count: u32,
    /// What their messages cost, bytes.
    pub(crate) bytes: u32,
    /// All of them come after this sequence.
    pub(crate) after: u64,
    /// Those up to here were sent to the client.
    pub(crate) sent_up_to: u64,
    /// Packet Identifier of the first one.
    pub(crate) first_id: u16,
    /// The Load that hasn't been answered; 0 = none.
    pub(crate) loading: OpId,
    /// Count and bytes of what was added since it began.
    pub(crate) since: (u32, u32),
}

impl Spill {
    /// Of a session that the store has kept.
    pub(crate) fn of_summary(summary: &QueueSummary, sent_up_to: u64) -> Self {
        Self {
            count: summary.count,
            bytes: summary.bytes,
            sent_up_to,
            first_id: summary.first_packet_id,
            ..Self::default()
        }
    }
}

impl Flow {
    /// Leaves a message that is recorded to the store; `bytes` has counted it.
    pub(crate) fn spill(&mut self, waiting: Waiting) {
        let cost = waiting.message.cost();
        self.bytes = self.bytes.saturating_sub(cost);
        let before = waiting.queued.saturating_sub(1);
        let spill = self.spill.get_or_insert_with(|| {
            Box::new(Spill {
                after: before,
                first_id: waiting.packet_id.map_or(0, |id| id.get()),
                ..Spill::default()
            })
        });
        spill.count += 1;
        spill.bytes = spill.bytes.saturating_add(cost);
        spill.since.0 += 1;
        spill.since.1 = spill.since.1.saturating_add(cost);
    }

    /// Leaves everything to the store, if that has it all. QoS 0 and retained messages that are being sent stay.
    pub(crate) fn spill_all(&mut self) {
        let recorded =
            self.inflight.iter().all(|i| i.queued != 0) && self.queue.iter().all(|w| w.queued != 0);
        let ids = self.inflight.iter().map(|i| i.packet_id);
        let ids = ids.chain(self.queue.iter().filter_map(|w| w.packet_id));
        // The oldest, which isn't always in front: a data stream that stood still has let others go ahead.
        let age = |id: &PacketId| self.last_packet_id.wrapping_sub(id.get());
        let Some(first) = ids.max_by_key(age).filter(|_| recorded) else {
            return;
        };
        if age(&first) > IDS_SPAN_MAX {
            return;
        }
        // Nor is all in front of them sent then: the store would take it for that, which keeps it from expiring.
        let sent_up_to = self.sent_up_to();
        if self.queue.iter().any(|w| w.queued <= sent_up_to) {
            return;
        }
        let sequences = self.inflight.iter().map(|i| i.queued);
        let lowest = sequences.chain(self.queue.iter().map(|w| w.queued)).min();
        let mut spill = self.spill.take().unwrap_or_default();
        spill.after = lowest.unwrap_or(1) - 1;
        (spill.sent_up_to, spill.first_id) = (sent_up_to, first.get());
        spill.count += (self.inflight.len() + self.queue.len()) as u32;
        let inflight = self.inflight.iter().filter_map(|i| i.message.as_ref());
        let costs = inflight.chain(self.queue.iter().map(|w| &w.message));
        let bytes = costs.fold(0_u32, |sum, m| sum.saturating_add(m.cost()));
        self.bytes = self.bytes.saturating_sub(bytes);
        spill.bytes = spill.bytes.saturating_add(bytes);
        spill.loading = OpId(0);
        self.spill = Some(spill);
        (self.inflight, self.queue, self.sent) = (VecDeque::new(), VecDeque::new(), 0);
        self.free_ids = 0;
    }

    /// Entries have come from the store.
    fn take_loaded(
        &mut self,
        messages: Vec<Loaded>,
        more: bool,
        group_of: impl Fn(&str) -> GroupId,
        stream_of: impl Fn(&str) -> Option<DataStream>,
    ) {
        let Some(mut spill) = self.spill.take() else {
            return;
        };
        spill.loading = OpId(0);
        for loaded in messages {
            let cost = loaded.message.as_ref().map_or(0, |m| m.cost());
            spill.count = spill.count.saturating_sub(1);
            spill.bytes = spill.bytes.saturating_sub(cost);
            spill.after = loaded.sequence;
            let is_sent = loaded.sequence <= spill.sent_up_to;
            self.bytes = self.bytes.saturating_add(cost);
            let group = loaded.group.as_ref().map_or(0, |filter| group_of(filter));
            match loaded.message {
                Some(message) if !is_sent => self.queue.push_back(Waiting {
                    stream: stream_of(&message.topic),
                    message,
                    ids: loaded.ids,
                    queued: loaded.sequence,
                    op: OpId(0),
                    group,
                    packet_id: Some(loaded.packet_id),
                    qos: loaded.qos,
                    retain: loaded.retain,
                }),
                message => self.inflight.push_back(Inflight {
                    message,
                    ids: loaded.ids,
                    queued: loaded.sequence,
                    op: OpId(0),
                    group,
                    packet_id: loaded.packet_id,
                    qos: loaded.qos,
                    retain: loaded.retain,
                }),
            }
            spill.first_id = match loaded.packet_id.get() {
                u16::MAX => 1,
                id => id + 1,
            };
        }
        if !more {
            (spill.count, spill.bytes) = spill.since;
        }
        if spill.count > 0 {
            self.spill = Some(spill);
        }
    }
}

impl Session {
    /// The store has a part of its queue that isn't here.
    pub(crate) fn has_spilled(&self) -> bool {
        self.flow.as_ref().is_some_and(|f| f.spill.is_some())
    }

    /// Another member of a group may have to get something that only the store has.
    pub(crate) fn leaves_spilled(&self, storage: StorageState) -> bool {
        self.share.is_some() && self.has_spilled() && storage != StorageState::Failed
    }

    /// The next message is left to the store: it is recorded, and there are enough in front of it.
    pub(crate) fn spills_next(&self, env: &Env, flow: &Flow, waiting: &Waiting) -> bool {
        if waiting.queued == 0 || flow.spill.is_some() {
            return flow.spill.is_some();
        }
        // Members of a group keep what another member may have to get. With data streams, what is behind the messages of
        // one that stands still has to be at hand for the others.
        let is_kept = self.share.is_some() || self.lanes.is_some();
        let is_enough = self.conn.is_none() || flow.queue.len() >= HEAD_MESSAGES;
        env.limits.spills && !is_kept && is_enough
    }

    /// Reads on from the store, if the connection has taken what is here.
    pub(crate) fn load(&self, env: &mut Env, flow: &mut Flow, out: &mut Vec<Output>) {
        // A data stream that stands still doesn't hold up what comes for others, as long as there is memory.
        let is_beside = self.lanes.is_some() && flow.bytes < env.queue_limits(self.quota_class).1;
        let is_taken = flow.queue.is_empty() || is_beside;
        let is_wanted = self.conn.is_some() && is_taken || self.share.is_some();
        // What other members of a group may have to get is read whatever waits in front of it.
        let is_enough = flow.inflight.len() > usize::from(self.send_quota) && self.conn.is_some();
        if is_wanted && !is_enough {
            self.read_on(env, flow, out);
        } else if flow.spill.is_some() && self.is_over(env, flow) {
            self.load_oldest(env, flow, out);
        }
    }

    /// Reads on from the store, if it has the oldest messages that are to be sent.
    pub(crate) fn load_oldest(&self, env: &mut Env, flow: &mut Flow, out: &mut Vec<Output>) {
        if flow.queue.is_empty() {
            self.read_on(env, flow, out);
        }
    }

    fn read_on(&self, env: &mut Env, flow: &mut Flow, out: &mut Vec<Output>) {
        let is_blocked = self.fence.is_some() || env.storage == StorageState::Failed;
        let Some(spill) = &mut flow.spill else { return };
        if is_blocked || spill.loading != OpId(0) {
            return;
        }
        let op = env.op();
        (spill.loading, spill.since) = (op, (0, 0));
        add(&mut env.counters.queue_loads, 1);
        out.push(Output::Load {
            op,
            session: self.id,
            handle: self.handle.0,
            after: spill.after,
            messages_max: PORTION.0,
            bytes_max: PORTION.1,
        });
    }
}

impl Hub {
    /// A session can't end yet: the store has messages of its groups that nobody else knows.
    pub(crate) fn must_read(&mut self, slot: u32) -> bool {
        let storage = self.env.storage;
        let session = self.slots.session(slot);
        session.is_some_and(|session| session.leaves_spilled(storage))
    }

    /// Ends a session without a connection as if it had expired: once these messages have been read.
    pub(crate) fn end_when_read(&mut self, slot: u32, out: &mut Vec<Output>) {
        if let Some(session) = self.slots.session(slot) {
            session.expires_at = self.env.now;
        }
        self.pump(slot, out);
        self.arm_slot(slot);
    }

    /// Entries of a queue have been read, or could not be.
    pub(crate) fn on_loaded(
        &mut self,
        (op, handle): (OpId, u64),
        (messages, more, failed): (Vec<Loaded>, bool, bool),
        out: &mut Vec<Output>,
    ) {
        let handle = Handle(handle);
        let Some(Slot::Live(session)) = self.slots.by_handle(handle) else {
            return;
        };
        let Some(flow) = &mut session.flow else {
            return;
        };
        let Some(spill) = flow.spill.as_mut().filter(|s| s.loading == op) else {
            return;
        };
        if failed {
            spill.loading = OpId(0);
            let at = self.env.now.after_ms(AGAIN_MS);
            return self.loads_again.push((at, handle));
        }
        let subscriptions = &session.subscriptions;
        let group_of = |filter: &str| {
            let place = subscriptions.find(filter);
            place.map_or(0, |place| subscriptions.at(place).group)
        };
        let lanes = session.lanes.as_deref();
        let stream_of = |topic: &str| lanes.and_then(|lanes| lanes.way(topic).stream);
        flow.take_loaded(messages, more, group_of, stream_of);
        session.trim(&mut self.env, out);
        self.pump(handle.slot(), out);
        // Whoever waits for its end has waited for this alone.
        self.end_if_expired(handle, out);
    }

    /// Tries again what the store could not read.
    pub(crate) fn load_again(&mut self, is_well: bool, out: &mut Vec<Output>) {
        let now = self.env.now;
        let due = |(at, _): &(crate::Time, Handle)| is_well || *at <= now;
        let handles: Vec<Handle> = self
            .loads_again
            .iter()
            .filter(|l| due(l))
            .map(|l| l.1)
            .collect();
        self.loads_again.retain(|l| !due(l));
        for handle in handles {
            if let Some(Slot::Live(_)) = self.slots.by_handle(handle) {
                self.pump(handle.slot(), out);
            }
        }
    }
}

/// Waits until a message that was recorded may leave.
pub(crate) fn wait_for(env: &mut Env, handle: Handle, waiting: &Waiting) {
    if waiting.qos == QoS::ExactlyOnce && waiting.op > env.persisted {
        env.waiters.push_back((waiting.op, Waiter::Session(handle)));
    }
}
