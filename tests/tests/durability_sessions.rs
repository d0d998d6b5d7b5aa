//! What a session is, is what it is again after the broker was killed: subscriptions, messages that wait, both halves of
//! QoS 2, the will; and retained messages, and everything that has ended.

use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use headgate_codec::{
    Ack, Connect, Disconnect, Packet, PacketId, Publish, PublishProperties, QoS, ReasonCode,
    Subscribe, SubscriptionOptions, Text, Unsubscribe, Version, Will,
};
use headgate_tests::broker::Broker;
use headgate_tests::tcp_client::{TcpClient, connect, publish};

/// Longer than any test takes.
const EXPIRY_S: u32 = 3600;

fn lasting(id: &str) -> Connect {
    let mut connect = connect(id);
    connect.clean_start = false;
    connect.properties.session_expiry_s = Some(EXPIRY_S);
    connect
}

/// Connects; whether the broker had the session.
fn open(broker: &Broker, connect: Connect) -> (TcpClient, bool) {
    let mut client = TcpClient::open(broker.tcp(), connect.version);
    client.send(&Packet::Connect(Box::new(connect)));
    match client.receive() {
        Some(Packet::ConnAck(ack)) => {
            assert_eq!(ack.reason, ReasonCode::SUCCESS);
            (client, ack.session_present)
        }
        other => panic!("expected CONNACK, got {other:?}"),
    }
}

fn resume(broker: &Broker, id: &str) -> TcpClient {
    let (client, present) = open(broker, lasting(id));
    assert!(present, "the session of {id} is there");
    client
}

fn leave(mut client: TcpClient) {
    client.send(&Packet::Disconnect(Disconnect::default()));
    assert_eq!(client.receive(), None);
}

/// Nothing answers PUBACK, PUBCOMP and DISCONNECT, so that a client can't know when they are recorded. What is
/// recorded now comes behind them.
fn record_all(broker: &Broker) {
    leave(open(broker, lasting("witness")).0);
}

fn crash(broker: &mut Broker) {
    broker.kill();
    broker.restart();
}

fn ack(packet_id: Option<PacketId>) -> Ack {
    Ack {
        packet_id: packet_id.expect("there is an identifier"),
        reason: ReasonCode::SUCCESS,
        properties: None,
    }
}

fn receive(client: &mut TcpClient) -> Publish {
    match client.receive() {
        Some(Packet::Publish(publish)) => publish,
        other => panic!("expected PUBLISH, got {other:?}"),
    }
}

/// Nothing else comes before the answer to a PINGREQ.
fn nothing_waits(client: &mut TcpClient) {
    client.send(&Packet::PingReq);
    assert_eq!(client.receive(), Some(Packet::PingResp));
}

fn numbered(topic: &str, qos: QoS, id: u16, payload: impl Into<Bytes>) -> Publish {
    Publish {
        packet_id: PacketId::new(id),
        ..publish(topic, qos, payload)
    }
}

#[test]
fn subscriptions_and_what_waits_for_them() {
    let mut broker = Broker::start("");
    let (mut client, present) = open(&broker, lasting("sleeper"));
    assert!(!present);
    let options = |qos, no_local| SubscriptionOptions {
        qos,
        no_local,
        ..SubscriptionOptions::default()
    };
    client.send(&Packet::Subscribe(Box::new(Subscribe {
        packet_id: PacketId::MIN,
        subscription_id: Some(77),
        user_properties: Vec::new(),
        filters: vec![
            (Text::from("a/#"), options(QoS::ExactlyOnce, true)),
            (Text::from("gone"), options(QoS::ExactlyOnce, false)),
        ],
    })));
    assert!(matches!(client.receive(), Some(Packet::SubAck(_))));
    client.send(&Packet::Unsubscribe(Box::new(Unsubscribe {
        packet_id: PacketId::MIN,
        user_properties: Vec::new(),
        filters: vec![Text::from("gone")],
    })));
    assert!(matches!(client.receive(), Some(Packet::UnsubAck(_))));
    leave(client);

    let mut publisher = TcpClient::connect(broker.tcp(), "publisher");
    let properties = PublishProperties {
        payload_format_utf8: Some(true),
        message_expiry_s: Some(EXPIRY_S),
        response_topic: Some(Text::from("answers")),
        correlation_data: Some(Bytes::from_static(b"\x00\x01")),
        user_properties: vec![(Text::from("name"), Text::from("value"))],
        content_type: Some(Text::from("text/plain")),
        ..PublishProperties::default()
    };
    let mut rich = publish("a/rich", QoS::AtLeastOnce, "rich");
    rich.properties = Some(Box::new(properties.clone()));
    assert_eq!(publisher.publish_acked(rich), ReasonCode::SUCCESS);
    for number in 0..20 {
        let message = publish("a/plain", QoS::AtLeastOnce, format!("{number}"));
        assert_eq!(publisher.publish_acked(message), ReasonCode::SUCCESS);
    }
    let gone = publish("gone", QoS::AtLeastOnce, "gone");
    assert_eq!(
        publisher.publish_acked(gone),
        ReasonCode::NO_MATCHING_SUBSCRIBERS
    );
    crash(&mut broker);

    let mut client = resume(&broker, "sleeper");
    let first = receive(&mut client);
    let mut found = first.properties.as_deref().cloned().expect("properties");
    assert_eq!(found.subscription_ids, [77]);
    let left = found.message_expiry_s.expect("it expires");
    assert!(left <= EXPIRY_S && left + 120 > EXPIRY_S, "{left}");
    found.subscription_ids.clear();
    found.message_expiry_s = Some(EXPIRY_S);
    assert_eq!((found, &first.payload[..]), (properties, &b"rich"[..]));
    client.send(&Packet::PubAck(ack(first.packet_id)));
    for number in 0..20 {
        let message = receive(&mut client);
        assert_eq!(message.payload, format!("{number}"));
        client.send(&Packet::PubAck(ack(message.packet_id)));
    }
    nothing_waits(&mut client);
    // What it publishes itself, it doesn't get: the subscription has its options again.
    let own = publish("a/own", QoS::AtLeastOnce, "own");
    assert!(client.publish_acked(own).0 < 0x80);
    nothing_waits(&mut client);
    leave(client);

    // All was acknowledged, so nothing waits after the next crash.
    record_all(&broker);
    crash(&mut broker);
    let mut client = resume(&broker, "sleeper");
    nothing_waits(&mut client);
}

/// §4.3.3, the receiver's half: a PUBLISH that comes again is known, and PUBREL is answered.
#[test]
fn qos_2_from_a_publisher_goes_on() {
    let mut broker = Broker::start("");
    let (mut subscriber, _) = open(&broker, lasting("subscriber"));
    subscriber.subscribe(&["a"], QoS::ExactlyOnce);
    leave(subscriber);
    let (mut publisher, _) = open(&broker, lasting("publisher"));
    let message = numbered("a", QoS::ExactlyOnce, 5, "once");
    publisher.send(&Packet::Publish(message.clone()));
    assert!(matches!(publisher.receive(), Some(Packet::PubRec(_))));
    crash(&mut broker);

    let mut publisher = resume(&broker, "publisher");
    publisher.send(&Packet::Publish(Publish {
        dup: true,
        ..message
    }));
    assert!(matches!(publisher.receive(), Some(Packet::PubRec(_))));
    publisher.send(&Packet::PubRel(ack(PacketId::new(5))));
    let done = publisher.receive();
    assert!(
        matches!(&done, Some(Packet::PubComp(ack)) if ack.reason == ReasonCode::SUCCESS),
        "{done:?}"
    );
    crash(&mut broker);
    // Released, so the identifier is free, and the message with it a new one.
    let mut publisher = resume(&broker, "publisher");
    publisher.send(&Packet::Publish(numbered("a", QoS::ExactlyOnce, 5, "new")));
    assert!(matches!(publisher.receive(), Some(Packet::PubRec(_))));

    let mut subscriber = resume(&broker, "subscriber");
    let sent = ["once", "new"].map(|expected| {
        let message = receive(&mut subscriber);
        assert_eq!(message.payload, expected);
        message
    });
    for message in sent {
        subscriber.send(&Packet::PubRec(ack(message.packet_id)));
        assert!(matches!(subscriber.receive(), Some(Packet::PubRel(_))));
        subscriber.send(&Packet::PubComp(ack(message.packet_id)));
    }
    nothing_waits(&mut subscriber);
}

/// §4.3.3, the sender's half: the same identifier before PUBREC, PUBREL after it, nothing after PUBCOMP.
#[test]
fn qos_2_to_a_subscriber_goes_on() {
    let mut broker = Broker::start("");
    let (mut subscriber, _) = open(&broker, lasting("subscriber"));
    subscriber.subscribe(&["a"], QoS::ExactlyOnce);
    let (mut publisher, _) = open(&broker, lasting("publisher"));
    for (id, payload) in [(1, "one"), (2, "two"), (3, "three")] {
        publisher.send(&Packet::Publish(numbered(
            "a",
            QoS::ExactlyOnce,
            id,
            payload,
        )));
        assert!(matches!(publisher.receive(), Some(Packet::PubRec(_))));
    }
    let sent: Vec<_> = (0..3).map(|_| receive(&mut subscriber)).collect();
    // The first is finished, of the second there is a PUBREC, of the third nothing.
    for message in &sent[..2] {
        subscriber.send(&Packet::PubRec(ack(message.packet_id)));
        assert!(matches!(subscriber.receive(), Some(Packet::PubRel(_))));
    }
    subscriber.send(&Packet::PubComp(ack(sent[0].packet_id)));
    // Its record is written when this is answered.
    let mut other = TcpClient::connect(broker.tcp(), "other");
    other.publish_acked(publish("a", QoS::AtLeastOnce, "four"));
    crash(&mut broker);

    let mut subscriber = resume(&broker, "subscriber");
    let mut seen = Vec::new();
    for _ in 0..3 {
        match subscriber.receive() {
            Some(Packet::PubRel(ack)) => seen.push((Some(ack.packet_id), "released".to_owned())),
            Some(Packet::Publish(publish)) => {
                let is_third = publish.packet_id == sent[2].packet_id;
                // [MQTT-3.3.1-1]
                assert!(publish.dup || !is_third, "{publish:?}");
                let payload = String::from_utf8_lossy(&publish.payload).into_owned();
                seen.push((publish.packet_id, payload));
            }
            other => panic!("expected what is open, got {other:?}"),
        }
    }
    seen.sort_by_key(|(_, what)| what.clone());
    assert_eq!(seen[0].1, "four");
    assert_eq!(seen[1], (sent[1].packet_id, "released".to_owned()));
    assert_eq!(seen[2], (sent[2].packet_id, "three".to_owned()));
}

#[test]
fn retained_messages() {
    let mut broker = Broker::start("");
    let mut publisher = TcpClient::connect(broker.tcp(), "publisher");
    let mut retain = |topic: &str, payload: &'static str| {
        let mut message = publish(topic, QoS::AtLeastOnce, payload);
        message.retain = true;
        assert!(publisher.publish_acked(message).0 < 0x80);
    };
    retain("r/kept", "kept");
    retain("r/replaced", "old");
    retain("r/replaced", "new");
    retain("r/cleared", "cleared");
    retain("r/cleared", "");
    for _ in 0..2 {
        crash(&mut broker);
        let mut subscriber = TcpClient::connect(broker.tcp(), "subscriber");
        subscriber.subscribe(&["r/#"], QoS::AtMostOnce);
        let mut found: Vec<_> = (0..2)
            .map(|_| {
                let message = receive(&mut subscriber);
                assert!(message.retain);
                (message.topic.to_string(), message.payload)
            })
            .collect();
        found.sort();
        let expected = [("r/kept", "kept"), ("r/replaced", "new")];
        assert_eq!(
            found,
            expected.map(|(topic, payload)| (topic.to_owned(), Bytes::from(payload)))
        );
        nothing_waits(&mut subscriber);
    }
}

/// [MQTT-3.1.2-8]: a connection that the crash ended has ended without DISCONNECT; the Will Delay Interval (§3.1.3.2.2)
/// counts from the start.
#[test]
fn a_will_is_published_after_its_delay() {
    let mut broker = Broker::start("");
    let (mut heir, _) = open(&broker, lasting("heir"));
    heir.subscribe(&["wills/#"], QoS::AtLeastOnce);
    leave(heir);
    let with_will = |id: &str, delay_s| Connect {
        will: Some(Will {
            qos: QoS::AtLeastOnce,
            retain: false,
            topic: Text::from(format!("wills/{id}").as_str()),
            payload: Bytes::from_static(b"gone"),
            delay_s: Some(delay_s),
            properties: None,
        }),
        ..lasting(id)
    };
    let (lost, _) = open(&broker, with_will("lost", 2));
    let (returning, _) = open(&broker, with_will("returning", 600));
    // It says goodbye, so its will is gone [MQTT-3.1.2-10].
    let (polite, _) = open(&broker, with_will("polite", 2));
    leave(polite);
    record_all(&broker);
    crash(&mut broker);
    drop((lost, returning));
    let mut heir = resume(&broker, "heir");
    let will = receive(&mut heir);
    assert_eq!(
        (&*will.topic, &will.payload[..]),
        ("wills/lost", &b"gone"[..])
    );
    heir.send(&Packet::PubAck(ack(will.packet_id)));
    // It comes back before its will is due.
    resume(&broker, "returning");
    nothing_waits(&mut heir);
}

#[test]
fn what_has_ended_stays_ended() {
    let mut broker = Broker::start("");
    // A session that was thrown away by a Clean Start and then ended with its connection.
    let (mut client, _) = open(&broker, lasting("clean"));
    client.subscribe(&["a"], QoS::AtLeastOnce);
    leave(client);
    leave(TcpClient::connect(broker.tcp(), "clean"));
    // One whose time is over while the broker is down, and one that never outlived its connection.
    let mut short = lasting("short");
    short.properties.session_expiry_s = Some(1);
    leave(open(&broker, short).0);
    let (volatile, _) = open(&broker, connect("volatile"));
    // MQTT 3.1.1 has no expiry: Clean Session says it all.
    let old = |clean| Connect {
        version: Version::V311,
        clean_start: clean,
        ..connect("old")
    };
    let (mut client, _) = open(&broker, old(false));
    client.subscribe(&["old"], QoS::AtLeastOnce);
    leave(client);
    broker.kill();
    thread::sleep(Duration::from_millis(1100));
    broker.restart();
    drop(volatile);
    for id in ["clean", "short", "volatile"] {
        let (client, present) = open(&broker, lasting(id));
        assert!(!present, "{id}");
        leave(client);
    }
    let mut publisher = TcpClient::connect(broker.tcp(), "publisher");
    publisher.publish_acked(publish("old", QoS::AtLeastOnce, "waits"));
    let (mut client, present) = open(&broker, old(false));
    assert!(present);
    assert_eq!(receive(&mut client).payload, "waits");
    leave(client);
    // Clean Session ends it.
    leave(open(&broker, old(true)).0);
    crash(&mut broker);
    assert!(!open(&broker, old(false)).1);
}

/// §3.3.2.3.3: the time in which the broker is down counts as well.
#[test]
fn a_message_expires_while_the_broker_is_down() {
    let mut broker = Broker::start("");
    let (mut client, _) = open(&broker, lasting("sleeper"));
    client.subscribe(&["a"], QoS::AtLeastOnce);
    leave(client);
    let mut publisher = TcpClient::connect(broker.tcp(), "publisher");
    let started = Instant::now();
    for (payload, expiry_s) in [("short", 1), ("long", EXPIRY_S)] {
        let mut message = publish("a", QoS::AtLeastOnce, payload);
        message.properties = Some(Box::new(PublishProperties {
            message_expiry_s: Some(expiry_s),
            ..PublishProperties::default()
        }));
        assert_eq!(publisher.publish_acked(message), ReasonCode::SUCCESS);
    }
    broker.kill();
    thread::sleep(Duration::from_millis(2100).saturating_sub(started.elapsed()));
    broker.restart();
    let mut client = resume(&broker, "sleeper");
    assert_eq!(receive(&mut client).payload, "long");
    nothing_waits(&mut client);
}
