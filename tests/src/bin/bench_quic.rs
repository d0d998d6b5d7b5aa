//! Measures the real broker under load over QUIC on the loopback, per second of its CPU time (utime + stime), so that
//! sharing the machine with the load generator matters less. Where a figure is taken in several windows, it is the best of
//! them: the others were disturbed. Names of rows as arguments limit the run to these.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use headgate_tests::bench::{self, Row};
use headgate_tests::broker::Broker;
use headgate_tests::load::client::publish;
use headgate_tests::load::{Profile, Swarm, Usage};

/// Windows per figure; the best counts.
const WINDOWS: usize = 5;
/// CPU time of the broker in a window: 100 times what the kernel's clock of CPU times tells apart.
const WINDOW_CPU: Duration = Duration::from_secs(1);
/// Payload of the messages, bytes.
const PAYLOAD_BYTES: usize = 100;
/// Time for a broker to come to rest before its memory is read.
const SETTLE: Duration = Duration::from_secs(8);
/// Connections that shake hands at the same time.
const AT_ONCE: usize = 64;

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let mut rows = Vec::new();
    let mut run = |name: &str, measure: &dyn Fn(&str) -> Vec<Row>| {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            eprintln!("{name} …");
            rows.extend(measure(name));
        }
    };
    run("quic_fanout_deliveries_per_cpu_s", &|name| {
        let value = per_cpu_second(name, "", (1_000, 1), 1);
        vec![Row::at_least(name, value, "deliveries/CPU-s", 200_000.0)]
    });
    run("quic_fanout_64_sockets_deliveries_per_cpu_s", &|name| {
        let value = per_cpu_second(name, "", (1_000, 64), 1);
        vec![Row::info(name, value, "deliveries/CPU-s")]
    });
    run("quic_fanout_16_inflight_deliveries_per_cpu_s", &|name| {
        vec![Row::info(
            name,
            per_cpu_second(name, "", (1_000, 1), 16),
            "deliveries/CPU-s",
        )]
    });
    run("quic_p2p_inflight_per_cpu_s", &|name| {
        // One worker: one publisher and one subscriber keep no second core busy.
        let value = per_cpu_second(name, "[node]\nworkers = 1\n", (1, 1), 64);
        vec![Row::at_least(name, value, "deliveries/CPU-s", 1_000_000.0)]
    });
    run("handshakes_per_cpu_s", &|name| {
        let value = handshakes(name, Profile::device());
        vec![Row::at_least(name, value, "connects/CPU-s", 5_000.0)]
    });
    run("handshakes_post_quantum_per_cpu_s", &|name| {
        let value = handshakes(name, Profile::post_quantum_device());
        vec![Row::at_least(name, value, "connects/CPU-s", 4_000.0)]
    });
    run("idle_session_bytes", &|name| {
        let value = idle_bytes(Profile::device(), 20_000);
        vec![Row::at_most(name, value, "B", 14_000.0)]
    });
    run("idle_session_quinn_defaults_bytes", &|name| {
        vec![Row::info(
            name,
            idle_bytes(Profile::quinn_defaults(), 5_000),
            "B",
        )]
    });
    run("idle_session_aioquic_bytes", &idle_aioquic);
    bench::print(&rows);
}

/// Deliveries per second of broker CPU: one publisher, `subscribers` of its topic on `sockets` sockets, `inflight` messages
/// on their way to all of them at any time. Subscribers that share a socket are like devices behind a gateway: what goes
/// to them at the same time leaves in trains.
fn per_cpu_second(
    name: &str,
    config: &str,
    (subscribers, sockets): (usize, usize),
    inflight: u64,
) -> f64 {
    let broker = Broker::start(config);
    let mut swarm = Swarm::with_sockets(broker.quic(), Profile::device(), sockets);
    let topic = "site/line/station/temperature";
    swarm.connect_all(subscribers, AT_ONCE, |number| {
        (format!("subscriber-{number}"), vec![topic.to_owned()])
    });
    let publisher = swarm.connect_all(1, 1, |_| ("publisher".to_owned(), Vec::new()))[0];
    let message = publish(topic, &[b'x'; PAYLOAD_BYTES]);
    let each = subscribers as u64;
    let mut published = 0;
    let mut best: f64 = 0.0;
    // The first window is for warming up.
    for window in 0..=WINDOWS {
        let before = (Usage::of(broker.pid()), swarm.counts().deliveries);
        let mut turns = 0;
        let spent = loop {
            while published * each < swarm.counts().deliveries + inflight * each {
                swarm.send(publisher, message.clone());
                published += 1;
            }
            swarm.turn(Duration::from_millis(20));
            turns += 1;
            if turns % 64 == 0 {
                let spent = Usage::of(broker.pid()) - before.0;
                if spent.cpu >= WINDOW_CPU {
                    break spent;
                }
            }
        };
        let value = (swarm.counts().deliveries - before.1) as f64 / spent.cpu.as_secs_f64();
        eprintln!("{name}: window {window}: {value:.0}");
        if window > 0 {
            best = best.max(value);
        }
    }
    // Nothing was lost on the way.
    while swarm.counts().deliveries < published * each {
        swarm.turn(Duration::from_millis(20));
    }
    best.round()
}

/// Full handshakes (with a P-256 certificate) with CONNECT and CONNACK, and the end of the connection.
fn handshakes(name: &str, profile: Profile) -> f64 {
    let broker = Broker::start("");
    let mut swarm = Swarm::new(broker.quic(), profile);
    let mut best: f64 = 0.0;
    let mut number = 0;
    for window in 0..=WINDOWS {
        let before = (Usage::of(broker.pid()), swarm.counts().ready);
        let spent = loop {
            let clients = swarm.connect_all(AT_ONCE, AT_ONCE, |index| {
                (format!("client-{}", number + index), Vec::new())
            });
            number += clients.len();
            for client in clients {
                swarm.close(client);
            }
            let spent = Usage::of(broker.pid()) - before.0;
            if spent.cpu >= WINDOW_CPU {
                break spent;
            }
        };
        let value = (swarm.counts().ready - before.1) as f64 / spent.cpu.as_secs_f64();
        eprintln!("{name}: window {window}: {value:.0}");
        if window > 0 {
            best = best.max(value);
        }
    }
    best.round()
}

/// Two filters of a device's own.
fn device(number: usize) -> (String, Vec<String>) {
    (
        format!("device-{number:06}"),
        vec![
            format!("fleet/device-{number:06}/command"),
            format!("fleet/device-{number:06}/config"),
        ],
    )
}

/// Resident bytes of the broker per idle session, by what it has more than before the first.
fn idle_bytes(profile: Profile, sessions: usize) -> f64 {
    let broker = Broker::start("");
    let before = Usage::of(broker.pid());
    let mut swarm = Swarm::new(broker.quic(), profile);
    swarm.connect_all(sessions, AT_ONCE, device);
    let until = Instant::now() + SETTLE;
    while Instant::now() < until {
        swarm.turn(Duration::from_millis(20));
    }
    assert_eq!(swarm.counts().gone, 0, "all are still there");
    let more = Usage::of(broker.pid()) - before;
    more.resident_bytes as f64 / sessions as f64
}

/// The same with aioquic's clients, in a process of their own.
fn idle_aioquic(name: &str) -> Vec<Row> {
    const SESSIONS: usize = 1_000;
    let broker = Broker::start("");
    let before = Usage::of(broker.pid());
    let Some(mut clients) = aioquic(&broker, SESSIONS) else {
        return Vec::new();
    };
    let mut ready = String::new();
    let output = clients.stdout.as_mut().expect("it is piped");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut ready)
        .expect("the clients say when they are ready");
    assert_eq!(ready.trim(), "ready", "the clients connected");
    std::thread::sleep(SETTLE);
    let more = Usage::of(broker.pid()) - before;
    // It ends when its standard input does.
    drop(clients.stdin.take());
    let ended = clients.wait().expect("it is our child");
    assert!(ended.success(), "the clients stayed connected: {ended}");
    vec![Row::info(
        name,
        more.resident_bytes as f64 / SESSIONS as f64,
        "B",
    )]
}

/// `None` where the Python clients aren't installed (`cargo xtask setup` does that).
fn aioquic(broker: &Broker, sessions: usize) -> Option<Child> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = std::env::var_os("HEADGATE_PYTHON")
        .map_or_else(|| tests.join("../target/venv/bin/python"), Into::into);
    if !python.exists() {
        eprintln!(
            "skipped: no {}; `cargo xtask setup` installs the Python clients",
            python.display()
        );
        return None;
    }
    let mut command = Command::new(python);
    command
        .arg(tests.join("clients/idle_aioquic.py"))
        .arg(broker.quic().port().to_string())
        .arg(sessions.to_string());
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    Some(child.expect("Python starts"))
}
