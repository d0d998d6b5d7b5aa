//! Brings sessions and retained messages back from the store, while clients connect.
//!
//! [`RestoringDirectory`] stands in front of the directory: a Claim for a client whose session may be in the store is
//! answered once that is known. Such a client's session is read at once, ahead of all others.

use headgate_codec::Text;
use headgate_core::{
    Completion, Message, OpId, Owner, RestoredSession, SessionId, Shared, Time, WorkerSlot,
};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    ops::ControlFlow,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{
    codec::{self, Calendar},
    engine::{EngineError, Reader, Table},
    files::{self, StoreError},
    keys,
    lane::{Lanes, StoreMail},
    load::{self, Sessions},
    metrics::StoreMetrics,
    thread::StoreHandle,
};
use crate::{
    cluster::{Directory, LocalDirectory},
    mesh::Mesh,
};
use bytes::Bytes;

/// Sessions read at a time; between two portions come the clients that wait.
const SESSIONS_PER_PORTION: usize = 64;
/// Retained messages put back at a time, under one lock.
const RETAINED_PER_PORTION: usize = 512;
/// Sessions that a worker may have before it: no more are read until it has taken some.
const HANDED_MAX: usize = 1_024;
/// How soon a worker that has enough is looked at again.
const HANDED_WAIT: Duration = Duration::from_micros(200);
/// After an error of the disk.
const RETRY: Duration = Duration::from_millis(500);

/// A Claim that waits.
struct Waiting {
    from: WorkerSlot,
    op: OpId,
    new: Option<Owner>,
}

#[derive(Default)]
struct State {
    /// The sessions of an earlier run are being read: an unknown client may have one.
    is_scanning: bool,
    /// Clients of a worker that is gone, whose sessions have to be read again.
    lost: HashMap<Text, WorkerSlot>,
    /// Workers that are gone, whose wills have to be read again.
    lost_wills: HashSet<WorkerSlot>,
    /// Sessions that a worker has been given and has not claimed.
    handed: HashMap<Text, WorkerSlot>,
    waiting: HashMap<Text, Vec<Waiting>>,
    /// Clients that wait for their session to be looked for, and at which worker.
    wanted: VecDeque<(Text, WorkerSlot)>,
    ended: bool,
}

impl State {
    fn is_idle(&self) -> bool {
        !self.is_scanning
            && self.lost.is_empty()
            && self.lost_wills.is_empty()
            && self.handed.is_empty()
            && self.waiting.is_empty()
    }
}

/// The directory of a node that has a store.
pub struct RestoringDirectory {
    inner: LocalDirectory,
    lanes: Arc<Lanes>,
    mesh: Arc<Mesh>,
    shared: Arc<Shared>,
    /// Somebody may have to wait; otherwise the lock below isn't touched.
    is_restoring: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

impl RestoringDirectory {
    /// Claims wait from now on, until the sessions have been read.
    pub fn new(lanes: Arc<Lanes>, mesh: Arc<Mesh>, shared: Arc<Shared>) -> Arc<Self> {
        shared.begin_restoring();
        let state = State {
            is_scanning: true,
            ..State::default()
        };
        Arc::new(Self {
            inner: LocalDirectory::default(),
            lanes,
            mesh,
            shared,
            is_restoring: AtomicBool::new(true),
            state: Mutex::new(state),
            changed: Condvar::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was waited for is known: the Claims get their answers.
    fn answer(&self, state: &mut State, client_id: &Text) {
        for waiting in state.waiting.remove(client_id).into_iter().flatten() {
            let mut done = Vec::new();
            let Waiting { from, op, new } = waiting;
            self.inner
                .claim((from, op), client_id.clone(), None, new, &mut done);
            for completion in done {
                self.lanes.send(from, StoreMail::Completion(completion));
            }
            self.mesh.ring_doorbell(from);
        }
        self.settle(state);
    }

    fn settle(&self, state: &State) {
        let is_idle = state.is_idle();
        let was_restoring = self.is_restoring.swap(!is_idle, Ordering::AcqRel);
        if is_idle && was_restoring {
            self.shared.finish_restoring();
            for worker in (0..self.lanes.workers()).map(|n| WorkerSlot(n as u8)) {
                self.lanes.send(worker, StoreMail::SessionsRestored);
                self.mesh.ring_doorbell(worker);
            }
        }
    }

    /// Gives a session to a worker.
    fn hand(&self, session: RestoredSession, worker: WorkerSlot) {
        let client_id = session.client_id.clone();
        self.state().handed.insert(client_id, worker);
        self.lanes
            .send(worker, StoreMail::Restore(Box::new(session)));
        self.mesh.ring_doorbell(worker);
    }
}

impl Directory for RestoringDirectory {
    fn claim(
        &self,
        (from, op): (WorkerSlot, OpId),
        client_id: Text,
        expected: Option<Owner>,
        new: Option<Owner>,
        done: &mut Vec<Completion>,
    ) {
        let is_question = expected.is_none() && new.is_some();
        if is_question && self.is_restoring.load(Ordering::Acquire) {
            let mut state = self.state();
            let is_coming =
                state.handed.contains_key(&client_id) || state.lost.contains_key(&client_id);
            if is_coming || state.is_scanning && !self.inner.contains(&client_id) {
                let waiting = state.waiting.entry(client_id.clone()).or_default();
                waiting.push(Waiting { from, op, new });
                if !is_coming && waiting.len() == 1 {
                    state.wanted.push_back((client_id, from));
                    self.changed.notify_all();
                }
                return;
            }
        }
        self.inner.claim((from, op), client_id, expected, new, done);
    }

    fn claim_restored(
        &self,
        from: (WorkerSlot, OpId),
        client_id: Text,
        new: Option<Owner>,
        done: &mut Vec<Completion>,
    ) {
        self.inner.claim(from, client_id, None, new, done);
    }

    fn owner(&self, client_id: &Text) -> Option<Owner> {
        self.inner.owner(client_id)
    }

    fn restored(&self, client_id: &Text) {
        let mut state = self.state();
        state.handed.remove(client_id);
        self.answer(&mut state, client_id);
    }

    fn forget_worker(&self, worker: WorkerSlot) -> Vec<Text> {
        let mut state = self.state();
        // First: whoever asks for one of these from now on waits for the lock, and messages wait for all.
        self.is_restoring.store(true, Ordering::Release);
        self.shared.begin_restoring();
        let mut lost = self.inner.forget_worker(worker);
        // What it had been given may be in its lane still, or gone with it: it is given again.
        lost.extend(
            state
                .handed
                .iter()
                .filter(|(_, at)| **at == worker)
                .map(|(id, _)| id.clone()),
        );
        state.lost_wills.insert(worker);
        for client_id in &lost {
            state.handed.remove(client_id);
            state.lost.insert(client_id.clone(), worker);
        }
        for waiting in state.waiting.values_mut() {
            waiting.retain(|waiting| waiting.from != worker);
        }
        state.waiting.retain(|_, waiting| !waiting.is_empty());
        self.changed.notify_all();
        self.settle(&state);
        lost
    }

    fn len(&self) -> usize {
        self.inner.len()
    }
}

/// What the restoring thread needs.
pub struct RestoreParts {
    /// Who waits.
    pub directory: Arc<RestoringDirectory>,
    /// The store.
    pub store: StoreHandle,
    /// Retained messages.
    pub shared: Arc<Shared>,
    /// For times.
    pub calendar: Calendar,
    /// The server's start.
    pub start: Instant,
    /// Progress.
    pub metrics: Arc<StoreMetrics>,
    /// Where the store is.
    pub path: PathBuf,
    /// Set when the store turns out to be damaged: the server can't go on then.
    pub failure: Arc<OnceLock<StoreError>>,
}

/// The thread that restores. It goes on for as long as the server: a worker that panics loses its sessions.
pub struct RestoreThread {
    directory: Arc<RestoringDirectory>,
    thread: Option<JoinHandle<()>>,
}

impl RestoreThread {
    /// Begins with everything that is in the store.
    ///
    /// # Errors
    /// The system has no thread.
    pub fn start(parts: RestoreParts) -> std::io::Result<Self> {
        let directory = Arc::clone(&parts.directory);
        parts.metrics.restoring.store(1);
        parts.shared.retained.begin_loading();
        let thread = std::thread::Builder::new()
            .name("headgate-restore".into())
            .spawn(move || {
                Restorer {
                    parts,
                    reader: None,
                    wills: HashMap::new(),
                }
                .run()
            })?;
        Ok(Self {
            directory,
            thread: Some(thread),
        })
    }
}

impl Drop for RestoreThread {
    fn drop(&mut self) {
        self.directory.state().ended = true;
        self.directory.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

struct Restorer {
    parts: RestoreParts,
    /// The tables as they are read; dropped when they can't be, because the store opens itself anew then.
    reader: Option<Arc<dyn Reader>>,
    /// The worker that each will was given to.
    wills: HashMap<SessionId, WorkerSlot>,
}

/// The server ends.
struct Ended;

impl Restorer {
    fn run(&mut self) {
        if self.everything().is_err() {
            return;
        }
        loop {
            let mut state = self.parts.directory.state();
            while !state.ended && state.lost.is_empty() && state.lost_wills.is_empty() {
                let changed = &self.parts.directory.changed;
                state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let ended = state.ended;
            drop(state);
            if ended || self.lost().is_err() {
                return;
            }
        }
    }

    fn everything(&mut self) -> Result<(), Ended> {
        self.reader = Some(self.parts.store.read().ok_or(Ended)?);
        self.wills(None)?;
        self.sessions()?;
        let parts = &self.parts;
        {
            let mut state = parts.directory.state();
            state.is_scanning = false;
            // Whoever waits for a session that isn't coming has none.
            let absent = state.waiting.keys();
            let absent = absent
                .filter(|id| !state.handed.contains_key(*id) && !state.lost.contains_key(*id));
            for client_id in absent.cloned().collect::<Vec<_>>() {
                parts.directory.answer(&mut state, &client_id);
            }
            state.wanted.clear();
            parts.directory.settle(&state);
        }
        self.retained()?;
        self.reader = None;
        let parts = &self.parts;
        parts.shared.retained.finish_loading();
        for worker in self.workers() {
            parts
                .directory
                .lanes
                .send(worker, StoreMail::RetainedLoaded);
            parts.directory.mesh.ring_doorbell(worker);
        }
        // What was needed to read everything lies between what stays.
        crate::overload::heap::give_back();
        let took = parts.start.elapsed();
        parts.metrics.restore_ms.store(took.as_millis() as u64);
        parts.metrics.restoring.store(0);
        tracing::info!(
            sessions = parts.metrics.sessions_restored.get(),
            retained = parts.metrics.retained_restored.get(),
            seconds = took.as_secs_f64(),
            "the store's sessions and retained messages are served"
        );
        Ok(())
    }

    fn workers(&self) -> impl Iterator<Item = WorkerSlot> {
        (0..self.parts.directory.lanes.workers()).map(|n| WorkerSlot(n as u8))
    }

    /// Tries until the store can be read.
    fn read<T>(
        &mut self,
        read: impl Fn(&dyn Reader, &RestoreParts) -> Result<T, EngineError>,
    ) -> Result<T, Ended> {
        loop {
            if let Some(reader) = &self.reader {
                match read(&**reader, &self.parts) {
                    Ok(found) => return Ok(found),
                    Err(error @ (EngineError::Damaged(_) | EngineError::Newer)) => {
                        let error = files::refused(&self.parts.path, error);
                        tracing::error!(%error, "the server can't go on");
                        let _first = self.parts.failure.set(error);
                        return Err(Ended);
                    }
                    Err(error) => {
                        tracing::error!(%error, "sessions can't be read from the store; it is tried again");
                        self.parts.metrics.failures.inc();
                    }
                }
                self.reader = None;
                std::thread::sleep(RETRY);
            }
            if self.parts.directory.state().ended {
                return Err(Ended);
            }
            self.reader = Some(self.parts.store.read().ok_or(Ended)?);
        }
    }

    /// All sessions, and first those that somebody waits for.
    fn sessions(&mut self) -> Result<(), Ended> {
        let (mut from, mut early) = (Vec::new(), HashSet::new());
        loop {
            self.wanted(&from, &mut early)?;
            let (sessions, next) = self.read(|reader, parts| {
                sessions_of(reader, parts).after(&from, SESSIONS_PER_PORTION)
            })?;
            for session in sessions {
                if early.contains(&session.id) {
                    continue;
                }
                let hash =
                    BuildHasherDefault::<DefaultHasher>::default().hash_one(&*session.client_id);
                let worker = WorkerSlot((hash % self.parts.directory.lanes.workers() as u64) as u8);
                self.room(worker)?;
                self.hand(session, worker);
            }
            match next {
                Some(next) => from = next,
                None => return Ok(()),
            }
        }
    }

    fn hand(&self, session: RestoredSession, worker: WorkerSlot) {
        self.parts.metrics.sessions_restored.inc();
        self.parts.directory.hand(session, worker);
    }

    /// Waits until a worker has taken enough of what it was given.
    fn room(&self, worker: WorkerSlot) -> Result<(), Ended> {
        while self.parts.directory.lanes.mail_len(worker) >= HANDED_MAX {
            if self.parts.directory.state().ended {
                return Err(Ended);
            }
            std::thread::sleep(HANDED_WAIT);
        }
        Ok(())
    }

    /// Looks for the sessions of clients that wait. What lies before `from` has been handed over, and `early`.
    fn wanted(&mut self, from: &[u8], early: &mut HashSet<SessionId>) -> Result<(), Ended> {
        loop {
            let wanted = {
                let mut state = self.parts.directory.state();
                if state.ended {
                    return Err(Ended);
                }
                state.wanted.pop_front()
            };
            let Some((client_id, worker)) = wanted else {
                return Ok(());
            };
            let found =
                self.read(|reader, parts| sessions_of(reader, parts).of_client(&client_id))?;
            let found = found.filter(|session| {
                keys::id(session.id).as_slice() >= from && early.insert(session.id)
            });
            match found {
                Some(session) => self.hand(session, worker),
                None => {
                    let directory = &self.parts.directory;
                    let mut state = directory.state();
                    if !state.handed.contains_key(&client_id) {
                        directory.answer(&mut state, &client_id);
                    }
                }
            }
        }
    }

    /// Wills that are due and not published: all, or only those that workers had which are gone.
    fn wills(&mut self, lost: Option<&HashSet<WorkerSlot>>) -> Result<(), Ended> {
        let found =
            self.read(|reader, parts| load::wills(reader, parts.calendar, &parts.metrics))?;
        for will in found {
            // Its maker, if it was made since the start.
            let maker = WorkerSlot((will.id.counter >> 56) as u8);
            let had = self.wills.get(&will.id).copied().unwrap_or(maker);
            if lost.is_some_and(|lost| !lost.contains(&had)) {
                continue;
            }
            let lanes = &self.parts.directory.lanes;
            let worker = WorkerSlot((usize::from(had.0) % lanes.workers()) as u8);
            self.room(worker)?;
            self.wills.insert(will.id, worker);
            let directory = &self.parts.directory;
            directory.lanes.send(worker, StoreMail::RestoreWill(will));
            directory.mesh.ring_doorbell(worker);
        }
        Ok(())
    }

    fn retained(&mut self) -> Result<(), Ended> {
        let mut from = Vec::new();
        loop {
            let (messages, next) =
                self.read(|reader, parts| retained_after(reader, parts, &from))?;
            let parts = &self.parts;
            let now = Time(parts.start.elapsed().as_millis() as u64);
            let restored = parts.shared.retained.restore(messages, now);
            parts.metrics.retained_restored.add(restored as u64);
            if parts.directory.state().ended {
                return Err(Ended);
            }
            match next {
                Some(next) => from = next,
                None => break,
            }
        }
        if self.parts.shared.retained.is_above_limits() {
            tracing::warn!(
                restored = self.parts.metrics.retained_restored.get(),
                "the store has more retained messages than limits.retained_messages or limits.retained_bytes allow: all are \
                 kept, and new topics are refused until enough are removed"
            );
        }
        Ok(())
    }

    /// The sessions of workers that are gone.
    fn lost(&mut self) -> Result<(), Ended> {
        let directory = Arc::clone(&self.parts.directory);
        // Read after all that these workers had recorded.
        let (lost, workers) = {
            let state = directory.state();
            (state.lost.clone(), state.lost_wills.clone())
        };
        self.reader = Some(self.parts.store.read().ok_or(Ended)?);
        self.wills(Some(&workers))?;
        let mut state = directory.state();
        state.lost_wills.retain(|worker| !workers.contains(worker));
        directory.settle(&state);
        drop(state);
        for (client_id, worker) in lost {
            let found =
                self.read(|reader, parts| sessions_of(reader, parts).of_client(&client_id))?;
            self.room(worker)?;
            let has_session = found.is_some();
            if let Some(session) = found {
                self.hand(session, worker);
            }
            let mut state = directory.state();
            state.lost.remove(&client_id);
            match has_session {
                true => directory.settle(&state),
                false => directory.answer(&mut state, &client_id),
            }
        }
        self.reader = None;
        Ok(())
    }
}

fn sessions_of<'a>(reader: &'a dyn Reader, parts: &'a RestoreParts) -> Sessions<'a> {
    Sessions {
        reader,
        calendar: parts.calendar,
        metrics: &parts.metrics,
    }
}

/// Retained messages, and the topic to go on with.
type RetainedPortion = (Vec<Arc<Message>>, Option<Vec<u8>>);

/// A portion of the retained messages from this topic on, and where to go on, if there are more.
fn retained_after(
    reader: &dyn Reader,
    parts: &RestoreParts,
    from: &[u8],
) -> Result<RetainedPortion, EngineError> {
    let (mut messages, mut next) = (Vec::with_capacity(RETAINED_PER_PORTION), None);
    reader.scan(Table::Retained, &[], from, &mut |topic, value| {
        if messages.len() == RETAINED_PER_PORTION {
            next = Some(topic.to_vec());
            return ControlFlow::Break(());
        }
        let value = codec::Reader::new(Bytes::copy_from_slice(value), parts.calendar);
        match value.and_then(codec::Reader::retained) {
            Ok(message) => messages.push(Arc::new(message)),
            Err(error) => load::damaged(&error, topic, &parts.metrics),
        }
        ControlFlow::Continue(())
    })?;
    Ok((messages, next))
}
