//! A million sessions over QUIC on one machine, the clients included: memory and CPU time of the broker per session, with a
//! keep-alive round and publishes to random sessions while they stand. `HEADGATE_BENCH_COUNT` = how many sessions;
//! `HEADGATE_BENCH_REPORT` = a folder for the run over time: million.json, and million.svg, a picture.

use std::env;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use headgate::bench::{
    self as load, Fleet, FleetOptions, Incoming, Kind, Listener, Plan, Recorder,
};
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
    let count = env::var("HEADGATE_BENCH_COUNT").ok();
    let count = count.map_or(COUNT, |count| {
        count.parse().expect("HEADGATE_BENCH_COUNT is a number")
    });
    // Nothing that would turn away a fleet behind one address.
    let broker = Broker::start(&format!(
        "[limits]\nconnections = {}\nconnections_per_prefix = 0\nhandshakes_per_second = 0\n",
        count + 10
    ));
    let mut rows = Vec::new();
    let mut course = Course::new(fleet(&broker), broker.pid(), count);
    up(&broker, &mut course, count, &mut rows);
    keep_alive_round(&broker, &mut course, count, &mut rows);
    publishes(&broker, &mut course, count, &mut rows);
    let own = Usage::of(std::process::id()).resident_bytes as f64;
    rows.push(Row::at_most(
        "million_generator_mib",
        own / 1_048_576.0,
        "MiB",
        1_024.0,
    ));
    rows.push(Row::info("million_sessions", f64::from(count), "sessions"));
    if let Some(folder) = env::var_os("HEADGATE_BENCH_REPORT") {
        course.write(&PathBuf::from(folder), &rows);
    }
    bench::print(&rows);
}

/// The fleet, and what happens to it over time.
struct Course {
    fleet: Fleet,
    log: Log,
}

/// Hears what happens.
struct Log {
    recorder: Recorder,
    now_ns: u64,
    /// When each client began to connect, and when it last sent a PINGREQ, ns after the start.
    begun_ns: Vec<u64>,
    pinged_ns: Vec<u64>,
}

impl Listener for Log {
    fn arrived(&mut self) {
        self.now_ns = self.recorder.now_ns();
    }

    fn ready(&mut self, client: u32) {
        let begun_ns = self.begun_ns.get(client as usize);
        let latency_ns = self.now_ns - begun_ns.copied().unwrap_or(self.now_ns);
        self.recorder.done(Kind::Connect, latency_ns);
    }

    fn pong(&mut self, client: u32) {
        let pinged_ns = self.pinged_ns[client as usize];
        let latency_ns = self.now_ns.saturating_sub(pinged_ns);
        self.recorder.done(Kind::Ping, latency_ns);
    }

    /// The first bytes of its payload tell when it was due.
    fn message(&mut self, _: u32, message: &Incoming<'_>) {
        if let Some(due_ns) = message.payload.first_chunk() {
            let due_ns = u64::from_be_bytes(*due_ns);
            self.recorder
                .done(Kind::Delivery, self.now_ns.saturating_sub(due_ns));
        }
    }
}

impl Course {
    fn new(fleet: Fleet, broker: u32, count: u32) -> Self {
        let log = Log {
            recorder: Recorder::new(Some(broker), Duration::from_secs(1)),
            now_ns: 0,
            begun_ns: vec![0; count as usize],
            pinged_ns: vec![0; count as usize],
        };
        Self { fleet, log }
    }

    fn turn(&mut self, wait: Duration) {
        self.fleet.turn_with(wait, &mut self.log);
        self.log.recorder.tick(self.fleet.counts().ready);
    }

    fn begin(&mut self, phase: &str, of: Kind) {
        self.log
            .recorder
            .begin(phase, of, self.fleet.counts().ready);
    }

    /// Whether the client sleeps.
    fn ping(&mut self, client: u32) -> bool {
        if !self.fleet.is_pinging(client) {
            self.log.pinged_ns[client as usize] = self.log.recorder.now_ns();
            self.log.recorder.offered(Kind::Ping, 1);
        }
        self.fleet.ping(client)
    }

    fn write(&mut self, folder: &PathBuf, rows: &[Row]) {
        let ready = self.fleet.counts().ready;
        let recorder = &mut self.log.recorder;
        recorder.end(ready);
        let report = serde_json::json!({
            "rows": rows,
            "connect": recorder.latency(Kind::Connect),
            "ping": recorder.latency(Kind::Ping),
            "delivery": recorder.latency(Kind::Delivery),
            "phases": recorder.phases(),
            "series": recorder.samples(),
        });
        let title = format!("{ready} clients over QUIC, and what they do, on one machine");
        let picture = load::picture(&title, recorder.phases(), recorder.samples());
        let json = serde_json::to_string_pretty(&report).expect("plain data");
        let written = fs::create_dir_all(folder)
            .and_then(|()| fs::write(folder.join("million.json"), json + "\n"))
            .and_then(|()| fs::write(folder.join("million.svg"), picture));
        written.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    }
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
fn up(broker: &Broker, course: &mut Course, count: u32, rows: &mut Vec<Row>) {
    course.begin("connect", Kind::Connect);
    let (before, since) = (Usage::of(broker.pid()), Instant::now());
    let mut told = Instant::now();
    let mut begun = 0;
    while course.fleet.counts().asleep < u64::from(count) {
        let counts = course.fleet.counts();
        while begun < count && u64::from(begun) - counts.ready < AT_ONCE {
            course.log.begun_ns[begun as usize] = course.log.recorder.now_ns();
            course.log.recorder.offered(Kind::Connect, 1);
            course
                .fleet
                .connect(Plan {
                    client_id: format!("device-{begun:07}"),
                    filters: vec![topic(begun), format!("fleet/device-{begun:07}/config")],
                    keep_alive_s: 1_800,
                    sleeps: true,
                })
                .expect("a connection can be begun");
            begun += 1;
        }
        course.turn(Duration::from_millis(20));
        assert_eq!(counts.lost, 0, "{:?}", course.fleet.last_loss());
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
    course.begin("settle", Kind::Ping);
    quiet(course, SETTLE);
    let settled = Usage::of(broker.pid()) - before;
    let per = |total: f64| total / f64::from(count);
    let bytes = per(settled.resident_bytes as f64);
    rows.push(Row::at_most("million_session_bytes", bytes, "B", 13_000.0));
    let cpu_us = per(connected.cpu.as_secs_f64() * 1e6);
    rows.push(Row::at_most("million_connect_cpu_us", cpu_us, "µs", 220.0));
    let rate = f64::from(count) / took.as_secs_f64();
    rows.push(Row::info("million_connects_per_s", rate, "connects/s"));
}

fn quiet(course: &mut Course, time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        course.turn(Duration::from_millis(20));
    }
}

/// Everybody pings once, as fast as the broker answers.
fn keep_alive_round(broker: &Broker, course: &mut Course, count: u32, rows: &mut Vec<Row>) {
    course.begin("all ping", Kind::Ping);
    let (before, pongs) = (Usage::of(broker.pid()), course.fleet.counts().pongs);
    let (mut next, mut moved) = (0, Instant::now());
    let mut answered = 0;
    while answered < u64::from(count) {
        while next < count && u64::from(next) - answered < PINGS_AT_ONCE {
            assert!(course.ping(next), "client {next} sleeps");
            next += 1;
        }
        course.turn(Duration::from_millis(5));
        let now = course.fleet.counts().pongs - pongs;
        if now > answered {
            (answered, moved) = (now, Instant::now());
        } else if moved.elapsed() > PING_AGAIN {
            moved = Instant::now();
            let waiting: Vec<u32> = (0..next)
                .filter(|client| course.fleet.is_pinging(*client))
                .collect();
            eprintln!("  {} PINGREQs are sent again", waiting.len());
            for client in waiting {
                course.ping(client);
            }
        }
        let lost = course.fleet.counts().lost;
        assert_eq!(lost, 0, "{:?}", course.fleet.last_loss());
    }
    quiet(course, Duration::from_millis(500));
    let spent = Usage::of(broker.pid()) - before;
    let per_ping = spent.cpu.as_secs_f64() * 1e6 / f64::from(count);
    rows.push(Row::at_most("million_ping_cpu_us", per_ping, "µs", 16.0));
}

/// Publishes to random sessions while all ping in turn; how long each takes to come.
fn publishes(broker: &Broker, course: &mut Course, count: u32, rows: &mut Vec<Row>) {
    let ready = course.fleet.counts().ready;
    let plan = Plan {
        client_id: "publisher".to_owned(),
        filters: Vec::new(),
        keep_alive_s: 0,
        sleeps: false,
    };
    let publisher = course.fleet.connect(plan);
    let publisher = publisher.expect("a connection can be begun");
    while course.fleet.counts().ready == ready {
        course.turn(Duration::from_millis(5));
    }
    course.begin("publish, and ping in turn", Kind::Delivery);
    let mut random = Random::new(1);
    let mut pick = || {
        let mut bytes = [0; 4];
        random.fill(&mut bytes);
        u32::from_le_bytes(bytes) % count
    };
    let (start, before) = (Instant::now(), Usage::of(broker.pid()));
    let start_ns = course.log.recorder.now_ns();
    let (mut published, mut pinged) = (0_u64, 0_u64);
    let pings_per_s = f64::from(count) / KEEP_ALIVE.as_secs_f64();
    while start.elapsed() < PUBLISHING {
        let elapsed = start.elapsed().as_secs_f64();
        // What is late is sent with the time at which it was due: no coordinated omission.
        while (published as f64) < elapsed * f64::from(PUBLISHES_PER_S) {
            let due_ns = start_ns + published * 1_000_000_000 / u64::from(PUBLISHES_PER_S);
            let mut payload = [b'x'; PAYLOAD_BYTES];
            payload[..8].copy_from_slice(&due_ns.to_be_bytes());
            let message = publish(&topic(pick()), &payload);
            course.fleet.send(publisher, message);
            course.log.recorder.offered(Kind::Delivery, 1);
            published += 1;
        }
        while (pinged as f64) < elapsed * pings_per_s {
            course.ping((pinged % u64::from(count)) as u32);
            pinged += 1;
        }
        course.turn(Duration::from_millis(1));
    }
    let until = Instant::now() + Duration::from_secs(5);
    let latency = |course: &Course| {
        let latency = course.log.recorder.latency(Kind::Delivery);
        latency.unwrap_or_default()
    };
    while latency(course).count < published && Instant::now() < until {
        course.turn(Duration::from_millis(5));
    }
    let spent = (Usage::of(broker.pid()) - before).cpu;
    let latency = latency(course);
    let share = latency.count as f64 / published as f64;
    rows.push(Row::at_least("million_delivered_share", share, "", 1.0));
    let [p50, p99, p999] = [latency.p50_us, latency.p99_us, latency.p999_us].map(|us| us / 1e3);
    rows.push(Row::info("million_delivery_p50_ms", p50, "ms"));
    rows.push(Row::at_most("million_delivery_p99_ms", p99, "ms", 25.0));
    rows.push(Row::info("million_delivery_p999_ms", p999, "ms"));
    let cores = spent.as_secs_f64() / PUBLISHING.as_secs_f64();
    rows.push(Row::info("million_publishing_cores", cores, "cores"));
    let counts = course.fleet.counts();
    eprintln!("  {counts:?}");
    assert_eq!(counts.lost, 0, "{:?}", course.fleet.last_loss());
}
