//! Arbitrary bytes through the MQTT decoder and encoder: `cargo fuzz run codec_roundtrip` in tests.
#![no_main]

#[path = "../checks/codec_roundtrip.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::check(data));
