//! How much memory the broker may have, and how much it has.
//!
//! What counts is the resident memory of the process. Memory that was freed often stays resident, as free blocks among
//! blocks in use: most of it is room for new clients, and counts as that, so that the broker recovers once clients have
//! left. What the kernel holds besides (sockets, the maps of the XDP program) is not the process's: it is seen where
//! the machine, or the cgroup (v2), has little left.

mod system;

use std::time::{Duration, Instant};

use super::{
    CLOSE_SLOW, heap,
    ladder::{LEVELS, Ladder, Steps},
};
use crate::config::MemoryLimit;
use system::{Cgroup, Resident};

/// What `limits.memory_limit = "auto"` is, % of the machine's memory or the cgroup's.
const AUTO_SHARE: u64 = 90;

/// Levels of the process, ‰ of the limit. The last 30 ‰ are for what is under way when the highest is reached.
const OF_LIMIT: Steps = Steps {
    up: [850, 920, 970],
    down: [800, 880, 940],
    rise: Duration::ZERO,
    rise_values: 1,
    fall: Duration::from_secs(1),
};

/// Levels of the machine and of the cgroup, ‰ of what they have: what all processes use together, and can't give back.
const OF_MACHINE: Steps = Steps {
    up: [950, 970, 980],
    down: [930, 955, 972],
    ..OF_LIMIT
};

/// How often the machine and the cgroup are looked at.
const MACHINE_INTERVAL: Duration = Duration::from_secs(1);
/// How often the heap is looked at while memory is short, at most.
const HEAP_INTERVAL: Duration = Duration::from_millis(250);
/// And so many times as long as a look takes: workers may have to wait for it.
const HEAP_REST: u32 = 50;
/// From this share of the limit on that lies free in the heap, the system gets back what it can, %.
const GIVE_BACK_SHARE: u64 = 5;

/// How short memory runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryNow {
    /// The level.
    pub level: u8,
    /// What counts as used, bytes.
    pub used_bytes: u64,
    /// The limit, bytes; 0 = there is none.
    pub limit_bytes: u64,
    /// What has to be freed to leave the highest level, bytes.
    pub excess_bytes: u64,
}

/// Looks at the memory.
#[derive(Debug)]
pub struct MemoryWatch {
    limit: Option<u64>,
    process: Ladder,
    machine: Ladder,
    cgroups: Vec<Cgroup>,
    /// Use of the machine or the cgroup, whichever has less left: ‰, and its size in bytes.
    machine_use: (u64, u64),
    machine_due: Instant,
    /// Free in the heap and resident, bytes.
    idle: u64,
    heap_due: Instant,
    looked: Instant,
}

impl MemoryWatch {
    /// With the limit of the configuration. Says in the log what is wrong with it.
    pub fn new(limit: MemoryLimit, now: Instant) -> Self {
        let cgroups = Cgroup::all();
        let sizes = cgroups.iter().map(|cgroup| cgroup.max);
        let size = sizes.chain(system::machine().map(|(total, _)| total)).min();
        let limit = match limit {
            MemoryLimit::Off => None,
            MemoryLimit::Bytes(bytes) => Some(bytes),
            MemoryLimit::Auto => size.map(|size| share(size, AUTO_SHARE * 10)),
        };
        if let (Some(limit), Some(size)) = (limit, size)
            && limit > size
        {
            tracing::warn!(
                memory_limit = limit,
                memory = size,
                "limits.memory_limit is more than this machine or its cgroup has: the kernel would end the broker before; lower it"
            );
        }
        if let (Some(limit), Some(resident)) = (limit, Resident::read())
            && share(limit, OF_LIMIT.up[0]) <= resident.total
        {
            tracing::warn!(
                memory_limit = limit,
                resident = resident.total,
                "limits.memory_limit is hardly more than the broker needs without a client: nobody can connect; raise it"
            );
        }
        Self {
            limit,
            process: Ladder::new(OF_LIMIT),
            machine: Ladder::new(OF_MACHINE),
            cgroups,
            machine_use: (0, 0),
            machine_due: now,
            idle: 0,
            heap_due: now,
            looked: now,
        }
    }

    /// Looks; several times a second.
    pub fn look(&mut self, now: Instant) -> MemoryNow {
        let Some(limit) = self.limit else {
            return MemoryNow::default();
        };
        let since = std::mem::replace(&mut self.looked, now);
        let used = self.process_use(limit, now);
        let level = self.process.note(permille(used, limit), (since, now));
        if now >= self.machine_due {
            self.machine_due = now + MACHINE_INTERVAL;
            self.machine_use = self.use_of_machine();
        }
        let (of_machine, size) = self.machine_use;
        let machine_level = self.machine.note(of_machine, (since, now));
        let excess = |level: u8, of: u64, size: u64, down: [u64; LEVELS]| match level {
            CLOSE_SLOW.. => of.saturating_sub(share(size, down[LEVELS - 1])),
            _ => 0,
        };
        let of_process = excess(level, used, limit, OF_LIMIT.down);
        let machine_used = share(size, of_machine);
        MemoryNow {
            level: level.max(machine_level),
            used_bytes: used,
            limit_bytes: limit,
            excess_bytes: of_process.max(excess(
                machine_level,
                machine_used,
                size,
                OF_MACHINE.down,
            )),
        }
    }

    /// What the process uses, bytes.
    fn process_use(&mut self, limit: u64, now: Instant) -> u64 {
        let Some(mut resident) = Resident::read() else {
            return 0;
        };
        if resident.total < share(limit, OF_LIMIT.up[0]) && self.process.level() == 0 {
            self.idle = 0;
        } else if now >= self.heap_due {
            let begun = Instant::now();
            self.idle = idle_of(&resident);
            if self.idle >= share(limit, GIVE_BACK_SHARE * 10) {
                heap::give_back();
                resident = Resident::read().unwrap_or(resident);
                self.idle = idle_of(&resident);
            }
            self.heap_due = now + HEAP_INTERVAL.max(begun.elapsed() * HEAP_REST);
        }
        used(resident.total, self.idle, limit)
    }

    /// Of the machine and the cgroups, what has the least left: ‰ in use, and its size, bytes.
    fn use_of_machine(&self) -> (u64, u64) {
        let machine = system::machine();
        let machine = machine.map(|(total, available)| (total.saturating_sub(available), total));
        let cgroups = self.cgroups.iter().filter_map(|c| Some((c.used()?, c.max)));
        let uses = cgroups.chain(machine);
        let uses = uses.map(|(used, size)| (permille(used, size), size));
        uses.max().unwrap_or_default()
    }
}

/// What counts as used, of memory that is resident, with so much of it free in the heap. A third of that is taken to be of no
/// use for what comes: in pieces that are too small. When all that is resident is close to the limit nobody new comes
/// in, whatever lies free in it.
fn used(resident: u64, idle: u64, limit: u64) -> u64 {
    let used = resident.saturating_sub(idle / 3 * 2);
    match resident >= share(limit, OF_LIMIT.up[LEVELS - 1]) {
        true => used.max(share(limit, OF_LIMIT.up[0]) + limit / 1_000),
        false => used,
    }
}

/// What lies free in the heap and is resident, bytes.
fn idle_of(resident: &Resident) -> u64 {
    let in_use = heap::in_use_bytes().unwrap_or(u64::MAX);
    resident.anonymous.saturating_sub(in_use)
}

fn permille(part: u64, whole: u64) -> u64 {
    (u128::from(part) * 1_000 / u128::from(whole.max(1))) as u64
}

fn share(whole: u64, permille: u64) -> u64 {
    (u128::from(whole) * u128::from(permille) / 1_000) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_free_in_the_heap_is_room_for_new_clients() {
        let limit = 1_000_000;
        let level = |resident, idle| {
            let now = Instant::now();
            let used = used(resident, idle, limit);
            Ladder::new(OF_LIMIT).note(permille(used, limit), (now, now))
        };
        assert_eq!(level(849_000, 0), 0);
        assert_eq!(level(851_000, 0), 1);
        assert_eq!(level(921_000, 0), 2);
        assert_eq!(level(971_000, 0), 3);
        assert_eq!(level(921_000, 300_000), 0);
        assert_eq!(level(921_000, 30_000), 1);
        // Close to the limit it is none, but no slow consumer is closed for it.
        assert_eq!(level(980_000, 600_000), 1);
        assert_eq!(level(980_000, 30_000), 2);
    }

    #[test]
    fn the_levels_leave_room_between_coming_and_going() {
        for steps in [OF_LIMIT, OF_MACHINE] {
            assert!(steps.up.is_sorted() && steps.down.is_sorted());
            for (up, down) in steps.up.iter().zip(steps.down) {
                assert!(down < *up);
            }
        }
    }

    #[test]
    fn memory_that_was_allocated_and_freed_is_no_memory_in_use() {
        let mut watch = MemoryWatch::new(MemoryLimit::Off, Instant::now());
        assert_eq!(watch.look(Instant::now()), MemoryNow::default());
        // Small blocks, of which every second stays: their pages can't be given back.
        let blocks: Vec<Vec<u8>> = (0..400_000).map(|n| vec![n as u8; 200]).collect();
        let resident = Resident::read().expect("/proc").total;
        let limit = resident * 11 / 10;
        watch.limit = Some(limit);
        let mut now = Instant::now();
        let full = watch.look(now);
        assert_eq!(full.limit_bytes, limit);
        let kept: Vec<_> = blocks.into_iter().step_by(2).collect();
        // Other tests of this process use memory as well, for a while.
        let is_seen = (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            now += Duration::from_secs(60);
            watch.look(now).used_bytes + (10 << 20) < full.used_bytes
        });
        assert!(is_seen, "{full:?} {:?}", watch.look(now));
        assert_eq!(kept.len(), 200_000);
    }

    #[test]
    fn a_limit_by_itself_is_a_share_of_the_machine() {
        let watch = MemoryWatch::new(MemoryLimit::Auto, Instant::now());
        let (total, _) = system::machine().expect("/proc/meminfo");
        let limit = watch.limit.expect("there is one");
        assert!(limit <= share(total, 900), "{limit} of {total}");
    }
}
