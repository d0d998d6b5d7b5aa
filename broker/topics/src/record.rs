//! What a terminal slot points to: a filter's text and its subscribers.
//!
//! Up to 7 subscribers lie in one block with the text, which is replaced as a whole when one comes or goes. More are
//! kept in chunks ([`Big`]), where one is appended in place. In both, an entry is exchanged by one store.
//!
//! A record's word is its address and, in bits 1 to 3, the number of subscribers in the block (0: a `Big`). Bit 0
//! is set in a node's value, never in a record's: a reader whose slot was taken by another key sees that.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr;
use std::slice;

use arrayvec::ArrayVec;

use crate::Subscriber;
use crate::list::{self, Big};
use crate::sync::{AtomicPtr, AtomicU64, Cell, Guard, Ordering};

/// Most subscribers in one block with their filter.
const INLINE_MAX: usize = 7;

/// Leaves bits 0 to 3 free; malloc aligns to this anyway.
const ALIGN: usize = 16;
const TAG: usize = ALIGN - 1;

/// Marks a slot's value as a node's.
pub(crate) const NODE: usize = 1;

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
            Self::Big(big) => big.filter(),
        }
    }

    /// Appends all subscribers to `out`, as a reader.
    #[inline]
    pub(crate) fn read(&self, out: &mut Vec<Subscriber>) {
        match self {
            Self::Inline { subscribers, .. } => out.extend(
                subscribers
                    .iter()
                    .map(|entry| Subscriber::from_bits(entry.read())),
            ),
            Self::Big(big) => big.read(out),
        }
    }
}

/// The writer's look at an entry.
#[inline]
pub(crate) fn load(entry: &AtomicU64) -> Subscriber {
    Subscriber::from_bits(entry.own())
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

    pub(crate) fn inline(&mut self, filter: &[u8], subscribers: &[Subscriber]) -> *mut () {
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
        let word = link.own();
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
                let all: ArrayVec<_, { INLINE_MAX + 1 }> =
                    subscribers.iter().map(load).chain([subscriber]).collect();
                let new = if all.len() <= INLINE_MAX {
                    self.inline(filter, &all)
                } else {
                    self.new_list(filter, &all)
                };
                link.store(new, Ordering::Release);
                self.retire(word);
                None
            }
            View::Big(big) => {
                if let Some(entry) = self.find(big, subscriber.id()) {
                    return Some(exchange(entry, subscriber));
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
        let word = link.own();
        // SAFETY: the writer's own look.
        match unsafe { view(word) }? {
            View::Inline {
                filter,
                subscribers,
            } => {
                let removed = load(subscribers.iter().find(|entry| load(entry).id() == id)?);
                let rest: ArrayVec<_, INLINE_MAX> = subscribers
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
                let removed = self.take_out(link, word, big, id)?;
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
        let word = link.own();
        // SAFETY: the writer's own look.
        let view = unsafe { view(word) }?;
        let (old, own) = match &view {
            View::Inline { subscribers, .. } => {
                let find = |id| subscribers.iter().find(|entry| load(entry).id() == id);
                (find(old_id), find(new.id()))
            }
            View::Big(big) => {
                let find = |id| self.find(big, id);
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
        if let View::Big(big) = view {
            self.renamed(big, old_id, new.id());
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
            Some(View::Big(big)) => self.retire_version(word, big),
        }
    }
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
        // SAFETY: nobody else knows the record; tag 0 is a list.
        Some(View::Big(_)) => unsafe { list::free(word) },
    }
}
