//! Measures the shipped XDP program in its default order of checks, by BPF_PROG_TEST_RUN.
//!
//! A small program changes addresses and connection IDs before each run and then calls the shipped one by a tail call,
//! so that no packet meets warm caches by being the same as the last. The same with a program that only reads the
//! packet's head in the shipped one's place is subtracted. Each figure is the best of many rounds, because another process on the machine
//! can only make a round longer. What the counters say afterwards must be what the figure's name says.

use std::path::Path;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, Map, MapData, ProgramArray};
use aya::programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, Pod};
use headgate::kernel::{Counters, KernelSettings};
use headgate_common::records::{Budgets, Limit};
use headgate_common::{DropReason, Head, PassReason};
use headgate_tests::bench::{self, Row};
use headgate_tests::packets::{Packet, Transport, long, short};
use headgate_tests::rig::{NODE, Rig, settings, why_not};

const CLIENTS: u32 = 1024;
const ROUNDS: u32 = 150;
const RUNS: u32 = 5_000;
const LISTED: u32 = 10_000;

fn main() {
    if let Some(reason) = why_not() {
        eprintln!("bench_xdp: {reason}");
        bench::print(&[]);
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
    let listed = default_rig();
    fill_lists(&listed);
    rows.extend(bench.with_lists(&listed));
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
            initial: Packet::quic(source, long(0, 1, &[1; 8], &[2; 8], 1200)).bytes(),
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
            let cid = rig
                .cids()
                .encode(NODE, (index % 4) as u8, [a, b, a ^ 77, b ^ 13, a, b]);
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
        let random = self.measure(rig, "random_source", &initial);
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

/// Denies /24s all over 172.0.0.0/8 and 173.0.0.0/8, where few of the packets come from.
fn fill_lists(rig: &Rig) {
    let map = MapData::from_pin(rig.settings.pin_dir.join("prefixes4")).expect("pinned");
    let map = Map::from_map_data(map).expect("a map");
    let mut list = LpmTrie::<_, [u8; 4], u32>::try_from(map).expect("a trie");
    for index in 0..LISTED {
        let [_, a, b, c] = (index * 13).to_be_bytes();
        list.insert(&Key::new(24, [172 + a, b, c, 0]), 1, 0)
            .expect("there is room");
    }
}
