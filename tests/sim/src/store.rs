//! The store as a run has it: atomic group commits of what the workers have handed over, on a disk that may lose what
//! isn't synced, may fail, and may have kept what it has failed to write.

use headgate_codec::Text;
use headgate_core::{
    Loaded, Message, OpId, QueueSummary, Record, RestoredSession, RestoredSubscription, Retained,
    SessionId, Txn,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use super::draw::Rng;

/// The records of one input of a worker: they are in one commit.
#[derive(Clone, Debug, Default)]
pub(super) struct Unit {
    pub(super) worker: usize,
    pub(super) records: Vec<Kept>,
    pub(super) joins: Vec<(Txn, u32)>,
    pub(super) last: Option<OpId>,
}

/// A record as a worker hands it over.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) session: SessionId,
    pub(super) epoch: u32,
    pub(super) sequence: u64,
    pub(super) record: Record,
}

/// A Load that hasn't been answered.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) worker: usize,
    pub(super) op: OpId,
    pub(super) session: SessionId,
    pub(super) handle: u64,
    pub(super) after: u64,
    pub(super) messages_max: u16,
    pub(super) bytes_max: u32,
    /// Units that had been handed over before.
    before: u64,
}

/// A Recover that hasn't been answered.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) worker: usize,
    pub(super) op: OpId,
    pub(super) client_id: Text,
    /// Units that had been handed over before.
    before: u64,
}

impl Wanted {
    pub(super) fn new(worker: usize, op: OpId, client_id: Text) -> Self {
        Self {
            worker,
            op,
            client_id,
            before: 0,
        }
    }
}

/// What the store holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Db {
    pub(crate) sessions: BTreeMap<SessionId, Stored>,
    pub(crate) retained: BTreeMap<String, Arc<Message>>,
    /// Wills that are due and not published.
    pub(crate) wills: BTreeMap<SessionId, Arc<Message>>,
}

/// A session in the store.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) restored: RestoredSession,
    pub(crate) received: BTreeSet<u16>,
    pub(crate) queue: BTreeMap<u64, Loaded>,
    worker: usize,
}

/// The store of a run.
pub(super) struct Store {
    /// A commit is safe when it is synced, not when it is written.
    pub(super) syncs: bool,
    queue: VecDeque<Unit>,
    /// Units that have left the queue.
    taken: u64,
    unjoined: BTreeSet<Txn>,
    /// Written, and not reported as safe.
    awaiting: Vec<Unit>,
    pub(super) db: Db,
    durable: Db,
    unsynced: Vec<Vec<(usize, Kept)>>,
    pub(super) has_failed: bool,
    pub(super) asked: Vec<Asked>,
    pub(super) wanted: Vec<Wanted>,
}

impl Store {
    pub(super) fn new(syncs: bool) -> Self {
        Self {
            syncs,
            queue: VecDeque::new(),
            taken: 0,
            unjoined: BTreeSet::new(),
            awaiting: Vec::new(),
            db: Db::default(),
            durable: Db::default(),
            unsynced: Vec::new(),
            has_failed: false,
            asked: Vec::new(),
            wanted: Vec::new(),
        }
    }

    /// A worker hands over what one input has made it record.
    pub(super) fn push(&mut self, unit: Unit) {
        if unit.last.is_some() || !unit.joins.is_empty() {
            self.queue.push_back(unit);
        }
    }

    pub(super) fn unjoin(&mut self, txn: Txn) {
        self.unjoined.insert(txn);
    }

    pub(super) fn ask(&mut self, asked: Asked) {
        let before = self.taken + self.queue.len() as u64;
        self.asked.push(Asked { before, ..asked });
    }

    pub(super) fn look_for(&mut self, wanted: Wanted) {
        let before = self.taken + self.queue.len() as u64;
        self.wanted.push(Wanted { before, ..wanted });
    }

    /// The Recovers that can be answered: everything that was recorded before them is there.
    pub(super) fn findable(&self) -> Option<usize> {
        let is_due = |w: &Wanted| !self.has_failed && w.before <= self.taken;
        self.wanted.iter().position(is_due)
    }

    /// The session of a client.
    pub(super) fn find(&self, client_id: &Text) -> Option<Box<RestoredSession>> {
        let mut all = self.db.sessions.values();
        let found = all.find(|s| s.restored.client_id == *client_id)?;
        Some(Box::new(found.to_restore()))
    }

    /// How many units from the front can be committed together: no transaction ends at less.
    fn cuts(&self) -> Vec<usize> {
        let mut open: BTreeMap<Txn, u32> = BTreeMap::new();
        let mut cuts = Vec::new();
        for (i, unit) in self.queue.iter().enumerate() {
            for (txn, weight) in &unit.joins {
                if self.unjoined.contains(txn) {
                    continue;
                }
                let sum = open.entry(*txn).or_default();
                *sum += weight;
                assert!(*sum <= Txn::WHOLE, "{txn:?} has more than all of its parts");
                if *sum == Txn::WHOLE {
                    open.remove(txn);
                }
            }
            if open.is_empty() {
                cuts.push(i + 1);
            }
        }
        cuts
    }

    pub(super) fn can_write(&self) -> bool {
        !self.has_failed && self.awaiting.is_empty() && !self.cuts().is_empty()
    }

    pub(super) fn can_sync(&self) -> bool {
        !self.has_failed && !self.awaiting.is_empty()
    }

    /// Parts of transactions that never became whole.
    pub(super) fn has_rest(&self) -> bool {
        !self.queue.is_empty()
    }

    /// One commit is written, or the disk fails.
    pub(super) fn write(&mut self, retained: &Retained, rng: &mut Rng) {
        let cuts = self.cuts();
        let cut = cuts[rng.below(cuts.len())];
        let units: Vec<Unit> = self.queue.iter().take(cut).cloned().collect();
        let batch: Vec<(usize, Kept)> = units
            .iter()
            .flat_map(|unit| {
                unit.records
                    .iter()
                    .map(|r| (unit.worker, as_written(r, retained)))
            })
            .collect();
        let fails = rng.below(24);
        if fails < 2 {
            self.has_failed = true;
            // It says so, and the data may be there all the same.
            if fails == 1 {
                self.unsynced.push(batch);
            }
            return;
        }
        self.queue.drain(..cut);
        self.taken += cut as u64;
        batch
            .iter()
            .for_each(|(worker, kept)| self.db.apply(*worker, kept));
        self.unsynced.push(batch);
        self.awaiting = units;
    }

    /// What is written is synced, if that is asked for, and then it is safe: of each worker, up to where.
    pub(super) fn sync(&mut self, rng: &mut Rng) -> Vec<(usize, OpId)> {
        if self.syncs {
            if rng.below(24) == 0 {
                self.has_failed = true;
                let units = std::mem::take(&mut self.awaiting);
                self.taken -= units.len() as u64;
                units
                    .into_iter()
                    .rev()
                    .for_each(|unit| self.queue.push_front(unit));
                return Vec::new();
            }
            self.settle_disk(usize::MAX);
        }
        let units = std::mem::take(&mut self.awaiting);
        units
            .iter()
            .filter_map(|u| Some((u.worker, u.last?)))
            .collect()
    }

    /// The first commits that aren't synced reach the disk, and the others don't.
    fn settle_disk(&mut self, count: usize) {
        for batch in self.unsynced.drain(..).take(count) {
            batch
                .iter()
                .for_each(|(worker, kept)| self.durable.apply(*worker, kept));
        }
    }

    /// The power goes, or only the process if a commit counts as safe before it is synced: what is left.
    pub(super) fn restart(&mut self, rng: &mut Rng) {
        let count = match self.syncs {
            true => rng.below(self.unsynced.len() + 1),
            false => usize::MAX,
        };
        self.settle_disk(count);
        self.db = self.durable.clone();
        self.queue.clear();
        self.awaiting.clear();
        self.asked.clear();
        self.wanted.clear();
        self.unjoined.clear();
        self.has_failed = false;
    }

    /// A session lives on this worker now.
    pub(super) fn place(&mut self, session: SessionId, worker: usize) {
        for db in [&mut self.db, &mut self.durable] {
            if let Some(stored) = db.sessions.get_mut(&session) {
                stored.worker = worker;
            }
        }
    }

    /// A worker has panicked, and its sessions are given up with it.
    pub(super) fn forget_worker(&mut self, worker: usize) {
        self.settle_disk(usize::MAX);
        self.db.sessions.retain(|_, s| s.worker != worker);
        self.durable = self.db.clone();
        self.asked.retain(|asked| asked.worker != worker);
        self.wanted.retain(|wanted| wanted.worker != worker);
    }

    /// The Loads that can be answered: everything that was recorded before them is there.
    pub(super) fn answerable(&self) -> Option<usize> {
        let is_due = |a: &Asked| self.has_failed || a.before <= self.taken;
        self.asked.iter().position(is_due)
    }

    /// Reads a part of a queue, and whether there is more.
    pub(super) fn read(&self, asked: &Asked) -> (Vec<Loaded>, bool) {
        let Some(stored) = self.db.sessions.get(&asked.session) else {
            return (Vec::new(), false);
        };
        let mut rest = stored
            .queue
            .range(asked.after + 1..)
            .map(|(_, loaded)| loaded);
        let (mut found, mut bytes) = (Vec::new(), 0);
        for loaded in rest.by_ref() {
            bytes += loaded.message.as_ref().map_or(0, |m| m.cost());
            found.push(loaded.clone());
            // Portions are shorter here, so that there are several.
            if found.len() >= usize::from(asked.messages_max.min(3)) || bytes >= asked.bytes_max {
                break;
            }
        }
        let more = rest.next().is_some();
        (found, more)
    }
}

impl Asked {
    pub(super) fn new(
        worker: usize,
        (op, handle): (OpId, u64),
        (session, after): (SessionId, u64),
        (messages_max, bytes_max): (u16, u32),
    ) -> Self {
        Self {
            worker,
            op,
            session,
            handle,
            after,
            messages_max,
            bytes_max,
            before: 0,
        }
    }
}

/// Of a retained message counts what memory says now.
fn as_written(kept: &Kept, retained: &Retained) -> Kept {
    let mut kept = kept.clone();
    if let Record::Retained { message } = &mut kept.record {
        let cleared = || Message {
            payload: bytes::Bytes::new(),
            ..(**message).clone()
        };
        *message = retained
            .get(&message.topic)
            .unwrap_or_else(|| Arc::new(cleared()));
    }
    kept
}

impl Db {
    fn apply(&mut self, worker: usize, kept: &Kept) {
        match &kept.record {
            Record::Retained { message } if message.payload.is_empty() => {
                self.retained.remove(message.topic.as_str());
            }
            Record::Retained { message } => {
                let topic = message.topic.to_string();
                self.retained.insert(topic, Arc::clone(message));
            }
            Record::WillDue { message } => {
                self.wills.insert(kept.session, Arc::clone(message));
            }
            Record::WillPublished => drop(self.wills.remove(&kept.session)),
            Record::SessionEnded => drop(self.sessions.remove(&kept.session)),
            Record::SessionOpened { client_id, .. } => {
                let stored = self.sessions.entry(kept.session).or_insert_with(|| Stored {
                    restored: RestoredSession {
                        id: kept.session,
                        client_id: client_id.clone(),
                        epoch: 0,
                        sequence: 0,
                        expiry_s: 0,
                        version: headgate_codec::Version::V5,
                        is_connected: true,
                        expires_at: None,
                        will: None,
                        will_at: None,
                        subscriptions: Vec::new(),
                        received: Vec::new(),
                        queue: QueueSummary::default(),
                    },
                    received: BTreeSet::new(),
                    queue: BTreeMap::new(),
                    worker,
                });
                stored.apply(worker, kept);
            }
            _ => {
                if let Some(stored) = self.sessions.get_mut(&kept.session) {
                    stored.apply(worker, kept);
                }
            }
        }
    }
}

impl Stored {
    fn apply(&mut self, worker: usize, kept: &Kept) {
        let r = &mut self.restored;
        // Of the same commit once more, or of the next; never of an older owner behind a newer one's.
        (r.epoch, self.worker) = (kept.epoch.max(r.epoch), worker);
        r.sequence = r.sequence.max(kept.sequence);
        match &kept.record {
            Record::SessionOpened {
                expiry_s,
                version,
                send_quota,
                will,
                ..
            } => {
                (r.expiry_s, r.version, r.is_connected) = (*expiry_s, *version, true);
                (r.queue.send_quota, r.will) = (*send_quota, will.clone());
            }
            Record::SessionClosed {
                expires_at,
                will_at,
                sent_up_to,
            } => {
                (r.is_connected, r.expires_at, r.will_at) = (false, *expires_at, *will_at);
                r.queue.sent_up_to = *sent_up_to;
                if will_at.is_none() {
                    r.will = None;
                }
            }
            Record::WillGone => (r.will, r.will_at) = (None, None),
            Record::Subscribed {
                filter,
                options,
                subscription_id,
            } => {
                r.subscriptions.retain(|s| s.filter != *filter);
                r.subscriptions.push(RestoredSubscription {
                    filter: filter.clone(),
                    options: *options,
                    subscription_id: *subscription_id,
                });
            }
            Record::Unsubscribed { filter } => r.subscriptions.retain(|s| s.filter != *filter),
            Record::Queued {
                message,
                qos,
                retain,
                ids,
                packet_id,
                group,
            } => {
                let loaded = Loaded {
                    sequence: kept.sequence,
                    message: Some(Arc::clone(message)),
                    qos: *qos,
                    retain: *retain,
                    ids: ids.clone(),
                    packet_id: *packet_id,
                    group: group.clone(),
                };
                self.queue.insert(kept.sequence, loaded);
            }
            Record::Acknowledged { queued } | Record::Completed { queued } => {
                self.queue.remove(queued);
            }
            Record::PubRec { queued } => {
                if let Some(loaded) = self.queue.get_mut(queued) {
                    loaded.message = None;
                }
            }
            Record::Received { packet_id } => drop(self.received.insert(packet_id.get())),
            Record::Released { packet_id } => drop(self.received.remove(&packet_id.get())),
            Record::SessionEnded
            | Record::Retained { .. }
            | Record::WillDue { .. }
            | Record::WillPublished => {}
        }
    }

    /// The session as the core gets it back.
    pub(super) fn to_restore(&self) -> RestoredSession {
        let mut restored = self.restored.clone();
        let received = self.received.iter();
        restored.received = received
            .filter_map(|id| headgate_codec::PacketId::new(*id))
            .collect();
        let costs = self.queue.values().filter_map(|l| l.message.as_ref());
        restored.queue.bytes = costs.map(|m| m.cost()).sum();
        restored.queue.count = self.queue.len() as u32;
        let id = |loaded: Option<&Loaded>| loaded.map_or(0, |l| l.packet_id.get());
        restored.queue.first_packet_id = id(self.queue.values().next());
        restored.queue.last_packet_id = id(self.queue.values().next_back());
        restored
    }

    /// Entries that were sent to the client, or may have been.
    pub(crate) fn sent(&self) -> impl Iterator<Item = &Loaded> {
        let (up_to, all) = (self.restored.queue.sent_up_to, self.restored.is_connected);
        let entries = self.queue.values();
        entries.filter(move |l| all || l.sequence <= up_to || l.message.is_none())
    }
}
