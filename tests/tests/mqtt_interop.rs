//! What the field's interoperability suites try, against a broker that is configured for them.

use std::time::{Duration, Instant};

use headgate_codec::{Connect, Packet, PacketId, Publish, QoS, ReasonCode, Text, Version, Will};
use headgate_tests::{
    broker::Broker,
    tcp_client::{TcpClient, connect, publish},
};

/// The topics of the message that comes next, and its payload.
fn message(client: &mut TcpClient) -> (String, String) {
    match client.receive() {
        Some(Packet::Publish(p)) => (
            p.topic.to_string(),
            String::from_utf8_lossy(&p.payload).into_owned(),
        ),
        other => panic!("PUBLISH expected, not {other:?}"),
    }
}

fn retained(topic: &str, qos: QoS, payload: &'static str) -> Publish {
    Publish {
        retain: true,
        ..publish(topic, qos, payload)
    }
}

/// A CONNACK with its properties.
fn connack(broker: &Broker, connect: Connect) -> headgate_codec::ConnAck {
    let mut client = TcpClient::open(broker.tcp(), connect.version);
    client.send(&Packet::Connect(Box::new(connect)));
    match client.receive() {
        Some(Packet::ConnAck(connack)) => *connack,
        other => panic!("CONNACK expected, not {other:?}"),
    }
}

/// [MQTT-4.7.2-1]: "$TopicA/B" is a topic like another, which leading wildcards don't match, retained or not.
#[test]
fn dollar_topics_are_published_and_not_matched_by_wildcards() {
    let broker = Broker::start("");
    for version in [Version::V5, Version::V311] {
        let id = |name: &str| Connect {
            version,
            ..connect(name)
        };
        let (mut wide, _) = TcpClient::try_connect(broker.tcp(), id("wide"));
        wide.subscribe(&["+/+", "#", "TopicA/B"], QoS::ExactlyOnce);
        let (mut exact, _) = TcpClient::try_connect(broker.tcp(), id("exact"));
        exact.subscribe(&["$TopicA/+"], QoS::ExactlyOnce);
        let (mut publisher, _) = TcpClient::try_connect(broker.tcp(), id("publisher"));
        let first = publish("$TopicA/B", QoS::AtLeastOnce, "dollar");
        assert!(publisher.publish_acked(first).0 < 0x80);
        let second = publish("TopicA/B", QoS::AtLeastOnce, "plain");
        assert!(publisher.publish_acked(second).0 < 0x80);
        let got = message(&mut exact);
        assert_eq!(got, ("$TopicA/B".into(), "dollar".into()));
        // The plain one was published later; there is nothing before it.
        let got = message(&mut wide);
        assert_eq!(got, ("TopicA/B".into(), "plain".into()));
    }
}

/// Retained messages of each QoS, by "#", "+/#" and "fromb/+", with RETAIN; removed by empty ones.
#[test]
fn retained_messages_come_by_wildcards() {
    let broker = Broker::start("");
    let topics = ["fromb/0", "fromb/1", "fromb/2", "fromb/2/x"];
    let mut publisher = TcpClient::connect(broker.tcp(), "publisher");
    for (topic, qos) in topics.iter().zip([
        QoS::AtMostOnce,
        QoS::AtLeastOnce,
        QoS::AtLeastOnce,
        QoS::AtMostOnce,
    ]) {
        publisher.send(&Packet::Publish(retained(topic, qos, "kept")));
        if qos == QoS::AtLeastOnce {
            assert!(matches!(publisher.receive(), Some(Packet::PubAck(_))));
        }
    }
    publisher.send(&Packet::PingReq);
    assert_eq!(publisher.receive(), Some(Packet::PingResp));
    for (filter, expected) in [
        ("#", 4),
        ("+/#", 4),
        ("fromb/+", 3),
        ("fromb/2/#", 2),
        ("+", 0),
    ] {
        let mut client = TcpClient::connect(broker.tcp(), "reader");
        client.subscribe(&[filter], QoS::AtMostOnce);
        client.send(&Packet::PingReq);
        let mut got = Vec::new();
        let mut is_ponged = false;
        while got.len() < expected || !is_ponged {
            match client.receive() {
                Some(Packet::Publish(p)) => {
                    assert!(p.retain && p.payload == "kept", "{p:?}");
                    got.push(p.topic.to_string());
                }
                Some(Packet::PingResp) => is_ponged = true,
                other => panic!("{filter}: {other:?}"),
            }
        }
        got.sort();
        got.dedup();
        assert_eq!(got.len(), expected, "{filter}");
    }
    for topic in topics {
        publisher.send(&Packet::Publish(retained(topic, QoS::AtMostOnce, "")));
    }
    publisher.send(&Packet::PingReq);
    assert_eq!(publisher.receive(), Some(Packet::PingResp));
    let mut client = TcpClient::connect(broker.tcp(), "reader");
    client.subscribe(&["#"], QoS::AtMostOnce);
    publisher.send(&Packet::Publish(publish("end", QoS::AtMostOnce, "end")));
    assert_eq!(message(&mut client).1, "end", "none is left");
}

/// [MQTT-3.1.2-8]: not before its delay has passed, and before anything that is published once it was seen. The
/// exact time is the virtual clock's (headgate-core's tests of wills).
#[test]
fn a_will_comes_after_its_delay() {
    const DELAY_S: u32 = 2;
    let broker = Broker::start("");
    let mut watcher = TcpClient::connect(broker.tcp(), "watcher");
    watcher.subscribe(&["#"], QoS::AtMostOnce);
    let mut dying = connect("dying");
    dying.properties.session_expiry_s = Some(100);
    dying.will = Some(Will {
        qos: QoS::AtMostOnce,
        retain: false,
        topic: Text::from("will"),
        payload: bytes::Bytes::from_static(b"gone"),
        delay_s: Some(DELAY_S),
        properties: None,
    });
    let (client, _) = TcpClient::try_connect(broker.tcp(), dying);
    let lost_at = Instant::now();
    drop(client);
    let mut publisher = TcpClient::connect(broker.tcp(), "publisher");
    let before = publish("before", QoS::AtLeastOnce, "x");
    assert!(publisher.publish_acked(before).0 < 0x80);
    assert_eq!(message(&mut watcher).0, "before");
    assert_eq!(message(&mut watcher), ("will".into(), "gone".into()));
    let took = lost_at.elapsed();
    assert!(took >= Duration::from_secs(DELAY_S.into()), "{took:?}");
}

/// DISCONNECT 0x95 for a packet that is too large: told in CONNACK, and the connection is closed.
#[test]
fn a_packet_that_is_too_large_is_answered_with_0x95() {
    let broker = Broker::start("[limits]\npacket_bytes_max = 2000");
    let told = connack(&broker, connect("c")).properties;
    assert_eq!(told.maximum_packet_size, Some(2000));
    let mut client = TcpClient::connect(broker.tcp(), "c");
    client.send(&Packet::Publish(publish(
        "t",
        QoS::AtMostOnce,
        vec![b'x'; 2000],
    )));
    assert_eq!(client.disconnected(), ReasonCode::PACKET_TOO_LARGE);
}

/// Receive Maximum 20: told, and 20 open messages are taken.
#[test]
fn a_receive_maximum_of_20_is_told_and_kept() {
    let broker = Broker::start("[limits]\nreceive_maximum = 20");
    let told = connack(&broker, connect("c")).properties;
    assert_eq!(told.receive_maximum, Some(20));
    let mut client = TcpClient::connect(broker.tcp(), "c");
    for id in 1..=20 {
        let packet_id = PacketId::new(id);
        client.send(&Packet::Publish(Publish {
            packet_id,
            ..publish("t", QoS::ExactlyOnce, "x")
        }));
    }
    for id in 1..=20 {
        match client.receive() {
            Some(Packet::PubRec(ack)) => assert_eq!(ack.packet_id.get(), id),
            other => panic!("PUBREC expected, not {other:?}"),
        }
    }
    let packet_id = PacketId::new(21);
    client.send(&Packet::Publish(Publish {
        packet_id,
        ..publish("t", QoS::ExactlyOnce, "x")
    }));
    assert_eq!(client.disconnected(), ReasonCode::RECEIVE_MAXIMUM_EXCEEDED);
}

/// Server Keep Alive 60 for a client that asked for 120; who asks for less keeps it.
#[test]
fn a_keep_alive_of_120_becomes_60() {
    let broker = Broker::start("[mqtt]\nkeep_alive_max_s = 60");
    for (asked, told) in [(120, Some(60)), (0, Some(60)), (60, None), (30, None)] {
        let asking = Connect {
            keep_alive_s: asked,
            ..connect("c")
        };
        let answer = connack(&broker, asking).properties;
        assert_eq!(answer.server_keep_alive_s, told, "{asked}");
    }
}

/// SUBSCRIBE to one filter denied, by 0x87 or 0x80, and the others of the same packet granted.
#[test]
fn a_filter_is_denied_by_0x87_or_0x80() {
    for (setting, reason) in [("not_authorized", 0x87), ("unspecified", 0x80)] {
        let broker = Broker::start(&format!(
            "[mqtt]\ndenied_filters = [\"test/nosubscribe\"]\ndenied_filter_reason = \"{setting}\""
        ));
        for (version, expected) in [(Version::V5, reason), (Version::V311, 0x80)] {
            let (mut client, _) = TcpClient::try_connect(
                broker.tcp(),
                Connect {
                    version,
                    ..connect("c")
                },
            );
            let filters = ["a", "test/nosubscribe", "test/+"];
            let reasons = client.subscribe(&filters, QoS::AtLeastOnce);
            let found: Vec<u8> = reasons.iter().map(|r| r.0).collect();
            assert_eq!(found, [1, expected, 1]);
        }
    }
}

/// Protocol versions 3.1, 3.1.1 and 5.0 on one broker.
#[test]
fn every_version_hears_every_other() {
    let broker = Broker::start("");
    let versions = [Version::V31, Version::V311, Version::V5];
    let mut clients: Vec<TcpClient> = versions
        .iter()
        .map(|version| {
            let (mut client, reason) = TcpClient::try_connect(
                broker.tcp(),
                Connect {
                    version: *version,
                    ..connect(&format!("{version:?}"))
                },
            );
            assert_eq!(reason, ReasonCode::SUCCESS);
            assert_eq!(client.subscribe(&["t/#"], QoS::ExactlyOnce)[0].0, 2);
            client
        })
        .collect();
    for sender in 0..versions.len() {
        let topic = format!("t/{sender}");
        clients[sender].send(&Packet::Publish(publish(&topic, QoS::AtMostOnce, "x")));
        for client in &mut clients {
            assert_eq!(message(client), (topic.clone(), "x".into()));
        }
    }
}
