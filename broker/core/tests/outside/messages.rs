//! PUBLISH, SUBSCRIBE, retained messages and limits, from outside.

use crate::common::*;
use headgate_codec::{
    Connect, Disconnect, Packet, Publish, QoS, ReasonCode, SubscriptionOptions, Text, UserProperty,
    Version,
};
use headgate_core::RetainedLimits;

const QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

fn options(qos: QoS) -> SubscriptionOptions {
    SubscriptionOptions {
        qos,
        ..SubscriptionOptions::default()
    }
}

/// The one PUBLISH that the client reads.
fn one(world: &mut World, id: Id) -> Publish {
    match world.read_one(id) {
        Packet::Publish(p) => p,
        other => panic!("PUBLISH expected, not {other:?}"),
    }
}

fn id_of(packet: &Packet) -> u16 {
    match packet {
        Packet::Publish(p) => p.packet_id.expect("QoS > 0").get(),
        Packet::PubRel(a) => a.packet_id.get(),
        other => panic!("{other:?}"),
    }
}

/// [MQTT-3.8.4-8] [MQTT-3.3.1-3] [MQTT-4.3.1-1] [MQTT-2.2.1-5]: every pair of QoS, between workers too.
#[test]
fn a_message_is_delivered_with_the_lower_qos_and_acknowledged_with_its_own() {
    for (home, version) in [
        (0, Version::V5),
        (1, Version::V5),
        (0, Version::V311),
        (1, Version::V31),
    ] {
        for published in QOS {
            for granted in QOS {
                let mut world = World::new(2);
                let (s, _) = world.connect(
                    home,
                    Connect {
                        version,
                        ..connect("s")
                    },
                );
                world.subscribe(s, "a/+", granted);
                let (p, _) = world.connect(
                    0,
                    Connect {
                        version,
                        ..connect("p")
                    },
                );
                let message = match published {
                    QoS::AtMostOnce => publish("a/b", "x"),
                    qos => publish_acked("a/b", "x", qos, 77),
                };
                world.send(p, Packet::Publish(message));
                match published {
                    QoS::AtMostOnce => assert!(world.read(p).is_empty()),
                    QoS::AtLeastOnce => assert_eq!(world.read_one(p), Packet::PubAck(ack(77))),
                    QoS::ExactlyOnce => assert_eq!(world.read_one(p), Packet::PubRec(ack(77))),
                }
                let got = one(&mut world, s);
                assert_eq!(got.qos, published.min(granted));
                assert!(
                    !got.dup && !got.retain && &*got.payload == b"x" && got.topic.as_str() == "a/b"
                );
            }
        }
    }
}

/// [MQTT-4.3.3-4] [MQTT-4.3.3-10] [MQTT-4.3.3-11] [MQTT-4.3.3-12]
#[test]
fn qos_2_is_delivered_once_until_it_is_released() {
    let mut world = World::new(1);
    let s = world.client(0, "s");
    world.subscribe(s, "a", QoS::ExactlyOnce);
    let p = world.client(0, "p");
    let message = publish_acked("a", "x", QoS::ExactlyOnce, 5);
    for dup in [false, true, true] {
        world.send(
            p,
            Packet::Publish(Publish {
                dup,
                ..message.clone()
            }),
        );
        assert_eq!(world.read_one(p), Packet::PubRec(ack(5)));
    }
    let got = Packet::Publish(one(&mut world, s));
    for _ in 0..2 {
        world.send(s, Packet::PubRec(ack(id_of(&got))));
        assert_eq!(world.read_one(s), Packet::PubRel(ack(id_of(&got))));
    }
    world.send(s, Packet::PubComp(ack(id_of(&got))));
    world.send(p, Packet::PubRel(ack(5)));
    assert_eq!(world.read_one(p), Packet::PubComp(ack(5)));
    // Unknown now, on both sides (§3.6.2.1, §3.7.2.1).
    world.send(p, Packet::PubRel(ack(5)));
    let unknown = headgate_codec::Ack {
        reason: ReasonCode::PACKET_IDENTIFIER_NOT_FOUND,
        ..ack(5)
    };
    assert_eq!(world.read_one(p), Packet::PubComp(unknown.clone()));
    world.send(p, Packet::PubRec(ack(5)));
    assert_eq!(world.read_one(p), Packet::PubRel(unknown));
    // A new message under the same identifier.
    world.send(p, Packet::Publish(message));
    world.read(p);
    assert_eq!(world.payloads(s), ["x"]);
    assert_eq!(world.counters(0).publish_in_repeated, 2);
}

/// [MQTT-4.4.0-1] [MQTT-3.3.1-1] [MQTT-4.3.3-6] [MQTT-4.6.0-5]
#[test]
fn what_was_not_acknowledged_is_sent_again_in_order() {
    for back in [0, 1] {
        let mut world = World::new(2);
        let (s, _) = world.connect(0, lasting("s", 100));
        world.subscribe(s, "#", QoS::ExactlyOnce);
        let p = world.client(0, "p");
        for (i, qos) in [
            QoS::AtLeastOnce,
            QoS::ExactlyOnce,
            QoS::AtLeastOnce,
            QoS::ExactlyOnce,
        ]
        .into_iter()
        .enumerate()
        {
            world.send(
                p,
                Packet::Publish(publish_acked("a", &i.to_string(), qos, i as u16 + 1)),
            );
        }
        let sent = world.read(s);
        let ids: Vec<u16> = sent.iter().map(id_of).collect();
        world.send(s, Packet::PubAck(ack(ids[0])));
        world.send(s, Packet::PubRec(ack(ids[1])));
        world.lose(s);
        // Offline: QoS 0 isn't kept, QoS 1 is.
        world.send(p, Packet::Publish(publish("a", "lost")));
        world.send(
            p,
            Packet::Publish(publish_acked("a", "late", QoS::AtLeastOnce, 9)),
        );
        let (s, present) = world.connect(back, lasting("s", 100));
        assert!(present);
        let again = world.read(s);
        assert_eq!(id_of(&again[0]), ids[1]);
        assert!(matches!(again[0], Packet::PubRel(_)));
        for (i, packet) in [(2, &again[1]), (3, &again[2])] {
            let p = publish_of(packet).expect("PUBLISH");
            assert!(
                p.dup && p.payload == i.to_string() && id_of(packet) == ids[i],
                "{packet:?}"
            );
        }
        let late = publish_of(&again[3]).expect("PUBLISH");
        assert!(!late.dup && &*late.payload == b"late" && !ids[1..].contains(&id_of(&again[3])));
        assert_eq!(again.len(), 4);
        assert_eq!(world.sum(|c| c.dropped_offline), 1);
    }
}

/// [MQTT-3.3.4-9] [MQTT-4.9.0-2] [MQTT-4.4.0-2] [MQTT-2.2.1-4]
#[test]
fn no_more_than_receive_maximum_are_on_their_way() {
    let mut world = World::new(1);
    let mut c = connect("s");
    c.properties.receive_maximum = Some(2);
    let (s, _) = world.connect(0, c);
    world.subscribe(s, "a", QoS::ExactlyOnce);
    let p = world.client(0, "p");
    for i in 1..=5 {
        world.send(
            p,
            Packet::Publish(publish_acked("a", &i.to_string(), QoS::ExactlyOnce, i)),
        );
    }
    world.send(p, Packet::Publish(publish("a", "zero")));
    let got = world.read(s);
    // [MQTT-3.3.4-10]: QoS 0 doesn't wait.
    assert_eq!(got.len(), 3);
    assert_eq!(&*publish_of(&got[2]).unwrap().payload, b"zero");
    // PUBREC with an error ends a message; PUBCOMP ends the other.
    let refused = headgate_codec::Ack {
        reason: ReasonCode::UNSPECIFIED_ERROR,
        ..ack(id_of(&got[0]))
    };
    world.send(s, Packet::PubRec(refused));
    assert_eq!(world.payloads(s), ["3"]);
    world.send(s, Packet::PubRec(ack(id_of(&got[1]))));
    assert!(matches!(world.read_one(s), Packet::PubRel(_)));
    world.send(s, Packet::PubComp(ack(id_of(&got[1]))));
    assert_eq!(world.payloads(s), ["4"]);
    assert_eq!(world.counters(0).queued, 3);
}

/// [MQTT-3.3.4-7]
#[test]
fn a_client_that_exceeds_our_receive_maximum_is_disconnected() {
    let mut world = World::with(1, RetainedLimits::default(), |c| {
        c.limits.receive_maximum = 3
    });
    let p = world.client(0, "p");
    for i in 1..=10 {
        world.send(
            p,
            Packet::Publish(publish_acked("a", "x", QoS::AtLeastOnce, i)),
        );
    }
    assert!(world.wires[p].closed.is_none());
    for i in 11..=14 {
        world.send(
            p,
            Packet::Publish(publish_acked("a", "x", QoS::ExactlyOnce, i)),
        );
    }
    assert_eq!(
        world.wires[p].closed,
        Some(ReasonCode::RECEIVE_MAXIMUM_EXCEEDED)
    );
    assert_eq!(world.counters(0).limit_receive_maximum, 1);
}

/// Acknowledgements leave when what they acknowledge is recorded, and in order.
#[test]
fn acknowledgements_wait_for_storage_in_order() {
    for home in [0, 1] {
        let mut world = World::new(2);
        let (s, _) = world.connect(home, lasting("s", 100));
        world.subscribe(s, "kept", QoS::AtLeastOnce);
        let p = world.client(0, "p");
        world.storage_stuck = true;
        world.send(
            p,
            Packet::Publish(publish_acked("kept", "1", QoS::AtLeastOnce, 1)),
        );
        world.send(
            p,
            Packet::Publish(publish_acked("other", "2", QoS::ExactlyOnce, 2)),
        );
        world.send(p, subscribe(3, "x", options(QoS::AtMostOnce)));
        assert!(world.read(p).is_empty(), "home {home}");
        assert_eq!(world.payloads(s), ["1"], "delivery doesn't wait");
        world.send(p, Packet::PingReq);
        assert_eq!(world.read_one(p), Packet::PingResp);
        world.storage_stuck = false;
        world.run();
        let packets = world.read(p);
        assert!(
            matches!(&packets[..], [Packet::PubAck(a), Packet::PubRec(b), Packet::SubAck(_)]
                if a.packet_id.get() == 1 && b.packet_id.get() == 2),
            "{packets:?}"
        );
        // Sessions without expiry need no storage.
        world.storage_stuck = true;
        world.send(
            p,
            Packet::Publish(publish_acked("other", "2", QoS::AtLeastOnce, 4)),
        );
        assert_eq!(world.read(p).len(), 1);
    }
}

#[test]
fn a_client_that_outruns_storage_is_not_read() {
    let mut world = World::with(1, RetainedLimits::default(), |c| {
        c.limits.receive_maximum = 16
    });
    let (p, _) = world.connect(0, lasting("p", 100));
    world.storage_stuck = true;
    for i in 1..=40 {
        world.send(p, subscribe(i, &format!("f/{i}"), options(QoS::AtMostOnce)));
    }
    assert!(!world.wires[p].reading);
    assert_eq!(world.wires[p].unsent.len(), 24);
    // That is not the client's fault: its silence doesn't count.
    world.advance_s(200);
    assert!(world.wires[p].closed.is_none());
    world.storage_stuck = false;
    world.run();
    assert!(world.wires[p].reading);
    assert_eq!(world.read(p).len(), 40);
}

/// [MQTT-3.3.2-5] [MQTT-3.3.2-6]
#[test]
fn messages_expire_while_they_wait() {
    let mut world = World::new(1);
    let (s, _) = world.connect(0, lasting("s", 1_000));
    world.subscribe(s, "a", QoS::AtLeastOnce);
    world.lose(s);
    let p = world.client(0, "p");
    for (id, expiry) in [(1, 10), (2, 50)] {
        let message = publish_acked("a", &expiry.to_string(), QoS::AtLeastOnce, id);
        let message = with(message, |p| p.message_expiry_s = Some(expiry));
        world.send(
            p,
            Packet::Publish(Publish {
                retain: true,
                ..message
            }),
        );
    }
    world.advance_s(20);
    let (s, _) = world.connect(0, lasting("s", 1_000));
    let got = one(&mut world, s);
    assert_eq!(&*got.payload, b"50");
    assert_eq!(got.properties.unwrap().message_expiry_s, Some(30));
    assert_eq!(world.counters(0).dropped_expired, 1);
    world.advance_s(31);
    let (late, _) = world.connect(0, lasting("late", 0));
    world.subscribe(late, "#", QoS::AtMostOnce);
    assert!(world.payloads(late).is_empty());
}

/// [MQTT-3.3.2-4] [MQTT-3.3.2-15] to [MQTT-3.3.2-20]
#[test]
fn properties_reach_the_subscriber_unaltered() {
    for home in [0, 1] {
        let mut world = World::new(2);
        let s = world.client(home, "s");
        world.subscribe(s, "a", QoS::AtMostOnce);
        let user: Vec<UserProperty> = [("k", "1"), ("a", "2"), ("k", "0")]
            .map(|(k, v)| (Text::from(k), Text::from(v)))
            .into();
        let message = with(publish("a", "x"), |p| {
            p.payload_format_utf8 = Some(true);
            p.response_topic = Some(Text::from("answer"));
            p.correlation_data = Some(bytes::Bytes::from_static(b"\x00\xff"));
            p.content_type = Some(Text::from("t/x"));
            p.user_properties = user;
        });
        let p = world.client(0, "p");
        world.send(p, Packet::Publish(message.clone()));
        assert_eq!(one(&mut world, s), message);
    }
}

/// [MQTT-3.1.2-24] [MQTT-3.1.2-25]
#[test]
fn nothing_larger_than_the_client_takes_is_sent() {
    let mut world = World::new(1);
    let mut c = lasting("s", 100);
    c.properties.maximum_packet_size = Some(60);
    let (s, _) = world.connect(0, c);
    world.subscribe(s, "a", QoS::AtLeastOnce);
    let p = world.client(0, "p");
    let large = "x".repeat(60);
    world.send(p, Packet::Publish(publish("a", &large)));
    world.send(
        p,
        Packet::Publish(publish_acked("a", &large, QoS::AtLeastOnce, 1)),
    );
    world.send(
        p,
        Packet::Publish(publish_acked("a", "small", QoS::AtLeastOnce, 2)),
    );
    assert_eq!(world.payloads(s), ["small"]);
    assert_eq!(world.counters(0).dropped_too_large, 2);
    let mut tiny = connect("t");
    tiny.properties.maximum_packet_size = Some(5);
    let id = world.open(0);
    world.send(id, Packet::Connect(Box::new(tiny)));
    assert!(world.read(id).is_empty());
    assert_eq!(world.wires[id].closed, Some(ReasonCode::PACKET_TOO_LARGE));
}

#[test]
fn what_a_client_must_not_publish_disconnects_it() {
    let mut world = World::new(1);
    let alias = with(publish("a", "x"), |p| {
        p.topic_alias = std::num::NonZeroU16::new(17)
    });
    let ids = with(publish("a", "x"), |p| p.subscription_ids = vec![1]);
    let response = with(publish("a", "x"), |p| {
        p.response_topic = Some(Text::from("a/#"))
    });
    for (message, reason) in [
        (alias, ReasonCode::TOPIC_ALIAS_INVALID),
        // [MQTT-3.3.4-6]
        (ids, ReasonCode::PROTOCOL_ERROR),
        // [MQTT-3.3.2-14]
        (response, ReasonCode::PROTOCOL_ERROR),
        // [MQTT-3.3.2-2]
        (publish("a/+", "x"), ReasonCode::TOPIC_NAME_INVALID),
        (publish("", "x"), ReasonCode::TOPIC_NAME_INVALID),
    ] {
        let id = world.client(0, "p");
        world.send(id, Packet::Publish(message));
        assert_eq!(
            world.read_one(id),
            Packet::Disconnect(Disconnect {
                reason,
                properties: None
            })
        );
        assert_eq!(world.wires[id].closed, Some(reason));
    }
}

/// A client that doesn't read: its messages wait, within limits, and nobody else notices.
#[test]
fn a_client_that_does_not_read_costs_a_bounded_amount() {
    let mut world = World::with(1, RetainedLimits::default(), |c| {
        c.limits.send_buffer_bytes = 10_000;
        c.limits.queued_messages = 50;
        c.limits.session_bytes = 40_000;
    });
    let (slow, fast) = (world.client(0, "slow"), world.client(0, "fast"));
    for id in [slow, fast] {
        world.subscribe(id, "#", QoS::AtLeastOnce);
    }
    world.wires[slow].stalled = true;
    let p = world.client(0, "p");
    for i in 0..500 {
        let payload = format!("{i} {}", "x".repeat(1_000));
        let message = match i % 2 {
            0 => publish("a", &payload),
            _ => publish_acked("a", &payload, QoS::AtLeastOnce, i),
        };
        world.send(p, Packet::Publish(message));
        for packet in world.read(fast) {
            if let Some(id) = publish_of(&packet).and_then(|p| p.packet_id) {
                world.send(fast, Packet::PubAck(ack(id.get())));
            }
        }
    }
    assert!(
        world.wires[slow].unflushed <= 12_000,
        "{}",
        world.wires[slow].unflushed
    );
    let counters = world.counters(0);
    assert!(counters.dropped_queue_full > 0 && counters.dropped_queue_full_qos0 > 0);
    assert_eq!(
        counters.limit_session_bytes + counters.limit_queued_messages,
        counters.dropped_queue_full + counters.dropped_queue_full_qos0
    );
    assert!(counters.limit_session_bytes > 0);
    let queued = counters.queued;
    assert!(queued <= 50);
    // It reads again: what waited comes in order.
    let before = world.payloads(slow).len() as u64;
    world.wires[slow].stalled = false;
    world.run();
    let mut after: Vec<u32> = Vec::new();
    loop {
        let packets = world.read(slow);
        if packets.is_empty() {
            break;
        }
        for packet in packets {
            if let Some(p) = publish_of(&packet) {
                after.push(
                    String::from_utf8_lossy(&p.payload)
                        .split(' ')
                        .next()
                        .unwrap()
                        .parse()
                        .unwrap(),
                );
                if let Some(id) = p.packet_id {
                    world.send(slow, Packet::PubAck(ack(id.get())));
                }
            }
        }
    }
    assert_eq!(after.len() as u64, queued, "and {before} before");
    // Each class in its order.
    for class in [0, 1] {
        let of_class = after.iter().filter(|number| *number % 2 == class);
        assert!(of_class.is_sorted());
    }
}

/// A client that asks and doesn't read the answers isn't read.
#[test]
fn a_client_that_does_not_take_its_answers_is_not_read() {
    let mut world = World::with(1, RetainedLimits::default(), |c| {
        c.limits.send_buffer_bytes = 1_000
    });
    let id = world.client(0, "a");
    world.wires[id].stalled = true;
    for _ in 0..5_000 {
        world.send(id, Packet::PingReq);
    }
    assert!(!world.wires[id].reading && world.wires[id].unflushed <= 2_010);
    assert_eq!(world.counters(0).reads_paused, 1);
    world.wires[id].stalled = false;
    world.run();
    assert!(world.wires[id].reading && world.wires[id].unsent.is_empty());
    assert_eq!(world.read(id).len(), 5_000);
}

/// [MQTT-4.6.0-5]: messages of one publisher stay in order while the subscriber moves.
#[test]
fn a_move_keeps_messages_in_order() {
    let mut world = World::new(3);
    let (s, _) = world.connect(1, lasting("s", 100));
    world.subscribe(s, "a", QoS::AtLeastOnce);
    let p = world.client(0, "p");
    world.manual = true;
    let publish = |world: &mut World, i: u16| {
        world.send(
            p,
            Packet::Publish(publish_acked("a", &i.to_string(), QoS::AtLeastOnce, i + 1)),
        );
    };
    publish(&mut world, 0);
    // The session moves from 1 to 2 while the message is on its way from 0 to 1.
    let s = world.open(2);
    world.send(s, Packet::Connect(Box::new(lasting("s", 100))));
    while let Some(event) = world
        .events()
        .into_iter()
        .find(|e| *e != Event::Mesh((0, 1)))
    {
        world.happen(event);
    }
    publish(&mut world, 1);
    while let Some(event) = world
        .events()
        .into_iter()
        .find(|e| *e != Event::Mesh((0, 1)))
    {
        world.happen(event);
    }
    let early = world.payloads(s);
    assert!(
        early.is_empty(),
        "{early:?} came before what was sent first"
    );
    world.run();
    assert_eq!(world.payloads(s), ["0", "1"]);
    assert_eq!(world.sum(|c| c.mesh_forwarded), 1);
}

/// The control messages of a fence may be lost with a worker: nothing waits for ever.
#[test]
fn a_fence_that_is_lost_is_not_waited_for() {
    let mut world = World::new(3);
    let (s, _) = world.connect(1, lasting("s", 100));
    world.subscribe(s, "a", QoS::AtLeastOnce);
    let p = world.client(0, "p");
    world.manual = true;
    let s = world.open(2);
    world.send(s, Packet::Connect(Box::new(lasting("s", 100))));
    let deaf = |e: &Event| matches!(e, Event::Mesh((_, 0)));
    while let Some(event) = world.events().into_iter().find(|e| !deaf(e)) {
        world.happen(event);
    }
    world.send(
        p,
        Packet::Publish(publish_acked("a", "x", QoS::AtLeastOnce, 1)),
    );
    while let Some(event) = world.events().into_iter().find(|e| !deaf(e)) {
        world.happen(event);
    }
    assert!(world.payloads(s).is_empty());
    world.advance_s(6);
    assert_eq!(world.payloads(s), ["x"]);
}
