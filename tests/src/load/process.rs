//! What a process has spent, from /proc.

use std::fs;
use std::ops::Sub;
use std::time::Duration;

use headgate::bench;

/// CPU time and memory of one process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU time of all its threads, ended ones too.
    pub cpu: Duration,
    /// Resident memory, bytes.
    pub resident_bytes: i64,
}

impl Usage {
    /// What the process `pid` has spent so far.
    ///
    /// # Panics
    /// When there is no such process.
    pub fn of(pid: u32) -> Self {
        let usage = bench::Usage::of(pid);
        let usage = usage.unwrap_or_else(|error| panic!("process {pid}: {error}"));
        Self {
            cpu: usage.cpu,
            resident_bytes: usage.resident_bytes,
        }
    }
}

/// CPU time of a process's threads whose names begin with `prefix`, in the order of their names.
///
/// # Panics
/// When there is no such process.
pub fn threads(pid: u32, prefix: &str) -> Vec<Duration> {
    let tasks = format!("/proc/{pid}/task");
    let entries = fs::read_dir(&tasks).unwrap_or_else(|error| panic!("{tasks}: {error}"));
    // A thread may end meanwhile.
    let mut threads: Vec<(String, Duration)> = entries
        .flatten()
        .filter_map(|task| {
            let read = |file| fs::read_to_string(task.path().join(file)).ok();
            let name = read("comm").filter(|name| name.starts_with(prefix))?;
            Some((name, bench::cpu_in(&read("stat")?)?))
        })
        .collect();
    threads.sort();
    threads.into_iter().map(|(_, cpu)| cpu).collect()
}

impl Sub for Usage {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            cpu: self.cpu - before.cpu,
            resident_bytes: self.resident_bytes - before.resident_bytes,
        }
    }
}
