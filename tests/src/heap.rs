//! What live blocks of the heap take.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};

/// An allocator for programs that measure: counts the bytes of live blocks as glibc's malloc lays them out.
pub struct Counting;

static LIVE_BYTES: AtomicIsize = AtomicIsize::new(0);

impl Counting {
    /// Bytes of all blocks that are live now, their headers and rounding included.
    #[must_use]
    pub fn live_bytes() -> isize {
        LIVE_BYTES.load(Ordering::Relaxed)
    }
}

fn block_bytes(block: *mut u8) -> isize {
    // SAFETY: a live block of malloc's. Its usable size leaves out the 8 bytes of the header.
    let usable = unsafe { libc::malloc_usable_size(block.cast()) };
    usable.cast_signed() + 8
}

// SAFETY: passes everything on to the system's allocator and only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        let block = unsafe { System.alloc(layout) };
        if !block.is_null() {
            LIVE_BYTES.fetch_add(block_bytes(block), Ordering::Relaxed);
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(block_bytes(block), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(block, layout) }
    }
}
