//! One worker's memory of recent topics.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;

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
    hasher: RandomState,
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
    /// The topic's bytes, eight to a word, then the subscribers: in one block, so that a hit reads few cache lines.
    words: Box<[Subscriber]>,
    topic_bytes: u16,
}

impl Cache {
    /// An empty cache for at most `capacity_topics` topics, rounded up to a multiple of 4.
    #[must_use]
    pub fn new(capacity_topics: usize) -> Self {
        let sets = capacity_topics.div_ceil(WAYS).max(1);
        Self {
            hasher: RandomState::default(),
            sets: (0..sets).map(|_| Set::default()).collect(),
            scratch: Vec::new(),
        }
    }

    /// The subscribers of all filters that match `topic`, as [`Table::matches`] gives them.
    pub fn matches(&mut self, table: &Table, topic: &str) -> &[Subscriber] {
        let hash = self.hasher.hash_one(topic);
        let set = ((u128::from(hash) * self.sets.len() as u128) >> 64) as usize;
        // Read before the table: a change during the match makes the entry stale, not wrong.
        let generation = table.generation();
        let way = self.sets[set].find(hash, topic);
        if let Some(way) = way
            && self.sets[set].entries[way].is_current(table, topic, generation)
        {
            self.sets[set].used |= 1 << way;
            return self.sets[set].entries[way].subscribers();
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
        set.entries[way] = Entry::new(generation, stamp, topic, &self.scratch);
        set.entries[way].subscribers()
    }
}

impl Set {
    #[inline]
    fn find(&self, hash: u64, topic: &str) -> Option<usize> {
        (0..WAYS).find(|&way| self.hashes[way] == hash && self.entries[way].is_for(topic))
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

/// The bytes in words, the last one filled up with zeros.
#[inline]
fn words(bytes: &[u8]) -> impl Iterator<Item = Subscriber> {
    let (full, rest) = bytes.as_chunks::<8>();
    let rest = (!rest.is_empty()).then(|| {
        rest.iter()
            .rev()
            .fold(0, |word, &byte| word << 8 | u64::from(byte))
    });
    let full = full.iter().map(|&chunk| u64::from_le_bytes(chunk));
    full.chain(rest).map(Subscriber::from_bits)
}

impl Entry {
    fn new(generation: u64, stamp: u64, topic: &str, subscribers: &[Subscriber]) -> Self {
        let topic_bytes = topic.len() as u16; // at most TOPIC_BYTES_MAX
        let words = words(topic.as_bytes()).chain(subscribers.iter().copied());
        Self {
            generation,
            stamp,
            words: words.collect(),
            topic_bytes,
        }
    }

    fn subscribers(&self) -> &[Subscriber] {
        &self.words[usize::from(self.topic_bytes).div_ceil(8)..]
    }

    #[inline]
    fn is_for(&self, topic: &str) -> bool {
        usize::from(self.topic_bytes) == topic.len()
            && words(topic.as_bytes())
                .zip(&self.words)
                .all(|(word, own)| word == *own)
    }

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
