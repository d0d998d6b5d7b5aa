//! Records, connection IDs, packet parsers and verdicts shared by the kernel program and the host.
//!
//! The same source is compiled for the kernel, where the verifier must follow it (no unbounded loops, whole words
//! instead of byte copies, everything inlined), and for the host, where it is tested and serves as the user-space
//! path.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod cid;
pub mod frame;
pub mod ghash;
pub mod quota;
pub mod reason;
pub mod records;
pub mod route;
pub mod shield;
pub mod siphash;
pub mod talkers;
pub mod token;

pub use cid::{CID_LEN, CidFields, CidKeys};
pub use reason::{
    AnswerReason, Answers, DropReason, Drops, PassReason, Passes, SocketReason, Sockets,
};
pub use route::{Form, Head, NO_SLOT, Route, Router, Secrets, Steering, route};
pub use siphash::SipKey;
