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

/// Who looks at a cell of the table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Look {
    Reader,
    Writer,
}

impl Look {
    #[inline]
    pub(crate) fn at<C: Cell>(self, cell: &C) -> C::Value {
        match self {
            Self::Reader => cell.read(),
            Self::Writer => cell.own(),
        }
    }
}

/// A cell of the table.
pub(crate) trait Cell {
    type Value;

    /// A reader's look: with all that was stored before this value.
    fn read(&self) -> Self::Value;

    /// The writer's look at what only writers change. To loom it is no event: it would hide the race between a reader
    /// and the store that follows (loom compares a store with the latest access alone).
    fn own(&self) -> Self::Value;
}

macro_rules! cell {
    ($cell:ty, $value:ty, <$($generic:ident)?>) => {
        impl<$($generic)?> Cell for $cell {
            type Value = $value;

            #[inline]
            fn read(&self) -> $value {
                self.load(Ordering::Acquire)
            }

            #[inline]
            fn own(&self) -> $value {
                #[cfg(not(loom))]
                return self.load(Ordering::Relaxed);
                #[cfg(loom)]
                // SAFETY: writers hold the lock, so no store is going on.
                return unsafe { self.unsync_load() };
            }
        }
    };
}

cell!(AtomicU64, u64, <>);
cell!(AtomicPtr<T>, *mut T, <T>);

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
