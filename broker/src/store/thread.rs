//! The store's thread: it takes what the workers want recorded, commits it in groups, and tells them.

use headgate_core::{Completion, OpId, Shared, StorageState, WorkerSlot};
use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{
    batches::Batches,
    codec::Calendar,
    engine::{Batch, Engine, EngineError, Reader},
    gather::{Gathered, Placed},
    lane::{Item, Lanes, StoreMail},
    load::{self, Sessions},
    metrics::StoreMetrics,
    space::{Space, SpaceLimits},
    writer::Records,
};
use crate::mesh::Mesh;

/// Items that go into one commit; more if a transaction wants it.
const COMMIT_ITEMS_MAX: usize = 8_192;
/// Bytes that are written without having been synced, at `fsync = "interval"`, before a sync comes early.
const UNSYNCED_BYTES_MAX: usize = 8 << 20;
/// The first wait after a failure.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// The longest wait between attempts.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How often free space is looked at.
const SPACE_INTERVAL: Duration = Duration::from_secs(1);
/// How often deleted records' room is asked back while there is too little.
const RECLAIM_INTERVAL: Duration = Duration::from_secs(10);

/// When records are safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// When they are on the disk.
    Always,
    /// When the system has them; it is told to write them this often.
    Interval(Duration),
    /// When the system has them.
    Never,
}

/// Opens the engine.
pub type Opener = Box<dyn Fn() -> Result<Box<dyn Engine>, EngineError> + Send>;

/// What the thread needs.
pub struct StoreParts {
    /// Opens it again after a failure.
    pub opener: Opener,
    /// The workers.
    pub lanes: Arc<Lanes>,
    /// Wakes them.
    pub mesh: Arc<Mesh>,
    /// Retained messages.
    pub shared: Arc<Shared>,
    /// For times in records.
    pub calendar: Calendar,
    /// When records are safe.
    pub fsync: Fsync,
    /// How much room there has to be.
    pub limits: SpaceLimits,
    /// Counters.
    pub metrics: Arc<StoreMetrics>,
}

/// What others than workers want.
enum Order {
    /// The tables as they are after all that was said until now.
    Read(mpsc::Sender<Arc<dyn Reader>>),
    /// What this worker began will not be finished.
    WorkerGone(WorkerSlot, u8),
    /// Commit what there is, and end.
    Stop,
}

/// The way to the store's thread.
#[derive(Clone)]
pub struct StoreHandle {
    orders: mpsc::Sender<Order>,
    lanes: Arc<Lanes>,
}

impl StoreHandle {
    /// The tables with all that was recorded before this call; waits for as long as the disk doesn't work. `None` if the
    /// store has ended.
    pub fn read(&self) -> Option<Arc<dyn Reader>> {
        let (reply, reader) = mpsc::channel();
        self.order(Order::Read(reply));
        reader.recv().ok()
    }

    /// A worker is gone: of the transactions that this incarnation of it began, no more parts are waited for.
    pub fn worker_gone(&self, worker: WorkerSlot, incarnation: u8) {
        self.order(Order::WorkerGone(worker, incarnation));
    }

    /// Ends the thread once it has committed what the workers have said.
    pub fn stop(&self) {
        self.order(Order::Stop);
    }

    fn order(&self, order: Order) {
        // Without a receiver the thread has ended, and there is nothing left to be told.
        let _ended = self.orders.send(order);
        self.lanes.wake();
    }
}

/// Starts the thread.
///
/// # Errors
/// The system has none.
pub fn start(
    engine: Box<dyn Engine>,
    parts: StoreParts,
) -> std::io::Result<(StoreHandle, JoinHandle<()>)> {
    let (orders, received) = mpsc::channel();
    let lanes = Arc::clone(&parts.lanes);
    let thread = std::thread::Builder::new()
        .name("headgate-store".into())
        .spawn(move || StoreThread::new(engine, parts, received).run())?;
    lanes.served_by(thread.thread().clone());
    Ok((StoreHandle { orders, lanes }, thread))
}

struct StoreThread {
    parts: StoreParts,
    /// `None` after a failure.
    engine: Option<Box<dyn Engine>>,
    orders: mpsc::Receiver<Order>,
    records: Records,
    gathered: Gathered,
    /// What is being committed; stays until it is.
    committing: Vec<Placed>,
    /// Who wants to read, and everything that had been said before this stamp.
    readers: Vec<(u64, mpsc::Sender<Arc<dyn Reader>>)>,
    /// What was committed after the last sync, at `fsync = "interval"`.
    unsynced: Vec<Batch>,
    unsynced_bytes: usize,
    synced_at: Instant,
    /// The next commit notes that all before it is synced.
    notes_sync: bool,
    state: StorageState,
    space: Space,
    space_at: Instant,
    reclaimed_at: Option<Instant>,
    retry_at: Instant,
    retry_after: Duration,
    stopping: bool,
}

impl StoreThread {
    fn new(engine: Box<dyn Engine>, parts: StoreParts, orders: mpsc::Receiver<Order>) -> Self {
        let now = Instant::now();
        Self {
            engine: Some(engine),
            orders,
            records: Records::new(parts.calendar),
            gathered: Gathered::default(),
            committing: Vec::new(),
            readers: Vec::new(),
            unsynced: Vec::new(),
            unsynced_bytes: 0,
            synced_at: now,
            // The start was counted with a sync.
            notes_sync: parts.fsync != Fsync::Always,
            state: StorageState::Ok,
            space: Space::new(parts.limits.clone()),
            space_at: now,
            reclaimed_at: None,
            retry_at: now,
            retry_after: RETRY_MIN,
            stopping: false,
            parts,
        }
    }

    fn run(&mut self) {
        self.look_at_space(Instant::now());
        loop {
            self.take_orders();
            let now = Instant::now();
            if self.engine.is_none() && now >= self.retry_at {
                self.reopen();
            }
            if self.engine.is_some() {
                self.work();
                let now = Instant::now();
                self.sync_if_due(now);
                if now >= self.space_at {
                    self.look_at_space(now);
                }
            }
            let idle = !self.parts.lanes.has_items() && !self.gathered.has_later();
            if self.stopping && (idle || self.engine.is_none()) {
                return self.end();
            }
            if idle || self.engine.is_none() {
                std::thread::park_timeout(self.wait());
            }
        }
    }

    fn take_orders(&mut self) {
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Read(reply) => self.readers.push((self.parts.lanes.stamp(), reply)),
                Order::WorkerGone(worker, incarnation) => {
                    self.gathered.give_up(worker, incarnation)
                }
                Order::Stop => self.stopping = true,
            }
        }
    }

    /// Until something is due without anybody having said anything.
    fn wait(&self) -> Duration {
        let at = match (&self.engine, self.parts.fsync) {
            (None, _) => self.retry_at,
            (_, Fsync::Interval(interval)) if !self.unsynced.is_empty() => {
                self.space_at.min(self.synced_at + interval)
            }
            _ => self.space_at,
        };
        at.saturating_duration_since(Instant::now())
    }

    /// Commits what there is.
    fn work(&mut self) {
        if self.committing.is_empty() {
            self.gathered.take(&self.parts.lanes);
            self.committing = self.gathered.ready(COMMIT_ITEMS_MAX);
            if let Some(undone) = self.gathered.take_undone() {
                let undone = Arc::new(undone);
                tracing::warn!(
                    messages = undone.received.len(),
                    copies = undone.queued.len(),
                    "a worker was lost while messages with QoS 2 were being recorded: they are left out, and their publishers send them again"
                );
                for worker in (0..self.parts.lanes.workers()).map(|n| WorkerSlot(n as u8)) {
                    let mail = StoreMail::Undone(Arc::clone(&undone));
                    self.parts.lanes.send(worker, mail);
                    self.parts.mesh.ring_doorbell(worker);
                }
            }
        }
        self.count_pending();
        if !self.committing.is_empty() {
            if let Err(error) = self.commit() {
                return self.failed(&error);
            }
            self.count_pending();
        }
        if !self.readers.is_empty()
            && self.committing.is_empty()
            && let Some(engine) = &self.engine
        {
            let gathered = &self.gathered;
            for (_, reply) in self
                .readers
                .extract_if(.., |(stamp, _)| gathered.is_past(*stamp))
            {
                let _gone = reply.send(engine.reader());
            }
        }
    }

    fn count_pending(&self) {
        let pending = self.parts.lanes.pending();
        self.parts.metrics.pending.store(pending as u64);
    }

    fn commit(&mut self) -> Result<(), EngineError> {
        let Some(engine) = &mut self.engine else {
            return Err(EngineError::Stopped);
        };
        let begun = Instant::now();
        let sync = self.parts.fsync == Fsync::Always;
        let mut batches = Batches::new(&self.records, &self.parts.shared, sync);
        if self.notes_sync {
            batches.note_synced();
        }
        for placed in &self.committing {
            batches.add(&mut **engine, &placed.item)?;
        }
        let written = batches.finish(&mut **engine)?;
        self.notes_sync = false;
        let metrics = &self.parts.metrics;
        if written.records > 0 {
            metrics.records.add(written.records);
            metrics.commits.inc();
            metrics.commit_us.add(begun.elapsed().as_micros() as u64);
        }
        if matches!(self.parts.fsync, Fsync::Interval(_)) {
            self.unsynced_bytes += written
                .batches
                .iter()
                .map(|batch| batch.bytes)
                .sum::<usize>();
            self.unsynced.extend(written.batches);
        }
        let reader = engine.reader();
        self.tell(&*reader)
    }

    /// What was committed is over for the workers. What can't be answered because of an error stays.
    fn tell(&mut self, reader: &dyn Reader) -> Result<(), EngineError> {
        let lanes = &self.parts.lanes;
        let (mut unanswered, mut result) = (Vec::new(), Ok(()));
        let mut done: Vec<(Option<OpId>, usize, bool)> = vec![(None, 0, false); lanes.workers()];
        for placed in std::mem::take(&mut self.committing) {
            let (last, units, heard) = &mut done[usize::from(placed.worker.0)];
            match placed.item {
                Item::Unit(unit) => {
                    *last = unit.last.or(*last);
                    *units += 1;
                }
                Item::Load(request) => {
                    let loaded =
                        load::queue(reader, request, self.parts.calendar, &self.parts.metrics);
                    lanes.send(placed.worker, StoreMail::Completion(loaded));
                    *heard = true;
                }
                Item::Recover(op, client_id) => match self.sessions(reader).of_client(&client_id) {
                    Ok(session) => {
                        let session = session.map(Box::new);
                        let found = Completion::Recovered { op, session };
                        lanes.send(placed.worker, StoreMail::Completion(found));
                        *heard = true;
                    }
                    Err(error) => {
                        let item = Item::Recover(op, client_id);
                        unanswered.push(Placed { item, ..placed });
                        result = Err(error);
                    }
                },
                Item::Unjoin(_) => {}
            }
        }
        self.committing = unanswered;
        for (n, (last, units, heard)) in done.into_iter().enumerate() {
            let worker = WorkerSlot(n as u8);
            lanes.committed(worker, units);
            if let Some(up_to) = last {
                lanes.send(
                    worker,
                    StoreMail::Completion(Completion::Persisted { up_to }),
                );
            }
            if last.is_some() || units > 0 || heard {
                self.parts.mesh.ring_doorbell(worker);
            }
        }
        result
    }

    fn sessions<'a>(&'a self, reader: &'a dyn Reader) -> Sessions<'a> {
        Sessions {
            reader,
            calendar: self.parts.calendar,
            metrics: &self.parts.metrics,
        }
    }

    fn sync_if_due(&mut self, now: Instant) {
        let Fsync::Interval(interval) = self.parts.fsync else {
            return;
        };
        let is_due = now >= self.synced_at + interval || self.unsynced_bytes > UNSYNCED_BYTES_MAX;
        if self.unsynced.is_empty() || !is_due {
            return;
        }
        if let Some(engine) = &mut self.engine {
            match engine.sync() {
                Ok(()) => {
                    self.is_synced(now);
                    self.notes_sync = true;
                }
                Err(error) => self.failed(&error),
            }
        }
    }

    fn is_synced(&mut self, now: Instant) {
        self.unsynced.clear();
        self.unsynced_bytes = 0;
        self.synced_at = now;
    }

    /// From an error on nothing of the engine is believed: it is opened anew, and what isn't known to be safe is
    /// written again.
    fn failed(&mut self, error: &EngineError) {
        self.parts.metrics.failures.inc();
        if self.state != StorageState::Failed {
            tracing::error!(%error, "the store doesn't work: persistent sessions are refused until it does");
        } else {
            tracing::debug!(%error, "the store still doesn't work");
        }
        self.engine = None;
        self.notes_sync = false;
        self.retry_at = Instant::now() + self.retry_after;
        self.retry_after = (self.retry_after * 2).min(RETRY_MAX);
        self.set_state(StorageState::Failed);
    }

    fn reopen(&mut self) {
        let opened = (self.parts.opener)().and_then(|mut engine| {
            for batch in &self.unsynced {
                engine.apply(batch, false)?;
            }
            engine.settle()?;
            Ok(engine)
        });
        match opened {
            Ok(engine) => {
                self.engine = Some(engine);
                let now = Instant::now();
                self.is_synced(now);
                // What waits goes first: only then it is known that the disk works.
                self.work();
                if self.engine.is_some() {
                    self.retry_after = RETRY_MIN;
                    self.parts.metrics.reopened.inc();
                    tracing::info!("the store works again");
                    self.look_at_space(now);
                }
            }
            Err(error) => self.failed(&error),
        }
    }

    fn look_at_space(&mut self, now: Instant) {
        self.space_at = now + SPACE_INTERVAL;
        let Some(engine) = &mut self.engine else {
            return;
        };
        let bytes = engine.disk_bytes();
        self.parts.metrics.bytes.store(bytes);
        let state = self.space.state(bytes, self.state == StorageState::Full);
        if state == StorageState::Full
            && self
                .reclaimed_at
                .is_none_or(|at| now >= at + RECLAIM_INTERVAL)
        {
            self.reclaimed_at = Some(now);
            engine.reclaim();
        }
        if state != self.state {
            match state {
                StorageState::Full => tracing::warn!(
                    store_bytes = bytes,
                    free_bytes = self.space.free_bytes(),
                    "little room for the store: new persistent work is refused until there is more"
                ),
                _ => tracing::info!(store_bytes = bytes, "the store takes all work"),
            }
        }
        self.set_state(state);
    }

    fn set_state(&mut self, state: StorageState) {
        if self.state == state {
            return;
        }
        self.state = state;
        self.parts.metrics.set_state(state);
        self.parts.lanes.set_state(state);
        for worker in (0..self.parts.lanes.workers()).map(|n| WorkerSlot(n as u8)) {
            self.parts.mesh.ring_doorbell(worker);
        }
    }

    fn end(&mut self) {
        let Some(engine) = &mut self.engine else {
            return tracing::error!(
                units = self.parts.lanes.pending(),
                "the store did not work at the end: what was not acknowledged is lost"
            );
        };
        if let Err(error) = engine.sync() {
            tracing::error!(%error, "the store's last sync failed");
        }
    }
}
