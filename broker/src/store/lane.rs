//! Between a worker and the store's thread: what the worker wants recorded, and what it hears.

use crossbeam_queue::SegQueue;
use headgate_codec::Text;
use headgate_core::{
    Completion, Input, OpId, Record, RestoredSession, RestoredWill, SessionId, StorageState, Txn,
    Undone, WorkerSlot,
};
use std::sync::{
    Arc, Mutex, OnceLock, PoisonError,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};
use std::thread::Thread;

use super::Store;

/// Units that may wait in a worker's lane before the worker stops reading from those who cause more.
/// What they have in flight then still finds room, so the lane's worst case is that besides.
pub const LANE_UNITS_MAX: usize = 4_096;

/// Inputs from the store that a worker takes in a turn.
pub const MAIL_PER_TURN: usize = 1_024;

/// A record of a unit.
#[derive(Debug)]
pub struct Entry {
    /// Whose.
    pub session: SessionId,
    /// Epoch of the session's owner.
    pub epoch: u32,
    /// The record's number.
    pub sequence: u64,
    /// What.
    pub record: Record,
}

/// All records of one input of the core: they are committed together.
#[derive(Debug, Default)]
pub struct Unit {
    /// The last operation; `None` without a record.
    pub last: Option<OpId>,
    /// The records, in their order.
    pub entries: Vec<Entry>,
    /// Transactions that this unit is a part of, and how much of each.
    pub joins: Vec<(Txn, u32)>,
}

/// A part of a queue that a worker wants to have.
#[derive(Clone, Copy, Debug)]
pub struct LoadRequest {
    /// Goes back.
    pub op: OpId,
    /// Whose queue.
    pub session: SessionId,
    /// Goes back.
    pub handle: u64,
    /// Only what comes after this sequence.
    pub after: u64,
    /// At most this many.
    pub messages_max: u16,
    /// No more once they cost this, bytes.
    pub bytes_max: u32,
}

/// What goes through a lane.
#[derive(Debug)]
pub enum Item {
    /// To be committed.
    Unit(Unit),
    /// A part of this will not come.
    Unjoin(Txn),
    /// To be answered from what was committed.
    Load(LoadRequest),
    /// The session of a client whose worker is gone, to be found in what was committed.
    Recover(OpId, Text),
}

/// What a worker hears from the store.
#[derive(Debug)]
pub enum StoreMail {
    /// The end of an operation.
    Completion(Completion),
    /// What the store can do from now on.
    State(StorageState),
    /// A session to take over.
    Restore(Box<RestoredSession>),
    /// A will to publish once all sessions are there.
    RestoreWill(RestoredWill),
    /// Messages that are not recorded because a part of them is lost.
    Undone(Arc<Undone>),
    /// All sessions are there.
    SessionsRestored,
    /// All retained messages are there.
    RetainedLoaded,
}

impl From<StoreMail> for Input {
    fn from(mail: StoreMail) -> Self {
        match mail {
            StoreMail::Completion(completion) => Self::Completed(completion),
            StoreMail::State(state) => Self::Storage(state),
            StoreMail::Restore(session) => Self::Restore(session),
            StoreMail::RestoreWill(will) => Self::RestoreWill(will),
            StoreMail::Undone(undone) => Self::Undone(undone),
            StoreMail::SessionsRestored => Self::SessionsRestored,
            StoreMail::RetainedLoaded => Self::RetainedLoaded,
        }
    }
}

#[derive(Debug, Default)]
struct Lane {
    items: SegQueue<(u64, Item)>,
    /// Units that the store hasn't committed.
    units: AtomicUsize,
    mail: SegQueue<StoreMail>,
}

/// The lanes of all workers.
#[derive(Debug)]
pub struct Lanes {
    lanes: Box<[Lane]>,
    /// Orders what several workers say: what was said because of something has a higher number.
    stamps: AtomicU64,
    thread: OnceLock<Thread>,
    /// What the store can do now, for a worker that begins.
    state: Mutex<StorageState>,
}

impl Lanes {
    /// For `count` workers.
    pub fn new(count: usize) -> Arc<Self> {
        Arc::new(Self {
            lanes: (0..count).map(|_| Lane::default()).collect(),
            stamps: AtomicU64::new(0),
            thread: OnceLock::new(),
            state: Mutex::default(),
        })
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.lanes.len()
    }

    /// Who is to be woken when there is something to do.
    pub fn served_by(&self, thread: Thread) {
        let _first = self.thread.set(thread);
    }

    /// Wakes the store's thread.
    pub fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// For a worker. Whatever waited is visible to the store when this returns.
    fn push(&self, worker: WorkerSlot, item: Item) {
        let lane = &self.lanes[usize::from(worker.0)];
        if matches!(item, Item::Unit(_)) {
            lane.units.fetch_add(1, Ordering::Relaxed);
        }
        let stamp = self.stamps.fetch_add(1, Ordering::SeqCst);
        lane.items.push((stamp, item));
        self.wake();
    }

    fn is_full(&self, worker: WorkerSlot) -> bool {
        self.lanes[usize::from(worker.0)]
            .units
            .load(Ordering::Relaxed)
            >= LANE_UNITS_MAX
    }

    /// The next item of a lane, with its stamp. For the store's thread.
    pub fn next(&self, worker: WorkerSlot) -> Option<(u64, Item)> {
        self.lanes[usize::from(worker.0)].items.pop()
    }

    /// A stamp that is higher than all that were given out.
    pub fn stamp(&self) -> u64 {
        self.stamps.load(Ordering::SeqCst)
    }

    /// Whether any worker has said something.
    pub fn has_items(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.items.is_empty())
    }

    /// `count` units of a worker have been committed. Whether the lane had been full.
    pub fn committed(&self, worker: WorkerSlot, count: usize) {
        let units = &self.lanes[usize::from(worker.0)].units;
        units.fetch_sub(count, Ordering::Relaxed);
    }

    /// Units of all workers that aren't committed.
    pub fn pending(&self) -> usize {
        let units = |lane: &Lane| lane.units.load(Ordering::Relaxed);
        self.lanes.iter().map(units).sum()
    }

    /// Says something to a worker, which has to be woken.
    pub fn send(&self, worker: WorkerSlot, mail: StoreMail) {
        self.lanes[usize::from(worker.0)].mail.push(mail);
    }

    /// Says to all workers, also to those that begin later, what the store can do from now on. They have to be woken.
    pub fn set_state(&self, state: StorageState) {
        let mut current = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *current = state;
        for lane in &self.lanes {
            lane.mail.push(StoreMail::State(state));
        }
    }

    /// What waits to be heard by a worker.
    pub fn mail_len(&self, worker: WorkerSlot) -> usize {
        self.lanes[usize::from(worker.0)].mail.len()
    }
}

/// A worker's end of its lane.
#[derive(Debug)]
pub struct WorkerStore {
    lanes: Arc<Lanes>,
    worker: WorkerSlot,
    unit: Unit,
    records: u64,
}

impl WorkerStore {
    /// For the worker in this slot.
    pub fn new(lanes: Arc<Lanes>, worker: WorkerSlot) -> Self {
        let state = *lanes.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state != StorageState::Ok {
            lanes.send(worker, StoreMail::State(state));
        }
        Self {
            lanes,
            worker,
            unit: Unit::default(),
            records: 0,
        }
    }
}

impl Store for WorkerStore {
    fn persist(&mut self, op: OpId, session: SessionId, epoch: u32, sequence: u64, record: Record) {
        self.unit.last = Some(op);
        self.unit.entries.push(Entry {
            session,
            epoch,
            sequence,
            record,
        });
        self.records += 1;
    }

    fn join(&mut self, txn: Txn, weight: u32) {
        self.unit.joins.push((txn, weight));
    }

    fn end_unit(&mut self) {
        if self.unit.last.is_none() && self.unit.joins.is_empty() {
            return;
        }
        let unit = std::mem::take(&mut self.unit);
        self.lanes.push(self.worker, Item::Unit(unit));
    }

    fn unjoin(&mut self, txn: Txn) {
        self.lanes.push(self.worker, Item::Unjoin(txn));
    }

    fn load(&mut self, request: LoadRequest) {
        // What was recorded before it comes first.
        self.end_unit();
        self.lanes.push(self.worker, Item::Load(request));
    }

    fn recover(&mut self, op: OpId, client_id: Text) {
        self.end_unit();
        self.lanes.push(self.worker, Item::Recover(op, client_id));
    }

    fn mail(&mut self) -> Option<StoreMail> {
        self.lanes.lanes[usize::from(self.worker.0)].mail.pop()
    }

    fn has_mail(&self) -> bool {
        !self.lanes.lanes[usize::from(self.worker.0)].mail.is_empty()
    }

    fn is_full(&self) -> bool {
        self.lanes.is_full(self.worker)
    }

    fn records(&self) -> u64 {
        self.records
    }
}
