//! Starts the workers and supervises them: a worker that panics is restarted alone.

mod affinity;
mod background;
mod ctl;
mod durable;
mod housekeeping;
mod live;
mod load;
mod sessions;
mod settings;
mod shield;
mod supervisor;
mod sys;
mod vacant;
mod watch;

use crate::{
    auth::{Chain, users::UsersError},
    config::{Config, UdpGro},
    kernel::KernelError,
    keys::{KeyError, Keys},
    lists::{ListCounts, Lists},
    metrics::{Label, Metrics},
    net::{
        tcp::{self, Bound},
        tls::TlsError,
        udp::{UdpOptions, UdpSocket},
    },
    overload::{OverloadStatus, memory::MemoryWatch},
    quotas::QuotaBook,
    state_file::{self, StateError},
    store::{files::StoreError, metrics::StoreStatus},
};
use background::Background;
use durable::Durable;
use headgate_core::{Drain, Input, WorkerSlot};
pub use load::{PrefixStatus, WorkerLoad};
use serde::Serialize;
use settings::TlsParts;
pub use shield::{InterfaceStatus, KernelStatus};
use shield::{Keeper, KernelPart, Unserved};
use socket2::Type;
use std::{
    io,
    net::SocketAddr,
    os::fd::AsFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use supervisor::{Guards, Supervised, WorkerSockets, Workshop};
use sys::SysSource;

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A listener's address can't be used.
    #[error("can't listen on {address} ({transport}): {source}{}", hint(.source))]
    Listen {
        /// As in the section `[listen]`.
        transport: &'static str,
        /// The address of the configuration.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The state folder can't be used.
    #[error("can't use the state folder {}: {source}", path.display())]
    State {
        /// `node.state_dir`.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The master secret can't be used.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The certificate or its key can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The password file can't be used.
    #[error(transparent)]
    Users(#[from] UsersError),
    /// The kernel part was demanded (`kernel.mode`) and can't be had.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// What is kept in the state folder can't be used.
    #[error(transparent)]
    Kept(#[from] StateError),
    /// A worker's thread could not be started.
    #[error("can't start worker {slot}: {source}")]
    Worker {
        /// Its slot.
        slot: u8,
        /// What the system said.
        source: io::Error,
    },
    /// A thread that checks passwords could not be started.
    #[error("can't start the threads that check passwords: {0}")]
    Auth(io::Error),
    /// The store can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A thread of the store could not be started.
    #[error("can't start the threads of the store: {0}")]
    StoreThread(io::Error),
    /// Nothing to listen on.
    #[error("no listener is configured: set one of those in [listen]")]
    NoListener,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            " (is another broker running? `headgate status` asks it; or choose another address in [listen])"
        }
        io::ErrorKind::PermissionDenied => " (ports below 1024 need root or CAP_NET_BIND_SERVICE)",
        io::ErrorKind::AddrNotAvailable => " (no interface of this machine has this address)",
        _ => "",
    }
}

/// An address that the server listens on.
#[derive(Clone, Debug, Serialize)]
pub struct Listener {
    /// `quic`, `tcp`, `tls`, `ws` or `wss`.
    pub transport: &'static str,
    /// As bound.
    pub address: SocketAddr,
}

/// What a running server says of itself.
#[derive(Clone, Debug, Serialize)]
pub struct ServerStatus {
    /// The broker's version.
    pub version: &'static str,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Node id.
    pub node: u16,
    /// Number of workers.
    pub workers: usize,
    /// What it listens on.
    pub listeners: Vec<Listener>,
    /// Open connections.
    pub connections: u64,
    /// Sessions, connected or not.
    pub sessions: u64,
    /// Subscriptions in the topic table.
    pub subscriptions: u64,
    /// The store; `None` = nothing is kept beyond the process.
    pub store: Option<StoreStatus>,
    /// Prefixes that are denied and allowed, and sources that were denied automatically.
    pub lists: ListCounts,
    /// Quotas that somebody has changed in the map `quotas`, such as `default.connections = 5`.
    pub quotas_edited: Vec<String>,
    /// How short memory, CPU time and handshakes run.
    pub overload: OverloadStatus,
    /// The source prefixes with the most connections.
    pub prefixes: Vec<PrefixStatus>,
    /// What each worker does.
    pub load: Vec<WorkerLoad>,
    /// The kernel part.
    pub kernel: KernelStatus,
}

/// A running server.
pub struct Server {
    start: Instant,
    node: u16,
    listeners: Vec<Listener>,
    workers: Vec<Supervised>,
    workshop: Arc<Workshop>,
    kernel: Arc<KernelPart>,
    sys: Option<Background>,
    keeper: Option<Keeper>,
    housekeeping: Option<Background>,
    watch: Option<Background>,
}

impl Server {
    /// Binds the listeners, loads the kernel part and starts the workers.
    pub fn start(config: Arc<Config>, metrics: Arc<Metrics>) -> Result<Self, ServerError> {
        let start = Instant::now();
        let state_dir = &config.node.state_dir;
        state_file::make_folder(state_dir).map_err(|source| ServerError::State {
            path: state_dir.clone(),
            source,
        })?;
        let keys = Keys::load_or_create(state_dir)?;
        let cpus = affinity::allowed_cpus();
        let count = worker_count(&config, cpus.len());
        if !config.listen.is_any() {
            return Err(ServerError::NoListener);
        }
        let tls = TlsParts::load(&config)?;
        let chain = Chain::load(&config, keys.scram_secret())?;
        let sockets = bind(&config, count)?;
        let listeners = listeners(&sockets);
        let quotas = Arc::new(QuotaBook::load(&config.quota, state_dir)?);
        let bound = (&*sockets, &*listeners);
        let kernel = Arc::new(start_kernel(&config, &keys, bound, &cpus, &quotas)?);
        let unserved = Unserved(Some(&kernel));
        let keeper = Keeper::spawn(Arc::clone(&kernel))
            .map_err(|source| ServerError::Worker { slot: 0, source })?;
        let reader = Arc::clone(&kernel);
        metrics.register_kernel(move || reader.counters());
        let shared = Arc::new(settings::shared(&config, &keys));
        let guards = guards(&config, quotas, &kernel)?;
        let parts = (start, count);
        let mut workshop = Workshop::new(&config, &keys, &tls, parts, metrics, shared, guards)?;
        if config.store.enabled {
            let store = Durable::open(&config, start, &workshop.mesh, &workshop.shared)?;
            let numbers = Arc::clone(&store.metrics);
            workshop.metrics.register_store(numbers);
            workshop.keep_in(store);
        }
        workshop.authenticate_by(chain).map_err(ServerError::Auth)?;
        let workshop = Arc::new(workshop);
        let counted = Arc::clone(&workshop.lists);
        workshop.metrics.register_lists(move || counted.counts());
        let shared = Arc::clone(&workshop.shared);
        workshop
            .metrics
            .register_retained(move || (shared.retained.len() as u64, shared.retained.bytes()));
        let mut workers = Vec::with_capacity(count);
        for (index, sockets) in sockets.into_iter().enumerate() {
            let slot = WorkerSlot(index as u8);
            let cpu = config
                .node
                .pin_threads
                .then(|| cpus.get(index).copied())
                .flatten();
            let worker =
                Supervised::spawn(slot, sockets, Arc::clone(&workshop), cpu).map_err(|source| {
                    ServerError::Worker {
                        slot: slot.0,
                        source,
                    }
                })?;
            workers.push(worker);
        }
        let sys = start_sys(&workshop, start, config.mqtt.sys_interval_s)?;
        let housekeeping = housekeeping::spawn(Arc::clone(&workshop), Arc::clone(&kernel));
        let housekeeping =
            Some(housekeeping.map_err(|source| ServerError::Worker { slot: 0, source })?);
        let watch = start_watch(&workshop, &config, start)?;
        unserved.serve();
        Ok(Self {
            start,
            sys,
            keeper: Some(keeper),
            housekeeping,
            watch: Some(watch),
            node: config.node.id,
            listeners,
            workers,
            workshop,
            kernel,
        })
    }

    /// What it is and how it does.
    pub fn status(&self) -> ServerStatus {
        let metrics = &self.workshop.metrics;
        ServerStatus {
            version: env!("CARGO_PKG_VERSION"),
            uptime_s: self.start.elapsed().as_secs(),
            node: self.node,
            workers: self.workers.len(),
            listeners: self.listeners.clone(),
            connections: metrics.sum(|m| m.connections.sum()),
            sessions: metrics.sum(|m| m.sessions.get()),
            subscriptions: self.workshop.shared.topics.len() as u64,
            store: self.workshop.store().map(|store| store.metrics.status()),
            lists: self.workshop.lists.counts(),
            quotas_edited: self.workshop.quotas.edited_in_map(),
            overload: self.workshop.overload(),
            prefixes: load::prefixes(&self.workshop.admission, &self.kernel.top_talkers()),
            load: load::workers(metrics),
            kernel: self.kernel.status(),
        }
    }

    /// Why it can't go on: the store is damaged where that shows only while it is read. It has to be shut down.
    pub fn failure(&self) -> Option<&StoreError> {
        self.workshop.store()?.failure.get()
    }

    /// What it listens on.
    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// Sends the clients to another server, or takes them again (`None`). The rate is that of all workers
    /// together.
    pub fn drain(&self, drain: Option<&Drain>) {
        let workers = self.workers.len().max(1) as u32;
        for worker in &self.workers {
            let own = drain.map(|drain| Drain {
                clients_per_second: drain.clients_per_second.div_ceil(workers),
                ..drain.clone()
            });
            self.workshop.control(worker.slot).order(Input::Drain(own));
            self.workshop.mesh.ring_doorbell(worker.slot);
        }
        tracing::info!(?drain, "drain");
    }

    /// Reads the files of the section `[tls]` again: connections from now on see the new certificates, those that
    /// are open stay. If a file can't be used, nothing changes.
    ///
    /// # Errors
    /// Which file is wrong, and how.
    pub fn reload_certificates(&self) -> Result<(), TlsError> {
        self.workshop.reload_certificates()?;
        tracing::info!("the certificates were read again");
        Ok(())
    }

    /// Makes one worker panic. For the test that shows that only this worker restarts.
    #[doc(hidden)]
    pub fn inject_panic(&self, worker: usize) {
        let slot = WorkerSlot(worker as u8);
        self.workshop.control(slot).panic();
        self.workshop.mesh.ring_doorbell(slot);
    }

    /// Says DISCONNECT 0x8B (Server shutting down) to every client, waits for them to be gone, at
    /// most `grace`, then ends the workers and takes the kernel part down. Returns how many
    /// connections had to be cut.
    pub fn shutdown(mut self, grace: Duration) -> u64 {
        let deadline = Instant::now() + grace;
        drop(self.sys.take());
        drop(self.keeper.take());
        drop(self.housekeeping.take());
        drop(self.watch.take());
        for worker in &self.workers {
            self.workshop.control(worker.slot).drain();
            self.workshop.mesh.ring_doorbell(worker.slot);
        }
        while Instant::now() < deadline && self.workers.iter().any(|w| !w.is_finished()) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let cut = self.workshop.metrics.sum(|m| m.connections.sum());
        for worker in &self.workers {
            self.workshop.control(worker.slot).stop();
            self.workshop.mesh.ring_doorbell(worker.slot);
        }
        for worker in self.workers.drain(..) {
            worker.join();
        }
        if let Some(store) = self.workshop.store() {
            store.stop();
        }
        if let Err(error) = self.kernel.stop() {
            tracing::warn!(%error, "the kernel part could not be taken down entirely");
        }
        cut
    }
}

fn bind(config: &Config, count: usize) -> Result<Vec<WorkerSockets>, ServerError> {
    let mut sockets: Vec<WorkerSockets> = Vec::with_capacity(count);
    let options = UdpOptions {
        reuse_port: true,
        gro: gro(config, count),
        ..UdpOptions::default()
    };
    let over_tcp = config.listen.over_tcp();
    let wanted = over_tcp.map(|(transport, address)| (transport.text(), Type::STREAM, address));
    let quic = ("quic", Type::DGRAM, config.listen.quic);
    for (transport, kind, address) in wanted.into_iter().chain([quic]) {
        let Some(address) = address else { continue };
        vacant::check(kind, address).map_err(|source| ServerError::Listen {
            transport,
            address,
            source,
        })?;
    }
    for _ in 0..count {
        let mut own = WorkerSockets::default();
        // Port 0 lets the system choose; the other workers then share the first one's port.
        let first = sockets.first();
        if let Some(address) = config.listen.quic {
            let address = first
                .and_then(|f| f.quic.as_ref()?.local_addr().ok())
                .unwrap_or(address);
            let socket =
                UdpSocket::bind(address, &options).map_err(|source| ServerError::Listen {
                    transport: "quic",
                    address,
                    source,
                })?;
            own.quic = Some(Arc::new(socket));
        }
        for (transport, address) in over_tcp {
            let Some(address) = address else { continue };
            let shared = first.and_then(|first| first.tcp.get(own.tcp.len()));
            let address = shared
                .and_then(|bound| bound.socket.local_addr().ok())
                .unwrap_or(address);
            let socket = tcp::listen(address).map_err(|source| ServerError::Listen {
                transport: transport.text(),
                address,
                source,
            })?;
            own.tcp.push(Bound {
                transport,
                proxy: config.listen.is_proxied(transport),
                socket,
            });
        }
        sockets.push(own);
    }
    Ok(sockets)
}

fn listeners(sockets: &[WorkerSockets]) -> Vec<Listener> {
    let Some(first) = sockets.first() else {
        return Vec::new();
    };
    let quic = first.quic.as_ref().and_then(|s| s.local_addr().ok());
    let quic = quic.map(|address| Listener {
        transport: "quic",
        address,
    });
    let over_tcp = first.tcp.iter().filter_map(|bound| {
        Some(Listener {
            transport: bound.transport.text(),
            address: bound.socket.local_addr().ok()?,
        })
    });
    quic.into_iter().chain(over_tcp).collect()
}

fn start_kernel(
    config: &Config,
    keys: &Keys,
    (sockets, listeners): (&[WorkerSockets], &[Listener]),
    cpus: &[u32],
    quotas: &QuotaBook,
) -> Result<KernelPart, KernelError> {
    let (quic, over_tcp): (Vec<_>, Vec<_>) = listeners.iter().partition(|l| l.transport == "quic");
    let port = |listener: &&Listener| listener.address.port();
    let workers: Vec<_> = sockets
        .iter()
        .filter_map(|own| own.quic.as_deref())
        .enumerate()
        .map(|(slot, socket)| (socket.as_fd(), cpus[slot % cpus.len()]))
        .collect();
    let ports = (
        quic.first().map(port),
        over_tcp.iter().map(port).collect::<Vec<_>>(),
    );
    let told = (ports, quotas);
    KernelPart::start(config, keys, settings::KEY_EPOCH, told, &workers)
}

/// What may change while the server runs; the kernel's lists become those of the configuration and the state folder.
fn guards(
    config: &Config,
    quotas: Arc<QuotaBook>,
    kernel: &Arc<KernelPart>,
) -> Result<Guards, ServerError> {
    // A full disk is no reason not to start.
    if let Err(error) = quotas.save() {
        tracing::warn!(%error, "what is edited in the map `quotas` can't be told at the next start");
    }
    let state_dir = &config.node.state_dir;
    let lists = Arc::new(Lists::load(
        &config.lists,
        state_dir,
        housekeeping::unix_s(),
    )?);
    kernel.forget_former_lists(&lists);
    if let Err(error) = kernel.follow_lists(&lists) {
        tracing::warn!(%error, "the kernel doesn't take all of the lists");
    }
    Ok(Guards {
        quotas,
        lists,
        kernel: Arc::clone(kernel),
    })
}

/// Starts to publish below `$SYS`, unless that is off.
fn start_sys(
    workshop: &Workshop,
    start: Instant,
    interval_s: u32,
) -> Result<Option<Background>, ServerError> {
    if interval_s == 0 {
        return Ok(None);
    }
    let thread = sys::spawn(sys_source(workshop, start), interval_s);
    thread
        .map(Some)
        .map_err(|source| ServerError::Worker { slot: 0, source })
}

fn sys_source(workshop: &Workshop, start: Instant) -> SysSource {
    SysSource {
        metrics: Arc::clone(&workshop.metrics),
        shared: Arc::clone(&workshop.shared),
        mesh: Arc::clone(&workshop.mesh),
        control: Arc::clone(workshop.control(WorkerSlot(0))),
        start,
    }
}

/// Starts to look at how short memory, CPU time and handshakes run.
fn start_watch(
    workshop: &Arc<Workshop>,
    config: &Config,
    start: Instant,
) -> Result<Background, ServerError> {
    let overload = Arc::clone(workshop.admission.overload());
    workshop.metrics.register_overload(overload);
    let memory = MemoryWatch::new(config.limits.memory_limit, start);
    let has_sys = config.mqtt.sys_interval_s > 0;
    let sys = has_sys.then(|| sys_source(workshop, start));
    let watch = watch::spawn(Arc::clone(workshop), memory, sys);
    watch.map_err(|source| ServerError::Worker { slot: 0, source })
}

fn worker_count(config: &Config, cpus: usize) -> usize {
    match config.node.workers {
        0 => cpus.min(usize::from(headgate_common::route::NO_SLOT)),
        count => usize::from(count),
    }
}

fn gro(config: &Config, workers: usize) -> bool {
    match config.listen.udp_gro {
        UdpGro::Auto => workers == 1,
        UdpGro::On => true,
        UdpGro::Off => false,
    }
}
