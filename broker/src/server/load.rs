//! What the workers do, and for whom.

use crate::{
    kernel::TopTalker,
    limits::{Admission, Prefix},
    metrics::Metrics,
};
use serde::Serialize;
use std::{collections::BTreeMap, fs};

/// Source prefixes that are shown: so many of those with the most connections, and of those with the most packets.
pub(super) const PREFIXES_SHOWN: usize = 20;

/// A worker's counters and its CPU time.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerLoad {
    /// Its slot.
    pub worker: u8,
    /// Open connections.
    pub connections: u64,
    /// Sessions, connected or not.
    pub sessions: u64,
    /// PUBLISH packets received.
    pub messages_received: u64,
    /// PUBLISH packets sent.
    pub messages_sent: u64,
    /// CPU time of its thread since it began, nanoseconds; `None` where the kernel doesn't tell.
    pub cpu_ns: Option<u64>,
}

/// A source prefix (IPv4 /24, IPv6 /64).
#[derive(Clone, Debug, Serialize)]
pub struct PrefixStatus {
    /// The prefix.
    pub prefix: String,
    /// Its open connections; 0 when the limit per prefix is off.
    pub connections: u32,
    /// Packets that claim to come from there since it is among those that send the most, as the kernel estimates;
    /// `None` if it isn't among them, or there is no shield.
    pub packets: Option<u64>,
    /// How many of them were dropped.
    pub packets_dropped: Option<u64>,
}

/// What each worker does.
pub(super) fn workers(metrics: &Metrics) -> Vec<WorkerLoad> {
    let cpu_ns = cpu_times();
    let workers = metrics.workers();
    workers
        .map(|(worker, metrics)| WorkerLoad {
            worker,
            connections: metrics.connections.sum(),
            sessions: metrics.sessions.get(),
            messages_received: metrics.messages_received.sum(),
            messages_sent: metrics.messages_sent.sum(),
            cpu_ns: cpu_ns.get(&format!("headgate-w{worker}")).copied(),
        })
        .collect()
}

/// The source prefixes that send the most, and then those with the most connections.
pub(super) fn prefixes(admission: &Admission, talkers: &[TopTalker]) -> Vec<PrefixStatus> {
    let mut all: Vec<(Prefix, PrefixStatus)> = Vec::new();
    for talker in talkers {
        let prefix = Prefix::of(talker.network);
        let status = PrefixStatus {
            prefix: prefix.to_string(),
            connections: admission.connections_of(prefix),
            packets: Some(talker.packets),
            packets_dropped: Some(talker.drops),
        };
        all.push((prefix, status));
    }
    for (prefix, connections) in admission.top_prefixes(PREFIXES_SHOWN) {
        if all.iter().any(|(known, _)| *known == prefix) {
            continue;
        }
        let status = PrefixStatus {
            prefix: prefix.to_string(),
            connections,
            packets: None,
            packets_dropped: None,
        };
        all.push((prefix, status));
    }
    all.into_iter().map(|(_, status)| status).collect()
}

/// CPU time by thread name, of /proc/self/task/*/stat (proc_pid_stat(5)).
fn cpu_times() -> BTreeMap<String, u64> {
    // SAFETY: sysconf has no preconditions.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let tick_ns = u64::try_from(ticks).map_or(0, |ticks| 1_000_000_000 / ticks.max(1));
    let tasks = fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let times = tasks.filter_map(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).ok()?;
        let (name, ticks) = name_and_ticks(&stat)?;
        Some((name.to_owned(), ticks * tick_ns))
    });
    times.collect()
}

/// A thread's name, and its utime and stime together.
fn name_and_ticks(stat: &str) -> Option<(&str, u64)> {
    let (_, rest) = stat.split_once('(')?;
    let (name, rest) = rest.rsplit_once(')')?;
    // The 14th and the 15th field; the name is the second.
    let mut times = rest.split_whitespace().skip(11);
    let mut next = || times.next()?.parse::<u64>().ok();
    Some((name, next()? + next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threads_cpu_time_is_found_by_its_name() {
        let thread = std::thread::Builder::new().name("headgate-busy".to_owned());
        let time = thread.spawn(|| {
            let began = std::time::Instant::now();
            let mut number = 1u64;
            while began.elapsed().as_millis() < 50 {
                number = std::hint::black_box(number.wrapping_mul(3));
            }
            cpu_times().get("headgate-busy").copied()
        });
        let time = time.expect("it starts").join().expect("it ends");
        assert!(time.is_some_and(|ns| ns < 60_000_000_000), "{time:?}");
        let stat = "7 (a) b) R 1 1 1 0 -1 4194368 17 0 0 0 30 12 0 0 20 0 1 0 5";
        assert_eq!(name_and_ticks(stat), Some(("a) b", 42)));
    }
}
