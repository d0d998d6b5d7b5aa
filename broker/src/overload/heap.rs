//! What the allocator (glibc's malloc) has handed out, and giving back to the system what it has not.

/// Bytes that are handed out, of all arenas; `None` with another C library. It looks at every free block: its time grows with
/// their number, and allocations of the arena at which it is wait for it.
pub fn in_use_bytes() -> Option<u64> {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it may be called at any time, from any thread.
        let info = unsafe { libc::mallinfo2() };
        Some((info.uordblks + info.hblkhd) as u64)
    }
    #[cfg(not(target_env = "gnu"))]
    None
}

/// Gives back to the system the pages that are free as a whole. It takes about as long as [`in_use_bytes`], and the
/// system's time for the pages.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
