//! Lists of more than a few subscribers, in chunks.

use std::collections::BTreeMap;
use std::ptr;
use std::sync::Arc;

use crate::Subscriber;
use crate::record::{Writer, load};
use crate::sync::{AtomicPtr, AtomicU64, Look, Ordering};

/// A list that shrinks to this many goes back into one block: below `INLINE_MAX`, so that it doesn't go to and fro.
const INLINE_AGAIN: usize = 4;
/// Entries of a chunk (8 KB). Taking one out copies up to two chunks, and 16 bytes for each chunk of the list.
#[cfg(not(loom))]
const CHUNK: usize = 1024;
#[cfg(loom)]
const CHUNK: usize = 8;
/// Entries of the first chunk when it is made.
const FIRST_CHUNK: usize = if CHUNK < 16 { CHUNK } else { 16 };
/// What a B-tree takes for a position, about: 12 bytes in nodes that are two thirds full.
const POSITION_BYTES: usize = 18;

type Chunk = [AtomicU64];

/// A list of more than a few subscribers.
///
/// `chunks` and `filter` don't change; entries do. All chunks but the last are full; in the last, entries follow each
/// other up to the first 0. Taking one out makes a new `Big`, in which the last entry has taken its place: a reader goes
/// through one version or the other and so meets each subscriber that stays exactly once.
#[repr(align(16))]
pub(crate) struct Big {
    filter: Arc<[u8]>,
    chunks: Box<[*mut Chunk]>,
    ledger: *mut Ledger,
}

/// What only the writer needs of a [`Big`], handed on from version to version.
struct Ledger {
    len: usize,
    /// Where each identifier is; kept for lists of more than one chunk, for which a scan would be slow. A B-tree
    /// because it never pauses to rehash.
    positions: Option<BTreeMap<u64, u32>>,
}

impl Big {
    #[inline]
    pub(crate) fn filter(&self) -> &[u8] {
        &self.filter
    }

    /// Appends all subscribers to `out`.
    pub(crate) fn read(&self, out: &mut Vec<Subscriber>) {
        out.reserve((self.chunks.len() - 1) * CHUNK);
        out.extend(self.all(Look::Reader));
    }

    fn all(&self, look: Look) -> impl Iterator<Item = Subscriber> {
        // SAFETY: a published `Big`'s chunks live as long as it.
        let chunks = self.chunks.iter().map(|&chunk| unsafe { &*chunk });
        let entries = chunks.flat_map(move |chunk| chunk.iter().map(move |entry| look.at(entry)));
        // The first 0 is in the last chunk.
        entries
            .take_while(|&bits| bits != 0)
            .map(Subscriber::from_bits)
    }

    fn chunk(&self, at: usize) -> &Chunk {
        // SAFETY: a published `Big`'s chunks live as long as it.
        unsafe { &*self.chunks[at] }
    }

    fn entry(&self, position: usize) -> &AtomicU64 {
        &self.chunk(position / CHUNK)[position % CHUNK]
    }

    fn bytes(&self) -> isize {
        (size_of::<Self>() + size_of_val(&*self.chunks)).cast_signed()
    }
}

/// The writer's steps with lists.
impl Writer<'_> {
    #[expect(
        clippy::mut_from_ref,
        reason = "the ledger isn't part of what readers share; one writer follows the pointer"
    )]
    fn ledger<'a>(&self, big: &'a Big) -> &'a mut Ledger {
        // SAFETY: there is one writer at a time; it keeps no reference to a ledger while it makes another.
        unsafe { &mut *big.ledger }
    }

    /// The first version of a list.
    pub(crate) fn new_list(&mut self, filter: &[u8], subscribers: &[Subscriber]) -> *mut () {
        let chunk = self.new_chunk(
            FIRST_CHUNK.max(subscribers.len()),
            subscribers.iter().copied(),
        );
        self.bytes += (size_of::<Ledger>() + filter.len()).cast_signed();
        let ledger = Box::into_raw(Box::new(Ledger {
            len: subscribers.len(),
            positions: None,
        }));
        self.new_version(filter.into(), [chunk].into(), ledger)
    }

    fn new_version(
        &mut self,
        filter: Arc<[u8]>,
        chunks: Box<[*mut Chunk]>,
        ledger: *mut Ledger,
    ) -> *mut () {
        let big = Big {
            filter,
            chunks,
            ledger,
        };
        self.bytes += big.bytes();
        Box::into_raw(Box::new(big)).cast()
    }

    /// Publishes a version with other chunks, and gives up the former and the chunks that are only in it.
    fn publish(&mut self, link: &AtomicPtr<()>, word: *mut (), big: &Big, chunks: Vec<*mut Chunk>) {
        let gone = |(at, old): (usize, &*mut Chunk)| {
            chunks
                .get(at)
                .is_none_or(|&new| !ptr::eq(new, *old))
                .then_some(*old)
        };
        let gone: Vec<_> = big.chunks.iter().enumerate().filter_map(gone).collect();
        let new = self.new_version(Arc::clone(&big.filter), chunks.into(), big.ledger);
        link.store(new, Ordering::Release);
        for chunk in gone {
            self.retire_chunk(chunk);
        }
        self.retire_version(word, big);
    }

    fn new_chunk(
        &mut self,
        capacity: usize,
        subscribers: impl Iterator<Item = Subscriber>,
    ) -> *mut Chunk {
        let entries = subscribers
            .map(Subscriber::bits)
            .chain(std::iter::repeat(0))
            .take(capacity);
        let chunk: Box<Chunk> = entries.map(AtomicU64::new).collect();
        self.bytes += size_of_val(&*chunk).cast_signed();
        Box::into_raw(chunk)
    }

    fn retire_chunk(&mut self, chunk: *mut Chunk) {
        self.bytes -= (chunk.len() * size_of::<AtomicU64>()).cast_signed();
        // SAFETY: made by `new_chunk`, no longer published; the epoch waits for the readers that hold it.
        unsafe {
            self.guard
                .defer_unchecked(move || drop(Box::from_raw(chunk)))
        };
    }

    /// Gives up one version, without its chunks and its ledger.
    pub(crate) fn retire_version(&mut self, word: *mut (), big: &Big) {
        self.bytes -= big.bytes();
        let version = word.cast::<Big>();
        // SAFETY: made by `new_version`, no longer published; the epoch waits for the readers that hold it.
        unsafe {
            self.guard
                .defer_unchecked(move || drop(Box::from_raw(version)))
        };
    }

    /// Gives up a list altogether.
    fn retire_list(&mut self, word: *mut (), big: &Big) {
        self.forget_positions(big);
        self.bytes -= (size_of::<Ledger>() + big.filter.len()).cast_signed();
        // SAFETY: made by `new_list`; only writers follow the pointer, and no version with it will be published.
        drop(unsafe { Box::from_raw(big.ledger) });
        for &chunk in &big.chunks {
            self.retire_chunk(chunk);
        }
        self.retire_version(word, big);
    }

    fn position(&self, big: &Big, id: u64) -> Option<usize> {
        let ledger = self.ledger(big);
        match &ledger.positions {
            Some(positions) => positions.get(&id).map(|&position| position as usize),
            None => (0..ledger.len).find(|&position| load(big.entry(position)).id() == id),
        }
    }

    /// The entry with this identifier.
    pub(crate) fn find<'a>(&self, big: &'a Big, id: u64) -> Option<&'a AtomicU64> {
        self.position(big, id).map(|position| big.entry(position))
    }

    /// Notes that the entry of `old_id` has been given to `new_id`.
    pub(crate) fn renamed(&mut self, big: &Big, old_id: u64, new_id: u64) {
        if let Some(positions) = &mut self.ledger(big).positions {
            let position = positions
                .remove(&old_id)
                .expect("every entry has its position");
            positions.insert(new_id, position);
        }
    }

    fn note_position(&mut self, big: &Big, id: u64, position: usize) {
        if let Some(positions) = &mut self.ledger(big).positions {
            let position = u32::try_from(position).expect("a node has fewer than 2³² sessions");
            if positions.insert(id, position).is_none() {
                self.bytes += POSITION_BYTES.cast_signed();
            }
        }
    }

    fn forget_positions(&mut self, big: &Big) {
        if let Some(positions) = self.ledger(big).positions.take() {
            self.bytes -= (positions.len() * POSITION_BYTES).cast_signed();
        }
    }

    /// Adds a subscriber that isn't in the list.
    pub(crate) fn append(
        &mut self,
        link: &AtomicPtr<()>,
        word: *mut (),
        big: &Big,
        subscriber: Subscriber,
    ) {
        let position = self.ledger(big).len;
        self.ledger(big).len += 1;
        let last = big.chunk(big.chunks.len() - 1);
        let used = position - (big.chunks.len() - 1) * CHUNK;
        self.note_position(big, subscriber.id(), position);
        if used < last.len() {
            big.entry(position)
                .store(subscriber.bits(), Ordering::Release);
            return;
        }
        let mut chunks = big.chunks.to_vec();
        if last.len() < CHUNK {
            // The only chunk, small so far.
            let all = last.iter().map(load).chain([subscriber]);
            chunks[0] = self.new_chunk((last.len() * 2).min(CHUNK), all);
        } else {
            chunks.push(self.new_chunk(CHUNK, [subscriber].into_iter()));
            if self.ledger(big).positions.is_none() {
                let ids = big
                    .all(Look::Writer)
                    .chain([subscriber])
                    .map(Subscriber::id);
                let positions: BTreeMap<_, _> = ids.zip(0..).collect();
                self.bytes += (positions.len() * POSITION_BYTES).cast_signed();
                self.ledger(big).positions = Some(positions);
            }
        }
        self.publish(link, word, big, chunks);
    }

    /// Takes a subscriber out and returns it; the last entry moves to its place.
    pub(crate) fn take_out(
        &mut self,
        link: &AtomicPtr<()>,
        word: *mut (),
        big: &Big,
        id: u64,
    ) -> Option<Subscriber> {
        let hole = self.position(big, id)?;
        let removed = load(big.entry(hole));
        self.ledger(big).len -= 1;
        let last = self.ledger(big).len;
        let moved = load(big.entry(last));
        if last <= INLINE_AGAIN {
            let rest: Vec<_> = big
                .all(Look::Writer)
                .filter(|subscriber| subscriber.id() != id)
                .collect();
            link.store(self.inline(&big.filter, &rest), Ordering::Release);
            self.retire_list(word, big);
            return Some(removed);
        }
        if let Some(positions) = &mut self.ledger(big).positions {
            positions.remove(&id);
            self.bytes -= POSITION_BYTES.cast_signed();
        }
        if hole != last {
            self.note_position(big, moved.id(), hole);
        }
        if last <= CHUNK / 2 {
            self.forget_positions(big);
        }
        let capacity = big.chunk(0).len();
        let shrinks = big.chunks.len() == 1 && last <= capacity / 4 && capacity > FIRST_CHUNK;
        let emptied = last.is_multiple_of(CHUNK);
        if hole == last && !emptied && !shrinks {
            big.entry(last).store(0, Ordering::Release);
            return Some(removed);
        }
        // New versions of the chunk with the hole and of the last one: up to `until`, with `moved` in the hole.
        let mut remade = |at: usize, capacity: usize| {
            let until = last.min((at + 1) * CHUNK);
            let entries = (at * CHUNK..until).map(|position| {
                if position == hole {
                    moved
                } else {
                    load(big.entry(position))
                }
            });
            self.new_chunk(capacity, entries)
        };
        let mut chunks = big.chunks.to_vec();
        let last_chunk = last / CHUNK;
        if emptied {
            chunks.pop();
        } else {
            let capacity = big.chunk(last_chunk).len();
            chunks[last_chunk] = remade(last_chunk, if shrinks { capacity / 2 } else { capacity });
        }
        if hole / CHUNK != last_chunk {
            chunks[hole / CHUNK] = remade(hole / CHUNK, CHUNK);
        }
        self.publish(link, word, big, chunks);
        Some(removed)
    }
}

/// Frees a list at once.
///
/// # Safety
/// `word` is a list's record, and no reader or writer is left that knows it.
pub(crate) unsafe fn free(word: *mut ()) {
    // SAFETY: made by `new_version`, `new_list` and `new_chunk`, and nobody else knows them.
    unsafe {
        let big = Box::from_raw(word.cast::<Big>());
        drop(Box::from_raw(big.ledger));
        for &chunk in &big.chunks {
            drop(Box::from_raw(chunk));
        }
    }
}
