//! One thread per worker, which builds the worker anew when it panics.

use super::{
    affinity,
    durable::Durable,
    settings::{self, QuicParts, TlsParts},
    shield::KernelPart,
};
use crate::{
    auth::{Chain, desk::Desk, pool::Pool},
    cluster::{Directory, LocalDirectory},
    config::Config,
    keys::Keys,
    limits::Admission,
    lists::Lists,
    mesh::Mesh,
    metrics::{Label, Metrics, Transport},
    net::{
        quic::{
            guard::{Guard, Issued, Police},
            qlog::Qlogs,
        },
        tcp::{Bound, TcpSettings},
        tls::TlsError,
        udp::{RecvBatch, UdpSocket},
    },
    quotas::QuotaBook,
    store::{MemoryStore, Store, WorkerStore},
    worker::{Control, Parts, QuicOwn, Worker},
};
use headgate_codec::Text;
use headgate_common::route::Router;
use headgate_core::{Core, Input, Owner, Shared, WorkerSlot};
use std::{
    cell::Cell,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// A worker that panics again soon waits longer before each restart, up to this.
const RESTART_DELAY_MAX: Duration = Duration::from_secs(5);
/// The first of these delays.
const RESTART_DELAY_MIN: Duration = Duration::from_millis(10);

/// The sockets of one worker. They outlive the worker: a restarted one goes on with them.
#[derive(Debug, Default)]
pub(super) struct WorkerSockets {
    pub quic: Option<Arc<UdpSocket>>,
    pub tcp: Vec<Bound>,
}

/// What decides who may do how much, and may change while the server runs.
pub(super) struct Guards {
    pub quotas: Arc<QuotaBook>,
    pub lists: Arc<Lists>,
    pub kernel: Arc<KernelPart>,
}

/// What all workers are built from.
pub(super) struct Workshop {
    pub metrics: Arc<Metrics>,
    pub mesh: Arc<Mesh>,
    pub shared: Arc<Shared>,
    config: Arc<Config>,
    start: Instant,
    /// This start's number, for session ids.
    node_epoch: u32,
    store: Option<Durable>,
    directory: Arc<dyn Directory>,
    chain: Arc<Chain>,
    pool: Option<Arc<Pool>>,
    pub admission: Arc<Admission>,
    pub quotas: Arc<QuotaBook>,
    kernel: Arc<KernelPart>,
    pub lists: Arc<Lists>,
    router: Arc<Router>,
    quic: Option<QuicParts>,
    tcp: TcpSettings,
    /// Counts the workers that were built, so that handles of a former one are told apart.
    incarnations: AtomicU32,
    controls: Vec<Arc<Control>>,
}

impl Workshop {
    /// Prepares everything for `count` workers.
    pub fn new(
        config: &Arc<Config>,
        keys: &Keys,
        tls: &TlsParts,
        (start, count): (Instant, usize),
        metrics: Arc<Metrics>,
        shared: Arc<Shared>,
        guards: Guards,
    ) -> Result<Self, TlsError> {
        let quic = match config.listen.quic {
            Some(_) => QuicParts::new(config, keys, tls, count)?,
            None => None,
        };
        let slots: Vec<u8> = (0..count as u8).collect();
        Ok(Self {
            metrics,
            mesh: Mesh::new(count),
            shared,
            config: Arc::clone(config),
            start,
            node_epoch: settings::node_epoch(),
            store: None,
            directory: Arc::new(LocalDirectory::default()),
            chain: Arc::default(),
            pool: None,
            kernel: guards.kernel,
            admission: Admission::with_lists(
                settings::admission(config),
                Arc::clone(&guards.lists),
                start,
            ),
            quotas: guards.quotas,
            lists: guards.lists,
            router: Arc::new(settings::router(keys, config.node.id, &slots)),
            quic,
            tcp: settings::tcp(config, tls)?,
            incarnations: AtomicU32::new(0),
            controls: (0..count).map(|_| Arc::default()).collect(),
        })
    }

    /// Keeps sessions in a store.
    pub fn keep_in(&mut self, store: Durable) {
        self.node_epoch = store.start_number;
        self.directory = Arc::clone(&store.directory) as Arc<dyn Directory>;
        self.store = Some(store);
    }

    /// The store, if there is one.
    pub fn store(&self) -> Option<&Durable> {
        self.store.as_ref()
    }

    /// Says who clients are; without, nobody is let in who has to be asked about. Starts the
    /// threads that check passwords, if there are any to be checked.
    pub fn authenticate_by(&mut self, chain: Chain) -> io::Result<()> {
        if chain.needs_pool() {
            let threads = usize::from(self.config.auth.threads);
            let jobs_max = self.config.limits.password_checks as usize;
            self.pool = Some(Arc::new(Pool::start(threads, jobs_max, &self.mesh)?));
        }
        self.chain = Arc::new(chain);
        Ok(())
    }

    /// Reads the certificates again, for connections from now on.
    pub fn reload_certificates(&self) -> Result<(), TlsError> {
        let parts = TlsParts::load(&self.config)?;
        settings::replace_certificates(&self.config, &parts, &self.tcp, self.quic.as_ref())
    }

    /// Whose QUIC connection is written down; `None` where there is no QUIC.
    pub fn qlogs(&self) -> Option<&Qlogs> {
        self.quic.as_ref().map(|quic| &*quic.side.qlogs)
    }

    /// Whose a client's session is.
    pub fn owner(&self, client_id: &Text) -> Option<Owner> {
        self.directory.owner(client_id)
    }

    /// QUIC packets of new connections that may wait, all workers together.
    pub fn initials_waiting_max(&self) -> u64 {
        self.config.limits.initials_waiting.into()
    }

    /// Wakes all workers that sleep.
    pub fn ring_doorbells(&self) {
        for slot in 0..self.mesh.workers() {
            self.ring_doorbell(WorkerSlot(slot as u8));
        }
    }

    /// Wakes a worker that sleeps.
    pub fn ring_doorbell(&self, slot: WorkerSlot) {
        self.mesh.ring_doorbell(slot);
    }

    /// The supervisor's word to a worker.
    pub fn control(&self, slot: WorkerSlot) -> &Arc<Control> {
        &self.controls[usize::from(slot.0)]
    }

    fn build(
        &self,
        slot: WorkerSlot,
        sockets: &WorkerSockets,
        incarnation: u32,
    ) -> io::Result<Worker> {
        let count = self.mesh.workers();
        let epochs = (self.node_epoch, incarnation);
        let mut core = settings::core(&self.config, slot, count, epochs, self.quotas.limits())?;
        core.limits.spills = self.store.is_some();
        let quic = match (&self.quic, &sockets.quic) {
            (Some(parts), Some(socket)) => {
                let issued = Issued::default();
                let endpoint = parts.endpoint(slot, &issued);
                let guard = Guard {
                    cids: parts.cids,
                    node: parts.node,
                    slot: slot.0,
                    issued,
                    retry: Arc::clone(&self.kernel.retry),
                    police: Arc::clone(&self.kernel) as Arc<dyn Police>,
                    metrics: Arc::clone(self.metrics.worker(slot.0)),
                    start: self.start,
                    dead_debt: Cell::new(0),
                };
                Some(QuicOwn {
                    endpoint,
                    settings: parts.side.clone(),
                    socket: Arc::clone(socket),
                    recv: RecvBatch::new(socket),
                    guard,
                })
            }
            _ => None,
        };
        let again = |bound: &Bound| {
            Ok(Bound {
                socket: bound.socket.try_clone()?,
                ..*bound
            })
        };
        let tcp = sockets.tcp.iter().map(again).collect::<io::Result<_>>()?;
        Worker::new(Parts {
            slot,
            start: self.start,
            core: Core::new(core, Arc::clone(&self.shared)),
            store: match &self.store {
                Some(store) => {
                    Box::new(WorkerStore::new(Arc::clone(&store.lanes), slot)) as Box<dyn Store>
                }
                None => Box::new(MemoryStore::default()),
            },
            directory: Arc::clone(&self.directory),
            desk: Desk::new(
                slot,
                Arc::clone(&self.chain),
                self.pool.clone(),
                Arc::clone(self.metrics.worker(slot.0)),
            ),
            mesh: Arc::clone(&self.mesh),
            admission: Arc::clone(&self.admission),
            metrics: Arc::clone(self.metrics.worker(slot.0)),
            router: Arc::clone(&self.router),
            quic,
            tcp,
            tcp_settings: self.tcp.clone(),
            connect_timeout: Duration::from_secs(self.config.mqtt.connect_timeout_s.into()),
            packet_bytes_max: self.config.limits.packet_bytes_max,
            control: Arc::clone(self.control(slot)),
        })
    }

    /// What a worker that panicked has left behind.
    fn clean_up(&self, slot: WorkerSlot, incarnation: u32) {
        let metrics = self.metrics.worker(slot.0);
        metrics.restarts.inc();
        for &transport in Transport::ALL {
            metrics.connections[transport].store(0);
        }
        if let Some(store) = &self.store {
            store.handle.worker_gone(slot, incarnation as u8);
        }
        // From here on the store's sessions come back, and messages that they may miss wait for that.
        let _lost = self.directory.forget_worker(slot);
        self.shared.forget_worker(slot);
        for other in (0..self.mesh.workers())
            .map(|n| WorkerSlot(n as u8))
            .filter(|n| *n != slot)
        {
            self.control(other)
                .order(Input::WorkerGone { worker: slot });
            self.mesh.ring_doorbell(other);
        }
    }
}

/// A worker's thread.
pub(super) struct Supervised {
    pub slot: WorkerSlot,
    thread: JoinHandle<()>,
}

impl Supervised {
    /// Starts it; the worker runs on `cpu` if one is given.
    pub fn spawn(
        slot: WorkerSlot,
        sockets: WorkerSockets,
        workshop: Arc<Workshop>,
        cpu: Option<u32>,
    ) -> io::Result<Self> {
        let thread = std::thread::Builder::new()
            .name(format!("headgate-w{}", slot.0))
            .spawn(move || supervise(slot, &sockets, &workshop, cpu))?;
        Ok(Self { slot, thread })
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!(
                worker = self.slot.0,
                "the supervisor of a worker panicked: a bug"
            );
        }
    }
}

fn supervise(slot: WorkerSlot, sockets: &WorkerSockets, workshop: &Workshop, cpu: Option<u32>) {
    if let Some(cpu) = cpu
        && let Err(error) = affinity::pin(cpu)
    {
        tracing::warn!(worker = slot.0, cpu, %error, "can't pin the worker to its CPU; it runs unpinned");
    }
    let mut delay = RESTART_DELAY_MIN;
    loop {
        let begun = Instant::now();
        let incarnation = workshop.incarnations.fetch_add(1, Ordering::Relaxed);
        let ended = catch_unwind(AssertUnwindSafe(|| {
            workshop
                .build(slot, sockets, incarnation)
                .and_then(|mut worker| worker.run())
        }));
        match ended {
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                tracing::error!(worker = slot.0, %error, "a worker failed and is restarted")
            }
            // The panic hook has printed where.
            Err(_) => tracing::error!(
                worker = slot.0,
                "a worker panicked and is restarted: a bug, please report it"
            ),
        }
        workshop.clean_up(slot, incarnation);
        if workshop.control(slot).is_ending() {
            return;
        }
        if begun.elapsed() > RESTART_DELAY_MAX {
            delay = RESTART_DELAY_MIN;
        }
        std::thread::sleep(delay);
        delay = (delay * 2).min(RESTART_DELAY_MAX);
    }
}
