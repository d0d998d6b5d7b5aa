//! What the workers do, and for whom.

use crate::{limits::Admission, metrics::Metrics};
use serde::Serialize;
use std::{collections::BTreeMap, fs};

/// Source prefixes that are shown.
const PREFIXES_SHOWN: usize = 20;

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
    /// Its open connections.
    pub connections: u32,
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

/// The source prefixes with the most connections.
pub(super) fn prefixes(admission: &Admission) -> Vec<PrefixStatus> {
    let top = admission.top_prefixes(PREFIXES_SHOWN).into_iter();
    top.map(|(prefix, connections)| PrefixStatus {
        prefix,
        connections,
    })
    .collect()
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
