//! What a process has spent, from /proc.

use std::fs;
use std::ops::Sub;
use std::time::Duration;

/// CPU time and memory of one process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// utime + stime of all its threads, ended ones too (proc(5), fields 14 and 15 of `stat`).
    pub cpu: Duration,
    /// Resident memory, bytes (`VmRSS`).
    pub resident_bytes: i64,
}

impl Usage {
    /// What the process `pid` has spent so far.
    ///
    /// # Panics
    /// When there is no such process.
    pub fn of(pid: u32) -> Self {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
        };
        let cpu = cpu_in(&read("stat"));
        let status = read("status");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes =
            resident.and_then(|text| text.trim().trim_end_matches(" kB").parse::<i64>().ok());
        Self {
            cpu,
            resident_bytes: kilobytes.expect("a live process has VmRSS") * 1024,
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
            Some((name, cpu_in(&read("stat")?)))
        })
        .collect();
    threads.sort();
    threads.into_iter().map(|(_, cpu)| cpu).collect()
}

/// utime + stime in a file `stat` (proc(5)).
fn cpu_in(stat: &str) -> Duration {
    // The second field is the command in parentheses and may hold anything.
    let (_, fields) = stat.rsplit_once(')').expect("stat has a command");
    let field = |number: usize| fields.split_whitespace().nth(number - 3);
    let ticks = |number| field(number).and_then(|text| text.parse::<u64>().ok());
    let ticks = ticks(14).zip(ticks(15)).map(|(user, system)| user + system);
    // USER_HZ is 100 on every architecture that Linux shows to programs today.
    Duration::from_millis(ticks.expect("stat has CPU times") * 10)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_this_process_work() {
        let before = Usage::of(std::process::id());
        let memory = std::hint::black_box(vec![1_u8; 64 << 20]);
        let spent = Usage::of(std::process::id()) - before;
        assert!(
            spent.resident_bytes >= 60 << 20,
            "{spent:?} {}",
            memory.len()
        );
    }
}
