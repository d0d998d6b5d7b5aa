//! Measures the broker beside Debian's mosquitto over TCP, TLS and WebSocket on the loopback: deliveries per second of the
//! broker's CPU time (utime + stime). Both run at once, one worker each, and take turns under the same load, in windows;
//! the best window counts, because the others were disturbed. Names of rows as arguments limit the run to these.
//!
//! Without mosquitto, or without its WebSocket, the figures have no bar.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use headgate_codec::{PacketId, QoS};
use headgate_tests::bench::{self, Row};
use headgate_tests::broker::Broker;
use headgate_tests::load::client::{publish, publish_qos1};
use headgate_tests::load::{Carrier, ClientRef, Crowd, Mosquitto, Usage};

/// Windows per figure and broker; the best counts.
const WINDOWS: usize = 4;
/// CPU time of the broker in a window: 50 times what the kernel's clock of CPU times tells apart.
const WINDOW_CPU: Duration = Duration::from_millis(500);
/// A window that takes longer has lost a message.
const WINDOW_TIMEOUT: Duration = Duration::from_secs(120);
/// Payload of the messages, bytes.
const PAYLOAD_BYTES: usize = 100;
const SUBSCRIBERS: usize = 1_000;
/// Clients that connect at the same time.
const AT_ONCE: usize = 64;
const TOPIC: &str = "site/line/station/temperature";

/// One of the compared loads.
#[derive(Clone, Copy, Debug)]
struct Load {
    name: &'static str,
    qos: QoS,
    subscribers: usize,
    /// Messages on their way at any time.
    inflight: u64,
}

const LOADS: [Load; 3] = [
    Load {
        name: "p2p_qos1_per_cpu_s",
        qos: QoS::AtLeastOnce,
        subscribers: 1,
        inflight: 64,
    },
    Load {
        name: "fanout_deliveries_per_cpu_s",
        qos: QoS::AtMostOnce,
        subscribers: SUBSCRIBERS,
        inflight: 1,
    },
    Load {
        name: "fanout_16_inflight_deliveries_per_cpu_s",
        qos: QoS::AtMostOnce,
        subscribers: SUBSCRIBERS,
        inflight: 16,
    },
];

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let own = Broker::start("[node]\nworkers = 1\n");
    let other = Mosquitto::start();
    if let Err(reason) = &other {
        eprintln!("nothing to compare with: {reason}");
    }
    let other = other.ok();
    let mut rows = Vec::new();
    for (prefix, carrier, address) in [
        ("tcp", Carrier::Tcp, own.tcp()),
        ("tls", Carrier::Tls, own.tls()),
        ("ws", Carrier::WebSocket, own.ws()),
    ] {
        for load in LOADS {
            let name = format!("{prefix}_{}", load.name);
            if !wanted.is_empty() && !wanted.contains(&name) {
                continue;
            }
            let mut sides = vec![Side::new(own.pid(), address, carrier, load)];
            if let Some(other) = &other
                && let Some(address) = other.address(carrier)
            {
                sides.push(Side::new(other.pid(), address, carrier, load));
            }
            rows.extend(compare(&name, &mut sides));
        }
    }
    bench::print(&rows);
}

/// Rows for the broker and, if there is one, the other, whose figure is the bar.
fn compare(name: &str, sides: &mut [Side]) -> Vec<Row> {
    // The first windows are for warming up.
    for window in 0..=WINDOWS {
        for side in sides.iter_mut() {
            let value = side.window();
            if window > 0 {
                side.best = side.best.max(value);
            }
        }
        let values: Vec<_> = sides.iter().map(|side| side.best.round()).collect();
        eprintln!("{name}: window {window}: best {values:?}");
    }
    const UNIT: &str = "deliveries/CPU-s";
    match sides {
        [own, other] => {
            eprintln!("{name}: {:.2} of mosquitto", own.best / other.best);
            let other_name = match name.strip_suffix("_per_cpu_s") {
                Some(name) => format!("{name}_mosquitto_per_cpu_s"),
                None => format!("{name}_mosquitto"),
            };
            vec![
                Row::above(name, own.best.round(), UNIT, other.best.round()),
                Row::info(&other_name, other.best.round(), UNIT),
            ]
        }
        sides => {
            let own = sides.iter();
            own.map(|own| Row::info(name, own.best.round(), UNIT))
                .collect()
        }
    }
}

/// A broker with its clients.
struct Side {
    pid: u32,
    load: Load,
    crowd: Crowd,
    publisher: ClientRef,
    published: u64,
    best: f64,
}

impl Side {
    fn new(pid: u32, server: SocketAddr, carrier: Carrier, load: Load) -> Self {
        let mut crowd = Crowd::new(server, carrier);
        crowd.connect_all(load.subscribers, AT_ONCE, load.qos, |number| {
            (format!("subscriber-{number}"), vec![TOPIC.to_owned()])
        });
        let publisher = crowd.connect_all(1, 1, load.qos, |_| ("publisher".to_owned(), Vec::new()));
        let publisher = publisher[0];
        Self {
            pid,
            load,
            crowd,
            publisher,
            published: 0,
            best: 0.0,
        }
    }

    /// Messages that have come all the way.
    fn done(&self) -> u64 {
        let counts = self.crowd.counts();
        let delivered = counts.deliveries / self.load.subscribers as u64;
        match self.load.qos {
            QoS::AtMostOnce => delivered,
            _ => delivered.min(counts.acknowledged),
        }
    }

    /// Keeps the load up for a while. Returns deliveries per second of the broker's CPU time.
    fn window(&mut self) -> f64 {
        let before = (Usage::of(self.pid), self.crowd.counts().deliveries);
        let until = Instant::now() + WINDOW_TIMEOUT;
        let mut turns = 0;
        let spent = loop {
            self.publish();
            self.crowd.turn(Duration::from_millis(20));
            turns += 1;
            if turns % 64 == 0 {
                assert!(Instant::now() < until, "{:?}: a message is lost", self.load);
                let spent = Usage::of(self.pid) - before.0;
                if spent.cpu >= WINDOW_CPU {
                    break spent;
                }
            }
        };
        let deliveries = self.crowd.counts().deliveries - before.1;
        // While the other has its turn, there is nothing to be done here.
        while self.done() < self.published {
            assert!(Instant::now() < until, "{:?}: a message is lost", self.load);
            self.crowd.turn(Duration::from_millis(20));
        }
        deliveries as f64 / spent.cpu.as_secs_f64()
    }

    /// Fills up what is in flight.
    fn publish(&mut self) {
        let mut packets = Vec::new();
        while self.published < self.done() + self.load.inflight {
            self.published += 1;
            let packet = match self.load.qos {
                QoS::AtMostOnce => publish(TOPIC, &[b'x'; PAYLOAD_BYTES]),
                _ => {
                    // 1 to 65,535, again and again.
                    let id = (self.published - 1) % u64::from(u16::MAX) + 1;
                    let id = PacketId::new(id as u16).expect("1 at least");
                    publish_qos1(TOPIC, &[b'x'; PAYLOAD_BYTES], id)
                }
            };
            packets.extend_from_slice(&packet);
        }
        if !packets.is_empty() {
            self.crowd.send(self.publisher, &packets);
        }
    }
}
