//! Processes of this machine, from /proc: what they have spent, and who listens.

use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};
use std::{
    fs, io,
    net::{IpAddr, SocketAddr, UdpSocket},
    ops::Sub,
    time::Duration,
};

/// CPU time and memory of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of all its threads, ended ones too, to the nanosecond (clock_getcpuclockid(3)).
    pub cpu: Duration,
    /// Resident memory, bytes (`VmRSS`).
    pub resident_bytes: i64,
}

impl Usage {
    /// What the process `pid` has spent so far.
    ///
    /// # Errors
    /// When there is no such process, or it has ended.
    pub fn of(pid: u32) -> io::Result<Self> {
        let process = Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?);
        let cpu = clock_gettime(clock_getcpuclockid(process)?)?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let missing = || io::Error::other(format!("/proc/{pid} tells no memory"));
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = resident.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok());
        let kilobytes: i64 = kilobytes.ok_or_else(missing)?;
        Ok(Self {
            cpu: cpu.into(),
            resident_bytes: kilobytes * 1_024,
        })
    }
}

/// utime + stime in a file `stat`, of a process or of a thread (proc(5), fields 14 and 15).
pub fn cpu_in(stat: &str) -> Option<Duration> {
    // The second field is the command in parentheses and may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(14 - 3);
    let mut ticks = || times.next()?.parse::<u64>().ok();
    // USER_HZ is 100 on every architecture that Linux shows to programs today.
    Some(Duration::from_millis((ticks()? + ticks()?) * 10))
}

impl Sub for Usage {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            resident_bytes: self.resident_bytes - before.resident_bytes,
        }
    }
}

/// The process of this machine that listens at an address, if it is one of this machine's, and /proc shows it.
pub fn listener_of(address: SocketAddr, is_udp: bool) -> Option<u32> {
    if !is_local(address.ip()) {
        return None;
    }
    let tables = if is_udp {
        ["udp", "udp6"]
    } else {
        ["tcp", "tcp6"]
    };
    let sockets: Vec<String> = tables
        .iter()
        .filter_map(|table| fs::read_to_string(format!("/proc/net/{table}")).ok())
        .flat_map(|text| listeners(&text, address, is_udp))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.into_iter().find(|pid| holds(*pid, &sockets))
}

fn is_local(address: IpAddr) -> bool {
    address.is_loopback() || UdpSocket::bind((address, 0)).is_ok()
}

/// Inodes of the sockets in a table of /proc/net that listen at an address.
fn listeners(table: &str, address: SocketAddr, is_udp: bool) -> Vec<u64> {
    let listener = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (ip, port) = fields.get(1)?.split_once(':')?;
        // TCP_LISTEN; a socket of UDP without a peer is closed.
        let state = if is_udp { "07" } else { "0A" };
        let listens = u16::from_str_radix(port, 16).ok()? == address.port()
            && fields.get(3) == Some(&state)
            && (ip.bytes().all(|digit| digit == b'0') || ip == in_table(address.ip(), ip.len()));
        listens.then(|| fields.get(9)?.parse().ok()).flatten()
    };
    table.lines().filter_map(listener).collect()
}

/// An address as /proc/net has it: words of four bytes in the machine's order, in hexadecimal digits.
fn in_table(address: IpAddr, digits: usize) -> String {
    let octets = match address {
        IpAddr::V4(address) if digits == 8 => address.octets().to_vec(),
        IpAddr::V4(address) => address.to_ipv6_mapped().octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let word = |word: &[u8]| {
        let word: [u8; 4] = word.try_into().unwrap_or_default();
        format!("{:08X}", u32::from_ne_bytes(word))
    };
    octets.chunks(4).map(word).collect()
}

fn holds(pid: u32, sockets: &[String]) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    descriptors.flatten().any(|entry| {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        sockets
            .iter()
            .any(|socket| target.as_os_str() == socket.as_str())
    })
}

/// Raises the limit of file descriptors of this process so far that `needed` can be open.
///
/// # Errors
/// The hard limit is below that; what it is, and how it is raised.
pub fn raise_descriptor_limit(needed: u64) -> Result<(), String> {
    let told = |error: nix::Error| format!("the limit of file descriptors: {error}");
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(told)?;
    if needed <= soft {
        return Ok(());
    }
    if needed > hard {
        return Err(format!(
            "{needed} file descriptors are needed, and this process may have {hard}: take fewer clients, connect \
             over quic:// (a socket serves all of them), or raise the hard limit (ulimit -Hn {needed} as root, \
             LimitNOFILE= of a systemd unit)"
        ));
    }
    setrlimit(Resource::RLIMIT_NOFILE, needed, hard).map_err(told)
}

/// Ports that the kernel gives to sockets that ask for none.
pub fn ephemeral_ports() -> u64 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ends = range
        .split_whitespace()
        .filter_map(|end| end.parse::<u64>().ok());
    match (ends.next(), ends.next()) {
        (Some(first), Some(last)) if last >= first => last - first + 1,
        _ => 28_232,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener};

    #[test]
    fn this_process_is_found_by_what_it_listens_to() {
        let own = std::process::id();
        for ip in ["127.0.0.1", "::1", "0.0.0.0", "::"] {
            let ip: IpAddr = ip.parse().expect("an address");
            let tcp = TcpListener::bind((ip, 0)).expect("a listener");
            let udp = UdpSocket::bind((ip, 0)).expect("a socket");
            let tcp_port = tcp.local_addr().expect("bound").port();
            let udp_port = udp.local_addr().expect("bound").port();
            let reached = if ip.is_unspecified() {
                IpAddr::V4(Ipv4Addr::LOCALHOST)
            } else {
                ip
            };
            let found = listener_of(SocketAddr::new(reached, tcp_port), false);
            assert_eq!(found, Some(own), "TCP {ip}");
            let found = listener_of(SocketAddr::new(reached, udp_port), true);
            assert_eq!(found, Some(own), "UDP {ip}");
            drop(tcp);
            assert_eq!(listener_of(SocketAddr::new(reached, tcp_port), false), None);
        }
        let elsewhere = SocketAddr::from(([192, 0, 2, 1], 1883));
        assert_eq!(listener_of(elsewhere, false), None);
    }

    #[test]
    fn memory_is_seen_to_grow() {
        let own = std::process::id();
        let before = Usage::of(own).expect("it lives");
        let memory = std::hint::black_box(vec![1_u8; 64 << 20]);
        let spent = Usage::of(own).expect("it lives") - before;
        assert!(
            spent.resident_bytes >= 60 << 20,
            "{spent:?} {}",
            memory.len()
        );
        assert!(Usage::of(u32::MAX).is_err());
    }

    #[test]
    fn a_limit_that_is_too_low_is_explained() {
        assert_eq!(raise_descriptor_limit(16), Ok(()));
        let refused = raise_descriptor_limit(u64::MAX).expect_err("too many");
        assert!(refused.contains("LimitNOFILE="), "{refused}");
    }
}
