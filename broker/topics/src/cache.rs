//! One worker's memory of recent topics.

use std::collections::HashMap;

use crate::{Subscriber, Table};

/// One worker's memory of recent topics and whom they reach; of one table.
#[derive(Debug)]
pub struct Cache {
    capacity_topics: usize,
    generation: u64,
    topics: HashMap<Box<str>, Vec<Subscriber>>,
}

impl Cache {
    /// An empty cache for at most `capacity_topics` topics.
    #[must_use]
    pub fn new(capacity_topics: usize) -> Self {
        Self {
            capacity_topics: capacity_topics.max(1),
            generation: 0,
            topics: HashMap::new(),
        }
    }

    /// The subscribers of all filters that match `topic`, as [`Table::matches`] gives them.
    pub fn matches(&mut self, table: &Table, topic: &str) -> &[Subscriber] {
        let generation = table.generation();
        if generation != self.generation
            || (self.topics.len() >= self.capacity_topics && !self.topics.contains_key(topic))
        {
            self.topics.clear();
            self.generation = generation;
        }
        self.topics.entry(topic.into()).or_insert_with(|| {
            let mut found = Vec::new();
            table.matches(topic, &mut found);
            found
        })
    }
}
