//! Data streams of sessions that outlive their connections: what waits for a record, for the end of a restore or of the
//! handshake, and what becomes of a queue whose streams have not gone at the same pace.

use crate::common::{
    stored::stored_session,
    streams::{end, flush, on, options, payloads, quic_world, taken},
    *,
};
use headgate_codec::{Packet, PacketId, QoS};
use headgate_core::{
    Completion, DataEnd, Input, Loaded, Message, Output, QueueSummary, RestoredSession,
    RestoredSubscription, RetainedLimits, Time, Transport,
};
use std::sync::Arc;

/// Workers with a store that keeps the longer part of queues.
fn spilling() -> World {
    let mut world = World::with(1, RetainedLimits::default(), |config| {
        config.limits.spills = true;
    });
    world.transport = Transport::Quic;
    world
}

fn subscribe_on(world: &mut World, id: Id, number: u32, filter: &str, qos: QoS) {
    on(world, id, number, subscribe(1, filter, options(qos)));
    let (packets, bytes) = taken(world, number);
    assert!(
        matches!(packets.first(), Some(Packet::SubAck(a)) if a.reasons[0].0 < 0x80),
        "{packets:?}"
    );
    flush(world, id, number, bytes);
}

fn publish_to(world: &mut World, id: Id, topic: &str, payload: &str, qos: QoS, packet_id: u16) {
    let packet = publish_acked(topic, payload, qos, packet_id);
    world.send(id, Packet::Publish(packet));
}

fn id_of(packet: &Packet) -> u16 {
    let publish = publish_of(packet).expect("a PUBLISH");
    publish.packet_id.expect("QoS > 0").get()
}

/// What is left of the outputs for data streams, in words.
fn said(world: &mut World) -> Vec<String> {
    let word = |output: Output| match output {
        Output::SendData { stream, .. } => format!("send {}", stream.0),
        Output::EndData { stream, .. } => format!("end {}", stream.0),
        other => format!("{other:?}"),
    };
    world.data.drain(..).map(word).collect()
}

/// A PUBLISH that has to wait for the sessions of an earlier run, and what comes behind it on any stream, keep their
/// order and their streams.
#[test]
fn what_waits_for_a_restore_stays_on_its_stream() {
    let mut w = quic_world();
    w.shared.begin_restoring();
    let (id, _) = w.connect(0, connect("c"));
    let acked = publish_acked("t", "x", QoS::AtLeastOnce, 1);
    on(&mut w, id, 1, Packet::Publish(acked));
    assert!(!w.wires[id].reading);
    // The driver had these already.
    end(&mut w, id, 1, DataEnd::Received);
    on(&mut w, id, 2, subscribe(2, "u", options(QoS::AtMostOnce)));
    assert_eq!(said(&mut w), [""; 0]);
    w.shared.finish_restoring();
    w.handle(0, Input::SessionsRestored);
    assert!(w.wires[id].reading);
    assert_eq!(said(&mut w), ["send 1", "end 1", "send 2"]);
    assert!(w.read(id).is_empty());
}

/// Data streams aren't early: who replays a flight reaches the control stream alone.
#[test]
fn data_streams_may_be_used_when_the_handshake_is_complete() {
    let mut w = quic_world();
    let id = w.open_early(0);
    w.send(id, Packet::Connect(Box::new(lasting("c", 60))));
    assert!(matches!(w.read_one(id), Packet::ConnAck(_)));
    assert_eq!(w.wires[id].ready, None);
    w.confirm(id);
    assert_eq!(w.wires[id].ready, Some(false));
    // Here CONNECT itself waits for that.
    let id = w.open_early(0);
    w.send(id, Packet::Connect(Box::new(connect("d"))));
    assert!(w.read(id).is_empty());
    w.confirm(id);
    assert!(matches!(w.read_one(id), Packet::ConnAck(_)));
    assert_eq!(w.wires[id].ready, Some(false));
}

/// [MQTT-4.3.3-2]: a QoS 2 PUBLISH leaves when it is surely remembered, and holds up its own stream alone until then.
#[test]
fn a_message_that_is_not_safe_holds_up_its_own_stream_alone() {
    let mut w = quic_world();
    let (id, _) = w.connect(0, lasting("c", 60));
    subscribe_on(&mut w, id, 1, "two/#", QoS::ExactlyOnce);
    subscribe_on(&mut w, id, 2, "one", QoS::AtLeastOnce);
    let p = w.client(0, "p");
    w.storage_stuck = true;
    publish_to(&mut w, p, "two/a", "2", QoS::ExactlyOnce, 1);
    publish_to(&mut w, p, "two/b", "behind", QoS::AtLeastOnce, 2);
    publish_to(&mut w, p, "one", "1", QoS::AtLeastOnce, 3);
    assert_eq!(payloads(&taken(&mut w, 2).0), ["1"]);
    assert!(taken(&mut w, 1).0.is_empty());
    w.storage_stuck = false;
    w.run();
    assert_eq!(payloads(&taken(&mut w, 1).0), ["2", "behind"]);
}

/// [MQTT-4.3.3-4]: a PUBREL that was to leave on a stream that is lost leaves on the control stream, and not before it is
/// safe that the client has the message.
#[test]
fn pubrel_of_a_lost_stream_waits_for_its_record() {
    let mut w = quic_world();
    let (id, _) = w.connect(0, lasting("c", 60));
    subscribe_on(&mut w, id, 1, "t", QoS::ExactlyOnce);
    let p = w.client(0, "p");
    publish_to(&mut w, p, "t", "x", QoS::ExactlyOnce, 1);
    publish_to(&mut w, p, "t", "y", QoS::ExactlyOnce, 2);
    let (packets, _) = taken(&mut w, 1);
    w.storage_stuck = true;
    on(&mut w, id, 1, Packet::PubRec(ack(id_of(&packets[0]))));
    end(&mut w, id, 1, DataEnd::Lost);
    assert!(w.read(id).is_empty(), "neither PUBREL nor what follows it");
    w.storage_stuck = false;
    w.run();
    let again = w.read(id);
    let [Packet::PubRel(released), Packet::Publish(publish)] = &again[..] else {
        panic!("{again:?}")
    };
    assert_eq!(released.packet_id.get(), id_of(&packets[0]));
    assert!(publish.dup && publish.payload == "y");
    w.send(id, Packet::PubComp(ack(id_of(&packets[0]))));
    assert_eq!(w.sum(|c| c.protocol_errors), 0);
}

/// PUBREL leaves where PUBREC came; what is lost with a stream is what was to leave there.
#[test]
fn pubrel_is_sent_again_when_its_own_stream_is_lost() {
    let mut w = quic_world();
    let (id, _) = w.connect(0, connect("c"));
    subscribe_on(&mut w, id, 1, "t", QoS::ExactlyOnce);
    let p = w.client(0, "p");
    publish_to(&mut w, p, "t", "x", QoS::ExactlyOnce, 1);
    let (packets, _) = taken(&mut w, 1);
    on(&mut w, id, 2, Packet::PubRec(ack(id_of(&packets[0]))));
    assert!(matches!(taken(&mut w, 2).0[..], [Packet::PubRel(_)]));
    end(&mut w, id, 1, DataEnd::Lost);
    assert!(w.read(id).is_empty(), "PUBREL wasn't on that one");
    end(&mut w, id, 2, DataEnd::Lost);
    let again = w.read(id);
    assert!(
        matches!(&again[..], [Packet::PubRel(a)] if a.packet_id.get() == id_of(&packets[0])),
        "{again:?}"
    );
}

/// While there are data streams, nothing is left to the store that one which goes on would have to wait for.
#[test]
fn a_stream_that_stands_still_keeps_nothing_of_another_in_the_store() {
    let mut w = spilling();
    let (id, _) = w.connect(0, lasting("c", 60));
    subscribe_on(&mut w, id, 1, "slow", QoS::AtLeastOnce);
    subscribe_on(&mut w, id, 2, "fast", QoS::AtLeastOnce);
    let p = w.client(0, "p");
    let large = "x".repeat(10_000);
    for number in 1..=30 {
        publish_to(&mut w, p, "slow", &large, QoS::AtLeastOnce, number);
    }
    publish_to(&mut w, p, "fast", "here", QoS::AtLeastOnce, 31);
    assert_eq!(payloads(&taken(&mut w, 2).0), ["here"]);
    let (slow, _) = taken(&mut w, 1);
    assert!((6..16).contains(&slow.len()), "{}", slow.len());
    // What was sent and what wasn't is known to the session alone: it stays here.
    w.lose(id);
    w.data.clear();
    publish_to(&mut w, p, "fast", "later", QoS::AtLeastOnce, 32);
    w.advance_s(10);
    let (id, is_present) = w.connect(0, lasting("c", 60));
    assert!(is_present);
    let first = w.read(id);
    let again = first.iter().filter_map(publish_of).filter(|p| p.dup);
    assert_eq!(again.count(), slow.len() + 1, "those that were sent");
    let others = first.iter().filter_map(publish_of).filter(|p| !p.dup);
    assert_eq!(others.count(), 30 - slow.len(), "those that weren't");
    assert!(w.data.is_empty());
    let mut ids: Vec<u16> = first.iter().map(id_of).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 31, "each has its Packet Identifier");
    // The last one came when nobody was there, and is read from the store.
    assert_eq!(w.loads.len(), 1);
}

fn loaded(sequence: u64, topic: &str, payload: &str) -> Loaded {
    let publish = publish_acked(topic, payload, QoS::AtLeastOnce, 1);
    Loaded {
        sequence,
        message: Some(Arc::new(Message::from_publish(&publish, Time(0)))),
        qos: QoS::AtLeastOnce,
        retain: false,
        ids: None,
        packet_id: PacketId::new(sequence as u16).unwrap(),
        group: None,
    }
}

/// Answers the Load that was asked for last; after which sequence that was.
fn answer(w: &mut World, messages: Vec<Loaded>, more: bool) -> u64 {
    let Some((worker, load)) = w.loads.pop_front() else {
        panic!("no Load");
    };
    let Output::Load {
        op, handle, after, ..
    } = load
    else {
        panic!("{load:?}");
    };
    let loaded = Completion::Loaded {
        op,
        handle,
        messages,
        more,
        failed: false,
    };
    w.handle(worker, Input::Completed(loaded));
    after
}

/// What the store has of an earlier connection leaves on the streams of the new one, and is read on while one of them
/// stands still.
#[test]
fn a_queue_of_the_store_leaves_on_the_streams_of_the_new_connection() {
    let mut w = spilling();
    let large = "x".repeat(10_000);
    let slow: Vec<Loaded> = (1..=20).map(|n| loaded(n, "slow", &large)).collect();
    let fast = loaded(21, "fast", "here");
    let cost = |l: &Loaded| l.message.as_ref().map_or(0, |m| m.cost());
    let subscription = |filter: &str| RestoredSubscription {
        filter: filter.into(),
        options: QoS::AtLeastOnce as u8,
        subscription_id: None,
    };
    let stored = RestoredSession {
        is_connected: false,
        subscriptions: vec![subscription("slow"), subscription("fast")],
        queue: QueueSummary {
            count: 21,
            bytes: slow.iter().chain([&fast]).map(cost).sum(),
            first_packet_id: 1,
            last_packet_id: 21,
            sent_up_to: 0,
            send_quota: 100,
        },
        ..stored_session("c", "slow", QoS::AtLeastOnce)
    };
    w.handle(0, Input::Restore(Box::new(stored)));
    let (id, is_present) = w.connect(0, lasting("c", 60));
    assert!(is_present);
    subscribe_on(&mut w, id, 1, "slow", QoS::AtLeastOnce);
    subscribe_on(&mut w, id, 2, "fast", QoS::AtLeastOnce);
    assert_eq!(answer(&mut w, slow, true), 0);
    let (sent, bytes) = taken(&mut w, 1);
    assert!((6..16).contains(&sent.len()), "{}", sent.len());
    assert_eq!(answer(&mut w, vec![fast], false), 20, "it reads on");
    assert_eq!(payloads(&taken(&mut w, 2).0), ["here"]);
    // The first one goes on when its client does.
    flush(&mut w, id, 1, bytes);
    let (more, _) = taken(&mut w, 1);
    assert!(!more.is_empty());
    assert_eq!(id_of(&more[0]), id_of(sent.last().unwrap()) + 1);
    assert!(w.read(id).is_empty(), "nothing is on the control stream");
    // What is new has an identifier that nothing else has.
    let p = w.client(0, "p");
    publish_to(&mut w, p, "fast", "new", QoS::AtLeastOnce, 1);
    let (new, _) = taken(&mut w, 2);
    assert_eq!(payloads(&new), ["new"]);
    assert_eq!(id_of(&new[0]), 22);
}
