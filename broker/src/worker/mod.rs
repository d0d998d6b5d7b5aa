//! The per-core worker: one thread, one loop.
