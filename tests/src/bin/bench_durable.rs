//! Measures what it costs that sessions, their queues and retained messages outlive the process: CPU time per message at
//! each level of `store.fsync`, beside Debian's mosquitto with persistence; the time until all is served again after a
//! kill; memory of sessions without a connection, and disk per queued message. Names of rows as arguments limit the run
//! to these.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufWriter, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use base64::{Engine, prelude::BASE64_STANDARD};
use headgate_codec::{Connect, Packet, PacketId, QoS, ReasonCode, Version};
use headgate_tests::bench::{self, Row};
use headgate_tests::broker::{Broker, Settings, binary};
use headgate_tests::load::client::publish_qos1;
use headgate_tests::load::{Carrier, ClientRef, Crowd, Mosquitto, Usage};
use headgate_tests::tcp_client::{TcpClient, connect};
use tempfile::TempDir;

/// Windows per broker; the best counts, because the others were disturbed.
const WINDOWS: usize = 3;
/// CPU time of the broker in a window: 50 times what the kernel's clock of CPU times tells apart.
const WINDOW_CPU: Duration = Duration::from_millis(500);
/// A window that takes longer has lost a message.
const WINDOW_TIMEOUT: Duration = Duration::from_secs(60);
/// Publishers, each with one subscriber.
const PAIRS: usize = 16;
/// Messages of a publisher that aren't acknowledged.
const INFLIGHT: u64 = 64;
const PAYLOAD: [u8; 100] = [b'x'; 100];

/// What `restart_s` is about.
const SESSIONS: u32 = 100_000;
const QUEUED: u32 = 4;
const RETAINED: u32 = 1_000_000;
/// Sessions looked at afterwards.
const SAMPLES: u32 = 200;
/// Messages that are in the journal and nowhere else when the broker is killed.
const LATE_MESSAGES: u64 = 20_000;

/// `offline_session_bytes` is what the sessions cost that the larger store has more than the smaller one: so many that what the
/// store's engine keeps in memory, which is bounded, matters little. Tables that double are equally full with both, three
/// quarters: neither pays for the other's spare room.
const FEW_SESSIONS: u32 = 50_000;
const MANY_SESSIONS: u32 = 800_000;

/// `store_bytes_per_message`.
const STORED_SESSIONS: usize = 100;
const STORED_MESSAGES: u64 = 500_000;

/// How long a start may take. Only a broken broker takes longer.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// For the broker's memory and files to come to rest.
const SETTLE: Duration = Duration::from_secs(3);

/// No limit is in the way.
const LIMITS: &str = "[limits]\nretained_messages = 2000000\nretained_bytes = 2000000000\n\
    queued_messages_per_session = 60000\nmemory_per_connection_bytes = 100000000\n\
    [store]\nsession_bytes_max = 1000000000\n";

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let mut rows = Vec::new();
    let mut run = |name: &str, measure: &dyn Fn() -> Vec<Row>| {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            eprintln!("{name} …");
            rows.extend(measure());
        }
    };
    run("durable_qos1_per_cpu_s", &per_cpu_second);
    run("restart_s", &restart);
    run("offline_session_bytes", &offline_bytes);
    run("store_bytes_per_message", &bytes_per_message);
    bench::print(&rows);
}

/// Messages with QoS 1 from publishers to persistent sessions that are connected, per second of the broker's CPU time.
/// All brokers run at once and take turns, in windows. mosquitto writes its database when it ends, and nothing before.
fn per_cpu_second() -> Vec<Row> {
    let levels = ["always", "interval", "never"];
    let brokers = levels.map(|level| Broker::start(&format!("[store]\nfsync = {level:?}")));
    let names = levels.map(|level| format!("durable_qos1_{level}_per_cpu_s"));
    let mut sides: Vec<_> = brokers
        .iter()
        .zip(names)
        .map(|(broker, name)| Side::new(name, broker.pid(), broker.tcp()))
        .collect();
    let mosquitto = Mosquitto::start_persistent();
    match &mosquitto {
        Ok(other) => {
            let address = other.address(Carrier::Tcp).expect("it has TCP");
            let name = "durable_qos1_mosquitto_per_cpu_s".to_owned();
            sides.push(Side::new(name, other.pid(), address));
        }
        Err(reason) => eprintln!("nothing to compare with: {reason}"),
    }
    // The first windows are for warming up.
    for window in 0..=WINDOWS {
        for side in &mut sides {
            let value = side.window();
            eprintln!("{}: window {window}: {value:.0}", side.name);
            if window > 0 {
                side.best = side.best.max(value);
            }
        }
    }
    let row = |side: &Side| Row::info(&side.name, side.best.round(), "messages/CPU-s");
    sides.iter().map(row).collect()
}

/// A broker with its clients.
struct Side {
    name: String,
    pid: u32,
    crowd: Crowd,
    pairs: Vec<Pair>,
    best: f64,
}

struct Pair {
    topic: String,
    publisher: ClientRef,
    subscriber: ClientRef,
    published: u64,
}

impl Side {
    fn new(name: String, pid: u32, server: SocketAddr) -> Self {
        let mut crowd = Crowd::new(server, Carrier::Tcp).with_lasting_sessions();
        let topic = |number: usize| format!("site/line/station-{number}/temperature");
        let mut all = |kind: &str, filters: &dyn Fn(usize) -> Vec<String>| {
            crowd.connect_all(PAIRS, PAIRS, QoS::AtLeastOnce, |number| {
                (format!("{kind}-{number}"), filters(number))
            })
        };
        let subscribers = all("subscriber", &|number| vec![topic(number)]);
        let publishers = all("publisher", &|_| Vec::new());
        let pairs = publishers.into_iter().zip(subscribers).enumerate();
        let pair = |(number, (publisher, subscriber))| Pair {
            topic: topic(number),
            publisher,
            subscriber,
            published: 0,
        };
        Self {
            name,
            pid,
            pairs: pairs.map(pair).collect(),
            crowd,
            best: 0.0,
        }
    }

    /// Messages that have come all the way.
    fn done(&self) -> u64 {
        let counts = self.crowd.counts();
        counts.deliveries.min(counts.acknowledged)
    }

    /// Keeps the load up for a while. Returns messages per second of the broker's CPU time.
    fn window(&mut self) -> f64 {
        let before = (Usage::of(self.pid), self.done());
        let until = Instant::now() + WINDOW_TIMEOUT;
        let mut turns = 0;
        let spent = loop {
            self.pairs
                .iter_mut()
                .for_each(|pair| pair.publish(&mut self.crowd));
            self.crowd.turn(Duration::from_millis(20));
            turns += 1;
            if turns % 64 == 0 {
                assert!(Instant::now() < until, "{}: a message is lost", self.name);
                let spent = Usage::of(self.pid) - before.0;
                if spent.cpu >= WINDOW_CPU {
                    break spent;
                }
            }
        };
        let messages = self.done() - before.1;
        let published = |side: &Self| side.pairs.iter().map(|pair| pair.published).sum::<u64>();
        // While the others have their turn, there is nothing to be done here.
        while self.done() < published(self) {
            assert!(Instant::now() < until, "{}: a message is lost", self.name);
            self.crowd.turn(Duration::from_millis(20));
        }
        messages as f64 / spent.cpu.as_secs_f64()
    }
}

impl Pair {
    /// Fills up what is in flight.
    fn publish(&mut self, crowd: &mut Crowd) {
        let done = crowd
            .acknowledged(self.publisher)
            .min(crowd.deliveries(self.subscriber));
        let mut packets = Vec::new();
        while self.published < done + INFLIGHT {
            let id = self.next_id();
            packets.extend_from_slice(&publish_qos1(&self.topic, &PAYLOAD, id));
        }
        if !packets.is_empty() {
            crowd.send(self.publisher, &packets);
        }
    }

    /// 1 to 65,535, again and again.
    fn next_id(&mut self) -> PacketId {
        let id = self.published % u64::from(u16::MAX) + 1;
        self.published += 1;
        PacketId::new(id as u16).expect("1 at least")
    }
}

fn folder() -> TempDir {
    tempfile::Builder::new()
        .prefix("headgate-bench-")
        .tempdir()
        .expect("a folder for the state")
}

/// What is put into a store.
#[derive(Clone, Copy, Debug)]
struct Contents {
    sessions: u32,
    /// Messages in the queue of each session.
    queued: u32,
    retained: u32,
}

impl Contents {
    /// The first session has this number.
    const FIRST: u32 = 1_000_000;

    fn client_id(session: u32) -> String {
        format!("device-{session:07}")
    }

    /// Makes a store of JSON lines.
    fn import(self, store: &Path) {
        let mut import = Command::new(binary())
            .args(["store", "import", "--path"])
            .arg(store)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("headgate starts");
        let mut input = BufWriter::new(import.stdin.take().expect("it is piped"));
        let mut lines = r#"{"kind":"store","format":1,"by":"bench_durable"}"#.to_owned();
        lines.push('\n');
        for number in 0..self.sessions {
            self.session(Self::FIRST + number, &mut lines);
            input.write_all(lines.as_bytes()).expect("it reads");
            lines.clear();
        }
        for number in 0..self.retained {
            lines.push_str(r#"{"kind":"retained","message":"#);
            message(&format!("fleet/{number:07}/state"), true, &mut lines);
            lines.push_str("}\n");
            input.write_all(lines.as_bytes()).expect("it reads");
            lines.clear();
        }
        drop(input.into_inner().expect("it reads"));
        assert!(import.wait().expect("it is our child").success());
    }

    /// A session without a connection, with two subscriptions, which never ends.
    fn session(self, number: u32, lines: &mut String) {
        let id = format!("0000000100000001{number:012x}");
        let client = Self::client_id(number);
        let mut line = |text: &str| writeln!(lines, "{text}").expect("it is memory");
        line(&format!(
            r#"{{"kind":"session","id":"{id}","client_id":"{client}","epoch":1,"expiry_s":4294967295,"version":5,"send_quota":256,"sequence":1,"will":null}}"#
        ));
        line(&format!(
            r#"{{"kind":"closed","id":"{id}","expires_at_ms":null,"will_at_ms":null,"sent_up_to":0,"sequence":4}}"#
        ));
        for name in ["command", "config"] {
            line(&format!(
                r#"{{"kind":"subscription","id":"{id}","filter":"fleet/{client}/{name}","options":1,"subscription_id":null}}"#
            ));
        }
        for n in 1..=self.queued {
            let sequence = 4 + n;
            write!(
                lines,
                r#"{{"kind":"queued","id":"{id}","sequence":{sequence},"qos":1,"retain":false,"ids":null,"packet_id":{n},"group":null,"message":"#
            )
            .expect("it is memory");
            message(&format!("fleet/{client}/command"), false, lines);
            lines.push_str("}\n");
        }
    }
}

/// The message of a line.
fn message(topic: &str, retain: bool, lines: &mut String) {
    let payload = BASE64_STANDARD.encode(PAYLOAD);
    write!(
        lines,
        r#"{{"topic":"{topic}","payload":"{payload}","qos":1,"retain":{retain},"expires_at_ms":null,"properties":null}}"#
    )
    .expect("it is memory");
}

fn start(state: &Path) -> Broker {
    Broker::start_with(Settings {
        config: LIMITS.to_owned(),
        state_dir: Some(state.to_owned()),
        ..Settings::default()
    })
}

/// Until everything that is in the store is served.
fn wait_until_served(broker: &Broker) {
    let deadline = Instant::now() + START_TIMEOUT;
    while broker.metrics().get("headgate_store_restoring") != Some(0.0) {
        assert!(Instant::now() < deadline, "{}", broker.log());
        thread::sleep(Duration::from_millis(20));
    }
}

fn lasting(id: &str) -> Connect {
    let mut connect = connect(id);
    connect.clean_start = false;
    connect.properties.session_expiry_s = Some(u32::MAX);
    connect
}

/// Resumes a session that was imported; it has to be there, with its queue.
fn resume(server: SocketAddr, number: u32) {
    let id = Contents::client_id(number);
    let mut client = TcpClient::open(server, Version::V5);
    client.send(&Packet::Connect(Box::new(lasting(&id))));
    match client.receive() {
        Some(Packet::ConnAck(ack)) => {
            assert_eq!(
                (ack.reason, ack.session_present),
                (ReasonCode::SUCCESS, true)
            );
        }
        other => panic!("expected CONNACK, got {other:?}"),
    }
    for n in 1..=QUEUED {
        match client.receive() {
            Some(Packet::Publish(message)) => {
                assert_eq!(
                    message.packet_id.map(|id| u32::from(id.get())),
                    Some(n),
                    "{id}"
                );
            }
            other => panic!("{id}: expected PUBLISH, got {other:?}"),
        }
    }
}

/// From the start of the process, after a kill, until all sessions and retained messages are served; and until a client
/// that connects at once has its queue.
fn restart() -> Vec<Row> {
    let state = folder();
    let contents = Contents {
        sessions: SESSIONS,
        queued: QUEUED,
        retained: RETAINED,
    };
    contents.import(&state.path().join("store"));
    let mut broker = start(state.path());
    wait_until_served(&broker);
    queue(&broker, 10, LATE_MESSAGES, "late");
    broker.kill();
    let begun = Instant::now();
    broker.restart();
    resume(broker.tcp(), Contents::FIRST + SESSIONS / 2);
    let first = begun.elapsed();
    wait_until_served(&broker);
    let all = begun.elapsed();
    let metrics = broker.metrics();
    let restored = metrics.sum("headgate_store_sessions_restored_total");
    assert_eq!(restored, f64::from(SESSIONS) + 10.0);
    let retained = metrics.sum("headgate_store_retained_restored_total");
    assert_eq!(retained, f64::from(RETAINED));
    for sample in 0..SAMPLES {
        resume(
            broker.tcp(),
            Contents::FIRST + sample * (SESSIONS / SAMPLES),
        );
    }
    vec![
        Row::at_most("restart_s", all.as_secs_f64(), "s", 10.0),
        Row::info("restart_first_session_s", first.as_secs_f64(), "s"),
    ]
}

/// Queues messages for as many sessions, which then have no connection.
fn queue(broker: &Broker, sessions: usize, messages: u64, name: &str) {
    let topic = |number: usize| format!("{name}/{number}");
    let mut crowd = Crowd::new(broker.tcp(), Carrier::Tcp).with_lasting_sessions();
    crowd.connect_all(sessions, 16, QoS::AtLeastOnce, |number| {
        (topic(number), vec![topic(number)])
    });
    // Their connections end without a word.
    drop(crowd);
    let mut crowd = Crowd::new(broker.tcp(), Carrier::Tcp);
    let publishers = crowd.connect_all(PAIRS, PAIRS, QoS::AtLeastOnce, |number| {
        (format!("publisher-{number}"), Vec::new())
    });
    let until = Instant::now() + START_TIMEOUT;
    let mut published = 0;
    while crowd.counts().acknowledged < messages {
        while published < messages
            && published < crowd.counts().acknowledged + INFLIGHT * PAIRS as u64 / 2
        {
            let publisher = publishers[published as usize % PAIRS];
            let id = PacketId::new((published % u64::from(u16::MAX) + 1) as u16);
            let topic = topic(published as usize % sessions);
            let packet = publish_qos1(&topic, &PAYLOAD, id.expect("1 at least"));
            crowd.send(publisher, &packet);
            published += 1;
        }
        crowd.turn(Duration::from_millis(20));
        assert!(Instant::now() < until, "{}", broker.log());
    }
}

/// Resident bytes of a session that has no connection, two subscriptions and an empty queue.
fn offline_bytes() -> Vec<Row> {
    let [few, many] = [FEW_SESSIONS, MANY_SESSIONS].map(|sessions| {
        let state = folder();
        let contents = Contents {
            sessions,
            queued: 0,
            retained: 0,
        };
        contents.import(&state.path().join("store"));
        let broker = start(state.path());
        wait_until_served(&broker);
        thread::sleep(SETTLE);
        assert_eq!(
            broker.metrics().sum("headgate_sessions{"),
            f64::from(sessions)
        );
        let resident = Usage::of(broker.pid()).resident_bytes;
        eprintln!("{sessions} sessions: {resident} bytes");
        resident
    });
    let bytes = (many - few) as f64 / f64::from(MANY_SESSIONS - FEW_SESSIONS);
    vec![Row::at_most("offline_session_bytes", bytes, "B", 400.0)]
}

/// What the store's files occupy for each message of 100 bytes that is queued.
fn bytes_per_message() -> Vec<Row> {
    let state = folder();
    let broker = start(state.path());
    let store = state.path().join("store");
    let before = disk_bytes(&store);
    queue(&broker, STORED_SESSIONS, STORED_MESSAGES, "stored");
    thread::sleep(SETTLE);
    let bytes = (disk_bytes(&store) - before) as f64 / STORED_MESSAGES as f64;
    vec![Row::info("store_bytes_per_message", bytes, "B")]
}

fn disk_bytes(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => disk_bytes(&entry.path()),
        Ok(data) => data.blocks() * 512,
        Err(_) => 0,
    };
    entries.map(of).sum()
}
