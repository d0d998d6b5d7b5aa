//! Classes of quotas, and connection IDs that are policed.
//!
//! A session's class comes from who its client is. User space enforces what is counted in messages; a session that
//! goes on above its quota has its connection IDs put into the map `penalties`, and the kernel then polices their
//! packets by the rates of the class.

use crate::cid::{CID_LEN, RawCid};
use crate::frame::Source;

/// Entries of the map `quotas`.
pub const CLASSES_MAX: u32 = 64;
/// Longest name of a class, in bytes; the record keeps one more, which is 0.
pub const CLASS_NAME_LEN: usize = 31;
/// The class of sessions without another.
pub const CLASS_DEFAULT: u32 = 0;
/// The class of connection IDs that carry forged packets, or whose connection is gone.
pub const CLASS_SUSPECT: u32 = 1;
/// Entries of the map `penalties`. About 130 bytes of kernel memory each.
pub const PENALTIES_MAX: u32 = 16_384;
/// Connections that can be policed at a time: entries of the map `penalty_buckets`.
pub const PENALTY_BUCKETS: u32 = 4_096;
/// Words of the map `penalty_filter`: a bit for each value of a MAC's low 16 bits.
pub const PENALTY_FILTER_WORDS: u32 = 1_024;
/// Entries of the map `penalty_cells`: one for each value of the MAC's next 13 bits.
pub const PENALTY_CELLS: u32 = 8_192;
/// A packet that doesn't come from the connection's own address costs so much more of its penalty.
pub const ELSEWHERE_COST: u64 = 16;
/// What may come at once of a policed connection, in nanoseconds of its rate.
const BURST_NS: u64 = 250_000_000;
const SECOND_NS: u64 = 1_000_000_000;

/// Values of the map `quotas`, by the class's number. 0 in a quota means no limit.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaClass {
    /// The class's name, filled up with zeros; empty where there is no class.
    pub name: [u8; CLASS_NAME_LEN + 1],
    /// QUIC packets per second from one connection, while it is policed.
    pub packets_per_second: u64,
    /// Bytes per second from one connection, link-layer header included, while it is policed.
    pub bytes_per_second: u64,
    /// PUBLISH packets per second from one session.
    pub messages_per_second: u64,
    /// Connections of the class.
    pub connections: u64,
    /// Subscriptions of one session.
    pub subscriptions: u64,
    /// Messages that wait for one session.
    pub queued_messages: u64,
    /// Memory of the messages that wait for one session or are on their way to it, in bytes.
    pub memory_bytes: u64,
}

impl QuotaClass {
    /// No class.
    pub const NONE: Self = Self {
        name: [0; CLASS_NAME_LEN + 1],
        packets_per_second: 0,
        bytes_per_second: 0,
        messages_per_second: 0,
        connections: 0,
        subscriptions: 0,
        queued_messages: 0,
        memory_bytes: 0,
    };

    /// A class without limits. A name that is too long is cut.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let mut class = Self::NONE;
        for (to, from) in class.name.iter_mut().take(CLASS_NAME_LEN).zip(name.bytes()) {
            *to = from;
        }
        class
    }

    /// Its name; "" where there is no class, or somebody wrote other than text.
    #[must_use]
    pub fn name(&self) -> &str {
        let end = self.name.iter().position(|byte| *byte == 0);
        let name = self.name.get(..end.unwrap_or(self.name.len()));
        name.and_then(|name| core::str::from_utf8(name).ok())
            .unwrap_or("")
    }

    /// Whether a policed packet of `bytes` is within the rates. `cost` is how much more than usual it takes.
    #[inline(always)]
    #[must_use]
    pub const fn allows(&self, debts: Debts, bytes: u32, cost: u64, now_ns: u64) -> Option<Debts> {
        let Some(packets) = charge(
            debts.packets_until,
            1,
            self.packets_per_second,
            cost,
            now_ns,
        ) else {
            return None;
        };
        let charged = charge(
            debts.bytes_until,
            bytes as u64,
            self.bytes_per_second,
            cost,
            now_ns,
        );
        match charged {
            Some(bytes) => Some(Debts {
                packets_until: packets,
                bytes_until: bytes,
            }),
            None => None,
        }
    }
}

#[inline(always)]
const fn charge(until: u64, amount: u64, per_second: u64, cost: u64, now: u64) -> Option<u64> {
    if per_second == 0 {
        return Some(until);
    }
    let start = if until > now { until } else { now };
    if start - now > BURST_NS {
        return None;
    }
    Some(start + amount * cost * SECOND_NS / per_second)
}

/// Until when what a policed connection has sent is paid back by time, in nanoseconds of the kernel's clock.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Debts {
    /// Of its packets.
    pub packets_until: u64,
    /// Of its bytes.
    pub bytes_until: u64,
}

/// Values of the map `penalty_buckets`: what all connection IDs of one connection share.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PenaltyBucket {
    /// From the connection's own address.
    pub own: Debts,
    /// From elsewhere: somebody who has seen a connection ID must not use up what its owner has.
    pub elsewhere: Debts,
}

/// Keys of the map `penalties`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PenaltyKey {
    /// A connection ID of ours.
    pub cid: [u8; CID_LEN],
    /// Zero.
    pub zero: [u8; 2],
}

impl PenaltyKey {
    /// The key of a connection ID.
    #[must_use]
    pub const fn new(cid: [u8; CID_LEN]) -> Self {
        Self { cid, zero: [0; 2] }
    }

    /// The same bytes as two little-endian words, as a kernel program holds them.
    #[inline(always)]
    #[must_use]
    pub const fn words(cid: RawCid) -> [u64; 2] {
        [cid.first, cid.second as u64 | (cid.mac as u64) << 16]
    }
}

/// Where the filter in front of the map `penalties` has a connection ID's bit: the word, and the bit in it. Nearly all
/// connection IDs are not policed, and the filter is much faster than the map.
#[inline(always)]
#[must_use]
pub const fn filter_bit(mac: u32) -> (u32, u32) {
    ((mac >> 6) & (PENALTY_FILTER_WORDS - 1), mac & 63)
}

/// Index in `penalty_cells`, by other bits of the MAC than the filter's.
#[inline(always)]
#[must_use]
pub const fn cell_index(mac: u32) -> u32 {
    (mac >> 16) & (PENALTY_CELLS - 1)
}

/// Why a connection ID is policed.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PenaltyReason {
    /// Its session went on above its quota.
    Quota = 0,
    /// Packets that carry it don't decrypt.
    Forgeries = 1,
    /// Its connection is gone.
    Dead = 2,
}

/// Values of the map `penalties`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Penalty {
    /// The connection's own address as one of IPv6, mapped if it is of IPv4; all zero = all addresses are alike.
    pub own_address: [u8; 16],
    /// Until when, in Unix seconds.
    pub expires_s: u64,
    /// Index in `penalty_buckets`: the same for all connection IDs of the connection.
    pub bucket: u32,
    /// Index in `quotas`: the rates.
    pub class: u32,
    /// Why.
    pub reason: PenaltyReason,
    /// Zero.
    pub zero: u32,
}

impl Penalty {
    /// The same bytes as little-endian words.
    #[must_use]
    pub const fn words(&self) -> [u64; 5] {
        let [a, b] = self.own_words();
        let bucket_and_class = self.bucket as u64 | (self.class as u64) << 32;
        let reason = self.reason as u64 | (self.zero as u64) << 32;
        [a, b, self.expires_s, bucket_and_class, reason]
    }

    #[inline(always)]
    const fn own_words(&self) -> [u64; 2] {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.own_address;
        [
            u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            u64::from_le_bytes([i, j, k, l, m, n, o, p]),
        ]
    }

    /// Whether a packet from there is not from the connection's own address.
    #[inline(always)]
    #[must_use]
    pub const fn is_elsewhere(&self, source: &Source) -> bool {
        let own = self.own_words();
        let from = source.mapped();
        own[0] | own[1] != 0 && (own[0] != from[0] || own[1] != from[1])
    }
}

/// Values of the map `penalty_cells`: what `penalties` says of one connection ID, found without a call of the kernel's
/// hash table, which costs more than the rest of a packet's policing.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PenaltyCell {
    /// [`PenaltyKey::words`].
    pub cid: [u64; 2],
    /// How many policed connection IDs share the cell. All but this one are found in `penalties` only.
    pub shared: u64,
    /// The entry in `penalties`.
    pub penalty: Penalty,
}

const _: () = assert!(size_of::<QuotaClass>() == 88 && size_of::<Penalty>() == 40);
const _: () = assert!(size_of::<PenaltyCell>() == 64);
const _: () = assert!(size_of::<PenaltyKey>() == 16 && size_of::<PenaltyBucket>() == 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_has_its_name_and_no_limits() {
        let class = QuotaClass::named("sensors");
        assert_eq!(class.name(), "sensors");
        assert_eq!(QuotaClass::NONE.name(), "");
        let long = QuotaClass::named(&"x".repeat(100));
        assert_eq!(long.name().len(), CLASS_NAME_LEN);
        let broken = QuotaClass {
            name: [0xff; CLASS_NAME_LEN + 1],
            ..class
        };
        assert_eq!(broken.name(), "");
        let debts = Debts::default();
        assert_eq!(class.allows(debts, 1_500, 1, 7), Some(debts));
    }

    /// Packets of 1,000 bytes that pass when one comes every millisecond for ten seconds.
    fn passed(class: &QuotaClass, cost: u64) -> u64 {
        let (mut debts, mut passed) = (Debts::default(), 0);
        for millisecond in 0..10_000 {
            let now = SECOND_NS + millisecond * 1_000_000;
            if let Some(next) = class.allows(debts, 1_000, cost, now) {
                debts = next;
                passed += 1;
            }
        }
        passed
    }

    #[test]
    fn rates_are_kept() {
        let packets = QuotaClass {
            packets_per_second: 100,
            ..QuotaClass::named("a")
        };
        assert!((1_000..=1_027).contains(&passed(&packets, 1)));
        assert!((62..=66).contains(&passed(&packets, ELSEWHERE_COST)));
        let bytes = QuotaClass {
            bytes_per_second: 50_000,
            ..QuotaClass::named("b")
        };
        assert!((500..=514).contains(&passed(&bytes, 1)));
    }

    #[test]
    fn a_key_has_the_same_bytes_in_words() {
        let cid = core::array::from_fn(|i| i as u8 + 1);
        let [a, b] = PenaltyKey::words(RawCid::from_bytes(&cid));
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&a.to_le_bytes());
        bytes[8..].copy_from_slice(&b.to_le_bytes());
        assert_eq!(bytes[..14], cid);
        assert_eq!(bytes[14..], PenaltyKey::new(cid).zero);
    }
}
