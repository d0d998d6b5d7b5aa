//! Sessions that clients can resume with a ticket (RFC 8446 §2.2), and begin with 0-RTT data.
//!
//! A ticket names what is kept here, and is good once: whoever sends a recorded first flight again finds nothing, at
//! no worker, and its 0-RTT data is not read (RFC 8446 §8.1). After a restart nothing is kept, so that no flight that
//! an earlier process took can be sent to this one.

use rustls::server::StoresServerSessions;
use std::{
    collections::HashMap,
    fmt, mem,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How long a ticket is good at most: what rustls tells the client.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Parts with a lock each. A ticket that is given out or used takes one of them for less than a microsecond.
const SHARDS: usize = 64;

/// Half of a ticket, which is 256 random bits: enough that nobody guesses one.
type Name = u128;

/// The sessions of all workers that can be resumed.
///
/// They are kept in two generations. When the younger one holds half of what may be kept, or half a ticket's lifetime
/// has passed, the older one is forgotten. Worst case: about 200 bytes for each ticket, and the chain of the client's
/// certificate where clients have one.
pub struct TicketStore {
    shards: Box<[Mutex<Shard>]>,
    /// Tickets in a generation of a shard, at most; 0 = no resumption.
    generation_max: usize,
    forgotten: AtomicU64,
}

#[derive(Default)]
struct Shard {
    young: HashMap<Name, Box<[u8]>>,
    old: HashMap<Name, Box<[u8]>>,
    /// When the younger generation began.
    since: Option<Instant>,
}

impl TicketStore {
    /// Keeps at most `tickets_max` tickets (rounded up to a multiple of 128); 0 = none.
    pub fn new(tickets_max: u32) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            generation_max: (tickets_max as usize).div_ceil(2 * SHARDS),
            forgotten: AtomicU64::new(0),
        }
    }

    /// Tickets that are kept.
    pub fn len(&self) -> usize {
        let count = |shard: &Mutex<Shard>| {
            let shard = locked(shard);
            shard.young.len() + shard.old.len()
        };
        self.shards.iter().map(count).sum()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all tickets: who resumes a session is not asked for a certificate again, so none may outlive the
    /// authorities that it was verified with.
    pub fn clear(&self) {
        for shard in &self.shards {
            *locked(shard) = Shard::default();
        }
    }

    /// How many tickets were forgotten, since this was last asked, because there were too many.
    pub fn take_forgotten(&self) -> u64 {
        self.forgotten.swap(0, Ordering::Relaxed)
    }

    fn shard(&self, ticket: &[u8], now: Instant) -> Option<(Name, MutexGuard<'_, Shard>)> {
        let name = Name::from_be_bytes(*ticket.first_chunk()?);
        let mut shard = locked(&self.shards[name as usize % SHARDS]);
        let since = *shard.since.get_or_insert(now);
        let age = now.saturating_duration_since(since);
        if age >= LIFETIME {
            *shard = Shard::default();
            shard.since = Some(now);
        } else if age >= LIFETIME / 2 {
            // Not from now on: what is in it would last longer than a ticket may.
            shard.turn(since + LIFETIME / 2);
        }
        Some((name, shard))
    }

    fn put_at(&self, ticket: &[u8], session: Vec<u8>, now: Instant) -> bool {
        if self.generation_max == 0 {
            return false;
        }
        let Some((name, mut shard)) = self.shard(ticket, now) else {
            return false;
        };
        if shard.young.len() >= self.generation_max {
            self.forgotten
                .fetch_add(shard.old.len() as u64, Ordering::Relaxed);
            shard.turn(now);
        }
        shard.young.insert(name, session.into_boxed_slice());
        true
    }

    fn take_at(&self, ticket: &[u8], now: Instant) -> Option<Vec<u8>> {
        let (name, mut shard) = self.shard(ticket, now)?;
        let young = shard.young.remove(&name);
        young.or_else(|| shard.old.remove(&name)).map(Vec::from)
    }
}

impl Shard {
    fn turn(&mut self, since: Instant) {
        self.old = mem::take(&mut self.young);
        self.since = Some(since);
    }
}

fn locked(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StoresServerSessions for TicketStore {
    fn put(&self, ticket: Vec<u8>, session: Vec<u8>) -> bool {
        self.put_at(&ticket, session, Instant::now())
    }

    /// Only TLS 1.2 reads without taking, and QUIC has none.
    fn get(&self, _ticket: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn take(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.take_at(ticket, Instant::now())
    }

    fn can_cache(&self) -> bool {
        self.generation_max > 0
    }
}

impl fmt::Debug for TicketStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketStore")
            .field("tickets", &self.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn ticket(number: u64) -> Vec<u8> {
        let digest = ring::digest::digest(&ring::digest::SHA256, &number.to_be_bytes());
        digest.as_ref().to_vec()
    }

    #[test]
    fn a_ticket_is_good_once_whoever_uses_it() {
        let store = Arc::new(TicketStore::new(1_000));
        let now = Instant::now();
        for number in 0..500 {
            assert!(store.put_at(&ticket(number), vec![1, 2, 3], now));
        }
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let store = Arc::clone(&store);
                let used =
                    move || (0..500).filter(move |n| store.take_at(&ticket(*n), now).is_some());
                std::thread::spawn(move || used().count())
            })
            .collect();
        let used: usize = threads.into_iter().map(|t| t.join().unwrap()).sum();
        assert_eq!((used, store.len()), (500, 0));
    }

    #[test]
    fn a_ticket_is_good_for_half_its_lifetime_at_least_and_not_beyond_it() {
        let store = TicketStore::new(1_000);
        let start = Instant::now();
        let at = |hours: u64| start + Duration::from_secs(hours * 3600);
        for number in 0..50 {
            assert!(store.put_at(&ticket(number), vec![0], start));
            assert!(store.put_at(&ticket(100 + number), vec![0], at(11)));
        }
        for number in 0..25 {
            assert!(store.take_at(&ticket(number), at(11)).is_some());
            assert!(store.take_at(&ticket(100 + number), at(23)).is_some());
        }
        for number in 25..50 {
            assert!(store.take_at(&ticket(number), at(48)).is_none());
            assert!(store.take_at(&ticket(100 + number), at(48)).is_none());
        }
    }

    #[test]
    fn none_are_kept_where_none_are_wanted() {
        let store = TicketStore::new(0);
        assert!(!store.can_cache() && !store.put(ticket(1), vec![0]));
        assert!(store.is_empty() && store.take(&ticket(1)).is_none());
        assert!(TicketStore::new(8).take(b"short").is_none());
    }

    #[test]
    fn all_are_forgotten_when_the_authorities_change() {
        let store = TicketStore::new(8);
        assert!(store.put(ticket(1), vec![0]));
        store.clear();
        assert!(store.take(&ticket(1)).is_none());
    }

    proptest! {
        /// Never more than allowed, and of those that are gone each is counted.
        #[test]
        fn the_number_is_bounded(max in 1..2_000u32, given in 0..4_000u64) {
            let store = TicketStore::new(max);
            let now = Instant::now();
            for number in 0..given {
                prop_assert!(store.put_at(&ticket(number), vec![0; 8], now));
            }
            let bound = (max as usize).next_multiple_of(2 * SHARDS);
            prop_assert!(store.len() <= bound);
            prop_assert_eq!(store.len() as u64 + store.take_forgotten(), given);
            prop_assert_eq!(store.take_forgotten(), 0);
        }
    }
}
