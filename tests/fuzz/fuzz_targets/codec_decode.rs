//! Arbitrary bytes into the MQTT decoder: `cargo fuzz run codec_decode` in tests.
#![no_main]

#[path = "../checks/codec_decode.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::check(data));
