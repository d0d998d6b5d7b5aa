//! One worker's memory of recent topics.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;

use crate::{Subscriber, Table};

/// Longest topic name that is remembered, in bytes.
const TOPIC_BYTES_MAX: usize = 256;
/// Most subscribers of a topic that is remembered. For more, a match costs little beside the deliveries.
const SUBSCRIBERS_MAX: usize = 256;
/// Topics in a set. Each topic may be in one of two sets, so that few are given up while there is room.
const WAYS: usize = 4;
/// What an entry has in front of its topic: generation, stamp, and the length of the topic, bytes.
const HEADER_WORDS: usize = 3;

/// One worker's memory of recent topics and whom they reach; of one [`Table`].
///
/// Bounded: at most the given number of topics, none longer than 256 bytes or with more than 256 subscribers; worst case
/// 2.4 KB per topic, about 150 bytes as a rule. An entry holds until a filter changes that has the same literal levels
/// before its first wildcard as the topic (or falls on the same of 16,384 counters): steady subscribing of others
/// leaves it valid, at the price of hashing the topic's levels again after each change of the table.
#[derive(Debug)]
pub struct Cache {
    hasher: RandomState,
    /// Small, and so near the core: only the set that has the topic is looked into.
    tags: Box<[Tags]>,
    sets: Box<[Set]>,
    /// The answer for topics that aren't remembered.
    scratch: Vec<Subscriber>,
}

/// What is in a set.
#[derive(Debug, Default)]
struct Tags {
    /// A part of each topic's hash; 0 = there is none.
    tags: [u16; WAYS],
    /// The way that is given up next.
    hand: u8,
    /// For each way: used since the hand went by.
    used: u8,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Set([Entry; WAYS]);

/// The header, the topic's bytes, eight to a word, then the subscribers: in one block, so that a hit reads few cache lines.
#[derive(Debug, Default)]
struct Entry(Box<[Subscriber]>);

impl Cache {
    /// An empty cache for at most `capacity_topics` topics, rounded up to a multiple of 4.
    #[must_use]
    pub fn new(capacity_topics: usize) -> Self {
        let sets = capacity_topics.div_ceil(WAYS).max(1);
        Self {
            hasher: RandomState::default(),
            tags: (0..sets).map(|_| Tags::default()).collect(),
            sets: (0..sets).map(|_| Set::default()).collect(),
            scratch: Vec::new(),
        }
    }

    /// The subscribers of all filters that match `topic`, as [`Table::matches`] gives them.
    pub fn matches(&mut self, table: &Table, topic: &str) -> &[Subscriber] {
        let hash = self.hasher.hash_one(topic);
        let tag = hash as u16 | 1;
        let of_hash = |hash: u64| ((u128::from(hash) * self.sets.len() as u128) >> 64) as usize;
        let candidates = [of_hash(hash), of_hash(hash.rotate_left(32))];
        // Read before the table: a change during the match makes the entry stale, not wrong.
        let generation = table.generation();
        let place = self.find(candidates, tag, topic);
        if let Some((set, way)) = place
            && self.sets[set].0[way].is_current(table, topic, generation)
        {
            self.tags[set].used |= 1 << way;
            return self.sets[set].0[way].subscribers();
        }
        let stamp = table.stamp(topic);
        self.scratch.clear();
        table.matches(topic, &mut self.scratch);
        if topic.len() > TOPIC_BYTES_MAX || self.scratch.len() > SUBSCRIBERS_MAX {
            return &self.scratch;
        }
        let (set, way) = place.unwrap_or_else(|| self.give_up(candidates));
        self.tags[set].tags[way] = tag;
        self.tags[set].used |= 1 << way;
        let entry = &mut self.sets[set].0[way];
        *entry = Entry::new(generation, stamp, topic, &self.scratch);
        entry.subscribers()
    }

    #[inline]
    fn find(&self, candidates: [usize; 2], tag: u16, topic: &str) -> Option<(usize, usize)> {
        candidates.into_iter().find_map(|set| {
            let tags = &self.tags[set].tags;
            let is_there = |&way: &usize| tags[way] == tag && self.sets[set].0[way].is_for(topic);
            Some((set, (0..WAYS).find(is_there)?))
        })
    }

    /// A way that is free, or that wasn't used lately, in the set where fewer were.
    fn give_up(&mut self, [first, second]: [usize; 2]) -> (usize, usize) {
        let load = |set: usize| {
            let Tags { tags, used, .. } = &self.tags[set];
            let taken = tags.iter().filter(|tag| **tag != 0).count();
            (taken, used.count_ones())
        };
        let set = if load(second) < load(first) {
            second
        } else {
            first
        };
        (set, self.tags[set].give_up())
    }
}

impl Tags {
    fn give_up(&mut self) -> usize {
        if let Some(free) = self.tags.iter().position(|tag| *tag == 0) {
            return free;
        }
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

/// The bytes in words. The last one overlaps the one before, or is filled up with zeros if it is the only one: of as many bytes,
/// no others have the same words.
#[inline]
fn words(bytes: &[u8]) -> impl Iterator<Item = Subscriber> {
    let (full, rest) = bytes.as_chunks::<8>();
    let rest = (!rest.is_empty()).then(|| match bytes.last_chunk() {
        Some(last) => u64::from_le_bytes(*last),
        None => rest
            .iter()
            .rev()
            .fold(0, |word, &byte| word << 8 | u64::from(byte)),
    });
    let full = full.iter().map(|&chunk| u64::from_le_bytes(chunk));
    full.chain(rest).map(Subscriber::from_bits)
}

impl Entry {
    fn new(generation: u64, stamp: u64, topic: &str, subscribers: &[Subscriber]) -> Self {
        let header = [generation, stamp, topic.len() as u64].map(Subscriber::from_bits);
        let topic = words(topic.as_bytes());
        let all = header.into_iter().chain(topic);
        Self(all.chain(subscribers.iter().copied()).collect())
    }

    fn subscribers(&self) -> &[Subscriber] {
        let topic_bytes = self.0[2].bits() as usize; // at most TOPIC_BYTES_MAX
        &self.0[HEADER_WORDS + topic_bytes.div_ceil(8)..]
    }

    #[inline]
    fn is_for(&self, topic: &str) -> bool {
        self.0[2].bits() == topic.len() as u64
            && words(topic.as_bytes())
                .zip(&self.0[HEADER_WORDS..])
                .all(|(word, own)| word == *own)
    }

    #[inline]
    fn is_current(&mut self, table: &Table, topic: &str, generation: u64) -> bool {
        if self.0[0].bits() == generation {
            return true;
        }
        let current = table.stamp(topic) == self.0[1].bits();
        if current {
            self.0[0] = Subscriber::from_bits(generation);
        }
        current
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sets to choose from: hardly a topic has to go before the cache is full.
    #[test]
    fn topics_that_fill_half_of_it_stay() {
        const TOPICS: usize = 10_000;
        let table = Table::new([1, 2]);
        let mut cache = Cache::new(2 * TOPICS);
        let topics: Vec<String> = (0..TOPICS).map(|n| format!("device/{n}/state")).collect();
        for topic in &topics {
            cache.matches(&table, topic);
        }
        let places = cache.tags.iter().flat_map(|t| t.tags);
        let kept = places.filter(|tag| *tag != 0).count();
        assert!(kept > TOPICS * 995 / 1_000, "{kept} of {TOPICS}");
    }
}
