//! QUIC by two stacks that have nothing to do with the broker's, quiche and s2n-quic: what `clients_quic` does with aioquic and
//! `quic_transport` with quinn. Their programs take minutes to compile, so that is left to `cargo xtask test --full`.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use headgate_tests::{
    broker::Broker,
    relay::{Conditions, Relay, Way},
    skip,
    stacks::{Program, Stack},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Enough messages, each with a packet of its own, for the broker to change its keys: quinn-proto does so the first time after
/// 10 to 1,000 packets.
const KEY_UPDATE_MESSAGES: u32 = 1_200;

#[test]
fn handshakes_with_and_without_retry() {
    if let Some(reason) = Stack::unavailable() {
        skip!("{reason}");
    }
    for (retry, retries) in [("never", 0.0), ("always", 1.0)] {
        for stack in Stack::ALL {
            let broker = Broker::start(&format!("[kernel]\nmode = \"off\"\nretry = \"{retry}\""));
            let mut client = Program::start(stack, &broker, broker.quic());
            client.does(&["dial mqtt", "session", "echo 5", "burst 50", "end"]);
            broker.counts_from("headgate_connections_opened_total", 1.0);
            broker.counts_from("headgate_retries_total", retries);
        }
    }
}

#[test]
fn what_is_not_spoken_is_refused() {
    if let Some(reason) = Stack::unavailable() {
        skip!("{reason}");
    }
    let broker = Broker::start("");
    for stack in Stack::ALL {
        let mut client = Program::start(stack, &broker, broker.quic());
        // no_application_protocol (RFC 9001 §8.1).
        assert_eq!(client.says("dial h3"), "closed 0x178", "{stack}");
        client.does(&["dial mqtt", "session", "end"]);
    }
    // Version negotiation (RFC 9000 §6). s2n-quic can't be made to offer anything else than version 1.
    let mut client = Program::start(Stack::Quiche, &broker, broker.quic());
    client.does(&["version", "session", "echo 5", "end"]);
}

/// s2n-quic takes no tickets with rustls.
#[test]
fn sessions_of_tls_are_resumed() {
    if let Some(reason) = Stack::unavailable() {
        skip!("{reason}");
    }
    let broker = Broker::start("");
    let mut client = Program::start(Stack::Quiche, &broker, broker.quic());
    client.does(&["dial mqtt", "session", "echo 5"]);
    assert!(!client.facts().contains(&"resumed".to_owned()));
    client.does(&["end", "dial mqtt", "session", "echo 5"]);
    assert!(client.facts().contains(&"resumed".to_owned()));
    client.does(&["end"]);
}

/// The whole first flight of a client that is not quinn is recorded, and sent again from elsewhere.
#[test]
fn early_data_is_taken_once() {
    if let Some(reason) = Stack::unavailable() {
        skip!("{reason}");
    }
    let broker = Broker::start("");
    let relay = Relay::start(broker.quic(), Conditions::default(), 1);
    let mut client = Program::start(Stack::Quiche, &broker, relay.address());
    client.does(&["dial mqtt", "session", "echo 5", "end"]);
    relay.forget();
    client.does(&["early"]);
    assert!(client.facts().contains(&"early".to_owned()));
    client.does(&["end"]);
    broker.counts_from("headgate_early_connections_total", 1.0);
    // The client is gone when it is done.
    broker.counts_from("headgate_connections_closed_total", 2.0);
    let before = broker.metrics();
    let recorded = relay.recorded(Way::Up);
    let flight: Vec<_> = recorded.iter().filter(|d| d[0] & 0x80 != 0).collect();
    let attacker = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    let deadline = Instant::now() + PATIENCE;
    let handshakes = "headgate_handshakes_total";
    // For a while the packets are duplicates of a connection that is remembered.
    while broker.metrics().sum(handshakes) == before.sum(handshakes) {
        assert!(Instant::now() < deadline, "it begins another handshake");
        for datagram in &flight {
            let sent = attacker.send_to(datagram, broker.quic());
            sent.expect("the loopback");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let now = broker.metrics();
    for same in [
        "headgate_early_connections_total",
        "headgate_connects_accepted_total",
        "headgate_messages_received_total",
    ] {
        assert_eq!(now.sum(same), before.sum(same), "{same}");
    }
}

#[test]
fn other_ports_and_addresses_are_followed() {
    if let Some(reason) = Stack::unavailable() {
        skip!("{reason}");
    }
    let broker = Broker::start("");
    // A client that knows of it, with another connection ID each time.
    let mut client = Program::start(Stack::Quiche, &broker, broker.quic());
    client.does(&["dial mqtt", "session"]);
    for address in ["127.0.0.1", "127.0.0.2", "127.0.0.3"] {
        client.does(&[&format!("move {address}"), "echo 5"]);
    }
    client.does(&["end"]);
    // A NAT, of which the client knows nothing.
    for stack in Stack::ALL {
        let relay = Relay::start(broker.quic(), Conditions::default(), 2);
        let mut client = Program::start(stack, &broker, relay.address());
        client.does(&["dial mqtt", "session"]);
        for turn in 0..6u8 {
            relay.rebind(Ipv4Addr::new(127, 0, 0, 1 + turn / 2));
            client.does(&["echo 3"]);
        }
        client.does(&["end"]);
    }
    broker.counts_from("headgate_connections_opened_total", 3.0);
}

#[test]
fn loss_and_reordering_lose_no_message() {
    if let Some(reason) = Stack::unavailable() {
        skip!("{reason}");
    }
    let broker = Broker::start("");
    for stack in Stack::ALL {
        for (seed, lost_per_mille) in [(3, 10), (4, 50), (5, 150)] {
            let conditions = Conditions {
                delay: Duration::from_millis(5),
                lost_per_mille,
                late_per_mille: 100,
                ..Conditions::default()
            };
            let relay = Relay::start(broker.quic(), conditions, seed);
            let mut client = Program::start(stack, &broker, relay.address());
            client.does(&["dial mqtt", "session", "echo 20", "burst 50"]);
        }
    }
}

/// The broker changes its keys, and the clients go along. s2n-quic marks its packets with ECT(0), and says whether the broker's
/// counts of the marks (RFC 9000 §13.4.2) are as they have to be.
#[test]
fn key_updates_and_ecn() {
    if let Some(reason) = Stack::unavailable() {
        skip!("{reason}");
    }
    let broker = Broker::start("");
    for stack in Stack::ALL {
        let mut client = Program::start(stack, &broker, broker.quic());
        let echo = format!("echo {KEY_UPDATE_MESSAGES}");
        client.does(&["dial mqtt", "session", &echo]);
        let facts = client.facts();
        let updates = facts.iter().find_map(|fact| fact.strip_prefix("keys="));
        let updates: u32 = updates.and_then(|n| n.parse().ok()).expect("a number");
        assert!(updates > 0, "{stack}: {facts:?}");
        assert!(
            stack != Stack::S2n || facts.contains(&"ecn".to_owned()),
            "{facts:?}"
        );
        client.does(&["echo 5", "end"]);
    }
}

#[test]
fn a_restart_is_told_with_the_next_packet() {
    if let Some(reason) = Stack::unavailable() {
        skip!("{reason}");
    }
    let mut broker = Broker::start("");
    let mut clients = Stack::ALL.map(|stack| Program::start(stack, &broker, broker.quic()));
    for client in &mut clients {
        client.does(&["dial mqtt", "session", "echo 5"]);
    }
    broker.kill();
    broker.restart();
    for client in &mut clients {
        assert_eq!(client.says("wait"), "reset", "{client:?}");
    }
}

/// Messages and acknowledgements stay on the stream of their subscription, and datagrams come in datagrams.
#[test]
fn streams_and_datagrams() {
    if let Some(reason) = Stack::unavailable() {
        skip!("{reason}");
    }
    let broker = Broker::start("");
    for stack in Stack::ALL {
        let mut client = Program::start(stack, &broker, broker.quic());
        client.does(&["dial mqtt", "session", "streams 2", "datagrams 20"]);
        // With the first data stream comes credit for more than three.
        client.does(&["streams 5", "end"]);
    }
    broker.counts_from("headgate_data_streams_opened_total", 14.0);
    broker.counts_from("headgate_publish_datagrams_sent_total", 40.0);
}
