//! Data streams and datagrams of QUIC connections: what leaves where, and that no stream holds up another.

use crate::common::{
    streams::{end, flush, on, options, payloads, quic_world, taken},
    *,
};
use headgate_codec::{Packet, PacketId, QoS, ReasonCode, Subscribe, Text, Version, decode};
use headgate_core::{DataEnd, Input, Output, Transport};
use std::num::NonZeroU16;

/// Connects; what CONNACK says in User Properties.
fn connack(world: &mut World, connect: headgate_codec::Connect) -> (Id, Vec<(Text, Text)>) {
    let id = world.open(0);
    world.send(id, Packet::Connect(Box::new(connect)));
    match world.read(id).first() {
        Some(Packet::ConnAck(connack)) => (id, connack.properties.user_properties.clone()),
        other => panic!("{other:?}"),
    }
}

/// Asks for datagrams in SUBSCRIBE.
fn subscribe_datagrams(filter: &str, qos: QoS) -> Packet {
    Packet::Subscribe(Box::new(Subscribe {
        packet_id: PacketId::new(1).unwrap(),
        subscription_id: None,
        user_properties: vec![(Text::from("headgate-datagram"), Text::from("1"))],
        filters: vec![(Text::from(filter), options(qos))],
    }))
}

#[test]
fn acknowledgements_leave_on_the_stream_of_what_they_answer() {
    let mut world = quic_world();
    let (id, _) = world.connect(0, connect("c"));
    assert_eq!(
        world.wires[id].ready,
        Some(false),
        "data streams may be used"
    );
    let publish = |id| Packet::Publish(publish_acked("t", "x", QoS::AtLeastOnce, id));
    on(&mut world, id, 1, publish(1));
    on(&mut world, id, 2, publish(2));
    world.send(id, publish(3));
    let exactly = publish_acked("t", "x", QoS::ExactlyOnce, 4);
    on(&mut world, id, 2, Packet::Publish(exactly));
    on(&mut world, id, 1, Packet::PubRel(ack(4)));
    let kinds = |packets: Vec<Packet>| -> Vec<String> {
        let name = |p: &Packet| match p {
            Packet::PubAck(a) => format!("PUBACK {}", a.packet_id),
            Packet::PubRec(a) => format!("PUBREC {}", a.packet_id),
            Packet::PubComp(a) => format!("PUBCOMP {}", a.packet_id),
            other => format!("{other:?}"),
        };
        packets.iter().map(name).collect()
    };
    assert_eq!(kinds(taken(&mut world, 1).0), ["PUBACK 1", "PUBCOMP 4"]);
    assert_eq!(kinds(taken(&mut world, 2).0), ["PUBACK 2", "PUBREC 4"]);
    assert_eq!(kinds(world.read(id)), ["PUBACK 3"]);
    assert_eq!(world.sum(|c| c.data_packets_in), 4);
}

/// An acknowledgement that waits for storage holds up those of its own stream, and no other's.
#[test]
fn an_acknowledgement_waits_for_those_of_its_own_stream_alone() {
    let mut world = quic_world();
    let (sub, _) = world.connect(0, lasting("s", 100));
    world.subscribe(sub, "kept", QoS::AtLeastOnce);
    let (id, _) = world.connect(0, connect("c"));
    world.storage_stuck = true;
    let acked = |topic, id| Packet::Publish(publish_acked(topic, "x", QoS::AtLeastOnce, id));
    on(&mut world, id, 1, acked("kept", 1));
    on(&mut world, id, 1, acked("free", 2));
    on(&mut world, id, 2, acked("free", 3));
    world.send(id, acked("free", 4));
    assert_eq!(taken(&mut world, 1).0.len(), 0);
    assert_eq!(taken(&mut world, 2).0.len(), 1);
    assert_eq!(world.read(id).len(), 1);
    world.storage_stuck = false;
    world.run();
    let ids: Vec<u16> = taken(&mut world, 1)
        .0
        .iter()
        .map(|p| match p {
            Packet::PubAck(a) => a.packet_id.get(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ids, [1, 2], "in the order of the stream");
}

#[test]
fn messages_leave_on_the_stream_of_their_subscription() {
    let mut world = quic_world();
    let (id, _) = world.connect(0, connect("c"));
    on(
        &mut world,
        id,
        1,
        subscribe(1, "a/#", options(QoS::AtLeastOnce)),
    );
    on(
        &mut world,
        id,
        2,
        subscribe(2, "$share/g/b", options(QoS::AtMostOnce)),
    );
    world.subscribe(id, "c", QoS::AtMostOnce);
    assert!(matches!(taken(&mut world, 1).0[..], [Packet::SubAck(_)]));
    assert!(matches!(taken(&mut world, 2).0[..], [Packet::SubAck(_)]));
    let p = world.client(0, "p");
    for topic in ["a/1", "b", "c"] {
        world.send(p, Packet::Publish(publish(topic, topic)));
    }
    assert_eq!(payloads(&taken(&mut world, 1).0), ["a/1"]);
    assert_eq!(payloads(&taken(&mut world, 2).0), ["b"]);
    assert_eq!(world.payloads(id), ["c"]);
    // Made again on the control stream, and ended.
    world.subscribe(id, "a/#", QoS::AtLeastOnce);
    on(&mut world, id, 2, unsubscribe(3, "$share/g/b"));
    taken(&mut world, 2);
    for topic in ["a/1", "b"] {
        world.send(p, Packet::Publish(publish(topic, topic)));
    }
    assert_eq!(world.payloads(id), ["a/1"]);
    assert_eq!(world.data.len(), 0, "{:?}", world.data);
}

/// One stream that the client doesn't read fills its own share, and the others go on, with both kinds of QoS.
#[test]
fn a_stream_that_stands_still_holds_up_no_other() {
    let mut world = quic_world();
    let mut c = connect("c");
    c.properties.receive_maximum = Some(30);
    let (id, _) = world.connect(0, c);
    on(
        &mut world,
        id,
        1,
        subscribe(1, "slow", options(QoS::AtLeastOnce)),
    );
    on(
        &mut world,
        id,
        2,
        subscribe(2, "fast", options(QoS::AtLeastOnce)),
    );
    world.subscribe(id, "control", QoS::AtLeastOnce);
    let (_, len) = taken(&mut world, 2);
    flush(&mut world, id, 2, len);
    let p = world.client(0, "p");
    let large = "x".repeat(10_000);
    let mut sent = 0_u16;
    for round in 0..400 {
        for topic in ["slow", "fast", "control"] {
            sent += 1;
            let payload = if topic == "slow" { large.as_str() } else { "x" };
            let qos1 = publish_acked(topic, payload, QoS::AtLeastOnce, sent);
            world.send(p, Packet::Publish(qos1));
            world.send(p, Packet::Publish(publish(topic, payload)));
            world.read(p);
        }
        // The client reads and acknowledges what comes on the other two.
        let (packets, len) = taken(&mut world, 2);
        assert_eq!(packets.len(), 2, "round {round}");
        flush(&mut world, id, 2, len);
        let control = world.read(id);
        assert_eq!(control.len(), 2, "round {round}: {control:?}");
        for (number, packet) in packets
            .iter()
            .map(|p| (2, p))
            .chain(control.iter().map(|p| (0, p)))
        {
            let Some(packet_id) = publish_of(packet).unwrap().packet_id else {
                continue;
            };
            match number {
                0 => world.send(id, Packet::PubAck(ack(packet_id.get()))),
                _ => on(&mut world, id, number, Packet::PubAck(ack(packet_id.get()))),
            }
        }
    }
    let (packets, len) = taken(&mut world, 1);
    assert!(
        len < 2 * 65_536 + 10_100,
        "{len} bytes for a stream that isn't read"
    );
    assert!(
        world.sum(|c| c.dropped_queue_full) > 0 && world.sum(|c| c.dropped_queue_full_qos0) > 0
    );
    // It is read again: what waited comes, in order.
    let mut left = packets.len();
    flush(&mut world, id, 1, len);
    loop {
        let (packets, len) = taken(&mut world, 1);
        if packets.is_empty() {
            break;
        }
        left += packets.len();
        flush(&mut world, id, 1, len);
        for packet in packets.iter().filter_map(publish_of) {
            if let Some(packet_id) = packet.packet_id {
                on(&mut world, id, 1, Packet::PubAck(ack(packet_id.get())));
            }
        }
    }
    assert!(left > 12, "{left}");
}

/// What was sent on a stream that is reset comes again on the control stream, with DUP and before later messages.
#[test]
fn messages_of_a_lost_stream_are_sent_again_on_the_control_stream() {
    let mut world = quic_world();
    let (id, _) = world.connect(0, connect("c"));
    on(
        &mut world,
        id,
        1,
        subscribe(1, "t", options(QoS::ExactlyOnce)),
    );
    let p = world.client(0, "p");
    let send = |world: &mut World, number: u16, qos| {
        let packet = publish_acked("t", &format!("m{number}"), qos, number);
        world.send(p, Packet::Publish(packet));
        world.send(p, Packet::PubRel(ack(number)));
        world.read(p);
    };
    send(&mut world, 1, QoS::AtLeastOnce);
    send(&mut world, 2, QoS::ExactlyOnce);
    send(&mut world, 3, QoS::ExactlyOnce);
    let (packets, _) = taken(&mut world, 1);
    assert_eq!(payloads(&packets), ["m1", "m2", "m3"]);
    let id_of = |n: usize| {
        let publish: Vec<_> = packets.iter().filter_map(publish_of).collect();
        publish[n].packet_id.unwrap().get()
    };
    on(&mut world, id, 1, Packet::PubRec(ack(id_of(1))));
    end(&mut world, id, 1, DataEnd::Lost);
    send(&mut world, 4, QoS::AtLeastOnce);
    let again = world.read(id);
    let Packet::PubRel(released) = &again[1] else {
        panic!("{again:?}")
    };
    assert_eq!(released.packet_id.get(), id_of(1));
    assert_eq!(payloads(&again), ["m1", "m3", "m4"]);
    let dup: Vec<bool> = again.iter().filter_map(publish_of).map(|p| p.dup).collect();
    assert_eq!(dup, [true, true, false]);
}

/// The client ends its side: acknowledgements still leave, then our end; subscriptions go on, on the control stream.
#[test]
fn a_stream_that_the_client_ends_gets_its_acknowledgements_and_ends() {
    let mut world = quic_world();
    let (kept, _) = world.connect(0, lasting("s", 100));
    world.subscribe(kept, "kept", QoS::AtLeastOnce);
    let (id, _) = world.connect(0, connect("c"));
    on(
        &mut world,
        id,
        1,
        subscribe(1, "t", options(QoS::AtLeastOnce)),
    );
    taken(&mut world, 1);
    let p = world.client(0, "p");
    let acked = |topic, id| Packet::Publish(publish_acked(topic, "x", QoS::AtLeastOnce, id));
    world.send(p, acked("t", 1));
    let (sent, _) = taken(&mut world, 1);
    world.storage_stuck = true;
    on(&mut world, id, 1, acked("kept", 2));
    end(&mut world, id, 1, DataEnd::Received);
    assert!(world.data.is_empty(), "the end waits: {:?}", world.data);
    world.storage_stuck = false;
    world.run();
    assert!(
        matches!(
            world.data[..],
            [Output::SendData { .. }, Output::EndData { .. }]
        ),
        "{:?}",
        world.data
    );
    end(&mut world, id, 1, DataEnd::Delivered);
    assert!(
        world.read(id).is_empty(),
        "what was delivered isn't sent again"
    );
    world.send(p, acked("t", 3));
    assert_eq!(world.payloads(id), ["x"]);
    let first = publish_of(&sent[0]).unwrap().packet_id.unwrap();
    world.send(id, Packet::PubAck(ack(first.get())));
    assert_eq!(world.sum(|c| c.protocol_errors), 0);
}

#[test]
fn what_belongs_on_the_control_stream_resets_the_stream_or_ends_the_connection() {
    for packet in [Packet::PingReq, disconnect(ReasonCode::SUCCESS)] {
        let mut world = quic_world();
        let (id, _) = world.connect(0, connect("c"));
        on(&mut world, id, 1, packet);
        assert!(
            matches!(
                world.data[..],
                [Output::ResetData {
                    reason: ReasonCode::PROTOCOL_ERROR,
                    ..
                }]
            ),
            "{:?}",
            world.data
        );
        assert_eq!(world.wires[id].closed, None);
        assert_eq!(world.sum(|c| c.data_streams_refused), 1);
    }
    let second = Packet::Connect(Box::new(connect("c")));
    for packet in [second, Packet::PingResp] {
        let mut world = quic_world();
        let (id, _) = world.connect(0, connect("c"));
        on(&mut world, id, 1, packet);
        assert_eq!(world.wires[id].closed, Some(ReasonCode::PROTOCOL_ERROR));
    }
}

#[test]
fn datagrams_are_for_who_asks_for_them() {
    let mut world = quic_world();
    let mut c = connect("c");
    c.properties.user_properties = vec![(Text::from("headgate-datagram"), Text::from("1"))];
    let (id, said) = connack(&mut world, c.clone());
    assert_eq!(world.wires[id].ready, Some(true));
    assert_eq!(said, c.properties.user_properties);
    world.send(id, subscribe_datagrams("d", QoS::AtLeastOnce));
    world.read(id);
    let p = world.client(0, "p");
    world.send(p, Packet::Publish(publish("d", "q0")));
    world.send(
        p,
        Packet::Publish(publish_acked("d", "q1", QoS::AtLeastOnce, 1)),
    );
    let [
        Output::SendDatagram {
            stream: None,
            publish: bytes,
            ..
        },
    ] = &world.data[..]
    else {
        panic!("{:?}", world.data)
    };
    let packet = decode(&mut bytes.clone(), Some(Version::V5), u32::MAX)
        .unwrap()
        .unwrap();
    assert_eq!(payloads(&[packet]), ["q0"]);
    assert_eq!(
        world.payloads(id),
        ["q1"],
        "with QoS 1, nothing is unreliable"
    );
    // Over TCP there are none.
    world.transport = Transport::Tcp;
    let mut other = c;
    other.client_id = Text::from("t");
    let (tcp, said) = connack(&mut world, other);
    assert_eq!((world.wires[tcp].ready, said.len()), (None, 0));
}

#[test]
fn a_datagram_holds_a_publish_with_qos_0_and_nothing_else() {
    let alias = with(publish("t", "x"), |p| p.topic_alias = NonZeroU16::new(1));
    let wrong = [
        Packet::PingReq,
        Packet::Publish(publish_acked("t", "x", QoS::AtLeastOnce, 1)),
        Packet::Publish(alias),
    ];
    for packet in wrong {
        let mut world = quic_world();
        let (id, _) = world.connect(0, connect("c"));
        let s = world.client(0, "s");
        world.subscribe(s, "t", QoS::AtMostOnce);
        let conn = world.wires[id].conn;
        let right = Packet::Publish(publish("t", "right"));
        world.handle(
            0,
            Input::Datagram {
                conn,
                packet: right,
            },
        );
        assert_eq!(world.payloads(s), ["right"]);
        world.handle(0, Input::Datagram { conn, packet });
        assert_eq!(world.wires[id].closed, Some(ReasonCode::PROTOCOL_ERROR));
        assert_eq!(world.payloads(s).len(), 0);
    }
}

/// A new connection knows no streams: all is on the control stream, also what waited for a data stream.
#[test]
fn streams_end_with_their_connection() {
    let mut world = quic_world();
    let (id, _) = world.connect(0, lasting("c", 100));
    on(
        &mut world,
        id,
        1,
        subscribe(1, "t", options(QoS::AtLeastOnce)),
    );
    let p = world.client(0, "p");
    let large = "x".repeat(40_000);
    for number in 1..=5 {
        let packet = publish_acked("t", &large, QoS::AtLeastOnce, number);
        world.send(p, Packet::Publish(packet));
    }
    world.lose(id);
    world.data.clear();
    let (id, _) = world.connect(0, lasting("c", 100));
    assert_eq!(world.payloads(id).len(), 5);
    assert!(world.data.is_empty());
}
