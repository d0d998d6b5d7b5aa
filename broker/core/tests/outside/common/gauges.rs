//! What the cores say of themselves.

use super::World;
use headgate_core::{Counters, Time};

impl World {
    pub fn counters(&self, worker: usize) -> &Counters {
        self.nodes[worker].core.counters()
    }

    pub fn next_timeout(&self, worker: usize) -> Option<Time> {
        self.nodes[worker].core.next_timeout()
    }

    pub fn sum(&self, of: impl Fn(&Counters) -> u64) -> u64 {
        self.nodes.iter().map(|n| of(n.core.counters())).sum()
    }
}
