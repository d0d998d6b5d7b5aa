//! All subscriptions of the broker: a trie without pointers, as a table of path hashes.
//!
//! A filter of n levels has a terminal slot under the hash of all its levels, and one share in each of the node slots of
//! its n proper prefixes (the empty one included). A node knows how many filters continue below it, and which wildcards
//! to look for. To match a topic all its prefixes are hashed at once and their slots prefetched, so that the cache
//! misses overlap; records are prefetched as they are found and compared with the path at the end.

use std::fmt;
use std::ptr;

use arrayvec::ArrayVec;

use crate::Subscriber;
use crate::filter::LEVELS_MAX;
use crate::hash::{Key, PathHash, PathHasher};
use crate::record::{self, Writer};
use crate::search::{Search, Topic};
use crate::slots::{Fills, Slot, Slots};
use crate::stamps::Stamps;
use crate::sync::{AtomicUsize, Cell, Guard, Look, Mutex, MutexGuard, Ordering, pin};

/// All subscriptions of the broker, shared by its workers.
///
/// Readers take no lock and never wait. Writers take turns; one holds the others up for about a microsecond, and for
/// the copy of one segment (see the crate's documentation) when the table grows.
pub struct Table {
    pub(crate) hasher: PathHasher,
    pub(crate) slots: Slots,
    stamps: Stamps,
    writer: Mutex<Fills>,
    len: AtomicUsize,
    bytes: AtomicUsize,
}

/// In a node's value: some filter has a `+` as the next level.
pub(crate) const HAS_PLUS: usize = 0b0010;
/// In a node's value: some filter has a `#` as the next level.
pub(crate) const HAS_MULTI: usize = 0b0100;
/// In a node's value: some filter has a `#` as the level after the next; `a/#` matches `a` (§4.7.1.2). It may
/// outlive that filter: it goes with the node.
pub(crate) const HAS_MULTI_NEXT: usize = 0b1000;
/// In a node's value: the number of filters below, from here up.
const FILTERS: usize = 0b1_0000;

impl Table {
    /// An empty table. `seed` keys the hash of paths and must be secret and random.
    #[must_use]
    pub fn new(seed: [u64; 2]) -> Self {
        Self::with_hasher(PathHasher::new(seed))
    }

    pub(crate) fn with_hasher(hasher: PathHasher) -> Self {
        Self {
            hasher,
            slots: Slots::new(),
            stamps: Stamps::new(),
            writer: Mutex::new(Fills::new()),
            len: AtomicUsize::new(0),
            bytes: AtomicUsize::new(Slots::initial_bytes() + Stamps::BYTES + size_of::<Self>()),
        }
    }

    /// Adds `subscriber` to `filter`, in the place of an entry with the same identifier, which is returned.
    ///
    /// # Panics
    /// If `filter` has more than [`LEVELS_MAX`] levels or 65,535 bytes: a bug in the caller, who must have checked it
    /// with [`validate_filter`](crate::validate_filter).
    pub fn subscribe(&self, filter: &str, subscriber: Subscriber) -> Option<Subscriber> {
        let path = FilterPath::new(&self.hasher, filter).expect("the filter was not validated");
        let guard = pin();
        self.prefetch_path(&path);
        let mut fills = self.lock();
        let mut writer = Writer {
            guard: &guard,
            bytes: 0,
        };
        let former = if let Some(slot) = self.find(path.terminal(), filter, &guard) {
            writer.subscribe(&slot.value, subscriber)
        } else {
            let record = writer.single(filter.as_bytes(), subscriber);
            let (_, grown) = self
                .slots
                .insert(path.terminal(), record, &mut fills, &guard);
            writer.bytes += grown;
            self.link(&path, &mut fills, &mut writer);
            None
        };
        self.len
            .fetch_add(usize::from(former.is_none()), Ordering::Relaxed);
        self.finish(&path, &writer);
        former
    }

    /// Removes the entry with this identifier from `filter` and returns it.
    pub fn unsubscribe(&self, filter: &str, id: u64) -> Option<Subscriber> {
        let path = FilterPath::new(&self.hasher, filter)?;
        let guard = pin();
        self.prefetch_path(&path);
        let mut fills = self.lock();
        let mut writer = Writer {
            guard: &guard,
            bytes: 0,
        };
        let slot = self.find(path.terminal(), filter, &guard)?;
        let (removed, last) = writer.unsubscribe(&slot.value, id)?;
        if last {
            let record = slot.value.own();
            writer.bytes += self.slots.remove(path.terminal(), slot, &mut fills, &guard);
            writer.retire(record);
            self.unlink(&path, &mut fills, &mut writer);
        }
        self.len.fetch_sub(1, Ordering::Relaxed);
        self.finish(&path, &writer);
        Some(removed)
    }

    /// Puts `new` in the place of the entry `old_id` of `filter`; false if there is none.
    ///
    /// A reader sees the old entry or the new one, never both or none. If `new`'s identifier has an entry of its own,
    /// this is brought up to date and the old one removed.
    pub fn replace(&self, filter: &str, old_id: u64, new: Subscriber) -> bool {
        let Some(path) = FilterPath::new(&self.hasher, filter) else {
            return false;
        };
        let guard = pin();
        let _fills = self.lock();
        let mut writer = Writer {
            guard: &guard,
            bytes: 0,
        };
        let Some(slot) = self.find(path.terminal(), filter, &guard) else {
            return false;
        };
        let Some(merged) = writer.replace(&slot.value, old_id, new) else {
            return false;
        };
        self.len.fetch_sub(usize::from(merged), Ordering::Relaxed);
        self.finish(&path, &writer);
        true
    }

    /// Removes every entry that `gone` names and returns how many there were.
    ///
    /// It looks at the whole table and holds other writers up meanwhile, readers never: for cleaning up after a worker that was lost with what it knew.
    pub fn remove_where(&self, gone: impl Fn(Subscriber) -> bool) -> usize {
        let mut entries = Vec::new();
        {
            let _guard = pin();
            let _fills = self.lock();
            let mut subscribers = Vec::new();
            self.slots.each_terminal(|value| {
                // SAFETY: the writer's own look, under the writer's lock.
                let Some(view) = (unsafe { record::view(value) }) else {
                    return;
                };
                subscribers.clear();
                view.read(&mut subscribers);
                let filter = std::str::from_utf8(view.filter()).unwrap_or_default();
                let lost = subscribers.iter().filter(|subscriber| gone(**subscriber));
                entries.extend(lost.map(|subscriber| (filter.to_owned(), subscriber.id())));
            });
        }
        let removed = entries
            .iter()
            .filter(|(filter, id)| self.unsubscribe(filter, *id).is_some());
        removed.count()
    }

    /// Appends the subscribers of all filters that match `topic` to `out`, once per filter (MQTT 5 §4.7)
    /// [MQTT-3.3.2-3].
    ///
    /// A change that is made at the same time is seen or not; one that was complete before is seen. Only a subscriber
    /// that leaves a filter and comes back to it during the call may be found twice or not at all.
    pub fn matches(&self, topic: &str, out: &mut Vec<Subscriber>) {
        let guard = pin();
        let topic = Topic::new(self, topic);
        Search::new(self, &topic, &guard, out).run();
    }

    /// Grows with every change of the table.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.stamps.generation()
    }

    /// Number of subscriptions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether there are no subscriptions.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the table has asked the allocator for, without what waits to be freed.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The sum of the change counters that concern `topic`: unchanged while no filter that matches it changes.
    pub(crate) fn stamp(&self, topic: &str) -> u64 {
        let mut path = self.hasher.root();
        let mut sum = self.stamps.count(path);
        for level in topic
            .as_bytes()
            .split(|&byte| byte == b'/')
            .take(LEVELS_MAX)
        {
            path = self.hasher.extend(path, self.hasher.level(level));
            sum = sum.wrapping_add(self.stamps.count(path));
        }
        sum
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: nobody else has the table any more, and records aren't used after their slots.
        unsafe { self.slots.free(|word| record::free(word)) };
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("len", &self.len())
            .field("bytes", &self.memory_bytes())
            .finish_non_exhaustive()
    }
}

/// The paths of a filter's prefixes, the empty one first.
struct FilterPath {
    paths: ArrayVec<PathHash, { LEVELS_MAX + 1 }>,
    /// For each level: is it a `+`.
    plus: u128,
    multi: bool,
}

impl FilterPath {
    /// `None` if the filter has too many levels or bytes to be in the table.
    fn new(hasher: &PathHasher, filter: &str) -> Option<Self> {
        let mut path = Self {
            paths: ArrayVec::new(),
            plus: 0,
            multi: false,
        };
        path.paths.push(hasher.root());
        if filter.len() > crate::TOPIC_BYTES_MAX {
            return None;
        }
        for (index, level) in filter.as_bytes().split(|&byte| byte == b'/').enumerate() {
            path.paths
                .try_push(hasher.filter_level(path.paths[index], level))
                .ok()?;
            path.plus |= u128::from(level == b"+") << index;
            path.multi = level == b"#";
        }
        Some(path)
    }

    fn levels(&self) -> usize {
        self.paths.len() - 1
    }

    fn terminal(&self) -> Key {
        self.paths[self.levels()].terminal()
    }

    /// The levels before the first wildcard.
    fn literal_prefix(&self) -> PathHash {
        let literal =
            (self.plus.trailing_zeros() as usize).min(self.levels() - usize::from(self.multi));
        self.paths[literal]
    }

    /// What the node of the first `at` levels must say for this filter.
    fn flags(&self, at: usize) -> usize {
        let plus = self.plus >> at & 1 != 0;
        let multi = self.multi && at + 1 == self.levels();
        let multi_next = self.multi && at + 2 == self.levels();
        let flag = |set: bool, flag| if set { flag } else { 0 };
        flag(plus, HAS_PLUS) | flag(multi, HAS_MULTI) | flag(multi_next, HAS_MULTI_NEXT)
    }
}

/// The writer's steps.
impl Table {
    fn lock(&self) -> MutexGuard<'_, Fills> {
        // A writer that panicked (out of memory) leaves each slot whole; only counts may be off.
        self.writer
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn prefetch_path(&self, path: &FilterPath) {
        for hash in &path.paths {
            self.slots.prefetch(hash.node());
        }
    }

    /// The slot of exactly this filter.
    fn find<'g>(&self, key: Key, filter: &str, guard: &'g Guard) -> Option<&'g Slot> {
        self.slots.all(key, Look::Writer, guard).find(|slot| {
            // SAFETY: the writer's own look.
            let view = unsafe { record::view(slot.value.own()) };
            view.is_some_and(|view| view.filter() == filter.as_bytes())
        })
    }

    /// Adds the filter's share to its prefixes' nodes.
    fn link(&self, path: &FilterPath, fills: &mut Fills, writer: &mut Writer<'_>) {
        for at in (0..path.levels()).rev() {
            let key = path.paths[at].node();
            if let Some(slot) = self.slots.get(key, Look::Writer, writer.guard) {
                let value = slot.value.own().addr();
                slot.value
                    .store(node((value | path.flags(at)) + FILTERS), Ordering::Release);
            } else {
                let value = node(record::NODE | path.flags(at) | FILTERS);
                writer.bytes += self.slots.insert(key, value, fills, writer.guard).1;
            }
        }
    }

    /// Takes the filter's share from its prefixes' nodes, after its terminal has gone.
    fn unlink(&self, path: &FilterPath, fills: &mut Fills, writer: &mut Writer<'_>) {
        for at in (0..path.levels()).rev() {
            let key = path.paths[at].node();
            let Some(slot) = self.slots.get(key, Look::Writer, writer.guard) else {
                continue;
            };
            let mut value = slot.value.own().addr() - FILTERS;
            if value < FILTERS {
                writer.bytes += self.slots.remove(key, slot, fills, writer.guard);
                continue;
            }
            let next = path.paths[at + 1];
            let next_gone = || {
                let gone = |key| self.slots.get(key, Look::Writer, writer.guard).is_none();
                gone(next.terminal()) && gone(next.node())
            };
            let wildcard = path.flags(at) & (HAS_PLUS | HAS_MULTI);
            if wildcard != 0 && next_gone() {
                value &= !wildcard;
            }
            slot.value.store(node(value), Ordering::Release);
        }
    }

    /// Makes the change known, after it was made.
    fn finish(&self, path: &FilterPath, writer: &Writer<'_>) {
        self.bytes
            .fetch_add(writer.bytes.cast_unsigned(), Ordering::Relaxed);
        self.stamps.changed(path.literal_prefix());
    }
}

fn node(value: usize) -> *mut () {
    ptr::without_provenance_mut(value)
}
