//! Arbitrary lists of operations into sessions: `cargo fuzz run session` in tests.
#![no_main]

#[path = "../checks/session.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::check(data));
