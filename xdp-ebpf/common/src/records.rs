//! Records in the kernel's maps. Their field names are what `bpftool map dump` prints.
//!
//! Whoever changes the shape or the meaning of a pinned record raises [`LAYOUT_VERSION`]: a broker that finds pins of
//! another version replaces them instead of reading them wrongly.

use crate::route::{NO_SLOT, SLOTS};

/// Version of all pinned records together; the first field of [`Config`].
pub const LAYOUT_VERSION: u32 = 3;
/// TCP ports that the shield watches.
pub const TCP_PORTS: usize = 4;
/// Entries of the map `workers`: every slot but the one that means none.
pub const WORKERS_MAX: u32 = SLOTS as u32;
/// Entries of the map `prefixes4`, and as many of `prefixes6`. Worst case about 130 bytes of kernel memory each.
pub const PREFIXES_MAX: u32 = 65_536;
/// Source prefixes share this many budgets for QUIC packets by keyed hash: 8 bytes each. Few, so that they stay in a
/// core's own cache: every packet of a connection meets one.
pub const PACKET_CELLS: u32 = 16_384;
/// The same for Initials and 0-RTT. Many, so that a prefix seldom shares its budget.
pub const INITIAL_CELLS: u32 = 65_536;
/// The same for TCP SYNs.
pub const SYN_CELLS: u32 = 16_384;
/// Hosts with a valid token that have a budget of their own. About 100 bytes of kernel memory each.
pub const VALIDATED_MAX: u32 = 16_384;
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
    /// When Initials without a valid token are answered with Retry (RFC 9000 §8.1.2).
    pub retry: RetryMode,
    /// [`RetryMode::Auto`] begins above so many Initials without a valid token per second; 0 = never by this.
    pub retry_above_per_second: u32,
    /// And ends some seconds after there were fewer than this.
    pub retry_below_per_second: u32,
    /// A token of a Retry packet is good for so many seconds.
    pub retry_token_life_s: u32,
}

/// When Initials without a valid token are answered with Retry.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RetryMode {
    /// Under load, and where a budget is used up.
    #[default]
    Auto = 0,
    /// All of them.
    Always = 1,
    /// None: what is above a budget is dropped.
    Never = 2,
}

impl RetryMode {
    /// What a number in a map means: anything unknown is [`RetryMode::Auto`].
    #[inline(always)]
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Always,
            2 => Self::Never,
            _ => Self::Auto,
        }
    }
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
    /// Initials with a valid token, of all sources together.
    pub validated_initials: Limit,
    /// The same, of one address: a client repeats its token on every Initial, and so may somebody who has seen it.
    pub validated_initials_per_address: Limit,
    /// Retry answers to all sources together.
    pub retries: Limit,
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
        validated_initials: Limit::UNLIMITED,
        validated_initials_per_address: Limit::UNLIMITED,
        retries: Limit::UNLIMITED,
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

/// Why a prefix is listed.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListReason {
    /// Written by hand, without a reason.
    Unknown = 0,
    /// By the configuration.
    Configuration = 1,
    /// By an operator's command.
    Operator = 2,
    /// Automatically: it sent malformed packets too often.
    MalformedPackets = 3,
    /// Automatically: it failed to authenticate too often.
    FailedAuthentications = 4,
}

impl ListReason {
    /// What a number in a map means.
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Configuration,
            2 => Self::Operator,
            3 => Self::MalformedPackets,
            4 => Self::FailedAuthentications,
            _ => Self::Unknown,
        }
    }

    /// The reason in snake case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Configuration => "configuration",
            Self::Operator => "operator",
            Self::MalformedPackets => "malformed_packets",
            Self::FailedAuthentications => "failed_authentications",
        }
    }
}

/// Values of the maps `prefixes4` and `prefixes6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListEntry {
    /// What to do with packets from the prefix.
    pub action: ListAction,
    /// Why.
    pub reason: ListReason,
    /// Until when, in Unix seconds (good until 2106); 0 for ever. Four bytes, because the kernel aligns a trie's values
    /// no better.
    pub expires_s: u32,
}

/// One entry, map `clock`, which is not pinned.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Nanoseconds from `CLOCK_MONOTONIC`, which kernel programs can read, to Unix time.
    pub wall_offset_ns: u64,
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
    assert!(size_of::<Config>() == 40 && size_of::<Budgets>() == 144 && size_of::<Worker>() == 16);
const _: () = assert!(size_of::<ListEntry>() == 12 && size_of::<Clock>() == 8);
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
