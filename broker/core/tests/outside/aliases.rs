//! Topic Aliases in both directions (MQTT 5.0 §3.3.2.3.4).

use crate::common::*;
use headgate_codec::{Connect, Packet, Publish, QoS, ReasonCode, Version};
use std::num::NonZeroU16;

fn aliased(topic: &str, payload: &str, alias: u16) -> Packet {
    Packet::Publish(with(publish(topic, payload), |p| {
        p.topic_alias = NonZeroU16::new(alias);
    }))
}

fn takes(client_id: &str, aliases: u16) -> Connect {
    let mut connect = connect(client_id);
    connect.properties.topic_alias_maximum = Some(aliases);
    connect
}

/// Topic, alias and payload of what a client reads.
fn read(world: &mut World, id: Id) -> Vec<(String, u16, String)> {
    let packets = world.read(id);
    let publishes = packets.iter().filter_map(publish_of);
    publishes
        .map(|p: &Publish| {
            let alias = p.properties.as_ref().and_then(|p| p.topic_alias);
            (
                p.topic.to_string(),
                alias.map_or(0, NonZeroU16::get),
                String::from_utf8_lossy(&p.payload).into_owned(),
            )
        })
        .collect()
}

fn entry(topic: &str, alias: u16, payload: &str) -> (String, u16, String) {
    (topic.to_owned(), alias, payload.to_owned())
}

#[test]
fn an_alias_of_the_client_stands_for_the_last_topic_that_it_was_given() {
    let mut world = World::new(1);
    let s = world.client(0, "s");
    world.subscribe(s, "#", QoS::AtMostOnce);
    let p = world.client(0, "p");
    for (topic, alias, payload) in [
        ("a/b", 1, "1"),
        ("", 1, "2"),
        ("c", 16, "3"),
        ("d", 1, "4"),
        ("", 16, "5"),
        ("", 1, "6"),
    ] {
        world.send(p, aliased(topic, payload, alias));
    }
    // [MQTT-3.3.2-7]: the receiver's aliases are others, here none.
    let expected = [
        ("a/b", "1"),
        ("a/b", "2"),
        ("c", "3"),
        ("d", "4"),
        ("c", "5"),
        ("d", "6"),
    ];
    let expected: Vec<_> = expected.into_iter().map(|(t, p)| entry(t, 0, p)).collect();
    assert_eq!(read(&mut world, s), expected);
}

#[test]
fn an_alias_of_another_connection_or_of_nothing_is_an_error() {
    let mut world = World::new(1);
    let p = world.client(0, "p");
    world.send(p, aliased("a", "x", 3));
    let (again, _) = world.connect(0, lasting("p", 0));
    world.send(again, aliased("", "x", 3));
    assert_eq!(world.wires[again].closed, Some(ReasonCode::PROTOCOL_ERROR));
    for (topic, alias, reason) in [
        ("a", 17, ReasonCode::TOPIC_ALIAS_INVALID),
        ("", 17, ReasonCode::TOPIC_ALIAS_INVALID),
        ("", 2, ReasonCode::PROTOCOL_ERROR),
        ("a/+", 2, ReasonCode::TOPIC_NAME_INVALID),
    ] {
        let p = world.client(0, "other");
        world.send(p, aliased("a", "x", 3));
        world.send(p, aliased(topic, "x", alias));
        let said = world.read(p);
        assert!(
            matches!(said.last(), Some(Packet::Disconnect(d)) if d.reason == reason),
            "{topic} {alias}: {said:?}"
        );
        assert_eq!(world.wires[p].closed, Some(reason), "{topic} {alias}");
    }
}

#[test]
fn a_client_is_told_how_many_aliases_it_may_use() {
    for maximum in [0, 5] {
        let mut world = World::with(1, Default::default(), |config| {
            config.limits.topic_aliases = maximum;
        });
        let p = world.open(0);
        world.send(p, Packet::Connect(Box::new(connect("p"))));
        let Packet::ConnAck(connack) = world.read_one(p) else {
            panic!("CONNACK expected")
        };
        let told = connack.properties.topic_alias_maximum.unwrap_or(0);
        assert_eq!(told, maximum);
        world.send(p, aliased("a", "x", maximum + 1));
        assert_eq!(world.wires[p].closed, Some(ReasonCode::TOPIC_ALIAS_INVALID));
    }
}

/// From the first message on: it tells the alias, the next ones use it, for every QoS.
#[test]
fn a_client_that_takes_aliases_gets_them_and_no_more_than_it_takes() {
    let mut world = World::new(2);
    let (s, _) = world.connect(0, takes("s", 2));
    world.subscribe(s, "#", QoS::AtLeastOnce);
    let (other, _) = world.connect(0, takes("other", 0));
    world.subscribe(other, "#", QoS::AtLeastOnce);
    let p = world.client(1, "p");
    for (number, topic) in ["a", "b", "a", "c", "b", "c"].into_iter().enumerate() {
        let payload = number.to_string();
        world.send(p, Packet::Publish(publish(topic, &payload)));
        let acked = publish_acked(topic, &payload, QoS::AtLeastOnce, number as u16 + 1);
        world.send(p, Packet::Publish(acked));
    }
    let expected: Vec<_> = [
        ("a", 1, "0"),
        ("", 1, "0"),
        ("b", 2, "1"),
        ("", 2, "1"),
        ("", 1, "2"),
        ("", 1, "2"),
        ("c", 0, "3"),
        ("c", 0, "3"),
        ("", 2, "4"),
        ("", 2, "4"),
        ("c", 0, "5"),
        ("c", 0, "5"),
    ]
    .into_iter()
    .map(|(topic, alias, payload)| entry(topic, alias, payload))
    .collect();
    assert_eq!(read(&mut world, s), expected);
    // [MQTT-3.1.2-27]
    let plain = read(&mut world, other);
    assert!(
        plain
            .iter()
            .all(|(topic, alias, _)| !topic.is_empty() && *alias == 0)
    );
    assert_eq!(plain.len(), 12);
}

/// Aliases end with the connection [MQTT-3.3.2-7]: what is sent again names its topic anew.
#[test]
fn a_retransmission_on_a_new_connection_names_the_topic() {
    let mut world = World::new(1);
    let mut connect = takes("s", 4);
    connect.clean_start = false;
    connect.properties.session_expiry_s = Some(100);
    let (s, _) = world.connect(0, connect.clone());
    world.subscribe(s, "#", QoS::ExactlyOnce);
    let p = world.client(0, "p");
    for id in 1..=2 {
        let message = publish_acked("a/b", "x", QoS::ExactlyOnce, id);
        world.send(p, Packet::Publish(message));
    }
    assert_eq!(
        read(&mut world, s),
        [entry("a/b", 1, "x"), entry("", 1, "x")]
    );
    world.lose(s);
    let (s, present) = world.connect(0, connect.clone());
    assert!(present);
    let packets = world.read(s);
    let again: Vec<_> = packets.iter().filter_map(publish_of).collect();
    assert!(again.iter().all(|p| p.dup));
    let topics: Vec<_> = again.iter().map(|p| p.topic.as_str()).collect();
    assert_eq!(topics, ["a/b", ""]);
    world.lose(s);
    // A client that takes none any more gets none.
    connect.properties.topic_alias_maximum = None;
    let (s, _) = world.connect(0, connect);
    assert_eq!(
        read(&mut world, s),
        [entry("a/b", 0, "x"), entry("a/b", 0, "x")]
    );
}

/// [MQTT-3.1.2-24]: telling an alias takes four bytes, which must not make the packet too large.
#[test]
fn a_packet_that_only_fits_without_its_alias_is_sent_without() {
    let mut world = World::new(1);
    let mut connect = takes("s", 4);
    connect.properties.maximum_packet_size = Some(40);
    let (s, _) = world.connect(0, connect);
    world.subscribe(s, "a", QoS::AtMostOnce);
    let p = world.client(0, "p");
    // Fixed header 2, topic 3, property length 1.
    let fits = "x".repeat(34);
    world.send(p, Packet::Publish(publish("a", &fits)));
    world.send(p, Packet::Publish(publish("a", "short")));
    world.send(p, Packet::Publish(publish("a", "short")));
    assert_eq!(
        read(&mut world, s),
        [
            entry("a", 0, &fits),
            entry("a", 1, "short"),
            entry("", 1, "short")
        ]
    );
}

#[test]
fn a_client_of_3_1_1_gets_no_alias() {
    let mut world = World::new(1);
    let mut connect = takes("s", 4);
    connect.version = Version::V311;
    connect.properties = Default::default();
    let (s, _) = world.connect(0, connect);
    world.subscribe(s, "a", QoS::AtMostOnce);
    let p = world.client(0, "p");
    world.send(p, aliased("a", "x", 1));
    assert_eq!(read(&mut world, s), [entry("a", 0, "x")]);
}
