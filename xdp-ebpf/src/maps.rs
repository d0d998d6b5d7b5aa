//! The maps, and the lookups that the verdict needs.
//!
//! Names are what `bpftool` and the pins' files show, hence lower case.
#![expect(
    non_upper_case_globals,
    reason = "a map's name is part of the user's interface"
)]

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, CpuMap, LpmTrie, LruHashMap, PerCpuArray, ReusePortSockArray};
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use aya_ebpf::macros::btf_map;
use headgate_common::cid::RawCid;
use headgate_common::frame::Source;
use headgate_common::quota::{
    CLASSES_MAX, Debts, PENALTIES_MAX, PENALTY_BUCKETS, PENALTY_CELLS, PENALTY_FILTER_WORDS,
    Penalty, PenaltyBucket, PenaltyCell, PenaltyKey, QuotaClass, cell_index,
};
use headgate_common::records::{
    Budgets, Clock, Config, Counter, INITIAL_CELLS, ListAction, ListEntry, PACKET_CELLS,
    PREFIXES_MAX, PassCounter, RetryMode, SOCKETS_MAX, SYN_CELLS, VALIDATED_MAX, WORKERS_MAX,
    Worker,
};
use headgate_common::shield::{Debt, Environment, SharedDebt};
use headgate_common::talkers::{TALKER_CELLS, Talker};
use headgate_common::token::TokenKeys;
use headgate_common::{
    AnswerReason, Answers, DropReason, Drops, PassReason, Passes, Secrets, SocketReason, Sockets,
    Steering,
};

use crate::verifier::below;

// Pinned.
#[btf_map]
pub static config: Array<Config, 1> = Array::new();
#[btf_map]
pub static budgets: Array<Budgets, 1> = Array::new();
#[btf_map]
pub static steering: Array<Steering, 1> = Array::new();
#[btf_map]
pub static workers: Array<Worker, { WORKERS_MAX as usize }> = Array::new();
#[btf_map]
pub static prefixes4: LpmTrie<[u8; 4], ListEntry, { PREFIXES_MAX as usize }> = LpmTrie::new();
#[btf_map]
pub static prefixes6: LpmTrie<[u8; 16], ListEntry, { PREFIXES_MAX as usize }> = LpmTrie::new();
#[btf_map]
pub static quotas: Array<QuotaClass, { CLASSES_MAX as usize }> = Array::new();
#[btf_map]
pub static penalties: LruHashMap<PenaltyKey, Penalty, { PENALTIES_MAX as usize }> =
    LruHashMap::new();
#[btf_map]
pub static drops: PerCpuArray<Drops, 1> = PerCpuArray::new();
#[btf_map]
pub static passes: PerCpuArray<Passes, 1> = PerCpuArray::new();
#[btf_map]
pub static answers: PerCpuArray<Answers, 1> = PerCpuArray::new();
#[btf_map]
pub static sockets: PerCpuArray<Sockets, 1> = PerCpuArray::new();
#[btf_map]
pub static talkers: PerCpuArray<Talker, { TALKER_CELLS as usize }> = PerCpuArray::new();

// Not pinned: keys, which nobody else may read, and what belongs to one process or is not worth keeping.
#[btf_map]
pub static secrets: Array<Secrets, 1> = Array::new();
#[btf_map]
pub static clock: Array<Clock, 1> = Array::new();
#[btf_map]
pub static token_keys: Array<TokenKeys, 1> = Array::new();
/// By host. An LRU, because only who has shown a valid token gets an entry: a flood of spoofed sources can't evict them.
#[btf_map]
pub static validated_debts: LruHashMap<u64, u64, { VALIDATED_MAX as usize }> = LruHashMap::new();
#[btf_map]
pub static penalty_filter: Array<u64, { PENALTY_FILTER_WORDS as usize }> = Array::new();
#[btf_map]
pub static penalty_cells: Array<PenaltyCell, { PENALTY_CELLS as usize }> = Array::new();
#[btf_map]
pub static penalty_buckets: Array<PenaltyBucket, { PENALTY_BUCKETS as usize }> = Array::new();
/// By CPU number. The loader gives it as many entries as the machine has CPUs; the kernel refuses more.
#[btf_map]
pub static cpus: CpuMap<1> = CpuMap::new();
#[btf_map]
pub static sockets_by_slot: ReusePortSockArray<{ SOCKETS_MAX as usize }> =
    ReusePortSockArray::new();
#[btf_map]
pub static shared_debts: Array<u64, { SharedDebt::COUNT as usize }> = Array::new();
#[btf_map]
pub static packet_debts: Array<u64, { PACKET_CELLS as usize }> = Array::new();
#[btf_map]
pub static initial_debts: Array<u64, { INITIAL_CELLS as usize }> = Array::new();
#[btf_map]
pub static syn_debts: Array<u64, { SYN_CELLS as usize }> = Array::new();
#[btf_map]
pub static scratch: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// Where an answer is put together.
#[repr(C)]
pub struct Scratch {
    /// The answer's UDP payload; of a Retry, the pseudo-packet that its tag is made from.
    pub answer: [u64; 48],
    /// The client's connection ID.
    pub cid: [u64; 4],
}

/// The maps as the verdict sees them.
pub struct Maps;

impl Environment for Maps {
    type Debt = MapDebt;

    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        config.get(0)
    }

    #[inline(always)]
    fn budgets(&self) -> Option<&Budgets> {
        budgets.get(0)
    }

    #[inline(always)]
    fn secrets(&self) -> Option<&Secrets> {
        secrets.get(0)
    }

    #[inline(always)]
    fn steering(&self) -> Option<&Steering> {
        steering.get(0)
    }

    #[inline(always)]
    fn listed(&self, source: &Source) -> Option<(ListAction, u64)> {
        let entry = match *source {
            Source::V4(address) => {
                let key = [32, address];
                // SAFETY: the key is prefix length and address, as the trie's key type has them, and lives on the
                // stack during the lookup. Aligned words are written at once; the key type's packed bytes would not be.
                prefixes4.get(unsafe { &*key.as_ptr().cast::<Key<[u8; 4]>>() })
            }
            Source::V6([high, low]) => {
                let key = [
                    128,
                    high as u32,
                    (high >> 32) as u32,
                    low as u32,
                    (low >> 32) as u32,
                ];
                // SAFETY: as above.
                prefixes6.get(unsafe { &*key.as_ptr().cast::<Key<[u8; 16]>>() })
            }
        };
        // SAFETY: the entry starts with a number of four bytes. It is not read as an enum, because anybody with
        // bpftool may have written any number.
        entry.and_then(|entry| {
            let action =
                ListAction::from_number(unsafe { *core::ptr::from_ref(entry).cast::<u32>() })?;
            Some((action, u64::from(entry.expires_s)))
        })
    }

    #[inline(always)]
    fn unix_ns(&self) -> u64 {
        let offset = clock.get(0).map_or(0, |now| now.wall_offset_ns);
        // SAFETY: the helper has no arguments and no preconditions.
        unsafe { bpf_ktime_get_coarse_ns() }.wrapping_add(offset)
    }

    #[inline(always)]
    fn penalty_filter(&self, word: u32) -> u64 {
        penalty_filter.get(word).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn penalty(&self, cid: RawCid) -> Option<&Penalty> {
        let key = PenaltyKey::words(cid);
        let cell = penalty_cells.get(cell_index(cid.mac))?;
        if cell.shared != 0 && cell.cid[0] == key[0] && cell.cid[1] == key[1] {
            return Some(&cell.penalty);
        }
        if cell.shared < 2 {
            return None;
        }
        // SAFETY: the key has the size of the map's, and lives on the stack during the lookup. An entry that is
        // replaced meanwhile may be read half old, half new, which harms nobody.
        unsafe { penalties.get(&*key.as_ptr().cast::<PenaltyKey>()) }
    }

    #[inline(always)]
    fn quota(&self, class: u32) -> Option<&QuotaClass> {
        quotas.get(class)
    }

    #[inline(always)]
    fn penalty_debts(&self, bucket: u32, elsewhere: bool) -> Option<Debts> {
        let bucket = penalty_buckets.get(bucket)?;
        Some(if elsewhere {
            bucket.elsewhere
        } else {
            bucket.own
        })
    }

    #[inline(always)]
    fn set_penalty_debts(&self, bucket: u32, elsewhere: bool, debts: Debts) {
        let Some(bucket) = penalty_buckets.get_ptr_mut(bucket) else {
            return;
        };
        // SAFETY: a map's value is there until the program ends, and aligned. CPUs that write at once forget what one
        // of them has charged.
        unsafe {
            if elsewhere {
                (*bucket).elsewhere = debts;
            } else {
                (*bucket).own = debts;
            }
        }
    }

    #[inline(always)]
    fn now_ns(&self, settings: &Config) -> u64 {
        // Jiffies, because the verifier turns this helper into a single load, and every call costs as much as a check.
        // SAFETY: the helper has no arguments and no preconditions.
        unsafe { bpf_jiffies64() }.wrapping_mul(settings.tick_ns)
    }

    #[inline(always)]
    fn shared_debt(&self, of: SharedDebt) -> Option<MapDebt> {
        shared_debts.get_ptr_mut(of as u32).map(MapDebt)
    }

    #[inline(always)]
    fn packet_debt(&self, index: u32) -> Option<MapDebt> {
        packet_debts.get_ptr_mut(index).map(MapDebt)
    }

    #[inline(always)]
    fn initial_debt(&self, index: u32) -> Option<MapDebt> {
        initial_debts.get_ptr_mut(index).map(MapDebt)
    }

    #[inline(always)]
    fn syn_debt(&self, index: u32) -> Option<MapDebt> {
        syn_debts.get_ptr_mut(index).map(MapDebt)
    }

    #[inline(always)]
    fn validated_debt(&self, host: u64) -> Option<MapDebt> {
        if let Some(debt) = validated_debts.get_ptr_mut(&host) {
            return Some(MapDebt(debt));
        }
        validated_debts.insert(&host, &0, 0).ok()?;
        validated_debts.get_ptr_mut(&host).map(MapDebt)
    }

    #[inline(always)]
    fn retry_mode(&self, settings: &Config) -> RetryMode {
        // Read as a number, because anybody with bpftool may have written any.
        // SAFETY: the field is a number of four bytes.
        RetryMode::from_number(unsafe { *(&raw const settings.retry).cast::<u32>() })
    }

    #[inline(always)]
    fn token_keys(&self) -> Option<&TokenKeys> {
        token_keys.get(0)
    }
}

/// A debt in a map's value. Every access is a single instruction.
#[derive(Clone, Copy)]
pub struct MapDebt(*mut u64);

impl Debt for MapDebt {
    #[inline(always)]
    fn get(self) -> u64 {
        // SAFETY: a map's value is there until the program ends, and aligned.
        unsafe { self.0.read_volatile() }
    }

    #[inline(always)]
    fn set(self, until: u64) {
        // SAFETY: as above.
        unsafe { self.0.write_volatile(until) };
    }

    #[inline(always)]
    fn add(self, nanoseconds: u64) {
        // SAFETY: as above.
        unsafe { crate::verifier::atomic_add(self.0, nanoseconds) };
    }
}

impl Maps {
    /// Counts a packet that was let through; how many of this CPU's there were.
    #[inline(always)]
    pub fn count_pass(reason: PassReason, bytes: u32, redirected: bool) -> u64 {
        let Some(counters) = passes.get_ptr_mut(0) else {
            return 0;
        };
        let Some(index) = below::<{ PassReason::ALL.len() as u64 }>(reason as u64) else {
            return 0;
        };
        // SAFETY: the record is an array of so many counters (asserted beside it), per CPU, and this program is not
        // interrupted by itself.
        let counter = unsafe { &mut *counters.cast::<PassCounter>().add(index) };
        counter.packets += 1;
        counter.bytes += u64::from(bytes);
        counter.redirected += u64::from(redirected);
        counter.packets
    }

    /// Counts a packet that was dropped; how many of this CPU's there were.
    #[inline(always)]
    pub fn count_drop(reason: DropReason, bytes: u32) -> u64 {
        count::<_, { DropReason::ALL.len() as u64 }>(drops.get_ptr_mut(0), reason as u64, bytes)
    }

    /// Counts a packet that was answered; how many of this CPU's there were.
    #[inline(always)]
    pub fn count_answer(reason: AnswerReason, bytes: u32) -> u64 {
        count::<_, { AnswerReason::ALL.len() as u64 }>(answers.get_ptr_mut(0), reason as u64, bytes)
    }

    /// Counts a datagram that was given to a socket, or not.
    #[inline(always)]
    pub fn count_socket(reason: SocketReason, bytes: u32) {
        let _number = count::<_, { SocketReason::ALL.len() as u64 }>(
            sockets.get_ptr_mut(0),
            reason as u64,
            bytes,
        );
    }
}

/// `counters` must be an array of `COUNT` counters; the verifier refuses the program if it has fewer.
#[inline(always)]
fn count<T, const COUNT: u64>(counters: Option<*mut T>, reason: u64, bytes: u32) -> u64 {
    let Some(counters) = counters else { return 0 };
    let Some(index) = below::<COUNT>(reason) else {
        return 0;
    };
    // SAFETY: as in `count_pass`.
    let counter = unsafe { &mut *counters.cast::<Counter>().add(index) };
    counter.packets += 1;
    counter.bytes += u64::from(bytes);
    counter.packets
}
