//! MQTT control packets: bytes ↔ packets, for MQTT 3.1, 3.1.1 and 5.0.
//!
//! `no_std`, no unsafe code, no I/O. A decoded PUBLISH borrows nothing: topic and payload are
//! reference-counted slices of the input.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod decode;
mod encode;
mod error;
mod frame;
mod packet;
mod property;
mod reason;
mod text;

pub use decode::decode;
pub use encode::{AliasedPublish, PublishTemplate, encode, encoded_len};
pub use error::DecodeError;
pub use frame::{REMAINING_LENGTH_MAX, frame_len};
pub use packet::*;
pub use text::Text;
