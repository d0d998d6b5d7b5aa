//! What the core gives up while the machine runs short, and that it goes on as before afterwards.

use crate::common::*;
use headgate_codec::{Packet, QoS, ReasonCode};
use headgate_core::{Input, Pressure};

fn press(world: &mut World, pressure: Pressure) {
    world.handle(0, Input::Pressure(pressure));
}

fn relieve(world: &mut World) {
    press(world, Pressure::default());
}

/// A client that takes nothing any more, with messages of this QoS that wait.
fn stalled(world: &mut World, name: &str, qos: QoS, messages: usize) -> Id {
    let id = world.client(0, name);
    world.subscribe(id, &format!("to/{name}"), qos);
    world.wires[id].stalled = true;
    let publisher = world.client(0, &format!("publisher-of-{name}"));
    for _ in 0..messages {
        send(world, publisher, name, &"x".repeat(10_000), qos);
    }
    id
}

fn send(world: &mut World, publisher: Id, to: &str, payload: &str, qos: QoS) {
    let topic = format!("to/{to}");
    let message = match qos {
        QoS::AtMostOnce => publish(&topic, payload),
        _ => publish_acked(&topic, payload, qos, 1),
    };
    world.send(publisher, Packet::Publish(message));
    if qos != QoS::AtMostOnce {
        assert!(matches!(world.read_one(publisher), Packet::PubAck(_)));
    }
}

fn flow_again(world: &mut World, id: Id) {
    world.wires[id].stalled = false;
    world.run();
}

#[test]
fn while_memory_is_short_new_clients_are_refused_and_the_others_go_on() {
    let mut world = World::new(1);
    let reader = world.client(0, "reader");
    world.subscribe(reader, "a", QoS::AtLeastOnce);
    press(
        &mut world,
        Pressure {
            refuse_clients: true,
            ..Pressure::default()
        },
    );
    let late = world.open(0);
    world.send(late, Packet::Connect(Box::new(connect("late"))));
    match world.read_one(late) {
        Packet::ConnAck(connack) => assert_eq!(connack.reason, ReasonCode::SERVER_BUSY),
        other => panic!("expected CONNACK, got {other:?}"),
    }
    assert_eq!(world.wires[late].closed, Some(ReasonCode::SERVER_BUSY));
    assert_eq!(world.counters(0).limit_memory, 1);
    world.send(reader, Packet::Publish(publish("a", "still here")));
    assert_eq!(world.payloads(reader), ["still here"]);
    relieve(&mut world);
    world.client(0, "late");
}

#[test]
fn messages_with_qos_0_are_dropped_only_where_they_would_wait() {
    let mut world = World::new(1);
    // The first fill the connection's buffer, the last few wait.
    let slow = stalled(&mut world, "slow", QoS::AtMostOnce, 10);
    let before = world.counters(0).queued;
    assert!(before > 0);
    let quick = world.client(0, "quick");
    world.subscribe(quick, "to/slow", QoS::AtMostOnce);
    let sure = stalled(&mut world, "sure", QoS::AtLeastOnce, 10);
    let publisher = world.client(0, "publisher");
    press(
        &mut world,
        Pressure {
            drop_qos0: true,
            ..Pressure::default()
        },
    );
    let queued = world.counters(0).queued;
    send(&mut world, publisher, "slow", "lost", QoS::AtMostOnce);
    assert_eq!(world.counters(0).dropped_overload, 1);
    assert_eq!(
        world.payloads(quick).last().map(String::as_str),
        Some("lost")
    );
    send(&mut world, publisher, "sure", "kept", QoS::AtLeastOnce);
    assert_eq!(world.counters(0).queued, queued + 1, "QoS 1 waits as ever");
    relieve(&mut world);
    send(&mut world, publisher, "slow", "waits", QoS::AtMostOnce);
    assert_eq!(world.counters(0).dropped_overload, 1);
    flow_again(&mut world, slow);
    let got = world.payloads(slow);
    assert_eq!(got.len(), 11, "what waited before has come");
    assert_eq!(got.last().map(String::as_str), Some("waits"));
    flow_again(&mut world, sure);
}

#[test]
fn the_slowest_consumers_go_first_and_those_that_keep_up_stay() {
    let mut world = World::new(1);
    let quick = world.client(0, "quick");
    world.subscribe(quick, "to/quick", QoS::AtMostOnce);
    let idle: Vec<Id> = (0..40)
        .map(|n| world.client(0, &format!("idle-{n}")))
        .collect();
    let slow: Vec<Id> = (0..20)
        .map(|n| stalled(&mut world, &format!("slow-{n}"), QoS::AtMostOnce, 10 + n))
        .collect();
    let closed = |world: &World| {
        let reasons = slow.iter().map(|id| world.wires[*id].closed);
        reasons
            .map(|r| r == Some(ReasonCode::QUOTA_EXCEEDED))
            .collect::<Vec<_>>()
    };
    press(
        &mut world,
        Pressure {
            close_slow_bytes: Some(1),
            ..Pressure::default()
        },
    );
    world.advance_ms(100);
    // One pass takes the sixteen slowest, which is more than enough for a byte.
    let first = closed(&world);
    assert_eq!(first.iter().filter(|closed| **closed).count(), 16);
    assert!(first[4..].iter().all(|closed| *closed), "{first:?}");
    assert_eq!(world.counters(0).slow_consumers_closed, 16);
    world.advance_ms(400);
    assert!(closed(&world).iter().all(|closed| *closed));
    let publisher = world.client(0, "publisher");
    send(&mut world, publisher, "quick", "hello", QoS::AtMostOnce);
    assert_eq!(world.payloads(quick), ["hello"]);
    assert!(idle.iter().all(|id| world.wires[*id].closed.is_none()));
    relieve(&mut world);
    let last = stalled(&mut world, "slow-0", QoS::AtMostOnce, 40);
    world.advance_s(5);
    assert_eq!(world.wires[last].closed, None);
}

#[test]
fn a_slow_consumer_loses_qos_0_and_keeps_its_session() {
    let mut world = World::new(1);
    let mut terms = connect("slow");
    terms.clean_start = false;
    terms.properties.session_expiry_s = Some(3_600);
    let (id, _) = world.connect(0, terms.clone());
    world.subscribe(id, "to/slow", QoS::AtLeastOnce);
    world.wires[id].stalled = true;
    let publisher = world.client(0, "publisher");
    for number in 0..20 {
        let qos = [QoS::AtMostOnce, QoS::AtLeastOnce][number % 2];
        send(
            &mut world,
            publisher,
            "slow",
            &format!("{number:9000}"),
            qos,
        );
    }
    press(
        &mut world,
        Pressure {
            close_slow_bytes: Some(u64::MAX),
            ..Pressure::default()
        },
    );
    world.advance_ms(100);
    assert_eq!(world.wires[id].closed, Some(ReasonCode::QUOTA_EXCEEDED));
    assert!(world.counters(0).dropped_overload > 0);
    relieve(&mut world);
    let (id, present) = world.connect(0, terms);
    assert!(present);
    let got = world.payloads(id);
    let wanted: Vec<_> = (0..20)
        .filter(|n| n % 2 == 1)
        .map(|n| format!("{n:9000}"))
        .collect();
    assert_eq!(got, wanted, "QoS 1 is as promised");
}
