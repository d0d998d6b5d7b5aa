//! What the kernel half says about itself.

use std::path::PathBuf;

use headgate_common::{
    AnswerReason, Answers, DropReason, Drops, PassReason, Passes, SocketReason, Sockets,
};

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
    /// Memory of all maps when they are full, in bytes.
    pub map_memory_bytes: u64,
}

/// What the kernel has counted, of all CPUs together, since the maps were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that XDP dropped.
    pub drops: Drops,
    /// Packets to our ports that XDP let through.
    pub passes: Passes,
    /// Packets that XDP answered.
    pub answers: Answers,
    /// Datagrams by what became of them at the sockets.
    pub sockets: Sockets,
}

impl Counters {
    /// Packets dropped for a reason.
    #[must_use]
    pub const fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.of(reason).packets
    }

    /// Packets let through for a reason.
    #[must_use]
    pub const fn passed(&self, reason: PassReason) -> u64 {
        self.passes.of(reason).packets
    }

    /// Packets sent to another CPU.
    #[must_use]
    pub fn redirected(&self) -> u64 {
        PassReason::ALL
            .iter()
            .map(|reason| self.passes.of(*reason).redirected)
            .sum()
    }

    /// Packets answered for a reason.
    #[must_use]
    pub const fn answered(&self, reason: AnswerReason) -> u64 {
        self.answers.of(reason).packets
    }

    /// Datagrams at the sockets for a reason.
    #[must_use]
    pub const fn at_sockets(&self, reason: SocketReason) -> u64 {
        self.sockets.of(reason).packets
    }

    /// Every packet that XDP judged to be for our ports.
    #[must_use]
    pub fn judged(&self) -> u64 {
        let dropped: u64 = DropReason::ALL
            .iter()
            .map(|reason| self.dropped(*reason))
            .sum();
        let passed: u64 = PassReason::ALL
            .iter()
            .map(|reason| self.passed(*reason))
            .sum();
        let answered: u64 = AnswerReason::ALL
            .iter()
            .map(|reason| self.answered(*reason))
            .sum();
        dropped + passed + answered
    }
}
