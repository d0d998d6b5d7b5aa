//! Arbitrary packets and ends of data streams into the core: `cargo fuzz run streams` in tests.
#![no_main]

#[path = "../checks/streams.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::check(data));
