//! What a client is told and why: Reason Strings, Server Keep Alive, filters that are denied.

use crate::common::*;
use headgate_codec::{Packet, ReasonCode, SubscriptionOptions, Text};
use headgate_core::RetainedLimits;

/// [MQTT-3.14.2-3] [MQTT-3.9.2-1]: in words what the Reason Code says, unless the packet gets too large by it or the
/// client doesn't want it [MQTT-3.1.2-29].
#[test]
fn errors_are_explained_where_there_is_room() {
    for (maximum, wants) in [(None, true), (Some(30), true), (None, false)] {
        let mut world = World::new(1);
        let mut connect = connect("x");
        connect.properties.maximum_packet_size = maximum;
        connect.properties.request_problem_information = Some(wants);
        let (id, _) = world.connect(0, connect);
        world.send(id, subscribe(1, "a/#/b", SubscriptionOptions::default()));
        world.send(id, subscribe(1, "a", SubscriptionOptions::default()));
        world.send(id, Packet::ConnAck(Box::default()));
        let packets = world.read_all(id);
        let [
            Packet::SubAck(refused),
            Packet::SubAck(granted),
            Packet::Disconnect(end),
        ] = &packets[..]
        else {
            panic!("{packets:?}")
        };
        let said = |text: &Option<Text>| text.as_ref().is_some_and(|t| !t.as_bytes().is_empty());
        let expected = maximum.is_none();
        assert_eq!(said(&refused.properties.reason_string), expected && wants);
        assert!(!said(&granted.properties.reason_string));
        let properties = end.properties.clone().unwrap_or_default();
        assert_eq!(said(&properties.reason_string), expected);
    }
}

/// A client that asks for a longer Keep Alive than is allowed, or for none, is told the longest [MQTT-3.2.2-21].
#[test]
fn a_long_keep_alive_is_shortened() {
    let mut world = World::with(1, RetainedLimits::default(), |c| {
        c.limits.keep_alive_max_s = 60;
    });
    for (asked, told, silence_ms) in [
        (120, Some(60), 90_000),
        (0, Some(60), 90_000),
        (40, None, 60_000),
    ] {
        let mut connect = connect("x");
        connect.keep_alive_s = asked;
        let id = world.open(0);
        world.send(id, Packet::Connect(Box::new(connect)));
        let Packet::ConnAck(connack) = world.read_one(id) else {
            panic!("CONNACK expected")
        };
        assert_eq!(connack.properties.server_keep_alive_s, told);
        world.advance_ms(silence_ms - 1);
        assert_eq!(world.wires[id].closed, None, "{asked}");
        world.advance_ms(2_000);
        assert_eq!(world.wires[id].closed, Some(ReasonCode::KEEP_ALIVE_TIMEOUT));
    }
}

#[test]
fn a_denied_filter_is_denied_as_configured() {
    for reason in [ReasonCode::NOT_AUTHORIZED, ReasonCode::UNSPECIFIED_ERROR] {
        let mut world = World::with(1, RetainedLimits::default(), |c| {
            c.denied_filters = (vec!["no/+".to_owned()], reason);
        });
        let id = world.client(0, "x");
        for (filter, expected) in [
            ("no/+", reason),
            ("$share/g/no/+", reason),
            ("no/a", ReasonCode::SUCCESS),
        ] {
            world.send(id, subscribe(1, filter, SubscriptionOptions::default()));
            let Packet::SubAck(suback) = world.read_one(id) else {
                panic!("SUBACK expected")
            };
            assert_eq!(suback.reasons, [expected], "{filter}");
        }
    }
}
