//! The path-hash table: open addressing in 16-byte slots, cut into segments that grow one by one.
//!
//! Readers take no lock. Writers (one at a time, the caller sees to it) publish in this order: a slot's value before its
//! key, a grown segment after it is complete. An entry doesn't move within a segment. A freed slot may be
//! taken by another key while a reader looks at it; the reader then has a value of another key, which for a node costs
//! futile probes and for a terminal shows when the filter is compared.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr;

use crate::hash::Key;
use crate::sync::{AtomicPtr, AtomicU64, Cell, Guard, Look, Ordering};

/// Segments of a table, a power of two. More make the copy when one grows shorter: with 1,000,000 filters of 4 levels a
/// segment has about 4,000 slots (64 KB), and growing it holds up other writers (never readers) for some 20 µs; with
/// 100,000,000 it is some 5 ms.
#[cfg(not(loom))]
const SEGMENTS: usize = 512;
#[cfg(loom)]
const SEGMENTS: usize = 1;

/// A key that was never used: a probe ends here.
const EMPTY: u64 = 0;
/// A freed slot: a probe goes on.
const FREED: u64 = 1;

/// Low bits of a segment's address that hold its [`SizeClass`]. Segments start on a cache line, and on a pair of them.
const ALIGN: usize = 128;

/// One entry. The value means what the key's kind says: counts and flags, or a record.
pub(crate) struct Slot {
    key: AtomicU64,
    pub(crate) value: AtomicPtr<()>,
}

/// The number of slots of a segment in 7 bits: 4 to 7, shifted. Steps of a fifth on average keep segments well filled.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct SizeClass(usize);

impl SizeClass {
    /// 8 slots.
    const MIN: Self = Self(4);
    /// 7 · 2²⁸ slots: 30 GB a segment, beyond any machine this runs on.
    const MAX: Self = Self(115);

    #[inline]
    fn slots(self) -> usize {
        (4 + (self.0 & 3)) << (self.0 >> 2)
    }

    /// The smallest class in which `live` entries fill less than three quarters.
    fn for_entries(live: usize) -> Self {
        let mut class = Self::MIN;
        while live * 4 > class.slots() * 3 && class != Self::MAX {
            class.0 += 1;
        }
        class
    }
}

/// A segment as a reader sees it.
#[derive(Clone, Copy)]
struct Segment {
    slots: *mut Slot,
    class: SizeClass,
}

impl Segment {
    #[inline]
    fn unpack(word: *mut Slot) -> Self {
        let class = SizeClass(word.addr() & (ALIGN - 1));
        Self {
            slots: word.map_addr(|address| address & !(ALIGN - 1)),
            class,
        }
    }

    fn pack(self) -> *mut Slot {
        self.slots.map_addr(|address| address | self.class.0)
    }

    fn layout(class: SizeClass) -> Layout {
        let layout = Layout::array::<Slot>(class.slots()).and_then(|layout| layout.align_to(ALIGN));
        layout.expect("the largest class fits the address space")
    }

    fn allocate(class: SizeClass) -> Self {
        let layout = Self::layout(class);
        // SAFETY: the layout's size isn't 0, as every class has slots.
        let slots = unsafe { alloc(layout) }.cast::<Slot>();
        if slots.is_null() {
            handle_alloc_error(layout);
        }
        for index in 0..class.slots() {
            let empty = Slot {
                key: AtomicU64::new(EMPTY),
                value: AtomicPtr::new(ptr::null_mut()),
            };
            // SAFETY: `index` is within the allocation, which nobody else knows yet.
            unsafe { slots.add(index).write(empty) };
        }
        Self { slots, class }
    }

    /// # Safety
    /// The segment came from `allocate`, isn't published any more, and no reader holds it.
    unsafe fn free(self) {
        // SAFETY: allocated with this layout; slots need no drop outside loom, which leaks them.
        unsafe { dealloc(self.slots.cast(), Self::layout(self.class)) };
    }

    /// Where the probe for `key` begins: bits of the hash that neither choose the segment nor tell the kind.
    #[inline]
    fn home(self, key: u64) -> usize {
        ((key >> 8 & 0xFFFF_FFFF) as usize * self.class.slots()) >> 32
    }

    /// The slots in the order of the probe for `key`, all of them.
    #[inline]
    fn probe<'a>(self, key: u64) -> Probe<'a> {
        Probe {
            segment: self,
            at: self.home(key),
            lifetime: std::marker::PhantomData,
        }
    }
}

/// Walks a segment from a key's home. Endless: each segment keeps an empty slot, where its users stop.
struct Probe<'a> {
    segment: Segment,
    at: usize,
    lifetime: std::marker::PhantomData<&'a Slot>,
}

impl<'a> Probe<'a> {
    #[inline]
    fn step(&mut self) -> &'a Slot {
        // SAFETY: `at` is below the number of slots; the caller of `Slots` keeps the segment alive by its guard.
        let slot = unsafe { &*self.segment.slots.add(self.at) };
        self.at += 1;
        if self.at == self.segment.class.slots() {
            self.at = 0;
        }
        slot
    }
}

/// How full a segment is; the writer's.
#[derive(Clone, Copy, Debug, Default)]
struct Fill {
    live: usize,
    freed: usize,
}

/// What only the writer knows.
#[derive(Debug)]
pub(crate) struct Fills(Box<[Fill]>);

impl Fills {
    pub(crate) fn new() -> Self {
        Self(vec![Fill::default(); SEGMENTS].into())
    }
}

/// All slots.
pub(crate) struct Slots {
    segments: Box<[AtomicPtr<Slot>]>,
}

impl Slots {
    pub(crate) fn new() -> Self {
        let segments =
            (0..SEGMENTS).map(|_| AtomicPtr::new(Segment::allocate(SizeClass::MIN).pack()));
        Self {
            segments: segments.collect(),
        }
    }

    /// Bytes of an empty table.
    pub(crate) fn initial_bytes() -> usize {
        SEGMENTS
            * (Segment::layout(SizeClass::MIN).size()
                + size_of::<AtomicPtr<Slot>>()
                + size_of::<Fill>())
    }

    #[inline]
    fn index(key: u64) -> usize {
        (key >> 48) as usize & (SEGMENTS - 1)
    }

    #[inline]
    fn segment(&self, key: u64, look: Look) -> Segment {
        let word = &self.segments[Self::index(key)];
        Segment::unpack(look.at(word))
    }

    /// Asks for the cache line where the search for `key` begins.
    #[inline]
    pub(crate) fn prefetch(&self, key: Key) {
        if cfg!(not(loom)) {
            let segment = self.segment(key.0, Look::Reader);
            prefetch(segment.slots.wrapping_add(segment.home(key.0)));
        }
    }

    /// The first slot with this key.
    #[inline]
    pub(crate) fn get<'g>(&self, key: Key, look: Look, guard: &'g Guard) -> Option<&'g Slot> {
        self.all(key, look, guard).next()
    }

    /// All slots with this key: filters whose paths have the same hash have a slot each.
    #[inline]
    pub(crate) fn all<'g>(
        &self,
        key: Key,
        look: Look,
        _guard: &'g Guard,
    ) -> impl Iterator<Item = &'g Slot> + use<'g> {
        let mut probe = self.segment(key.0, look).probe(key.0);
        std::iter::from_fn(move || {
            loop {
                let slot = probe.step();
                match look.at(&slot.key) {
                    found if found == key.0 => return Some(slot),
                    EMPTY => return None,
                    _ => {}
                }
            }
        })
    }

    /// Adds an entry and returns its slot, growing the segment first when it is full. Returns the change in bytes too.
    pub(crate) fn insert<'g>(
        &self,
        key: Key,
        value: *mut (),
        fills: &mut Fills,
        guard: &'g Guard,
    ) -> (&'g Slot, isize) {
        let fill = &mut fills.0[Self::index(key.0)];
        let slots = self.segment(key.0, Look::Writer).class.slots();
        // At most 13/16 used, so that probes stay short and there is always an end to them.
        let grown = if (fill.live + fill.freed + 1) * 16 > slots * 13 {
            self.rebuild(key, fill, guard)
        } else {
            0
        };
        let mut probe = self.segment(key.0, Look::Writer).probe(key.0);
        loop {
            let slot = probe.step();
            let found = slot.key.own();
            if found == EMPTY || found == FREED {
                fill.freed -= usize::from(found == FREED);
                fill.live += 1;
                slot.value.store(value, Ordering::Release);
                slot.key.store(key.0, Ordering::Release);
                return (slot, grown);
            }
        }
    }

    /// Frees the slot of an entry. The value, if it is a record, is the caller's to retire.
    pub(crate) fn remove(&self, key: Key, slot: &Slot, fills: &mut Fills, guard: &Guard) -> isize {
        let fill = &mut fills.0[Self::index(key.0)];
        slot.key.store(FREED, Ordering::Release);
        slot.value.store(ptr::null_mut(), Ordering::Release);
        fill.live -= 1;
        fill.freed += 1;
        let slots = self.segment(key.0, Look::Writer).class.slots();
        // After a storm of subscriptions the memory goes back.
        if fill.live * 4 < slots && slots > SizeClass::MIN.slots() {
            self.rebuild(key, fill, guard)
        } else {
            0
        }
    }

    /// Copies the live entries of the key's segment to one of the right size and publishes that.
    #[cold]
    fn rebuild(&self, key: Key, fill: &mut Fill, guard: &Guard) -> isize {
        let old = self.segment(key.0, Look::Writer);
        let new = Segment::allocate(SizeClass::for_entries(fill.live + 1));
        assert!(
            (fill.live + 1) * 16 <= new.class.slots() * 13,
            "a segment of the topic table can't grow further"
        );
        for index in 0..old.class.slots() {
            // SAFETY: within the segment, which lives as long as it is published.
            let slot = unsafe { &*old.slots.add(index) };
            let entry = slot.key.own();
            if entry == EMPTY || entry == FREED {
                continue;
            }
            let mut probe = new.probe(entry);
            loop {
                let free = probe.step();
                if free.key.own() == EMPTY {
                    free.value.store(slot.value.own(), Ordering::Relaxed);
                    free.key.store(entry, Ordering::Relaxed);
                    break;
                }
            }
        }
        fill.freed = 0;
        self.segments[Self::index(key.0)].store(new.pack(), Ordering::Release);
        // SAFETY: no longer published; readers that hold it have guards, which the epoch waits for.
        unsafe { guard.defer_unchecked(move || old.free()) };
        guard.flush();
        Segment::layout(new.class).size().cast_signed()
            - Segment::layout(old.class).size().cast_signed()
    }

    /// Shows the writer each terminal's value. The caller has the writer's lock.
    pub(crate) fn each_terminal(&self, mut terminal: impl FnMut(*mut ())) {
        for word in &self.segments {
            let segment = Segment::unpack(word.own());
            for index in 0..segment.class.slots() {
                // SAFETY: within the segment, which only a writer replaces.
                let slot = unsafe { &*segment.slots.add(index) };
                if slot.key.own() & 0b11 == 0b11 {
                    terminal(slot.value.own());
                }
            }
        }
    }

    /// Frees all segments, handing each terminal's value to `terminal`.
    ///
    /// # Safety
    /// No reader or writer is left, and the slots aren't used again.
    pub(crate) unsafe fn free(&mut self, mut terminal: impl FnMut(*mut ())) {
        for word in &self.segments {
            let segment = Segment::unpack(word.own());
            for index in 0..segment.class.slots() {
                // SAFETY: within the segment, which is freed below only.
                let slot = unsafe { &*segment.slots.add(index) };
                let key = slot.key.own();
                if key & 0b11 == 0b11 {
                    terminal(slot.value.own());
                }
            }
            // SAFETY: the caller has the slots alone.
            unsafe { segment.free() };
        }
    }
}

/// Asks the processor for the cache line at `address`, which may be any.
#[inline]
pub(crate) fn prefetch<T>(address: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint without effect on memory; it doesn't fault.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: a hint without effect on memory; it doesn't fault.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) address, options(nostack, preserves_flags, readonly));
    }
    #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
    let _ = address;
}
