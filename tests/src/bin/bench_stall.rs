//! Measures what something that stands still costs everybody else: a QUIC stream that its client doesn't read, subscribers
//! over TCP and QUIC that read nothing, and a worker that is stuck. Messages of 100 bytes go from clients to others all the
//! while, one at a time; the figure is the 99th percentile of how long they take, divided by the same without the stall.
//!
//! Windows with and without the stall take turns under the same load, and of each kind the quarter counts that other
//! programs have disturbed least. What becomes of the deliveries of a worker that is stuck is asserted.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use headgate_codec::{Connect, Packet, PacketId, QoS, ReasonCode, Version};
use headgate_tests::{
    bench::{self, Row},
    broker::Broker,
    quic_client::{Client, Error, Stream, endpoint, subscribe},
    stuck::{StuckWorker, client_of},
    tcp_client::{TcpClient, connect, publish},
};

/// Windows with the stall, and as many without.
const WINDOWS: usize = 20;
const WINDOW: Duration = Duration::from_millis(500);
/// Windows while a ring is full, which lasts for 5 s, and before.
const QUIET_WINDOWS: usize = 8;
/// Between two measured messages.
const PAUSE: Duration = Duration::from_micros(500);
/// Between two messages to those that stand still, or to those that take their place in the other windows.
const PACE: Duration = Duration::from_millis(2);
/// Equal, within the noise: two runs of the same differ by up to a third where other programs run beside them.
const RATIO_MAX: f64 = 1.5;
const PATIENCE: Duration = Duration::from_secs(60);
const CONFIG: &str = "[node]\nworkers = 2\n";

fn main() {
    let mut rows = vec![stalled_stream(), stalled_subscriber()];
    rows.extend(stuck_worker());
    bench::print(&rows);
}

/// A client of several streams doesn't read one of them; the others are its other streams and other clients.
fn stalled_stream() -> Row {
    let broker = Broker::start(CONFIG);
    let probe = quic_client(
        broker.quic(),
        "streams",
        &["stalled"],
        &["read"],
        Some("probe"),
    );
    let mut others = Others::new(4, |id| TcpClient::connect(broker.tcp(), id));
    others.probe = Some((TcpClient::connect(broker.tcp(), "prober"), probe));
    let load = Load::start(TcpClient::connect(broker.tcp(), "load"));
    load.fill(&broker, &["stalled"]);
    others.compare("stall_stream_p99_ratio", |stalls| {
        load.aim(if stalls { &["stalled"] } else { &["read"] });
    })
}

/// One subscriber over TCP and one over QUIC read nothing. In the other windows two read what these would get, which is more
/// work than to let it wait.
fn stalled_subscriber() -> Row {
    let broker = Broker::start(CONFIG);
    let mut stalled = with_small_window(broker.tcp(), "stalled");
    stalled.subscribe(&["stalled/tcp"], QoS::AtMostOnce);
    let mut read = TcpClient::connect(broker.tcp(), "read");
    read.subscribe(&["read/tcp"], QoS::AtMostOnce);
    thread::spawn(move || while read.receive().is_some() {});
    let _quic = [
        ("stalled-quic", "stalled/quic", ""),
        ("read-quic", "", "read/quic"),
    ]
    .map(|(id, stalled, read)| {
        let some = |topic: &'static str| Some(topic).filter(|topic| !topic.is_empty());
        let (stalled, read) = (Vec::from_iter(some(stalled)), Vec::from_iter(some(read)));
        quic_client(broker.quic(), id, &stalled, &read, None)
    });
    let mut others = Others::new(4, |id| TcpClient::connect(broker.tcp(), id));
    let load = Load::start(TcpClient::connect(broker.tcp(), "load"));
    for topic in ["stalled/tcp", "stalled/quic"] {
        load.fill(&broker, &[topic]);
    }
    others.compare("stall_subscriber_p99_ratio", |stalls| {
        load.aim(match stalls {
            true => &["stalled/tcp", "stalled/quic"],
            false => &["read/tcp", "read/quic"],
        });
    })
}

/// The other worker is stopped while clients of this one publish to clients of both.
fn stuck_worker() -> Vec<Row> {
    let broker = Broker::start(CONFIG);
    let of = |worker| move |id: &str| (worker, connect(id));
    let client = |(worker, connect): (u64, Connect)| client_of(&broker, worker, &connect);
    let mut far = client(of(1)("far"));
    far.subscribe(&["far"], QoS::AtMostOnce);
    let received = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&received);
    thread::spawn(move || {
        while let Some(Packet::Publish(_)) = far.receive() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut others = Others::new(2, |id| client(of(0)(id)));
    let load = Load::start(client(of(0)("load")));
    let mut stuck = None;
    let row = others.compare("stall_worker_p99_ratio", |stalls| {
        load.aim(&["far"]);
        stuck = stalls.then(|| StuckWorker::stop(&broker, 1));
    });
    load.aim(&[]);
    let mut lasting = connect("lasting");
    lasting.properties.session_expiry_s = Some(3_600);
    let kept = Kept {
        subscriber: client((1, lasting)),
        publisher: client(of(0)("keeper")),
    };
    let full = kept.survives(&broker, (&load, &received), &mut others);
    vec![row, full]
}

/// Messages with QoS 1 for a session that lasts.
struct Kept {
    subscriber: TcpClient,
    publisher: TcpClient,
}

impl Kept {
    const MESSAGES: u16 = 50;

    /// The worker is stuck for so long that its ring is full and deliveries are dropped: those with QoS 0, which are
    /// counted. Those with QoS 1 are acknowledged when it goes on, and all come. How long the others' messages take
    /// meanwhile, compared with before.
    fn survives(
        mut self,
        broker: &Broker,
        (load, received): (&Load, &AtomicU64),
        others: &mut Others,
    ) -> Row {
        let before = others.quiet_window();
        self.subscriber.subscribe(&["kept"], QoS::AtLeastOnce);
        let stuck = StuckWorker::stop(broker, 1);
        for number in 1..=Self::MESSAGES {
            let mut message = publish("kept", QoS::AtLeastOnce, number.to_string());
            message.packet_id = PacketId::new(number);
            self.publisher.send(&Packet::Publish(message));
        }
        // More than the ring takes: whoever publishes so much waits for 5 s, and goes on.
        load.send(&["far"], 12_000);
        let during = others.quiet_window();
        let lost = || broker.metrics().sum("headgate_messages_dropped_total{");
        wait("deliveries with QoS 0 are dropped", || {
            load.is_done() && lost() > 0.0
        });
        let socket = self.publisher.stream();
        socket.set_nonblocking(true).expect("a socket");
        socket.peek(&mut [0]).expect_err("nothing is acknowledged");
        socket.set_nonblocking(false).expect("a socket");
        stuck.go_on();
        for number in 1..=Self::MESSAGES {
            let ack = self.publisher.receive();
            assert!(
                matches!(&ack, Some(Packet::PubAck(ack)) if ack.reason == ReasonCode::SUCCESS),
                "{ack:?}"
            );
            let Some(Packet::Publish(message)) = self.subscriber.receive() else {
                panic!("message {number} is missing")
            };
            assert_eq!(message.payload, number.to_string());
        }
        wait("what didn't come is counted as dropped", || {
            let came = received.load(Ordering::Relaxed);
            came + lost() as u64 == load.sent_to("far")
        });
        eprintln!(
            "a worker was stuck: {} of {} dropped",
            lost(),
            load.sent_to("far")
        );
        let ratio = during.as_secs_f64() / before.as_secs_f64();
        Row::info("stall_worker_full_ring_p99_ratio", round(ratio), "x")
    }
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Clients that have nothing to do with the stall.
struct Others {
    /// Publisher and subscriber of a topic.
    pairs: Vec<(TcpClient, TcpClient, String)>,
    /// Who publishes to the other stream of a client, and when it has come there.
    probe: Option<(TcpClient, Receiver<Instant>)>,
    turn: usize,
}

impl Others {
    fn new(pairs: usize, client: impl Fn(&str) -> TcpClient) -> Self {
        let pair = |number: usize| {
            let topic = format!("other/{number}");
            let publisher = client(&format!("publisher-{number}"));
            let mut subscriber = client(&format!("subscriber-{number}"));
            subscriber.subscribe(&[&topic], QoS::AtMostOnce);
            (publisher, subscriber, topic)
        };
        Self {
            pairs: (0..pairs).map(pair).collect(),
            probe: None,
            turn: 0,
        }
    }

    /// How long one message takes.
    fn sample(&mut self) -> Duration {
        self.turn += 1;
        if let Some((publisher, come)) = &mut self.probe
            && self.turn.is_multiple_of(2)
        {
            let begin = Instant::now();
            publisher.send(&Packet::Publish(message("probe", 100)));
            let end = come.recv_timeout(PATIENCE).expect("the stream goes on");
            return end - begin;
        }
        let at = self.turn % self.pairs.len();
        let (publisher, subscriber, topic) = &mut self.pairs[at];
        let begin = Instant::now();
        publisher.send(&Packet::Publish(message(topic, 100)));
        assert!(matches!(subscriber.receive(), Some(Packet::Publish(_))));
        begin.elapsed()
    }

    /// The 99th percentile of a while.
    fn window(&mut self) -> Duration {
        let until = Instant::now() + WINDOW;
        let mut samples = Vec::new();
        while Instant::now() < until {
            samples.push(self.sample());
            thread::sleep(PAUSE);
        }
        samples.sort_unstable();
        samples[samples.len() * 99 / 100]
    }

    /// The same of some windows, without the noise.
    fn quiet_window(&mut self) -> Duration {
        quarter((0..QUIET_WINDOWS).map(|_| self.window()).collect())
    }

    /// What a stall, which is turned on and off, does to the others.
    fn compare(&mut self, name: &str, mut stall: impl FnMut(bool)) -> Row {
        let mut found = [Vec::new(), Vec::new()];
        stall(false);
        self.window();
        for _ in 0..WINDOWS {
            for stalls in [false, true] {
                stall(stalls);
                found[usize::from(stalls)].push(self.window());
            }
        }
        stall(false);
        let [without, with] = found.map(|windows| {
            eprintln!("{name}: 99th percentiles of windows: {windows:?}");
            quarter(windows).as_secs_f64()
        });
        Row::at_most(name, round(with / without), "x", RATIO_MAX)
    }
}

/// What a quarter of the windows is below.
fn quarter(mut windows: Vec<Duration>) -> Duration {
    windows.sort_unstable();
    windows[windows.len() / 4]
}

fn round(ratio: f64) -> f64 {
    (ratio * 100.0).round() / 100.0
}

fn message(topic: &str, bytes: usize) -> headgate_codec::Publish {
    publish(topic, QoS::AtMostOnce, vec![b'x'; bytes])
}

/// A client that publishes 1,000 bytes with QoS 0 to some topics, at a pace or as fast as it can.
struct Load {
    orders: Arc<Mutex<Orders>>,
}

#[derive(Default)]
struct Orders {
    /// Paced.
    topics: Vec<String>,
    /// At once: how many to each of these.
    bursts: Vec<(String, u64)>,
    sent: BTreeMap<String, u64>,
}

impl Load {
    fn start(mut client: TcpClient) -> Self {
        let orders: Arc<Mutex<Orders>> = Arc::default();
        let taken = Arc::clone(&orders);
        thread::spawn(move || {
            loop {
                let (topics, is_paced) = {
                    let mut orders = taken.lock().expect("nobody panics with it");
                    let now = match orders.bursts.last_mut() {
                        Some((topic, left)) => {
                            *left -= 1;
                            (vec![topic.clone()], false)
                        }
                        None => (orders.topics.clone(), true),
                    };
                    for topic in &now.0 {
                        *orders.sent.entry(topic.clone()).or_default() += 1;
                    }
                    now
                };
                for topic in &topics {
                    client.send(&Packet::Publish(message(topic, 1_000)));
                }
                let mut orders = taken.lock().expect("nobody panics with it");
                orders.bursts.retain(|(_, left)| *left > 0);
                drop(orders);
                if is_paced {
                    thread::sleep(PACE);
                }
            }
        });
        Self { orders }
    }

    /// Publishes to these topics from now on.
    fn aim(&self, topics: &[&str]) {
        let mut orders = self.orders.lock().expect("nobody panics with it");
        orders.topics = topics.iter().map(|&topic| topic.to_owned()).collect();
    }

    /// Publishes so many messages to each of these at once.
    fn send(&self, topics: &[&str], count: u64) {
        let mut orders = self.orders.lock().expect("nobody panics with it");
        let bursts = topics.iter().map(|&topic| (topic.to_owned(), count));
        orders.bursts.extend(bursts);
    }

    /// What was to be sent at once has been.
    fn is_done(&self) -> bool {
        let orders = self.orders.lock().expect("nobody panics with it");
        orders.bursts.is_empty()
    }

    fn sent_to(&self, topic: &str) -> u64 {
        let orders = self.orders.lock().expect("nobody panics with it");
        orders.sent.get(topic).copied().unwrap_or(0)
    }

    /// Fills everything on the way to these until the broker drops messages.
    fn fill(&self, broker: &Broker, topics: &[&str]) {
        let dropped = || broker.metrics().sum("headgate_messages_dropped_total{");
        let before = dropped();
        wait("a client that reads nothing has no room", || {
            if self.is_done() {
                self.send(topics, 2_000);
            }
            dropped() > before
        });
        wait("what was ordered is sent", || self.is_done());
    }
}

/// A client whose connection takes little at once.
fn with_small_window(server: SocketAddr, id: &str) -> TcpClient {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("a socket");
    socket.set_recv_buffer_size(4_096).expect("a size");
    socket.connect(&server.into()).expect("the broker listens");
    let mut client = TcpClient::over(TcpStream::from(socket), Version::V5);
    assert_eq!(client.shake_hands(connect(id)), ReasonCode::SUCCESS);
    client
}

/// A client over QUIC with a stream for each of these topics: it doesn't read the first ones, and says when something has
/// come on that of the last one.
fn quic_client(
    server: SocketAddr,
    id: &'static str,
    stalled: &[&'static str],
    read: &[&'static str],
    probe: Option<&'static str>,
) -> Receiver<Instant> {
    let (come, receiver) = channel();
    let (ready, is_ready) = channel();
    let topics = (stalled.to_vec(), read.to_vec(), probe);
    thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().expect("a runtime");
        let end = runtime.block_on(serve((server, id), topics, (&ready, &come)));
        // The broker is gone, with its case.
        eprintln!("{id}: {end:?}");
    });
    is_ready.recv_timeout(PATIENCE).expect("it connects");
    receiver
}

async fn serve(
    (server, id): (SocketAddr, &str),
    (stalled, read, probe): (Vec<&str>, Vec<&str>, Option<&str>),
    (ready, come): (&Sender<()>, &Sender<Instant>),
) -> Result<(), Error> {
    let endpoint = endpoint(UdpSocket::bind("127.0.0.1:0")?)?;
    let client = Client::connect(&endpoint, server, id).await?;
    let mut unread = Vec::new();
    for topic in stalled {
        unread.push(subscribed(&client, topic).await?);
    }
    let mut streams = Vec::new();
    for topic in read {
        streams.push(subscribed(&client, topic).await?);
    }
    let mut probe = match probe {
        Some(topic) => Some(subscribed(&client, topic).await?),
        None => None,
    };
    ready.send(())?;
    loop {
        let first = async {
            match streams.first_mut() {
                Some(stream) => stream.receive().await,
                None => std::future::pending().await,
            }
        };
        let probed = async {
            match &mut probe {
                Some(stream) => stream.receive().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            packet = first => drop(packet?),
            packet = probed => {
                packet?;
                come.send(Instant::now())?;
            }
            reason = client.connection.closed() => return Err(reason.into()),
        }
    }
}

/// A data stream with a subscription.
async fn subscribed(client: &Client, topic: &str) -> Result<Stream, Error> {
    let mut stream = client.stream().await?;
    let packet = Packet::Subscribe(Box::new(subscribe(900, topic, QoS::AtMostOnce)));
    stream.send(&packet).await?;
    match stream.receive().await? {
        Packet::SubAck(ack) if ack.reasons[0].0 < 0x80 => Ok(stream),
        other => Err(format!("{other:?}").into()),
    }
}
