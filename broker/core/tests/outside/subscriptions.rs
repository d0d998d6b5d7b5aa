//! SUBSCRIBE, UNSUBSCRIBE and retained messages, from outside.

use crate::common::*;
use headgate_codec::{Packet, PacketId, Publish, QoS, ReasonCode, SubscriptionOptions, Text};
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

/// [MQTT-3.3.4-2] [MQTT-3.3.4-3] [MQTT-3.3.4-4]
#[test]
fn overlapping_subscriptions_get_one_publish_with_the_highest_qos_and_all_ids() {
    for home in [0, 1] {
        let mut world = World::new(2);
        let s = world.client(home, "s");
        for (i, (filter, qos)) in [
            ("a/b", QoS::AtMostOnce),
            ("a/+", QoS::ExactlyOnce),
            ("#", QoS::AtLeastOnce),
            ("b", QoS::AtLeastOnce),
        ]
        .into_iter()
        .enumerate()
        {
            let Packet::Subscribe(mut packet) = subscribe(1, filter, options(qos)) else {
                unreachable!()
            };
            packet.subscription_id = Some(10 + i as u32);
            world.send(s, Packet::Subscribe(packet));
            world.read(s);
        }
        let p = world.client(0, "p");
        world.send(
            p,
            Packet::Publish(publish_acked("a/b", "x", QoS::ExactlyOnce, 1)),
        );
        let got = one(&mut world, s);
        assert_eq!(got.qos, QoS::ExactlyOnce);
        let mut ids = got.properties.expect("identifiers").subscription_ids;
        ids.sort_unstable();
        assert_eq!(ids, [10, 11, 12]);
    }
}

/// [MQTT-3.8.3-3]
#[test]
fn no_local_keeps_a_message_from_its_publisher() {
    let mut world = World::new(1);
    let (a, b) = (world.client(0, "a"), world.client(0, "b"));
    for id in [a, b] {
        world.send(
            id,
            subscribe(
                1,
                "t/#",
                SubscriptionOptions {
                    no_local: true,
                    ..options(QoS::AtMostOnce)
                },
            ),
        );
        world.send(
            id,
            subscribe(
                2,
                "t/x",
                SubscriptionOptions {
                    no_local: true,
                    ..options(QoS::AtMostOnce)
                },
            ),
        );
        world.read(id);
    }
    world.send(a, Packet::Publish(publish("t/x", "1")));
    assert!(world.read(a).is_empty());
    assert_eq!(world.payloads(b), ["1"]);
    world.subscribe(a, "t/+", QoS::AtMostOnce);
    world.send(a, Packet::Publish(publish("t/x", "2")));
    assert_eq!(world.payloads(a), ["2"]);
}

/// [MQTT-3.3.1-12] [MQTT-3.3.1-13]
#[test]
fn retain_is_kept_only_where_it_was_asked_for() {
    let mut world = World::new(2);
    let (a, b) = (world.client(0, "a"), world.client(1, "b"));
    world.subscribe(a, "t", QoS::AtMostOnce);
    let asked = SubscriptionOptions {
        retain_as_published: true,
        ..options(QoS::AtMostOnce)
    };
    world.send(b, subscribe(1, "t", asked));
    world.read(b);
    let p = world.client(0, "p");
    for retain in [true, false] {
        world.send(
            p,
            Packet::Publish(Publish {
                retain,
                ..publish("t", "x")
            }),
        );
        assert!(!one(&mut world, a).retain);
        assert_eq!(one(&mut world, b).retain, retain);
    }
}

/// [MQTT-3.3.1-5] [MQTT-3.3.1-6] [MQTT-3.3.1-8] [MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11] [MQTT-3.8.4-4]
#[test]
fn retained_messages_come_with_new_subscriptions() {
    let mut world = World::new(2);
    let p = world.client(0, "p");
    let retained = |topic, payload, qos, id| Publish {
        retain: true,
        ..publish_acked(topic, payload, qos, id)
    };
    world.send(
        p,
        Packet::Publish(retained("a/1", "old", QoS::AtLeastOnce, 1)),
    );
    world.send(
        p,
        Packet::Publish(retained("a/1", "one", QoS::ExactlyOnce, 2)),
    );
    world.send(
        p,
        Packet::Publish(Publish {
            retain: true,
            ..publish("a/2", "two")
        }),
    );
    world.send(
        p,
        Packet::Publish(Publish {
            retain: true,
            ..publish("a/3", "three")
        }),
    );
    world.send(
        p,
        Packet::Publish(Publish {
            retain: true,
            ..publish("a/3", "")
        }),
    );
    world.send(p, Packet::Publish(publish("a/2", "not retained")));
    let s = world.client(1, "s");
    let ask = |retain_handling| SubscriptionOptions {
        retain_handling,
        ..options(QoS::AtLeastOnce)
    };
    for (handling, expected) in [(2, 0), (1, 0), (0, 2), (0, 2), (1, 0)] {
        world.send(s, subscribe(1, "a/+", ask(handling)));
        let got = world.read(s);
        let messages: Vec<&Publish> = got.iter().filter_map(publish_of).collect();
        assert_eq!(messages.len(), expected, "handling {handling}");
        for (message, qos) in messages
            .into_iter()
            .zip([QoS::AtLeastOnce, QoS::AtMostOnce])
        {
            assert!(message.retain && message.qos == qos);
        }
    }
    world.send(s, subscribe(1, "a/1", ask(1)));
    assert_eq!(world.payloads(s), ["one"]);
    assert_eq!(world.shared.retained.len(), 2);
}

/// A subscription that matches more than the connection takes costs no memory: the rest is read
/// from the store as the client reads.
#[test]
fn retained_messages_come_as_the_connection_takes_them() {
    let mut world = World::with(1, RetainedLimits::default(), |c| {
        c.limits.send_buffer_bytes = 2_000;
        c.limits.queued_messages = 10;
        c.limits.inflight_messages = 5;
    });
    let p = world.client(0, "p");
    for i in 0..500 {
        let qos = QOS[i % 2];
        let payload = format!("{i} {}", "x".repeat(100));
        let message = match qos {
            QoS::AtMostOnce => publish(&format!("r/{i}"), &payload),
            _ => publish_acked(&format!("r/{i}"), &payload, qos, 1 + i as u16),
        };
        world.send(
            p,
            Packet::Publish(Publish {
                retain: true,
                ..message
            }),
        );
    }
    let s = world.client(0, "s");
    world.wires[s].stalled = true;
    world.send(s, subscribe(1, "#", options(QoS::AtLeastOnce)));
    assert!(world.wires[s].unread.len() < 3_000);
    world.wires[s].stalled = false;
    world.run();
    let mut all = Vec::new();
    loop {
        let packets = world.read(s);
        if packets.is_empty() {
            break;
        }
        for packet in packets {
            if let Packet::Publish(publish) = packet {
                all.push(publish.topic.to_string());
                if let Some(id) = publish.packet_id {
                    world.send(s, Packet::PubAck(ack(id.get())));
                }
            }
        }
    }
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 500);
    assert_eq!(
        world.counters(0).dropped_queue_full + world.counters(0).dropped_queue_full_qos0,
        0
    );
}

/// Nor do large ones cost more than the connection takes, whose QoS 0 no send quota holds up.
#[test]
fn a_portion_of_large_retained_messages_ends_when_the_connection_has_enough() {
    let mut world = World::with(1, RetainedLimits::default(), |c| {
        c.limits.send_buffer_bytes = 2_000;
    });
    let p = world.client(0, "p");
    for i in 10..50 {
        let message = Publish {
            retain: true,
            ..publish(&format!("r/{i}"), &"x".repeat(1_000))
        };
        world.send(p, Packet::Publish(message));
    }
    let s = world.client(0, "s");
    world.wires[s].stalled = true;
    world.send(s, subscribe(1, "#", options(QoS::AtMostOnce)));
    let waiting = world.wires[s].unread.len();
    assert!(waiting < 4_000, "{waiting} bytes wait");
    world.wires[s].stalled = false;
    world.run();
    let packets = world.read(s);
    let topics: Vec<_> = packets.iter().filter_map(publish_of).collect();
    let mut topics: Vec<_> = topics.iter().map(|p| p.topic.to_string()).collect();
    topics.sort();
    let expected: Vec<_> = (10..50).map(|i| format!("r/{i}")).collect();
    assert_eq!(topics, expected, "each once");
}

#[test]
fn a_full_retained_store_refuses_or_delivers_without_storing() {
    let mut world = World::with(
        1,
        RetainedLimits {
            messages: 1,
            bytes: 1_000_000,
        },
        |_| {},
    );
    let s = world.client(0, "s");
    world.subscribe(s, "#", QoS::AtLeastOnce);
    let p = world.client(0, "p");
    world.send(
        p,
        Packet::Publish(Publish {
            retain: true,
            ..publish("a", "1")
        }),
    );
    world.send(
        p,
        Packet::Publish(Publish {
            retain: true,
            ..publish("b", "2")
        }),
    );
    world.send(
        p,
        Packet::Publish(Publish {
            retain: true,
            ..publish_acked("b", "3", QoS::AtLeastOnce, 1)
        }),
    );
    assert!(
        matches!(world.read_one(p), Packet::PubAck(a) if a.reason == ReasonCode::QUOTA_EXCEEDED)
    );
    assert_eq!(world.payloads(s), ["1", "2"]);
    assert_eq!(
        (
            world.counters(0).limit_retained,
            world.shared.retained.len()
        ),
        (2, 1)
    );
}

/// [MQTT-3.8.4-6] [MQTT-3.9.3-1] [MQTT-3.8.4-5] [MQTT-3.10.4-4] [MQTT-3.10.4-5] [MQTT-3.11.3-1]
#[test]
fn every_filter_has_its_reason() {
    let mut world = World::with(1, RetainedLimits::default(), |c| {
        c.limits.subscriptions_per_session = 3;
        c.limits.topic_levels = 4;
    });
    let s = world.client(0, "s");
    let Packet::Subscribe(mut packet) = subscribe(9, "a", options(QoS::AtMostOnce)) else {
        unreachable!()
    };
    packet.filters = ["a", "a/#/b", "$share/g", "b/+", "1/2/3/4/5", "a", "c", "d"]
        .iter()
        .zip([0, 1, 1, 2, 0, 1, 0, 0])
        .map(|(f, q)| (Text::from(*f), options(QOS[q])))
        .collect();
    world.send(s, Packet::Subscribe(packet));
    let Packet::SubAck(suback) = world.read_one(s) else {
        panic!("SUBACK expected")
    };
    assert_eq!(suback.packet_id, PacketId::new(9).unwrap());
    let reasons: Vec<u8> = suback.reasons.iter().map(|r| r.0).collect();
    assert_eq!(reasons, [0, 0x8f, 0x8f, 2, 0x97, 1, 0, 0x97]);
    assert_eq!(
        (
            world.counters(0).subscriptions,
            world.counters(0).limit_subscriptions
        ),
        (3, 2)
    );
    let Packet::Unsubscribe(mut packet) = unsubscribe(8, "a") else {
        unreachable!()
    };
    packet.filters = ["a", "zzz", "a/#/b", "a"].map(Text::from).into();
    world.send(s, Packet::Unsubscribe(packet));
    let Packet::UnsubAck(unsuback) = world.read_one(s) else {
        panic!("UNSUBACK expected")
    };
    let reasons: Vec<u8> = unsuback.reasons.iter().map(|r| r.0).collect();
    assert_eq!(reasons, [0, 0x11, 0x8f, 0x11]);
    world.send(s, Packet::Publish(publish("a", "x")));
    assert!(world.read(s).is_empty());
    assert_eq!(world.counters(0).publish_unmatched, 1);
}
