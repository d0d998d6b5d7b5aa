//! Statements of MQTT 5.0 about delivery, acknowledgements and flow control that no other test is about.

use std::collections::BTreeSet;

use crate::common::*;
use headgate_codec::{Ack, Packet, Publish, QoS, ReasonCode, SubscriptionOptions, Text, Version};
use headgate_core::RetainedLimits;

const QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

fn refused(id: u16) -> Ack {
    Ack {
        reason: ReasonCode::UNSPECIFIED_ERROR,
        ..ack(id)
    }
}

fn publishes(world: &mut World, id: Id) -> Vec<Publish> {
    let packets = world.read(id);
    packets.iter().filter_map(publish_of).cloned().collect()
}

/// A world with a subscriber that comes back, for everything, and a publisher.
fn pair() -> (World, Id, Id) {
    let mut world = World::new(1);
    let (s, _) = world.connect(0, lasting("s", 1_000));
    world.subscribe(s, "#", QoS::ExactlyOnce);
    let p = world.client(0, "p");
    (world, s, p)
}

/// [MQTT-2.2.1-4] [MQTT-4.3.2-1] [MQTT-4.3.3-1]: over more messages than there are identifiers, with
/// some that stay unacknowledged.
#[test]
fn packet_identifiers_are_not_zero_and_not_in_use() {
    let (mut world, s, p) = pair();
    let mut open = BTreeSet::new();
    for i in 0..70_000_u32 {
        let qos = QOS[1 + (i % 2) as usize];
        let message = publish_acked("t", "x", qos, 1);
        world.send(p, Packet::Publish(message));
        if qos == QoS::ExactlyOnce {
            world.send(p, Packet::PubRel(ack(1)));
        }
        world.read(p);
        let got = publishes(&mut world, s);
        let id = got[0].packet_id.expect("QoS > 0").get();
        assert!(open.insert(id), "{id} is still in use, message {i}");
        // Every thousandth one waits for ever.
        if i % 7_000 == 0 {
            continue;
        }
        open.remove(&id);
        if qos == QoS::ExactlyOnce {
            world.send(s, Packet::PubRec(ack(id)));
            world.read(s);
            world.send(s, Packet::PubComp(ack(id)));
        } else {
            world.send(s, Packet::PubAck(ack(id)));
        }
        if i % 1_000 == 0 {
            world.advance_s(1);
        }
    }
    assert_eq!(open.len(), 10);
}

/// [MQTT-3.3.1-3] [MQTT-4.3.1-1] [MQTT-4.3.2-2] [MQTT-4.3.3-2]: DUP of what comes in says nothing about
/// what goes out.
#[test]
fn dup_is_the_servers_own() {
    let (mut world, s, p) = pair();
    for (i, qos) in QOS.into_iter().enumerate() {
        let message = match qos {
            QoS::AtMostOnce => publish("t", "x"),
            _ => Publish {
                dup: true,
                ..publish_acked("t", "x", qos, i as u16)
            },
        };
        world.send(p, Packet::Publish(message));
        let got = publishes(&mut world, s);
        assert_eq!((got.len(), got[0].qos, got[0].dup), (1, qos, false));
    }
}

/// [MQTT-4.3.2-5] [MQTT-4.3.2-4]: after PUBACK the identifier names a new message, whatever DUP says.
#[test]
fn a_qos_1_identifier_is_new_after_its_puback() {
    let (mut world, s, p) = pair();
    for (i, dup) in [false, true, true, false].into_iter().enumerate() {
        let message = Publish {
            dup,
            ..publish_acked("t", &i.to_string(), QoS::AtLeastOnce, 9)
        };
        world.send(p, Packet::Publish(message));
        assert_eq!(world.read_one(p), Packet::PubAck(ack(9)));
        assert_eq!(world.payloads(s), [i.to_string()]);
    }
}

/// [MQTT-4.3.3-9]: a QoS 2 message that was refused leaves its identifier free.
#[test]
fn a_refused_qos_2_message_is_forgotten() {
    let none = RetainedLimits {
        messages: 0,
        bytes: 1_000,
    };
    let mut world = World::with(1, none, |_| ());
    let s = world.client(0, "s");
    world.subscribe(s, "t", QoS::AtMostOnce);
    let p = world.client(0, "p");
    let retained = Publish {
        retain: true,
        ..publish_acked("t", "refused", QoS::ExactlyOnce, 3)
    };
    world.send(p, Packet::Publish(retained));
    let Packet::PubRec(said) = world.read_one(p) else {
        panic!("PUBREC expected");
    };
    assert!(said.reason.0 >= 0x80);
    world.send(
        p,
        Packet::Publish(publish_acked("t", "new", QoS::ExactlyOnce, 3)),
    );
    assert_eq!(world.read_one(p), Packet::PubRec(ack(3)));
    assert_eq!(world.payloads(s), ["new"]);
}

/// [MQTT-4.3.3-7] [MQTT-4.3.3-13] [MQTT-4.3.2-3] [MQTT-4.3.3-3] [MQTT-4.3.3-5]: what was sent is
/// completed although it has expired meanwhile.
#[test]
fn a_message_that_was_sent_does_not_expire() {
    let (mut world, s, p) = pair();
    for (id, qos) in [
        (1, QoS::AtLeastOnce),
        (2, QoS::ExactlyOnce),
        (3, QoS::ExactlyOnce),
    ] {
        let message = with(publish_acked("t", &id.to_string(), qos, id), |p| {
            p.message_expiry_s = Some(5);
        });
        world.send(p, Packet::Publish(message));
    }
    let ids: Vec<u16> = publishes(&mut world, s)
        .iter()
        .filter_map(|p| Some(p.packet_id?.get()))
        .collect();
    world.send(s, Packet::PubRec(ack(ids[2])));
    assert_eq!(world.read_one(s), Packet::PubRel(ack(ids[2])));
    world.lose(s);
    world.advance_s(30);
    let (s, _) = world.connect(0, lasting("s", 1_000));
    let again = world.read(s);
    let [
        Packet::Publish(one),
        Packet::Publish(two),
        Packet::PubRel(three),
    ] = &again[..]
    else {
        panic!("{again:?}");
    };
    assert!(one.dup && two.dup);
    let found = [one.packet_id, two.packet_id, Some(three.packet_id)];
    assert_eq!(found.map(|id| id.map_or(0, |id| id.get())), ids[..]);
    world.send(s, Packet::PubAck(ack(ids[0])));
    world.send(s, Packet::PubRec(ack(ids[1])));
    assert_eq!(world.read_one(s), Packet::PubRel(ack(ids[1])));
    world.send(s, Packet::PubComp(ack(ids[1])));
    world.send(s, Packet::PubComp(ack(ids[2])));
    world.lose(s);
    let (s, _) = world.connect(0, lasting("s", 1_000));
    assert!(world.read(s).is_empty(), "all are acknowledged");
}

/// [MQTT-4.3.3-13]: on the receiving side.
#[test]
fn qos_2_of_an_expired_message_is_completed() {
    let (mut world, _, p) = pair();
    let message = with(publish_acked("t", "x", QoS::ExactlyOnce, 1), |p| {
        p.message_expiry_s = Some(1);
    });
    world.send(p, Packet::Publish(message.clone()));
    assert_eq!(world.read_one(p), Packet::PubRec(ack(1)));
    world.advance_s(10);
    world.send(
        p,
        Packet::Publish(Publish {
            dup: true,
            ..message
        }),
    );
    assert_eq!(world.read_one(p), Packet::PubRec(ack(1)));
    world.send(p, Packet::PubRel(ack(1)));
    assert_eq!(world.read_one(p), Packet::PubComp(ack(1)));
}

/// [MQTT-4.4.0-2]: PUBACK and PUBREC with an error end a message; nothing is sent again.
#[test]
fn a_message_that_the_client_refused_is_not_sent_again() {
    let (mut world, s, p) = pair();
    for (id, qos) in [(1, QoS::AtLeastOnce), (2, QoS::ExactlyOnce)] {
        world.send(p, Packet::Publish(publish_acked("t", "x", qos, id)));
        let id = publishes(&mut world, s)[0]
            .packet_id
            .expect("QoS > 0")
            .get();
        world.send(
            s,
            match qos {
                QoS::ExactlyOnce => Packet::PubRec(refused(id)),
                _ => Packet::PubAck(refused(id)),
            },
        );
        assert!(world.read(s).is_empty(), "no PUBREL either");
    }
    world.lose(s);
    let (s, present) = world.connect(0, lasting("s", 1_000));
    assert!(present && world.read(s).is_empty());
}

/// [MQTT-4.4.0-1]: while the connection lasts nothing is sent again, however long it takes.
#[test]
fn nothing_is_sent_again_on_the_same_connection() {
    let (mut world, s, p) = pair();
    for (id, qos) in [(1, QoS::AtLeastOnce), (2, QoS::ExactlyOnce)] {
        world.send(p, Packet::Publish(publish_acked("t", "x", qos, id)));
    }
    assert_eq!(publishes(&mut world, s).len(), 2);
    for _ in 0..20 {
        world.advance_s(50);
        world.send(s, Packet::PingReq);
        assert_eq!(world.read_one(s), Packet::PingResp);
    }
}

/// [MQTT-4.9.0-1] [MQTT-4.9.0-2] [MQTT-4.9.0-3] [MQTT-3.3.4-9] [MQTT-3.3.4-10]: a client whose quota is
/// used up still gets, and gives, everything but PUBLISH with QoS > 0.
#[test]
fn without_send_quota_everything_else_goes_on() {
    for quota in [1, 2, 7] {
        let mut world = World::new(1);
        let mut c = connect("s");
        c.properties.receive_maximum = Some(quota);
        let (s, _) = world.connect(0, c);
        world.subscribe(s, "t", QoS::ExactlyOnce);
        let p = world.client(0, "p");
        for id in 1..=quota + 3 {
            let qos = QOS[1 + usize::from(id % 2)];
            world.send(p, Packet::Publish(publish_acked("t", "x", qos, id)));
            world.read(p);
        }
        let sent = publishes(&mut world, s);
        assert_eq!(sent.len(), usize::from(quota));
        world.send(s, Packet::PingReq);
        assert_eq!(world.read_one(s), Packet::PingResp);
        world.send(s, subscribe(7, "u", SubscriptionOptions::default()));
        assert!(matches!(world.read_one(s), Packet::SubAck(_)));
        world.send(s, unsubscribe(8, "u"));
        assert!(matches!(world.read_one(s), Packet::UnsubAck(_)));
        world.send(
            s,
            Packet::Publish(publish_acked("v", "x", QoS::ExactlyOnce, 1)),
        );
        assert!(matches!(world.read_one(s), Packet::PubRec(_)));
        world.send(s, Packet::PubRel(ack(1)));
        assert!(matches!(world.read_one(s), Packet::PubComp(_)));
        world.send(p, Packet::Publish(publish("t", "zero")));
        assert_eq!(world.payloads(s), ["zero"]);
        // PUBREC alone frees nothing; PUBACK and PUBCOMP do.
        let mut rest = Vec::new();
        for message in sent {
            let id = message.packet_id.expect("QoS > 0").get();
            if message.qos == QoS::ExactlyOnce {
                world.send(s, Packet::PubRec(ack(id)));
                assert_eq!(world.read_one(s), Packet::PubRel(ack(id)));
                world.send(s, Packet::PubComp(ack(id)));
            } else {
                world.send(s, Packet::PubAck(ack(id)));
            }
            rest.extend(publishes(&mut world, s));
        }
        assert_eq!(rest.len(), usize::from(quota.min(3)));
    }
}

/// [MQTT-3.3.4-8]: a client that has used up the server's Receive Maximum is answered in all else.
#[test]
fn a_client_without_quota_is_answered() {
    let mut world = World::with(1, RetainedLimits::default(), |c| {
        c.limits.receive_maximum = 2;
    });
    let p = world.client(0, "p");
    for id in [1, 2] {
        world.send(
            p,
            Packet::Publish(publish_acked("t", "x", QoS::ExactlyOnce, id)),
        );
        assert!(matches!(world.read_one(p), Packet::PubRec(_)));
    }
    world.send(p, Packet::Publish(publish("t", "x")));
    world.send(p, Packet::PingReq);
    assert_eq!(world.read_one(p), Packet::PingResp);
    world.send(p, subscribe(3, "t", SubscriptionOptions::default()));
    assert!(matches!(world.read_one(p), Packet::SubAck(_)));
    world.send(p, Packet::PubRel(ack(1)));
    assert!(matches!(world.read_one(p), Packet::PubComp(_)));
    world.send(
        p,
        Packet::Publish(publish_acked("t", "x", QoS::ExactlyOnce, 3)),
    );
    assert!(world.wires[p].closed.is_none());
}

/// [MQTT-4.5.0-1]: a message belongs to every session that matches, connected or not.
#[test]
fn a_message_is_kept_for_every_matching_session() {
    let mut world = World::new(2);
    let filters = ["t", "+", "#", "other"];
    for (i, filter) in filters.iter().enumerate() {
        let (id, _) = world.connect(i % 2, lasting(&format!("s{i}"), 100));
        world.subscribe(id, filter, QOS[1 + i % 2]);
        world.lose(id);
    }
    let p = world.client(0, "p");
    world.send(
        p,
        Packet::Publish(publish_acked("t", "x", QoS::ExactlyOnce, 1)),
    );
    for (i, filter) in filters.iter().enumerate() {
        let (id, _) = world.connect(0, lasting(&format!("s{i}"), 100));
        let got = publishes(&mut world, id);
        assert_eq!(got.len(), usize::from(*filter != "other"), "{filter}");
        assert!(got.iter().all(|m| m.qos == QOS[1 + i % 2]));
    }
}

/// [MQTT-4.6.0-5] [MQTT-4.6.0-6]: topics of every publisher keep their order, per QoS, for a subscriber
/// on another worker too, and through an absence.
#[test]
fn messages_of_a_topic_stay_in_order() {
    for home in [0, 1] {
        let mut world = World::new(2);
        let (s, _) = world.connect(home, lasting("s", 100));
        world.subscribe(s, "t/#", QoS::ExactlyOnce);
        let p = world.client(0, "p");
        let send = |world: &mut World, i: u16| {
            let qos = QOS[1 + usize::from(i % 2)];
            let topic = format!("t/{}", i % 3);
            world.send(
                p,
                Packet::Publish(publish_acked(&topic, &i.to_string(), qos, i)),
            );
            world.send(p, Packet::PubRel(ack(i)));
            world.read(p);
        };
        (1..20).for_each(|i| send(&mut world, i));
        let mut got = world.payloads(s);
        world.lose(s);
        (20..40).for_each(|i| send(&mut world, i));
        let (s, _) = world.connect(1 - home, lasting("s", 100));
        let again: Vec<Publish> = publishes(&mut world, s);
        assert!(again.iter().take(19).all(|m| m.dup));
        got.extend(
            again
                .iter()
                .skip(19)
                .map(|m| String::from_utf8_lossy(&m.payload).into()),
        );
        let expected: Vec<String> = (1..40).map(|i| i.to_string()).collect();
        assert_eq!(got, expected);
    }
}

/// [MQTT-3.1.2-29] [MQTT-3.4.2-2] [MQTT-3.4.2-3] [MQTT-3.5.2-2] [MQTT-3.5.2-3] [MQTT-3.6.2-2]
/// [MQTT-3.6.2-3] [MQTT-3.7.2-2] [MQTT-3.7.2-3] [MQTT-3.9.2-1] [MQTT-3.9.2-2] [MQTT-3.11.2-1]
/// [MQTT-3.11.2-2] [MQTT-3.14.2-3] [MQTT-3.14.2-4]: answers that report an error stay within the
/// client's Maximum Packet Size (the harness asserts it of every packet), and a client that doesn't
/// want explanations gets them in DISCONNECT at most.
#[test]
fn explanations_never_make_an_answer_too_large_or_unwanted() {
    let full = RetainedLimits {
        messages: 0,
        bytes: 1_000,
    };
    for (max, wanted) in [(None, false), (Some(40), true), (Some(40), false)] {
        let mut world = World::with(1, full, |c| c.limits.topic_levels = 3);
        let mut c = connect("a");
        c.properties.maximum_packet_size = max;
        c.properties.request_problem_information = Some(wanted);
        let id = world.open(0);
        world.send(id, Packet::Connect(Box::new(c)));
        world.read(id);
        let retained = |qos, packet_id| Publish {
            retain: true,
            ..publish_acked("t", "x", qos, packet_id)
        };
        for packet in [
            Packet::Publish(retained(QoS::AtLeastOnce, 1)),
            Packet::Publish(retained(QoS::ExactlyOnce, 2)),
            Packet::PubRel(ack(77)),
            Packet::PubRec(ack(77)),
            subscribe(3, "a/#/b", SubscriptionOptions::default()),
            subscribe(4, "a/b/c/d/e", SubscriptionOptions::default()),
            unsubscribe(5, "never"),
        ] {
            world.send(id, packet);
        }
        let packets = world.read(id);
        assert_eq!(packets.len(), 7, "{packets:?}");
        if !wanted {
            assert!(packets.iter().all(is_plain), "{packets:?}");
        }
        world.send(id, Packet::Connect(Box::new(connect("a"))));
        assert!(matches!(world.read_one(id), Packet::Disconnect(_)));
    }
}

/// A retained message that is one too many is refused where there is a way to say so, MQTT 5, and otherwise delivered, but not kept.
#[test]
fn without_reason_codes_a_retained_message_too_many_is_delivered() {
    let full = RetainedLimits {
        messages: 0,
        bytes: 1_000,
    };
    for (version, delivered) in [(Version::V5, 0), (Version::V311, 1)] {
        let mut world = World::with(1, full, |_| {});
        let listener = world.client(0, "listener");
        world.subscribe(listener, "t", QoS::AtMostOnce);
        let publisher = world.open(0);
        let mut c = connect("publisher");
        c.version = version;
        world.send(publisher, Packet::Connect(Box::new(c)));
        world.read(publisher);
        let retained = Publish {
            retain: true,
            ..publish_acked("t", "x", QoS::AtLeastOnce, 1)
        };
        world.send(publisher, Packet::Publish(retained));
        assert_eq!(world.payloads(listener).len(), delivered, "{version:?}");
    }
}

/// Neither Reason String nor User Property.
fn is_plain(packet: &Packet) -> bool {
    match packet {
        Packet::PubAck(p) | Packet::PubRec(p) | Packet::PubRel(p) | Packet::PubComp(p) => {
            p.properties.is_none()
        }
        Packet::SubAck(p) | Packet::UnsubAck(p) => p.properties == Default::default(),
        _ => false,
    }
}

/// [MQTT-3.3.2-17] [MQTT-3.3.2-18]: also through storage and a retained message, to 3.1.1 they are dropped.
#[test]
fn user_properties_keep_their_order_wherever_they_wait() {
    let (mut world, s, p) = pair();
    world.lose(s);
    let user: Vec<(Text, Text)> = (0..20)
        .map(|i| {
            (
                format!("k{}", i % 3).as_str().into(),
                i.to_string().as_str().into(),
            )
        })
        .collect();
    let message = with(publish_acked("t", "x", QoS::AtLeastOnce, 1), |p| {
        p.user_properties.clone_from(&user);
    });
    world.send(
        p,
        Packet::Publish(Publish {
            retain: true,
            ..message
        }),
    );
    let (s, _) = world.connect(0, lasting("s", 1_000));
    let late = world.client(0, "late");
    world.subscribe(late, "t", QoS::AtLeastOnce);
    for id in [s, late] {
        let got = publishes(&mut world, id);
        let found = got[0].properties.as_ref().map(|p| &p.user_properties);
        assert_eq!(found, Some(&user));
    }
    let (old, _) = world.connect(
        0,
        headgate_codec::Connect {
            version: Version::V311,
            ..connect("old")
        },
    );
    world.subscribe(old, "t", QoS::AtLeastOnce);
    assert_eq!(publishes(&mut world, old)[0].properties, None);
}
