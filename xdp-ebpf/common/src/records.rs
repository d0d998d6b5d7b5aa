//! Records in the kernel's maps. Their field names are what `bpftool map dump` prints.
//!
//! Whoever changes the shape or the meaning of a pinned record raises [`LAYOUT_VERSION`]: a broker that finds pins of
//! another version replaces them instead of reading them wrongly.

use crate::route::{NO_SLOT, SLOTS};

/// Version of all pinned records together; the first field of [`Config`].
pub const LAYOUT_VERSION: u32 = 1;
/// TCP ports that the shield watches.
pub const TCP_PORTS: usize = 4;
/// Entries of the map `workers`: every slot but the one that means none.
pub const WORKERS_MAX: u32 = SLOTS as u32;
/// Entries of the map `prefixes4`, and as many of `prefixes6`. Worst case about 100 bytes of kernel memory each.
pub const PREFIXES_MAX: u32 = 65_536;
/// Source prefixes share this many budgets for QUIC packets by keyed hash: 8 bytes each. Few, so that they stay in a
/// core's own cache: every packet of a connection meets one.
pub const PACKET_CELLS: u32 = 16_384;
/// The same for Initials and 0-RTT. Many, so that a prefix seldom shares its budget.
pub const INITIAL_CELLS: u32 = 65_536;
/// The same for TCP SYNs.
pub const SYN_CELLS: u32 = 16_384;
/// Entries of the socket array: a socket for IPv4 and one for IPv6 by slot.
pub const SOCKETS_MAX: u32 = 512;

/// One entry, map `config`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// [`LAYOUT_VERSION`] of whoever wrote it.
    pub layout_version: u32,
    /// UDP port of QUIC.
    pub quic_port: u16,
    /// 1: packets go to their worker's CPU by CPUMAP.
    pub cpumap: u16,
    /// TCP ports that are watched; 0 for none.
    pub tcp_ports: [u16; TCP_PORTS],
    /// Nanoseconds that the kernel's jiffy takes: the clock of the budgets.
    pub tick_ns: u64,
}

/// What a budget allows, as the kernel computes it: each packet is a debt of some nanoseconds that time pays back.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Nanoseconds between packets in the long run; 0 allows everything.
    pub per_packet_ns: u64,
    /// Debt that is still accepted, in nanoseconds.
    pub burst_ns: u64,
}

impl Limit {
    /// Allows everything.
    pub const UNLIMITED: Self = Self {
        per_packet_ns: 0,
        burst_ns: 0,
    };

    /// Allows `per_second` packets each second in the long run (0 = unlimited) and `burst` at once. The kernel's coarse
    /// clock ticks every 1 to 10 ms, so a burst holds at least 20 ms of packets.
    #[must_use]
    pub const fn new(per_second: u32, burst: u32) -> Self {
        if per_second == 0 {
            return Self::UNLIMITED;
        }
        let per_packet_ns = 1_000_000_000 / per_second as u64;
        let burst_ns = per_packet_ns.saturating_mul(burst.saturating_sub(1) as u64);
        Self {
            per_packet_ns,
            burst_ns: if burst_ns < Self::BURST_NS_MIN {
                Self::BURST_NS_MIN
            } else {
                burst_ns
            },
        }
    }

    /// Two ticks of the slowest clock (HZ = 100).
    const BURST_NS_MIN: u64 = 20_000_000;

    /// The debt after one more packet, or None if the budget is used up. `debt_until` is the time at which the debt
    /// is paid back.
    #[inline(always)]
    #[must_use]
    pub const fn charge(&self, debt_until: u64, now: u64) -> Option<u64> {
        let start = if debt_until > now { debt_until } else { now };
        if start - now > self.burst_ns {
            None
        } else {
            Some(start + self.per_packet_ns)
        }
    }
}

/// One entry, map `budgets`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Fragments, and packets with IP options or extension headers, of all sources together.
    pub fragments: Limit,
    /// Version Negotiation answers to all sources together.
    pub version_negotiations: Limit,
    /// Clients' first Initials and 0-RTT of all sources together.
    pub initials: Limit,
    /// The same, of one prefix (/24, /64).
    pub initials_per_prefix: Limit,
    /// QUIC packets of one prefix.
    pub packets_per_prefix: Limit,
    /// TCP SYNs of one prefix.
    pub syns_per_prefix: Limit,
}

impl Budgets {
    /// Allows everything.
    pub const UNLIMITED: Self = Self {
        fragments: Limit::UNLIMITED,
        version_negotiations: Limit::UNLIMITED,
        initials: Limit::UNLIMITED,
        initials_per_prefix: Limit::UNLIMITED,
        packets_per_prefix: Limit::UNLIMITED,
        syns_per_prefix: Limit::UNLIMITED,
    };
}

/// What is counted of packets, per CPU, in the maps `drops`, `answers` and `sockets`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes of these packets, link-layer header included, as their IP headers say.
    pub bytes: u64,
}

impl Counter {
    /// Adds another CPU's count.
    pub const fn add(&mut self, other: &Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// What is counted of packets, per CPU, in the map `passes`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassCounter {
    /// Packets.
    pub packets: u64,
    /// Bytes of these packets, link-layer header included, as their IP headers say.
    pub bytes: u64,
    /// How many of the packets were sent to another CPU.
    pub redirected: u64,
}

impl PassCounter {
    /// Adds another CPU's count.
    pub const fn add(&mut self, other: &Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.redirected += other.redirected;
    }
}

/// What a listed prefix means; the longest prefix decides.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListAction {
    /// Drop its packets.
    Deny = 1,
    /// No budget by source applies to it.
    Allow = 2,
}

impl ListAction {
    /// What a number in a map means: whoever edits it by hand may write anything, and anything unknown is ignored.
    #[inline(always)]
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Deny),
            2 => Some(Self::Allow),
            _ => None,
        }
    }
}

/// Values of the maps `prefixes4` and `prefixes6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListEntry {
    /// What to do with packets from the prefix.
    pub action: ListAction,
}

/// What a worker slot is used for.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerState {
    /// Nobody has it.
    Free = 0,
    /// Takes new connections.
    Active = 1,
    /// Keeps its connections, gets no new ones.
    Draining = 2,
}

/// Values of the map `workers`, by slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Which start of the broker it belongs to.
    pub generation: u64,
    /// The CPU that its thread is pinned to.
    pub cpu: u32,
    /// What the slot is used for.
    pub state: WorkerState,
}

/// Where the socket array holds a worker's socket for one IP version. A socket for both stands where
/// those of IPv6 do.
#[inline(always)]
#[must_use]
pub const fn socket_index(slot: u8, ipv6: bool) -> u32 {
    slot as u32 | (ipv6 as u32) << 8
}

const _: () =
    assert!(size_of::<Config>() == 24 && size_of::<Budgets>() == 96 && size_of::<Worker>() == 16);
const _: () = assert!(
    size_of::<PassCounter>() == 24 && size_of::<Counter>() == 16 && NO_SLOT as usize == SLOTS
);

#[cfg(test)]
mod tests {
    use super::*;

    /// Packets that pass when one arrives every `gap_ns` for a second.
    fn passed(limit: Limit, gap_ns: u64) -> u64 {
        let (mut debt, mut now, mut passed) = (0, 5_000_000_000, 0);
        while now < 6_000_000_000 {
            if let Some(next) = limit.charge(debt, now) {
                debt = next;
                passed += 1;
            }
            now += gap_ns;
        }
        passed
    }

    #[test]
    fn a_budget_allows_its_rate_and_its_burst_and_no_more() {
        let limit = Limit::new(1_000, 100);
        assert_eq!(
            passed(limit, 2_000_000),
            500,
            "below the rate everything passes"
        );
        assert!(
            (1_099..=1_101).contains(&passed(limit, 10_000)),
            "above it: rate plus burst"
        );
    }

    #[test]
    fn a_burst_at_once_is_as_long_as_promised() {
        let limit = Limit::new(1_000, 100);
        let mut debt = 0;
        let burst = core::iter::from_fn(|| {
            debt = limit.charge(debt, 77)?;
            Some(())
        });
        assert_eq!(burst.count(), 100);
    }

    #[test]
    fn an_unlimited_budget_never_runs_out() {
        assert_eq!(Limit::new(0, 5), Limit::UNLIMITED);
        assert_eq!(passed(Limit::UNLIMITED, 1_000), 1_000_000);
    }
}
