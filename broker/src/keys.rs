//! Keys derived from the master secret.
