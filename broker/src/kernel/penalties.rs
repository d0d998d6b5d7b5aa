//! Connection IDs that the kernel polices.
//!
//! All connection IDs of one connection share a bucket, and a filter in front of the map keeps the cost from all
//! others. Only this process adds and removes: it knows what is there without asking the kernel.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::HashMap as KernelMap;
use headgate_common::cid::{CID_LEN, RawCid};
use headgate_common::quota::{
    PENALTY_BUCKETS, Penalty, PenaltyBucket, PenaltyKey, PenaltyReason, filter_bit,
};
use headgate_common::shield::address_hash;

use super::error::KernelError;
use super::lists::is_absent;
use super::live::unix_s;
use super::loader::{Shield, State};
use super::maps::{self, Record, missing, refused};

/// Connection IDs that are policed at a time. Fewer than the map has room for, which evicts by itself when it is full.
const CIDS_MAX: usize = 8_192;
/// [`Penalty`] as it is read: somebody may have written a number that is no reason.
type PenaltyWords = [u64; size_of::<Penalty>() / 8];

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
        let secrets = &state.router.secrets;
        let own_address = order.own_address.map_or(0, |address| {
            address_hash(&address.to_canonical().into(), secrets)
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
        let Some(policed) = self.penalties.by_bucket.get_mut(&id.bucket) else {
            return Ok(false);
        };
        if policed.serial != id.serial {
            return Ok(false);
        }
        if policed.cids.contains(&cid) || self.penalties.cids >= CIDS_MAX {
            return Ok(true);
        }
        let map = self
            .ebpf
            .map_mut("penalties")
            .ok_or_else(|| missing("penalties"))?;
        let mut map = KernelMap::<_, Record<PenaltyKey>, Record<Penalty>>::try_from(map)
            .map_err(refused("a map's type"))?;
        map.insert(Record(PenaltyKey::new(cid)), Record(policed.record), 0)
            .map_err(refused("one more penalty"))?;
        policed.cids.push(cid);
        self.penalties.cids += 1;
        let bit = filter_bit(RawCid::from_bytes(&cid).mac);
        let shared = self.penalties.shared_bits.entry(bit).or_default();
        *shared += 1;
        if *shared == 1 {
            self.flip(bit)?;
        }
        Ok(true)
    }

    fn pardon(&mut self, id: PenaltyId) -> Result<(), KernelError> {
        let is_it = |policed: &Policed| policed.serial == id.serial;
        if !self.penalties.by_bucket.get(&id.bucket).is_some_and(is_it) {
            return Ok(());
        }
        let Some(policed) = self.penalties.by_bucket.remove(&id.bucket) else {
            return Ok(());
        };
        self.penalties.free.push(id.bucket);
        self.penalties.cids -= policed.cids.len();
        for cid in policed.cids {
            let map = self
                .ebpf
                .map_mut("penalties")
                .ok_or_else(|| missing("penalties"))?;
            let mut map = KernelMap::<_, Record<PenaltyKey>, Record<Penalty>>::try_from(map)
                .map_err(refused("a map's type"))?;
            match map.remove(&Record(PenaltyKey::new(cid))) {
                // The map evicts by itself.
                Err(error) if !is_absent(&error) => {
                    return Err(refused("to remove a penalty")(error));
                }
                _ => {}
            }
            let bit = filter_bit(RawCid::from_bytes(&cid).mac);
            if let Some(shared) = self.penalties.shared_bits.get_mut(&bit) {
                *shared -= 1;
                if *shared == 0 {
                    self.penalties.shared_bits.remove(&bit);
                    self.flip(bit)?;
                }
            }
        }
        Ok(())
    }

    /// Flips a bit of the filter, which nobody else writes.
    fn flip(&mut self, (word, bit): (u32, u32)) -> Result<(), KernelError> {
        let before: u64 = maps::read_entry(&self.ebpf, "penalty_filter", word)?;
        maps::write_plain(&mut self.ebpf, "penalty_filter", word, before ^ 1 << bit)
    }
}

/// Removes what an earlier process has left in the pinned map.
pub(super) fn clear(ebpf: &mut Ebpf) -> Result<(), KernelError> {
    let map = ebpf
        .map_mut("penalties")
        .ok_or_else(|| missing("penalties"))?;
    let mut map = KernelMap::<_, Record<PenaltyKey>, PenaltyWords>::try_from(map)
        .map_err(refused("a map's type"))?;
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
