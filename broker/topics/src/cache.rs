//! One worker's memory of recent topics.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use crate::{Subscriber, Table};

/// Longest topic name that is remembered, in bytes.
const TOPIC_BYTES_MAX: usize = 256;
/// Most subscribers of a topic that is remembered. For more, a match costs little beside the deliveries.
const SUBSCRIBERS_MAX: usize = 256;
/// Topics with the same hash, more or less, that can be remembered at once.
const WAYS: usize = 4;

/// One worker's memory of recent topics and whom they reach; of one [`Table`].
///
/// Bounded: at most the given number of topics, none longer than 256 bytes or with more than 256 subscribers; worst case
/// 2.4 KB per topic, about 150 bytes as a rule. An entry holds until a filter changes that has the same literal levels
/// before its first wildcard as the topic (or falls on the same of 16,384 counters): steady subscribing of others
/// leaves it valid, at the price of hashing the topic's levels again after each change of the table.
#[derive(Debug)]
pub struct Cache {
    hasher: SipHasher13,
    sets: Box<[Set]>,
    /// The answer for topics that aren't remembered.
    scratch: Vec<Subscriber>,
}

#[derive(Debug, Default)]
struct Set {
    hashes: [u64; WAYS],
    entries: [Entry; WAYS],
    /// The way that is given up next.
    hand: u8,
    /// For each way: used since the hand went by.
    used: u8,
}

#[derive(Debug, Default)]
struct Entry {
    generation: u64,
    stamp: u64,
    topic: Box<[u8]>,
    subscribers: Vec<Subscriber>,
}

impl Cache {
    /// An empty cache for at most `capacity_topics` topics, rounded up to a multiple of 4.
    #[must_use]
    pub fn new(capacity_topics: usize) -> Self {
        let sets = capacity_topics.div_ceil(WAYS).max(1);
        // The worst that a peer who guesses these keys can do is to have others' topics forgotten.
        let seed = std::collections::hash_map::RandomState::new();
        let key = |salt: u64| {
            let mut hasher = std::hash::BuildHasher::build_hasher(&seed);
            hasher.write_u64(salt);
            hasher.finish()
        };
        Self {
            hasher: SipHasher13::new_with_keys(key(0), key(1)),
            sets: (0..sets).map(|_| Set::default()).collect(),
            scratch: Vec::new(),
        }
    }

    /// The subscribers of all filters that match `topic`, as [`Table::matches`] gives them.
    pub fn matches(&mut self, table: &Table, topic: &str) -> &[Subscriber] {
        let hash = self.hasher.hash(topic.as_bytes());
        let set = ((u128::from(hash) * self.sets.len() as u128) >> 64) as usize;
        // Read before the table: a change during the match makes the entry stale, not wrong.
        let generation = table.generation();
        let way = self.sets[set].find(hash, topic);
        if let Some(way) = way
            && self.sets[set].entries[way].is_current(table, topic, generation)
        {
            self.sets[set].used |= 1 << way;
            return &self.sets[set].entries[way].subscribers;
        }
        let stamp = table.stamp(topic);
        self.scratch.clear();
        table.matches(topic, &mut self.scratch);
        if topic.len() > TOPIC_BYTES_MAX || self.scratch.len() > SUBSCRIBERS_MAX {
            return &self.scratch;
        }
        let set = &mut self.sets[set];
        let way = way.unwrap_or_else(|| set.give_up());
        set.hashes[way] = hash;
        set.used |= 1 << way;
        let entry = &mut set.entries[way];
        entry.generation = generation;
        entry.stamp = stamp;
        if *entry.topic != *topic.as_bytes() {
            entry.topic = topic.as_bytes().into();
        }
        entry.subscribers.clear();
        entry.subscribers.shrink_to(self.scratch.len());
        entry.subscribers.reserve_exact(self.scratch.len());
        entry.subscribers.extend_from_slice(&self.scratch);
        &entry.subscribers
    }
}

impl Set {
    #[inline]
    fn find(&self, hash: u64, topic: &str) -> Option<usize> {
        (0..WAYS)
            .find(|&way| self.hashes[way] == hash && *self.entries[way].topic == *topic.as_bytes())
    }

    /// A way that wasn't used lately.
    fn give_up(&mut self) -> usize {
        loop {
            let way = usize::from(self.hand);
            self.hand = (self.hand + 1) % WAYS as u8;
            if self.used & 1 << way == 0 {
                return way;
            }
            self.used &= !(1 << way);
        }
    }
}

impl Entry {
    #[inline]
    fn is_current(&mut self, table: &Table, topic: &str, generation: u64) -> bool {
        if self.generation == generation {
            return true;
        }
        let current = table.stamp(topic) == self.stamp;
        if current {
            self.generation = generation;
        }
        current
    }
}
