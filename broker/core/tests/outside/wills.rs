//! Will Messages (MQTT 5.0 §3.1.2.5), from outside.

use crate::common::*;
use headgate_codec::{Packet, QoS, ReasonCode, Text, Will};

fn will(topic: &str, delay_s: Option<u32>) -> Option<Will> {
    let payload = bytes::Bytes::from_static(b"gone");
    Some(Will {
        qos: QoS::AtMostOnce,
        retain: false,
        topic: Text::from(topic),
        payload,
        delay_s,
        properties: None,
    })
}

/// [MQTT-3.1.2-8] [MQTT-3.14.4-3] [MQTT-3.1.2-10]
#[test]
fn the_will_is_published_unless_the_client_says_goodbye() {
    let mut world = World::new(2);
    let watcher = world.client(1, "w");
    world.subscribe(watcher, "will/#", QoS::AtMostOnce);
    type Ending = fn(&mut World, Id);
    let endings: [(Ending, bool); 7] = [
        (|w, id| w.lose(id), true),
        (|w, id| w.send(id, disconnect(ReasonCode::SUCCESS)), false),
        (
            |w, id| w.send(id, disconnect(ReasonCode::DISCONNECT_WITH_WILL)),
            true,
        ),
        (|w, id| w.malformed(id, ReasonCode::MALFORMED_PACKET), true),
        (
            |w, id| w.send(id, Packet::Connect(Box::new(connect("a")))),
            true,
        ),
        (
            |w, _| {
                w.client(1, "a");
            },
            true,
        ),
        (
            |w, _| {
                w.client(0, "a");
            },
            true,
        ),
    ];
    for (i, (end, is_published)) in endings.into_iter().enumerate() {
        let mut c = connect("a");
        c.will = will("will/a", None);
        let (id, _) = world.connect(0, c);
        end(&mut world, id);
        assert_eq!(
            world.payloads(watcher).len(),
            usize::from(is_published),
            "ending {i}"
        );
        for wire in 0..world.wires.len() {
            if wire != watcher && world.wires[wire].closed.is_none() && !world.wires[wire].gone {
                world.send(wire, disconnect(ReasonCode::SUCCESS));
            }
        }
    }
}

#[test]
fn the_will_is_published_on_keep_alive_timeout() {
    let mut world = World::new(1);
    let watcher = world.client(0, "w");
    world.subscribe(watcher, "will/#", QoS::AtMostOnce);
    let mut c = connect("a");
    c.keep_alive_s = 10;
    c.will = will("will/a", None);
    world.connect(0, c);
    world.advance_s(16);
    assert_eq!(world.payloads(watcher), ["gone"]);
}

/// [MQTT-3.1.2-8] [MQTT-3.1.3-9]
#[test]
fn a_will_waits_for_its_delay_or_the_end_of_the_session() {
    let mut world = World::new(2);
    let watcher = world.client(0, "w");
    world.subscribe(watcher, "will/#", QoS::AtMostOnce);
    let with_will = |expiry, delay| {
        let mut c = lasting("a", expiry);
        c.will = will("will/a", Some(delay));
        c
    };
    for (expiry, delay, wait) in [(100, 30, 30), (20, 30, 20)] {
        let (id, _) = world.connect(0, with_will(expiry, delay));
        world.lose(id);
        world.advance_s(wait - 1);
        assert!(world.payloads(watcher).is_empty());
        world.send(watcher, Packet::PingReq);
        world.advance_s(2);
        assert_eq!(world.payloads(watcher), ["gone"]);
    }
    for worker in [0, 1] {
        let (id, _) = world.connect(0, with_will(100, 30));
        world.lose(id);
        let (id, present) = world.connect(worker, lasting("a", 100));
        assert!(present);
        world.send(watcher, Packet::PingReq);
        world.advance_s(40);
        assert!(
            world.payloads(watcher).is_empty(),
            "back on worker {worker}"
        );
        world.send(id, disconnect(ReasonCode::SUCCESS));
    }
    // While the client is connected, a new connection of it ends the old one: without a delay its will is due.
    for (delay, count) in [(0, 1), (30, 0)] {
        world.connect(0, with_will(100, delay));
        let (id, present) = world.connect(1, lasting("a", 100));
        assert!(present);
        world.send(watcher, Packet::PingReq);
        assert_eq!(world.payloads(watcher).len(), count, "delay {delay}");
        world.send(id, disconnect(ReasonCode::SUCCESS));
    }
    // Clean Start ends the session, and the will with it is due.
    let (id, _) = world.connect(0, with_will(100, 30));
    world.lose(id);
    world.client(1, "a");
    assert_eq!(world.payloads(watcher), ["gone"]);
}

/// [MQTT-3.1.2-15] [MQTT-3.1.2-14]
#[test]
fn a_will_may_be_retained() {
    let mut world = World::new(1);
    let mut c = connect("a");
    c.will = will("will/a", None);
    c.will.as_mut().unwrap().retain = true;
    let (id, _) = world.connect(0, c);
    world.lose(id);
    let watcher = world.client(0, "w");
    world.subscribe(watcher, "will/#", QoS::AtMostOnce);
    assert_eq!(world.payloads(watcher), ["gone"]);
}
