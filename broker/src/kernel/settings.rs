//! What the kernel half is told.

use std::path::PathBuf;

use headgate_common::records::{Budgets, Limit, TCP_PORTS};

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
            cpumap_queue_packets: 2048,
            debug_log: false,
        }
    }
}
