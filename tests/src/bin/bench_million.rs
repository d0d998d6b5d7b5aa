//! A million sessions over QUIC on one machine, the clients included: memory and CPU time of the broker per session, with a
//! keep-alive round and publishes to random sessions while they stand. `HEADGATE_BENCH_COUNT` = how many sessions.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use headgate::bench::{Fleet, FleetOptions, Plan};
use headgate_tests::bench::{self, Row};
use headgate_tests::broker::Broker;
use headgate_tests::flood::Random;
use headgate_tests::load::Usage;
use headgate_tests::load::client::{publish, tls_of_one_suite};

/// Sessions, if nothing else is said: the size for CI.
const COUNT: u32 = 20_000;
/// Connections that shake hands at the same time.
const AT_ONCE: u64 = 256;
/// Time for a broker to come to rest before its memory is read.
const SETTLE: Duration = Duration::from_secs(8);
/// PINGREQs on their way in a round that measures CPU time.
const PINGS_AT_ONCE: u64 = 1_024;
/// When a PINGREQ is sent again.
const PING_AGAIN: Duration = Duration::from_secs(2);
/// Publishes per second to random sessions.
const PUBLISHES_PER_S: u32 = 1_000;
/// How long they go on.
const PUBLISHING: Duration = Duration::from_secs(60);
/// Payload of the publishes, bytes: the time, and what a command may have.
const PAYLOAD_BYTES: usize = 100;
/// In which the keep-alive round goes on beside the publishes.
const KEEP_ALIVE: Duration = Duration::from_secs(600);

fn main() {
    let count = std::env::var("HEADGATE_BENCH_COUNT").ok();
    let count = count.map_or(COUNT, |count| {
        count.parse().expect("HEADGATE_BENCH_COUNT is a number")
    });
    // Nothing that would turn away a fleet behind one address.
    let broker = Broker::start(&format!(
        "[limits]\nconnections = {}\nconnections_per_prefix = 0\nhandshakes_per_second = 0\n",
        count + 10
    ));
    let mut rows = Vec::new();
    let mut fleet = fleet(&broker);
    up(&broker, &mut fleet, count, &mut rows);
    keep_alive_round(&broker, &mut fleet, count, &mut rows);
    publishes(&broker, &mut fleet, count, &mut rows);
    let own = Usage::of(std::process::id()).resident_bytes as f64;
    rows.push(Row::at_most(
        "million_generator_mib",
        own / 1_048_576.0,
        "MiB",
        1_024.0,
    ));
    rows.push(Row::info("million_sessions", f64::from(count), "sessions"));
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

fn topic(number: u32) -> String {
    format!("fleet/device-{number:07}/command")
}

/// Connects all, and lets them fall asleep.
fn up(broker: &Broker, fleet: &mut Fleet, count: u32, rows: &mut Vec<Row>) {
    let (before, since) = (Usage::of(broker.pid()), Instant::now());
    let mut told = Instant::now();
    let mut begun = 0;
    while fleet.counts().asleep < u64::from(count) {
        let counts = fleet.counts();
        while begun < count && u64::from(begun) - counts.ready < AT_ONCE {
            fleet
                .connect(Plan {
                    client_id: format!("device-{begun:07}"),
                    filters: vec![topic(begun), format!("fleet/device-{begun:07}/config")],
                    keep_alive_s: 1_800,
                    sleeps: true,
                })
                .expect("a connection can be begun");
            begun += 1;
        }
        fleet.turn(Duration::from_millis(20), |_, _| {});
        assert_eq!(counts.lost, 0, "{:?}", fleet.last_loss());
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            let spent = Usage::of(broker.pid());
            eprintln!(
                "  {} of {count} ready after {:.0} s; broker {} MiB, generator {} MiB",
                counts.ready,
                since.elapsed().as_secs_f64(),
                spent.resident_bytes >> 20,
                Usage::of(std::process::id()).resident_bytes >> 20
            );
        }
    }
    let took = since.elapsed();
    let connected = Usage::of(broker.pid()) - before;
    quiet(fleet, SETTLE);
    let settled = Usage::of(broker.pid()) - before;
    let per = |total: f64| total / f64::from(count);
    let bytes = per(settled.resident_bytes as f64);
    rows.push(Row::at_most("million_session_bytes", bytes, "B", 13_000.0));
    let cpu_us = per(connected.cpu.as_secs_f64() * 1e6);
    rows.push(Row::at_most("million_connect_cpu_us", cpu_us, "µs", 220.0));
    let rate = f64::from(count) / took.as_secs_f64();
    rows.push(Row::info("million_connects_per_s", rate, "connects/s"));
}

fn quiet(fleet: &mut Fleet, time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        fleet.turn(Duration::from_millis(20), |_, _| {});
    }
}

/// Everybody pings once, as fast as the broker answers.
fn keep_alive_round(broker: &Broker, fleet: &mut Fleet, count: u32, rows: &mut Vec<Row>) {
    let (before, pongs) = (Usage::of(broker.pid()), fleet.counts().pongs);
    let (mut next, mut moved) = (0, Instant::now());
    let mut answered = 0;
    while answered < u64::from(count) {
        while next < count && u64::from(next) - answered < PINGS_AT_ONCE {
            assert!(fleet.ping(next), "client {next} sleeps");
            next += 1;
        }
        fleet.turn(Duration::from_millis(5), |_, _| {});
        let now = fleet.counts().pongs - pongs;
        if now > answered {
            (answered, moved) = (now, Instant::now());
        } else if moved.elapsed() > PING_AGAIN {
            moved = Instant::now();
            let waiting: Vec<u32> = (0..next)
                .filter(|client| fleet.is_pinging(*client))
                .collect();
            eprintln!("  {} PINGREQs are sent again", waiting.len());
            for client in waiting {
                fleet.ping(client);
            }
        }
        assert_eq!(fleet.counts().lost, 0, "{:?}", fleet.last_loss());
    }
    quiet(fleet, Duration::from_millis(500));
    let spent = Usage::of(broker.pid()) - before;
    let per_ping = spent.cpu.as_secs_f64() * 1e6 / f64::from(count);
    rows.push(Row::at_most("million_ping_cpu_us", per_ping, "µs", 16.0));
}

/// Publishes to random sessions while all ping in turn; how long each takes to come.
fn publishes(broker: &Broker, fleet: &mut Fleet, count: u32, rows: &mut Vec<Row>) {
    let ready = fleet.counts().ready;
    let plan = Plan {
        client_id: "publisher".to_owned(),
        filters: Vec::new(),
        keep_alive_s: 0,
        sleeps: false,
    };
    let publisher = fleet.connect(plan).expect("a connection can be begun");
    while fleet.counts().ready == ready {
        fleet.turn(Duration::from_millis(5), |_, _| {});
    }
    let mut random = Random::new(1);
    let mut pick = || {
        let mut bytes = [0; 4];
        random.fill(&mut bytes);
        u32::from_le_bytes(bytes) % count
    };
    let mut latencies_ns: Vec<u64> = Vec::new();
    let (start, before) = (Instant::now(), Usage::of(broker.pid()));
    let now_ns = |start: Instant| start.elapsed().as_nanos() as u64;
    let (mut published, mut pinged) = (0_u64, 0_u64);
    let pings_per_s = f64::from(count) / KEEP_ALIVE.as_secs_f64();
    while start.elapsed() < PUBLISHING {
        let elapsed = start.elapsed().as_secs_f64();
        // What is late is sent with the time at which it was due: no coordinated omission.
        while (published as f64) < elapsed * f64::from(PUBLISHES_PER_S) {
            let due_ns = published * 1_000_000_000 / u64::from(PUBLISHES_PER_S);
            let mut payload = [b'x'; PAYLOAD_BYTES];
            payload[..8].copy_from_slice(&due_ns.to_be_bytes());
            fleet.send(publisher, publish(&topic(pick()), &payload));
            published += 1;
        }
        while (pinged as f64) < elapsed * pings_per_s {
            fleet.ping((pinged % u64::from(count)) as u32);
            pinged += 1;
        }
        fleet.turn(Duration::from_millis(1), |_, packet| {
            latencies_ns.extend(sent_at(packet).map(|at| now_ns(start).saturating_sub(at)));
        });
    }
    let until = Instant::now() + Duration::from_secs(5);
    while (latencies_ns.len() as u64) < published && Instant::now() < until {
        fleet.turn(Duration::from_millis(5), |_, packet| {
            latencies_ns.extend(sent_at(packet).map(|at| now_ns(start).saturating_sub(at)));
        });
    }
    let spent = (Usage::of(broker.pid()) - before).cpu;
    latencies_ns.sort_unstable();
    let at = |share: f64| {
        let index = (latencies_ns.len() as f64 * share) as usize;
        let found = latencies_ns.get(index.min(latencies_ns.len().saturating_sub(1)));
        found.map_or(f64::NAN, |ns| *ns as f64 / 1e6)
    };
    let share = latencies_ns.len() as f64 / published as f64;
    rows.push(Row::at_least("million_delivered_share", share, "", 1.0));
    rows.push(Row::info("million_delivery_p50_ms", at(0.5), "ms"));
    rows.push(Row::at_most(
        "million_delivery_p99_ms",
        at(0.99),
        "ms",
        25.0,
    ));
    rows.push(Row::info("million_delivery_p999_ms", at(0.999), "ms"));
    let cores = spent.as_secs_f64() / PUBLISHING.as_secs_f64();
    rows.push(Row::info("million_publishing_cores", cores, "cores"));
    let counts = fleet.counts();
    eprintln!("  {counts:?}");
    assert_eq!(counts.lost, 0, "{:?}", fleet.last_loss());
}

/// When a PUBLISH was due: the first bytes of its payload.
fn sent_at(packet: &[u8]) -> Option<u64> {
    let payload = packet.get(packet.len().checked_sub(PAYLOAD_BYTES)?..)?;
    (packet[0] >> 4 == 3).then_some(u64::from_be_bytes(*payload.first_chunk()?))
}
