//! What a driver says of its packets: a count that the shield has no part in.

use crate::netns::Namespace;
use std::ops::Sub;

/// The XDP counters of a veth device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nic {
    /// Packets that its XDP program has seen.
    pub seen: u64,
    /// Packets that the program dropped.
    pub dropped: u64,
    /// Packets that the program sent back, also those that the peer had no room for.
    pub sent_back: u64,
}

impl Nic {
    /// The counters of a device.
    ///
    /// # Panics
    /// Without ethtool, or when the device is no veth.
    #[must_use]
    pub fn of(namespace: &Namespace, device: &str) -> Self {
        let output = namespace.command("ethtool").args(["-S", device]).output();
        let output = output.expect("ethtool (Debian: ethtool)");
        let text = String::from_utf8_lossy(&output.stdout);
        let sum = |end: &str| {
            let lines = text.lines().filter_map(|line| line.trim().split_once(": "));
            let of_queues =
                lines.filter(|(name, _)| name.starts_with("rx_queue_") && name.ends_with(end));
            let counts: Vec<u64> = of_queues.filter_map(|(_, n)| n.parse().ok()).collect();
            assert!(!counts.is_empty(), "no {end} in {text}");
            counts.iter().sum::<u64>()
        };
        Self {
            seen: sum("_xdp_packets"),
            dropped: sum("_xdp_drops"),
            sent_back: sum("_xdp_tx") + sum("_xdp_tx_errors"),
        }
    }
}

impl Sub for Nic {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            seen: self.seen - before.seen,
            dropped: self.dropped - before.dropped,
            sent_back: self.sent_back - before.sent_back,
        }
    }
}
