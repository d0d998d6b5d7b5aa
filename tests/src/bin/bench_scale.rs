//! What a second worker adds, and what sixteen would do.
//!
//! The speed of a broker whose workers have a core each is what its busiest worker does per second of its own CPU time, so that is
//! measured, with one worker and with two in turns: it counts what the workers cost each other and how unevenly work falls to
//! them, but not that the load generator takes half of this machine. What that gives for sixteen cores and five million sessions
//! is simulated ([`headgate_tests::cores`]).

use std::time::Duration;

use headgate_tests::bench::{self, Row};
use headgate_tests::broker::Broker;
use headgate_tests::cores::{Machine, Stall};
use headgate_tests::load::client::publish;
use headgate_tests::load::process::threads;
use headgate_tests::load::{Profile, Swarm};

/// Rounds of each measurement; the median counts.
const ROUNDS: usize = 5;
/// CPU time of the busiest worker in a round.
const ROUND_CPU: Duration = Duration::from_secs(2);
/// Publishers, and subscribers with a topic each.
const PAIRS: usize = 256;
/// Connections that shake hands at the same time.
const AT_ONCE: usize = 64;
/// Payload of the messages, bytes.
const PAYLOAD_BYTES: usize = 100;
/// Names of the workers' threads.
const WORKERS: &str = "headgate-w";

/// The machine that is simulated.
const CORES: usize = 16;
/// And its sessions.
const SESSIONS: f64 = 5e6;
/// Each pings once in this time.
const KEEP_ALIVE_S: f64 = 600.0;
/// The bar of a delivery's 99th percentile, ns.
const P99_NS: f64 = 25e6;
/// Simulated time, ns.
const SIMULATED_NS: f64 = 1e9;

fn main() {
    let mut rows = Vec::new();
    let connects = in_turns("connects", &connects);
    let p2p = in_turns("p2p", &pairs);
    let ratio = |rates: [f64; 2]| rates[1] / rates[0];
    for (name, rates) in [("connects", connects), ("p2p", p2p)] {
        rows.push(Row::info(
            &format!("scale_{name}_one_worker"),
            rates[0].round(),
            "per worker-CPU-s",
        ));
        rows.push(Row::at_least(
            &format!("scale_{name}_two_workers_ratio"),
            ratio(rates),
            "×",
            1.8,
        ));
    }
    let deliver_ns = 1e9 / median((0..ROUNDS).map(|_| fan_out()).collect());
    rows.extend(sixteen(connects[0], p2p, deliver_ns));
    bench::print(&rows);
}

/// What the busiest worker does in a second of its CPU time, times the workers: with one and with two.
fn in_turns(name: &str, measure: &dyn Fn(usize) -> f64) -> [f64; 2] {
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        for workers in [1, 2] {
            let rate = measure(workers);
            eprintln!("{name}: round {round}, {workers} worker(s): {rate:.0}");
            rates[workers - 1].push(rate);
        }
    }
    rates.map(median)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn broker(workers: usize) -> Broker {
    Broker::start(&format!("[node]\nworkers = {workers}\n"))
}

/// Goes on until the busiest worker has worked long enough: its CPU time.
fn until_worked(broker: &Broker, mut go_on: impl FnMut()) -> f64 {
    let before = threads(broker.pid(), WORKERS);
    assert!(!before.is_empty(), "the workers' threads have a name");
    loop {
        for _ in 0..32 {
            go_on();
        }
        let now = threads(broker.pid(), WORKERS);
        let spent = now.iter().zip(&before).map(|(now, before)| *now - *before);
        let busiest = spent.max().unwrap_or_default();
        if busiest >= ROUND_CPU {
            return busiest.as_secs_f64();
        }
    }
}

/// Full handshakes with CONNECT.
fn connects(workers: usize) -> f64 {
    let broker = broker(workers);
    let mut swarm = Swarm::new(broker.quic(), Profile::device());
    let mut number = 0;
    let mut round = |swarm: &mut Swarm| {
        let clients = swarm.connect_all(AT_ONCE, AT_ONCE, |index| {
            (format!("client-{}", number + index), Vec::new())
        });
        number += clients.len();
        clients.into_iter().for_each(|client| swarm.close(client));
    };
    round(&mut swarm);
    let before = swarm.counts().ready;
    let busiest = until_worked(&broker, || round(&mut swarm));
    (swarm.counts().ready - before) as f64 / busiest
}

/// Messages from each publisher to its subscriber, one on its way for each pair, so that each has packets of its own.
fn pairs(workers: usize) -> f64 {
    let broker = broker(workers);
    let mut swarm = Swarm::with_sockets(broker.quic(), Profile::device(), 8);
    let topic = |pair: usize| format!("plant/line-{pair}/speed");
    let subscribers = swarm.connect_all(PAIRS, AT_ONCE, |pair| {
        (format!("subscriber-{pair}"), vec![topic(pair)])
    });
    let publishers =
        swarm.connect_all(PAIRS, AT_ONCE, |pair| (format!("publisher-{pair}"), vec![]));
    let messages: Vec<_> = (0..PAIRS)
        .map(|pair| publish(&topic(pair), &[b'x'; PAYLOAD_BYTES]))
        .collect();
    let mut sent = [0; PAIRS];
    let before = swarm.counts().deliveries;
    let busiest = until_worked(&broker, || {
        for pair in 0..PAIRS {
            if swarm.deliveries(subscribers[pair]) == sent[pair] {
                swarm.send(publishers[pair], messages[pair].clone());
                sent[pair] += 1;
            }
        }
        swarm.turn(Duration::from_millis(20));
    });
    (swarm.counts().deliveries - before) as f64 / busiest
}

/// Deliveries of one worker to many subscribers of a topic, a packet each.
fn fan_out() -> f64 {
    let broker = broker(1);
    let mut swarm = Swarm::with_sockets(broker.quic(), Profile::device(), 8);
    let topic = "plant/all/stop";
    swarm.connect_all(1_000, AT_ONCE, |number| {
        (format!("subscriber-{number}"), vec![topic.to_owned()])
    });
    let publisher = swarm.connect_all(1, 1, |_| ("publisher".to_owned(), vec![]))[0];
    let message = publish(topic, &[b'x'; PAYLOAD_BYTES]);
    let before = swarm.counts().deliveries;
    let mut published = 0;
    let busiest = until_worked(&broker, || {
        if swarm.counts().deliveries - before == published * 1_000 {
            swarm.send(publisher, message.clone());
            published += 1;
        }
        swarm.turn(Duration::from_millis(20));
    });
    (swarm.counts().deliveries - before) as f64 / busiest
}

/// Sixteen cores and five million sessions, with what was measured here.
fn sixteen(connects: f64, p2p: [f64; 2], deliver_ns: f64) -> Vec<Row> {
    let alone_ns = 1e9 / p2p[0];
    // Of two workers' messages half cross to the other one.
    let mesh_ns = (2e9 / p2p[1] - alone_ns).max(0.0) * 2.0;
    let machine = Machine {
        workers: CORES,
        publish_ns: (alone_ns - deliver_ns).max(0.0),
        deliver_ns,
        mesh_ns,
        turn_ns: 2_000.0,
        ring: 16_384 / CORES - 64,
        batch: 64,
    };
    eprintln!("simulated: {machine:?}");
    let messages = machine.capacity(P99_NS, SIMULATED_NS);
    let half = messages / 2.0;
    let stands = |lasts_ns| {
        let stall = Stall {
            from_ns: 1e8,
            lasts_ns,
        };
        machine.run(half, SIMULATED_NS, Some(stall)).held == 0
    };
    let (mut short, mut long) = (0.0, 8e8);
    while long - short > 1e6 {
        let middle = f64::midpoint(short, long);
        *if stands(middle) {
            &mut short
        } else {
            &mut long
        } = middle;
    }
    let pings = SESSIONS / KEEP_ALIVE_S * alone_ns / 1e9 / CORES as f64;
    vec![
        Row::info("scale_16_messages_per_s", messages.round(), "messages/s"),
        Row::info("scale_16_stall_at_half_load_ms", short / 1e6, "ms"),
        Row::info("scale_16_pings_share", pings, "of a core"),
        Row::info(
            "scale_16_reconnect_s",
            SESSIONS / connects / CORES as f64,
            "s",
        ),
    ]
}
