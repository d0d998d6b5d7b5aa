//! Shared Subscriptions (MQTT 5.0 §4.8.2): `$share/ShareName/filter`. Each message goes to one of a group's members.
//!
//! A group stands in the topic table as one subscriber that no worker owns; a publisher's worker asks the group for the
//! member whose turn it is. All workers share the groups: a choice takes two read locks that are held for as long as it takes
//! to look at the members, and only subscribing and unsubscribing write.

use headgate_codec::QoS;
use headgate_topics::{Subscriber, Table};
use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use crate::{
    Core, Output, WorkerSlot,
    counters::add,
    hub::Hub,
    message::{Fanout, Message},
    options::Options,
    session::Session,
    slots::Handle,
};

/// Which member of a group gets a message. Members that are connected come first, and of these the ones whose queues
/// have room, always; only if none is connected, one that will come back gets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShareStrategy {
    /// Each in its turn.
    #[default]
    RoundRobin,
    /// The same one for as long as it is connected and keeps up.
    Sticky,
    /// The one with the fewest messages that wait or are not acknowledged.
    LeastQueued,
}

/// Number of a group; 0 = none. Not reused within 2^32 groups.
pub(crate) type GroupId = u32;

/// All groups of a node.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    strategy: ShareStrategy,
    groups: RwLock<Groups>,
}

#[derive(Debug, Default)]
struct Groups {
    by_id: HashMap<GroupId, Group>,
    /// By the whole Topic Filter.
    by_filter: HashMap<Box<str>, GroupId>,
    last: GroupId,
}

#[derive(Debug)]
struct Group {
    whole_filter: Box<str>,
    members: RwLock<Vec<Member>>,
    turn: AtomicUsize,
    /// Handle of the member that has the group, with [`ShareStrategy::Sticky`]; 0 = none.
    chosen: AtomicU64,
}

#[derive(Clone, Debug)]
struct Member {
    subscriber: Subscriber,
    state: Arc<MemberState>,
}

/// What the groups know of a session.
#[derive(Debug, Default)]
pub(crate) struct MemberState {
    pub(crate) connected: AtomicBool,
    /// Messages that wait or are not acknowledged.
    pub(crate) waiting: AtomicU32,
    /// Its queue was found full, and isn't half empty yet.
    full: AtomicBool,
}

impl MemberState {
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
    }
}

/// The parts of `$share/ShareName/filter`. `Err`: it begins like one and is none
/// \[MQTT-4.8.2-1\] \[MQTT-4.8.2-2\].
pub(crate) fn parse(filter: &str) -> Result<Option<&str>, ()> {
    if filter == "$share" {
        return Err(());
    }
    let Some(rest) = filter.strip_prefix("$share/") else {
        return Ok(None);
    };
    match rest.split_once('/') {
        Some((name, filter)) if !name.is_empty() && !name.contains(['+', '#']) => Ok(Some(filter)),
        _ => Err(()),
    }
}

impl Shares {
    pub(crate) fn new(strategy: ShareStrategy) -> Self {
        Self {
            strategy,
            groups: RwLock::default(),
        }
    }

    /// How many groups there are.
    pub(crate) fn len(&self) -> usize {
        self.read().by_id.len()
    }

    /// Makes a session a member, or changes its options. The group.
    pub(crate) fn join(
        &self,
        topics: &Table,
        (whole_filter, filter): (&str, &str),
        subscriber: Subscriber,
        state: &Arc<MemberState>,
    ) -> GroupId {
        let mut groups = self.write();
        let known = groups.by_filter.get(whole_filter).copied();
        let id = known.unwrap_or_else(|| {
            let id = groups.unused();
            groups.by_filter.insert(whole_filter.into(), id);
            groups.by_id.insert(
                id,
                Group {
                    whole_filter: whole_filter.into(),
                    members: RwLock::default(),
                    turn: AtomicUsize::new(0),
                    chosen: AtomicU64::new(0),
                },
            );
            id
        });
        if let Some(group) = groups.by_id.get(&id) {
            let mut members = write(&group.members);
            members.retain(|m| m.subscriber.id() != subscriber.id());
            members.push(Member {
                subscriber,
                state: Arc::clone(state),
            });
        }
        if known.is_none() {
            topics.subscribe(filter, entry(id));
        }
        id
    }

    /// A session leaves its group.
    pub(crate) fn leave(&self, topics: &Table, group: GroupId, member: Handle) {
        self.retain(topics, group, |m| m.subscriber.id() != member.0);
    }

    /// A member is somewhere else, or has other options. `false` = it is no member.
    pub(crate) fn replace(&self, group: GroupId, former: Handle, subscriber: Subscriber) -> bool {
        let groups = self.read();
        let Some(group) = groups.by_id.get(&group) else {
            return false;
        };
        let mut members = write(&group.members);
        let member = members.iter_mut().find(|m| m.subscriber.id() == former.0);
        member.map(|m| m.subscriber = subscriber).is_some()
    }

    /// A worker has lost its sessions.
    pub(crate) fn forget_worker(&self, topics: &Table, worker: WorkerSlot) {
        let ids: Vec<GroupId> = self.read().by_id.keys().copied().collect();
        for id in ids {
            self.retain(topics, id, |m| Handle(m.subscriber.id()).worker() != worker);
        }
    }

    /// The member that gets the next message.
    pub(crate) fn pick(&self, group: GroupId) -> Option<Subscriber> {
        let groups = self.read();
        let group = groups.by_id.get(&group)?;
        group.pick(&read(&group.members), self.strategy)
    }

    /// A message with QoS > 0 for a group may have to be recorded.
    pub(crate) fn is_recorded(&self, group: GroupId) -> bool {
        let groups = self.read();
        let Some(group) = groups.by_id.get(&group) else {
            return false;
        };
        read(&group.members).iter().any(|m| {
            let options = Options(m.subscriber.options());
            options.has(Options::PERSISTENT) && options.qos() > QoS::AtMostOnce
        })
    }

    /// Another member than `not`, for a message that it leaves behind; one that is not connected only if `any`.
    fn pick_other(&self, group: GroupId, not: Handle, any: bool) -> Option<Subscriber> {
        let groups = self.read();
        let group = groups.by_id.get(&group)?;
        let mut others = read(&group.members).clone();
        others.retain(|m| {
            m.subscriber.id() != not.0 && (any || m.state.connected.load(Ordering::Relaxed))
        });
        group.pick(&others, self.strategy)
    }

    fn retain(&self, topics: &Table, id: GroupId, keep: impl Fn(&Member) -> bool) {
        let mut groups = self.write();
        let Some(group) = groups.by_id.get(&id) else {
            return;
        };
        let is_empty = {
            let mut members = write(&group.members);
            members.retain(keep);
            members.is_empty()
        };
        if is_empty && let Some(group) = groups.by_id.remove(&id) {
            groups.by_filter.remove(&group.whole_filter);
            if let Ok(Some(filter)) = parse(&group.whole_filter) {
                topics.unsubscribe(filter, entry(id).id());
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Groups> {
        read(&self.groups)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Groups> {
        write(&self.groups)
    }
}

/// Nothing is left half done under these locks, so a panic of another worker doesn't matter.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// The group's entry in the topic table: of a worker slot that is never one.
fn entry(id: GroupId) -> Subscriber {
    const NO_WORKER: u64 = 0xff << 48;
    Subscriber::new(NO_WORKER | u64::from(id), Options::SHARED)
}

/// The group that an entry of the topic table stands for.
pub(crate) fn group_of(subscriber: Subscriber) -> GroupId {
    subscriber.id() as u32
}

impl Groups {
    fn unused(&mut self) -> GroupId {
        loop {
            self.last = self.last.wrapping_add(1).max(1);
            if !self.by_id.contains_key(&self.last) {
                return self.last;
            }
        }
    }
}

impl Group {
    fn pick(&self, members: &[Member], strategy: ShareStrategy) -> Option<Subscriber> {
        if members.is_empty() {
            return None;
        }
        let is_connected = |m: &&Member| m.state.connected.load(Ordering::Relaxed);
        let is_ready = |m: &&Member| is_connected(m) && !m.state.is_full();
        let chosen = self.chosen.load(Ordering::Relaxed);
        if strategy == ShareStrategy::Sticky
            && let Some(member) = members.iter().find(|m| m.subscriber.id() == chosen)
            && is_ready(&member)
        {
            return Some(member.subscriber);
        }
        let start = self.turn.fetch_add(1, Ordering::Relaxed) % members.len();
        let in_turn = || members[start..].iter().chain(&members[..start]);
        let mut ready = in_turn().filter(is_ready);
        let member = match strategy {
            ShareStrategy::LeastQueued => {
                ready.min_by_key(|m| m.state.waiting.load(Ordering::Relaxed))
            }
            _ => ready.next(),
        };
        let member = member.or_else(|| in_turn().find(is_connected));
        let member = member.unwrap_or(&members[start]);
        self.chosen.store(member.subscriber.id(), Ordering::Relaxed);
        Some(member.subscriber)
    }
}

/// A message that a member has left behind, and who gets it.
pub(crate) struct LeftBehind {
    to: Subscriber,
    group: GroupId,
    message: Arc<Message>,
    /// The member had recorded it.
    is_recorded: bool,
}

impl Hub {
    /// A session has lost its connection, or `ends`: messages with QoS 0 and 1 that it got as a member of a group and hasn't
    /// acknowledged go to other members, if there are any and it doesn't keep them. Those with QoS 2 stay
    /// \[MQTT-4.8.2-4\] \[MQTT-4.8.2-5\].
    pub(crate) fn leave_group(
        &mut self,
        slot: u32,
        (ends, keeps): (bool, bool),
        out: &mut Vec<Output>,
    ) {
        let Self {
            env,
            slots,
            shared,
            left_behind,
            ..
        } = self;
        let Some(session) = slots.session(slot) else {
            return;
        };
        let (handle, Some(state)) = (session.handle, &session.share) else {
            return;
        };
        state.connected.store(false, Ordering::Relaxed);
        if keeps {
            return;
        }
        let Some(mut flow) = session.flow.take() else {
            return;
        };
        let heir = |group: GroupId, qos: QoS| {
            if group == 0 || qos == QoS::ExactlyOnce {
                return None;
            }
            shared.shares.pick_other(group, handle, ends)
        };
        let mut index = 0;
        while let Some(entry) = flow.inflight.get(index) {
            let (group, queued) = (entry.group, entry.queued);
            let Some((to, message)) = heir(group, entry.qos).zip(entry.message.clone()) else {
                index += 1;
                continue;
            };
            flow.remove_inflight(index);
            left_behind.push(LeftBehind {
                to,
                group,
                message,
                is_recorded: queued != 0,
            });
            session.forget(env, queued, out);
        }
        for queue in [&mut flow.queue, &mut flow.queue_qos0] {
            for waiting in std::mem::take(queue) {
                let Some(to) = heir(waiting.group, waiting.qos) else {
                    queue.push_back(waiting);
                    continue;
                };
                flow.bytes = flow.bytes.saturating_sub(waiting.message.cost());
                left_behind.push(LeftBehind {
                    to,
                    group: waiting.group,
                    message: waiting.message,
                    is_recorded: waiting.queued != 0,
                });
                session.forget(env, waiting.queued, out);
            }
        }
        session.flow = Some(flow);
    }
}

impl Core {
    /// Gives what members have left behind to others.
    pub(crate) fn hand_on(&mut self, out: &mut Vec<Output>) {
        for left in std::mem::take(&mut self.hub.left_behind) {
            let (to, message) = ((left.to, left.group), left.message);
            // [MQTT-3.3.2-5]
            if message.is_expired(self.hub.env.now) {
                add(&mut self.hub.env.counters.dropped_expired, 1);
                continue;
            }
            add(&mut self.hub.env.counters.shared_handed_on, 1);
            let mut fan = Fanout::of_message(&message, self.hub.env.now);
            // Otherwise neither would have it after a crash.
            self.deliver_to_member(&mut fan, to, left.is_recorded, out);
        }
    }
}

impl Session {
    /// What the groups should know of this session.
    pub(crate) fn member_state(&mut self) -> &Arc<MemberState> {
        let connected = self.conn.is_some();
        self.share.get_or_insert_with(|| {
            Arc::new(MemberState {
                connected: AtomicBool::new(connected),
                ..MemberState::default()
            })
        })
    }

    /// Tells the groups how many messages wait.
    pub(crate) fn tell_waiting(&self) {
        if let Some(state) = &self.share {
            let waiting = self
                .flow
                .as_ref()
                .map_or(0, |f| f.waiting() + f.inflight.len());
            state.waiting.store(waiting as u32, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_name_has_a_character_and_no_wildcard() {
        for (filter, expected) in [
            ("a/b", Ok(None)),
            ("$shared/a", Ok(None)),
            ("$share/g/a", Ok(Some("a"))),
            ("$share/g//a", Ok(Some("/a"))),
            ("$share/g/", Ok(Some(""))),
            ("$share", Err(())),
            ("$share/", Err(())),
            ("$share/g", Err(())),
            ("$share//a", Err(())),
            ("$share/g+/a", Err(())),
            ("$share/#/a", Err(())),
        ] {
            assert_eq!(parse(filter), expected, "{filter}");
        }
    }

    #[test]
    fn a_group_without_members_is_gone() {
        let (shares, topics) = (Shares::default(), Table::new([1, 2]));
        let state = Arc::default();
        let member = |slot| Subscriber::new(Handle::new(WorkerSlot(1), slot, 1).0, 0);
        let filters = ("$share/g/a/#", "a/#");
        let group = shares.join(&topics, filters, member(1), &state);
        assert_eq!(shares.join(&topics, filters, member(2), &state), group);
        assert_eq!(topics.len(), 1);
        shares.leave(&topics, group, Handle(member(1).id()));
        assert_eq!(shares.pick(group), Some(member(2)));
        shares.forget_worker(&topics, WorkerSlot(1));
        assert_eq!((shares.pick(group), topics.len()), (None, 0));
        assert_ne!(shares.join(&topics, filters, member(3), &state), group);
    }
}
