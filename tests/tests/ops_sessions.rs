//! What `headgate ctl session show` says of a client: what it holds, and what has gone over its connection. And what
//! becomes of the sessions of a worker that is stuck.

use headgate_codec::{ConnectProperties, Packet, PacketId, QoS, ReasonCode};
use headgate_tests::{
    broker::Broker,
    quic_client::{self, Client},
    stuck::{StuckWorker, client_of},
    tcp_client::{TcpClient, connect, publish},
};
use serde_json::{Value, json};
use std::net::UdpSocket;

fn show(broker: &Broker, id: &str) -> Value {
    let text = broker.ctl_says(&["session", "show", id, "--json"]);
    serde_json::from_str(&text).expect("JSON")
}

/// A client that keeps its session for an hour.
fn lasting(broker: &Broker, id: &str) -> TcpClient {
    let mut connect = connect(id);
    connect.properties = ConnectProperties {
        session_expiry_s: Some(3_600),
        ..ConnectProperties::default()
    };
    let (client, reason) = TcpClient::try_connect(broker.tcp(), connect);
    assert_eq!(reason, ReasonCode::SUCCESS);
    client
}

#[test]
fn packets_and_bytes_of_a_tcp_connection_are_exact() {
    let broker = Broker::start("");
    let mut client = TcpClient::connect(broker.tcp(), "plain");
    client.subscribe(&["a", "b/#"], QoS::AtLeastOnce);
    let before = show(&broker, "plain");
    assert_eq!(before["connected"], true);
    assert_eq!(before["protocol"], "5.0");
    assert_eq!(before["quota_class"], "default");
    let expected = json!([{ "filter": "a", "qos": 1 }, { "filter": "b/#", "qos": 1 }]);
    assert_eq!(before["subscriptions"], expected);
    // A PUBLISH of 2 + 2 + 1 + 1 + 4 bytes comes back as it was.
    for _ in 0..10 {
        client.send(&Packet::Publish(publish("a", QoS::AtMostOnce, "1234")));
        assert!(matches!(client.receive(), Some(Packet::Publish(_))));
    }
    let after = show(&broker, "plain");
    let grown = |what: &str| {
        let of = |shown: &Value| shown["connection"][what].as_u64().expect("a number");
        of(&after) - of(&before)
    };
    assert_eq!((grown("packets_received"), grown("packets_sent")), (10, 10));
    assert_eq!((grown("bytes_received"), grown("bytes_sent")), (100, 100));
    assert_eq!(after["connection"]["transport"], "tcp");
    assert_eq!(after["connection"]["quic"], Value::Null);
    let text = broker.ctl_says(&["session", "show", "plain"]);
    assert!(
        text.starts_with("plain: connected over tcp from 127.0.0.1:"),
        "{text}"
    );
    assert!(text.contains("b/# (QoS 1)"), "{text}");
}

#[test]
fn a_queue_and_its_memory_are_counted_while_the_client_is_away() {
    let broker = Broker::start("");
    let mut away = lasting(&broker, "away");
    away.subscribe(&["q"], QoS::AtLeastOnce);
    drop(away);
    let mut publisher = TcpClient::connect(broker.tcp(), "publisher");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while show(&broker, "away")["connected"] == true {
        assert!(std::time::Instant::now() < deadline, "it is away");
    }
    let empty = show(&broker, "away");
    let payload = "x".repeat(1_000);
    for number in 1..=5 {
        let mut message = publish("q", QoS::AtLeastOnce, payload.clone());
        message.packet_id = PacketId::new(number);
        publisher.send(&Packet::Publish(message));
        assert!(matches!(publisher.receive(), Some(Packet::PubAck(_))));
    }
    let full = show(&broker, "away");
    assert_eq!(full["connection"], Value::Null);
    let waiting = |shown: &Value| {
        let of = |what: &str| shown["queue"][what].as_u64().expect("a number");
        of("qos1_2") + of("in_store")
    };
    assert_eq!((waiting(&empty), waiting(&full)), (0, 5));
    let bytes = |shown: &Value| {
        let of = |what: &str| shown["queue"][what].as_u64().expect("a number");
        of("bytes") + of("in_store_bytes")
    };
    assert!(bytes(&full) >= 5_000, "{full:#}");
    let memory = full["memory"]["session_bytes"].as_u64();
    assert!(memory >= full["queue"]["bytes"].as_u64(), "{full:#}");
    let left = full["ends_in_s"].as_u64().expect("it ends");
    assert!((3_500..=3_600).contains(&left), "{left}");
    let text = broker.ctl_says(&["session", "show", "away"]);
    assert!(text.starts_with("away: away, worker "), "{text}");
}

#[test]
fn the_path_of_a_quic_connection_is_shown() {
    let broker = Broker::start("");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let socket = UdpSocket::bind(("127.0.0.1", 0)).expect("a socket");
        let endpoint = quic_client::endpoint(socket).expect("an endpoint");
        let client = Client::connect(&endpoint, broker.quic(), "quick").await;
        let _client = client.expect("it is let in");
        let shown = show(&broker, "quick");
        let path = &shown["connection"]["quic"];
        assert_eq!(shown["connection"]["transport"], "quic");
        assert!(path["mtu"].as_u64() >= Some(1_200), "{shown:#}");
        assert!(path["rtt_us"].as_u64() > Some(0), "{shown:#}");
        assert!(path["datagrams_received"].as_u64() >= Some(2), "{shown:#}");
        let memory = shown["memory"]["connection_bytes"].as_u64();
        assert!(memory > Some(1_000), "{shown:#}");
        let text = broker.ctl_says(&["session", "show", "quick"]);
        assert!(text.contains("0 data streams"), "{text}");
    });
}

#[test]
fn nobody_is_told_apart_from_somebody() {
    let broker = Broker::start("");
    let output = broker.ctl(&["session", "show", "nobody"]);
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains("there is no session of a client `nobody`"),
        "{error}"
    );
}

/// Its clients wait; nobody else does, and nothing that has to be kept is acknowledged before it is.
#[test]
fn a_worker_that_is_stuck_holds_up_its_own_clients_alone() {
    let broker = Broker::start("");
    let mut lasting = connect("far");
    lasting.properties.session_expiry_s = Some(3_600);
    let mut far = client_of(&broker, 1, &lasting);
    far.subscribe(&["far"], QoS::AtLeastOnce);
    let [mut publisher, mut other, mut near] =
        ["publisher", "other", "near"].map(|id| client_of(&broker, 0, &connect(id)));
    near.subscribe(&["near"], QoS::AtMostOnce);
    let stuck = StuckWorker::stop(&broker, 1);
    let numbered = |topic, number: u16| {
        let mut message = publish(topic, QoS::AtLeastOnce, number.to_string());
        message.packet_id = PacketId::new(number);
        message
    };
    for number in 1..=20 {
        publisher.send(&Packet::Publish(numbered("far", number)));
    }
    for number in 1..=100 {
        let reason = other.publish_acked(numbered("near", number));
        assert_eq!(reason, ReasonCode::SUCCESS);
        assert!(matches!(near.receive(), Some(Packet::Publish(_))));
    }
    let socket = publisher.stream();
    socket.set_nonblocking(true).expect("it is a socket");
    let early = socket.peek(&mut [0]).expect_err("no PUBACK yet");
    assert_eq!(early.kind(), std::io::ErrorKind::WouldBlock);
    socket.set_nonblocking(false).expect("it is a socket");
    stuck.go_on();
    for number in 1..=20 {
        let Some(Packet::PubAck(ack)) = publisher.receive() else {
            panic!("PUBACK expected")
        };
        assert_eq!(
            (ack.packet_id.get(), ack.reason),
            (number, ReasonCode::SUCCESS)
        );
        let Some(Packet::Publish(message)) = far.receive() else {
            panic!("PUBLISH expected")
        };
        assert_eq!(message.payload, number.to_string());
    }
}
