//! The kernel half: loads, attaches and talks to the XDP and sk_reuseport programs.
//!
//! The programs judge packets alone; this module gives them their configuration and keys, tells them where the
//! workers are, and reads their counters. Everything that outlives the process lies under one folder of the BPF file
//! system: a broker that crashes leaves its shield up, and the next one adopts it.

mod attach;
mod debug_log;
mod error;
mod found;
mod link;
mod lists;
mod live;
mod loader;
mod maps;
mod memory;
mod penalties;
mod pins;
mod settings;
mod status;
mod talkers;

pub use error::KernelError;
pub use found::pinned_quotas;
pub use lists::{Listed, Prefix};
pub use loader::{Shield, TestRun};
pub use penalties::{PenaltyId, PenaltyOrder};
pub use settings::{KernelSettings, Mode, RetrySettings, Steering};
pub use status::{Adoption, AttachedMode, Counters, InterfaceStatus, Status};
pub use talkers::TopTalker;

/// The compiled kernel programs, or None if the broker was built without them.
#[must_use]
pub fn object() -> Option<&'static [u8]> {
    include!(concat!(env!("OUT_DIR"), "/object.rs"))
}
