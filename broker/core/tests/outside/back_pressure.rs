//! Back pressure: publishers wait for a subscriber whose queue is full, if its quota class blocks, and for nobody else.

use crate::{
    common::*,
    full::{
        ALL_QOS, FILLER, everywhere, go_on, send, stall, stalled, take, texts, world, world_with,
    },
};
use headgate_codec::{Packet, QoS};
use headgate_core::WhenFull;

#[test]
fn a_publisher_waits_for_a_slow_subscriber_and_nothing_is_lost() {
    everywhere(|qos, away| {
        let mut world = world(2, WhenFull::Block);
        let (s, p) = stalled(&mut world, away, connect("s"));
        let other = world.client(away, "other");
        send(&mut world, p, qos, 1..=3);
        assert!(world.wires[p].reading, "there was room");
        send(&mut world, p, qos, 4..=40);
        assert!(!world.wires[p].reading && world.wires[other].reading);
        world.advance_s(4);
        assert!(!world.wires[p].reading);
        assert_eq!(go_on(&mut world, s), texts(1..=40), "{qos:?} {away}");
        assert!(world.wires[p].reading);
        let c = world.counters(0);
        assert_eq!(c.dropped_queue_full + c.dropped_queue_full_qos0, 0);
        assert!(world.counters(away).publishers_held > 0);
        assert_eq!(world.counters(away).publishers_held_too_long, 0);
    });
}

/// What the driver had read before it was told to stop is taken beyond the limit.
#[test]
fn what_was_under_way_to_a_queue_that_blocks_is_not_lost() {
    everywhere(|qos, away| {
        let mut world = world(2, WhenFull::Block);
        let (s, p) = stalled(&mut world, away, connect("s"));
        for number in 1..=200 {
            let packet = match qos {
                QoS::AtMostOnce => publish("a", &number.to_string()),
                _ => publish_acked("a", &number.to_string(), qos, number),
            };
            world.send_at_once(p, Packet::Publish(packet));
        }
        assert_eq!(go_on(&mut world, s), texts(1..=200), "{qos:?} {away}");
    });
}

#[test]
fn a_subscriber_that_stands_still_holds_nobody_up_for_longer_than_is_allowed() {
    everywhere(|qos, away| {
        let mut world = world(2, WhenFull::Block);
        let (s, p) = stalled(&mut world, away, connect("s"));
        send(&mut world, p, qos, 1..=4);
        assert!(!world.wires[p].reading);
        world.advance_ms(4_900);
        assert!(!world.wires[p].reading);
        world.advance_ms(200);
        assert!(world.wires[p].reading);
        assert_eq!(world.counters(away).publishers_held_too_long, 1);
        // From now on the queue drops what comes, at once.
        send(&mut world, p, qos, 5..=9);
        assert!(world.wires[p].reading && world.wires[p].unsent.is_empty());
        assert_eq!(go_on(&mut world, s), texts(1..=4), "{qos:?} {away}");
        // It has had room since, so it may block again.
        let filler = world.client(0, "again");
        stall(&mut world, s, filler);
        send(&mut world, p, qos, 10..=14);
        assert!(!world.wires[p].reading);
        assert_eq!(go_on(&mut world, s), texts(10..=14), "{qos:?} {away}");
        assert!(world.wires[p].reading);
    });
}

#[test]
fn who_is_away_blocks_nobody() {
    everywhere(|qos, away| {
        let mut world = world(2, WhenFull::Block);
        let (s, p) = stalled(&mut world, away, lasting("s", 60));
        send(&mut world, p, qos, 1..=5);
        assert!(!world.wires[p].reading);
        world.lose(s);
        assert!(world.wires[p].reading, "{qos:?} {away}");
        send(&mut world, p, qos, 6..=9);
        assert!(world.wires[p].reading);
        let (s, _) = world.connect(0, lasting("s", 60));
        assert_eq!(take(&mut world, s), texts(1..=4), "{qos:?} {away}");
    });
}

#[test]
fn a_client_does_not_wait_for_itself() {
    for qos in ALL_QOS {
        let mut world = world(1, WhenFull::Block);
        let mut own = connect("own");
        own.properties.receive_maximum = Some(1);
        let (id, _) = world.connect(0, own);
        world.subscribe(id, "a", qos);
        let filler = world.client(0, "filler");
        stall(&mut world, id, filler);
        send(&mut world, id, qos, 1..=9);
        assert!(world.wires[id].reading && world.wires[id].unsent.is_empty());
        world.wires[id].stalled = false;
        world.run();
        assert_eq!(take(&mut world, id), ["1", "2", "3"], "{qos:?}");
    }
}

/// Each waits for the other, and neither reads the acknowledgements that would make room: the time limit ends it.
#[test]
fn two_that_wait_for_each_other_go_on_in_the_end() {
    for away in [0, 1] {
        let mut world = world(2, WhenFull::Block);
        let slow = |name| {
            let mut slow = connect(name);
            slow.properties.receive_maximum = Some(1);
            slow
        };
        let (a, _) = world.connect(0, slow("a"));
        let (b, _) = world.connect(away, slow("b"));
        world.subscribe(a, "to/a", QoS::AtLeastOnce);
        world.subscribe(b, "to/b", QoS::AtLeastOnce);
        for number in 1..=5 {
            for (from, to) in [(a, "to/b"), (b, "to/a")] {
                let packet = publish_acked(to, &number.to_string(), QoS::AtLeastOnce, number);
                world.send(from, Packet::Publish(packet));
            }
        }
        assert!(!world.wires[a].reading && !world.wires[b].reading);
        let mut got = [take(&mut world, a), take(&mut world, b)];
        assert!(
            !world.wires[a].reading && !world.wires[b].reading,
            "no PUBACK is read"
        );
        world.advance_s(6);
        for (id, got) in [a, b].into_iter().zip(&mut got) {
            got.extend(take(&mut world, id));
        }
        world.advance_s(6);
        for (id, mut got) in [a, b].into_iter().zip(got) {
            got.extend(take(&mut world, id));
            assert!(world.wires[id].reading && world.wires[id].closed.is_none());
            assert_eq!(got, texts(1..=5));
        }
    }
}

/// Who waits is not taken for dead, and one that has gone is waited for by nobody.
#[test]
fn a_publisher_that_waits_may_be_silent_or_leave() {
    let mut world = world_with(2, WhenFull::Block, |c| c.limits.full_queue_ms_max = 60_000);
    let (s, _) = stalled(&mut world, 0, connect("s"));
    let mut short = connect("short");
    short.keep_alive_s = 2;
    let (silent, _) = world.connect(1, short);
    let leaver = world.client(1, "leaver");
    send(&mut world, silent, QoS::AtLeastOnce, 1..=4);
    send(&mut world, leaver, QoS::AtLeastOnce, 5..=6);
    world.send(silent, Packet::PingReq);
    world.lose(leaver);
    for _ in 0..20 {
        world.advance_s(1);
        world.send(s, Packet::PingReq);
    }
    assert!(world.wires[silent].closed.is_none());
    assert_eq!(go_on(&mut world, s), texts(1..=5));
    assert!(world.wires[silent].reading);
}

/// A group has others: who is full is left out as long as somebody isn't, and then the policy applies.
#[test]
fn a_group_leaves_out_members_whose_queues_are_full() {
    for away in [0, 1] {
        let mut world = world(2, WhenFull::Block);
        let members = ["x", "y"].map(|name| world.client(0, name));
        for member in members {
            world.subscribe(member, "own", QoS::AtMostOnce);
            world.subscribe(member, "$share/g/a", QoS::AtLeastOnce);
        }
        let filler = world.client(0, "filler");
        world.wires[members[0]].stalled = true;
        let filling = "f".repeat(FILLER);
        world.send(filler, Packet::Publish(publish("own", &filling)));
        for member in members {
            world.wires[member].unread.clear();
        }
        let p = world.client(away, "p");
        send(&mut world, p, QoS::AtLeastOnce, 1..=40);
        // It was found full once, and its publisher waits for that.
        assert!(!world.wires[p].reading);
        world.advance_s(6);
        assert!(world.wires[p].reading && world.wires[p].unsent.is_empty());
        let of_y = take(&mut world, members[1]);
        assert_eq!(of_y.len(), 36, "all but four are y's");
        let mut all = go_on(&mut world, members[0]);
        all.extend(of_y);
        all.sort_by_key(|n| n.parse::<u16>().unwrap_or(0));
        assert_eq!(all, texts(1..=40));
        // It has room again, and gets its turns.
        send(&mut world, p, QoS::AtLeastOnce, 41..=44);
        assert_eq!(members.map(|m| take(&mut world, m).len()), [2, 2]);
    }
}
