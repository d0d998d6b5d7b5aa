//! What holds while sessions are still to come from the store, when the worker that had one is lost, and when one ends.

use crate::common::{stored::stored_session, *};
use headgate_codec::{
    Disconnect, DisconnectProperties, Packet, PacketId, QoS, ReasonCode, Text, Will,
};
use headgate_core::{
    Completion, Input, Loaded, Message, Output, QueueSummary, Record, RestoredSession,
    RestoredWill, RetainedLimits, SessionId, Shared, Time, WorkerSlot,
};
use std::sync::Arc;

fn stored(client_id: &str, filter: &str) -> Box<RestoredSession> {
    Box::new(stored_session(client_id, filter, QoS::AtLeastOnce))
}

/// Topics of the messages that have been recorded for a session.
fn queued(w: &World, id: SessionId) -> Vec<String> {
    let of_it = w.records.iter().filter(|(_, session, ..)| *session == id);
    let messages = of_it.filter_map(|(.., record)| match record {
        Record::Queued { message, .. } => Some(message.topic.to_string()),
        _ => None,
    });
    messages.collect()
}

/// Packet Identifiers of the messages that have been recorded, in their order.
fn queued_ids(w: &World) -> Vec<u16> {
    let ids = w.records.iter().filter_map(|(.., record)| match record {
        Record::Queued { packet_id, .. } => Some(packet_id.get()),
        _ => None,
    });
    ids.collect()
}

/// What is recorded together with a record of this kind.
fn recorded_with(w: &World, is_it: impl Fn(&Record) -> bool) -> Vec<Record> {
    let at = w.records.iter().position(|(.., record)| is_it(record));
    let at = at.expect("it is recorded");
    let end = w
        .units
        .iter()
        .find(|end| **end > at)
        .expect("its input is over");
    let start = w.units.iter().rev().find(|end| **end <= at);
    let unit = &w.records[start.copied().unwrap_or(0)..*end];
    unit.iter().map(|(.., record)| record.clone()).collect()
}

/// Brings a client's session from worker 1 to worker 0 as far as that worker 1 has been asked for it, and lost.
fn asked_of_a_lost_worker(w: &mut World, connect: headgate_codec::Connect) -> Id {
    let (first, _) = w.connect(1, lasting("c", 60));
    w.subscribe(first, "t/#", QoS::AtLeastOnce);
    w.lose(first);
    w.manual = true;
    let id = w.open(0);
    w.send(id, Packet::Connect(Box::new(connect)));
    while let Some(event) = w
        .events()
        .into_iter()
        .find(|e| !matches!(e, Event::Mesh(_)))
    {
        w.happen(event);
    }
    w.forget_mesh();
    w.shared.forget_worker(WorkerSlot(1));
    w.manual = false;
    let worker = WorkerSlot(1);
    w.handle(0, Input::WorkerGone { worker });
    assert!(w.read(id).is_empty(), "it isn't known what the store has");
    id
}

#[test]
fn a_publish_waits_until_all_sessions_are_there() {
    let mut w = World::new(2);
    w.shared.begin_restoring();
    let publisher = w.client(0, "pub");
    let other = w.client(1, "other");
    w.subscribe(other, "#", QoS::AtMostOnce);
    w.send(publisher, Packet::Publish(publish("before", "0")));
    let acked = publish_acked("t", "1", QoS::AtLeastOnce, 1);
    w.send(publisher, Packet::Publish(acked));
    // What had been read already stays behind it.
    w.send_at_once(publisher, Packet::Publish(publish("behind", "2")));
    assert_eq!(w.payloads(other), ["0"]);
    assert!(w.read(publisher).is_empty() && !w.wires[publisher].reading);
    assert_eq!(w.counters(0).restoring_held, 2);
    // Nobody else is kept waiting.
    let (late, _) = w.connect(1, lasting("late", 60));
    w.subscribe(late, "t", QoS::AtLeastOnce);
    let session = stored("c", "t");
    let id = session.id;
    w.handle(1, Input::Restore(session));
    w.shared.finish_restoring();
    for worker in 0..2 {
        w.handle(worker, Input::SessionsRestored);
    }
    assert!(matches!(w.read_one(publisher), Packet::PubAck(a) if a.reason == ReasonCode::SUCCESS));
    assert!(w.wires[publisher].reading);
    assert_eq!(w.payloads(other), ["1", "2"]);
    assert_eq!(w.payloads(late), ["1"]);
    assert_eq!(queued(&w, id), ["t"]);
}

/// A will that comes due meanwhile is published for them, too.
#[test]
fn a_will_waits_until_all_sessions_are_there() {
    let mut w = World::new(1);
    w.shared.begin_restoring();
    let mut dying = connect("dying");
    dying.will = Some(Will {
        qos: QoS::AtLeastOnce,
        retain: false,
        topic: Text::from("t"),
        payload: "gone".into(),
        delay_s: None,
        properties: None,
    });
    let (id, _) = w.connect(0, dying);
    w.lose(id);
    let session = stored("c", "t");
    let of = session.id;
    w.handle(0, Input::Restore(session));
    assert!(queued(&w, of).is_empty());
    w.shared.finish_restoring();
    w.handle(0, Input::SessionsRestored);
    assert_eq!(queued(&w, of), ["t"]);
}

/// A will that has come due meanwhile, whatever has become of its session, is known to the store until it is published:
/// its record is one with that of its session's losing it, and the record that it is out with those of what it was.
#[test]
fn a_will_that_waits_survives_another_crash() {
    let causes: [fn(&mut World, Id); 4] = [
        |w, id| w.lose(id),
        |w, id| {
            w.lose(id);
            w.advance_s(6);
        },
        |w, id| {
            w.lose(id);
            w.client(1, "dying");
        },
        |w, id| {
            w.lose(id);
            w.advance_s(6);
            w.connect(0, lasting("dying", 60));
        },
    ];
    for (number, cause) in causes.into_iter().enumerate() {
        let mut w = World::new(2);
        w.shared.begin_restoring();
        let mut dying = lasting("dying", 60);
        dying.will = Some(Will {
            qos: QoS::ExactlyOnce,
            retain: true,
            topic: Text::from("t"),
            payload: "gone".into(),
            delay_s: (number > 0).then_some(5),
            properties: None,
        });
        let (id, _) = w.connect(0, dying);
        cause(&mut w, id);
        let unit = recorded_with(&w, |record| matches!(record, Record::WillDue { .. }));
        let loses_it = |record: &Record| {
            let gone = matches!(record, Record::WillGone | Record::SessionEnded);
            gone || matches!(record, Record::SessionClosed { will_at: None, .. })
        };
        assert!(unit.iter().any(loses_it), "{number}: {unit:?}");
        let due = w
            .records
            .iter()
            .filter_map(|(_, id, _, record)| match record {
                Record::WillDue { message } => Some((*id, Arc::clone(message))),
                _ => None,
            });
        let due: Vec<_> = due.collect();
        assert_eq!(due.len(), 1, "{number}");
        let (kept, message) = due[0].clone();

        // The worker goes on, and is told of what it knows; or another begins with what the store has.
        let mut next = World::with(2, RetainedLimits::default(), |c| c.epoch += 1);
        next.shared.begin_restoring();
        for w in [&mut w, &mut next] {
            let (late, _) = w.connect(1, lasting("late", 60));
            w.subscribe(late, "t", QoS::ExactlyOnce);
            for _ in 0..2 {
                let will = RestoredWill {
                    id: kept,
                    message: Arc::clone(&message),
                };
                w.handle(0, Input::RestoreWill(will));
            }
            let published = |r: &Record| matches!(r, Record::WillPublished);
            assert!(!w.records.iter().any(|(.., r)| published(r)), "{number}");
            let parts = w.joined.len();
            w.shared.finish_restoring();
            w.handle(0, Input::SessionsRestored);
            let unit = recorded_with(w, published);
            let is_retained = |r: &Record| matches!(r, Record::Retained { .. });
            assert!(unit.iter().any(is_retained), "{number}: {unit:?}");
            assert_eq!(
                w.joined.len() - parts,
                2,
                "{number}: the other worker's part"
            );
            let of_will = w.records.iter().filter(|(.., r)| published(r));
            let ids: Vec<SessionId> = of_will.map(|(_, id, ..)| *id).collect();
            assert_eq!(ids, [kept], "{number}");
            assert_eq!(w.payloads(late), ["gone"], "{number}");
        }
    }
}

/// A worker is lost again before all is said: what waits goes on waiting.
#[test]
fn what_waits_waits_again_if_another_worker_is_lost() {
    let mut w = World::new(2);
    w.shared.begin_restoring();
    let publisher = w.client(0, "pub");
    let acked = publish_acked("t", "1", QoS::AtLeastOnce, 1);
    w.send(publisher, Packet::Publish(acked));
    w.shared.finish_restoring();
    w.shared.begin_restoring();
    w.handle(0, Input::SessionsRestored);
    assert!(w.read(publisher).is_empty() && !w.wires[publisher].reading);
    w.shared.finish_restoring();
    w.handle(0, Input::SessionsRestored);
    assert_eq!(w.read(publisher).len(), 1);
}

#[test]
fn a_session_whose_worker_is_lost_comes_from_the_store() {
    let mut w = World::new(2);
    let id = asked_of_a_lost_worker(&mut w, lasting("c", 60));
    let (worker, _, client_id) = &w.recovers[0];
    assert_eq!((*worker, client_id.as_str()), (0, "c"));
    w.recover(Some(stored("c", "t/#")));
    assert!(matches!(w.read_one(id), Packet::ConnAck(a) if a.session_present));
    let publisher = w.client(0, "pub");
    let acked = publish_acked("t/1", "x", QoS::AtLeastOnce, 1);
    w.send(publisher, Packet::Publish(acked));
    assert_eq!(w.payloads(id), ["x"]);
    assert_eq!(
        w.sum(|c| c.sessions),
        3,
        "one of them in the worker that is lost"
    );
}

/// [MQTT-3.1.2-4]: with Clean Start it ends in the store, before CONNACK says that there is none.
#[test]
fn clean_start_ends_what_a_lost_worker_has_left_in_the_store() {
    let mut w = World::new(2);
    let id = asked_of_a_lost_worker(&mut w, connect("c"));
    w.storage_stuck = true;
    let session = stored("c", "t/#");
    let of = session.id;
    w.recover(Some(session));
    let ended = w
        .records
        .iter()
        .find(|(.., record)| matches!(record, Record::SessionEnded));
    assert_eq!(
        ended.map(|(_, id, sequence, _)| (*id, *sequence)),
        Some((of, 41))
    );
    assert!(w.read(id).is_empty());
    w.storage_stuck = false;
    w.run();
    assert!(matches!(w.read_one(id), Packet::ConnAck(a) if !a.session_present));
}

#[test]
fn nothing_in_the_store_is_a_new_session() {
    let mut w = World::new(2);
    let id = asked_of_a_lost_worker(&mut w, lasting("c", 60));
    let (_, op, _) = w.recovers.pop_front().expect("it is looked for");
    w.handle(
        0,
        Input::Completed(Completion::Recovered { op, session: None }),
    );
    assert!(matches!(w.read_one(id), Packet::ConnAck(a) if !a.session_present));
}

/// A client that was told that it has no session must not find it again after a crash: CONNACK waits until its end is
/// safe, wherever it ended and however.
#[test]
fn connack_waits_until_the_end_of_the_former_session_is_safe() {
    let ends: [fn(&mut World, Id); 2] = [
        |w, id| {
            let properties = DisconnectProperties {
                session_expiry_s: Some(0),
                ..DisconnectProperties::default()
            };
            let disconnect = Disconnect {
                reason: ReasonCode::SUCCESS,
                properties: Some(Box::new(properties)),
            };
            w.send(id, Packet::Disconnect(disconnect));
        },
        |w, id| {
            w.lose(id);
            w.advance_s(61);
        },
    ];
    for (end, worker) in ends.into_iter().flat_map(|end| [(end, 0), (end, 1)]) {
        let mut w = World::new(2);
        let (id, _) = w.connect(0, lasting("c", 60));
        w.storage_stuck = true;
        end(&mut w, id);
        let again = w.open(worker);
        w.send(again, Packet::Connect(Box::new(lasting("c", 0))));
        assert!(w.read(again).is_empty(), "at worker {worker}");
        w.storage_stuck = false;
        w.run();
        assert!(matches!(w.read_one(again), Packet::ConnAck(a) if !a.session_present));
        w.lose(again);
        assert!(w.directory.is_empty());
    }
}

/// A member of a group, without a connection, of whose messages the store has one.
fn stored_member(expires_at: Time) -> Box<RestoredSession> {
    let mut session = stored("c", "$share/g/t");
    session.is_connected = false;
    session.expires_at = Some(expires_at);
    session.queue = QueueSummary {
        count: 1,
        bytes: 200,
        first_packet_id: 1,
        last_packet_id: 1,
        ..QueueSummary::default()
    };
    session
}

/// [MQTT-4.8.2-6]: what the store has of a group's messages is read before its member ends, and goes to another.
#[test]
fn a_member_that_expires_leaves_what_only_the_store_has() {
    let mut w = World::with(1, RetainedLimits::default(), |c| c.limits.spills = true);
    let member = w.client(0, "member");
    w.subscribe(member, "$share/g/t", QoS::AtLeastOnce);
    let session = stored_member(w.now.after_s(5));
    w.handle(0, Input::Restore(session));
    w.advance_s(10);
    assert_eq!(
        w.counters(0).sessions,
        2,
        "it isn't known yet what it leaves"
    );
    load_left(&mut w);
    w.advance_s(1);
    assert_eq!(w.counters(0).sessions, 1);
    assert_eq!(w.counters(0).sessions_expired, 1);
    assert_eq!(w.payloads(member), ["left"]);
}

/// The store gives the one message that it has of the group.
fn load_left(w: &mut World) {
    let Some((worker, Output::Load { op, handle, .. })) = w.loads.pop_front() else {
        panic!("its queue is read")
    };
    let published = publish_acked("t", "left", QoS::AtLeastOnce, 1);
    let loaded = Loaded {
        sequence: 9,
        message: Some(Arc::new(Message::from_publish(&published, Time(0)))),
        qos: QoS::AtLeastOnce,
        retain: false,
        ids: None,
        packet_id: PacketId::new(1).unwrap(),
        group: Some(Text::from("$share/g/t")),
    };
    let answer = Completion::Loaded {
        op,
        handle,
        messages: vec![loaded],
        more: false,
        failed: false,
    };
    w.handle(worker, Input::Completed(answer));
}

/// The same where it ends by DISCONNECT or by Clean Start, wherever the client comes back: in memory or not, the group
/// gets it. CONNACK waits for that.
#[test]
fn a_member_that_is_ended_leaves_what_only_the_store_has() {
    let ends: [fn(&mut World) -> Option<Id>; 4] = [
        |w| {
            let (id, present) = w.connect(0, lasting("c", 60));
            assert!(present);
            let properties = DisconnectProperties {
                session_expiry_s: Some(0),
                ..DisconnectProperties::default()
            };
            let disconnect = Disconnect {
                reason: ReasonCode::SUCCESS,
                properties: Some(Box::new(properties)),
            };
            w.send(id, Packet::Disconnect(disconnect));
            None
        },
        |w| {
            let id = w.open(0);
            w.send(id, Packet::Connect(Box::new(connect("c"))));
            Some(id)
        },
        |w| {
            let id = w.open(1);
            w.send(id, Packet::Connect(Box::new(connect("c"))));
            Some(id)
        },
        |w| {
            w.advance_s(61);
            let id = w.open(0);
            w.send(id, Packet::Connect(Box::new(lasting("c", 60))));
            Some(id)
        },
    ];
    for (number, end) in ends.into_iter().enumerate() {
        let mut w = World::with(2, RetainedLimits::default(), |c| c.limits.spills = true);
        let member = w.client(1, "member");
        w.subscribe(member, "$share/g/t", QoS::AtLeastOnce);
        let session = stored_member(w.now.after_s(60));
        let of = session.id;
        w.handle(0, Input::Restore(session));
        let again = end(&mut w);
        w.advance_s(1);
        let is_end = |(_, id, _, record): &(usize, SessionId, u64, Record)| {
            *id == of && matches!(record, Record::SessionEnded)
        };
        assert!(!w.records.iter().any(is_end), "{number}: too early");
        assert!(again.is_none_or(|id| w.read(id).is_empty()), "{number}");
        load_left(&mut w);
        assert!(w.records.iter().any(is_end), "{number}: no timer is due");
        w.advance_s(1);
        assert_eq!(w.payloads(member), ["left"], "{number}");
        assert_eq!(w.records.iter().filter(|r| is_end(r)).count(), 1);
        match again {
            Some(id) => {
                let connack = w.read_one(id);
                assert!(
                    matches!(connack, Packet::ConnAck(ref a) if !a.session_present),
                    "{number}: {connack:?}"
                );
            }
            None => assert!(!w.directory.contains_key("c")),
        }
    }
}

/// [MQTT-2.2.1-4]: the Packet Identifiers of what only the store has are in use.
#[test]
fn identifiers_of_what_only_the_store_has_are_not_given_out() {
    let mut w = World::with(1, RetainedLimits::default(), |c| c.limits.spills = true);
    let mut session = stored("c", "t");
    session.queue = QueueSummary {
        count: 10,
        bytes: 2_000,
        first_packet_id: 3,
        last_packet_id: u16::MAX,
        ..QueueSummary::default()
    };
    w.handle(0, Input::Restore(session));
    let publisher = w.client(0, "pub");
    for n in 1..=3 {
        let acked = publish_acked("t", "x", QoS::AtLeastOnce, n);
        w.send(publisher, Packet::Publish(acked));
    }
    assert_eq!(queued_ids(&w), [1, 2]);
    assert_eq!(w.counters(0).dropped_queue_full, 1);
}

/// [MQTT-4.3.3-1]: where the store may have forgotten which Packet Identifiers the client was sent, others are taken.
#[test]
fn identifiers_that_a_power_failure_may_have_hidden_are_not_the_next_ones() {
    let ids_after = |first_packet_id: u16, (first, last): (u16, u16)| {
        let mut w = World::with(1, RetainedLimits::default(), |c| {
            c.limits.spills = true;
            c.first_packet_id = first_packet_id;
        });
        let mut session = stored("c", "t");
        if last != 0 {
            session.queue = QueueSummary {
                count: 3,
                bytes: 600,
                first_packet_id: first,
                last_packet_id: last,
                ..QueueSummary::default()
            };
        }
        w.handle(0, Input::Restore(session));
        let publisher = w.client(0, "pub");
        for n in 1..=2 {
            let acked = publish_acked("t", "x", QoS::AtLeastOnce, n);
            w.send(publisher, Packet::Publish(acked));
        }
        queued_ids(&w)
    };
    assert_eq!(ids_after(0, (0, 0)), [1, 2]);
    assert_eq!(ids_after(0, (5, 7)), [8, 9]);
    assert_eq!(ids_after(30_000, (0, 0)), [30_001, 30_002]);
    assert_eq!(ids_after(u16::MAX, (0, 0)), [1, 2]);
    assert_eq!(ids_after(30_000, (5, 7)), [7 + 0x4000 + 1, 7 + 0x4000 + 2]);
    let wrapped = 0x4000 - 2;
    assert_eq!(
        ids_after(1, (65_531, 65_533)),
        [wrapped + 1, wrapped + 2],
        "there is no Packet Identifier 0"
    );
    assert_eq!(
        ids_after(1, (5, 40_000)),
        [40_001, 40_002],
        "a long queue leaves no room for a gap"
    );
}

/// A worker begins anew after a panic: handles and sequences of before name nothing of what comes back.
#[test]
fn sessions_of_a_worker_that_begins_anew_come_back_to_it() {
    let shared = Arc::new(Shared::new([1, 2], Default::default()));
    let mut before = World::sharing(1, Arc::clone(&shared), |_| {});
    let (id, _) = before.connect(0, lasting("c", 60));
    before.subscribe(id, "t", QoS::AtLeastOnce);
    shared.begin_restoring();
    shared.forget_worker(WorkerSlot(0));
    let mut w = World::sharing(1, Arc::clone(&shared), |c| c.incarnation = 1);
    let session = stored("c", "t");
    let of = session.id;
    w.handle(0, Input::Restore(session));
    shared.finish_restoring();
    w.handle(0, Input::SessionsRestored);
    let publisher = w.client(0, "pub");
    let acked = publish_acked("t", "x", QoS::AtLeastOnce, 1);
    w.send(publisher, Packet::Publish(acked));
    assert_eq!(queued(&w, of), ["t"]);
    let (id, present) = w.connect(0, lasting("c", 60));
    assert!(present);
    assert_eq!(w.payloads(id), ["x"]);
}
