//! What survives: which packet waits for which record, what is recorded, what comes back after a restart, and what a
//! store that can't go on costs.

use crate::common::{stored::stored_session, *};
use headgate_codec::{Packet, PacketId, QoS, ReasonCode, SubscriptionOptions, Text, Will};
use headgate_core::{
    Completion, Input, Loaded, Message, Output, QueueSummary, Record, RestoredSession,
    RetainedLimits, StorageState, Time, Txn,
};
use std::sync::Arc;

fn publish_to(w: &mut World, id: Id, topic: &str, payload: &str, qos: QoS, packet_id: u16) {
    w.send(
        id,
        Packet::Publish(publish_acked(topic, payload, qos, packet_id)),
    );
}

/// Sessions as the store has them after the records that the workers have made.
fn spilling(workers: u8) -> World {
    World::with(workers, RetainedLimits::default(), |config| {
        config.limits.spills = true
    })
}

fn message(payload: &str, qos: QoS) -> Arc<Message> {
    Arc::new(Message::from_publish(
        &publish_acked("t", payload, qos, 1),
        Time(0),
    ))
}

fn entry(sequence: u64, payload: Option<&str>, qos: QoS, id: u16) -> Loaded {
    Loaded {
        sequence,
        message: payload.map(|payload| message(payload, qos)),
        qos,
        retain: false,
        ids: None,
        packet_id: PacketId::new(id).unwrap(),
        group: None,
    }
}

fn session(client_id: &str) -> RestoredSession {
    stored_session(client_id, "t", QoS::ExactlyOnce)
}

/// Answers the Load that was asked for last.
fn answer_load(w: &mut World, messages: Vec<Loaded>, more: bool) -> u64 {
    let Some((
        worker,
        Output::Load {
            op, handle, after, ..
        },
    )) = w.loads.pop_front()
    else {
        panic!("no Load");
    };
    let answer = Completion::Loaded {
        op,
        handle,
        messages,
        more,
        failed: false,
    };
    w.handle(worker, Input::Completed(answer));
    after
}

/// [MQTT-3.2.0-1]: the CONNACK of a session that lasts leaves when it is recorded, and nothing before it.
#[test]
fn connack_of_a_lasting_session_waits_for_its_record() {
    let mut w = World::new(1);
    w.storage_stuck = true;
    let id = w.open(0);
    w.send(id, Packet::Connect(Box::new(lasting("c", 60))));
    assert!(w.read(id).is_empty());
    // One that ends with its connection has nothing to wait for.
    let other = w.client(0, "other");
    w.subscribe(other, "x", QoS::AtLeastOnce);
    w.storage_stuck = false;
    w.run();
    assert!(matches!(w.read_one(id), Packet::ConnAck(a) if a.reason == ReasonCode::SUCCESS));
    let opened = w.records.iter().any(|(_, _, _, record)| {
        matches!(record, Record::SessionOpened { client_id, expiry_s: 60, .. } if client_id.as_str() == "c")
    });
    assert!(opened);
}

/// A connection that is lost while its CONNACK waits leaves the session as it was before.
#[test]
fn a_lost_connection_whose_connack_waits_changes_nothing() {
    let mut w = World::new(1);
    let (id, _) = w.connect(0, lasting("c", 60));
    w.subscribe(id, "t", QoS::AtLeastOnce);
    w.lose(id);
    w.storage_stuck = true;
    let second = w.open(0);
    w.send(second, Packet::Connect(Box::new(lasting("c", 5))));
    w.lose(second);
    w.storage_stuck = false;
    w.run();
    w.advance_s(30);
    assert!(w.connect(0, lasting("c", 60)).1, "it has its 60 s still");
}

/// [MQTT-4.3.3-2]: a QoS 2 PUBLISH leaves when the server surely remembers it; QoS 1 needn't wait.
#[test]
fn a_qos2_publish_waits_until_it_is_queued_safely() {
    let mut w = World::new(1);
    let (sub, _) = w.connect(0, lasting("sub", 60));
    w.subscribe(sub, "t", QoS::ExactlyOnce);
    let publisher = w.client(0, "pub");
    w.storage_stuck = true;
    publish_to(&mut w, publisher, "t", "one", QoS::AtLeastOnce, 1);
    assert_eq!(w.payloads(sub), ["one"]);
    publish_to(&mut w, publisher, "t", "two", QoS::ExactlyOnce, 2);
    assert!(w.payloads(sub).is_empty());
    assert!(w.read(publisher).is_empty(), "nothing is acknowledged");
    w.storage_stuck = false;
    w.run();
    assert_eq!(w.payloads(sub), ["two"]);
    assert_eq!(w.read(publisher).len(), 2);
}

/// [MQTT-4.3.3-4]: PUBREL says that the message is forgotten: it leaves when that is safe.
#[test]
fn pubrel_waits_until_pubrec_is_safe() {
    let mut w = World::new(1);
    let (sub, _) = w.connect(0, lasting("sub", 60));
    w.subscribe(sub, "t", QoS::ExactlyOnce);
    let publisher = w.client(0, "pub");
    publish_to(&mut w, publisher, "t", "x", QoS::ExactlyOnce, 1);
    let Packet::Publish(got) = w.read_one(sub) else {
        panic!("PUBLISH expected")
    };
    w.storage_stuck = true;
    w.send(sub, Packet::PubRec(ack(got.packet_id.unwrap().get())));
    assert!(w.read(sub).is_empty());
    w.storage_stuck = false;
    w.run();
    assert!(matches!(w.read_one(sub), Packet::PubRel(_)));
}

/// The Packet Identifier is in the record, and it is the one that is sent.
#[test]
fn a_queued_message_is_recorded_with_all_that_it_needs() {
    let mut w = World::new(1);
    let (sub, _) = w.connect(0, lasting("sub", 60));
    w.subscribe(sub, "t", QoS::ExactlyOnce);
    w.lose(sub);
    let publisher = w.client(0, "pub");
    for n in 1..=3 {
        publish_to(&mut w, publisher, "t", &n.to_string(), QoS::ExactlyOnce, n);
    }
    let queued: Vec<(u64, u16)> = w
        .records
        .iter()
        .filter_map(|(_, _, sequence, r)| match r {
            Record::Queued {
                packet_id,
                qos: QoS::ExactlyOnce,
                ..
            } => Some((*sequence, packet_id.get())),
            _ => None,
        })
        .collect();
    let (back, present) = w.connect(0, lasting("sub", 60));
    assert!(present);
    let sent: Vec<u16> = w
        .read(back)
        .iter()
        .filter_map(publish_of)
        .map(|p| p.packet_id.unwrap().get())
        .collect();
    assert_eq!(queued.iter().map(|q| q.1).collect::<Vec<_>>(), sent);
    assert!(queued.windows(2).all(|pair| pair[0].0 < pair[1].0));
}

/// A QoS 2 message between workers is recorded on both or on neither.
#[test]
fn a_qos2_message_to_another_worker_is_one_transaction() {
    let mut w = World::new(2);
    let (sub, _) = w.connect(1, lasting("sub", 60));
    w.subscribe(sub, "t", QoS::AtLeastOnce);
    let (publisher, _) = w.connect(0, lasting("pub", 60));
    publish_to(&mut w, publisher, "t", "x", QoS::ExactlyOnce, 1);
    let txn = w.joined[0].0;
    assert!(w.joined.len() == 2 && w.joined.iter().all(|part| part.0 == txn));
    assert_eq!(w.joined.iter().map(|part| part.1).sum::<u32>(), Txn::WHOLE);
    // With QoS 1 the publisher sends again what isn't acknowledged: nothing has to be known of it.
    publish_to(&mut w, publisher, "t", "x", QoS::AtLeastOnce, 2);
    assert_eq!(w.joined.len(), 2);
    assert!(w.unjoined.is_empty());
}

/// [MQTT-4.4.0-1] [MQTT-3.3.1-1]: after a restart, what the client may have is sent again with DUP and its Packet
/// Identifier, PUBREL where PUBREC had come, and all in order.
#[test]
fn a_restored_session_goes_on_with_its_queue() {
    let mut w = spilling(1);
    let queue = QueueSummary {
        count: 3,
        bytes: 600,
        first_packet_id: 5,
        last_packet_id: 7,
        sent_up_to: 12,
        send_quota: 10,
    };
    w.handle(
        0,
        Input::Restore(Box::new(RestoredSession {
            queue,
            is_connected: false,
            expires_at: Some(Time(100_000)),
            ..session("c")
        })),
    );
    assert!(w.loads.is_empty(), "nobody wants it yet");
    // What comes meanwhile goes behind it, with the next Packet Identifier.
    let publisher = w.client(0, "pub");
    publish_to(&mut w, publisher, "t", "new", QoS::ExactlyOnce, 1);
    let (id, present) = w.connect(0, lasting("c", 60));
    assert!(present);
    assert!(w.read(id).is_empty());
    let loaded = vec![
        entry(10, None, QoS::ExactlyOnce, 5),
        entry(12, Some("sent"), QoS::ExactlyOnce, 6),
        entry(20, Some("unsent"), QoS::AtLeastOnce, 7),
        entry(41, Some("new"), QoS::ExactlyOnce, 8),
    ];
    assert_eq!(answer_load(&mut w, loaded, false), 0);
    let got: Vec<(u16, bool, bool)> = w
        .read(id)
        .iter()
        .map(|packet| match packet {
            Packet::PubRel(ack) => (ack.packet_id.get(), false, true),
            Packet::Publish(p) => (p.packet_id.unwrap().get(), p.dup, false),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        got,
        [
            (5, false, true),
            (6, true, false),
            (7, false, false),
            (8, false, false)
        ]
    );
    let recorded = w.records.iter().find_map(|(_, _, sequence, r)| match r {
        Record::Queued { packet_id, .. } => Some((*sequence, packet_id.get())),
        _ => None,
    });
    assert_eq!(recorded, Some((41, 8)));
}

/// [MQTT-3.1.2-8]: with the restart the connection is lost; expiry and Will Delay count from there.
#[test]
fn a_restored_session_has_lost_its_connection_with_the_restart() {
    let mut w = World::new(1);
    let watcher = w.client(0, "watcher");
    w.subscribe(watcher, "will", QoS::AtLeastOnce);
    let will = Will {
        qos: QoS::AtLeastOnce,
        retain: false,
        topic: Text::from("will"),
        payload: "gone".into(),
        delay_s: Some(10),
        properties: None,
    };
    w.handle(
        0,
        Input::Restore(Box::new(RestoredSession {
            will: Some(Box::new(will)),
            ..session("c")
        })),
    );
    w.advance_s(9);
    assert!(w.payloads(watcher).is_empty());
    w.advance_s(2);
    assert_eq!(w.payloads(watcher), ["gone"]);
    assert_eq!(w.counters(0).sessions, 2);
    w.advance_s(50);
    assert_eq!(w.counters(0).sessions, 1);
    assert!(!w.directory.contains_key("c"));
}

/// A subscription is recorded with its options as they were on the wire (§3.8.3.1), and comes back with them.
#[test]
fn options_of_a_subscription_are_recorded() {
    let mut w = spilling(1);
    let (sub, _) = w.connect(0, lasting("sub", 60));
    let all = SubscriptionOptions {
        qos: QoS::ExactlyOnce,
        no_local: true,
        retain_as_published: true,
        retain_handling: 2,
    };
    w.send(sub, subscribe(1, "t", all));
    let recorded = w.records.iter().find_map(|(_, _, _, record)| match record {
        Record::Subscribed { options, .. } => Some(*options),
        _ => None,
    });
    assert_eq!(recorded, Some(0b10_1110));
}

/// Behind a short head a queue is in the store alone, and it is read as the client takes it.
#[test]
fn a_long_queue_is_left_to_the_store_and_read_on_demand() {
    let mut w = spilling(1);
    let (sub, _) = w.connect(0, lasting("sub", 60));
    w.subscribe(sub, "t", QoS::AtLeastOnce);
    w.lose(sub);
    let publisher = w.client(0, "pub");
    for n in 1..=40 {
        publish_to(&mut w, publisher, "t", &n.to_string(), QoS::AtLeastOnce, n);
    }
    let queue: Vec<Loaded> = w
        .records
        .iter()
        .filter_map(|(_, _, sequence, r)| match r {
            Record::Queued {
                message, packet_id, ..
            } => Some(Loaded {
                message: Some(Arc::clone(message)),
                ..entry(*sequence, None, QoS::AtLeastOnce, packet_id.get())
            }),
            _ => None,
        })
        .collect();
    assert_eq!(queue.len(), 40);
    let (back, _) = w.connect(0, lasting("sub", 60));
    assert!(w.payloads(back).is_empty());
    answer_load(&mut w, queue[..30].to_vec(), true);
    assert_eq!(w.payloads(back).len(), 30);
    let after = answer_load(&mut w, queue[30..].to_vec(), false);
    assert_eq!(after, queue[29].sequence);
    let rest = w.payloads(back);
    assert_eq!((rest.first().unwrap().as_str(), rest.len()), ("31", 10));
    // From here on it is in memory.
    publish_to(&mut w, publisher, "t", "41", QoS::AtLeastOnce, 41);
    assert_eq!(w.payloads(back), ["41"]);
    assert!(w.loads.is_empty());
}

/// A store that is full costs what would have to be recorded, at the door, and nothing else.
#[test]
fn a_full_store_refuses_what_it_would_have_to_record() {
    let mut w = World::new(1);
    let (sub, _) = w.connect(0, lasting("sub", 60));
    w.subscribe(sub, "t", QoS::AtLeastOnce);
    let publisher = w.client(0, "pub");
    w.subscribe(publisher, "mine", QoS::AtLeastOnce);
    w.handle(0, Input::Storage(StorageState::Full));
    let before = w.records.len();
    publish_to(&mut w, publisher, "t", "x", QoS::AtLeastOnce, 1);
    assert!(
        matches!(w.read_one(publisher), Packet::PubAck(a) if a.reason == ReasonCode::QUOTA_EXCEEDED)
    );
    publish_to(&mut w, publisher, "t", "x", QoS::ExactlyOnce, 2);
    assert!(
        matches!(w.read_one(publisher), Packet::PubRec(a) if a.reason == ReasonCode::QUOTA_EXCEEDED)
    );
    // QoS 0, and sessions that end with their connections, go on.
    w.send(publisher, Packet::Publish(publish("t", "zero")));
    assert_eq!(w.payloads(sub), ["zero"]);
    publish_to(&mut w, publisher, "mine", "y", QoS::AtLeastOnce, 3);
    assert_eq!(w.payloads(publisher), ["y"]);
    w.send(sub, subscribe(2, "u", Default::default()));
    assert!(
        matches!(w.read_one(sub), Packet::SubAck(a) if a.reasons == [ReasonCode::QUOTA_EXCEEDED])
    );
    let new = w.open(0);
    w.send(new, Packet::Connect(Box::new(lasting("new", 60))));
    assert!(
        matches!(w.read(new).first(), Some(Packet::ConnAck(a)) if a.reason == ReasonCode::QUOTA_EXCEEDED)
    );
    assert_eq!(w.records.len(), before, "nothing was recorded");
    // A session that is there goes on, and takes out what is in the store.
    w.lose(sub);
    assert!(w.connect(0, lasting("sub", 60)).1);
    w.handle(0, Input::Storage(StorageState::Ok));
    publish_to(&mut w, publisher, "t", "x", QoS::AtLeastOnce, 4);
    assert!(
        matches!(w.read(publisher).last(), Some(Packet::PubAck(a)) if a.reason == ReasonCode::SUCCESS)
    );
}

/// Retained messages of an earlier run: what a client has set or removed meanwhile stays, and a new subscription
/// gets all of them or waits.
#[test]
fn retained_messages_are_served_when_all_are_there() {
    let mut w = World::new(1);
    let retained = &w.shared.retained;
    retained.begin_loading();
    let publisher = w.client(0, "pub");
    for (topic, payload) in [("a", "new"), ("b", "")] {
        let mut set = publish(topic, payload);
        set.retain = true;
        w.send(publisher, Packet::Publish(set));
    }
    let sub = w.client(0, "sub");
    w.subscribe(sub, "#", QoS::AtMostOnce);
    assert!(w.payloads(sub).is_empty());
    let old = |topic: &str| {
        let mut old = publish(topic, "old");
        old.retain = true;
        Arc::new(Message::from_publish(&old, Time(0)))
    };
    let shared = Arc::clone(&w.shared);
    assert_eq!(shared.retained.restore(["a", "b", "c"].map(old), w.now), 1);
    shared.retained.finish_loading();
    w.handle(0, Input::RetainedLoaded);
    assert_eq!(w.payloads(sub), ["new", "old"]);
}
