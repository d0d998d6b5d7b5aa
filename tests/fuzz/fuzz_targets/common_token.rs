//! Arbitrary tokens into the kernel's source on the host: `cargo fuzz run common_token` in tests.
#![no_main]

#[path = "../checks/common_token.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::check(data));
