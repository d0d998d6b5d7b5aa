//! Statements of MQTT 5.0 about connections, sessions and wills that no other test is about.

use crate::common::*;
use headgate_codec::{
    ConnAck, Connect, Packet, Publish, PublishProperties, QoS, ReasonCode, Text, Version, Will,
};
use headgate_core::RetainedLimits;

const QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

fn will(topic: &str, qos: QoS, retain: bool) -> Will {
    Will {
        qos,
        retain,
        topic: Text::from(topic),
        payload: bytes::Bytes::from_static(b"gone"),
        delay_s: None,
        properties: None,
    }
}

/// Connects and returns the whole answer.
fn answer(world: &mut World, connect: Connect) -> (Id, ConnAck) {
    let id = world.open(0);
    world.send(id, Packet::Connect(Box::new(connect)));
    match world.read_one(id) {
        Packet::ConnAck(connack) => (id, *connack),
        other => panic!("CONNACK expected, not {other:?}"),
    }
}

fn published(world: &mut World, id: Id) -> Publish {
    match world.read_one(id) {
        Packet::Publish(publish) => publish,
        other => panic!("PUBLISH expected, not {other:?}"),
    }
}

/// [MQTT-3.1.3-5]: every length from 1 to 23, and every character that the standard names.
#[test]
fn plain_client_identifiers_are_accepted() {
    let characters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    for version in [Version::V31, Version::V311, Version::V5] {
        let mut world = World::new(1);
        for len in 1..=23 {
            for from in (0..characters.len() - len).step_by(7) {
                let name = &characters[from..from + len];
                let (id, connack) = answer(
                    &mut world,
                    Connect {
                        version,
                        ..connect(name)
                    },
                );
                assert_eq!(connack.reason, ReasonCode::SUCCESS, "{name}");
                assert_eq!(connack.properties.assigned_client_id, None);
                assert!(world.directory.contains_key(name));
                world.send(id, disconnect(ReasonCode::SUCCESS));
            }
        }
    }
}

/// [MQTT-3.1.3-2]: state belongs to the identifier, character by character.
#[test]
fn identifiers_that_differ_have_sessions_of_their_own() {
    let mut world = World::new(2);
    let names = ["a", "A", "a ", "á", "a\u{301}", "\u{feff}a"];
    for (i, name) in names.iter().enumerate() {
        let (id, present) = world.connect(i % 2, lasting(name, 100));
        assert!(!present, "{name}");
        world.subscribe(id, &format!("t/{i}"), QoS::AtLeastOnce);
        world.lose(id);
    }
    let p = world.client(0, "p");
    for i in 0..names.len() as u16 {
        let message = publish_acked(&format!("t/{i}"), &i.to_string(), QoS::AtLeastOnce, i + 1);
        world.send(p, Packet::Publish(message));
    }
    for (i, name) in names.iter().enumerate() {
        let (id, present) = world.connect(0, lasting(name, 100));
        assert!(present, "{name}");
        assert_eq!(world.payloads(id), [i.to_string()]);
    }
}

/// [MQTT-3.1.4-6] [MQTT-3.2.2-6] [MQTT-3.2.2-7]: nothing behind a CONNECT that is refused has an
/// effect, also where a session exists.
#[test]
fn what_follows_a_refused_connect_is_not_processed() {
    let mut world = World::new(1);
    let watcher = world.client(0, "w");
    world.subscribe(watcher, "#", QoS::AtMostOnce);
    let (id, _) = world.connect(0, lasting("a", 100));
    world.lose(id);
    let mut bad = lasting("a", 100);
    bad.will = Some(will("not/+/a/topic", QoS::AtMostOnce, false));
    world.manual = true;
    let id = world.open(0);
    world.send(id, Packet::Connect(Box::new(bad)));
    for packet in [
        Packet::Publish(publish("t", "x")),
        Packet::Publish(publish_acked("t", "x", QoS::AtLeastOnce, 1)),
        subscribe(1, "t", Default::default()),
        Packet::PingReq,
    ] {
        world.send_at_once(id, packet);
    }
    world.run();
    let Packet::ConnAck(connack) = world.read_one(id) else {
        panic!("only a CONNACK");
    };
    assert_eq!(
        (connack.reason, connack.session_present),
        (ReasonCode::TOPIC_NAME_INVALID, false)
    );
    assert!(world.wires[id].closed.is_some());
    assert!(world.payloads(watcher).is_empty());
    assert_eq!(world.counters(0).publish_in_qos0, 0);
    world.manual = false;
    assert!(world.connect(0, lasting("a", 100)).1, "the session is kept");
}

/// [MQTT-3.2.0-1] [MQTT-3.2.0-2] [MQTT-3.1.4-5]: CONNACK is the first packet, and there is one,
/// with messages waiting and a subscription at once.
#[test]
fn connack_comes_first_and_once() {
    let mut world = World::new(1);
    let (id, _) = world.connect(0, lasting("a", 100));
    world.subscribe(id, "t", QoS::AtLeastOnce);
    world.lose(id);
    let p = world.client(0, "p");
    world.send(
        p,
        Packet::Publish(publish_acked("t", "x", QoS::AtLeastOnce, 1)),
    );
    world.manual = true;
    let id = world.open(0);
    world.send(id, Packet::Connect(Box::new(lasting("a", 100))));
    world.send_at_once(id, subscribe(2, "u", Default::default()));
    world.send_at_once(id, Packet::PingReq);
    world.run();
    let packets = world.read(id);
    assert!(matches!(packets[0], Packet::ConnAck(_)), "{packets:?}");
    let connacks = packets.iter().filter(|p| matches!(p, Packet::ConnAck(_)));
    assert_eq!((connacks.count(), packets.len()), (1, 4));
    world.manual = false;
    // Nor does another CONNECT get a second one.
    world.send(id, Packet::Connect(Box::new(connect("a"))));
    assert!(matches!(world.read_one(id), Packet::Disconnect(_)));
}

/// [MQTT-3.2.2-19] [MQTT-3.2.2-20] [MQTT-3.1.2-24]: CONNACK is no exception, with Success or without; a
/// client that can't take it is just closed.
#[test]
fn a_refusal_fits_the_clients_maximum_packet_size() {
    let mut world = World::new(1);
    for max in 1..60 {
        for topic in ["t", "not/+/a/topic"] {
            let mut c = connect("a");
            c.will = Some(will(topic, QoS::AtMostOnce, false));
            c.properties.maximum_packet_size = Some(max);
            let id = world.open(0);
            world.send(id, Packet::Connect(Box::new(c)));
            let packets = world.read(id);
            if max < 5 {
                assert!(packets.is_empty() && world.wires[id].closed.is_some());
            }
            if max >= 5 && topic != "t" {
                assert!(
                    matches!(&packets[..], [Packet::ConnAck(p)] if p.reason.0 >= 0x80),
                    "{packets:?}"
                );
            }
            if world.wires[id].closed.is_none() {
                assert!(matches!(packets[..], [Packet::ConnAck(_)]));
                world.send(id, disconnect(ReasonCode::SUCCESS));
            }
        }
    }
}

/// [MQTT-3.1.2-24]: an answer that has no shorter form ends the connection.
#[test]
fn an_acknowledgement_that_does_not_fit_ends_the_connection() {
    let mut world = World::new(1);
    let mut c = connect("a");
    c.properties.maximum_packet_size = Some(40);
    let (id, _) = world.connect(0, c);
    let Packet::Subscribe(mut packet) = subscribe(1, "t", Default::default()) else {
        unreachable!()
    };
    packet.filters = vec![packet.filters[0].clone(); 60];
    world.send(id, Packet::Subscribe(packet));
    let packets = world.read(id);
    assert!(
        matches!(packets[..], [Packet::Disconnect(_)]),
        "{packets:?}"
    );
    assert_eq!(world.wires[id].closed, Some(ReasonCode::PACKET_TOO_LARGE));
}

/// [MQTT-3.1.2-12] [MQTT-3.2.2-12]: each Will QoS is accepted, and counts as a message's.
#[test]
fn a_will_is_published_with_its_qos() {
    for qos in QOS {
        let mut world = World::new(1);
        let watcher = world.client(0, "w");
        world.subscribe(watcher, "will", QoS::ExactlyOnce);
        let mut c = connect("a");
        c.will = Some(will("will", qos, false));
        let (id, _) = world.connect(0, c);
        world.lose(id);
        let message = published(&mut world, watcher);
        assert_eq!((message.qos, message.retain), (qos, false));
    }
}

/// [MQTT-3.1.2-14] [MQTT-3.1.2-15] [MQTT-3.2.2-13]
#[test]
fn a_will_is_retained_only_if_it_says_so() {
    for retain in [false, true] {
        let mut world = World::new(1);
        let mut c = connect("a");
        c.will = Some(will("will", QoS::AtMostOnce, retain));
        let (id, _) = world.connect(0, c);
        assert!(world.shared.retained.is_empty(), "not before it is due");
        world.lose(id);
        assert_eq!(world.shared.retained.len(), usize::from(retain));
        let late = world.client(0, "late");
        world.subscribe(late, "will", QoS::AtMostOnce);
        assert_eq!(world.payloads(late).len(), usize::from(retain));
    }
}

/// [MQTT-3.1.2-10]: a session that goes on has no Will any more once it was published.
#[test]
fn a_will_is_published_once() {
    let mut world = World::new(2);
    let watcher = world.client(0, "w");
    world.subscribe(watcher, "will", QoS::AtMostOnce);
    let mut c = lasting("a", 100);
    c.will = Some(will("will", QoS::AtMostOnce, false));
    let (id, _) = world.connect(0, c);
    world.lose(id);
    assert_eq!(world.payloads(watcher), ["gone"]);
    for worker in [0, 1] {
        let (id, present) = world.connect(worker, lasting("a", 100));
        assert!(present);
        world.lose(id);
    }
    world.send(watcher, Packet::PingReq);
    // The end of the session has none to publish either.
    world.advance_s(59);
    world.send(watcher, Packet::PingReq);
    world.advance_s(50);
    assert_eq!(world.counters(0).sessions + world.counters(1).sessions, 1);
    assert!(world.payloads(watcher).is_empty());
}

/// [MQTT-3.1.3-10]
#[test]
fn a_will_carries_its_properties_in_order() {
    let mut world = World::new(2);
    let watcher = world.client(1, "w");
    world.subscribe(watcher, "will", QoS::AtMostOnce);
    let properties = PublishProperties {
        payload_format_utf8: Some(true),
        content_type: Some("t/x".into()),
        response_topic: Some("answer".into()),
        correlation_data: Some(bytes::Bytes::from_static(b"\0\xff")),
        user_properties: [("z", "1"), ("a", "2"), ("z", "0")]
            .map(|(k, v)| (Text::from(k), Text::from(v)))
            .into(),
        ..PublishProperties::default()
    };
    let mut c = connect("a");
    c.will = Some(Will {
        properties: Some(Box::new(properties.clone())),
        ..will("will", QoS::AtMostOnce, false)
    });
    let (id, _) = world.connect(0, c);
    world.lose(id);
    let message = published(&mut world, watcher);
    assert_eq!(message.properties.as_deref(), Some(&properties));
}

/// [MQTT-4.1.0-1]: the interval counts from the end of the connection, not from its beginning.
#[test]
fn a_session_outlasts_its_expiry_interval_while_it_is_connected() {
    let mut world = World::new(1);
    let (id, _) = world.connect(0, lasting("a", 5));
    world.subscribe(id, "t", QoS::AtLeastOnce);
    for _ in 0..4 {
        world.advance_s(50);
        world.send(id, Packet::PingReq);
        assert_eq!(world.read_one(id), Packet::PingResp);
    }
    world.lose(id);
    world.advance_s(4);
    let (_, present) = world.connect(0, lasting("a", 5));
    assert!(present);
    assert_eq!(world.counters(0).subscriptions, 1);
}

/// [MQTT-3.2.2-9] [MQTT-3.2.2-10] [MQTT-3.1.2-28] [MQTT-4.12.0-6]: what the server has is not denied,
/// and what the client didn't ask for isn't told.
#[test]
fn connack_holds_no_more_than_it_may() {
    let mut world = World::new(1);
    for asked in [None, Some(false)] {
        let mut c = connect("a");
        c.properties.request_response_information = asked;
        let (id, connack) = answer(&mut world, c);
        let p = connack.properties;
        assert_eq!((p.maximum_qos, p.retain_available), (None, None));
        assert_eq!(p.response_information, None);
        assert_eq!(
            (p.authentication_method, p.authentication_data),
            (None, None)
        );
        assert_eq!(p.wildcard_subscription_available, None);
        for (qos, granted) in QOS.into_iter().zip([0, 1, 2]) {
            let options = headgate_codec::SubscriptionOptions {
                qos,
                ..Default::default()
            };
            world.send(id, subscribe(1, "t", options));
            let Packet::SubAck(suback) = world.read_one(id) else {
                panic!("SUBACK expected");
            };
            assert_eq!(suback.reasons[0].0, granted);
        }
    }
}

/// [MQTT-4.12.0-7] [MQTT-4.12.0-6]
#[test]
fn auth_without_a_method_is_a_protocol_error() {
    let mut world = World::new(1);
    for reason in [
        ReasonCode::CONTINUE_AUTHENTICATION,
        ReasonCode::RE_AUTHENTICATE,
    ] {
        let id = world.client(0, "a");
        world.send(
            id,
            Packet::Auth(Box::new(headgate_codec::Auth {
                reason,
                authentication_method: Some("SCRAM-SHA-256".into()),
                ..Default::default()
            })),
        );
        let packets = world.read(id);
        assert!(
            matches!(&packets[..], [Packet::Disconnect(p)] if p.reason == ReasonCode::PROTOCOL_ERROR),
            "{packets:?}"
        );
        assert_eq!(world.wires[id].closed, Some(ReasonCode::PROTOCOL_ERROR));
    }
}

/// [MQTT-3.14.2-2] [MQTT-3.14.4-1] [MQTT-3.14.4-2]: the server's own DISCONNECT, for each cause that
/// there is; that nothing follows `Close` is asserted by the harness.
#[test]
fn the_servers_disconnect_is_the_last_packet_and_has_no_session_expiry() {
    type Cause = fn(&mut World, Id);
    let causes: [(Cause, ReasonCode); 5] = [
        (
            |w, id| w.send(id, Packet::Connect(Box::new(connect("a")))),
            ReasonCode::PROTOCOL_ERROR,
        ),
        (
            |w, id| w.malformed(id, ReasonCode::MALFORMED_PACKET),
            ReasonCode::MALFORMED_PACKET,
        ),
        (|w, _| w.advance_s(100), ReasonCode::KEEP_ALIVE_TIMEOUT),
        (
            |w, _| {
                w.connect(0, lasting("a", 100));
            },
            ReasonCode::SESSION_TAKEN_OVER,
        ),
        (
            |w, _| w.handle(0, headgate_core::Input::Shutdown),
            ReasonCode::SERVER_SHUTTING_DOWN,
        ),
    ];
    for (cause, reason) in causes {
        let mut world = World::with(1, RetainedLimits::default(), |_| ());
        let (id, _) = world.connect(0, lasting("a", 100));
        world.subscribe(id, "t", QoS::AtMostOnce);
        cause(&mut world, id);
        if reason != ReasonCode::SERVER_SHUTTING_DOWN {
            let p = world.client(0, "p");
            world.send(p, Packet::Publish(publish("t", "late")));
        }
        let packets = world.read(id);
        let [Packet::Disconnect(said)] = &packets[..] else {
            panic!("one DISCONNECT expected: {packets:?}");
        };
        assert_eq!(said.reason, reason);
        let expiry = said.properties.as_ref().and_then(|p| p.session_expiry_s);
        assert_eq!(expiry, None);
        assert_eq!(world.wires[id].closed, Some(reason));
    }
}
