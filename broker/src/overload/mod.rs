//! Overload: how short memory, CPU time and handshakes run, and what is given up for it.
//!
//! Each resource has a level. From level to level more is given up, in this order:
//!
//! | level | memory | CPU, each worker for itself |
//! |---|---|---|
//! | 1 | new connections are refused | new connections wait |
//! | 2 | and messages with QoS 0 that would have to wait are dropped | the same |
//! | 3 | and the connections of the slowest consumers are closed | the same |
//!
//! Handshakes are at level 1 while new connections wait, and at 2 when as many do as may.

pub mod heap;
pub mod ladder;
pub mod memory;

use crate::metrics::{Metrics, Resource};
use headgate_core::Pressure;
use serde::Serialize;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use memory::MemoryNow;

/// No new connections.
pub const REFUSE_CLIENTS: u8 = 1;
/// No messages with QoS 0 that would have to wait.
pub const DROP_QOS0: u8 = 2;
/// No slow consumers.
pub const CLOSE_SLOW: u8 = 3;

/// What all workers have to know of it. One thread looks at the memory and says so here; a worker reads it in each turn.
#[derive(Debug, Default)]
pub struct Overload {
    memory: AtomicU8,
    handshakes: AtomicU8,
    used_bytes: AtomicU64,
    limit_bytes: AtomicU64,
    excess_bytes: AtomicU64,
}

impl Overload {
    /// How short memory runs.
    pub fn memory(&self) -> MemoryNow {
        MemoryNow {
            level: self.memory.load(Ordering::Relaxed),
            used_bytes: self.used_bytes.load(Ordering::Relaxed),
            limit_bytes: self.limit_bytes.load(Ordering::Relaxed),
            excess_bytes: self.excess_bytes.load(Ordering::Relaxed),
        }
    }

    /// Says how short memory runs.
    pub fn set_memory(&self, now: MemoryNow) {
        self.used_bytes.store(now.used_bytes, Ordering::Relaxed);
        self.limit_bytes.store(now.limit_bytes, Ordering::Relaxed);
        self.excess_bytes.store(now.excess_bytes, Ordering::Relaxed);
        self.memory.store(now.level, Ordering::Relaxed);
    }

    /// How many new connections have to wait.
    pub fn handshakes(&self) -> u8 {
        self.handshakes.load(Ordering::Relaxed)
    }

    /// Says how many new connections have to wait.
    pub fn set_handshakes(&self, level: u8) {
        self.handshakes.store(level, Ordering::Relaxed);
    }

    /// Whether memory is too short for new connections.
    pub fn refuses_clients(&self) -> bool {
        self.memory.load(Ordering::Relaxed) >= REFUSE_CLIENTS
    }

    /// What one of so many workers gives up whose own CPU is at this level.
    pub fn pressure(&self, cpu: u8, workers: usize) -> Pressure {
        let memory = self.memory.load(Ordering::Relaxed);
        let excess = self.excess_bytes.load(Ordering::Relaxed) / workers.max(1) as u64;
        Pressure {
            // Who has come as far as CONNECT has cost the CPU time already.
            refuse_clients: memory >= REFUSE_CLIENTS,
            drop_qos0: memory.max(cpu) >= DROP_QOS0,
            close_slow_bytes: match (memory >= CLOSE_SLOW, cpu >= CLOSE_SLOW) {
                (true, _) => Some(excess),
                (false, true) => Some(0),
                (false, false) => None,
            },
        }
    }
}

/// How short the resources run: 0 = they don't.
#[derive(Clone, Debug, Serialize)]
pub struct OverloadStatus {
    /// Level of memory.
    pub memory: u8,
    /// Level of the worker whose time is the shortest.
    pub cpu: u8,
    /// Level of handshakes.
    pub handshakes: u8,
    /// QUIC packets of new connections that wait.
    pub initials_waiting: u64,
    /// What counts as used of the memory, bytes.
    pub memory_used_bytes: u64,
    /// The limit, bytes; 0 = there is none.
    pub memory_limit_bytes: u64,
}

impl OverloadStatus {
    /// As it is now.
    pub fn of(overload: &Overload, metrics: &Metrics) -> Self {
        let memory = overload.memory();
        let cpu = metrics.workers().map(|(_, m)| m.cpu_level.get()).max();
        Self {
            memory: memory.level,
            cpu: cpu.unwrap_or(0) as u8,
            handshakes: overload.handshakes(),
            initials_waiting: metrics.sum(|m| m.initials_waiting.get()),
            memory_used_bytes: memory.used_bytes,
            memory_limit_bytes: memory.limit_bytes,
        }
    }

    /// The level of a resource.
    pub fn level(&self, resource: Resource) -> u8 {
        match resource {
            Resource::Memory => self.memory,
            Resource::Cpu => self.cpu,
            Resource::Handshakes => self.handshakes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_level_gives_up_what_the_lower_ones_do_and_more() {
        let overload = Overload::default();
        let given_up = |memory: u8, cpu: u8| {
            overload.set_memory(MemoryNow {
                level: memory,
                excess_bytes: 1_000,
                ..MemoryNow::default()
            });
            let pressure = overload.pressure(cpu, 2);
            (
                pressure.refuse_clients,
                pressure.drop_qos0,
                pressure.close_slow_bytes,
            )
        };
        assert_eq!(given_up(0, 0), (false, false, None));
        assert_eq!(given_up(1, 0), (true, false, None));
        assert_eq!(given_up(2, 0), (true, true, None));
        assert_eq!(given_up(3, 0), (true, true, Some(500)));
        assert_eq!(given_up(0, 1), (false, false, None));
        assert_eq!(given_up(0, 2), (false, true, None));
        assert_eq!(given_up(0, 3), (false, true, Some(0)));
        assert_eq!(given_up(1, 3), (true, true, Some(0)));
    }
}
