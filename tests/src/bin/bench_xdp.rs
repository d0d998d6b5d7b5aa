//! Measures the shipped XDP program in its default order of checks, by BPF_PROG_TEST_RUN.
//!
//! A small program changes addresses and connection IDs before each run and then calls the shipped one by a tail call,
//! so that no packet meets warm caches by being the same as the last. The same with a program that only reads the
//! packet's head in the shipped one's place is subtracted. Each figure is the best of many rounds, because another process on the machine
//! can only make a round longer. What the counters say afterwards must be what the figure's name says.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aya::maps::{Array, ProgramArray};
use aya::programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, Pod};
use headgate::kernel::{Counters, KernelSettings, PenaltyOrder, Prefix, RetrySettings};
use headgate_common::frame::Source;
use headgate_common::quota::{PenaltyReason, QuotaClass};
use headgate_common::records::{Budgets, Limit, ListAction, ListReason, RetryMode};
use headgate_common::token::{OriginalCid, Sender};
use headgate_common::{AnswerReason, DropReason, Head, PassReason};
use headgate_tests::bench::{self, Row};
use headgate_tests::packets::{Packet, Transport, initial, long, short};
use headgate_tests::rig::{NODE, Rig, settings, why_not};

const CLIENTS: u32 = 1024;
const ROUNDS: u32 = 150;
const RUNS: u32 = 5_000;
const LISTED: u32 = 10_000;

fn main() {
    if let Some(reason) = why_not() {
        eprintln!("bench_xdp: {reason}");
        bench::print::<Row>(&[]);
        return;
    }
    let mut bench = Bench::new();
    let rig = default_rig();
    let mut rows = vec![Row::info("xdp_empty_program_ns", bench.floor(), "ns")];
    let mut bars = vec![bench.bars(&rig)];
    rows.extend(bench.stages(&rig));
    drop(rig);
    rows.extend(bench.other_budgets());
    bars.push(bench.bars(&default_rig()));
    rows.extend(bench.shields(false));
    rows.extend(bench.shields(true));
    let listed = default_rig();
    fill_lists(&listed);
    rows.extend(bench.with_lists(&listed));
    rows.push(memory(&listed));
    drop(listed);
    bars.push(bench.bars(&default_rig()));
    let best = |figure: usize| {
        let all = bars.iter().map(|figures| figures[figure]);
        all.fold(f64::MAX, f64::min)
    };
    rows.push(Row::at_most("xdp_steer_ns", best(0), "ns", 60.0));
    rows.push(Row::at_most("xdp_forged_cid_ns", best(1), "ns", 40.0));
    bench::print(&rows);
}

/// The shield as it is shipped, in front of four workers.
fn default_rig() -> Rig {
    Rig::with(
        KernelSettings {
            budgets: KernelSettings::default_budgets(),
            retry: RetrySettings::default(),
            ..settings()
        },
        4,
    )
}

/// The programs that change packets, and what they cost.
struct Bench {
    ebpf: Ebpf,
    own: Vec<u8>,
    initial: Vec<u8>,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Client {
    source: u64,
    head: [u64; 2],
}

// SAFETY: three integers without padding.
unsafe impl Pod for Client {}

impl Bench {
    fn new() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../xdp-ebpf/target/bpfel-unknown-none/release/headgate-xdp-bench");
        let mut ebpf = Ebpf::load_file(&path).unwrap_or_else(|error| {
            panic!("{}: {error}; run `cargo xtask build-ebpf`", path.display())
        });
        for name in [
            "nothing",
            "only_read",
            "known_client",
            "forged_cid",
            "random_source",
            "answered_source",
            "known_token",
            "unchanged",
        ] {
            xdp(&mut ebpf, name)
                .load()
                .expect("the kernel takes the program");
        }
        let source = [198, 51, 100, 7].into();
        Self {
            ebpf,
            own: Packet::quic(source, short(&[0; 14], 100)).bytes(),
            initial: Packet::quic(source, initial(&[1; 8], &[2; 8], &[], 1200)).bytes(),
        }
    }

    fn fill_clients(&mut self, rig: &Rig) {
        let map = self
            .ebpf
            .map_mut("clients")
            .expect("the object has this map");
        let mut clients = Array::<_, Client>::try_from(map).expect("an array");
        for index in 0..CLIENTS {
            let [_, _, a, b] = index.to_be_bytes();
            let cid = client_cid(rig, index);
            let datagram = short(&cid, 40);
            let head = Head::of(&datagram).expect("long enough");
            let source = u64::from(u32::from_le_bytes([10, a, b, 7]));
            let client = Client {
                source,
                head: [head.0[0], head.0[1]],
            };
            clients.set(index, client, 0).expect("within the array");
        }
    }

    /// What a run costs that does nothing.
    fn floor(&mut self) -> f64 {
        let packet = self.own.clone();
        run(xdp(&mut self.ebpf, "nothing"), &packet)
    }

    fn call(&mut self, program: &ProgramFd) {
        let map = self
            .ebpf
            .map_mut("measured")
            .expect("the object has this map");
        let mut measured = ProgramArray::try_from(map).expect("a program array");
        measured
            .set(0, program, 0)
            .expect("a program of the same kind");
    }

    /// Nanoseconds that the shield takes for packets that `vary` changes.
    fn measure(&mut self, rig: &Rig, vary: &str, packet: &[u8]) -> f64 {
        let shield = rig.shield().program().expect("a descriptor");
        let only_read = xdp(&mut self.ebpf, "only_read")
            .fd()
            .expect("loaded")
            .try_clone()
            .expect("a descriptor");
        let (mut with, mut without) = (f64::MAX, f64::MAX);
        for _ in 0..ROUNDS {
            self.call(&shield);
            with = with.min(run(xdp(&mut self.ebpf, vary), packet));
            self.call(&only_read);
            without = without.min(run(xdp(&mut self.ebpf, vary), packet));
        }
        with - without
    }

    /// Measures, and checks that most packets met the expected end (a budget lets some through as time passes).
    fn measure_as(
        &mut self,
        rig: &Rig,
        vary: &str,
        packet: &[u8],
        count: impl Fn(&Counters) -> u64,
    ) -> f64 {
        let before = count(&rig.counters());
        let nanoseconds = self.measure(rig, vary, packet);
        let seen = count(&rig.counters()) - before;
        let runs = u64::from(ROUNDS * RUNS);
        assert!(
            seen * 2 >= runs,
            "{vary}: {seen} of {runs} packets met the end that is measured"
        );
        nanoseconds
    }

    /// Nanoseconds for a packet that is steered and for one with a forged connection ID. Measured at several times and with
    /// maps at several places of the memory, because a guest's neighbours can slow a whole second down.
    fn bars(&mut self, rig: &Rig) -> [f64; 2] {
        self.fill_clients(rig);
        let own = self.own.clone();
        let steer = self.measure_as(rig, "known_client", &own, |counters| {
            counters.passed(PassReason::OwnCid)
        });
        let forged = self.measure_as(rig, "forged_cid", &own, |counters| {
            counters.dropped(DropReason::ForgedCid)
        });
        [steer, forged]
    }

    /// What packets cost that leave the order of checks early.
    fn stages(&mut self, rig: &Rig) -> Vec<Row> {
        let source = [198, 51, 100, 7].into();
        let mut other = Packet::quic(source, vec![0; 60]);
        if let Transport::Udp { to, .. } = &mut other.transport {
            *to = 53;
        }
        let other = self.measure(rig, "unchanged", &other.bytes());
        let runt = Packet::quic(source, vec![0; 20]).bytes();
        let runt = self.measure_as(rig, "unchanged", &runt, |counters| {
            counters.dropped(DropReason::Runt)
        });
        let version = Packet::quic(source, long(0, 0, &[1; 8], &[1; 8], 100)).bytes();
        let version = self.measure_as(rig, "unchanged", &version, |counters| {
            counters.dropped(DropReason::VersionZero)
        });
        let same = Packet::quic(source, short(&rig.cid(1), 100)).bytes();
        let same = self.measure_as(rig, "unchanged", &same, |counters| {
            counters.passed(PassReason::OwnCid)
        });
        let tcp = Packet::tcp(source, 1883, 16).bytes();
        let tcp = self.measure_as(rig, "unchanged", &tcp, |counters| {
            counters.passed(PassReason::Tcp)
        });
        vec![
            Row::info("xdp_other_port_ns", other, "ns"),
            Row::info("xdp_runt_ns", runt, "ns"),
            Row::info("xdp_routed_and_refused_ns", version, "ns"),
            Row::info("xdp_steer_same_packet_ns", same, "ns"),
            Row::info("xdp_tcp_ns", tcp, "ns"),
        ]
    }

    /// What the shield does with floods of each kind, in the shipped order, with lists empty or full.
    fn shields(&mut self, is_listed: bool) -> Vec<Row> {
        let retry = self.retries(is_listed);
        let token = self.tokens(is_listed);
        let denied = self.denied(is_listed);
        let penalty = self.penalties(is_listed);
        if is_listed {
            return vec![
                Row::info("xdp_retry_10000_listed_ns", retry, "ns"),
                Row::info("xdp_token_ok_10000_listed_ns", token, "ns"),
                Row::info("xdp_denied_10000_listed_ns", denied, "ns"),
                Row::info("xdp_penalty_10000_listed_ns", penalty, "ns"),
            ];
        }
        vec![
            Row::at_most("xdp_retry_ns", retry, "ns", 500.0),
            Row::at_most("xdp_token_ok_ns", token, "ns", 220.0),
            Row::at_most("xdp_denied_ns", denied, "ns", 60.0),
            Row::at_most("xdp_penalty_ns", penalty, "ns", 90.0),
        ]
    }

    /// An Initial that is answered with Retry.
    fn retries(&mut self, is_listed: bool) -> f64 {
        // The answers' cap is charged, and never reached.
        let rig = shield(is_listed, RetryMode::Always);
        let initial = self.initial.clone();
        self.measure_as(&rig, "answered_source", &initial, |counters| {
            counters.answered(AnswerReason::Retry)
        })
    }

    /// An Initial whose token is good.
    fn tokens(&mut self, is_listed: bool) -> f64 {
        let rig = shield(is_listed, RetryMode::Always);
        self.fill_holders(&rig);
        let initial = self.initial.clone();
        self.measure_as(&rig, "known_token", &initial, |counters| {
            counters.passed(PassReason::InitialRetryToken)
        })
    }

    /// A short header from a denied source.
    fn denied(&mut self, is_listed: bool) -> f64 {
        let rig = shield(is_listed, RetryMode::Auto);
        deny(&rig, [10, 0, 0, 0], 8);
        self.fill_clients(&rig);
        let own = self.own.clone();
        self.measure_as(&rig, "known_client", &own, |counters| {
            counters.dropped(DropReason::Denied)
        })
    }

    /// A short header of a connection that is policed: the dearer of those that pass and those that don't.
    fn penalties(&mut self, is_listed: bool) -> f64 {
        let own = self.own.clone();
        let mut dearest = f64::MIN;
        for (packets_per_second, passes) in [(1, false), (1_000_000_000, true)] {
            let rig = shield(is_listed, RetryMode::Auto);
            let class = QuotaClass {
                packets_per_second,
                ..QuotaClass::named("bench")
            };
            rig.shield().set_quota(2, class).expect("there is room");
            for index in 0..CLIENTS {
                let [_, _, a, b] = index.to_be_bytes();
                let order = PenaltyOrder {
                    class: 2,
                    reason: PenaltyReason::Quota,
                    own_address: Some([10, a, b, 7].into()),
                    lasts: Duration::from_secs(3_600),
                };
                rig.shield()
                    .penalize(&[client_cid(&rig, index)], order)
                    .expect("there is room");
            }
            self.fill_clients(&rig);
            let cost = self.measure_as(&rig, "known_client", &own, |counters| {
                if passes {
                    counters.passed(PassReason::OwnCid)
                } else {
                    counters.dropped(DropReason::Penalty)
                }
            });
            dearest = dearest.max(cost);
        }
        dearest
    }

    fn fill_holders(&mut self, rig: &Rig) {
        let map = self
            .ebpf
            .map_mut("holders")
            .expect("the object has this map");
        let mut holders = Array::<_, Holder>::try_from(map).expect("an array");
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_s = now.expect("after 1970").as_secs();
        let keys = rig.keys.token_keys(now_s);
        for index in 0..CLIENTS {
            let [_, _, a, b] = index.to_be_bytes();
            let source = u32::from_le_bytes([10, a, b, 7]);
            let sender = Sender {
                address: Source::V4(source).mapped(),
                port: 40_000u16.swap_bytes(),
            };
            let cid = OriginalCid {
                words: [index.into(), 0, 0],
                len: 8,
            };
            let nonce = [index.into(), 7];
            let token = keys.retry(sender, cid, now_s as u32, nonce);
            let holder = Holder {
                source: source.into(),
                token,
            };
            holders.set(index, holder, 0).expect("within the array");
        }
    }

    /// The same packets where budgets are wider or absent.
    fn other_budgets(&mut self) -> Vec<Row> {
        let rig = Rig::new();
        let own = self.own.clone();
        let steer = self.measure_as(&rig, "known_client", &own, |counters| {
            counters.passed(PassReason::OwnCid)
        });
        drop(rig);
        let initial = self.initial.clone();
        // Every packet goes through every check and is let through.
        let budgets = Budgets {
            initials: Limit::new(1_000_000_000, 1_000_000_000),
            ..KernelSettings::default_budgets()
        };
        let rig = Rig::with_budgets(budgets);
        let admitted = self.measure_as(&rig, "random_source", &initial, |counters| {
            counters.passed(PassReason::Initial)
        });
        drop(rig);
        // The flood is above what all sources together may send.
        let rig = Rig::with_budgets(Budgets {
            initials: Limit::new(1, 1),
            ..KernelSettings::default_budgets()
        });
        let over = self.measure_as(&rig, "random_source", &initial, |counters| {
            counters.dropped(DropReason::InitialGlobalBudget)
        });
        vec![
            Row::at_most("xdp_random_source_ns", admitted.max(over), "ns", 180.0),
            Row::info("xdp_random_source_admitted_ns", admitted, "ns"),
            Row::info("xdp_random_source_over_budget_ns", over, "ns"),
            Row::info("xdp_steer_without_packet_budget_ns", steer, "ns"),
        ]
    }

    fn with_lists(&mut self, rig: &Rig) -> Vec<Row> {
        let (own, initial) = (self.own.clone(), self.initial.clone());
        let steer = self.measure_as(rig, "known_client", &own, |counters| {
            counters.passed(PassReason::OwnCid)
        });
        let forged = self.measure_as(rig, "forged_cid", &own, |counters| {
            counters.dropped(DropReason::ForgedCid)
        });
        let never = shield(true, RetryMode::Never);
        let random = self.measure(&never, "random_source", &initial);
        vec![
            Row::info("xdp_steer_10000_listed_ns", steer, "ns"),
            Row::info("xdp_forged_cid_10000_listed_ns", forged, "ns"),
            Row::info("xdp_random_source_10000_listed_ns", random, "ns"),
        ]
    }
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut Xdp {
    ebpf.program_mut(name)
        .expect("the object has this program")
        .try_into()
        .expect("an XDP program")
}

/// Nanoseconds of one run on average.
fn run(program: &Xdp, packet: &[u8]) -> f64 {
    let options = TestRunOptions {
        data_in: Some(packet),
        repeat: RUNS,
        ..TestRunOptions::default()
    };
    program
        .test_run(options)
        .expect("the program runs")
        .duration
        .as_nanos() as f64
}

/// Who has a token, as the benchmark's programs have it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Holder {
    source: u64,
    token: [u64; 10],
}

// SAFETY: integers without padding.
unsafe impl Pod for Holder {}

/// The connection ID of a client.
fn client_cid(rig: &Rig, index: u32) -> [u8; 14] {
    let [_, _, a, b] = index.to_be_bytes();
    let random = [a, b, a ^ 77, b ^ 13, a, b];
    rig.cids().encode(NODE, (index % 4) as u8, random)
}

/// The shield as it is shipped, but for budgets that never run out.
fn shield(is_listed: bool, mode: RetryMode) -> Rig {
    let wide = Limit::new(1_000_000_000, 1_000_000_000);
    let retry = RetrySettings {
        mode,
        token_life_s: 3_600,
        ..RetrySettings::default()
    };
    let settings = KernelSettings {
        budgets: Budgets {
            validated_initials: wide,
            validated_initials_per_address: wide,
            retries: wide,
            ..KernelSettings::default_budgets()
        },
        retry,
        ..settings()
    };
    let rig = Rig::with(settings, 4);
    if is_listed {
        fill_lists(&rig);
    }
    rig
}

fn memory(rig: &Rig) -> Row {
    let bytes = rig.shield().status().map_memory_bytes;
    Row::at_most(
        "map_memory_mib",
        bytes as f64 / f64::from(1 << 20),
        "MiB",
        64.0,
    )
}

fn deny(rig: &Rig, address: [u8; 4], len: u8) {
    let prefix = Prefix::new(address.into(), len).expect("short enough");
    rig.shield()
        .list(prefix, ListAction::Deny, ListReason::Operator, None)
        .expect("there is room");
}

/// Denies /24s all over 172.0.0.0/8 and 173.0.0.0/8, where few of the packets come from.
fn fill_lists(rig: &Rig) {
    for index in 0..LISTED {
        let [_, a, b, c] = (index * 13).to_be_bytes();
        deny(rig, [172 + a, b, c, 0], 24);
    }
}
