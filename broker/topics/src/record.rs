//! What a terminal slot points to: a filter's text and its subscribers.
//!
//! Up to 7 subscribers lie in one block with the text, which is replaced as a whole when one comes or goes. More are
//! kept in chunks ([`Big`]), where one is appended in place. In both, an entry is exchanged by one store.
//!
//! A record's word is its address and, in bits 1 to 3, the number of subscribers in the block (0: a `Big`). Bit 0
//! is set in a node's value, never in a record's: a reader whose slot was taken by another key sees that.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::ptr;
use std::slice;
use std::sync::Arc;

use crate::Subscriber;
use crate::sync::{AtomicPtr, AtomicU64, Guard, Ordering};

/// Most subscribers in one block with their filter.
const INLINE_MAX: usize = 7;
/// A list that shrinks to this many goes back into one block: below `INLINE_MAX`, so that it doesn't go to and fro.
const INLINE_AGAIN: usize = 4;
/// Entries of a chunk (8 KB). Taking one out copies up to two chunks, and 16 bytes for each chunk of the list.
#[cfg(not(loom))]
const CHUNK: usize = 1024;
#[cfg(loom)]
const CHUNK: usize = 8;
/// Entries of the first chunk when it is made.
const FIRST_CHUNK: usize = if CHUNK < 16 { CHUNK } else { 16 };

/// Leaves bits 0 to 3 free; malloc aligns to this anyway.
const ALIGN: usize = 16;
const TAG: usize = ALIGN - 1;

/// Marks a slot's value as a node's.
pub(crate) const NODE: usize = 1;

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

/// A record as a reader sees it.
pub(crate) enum View<'a> {
    Inline {
        filter: &'a [u8],
        subscribers: &'a [AtomicU64],
    },
    Big(&'a Big),
}

/// Looks at a record; `None` for a slot that is being freed or has been taken by a node.
///
/// # Safety
/// `word` was read from a slot's value under a guard that lives at least as long as `'a`, or by the writer, who retires
/// the record only afterwards.
#[inline]
pub(crate) unsafe fn view<'a>(word: *mut ()) -> Option<View<'a>> {
    let tag = word.addr() & TAG;
    if word.is_null() || tag & NODE != 0 {
        return None;
    }
    let base = word.map_addr(|address| address & !TAG);
    if tag == 0 {
        // SAFETY: tag 0 is a published `Big`.
        return Some(View::Big(unsafe { &*base.cast::<Big>() }));
    }
    let count = tag >> 1;
    // SAFETY: an inline record begins with `count` entries, then the length of the text, then the text.
    unsafe {
        let subscribers = slice::from_raw_parts(base.cast::<AtomicU64>(), count);
        let length = base.cast::<u8>().add(size_of_val(subscribers));
        let filter = slice::from_raw_parts(length.add(2), usize::from(length.cast::<u16>().read()));
        Some(View::Inline {
            filter,
            subscribers,
        })
    }
}

/// The part of memory that a reader of this record will want first.
#[inline]
pub(crate) fn prefetch(word: *mut ()) {
    let base = word.map_addr(|address| address & !TAG).cast::<u8>();
    crate::slots::prefetch(base);
    crate::slots::prefetch(base.wrapping_add(64));
}

impl View<'_> {
    #[inline]
    pub(crate) fn filter(&self) -> &[u8] {
        match self {
            Self::Inline { filter, .. } => filter,
            Self::Big(big) => &big.filter,
        }
    }

    /// Appends all subscribers to `out`.
    #[inline]
    pub(crate) fn read(&self, out: &mut Vec<Subscriber>) {
        match self {
            Self::Inline { subscribers, .. } => out.extend(subscribers.iter().map(load)),
            Self::Big(big) => {
                out.reserve((big.chunks.len() - 1) * CHUNK);
                for &chunk in &big.chunks {
                    // SAFETY: a published `Big`'s chunks live as long as it.
                    let chunk = unsafe { &*chunk };
                    out.extend(
                        chunk
                            .iter()
                            .map(|entry| entry.load(Ordering::Acquire))
                            .take_while(|&bits| bits != 0)
                            .map(Subscriber::from_bits),
                    );
                }
            }
        }
    }
}

#[inline]
fn load(entry: &AtomicU64) -> Subscriber {
    Subscriber::from_bits(entry.load(Ordering::Acquire))
}

fn inline_layout(count: usize, filter: usize) -> Layout {
    let layout = Layout::from_size_align(count * size_of::<AtomicU64>() + 2 + filter, ALIGN);
    layout.expect("a filter and seven subscribers fit the address space")
}

/// The writer's way to make, change and retire records; counts their bytes.
pub(crate) struct Writer<'g> {
    pub(crate) guard: &'g Guard,
    pub(crate) bytes: isize,
}

impl Writer<'_> {
    /// A record of one subscriber.
    pub(crate) fn single(&mut self, filter: &[u8], subscriber: Subscriber) -> *mut () {
        self.inline(filter, &[subscriber])
    }

    fn inline(&mut self, filter: &[u8], subscribers: &[Subscriber]) -> *mut () {
        debug_assert!(
            (1..=INLINE_MAX).contains(&subscribers.len()),
            "the count goes into three bits, 0 is a Big"
        );
        let length = u16::try_from(filter.len()).expect("a valid filter has at most 65535 bytes");
        let layout = inline_layout(subscribers.len(), filter.len());
        // SAFETY: the size isn't 0.
        let base = unsafe { alloc(layout) };
        if base.is_null() {
            handle_alloc_error(layout);
        }
        self.bytes += layout.size().cast_signed();
        // SAFETY: the block has room for the entries, two bytes and the text, in this order; the entries are aligned
        // by the layout and the two bytes because they follow entries.
        unsafe {
            for (index, subscriber) in subscribers.iter().enumerate() {
                base.cast::<AtomicU64>()
                    .add(index)
                    .write(AtomicU64::new(subscriber.bits()));
            }
            let text = base.add(subscribers.len() * size_of::<AtomicU64>());
            text.cast::<u16>().write(length);
            ptr::copy_nonoverlapping(filter.as_ptr(), text.add(2), filter.len());
        }
        base.map_addr(|address| address | subscribers.len() << 1)
            .cast()
    }

    /// Adds a subscriber, or replaces the one with the same identifier and returns it.
    pub(crate) fn subscribe(
        &mut self,
        link: &AtomicPtr<()>,
        subscriber: Subscriber,
    ) -> Option<Subscriber> {
        let word = link.load(Ordering::Relaxed);
        // SAFETY: the writer's own look.
        match unsafe { view(word) }? {
            View::Inline {
                filter,
                subscribers,
            } => {
                if let Some(entry) = subscribers
                    .iter()
                    .find(|entry| load(entry).id() == subscriber.id())
                {
                    return Some(exchange(entry, subscriber));
                }
                let all: Vec<_> = subscribers.iter().map(load).chain([subscriber]).collect();
                let new = if all.len() <= INLINE_MAX {
                    self.inline(filter, &all)
                } else {
                    self.big_from(filter, &all)
                };
                link.store(new, Ordering::Release);
                self.retire(word);
                None
            }
            View::Big(big) => {
                if let Some((chunk, index)) = self.find(big, subscriber.id()) {
                    return Some(exchange(entry(big, chunk, index), subscriber));
                }
                self.append(link, word, big, subscriber);
                None
            }
        }
    }

    /// Takes a subscriber out and returns it. The last one leaves the record alone: the second value says so, and the
    /// caller frees the slot and retires the record.
    pub(crate) fn unsubscribe(
        &mut self,
        link: &AtomicPtr<()>,
        id: u64,
    ) -> Option<(Subscriber, bool)> {
        let word = link.load(Ordering::Relaxed);
        // SAFETY: the writer's own look.
        match unsafe { view(word) }? {
            View::Inline {
                filter,
                subscribers,
            } => {
                let removed = load(subscribers.iter().find(|entry| load(entry).id() == id)?);
                let rest: Vec<_> = subscribers
                    .iter()
                    .map(load)
                    .filter(|entry| entry.id() != id)
                    .collect();
                if rest.is_empty() {
                    return Some((removed, true));
                }
                link.store(self.inline(filter, &rest), Ordering::Release);
                self.retire(word);
                Some((removed, false))
            }
            View::Big(big) => {
                let (chunk, index) = self.find(big, id)?;
                let removed = load(entry(big, chunk, index));
                self.take_out(link, word, big, (chunk, index));
                Some((removed, false))
            }
        }
    }

    /// Puts `new` in the place of `old_id`; `None` if that isn't there. True if `new` had a place of its own, so that there is
    /// one subscriber less now.
    pub(crate) fn replace(
        &mut self,
        link: &AtomicPtr<()>,
        old_id: u64,
        new: Subscriber,
    ) -> Option<bool> {
        let word = link.load(Ordering::Relaxed);
        // SAFETY: the writer's own look.
        let view = unsafe { view(word) }?;
        let (old, own) = match &view {
            View::Inline { subscribers, .. } => {
                let find = |id| subscribers.iter().find(|entry| load(entry).id() == id);
                (find(old_id), find(new.id()))
            }
            View::Big(big) => {
                let find = |id| {
                    self.find(big, id)
                        .map(|(chunk, index)| entry(big, chunk, index))
                };
                (find(old_id), find(new.id()))
            }
        };
        let old = old?;
        if old_id != new.id()
            && let Some(own) = own
        {
            // The new one has a place of its own already: it is brought up to date there, and the old one goes.
            exchange(own, new);
            self.unsubscribe(link, old_id);
            return Some(true);
        }
        exchange(old, new);
        if let View::Big(big) = view
            && let Some(positions) = &mut self.ledger(big).positions
        {
            let position = positions.remove(&old_id).expect("found above");
            positions.insert(new.id(), position);
        }
        Some(false)
    }

    /// Gives up a record that is no longer published.
    pub(crate) fn retire(&mut self, word: *mut ()) {
        // SAFETY: the writer's own look, before the record is given up.
        match unsafe { view(word) } {
            None => {}
            Some(View::Inline {
                filter,
                subscribers,
            }) => {
                let layout = inline_layout(subscribers.len(), filter.len());
                self.bytes -= layout.size().cast_signed();
                let base = word.map_addr(|address| address & !TAG).cast::<u8>();
                // SAFETY: made by `inline` with this layout; the epoch waits for the readers that hold it.
                unsafe { self.guard.defer_unchecked(move || dealloc(base, layout)) };
            }
            Some(View::Big(big)) => {
                self.bytes -= big_bytes(big);
                let big = word.cast::<Big>();
                // SAFETY: made by `publish_big`; its chunks and its ledger aren't part of it.
                unsafe { self.guard.defer_unchecked(move || drop(Box::from_raw(big))) };
            }
        }
    }
}

/// Lists in chunks.
impl Writer<'_> {
    #[expect(
        clippy::mut_from_ref,
        reason = "the ledger is the writer's; readers hold the Big but never follow this pointer"
    )]
    fn ledger<'a>(&self, big: &'a Big) -> &'a mut Ledger {
        // SAFETY: only the one writer looks at ledgers, one list at a time, and no reference to it outlives a call.
        unsafe { &mut *big.ledger }
    }

    fn find(&self, big: &Big, id: u64) -> Option<(usize, usize)> {
        if let Some(positions) = &self.ledger(big).positions {
            return positions
                .get(&id)
                .map(|&position| (position as usize / CHUNK, position as usize % CHUNK));
        }
        (0..self.ledger(big).len)
            .find(|&index| load(entry(big, 0, index)).id() == id)
            .map(|index| (0, index))
    }

    fn chunk(
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
        // SAFETY: made by `chunk`, no longer published; the epoch waits for the readers that hold it.
        unsafe {
            self.guard
                .defer_unchecked(move || drop(Box::from_raw(chunk)))
        };
    }

    fn publish_big(
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
        self.bytes += big_bytes(&big);
        Box::into_raw(Box::new(big)).cast()
    }

    fn big_from(&mut self, filter: &[u8], subscribers: &[Subscriber]) -> *mut () {
        let chunk = self.chunk(FIRST_CHUNK, subscribers.iter().copied());
        self.bytes += (size_of::<Ledger>() + filter.len()).cast_signed();
        let ledger = Box::into_raw(Box::new(Ledger {
            len: subscribers.len(),
            positions: None,
        }));
        self.publish_big(filter.into(), [chunk].into(), ledger)
    }

    /// Frees what all versions of a list shared, when none follows.
    fn retire_list(&mut self, word: *mut (), big: &Big) {
        // SAFETY: the list's ledger was made by `big_from`; readers don't know it, and this is its last use.
        let ledger = unsafe { Box::from_raw(big.ledger) };
        self.bytes -= (size_of::<Ledger>() + big.filter.len()).cast_signed();
        self.bytes -= ledger
            .positions
            .as_ref()
            .map_or(0, |positions| positions.len() * POSITION_BYTES)
            .cast_signed();
        for &chunk in &big.chunks {
            self.retire_chunk(chunk);
        }
        self.retire(word);
    }

    fn append(&mut self, link: &AtomicPtr<()>, word: *mut (), big: &Big, subscriber: Subscriber) {
        let ledger = self.ledger(big);
        let last = *big.chunks.last().expect("a list has a chunk");
        let used = ledger.len - (big.chunks.len() - 1) * CHUNK;
        let position = ledger.len;
        ledger.len += 1;
        if used < last.len() {
            entry(big, big.chunks.len() - 1, used).store(subscriber.bits(), Ordering::Release);
        } else {
            let mut chunks = big.chunks.to_vec();
            if last.len() < CHUNK {
                let grown = all(big).chain([subscriber]).collect::<Vec<_>>();
                chunks[0] = self.chunk(last.len() * 2, grown.into_iter());
            } else {
                chunks.push(self.chunk(CHUNK, [subscriber].into_iter()));
            }
            let new = self.publish_big(Arc::clone(&big.filter), chunks.into(), big.ledger);
            link.store(new, Ordering::Release);
            if last.len() < CHUNK {
                self.retire_chunk(last);
            } else if ledger.positions.is_none() {
                let positions = all(big)
                    .map(Subscriber::id)
                    .zip(0..)
                    .collect::<BTreeMap<_, _>>();
                self.bytes += (positions.len() * POSITION_BYTES).cast_signed();
                ledger.positions = Some(positions);
            }
            self.retire(word);
        }
        if let Some(positions) = &mut ledger.positions {
            positions.insert(
                subscriber.id(),
                u32::try_from(position).expect("a node has fewer sessions"),
            );
            self.bytes += POSITION_BYTES.cast_signed();
        }
    }

    fn take_out(
        &mut self,
        link: &AtomicPtr<()>,
        word: *mut (),
        big: &Big,
        (chunk, index): (usize, usize),
    ) {
        let ledger = self.ledger(big);
        let removed = load(entry(big, chunk, index)).id();
        ledger.len -= 1;
        let (last_chunk, last_index) = (ledger.len / CHUNK, ledger.len % CHUNK);
        let moved = load(entry(big, last_chunk, last_index));
        if ledger.len <= INLINE_AGAIN {
            let rest: Vec<_> = all(big)
                .filter(|subscriber| subscriber.id() != removed)
                .collect();
            link.store(self.inline(&big.filter, &rest), Ordering::Release);
            self.retire_list(word, big);
            return;
        }
        if let Some(positions) = &mut ledger.positions {
            positions.remove(&removed);
            self.bytes -= POSITION_BYTES.cast_signed();
            if moved.id() != removed {
                positions.insert(
                    moved.id(),
                    u32::try_from(chunk * CHUNK + index).expect("as it was inserted"),
                );
            }
        }
        let emptied = last_index == 0;
        // A list of one chunk shrinks when it is mostly empty.
        let capacity = big.chunks[0].len();
        let shrinks = last_chunk == 0 && ledger.len <= capacity / 4 && capacity > FIRST_CHUNK;
        if moved.id() == removed && !emptied && !shrinks {
            entry(big, last_chunk, last_index).store(0, Ordering::Release);
            return;
        }
        let mut chunks = big.chunks.to_vec();
        if chunk == last_chunk && !emptied {
            let rest: Vec<_> = (0..last_index)
                .map(|at| load(entry(big, chunk, at)))
                .map(|entry| if entry.id() == removed { moved } else { entry })
                .collect();
            let capacity = big.chunks[chunk].len();
            chunks[chunk] = self.chunk(
                if shrinks { capacity / 2 } else { capacity },
                rest.into_iter(),
            );
        } else {
            if moved.id() != removed {
                let full: Vec<_> = (0..CHUNK)
                    .map(|at| load(entry(big, chunk, at)))
                    .map(|entry| if entry.id() == removed { moved } else { entry })
                    .collect();
                chunks[chunk] = self.chunk(CHUNK, full.into_iter());
            }
            if emptied {
                chunks.pop();
            } else {
                let rest: Vec<_> = (0..last_index)
                    .map(|at| load(entry(big, last_chunk, at)))
                    .collect();
                chunks[last_chunk] = self.chunk(CHUNK, rest.into_iter());
            }
        }
        if ledger.len <= CHUNK / 2
            && let Some(positions) = ledger.positions.take()
        {
            self.bytes -= (positions.len() * POSITION_BYTES).cast_signed();
        }
        let kept: Vec<_> = chunks.clone();
        link.store(
            self.publish_big(Arc::clone(&big.filter), chunks.into(), big.ledger),
            Ordering::Release,
        );
        for (at, &old) in big.chunks.iter().enumerate() {
            if kept.get(at).is_none_or(|&new| !ptr::eq(new, old)) {
                self.retire_chunk(old);
            }
        }
        self.retire(word);
    }
}

/// What a B-tree takes for a position, about: 12 bytes in nodes that are two thirds full.
const POSITION_BYTES: usize = 18;

fn big_bytes(big: &Big) -> isize {
    (size_of::<Big>() + size_of_val(&*big.chunks)).cast_signed()
}

fn entry(big: &Big, chunk: usize, index: usize) -> &AtomicU64 {
    // SAFETY: a published `Big`'s chunks live as long as it.
    unsafe { &(&*big.chunks[chunk])[index] }
}

/// All subscribers, as the writer sees them.
fn all(big: &Big) -> impl Iterator<Item = Subscriber> {
    // SAFETY: a published `Big`'s chunks live as long as it.
    let chunks = big.chunks.iter().map(|&chunk| unsafe { &*chunk });
    chunks
        .flat_map(|chunk| {
            chunk
                .iter()
                .map(|entry| entry.load(Ordering::Relaxed))
                .take_while(|&bits| bits != 0)
        })
        .map(Subscriber::from_bits)
}

fn exchange(entry: &AtomicU64, new: Subscriber) -> Subscriber {
    Subscriber::from_bits(entry.swap(new.bits(), Ordering::AcqRel))
}

/// Frees a record at once, with all that belongs to it.
///
/// # Safety
/// No reader or writer is left that knows it.
pub(crate) unsafe fn free(word: *mut ()) {
    // SAFETY: nobody else knows the record.
    match unsafe { view(word) } {
        None => {}
        Some(View::Inline {
            filter,
            subscribers,
        }) => {
            let layout = inline_layout(subscribers.len(), filter.len());
            // SAFETY: made by `inline` with this layout.
            unsafe { dealloc(word.map_addr(|address| address & !TAG).cast(), layout) };
        }
        Some(View::Big(_)) => {
            // SAFETY: made by `publish_big`, `big_from` and `chunk`, and nobody else knows them.
            unsafe {
                let big = Box::from_raw(word.cast::<Big>());
                drop(Box::from_raw(big.ledger));
                for &chunk in &big.chunks {
                    drop(Box::from_raw(chunk));
                }
            }
        }
    }
}
