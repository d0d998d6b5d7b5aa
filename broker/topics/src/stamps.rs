//! What has changed since: counters per literal prefix, so that a change of one filter leaves the cached topics that it
//! can't match valid.
//!
//! A filter counts under the path of its levels before the first wildcard. A topic that it matches has this path
//! among its own prefixes; so the sum over a topic's prefixes changes when any filter that matches it does. Counters only
//! grow: two equal sums mean that none of them moved.

use crate::hash::PathHash;
use crate::sync::{AtomicU64, Ordering};

/// Counters, a power of two (128 KiB). Paths share them by hash: a foreign change that falls on one of a topic's few
/// counters costs that topic one futile match.
#[cfg(not(loom))]
const COUNTERS: usize = 16_384;
#[cfg(loom)]
const COUNTERS: usize = 2;

#[derive(Debug)]
pub(crate) struct Stamps {
    counters: Box<[AtomicU64]>,
    generation: AtomicU64,
}

impl Stamps {
    pub(crate) fn new() -> Self {
        Self {
            counters: (0..COUNTERS).map(|_| AtomicU64::new(0)).collect(),
            generation: AtomicU64::new(0),
        }
    }

    pub(crate) const BYTES: usize = COUNTERS * size_of::<AtomicU64>();

    fn counter(&self, prefix: PathHash) -> &AtomicU64 {
        &self.counters[(prefix.0 >> 32) as usize & (COUNTERS - 1)]
    }

    /// Notes a change, after it was made, of a filter whose literal levels before its first wildcard are `prefix`.
    pub(crate) fn changed(&self, prefix: PathHash) {
        // Release: who sees the count sees the change; who sees the generation sees the count.
        self.counter(prefix).fetch_add(1, Ordering::Release);
        self.generation.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The counter's value for one of a topic's prefixes.
    pub(crate) fn count(&self, prefix: PathHash) -> u64 {
        self.counter(prefix).load(Ordering::Acquire)
    }
}
