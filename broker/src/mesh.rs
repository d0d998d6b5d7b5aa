//! Bounded rings between workers.
