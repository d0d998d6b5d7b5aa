//! QUIC below MQTT, from outside: other addresses in the middle of a connection, loss, restarts, and what is said to
//! those who can't be served.

use headgate::net::udp::{self, RecvBatch, SendBatch, UdpOptions};
use headgate_codec::{Packet, QoS};
use headgate_tests::{
    broker::{Broker, Settings, certificate},
    quic_client::{Client, Error, endpoint, tls},
    relay::{Conditions, Relay, Way},
};
use nix::sys::signal::Signal;
use quinn_proto::{EcnCodepoint, Transmit};
use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// QUIC version 2 (RFC 9369 §3).
const QUIC_V2: u32 = 0x6b33_43cf;

fn run(test: impl Future<Output = Result<(), Error>>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let result = runtime.block_on(async { tokio::time::timeout(2 * PATIENCE, test).await });
    result.expect("it takes too long").expect("it works");
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    socket
        .set_read_timeout(Some(Duration::from_millis(200)))
        .expect("a socket");
    socket
}

/// One message with QoS 1 to itself: it arrives once, and is acknowledged.
async fn echo(client: &mut Client, text: &str) -> Result<(), Error> {
    client
        .publish("own", QoS::AtLeastOnce, text.as_bytes())
        .await?;
    let (mut acknowledged, mut received) = (false, false);
    while !(acknowledged && received) {
        match client.receive().await? {
            Packet::PubAck(_) => acknowledged = true,
            Packet::Publish(message) => {
                assert_eq!(message.payload, text.as_bytes());
                received = true;
                if let Some(packet_id) = message.packet_id {
                    client.acknowledge(packet_id).await?;
                }
            }
            other => return Err(format!("unexpected {other:?}").into()),
        }
    }
    Ok(())
}

/// A NAT forgets its mapping, again and again: the connection and its session stay.
#[test]
fn a_connection_survives_other_ports_and_addresses() {
    let broker = Broker::start("");
    run(async {
        let relay = Relay::start(broker.quic(), Conditions::default(), 1);
        let endpoint = endpoint(socket())?;
        let mut client = Client::connect(&endpoint, relay.address(), "roaming").await?;
        client.subscribe("own", QoS::AtLeastOnce).await?;
        echo(&mut client, "at home").await?;
        for turn in 0..6u8 {
            // The same address with another port, then another address.
            relay.rebind(Ipv4Addr::new(127, 0, 0, 1 + turn / 2));
            echo(&mut client, &format!("place {turn}")).await?;
        }
        let metrics = broker.metrics();
        assert_eq!(metrics.sum("headgate_connections_opened_total"), 1.0);
        assert_eq!(metrics.sum("headgate_connections{"), 1.0);
        Ok(())
    });
}

#[test]
fn loss_and_reordering_lose_no_message() {
    let broker = Broker::start("");
    run(async {
        for (seed, lost_per_mille) in [(3, 10), (4, 50), (5, 200)] {
            let conditions = Conditions {
                delay: Duration::from_millis(5),
                lost_per_mille,
                late_per_mille: 100,
                ..Conditions::default()
            };
            let relay = Relay::start(broker.quic(), conditions, seed);
            let endpoint = endpoint(socket())?;
            let mut client = Client::connect(&endpoint, relay.address(), "far").await?;
            client.subscribe("own", QoS::AtLeastOnce).await?;
            for turn in 0..20 {
                echo(&mut client, &format!("{seed} {turn}")).await?;
            }
        }
        Ok(())
    });
}

/// Many messages at once on a lossy path, with a key update in the middle.
#[test]
fn key_updates_lose_no_message() {
    let broker = Broker::start("");
    run(async {
        let conditions = Conditions {
            late_per_mille: 50,
            ..Conditions::default()
        };
        let relay = Relay::start(broker.quic(), conditions, 6);
        let endpoint = endpoint(socket())?;
        let mut client = Client::connect(&endpoint, relay.address(), "rekeyed").await?;
        client.subscribe("own", QoS::AtLeastOnce).await?;
        for turn in 0..10 {
            client.connection.force_key_update();
            echo(&mut client, &format!("{turn}")).await?;
        }
        Ok(())
    });
}

/// The port of the QUIC listener, so that a broker that is started again has the same.
fn listen(port: u16) -> String {
    format!("[listen]\nquic = \"127.0.0.1:{port}\"")
}

/// The key of stateless resets is made from what the state folder keeps.
#[test]
fn devices_learn_of_a_restart_with_their_next_packet() {
    const CONNECTIONS: usize = 200;
    let state = tempfile::tempdir().expect("a folder");
    let port = socket().local_addr().expect("a bound socket").port();
    let settings = || Settings {
        config: listen(port),
        state_dir: Some(state.path().to_owned()),
        ..Settings::default()
    };
    let mut broker = Broker::start_with(settings());
    run(async {
        let endpoint = endpoint(socket())?;
        let mut clients = Vec::new();
        for number in 0..CONNECTIONS {
            let id = format!("device-{number}");
            clients.push(Client::connect(&endpoint, broker.quic(), &id).await?);
        }
        broker.signal(Signal::SIGKILL);
        broker.wait();
        let broker = Broker::start_with(settings());
        for client in &mut clients {
            client.send(&Packet::PingReq).await?;
        }
        for client in &clients {
            let reason = client.connection.closed().await;
            assert!(matches!(reason, quinn::ConnectionError::Reset), "{reason}");
        }
        assert!(broker.metrics().sum("headgate_stateless_responses_total") >= CONNECTIONS as f64);
        Ok(())
    });
}

/// No more is answered than the budget allows, and what is not is counted.
#[test]
fn stateless_resets_have_a_budget() {
    let state = tempfile::tempdir().expect("a folder");
    let port = socket().local_addr().expect("a bound socket").port();
    let config = |resets: u32| {
        let limit = format!("[limits]\nstateless_resets_per_second = {resets}");
        Settings {
            config: format!("{}\n{limit}\n[node]\nworkers = 1", listen(port)),
            state_dir: Some(state.path().to_owned()),
            ..Settings::default()
        }
    };
    let mut broker = Broker::start_with(config(10));
    run(async {
        let relay = Relay::start(broker.quic(), Conditions::default(), 7);
        let endpoint = endpoint(socket())?;
        let mut client = Client::connect(&endpoint, relay.address(), "device").await?;
        client.send(&Packet::PingReq).await?;
        client.receive().await?;
        let recorded = relay.recorded(Way::Up);
        let packet = recorded.iter().rev().find(|d| d[0] & 0x80 == 0);
        let mut packet = packet.ok_or("a packet with a short header")?.clone();
        // Short packets are not answered, so that two brokers can't reset each other for ever.
        packet.resize(packet.len().max(60), 0);
        broker.signal(Signal::SIGKILL);
        broker.wait();
        let broker = Broker::start_with(config(10));
        let attacker = socket();
        for _ in 0..500 {
            attacker.send_to(&packet, broker.quic())?;
        }
        let dropped = "headgate_datagrams_dropped_total{worker=\"0\",reason=\"reset_budget\"}";
        let deadline = Instant::now() + PATIENCE;
        while broker.metrics().sum(dropped) < 400.0 {
            assert!(Instant::now() < deadline, "{:?}", broker.metrics());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut answers = 0;
        while attacker.recv(&mut [0; 2048]).is_ok() {
            answers += 1;
        }
        // A second's worth at once, and what came together while they were sent.
        assert!((1..=100).contains(&answers), "{answers} answers");
        Ok(())
    });
}

/// A datagram of `bytes` that offers a version.
fn offer(version: u32, bytes: usize) -> Vec<u8> {
    let mut datagram = vec![0xc3];
    datagram.extend_from_slice(&version.to_be_bytes());
    datagram.extend_from_slice(&[8, 1, 2, 3, 4, 5, 6, 7, 8]);
    datagram.extend_from_slice(&[4, 9, 10, 11, 12]);
    datagram.resize(bytes, 0);
    datagram
}

#[test]
fn other_versions_are_answered_with_those_that_there_are() {
    let broker = Broker::start("");
    for version in [QUIC_V2, 0xff00_001d, 0x1a2a_3a4a] {
        let client = socket();
        let deadline = Instant::now() + PATIENCE;
        let mut answer = [0; 2048];
        let length = loop {
            client
                .send_to(&offer(version, 1_200), broker.quic())
                .expect("the loopback");
            if let Ok(length) = client.recv(&mut answer) {
                break length;
            }
            assert!(Instant::now() < deadline, "no answer to {version:#x}");
        };
        let answer = &answer[..length];
        // RFC 9000 §17.2.1: version 0, the connection IDs exchanged, the versions.
        assert!(answer[0] & 0x80 != 0 && answer[1..5] == [0; 4]);
        assert_eq!(answer[5..10], [4, 9, 10, 11, 12]);
        assert_eq!(answer[10..19], [8, 1, 2, 3, 4, 5, 6, 7, 8]);
        let versions: Vec<_> = answer[19..].chunks(4).map(<[u8]>::to_vec).collect();
        assert!(versions.contains(&vec![0, 0, 0, 1]), "{versions:?}");
        assert!(!versions.contains(&version.to_be_bytes().to_vec()));
    }
    // Too short to be answered, and version 0 never is.
    let client = socket();
    for datagram in [offer(QUIC_V2, 1_199), offer(0, 1_200)] {
        client
            .send_to(&datagram, broker.quic())
            .expect("the loopback");
    }
    assert!(client.recv(&mut [0; 2048]).is_err());
}

#[test]
fn a_client_that_speaks_something_else_is_told_so() {
    let broker = Broker::start("");
    run(async {
        for protocol in [&b"h3"[..], b"mqttx"] {
            let endpoint = endpoint(socket())?;
            let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls(protocol))?;
            let config = quinn::ClientConfig::new(Arc::new(crypto));
            let connecting = endpoint.connect_with(config, broker.quic(), "localhost")?;
            let Err(quinn::ConnectionError::ConnectionClosed(close)) = connecting.await else {
                panic!("it is refused by the peer");
            };
            // no_application_protocol (RFC 9001 §8.1).
            assert_eq!(u64::from(close.error_code), 0x100 + 120);
        }
        Ok(())
    });
}

/// A broker whose chain of certificates is longer than what one datagram of a client allows.
fn with_a_long_chain(folder: &std::path::Path) -> Broker {
    certificate::write(folder);
    let chain = folder.join("chain.pem");
    let one = std::fs::read_to_string(folder.join(certificate::CHAIN)).expect("a certificate");
    std::fs::write(&chain, one.repeat(12)).expect("a file");
    let key = folder.join(certificate::KEY);
    Broker::start(&format!("[tls]\ncertificate = {chain:?}\nkey = {key:?}"))
}

/// Before an address is validated, three times as much goes there as came from it, not a byte more, for as long as
/// the broker tries.
#[test]
fn an_address_that_never_answers_gets_three_times_what_it_sent() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = with_a_long_chain(folder.path());
    run(async {
        let blocked = Conditions {
            blocked: Some(Way::Down),
            ..Conditions::default()
        };
        let relay = Relay::start(broker.quic(), blocked, 8);
        let endpoint = endpoint(socket())?;
        let connecting = endpoint.connect(relay.address(), "localhost")?;
        let bytes = |way| relay.recorded(way).iter().map(Vec::len).sum::<usize>();
        let waiting = tokio::time::timeout(Duration::from_secs(8), connecting);
        assert!(waiting.await.is_err(), "nothing reaches the client");
        // In this order: what comes in between does no harm.
        let down = bytes(Way::Down);
        let up = bytes(Way::Up);
        assert!(down > 0 && up > 0);
        assert!(down <= 3 * up, "{down} bytes for {up}");
        // With the way open the same chain gets through: the client's answers make room.
        let relay = Relay::start(broker.quic(), Conditions::default(), 9);
        Client::connect(&endpoint, relay.address(), "long chain").await?;
        Ok(())
    });
}

/// Somebody sends one datagram, sees all that comes, and never says anything new: another copy of it makes as much room again.
#[test]
fn one_datagram_is_answered_with_three_times_its_bytes() {
    const WHILE: Duration = Duration::from_secs(3);
    let folder = tempfile::tempdir().expect("a folder");
    let broker = with_a_long_chain(folder.path());
    run(async {
        let blocked = Conditions {
            blocked: Some(Way::Up),
            ..Conditions::default()
        };
        let relay = Relay::start(broker.quic(), blocked, 11);
        let endpoint = endpoint(socket())?;
        let connecting = endpoint.connect(relay.address(), "localhost")?;
        let first = loop {
            if let Some(first) = relay.recorded(Way::Up).into_iter().next() {
                break first;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        drop(connecting);
        let somebody = socket();
        let mut came = 0;
        for copies in 1..=2 {
            somebody.send_to(&first, broker.quic())?;
            let allowed = 3 * copies * first.len();
            // Its probes have no more room than its first answer.
            let end = Instant::now() + WHILE;
            while Instant::now() < end || came <= allowed - first.len() {
                came += somebody.recv(&mut [0; 2048]).unwrap_or(0);
                assert!(came <= allowed, "{came} bytes for {allowed} / 3");
                assert!(Instant::now() < end + PATIENCE, "{came} of {allowed}");
            }
        }
        Ok(())
    });
}

/// Ends of the process are for those who are connected: an address is told nothing that it did not ask for.
#[test]
fn nobody_is_answered_who_sends_garbage() {
    let broker = Broker::start("");
    let client = socket();
    for length in [1, 20, 21, 100, 1_200] {
        for first in [0x00, 0x40, 0x80, 0xc0, 0xe0, 0xff] {
            let mut datagram = vec![first; length];
            // A version that is spoken, where there is one.
            for (at, byte) in [0, 0, 0, 1].into_iter().enumerate() {
                if let Some(place) = datagram.get_mut(1 + at) {
                    *place = byte;
                }
            }
            let to: SocketAddr = broker.quic();
            client.send_to(&datagram, to).expect("the loopback");
        }
    }
    assert!(client.recv(&mut [0; 2048]).is_err());
    assert_eq!(broker.metrics().sum("headgate_connections{"), 0.0);
}

/// Waits until neither side has anything more to say.
async fn silence(relay: &Relay) {
    let said = || [Way::Up, Way::Down].map(|way| relay.recorded(way).len());
    let mut last = said();
    loop {
        tokio::time::sleep(Duration::from_millis(400)).await;
        let now = said();
        if now == last {
            return;
        }
        last = now;
    }
}

/// A device that has slept says something from behind another port or address. It hears the answer to that and needs
/// nothing else for it: what it sends after the first answer doesn't arrive.
#[test]
fn after_a_rebinding_an_answer_takes_one_round_trip() {
    let broker = Broker::start("");
    run(async {
        let relay = Relay::start(broker.quic(), Conditions::default(), 10);
        let endpoint = endpoint(socket())?;
        let mut client = Client::connect(&endpoint, relay.address(), "sleeper").await?;
        for turn in 0..4u8 {
            silence(&relay).await;
            relay.rebind(Ipv4Addr::new(127, 0, 0, 1 + turn / 2));
            relay.set(Conditions {
                one_flight: true,
                ..Conditions::default()
            });
            client.publish("own", QoS::AtLeastOnce, &[turn]).await?;
            let answer = client.receive().await?;
            assert!(matches!(answer, Packet::PubAck(_)), "{answer:?}");
            relay.set(Conditions::default());
            client.publish("own", QoS::AtLeastOnce, &[turn]).await?;
            client.receive().await?;
        }
        assert_eq!(
            broker.metrics().sum("headgate_connections_opened_total"),
            1.0
        );
        Ok(())
    });
}

#[test]
fn datagrams_grow_only_where_a_larger_path_mtu_is_looked_for() {
    run(async {
        for look in [false, true] {
            let broker = Broker::start(&format!("[quic]\nmtu_discovery = {look}"));
            let relay = Relay::start(broker.quic(), Conditions::default(), 11);
            let endpoint = endpoint(socket())?;
            let mut client = Client::connect(&endpoint, relay.address(), "bulk").await?;
            client.subscribe("own", QoS::AtLeastOnce).await?;
            let longest = || relay.recorded(Way::Down).iter().map(Vec::len).max();
            for _ in 0..20 {
                echo(&mut client, &"x".repeat(8_000)).await?;
                if longest() > Some(1_400) {
                    break;
                }
            }
            let longest = longest().ok_or("nothing was sent")?;
            assert_eq!(longest > 1_400, look, "{longest} bytes");
            assert!(look || longest <= 1_200, "{longest} bytes");
        }
        Ok(())
    });
}

/// Both directions carry marks, and the broker reports those that it gets: a client gives up marking where they are not
/// reported (RFC 9000 §13.4.2), and counts a congestion event where a router's mark is.
#[test]
fn marks_of_congestion_are_set_and_reported() {
    let broker = Broker::start("");
    run(async {
        let path = MarkedPath::start(broker.quic());
        let endpoint = endpoint(socket())?;
        let mut client = Client::connect(&endpoint, path.address, "marked").await?;
        client.subscribe("own", QoS::AtLeastOnce).await?;
        for turn in 0..10 {
            echo(&mut client, &format!("{turn}")).await?;
        }
        for way in [Way::Up, Way::Down] {
            let marks = path.marks(way);
            assert!(marks.len() >= 10, "{way:?}: {marks:?}");
            let last = &marks[marks.len() - 5..];
            assert!(
                last.iter().all(|mark| *mark == Some(EcnCodepoint::Ect0)),
                "{way:?}: {marks:?}"
            );
        }
        let connection = client.connection.clone();
        let events = || connection.stats().path.congestion_events;
        let before = events();
        path.congested.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + PATIENCE;
        while events() == before {
            assert!(Instant::now() < deadline, "no report of congestion");
            echo(&mut client, "congested").await?;
        }
        Ok(())
    });
}

/// What a datagram carries, one way.
type Mark = (Way, Option<EcnCodepoint>);

/// A path for one client that passes the marks in IP headers (RFC 3168 §5) on, notes them, and marks datagrams to the
/// broker as a router does that is congested.
struct MarkedPath {
    address: SocketAddr,
    congested: Arc<AtomicBool>,
    marks: Arc<Mutex<Vec<Mark>>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl MarkedPath {
    fn start(broker: SocketAddr) -> Self {
        let bind = || udp::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0).into(), &UdpOptions::default());
        let (inner, outer) = (bind().expect("a socket"), bind().expect("a socket"));
        let address = inner.local_addr().expect("a bound socket");
        let (congested, end) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let marks = Arc::<Mutex<Vec<Mark>>>::default();
        let shared = (Arc::clone(&congested), Arc::clone(&end), Arc::clone(&marks));
        let thread = thread::spawn(move || {
            let (congested, end, marks) = shared;
            let [mut from_client, mut from_broker] = [&inner, &outer].map(RecvBatch::new);
            let (mut up, mut down) = (SendBatch::new(), SendBatch::new());
            let mut client = None;
            while !end.load(Ordering::Relaxed) {
                let note = |way, mark| marks.lock().expect("no panic with it").push((way, mark));
                let pass = |batch: &mut SendBatch, to, data: &[u8], ecn| {
                    let size = data.len();
                    let transmit = Transmit {
                        destination: to,
                        ecn,
                        size,
                        segment_size: None,
                        src_ip: None,
                    };
                    batch.push(&transmit, data);
                };
                let mut waits = true;
                let read = from_client.recv(&inner, |datagram| {
                    waits = false;
                    client = Some(datagram.source);
                    note(Way::Up, datagram.ecn);
                    let marked = congested
                        .load(Ordering::Relaxed)
                        .then_some(EcnCodepoint::Ce);
                    pass(&mut up, broker, datagram.data, marked.or(datagram.ecn));
                });
                let _icmp = read;
                let read = from_broker.recv(&outer, |datagram| {
                    waits = false;
                    note(Way::Down, datagram.ecn);
                    if let Some(client) = client {
                        pass(&mut down, client, datagram.data, datagram.ecn);
                    }
                });
                let _icmp = read;
                up.flush(&outer).expect("a socket");
                down.flush(&inner).expect("a socket");
                if waits {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        });
        Self {
            address,
            congested,
            marks,
            end,
            thread: Some(thread),
        }
    }

    fn marks(&self, way: Way) -> Vec<Option<EcnCodepoint>> {
        let marks = self.marks.lock().expect("no panic with it");
        marks
            .iter()
            .filter(|(of, _)| *of == way)
            .map(|(_, mark)| *mark)
            .collect()
    }
}

impl Drop for MarkedPath {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}
