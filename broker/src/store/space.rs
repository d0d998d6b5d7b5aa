//! Whether there is room for more.

use headgate_core::StorageState;
use nix::sys::statvfs::statvfs;
use std::path::PathBuf;

/// How much room there has to be.
#[derive(Clone, Debug)]
pub struct SpaceLimits {
    /// Where the store is.
    pub path: PathBuf,
    /// The store's files may occupy this, bytes.
    pub bytes_max: u64,
    /// This is to stay free on the filesystem, bytes.
    pub reserve_bytes: u64,
}

/// Looks at the filesystem.
#[derive(Debug)]
pub struct Space {
    limits: SpaceLimits,
    free_bytes: u64,
}

impl Space {
    /// Nothing is known yet.
    pub fn new(limits: SpaceLimits) -> Self {
        Self {
            limits,
            free_bytes: u64::MAX,
        }
    }

    /// Free bytes of the filesystem when it was looked at last.
    pub fn free_bytes(&self) -> u64 {
        self.free_bytes
    }

    /// `Ok` or `Full`. A store that was full needs an eighth more than the limits say.
    pub fn state(&mut self, store_bytes: u64, was_full: bool) -> StorageState {
        self.free_bytes = match statvfs(&self.limits.path) {
            Ok(found) => found.blocks_available() * found.fragment_size(),
            // The writing itself will say what is wrong.
            Err(_) => u64::MAX,
        };
        state(&self.limits, self.free_bytes, store_bytes, was_full)
    }
}

fn state(limits: &SpaceLimits, free: u64, bytes: u64, was_full: bool) -> StorageState {
    let more = |limit: u64| if was_full { limit / 8 } else { 0 };
    let reserve = limits.reserve_bytes;
    let max = limits.bytes_max;
    match free < reserve + more(reserve) || bytes > max - more(max) {
        true => StorageState::Full,
        false => StorageState::Ok,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_is_left_later_than_it_is_entered() {
        let limits = SpaceLimits {
            path: PathBuf::new(),
            bytes_max: 8_000,
            reserve_bytes: 800,
        };
        let is_full = |free, bytes, was| state(&limits, free, bytes, was) == StorageState::Full;
        assert!(!is_full(800, 8_000, false));
        assert!(is_full(799, 0, false) && is_full(10_000, 8_001, false));
        assert!(is_full(899, 0, true) && is_full(10_000, 7_001, true));
        assert!(!is_full(900, 7_000, true));
    }
}
