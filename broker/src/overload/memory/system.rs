//! What the kernel says of memory.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where cgroups (v2) are.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Resident memory of the process, bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resident {
    pub total: u64,
    /// Of it, what is no page of a file: the heap and the stacks.
    pub anonymous: u64,
}

impl Resident {
    /// `None` without /proc.
    pub fn read() -> Option<Self> {
        // SAFETY: sysconf has no preconditions.
        let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
        Self::parse(&fs::read_to_string("/proc/self/statm").ok()?, page)
    }

    /// Of the columns of proc_pid_statm(5), the second and the third are what is resident and what of it is shared.
    fn parse(text: &str, page: u64) -> Option<Self> {
        let mut columns = text.split_whitespace().skip(1);
        let mut next = || columns.next()?.parse::<u64>().ok();
        let (resident, shared) = (next()?, next()?);
        Some(Self {
            total: resident * page,
            anonymous: resident.saturating_sub(shared) * page,
        })
    }
}

/// The machine's memory, and what of it can be had without swapping, bytes.
pub(super) fn machine() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |name| {
        value(&text, name)?
            .trim_end_matches("kB")
            .trim()
            .parse()
            .ok()
    };
    let bytes = |name| kib(name).map(|kib: u64| kib * 1_024);
    Some((bytes("MemTotal:")?, bytes("MemAvailable:")?))
}

/// A cgroup that the process is in, or one above it, whose memory is limited.
#[derive(Debug)]
pub(super) struct Cgroup {
    folder: PathBuf,
    pub max: u64,
}

impl Cgroup {
    /// All of them.
    pub fn all() -> Vec<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::above(Path::new(CGROUPS), &own)
    }

    fn above(root: &Path, own: &str) -> Vec<Self> {
        let Some(path) = own.lines().find_map(|line| line.strip_prefix("0::/")) else {
            return Vec::new();
        };
        let folder = root.join(path);
        let folders = folder.ancestors().take_while(|f| f.starts_with(root));
        let limited = folders.filter_map(|folder| {
            // "max" is no number: there is no limit.
            Some(Self {
                max: number(&folder.join("memory.max"))?,
                folder: folder.to_owned(),
            })
        });
        limited.collect()
    }

    /// What it uses and the kernel can't take back, bytes.
    pub fn used(&self) -> Option<u64> {
        let current = number(&self.folder.join("memory.current"))?;
        let stat = fs::read_to_string(self.folder.join("memory.stat")).ok()?;
        let of_files = ["inactive_file", "active_file", "slab_reclaimable"].map(|name| {
            let value = value(&stat, name).and_then(|value| value.parse::<u64>().ok());
            value.unwrap_or(0)
        });
        Some(current.saturating_sub(of_files.iter().sum()))
    }
}

/// What follows a name at the beginning of a line.
fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let rest = |line: &'a str| line.strip_prefix(name)?.strip_prefix(char::is_whitespace);
    text.lines().find_map(rest).map(str::trim)
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_of_statm_are_pages() {
        let resident = Resident::parse("5000 1200 200 1 0 900 0\n", 4_096).expect("columns");
        assert_eq!(resident.total, 1_200 * 4_096);
        assert_eq!(resident.anonymous, 1_000 * 4_096);
        let own = Resident::read().expect("/proc");
        assert!(0 < own.anonymous && own.anonymous < own.total, "{own:?}");
        let (total, available) = machine().expect("/proc/meminfo");
        assert!(own.total < total && available <= total);
    }

    #[test]
    fn each_cgroup_above_the_process_counts_if_it_has_a_limit() {
        let root = std::env::temp_dir().join(format!("headgate-cgroups-{}", std::process::id()));
        let own = root.join("system.slice/headgate.service");
        fs::create_dir_all(&own).expect("a folder");
        let write = |folder: &Path, name: &str, text: &str| {
            fs::write(folder.join(name), text).expect("a file");
        };
        write(&own, "memory.max", "1000000\n");
        write(&own, "memory.current", "900000\n");
        write(
            &own,
            "memory.stat",
            "anon 500000\ninactive_file 100000\nactive_file 50000\n",
        );
        write(&root.join("system.slice"), "memory.max", "max\n");
        let found = Cgroup::above(&root, "1:name=x:/y\n0::/system.slice/headgate.service\n");
        let none = Cgroup::above(&root, "1:memory:/old\n");
        let uses: Vec<_> = found.iter().map(|c| (c.used(), c.max)).collect();
        fs::remove_dir_all(&root).expect("it can be removed");
        assert_eq!(uses, [(Some(750_000), 1_000_000)]);
        assert!(none.is_empty());
    }
}
