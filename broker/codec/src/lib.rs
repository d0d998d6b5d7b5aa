//! MQTT control packets: bytes ↔ packets, for MQTT 3.1, 3.1.1 and 5.0.
//!
//! `no_std`, no unsafe code, no I/O. A decoded PUBLISH borrows nothing: topic and payload are
//! reference-counted slices of the input.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod packet;
mod text;

pub use packet::*;
pub use text::Text;
