//! What the simulation has found.

use crate::common::*;
use headgate_codec::{Packet, QoS, ReasonCode};
use headgate_core::{Input, WorkerSlot};

/// \[MQTT-3.3.2-5\]: time that a message spends on its way to another worker counts.
#[test]
fn a_message_that_expires_between_workers_is_not_delivered() {
    let mut world = World::new(2);
    let (publisher, subscriber) = (world.client(0, "p"), world.client(1, "s"));
    world.subscribe(subscriber, "t", QoS::AtLeastOnce);
    world.manual = true;
    let message = with(publish_acked("t", "late", QoS::AtLeastOnce, 1), |p| {
        p.message_expiry_s = Some(1)
    });
    world.send(publisher, Packet::Publish(message));
    world.advance_ms(1_000);
    world.run();
    assert_eq!(world.payloads(subscriber), [] as [&str; 0]);
    assert_eq!(world.sum(|c| c.dropped_expired), 1);
    let answers = world.read(publisher);
    assert!(matches!(&answers[..], [Packet::PubAck(_)]), "{answers:?}");
}

/// The client may have got the message before: its Packet Identifier isn't given to another one until it is released.
#[test]
fn a_qos_2_message_that_has_become_too_large_is_released() {
    let mut world = World::new(1);
    let publisher = world.client(0, "p");
    let (former, _) = world.connect(0, lasting("s", 60));
    world.subscribe(former, "t", QoS::ExactlyOnce);
    let large = publish_acked("t", &"x".repeat(500), QoS::ExactlyOnce, 1);
    world.send(publisher, Packet::Publish(large));
    assert_eq!(world.payloads(former).len(), 1);
    world.lose(former);

    let mut connect = lasting("s", 60);
    connect.properties.maximum_packet_size = Some(200);
    let (id, present) = world.connect(0, connect);
    assert!(present);
    let Packet::PubRel(released) = world.read_one(id) else {
        panic!("PUBREL expected")
    };
    world.send(
        publisher,
        Packet::Publish(publish_acked("t", "small", QoS::ExactlyOnce, 2)),
    );
    let next = world.read_one(id);
    let next = publish_of(&next).expect("the next message");
    assert_ne!(next.packet_id, Some(released.packet_id));
    world.send(id, Packet::PubComp(released));
    assert!(world.read(id).is_empty());
}

/// A worker that is thought to be gone answers after all: what it gives up has no owner any more.
#[test]
fn a_session_that_nobody_waits_for_leaves_no_subscriptions() {
    let mut world = World::new(2);
    let (former, _) = world.connect(0, lasting("c", 60));
    world.subscribe(former, "t", QoS::AtLeastOnce);
    assert_eq!(world.shared.topics.len(), 1);
    world.manual = true;
    let id = world.open(1);
    world.send(id, Packet::Connect(Box::new(lasting("c", 60))));
    // Claims are answered, and the session is on its way.
    while let Some(event) = world
        .events()
        .into_iter()
        .find(|event| *event != Event::Mesh((0, 1)))
    {
        world.happen(event);
    }
    world.handle(
        1,
        Input::WorkerGone {
            worker: WorkerSlot(0),
        },
    );
    world.recover(None);
    world.run();
    let packets = world.read(id);
    assert!(
        matches!(&packets[..], [Packet::ConnAck(c)] if c.reason == ReasonCode::SUCCESS && !c.session_present),
        "{packets:?}"
    );
    assert_eq!(world.shared.topics.len(), 0);
}

/// \[MQTT-3.3.2-5\]: what a member of a group leaves behind goes to another only while it lives.
#[test]
fn an_expired_message_is_not_handed_on() {
    let mut world = World::new(1);
    let publisher = world.client(0, "p");
    let members = ["a", "b"].map(|name| world.client(0, name));
    for member in members {
        world.subscribe(member, "$share/g/t", QoS::AtLeastOnce);
    }
    let message = with(publish_acked("t", "late", QoS::AtLeastOnce, 1), |p| {
        p.message_expiry_s = Some(1)
    });
    world.send(publisher, Packet::Publish(message));
    let taken = members.map(|member| world.payloads(member).len());
    assert_eq!(taken.iter().sum::<usize>(), 1, "one of them gets it");
    world.advance_ms(1_000);
    let (first, other) = if taken[0] == 1 { (0, 1) } else { (1, 0) };
    world.lose(members[first]);
    assert_eq!(world.payloads(members[other]), [] as [&str; 0]);
    assert_eq!(world.sum(|c| c.dropped_expired), 1);
}
