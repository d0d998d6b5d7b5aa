//! Who sends what they shouldn't: each kind ends with a reason of its own, and nobody else notices.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use headgate_codec::{Packet as Mqtt, QoS, Version};
use headgate_tests::broker::{Broker, Metrics, kernel_available};
use headgate_tests::flood::{Random, spoofed_initial};
use headgate_tests::netns::{self, Namespace};
use headgate_tests::packets::{Packet, Transport};
use headgate_tests::quic_client::{Client, Error, endpoint};
use headgate_tests::siege::{ATTACKED, Capture, SERVER, Seen, Siege, send_once};
use headgate_tests::skip;
use headgate_tests::tcp_client::{TcpClient, connect};

/// The flag of a segment that opens a connection.
const SYN: u8 = 2;

fn why_not() -> Option<String> {
    netns::available().and_then(|()| kernel_available()).err()
}

fn broker(siege: &Siege, kernel: &str) -> Broker {
    siege.broker(&format!(
        "[kernel]\nmode = \"native\"\ninterfaces = [\"s0\", \"s1\"]\n{kernel}"
    ))
}

/// Runs clients in a namespace.
fn run<T: Send + 'static, F: Future<Output = Result<T, Error>>>(
    namespace: &Namespace,
    clients: impl FnOnce() -> F + Send + 'static,
) -> JoinHandle<T> {
    namespace.enter(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let result = runtime.block_on(clients());
        result.unwrap_or_else(|error| panic!("{error}"))
    })
}

/// Connects once from an address of the namespace's.
fn connect_from(namespace: &Namespace, from: &'static str, server: SocketAddr) {
    let connected = run(namespace, move || async move {
        let endpoint = endpoint(UdpSocket::bind((from, 0))?)?;
        let client = Client::connect(&endpoint, server, from).await?;
        client.connection.close(0u32.into(), b"");
        endpoint.wait_idle().await;
        Ok(())
    });
    connected.join().expect("the client is let in");
}

/// A session that sends itself messages.
struct Session {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<quinn::ConnectionStats>,
}

impl Session {
    /// One message after the other, with a pause in between; none is lost.
    fn begin(namespace: &Namespace, from: &'static str, server: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, ready) = (Arc::clone(&stop), Arc::new(AtomicBool::new(false)));
        let is_ready = Arc::clone(&ready);
        let thread = run(namespace, move || async move {
            let endpoint = endpoint(UdpSocket::bind((from, 0))?)?;
            let mut client = Client::connect(&endpoint, server, from).await?;
            client.subscribe(from, QoS::AtMostOnce).await?;
            while !stopped.load(Ordering::Relaxed) {
                client.publish(from, QoS::AtMostOnce, b"own").await?;
                match tokio::time::timeout(Duration::from_secs(20), client.receive()).await?? {
                    Mqtt::Publish(publish) => assert_eq!(publish.payload, b"own"[..]),
                    other => return Err(format!("unexpected {other:?}").into()),
                }
                is_ready.store(true, Ordering::Release);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(client.connection.stats())
        });
        let session = Self { stop, thread };
        wait_until("the first message comes back", || {
            ready.load(Ordering::Acquire) || session.thread.is_finished()
        });
        session
    }

    /// Ends it: what its connection has counted.
    fn end(self) -> quinn::ConnectionStats {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the session notices nothing")
    }
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn server() -> SocketAddr {
    SERVER.parse().expect("an address")
}

fn attacked() -> SocketAddr {
    (ATTACKED, 14567).into()
}

fn passes(metrics: &Metrics, reason: &str) -> u64 {
    metrics.sum(&format!(
        "headgate_kernel_passes_total{{reason=\"{reason}\""
    )) as u64
}

fn drops(metrics: &Metrics, reason: &str) -> u64 {
    metrics.sum(&format!("headgate_kernel_drops_total{{reason=\"{reason}\"")) as u64
}

fn all_drops(metrics: &Metrics) -> u64 {
    metrics.sum("headgate_kernel_drops_total") as u64
}

/// A datagram to the broker's attacked address.
fn datagram((source, port): (Ipv4Addr, u16), bytes: Vec<u8>) -> Packet {
    let mut packet = Packet::quic(IpAddr::V4(source), bytes);
    packet.destination = IpAddr::from(ATTACKED);
    if let Transport::Udp { from, .. } = &mut packet.transport {
        *from = port;
    }
    packet
}

/// Sends packets, and waits until the driver has shown all of them to the shield: what was counted before and after.
fn send(siege: &Siege, broker: &Broker, packets: Vec<Packet>) -> (Metrics, Metrics) {
    let (before, seen) = (broker.metrics(), siege.nic("s1").seen);
    let count = packets.len() as u64;
    send_once(siege, packets);
    wait_until("all packets arrive", || {
        siege.nic("s1").seen - seen >= count
    });
    (before, broker.metrics())
}

#[test]
fn garbage_for_a_live_connection_is_dropped_and_its_owner_goes_on() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    const GARBAGE: usize = 20_000;
    let siege = Siege::new("g");
    let broker = broker(&siege, "");
    let capture = Capture::begin(&siege);
    let session = Session::begin(&siege.clients, "10.77.0.2", server());
    let neighbour = Session::begin(&siege.clients, "10.77.0.3", server());
    let is_own = |payload: &[u8]| payload[0] & 0x80 == 0;
    let Seen { payload, .. } = loop_until_seen(&capture, "10.77.0.2", is_own);
    let mut random = Random::new(7);
    let mut garbage = |payload: &[u8]| {
        let mut bytes = payload[..15].to_vec();
        bytes.resize(120, 0);
        random.fill(&mut bytes[15..]);
        bytes
    };
    let attacker = (Ipv4Addr::new(10, 78, 0, 2), 4_000);
    let packets = (0..GARBAGE).map(|_| datagram(attacker, garbage(&payload)));
    let (before, after) = send(&siege, &broker, packets.collect());
    let dropped = drops(&after, "penalty") - drops(&before, "penalty");
    println!("{GARBAGE} packets of garbage: {dropped} dropped as `penalty`");
    assert!(dropped > GARBAGE as u64 / 2, "{dropped}");
    assert_eq!(all_drops(&after) - all_drops(&before), dropped);
    let forged = after.sum("headgate_packets_forged_total");
    println!("{forged} reached the connection");
    assert!(forged >= 32.0);
    assert_eq!(session.end().path.lost_packets, 0, "its owner");
    assert_eq!(neighbour.end().path.lost_packets, 0);
}

/// The last datagram of a host that `is_it`.
fn loop_until_seen(capture: &Capture, from: &str, is_it: impl Fn(&[u8]) -> bool) -> Seen {
    let address: Ipv4Addr = from.parse().expect("an address");
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let mut seen = capture.seen();
        seen.retain(|seen| *seen.from.ip() == address && is_it(&seen.payload));
        if let Some(last) = seen.pop() {
            return last;
        }
        assert!(
            Instant::now() < deadline,
            "{from} sends nothing of the kind"
        );
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_token_that_is_replayed_has_a_budget_and_is_of_no_use_elsewhere() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    const REPLAYS: u64 = 2_000;
    let siege = Siege::new("t");
    let broker = broker(
        &siege,
        "retry = \"always\"\nretry_token_life_s = 300\nvalidated_initials_per_second_per_host = 50\n",
    );
    let capture = Capture::begin(&siege);
    connect_from(&siege.clients, "10.77.0.2", server());
    // A token of 80 bytes behind two connection IDs, the first of which is the Retry packet's: once the broker has
    // answered, the client names its connection, and repeats the token all the same.
    let is_with_token = |payload: &[u8]| {
        let len = |at: usize| payload.get(at).map(|len| usize::from(*len));
        let at = len(5).and_then(|dcid| Some(7 + dcid + len(6 + dcid)?));
        let length = at.and_then(|at| payload.get(at..at + 2));
        payload[0] & 0xf0 == 0xc0 && len(5) == Some(8) && length == Some(&[0x40, 80])
    };
    let seen = loop_until_seen(&capture, "10.77.0.2", is_with_token);
    let replay = |source| datagram((source, seen.from.port()), seen.payload.clone());
    let own = (0..REPLAYS).map(|_| replay(*seen.from.ip()));
    let (before, after) = send(&siege, &broker, own.collect());
    let dropped = all_drops(&after) - all_drops(&before);
    let passed = passes(&after, "initial_retry_token") - passes(&before, "initial_retry_token");
    println!("{REPLAYS} replays of a token: {passed} passed, {dropped} over the host's budget");
    let over = drops(&after, "validated_address_budget");
    assert_eq!((dropped, passed + dropped), (over, REPLAYS));
    // Twice a second's worth at once, and some while they came.
    assert!((100..REPLAYS / 2).contains(&passed));
    let elsewhere = (0..REPLAYS).map(|_| replay(Ipv4Addr::new(10, 78, 0, 2)));
    let (before, after) = send(&siege, &broker, elsewhere.collect());
    let of_others =
        drops(&after, "retry_token_elsewhere") - drops(&before, "retry_token_elsewhere");
    assert_eq!(of_others, REPLAYS);
    assert_eq!(all_drops(&after) - all_drops(&before), REPLAYS);
    // Another host of the same prefix.
    connect_from(&siege.clients, "10.77.0.3", server());
}

#[test]
fn a_prefix_that_sends_too_much_is_slowed_and_its_neighbour_is_not() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let siege = Siege::new("p");
    let broker = broker(&siege, "packets_per_second_per_prefix = 500\n");
    let neighbour = Session::begin(&siege.attacker, "10.78.1.2", attacked());
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let flood = run(&siege.attacker, move || async move {
        let endpoint = endpoint(UdpSocket::bind(("10.78.0.2", 0))?)?;
        let mut client = Client::connect(&endpoint, attacked(), "flood").await?;
        while !stopped.load(Ordering::Relaxed) {
            // Small messages without a pause, each in a packet of its own if nothing holds them back.
            client
                .publish("flood", QoS::AtMostOnce, &[b'x'; 1_000])
                .await?;
            tokio::task::yield_now().await;
        }
        Ok(client.connection.stats())
    });
    wait_until("its prefix is above the budget", || {
        drops(&broker.metrics(), "packet_prefix_budget") > 100 || flood.is_finished()
    });
    stop.store(true, Ordering::Relaxed);
    let flood = flood
        .join()
        .expect("the one that floods is still connected");
    let after = broker.metrics();
    let over = drops(&after, "packet_prefix_budget");
    let forged = after.sum("headgate_packets_forged_total");
    let all = after.of("headgate_kernel_drops_total");
    assert_eq!(
        all_drops(&after),
        over,
        "nothing else is dropped: {all:?}, {forged} packets didn't decrypt"
    );
    let lost = neighbour.end().path.lost_packets;
    println!(
        "a prefix above its packet budget: {over} dropped; it has lost {} packets, its neighbour {lost}",
        flood.path.lost_packets
    );
    assert_eq!(lost, 0);
}

#[test]
fn initials_above_a_prefixs_budget_are_asked_for_their_address() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    const INITIALS: u64 = 2_000;
    let siege = Siege::new("i");
    // So many that the load would have everybody asked.
    let broker = broker(
        &siege,
        "initials_per_second_per_prefix = 50\nretry_above_initials_per_second = 0\n",
    );
    let mut random = Random::new(11);
    // All from one /24, which has an owner.
    let spoofed = (0..INITIALS).map(|n| {
        let source = Ipv4Addr::new(10, 78, 1, 3 + (n % 250) as u8);
        datagram((source, 4_000), spoofed_initial(&mut random))
    });
    let (before, after) = send(&siege, &broker, spoofed.collect());
    let passed = passes(&after, "initial") - passes(&before, "initial");
    let asked = |metrics: &Metrics| metrics.sum("headgate_kernel_answers_total") as u64;
    let answered = asked(&after) - asked(&before);
    println!(
        "{INITIALS} Initials of one prefix: {passed} passed, {answered} asked for their address"
    );
    assert_eq!(passed + answered, INITIALS);
    assert!((100..INITIALS / 2).contains(&passed), "{passed}");
    assert_eq!(all_drops(&after), all_drops(&before), "none is dropped");
    // Its neighbour isn't asked; somebody who is in it, gets in with a token.
    let before = broker.metrics();
    connect_from(&siege.attacker, "10.78.0.2", attacked());
    let after = broker.metrics();
    assert_eq!(asked(&after), asked(&before));
    let with_token = || passes(&broker.metrics(), "initial_retry_token");
    let (before, is_in) = (with_token(), AtomicBool::new(false));
    let deadline = Instant::now() + Duration::from_secs(60);
    thread::scope(|threads| {
        // Its budget is used up all the time: how long a client takes to start does not matter.
        threads.spawn(|| {
            while !is_in.load(Ordering::Relaxed) && Instant::now() < deadline {
                let again = (0..200).map(|n| {
                    let source = Ipv4Addr::new(10, 78, 1, 3 + n);
                    datagram((source, 4_000), spoofed_initial(&mut random))
                });
                send_once(&siege, again.collect());
                thread::sleep(Duration::from_millis(50));
            }
        });
        // One in a hundred comes just when there is some budget again, and is not asked.
        while with_token() == before {
            assert!(Instant::now() < deadline, "it was asked, and shows a token");
            connect_from(&siege.attacker, "10.78.1.2", attacked());
        }
        is_in.store(true, Ordering::Relaxed);
    });
    assert!(asked(&broker.metrics()) > asked(&after));
}

#[test]
fn a_flood_of_syns_is_dropped_above_its_prefixs_budget() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    const SYNS: u64 = 5_000;
    let siege = Siege::new("s");
    let broker = broker(&siege, "syns_per_second_per_prefix = 100\n");
    let syns = (0..SYNS).map(|n| {
        let source = IpAddr::from([10, 78, 1, 3 + (n % 250) as u8]);
        let mut packet = Packet::tcp(source, 1883, SYN);
        packet.destination = IpAddr::from(ATTACKED);
        packet
    });
    let (before, after) = send(&siege, &broker, syns.collect());
    let passed = passes(&after, "tcp_syn") - passes(&before, "tcp_syn");
    let over = drops(&after, "syn_prefix_budget") - drops(&before, "syn_prefix_budget");
    println!("{SYNS} SYNs of one prefix: {passed} passed, {over} dropped");
    assert_eq!(passed + over, SYNS);
    assert!((200..SYNS / 2).contains(&passed), "{passed}");
    assert_eq!(all_drops(&after) - all_drops(&before), over);
    for (namespace, address) in [
        (&siege.clients, SERVER),
        (&siege.attacker, "10.78.0.1:14567"),
    ] {
        let mut address: SocketAddr = address.parse().expect("an address");
        address.set_port(1883);
        let answered = namespace.enter(move || {
            let mut client = TcpClient::open(address, Version::V5);
            client.send(&Mqtt::Connect(Box::new(connect("tcp"))));
            matches!(client.receive(), Some(Mqtt::ConnAck(_)))
        });
        assert!(answered.join().expect("no panic"), "{address}");
    }
}
