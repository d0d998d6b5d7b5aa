//! Who sends the most, as the kernel's sketch has it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::maps::{MapData, PerCpuArray};
use headgate_common::talkers::{TALKER_CELLS, TALKER_SAMPLE, Talker};

use super::error::KernelError;
use super::loader::Shield;
use super::maps::{Record, missing, refused};

/// A source prefix among those that send the most. Each CPU looks at one packet in [`TALKER_SAMPLE`]: these are estimates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopTalker {
    /// The first address of the prefix (IPv4 /24, IPv6 /64), which may be spoofed.
    pub network: IpAddr,
    /// Packets since the prefix is among them.
    pub packets: u64,
    /// How many of them were dropped.
    pub drops: u64,
}

impl Shield {
    /// The `count` prefixes that send the most.
    ///
    /// # Errors
    /// When the kernel refuses to give them.
    pub fn top_talkers(&self, count: usize) -> Result<Vec<TopTalker>, KernelError> {
        let state = self.state();
        let map = state
            .ebpf
            .map("talkers")
            .ok_or_else(|| missing("talkers"))?;
        let cells = PerCpuArray::<&MapData, Record<Talker>>::try_from(map);
        let cells = cells.map_err(refused("a map's type"))?;
        let mut found = Vec::new();
        for cell in 0..TALKER_CELLS {
            let of_cpus = cells.get(&cell, 0).map_err(refused("to give a cell"))?;
            found.extend(of_cpus.iter().map(|record| record.0));
        }
        drop(state);
        Ok(top(&found, count))
    }
}

/// Each CPU has a sketch of its own: what they say of a prefix is added up.
fn top(cells: &[Talker], count: usize) -> Vec<TopTalker> {
    let mut sums: HashMap<[u8; 8], (u64, u64)> = HashMap::new();
    for cell in cells.iter().filter(|cell| cell.packets > 0) {
        let (packets, drops) = sums.entry(cell.prefix).or_default();
        *packets += cell.packets;
        *drops += cell.drops;
    }
    let mut all: Vec<TopTalker> = sums
        .into_iter()
        .map(|(prefix, (packets, drops))| TopTalker {
            network: network(prefix),
            packets: packets * TALKER_SAMPLE,
            drops: drops * TALKER_SAMPLE,
        })
        .collect();
    all.sort_by_key(|talker| (std::cmp::Reverse(talker.packets), talker.network));
    all.truncate(count);
    all
}

/// The first address of a prefix.
fn network(prefix: [u8; 8]) -> IpAddr {
    match prefix {
        [a, b, c, 0, 0, 0, 0, 0xff] => Ipv4Addr::new(a, b, c, 0).into(),
        _ => Ipv6Addr::from_bits(u128::from(u64::from_be_bytes(prefix)) << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use headgate_common::frame::Source;

    use super::*;

    fn cell(address: &str, packets: u64, drops: u64) -> Talker {
        let address: IpAddr = address.parse().expect("an address");
        Talker {
            prefix: Source::from(address).prefix().to_le_bytes(),
            votes: 1,
            packets,
            drops,
        }
    }

    #[test]
    fn what_cpus_saw_is_added_up_and_named() {
        let cells = [
            cell("192.0.2.7", 3, 1),
            cell("2001:db8:1:2:3::4", 5, 0),
            Talker::default(),
            cell("192.0.2.200", 4, 4),
            cell("198.51.100.1", 1, 0),
        ];
        let shown: Vec<_> = top(&cells, 2)
            .iter()
            .map(|talker| (talker.network.to_string(), talker.packets, talker.drops))
            .collect();
        let expected = [("192.0.2.0", 224, 160), ("2001:db8:1:2::", 160, 0)];
        assert_eq!(shown, expected.map(|(n, p, d)| (n.to_owned(), p, d)));
    }
}
