//! Statements of MQTT 5.0 about topics and subscriptions that no other test is about.

use crate::common::*;
use headgate_codec::{
    Packet, Publish, QoS, ReasonCode, SubscriptionOptions, Text, Unsubscribe, Version,
};

const QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

fn options(qos: QoS) -> SubscriptionOptions {
    SubscriptionOptions {
        qos,
        ..SubscriptionOptions::default()
    }
}

/// The reason of a SUBSCRIBE with one filter.
fn asked(world: &mut World, id: Id, filter: &str) -> u8 {
    world.send(id, subscribe(1, filter, options(QoS::AtMostOnce)));
    match world.read_one(id) {
        Packet::SubAck(suback) => suback.reasons[0].0,
        other => panic!("SUBACK expected, not {other:?}"),
    }
}

fn publishes(world: &mut World, id: Id) -> Vec<Publish> {
    let packets = world.read(id);
    packets.iter().filter_map(publish_of).cloned().collect()
}

/// [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.3-1]
#[test]
fn wildcards_stand_alone_in_a_filter() {
    let mut world = World::new(1);
    let id = world.client(0, "a");
    for filter in [
        "#", "a/#", "/#", "+", "+/a", "a/+", "a/+/b", "+/+/#", "/", "a//b", " ",
    ] {
        assert_eq!(asked(&mut world, id, filter), 0, "{filter}");
    }
    for filter in ["", "a#", "a/#/b", "#/a", "##", "a+", "+a", "a/b+/c", "a/+b"] {
        assert_eq!(asked(&mut world, id, filter), 0x8f, "{filter:?}");
        world.send(id, unsubscribe(2, filter));
        let answer = world.read_one(id);
        assert!(
            matches!(&answer, Packet::UnsubAck(a) if a.reasons == [ReasonCode::TOPIC_FILTER_INVALID]),
            "{filter:?}: {answer:?}"
        );
    }
}

/// [MQTT-4.7.0-1] [MQTT-3.3.2-2] [MQTT-4.7.3-1]
#[test]
fn a_topic_name_has_no_wildcard_and_is_not_empty() {
    for topic in ["a/+", "+", "#", "a#b", "a+b", ""] {
        for version in [Version::V5, Version::V311] {
            let mut world = World::new(1);
            let watcher = world.client(0, "w");
            world.subscribe(watcher, "#", QoS::AtMostOnce);
            let (id, _) = world.connect(
                0,
                headgate_codec::Connect {
                    version,
                    ..connect("p")
                },
            );
            world.send(id, Packet::Publish(publish(topic, "x")));
            assert!(world.wires[id].closed.is_some(), "{topic:?}");
            assert!(world.payloads(watcher).is_empty());
        }
    }
}

/// [MQTT-4.7.3-4] [MQTT-3.3.2-3] [MQTT-1.5.4-3]: names and filters are compared as they are, and a
/// subscriber gets the topic as it was sent.
#[test]
fn topics_are_not_normalized() {
    let topics = [
        "a/b",
        "A/b",
        "a/b/",
        "/a/b",
        "a//b",
        "a/./b",
        "a /b",
        "é",
        "e\u{301}",
        "\u{feff}a/b",
        "a%2fb",
    ];
    let mut world = World::new(2);
    let s = world.client(1, "s");
    for topic in topics {
        world.subscribe(s, topic, QoS::AtMostOnce);
        let p = world.client(0, "p");
        for other in topics {
            world.send(p, Packet::Publish(publish(other, other)));
        }
        let got = publishes(&mut world, s);
        assert_eq!(got.len(), 1, "{topic}");
        assert_eq!(got[0].topic, topic);
        assert_eq!(got[0].payload, topic.as_bytes());
        world.send(s, unsubscribe(2, topic));
        world.read(s);
    }
}

/// [MQTT-4.7.2-1]: also for retained messages, and for later levels there is no such rule.
#[test]
fn wildcards_at_the_beginning_do_not_match_dollar_topics() {
    let mut world = World::new(1);
    let p = world.client(0, "p");
    let s = world.client(0, "s");
    for retain in [false, true] {
        for (filter, expected) in [
            ("#", 0),
            ("+/#", 0),
            ("+/+", 0),
            ("$x/#", 1),
            ("$x/+", 1),
            ("$x/y", 1),
        ] {
            let send = |world: &mut World| {
                let message = publish("$x/y", "m");
                world.send(p, Packet::Publish(Publish { retain, ..message }));
            };
            if retain {
                send(&mut world);
                world.subscribe(s, filter, QoS::AtMostOnce);
            } else {
                world.subscribe(s, filter, QoS::AtMostOnce);
                send(&mut world);
            }
            assert_eq!(world.payloads(s).len(), expected, "{filter} {retain}");
            world.send(s, unsubscribe(2, filter));
            world.read(s);
        }
    }
    world.subscribe(s, "a/+", QoS::AtMostOnce);
    world.send(p, Packet::Publish(publish("a/$b", "m")));
    assert_eq!(world.payloads(s), ["m"]);
}

/// [MQTT-3.8.4-3]: the later subscription with the same filter stands in the place of the earlier one.
#[test]
fn the_same_filter_replaces_a_subscription() {
    let mut world = World::new(2);
    let s = world.client(1, "s");
    let p = world.client(0, "p");
    for (i, qos) in [2, 0, 1, 2, 0].into_iter().enumerate() {
        let Packet::Subscribe(mut packet) = subscribe(1, "a/+", options(QOS[qos])) else {
            unreachable!()
        };
        let id = (i % 2 == 0).then_some(i as u32 + 1);
        packet.subscription_id = id;
        packet.filters[0].1.retain_as_published = i % 2 == 1;
        world.send(s, Packet::Subscribe(packet));
        world.read(s);
        let message = publish_acked("a/b", "x", QoS::ExactlyOnce, i as u16 + 1);
        world.send(
            p,
            Packet::Publish(Publish {
                retain: true,
                ..message
            }),
        );
        let got = publishes(&mut world, s);
        assert_eq!(got.len(), 1, "one subscription, one message");
        assert_eq!((got[0].qos, got[0].retain), (QOS[qos], i % 2 == 1));
        let ids = got[0]
            .properties
            .as_ref()
            .map(|p| p.subscription_ids.clone());
        assert_eq!(ids.unwrap_or_default(), Vec::from_iter(id));
        assert_eq!(world.sum(|c| c.subscriptions), 1);
    }
}

/// [MQTT-3.8.4-4]: what is published while a subscription is replaced reaches the client, before or
/// after; retained messages come again.
#[test]
fn replacing_a_subscription_loses_nothing() {
    let mut world = World::new(2);
    let s = world.client(1, "s");
    world.subscribe(s, "t", QoS::AtLeastOnce);
    let p = world.client(0, "p");
    world.send(
        p,
        Packet::Publish(Publish {
            retain: true,
            ..publish("t", "kept")
        }),
    );
    world.read(s);
    world.manual = true;
    let mut got = Vec::new();
    for i in 1..=30_u16 {
        let message = publish_acked("t", &i.to_string(), QoS::AtLeastOnce, i);
        world.send(p, Packet::Publish(message));
        world.send(s, subscribe(1, "t", options(QOS[1 + usize::from(i % 2)])));
        // Two events of the three or more that are due: replacing overtakes messages and is overtaken.
        for _ in 0..2 {
            if let Some(event) = world.events().last().copied() {
                world.happen(event);
            }
        }
        got.extend(world.payloads(s));
    }
    world.run();
    got.extend(world.payloads(s));
    let retained = got.iter().filter(|m| *m == "kept").count();
    assert!(retained > 0);
    for i in 1..=30 {
        let count = got.iter().filter(|m| **m == i.to_string()).count();
        assert_eq!(count, 1, "message {i} of {got:?}");
    }
}

/// [MQTT-3.10.4-1] [MQTT-3.10.4-6]: filters are compared as text, not by what they match.
#[test]
fn unsubscribe_removes_the_very_filter() {
    let mut world = World::new(1);
    let s = world.client(0, "s");
    let p = world.client(0, "p");
    for filter in ["a/+", "a/b", "A/b", "#"] {
        world.subscribe(s, filter, QoS::AtMostOnce);
    }
    let Packet::Unsubscribe(packet) = unsubscribe(2, "x") else {
        unreachable!()
    };
    let filters = ["a/#", "+/b", "a/B", "a/+", "#"].map(Text::from).to_vec();
    world.send(
        s,
        Packet::Unsubscribe(Box::new(Unsubscribe { filters, ..*packet })),
    );
    let Packet::UnsubAck(unsuback) = world.read_one(s) else {
        panic!("one UNSUBACK");
    };
    let reasons: Vec<u8> = unsuback.reasons.iter().map(|r| r.0).collect();
    assert_eq!(reasons, [0x11, 0x11, 0x11, 0, 0]);
    for (topic, count) in [("a/b", 1), ("A/b", 1), ("a/c", 0), ("zzz", 0)] {
        world.send(p, Packet::Publish(publish(topic, "m")));
        assert_eq!(world.payloads(s).len(), count, "{topic}");
    }
}

/// [MQTT-3.3.1-7] [MQTT-3.3.1-6]: an empty message is delivered, and neither stored nor kept from storing.
#[test]
fn an_empty_retained_message_is_delivered_and_not_stored() {
    let mut world = World::new(1);
    let s = world.client(0, "s");
    world.subscribe(s, "#", QoS::AtMostOnce);
    let p = world.client(0, "p");
    for (payload, stored) in [("", 0), ("x", 1), ("", 0), ("", 0), ("y", 1)] {
        world.send(
            p,
            Packet::Publish(Publish {
                retain: true,
                ..publish("t", payload)
            }),
        );
        assert_eq!(world.payloads(s), [payload]);
        assert_eq!(world.shared.retained.len(), stored);
    }
}
