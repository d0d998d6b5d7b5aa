//! The classes of what waits for a client, and what is shared between clients.

use crate::common::*;
use headgate_codec::{Packet, Publish, QoS, SubscriptionOptions};
use headgate_core::{Frame, Input, Message, Output, RetainedLimits, Time};

/// A client whose transport takes nothing, and one that publishes to it.
fn stalled(world: &mut World, receive_maximum: u16) -> (Id, Id) {
    let mut slow = connect("slow");
    slow.properties.receive_maximum = Some(receive_maximum);
    let (s, _) = world.connect(0, slow);
    world.subscribe(s, "#", QoS::AtLeastOnce);
    (s, world.client(0, "p"))
}

/// Of what waits, QoS 1 goes ahead of QoS 0, but lets one pass after each eight; each class keeps its order.
#[test]
fn what_waits_leaves_by_class_and_no_class_starves() {
    let mut world = World::new(1);
    let (s, p) = stalled(&mut world, 100);
    world.wires[s].stalled = true;
    let filler = "f".repeat(70_000);
    world.send(p, Packet::Publish(publish("a", &filler)));
    for number in 1..=30 {
        world.send(p, Packet::Publish(publish("a", &format!("q{number}"))));
        let acked = publish_acked("a", &format!("a{number}"), QoS::AtLeastOnce, number);
        world.send(p, Packet::Publish(acked));
    }
    world.wires[s].stalled = false;
    world.run();
    let payloads = world.payloads(s);
    assert_eq!(payloads[0], filler);
    let mut expected = Vec::new();
    let (mut acked, mut unacked) = (1..=30, 1..=30);
    for _ in 0..4 {
        expected.extend(acked.by_ref().take(8).map(|n| format!("a{n}")));
        expected.extend(unacked.by_ref().take(1).map(|n| format!("q{n}")));
    }
    expected.extend(acked.map(|n| format!("a{n}")));
    expected.extend(unacked.map(|n| format!("q{n}")));
    assert_eq!(payloads[1..], expected);
}

/// Messages with QoS 1 that the client doesn't acknowledge hold up no message with QoS 0, and no answer.
#[test]
fn control_packets_and_qos_0_pass_what_waits_for_acknowledgements() {
    let mut world = World::new(1);
    let (s, p) = stalled(&mut world, 1);
    for number in 1..=3 {
        let acked = publish_acked("a", &format!("a{number}"), QoS::AtLeastOnce, number);
        world.send(p, Packet::Publish(acked));
    }
    world.send(p, Packet::Publish(publish("a", "q")));
    world.send(s, Packet::PingReq);
    let packets = world.read(s);
    let kinds: Vec<_> = packets
        .iter()
        .map(|p| publish_of(p).map(|p| p.payload.clone()))
        .collect();
    assert_eq!(kinds, [Some("a1".into()), Some("q".into()), None]);
}

/// The bytes of a message are the same bytes for all that get it in the same form: nothing is copied for each.
#[test]
fn receivers_share_the_bytes_of_a_message() {
    use headgate_core::{Core, CoreConfig, RetainedLimits, Shared, WorkerSlot};
    let shared = std::sync::Arc::new(Shared::new([1, 2], RetainedLimits::default()));
    let config = CoreConfig::new(WorkerSlot(0), vec![WorkerSlot(0)], [3, 4]);
    let mut core = Core::new(config, shared);
    let mut out = Vec::new();
    let mut feed = |input| {
        out.clear();
        core.handle(input, Time(1), &mut out);
        let mut taken: Vec<Output> = std::mem::take(&mut out);
        while let Some(index) = taken.iter().position(|o| matches!(o, Output::Claim { .. })) {
            let Output::Claim { op, .. } = taken.remove(index) else {
                unreachable!()
            };
            let result = Ok(());
            let completion = headgate_core::Completion::Claimed { op, result };
            core.handle(Input::Completed(completion), Time(1), &mut taken);
        }
        taken
    };
    let conn = |index| headgate_core::ConnId {
        index,
        generation: 1,
    };
    for index in 0..4 {
        let peer = headgate_core::Peer {
            address: ([192, 0, 2, 1], 7).into(),
            transport: headgate_core::Transport::Tcp,
            certificate: None,
            early: false,
        };
        feed(Input::Opened {
            conn: conn(index),
            peer,
        });
        let mut connect = connect(&format!("client-{index}"));
        // The last one takes aliases: even then the payload is the same.
        connect.properties.topic_alias_maximum = (index == 3).then_some(1);
        let packet = Packet::Connect(Box::new(connect));
        feed(Input::Packet {
            conn: conn(index),
            packet,
        });
        let options = SubscriptionOptions {
            qos: QoS::AtLeastOnce,
            ..Default::default()
        };
        let packet = subscribe(1, "a", options);
        feed(Input::Packet {
            conn: conn(index),
            packet,
        });
    }
    for round in 1..=2 {
        for acked in [false, true] {
            let packet = Packet::Publish(match acked {
                false => publish("a", "the payload"),
                true => publish_acked("a", "the payload", QoS::AtLeastOnce, round),
            });
            let sent = feed(Input::Packet {
                conn: conn(0),
                packet,
            });
            let ends: Vec<*const u8> = sent
                .iter()
                .filter_map(|output| match output {
                    Output::Send { frame, .. } => match frame {
                        Frame::Bytes(bytes) => Some(bytes),
                        Frame::Publish { tail, .. } => Some(tail),
                        Frame::Aliased(aliased) => Some(aliased.tail()),
                    },
                    _ => None,
                })
                .filter(|bytes| bytes.ends_with(b"the payload"))
                .map(|bytes| bytes[bytes.len() - 11..].as_ptr())
                .collect();
            assert_eq!(ends.len(), 4);
            // The first message tells the last client its alias, in a packet of its own.
            let alone = usize::from(round == 1 && !acked);
            let shared = &ends[..ends.len() - alone];
            assert!(shared.iter().all(|end| *end == shared[0]), "{ends:?}");
        }
    }
}

/// A message that fits to the byte is queued, and one that is a byte too large is not.
#[test]
fn a_session_has_all_of_its_memory() {
    let message = publish_acked("a", "x", QoS::AtLeastOnce, 1);
    let cost = Message::from_publish(&message, Time(0)).cost();
    for (session_bytes, queued) in [(cost, 1), (cost - 1, 0)] {
        let mut world = World::with(1, RetainedLimits::default(), |c| {
            c.limits.session_bytes = session_bytes;
        });
        let (s, _) = world.connect(0, lasting("s", 60));
        world.subscribe(s, "a", QoS::AtLeastOnce);
        world.lose(s);
        let p = world.client(0, "p");
        world.send(p, Packet::Publish(message.clone()));
        assert_eq!(world.counters(0).queued, queued, "{session_bytes} bytes");
        assert_eq!(world.counters(0).limit_session_bytes, 1 - queued);
    }
}

/// [MQTT-3.3.1-12] [MQTT-3.3.1-13] hold for what waits as well.
#[test]
fn retain_as_published_is_kept_in_a_queue() {
    for (wanted, retain) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut world = World::new(1);
        let (s, _) = world.connect(0, lasting("s", 60));
        let options = SubscriptionOptions {
            qos: QoS::AtLeastOnce,
            retain_as_published: wanted,
            ..SubscriptionOptions::default()
        };
        world.send(s, subscribe(1, "a", options));
        world.lose(s);
        let p = world.client(0, "p");
        let message = publish_acked("a", "x", QoS::AtLeastOnce, 1);
        world.send(p, Packet::Publish(Publish { retain, ..message }));
        let (s, _) = world.connect(0, lasting("s", 60));
        let packets = world.read(s);
        let got = packets.iter().find_map(publish_of).expect("it was queued");
        assert_eq!(got.retain, retain && wanted);
    }
}
