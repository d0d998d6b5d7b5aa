//! Who may open a connection, and which connection IDs the kernel shall police.
//!
//! The connection IDs of a connection are known here only: quinn-proto makes them by a generator of ours, and keeps
//! them to itself.

use std::{
    cell::Cell,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use headgate_common::{
    CidKeys, Head,
    cid::{CID_LEN, RANDOM_LEN},
    quota::{CLASS_SUSPECT, PenaltyReason},
    records::Limit,
};

use crate::{
    kernel::{PenaltyId, PenaltyOrder},
    metrics::WorkerMetrics,
    net::token::RetryGate,
};

/// Connection IDs of one connection that are remembered. A peer holds 3 at a time, and the oldest are retired first.
const CIDS_MAX: usize = 16;
/// So many packets of a connection that don't decrypt, and it is policed. Some come with the network: packets of a
/// handshake that is over, damaged ones, and such that others have overtaken by more than their shortened packet numbers
/// tell apart (RFC 9000 §17.1).
const FORGERIES_MAX: u32 = 32;
/// So many packets that decrypt make up for one that doesn't.
const AUTHENTIC_PER_FORGERY: u32 = 8;
/// A connection is policed for so long after packets that don't decrypt, unless they go on.
const SUSPICION: Duration = Duration::from_secs(30);
/// A connection ID whose connection is gone is policed for so long.
const DEAD: Duration = Duration::from_secs(10);
/// Connection IDs without a connection that a worker has policed, per second and at once: each costs a system call.
const DEAD_CIDS: Limit = Limit::new(200, 400);

/// Who polices connection IDs: the kernel part.
pub trait Police: Send + Sync {
    /// Polices a connection by all its connection IDs; `None` if it can't be done.
    fn penalize(&self, cids: &[[u8; CID_LEN]], order: PenaltyOrder) -> Option<PenaltyId>;
    /// One more connection ID of a policed connection.
    fn penalize_also(&self, id: PenaltyId, cid: [u8; CID_LEN]);
    /// Lets it go on as before.
    fn pardon(&self, id: PenaltyId);
}

/// The connection IDs that a worker's generator has made and nobody has asked about yet.
#[derive(Clone, Debug, Default)]
pub struct Issued(Arc<Mutex<Vec<[u8; RANDOM_LEN]>>>);

impl Issued {
    /// Notes one. What nobody asks about is bounded: it is a handful for each call of quinn-proto.
    pub fn note(&self, random: [u8; RANDOM_LEN]) {
        let mut issued = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if issued.len() < CIDS_MAX {
            issued.push(random);
        }
    }

    fn take(&self, mut each: impl FnMut([u8; RANDOM_LEN])) {
        let mut issued = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        issued.drain(..).for_each(&mut each);
    }
}

/// What is known of one connection.
#[derive(Debug, Default)]
pub struct Record {
    /// The random parts of its connection IDs, oldest first.
    cids: Vec<[u8; RANDOM_LEN]>,
    /// Packets that didn't decrypt since it was last policed for that, [`AUTHENTIC_PER_FORGERY`] for each, less those that
    /// did.
    suspicion: u32,
    /// While it is policed, and until when.
    penalty: Option<Box<(PenaltyId, Instant)>>,
}

impl Record {
    /// Packets of the connection didn't decrypt. Whether that is suspicious; then it begins anew.
    fn suspect(&mut self, count: u32) -> bool {
        let weight = count.saturating_mul(AUTHENTIC_PER_FORGERY);
        self.suspicion = self.suspicion.saturating_add(weight);
        let is_suspicious = self.suspicion >= FORGERIES_MAX * AUTHENTIC_PER_FORGERY;
        if is_suspicious {
            self.suspicion = 0;
        }
        is_suspicious
    }

    /// Packets of the connection did.
    pub fn trust(&mut self, count: u32) {
        self.suspicion = self.suspicion.saturating_sub(count);
    }
}

/// What a worker's guard is made from.
pub struct Guard {
    /// The node's keys of connection IDs.
    pub cids: CidKeys,
    /// This node.
    pub node: u16,
    /// This worker.
    pub slot: u8,
    /// What this worker's generator makes.
    pub issued: Issued,
    /// Whether new connections have to prove their address first.
    pub retry: Arc<RetryGate>,
    /// The kernel part.
    pub police: Arc<dyn Police>,
    /// This worker's counters.
    pub metrics: Arc<WorkerMetrics>,
    /// When the server started.
    pub start: Instant,
    /// `DEAD_CIDS`, used up until then: nanoseconds since the start.
    pub dead_debt: Cell<u64>,
}

impl Guard {
    /// Whether a connection ID is one of ours, of any worker.
    pub fn is_ours(&self, cid: &[u8]) -> bool {
        self.cids.decode(cid).is_ok()
    }

    /// Takes the connection IDs that were made since the last time: they are this connection's.
    pub fn note(&self, record: &mut Record) {
        self.issued.take(|random| {
            if record.cids.len() == CIDS_MAX {
                record.cids.remove(0);
            }
            // Few come after the first ones: not a byte more than they need.
            record.cids.reserve_exact(1);
            record.cids.push(random);
            if let Some((id, _)) = record.penalty.as_deref() {
                self.police.penalize_also(*id, self.encode(random));
            }
        });
    }

    /// Forgets the connection IDs that were made since the last time: they are nobody's.
    pub fn discard(&self) {
        self.issued.take(drop);
    }

    fn encode(&self, random: [u8; RANDOM_LEN]) -> [u8; CID_LEN] {
        self.cids.encode(self.node, self.slot, random)
    }

    /// Has a connection's packets policed by the rates of a class: all its connection IDs, later ones too. Orders it
    /// anew if it is policed already.
    pub fn penalize(&self, record: &mut Record, order: PenaltyOrder, now: Instant) {
        self.pardon(record);
        let cids: Vec<_> = record
            .cids
            .iter()
            .map(|random| self.encode(*random))
            .collect();
        let id = self.police.penalize(&cids, order);
        record.penalty = id.map(|id| Box::new((id, now + order.lasts)));
        self.metrics.penalties.inc();
    }

    /// Lets a connection go on as before.
    pub fn pardon(&self, record: &mut Record) {
        if let Some(penalty) = record.penalty.take() {
            self.police.pardon(penalty.0);
        }
    }

    /// Packets of a connection didn't decrypt. `address` is the connection's own.
    pub fn forged(&self, record: &mut Record, count: u32, address: IpAddr, now: Instant) {
        self.metrics.packets_forged.add(count.into());
        if !record.suspect(count) {
            return;
        }
        if record.penalty.as_ref().is_some_and(|p| now < p.1) {
            return;
        }
        let order = PenaltyOrder {
            class: CLASS_SUSPECT,
            reason: PenaltyReason::Forgeries,
            own_address: Some(address),
            lasts: SUSPICION,
        };
        self.penalize(record, order, now);
    }

    /// A datagram carries a connection ID of ours, and its connection is gone or was never there.
    pub fn orphaned(&self, datagram: &[u8], now: Instant) {
        let Some(cid) = own_cid(&self.cids, datagram) else {
            return;
        };
        self.metrics.packets_orphaned.inc();
        let now = now.saturating_duration_since(self.start).as_nanos() as u64;
        let Some(debt) = DEAD_CIDS.charge(self.dead_debt.get(), now) else {
            return;
        };
        self.dead_debt.set(debt);
        let order = PenaltyOrder {
            class: CLASS_SUSPECT,
            reason: PenaltyReason::Dead,
            own_address: None,
            lasts: DEAD,
        };
        if self.police.penalize(&[cid], order).is_some() {
            self.metrics.penalties.inc();
        }
    }
}

/// The connection ID of ours that a datagram carries.
fn own_cid(keys: &CidKeys, datagram: &[u8]) -> Option<[u8; CID_LEN]> {
    let head = Head::of(datagram)?;
    let is_long = datagram.first()? & 0x80 != 0;
    let at = if !is_long {
        1
    } else if usize::from(head.dcid_len()) == CID_LEN {
        6
    } else {
        return None;
    };
    let cid: &[u8; CID_LEN] = datagram.get(at..)?.first_chunk()?;
    keys.decode(cid).is_ok().then_some(*cid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_with_the_network_is_no_forgery() {
        let mut record = Record::default();
        // One in nine does not decrypt, for long.
        for _ in 0..100_000 {
            assert!(!record.suspect(1));
            record.trust(AUTHENTIC_PER_FORGERY);
        }
        // A burst among many others.
        assert!(!record.suspect(FORGERIES_MAX - 1));
    }

    #[test]
    fn forgeries_are_noticed_whatever_else_comes() {
        let mut record = Record::default();
        assert!((1..FORGERIES_MAX).all(|_| !record.suspect(1)));
        assert!(record.suspect(1));
        // Half of all packets.
        let noticed = (0..100).position(|_| {
            record.trust(1);
            record.suspect(1)
        });
        assert!(noticed.is_some_and(|at| at < 40), "{noticed:?}");
    }
}
