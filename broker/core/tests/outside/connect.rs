//! CONNECT, sessions, takeover, keep-alive and wills, from outside.

use crate::common::*;
use headgate_codec::{
    ConnAck, Disconnect, DisconnectProperties, Packet, QoS, ReasonCode, Text, Version, Will,
};
use headgate_core::{Input, RetainedLimits, WorkerSlot};

fn connack(packet: Packet) -> ConnAck {
    match packet {
        Packet::ConnAck(connack) => *connack,
        other => panic!("CONNACK expected, not {other:?}"),
    }
}

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

fn refused(world: &mut World, id: Id, reason: ReasonCode) {
    let answer = connack(world.read_one(id));
    assert_eq!((answer.reason, answer.session_present), (reason, false));
    assert_eq!(world.wires[id].closed, Some(reason));
}

/// [MQTT-3.1.0-1] [MQTT-3.14.0-1]
#[test]
fn anything_before_connect_closes_without_a_word() {
    let mut world = World::new(1);
    for packet in [
        Packet::PingReq,
        Packet::Publish(publish("a", "x")),
        disconnect(ReasonCode::SUCCESS),
    ] {
        let id = world.open(0);
        world.send(id, packet);
        assert_eq!(world.wires[id].closed, Some(ReasonCode::PROTOCOL_ERROR));
        assert!(world.read(id).is_empty());
    }
    assert_eq!(world.counters(0).connections, 0);
}

/// [MQTT-3.1.0-2]
#[test]
fn a_second_connect_is_a_protocol_error() {
    let mut world = World::new(1);
    let id = world.client(0, "a");
    world.send(id, Packet::Connect(Box::new(connect("a"))));
    assert_eq!(world.read_one(id), disconnect(ReasonCode::PROTOCOL_ERROR));
    assert_eq!(world.wires[id].closed, Some(ReasonCode::PROTOCOL_ERROR));
    assert_eq!(world.directory.len(), 0);
}

/// [MQTT-3.2.2-16] [MQTT-3.1.3-6] [MQTT-3.1.3-8]
#[test]
fn an_empty_identifier_is_assigned_where_the_version_allows() {
    let mut world = World::new(2);
    let mut names = Vec::new();
    for worker in [0, 1, 1] {
        let id = world.open(worker);
        world.send(id, Packet::Connect(Box::new(connect(""))));
        let answer = connack(world.read_one(id));
        names.push(
            answer
                .properties
                .assigned_client_id
                .expect("assigned")
                .to_string(),
        );
    }
    names.dedup();
    assert_eq!(names.len(), 3);
    assert!(names.iter().all(|n| world.directory.contains_key(n)));
    for (version, clean_start, ok) in [
        (Version::V311, true, true),
        (Version::V311, false, false),
        (Version::V31, true, false),
    ] {
        let id = world.open(0);
        world.send(
            id,
            Packet::Connect(Box::new(headgate_codec::Connect {
                version,
                clean_start,
                ..connect("")
            })),
        );
        let reason = connack(world.read_one(id)).reason;
        assert_eq!(
            reason == ReasonCode::SUCCESS,
            ok,
            "{version:?} {clean_start}"
        );
        assert_eq!(world.wires[id].closed.is_none(), ok);
    }
}

#[test]
fn connects_that_cannot_be_served_are_refused_with_a_reason() {
    let mut world = World::with(1, RetainedLimits::default(), |c| {
        c.limits.client_id_bytes = 30
    });
    let long = connect(&"x".repeat(31));
    let id = world.open(0);
    world.send(id, Packet::Connect(Box::new(long)));
    refused(&mut world, id, ReasonCode::CLIENT_IDENTIFIER_NOT_VALID);
    let mut c = connect("a");
    c.will = will("a/+", None);
    let id = world.open(0);
    world.send(id, Packet::Connect(Box::new(c)));
    refused(&mut world, id, ReasonCode::TOPIC_NAME_INVALID);
    assert_eq!(world.counters(0).connects_refused, 2);
    assert_eq!(world.counters(0).limit_client_id, 1);
    // [MQTT-3.1.3-5]
    let id = world.open(0);
    world.send(
        id,
        Packet::Connect(Box::new(connect("0123456789abcdefghijABC"))),
    );
    assert_eq!(connack(world.read_one(id)).reason, ReasonCode::SUCCESS);
}

#[test]
fn sessions_of_a_worker_are_limited() {
    let mut world = World::with(1, RetainedLimits::default(), |c| c.limits.sessions = 2);
    let first = world.client(0, "a");
    world.client(0, "b");
    let id = world.open(0);
    world.send(id, Packet::Connect(Box::new(connect("c"))));
    refused(&mut world, id, ReasonCode::QUOTA_EXCEEDED);
    world.lose(first);
    world.client(0, "c");
    assert_eq!(world.counters(0).limit_sessions, 1);
}

/// [MQTT-3.1.2-4] [MQTT-3.1.2-5] [MQTT-3.1.2-6] [MQTT-3.2.2-2] [MQTT-3.2.2-3]
#[test]
fn a_session_goes_on_or_begins_anew() {
    for (there, back) in [(0, 0), (0, 1)] {
        let mut world = World::new(2);
        let (id, present) = world.connect(there, lasting("a", 100));
        assert!(!present);
        world.subscribe(id, "t", QoS::AtLeastOnce);
        world.lose(id);
        let (id, present) = world.connect(back, lasting("a", 100));
        assert!(present);
        let other = world.client(0, "p");
        world.send(other, Packet::Publish(publish("t", "1")));
        assert_eq!(world.payloads(id), ["1"]);
        let mut clean = lasting("a", 100);
        clean.clean_start = true;
        let (id, present) = world.connect(there, clean);
        assert!(!present);
        world.send(other, Packet::Publish(publish("t", "2")));
        assert!(world.payloads(id).is_empty());
        assert_eq!(world.sum(|c| c.sessions), 2);
        assert_eq!(world.sum(|c| c.subscriptions), 0);
        assert_eq!(world.shared.topics.len(), 0);
    }
}

/// [MQTT-3.1.2-23] [MQTT-4.1.0-2]; §3.1.2.11.2: without an expiry interval it ends at once.
#[test]
fn a_session_ends_when_its_expiry_interval_has_passed() {
    let mut world = World::new(1);
    let (id, _) = world.connect(0, lasting("a", 100));
    world.lose(id);
    world.advance_s(99);
    assert_eq!((world.counters(0).sessions, world.directory.len()), (1, 1));
    world.advance_s(2);
    assert_eq!((world.counters(0).sessions, world.directory.len()), (0, 0));
    assert_eq!(world.counters(0).sessions_expired, 1);
    let id = world.client(0, "b");
    world.lose(id);
    assert_eq!(world.directory.len(), 0);
    // A week is the most by default; the client is told.
    let id = world.open(0);
    world.send(id, Packet::Connect(Box::new(lasting("c", u32::MAX))));
    assert_eq!(
        connack(world.read_one(id)).properties.session_expiry_s,
        Some(604_800)
    );
    // 3.x: Clean Session 0 lasts as long as configured.
    let (id, _) = world.connect(
        0,
        headgate_codec::Connect {
            version: Version::V311,
            ..lasting("d", 0)
        },
    );
    world.lose(id);
    world.advance_s(604_700);
    let (_, present) = world.connect(
        0,
        headgate_codec::Connect {
            version: Version::V311,
            ..lasting("d", 0)
        },
    );
    assert!(present);
}

#[test]
fn disconnect_can_shorten_the_session_and_not_create_one() {
    let mut world = World::new(1);
    let expiry = |s| {
        let properties = DisconnectProperties {
            session_expiry_s: Some(s),
            ..DisconnectProperties::default()
        };
        Packet::Disconnect(Disconnect {
            reason: ReasonCode::SUCCESS,
            properties: Some(Box::new(properties)),
        })
    };
    let (id, _) = world.connect(0, lasting("a", 100));
    world.send(id, expiry(5));
    assert_eq!(world.wires[id].closed, Some(ReasonCode::SUCCESS));
    assert_eq!(world.counters(0).sessions, 1);
    world.advance_s(6);
    assert_eq!(world.counters(0).sessions, 0);
    let id = world.client(0, "b");
    world.send(id, expiry(5));
    assert_eq!(world.read_one(id), disconnect(ReasonCode::PROTOCOL_ERROR));
}

/// [MQTT-3.1.4-3]
#[test]
fn a_newer_connection_takes_the_session_over_wherever_it_comes() {
    for (first, second) in [(0, 0), (0, 1)] {
        for expiry in [0, 100] {
            let mut world = World::new(2);
            let (old, _) = world.connect(first, lasting("a", expiry));
            let (_, present) = world.connect(second, lasting("a", expiry));
            assert_eq!(
                present,
                expiry > 0,
                "a session without expiry ends with its connection"
            );
            assert_eq!(
                world.read_one(old),
                disconnect(ReasonCode::SESSION_TAKEN_OVER)
            );
            assert_eq!(
                world.wires[old].closed,
                Some(ReasonCode::SESSION_TAKEN_OVER)
            );
            assert_eq!((world.sum(|c| c.sessions), world.directory.len()), (1, 1));
            assert_eq!(world.directory["a"].worker, WorkerSlot(second as u8));
        }
    }
}

/// Epochs grow with each owner.
#[test]
fn every_owner_has_a_higher_epoch() {
    let mut world = World::new(3);
    let mut last = 0;
    for worker in [0, 1, 2, 0, 2, 1, 1, 0] {
        world.connect(worker, lasting("a", 100));
        let owner = world.directory["a"];
        assert!(owner.epoch >= last && usize::from(owner.worker.0) == worker);
        last = owner.epoch;
    }
    assert_eq!(world.sum(|c| c.sessions), 1);
}

/// [MQTT-3.1.2-22]
#[test]
fn silence_closes_after_one_and_a_half_keep_alives() {
    let mut world = World::new(1);
    let id = world.client(0, "a");
    for _ in 0..3 {
        world.advance_s(89);
        assert!(world.wires[id].closed.is_none());
        world.send(id, Packet::PingReq);
        assert_eq!(world.read_one(id), Packet::PingResp);
    }
    world.advance_s(91);
    assert_eq!(world.wires[id].closed, Some(ReasonCode::KEEP_ALIVE_TIMEOUT));
    assert_eq!(
        world.read_one(id),
        disconnect(ReasonCode::KEEP_ALIVE_TIMEOUT)
    );
    assert_eq!(world.counters(0).keep_alive_timeouts, 1);
}

/// Keep Alive 0 gets the ceiling; a 5.0 client is told [MQTT-3.2.2-22].
#[test]
fn without_keep_alive_the_ceiling_counts() {
    let mut world = World::with(1, RetainedLimits::default(), |c| {
        c.limits.idle_ceiling_s = 300
    });
    for (version, asked, told) in [
        (Version::V5, 0, Some(200)),
        (Version::V5, 1_000, Some(200)),
        (Version::V5, 100, None),
        (Version::V311, 0, None),
    ] {
        let id = world.open(0);
        let c = headgate_codec::Connect {
            version,
            keep_alive_s: asked,
            ..connect("a")
        };
        world.send(id, Packet::Connect(Box::new(c)));
        assert_eq!(
            connack(world.read_one(id)).properties.server_keep_alive_s,
            told
        );
        let limit = if asked == 100 { 150 } else { 300 };
        world.advance_s(limit - 1);
        assert!(world.wires[id].closed.is_none());
        world.advance_s(2);
        assert!(world.wires[id].closed.is_some(), "{version:?} {asked}");
    }
}

#[test]
fn a_connection_without_connect_is_closed_after_ten_seconds() {
    let mut world = World::new(1);
    let id = world.open(0);
    world.advance_ms(9_900);
    assert!(world.wires[id].closed.is_none());
    world.advance_ms(400);
    assert!(world.wires[id].closed.is_some() && world.read(id).is_empty());
    assert_eq!(world.counters(0).connect_timeouts, 1);
}

/// Until then nothing has to be looked at: a connection's first timer is the time that CONNECT has.
#[test]
fn a_new_connection_wakes_its_worker_when_its_time_is_up_and_not_before() {
    let mut world = World::with(1, RetainedLimits::default(), |c| {
        c.limits.connect_timeout_s = 5;
    });
    assert_eq!(world.next_timeout(0), None);
    world.open(0);
    let due = world.next_timeout(0).expect("a timer");
    assert!(due >= world.now.after_s(5), "{due:?}");
    assert!(due <= world.now.after_s(6), "{due:?}");
}

#[test]
fn packets_behind_connect_wait_for_the_session_within_bounds() {
    let mut world = World::with(1, RetainedLimits::default(), |c| c.limits.held_packets = 3);
    world.manual = true;
    let id = world.open(0);
    world.send(id, Packet::Connect(Box::new(connect("a"))));
    assert!(!world.wires[id].reading);
    world.send_at_once(id, subscribe(1, "t", Default::default()));
    world.send_at_once(id, Packet::Publish(publish("t", "1")));
    world.send_at_once(id, Packet::PingReq);
    assert!(world.read(id).is_empty());
    world.run();
    let packets = world.read(id);
    assert!(
        matches!(
            &packets[..],
            [
                Packet::ConnAck(_),
                Packet::SubAck(_),
                Packet::Publish(_),
                Packet::PingResp
            ]
        ),
        "{packets:?}"
    );
    assert!(world.wires[id].reading);
    let id = world.open(0);
    world.send(id, Packet::Connect(Box::new(connect("b"))));
    for _ in 0..4 {
        world.send_at_once(id, Packet::PingReq);
    }
    world.run();
    refused(&mut world, id, ReasonCode::QUOTA_EXCEEDED);
    assert_eq!((world.directory.len(), world.counters(0).sessions), (1, 1));
}

/// [MQTT-4.13.1-1] and 3.x, which has no DISCONNECT from servers.
#[test]
fn malformed_bytes_are_answered_as_the_version_allows() {
    let mut world = World::new(1);
    let id = world.client(0, "a");
    world.malformed(id, ReasonCode::PACKET_TOO_LARGE);
    assert_eq!(world.read_one(id), disconnect(ReasonCode::PACKET_TOO_LARGE));
    let (id, _) = world.connect(
        0,
        headgate_codec::Connect {
            version: Version::V311,
            ..connect("a")
        },
    );
    world.malformed(id, ReasonCode::MALFORMED_PACKET);
    assert!(world.read(id).is_empty() && world.wires[id].closed.is_some());
    // [MQTT-3.1.2-2]
    let id = world.open(0);
    world.malformed(id, ReasonCode::UNSUPPORTED_PROTOCOL_VERSION);
    refused(&mut world, id, ReasonCode::UNSUPPORTED_PROTOCOL_VERSION);
    let id = world.open(0);
    world.malformed(id, ReasonCode::MALFORMED_PACKET);
    assert!(world.read(id).is_empty() && world.wires[id].closed.is_some());
    assert_eq!(world.counters(0).protocol_errors, 4);
    assert_eq!(
        (world.counters(0).connections, world.counters(0).clients),
        (0, 0)
    );
}

#[test]
fn shutdown_says_so_and_closes() {
    let mut world = World::new(1);
    let (five, _) = world.connect(0, lasting("a", 100));
    let (three, _) = world.connect(
        0,
        headgate_codec::Connect {
            version: Version::V311,
            ..connect("b")
        },
    );
    let new = world.open(0);
    world.handle(0, Input::Shutdown);
    assert_eq!(
        world.read_one(five),
        disconnect(ReasonCode::SERVER_SHUTTING_DOWN)
    );
    assert!(world.read(three).is_empty() && world.read(new).is_empty());
    assert!(
        [five, three, new]
            .iter()
            .all(|id| world.wires[*id].closed == Some(ReasonCode::SERVER_SHUTTING_DOWN))
    );
    let late = world.open(0);
    assert!(world.wires[late].closed.is_some());
    assert_eq!(world.counters(0).connections, 0);
}

/// A CONNECT that loses its connection on the way leaves nothing behind.
#[test]
fn a_connect_that_is_abandoned_leaves_nothing() {
    for steps in 0..6 {
        let mut world = World::new(2);
        world.connect(0, lasting("a", 100));
        world.manual = true;
        let id = world.open(1);
        world.send(id, Packet::Connect(Box::new(lasting("a", 100))));
        for _ in 0..steps {
            if let Some(event) = world.events().first().copied() {
                world.happen(event);
            }
        }
        world.lose(id);
        world.run();
        assert_eq!(
            (world.sum(|c| c.sessions), world.directory.len()),
            (1, 1),
            "after {steps} steps"
        );
        assert_eq!(
            world.sum(|c| c.clients) + u64::from(world.wires[0].closed.is_some()),
            1
        );
        world.manual = false;
        assert!(world.connect(1, lasting("a", 100)).1);
        assert_eq!(
            (world.sum(|c| c.sessions), world.sum(|c| c.connections)),
            (1, 1)
        );
    }
}

/// The directory finds the worker gone: clients come back to new sessions.
#[test]
fn a_worker_that_is_gone_holds_nobody_up() {
    let mut world = World::new(2);
    world.connect(0, lasting("a", 100));
    world.manual = true;
    let id = world.open(1);
    world.send(id, Packet::Connect(Box::new(lasting("a", 100))));
    while let Some(event) = world
        .events()
        .iter()
        .copied()
        .find(|e| !matches!(e, Event::Mesh(_)))
    {
        world.happen(event);
    }
    assert!(world.read(id).is_empty());
    world.wires[0].gone = true;
    world.handle(
        1,
        Input::WorkerGone {
            worker: WorkerSlot(0),
        },
    );
    world.recover(None);
    world.happen(Event::Persist(1));
    let answer = connack(world.read_one(id));
    assert_eq!(
        (answer.reason, answer.session_present),
        (ReasonCode::SUCCESS, false)
    );
}

/// A driver may use a place again without a word.
#[test]
fn a_connection_in_a_used_place_ends_the_former_one() {
    let mut world = World::new(1);
    let old = world.client(0, "a");
    let (conn, worker) = (world.wires[old].conn, world.wires[old].worker);
    world.wires[old].gone = true;
    let conn = headgate_core::ConnId {
        generation: conn.generation + 1,
        ..conn
    };
    let peer = headgate_core::Peer {
        address: ([192, 0, 2, 1], 7).into(),
        transport: headgate_core::Transport::Quic,
        certificate: None,
        early: false,
    };
    world.handle(worker, Input::Opened { conn, peer });
    assert_eq!(
        (world.sum(|c| c.connections), world.sum(|c| c.sessions)),
        (1, 0)
    );
}
