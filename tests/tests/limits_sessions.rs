//! Each limit of a session, hit on purpose from outside: the Reason Code that the client gets, and
//! the counter in /metrics.

use headgate_codec::{Packet, PacketId, Publish, QoS, ReasonCode};
use headgate_tests::{
    broker::Broker,
    tcp_client::{TcpClient, connect, publish},
};
use std::{
    thread,
    time::{Duration, Instant},
};

/// Waits until the counter of a limit has this value; counters are published once a second.
fn refused(broker: &Broker, limit: &str, expected: f64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let count = || {
        let metrics = broker.metrics();
        let of_worker = |worker| {
            metrics.get(&format!(
                "headgate_refused_total{{worker=\"{worker}\",limit=\"{limit}\"}}"
            ))
        };
        (0..2).filter_map(of_worker).sum::<f64>()
    };
    while count() != expected {
        assert!(
            Instant::now() < deadline,
            "{limit}: {} instead of {expected}",
            count()
        );
        thread::sleep(Duration::from_millis(50));
    }
}

/// A session that outlives its connection, with a subscription to `a`; then disconnected.
fn absent_subscriber(broker: &Broker) {
    let (mut client, reason) = TcpClient::try_connect(broker.tcp(), lasting("absent"));
    assert_eq!(reason, ReasonCode::SUCCESS);
    assert_eq!(
        client.subscribe(&["a"], QoS::AtLeastOnce),
        [ReasonCode::GRANTED_QOS_1]
    );
    client.send(&Packet::Disconnect(headgate_codec::Disconnect::default()));
    assert_eq!(client.receive(), None);
}

fn lasting(id: &str) -> headgate_codec::Connect {
    let mut connect = connect(id);
    connect.clean_start = false;
    connect.properties.session_expiry_s = Some(3600);
    connect
}

/// The absent subscriber comes back, and just what has these payload lengths has waited. Receive Maximum is far above.
fn waited(broker: &Broker, lengths: &[usize]) {
    let (mut client, reason) = TcpClient::try_connect(broker.tcp(), lasting("absent"));
    assert_eq!(reason, ReasonCode::SUCCESS);
    let mut came = Vec::new();
    while came.len() < lengths.len() {
        match client.receive() {
            Some(Packet::Publish(publish)) => came.push(publish.payload.len()),
            other => panic!("expected what waited, got {other:?} after {came:?}"),
        }
    }
    assert_eq!(came, lengths, "the oldest are kept");
    // Nothing else was in the queue.
    client.send(&Packet::PingReq);
    assert_eq!(client.receive(), Some(Packet::PingResp));
}

#[test]
fn subscriptions_per_session() {
    let broker = Broker::start("[limits]\nsubscriptions_per_session = 2");
    let mut client = TcpClient::connect(broker.tcp(), "greedy");
    let granted = ReasonCode::SUCCESS;
    assert_eq!(
        client.subscribe(&["a", "b", "c"], QoS::AtMostOnce),
        [granted, granted, ReasonCode::QUOTA_EXCEEDED]
    );
    // Replacing one needs no more room.
    assert_eq!(client.subscribe(&["a"], QoS::AtMostOnce), [granted]);
    refused(&broker, "subscriptions_per_session", 1.0);
    // Another session has its own limit.
    let mut other = TcpClient::connect(broker.tcp(), "modest");
    assert_eq!(other.subscribe(&["c"], QoS::AtMostOnce), [granted]);
}

#[test]
fn queued_messages_per_session() {
    let broker = Broker::start("[limits]\nqueued_messages_per_session = 5");
    absent_subscriber(&broker);
    let mut publisher = TcpClient::connect(broker.tcp(), "publisher");
    for length in 1..=8 {
        let reason = publisher.publish_acked(publish("a", QoS::AtLeastOnce, vec![b'x'; length]));
        assert!(reason.0 < 0x80, "{reason:?}");
    }
    refused(&broker, "queued_messages_per_session", 3.0);
    waited(&broker, &[1, 2, 3, 4, 5]);
    refused(&broker, "memory_per_connection_bytes", 0.0);
}

#[test]
fn memory_per_connection_bytes() {
    // With a store, what goes beyond a small part of it is on the disk.
    let config = "[limits]\nmemory_per_connection_bytes = 65536\npacket_bytes_max = 65536\n\
        [store]\nenabled = false";
    two_of_four_wait(config, "memory_per_connection_bytes");
}

#[test]
fn session_bytes_max() {
    two_of_four_wait("[store]\nsession_bytes_max = 65536", "session_bytes_max");
}

/// A queue has room for two of four large messages.
fn two_of_four_wait(config: &str, limit: &str) {
    let broker = Broker::start(config);
    absent_subscriber(&broker);
    let mut publisher = TcpClient::connect(broker.tcp(), "publisher");
    for _ in 0..4 {
        let reason = publisher.publish_acked(publish("a", QoS::AtLeastOnce, vec![b'x'; 30_000]));
        assert!(reason.0 < 0x80, "{reason:?}");
    }
    refused(&broker, limit, 2.0);
    waited(&broker, &[30_000, 30_000]);
    refused(&broker, "queued_messages_per_session", 0.0);
}

/// [MQTT-3.1.2-24] in the other direction: the server's Maximum Packet Size (§3.2.2.3.6).
#[test]
fn packet_bytes_max() {
    let broker = Broker::start("[limits]\npacket_bytes_max = 1024");
    let mut client = TcpClient::connect(broker.tcp(), "large");
    assert!(
        client
            .publish_acked(publish("a", QoS::AtLeastOnce, vec![b'x'; 1000]))
            .0
            < 0x80
    );
    client.send(&Packet::Publish(publish(
        "a",
        QoS::AtMostOnce,
        vec![b'x'; 1030],
    )));
    assert_eq!(client.disconnected(), ReasonCode::PACKET_TOO_LARGE);
    refused(&broker, "packet_bytes_max", 1.0);
}

/// [MQTT-3.3.4-7]
#[test]
fn receive_maximum() {
    let broker = Broker::start("[limits]\nreceive_maximum = 2");
    let mut client = TcpClient::connect(broker.tcp(), "eager");
    for id in 1..=3 {
        let packet_id = PacketId::new(id);
        client.send(&Packet::Publish(Publish {
            packet_id,
            ..publish("a", QoS::ExactlyOnce, "x")
        }));
    }
    // The first two are received; they stay open, because no PUBREL comes.
    for id in 1..=2 {
        match client.receive() {
            Some(Packet::PubRec(ack)) => assert_eq!(ack.packet_id.get(), id),
            other => panic!("expected PUBREC, got {other:?}"),
        }
    }
    assert_eq!(client.disconnected(), ReasonCode::RECEIVE_MAXIMUM_EXCEEDED);
    refused(&broker, "receive_maximum", 1.0);
}

#[test]
fn retained_messages() {
    let broker = Broker::start("[limits]\nretained_messages = 1");
    let mut client = TcpClient::connect(broker.tcp(), "archivist");
    let mut retain = |topic: &str, payload: &'static str| {
        let mut publish = publish(topic, QoS::AtLeastOnce, payload);
        publish.retain = true;
        client.publish_acked(publish)
    };
    assert!(retain("a", "first").0 < 0x80);
    assert_eq!(retain("b", "second"), ReasonCode::QUOTA_EXCEEDED);
    assert!(retain("a", "replaced").0 < 0x80);
    // An empty payload removes it and makes room [MQTT-3.3.1-6].
    assert!(retain("a", "").0 < 0x80);
    assert!(retain("b", "second").0 < 0x80);
    refused(&broker, "retained_messages", 1.0);
    refused(&broker, "retained_bytes", 0.0);
}

#[test]
fn retained_bytes() {
    let broker = Broker::start("[limits]\nretained_bytes = 10000");
    let mut client = TcpClient::connect(broker.tcp(), "archivist");
    let mut large = publish("a", QoS::AtLeastOnce, vec![b'x'; 20_000]);
    large.retain = true;
    assert_eq!(client.publish_acked(large), ReasonCode::QUOTA_EXCEEDED);
    refused(&broker, "retained_bytes", 1.0);
    refused(&broker, "retained_messages", 0.0);
}

#[test]
fn sessions_per_worker() {
    let broker = Broker::start("[node]\nworkers = 1\n[limits]\nsessions_per_worker = 1");
    let first = TcpClient::connect(broker.tcp(), "first");
    let (mut second, reason) = TcpClient::try_connect(broker.tcp(), connect("second"));
    assert_eq!(reason, ReasonCode::QUOTA_EXCEEDED);
    assert_eq!(second.receive(), None, "[MQTT-3.2.2-7]");
    refused(&broker, "sessions_per_worker", 1.0);
    drop(first);
}

/// [MQTT-3.1.3-8]
#[test]
fn client_id_bytes() {
    let broker = Broker::start("[limits]\nclient_id_bytes = 23");
    TcpClient::connect(broker.tcp(), &"x".repeat(23));
    let (mut client, reason) = TcpClient::try_connect(broker.tcp(), connect(&"x".repeat(24)));
    assert_eq!(reason, ReasonCode::CLIENT_IDENTIFIER_NOT_VALID);
    assert_eq!(client.receive(), None);
    refused(&broker, "client_id_bytes", 1.0);
}

#[test]
fn topic_levels() {
    let broker = Broker::start("[limits]\ntopic_levels = 3");
    let mut client = TcpClient::connect(broker.tcp(), "deep");
    assert_eq!(
        client.subscribe(&["a/b/c", "a/b/c/d"], QoS::AtMostOnce),
        [ReasonCode::SUCCESS, ReasonCode::QUOTA_EXCEEDED]
    );
    client.send(&Packet::Publish(publish("a/b/c/d", QoS::AtLeastOnce, "x")));
    assert_eq!(client.disconnected(), ReasonCode::TOPIC_NAME_INVALID);
}
