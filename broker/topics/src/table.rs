//! All subscriptions of the broker.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::{Subscriber, filter_matches};

/// All subscriptions of the broker, shared by its workers.
#[derive(Debug, Default)]
pub struct Table {
    filters: RwLock<HashMap<Box<str>, Vec<Subscriber>>>,
    generation: AtomicU64,
}

impl Table {
    /// An empty table. `seed` keys the hash of paths and must be secret and random.
    #[must_use]
    pub fn new(_seed: [u64; 2]) -> Self {
        Self::default()
    }

    /// Adds `subscriber` to `filter`, in the place of an entry with the same identifier, which is returned.
    pub fn subscribe(&self, filter: &str, subscriber: Subscriber) -> Option<Subscriber> {
        let mut filters = self.filters.write().unwrap_or_else(PoisonError::into_inner);
        self.generation.fetch_add(1, Ordering::Release);
        let entries = filters.entry(filter.into()).or_default();
        if let Some(entry) = entries
            .iter_mut()
            .find(|entry| entry.id() == subscriber.id())
        {
            return Some(std::mem::replace(entry, subscriber));
        }
        entries.push(subscriber);
        None
    }

    /// Removes the entry with this identifier from `filter` and returns it.
    pub fn unsubscribe(&self, filter: &str, id: u64) -> Option<Subscriber> {
        let mut filters = self.filters.write().unwrap_or_else(PoisonError::into_inner);
        let entries = filters.get_mut(filter)?;
        let position = entries.iter().position(|entry| entry.id() == id)?;
        let removed = entries.swap_remove(position);
        if entries.is_empty() {
            filters.remove(filter);
        }
        self.generation.fetch_add(1, Ordering::Release);
        Some(removed)
    }

    /// Puts `new` in the place of the entry `old_id` of `filter`; false if there is none. A reader sees the old entry
    /// or the new one, never both or none.
    pub fn replace(&self, filter: &str, old_id: u64, new: Subscriber) -> bool {
        let mut filters = self.filters.write().unwrap_or_else(PoisonError::into_inner);
        let Some(entries) = filters.get_mut(filter) else {
            return false;
        };
        if !entries.iter().any(|entry| entry.id() == old_id) {
            return false;
        }
        entries.retain(|entry| entry.id() == old_id || entry.id() != new.id());
        for entry in entries.iter_mut().filter(|entry| entry.id() == old_id) {
            *entry = new;
        }
        self.generation.fetch_add(1, Ordering::Release);
        true
    }

    /// Appends the subscribers of all filters that match `topic` to `out`, once per filter.
    pub fn matches(&self, topic: &str, out: &mut Vec<Subscriber>) {
        let filters = self.filters.read().unwrap_or_else(PoisonError::into_inner);
        for (_, entries) in filters
            .iter()
            .filter(|(filter, _)| filter_matches(filter, topic))
        {
            out.extend_from_slice(entries);
        }
    }

    /// Changes with every change of the table.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Number of subscriptions.
    #[must_use]
    pub fn len(&self) -> usize {
        let filters = self.filters.read().unwrap_or_else(PoisonError::into_inner);
        filters.values().map(Vec::len).sum()
    }

    /// Whether there are no subscriptions.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the table has allocated.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let filters = self.filters.read().unwrap_or_else(PoisonError::into_inner);
        let entry_bytes = size_of::<(Box<str>, Vec<Subscriber>)>();
        let texts: usize = filters
            .iter()
            .map(|(filter, entries)| filter.len() + entries.capacity() * 8)
            .sum();
        filters.capacity() * entry_bytes + texts
    }
}
