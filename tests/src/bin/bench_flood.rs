//! Measures what a flood of spoofed Initials does to live sessions, and what one of its packets costs.
//!
//! Everything runs on the same cores, also the sender, which is as fast as it can be. "Quiet" is the same sender in
//! front of an XDP program that drops everything.

use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use headgate_tests::{
    bench::{self, Row},
    broker::kernel_available,
    netns,
    siege::{Attack, Fleet, Flood, Siege},
};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::{
    fs, thread,
    time::{Duration, Instant},
};

const LIVE: usize = 1_000;
const ROUNDS: usize = 3;
/// How often the cost of an answer is measured, in the kernel and in user space.
const COST_ROUNDS: usize = 5;
const LENGTH: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(20);
/// What user space answers entirely, per second. Above that the kernel throws packets away before the socket, which costs
/// time that no answer is to blame for.
const PACE: u32 = 10_000;
/// Without the shield a message may well be lost, and the next is sent only then.
const UNSHIELDED_PATIENCE: Duration = Duration::from_secs(2);

fn main() {
    if let Some(reason) = netns::available().and_then(|()| kernel_available()).err() {
        eprintln!("bench_flood: {reason}");
        bench::print::<Row>(&[]);
        return;
    }
    let (mut rows, in_kernel_ns) = shielded();
    let (beside, in_user_space_ns) = unshielded();
    rows.extend(beside);
    rows.extend([
        Row::at_least(
            "flood_vs_userspace_ratio",
            in_user_space_ns / in_kernel_ns,
            "x",
            20.0,
        ),
        Row::info("flood_kernel_retry_cpu_ns", in_kernel_ns, "ns"),
        Row::info("flood_userspace_retry_cpu_ns", in_user_space_ns, "ns"),
    ]);
    bench::print(&rows);
}

/// With the shield, and what an answer costs there.
fn shielded() -> (Vec<Row>, f64) {
    let siege = Siege::deaf("b");
    let broker = siege.broker(
        "[kernel]\nmode = \"native\"\ninterfaces = [\"s0\", \"s1\"]\nretry = \"always\"\nretries_per_second = 0\n",
    );
    let mut fleet = Fleet::connect(&siege, LIVE);
    let before = broker.metrics();
    let (mut ratios, mut rates, mut p99_us) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let attack = Attack::spoofed_initials(&siege, Flood::Nowhere);
        let quiet = fleet.phase(LENGTH, PATIENCE);
        let _sent = attack.end();
        let attack = Attack::spoofed_initials(&siege, Flood::Broker);
        let flooded = fleet.phase(LENGTH, PATIENCE);
        let sent = attack.end();
        eprintln!(
            "p99 {:?} quiet, {:?} flooded by {} packets; {} new connections, {} not made",
            quiet.p99(),
            flooded.p99(),
            sent,
            flooded.connected,
            flooded.refused + quiet.refused + flooded.lost + quiet.lost
        );
        ratios.push(flooded.p99().as_secs_f64() / quiet.p99().as_secs_f64());
        rates.push(sent as f64 / LENGTH.as_secs_f64());
        p99_us.push(flooded.p99().as_secs_f64() * 1e6);
    }
    let in_kernel_ns = shield_ns(&siege);
    let after = broker.metrics();
    let let_through = [
        "initial\"",
        "initial_foreign_token",
        "initial_invalid_new_token",
    ]
    .map(|reason| {
        let series = format!("headgate_kernel_passes_total{{reason=\"{reason}");
        after.sum(&series) - before.sum(&series)
    });
    fleet.end();
    let rows = vec![
        Row::at_most("flood_live_p99_ratio", median(ratios), "x", 2.0),
        Row::at_most("flood_socket_packets", let_through.iter().sum(), "", 0.0),
        Row::info("flood_live_p99_us", median(p99_us), "us"),
        Row::info("flood_packets_per_s", median(rates), "1/s"),
    ];
    (rows, in_kernel_ns)
}

/// Without it: the same cost where the broker's process answers, and beside it, what the flood does to the fleet then.
fn unshielded() -> (Vec<Row>, f64) {
    let siege = Siege::deaf("c");
    let broker = siege.broker("[kernel]\nmode = \"off\"\nretry = \"always\"\n");
    let mut fleet = Fleet::connect(&siege, LIVE);
    let answered = || broker.metrics().sum("headgate_retries_total");
    let before = answered();
    let (sent, cpu_ns) = cost(&siege, PACE);
    // The workers publish their counters at least once a second.
    thread::sleep(Duration::from_secs(2));
    let left = sent as f64 - (answered() - before);
    assert!(
        left < sent as f64 / 100.0,
        "{left} of {sent} packets got no answer"
    );
    let attack = Attack::spoofed_initials(&siege, Flood::Broker);
    let flooded = fleet.phase(LENGTH, UNSHIELDED_PATIENCE);
    let sent = attack.end();
    let asked = flooded.round_trips.len() + flooded.lost;
    eprintln!(
        "without the shield: p99 {:?} of {asked} messages, {} lost, flooded by {sent} packets; {} new connections, {} not made",
        flooded.p99(),
        flooded.lost,
        flooded.connected,
        flooded.refused
    );
    let lost = flooded.lost as f64 / asked.max(1) as f64;
    let rows = vec![
        Row::info("flood_unshielded_lost", 100.0 * lost, "%"),
        Row::info(
            "flood_unshielded_p99_us",
            flooded.p99().as_secs_f64() * 1e6,
            "us",
        ),
    ];
    (rows, cpu_ns)
}

/// How much longer the shield takes for a packet that it answers than a program that sends it back as it is, in nanoseconds,
/// by the kernel's own clock around them. That is far less than what a packet takes from the sender and back, so a difference
/// of such times would be noise.
fn shield_ns(siege: &Siege) -> f64 {
    let _clock = enable_stats(Stats::RunTime).expect("root may");
    more_than_reflected("XDP's time", |to| {
        let name = match to {
            Flood::Mirror => "reflect",
            _ => "shield",
        };
        program_ns(siege, to, name)
    })
}

/// How much more `measure` says for a packet of a flood that the broker answers than for one that XDP sends back as it is, in
/// nanoseconds. The median of some rounds: each is a small difference of large times.
fn more_than_reflected(what: &str, mut measure: impl FnMut(Flood) -> f64) -> f64 {
    let differences = (0..COST_ROUNDS).map(|_| {
        let (reflected_ns, answered_ns) = (measure(Flood::Mirror), measure(Flood::Broker));
        eprintln!(
            "{what} for a packet: {reflected_ns:.0} ns if it is sent back, {answered_ns:.0} if it is answered"
        );
        answered_ns - reflected_ns
    });
    median(differences.collect())
}

/// What a program takes for a packet of a flood.
fn program_ns(siege: &Siege, to: Flood, name: &str) -> f64 {
    let attack = Attack::client_hellos(siege, to, None);
    thread::sleep(Duration::from_millis(100));
    let before = runs_of(name);
    thread::sleep(LENGTH);
    let after = runs_of(name);
    let _sent = attack.end();
    let runs = after.1 - before.1;
    assert!(runs > 0, "{name} sees the flood");
    (after.0 - before.0) as f64 / runs as f64
}

/// For how many nanoseconds the loaded programs of a name have run, and how often.
fn runs_of(name: &str) -> (u64, u64) {
    let programs = loaded_programs().flatten();
    let named = programs.filter(|program| program.name_as_str() == Some(name));
    named.fold((0, 0), |(time_ns, runs), program| {
        let fd = program.fd().expect("root may");
        let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
        let info = fs::read_to_string(path).expect("/proc is there");
        let field = |name| {
            let line = info.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|number| number.trim().parse::<u64>().ok());
            number.expect("the kernel tells of its programs")
        };
        (time_ns + field("run_time_ns:"), runs + field("run_cnt:"))
    })
}

/// How many packets were sent to the broker, and how much more CPU time the whole machine spent on each, in nanoseconds,
/// than on one that XDP sends back as it is. That is the sender's time, and what it takes to carry a packet and an answer
/// between two virtual devices, where a network card would.
fn cost(siege: &Siege, per_second: u32) -> (u64, f64) {
    let mut sent_to_broker = 0;
    let ns = more_than_reflected("CPU time", |to| {
        let is_answered = matches!(to, Flood::Broker);
        let (sent, ns) = cpu_of(siege, to, per_second);
        sent_to_broker += if is_answered { sent } else { 0 };
        ns
    });
    (sent_to_broker, ns)
}

/// How many packets were sent in a flood, and the CPU time of the whole machine per packet, nanoseconds.
fn cpu_of(siege: &Siege, to: Flood, per_second: u32) -> (u64, f64) {
    let attack = Attack::client_hellos(siege, to, Some(per_second));
    thread::sleep(Duration::from_millis(100));
    let (begun, idle) = (Instant::now(), machine_idle());
    let sent_before = attack.sent();
    thread::sleep(LENGTH);
    let (idle, elapsed) = (machine_idle() - idle, begun.elapsed());
    let packets = attack.sent() - sent_before;
    let sent = attack.end();
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let busy = (elapsed * cores as u32).saturating_sub(idle);
    (sent, busy.as_nanos() as f64 / packets.max(1) as f64)
}

/// For how long the cores together had nothing to do (proc_stat(5)). The kernel measures that, where it only counts what
/// happens to run at each tick: a sender that sleeps from tick to tick is hardly seen there.
fn machine_idle() -> Duration {
    const IDLE: usize = 3;
    let stat = fs::read_to_string("/proc/stat").expect("/proc is there");
    let line = stat.lines().next().unwrap_or_default();
    // Idle, and idle while something waits for a disk.
    let times = line.split_whitespace().skip(1 + IDLE).take(2);
    let ticks: u64 = times.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    // USER_HZ is 100 on every architecture that Linux shows to programs today.
    Duration::from_millis(ticks * 10)
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
