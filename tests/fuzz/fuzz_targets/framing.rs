//! Arbitrary bytes in arbitrary pieces into the framing of a stream: `cargo fuzz run framing` in tests.
#![no_main]

#[path = "../checks/framing.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::check(data));
