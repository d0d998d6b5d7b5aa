//! A broker under siege, in namespaces of its own: a fleet behind one interface, somebody who floods another.
//!
//! The sender of a flood shares the machine's cores with the broker. So "quiet" is the same sender, flooding a third
//! interface where XDP drops everything at once.

mod attack;
mod capture;
mod fleet;
mod nic;

use crate::{
    broker::{Broker, Settings},
    netns::{BenchXdp, Namespace, address, bench_xdp, veth},
};

pub use attack::{Attack, Flood, send_once};
pub use capture::{Capture, Seen};
pub use fleet::{Fleet, Phase};
pub use nic::Nic;

/// The address that the fleet knows.
pub const SERVER: &str = "10.77.0.1:14567";
/// The address that the attacker knows.
pub const ATTACKED: [u8; 4] = [10, 78, 0, 1];

/// The namespaces and what connects them.
pub struct Siege {
    /// Where the broker runs: `s0` leads to the fleet, `s1` to the attacker, `s2` too, but everything is dropped there, and `s3`, where everything is
    /// sent back.
    pub server: Namespace,
    /// The fleet: 10.77.0.2 to 10.77.0.5 on `c0`.
    pub clients: Namespace,
    /// The attacker: 10.78.0.2 and 10.78.1.2 on `a0`; `a1` leads to `s2`, `a2` to `s3`.
    pub attacker: Namespace,
    _programs: Vec<BenchXdp>,
}

impl Siege {
    /// Makes the namespaces. `tag` tells them from other tests'.
    ///
    /// # Panics
    /// When that can't be done; see [`crate::netns::available`].
    #[must_use]
    pub fn new(tag: &str) -> Self {
        Self::with(tag, "nothing")
    }

    /// The same with an attacker who takes no answers, so that a flood has the cores for itself.
    ///
    /// # Panics
    /// As [`Siege::new`].
    #[must_use]
    pub fn deaf(tag: &str) -> Self {
        Self::with(tag, "drop_all")
    }

    fn with(tag: &str, attackers_program: &'static str) -> Self {
        let [server, clients, attacker] =
            ["srv", "cli", "atk"].map(|who| Namespace::new(&format!("{tag}{who}")));
        veth((&server, "s0"), (&clients, "c0"));
        veth((&server, "s1"), (&attacker, "a0"));
        veth((&server, "s2"), (&attacker, "a1"));
        veth((&server, "s3"), (&attacker, "a2"));
        address(&server, "s0", "10.77.0.1/24");
        address(&server, "s1", "10.78.0.1/16");
        for last in 2..=5 {
            address(&clients, "c0", &format!("10.77.0.{last}/24"));
        }
        for third in 0..=1 {
            address(&attacker, "a0", &format!("10.78.{third}.2/16"));
        }
        // Spoofed sources must reach user space if the kernel lets them pass.
        for name in ["all", "s1"] {
            let key = format!("net.ipv4.conf.{name}.rp_filter=0");
            let set = server.command("sysctl").args(["-qw", &key]).status();
            assert!(set.is_ok_and(|status| status.success()), "sysctl {key}");
        }
        // A veth device takes what XDP sends back from its peer only when it has a program itself.
        let programs = vec![
            bench_xdp(&clients, "c0", "nothing"),
            bench_xdp(&attacker, "a0", attackers_program),
            bench_xdp(&server, "s2", "drop_all"),
            bench_xdp(&attacker, "a2", attackers_program),
            bench_xdp(&server, "s3", "reflect"),
        ];
        Self {
            server,
            clients,
            attacker,
            _programs: programs,
        }
    }

    /// A broker with two workers that listens to QUIC and TCP. `config` is TOML without a section `[listen]`.
    ///
    /// # Panics
    /// When it doesn't start.
    #[must_use]
    pub fn broker(&self, config: &str) -> Broker {
        Broker::start_with(Settings {
            namespace: Some(self.server.name().to_owned()),
            config: format!(
                "[listen]\nquic = \"0.0.0.0:14567\"\ntcp = \"0.0.0.0:1883\"\ntls = \"\"\nws = \"\"\nwss = \"\"\n{config}"
            ),
            ..Settings::default()
        })
    }

    /// The driver's counters of one of the server's devices.
    #[must_use]
    pub fn nic(&self, device: &str) -> Nic {
        Nic::of(&self.server, device)
    }
}
