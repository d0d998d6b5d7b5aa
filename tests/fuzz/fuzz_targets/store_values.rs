//! Arbitrary bytes as values of the store: `cargo fuzz run store_values` in tests.
#![no_main]

#[path = "../checks/store_values.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::check(data));
