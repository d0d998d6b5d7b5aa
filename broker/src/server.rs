//! Starts the workers and supervises them.
