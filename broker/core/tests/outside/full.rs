//! Full queues: what becomes of a message that finds no room, by the policy of its receiver's quota class.

use crate::common::{
    streams::{flush, on, options, payloads, taken},
    *,
};
use headgate_codec::{Connect, Packet, QoS, ReasonCode, Will};
use headgate_core::{
    AboveQuota, Completion, CoreConfig, Input, Loaded, Output, QuotaLimits, Record, RetainedLimits,
    Transport, WhenFull,
};
use std::collections::BTreeMap;

pub const ALL_QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];
/// Messages that may wait for a session.
const ROOM: u32 = 3;
/// More than the transport takes at once.
pub const FILLER: usize = 70_000;

/// Clients have queues of [`ROOM`] messages.
pub fn world(workers: u8, when_full: WhenFull) -> World {
    world_with(workers, when_full, |_| {})
}

pub fn world_with(workers: u8, when_full: WhenFull, change: impl Fn(&mut CoreConfig)) -> World {
    World::with(workers, RetainedLimits::default(), |config| {
        let limits = QuotaLimits {
            queued_messages: ROOM,
            when_full,
            above: AboveQuota::Slow,
            ..QuotaLimits::default()
        };
        config.quotas = [limits].into();
        change(config);
    })
}

pub fn send(world: &mut World, p: Id, qos: QoS, numbers: impl Iterator<Item = u16>) {
    for number in numbers {
        let packet = match qos {
            QoS::AtMostOnce => publish("a", &number.to_string()),
            _ => publish_acked("a", &number.to_string(), qos, number),
        };
        world.send(p, Packet::Publish(packet));
    }
}

pub fn texts(numbers: impl Iterator<Item = u16>) -> Vec<String> {
    numbers.map(|n| n.to_string()).collect()
}

/// The client's connection has all that it takes, so that everything else waits.
pub fn stall(world: &mut World, s: Id, filler: Id) {
    world.wires[s].stalled = true;
    let filling = "f".repeat(FILLER);
    world.send(filler, Packet::Publish(publish("a", &filling)));
    world.wires[s].unread.clear();
}

/// The client reads and acknowledges again; the payloads that it gets.
pub fn go_on(world: &mut World, s: Id) -> Vec<String> {
    world.wires[s].stalled = false;
    world.run();
    take(world, s)
}

/// What the client reads, until nothing more comes of its acknowledgements.
pub fn take(world: &mut World, s: Id) -> Vec<String> {
    let mut got = Vec::new();
    loop {
        let packets = world.read(s);
        if packets.is_empty() {
            return got;
        }
        for packet in packets {
            match packet {
                Packet::Publish(p) => {
                    got.push(String::from_utf8_lossy(&p.payload).into_owned());
                    let id = p.packet_id.map_or(0, |id| id.get());
                    match p.qos {
                        QoS::AtMostOnce => {}
                        QoS::AtLeastOnce => world.send(s, Packet::PubAck(ack(id))),
                        QoS::ExactlyOnce => world.send(s, Packet::PubRec(ack(id))),
                    }
                }
                Packet::PubRel(rel) => world.send(s, Packet::PubComp(ack(rel.packet_id.get()))),
                _ => {}
            }
        }
    }
}

/// A stalled subscriber, a publisher and the worker of that one: the same one's, or another's.
pub fn stalled(world: &mut World, away: usize, connect: Connect) -> (Id, Id) {
    let (s, _) = world.connect(0, connect);
    world.subscribe(s, "a", QoS::ExactlyOnce);
    let filler = world.client(0, "filler");
    let p = world.client(away, "p");
    stall(world, s, filler);
    (s, p)
}

/// Each QoS, with the publisher at the subscriber's worker and at another one.
pub fn everywhere(mut check: impl FnMut(QoS, usize)) {
    for qos in ALL_QOS {
        for away in [0, 1] {
            check(qos, away);
        }
    }
}

#[test]
fn the_newest_is_dropped_if_nothing_else_is_said() {
    everywhere(|qos, away| {
        let mut world = world(2, WhenFull::default());
        let (s, p) = stalled(&mut world, away, connect("s"));
        send(&mut world, p, qos, 1..=5);
        assert_eq!(go_on(&mut world, s), ["1", "2", "3"], "{qos:?} {away}");
        let dropped = world.counters(0);
        let dropped = dropped.dropped_queue_full + dropped.dropped_queue_full_qos0;
        assert_eq!((dropped, world.counters(0).limit_queued_messages), (2, 2));
    });
}

#[test]
fn the_oldest_gives_way_and_its_record_goes_with_it() {
    everywhere(|qos, away| {
        let mut world = world(2, WhenFull::DropOldest);
        let (s, p) = stalled(&mut world, away, lasting("s", 60));
        send(&mut world, p, qos, 1..=7);
        assert_eq!(
            queued_records(&world).len(),
            if qos == QoS::AtMostOnce { 0 } else { 3 }
        );
        assert_eq!(go_on(&mut world, s), ["5", "6", "7"], "{qos:?} {away}");
        let c = world.counters(0);
        let dropped = (c.dropped_oldest_qos0, c.dropped_oldest);
        assert_eq!(
            dropped,
            if qos == QoS::AtMostOnce {
                (4, 0)
            } else {
                (0, 4)
            }
        );
        assert_eq!((c.dropped_queue_full, c.limit_queued_messages), (0, 4));
        assert!(queued_records(&world).is_empty(), "{:?}", world.records);
    });
}

#[test]
fn what_is_on_its_way_does_not_give_way() {
    let mut world = world(1, WhenFull::DropOldest);
    let mut one = connect("s");
    one.properties.receive_maximum = Some(1);
    let (s, _) = world.connect(0, one);
    world.subscribe(s, "a", QoS::AtLeastOnce);
    let p = world.client(0, "p");
    send(&mut world, p, QoS::AtLeastOnce, 1..=6);
    assert_eq!(take(&mut world, s), ["1", "4", "5", "6"]);
}

#[test]
fn qos_0_gives_way_first_and_takes_no_other_place() {
    let mut world = world(1, WhenFull::DropOldest);
    let (s, p) = stalled(&mut world, 0, connect("s"));
    send(&mut world, p, QoS::AtLeastOnce, 1..=2);
    send(&mut world, p, QoS::AtMostOnce, 3..=4);
    // 4 has taken the place of 3; now each takes that of 4 and then of 1.
    send(&mut world, p, QoS::AtLeastOnce, 5..=6);
    send(&mut world, p, QoS::AtMostOnce, 7..=8);
    assert_eq!(go_on(&mut world, s), ["2", "5", "6"]);
    let c = world.counters(0);
    assert_eq!((c.dropped_oldest_qos0, c.dropped_oldest), (2, 1));
    assert_eq!(c.dropped_queue_full_qos0, 2);
}

#[test]
fn as_many_go_as_a_large_one_needs_but_not_for_one_that_never_fits() {
    let mut world = world_with(1, WhenFull::DropOldest, |config| {
        config.limits.session_bytes = 5_000;
        config.quotas = [QuotaLimits {
            when_full: WhenFull::DropOldest,
            ..QuotaLimits::default()
        }]
        .into();
    });
    let (s, p) = stalled(&mut world, 0, connect("s"));
    send(&mut world, p, QoS::AtLeastOnce, 1..=20);
    let large = |size| publish_acked("a", &"x".repeat(size), QoS::AtLeastOnce, 30);
    world.send(p, Packet::Publish(large(5_000)));
    world.send(p, Packet::Publish(large(3_000)));
    let got = go_on(&mut world, s);
    assert_eq!(got.last().map(String::len), Some(3_000));
    assert!((5..15).contains(&got.len()), "{}", got.len());
    assert_eq!(got[0], (22 - got.len()).to_string(), "the latest are there");
    let c = world.counters(0);
    assert_eq!(
        (c.dropped_queue_full, c.dropped_oldest),
        (1, 21 - got.len() as u64)
    );
}

/// The entries of queues that are recorded and not done, by sequence.
fn queued_records(world: &World) -> BTreeMap<u64, Loaded> {
    let mut entries = BTreeMap::new();
    for (_, _, sequence, record) in &world.records {
        match record {
            Record::Queued {
                message,
                qos,
                retain,
                ids,
                packet_id,
                group,
            } => {
                let loaded = Loaded {
                    sequence: *sequence,
                    message: Some(std::sync::Arc::clone(message)),
                    qos: *qos,
                    retain: *retain,
                    ids: ids.clone(),
                    packet_id: *packet_id,
                    group: group.clone(),
                };
                entries.insert(*sequence, loaded);
            }
            Record::Acknowledged { queued } | Record::Completed { queued } => {
                entries.remove(queued);
            }
            _ => {}
        }
    }
    entries
}

/// Answers what the store is asked for, as it was when it was asked.
fn answer_loads(world: &mut World, mut entries: BTreeMap<u64, Loaded>) -> usize {
    let mut answered = 0;
    while let Some((
        worker,
        Output::Load {
            op,
            handle,
            after,
            messages_max,
            ..
        },
    )) = world.loads.pop_front()
    {
        let mut rest = entries.split_off(&(after + 1));
        let keys: Vec<u64> = rest.keys().copied().take(messages_max.into()).collect();
        let messages = keys.iter().filter_map(|key| rest.remove(key)).collect();
        let answer = Completion::Loaded {
            op,
            handle,
            messages,
            more: !rest.is_empty(),
            failed: false,
        };
        world.handle(worker, Input::Completed(answer));
        entries = queued_records(world);
        answered += 1;
    }
    answered
}

/// What only the store has gives way as well: it is read for that, once for many messages.
#[test]
fn the_oldest_of_an_absent_clients_queue_give_way_in_the_store() {
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let mut world = world_with(2, WhenFull::DropOldest, |c| {
            c.limits.spills = true;
            c.quotas = [QuotaLimits {
                queued_messages: 100,
                when_full: WhenFull::DropOldest,
                ..QuotaLimits::default()
            }]
            .into();
        });
        let (s, _) = world.connect(0, lasting("s", 600));
        world.subscribe(s, "a", QoS::ExactlyOnce);
        world.lose(s);
        let p = world.client(1, "p");
        send(&mut world, p, qos, 1..=100);
        assert_eq!(world.loads.len(), 0, "it has room");
        assert!(world.counters(0).sessions_parked > 0);
        // While the store is being read, the latest join the queue all the same.
        send(&mut world, p, qos, 101..=110);
        assert_eq!(
            (world.loads.len(), world.counters(0).dropped_oldest),
            (1, 0)
        );
        let entries = queued_records(&world);
        let first_100 = entries.into_iter().take(100).collect();
        answer_loads(&mut world, first_100);
        assert_eq!(world.counters(0).dropped_oldest, 10);
        send(&mut world, p, qos, 111..=164);
        assert_eq!(world.loads.len(), 0, "what was read is enough for these");
        assert_eq!(queued_records(&world).len(), 100);
        send(&mut world, p, qos, 165..=166);
        let entries = queued_records(&world);
        assert_eq!(answer_loads(&mut world, entries), 1);
        assert_eq!(queued_records(&world).len(), 100);
        // The client comes back, and reads on from the store.
        let (s, present) = world.connect(0, lasting("s", 600));
        assert!(present);
        let mut got = take(&mut world, s);
        for _ in 0..9 {
            let entries = queued_records(&world);
            answer_loads(&mut world, entries);
            got.extend(take(&mut world, s));
        }
        assert_eq!(got, texts(67..=166), "{qos:?}");
        assert_eq!(world.counters(0).dropped_oldest, 66);
        assert!(queued_records(&world).is_empty());
    }
}

/// A client that reads nothing has a short head in memory and the rest in the store.
#[test]
fn the_oldest_of_a_stalled_clients_queue_give_way_in_memory_and_then_in_the_store() {
    let mut world = world_with(1, WhenFull::DropOldest, |c| {
        c.limits.spills = true;
        c.quotas = [QuotaLimits {
            queued_messages: 40,
            when_full: WhenFull::DropOldest,
            ..QuotaLimits::default()
        }]
        .into();
    });
    let (s, p) = stalled(&mut world, 0, lasting("s", 600));
    send(&mut world, p, QoS::AtLeastOnce, 1..=56);
    assert_eq!(
        (world.loads.len(), world.counters(0).dropped_oldest),
        (0, 16)
    );
    send(&mut world, p, QoS::AtLeastOnce, 57..=59);
    assert_eq!(
        (world.loads.len(), world.counters(0).dropped_oldest),
        (1, 16)
    );
    // One with QoS 0 takes no other's place, wherever that is, and nothing takes more than twice the room.
    send(&mut world, p, QoS::AtMostOnce, 60..=60);
    send(&mut world, p, QoS::AtLeastOnce, 61..=120);
    let c = world.counters(0);
    assert_eq!((c.dropped_queue_full_qos0, c.dropped_queue_full), (1, 23));
    let entries = queued_records(&world);
    assert_eq!(entries.len(), 80);
    answer_loads(&mut world, entries);
    assert_eq!(queued_records(&world).len(), 40);
    let mut got = go_on(&mut world, s);
    let entries = queued_records(&world);
    answer_loads(&mut world, entries);
    got.extend(take(&mut world, s));
    assert_eq!(got, texts((57..=59).chain(61..=97)));
}

#[test]
fn a_slow_client_is_disconnected_and_keeps_its_session() {
    everywhere(|qos, away| {
        let mut world = world(2, WhenFull::Disconnect);
        let mut slow = lasting("s", 60);
        slow.will = Some(Will {
            topic: "gone".into(),
            payload: "s".into(),
            qos: QoS::AtMostOnce,
            retain: false,
            delay_s: None,
            properties: None,
        });
        let (s, p) = stalled(&mut world, away, slow);
        let heir = world.client(1, "heir");
        world.subscribe(heir, "gone", QoS::AtMostOnce);
        send(&mut world, p, qos, 1..=4);
        assert_eq!(world.read_one(s), disconnect(ReasonCode::QUOTA_EXCEEDED));
        assert_eq!(world.wires[s].closed, Some(ReasonCode::QUOTA_EXCEEDED));
        assert_eq!(world.payloads(heir), ["s"]);
        // While it is away its queue drops what comes.
        send(&mut world, p, qos, 5..=6);
        let (s, present) = world.connect(0, lasting("s", 60));
        assert!(present);
        assert_eq!(take(&mut world, s), ["1", "2", "3"], "{qos:?} {away}");
        let c = world.counters(0);
        assert_eq!(c.slow_disconnected, 1);
        let dropped = c.dropped_queue_full + c.dropped_queue_full_qos0;
        assert_eq!(dropped, if qos == QoS::AtMostOnce { 1 } else { 3 });
        assert!(world.wires[p].closed.is_none());
    });
}

#[test]
fn who_is_sent_too_large_a_message_is_not_slow() {
    let mut world = world_with(1, WhenFull::Disconnect, |c| c.limits.session_bytes = 2_000);
    let s = world.client(0, "s");
    world.subscribe(s, "a", QoS::AtLeastOnce);
    let p = world.client(0, "p");
    let large = publish_acked("a", &"x".repeat(3_000), QoS::AtLeastOnce, 1);
    world.send(p, Packet::Publish(large));
    send(&mut world, p, QoS::AtLeastOnce, 2..=3);
    assert_eq!(take(&mut world, s), ["2", "3"]);
    assert_eq!(world.counters(0).limit_session_bytes, 1);
}

/// Otherwise the next message would end each of its connections, and it would never get what waits.
#[test]
fn who_comes_back_to_a_full_queue_has_time_to_make_room() {
    for makes_room in [true, false] {
        let mut world = world(1, WhenFull::Disconnect);
        let mut slow = lasting("s", 60);
        slow.properties.receive_maximum = Some(1);
        let (s, _) = world.connect(0, slow.clone());
        world.subscribe(s, "a", QoS::AtLeastOnce);
        world.lose(s);
        let p = world.client(0, "p");
        send(&mut world, p, QoS::AtLeastOnce, 1..=4);
        let (s, _) = world.connect(0, slow);
        send(&mut world, p, QoS::AtLeastOnce, 5..=6);
        world.advance_ms(4_900);
        assert!(world.wires[s].closed.is_none());
        if makes_room {
            assert_eq!(take(&mut world, s), ["1", "2", "3", "5"]);
            // It had room, so it is too slow now.
            send(&mut world, p, QoS::AtLeastOnce, 7..=11);
        } else {
            world.advance_ms(200);
            send(&mut world, p, QoS::AtLeastOnce, 7..=7);
        }
        assert_eq!(world.wires[s].closed, Some(ReasonCode::QUOTA_EXCEEDED));
    }
}

/// A data stream that stands still is full when its share of the queue is, and that is what makes room there.
#[test]
fn a_data_stream_gives_way_within_its_share() {
    let mut world = world_with(1, WhenFull::DropOldest, |c| {
        c.quotas = [QuotaLimits {
            queued_messages: 8,
            when_full: WhenFull::DropOldest,
            ..QuotaLimits::default()
        }]
        .into();
    });
    world.transport = Transport::Quic;
    let (s, _) = world.connect(0, connect("s"));
    world.subscribe(s, "main", QoS::AtLeastOnce);
    let wanted = subscribe(1, "a", options(QoS::AtLeastOnce));
    on(&mut world, s, 1, wanted);
    let (_, bytes) = taken(&mut world, 1);
    flush(&mut world, s, 1, bytes);
    let p = world.client(0, "p");
    let filling = "f".repeat(FILLER);
    world.send(p, Packet::Publish(publish("a", &filling)));
    let (_, filled) = taken(&mut world, 1);
    send(&mut world, p, QoS::AtLeastOnce, 1..=9);
    let on_main = publish_acked("main", "m", QoS::AtLeastOnce, 10);
    world.send(p, Packet::Publish(on_main));
    assert_eq!(world.payloads(s), ["m"], "the other stream has its own");
    flush(&mut world, s, 1, filled);
    assert_eq!(payloads(&taken(&mut world, 1).0), ["6", "7", "8", "9"]);
    assert_eq!(world.counters(0).dropped_oldest, 5);
}

/// A session that moves holds back what comes directly: that has the same limits, and the same policy.
#[test]
fn what_is_held_back_for_a_moving_session_gives_way_too() {
    for (when_full, expected) in [
        (WhenFull::DropNewest, &["1", "2", "3"][..]),
        (WhenFull::DropOldest, &["3", "4", "5"]),
        (WhenFull::Block, &["1", "2", "3", "4", "5"]),
    ] {
        let mut world = world(3, when_full);
        let (s, _) = world.connect(1, lasting("s", 60));
        world.subscribe(s, "a", QoS::AtLeastOnce);
        world.lose(s);
        let p = world.client(0, "p");
        world.manual = true;
        let id = world.open(2);
        world.send(id, Packet::Connect(Box::new(lasting("s", 60))));
        // All happens but for what goes to worker 0, whose mark the session has to wait for.
        let happen = |world: &mut World| {
            let deaf = |event: &Event| matches!(event, Event::Mesh((_, 0)));
            while let Some(event) = world.events().into_iter().find(|event| !deaf(event)) {
                world.happen(event);
            }
        };
        happen(&mut world);
        send(&mut world, p, QoS::AtLeastOnce, 1..=5);
        happen(&mut world);
        assert_eq!(world.payloads(id), [""; 0], "{when_full:?}");
        world.manual = false;
        world.run();
        assert_eq!(take(&mut world, id), expected, "{when_full:?}");
        assert!(world.wires[p].reading);
        assert!(queued_records(&world).is_empty());
    }
}
