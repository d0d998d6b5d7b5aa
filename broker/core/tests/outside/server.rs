//! What the server does by itself: its own topics, and sending its clients elsewhere.

use crate::common::*;
use headgate_codec::{Packet, QoS, ReasonCode, Text, Version};
use headgate_core::{Drain, Input};

fn tell(world: &mut World, worker: usize, topic: &str, payload: &str) {
    let (topic, payload) = (Text::from(topic), payload.to_owned().into());
    world.handle(worker, Input::Publish { topic, payload });
}

/// Retained, on every worker, and out of reach of wildcards at the first level [MQTT-4.7.2-1].
#[test]
fn clients_read_the_servers_topics() {
    let mut world = World::new(2);
    tell(&mut world, 0, "$SYS/broker/uptime", "1 seconds");
    let (all, sys) = (world.client(1, "all"), world.client(1, "sys"));
    world.subscribe(all, "#", QoS::AtMostOnce);
    world.subscribe(sys, "$SYS/#", QoS::AtMostOnce);
    tell(&mut world, 0, "$SYS/broker/uptime", "2 seconds");
    assert_eq!(world.payloads(sys), ["1 seconds", "2 seconds"]);
    assert_eq!(world.payloads(all), [""; 0]);
}

/// Nobody but the server writes them: whoever tries is told where the version and the QoS allow it, and stays connected.
#[test]
fn clients_cannot_write_the_servers_topics() {
    let mut world = World::new(1);
    let sys = world.client(0, "sys");
    world.subscribe(sys, "$SYS/#", QoS::ExactlyOnce);
    for version in [Version::V5, Version::V311] {
        let mut p = connect("p");
        p.version = version;
        p.will = Some(headgate_codec::Will {
            qos: QoS::AtMostOnce,
            retain: true,
            topic: Text::from("$SYS/broker/version"),
            payload: "forged".into(),
            delay_s: None,
            properties: None,
        });
        let (p, _) = world.connect(0, p);
        let mut plain = publish("$SYS/broker/version", "forged");
        plain.retain = true;
        world.send(p, Packet::Publish(plain));
        let reason = match version {
            Version::V5 => ReasonCode::NOT_AUTHORIZED,
            _ => ReasonCode::SUCCESS,
        };
        for (qos, id) in [(QoS::AtLeastOnce, 1), (QoS::ExactlyOnce, 2)] {
            let message = publish_acked("$SYS/broker/version", "forged", qos, id);
            world.send(p, Packet::Publish(message));
            let (Packet::PubAck(ack) | Packet::PubRec(ack)) = world.read_one(p) else {
                panic!("an acknowledgement expected")
            };
            assert_eq!((ack.packet_id.get(), ack.reason), (id, reason));
        }
        assert_eq!(world.wires[p].closed, None);
        world.lose(p);
    }
    assert_eq!(world.payloads(sys), [""; 0]);
    assert_eq!(
        (world.counters(0).publish_denied, world.counters(0).wills),
        (8, 0)
    );
    assert!(world.shared.retained.is_empty());
}

/// A hundred clients are sent away over a second; new ones are turned away; then the node takes clients again.
#[test]
fn a_node_is_drained_at_a_rate() {
    for moved in [false, true] {
        let reason = if moved {
            ReasonCode::SERVER_MOVED
        } else {
            ReasonCode::USE_ANOTHER_SERVER
        };
        let mut world = World::new(1);
        let clients: Vec<Id> = (0..100)
            .map(|n| world.client(0, &format!("client-{n}")))
            .collect();
        let mut old = connect("old");
        old.version = Version::V311;
        let (old, _) = world.connect(0, old);
        let drain = Drain {
            server_reference: Some("other.example:8883".to_owned()),
            moved,
            clients_per_second: 50,
        };
        world.handle(0, Input::Drain(Some(drain)));
        let gone = |world: &World| {
            let closed = clients.iter().filter(|c| world.wires[**c].closed.is_some());
            closed.count()
        };
        assert_eq!(gone(&world), 5);
        world.advance_ms(1_000);
        assert_eq!(gone(&world), 55);
        let late = world.open(0);
        world.send(late, Packet::Connect(Box::new(connect("late"))));
        let Packet::ConnAck(connack) = world.read_one(late) else {
            panic!("CONNACK expected")
        };
        assert_eq!(connack.reason, reason);
        let server = connack.properties.server_reference;
        assert_eq!(
            server.as_ref().map(Text::as_str),
            Some("other.example:8883")
        );
        world.advance_ms(1_100);
        assert_eq!(gone(&world), 100);
        assert_eq!(world.wires[old].closed, Some(reason));
        for client in clients {
            let Packet::Disconnect(end) = world.read_one(client) else {
                panic!("DISCONNECT expected")
            };
            let server = end.properties.and_then(|p| p.server_reference);
            assert_eq!(end.reason, reason);
            assert_eq!(
                server.as_ref().map(Text::as_str),
                Some("other.example:8883")
            );
        }
        world.handle(0, Input::Drain(None));
        world.client(0, "again");
    }
}
