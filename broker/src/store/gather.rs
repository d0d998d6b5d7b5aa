//! Which of the workers' units may be committed now.
//!
//! Units of one worker stay in order, and so do those of one session, which may have moved from worker to worker.
//! A unit that is a part of a transaction waits for the other parts, and what has to stay behind it waits with it.

use headgate_core::{Record, SessionId, Txn, Undone, WorkerSlot};
use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use super::lane::{Item, Lanes, Unit};

/// A unit or a request with its place.
#[derive(Debug)]
pub struct Placed {
    /// Its place in the order of all.
    pub stamp: u64,
    /// Whose.
    pub worker: WorkerSlot,
    /// What.
    pub item: Item,
}

/// What has arrived and isn't committed.
#[derive(Debug, Default)]
pub struct Gathered {
    /// Sorted by stamp.
    waiting: Vec<Placed>,
    /// Of these some part will not come. Other parts may still come later.
    given_up: GivenUp,
    /// What was left out because of that, and the workers don't know.
    undone: Undone,
    /// Of what has this stamp or a higher one, what comes before may not be in sight.
    cut: u64,
}

impl Gathered {
    /// Takes what the workers have said.
    pub fn take(&mut self, lanes: &Lanes) {
        // A stamp is taken after the push of all that its item follows from. So what has a lower stamp than this has
        // nothing behind it that isn't in the lanes by now. What has a higher one waits for the next time.
        self.cut = lanes.stamp();
        let before = self.waiting.len();
        for worker in (0..lanes.workers()).map(|n| WorkerSlot(n as u8)) {
            while let Some((stamp, item)) = lanes.next(worker) {
                match item {
                    Item::Unjoin(txn) => self.given_up.insert(txn),
                    item => self.waiting.push(Placed {
                        stamp,
                        worker,
                        item,
                    }),
                }
            }
        }
        if self.waiting.len() > before {
            self.waiting.sort_by_key(|placed| placed.stamp);
        }
    }

    /// A worker is gone: what this incarnation of it began will not be finished.
    pub fn give_up(&mut self, worker: WorkerSlot, incarnation: u8) {
        self.given_up.incarnations.insert(worker, incarnation);
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether something came during the last [`Gathered::take`], and can be had by another one.
    pub fn has_later(&self) -> bool {
        self.waiting
            .last()
            .is_some_and(|placed| placed.stamp >= self.cut)
    }

    /// Whether nothing waits any more of what was said before this stamp was given out.
    pub fn is_past(&self, stamp: u64) -> bool {
        self.cut >= stamp
            && self
                .waiting
                .first()
                .is_none_or(|placed| placed.stamp >= stamp)
    }

    /// What was left out since; the workers are to hear of it before they hear that anything later is safe.
    pub fn take_undone(&mut self) -> Option<Undone> {
        let undone = std::mem::take(&mut self.undone);
        let is_any = !undone.received.is_empty() || !undone.queued.is_empty();
        is_any.then_some(undone)
    }

    /// How much waits.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Takes out, in order, what may be committed together: about `max` items, more if transactions want it.
    pub fn ready(&mut self, max: usize) -> Vec<Placed> {
        let cut = self.cut;
        let later = self.waiting.partition_point(|placed| placed.stamp < cut);
        let later = self.waiting.split_off(later);
        let ready = self.among_all(max);
        self.waiting.extend(later);
        ready
    }

    fn among_all(&mut self, max: usize) -> Vec<Placed> {
        let mut weights: HashMap<Txn, u32> = HashMap::new();
        for (txn, weight) in self.waiting.iter().flat_map(|placed| joins(&placed.item)) {
            let sum = weights.entry(*txn).or_default();
            *sum = sum.saturating_add(*weight);
        }
        if weights.is_empty() {
            let rest = self.waiting.split_off(self.waiting.len().min(max));
            return std::mem::replace(&mut self.waiting, rest);
        }
        let mut blocked: HashSet<Txn> = HashSet::new();
        for (txn, weight) in &weights {
            if *weight < Txn::WHOLE && !self.given_up.has(txn) {
                blocked.insert(*txn);
            }
        }
        // A part that has to wait makes its transaction wait, and that others.
        let behind = loop {
            let known = blocked.len();
            let mut behind = Behind::default();
            for (at, placed) in self.waiting.iter().enumerate() {
                let waits = behind.holds(placed)
                    || joins(&placed.item)
                        .iter()
                        .any(|(txn, _)| blocked.contains(txn));
                if waits {
                    behind.add(at, placed);
                    blocked.extend(joins(&placed.item).iter().map(|(txn, _)| *txn));
                }
            }
            if blocked.len() == known {
                break behind;
            }
        };
        let mut at = 0;
        let (kept, mut ready): (_, Vec<Placed>) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|_| {
                at += 1;
                behind.places.contains(&(at - 1))
            });
        self.waiting = kept;
        for placed in &mut ready {
            let is_void = |(txn, _): &(Txn, u32)| txn.repeats && weights[txn] < Txn::WHOLE;
            if let Item::Unit(unit) = &mut placed.item
                && !unit.joins.is_empty()
                && unit.joins.iter().all(is_void)
            {
                leave_out(unit, &mut self.undone);
            }
        }
        ready
    }
}

/// Takes out of a unit what a message would be to those who get it, and that it has come.
fn leave_out(unit: &mut Unit, undone: &mut Undone) {
    unit.entries.retain(|entry| match &entry.record {
        Record::Received { packet_id } => {
            undone.received.push((entry.session, *packet_id));
            false
        }
        Record::Queued { message, .. } => {
            undone.queued.push((entry.session, Arc::clone(message)));
            false
        }
        _ => true,
    });
}

/// Transactions that are remembered after they were given up. A part that comes later than that many others waits
/// for its worker's end.
const GIVEN_UP_MAX: usize = 65_536;

#[derive(Debug, Default)]
struct GivenUp {
    set: HashSet<Txn>,
    order: VecDeque<Txn>,
    /// Of each worker the last incarnation that is gone, and with it all that it began.
    incarnations: HashMap<WorkerSlot, u8>,
}

impl GivenUp {
    fn has(&self, txn: &Txn) -> bool {
        // Where an operation has its worker's incarnation.
        let incarnation = (txn.op.0 >> 48) as u8;
        self.set.contains(txn) || self.incarnations.get(&txn.worker) == Some(&incarnation)
    }

    fn insert(&mut self, txn: Txn) {
        if !self.set.insert(txn) {
            return;
        }
        self.order.push_back(txn);
        if self.order.len() > GIVEN_UP_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
    }
}

fn joins(item: &Item) -> &[(Txn, u32)] {
    match item {
        Item::Unit(unit) => &unit.joins,
        _ => &[],
    }
}

/// What waits, and what therefore has to wait.
#[derive(Default)]
struct Behind {
    places: BTreeSet<usize>,
    workers: HashSet<WorkerSlot>,
    sessions: HashSet<SessionId>,
}

impl Behind {
    fn sessions(item: &Item) -> impl Iterator<Item = SessionId> {
        let (entries, read): (&[_], _) = match item {
            Item::Unit(Unit { entries, .. }) => (entries, None),
            Item::Load(request) => (&[], Some(request.session)),
            Item::Recover(..) | Item::Unjoin(_) => (&[], None),
        };
        entries.iter().map(|entry| entry.session).chain(read)
    }

    fn holds(&self, placed: &Placed) -> bool {
        // Whose session is looked for isn't known: nothing may be missing.
        let looks = matches!(placed.item, Item::Recover(..));
        looks && !self.places.is_empty()
            || self.workers.contains(&placed.worker)
            || Self::sessions(&placed.item).any(|session| self.sessions.contains(&session))
    }

    fn add(&mut self, at: usize, placed: &Placed) {
        self.places.insert(at);
        self.workers.insert(placed.worker);
        self.sessions.extend(Self::sessions(&placed.item));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Store, WorkerStore};
    use headgate_codec::{PacketId, QoS};
    use headgate_core::{Message, OpId};

    struct Workers {
        lanes: Arc<Lanes>,
        stores: Vec<WorkerStore>,
        op: u64,
    }

    impl Workers {
        fn new(count: usize) -> Self {
            let lanes = Lanes::new(count);
            let of = |n| WorkerStore::new(Arc::clone(&lanes), WorkerSlot(n as u8));
            Self {
                stores: (0..count).map(of).collect(),
                lanes,
                op: 0,
            }
        }

        /// A unit with a record of this session, and parts of these transactions.
        fn unit(&mut self, worker: usize, session: u64, joins: &[(Txn, u32)]) -> OpId {
            self.unit_of(worker, session, &[Record::SessionEnded], joins)
        }

        fn unit_of(
            &mut self,
            worker: usize,
            session: u64,
            records: &[Record],
            joins: &[(Txn, u32)],
        ) -> OpId {
            let session = id(session);
            let store = &mut self.stores[worker];
            for record in records {
                self.op += 1;
                store.persist(OpId(self.op), session, 0, self.op, record.clone());
            }
            let op = OpId(self.op);
            for (txn, weight) in joins {
                store.join(*txn, *weight);
            }
            store.end_unit();
            op
        }

        fn ready(&self, gathered: &mut Gathered) -> Vec<OpId> {
            gathered.take(&self.lanes);
            let ready = gathered.ready(100).into_iter();
            let last = |placed: Placed| match placed.item {
                Item::Unit(unit) => unit.last,
                _ => None,
            };
            ready.filter_map(last).collect()
        }
    }

    fn id(counter: u64) -> SessionId {
        SessionId {
            node: 0,
            epoch: 0,
            counter,
        }
    }

    fn txn(n: u64) -> Txn {
        Txn {
            worker: WorkerSlot(0),
            op: OpId(n),
            repeats: false,
        }
    }

    const HALF: u32 = Txn::WHOLE / 2;

    #[test]
    fn units_come_in_the_order_in_which_they_were_said() {
        let (mut workers, mut gathered) = (Workers::new(3), Gathered::default());
        let said = [2, 0, 1, 0, 2].map(|worker| workers.unit(worker, worker as u64, &[]));
        assert_eq!(workers.ready(&mut gathered), said);
        assert!(gathered.is_empty());
    }

    #[test]
    fn a_part_waits_for_the_others_and_what_is_behind_it_with_it() {
        let (mut workers, mut gathered) = (Workers::new(3), Gathered::default());
        let first = workers.unit(0, 1, &[(txn(1), HALF)]);
        let behind = workers.unit(0, 2, &[]);
        let moved = workers.unit(2, 2, &[]);
        let free = workers.unit(1, 3, &[]);
        assert_eq!(workers.ready(&mut gathered), [free]);
        assert_eq!(workers.ready(&mut gathered), []);
        let second = workers.unit(1, 4, &[(txn(1), HALF)]);
        assert_eq!(workers.ready(&mut gathered), [first, behind, moved, second]);
        assert!(gathered.is_empty());
    }

    #[test]
    fn transactions_that_wait_for_each_other_go_together() {
        let (mut workers, mut gathered) = (Workers::new(2), Gathered::default());
        let a = workers.unit(0, 1, &[(txn(1), HALF)]);
        let b = workers.unit(1, 2, &[(txn(2), HALF)]);
        assert_eq!(workers.ready(&mut gathered), []);
        let c = workers.unit(0, 3, &[(txn(2), HALF)]);
        assert_eq!(
            workers.ready(&mut gathered),
            [],
            "the first half of 1 stands in front of 2"
        );
        let d = workers.unit(1, 4, &[(txn(1), HALF)]);
        assert_eq!(workers.ready(&mut gathered), [a, b, c, d]);
    }

    #[test]
    fn a_transaction_that_was_given_up_goes_without_the_rest() {
        let (mut workers, mut gathered) = (Workers::new(2), Gathered::default());
        let half = workers.unit(0, 1, &[(txn(1), HALF)]);
        assert_eq!(workers.ready(&mut gathered), []);
        workers.stores[1].unjoin(txn(1));
        assert_eq!(workers.ready(&mut gathered), [half]);
        // Said before the part is there.
        workers.stores[0].unjoin(txn(2));
        assert_eq!(workers.ready(&mut gathered), []);
        let half = workers.unit(1, 1, &[(txn(2), HALF)]);
        assert_eq!(workers.ready(&mut gathered), [half]);
        let half = workers.unit(1, 1, &[(txn(3), HALF)]);
        assert_eq!(workers.ready(&mut gathered), []);
        gathered.give_up(WorkerSlot(0), 0);
        assert_eq!(workers.ready(&mut gathered), [half]);
    }

    /// Of a PUBLISH that is sent again nothing is recorded then, neither that it has come nor for those who get it, also
    /// where that is said later; and the workers hear of it.
    #[test]
    fn a_publish_that_a_part_is_missing_of_is_left_out() {
        let message = Arc::new(Message {
            topic: "t".into(),
            payload: Default::default(),
            qos: QoS::ExactlyOnce,
            retain: true,
            expires_at: None,
            properties: None,
        });
        let packet_id = PacketId::new(7).expect("it isn't 0");
        let queued = || Record::Queued {
            message: Arc::clone(&message),
            qos: QoS::ExactlyOnce,
            retain: false,
            ids: None,
            packet_id,
            group: None,
        };
        let retained = Record::Retained {
            message: Arc::clone(&message),
        };
        let come = [Record::Received { packet_id }, retained, queued()];
        let entries = |ready: Vec<Placed>| -> Vec<usize> {
            let count = |placed: Placed| match placed.item {
                Item::Unit(unit) => unit.entries.len(),
                _ => 0,
            };
            ready.into_iter().map(count).collect()
        };
        let (mut workers, mut gathered) = (Workers::new(3), Gathered::default());
        let txn = |n| Txn {
            repeats: true,
            ..txn(n)
        };
        workers.unit_of(0, 1, &come, &[(txn(1), HALF)]);
        workers.unit_of(1, 2, &[queued()], &[(txn(1), HALF / 2)]);
        workers.unit(0, 1, &[]);
        gathered.take(&workers.lanes);
        assert!(entries(gathered.ready(100)).is_empty());
        assert!(gathered.take_undone().is_none());
        workers.stores[0].unjoin(txn(1));
        gathered.take(&workers.lanes);
        assert_eq!(entries(gathered.ready(100)), [1, 0, 1]);
        let undone = gathered.take_undone().expect("something was left out");
        assert_eq!(undone.received, [(id(1), packet_id)]);
        let of: Vec<SessionId> = undone.queued.iter().map(|(of, _)| *of).collect();
        assert_eq!(of, [id(1), id(2)]);
        assert!(Arc::ptr_eq(&undone.queued[1].1, &message));
        // A part that is late.
        workers.unit_of(2, 3, &[queued()], &[(txn(1), HALF / 4)]);
        gathered.take(&workers.lanes);
        assert_eq!(entries(gathered.ready(100)), [0]);
        let undone = gathered.take_undone().expect("something was left out");
        assert_eq!(undone.queued[0].0, id(3));
        // All parts are there: what was feared did not come true.
        workers.unit_of(0, 1, &come, &[(txn(2), HALF)]);
        workers.unit_of(1, 2, &[queued()], &[(txn(2), HALF)]);
        workers.stores[0].unjoin(txn(2));
        gathered.take(&workers.lanes);
        assert_eq!(entries(gathered.ready(100)), [3, 1]);
        assert!(gathered.take_undone().is_none());
    }
}
