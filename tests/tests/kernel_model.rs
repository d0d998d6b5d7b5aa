//! The kernel program and the host's build of the same source come to the same verdict on any packet.

use std::net::IpAddr;
use std::sync::atomic::AtomicU64;

use headgate::kernel::{KernelSettings, RetrySettings};
use headgate_common::cid::RawCid;
use headgate_common::frame::Source;
use headgate_common::quota::{Debts, Penalty, QuotaClass};
use headgate_common::records::{Budgets, Config, LAYOUT_VERSION, ListAction, RetryMode};
use headgate_common::shield::{Environment, SharedDebt, Verdict, judge};
use headgate_common::token::{OriginalCid, Sender, TokenKeys};
use headgate_common::{Router, Secrets, Steering};
use headgate_tests::packets::{Packet, QUIC_PORT, Transport, initial, long, short};
use headgate_tests::rig::{NODE, Outcome, Rig, settings, why_not};
use headgate_tests::skip;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};

/// What the maps hold, as values. Budgets are unlimited, because the host's clock is not the kernel's.
struct Host<'a> {
    config: Config,
    budgets: Budgets,
    router: Router,
    tokens: TokenKeys,
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

    fn listed(&self, _: &Source) -> Option<(ListAction, u64)> {
        None
    }

    fn unix_ns(&self) -> u64 {
        unix_s() * 1_000_000_000
    }

    fn penalty_filter(&self, _: u32) -> u64 {
        0
    }

    fn penalty(&self, _: RawCid) -> Option<&Penalty> {
        None
    }

    fn quota(&self, _: u32) -> Option<&QuotaClass> {
        None
    }

    fn penalty_debts(&self, _: u32, _: bool) -> Option<Debts> {
        None
    }

    fn set_penalty_debts(&self, _: u32, _: bool, _: Debts) {}

    fn validated_debt(&self, _: u64) -> Option<&'a AtomicU64> {
        Some(self.debt)
    }

    fn retry_mode(&self, config: &Config) -> RetryMode {
        config.retry
    }

    fn token_keys(&self) -> Option<&TokenKeys> {
        Some(&self.tokens)
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

/// Who has got the valid tokens.
const HOLDER: [u8; 4] = [198, 51, 100, 7];
const HOLDERS_PORT: u16 = 9;

/// Tokens of all kinds and lengths.
fn token(rig: &Rig) -> impl Strategy<Value = Vec<u8>> + use<> {
    let keys = rig.keys.token_keys(unix_s());
    let address = Source::from(IpAddr::from(HOLDER)).mapped();
    let sender = Sender {
        address,
        port: HOLDERS_PORT.swap_bytes(),
    };
    let cid = OriginalCid {
        words: [1, 2, 0],
        len: 9,
    };
    let bytes =
        |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
    let issued = prop_oneof![3 => Just(2), 1 => Just(100), 1 => Just(100_000)];
    prop_oneof![
        (issued.clone(), any::<[u64; 2]>()).prop_map(move |(ago, nonce)| bytes(&keys.retry(
            sender,
            cid,
            unix_s() as u32 - ago,
            nonce
        ))),
        (issued, any::<[u64; 2]>()).prop_map(move |(ago, nonce)| bytes(&keys.new_token(
            address,
            unix_s() as u32 - ago,
            nonce
        ))),
        vec(any::<u8>(), 0..100),
    ]
}

fn payload(rig: &Rig) -> impl Strategy<Value = Vec<u8>> + use<> {
    let len = prop_oneof![0..80usize, Just(1199), Just(1200), Just(1400)];
    let damaged = proptest::option::weighted(0.2, any::<prop::sample::Index>());
    let version = prop_oneof![4 => Just(1), 1 => Just(0), 1 => any::<u32>()];
    prop_oneof![
        (cid(rig), 0..100usize).prop_map(|(cid, len)| short(&cid, len)),
        (0..4u8, version, cid(rig), vec(any::<u8>(), 0..24), len)
            .prop_map(|(kind, version, dcid, scid, len)| long(kind, version, &dcid, &scid, len)),
        (cid(rig), vec(any::<u8>(), 0..20), token(rig), damaged).prop_map(
            |(dcid, scid, mut token, damaged)| {
                if let (Some(at), false) = (damaged, token.is_empty()) {
                    let place = at.index(token.len());
                    token[place] ^= 1;
                }
                initial(&dcid, &scid, &token, 1200)
            }
        ),
        vec(any::<u8>(), 0..100),
    ]
}

fn packet(rig: &Rig) -> impl Strategy<Value = Packet> + use<> {
    let source = prop_oneof![
        Just(IpAddr::from(HOLDER)),
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(IpAddr::from)
    ];
    let udp_port = prop_oneof![8 => Just(QUIC_PORT), 1 => any::<u16>()];
    let tcp_port = prop_oneof![Just(1883), Just(8883), any::<u16>()];
    let length_error = prop_oneof![9 => Just(0), 1 => -100..100];
    let transport = prop_oneof![
        6 => (udp_port, payload(rig), length_error)
            .prop_map(|(to, payload, length_error)| Transport::Udp { from: HOLDERS_PORT, to, payload, length_error }),
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

fn unix_s() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.expect("after 1970").as_secs()
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

fn compare(mode: RetryMode) {
    let retry = RetrySettings {
        mode,
        ..RetrySettings::default()
    };
    let rig = Rig::with(
        KernelSettings {
            retry,
            ..settings()
        },
        4,
    );
    let debt = AtomicU64::new(0);
    let host = Host {
        config: Config {
            layout_version: LAYOUT_VERSION,
            quic_port: QUIC_PORT,
            cpumap: 0,
            tcp_ports: [1883, 8883, 0, 0],
            tick_ns: 1,
            retry: mode,
            retry_above_per_second: retry.above_per_second,
            retry_below_per_second: retry.below_per_second,
            retry_token_life_s: retry.token_life_s,
        },
        budgets: Budgets::UNLIMITED,
        router: rig.shield().router(),
        tokens: rig.keys.token_keys(unix_s()),
        debt: &debt,
    };
    let mut runner = TestRunner::new(Cases {
        cases: 3_000,
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

#[test]
fn kernel_and_host_come_to_the_same_verdict() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    compare(RetryMode::Never);
}

#[test]
fn kernel_and_host_come_to_the_same_verdict_with_retry() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    compare(RetryMode::Always);
}
