//! What a broker that was killed still knows when it is started again.

use headgate_codec::{Ack, Connect, Packet, Publish, QoS, ReasonCode};
use headgate_tests::{
    broker::{Broker, Settings},
    tcp_client::{TcpClient, connect, publish},
};
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::Builder::new()
        .prefix("headgate-store-")
        .tempdir()
        .expect("a folder for the state")
}

fn start(state_dir: &Path, config: &str) -> Broker {
    Broker::start_with(Settings {
        config: config.to_owned(),
        state_dir: Some(state_dir.to_owned()),
        ..Settings::default()
    })
}

/// A session that outlives its connection.
fn persistent(id: &str) -> Connect {
    let mut connect = connect(id);
    connect.clean_start = false;
    connect.properties.session_expiry_s = Some(3_600);
    connect
}

/// Connects, and says whether the server had the session.
fn resume(broker: &Broker, id: &str) -> (TcpClient, bool) {
    let mut client = TcpClient::open(broker.tcp(), headgate_codec::Version::V5);
    client.send(&Packet::Connect(Box::new(persistent(id))));
    match client.receive() {
        Some(Packet::ConnAck(ack)) if ack.reason == ReasonCode::SUCCESS => {
            (client, ack.session_present)
        }
        other => panic!("expected CONNACK, got {other:?}"),
    }
}

fn received(client: &mut TcpClient) -> Publish {
    match client.receive() {
        Some(Packet::Publish(publish)) => publish,
        other => panic!("expected PUBLISH, got {other:?}"),
    }
}

fn acknowledge(client: &mut TcpClient, publish: &Publish) {
    client.send(&Packet::PubAck(Ack {
        packet_id: publish.packet_id.expect("it has QoS 1"),
        reason: ReasonCode::SUCCESS,
        properties: None,
    }));
}

fn kill(mut broker: Broker) {
    broker.signal(nix::sys::signal::Signal::SIGKILL);
    let _killed = broker.wait();
}

fn queue_one(broker: &Broker, topic: &str, payload: &'static str) {
    let mut publisher = TcpClient::connect(broker.tcp(), "publisher");
    let reason = publisher.publish_acked(publish(topic, QoS::AtLeastOnce, payload));
    assert_eq!(reason, ReasonCode::SUCCESS);
}

#[test]
fn a_queued_message_and_the_subscription_outlive_a_kill_at_every_level() {
    for fsync in ["always", "interval", "never"] {
        let state = folder();
        let config = format!("[store]\nfsync = \"{fsync}\"");
        let broker = start(state.path(), &config);
        let (mut subscriber, present) = resume(&broker, "s");
        assert!(!present);
        subscriber.subscribe(&["a/#"], QoS::AtLeastOnce);
        drop(subscriber);
        queue_one(&broker, "a/b", "kept");
        kill(broker);

        let broker = start(state.path(), &config);
        let (mut subscriber, present) = resume(&broker, "s");
        assert!(present, "{fsync}");
        let message = received(&mut subscriber);
        assert_eq!(
            (message.topic.as_str(), &message.payload[..]),
            ("a/b", &b"kept"[..])
        );
        acknowledge(&mut subscriber, &message);
        queue_one(&broker, "a/c", "later");
        assert_eq!(&received(&mut subscriber).payload[..], b"later");
        kill(broker);

        // What was acknowledged is gone, what wasn't comes again.
        let broker = start(state.path(), &config);
        let (mut subscriber, _) = resume(&broker, "s");
        let message = received(&mut subscriber);
        assert_eq!(
            (&message.payload[..], message.dup),
            (&b"later"[..], true),
            "{fsync}"
        );
    }
}

#[test]
fn retained_messages_outlive_a_kill_until_they_are_removed() {
    let state = folder();
    let retain = |payload: &'static str| {
        let mut message = publish("r/1", QoS::AtLeastOnce, payload);
        message.retain = true;
        message
    };
    let broker = start(state.path(), "");
    let mut publisher = TcpClient::connect(broker.tcp(), "publisher");
    assert_eq!(
        publisher.publish_acked(retain("kept")),
        ReasonCode::NO_MATCHING_SUBSCRIBERS
    );
    kill(broker);

    let broker = start(state.path(), "");
    let mut subscriber = TcpClient::connect(broker.tcp(), "subscriber");
    subscriber.subscribe(&["r/#"], QoS::AtMostOnce);
    assert_eq!(&received(&mut subscriber).payload[..], b"kept");
    let mut publisher = TcpClient::connect(broker.tcp(), "publisher");
    assert_eq!(publisher.publish_acked(retain("")), ReasonCode::SUCCESS);
    kill(broker);

    let broker = start(state.path(), "");
    let mut subscriber = TcpClient::connect(broker.tcp(), "subscriber");
    subscriber.subscribe(&["r/#"], QoS::AtLeastOnce);
    queue_one(&broker, "r/2", "not retained");
    assert_eq!(received(&mut subscriber).topic.as_str(), "r/2");
}

#[test]
fn without_a_store_nothing_is_written_and_nothing_is_kept() {
    let state = folder();
    let broker = start(state.path(), "[store]\nenabled = false");
    let (mut subscriber, _) = resume(&broker, "s");
    subscriber.subscribe(&["a/#"], QoS::AtLeastOnce);
    drop(subscriber);
    queue_one(&broker, "a/b", "kept while it runs");
    let (mut subscriber, present) = resume(&broker, "s");
    assert!(present);
    assert_eq!(
        &received(&mut subscriber).payload[..],
        b"kept while it runs"
    );
    kill(broker);
    assert!(!state.path().join("store").exists());
    let broker = start(state.path(), "[store]\nenabled = false");
    assert!(!resume(&broker, "s").1);
}

#[test]
fn a_session_that_ended_does_not_come_back() {
    let state = folder();
    let broker = start(state.path(), "");
    let (mut subscriber, _) = resume(&broker, "s");
    subscriber.subscribe(&["a/#"], QoS::AtLeastOnce);
    drop(subscriber);
    queue_one(&broker, "a/b", "for nobody");
    // Clean Start ends it.
    drop(TcpClient::connect(broker.tcp(), "s"));
    kill(broker);
    let broker = start(state.path(), "");
    assert!(!resume(&broker, "s").1);
}

#[test]
fn status_and_metrics_tell_what_came_back() {
    let state = folder();
    let broker = start(state.path(), "");
    for n in 0..50 {
        let (mut client, _) = resume(&broker, &format!("s{n}"));
        client.subscribe(&["a/#"], QoS::AtLeastOnce);
    }
    kill(broker);
    let broker = start(state.path(), "");
    let deadline = Instant::now() + Duration::from_secs(60);
    let wait_for = |series: &str, value: f64| {
        while broker.metrics().sum(series) != value {
            assert!(Instant::now() < deadline, "{}", broker.log());
        }
    };
    wait_for("headgate_store_restoring", 0.0);
    assert_eq!(
        broker
            .metrics()
            .sum("headgate_store_sessions_restored_total"),
        50.0
    );
    // Each worker says now and then how many it has.
    wait_for("headgate_sessions{", 50.0);
    assert!(broker.status().contains("store"), "{}", broker.status());
    for n in 0..50 {
        assert!(resume(&broker, &format!("s{n}")).1);
    }
}
