//! The kernel program and the host's build of the same source come to the same verdict on any packet.

use std::net::IpAddr;
use std::sync::atomic::AtomicU64;

use headgate_common::frame::Source;
use headgate_common::records::{Budgets, Config, LAYOUT_VERSION, ListAction};
use headgate_common::shield::{Environment, SharedDebt, Verdict, judge};
use headgate_common::{Router, Secrets, Steering};
use headgate_tests::packets::{Packet, QUIC_PORT, Transport, long, short};
use headgate_tests::rig::{NODE, Outcome, Rig, why_not};
use headgate_tests::skip;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};

/// What the maps hold, as values. Budgets are unlimited, because the host's clock is not the kernel's.
struct Host<'a> {
    config: Config,
    budgets: Budgets,
    router: Router,
    debt: &'a AtomicU64,
}

impl<'a> Environment for Host<'a> {
    type Debt = &'a AtomicU64;

    fn config(&self) -> Option<&Config> {
        Some(&self.config)
    }

    fn budgets(&self) -> Option<&Budgets> {
        Some(&self.budgets)
    }

    fn secrets(&self) -> Option<&Secrets> {
        Some(&self.router.secrets)
    }

    fn steering(&self) -> Option<&Steering> {
        Some(&self.router.steering)
    }

    fn listed(&self, _: &Source) -> Option<ListAction> {
        None
    }

    fn now_ns(&self, _: &Config) -> u64 {
        1
    }

    fn shared_debt(&self, _: SharedDebt) -> Option<&'a AtomicU64> {
        Some(self.debt)
    }

    fn packet_debt(&self, _: u32) -> Option<&'a AtomicU64> {
        Some(self.debt)
    }

    fn initial_debt(&self, _: u32) -> Option<&'a AtomicU64> {
        Some(self.debt)
    }

    fn syn_debt(&self, _: u32) -> Option<&'a AtomicU64> {
        Some(self.debt)
    }
}

fn cid(rig: &Rig) -> impl Strategy<Value = Vec<u8>> + use<> {
    let keys = rig.cids();
    prop_oneof![
        4 => (any::<u8>(), any::<[u8; 6]>()).prop_map(move |(slot, random)| keys.encode(NODE, slot % 6, random).to_vec()),
        1 => any::<[u8; 6]>().prop_map(move |random| keys.encode(NODE + 1, 0, random).to_vec()),
        3 => vec(any::<u8>(), 0..24),
    ]
}

fn payload(rig: &Rig) -> impl Strategy<Value = Vec<u8>> + use<> {
    let len = prop_oneof![0..80usize, Just(1199), Just(1200), Just(1400)];
    let version = prop_oneof![4 => Just(1), 1 => Just(0), 1 => any::<u32>()];
    prop_oneof![
        (cid(rig), 0..100usize).prop_map(|(cid, len)| short(&cid, len)),
        (0..4u8, version, cid(rig), vec(any::<u8>(), 0..24), len)
            .prop_map(|(kind, version, dcid, scid, len)| long(kind, version, &dcid, &scid, len)),
        vec(any::<u8>(), 0..100),
    ]
}

fn packet(rig: &Rig) -> impl Strategy<Value = Packet> + use<> {
    let source = prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(IpAddr::from)
    ];
    let udp_port = prop_oneof![8 => Just(QUIC_PORT), 1 => any::<u16>()];
    let tcp_port = prop_oneof![Just(1883), Just(8883), any::<u16>()];
    let length_error = prop_oneof![9 => Just(0), 1 => -100..100];
    let transport = prop_oneof![
        6 => (udp_port, payload(rig), length_error)
            .prop_map(|(to, payload, length_error)| Transport::Udp { from: 9, to, payload, length_error }),
        1 => (tcp_port, any::<u8>()).prop_map(|(to, flags)| Transport::Tcp { from: 9, to, flags }),
    ];
    let fragment = prop_oneof![8 => Just(0), 1 => any::<u16>()];
    let vlan = proptest::option::of(any::<u16>());
    (
        source,
        vlan,
        fragment,
        proptest::bool::weighted(0.1),
        transport,
    )
        .prop_map(|(source, vlan, fragment, options, transport)| Packet {
            vlan,
            fragment,
            options,
            transport,
            ..Packet::quic(source, Vec::new())
        })
}

/// Changes to a packet's bytes: (where, to what), and where it is cut.
type Damage = (Vec<(prop::sample::Index, u8)>, Option<prop::sample::Index>);

fn damage() -> impl Strategy<Value = Damage> {
    (
        vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        proptest::option::weighted(0.1, any::<prop::sample::Index>()),
    )
}

fn bytes(packet: &Packet, (changes, cut): &Damage) -> Vec<u8> {
    let mut bytes = packet.bytes();
    for (at, value) in changes {
        // Mostly in the headers, where it matters.
        let range = bytes.len().min(80);
        bytes[at.index(range)] = *value;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()).max(14));
    }
    bytes
}

#[test]
fn kernel_and_host_come_to_the_same_verdict() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let rig = Rig::new();
    let debt = AtomicU64::new(0);
    let host = Host {
        config: Config {
            layout_version: LAYOUT_VERSION,
            quic_port: QUIC_PORT,
            cpumap: 0,
            tcp_ports: [1883, 8883, 0, 0],
            tick_ns: 1,
        },
        budgets: Budgets::UNLIMITED,
        router: rig.shield().router(),
        debt: &debt,
    };
    let mut runner = TestRunner::new(Cases {
        cases: 4_000,
        ..Cases::default()
    });
    let result = runner.run(&(packet(&rig), damage()), |(packet, damage)| {
        let bytes = bytes(&packet, &damage);
        let expected = match judge(&bytes.as_slice(), &host).verdict {
            Verdict::Ignore => Outcome::Ignored,
            Verdict::Pass(reason, _) => Outcome::Passed(reason),
            Verdict::Drop(reason) => Outcome::Dropped(reason),
            Verdict::Answer(reason, _) => Outcome::Answered(reason),
        };
        prop_assert_eq!(rig.judge(&bytes).0, expected);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
