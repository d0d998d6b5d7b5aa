//! The router: one match for each message, its local sessions at once, and one delivery for each
//! other worker.

use headgate_codec::QoS;
use headgate_topics::Subscriber;
use std::sync::Arc;

use crate::{
    ConnId, Core, Delivery, Output, Publisher, Receipt, Target, Txn, WorkerSlot,
    counters::add,
    env::Env,
    hub::Hub,
    message::Fanout,
    options::Options,
    session::deliver_to,
    share::{GroupId, group_of},
    slots::{Handle, Slot, Slots},
};

/// Moves within one worker that a delivery follows.
const HOPS_MAX: usize = 8;

/// What became of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Routed {
    /// There were subscribers.
    pub(crate) matched: bool,
    /// Weight of the deliveries whose receivers will send a receipt.
    pub(crate) remote: u32,
}

/// Targets for other workers, by worker slot; kept between messages.
#[derive(Default)]
pub(crate) struct Plans {
    by_worker: Vec<Vec<Target>>,
    used: Vec<WorkerSlot>,
}

impl Plans {
    fn push(&mut self, subscriber: Subscriber, group: GroupId) {
        let worker = Handle(subscriber.id()).worker();
        let index = usize::from(worker.0);
        if self.by_worker.len() <= index {
            self.by_worker.resize_with(index + 1, Vec::new);
        }
        let targets = &mut self.by_worker[index];
        if targets.is_empty() {
            self.used.push(worker);
        }
        targets.push(Target { subscriber, group });
    }
}

impl Core {
    /// Delivers a message to all that have subscribed.
    pub(crate) fn route(
        &mut self,
        fan: &mut Fanout<'_>,
        publisher: Handle,
        (origin, receipt, joins): (Option<ConnId>, Option<Receipt>, bool),
        out: &mut Vec<Output>,
    ) -> Routed {
        let Self {
            hub,
            cache,
            plans,
            merged,
        } = self;
        let me = hub.config.worker;
        let mut matched = cache.matches(&hub.shared.topics, fan.topic().as_str());
        if matched.is_empty() {
            add(&mut hub.env.counters.publish_unmatched, 1);
            return Routed {
                matched: false,
                remote: 0,
            };
        }
        if matched.len() > 1
            && matched
                .iter()
                .any(|s| Options(s.options()).has(Options::OVERLAPS))
        {
            merge(matched, publisher, merged);
            matched = merged;
        }
        hub.env.publisher = origin.map(|conn| Publisher { worker: me, conn });
        for &entry in matched {
            let (mut subscriber, mut group) = (entry, 0);
            if Options(entry.options()).has(Options::SHARED) {
                group = group_of(entry);
                // [MQTT-4.8.2-4]: to one of them, with the QoS that it was granted [MQTT-4.8.2-3] and the
                // identifier of this subscription alone [MQTT-3.3.4-5].
                let Some(member) = hub.shared.shares.pick(group) else {
                    continue;
                };
                subscriber = member;
            }
            let (handle, options) = (Handle(subscriber.id()), Options(subscriber.options()));
            // [MQTT-3.8.3-3]
            if options.has(Options::NO_LOCAL) && handle == publisher {
                continue;
            }
            if handle.worker() == me {
                deliver_here(
                    &mut hub.slots,
                    &mut hub.env,
                    fan,
                    (handle, options, group),
                    me,
                    plans,
                    out,
                );
            } else {
                plans.push(subscriber, group);
            }
        }
        let ties = Ties {
            receipt,
            txn: None,
            part: PART,
        };
        let remote = hub.send_plans(plans, fan, (origin, ties, joins), out);
        Routed {
            matched: true,
            remote: receipt.map_or(0, |_| remote),
        }
    }

    /// Delivers a message to one member of a group; `joins`: what is recorded of that belongs to what this worker
    /// records.
    pub(crate) fn deliver_to_member(
        &mut self,
        fan: &mut Fanout<'_>,
        (member, group): (Subscriber, GroupId),
        joins: bool,
        out: &mut Vec<Output>,
    ) {
        let Self { hub, plans, .. } = self;
        let me = hub.config.worker;
        let (handle, options) = (Handle(member.id()), Options(member.options()));
        hub.env.publisher = None;
        if handle.worker() == me {
            let (slots, env) = (&mut hub.slots, &mut hub.env);
            deliver_here(slots, env, fan, (handle, options, group), me, plans, out);
        } else {
            plans.push(member, group);
        }
        let ties = Ties {
            receipt: None,
            txn: None,
            part: PART,
        };
        hub.send_plans(plans, fan, (None, ties, joins), out);
    }

    /// A delivery from another worker.
    pub(crate) fn on_delivery(
        &mut self,
        from: WorkerSlot,
        delivery: &Delivery,
        out: &mut Vec<Output>,
    ) {
        let Self { hub, plans, .. } = self;
        add(&mut hub.env.counters.mesh_in, 1);
        // It was sent to sessions that were lost with the worker that was here: they come back without it.
        let mut handles = delivery.targets.iter().map(|t| Handle(t.subscriber.id()));
        if delivery.weight > 0 && handles.any(|handle| hub.slots.is_former(handle)) {
            out.extend(delivery.txn.map(|txn| Output::Unjoin { txn }));
            if let Some(receipt) = delivery.receipt {
                hub.say_stored(receipt, delivery.weight, false, out);
            }
            return;
        }
        let before = hub.env.last_persist;
        hub.env.publisher = delivery.publisher;
        let mut fan = Fanout::of_message(&delivery.message, hub.env.now);
        // [MQTT-3.3.2-5]: it may have waited for this worker.
        let is_expired = delivery.message.is_expired(hub.env.now);
        let targets = if is_expired {
            let count = delivery.targets.len() as u64;
            add(&mut hub.env.counters.dropped_expired, count);
            &[]
        } else {
            delivery.targets.as_slice()
        };
        for Target { subscriber, group } in targets {
            let options = Options(subscriber.options());
            let target = (Handle(subscriber.id()), options, *group);
            let (slots, env) = (&mut hub.slots, &mut hub.env);
            deliver_here(slots, env, &mut fan, target, from, plans, out);
        }
        let forwarded = plans.used.len() as u32;
        add(&mut hub.env.counters.mesh_forwarded, u64::from(forwarded));
        // Each of those that it is sent on to has its part of what is owed for it.
        let ties = Ties {
            receipt: delivery.receipt,
            txn: delivery.txn,
            part: delivery.weight / (forwarded + 1),
        };
        let sent_on = hub.send_plans(plans, &mut fan, (None, ties, false), out);
        let weight = delivery.weight.saturating_sub(sent_on);
        if let Some(txn) = delivery.txn {
            out.push(Output::Join { txn, weight });
        }
        if let Some(receipt) = delivery.receipt {
            hub.confirm((receipt, weight), before, out);
        }
    }
}

/// What is owed to whoever has sent a message, and what each receiver has of it.
#[derive(Clone, Copy)]
struct Ties {
    receipt: Option<Receipt>,
    txn: Option<Txn>,
    part: u32,
}

/// Each other worker's part of a message: of the whole, 255 leave one for the sender, and each can be split again.
const PART: u32 = Txn::WHOLE >> 8;

/// Delivers to a session of this worker, or to where it has gone.
#[inline]
fn deliver_here(
    slots: &mut Slots,
    env: &mut Env,
    fan: &mut Fanout<'_>,
    (mut handle, options, group): (Handle, Options, GroupId),
    from: WorkerSlot,
    plans: &mut Plans,
    out: &mut Vec<Output>,
) {
    let me = slots.worker();
    for _ in 0..HOPS_MAX {
        if let Some(Slot::Parked(_)) = slots.by_handle_as_it_is(handle) {
            if fan.qos().min(options.qos()) == QoS::AtMostOnce {
                return add(&mut env.counters.dropped_offline, 1);
            }
            slots.get_mut(handle.slot());
        }
        match slots.by_handle_as_it_is(handle) {
            Some(Slot::Live(session)) => {
                // What the old home sends is in order; all else has to wait for the fences.
                match &session.fence {
                    Some(fence) if fence.via != from => {
                        session.hold(env, fan.message(), (options, group), out)
                    }
                    _ => session.deliver(env, fan, (options, group), out),
                }
                return;
            }
            Some(Slot::Moved(forward)) => {
                handle = forward.to;
                if handle.worker() != me {
                    return plans.push(Subscriber::new(handle.0, options.0), group);
                }
            }
            _ => break,
        }
    }
    add(&mut env.counters.dropped_no_session, 1);
}

impl Hub {
    /// One delivery for each worker that has targets; `joins`: those that are recorded are recorded together with what
    /// this worker records. What the receivers have of it together.
    fn send_plans(
        &mut self,
        plans: &mut Plans,
        fan: &mut Fanout<'_>,
        (origin, mut ties, joins): (Option<ConnId>, Ties, bool),
        out: &mut Vec<Output>,
    ) -> u32 {
        let mut given = 0;
        for worker in plans.used.drain(..) {
            let targets = std::mem::take(&mut plans.by_worker[usize::from(worker.0)]);
            let is_recorded = |t: &Target| {
                let options = Options(t.subscriber.options());
                options.has(Options::PERSISTENT) && options.qos() > QoS::AtMostOnce
            };
            let is_tied = fan.qos() > QoS::AtMostOnce && targets.iter().any(is_recorded);
            if is_tied && joins && ties.txn.is_none() {
                let op = self.env.op();
                ties.txn = Some(Txn {
                    worker: self.config.worker,
                    op,
                    repeats: ties.receipt.is_some(),
                });
            }
            // A part that is too small to be split again is left out of it.
            let is_tied = is_tied && ties.part > 0;
            let weight = if is_tied { ties.part } else { 0 };
            given += weight;
            add(&mut self.env.counters.mesh_out, 1);
            let delivery = Delivery {
                message: Arc::clone(fan.message()),
                publisher: self.env.publisher,
                targets,
                receipt: ties.receipt.filter(|_| is_tied),
                txn: ties.txn.filter(|_| is_tied),
                weight,
            };
            out.push(deliver_to(worker, origin, delivery));
        }
        if let (Some(txn), true) = (ties.txn, joins) {
            let weight = Txn::WHOLE - given;
            self.txns.push_back((self.env.last_persist, txn));
            out.push(Output::Join { txn, weight });
        }
        given
    }
}

/// One entry for each session, of all that matched: overlapping subscriptions get one PUBLISH
/// with the highest QoS \[MQTT-3.3.4-2\]. A No Local subscription counts for nothing here.
fn merge(matched: &[Subscriber], publisher: Handle, merged: &mut Vec<Subscriber>) {
    merged.clear();
    let is_local =
        |s: &Subscriber| s.id() == publisher.0 && Options(s.options()).has(Options::NO_LOCAL);
    merged.extend(matched.iter().filter(|s| !is_local(s)));
    merged.sort_unstable_by_key(|s| s.id());
    merged.dedup_by(|next, kept| {
        let is_same = next.id() == kept.id();
        if is_same {
            let options = Options(kept.options()).merge(Options(next.options()));
            *kept = Subscriber::new(kept.id(), options.with(Options::NO_LOCAL, false).0);
        }
        is_same
    });
}
