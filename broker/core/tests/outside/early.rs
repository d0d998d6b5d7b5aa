//! 0-RTT data (RFC 9001 §4.6), which may be a recorded flight that somebody sends late: what it may do before the
//! handshake is complete, and what has to wait.

use crate::common::*;
use headgate_codec::{Connect, Packet, Publish, QoS, ReasonCode, SubscriptionOptions, Text, Will};

fn say(world: &mut World, id: Id, connect: Connect) {
    world.send(id, Packet::Connect(Box::new(connect)));
}

/// An early connection of a new client, whose CONNECT does no harm.
fn early_client(world: &mut World, name: &str) -> Id {
    let id = world.open_early(0);
    say(world, id, lasting(name, 600));
    let Packet::ConnAck(connack) = world.read_one(id) else {
        panic!("CONNACK comes at once");
    };
    assert_eq!(connack.reason, ReasonCode::SUCCESS);
    id
}

fn retained(publish: Publish) -> Packet {
    Packet::Publish(Publish {
        retain: true,
        ..publish
    })
}

fn a_will() -> Option<Will> {
    Some(Will {
        qos: QoS::AtMostOnce,
        retain: false,
        topic: Text::from("will/a"),
        payload: bytes::Bytes::from_static(b"gone"),
        delay_s: None,
        properties: None,
    })
}

#[test]
fn messages_that_a_replay_does_no_harm_with_are_taken_at_once() {
    let mut world = World::new(2);
    let watcher = world.client(1, "watcher");
    world.subscribe(watcher, "t", QoS::AtLeastOnce);
    let id = early_client(&mut world, "device");
    world.send(id, Packet::Publish(publish("t", "zero")));
    let acked = publish_acked("t", "one", QoS::AtLeastOnce, 1);
    world.send(id, Packet::Publish(acked));
    world.send(id, Packet::PingReq);
    assert_eq!(world.payloads(watcher), ["zero", "one"]);
    let answers = world.read(id);
    assert!(
        matches!(answers[..], [Packet::PubAck(_), Packet::PingResp]),
        "{answers:?}"
    );
    assert_eq!(world.sum(|c| c.early_held), 0);
    world.confirm(id);
    assert!(world.read(id).is_empty() && world.payloads(watcher).is_empty());
}

/// Of each kind of packet that waits: nothing happens before the handshake is complete, nothing at all if it never
/// is, and what follows stays behind it.
#[test]
fn all_other_packets_wait_for_the_handshake() {
    let waiting: [fn() -> Packet; 8] = [
        || subscribe(1, "own/#", SubscriptionOptions::default()),
        || unsubscribe(1, "own/#"),
        || retained(publish("t", "kept")),
        || retained(publish_acked("t", "kept", QoS::AtLeastOnce, 1)),
        || Packet::Publish(publish_acked("t", "twice", QoS::ExactlyOnce, 1)),
        || Packet::PubRel(ack(1)),
        || Packet::PubAck(ack(1)),
        || disconnect(ReasonCode::SUCCESS),
    ];
    for (number, packet) in waiting.iter().enumerate() {
        for is_confirmed in [false, true] {
            let mut world = World::new(2);
            let watcher = world.client(1, "watcher");
            world.subscribe(watcher, "t", QoS::ExactlyOnce);
            let id = early_client(&mut world, "device");
            let subscriptions = world.shared.topics.len();
            world.send(id, packet());
            // What the driver had read already, and what comes later.
            world.send_at_once(id, Packet::Publish(publish("t", "behind")));
            world.send(id, Packet::Publish(publish("t", "last")));
            assert!(!world.wires[id].reading, "packet {number}");
            assert!(world.read(id).is_empty(), "packet {number}");
            assert!(world.payloads(watcher).is_empty(), "packet {number}");
            assert_eq!(world.shared.topics.len(), subscriptions);
            assert_eq!(world.shared.retained.len(), 0);
            assert_eq!(world.wires[id].closed, None);
            assert_eq!(world.sum(|c| c.early_held), 2);
            if !is_confirmed {
                world.lose(id);
                assert!(world.payloads(watcher).is_empty(), "packet {number}");
                assert_eq!(world.shared.topics.len(), subscriptions);
                assert_eq!(world.shared.retained.len(), 0);
                continue;
            }
            world.confirm(id);
            let expected: &[&str] = match number {
                2 | 3 => &["kept", "behind", "last"],
                // A QoS 2 message goes out when it is received, and is acknowledged by the watcher later.
                4 => &["twice", "behind", "last"],
                7 => &[],
                _ => &["behind", "last"],
            };
            assert_eq!(world.payloads(watcher), expected, "packet {number}");
            assert_eq!(
                world.shared.retained.len(),
                usize::from(matches!(number, 2 | 3))
            );
            assert_eq!(world.wires[id].closed.is_some(), number == 7);
        }
    }
}

#[test]
fn what_waits_is_bounded() {
    let mut world = World::with(1, Default::default(), |c| c.limits.held_packets = 3);
    let id = early_client(&mut world, "device");
    for _ in 0..4 {
        assert_eq!(world.wires[id].closed, None);
        world.send_at_once(id, disconnect(ReasonCode::SUCCESS));
    }
    assert_eq!(world.wires[id].closed, Some(ReasonCode::QUOTA_EXCEEDED));
    assert_eq!(world.sum(|c| c.limit_held_packets), 1);
}

/// CONNECT packets that change more than their own, new connection.
#[test]
fn clean_start_and_wills_wait_for_the_handshake() {
    let mut clean = lasting("device", 600);
    clean.clean_start = true;
    let mut with_will = lasting("other", 600);
    with_will.will = a_will();
    for connect in [clean, with_will] {
        for is_confirmed in [false, true] {
            let mut world = World::new(1);
            let watcher = world.client(0, "watcher");
            world.subscribe(watcher, "#", QoS::AtMostOnce);
            let (session, _) = world.connect(0, lasting("device", 600));
            world.subscribe(session, "own/#", QoS::AtLeastOnce);
            world.lose(session);
            let id = world.open_early(0);
            say(&mut world, id, connect.clone());
            world.send(id, Packet::Publish(publish("t", "behind")));
            assert!(world.read(id).is_empty() && world.payloads(watcher).is_empty());
            assert_eq!(world.shared.topics.len(), 2);
            if is_confirmed {
                world.confirm(id);
                assert!(matches!(world.read_one(id), Packet::ConnAck(_)));
                assert_eq!(world.payloads(watcher), ["behind"]);
                assert_eq!(
                    world.shared.topics.len(),
                    if connect.clean_start { 1 } else { 2 }
                );
            } else {
                world.lose(id);
                assert!(world.payloads(watcher).is_empty(), "no will");
                let (_, is_present) = world.connect(0, lasting("device", 600));
                assert!(is_present, "the session is as it was");
            }
        }
    }
}

/// The connection that a client has is its own until the handshake of another one is complete.
#[test]
fn a_takeover_waits_for_the_handshake() {
    for worker in [0, 1] {
        for is_confirmed in [false, true] {
            let mut world = World::new(2);
            let (old, _) = world.connect(worker, lasting("device", 600));
            let id = world.open_early(0);
            say(&mut world, id, lasting("device", 600));
            world.send_at_once(id, Packet::Publish(publish("t", "behind")));
            assert!(world.read(id).is_empty());
            assert_eq!(world.wires[old].closed, None);
            if is_confirmed {
                world.confirm(id);
                assert!(matches!(world.read_one(id), Packet::ConnAck(a) if a.session_present));
                assert_eq!(
                    world.wires[old].closed,
                    Some(ReasonCode::SESSION_TAKEN_OVER)
                );
            } else {
                world.lose(id);
                world.send(old, Packet::PingReq);
                assert!(matches!(world.read_one(old), Packet::PingResp));
            }
            assert_eq!(world.sum(|c| c.sessions), 1);
        }
    }
}

/// Whoever waits has `connect_timeout_s` all the same, and leaves nothing behind.
#[test]
fn a_handshake_that_never_completes_ends() {
    let mut world = World::new(1);
    let (old, _) = world.connect(0, lasting("device", 600));
    let id = world.open_early(0);
    say(&mut world, id, lasting("device", 600));
    world.advance_s(11);
    assert!(world.wires[id].closed.is_some());
    assert_eq!(world.wires[old].closed, None);
    // The place that was reserved is free again: as many may come as before.
    assert_eq!(world.sum(|c| c.connections), 1);
    let (_, is_present) = world.connect(0, lasting("device", 600));
    assert!(is_present);
}

/// A device that wakes up goes on with its session in the first round trip.
#[test]
fn a_session_that_nobody_uses_is_continued_at_once() {
    let mut world = World::new(2);
    let sender = world.client(1, "sender");
    let (session, _) = world.connect(0, lasting("device", 600));
    world.subscribe(session, "own/#", QoS::AtLeastOnce);
    world.lose(session);
    let waiting = publish_acked("own/1", "while you slept", QoS::AtLeastOnce, 1);
    world.send(sender, Packet::Publish(waiting));
    let id = world.open_early(0);
    say(&mut world, id, lasting("device", 600));
    let packets = world.read(id);
    assert!(
        matches!(&packets[..], [Packet::ConnAck(a), Packet::Publish(_)] if a.session_present),
        "{packets:?}"
    );
    // Its acknowledgement could be that of another message: it waits.
    world.send(id, Packet::PubAck(ack(1)));
    world.lose(id);
    let (again, is_present) = world.connect(0, lasting("device", 600));
    assert!(is_present);
    let packets = world.read(again);
    assert!(
        matches!(&packets[..], [Packet::Publish(p)] if p.dup),
        "{packets:?}"
    );
}

/// A session at another worker, or one whose will is still to come, waits.
#[test]
fn a_session_that_would_move_or_lose_its_will_waits() {
    for (worker, will) in [(1, None), (0, a_will())] {
        let mut world = World::new(2);
        let mut connect = lasting("device", 600);
        connect.will = will.map(|will| Will {
            delay_s: Some(60),
            ..will
        });
        let (session, _) = world.connect(worker, connect);
        world.lose(session);
        let id = world.open_early(0);
        say(&mut world, id, lasting("device", 600));
        assert!(world.read(id).is_empty());
        world.confirm(id);
        assert!(matches!(world.read_one(id), Packet::ConnAck(a) if a.session_present));
        assert_eq!(world.sum(|c| c.sessions), 1);
    }
}
