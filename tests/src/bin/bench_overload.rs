//! What a broker does when twice as many clients come as its `memory_limit` has room for, and when a whole fleet comes at once:
//! whether it stays within its memory, and what those notice that are in. `HEADGATE_BENCH_SECONDS` = how long the first
//! goes on; from 300 on it is with 2 GiB, otherwise with 256 MiB.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use headgate::bench::{Fleet, FleetOptions, Plan};
use headgate_tests::bench::{self, Row};
use headgate_tests::broker::Broker;
use headgate_tests::load::client::tls_of_one_suite;
use headgate_tests::load::probe::Probed;
use headgate_tests::load::{Probe, Usage};

/// How long there are too many clients, if nothing else is said, seconds: the length for CI.
const SECONDS: u64 = 20;
/// From so many seconds on it is the large size.
const LARGE_FROM_S: u64 = 300;
const MEMORY_MIB: [u64; 2] = [256, 2_048];
/// What an idle session takes, bytes: `million_session_bytes` has this as its bar.
const SESSION_BYTES: u64 = 13_000;
/// Connections that shake hands at the same time.
const AT_ONCE: u64 = 256;
/// Connections begun per second by clients that were refused: they come again.
const AGAIN_PER_S: f64 = 1_000.0;
/// Clients of the storm.
const STORM: [u32; 2] = [10_000, 20_000];
/// A storm that takes longer has failed.
const STORM_MAX: Duration = Duration::from_secs(120);
/// What they that are in may notice of it, ms.
const LIVE_P99_MS: f64 = 250.0;

fn main() {
    let seconds = std::env::var("HEADGATE_BENCH_SECONDS").ok();
    let seconds = seconds.map_or(SECONDS, |seconds| {
        seconds.parse().expect("HEADGATE_BENCH_SECONDS is a number")
    });
    let size = usize::from(seconds >= LARGE_FROM_S);
    let mut rows = Vec::new();
    too_many(MEMORY_MIB[size], Duration::from_secs(seconds), &mut rows);
    storm(STORM[size], &mut rows);
    bench::print(&rows);
}

fn fleet(broker: &Broker) -> Fleet {
    let local = (1..=4).map(|last| IpAddr::from(Ipv4Addr::new(127, 0, 0, last)));
    let options = FleetOptions {
        server: broker.quic(),
        server_name: "localhost".to_owned(),
        tls: tls_of_one_suite(),
        local: local.collect(),
    };
    Fleet::new(options).expect("sockets on the loopback")
}

fn begin(fleet: &mut Fleet, number: u64) {
    let plan = Plan {
        client_id: format!("device-{number:07}"),
        filters: vec![format!("fleet/device-{number:07}/command")],
        keep_alive_s: 3_600,
        sleeps: true,
    };
    fleet.connect(plan).expect("a connection can be begun");
}

/// Twice as many clients as fit come, and those that are refused come again and again.
fn too_many(memory_mib: u64, time: Duration, rows: &mut Vec<Row>) {
    // Nothing else that would turn away a fleet behind one address.
    let mut broker = Broker::start(&format!(
        "[limits]\nmemory_limit = \"{memory_mib}MiB\"\nconnections_per_prefix = 0\n"
    ));
    let count = 2 * (memory_mib << 20) / SESSION_BYTES;
    let probe = Probe::start(broker.quic());
    let mut fleet = fleet(&broker);
    let (start, mut told) = (Instant::now(), Instant::now());
    let (mut begun, mut again, mut resident_max) = (0, 0.0, 0);
    let mut turned = Instant::now();
    while start.elapsed() < time {
        let counts = fleet.counts();
        let under_way = begun - counts.ready - counts.lost;
        again += turned.elapsed().as_secs_f64() * AGAIN_PER_S;
        turned = Instant::now();
        let mut room = AT_ONCE.saturating_sub(under_way);
        while room > 0 && counts.ready + under_way < count && (begun < count || again >= 1.0) {
            if begun >= count {
                again -= 1.0;
            }
            begin(&mut fleet, begun);
            (begun, room) = (begun + 1, room - 1);
        }
        again = again.min(AGAIN_PER_S / 10.0);
        fleet.turn(Duration::from_millis(5), |_, _| {});
        if told.elapsed() > Duration::from_millis(500) {
            told = Instant::now();
            assert!(broker.is_running(), "it has ended: {}", broker.log());
            resident_max = resident_max.max(Usage::of(broker.pid()).resident_bytes);
        }
    }
    let probed = probe.stop();
    let counts = fleet.counts();
    eprintln!(
        "  {count} clients, {counts:?}, {:?}, {probed}",
        fleet.last_loss()
    );
    eprintln!("  {}", broker.status());
    let mib = resident_max as f64 / 1_048_576.0;
    let most = memory_mib as f64;
    rows.push(Row::at_most("overload_resident_mib", mib, "MiB", most));
    let ready = counts.ready as f64;
    rows.push(Row::info("overload_sessions", ready, "sessions"));
    // They come again and again, so this is more than were too many.
    let refused = counts.lost as f64;
    rows.push(Row::at_least(
        "overload_refused",
        refused,
        "connections",
        count as f64 / 4.0,
    ));
    of_probe("overload", &probed, rows);
}

/// All clients come at once after a restart.
fn storm(count: u32, rows: &mut Vec<Row>) {
    let mut broker = Broker::start("[limits]\nconnections_per_prefix = 0\n");
    broker.kill();
    broker.restart();
    let probe = Probe::start(broker.quic());
    let mut fleet = fleet(&broker);
    for number in 0..count {
        begin(&mut fleet, number.into());
    }
    let start = Instant::now();
    while fleet.counts().ready < u64::from(count) && start.elapsed() < STORM_MAX {
        fleet.turn(Duration::from_millis(5), |_, _| {});
    }
    let took = start.elapsed().as_secs_f64();
    let probed = probe.stop();
    let counts = fleet.counts();
    let metrics = broker.metrics();
    eprintln!(
        "  {counts:?}, {:?}, {probed}, {} packets waited, {} dropped",
        fleet.last_loss(),
        metrics.sum("headgate_initials_delayed_total{"),
        metrics.sum("headgate_datagrams_dropped_total{"),
    );
    let share = counts.ready as f64 / f64::from(count);
    rows.push(Row::at_least("storm_connected_share", share, "", 1.0));
    rows.push(Row::info("storm_all_connected_s", took, "s"));
    let rate = counts.ready as f64 / took;
    rows.push(Row::info("storm_connects_per_s", rate, "connects/s"));
    of_probe("storm", &probed, rows);
}

fn of_probe(name: &str, probed: &Probed, rows: &mut Vec<Row>) {
    let named = |what| format!("{name}_{what}");
    let (delivered, p99) = (probed.delivered(), probed.at(0.99));
    rows.push(Row::at_least(
        &named("live_delivered_share"),
        delivered,
        "",
        1.0,
    ));
    rows.push(Row::info(&named("live_p50_ms"), probed.at(0.5), "ms"));
    let p99_name = named("live_p99_ms");
    rows.push(Row::at_most(&p99_name, p99, "ms", LIVE_P99_MS));
    let lost = probed.lost as f64;
    rows.push(Row::at_most(&named("live_lost"), lost, "connections", 0.0));
}
