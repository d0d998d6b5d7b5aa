//! A worker is lost within the transaction of a PUBLISH with QoS 2: nobody has it, and its publisher sends it again.

use crate::common::*;
use headgate_codec::{Packet, QoS, ReasonCode};
use headgate_core::{Input, Record, Undone, WorkerSlot};
use std::sync::Arc;

/// What the store leaves out: everything of the message that was recorded from here on.
fn undone_since(w: &World, at: usize) -> Arc<Undone> {
    let mut undone = Undone::default();
    for (_, id, _, record) in &w.records[at..] {
        match record {
            Record::Received { packet_id } => undone.received.push((*id, *packet_id)),
            Record::Queued { message, .. } => undone.queued.push((*id, Arc::clone(message))),
            _ => {}
        }
    }
    Arc::new(undone)
}

/// Publisher and subscribers on three workers, the last of which is lost before it takes the message; and where in the
/// records that begins.
fn half_done() -> (World, Id, [Id; 2], usize) {
    let mut w = World::new(3);
    let (publisher, _) = w.connect(0, lasting("publisher", 60));
    let subscribers = [0, 1, 2].map(|worker| {
        let (id, _) = w.connect(worker, lasting(&format!("s{worker}"), 60));
        w.subscribe(id, "t", QoS::ExactlyOnce);
        id
    });
    w.storage_stuck = true;
    w.manual = true;
    let at = w.records.len();
    let message = publish_acked("t", "x", QoS::ExactlyOnce, 1);
    w.send(publisher, Packet::Publish(message));
    w.happen(Event::Mesh((0, 1)));
    w.forget_mesh();
    w.shared.begin_restoring();
    w.shared.forget_worker(WorkerSlot(2));
    for worker in 0..2 {
        let gone = WorkerSlot(2);
        w.handle(worker, Input::WorkerGone { worker: gone });
    }
    (w, publisher, [subscribers[0], subscribers[1]], at)
}

#[test]
fn what_was_half_done_is_undone_and_comes_again_once() {
    for (is_away, worker) in [(false, 0), (false, 1), (true, 0)] {
        let (mut w, publisher, [here, there], at) = half_done();
        assert_eq!(w.unjoined.len(), 1);
        assert!(w.unjoined[0].repeats);
        assert_eq!(w.wires[publisher].closed, Some(ReasonCode::SERVER_BUSY));
        if is_away {
            w.lose(here);
        }
        let undone = undone_since(&w, at);
        assert_eq!((undone.received.len(), undone.queued.len()), (1, 2));
        for worker in 0..2 {
            w.handle(worker, Input::Undone(Arc::clone(&undone)));
        }
        w.shared.finish_restoring();
        w.manual = false;
        w.storage_stuck = false;
        w.run();
        assert!(w.payloads(there).is_empty(), "it was not recorded");
        let (publisher, present) = w.connect(worker, lasting("publisher", 60));
        assert!(present);
        let mut again = publish_acked("t", "x", QoS::ExactlyOnce, 1);
        again.dup = true;
        w.send(publisher, Packet::Publish(again));
        let answer = w.read_one(publisher);
        assert!(
            matches!(answer, Packet::PubRec(ref ack) if ack.reason == ReasonCode::SUCCESS),
            "{answer:?}"
        );
        assert_eq!(w.sum(|c| c.publish_in_repeated), 0);
        assert_eq!(w.payloads(there), ["x"]);
        let here = match is_away {
            true => w.connect(0, lasting("s0", 60)).0,
            false => here,
        };
        assert_eq!(w.payloads(here), ["x"]);
    }
}

/// A session is on its way to another worker while that hears of it.
#[test]
fn what_is_undone_goes_from_a_session_that_moves() {
    let (mut w, _, [here, there], at) = half_done();
    let undone = undone_since(&w, at);
    w.lose(there);
    let again = w.open(0);
    w.send(again, Packet::Connect(Box::new(lasting("s1", 60))));
    // As far as that worker 1 has given it away.
    while let Some(event) = w
        .events()
        .into_iter()
        .find(|event| *event != Event::Mesh((1, 0)))
    {
        w.happen(event);
    }
    for worker in 0..2 {
        w.handle(worker, Input::Undone(Arc::clone(&undone)));
    }
    w.shared.finish_restoring();
    w.manual = false;
    w.storage_stuck = false;
    w.run();
    w.advance_s(6);
    assert!(matches!(w.read_one(again), Packet::ConnAck(a) if a.session_present));
    assert!(w.payloads(here).is_empty());
}

/// A delivery to sessions of a former worker in this place is refused: it doesn't know what these would have recorded.
#[test]
fn a_delivery_for_a_former_worker_is_not_said_to_be_stored() {
    let shared = Arc::new(headgate_core::Shared::new([1, 2], Default::default()));
    let mut before = World::sharing(2, Arc::clone(&shared), |_| {});
    let (subscriber, _) = before.connect(1, lasting("s", 60));
    before.subscribe(subscriber, "t", QoS::ExactlyOnce);
    let mut w = World::sharing(2, shared, |c| c.incarnation = u8::from(c.worker.0 == 1));
    let (publisher, _) = w.connect(0, lasting("publisher", 60));
    let message = publish_acked("t", "x", QoS::ExactlyOnce, 1);
    w.send(publisher, Packet::Publish(message));
    assert_eq!(w.unjoined.len(), 1);
    let answer = w.read_one(publisher);
    assert!(
        matches!(answer, Packet::PubRec(ref ack) if ack.reason == ReasonCode::QUOTA_EXCEEDED),
        "{answer:?}"
    );
}
