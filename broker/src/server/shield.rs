//! The kernel part as the server has it: there, or not there for a reason that is said.

use super::load::PREFIXES_SHOWN;
use crate::{
    config::{Config, KernelMode, RetryMode as ConfiguredRetry, Steering as ConfiguredSteering},
    kernel::{
        Adoption, KernelError, KernelSettings, Mode, PenaltyId, PenaltyOrder, RetrySettings,
        Shield, Steering, TopTalker, pinned_quotas,
    },
    keys::Keys,
    metrics::KernelCounters,
    net::{quic::guard::Police, token::RetryGate},
    quotas::QuotaBook,
};
use headgate_common::{
    cid::CID_LEN,
    records::{Limit, RetryMode},
};
use serde::Serialize;
use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// One protected interface.
#[derive(Clone, Debug, Serialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// `native`, `generic` or `none`.
    pub xdp: &'static str,
    /// Why it is not better.
    pub why_not_better: Option<String>,
    /// The program of an earlier process was replaced in place.
    pub adopted: bool,
}

/// The kernel part.
#[derive(Clone, Debug, Default, Serialize)]
pub struct KernelStatus {
    /// Whether it runs.
    pub active: bool,
    /// Why it doesn't.
    pub why_not: Option<String>,
    /// Each protected interface.
    pub interfaces: Vec<InterfaceStatus>,
    /// XDP sends packets to their worker's CPU.
    pub cpumap: bool,
    /// Why not.
    pub why_no_cpumap: Option<String>,
    /// Sockets are picked by connection ID.
    pub reuseport: bool,
    /// Where the pins are.
    pub pin_dir: Option<String>,
    /// Their names.
    pub pins: Vec<String>,
    /// What was found there: `fresh`, `adopted`, or why it was replaced.
    pub adoption: Option<String>,
    /// Memory of all maps when they are full, in bytes.
    pub map_memory_bytes: Option<u64>,
}

/// The kernel part, or why there is none.
#[derive(Debug)]
pub(super) struct KernelPart {
    shield: Mutex<Option<Shield>>,
    why_not: Option<String>,
    /// Whether user space answers with Retry: as the kernel's map says, or the configuration where there is none.
    pub retry: Arc<RetryGate>,
}

impl KernelPart {
    /// Starts it for the workers' sockets, in the order of their slots, and their CPUs. With
    /// `kernel.mode = "auto"` the server goes on without it.
    pub fn start(
        config: &Config,
        keys: &Keys,
        epoch: u32,
        (ports, quotas): ((Option<u16>, Vec<u16>), &QuotaBook),
        workers: &[(BorrowedFd<'_>, u32)],
    ) -> Result<Self, KernelError> {
        let mut settings = settings(config, ports);
        settings.classes = quotas.records();
        for edit in quotas.found(&pinned_quotas(&settings.pin_dir)) {
            tracing::warn!(%edit, "a quota was changed in the map that an earlier broker left; it is not kept");
        }
        if settings.mode == Mode::Off && !settings.steering.sockets() {
            match Shield::clear(&settings.pin_dir) {
                Ok(false) => {}
                Ok(true) => tracing::info!("took down the shield that an earlier process had left"),
                Err(error) => tracing::warn!(%error, "the shield of an earlier process may be up"),
            }
            return Ok(Self::absent(
                "switched off: kernel.mode and kernel.steering".into(),
                settings.retry,
            ));
        }
        match start(&settings, keys, epoch, workers) {
            Ok(shield) => Ok(Self {
                shield: Mutex::new(Some(shield)),
                why_not: None,
                retry: gate(settings.retry),
            }),
            Err(error) if matches!(config.kernel.mode, KernelMode::Auto | KernelMode::Off) => {
                Ok(Self::absent(error.to_string(), settings.retry))
            }
            Err(error) => Err(error),
        }
    }

    fn absent(why_not: String, retry: RetrySettings) -> Self {
        Self {
            shield: Mutex::new(None),
            why_not: Some(why_not),
            retry: gate(retry),
        }
    }

    /// What is due about every second: what the kernel must be told, and what somebody has edited there.
    fn tick(&self) {
        let guard = self.shield();
        let Some(shield) = &*guard else { return };
        if let Err(error) = shield.tick() {
            tracing::warn!(%error, "the kernel part can't be kept up to date");
        }
        match shield.retry() {
            Ok(retry) => set(&self.retry, retry),
            Err(error) => tracing::warn!(%error, "the kernel's configuration can't be read"),
        }
    }

    pub(super) fn shield(&self) -> MutexGuard<'_, Option<Shield>> {
        self.shield.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What runs, and why it isn't better.
    pub fn status(&self) -> KernelStatus {
        let guard = self.shield();
        let Some(shield) = &*guard else {
            return KernelStatus {
                why_not: self.why_not.clone(),
                ..KernelStatus::default()
            };
        };
        let status = shield.status();
        KernelStatus {
            active: true,
            why_not: None,
            interfaces: status
                .interfaces
                .into_iter()
                .map(|interface| InterfaceStatus {
                    name: interface.name,
                    xdp: interface.mode.name(),
                    why_not_better: interface.why_not_better,
                    adopted: interface.adopted,
                })
                .collect(),
            cpumap: status.cpumap,
            why_no_cpumap: status.why_no_cpumap,
            reuseport: status.reuseport,
            pin_dir: Some(status.pin_dir.display().to_string()),
            pins: status.pins,
            adoption: Some(match status.adoption {
                Adoption::Fresh => "fresh".into(),
                Adoption::Adopted => "adopted".into(),
                Adoption::Replaced { reason } => format!("replaced: {reason}"),
            }),
            map_memory_bytes: Some(status.map_memory_bytes),
        }
    }

    /// What the kernel has counted; `None` without it.
    pub fn counters(&self) -> Option<KernelCounters> {
        let guard = self.shield();
        let counters = match guard.as_ref()?.counters() {
            Ok(counters) => counters,
            Err(error) => {
                tracing::warn!(%error, "the kernel's counters can't be read");
                return None;
            }
        };
        Some(KernelCounters {
            drops: counters
                .drops
                .iter()
                .map(|(r, c)| (r.name(), c.packets))
                .collect(),
            passes: counters
                .passes
                .iter()
                .map(|(r, c)| (r.name(), c.packets))
                .collect(),
            answers: counters
                .answers
                .iter()
                .map(|(r, c)| (r.name(), c.packets))
                .collect(),
            sockets: counters
                .sockets
                .iter()
                .map(|(r, c)| (r.name(), c.packets))
                .collect(),
            redirected: counters.passes.iter().map(|(_, c)| c.redirected).sum(),
        })
    }

    /// The source prefixes that send the most; none without the kernel part.
    pub fn top_talkers(&self) -> Vec<TopTalker> {
        let guard = self.shield();
        let Some(shield) = &*guard else {
            return Vec::new();
        };
        shield.top_talkers(PREFIXES_SHOWN).unwrap_or_else(|error| {
            tracing::warn!(%error, "the kernel's sketch of sources can't be read");
            Vec::new()
        })
    }

    /// Detaches and unpins.
    pub fn stop(&self) -> Result<(), KernelError> {
        match self.shield().take() {
            Some(shield) => shield.stop(),
            None => Ok(()),
        }
    }
}

/// A kernel part behind which no worker has started yet. If none does, it is taken down again: nobody asked for a shield
/// in front of nothing. (A crash leaves it up, for the broker that comes next.)
pub(super) struct Unserved<'a>(pub(super) Option<&'a KernelPart>);

impl Unserved<'_> {
    /// The workers are there.
    pub(super) fn serve(mut self) {
        self.0 = None;
    }
}

impl Drop for Unserved<'_> {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.map(KernelPart::stop) {
            tracing::warn!(%error, "the kernel part could not be taken down entirely");
        }
    }
}

impl Police for KernelPart {
    fn penalize(&self, cids: &[[u8; CID_LEN]], order: PenaltyOrder) -> Option<PenaltyId> {
        let guard = self.shield();
        let penalized = guard.as_ref()?.penalize(cids, order);
        penalized
            .inspect_err(|error| tracing::debug!(%error, "a connection can't be policed"))
            .ok()
    }

    fn penalize_also(&self, id: PenaltyId, cid: [u8; CID_LEN]) {
        if let Some(Err(error)) = self
            .shield()
            .as_ref()
            .map(|shield| shield.penalize_also(id, cid))
        {
            tracing::debug!(%error, "a connection ID can't be policed");
        }
    }

    fn pardon(&self, id: PenaltyId) {
        if let Some(Err(error)) = self.shield().as_ref().map(|shield| shield.pardon(id)) {
            tracing::debug!(%error, "a connection can't be pardoned");
        }
    }
}

/// The thread that keeps the kernel part up to date, until it is dropped.
pub(super) struct Keeper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// How often.
    const INTERVAL: Duration = Duration::from_millis(500);

    /// Starts it.
    pub fn spawn(kernel: Arc<KernelPart>) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("headgate-kernel".to_owned())
            .spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    kernel.tick();
                    std::thread::park_timeout(Self::INTERVAL);
                }
            })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It only fails if the thread panicked, and then there is nothing left to wait for.
            let _ = thread.join();
        }
    }
}

fn gate(retry: RetrySettings) -> Arc<RetryGate> {
    let gate = RetryGate::new(Instant::now());
    set(&gate, retry);
    Arc::new(gate)
}

fn set(gate: &RetryGate, retry: RetrySettings) {
    gate.set(retry.mode, retry.above_per_second, retry.below_per_second);
}

fn start(
    settings: &KernelSettings,
    keys: &Keys,
    epoch: u32,
    workers: &[(BorrowedFd<'_>, u32)],
) -> Result<Shield, KernelError> {
    let shield = Shield::start(settings, keys, epoch)?;
    let steered = || {
        if let Some((socket, _)) = workers.first() {
            shield.attach_reuseport(socket.as_fd())?;
        }
        for (slot, (socket, cpu)) in workers.iter().enumerate() {
            shield.add_worker(slot as u8, socket.as_fd(), *cpu)?;
        }
        Ok(())
    };
    match steered() {
        Ok(()) => Ok(shield),
        Err(error) => {
            // Half a shield would drop what it can't steer.
            if let Err(left) = shield.stop() {
                tracing::warn!(error = %left, "the kernel part could not be taken down entirely");
            }
            Err(error)
        }
    }
}

fn settings(config: &Config, (quic, over_tcp): (Option<u16>, Vec<u16>)) -> KernelSettings {
    let kernel = &config.kernel;
    let mut settings = KernelSettings {
        mode: match kernel.mode {
            KernelMode::Auto => Mode::Auto,
            KernelMode::Native => Mode::Native,
            KernelMode::Generic => Mode::Generic,
            KernelMode::Off => Mode::Off,
        },
        interfaces: kernel.interfaces.clone(),
        pin_dir: kernel.pin_dir.clone(),
        steering: match kernel.steering {
            ConfiguredSteering::Auto => Steering::Auto,
            ConfiguredSteering::Reuseport => Steering::Reuseport,
            ConfiguredSteering::Cpumap => Steering::Cpumap,
            ConfiguredSteering::None => Steering::None,
        },
        quic_port: quic.unwrap_or(0),
        tcp_ports: over_tcp,
        node: config.node.id,
        cpumap_queue_packets: kernel.cpumap_queue_packets,
        debug_log: kernel.debug_log,
        ..KernelSettings::default()
    };
    settings.retry = RetrySettings {
        mode: match kernel.retry {
            ConfiguredRetry::Auto => RetryMode::Auto,
            ConfiguredRetry::Always => RetryMode::Always,
            ConfiguredRetry::Never => RetryMode::Never,
        },
        above_per_second: kernel.retry_above_initials_per_second,
        below_per_second: kernel.retry_below_initials_per_second,
        token_life_s: kernel.retry_token_life_s,
    };
    // Twice a second's worth may come at once: fleets reconnect in waves.
    let limit = |per_second: u32| Limit::new(per_second, per_second.saturating_mul(2));
    let budgets = &mut settings.budgets;
    budgets.fragments = limit(kernel.fragments_per_second);
    budgets.version_negotiations = limit(kernel.version_negotiations_per_second);
    budgets.initials = limit(kernel.initials_per_second);
    budgets.initials_per_prefix = limit(kernel.initials_per_second_per_prefix);
    budgets.packets_per_prefix = limit(kernel.packets_per_second_per_prefix);
    budgets.validated_initials = limit(kernel.validated_initials_per_second);
    budgets.validated_initials_per_address = limit(kernel.validated_initials_per_second_per_host);
    budgets.retries = limit(kernel.retries_per_second);
    budgets.syns_per_prefix = limit(kernel.syns_per_second_per_prefix);
    settings
}
