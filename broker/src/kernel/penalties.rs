//! Connection IDs that the kernel polices.
//!
//! All connection IDs of one connection share a bucket. A filter keeps the cost from all other connections, and cells
//! that are found by a connection ID's MAC spare nearly all policed packets the look-up in the map `penalties`. That map
//! is the one for people: what somebody removes or changes there is carried over within a second.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{HashMap as KernelMap, MapData};
use headgate_common::cid::{CID_LEN, RawCid};
use headgate_common::frame::Source;
use headgate_common::quota::{
    PENALTY_BUCKETS, Penalty, PenaltyBucket, PenaltyCell, PenaltyKey, PenaltyReason, cell_index,
    filter_bit,
};

use super::error::KernelError;
use super::lists::is_absent;
use super::live::unix_s;
use super::loader::{Shield, State};
use super::maps::{self, Record, missing, refused};

/// Connection IDs that are policed at a time. Fewer than the map has room for, which evicts by itself when it is full.
const CIDS_MAX: usize = 8_192;
/// [`Penalty`] as it is read: somebody may have written a number that is no reason.
type PenaltyWords = [u64; size_of::<Penalty>() / 8];
/// [`PenaltyCell`] with such a record.
type CellWords = [u64; size_of::<PenaltyCell>() / 8];
/// How many connection IDs are compared with the map while others wait.
const HEEDED_AT_ONCE: usize = 256;

/// A connection that is policed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PenaltyId {
    bucket: u32,
    /// Tells it from others that had its bucket before.
    serial: u64,
}

/// How a connection is policed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PenaltyOrder {
    /// The class whose rates apply.
    pub class: u32,
    /// Why.
    pub reason: PenaltyReason,
    /// The connection's own address, whose packets have the rates for themselves; packets from elsewhere then have a
    /// sixteenth. `None` = all addresses are alike.
    pub own_address: Option<IpAddr>,
    /// Until it is pardoned by itself, unless it is ordered again.
    pub lasts: Duration,
}

/// What this process has put into the kernel's maps.
#[derive(Debug, Default)]
pub(super) struct Penalties {
    serial: u64,
    by_bucket: HashMap<u32, Policed>,
    /// Which buckets were used before and are free again.
    free: Vec<u32>,
    /// How many policed connection IDs share a bit of the filter.
    shared_bits: HashMap<(u32, u32), u32>,
    /// The policed connection IDs that share a cell, and their buckets. The first one has it.
    by_cell: HashMap<u32, Vec<([u8; CID_LEN], u32)>>,
    cids: usize,
}

#[derive(Debug)]
struct Policed {
    serial: u64,
    record: Penalty,
    cids: Vec<[u8; CID_LEN]>,
}

impl Shield {
    /// Polices a connection by all its connection IDs. With nothing free the one that ends first makes room.
    ///
    /// # Errors
    /// When the kernel refuses a change.
    pub fn penalize(
        &self,
        cids: &[[u8; CID_LEN]],
        order: PenaltyOrder,
    ) -> Result<PenaltyId, KernelError> {
        let mut state = self.state();
        let state = &mut *state;
        let buckets = PENALTY_BUCKETS as usize;
        while state.penalties.by_bucket.len() >= buckets
            || state.penalties.cids + cids.len() > CIDS_MAX && state.penalties.cids > 0
        {
            let Some(id) = state.penalties.first_to_end() else {
                break;
            };
            state.pardon(id)?;
        }
        let unused = state.penalties.by_bucket.len() as u32;
        let bucket = state.penalties.free.pop().unwrap_or(unused);
        state.penalties.serial += 1;
        let serial = state.penalties.serial;
        let own_address = order.own_address.map_or([0; 16], |address| {
            let [first, second] = Source::from(address.to_canonical()).mapped();
            (u128::from(first) | u128::from(second) << 64).to_le_bytes()
        });
        let record = Penalty {
            own_address,
            expires_s: unix_s() + order.lasts.as_secs().max(1),
            bucket,
            class: order.class,
            reason: order.reason,
            zero: 0,
        };
        let fresh = PenaltyBucket::default();
        maps::write(&mut state.ebpf, "penalty_buckets", bucket, fresh)?;
        let policed = Policed {
            serial,
            record,
            cids: Vec::with_capacity(cids.len()),
        };
        state.penalties.by_bucket.insert(bucket, policed);
        let id = PenaltyId { bucket, serial };
        for &cid in cids {
            state.police(id, cid)?;
        }
        Ok(id)
    }

    /// One more connection ID of a policed connection. Says whether it is policed still.
    ///
    /// # Errors
    /// When the kernel refuses the change.
    pub fn penalize_also(&self, id: PenaltyId, cid: [u8; CID_LEN]) -> Result<bool, KernelError> {
        self.state().police(id, cid)
    }

    /// Lets a connection go on as before. Does nothing if it is not policed any more.
    ///
    /// # Errors
    /// When the kernel refuses the change.
    pub fn pardon(&self, id: PenaltyId) -> Result<(), KernelError> {
        self.state().pardon(id)
    }

    /// How many connections and connection IDs are policed.
    #[must_use]
    pub fn penalized(&self) -> (usize, usize) {
        let state = self.state();
        (state.penalties.by_bucket.len(), state.penalties.cids)
    }

    /// Carries over what somebody has changed in the map `penalties`: who is removed there with one connection ID is
    /// pardoned with all.
    pub(super) fn heed_edited_penalties(&self) -> Result<(), KernelError> {
        let policed: Vec<_> = self.state().penalties.all().collect();
        for some in policed.chunks(HEEDED_AT_ONCE) {
            let mut state = self.state();
            for &(id, cid) in some {
                state.heed(id, cid)?;
            }
        }
        Ok(())
    }

    /// Pardons those whose time is over.
    pub(super) fn forget_expired_penalties(&self) -> Result<(), KernelError> {
        let now = unix_s();
        let mut state = self.state();
        for id in state.penalties.expired(now) {
            state.pardon(id)?;
        }
        Ok(())
    }
}

impl Penalties {
    fn all(&self) -> impl Iterator<Item = (PenaltyId, [u8; CID_LEN])> {
        self.by_bucket.iter().flat_map(|(&bucket, policed)| {
            let serial = policed.serial;
            let cids = policed.cids.iter();
            cids.map(move |&cid| (PenaltyId { bucket, serial }, cid))
        })
    }

    fn get(&self, id: PenaltyId) -> Option<&Policed> {
        let policed = self.by_bucket.get(&id.bucket)?;
        (policed.serial == id.serial).then_some(policed)
    }

    fn first_to_end(&self) -> Option<PenaltyId> {
        let first = self
            .by_bucket
            .iter()
            .min_by_key(|(_, policed)| (policed.record.expires_s, policed.serial));
        first.map(|(&bucket, policed)| PenaltyId {
            bucket,
            serial: policed.serial,
        })
    }

    fn expired(&self, now_s: u64) -> Vec<PenaltyId> {
        let over = self
            .by_bucket
            .iter()
            .filter(|(_, policed)| policed.record.expires_s <= now_s);
        over.map(|(&bucket, policed)| PenaltyId {
            bucket,
            serial: policed.serial,
        })
        .collect()
    }
}

impl State {
    fn police(&mut self, id: PenaltyId, cid: [u8; CID_LEN]) -> Result<bool, KernelError> {
        let Some(policed) = self.penalties.get(id) else {
            return Ok(false);
        };
        if policed.cids.contains(&cid) || self.penalties.cids >= CIDS_MAX {
            return Ok(true);
        }
        let record = policed.record.words();
        policed_map(&mut self.ebpf)?
            .insert(Record(PenaltyKey::new(cid)), record, 0)
            .map_err(refused("one more penalty"))?;
        if let Some(policed) = self.penalties.by_bucket.get_mut(&id.bucket) {
            policed.cids.push(cid);
        }
        self.penalties.cids += 1;
        let mac = RawCid::from_bytes(&cid).mac;
        let sharing = self.penalties.by_cell.entry(cell_index(mac)).or_default();
        sharing.push((cid, id.bucket));
        self.show_cell(cell_index(mac))?;
        let bit = filter_bit(mac);
        let shared = self.penalties.shared_bits.entry(bit).or_default();
        *shared += 1;
        if *shared == 1 {
            self.flip(bit)?;
        }
        Ok(true)
    }

    fn pardon(&mut self, id: PenaltyId) -> Result<(), KernelError> {
        if self.penalties.get(id).is_none() {
            return Ok(());
        }
        let Some(policed) = self.penalties.by_bucket.remove(&id.bucket) else {
            return Ok(());
        };
        self.penalties.free.push(id.bucket);
        self.penalties.cids -= policed.cids.len();
        for cid in policed.cids {
            self.forget(cid)?;
        }
        Ok(())
    }

    fn forget(&mut self, cid: [u8; CID_LEN]) -> Result<(), KernelError> {
        let key = Record(PenaltyKey::new(cid));
        match policed_map(&mut self.ebpf)?.remove(&key) {
            // The map evicts by itself, and anybody may remove an entry.
            Err(error) if !is_absent(&error) => {
                return Err(refused("to remove a penalty")(error));
            }
            _ => {}
        }
        let mac = RawCid::from_bytes(&cid).mac;
        let cell = cell_index(mac);
        if let Some(sharing) = self.penalties.by_cell.get_mut(&cell) {
            sharing.retain(|(other, _)| *other != cid);
            if sharing.is_empty() {
                self.penalties.by_cell.remove(&cell);
            }
            self.show_cell(cell)?;
        }
        let bit = filter_bit(mac);
        if let Some(shared) = self.penalties.shared_bits.get_mut(&bit) {
            *shared -= 1;
            if *shared == 0 {
                self.penalties.shared_bits.remove(&bit);
                self.flip(bit)?;
            }
        }
        Ok(())
    }

    /// Writes a cell as it has to be by what is policed.
    fn show_cell(&mut self, cell: u32) -> Result<(), KernelError> {
        let sharing = self.penalties.by_cell.get(&cell);
        let first = sharing.and_then(|sharing| sharing.first());
        let words = first.and_then(|(cid, bucket)| {
            let record = self.penalties.by_bucket.get(bucket)?.record;
            Some(cell_words(cid, sharing.map_or(0, Vec::len), record.words()))
        });
        let words = words.unwrap_or_default();
        maps::write_plain(&mut self.ebpf, "penalty_cells", cell, words)
    }

    /// Compares one connection ID with what the map `penalties` says of it now.
    fn heed(&mut self, id: PenaltyId, cid: [u8; CID_LEN]) -> Result<(), KernelError> {
        if self.penalties.get(id).is_none() {
            return Ok(());
        }
        let found = policed_map(&mut self.ebpf)?.get(&Record(PenaltyKey::new(cid)), 0);
        let words = match found {
            Ok(words) => words,
            Err(error) if is_absent(&error) => return self.pardon(id),
            Err(error) => return Err(refused("to give a penalty")(error)),
        };
        let cell = cell_index(RawCid::from_bytes(&cid).mac);
        let sharing = self.penalties.by_cell.get(&cell);
        let has_cell = sharing.is_some_and(|sharing| sharing.first() == Some(&(cid, id.bucket)));
        if !has_cell {
            return Ok(());
        }
        let words = cell_words(&cid, sharing.map_or(0, Vec::len), words);
        let shown: CellWords = maps::read_entry(&self.ebpf, "penalty_cells", cell)?;
        if shown == words {
            return Ok(());
        }
        maps::write_plain(&mut self.ebpf, "penalty_cells", cell, words)
    }

    /// Flips a bit of the filter, which nobody else writes.
    fn flip(&mut self, (word, bit): (u32, u32)) -> Result<(), KernelError> {
        let before: u64 = maps::read_entry(&self.ebpf, "penalty_filter", word)?;
        maps::write_plain(&mut self.ebpf, "penalty_filter", word, before ^ 1 << bit)
    }
}

/// [`PenaltyCell`] in words.
fn cell_words(cid: &[u8; CID_LEN], shared: usize, record: PenaltyWords) -> CellWords {
    let [first, second] = PenaltyKey::words(RawCid::from_bytes(cid));
    let [a, b, c, d, e] = record;
    [first, second, shared as u64, a, b, c, d, e]
}

/// The map `penalties`.
fn policed_map(
    ebpf: &mut Ebpf,
) -> Result<KernelMap<&mut MapData, Record<PenaltyKey>, PenaltyWords>, KernelError> {
    let map = ebpf
        .map_mut("penalties")
        .ok_or_else(|| missing("penalties"))?;
    KernelMap::try_from(map).map_err(refused("a map's type"))
}

/// Removes what an earlier process has left in the pinned map.
pub(super) fn clear(ebpf: &mut Ebpf) -> Result<(), KernelError> {
    let mut map = policed_map(ebpf)?;
    let keys: Vec<_> = map.keys().flatten().collect();
    for key in keys {
        match map.remove(&key) {
            Err(error) if !is_absent(&error) => {
                return Err(refused("to remove a penalty")(error));
            }
            _ => {}
        }
    }
    Ok(())
}
