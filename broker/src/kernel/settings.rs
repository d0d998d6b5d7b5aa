//! What the kernel half is told.

use std::path::PathBuf;

use headgate_common::quota::{CLASS_DEFAULT, CLASS_SUSPECT, CLASSES_MAX, QuotaClass};
use headgate_common::records::{Budgets, Limit, RetryMode, TCP_PORTS};

/// Which kind of XDP is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Native where the driver has it, else generic, else none.
    #[default]
    Auto,
    /// Native or an error.
    Native,
    /// Generic or an error.
    Generic,
    /// No XDP: only sockets are steered.
    Off,
}

/// Which halves of steering are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Steering {
    /// Sockets everywhere, and CPUs where all interfaces are native and there is more than one worker.
    #[default]
    Auto,
    /// Sockets only.
    Reuseport,
    /// CPUs only: the kernel's own hash picks the socket.
    Cpumap,
    /// Neither.
    None,
}

impl Steering {
    /// Whether sockets are steered.
    #[must_use]
    pub const fn sockets(self) -> bool {
        matches!(self, Self::Auto | Self::Reuseport)
    }

    /// Whether CPUs are steered, where that is possible.
    #[must_use]
    pub const fn cpus(self) -> bool {
        matches!(self, Self::Auto | Self::Cpumap)
    }
}

/// What the kernel half is told.
#[derive(Clone, Debug)]
pub struct KernelSettings {
    /// Which kind of XDP.
    pub mode: Mode,
    /// Network interfaces that the shield watches.
    pub interfaces: Vec<String>,
    /// A folder of this broker's own on a BPF file system.
    pub pin_dir: PathBuf,
    /// Which halves of steering.
    pub steering: Steering,
    /// UDP port of QUIC.
    pub quic_port: u16,
    /// TCP ports that the shield watches: at most four, further ones are left alone.
    pub tcp_ports: Vec<u16>,
    /// This node's id, as it stands in its connection IDs.
    pub node: u16,
    /// What is allowed by time.
    pub budgets: Budgets,
    /// When Initials are answered with Retry.
    pub retry: RetrySettings,
    /// Classes of quotas by number; further ones than the map has room for are left out. Where these two are missing,
    /// [`CLASS_DEFAULT`] has no limits and [`CLASS_SUSPECT`] 100 packets per second.
    pub classes: Vec<(u32, QuotaClass)>,
    /// Packets that wait for a CPU before further ones are dropped. Worst case 2 KiB of kernel memory each, per CPU.
    pub cpumap_queue_packets: u32,
    /// Whether every verdict is logged, which costs about a microsecond a packet.
    pub debug_log: bool,
}

impl KernelSettings {
    /// Most TCP ports that the shield watches.
    pub const TCP_PORTS_MAX: usize = TCP_PORTS;

    /// Budgets for a broker on a few cores, wide enough for a fleet behind one carrier's NAT.
    #[must_use]
    pub const fn default_budgets() -> Budgets {
        Budgets {
            fragments: Limit::new(10_000, 10_000),
            version_negotiations: Limit::new(10_000, 10_000),
            initials: Limit::new(100_000, 200_000),
            initials_per_prefix: Limit::new(50_000, 100_000),
            packets_per_prefix: Limit::new(1_000_000, 2_000_000),
            syns_per_prefix: Limit::new(20_000, 40_000),
            validated_initials: Limit::new(100_000, 200_000),
            validated_initials_per_address: Limit::new(2_000, 4_000),
            retries: Limit::new(1_000_000, 2_000_000),
        }
    }

    /// Every entry of the map `quotas`.
    pub(super) fn quotas(&self) -> impl Iterator<Item = (u32, QuotaClass)> + '_ {
        (0..CLASSES_MAX).map(|number| {
            let given = self.classes.iter().find(|(own, _)| *own == number);
            let class = given.map_or_else(|| Self::default_class(number), |(_, class)| *class);
            (number, class)
        })
    }

    /// A class that the configuration doesn't name.
    fn default_class(number: u32) -> QuotaClass {
        match number {
            CLASS_DEFAULT => QuotaClass::named("default"),
            CLASS_SUSPECT => QuotaClass {
                packets_per_second: 100,
                ..QuotaClass::named("suspect")
            },
            _ => QuotaClass::NONE,
        }
    }
}

/// When Initials without a valid token are answered with Retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetrySettings {
    /// Whether it depends on the load.
    pub mode: RetryMode,
    /// [`RetryMode::Auto`] begins above so many Initials without a valid token per second; 0 = not by this.
    pub above_per_second: u32,
    /// And ends when there are fewer than this for some seconds.
    pub below_per_second: u32,
    /// A token of a Retry packet is good for so many seconds.
    pub token_life_s: u32,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self {
            mode: RetryMode::Auto,
            above_per_second: 10_000,
            below_per_second: 5_000,
            token_life_s: 15,
        }
    }
}

impl Default for KernelSettings {
    fn default() -> Self {
        Self {
            mode: Mode::Auto,
            interfaces: Vec::new(),
            pin_dir: PathBuf::from("/sys/fs/bpf/headgate"),
            steering: Steering::Auto,
            quic_port: 14567,
            tcp_ports: vec![1883],
            node: 0,
            budgets: Self::default_budgets(),
            retry: RetrySettings::default(),
            classes: Vec::new(),
            cpumap_queue_packets: 2048,
            debug_log: false,
        }
    }
}
