//! Clients that are up and have to stay so, in a thread of their own: how long messages to them take, while something
//! else happens to the broker.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use headgate::bench::{Fleet, FleetOptions, Plan};

use super::client::{publish, tls_of_one_suite};

/// Clients that sleep and get messages.
const CLIENTS: u32 = 500;
/// Messages per second, to one client after the other.
const PER_SECOND: u32 = 500;
/// Payload, bytes: the time at which it was due, and what a command may have.
const PAYLOAD_BYTES: usize = 100;
/// Time for the last messages to come.
const LAST: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(60);

/// The thread.
pub struct Probe {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Probed>,
}

/// What it has measured.
pub struct Probed {
    latencies_ns: Vec<u64>,
    published: u64,
    /// Clients that have lost their connection.
    pub lost: u64,
}

impl Probe {
    /// Connects the clients, and begins to publish.
    ///
    /// # Panics
    /// When they can't connect.
    pub fn start(server: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&stop);
        let (say, ready) = sync_channel(1);
        let thread = thread::spawn(move || {
            let mut fleet = connect(server);
            say.send(()).expect("the starter waits");
            measure(&mut fleet, &is_over)
        });
        ready.recv().expect("the clients of the probe connect");
        Self { stop, thread }
    }

    /// Ends it.
    ///
    /// # Panics
    /// When its thread has panicked.
    pub fn stop(self) -> Probed {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the probe goes on to the end")
    }
}

impl Probed {
    /// So much of the messages took no longer, in ms; NaN if none has come.
    pub fn at(&self, share: f64) -> f64 {
        let index = (self.latencies_ns.len() as f64 * share) as usize;
        let last = self.latencies_ns.len().saturating_sub(1);
        let found = self.latencies_ns.get(index.min(last));
        found.map_or(f64::NAN, |ns| *ns as f64 / 1e6)
    }

    /// How much of the messages has come.
    pub fn delivered(&self) -> f64 {
        self.latencies_ns.len() as f64 / self.published as f64
    }
}

impl fmt::Display for Probed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (came, of) = (self.latencies_ns.len(), self.published);
        let [p50, p99, all] = [0.5, 0.99, 1.0].map(|share| self.at(share));
        write!(
            f,
            "{came} of {of} messages in {p50:.1}, {p99:.1} and at most {all:.1} ms"
        )
    }
}

fn topic(number: u32) -> String {
    format!("probe/{number}")
}

/// The clients; the last one publishes.
fn connect(server: SocketAddr) -> Fleet {
    let options = FleetOptions {
        server,
        server_name: "localhost".to_owned(),
        tls: tls_of_one_suite(),
        local: vec![IpAddr::from(Ipv4Addr::new(127, 0, 0, 9)); 2],
    };
    let mut fleet = Fleet::new(options).expect("sockets on the loopback");
    let until = Instant::now() + PATIENCE;
    for number in 0..=CLIENTS {
        let sleeps = number < CLIENTS;
        let plan = Plan {
            client_id: format!("probe-{number}"),
            filters: if sleeps { vec![topic(number)] } else { vec![] },
            keep_alive_s: 0,
            sleeps,
        };
        fleet.connect(plan).expect("a connection can be begun");
    }
    while fleet.counts().asleep < u64::from(CLIENTS) || fleet.counts().ready <= u64::from(CLIENTS) {
        assert!(Instant::now() < until, "{:?}", fleet.counts());
        fleet.turn(Duration::from_millis(5), |_, _| {});
        assert_eq!(fleet.counts().lost, 0, "{:?}", fleet.last_loss());
    }
    fleet
}

fn measure(fleet: &mut Fleet, is_over: &AtomicBool) -> Probed {
    let (start, mut latencies_ns, mut published) = (Instant::now(), Vec::new(), 0_u64);
    let mut until = None;
    loop {
        let now = start.elapsed();
        if is_over.load(Ordering::Relaxed) {
            let until = *until.get_or_insert(now + LAST);
            if latencies_ns.len() as u64 == published || now > until {
                break;
            }
        }
        // What is late is sent with the time at which it was due: no coordinated omission.
        while until.is_none() && (published as f64) < now.as_secs_f64() * f64::from(PER_SECOND) {
            let due_ns = published * 1_000_000_000 / u64::from(PER_SECOND);
            let mut payload = [b'x'; PAYLOAD_BYTES];
            payload[..8].copy_from_slice(&due_ns.to_be_bytes());
            let to = topic((published % u64::from(CLIENTS)) as u32);
            fleet.send(CLIENTS, publish(&to, &payload));
            published += 1;
        }
        fleet.turn(Duration::from_millis(1), |_, packet| {
            let took = |due_ns| (start.elapsed().as_nanos() as u64).saturating_sub(due_ns);
            latencies_ns.extend(due(packet).map(took));
        });
    }
    latencies_ns.sort_unstable();
    Probed {
        latencies_ns,
        published,
        lost: fleet.counts().lost,
    }
}

/// When a PUBLISH was due: the first bytes of its payload.
fn due(packet: &[u8]) -> Option<u64> {
    let payload = packet.get(packet.len().checked_sub(PAYLOAD_BYTES)?..)?;
    (packet[0] >> 4 == 3).then_some(u64::from_be_bytes(*payload.first_chunk()?))
}
