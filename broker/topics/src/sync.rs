//! The atomics and the reclamation of the table, or loom's in their place when its model checker runs.
//!
//! Memory that readers may still hold is freed by crossbeam-epoch, which has its own loom tests. Under loom nothing is
//! freed: the model is about what readers see, not about when memory goes.

#[cfg(not(loom))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering},
};

#[cfg(loom)]
pub(crate) use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering},
};

#[cfg(not(loom))]
pub(crate) use crossbeam_epoch::{Guard, pin};

#[cfg(loom)]
pub(crate) use shim::{Guard, pin};

#[cfg(loom)]
mod shim {
    /// Stands for crossbeam-epoch's guard.
    pub(crate) struct Guard;

    pub(crate) fn pin() -> Guard {
        Guard
    }

    impl Guard {
        /// Leaks.
        ///
        /// # Safety
        /// As crossbeam-epoch's; nothing is run here.
        pub(crate) unsafe fn defer_unchecked<F: FnOnce()>(&self, free: F) {
            std::mem::forget(free);
        }

        pub(crate) fn flush(&self) {}
    }
}
