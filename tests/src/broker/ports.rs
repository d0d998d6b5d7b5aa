//! Ports that nobody uses, and whether a process has bound one.

use std::fs;
use std::net::{Ipv6Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range that the kernel takes a client's ports from, so that none of those comes between.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// A port that is free now for TCP and UDP. Tests of one process never get the same one; those of another may, so a
/// start that fails for it is tried again.
pub fn free() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes that run at the same time begin far from each other.
    let start = std::process::id().wrapping_mul(97) % u32::from(COUNT);
    for _ in 0..COUNT {
        let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = FIRST + u16::try_from((start + step) % u32::from(COUNT)).expect("below COUNT");
        let address = (Ipv6Addr::UNSPECIFIED, port);
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return port;
        }
    }
    panic!("no free port from {FIRST} on");
}

/// Whether somebody in the network namespace of the process `pid` listens on `port`.
pub fn is_bound(pid: u32, protocol: &str, port: u16) -> bool {
    /// State of a listening TCP socket, and of a UDP socket that isn't connected.
    const LISTENING: [&str; 2] = ["0A", "07"];
    [protocol.to_owned(), format!("{protocol}6")]
        .iter()
        .any(|table| {
            let table = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
            table.lines().skip(1).any(|line| {
                let mut fields = line.split_whitespace().skip(1);
                let (local, state) = (fields.next(), fields.nth(1));
                let bound =
                    local.and_then(|local| u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok());
                bound == Some(port) && state.is_some_and(|state| LISTENING.contains(&state))
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_what_this_process_has_bound() {
        let port = free();
        assert!(!is_bound(std::process::id(), "udp", port));
        let _socket = UdpSocket::bind((Ipv6Addr::LOCALHOST, port)).expect("the port is free");
        assert!(is_bound(std::process::id(), "udp", port));
        assert!(!is_bound(std::process::id(), "tcp", port));
    }
}
