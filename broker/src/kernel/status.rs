//! What the kernel half says about itself.

use std::path::PathBuf;

use headgate_common::records::{Counter, PassCounter};
use headgate_common::{AnswerReason, DropReason, PassReason, SocketReason};

/// How XDP runs on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachedMode {
    /// In the driver.
    Native,
    /// In the network stack.
    Generic,
    /// Not at all.
    None,
}

impl AttachedMode {
    /// The mode in a word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::None => "none",
        }
    }
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// How XDP runs there.
    pub mode: AttachedMode,
    /// Why it isn't better.
    pub why_not_better: Option<String>,
    /// Whether the program of an earlier process was replaced in place.
    pub adopted: bool,
}

/// What was found in the folder for the pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// Nothing.
    Fresh,
    /// The maps of an earlier process, which are used on.
    Adopted,
    /// The maps of an earlier process, which could not be used and were replaced.
    Replaced {
        /// Why they could not be used.
        reason: String,
    },
}

/// The kernel half as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Each interface of the settings.
    pub interfaces: Vec<InterfaceStatus>,
    /// Whether packets are sent to their worker's CPU.
    pub cpumap: bool,
    /// Why not.
    pub why_no_cpumap: Option<String>,
    /// Whether sockets are picked by connection ID.
    pub reuseport: bool,
    /// Where the pins are.
    pub pin_dir: PathBuf,
    /// The pins' names.
    pub pins: Vec<String>,
    /// What was found there.
    pub adoption: Adoption,
}

/// What the kernel has counted, of all CPUs together, since the maps were made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that XDP dropped.
    pub drops: Vec<(DropReason, Counter)>,
    /// Packets to our ports that XDP let through.
    pub passes: Vec<(PassReason, PassCounter)>,
    /// Packets that XDP answered.
    pub answers: Vec<(AnswerReason, Counter)>,
    /// Datagrams by what became of them at the sockets.
    pub sockets: Vec<(SocketReason, Counter)>,
}

impl Counters {
    /// Packets dropped for a reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        packets(&self.drops, reason, |counter| counter.packets)
    }

    /// Packets let through for a reason.
    #[must_use]
    pub fn passed(&self, reason: PassReason) -> u64 {
        packets(&self.passes, reason, |counter| counter.packets)
    }

    /// Packets answered for a reason.
    #[must_use]
    pub fn answered(&self, reason: AnswerReason) -> u64 {
        packets(&self.answers, reason, |counter| counter.packets)
    }

    /// Datagrams at the sockets for a reason.
    #[must_use]
    pub fn at_sockets(&self, reason: SocketReason) -> u64 {
        packets(&self.sockets, reason, |counter| counter.packets)
    }

    /// Every packet that XDP judged to be for our ports.
    #[must_use]
    pub fn judged(&self) -> u64 {
        self.drops
            .iter()
            .map(|(_, counter)| counter.packets)
            .sum::<u64>()
            + self
                .passes
                .iter()
                .map(|(_, counter)| counter.packets)
                .sum::<u64>()
            + self
                .answers
                .iter()
                .map(|(_, counter)| counter.packets)
                .sum::<u64>()
    }
}

fn packets<R: PartialEq, C>(counters: &[(R, C)], reason: R, packets: impl Fn(&C) -> u64) -> u64 {
    counters
        .iter()
        .find(|(other, _)| *other == reason)
        .map_or(0, |(_, counter)| packets(counter))
}
