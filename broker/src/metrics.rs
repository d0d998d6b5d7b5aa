//! Counters that the workers keep and the administration reads.
