//! Loads the kernel programs, attaches them and keeps them informed.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd as _};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aya::maps::{CpuMap, ReusePortSockArray};
use aya::programs::{ProgramError, ProgramFd, SkReuseport, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use headgate_common::records::{
    Config, LAYOUT_VERSION, TCP_PORTS, WORKERS_MAX, Worker, WorkerState, socket_index,
};
use headgate_common::{NO_SLOT, Router, Steering};

use socket2::SockRef;

use super::attach::{attach_all, explain, why_no_cpumap};
use super::debug_log::DebugLog;
use super::error::{KernelError, chain, is_permission};
use super::live;
use super::maps;
use super::memory;
use super::penalties::{self, Penalties};
use super::pins::{self, PinFolder};
use super::settings::KernelSettings;
use super::status::{Adoption, Counters, InterfaceStatus, Status};
use crate::keys::Keys;

/// The kernel half while it runs. Dropping it leaves the shield up; [`Shield::stop`] takes it down.
#[derive(Debug)]
pub struct Shield {
    settings: KernelSettings,
    pub(super) keys: Keys,
    pins: PinFolder,
    adoption: Adoption,
    interfaces: Vec<InterfaceStatus>,
    /// Distinguishes this start of the broker from earlier ones in the map `workers`.
    generation: u64,
    /// Of all maps when they are full, in bytes.
    map_memory_bytes: u64,
    state: Mutex<State>,
    _debug_log: Option<DebugLog>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) ebpf: Ebpf,
    /// Slot → CPU and state.
    workers: BTreeMap<u8, (u32, WorkerState)>,
    pub(super) router: Router,
    pub(super) penalties: Penalties,
    /// Calls of [`Shield::tick`].
    pub(super) ticks: u32,
    cpumap: bool,
    why_no_cpumap: Option<String>,
}

impl Shield {
    /// Loads the programs, adopts or replaces what an earlier process left, and attaches them. `epoch` is that of the
    /// connection-ID keys. No packet reaches a worker by its connection ID before [`Shield::add_worker`].
    ///
    /// # Errors
    /// When nothing of the kernel half can work, or an interface cannot get the mode that the settings demand.
    pub fn start(settings: &KernelSettings, keys: &Keys, epoch: u32) -> Result<Self, KernelError> {
        let object = super::object().ok_or(KernelError::NoObject)?;
        let pins = PinFolder::open(&settings.pin_dir)?;
        let adoption = pins.prepare()?;
        let started = load(object, settings, &pins).and_then(|mut ebpf| {
            pins::check_object(&ebpf)?;
            let router = configure(&mut ebpf, settings, keys, epoch)?;
            load_steering(&mut ebpf).map_err(|error| explain(error, settings))?;
            let debug_log = settings
                .debug_log
                .then(|| DebugLog::start(&mut ebpf))
                .transpose()?;
            let interfaces = attach_all(&mut ebpf, settings, &pins)?;
            let map_memory_bytes = memory::of(&ebpf)?;
            Ok((ebpf, router, debug_log, interfaces, map_memory_bytes))
        });
        let (ebpf, router, debug_log, interfaces, map_memory_bytes) = match started {
            Ok(started) => started,
            Err(error) => {
                // An earlier process's shield would drop what it can't steer to workers that it doesn't know.
                pins.remove_all()?;
                pins.remove_folder();
                return Err(error);
            }
        };
        let why_no_cpumap = why_no_cpumap(settings, &interfaces, 0);
        let state = State {
            ebpf,
            workers: BTreeMap::new(),
            router,
            penalties: Penalties::default(),
            ticks: 0,
            cpumap: false,
            why_no_cpumap,
        };
        Ok(Self {
            settings: settings.clone(),
            keys: keys.clone(),
            pins,
            adoption,
            interfaces,
            generation: generation(),
            map_memory_bytes,
            state: Mutex::new(state),
            _debug_log: debug_log,
        })
    }

    /// Takes down what an earlier process left behind, for a broker that runs without a shield. Says whether there was
    /// anything.
    ///
    /// # Errors
    /// When another broker uses the folder, or a pin cannot be removed.
    pub fn clear(pin_dir: &Path) -> Result<bool, KernelError> {
        if !pin_dir.exists() {
            return Ok(false);
        }
        let pins = PinFolder::open(pin_dir)?;
        let found = !pins.names().is_empty();
        pins.remove_all()?;
        pins.remove_folder();
        Ok(found)
    }

    /// Lets the kernel program pick the sockets of the SO_REUSEPORT group that `socket` is in. Does nothing if the
    /// settings leave the choice to the kernel.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn attach_reuseport(&self, socket: impl AsFd) -> Result<(), KernelError> {
        if !self.settings.steering.sockets() {
            return Ok(());
        }
        let mut state = self.state();
        let refused = |error: &dyn std::error::Error| KernelError::Refused {
            what: "a socket",
            reason: chain(error),
        };
        let program: &mut SkReuseport = steer_program(&mut state.ebpf)?;
        program.attach(socket).map_err(|error| refused(&error))
    }

    /// Gives a worker slot its socket and its CPU, and new connections. A worker with a socket for IPv4 and one for
    /// IPv6 is added once with each.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn add_worker(&self, slot: u8, socket: impl AsFd, cpu: u32) -> Result<(), KernelError> {
        if slot == NO_SLOT {
            return Err(KernelError::ReservedSlot);
        }
        let socket = socket.as_fd();
        let refused = |reason: String| KernelError::Socket { slot, reason };
        let ipv6 = SockRef::from(&socket)
            .local_addr()
            .map_err(|error| refused(error.to_string()))?
            .is_ipv6();
        let mut state = self.state();
        let map =
            state
                .ebpf
                .map_mut("sockets_by_slot")
                .ok_or_else(|| KernelError::StaleObject {
                    what: "no map sockets_by_slot".to_owned(),
                })?;
        let mut sockets =
            ReusePortSockArray::try_from(map).map_err(|error| refused(chain(&error)))?;
        sockets
            .set(socket_index(slot, ipv6), &socket.as_raw_fd(), 0)
            .map_err(|error| refused(chain(&error)))?;
        state.workers.insert(slot, (cpu, WorkerState::Active));
        self.publish(&mut state, Some(slot))
    }

    /// Takes a worker slot's socket away: its connection IDs then go to another worker, which answers with a
    /// stateless reset, and it gets no new connections.
    ///
    /// # Errors
    /// When the kernel refuses the change.
    pub fn remove_worker(&self, slot: u8) -> Result<(), KernelError> {
        let mut state = self.state();
        if state.workers.remove(&slot).is_none() {
            return Ok(());
        }
        self.publish(&mut state, Some(slot))?;
        if let Some(map) = state.ebpf.map_mut("sockets_by_slot")
            && let Ok(mut sockets) = ReusePortSockArray::try_from(map)
        {
            for ipv6 in [false, true] {
                // A socket that was closed has left already.
                let _ = sockets.clear_index(&socket_index(slot, ipv6));
            }
        }
        Ok(())
    }

    /// How the kernel routes now: for user space, which must route alike.
    #[must_use]
    pub fn router(&self) -> Router {
        self.state().router
    }

    /// What runs where, and why it isn't better.
    #[must_use]
    pub fn status(&self) -> Status {
        let state = self.state();
        Status {
            interfaces: self.interfaces.clone(),
            cpumap: state.cpumap,
            why_no_cpumap: state.why_no_cpumap.clone(),
            reuseport: self.settings.steering.sockets(),
            pin_dir: self.settings.pin_dir.clone(),
            pins: self.pins.names(),
            adoption: self.adoption.clone(),
            map_memory_bytes: self.map_memory_bytes,
        }
    }

    /// Reads the counters.
    ///
    /// # Errors
    /// When the kernel refuses to give them.
    pub fn counters(&self) -> Result<Counters, KernelError> {
        maps::counters(&self.state().ebpf)
    }

    /// Runs the XDP program on a packet that is on no network, as often as `repeat` says: for tests and measurements.
    /// The counters count it, and so do the budgets.
    ///
    /// # Errors
    /// When the kernel refuses to run it: a packet has at least 14 bytes and fits into a page.
    pub fn test_run(&self, packet: &[u8], repeat: u32) -> Result<TestRun, KernelError> {
        const ROOM_LEN: usize = 4096;
        let mut state = self.state();
        let refused = |error: ProgramError| KernelError::Refused {
            what: "a test run",
            reason: chain(&error),
        };
        let program = shield_program(&mut state.ebpf).map_err(refused)?;
        let mut out = vec![0; ROOM_LEN];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            repeat,
            ..TestRunOptions::default()
        };
        let result = program.test_run(options).map_err(refused)?;
        out.truncate(result.data_size_out as usize);
        Ok(TestRun {
            action: result.return_value,
            packet: out,
            duration: result.duration,
        })
    }

    /// The XDP program, for those who want to call it from a program of their own.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn program(&self) -> Result<ProgramFd, KernelError> {
        let mut state = self.state();
        let refused = |reason| KernelError::Refused {
            what: "a copy of the program's descriptor",
            reason,
        };
        let program = shield_program(&mut state.ebpf).map_err(|error| refused(chain(&error)))?;
        let fd = program.fd().map_err(|error| refused(chain(&error)))?;
        fd.try_clone().map_err(|error| refused(error.to_string()))
    }

    /// Takes the shield down: detaches it from every interface and removes its pins.
    ///
    /// # Errors
    /// When a pin cannot be removed; the program then stays attached.
    pub fn stop(self) -> Result<(), KernelError> {
        self.pins.remove_all()?;
        self.pins.remove_folder();
        Ok(())
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Every change is complete or an error: a panic elsewhere left nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the programs where the workers are now.
    fn publish(&self, state: &mut State, changed: Option<u8>) -> Result<(), KernelError> {
        if let Some(slot) = changed {
            let (cpu, worker_state) = state
                .workers
                .get(&slot)
                .copied()
                .unwrap_or((0, WorkerState::Free));
            self.publish_cpumap(state, cpu)?;
            let worker = Worker {
                generation: self.generation,
                cpu,
                state: worker_state,
            };
            maps::write(&mut state.ebpf, "workers", slot.into(), worker)?;
        }
        let active: Vec<u8> = state.workers.keys().copied().collect();
        state.router.steering = Steering::with_slots(self.settings.node, &active, &[]);
        maps::write(&mut state.ebpf, "steering", 0, state.router.steering)
    }

    fn publish_cpumap(&self, state: &mut State, cpu: u32) -> Result<(), KernelError> {
        let why_not = why_no_cpumap(&self.settings, &self.interfaces, state.workers.len());
        let why_not = match why_not {
            None => self
                .add_cpu(state, cpu)
                .err()
                .map(|error| error.to_string()),
            why_not => why_not,
        };
        if state.cpumap != why_not.is_none() || state.why_no_cpumap != why_not {
            state.cpumap = why_not.is_none();
            state.why_no_cpumap = why_not;
            // Only this field: others may have been edited meanwhile.
            let now = live::config(&state.ebpf)?;
            let cpumap = state.cpumap.into();
            maps::write(&mut state.ebpf, "config", 0, Config { cpumap, ..now })?;
        }
        Ok(())
    }

    /// Makes the kernel threads that take packets for the workers' CPUs.
    fn add_cpu(&self, state: &mut State, cpu: u32) -> Result<(), KernelError> {
        let refused = |reason| KernelError::Refused {
            what: "a CPU for CPUMAP",
            reason,
        };
        let cpus: Vec<u32> = state
            .workers
            .values()
            .map(|(cpu, _)| *cpu)
            .chain([cpu])
            .collect();
        let map = state
            .ebpf
            .map_mut("cpus")
            .ok_or_else(|| KernelError::StaleObject {
                what: "no map cpus".to_owned(),
            })?;
        let mut map = CpuMap::try_from(map).map_err(|error| refused(chain(&error)))?;
        for cpu in cpus {
            if map.get(cpu, 0).is_ok_and(|value| value.queue_size != 0) {
                continue;
            }
            map.set(cpu, self.settings.cpumap_queue_packets, None, 0)
                .map_err(|error| refused(chain(&error)))?;
        }
        Ok(())
    }
}

/// What became of a packet in [`Shield::test_run`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestRun {
    /// What the program returned: an XDP action of linux/bpf.h.
    pub action: u32,
    /// The packet afterwards.
    pub packet: Vec<u8>,
    /// The average time of a run.
    pub duration: Duration,
}

/// Nanoseconds of a jiffy: what the kernel's coarse clock advances by.
fn tick_ns() -> u64 {
    let mut tick = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the record is ours to write to.
    unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut tick) };
    tick.tv_nsec as u64
}

/// Nanoseconds since the machine started: never the same for two processes that could meet.
fn generation() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the record is ours to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn load(object: &[u8], settings: &KernelSettings, pins: &PinFolder) -> Result<Ebpf, KernelError> {
    const LOG_DEBUG: u8 = aya_log::Level::Debug as u8;
    let level: u8 = if settings.debug_log { LOG_DEBUG } else { 0 };
    let mut loader = EbpfLoader::new();
    for name in PinFolder::map_names() {
        loader.map_pin_path(name, pins.map(name));
    }
    loader.map_max_entries("cpus", cpus()?);
    loader.override_global(aya_log::LEVEL, &level, true);
    loader.load(object).map_err(|error| {
        if is_permission(&error) {
            return KernelError::NotPermitted {
                pin_dir: settings.pin_dir.clone(),
            };
        }
        KernelError::Refused {
            what: "the kernel programs' maps",
            reason: chain(&error),
        }
    })
}

/// How many CPUs the machine can have.
fn cpus() -> Result<u32, KernelError> {
    let cpus = aya::util::nr_cpus().map_err(|(file, source)| KernelError::Pin {
        action: "read",
        path: file.into(),
        source,
    })?;
    Ok(cpus as u32)
}

fn config(settings: &KernelSettings) -> Config {
    let mut tcp_ports = [0; TCP_PORTS];
    for (slot, port) in tcp_ports.iter_mut().zip(&settings.tcp_ports) {
        *slot = *port;
    }
    Config {
        layout_version: LAYOUT_VERSION,
        quic_port: settings.quic_port,
        cpumap: 0,
        tcp_ports,
        tick_ns: tick_ns(),
        retry: settings.retry.mode,
        retry_above_per_second: settings.retry.above_per_second,
        retry_below_per_second: settings.retry.below_per_second,
        retry_token_life_s: settings.retry.token_life_s,
    }
}

/// Writes everything that the programs read, before they run.
fn configure(
    ebpf: &mut Ebpf,
    settings: &KernelSettings,
    keys: &Keys,
    epoch: u32,
) -> Result<Router, KernelError> {
    let router = Router {
        secrets: keys.secrets(epoch),
        steering: Steering::new(settings.node),
    };
    maps::write(ebpf, "secrets", 0, router.secrets)?;
    maps::write(ebpf, "budgets", 0, settings.budgets)?;
    maps::write(ebpf, "steering", 0, router.steering)?;
    for slot in 0..WORKERS_MAX {
        maps::write(
            ebpf,
            "workers",
            slot,
            Worker {
                generation: 0,
                cpu: 0,
                state: WorkerState::Free,
            },
        )?;
    }
    maps::write(ebpf, "clock", 0, live::clock())?;
    maps::write(ebpf, "token_keys", 0, keys.token_keys(live::unix_s()))?;
    for (number, class) in settings.quotas() {
        maps::write(ebpf, "quotas", number, class)?;
    }
    // An earlier process's connections are gone, and its buckets with it.
    penalties::clear(ebpf)?;
    // Last, because its version says that the others are there.
    maps::write(ebpf, "config", 0, config(settings))?;
    Ok(router)
}

fn load_steering(ebpf: &mut Ebpf) -> Result<(), ProgramError> {
    let program = ebpf.program_mut("steer").ok_or_else(no_program)?;
    let program: &mut SkReuseport = program.try_into()?;
    program.load()
}

fn no_program() -> ProgramError {
    ProgramError::IOError(std::io::Error::other("no such program in the object"))
}

/// The XDP program. It is loaded when it is first asked for: the kernel verifies it for most of a second, and a broker that
/// protects no interface need not wait for that.
pub(super) fn shield_program(ebpf: &mut Ebpf) -> Result<&mut Xdp, ProgramError> {
    let program = ebpf.program_mut("shield").ok_or_else(no_program)?;
    let program: &mut Xdp = program.try_into()?;
    if program.fd().is_err() {
        program.load()?;
    }
    Ok(program)
}

fn steer_program(ebpf: &mut Ebpf) -> Result<&mut SkReuseport, KernelError> {
    let program = ebpf
        .program_mut("steer")
        .and_then(|program| program.try_into().ok());
    program.ok_or_else(|| KernelError::StaleObject {
        what: "no program steer".to_owned(),
    })
}
