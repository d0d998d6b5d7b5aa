//! Shared Subscriptions (MQTT 5.0 §4.8.2).

use crate::common::*;
use headgate_codec::{Packet, PacketId, QoS, ReasonCode, SubscriptionOptions, Version};
use headgate_core::{CoreConfig, RetainedLimits, ShareStrategy, Shared};
use std::sync::Arc;

fn world(workers: u8, strategy: ShareStrategy) -> World {
    let shared = Shared::new([1, 2], RetainedLimits::default()).with_strategy(strategy);
    World::sharing(workers, Arc::new(shared), |_: &mut CoreConfig| {})
}

/// Messages 1 to `count`, from one publisher.
fn publish_all(world: &mut World, p: Id, count: usize, qos: QoS) {
    for number in 1..=count {
        let packet = match qos {
            QoS::AtMostOnce => publish("a/b", &number.to_string()),
            _ => publish_acked("a/b", &number.to_string(), qos, number as u16),
        };
        world.send(p, Packet::Publish(packet));
        if qos == QoS::ExactlyOnce {
            world.send(p, Packet::PubRel(ack(number as u16)));
        }
    }
}

/// [MQTT-4.8.2-4]: each message once, whichever worker its members live on; other subscriptions get theirs besides.
#[test]
fn each_message_goes_to_one_member_in_turn() {
    let mut world = world(3, ShareStrategy::RoundRobin);
    let members: Vec<Id> = (0..3)
        .map(|n| world.client(n, &format!("member-{n}")))
        .collect();
    for &member in &members {
        world.subscribe(member, "$share/group/a/+", QoS::AtLeastOnce);
    }
    let alone = world.client(1, "alone");
    world.subscribe(alone, "$share/other/a/b", QoS::AtLeastOnce);
    world.subscribe(members[0], "a/#", QoS::AtMostOnce);
    let p = world.client(0, "p");
    publish_all(&mut world, p, 9, QoS::AtLeastOnce);
    let all: Vec<String> = (1..=9).map(|n| n.to_string()).collect();
    assert_eq!(world.payloads(alone), all);
    let packets = world.read(members[0]);
    let (shared, own): (Vec<_>, Vec<_>) = packets
        .iter()
        .filter_map(publish_of)
        .partition(|p| p.qos == QoS::AtLeastOnce);
    assert_eq!((shared.len(), own.len()), (3, 9));
    let mut got: Vec<String> = shared
        .iter()
        .map(|p| String::from_utf8_lossy(&p.payload).into_owned())
        .collect();
    for &member in &members[1..] {
        let payloads = world.payloads(member);
        assert_eq!(payloads.len(), 3);
        got.extend(payloads);
    }
    got.sort();
    assert_eq!(got, all);
}

#[test]
fn sticky_stays_with_a_member_until_it_is_gone() {
    let mut world = world(2, ShareStrategy::Sticky);
    let members = [world.client(0, "x"), world.client(1, "y")];
    for member in members {
        world.subscribe(member, "$share/g/a/b", QoS::AtMostOnce);
    }
    let p = world.client(0, "p");
    publish_all(&mut world, p, 4, QoS::AtMostOnce);
    let counts = members.map(|m| world.payloads(m).len());
    assert!(counts == [4, 0] || counts == [0, 4], "{counts:?}");
    let (first, second) = if counts[0] == 4 { (0, 1) } else { (1, 0) };
    world.lose(members[first]);
    publish_all(&mut world, p, 4, QoS::AtMostOnce);
    assert_eq!(world.payloads(members[second]).len(), 4);
}

#[test]
fn least_queued_spares_a_member_that_does_not_acknowledge() {
    let mut world = world(2, ShareStrategy::LeastQueued);
    let (idle, busy) = (world.client(0, "idle"), world.client(1, "busy"));
    for member in [idle, busy] {
        world.subscribe(member, "$share/g/a/b", QoS::AtLeastOnce);
    }
    let p = world.client(0, "p");
    let mut counts = [0, 0];
    for number in 1..=20 {
        let message = publish_acked("a/b", "x", QoS::AtLeastOnce, number);
        world.send(p, Packet::Publish(message));
        counts[1] += world.payloads(busy).len();
        for packet in world.read(idle) {
            if let Some(id) = publish_of(&packet).and_then(|p| p.packet_id) {
                counts[0] += 1;
                world.send(idle, Packet::PubAck(ack(id.get())));
            }
        }
    }
    assert_eq!(counts.iter().sum::<usize>(), 20);
    assert!(counts[1] <= 1, "{counts:?}");
}

/// A member that is connected gets what one that isn't could only keep.
#[test]
fn members_that_are_connected_come_first() {
    let mut world = world(2, ShareStrategy::RoundRobin);
    let (away, _) = world.connect(0, lasting("away", 100));
    let here = world.client(1, "here");
    for member in [away, here] {
        world.subscribe(member, "$share/g/a/b", QoS::AtLeastOnce);
    }
    world.lose(away);
    let p = world.client(0, "p");
    publish_all(&mut world, p, 4, QoS::AtLeastOnce);
    assert_eq!(world.payloads(here).len(), 4);
    world.send(here, disconnect(ReasonCode::SUCCESS));
    publish_all(&mut world, p, 2, QoS::AtLeastOnce);
    let (away, present) = world.connect(1, lasting("away", 100));
    assert!(present);
    // What `here` had not acknowledged when it went, and what came when nobody was there.
    assert_eq!(world.payloads(away).len(), 6);
}

/// What a member leaves: QoS 0 and 1 go to another, QoS 2 stays with its session [MQTT-4.8.2-4] [MQTT-4.8.2-5].
#[test]
fn unacknowledged_messages_of_a_member_that_leaves_go_to_another_but_for_qos_2() {
    for ends in [false, true] {
        for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
            let mut world = world(2, ShareStrategy::Sticky);
            let leaver = match ends {
                true => world.client(0, "leaver"),
                false => world.connect(0, lasting("leaver", 100)).0,
            };
            world.subscribe(leaver, "$share/g/a/b", qos);
            let p = world.client(1, "p");
            publish_all(&mut world, p, 3, qos);
            let stayer = world.client(1, "stayer");
            world.subscribe(stayer, "$share/g/a/b", qos);
            let sent = world.read(leaver);
            let ids: Vec<PacketId> = sent
                .iter()
                .filter_map(|p| publish_of(p)?.packet_id)
                .collect();
            assert_eq!(ids.len(), 3);
            if qos == QoS::AtLeastOnce {
                world.send(leaver, Packet::PubAck(ack(ids[0].get())));
            }
            world.lose(leaver);
            let got = world.read(stayer);
            let got: Vec<_> = got.iter().filter_map(publish_of).collect();
            assert!(got.iter().all(|p| !p.dup && p.qos == qos));
            let payloads: Vec<_> = got.iter().map(|p| p.payload.clone()).collect();
            match qos {
                QoS::ExactlyOnce => assert!(payloads.is_empty(), "{payloads:?}"),
                _ => assert_eq!(payloads, ["2", "3"], "in their order, ends: {ends}"),
            }
            if !ends {
                let (leaver, present) = world.connect(0, lasting("leaver", 100));
                assert!(present);
                let expected = if qos == QoS::ExactlyOnce { 3 } else { 0 };
                assert_eq!(world.payloads(leaver).len(), expected);
            }
        }
    }
}

/// What was recorded leaves one member's queue and enters the other's in one transaction; what was not needs none.
#[test]
fn a_recorded_message_is_handed_on_in_one_transaction() {
    for lasts in [false, true] {
        let mut world = world(2, ShareStrategy::Sticky);
        let expiry_s = if lasts { 100 } else { 0 };
        let mut connect = lasting("leaver", expiry_s);
        connect.properties.receive_maximum = Some(1);
        let leaver = world.connect(0, connect).0;
        world.subscribe(leaver, "$share/g/a/b", QoS::AtLeastOnce);
        let p = world.client(1, "p");
        publish_all(&mut world, p, 3, QoS::AtLeastOnce);
        let stayer = world.connect(1, lasting("stayer", 100)).0;
        world.subscribe(stayer, "$share/g/a/b", QoS::AtLeastOnce);
        let before = world.joined.len();
        world.lose(leaver);
        assert_eq!(world.payloads(stayer), ["1", "2", "3"]);
        // One was in flight, and two were queued: both parts of each.
        let parts = world.joined.len() - before;
        assert_eq!(parts, if lasts { 6 } else { 0 }, "lasts: {lasts}");
    }
}

/// A client that takes its session over keeps its messages; nobody else gets them.
#[test]
fn a_takeover_is_not_leaving() {
    let mut world = world(2, ShareStrategy::Sticky);
    let (first, _) = world.connect(0, lasting("x", 100));
    world.subscribe(first, "$share/g/a/b", QoS::AtLeastOnce);
    let other = world.client(1, "other");
    let p = world.client(1, "p");
    publish_all(&mut world, p, 2, QoS::AtLeastOnce);
    world.subscribe(other, "$share/g/a/b", QoS::AtLeastOnce);
    // To another worker: the group follows.
    let (second, present) = world.connect(1, lasting("x", 100));
    assert!(present);
    assert_eq!(world.payloads(second), ["1", "2"]);
    assert_eq!(world.payloads(other), [""; 0]);
    world.lose(other);
    publish_all(&mut world, p, 2, QoS::AtMostOnce);
    assert_eq!(world.payloads(second), ["1", "2"]);
}

/// [MQTT-4.8.2-6]: an error of the client discards the message; nobody else gets it.
#[test]
fn a_message_that_a_member_refuses_goes_to_nobody_else() {
    let mut world = world(1, ShareStrategy::Sticky);
    let (member, other) = (world.client(0, "x"), world.client(0, "y"));
    world.subscribe(member, "$share/g/a/b", QoS::AtLeastOnce);
    let p = world.client(0, "p");
    publish_all(&mut world, p, 1, QoS::AtLeastOnce);
    world.subscribe(other, "$share/g/a/b", QoS::AtLeastOnce);
    let packets = world.read(member);
    let id = packets.iter().find_map(|p| publish_of(p)?.packet_id);
    let mut refusal = ack(id.unwrap().get());
    refusal.reason = ReasonCode::QUOTA_EXCEEDED;
    world.send(member, Packet::PubAck(refusal));
    world.lose(member);
    assert_eq!(world.payloads(other), [""; 0]);
}

#[test]
fn a_subscription_identifier_of_a_group_comes_with_its_messages_only() {
    let mut world = world(1, ShareStrategy::RoundRobin);
    let s = world.client(0, "s");
    for (filter, id) in [("$share/g/a/b", 7), ("$share/h/a/+", 8), ("a/#", 9)] {
        let Packet::Subscribe(mut packet) = subscribe(1, filter, SubscriptionOptions::default())
        else {
            unreachable!()
        };
        packet.subscription_id = Some(id);
        world.send(s, Packet::Subscribe(packet));
        world.read(s);
    }
    let p = world.client(0, "p");
    publish_all(&mut world, p, 1, QoS::AtMostOnce);
    let packets = world.read(s);
    let mut ids: Vec<Vec<u32>> = packets
        .iter()
        .filter_map(|p| Some(publish_of(p)?.properties.as_ref()?.subscription_ids.clone()))
        .collect();
    ids.sort();
    assert_eq!(ids, [[7], [8], [9]]);
}

#[test]
fn what_is_wrong_with_a_shared_subscription_is_said() {
    let mut world = world(1, ShareStrategy::RoundRobin);
    let s = world.client(0, "s");
    for filter in ["$share/g", "$share//a", "$share/g+/a", "$share/g/a/#/b"] {
        world.send(s, subscribe(1, filter, SubscriptionOptions::default()));
        let Packet::SubAck(suback) = world.read_one(s) else {
            panic!("SUBACK expected")
        };
        // [MQTT-4.8.2-1] [MQTT-4.8.2-2]
        assert_eq!(
            suback.reasons,
            [ReasonCode::TOPIC_FILTER_INVALID],
            "{filter}"
        );
    }
    // [MQTT-3.8.3-4]
    let no_local = SubscriptionOptions {
        no_local: true,
        ..SubscriptionOptions::default()
    };
    world.send(s, subscribe(2, "$share/g/a", no_local));
    assert_eq!(world.wires[s].closed, Some(ReasonCode::PROTOCOL_ERROR));
}

/// No retained messages; after UNSUBSCRIBE nothing more; the last one takes the group with it.
#[test]
fn a_group_gets_no_retained_messages_and_ends_with_its_last_member() {
    let mut world = world(1, ShareStrategy::RoundRobin);
    let p = world.client(0, "p");
    let mut retained = publish("a/b", "kept");
    retained.retain = true;
    world.send(p, Packet::Publish(retained));
    let mut old = connect("old");
    old.version = Version::V311;
    let (s, _) = world.connect(0, old);
    world.subscribe(s, "$share/g/a/b", QoS::AtMostOnce);
    assert_eq!(world.payloads(s), [""; 0]);
    publish_all(&mut world, p, 1, QoS::AtMostOnce);
    assert_eq!(world.payloads(s), ["1"]);
    world.send(s, unsubscribe(2, "$share/g/a/b"));
    world.read(s);
    publish_all(&mut world, p, 1, QoS::AtMostOnce);
    assert_eq!(world.payloads(s), [""; 0]);
    assert_eq!(world.shared.topics.len(), 0);
}
