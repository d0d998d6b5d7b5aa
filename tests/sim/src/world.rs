//! The world of a run: workers with real cores, what lies between them, connections, clients, and a clock that only the
//! operations turn.

use bytes::BytesMut;
use headgate_codec::{Packet, Text, encode};
use headgate_core::{
    Completion, ConnId, Core, CoreConfig, CoreLimits, Input, Mesh, OpId, Output, Owner, Peer,
    QuotaLimits, RestoredSession, RestoredWill, RetainedLimits, Shared, Time, Transport,
    WorkerSlot,
};
use std::{
    collections::{BTreeMap, VecDeque},
    hash::{DefaultHasher, Hasher},
    sync::Arc,
};

use super::client::Client;
use super::draw::Rng;
use super::events::Event;
use super::model::{Model, SessionNo};
use super::network::{Link, LinkId};
use super::operations::{PACKET_BYTES_MAX, Scenario};
use super::store::{Asked, Store, Unit, Wanted};

/// A compare-and-set that the directory hasn't done.
pub(super) struct Claim {
    pub(super) op: OpId,
    pub(super) client_id: Text,
    pub(super) expected: Option<Owner>,
    pub(super) new: Option<Owner>,
}

pub(super) struct Worker {
    pub(super) core: Core,
    pub(super) incarnation: u8,
    pub(super) claims: Vec<Claim>,
    /// The directory's answers, not at the worker yet.
    pub(super) answers: Vec<Completion>,
    pub(super) last_record: OpId,
    /// What the store has finished, not known at the worker.
    pub(super) safe: VecDeque<OpId>,
    /// Other workers that have stopped, which this one doesn't know.
    pub(super) gone: Vec<WorkerSlot>,
    /// All sessions are there, which this one doesn't know.
    pub(super) is_restored: bool,
}

/// Everything of one run.
pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) scenario: Scenario,
    pub(crate) model: Model,
    pub(crate) clients: Vec<Client>,
    pub(crate) links: Vec<Link>,
    /// The session that each connection got.
    pub(super) sessions: Vec<Option<SessionNo>>,
    /// Connections that something can still happen to.
    pub(super) live: Vec<LinkId>,
    pub(super) workers: Vec<Worker>,
    pub(super) shared: Arc<Shared>,
    pub(super) directory: BTreeMap<Text, Owner>,
    /// From worker to worker, in order: at `from * workers + to`.
    pub(super) mesh: Vec<VecDeque<Mesh>>,
    pub(super) by_conn: BTreeMap<(usize, u32), LinkId>,
    pub(super) store: Store,
    /// Sessions that are still to come from it, each with its worker.
    pub(super) restoring: VecDeque<(usize, RestoredSession)>,
    /// What the worker whose outputs are being done records.
    pub(super) unit: Unit,
    pub(super) loads: Vec<Asked>,
    pub(super) recoveries: Vec<Wanted>,
    /// How often everything was started.
    pub(super) starts: u32,
    pub(super) out: Vec<Output>,
    pub(super) events: Vec<Event>,
    pub(super) unsettled_ms: u64,
    pub(super) dropped_before: u64,
    pub(crate) trace: DefaultHasher,
    /// What happens, in words, if somebody is going to read it.
    pub(crate) log: Option<Vec<String>>,
}

/// What may happen until all is quiet, at most.
const EVENTS_MAX: usize = 300_000;
/// How much time may pass while something is on its way between workers, ms: a session that moves waits 5 s for the
/// other workers.
const UNSETTLED_MS_MAX: u64 = 4_000;

impl World {
    pub(crate) fn new(scenario: &Scenario, is_logged: bool) -> Self {
        let limits = limits(scenario);
        let shared = Arc::new(Shared::new([1, 2], RetainedLimits::default()));
        let workers = (0..scenario.workers)
            .map(|w| Worker::new(w, (0, 0), &limits, scenario, &shared))
            .collect();
        Self {
            now: Time(1_000),
            scenario: scenario.clone(),
            model: Model::new(scenario, limits),
            clients: (0..scenario.clients).map(|_| Client::new()).collect(),
            links: Vec::new(),
            sessions: Vec::new(),
            live: Vec::new(),
            workers,
            shared,
            directory: BTreeMap::new(),
            mesh: (0..scenario.workers * scenario.workers)
                .map(|_| VecDeque::new())
                .collect(),
            by_conn: BTreeMap::new(),
            store: Store::new(scenario.syncs),
            restoring: VecDeque::new(),
            unit: Unit::default(),
            loads: Vec::new(),
            recoveries: Vec::new(),
            starts: 0,
            out: Vec::new(),
            events: Vec::new(),
            unsettled_ms: 0,
            dropped_before: 0,
            trace: DefaultHasher::new(),
            log: is_logged.then(Vec::new),
        }
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push(line());
        }
    }

    /// A client opens a connection.
    pub(crate) fn open(
        &mut self,
        client: usize,
        worker: usize,
        version: headgate_codec::Version,
    ) -> LinkId {
        let link = self.links.len();
        let conn = ConnId {
            index: (link % 7) as u32,
            generation: link as u32 + 1,
        };
        // The driver has a place for each connection that is open.
        let index = (0..).find(|i| {
            let taken = self.by_conn.get(&(worker, *i));
            taken.is_none_or(|l| !self.links[*l].server_open)
        });
        let conn = ConnId {
            index: index.unwrap_or(conn.index),
            ..conn
        };
        self.by_conn.insert((worker, conn.index), link);
        self.links.push(Link::new(worker, conn, client, version));
        self.sessions.push(None);
        self.live.push(link);
        self.model.now = self.now;
        self.model.opened(link, worker, client, version);
        let transport = if link.is_multiple_of(2) {
            Transport::Tcp
        } else {
            Transport::Quic
        };
        let peer = Peer {
            address: ([192, 0, 2, 1], 7).into(),
            transport,
            certificate: None,
            early: false,
        };
        self.feed(worker, Input::Opened { conn, peer });
        link
    }

    /// A client sends a packet; `n`: the message that a PUBLISH carries.
    pub(crate) fn send(&mut self, link: LinkId, packet: &Packet, n: Option<usize>) {
        let l = &mut self.links[link];
        if !l.client_open {
            return;
        }
        encode(packet, l.client_version, &mut l.up);
        if let Some(n) = n {
            self.model.publishing(link, n);
        }
        let client = l.client;
        self.note(|| format!("  c{client} on {link} sends {packet:?}"));
    }

    /// The network breaks a connection.
    pub(crate) fn cut(&mut self, link: LinkId, rng: &mut Rng) {
        let l = &mut self.links[link];
        let kept = rng.below(l.up.len() + 1);
        l.cut(kept);
    }

    /// Connections that their clients have forgotten break.
    pub(crate) fn cut_forgotten(&mut self, rng: &mut Rng) {
        for link in self.live.clone() {
            if self.clients[self.links[link].client].link != Some(link)
                && self.links[link].client_open
            {
                self.cut(link, rng);
            }
        }
    }

    /// A number of things happen, in an order that `rng` says.
    pub(crate) fn go_on(&mut self, count: usize, rng: &mut Rng) {
        for _ in 0..count {
            if !self.happen(false, rng) {
                return;
            }
        }
    }

    /// Everything happens that can. `internal`: only what is between workers, directory and store.
    pub(crate) fn settle(&mut self, internal: bool, rng: &mut Rng) {
        let mut count = 0;
        while self.happen(internal, rng) {
            count += 1;
            assert!(count < EVENTS_MAX, "it never comes to rest");
        }
        assert!(!self.store.has_rest(), "records that never become safe");
        self.unsettled_ms = 0;
        let quiet: Vec<bool> = self
            .clients
            .iter()
            .map(|c| {
                !internal
                    && !c.holds_acks
                    && c.is_up
                    && c.link.is_some_and(|l| !self.links[l].stalled)
            })
            .collect();
        self.model.settled(&quiet);
    }

    /// Time passes; every timer fires at its time.
    pub(crate) fn advance(&mut self, ms: u64, rng: &mut Rng) {
        self.unsettled_ms += ms;
        if self.unsettled_ms > UNSETTLED_MS_MAX {
            self.settle(true, rng);
        }
        // It takes no time, so that what is held back is as old as when it came.
        while !self.restoring.is_empty() {
            self.restore_next();
        }
        for worker in 0..self.workers.len() {
            if self.workers[worker].is_restored {
                self.tell_restored(worker);
            }
        }
        let until = self.now.after_ms(ms);
        loop {
            let timeouts = self.workers.iter().enumerate();
            let due = timeouts
                .filter_map(|(w, worker)| worker.core.next_timeout().map(|at| (at, w)))
                .min();
            let Some((at, worker)) = due.filter(|(at, _)| *at <= until) else {
                break;
            };
            self.now = self.now.max(at);
            self.model.now = self.now;
            self.model.other_cause();
            self.feed(worker, Input::Timeout);
            if ms > UNSETTLED_MS_MAX {
                self.settle(true, rng);
            }
        }
        self.now = until;
        self.model.now = until;
        self.model.advanced();
    }

    /// A worker panics; its sockets stay and get a new one.
    pub(crate) fn crash(&mut self, worker: usize) {
        self.dropped_before += dropped(&self.workers[worker].core);
        self.model.now = self.now;
        self.model.crashed(worker);
        for &link in &self.live {
            let l = &mut self.links[link];
            if l.worker == worker {
                l.server_open = false;
                l.outbox.clear();
            }
        }
        let slot = WorkerSlot(worker as u8);
        self.directory.retain(|_, owner| owner.worker != slot);
        self.shared.forget_worker(slot);
        let incarnation = self.workers[worker].incarnation + 1;
        let limits = limits(&self.scenario);
        self.workers[worker] = Worker::new(
            worker,
            (incarnation, self.starts),
            &limits,
            &self.scenario,
            &self.shared,
        );
        self.store.forget_worker(worker);
        for (other, w) in self.workers.iter_mut().enumerate() {
            if other != worker {
                w.gone.push(slot);
            }
        }
    }

    /// The power goes: all workers stop, all connections are gone, and everything begins anew with what the disk has
    /// kept.
    pub(crate) fn restart(&mut self, rng: &mut Rng) {
        self.dropped_before += self.workers.iter().map(|w| dropped(&w.core)).sum::<u64>();
        for &link in &self.live {
            let l = &mut self.links[link];
            (l.server_open, l.reading) = (false, false);
            l.outbox.clear();
        }
        self.store.restart(rng);
        self.starts += 1;
        self.shared = Arc::new(Shared::new([1, 2], RetainedLimits::default()));
        self.directory.clear();
        self.mesh.iter_mut().for_each(VecDeque::clear);
        let limits = limits(&self.scenario);
        self.workers = (0..self.scenario.workers)
            .map(|w| Worker::new(w, (0, self.starts), &limits, &self.scenario, &self.shared))
            .collect();
        self.model.now = self.now;
        self.model.restarted(&self.store.db, self.now);
        let retained: Vec<_> = self.store.db.retained.values().cloned().collect();
        self.shared.retained.begin_loading();
        let restored: Vec<RestoredSession> = self
            .store
            .db
            .sessions
            .values()
            .map(|s| s.to_restore())
            .collect();
        let workers = self.scenario.workers;
        self.restoring = restored
            .into_iter()
            .enumerate()
            .map(|(i, session)| (i % workers, session))
            .collect();
        for (worker, session) in &self.restoring {
            self.store.place(session.id, *worker);
        }
        self.shared.begin_restoring();
        for (i, (id, message)) in self.store.db.wills.clone().into_iter().enumerate() {
            self.feed(
                i % workers,
                Input::RestoreWill(RestoredWill { id, message }),
            );
        }
        self.end_restoring();
        self.shared.retained.restore(retained, self.now);
        self.shared.retained.finish_loading();
        for worker in 0..self.workers.len() {
            self.feed(worker, Input::RetainedLoaded);
        }
    }

    /// A session comes from the store.
    pub(super) fn restore_next(&mut self) {
        let Some((worker, session)) = self.restoring.pop_front() else {
            return;
        };
        self.note(|| format!("  restored: {session:?}"));
        self.feed(worker, Input::Restore(Box::new(session)));
        // Nobody else may claim the client before.
        let claim = self.workers[worker].claims.len() - 1;
        self.execute_claim(worker, claim);
        self.end_restoring();
    }

    /// The workers are told when no session is to come any more.
    fn end_restoring(&mut self) {
        if self.restoring.is_empty() && self.shared.is_restoring() {
            self.shared.finish_restoring();
            self.model.all_restored();
            self.workers.iter_mut().for_each(|w| w.is_restored = true);
        }
    }

    /// A worker learns that all sessions are there.
    pub(super) fn tell_restored(&mut self, worker: usize) {
        self.workers[worker].is_restored = false;
        let of_worker = self.by_conn.iter().filter(|((w, _), _)| *w == worker);
        let links: Vec<LinkId> = of_worker.map(|(_, link)| *link).collect();
        self.model.go_on_restored(&links);
        self.feed(worker, Input::SessionsRestored);
    }

    /// Messages that a full queue has cost.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped_before + self.workers.iter().map(|w| dropped(&w.core)).sum::<u64>()
    }

    /// What all workers together have counted.
    pub(crate) fn sum(&self, of: impl Fn(&headgate_core::Counters) -> u64) -> u64 {
        self.workers.iter().map(|w| of(w.core.counters())).sum()
    }

    /// Groups of Shared Subscriptions.
    pub(crate) fn groups(&self) -> usize {
        self.shared.shared_subscriptions()
    }

    /// Entries in the directory and in the topic table.
    pub(crate) fn entries(&self) -> (usize, usize) {
        (self.directory.len(), self.shared.topics.len())
    }

    /// Topics and payloads of the store of retained messages.
    pub(crate) fn retained(&self) -> BTreeMap<String, bytes::Bytes> {
        let mut found = BTreeMap::new();
        for filter in ["#", "$s/#", "$q/#"] {
            let (messages, _) = self
                .shared
                .retained
                .matching(filter, None, usize::MAX, self.now);
            found.extend(
                messages
                    .into_iter()
                    .map(|m| (m.topic.to_string(), m.payload.clone())),
            );
        }
        found
    }

    /// What the trace of the run comes to.
    pub(crate) fn trace_hash(&self) -> u64 {
        self.trace.finish()
    }

    /// A packet that only bytes can say.
    pub(crate) fn send_bytes(&mut self, link: LinkId, bytes: &BytesMut) {
        let l = &mut self.links[link];
        if l.client_open {
            l.up.extend_from_slice(bytes);
        }
    }
}

impl Worker {
    fn new(
        worker: usize,
        (incarnation, start): (u8, u32),
        limits: &CoreLimits,
        scenario: &Scenario,
        shared: &Arc<Shared>,
    ) -> Self {
        let all = (0..scenario.workers).map(|w| WorkerSlot(w as u8)).collect();
        let mut config = CoreConfig::new(WorkerSlot(worker as u8), all, [7, worker as u64]);
        (config.limits, config.incarnation) = (limits.clone(), incarnation);
        config.epoch = start;
        config.quotas = [QuotaLimits {
            when_full: scenario.when_full,
            ..QuotaLimits::default()
        }]
        .into();
        Self {
            core: Core::new(config, Arc::clone(shared)),
            incarnation,
            claims: Vec::new(),
            answers: Vec::new(),
            last_record: OpId(0),
            safe: VecDeque::new(),
            gone: Vec::new(),
            is_restored: false,
        }
    }
}

fn dropped(core: &Core) -> u64 {
    let c = core.counters();
    let newest = c.dropped_queue_full + c.dropped_queue_full_qos0;
    newest + c.dropped_oldest + c.dropped_oldest_qos0
}

fn limits(scenario: &Scenario) -> CoreLimits {
    let defaults = CoreLimits::default();
    CoreLimits {
        session_expiry_max_s: 50,
        packet_bytes: PACKET_BYTES_MAX,
        receive_maximum: scenario.receive_maximum,
        inflight_messages: scenario.inflight_messages,
        topic_aliases: scenario.topic_aliases,
        spills: scenario.spills,
        queued_messages: if scenario.tight {
            6
        } else {
            defaults.queued_messages
        },
        session_bytes: if scenario.tight {
            10_000
        } else {
            defaults.session_bytes
        },
        send_buffer_bytes: if scenario.tight {
            500
        } else {
            defaults.send_buffer_bytes
        },
        // Small, so that it is full now and then.
        topic_cache_entries: 4,
        ..defaults
    }
}
