//! Floods that end in the kernel: live sessions and new connections while somebody sends as fast as it can.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use headgate_codec::{Packet, QoS};
use headgate_tests::broker::{Broker, Metrics, Settings, kernel_available};
use headgate_tests::flood::{PacketSocket, Random, frame_v4, mac, spoofed_initial};
use headgate_tests::netns::{self, Namespace, address, passing_xdp, veth};
use headgate_tests::quic_client::{Client, Error, endpoint};
use headgate_tests::skip;

const LIVE: usize = 1_000;
const SOCKETS: usize = 8;
/// New connections while the flood lasts.
const NEW: usize = 30;
/// Packets that are made before the flood and sent again and again.
const FRAMES: usize = 4_096;
const SERVER: &str = "10.77.0.1:14567";

struct Net {
    server: Namespace,
    clients: Namespace,
    attacker: Namespace,
}

impl Net {
    fn new() -> Self {
        let net = Self {
            server: Namespace::new("fsrv"),
            clients: Namespace::new("fcli"),
            attacker: Namespace::new("fatk"),
        };
        veth((&net.server, "s0"), (&net.clients, "c0"));
        veth((&net.server, "s1"), (&net.attacker, "a0"));
        address(&net.server, "s0", "10.77.0.1/24");
        address(&net.clients, "c0", "10.77.0.2/24");
        address(&net.server, "s1", "10.78.0.1/24");
        address(&net.attacker, "a0", "10.78.0.2/24");
        // Spoofed sources must reach user space if the kernel lets them pass.
        for name in ["all", "s1"] {
            let key = format!("net.ipv4.conf.{name}.rp_filter=0");
            let set = net.server.command("sysctl").args(["-qw", &key]).status();
            assert!(set.is_ok_and(|s| s.success()), "sysctl {key}");
        }
        net
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Sends spoofed Initials until it is told to stop; how many.
fn flood(server_mac: [u8; 6], stop: &AtomicBool) -> std::io::Result<u64> {
    let socket = PacketSocket::open("a0")?;
    let macs = (mac("a0")?, server_mac);
    let mut random = Random::new(0x5eed);
    let frames: Vec<_> = (0..FRAMES)
        .map(|_| {
            let payload = spoofed_initial(&mut random);
            frame_v4(&mut random, macs, [10, 78, 0, 1], 14567, &payload)
        })
        .collect();
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        for frame in &frames {
            socket.send(frame)?;
        }
        sent += frames.len() as u64;
    }
    Ok(sent)
}

/// Each live session sends itself a message and waits for it.
async fn everybody(clients: &mut [Client]) -> Result<(), Error> {
    for (index, client) in clients.iter_mut().enumerate() {
        let topic = format!("own/{index}");
        client.publish(&topic, QoS::AtMostOnce, b"alive").await?;
        match tokio::time::timeout(Duration::from_secs(20), client.receive()).await?? {
            Packet::Publish(publish) => assert_eq!(publish.payload, b"alive"[..]),
            other => return Err(format!("unexpected {other:?}").into()),
        }
    }
    Ok(())
}

/// Live sessions, then the flood, then messages of all of them and new connections.
async fn legitimate(flooding: &AtomicBool, ready: &AtomicBool) -> Result<Duration, Error> {
    let server: SocketAddr = SERVER.parse()?;
    let mut endpoints = Vec::new();
    for _ in 0..SOCKETS {
        endpoints.push(endpoint(UdpSocket::bind(("10.77.0.2", 0))?)?);
    }
    let mut live = Vec::new();
    for index in 0..LIVE {
        let endpoint = &endpoints[index % SOCKETS];
        let mut client = Client::connect(endpoint, server, &format!("live{index}")).await?;
        let topic = format!("own/{index}");
        client.subscribe(&topic, QoS::AtMostOnce).await?;
        live.push(client);
    }
    everybody(&mut live).await?;
    ready.store(true, Ordering::Release);
    while !flooding.load(Ordering::Acquire) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut slowest = Duration::ZERO;
    for index in 0..NEW {
        let begun = Instant::now();
        // A socket of its own: no token of an earlier connection.
        let endpoint = endpoint(UdpSocket::bind(("10.77.0.2", 0))?)?;
        let client = Client::connect(&endpoint, server, &format!("new{index}")).await?;
        slowest = slowest.max(begun.elapsed());
        drop(client);
    }
    everybody(&mut live).await?;
    for client in &live {
        assert!(
            client.connection.close_reason().is_none(),
            "a session was lost"
        );
    }
    Ok(slowest)
}

/// Initials without a valid token, by what became of them.
struct Unvalidated {
    passed: f64,
    answered: f64,
    dropped: f64,
}

impl Unvalidated {
    fn between(before: &Metrics, after: &Metrics) -> Self {
        let delta = |series: &str| after.sum(series) - before.sum(series);
        let drops = |reason: &str| {
            delta(&format!(
                r#"headgate_kernel_drops_total{{reason="{reason}""#
            ))
        };
        Self {
            passed: delta(r#"headgate_kernel_passes_total{reason="initial""#),
            answered: delta("headgate_kernel_answers_total"),
            dropped: drops("retry_budget")
                + drops("initial_global_budget")
                + drops("initial_prefix_budget"),
        }
    }
}

#[test]
fn a_flood_of_spoofed_initials_reaches_no_socket_and_keeps_nobody_out() {
    if let Some(reason) = netns::available().and_then(|()| kernel_available()).err() {
        skip!("{reason}");
    }
    let net = Net::new();
    let _peers = (
        passing_xdp(&net.clients, "c0"),
        passing_xdp(&net.attacker, "a0"),
    );
    let broker = Broker::start_with(Settings {
        namespace: Some(net.server.name().to_owned()),
        config: r#"
            [node]
            workers = 2
            [listen]
            quic = "0.0.0.0:14567"
            [kernel]
            mode = "native"
            interfaces = ["s0", "s1"]
            retry = "always"
        "#
        .to_owned(),
        ..Settings::default()
    });
    let server_mac = net
        .server
        .enter(|| mac("s1"))
        .join()
        .expect("no panic")
        .expect("a MAC address");
    let [flooding, ready, stop] = [(); 3].map(|()| Arc::new(AtomicBool::new(false)));
    let fleet = net.clients.enter({
        let (flooding, ready) = (Arc::clone(&flooding), Arc::clone(&ready));
        move || {
            let result = runtime().block_on(legitimate(&flooding, &ready));
            ready.store(true, Ordering::Release);
            result.map_err(|error| error.to_string())
        }
    });
    while !ready.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let before = broker.metrics();
    let attack = net.attacker.enter({
        let stop = Arc::clone(&stop);
        move || flood(server_mac, &stop)
    });
    flooding.store(true, Ordering::Release);
    let fleet = fleet.join().expect("no panic");
    stop.store(true, Ordering::Relaxed);
    let sent = attack.join().expect("no panic").expect("the flood is sent") as f64;
    let slowest = fleet.unwrap_or_else(|error| panic!("{error}\n{}", broker.log()));
    // What is in the veth's queue is seen within a moment.
    let deadline = Instant::now() + Duration::from_secs(20);
    let seen = loop {
        let seen = Unvalidated::between(&before, &broker.metrics());
        if seen.answered + seen.dropped + seen.passed >= sent || Instant::now() > deadline {
            break seen;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    println!("{sent} spoofed Initials; the slowest of {NEW} connections took {slowest:?}");
    assert_eq!(seen.passed, 0.0, "none reached a socket");
    let judged = seen.answered + seen.dropped;
    // Each new connection was asked for its address as well, some more than once.
    assert!(
        judged >= sent + NEW as f64 && judged <= sent + 20.0 * NEW as f64,
        "{judged} of {sent} were judged"
    );
    assert!(sent > 10_000.0, "a flood: {sent}");
}
