//! The main job from outside: 500 QUIC connections from 8 sockets over veth in native mode, four
//! workers, sockets that change under the connections, and a spoofed flood at the same time.

use headgate_codec::{Packet, QoS};
use headgate_tests::{
    broker::{Broker, Settings, kernel_available},
    flood::{PacketSocket, Random, forged_short_header, frame_v4, mac, spoofed_initial},
    netns::{self, Namespace, address, veth},
    quic_client::{Client, Error, endpoint},
    skip,
};
use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

const CONNECTIONS: usize = 500;
const SOCKETS: usize = 8;
const WORKERS: usize = 4;
const FLOOD_INITIALS: u64 = 60_000;
const FLOOD_FORGED: u64 = 60_000;

/// The namespaces: the broker's, the clients', the attacker's.
struct Net {
    server: Namespace,
    clients: Namespace,
    attacker: Namespace,
}

impl Net {
    fn new() -> Self {
        let net = Self {
            server: Namespace::new("srv"),
            clients: Namespace::new("cli"),
            attacker: Namespace::new("atk"),
        };
        veth((&net.server, "s0"), (&net.clients, "c0"));
        veth((&net.server, "s1"), (&net.attacker, "a0"));
        address(&net.server, "s0", "10.77.0.1/24");
        address(&net.server, "s0", "fd77::1/64");
        address(&net.server, "s1", "10.78.0.1/24");
        for last in ["2", "3"] {
            address(&net.clients, "c0", &format!("10.77.0.{last}/24"));
            address(&net.clients, "c0", &format!("fd77::{last}/64"));
        }
        address(&net.attacker, "a0", "10.78.0.2/24");
        // Spoofed sources must reach user space if the kernel lets them pass.
        for name in ["all", "s1"] {
            let key = format!("net.ipv4.conf.{name}.rp_filter=0");
            let set = net.server.command("sysctl").args(["-qw", &key]).status();
            assert!(set.is_ok_and(|s| s.success()), "sysctl {key}");
        }
        net
    }

    fn broker(&self, mode: &str, steering: &str) -> Broker {
        Broker::start_with(Settings {
            namespace: Some(self.server.name().to_owned()),
            config: format!(
                r#"
                [node]
                workers = {WORKERS}
                [listen]
                quic = "[::]:14567"
                tcp = "[::]:1883"
                udp_gro = "false"
                [kernel]
                mode = "{mode}"
                interfaces = ["s0", "s1"]
                steering = "{steering}"
                "#
            ),
            ..Settings::default()
        })
    }
}

/// Everybody sends its neighbour one message with QoS 1 and gets one.
async fn exchange(clients: &mut [Client], round: usize) -> Result<(), Error> {
    let count = clients.len();
    for (index, client) in clients.iter_mut().enumerate() {
        let topic = format!("to/{}", (index + 1) % count);
        client
            .publish(
                &topic,
                QoS::AtLeastOnce,
                format!("{round} {index}").as_bytes(),
            )
            .await?;
    }
    // Everybody waits for both: its PUBACK and its neighbour's message.
    for (index, client) in clients.iter_mut().enumerate() {
        let expected = format!("{round} {}", (index + count - 1) % count);
        let (mut acknowledged, mut received) = (false, false);
        while !(acknowledged && received) {
            let packet = tokio::time::timeout(Duration::from_secs(20), client.receive())
                .await
                .map_err(|_| format!("client {index} waits for {expected:?} in round {round}"))??;
            match packet {
                Packet::PubAck(_) => acknowledged = true,
                Packet::Publish(publish) => {
                    assert_eq!(publish.payload, expected.as_bytes(), "client {index}");
                    received = true;
                    if let Some(packet_id) = publish.packet_id {
                        client.acknowledge(packet_id).await?;
                    }
                }
                other => return Err(format!("unexpected {other:?}").into()),
            }
        }
    }
    Ok(())
}

/// Connects everybody, exchanges messages, rebinds three times to new ports and once to a new
/// address, exchanging messages after each. `connected` is set in between.
async fn fleet(
    (first, second): (&str, &str),
    server: SocketAddr,
    connected: Arc<AtomicBool>,
    flooded: Arc<AtomicBool>,
) -> Result<(), Error> {
    let mut endpoints = Vec::new();
    for _ in 0..SOCKETS {
        endpoints.push(endpoint(UdpSocket::bind((first, 0))?)?);
    }
    let mut clients = Vec::new();
    for index in 0..CONNECTIONS {
        let mut client =
            Client::connect(&endpoints[index % SOCKETS], server, &format!("c{index}")).await?;
        client
            .subscribe(&format!("to/{index}"), QoS::AtLeastOnce)
            .await?;
        clients.push(client);
    }
    exchange(&mut clients, 0).await?;
    connected.store(true, Ordering::Release);
    for (round, address) in [(1, first), (2, first), (3, first), (4, second)] {
        for endpoint in &endpoints {
            endpoint.rebind(UdpSocket::bind((address, 0))?)?;
        }
        exchange(&mut clients, round).await?;
    }
    // Live messages until the flood is over, so that both overlap for sure.
    let mut round = 5;
    while !flooded.load(Ordering::Acquire) {
        exchange(&mut clients, round).await?;
        round += 1;
    }
    for client in &clients {
        assert!(
            client.connection.close_reason().is_none(),
            "a connection was lost"
        );
    }
    Ok(())
}

/// Sends a counted flood to the server's second interface and says what it sent.
fn flood(server_mac: [u8; 6]) -> std::io::Result<()> {
    let socket = PacketSocket::open("a0")?;
    let macs = (mac("a0")?, server_mac);
    let mut random = Random::new(0x5eed);
    for index in 0..FLOOD_INITIALS.max(FLOOD_FORGED) {
        if index < FLOOD_INITIALS {
            let payload = spoofed_initial(&mut random);
            socket.send(&frame_v4(
                &mut random,
                macs,
                [10, 78, 0, 1],
                14567,
                &payload,
            ))?;
        }
        if index < FLOOD_FORGED {
            let payload = forged_short_header(&mut random, 60);
            socket.send(&frame_v4(
                &mut random,
                macs,
                [10, 78, 0, 1],
                14567,
                &payload,
            ))?;
        }
    }
    Ok(())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Why this machine can't run these tests.
fn unavailable() -> Option<String> {
    netns::available().and_then(|()| kernel_available()).err()
}

fn steered(mode: &str, steering: &str, v6: bool) {
    let net = Net::new();
    let broker = net.broker(mode, steering);
    let status = broker.status();
    let server_mac = net
        .server
        .enter(|| mac("s1"))
        .join()
        .expect("no panic")
        .expect("a MAC address");

    let connected = Arc::new(AtomicBool::new(false));
    let flooded = Arc::new(AtomicBool::new(false));
    let (addresses, server) = if v6 {
        (("fd77::2", "fd77::3"), "[fd77::1]:14567")
    } else {
        (("10.77.0.2", "10.77.0.3"), "10.77.0.1:14567")
    };
    let server: SocketAddr = server.parse().expect("an address");
    let fleet = net.clients.enter({
        let (connected, flooded) = (Arc::clone(&connected), Arc::clone(&flooded));
        move || {
            let result =
                runtime().block_on(fleet(addresses, server, Arc::clone(&connected), flooded));
            connected.store(true, Ordering::Release);
            result.map_err(|e| e.to_string())
        }
    });
    while !connected.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let before = broker.metrics();
    let flooding = net
        .attacker
        .enter(move || flood(server_mac))
        .join()
        .expect("no panic");
    // What is in the veth's queue is seen within a moment.
    std::thread::sleep(Duration::from_millis(500));
    let after = broker.metrics();
    flooded.store(true, Ordering::Release);
    flooding.expect("the flood was sent");
    fleet.join().expect("no panic").expect("nothing was lost");

    let delta = |series: &str| after.sum(series) - before.sum(series);
    let forged = delta(r#"headgate_kernel_drops_total{reason="forged_cid"#);
    assert_eq!(
        forged, FLOOD_FORGED as f64,
        "each forged packet was dropped in the kernel"
    );
    let initials = delta(r#"headgate_kernel_drops_total{reason="initial"#)
        + delta(r#"headgate_kernel_passes_total{reason="initial"#)
        + delta(r#"headgate_kernel_drops_total{reason="retry_budget"#)
        + delta("headgate_kernel_answers_total");
    assert_eq!(
        initials, FLOOD_INITIALS as f64,
        "each spoofed Initial was counted once"
    );
    let after = broker.metrics();
    let wrong = after.sum("headgate_datagrams_wrong_worker_total");
    if steering == "cpumap" {
        // The kernel's own hash of addresses picks the socket: the workers hand over, and nothing is lost.
        assert!(
            wrong > 1000.0,
            "without sk_reuseport packets arrive at wrong sockets: {wrong}"
        );
        assert_eq!(after.sum("headgate_datagrams_handed_over_total"), wrong);
    } else {
        assert_eq!(wrong, 0.0, "every packet came to its owner's socket");
    }
    for worker in 0..WORKERS {
        let label = format!(r#"headgate_datagrams_received_total{{worker="{worker}"}}"#);
        assert!(
            after.sum(&label) > 1000.0,
            "worker {worker} has had its share: {status}"
        );
    }
    let redirected = after.sum("headgate_kernel_redirected_total");
    if mode == "generic" || steering == "reuseport" {
        assert_eq!(redirected, 0.0, "CPUMAP is off");
    } else {
        assert!(redirected > 1000.0, "CPUMAP steers: {redirected}");
    }
}

#[test]
fn every_packet_reaches_its_worker_with_cpumap_and_reuseport() {
    if let Some(reason) = unavailable() {
        skip!("{reason}");
    }
    steered("native", "auto", false);
}

#[test]
fn every_packet_reaches_its_worker_with_reuseport_alone() {
    if let Some(reason) = unavailable() {
        skip!("{reason}");
    }
    steered("native", "reuseport", true);
}

#[test]
fn workers_hand_over_what_cpumap_alone_brings_to_the_wrong_socket() {
    if let Some(reason) = unavailable() {
        skip!("{reason}");
    }
    steered("native", "cpumap", true);
}

#[test]
fn every_packet_reaches_its_worker_in_generic_mode() {
    if let Some(reason) = unavailable() {
        skip!("{reason}");
    }
    steered("generic", "auto", false);
}
