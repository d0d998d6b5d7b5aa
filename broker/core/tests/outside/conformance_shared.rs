//! Statements of MQTT 5.0 about shared subscriptions that no other test is about.

use crate::common::*;
use headgate_codec::{Packet, Publish, QoS};

const QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

fn publishes(world: &mut World, id: Id) -> Vec<Publish> {
    let packets = world.read(id);
    packets.iter().filter_map(publish_of).cloned().collect()
}

/// [MQTT-4.8.2-3]: each member of a group with the QoS that it was granted.
#[test]
fn members_of_a_group_get_their_own_qos() {
    let mut world = World::new(2);
    let members: Vec<Id> = QOS
        .iter()
        .enumerate()
        .map(|(i, qos)| {
            let id = world.client(i % 2, &format!("m{i}"));
            world.subscribe(id, "$share/g/t", *qos);
            id
        })
        .collect();
    let p = world.client(0, "p");
    for i in 1..=30 {
        let message = publish_acked("t", "x", QoS::ExactlyOnce, i);
        world.send(p, Packet::Publish(message));
        world.send(p, Packet::PubRel(ack(i)));
    }
    let mut total = 0;
    for (member, qos) in members.into_iter().zip(QOS) {
        let got = publishes(&mut world, member);
        assert!(
            !got.is_empty() && got.iter().all(|m| m.qos == qos),
            "{qos:?}"
        );
        total += got.len();
    }
    assert_eq!(total, 30);
}

/// [MQTT-4.8.2-4] [MQTT-4.8.2-5]: a member that is away completes its QoS 2 messages when it is back; when its
/// session ends instead, nobody gets them.
#[test]
fn qos_2_of_a_group_ends_with_its_session() {
    for is_back in [true, false] {
        let mut world = World::new(2);
        let (member, _) = world.connect(0, lasting("m", 60));
        world.subscribe(member, "$share/g/t", QoS::ExactlyOnce);
        let p = world.client(0, "p");
        for (i, payload) in [(1, "sent"), (2, "received")] {
            world.send(
                p,
                Packet::Publish(publish_acked("t", payload, QoS::ExactlyOnce, i)),
            );
        }
        let sent = publishes(&mut world, member);
        let ids: Vec<u16> = sent
            .iter()
            .filter_map(|m| Some(m.packet_id?.get()))
            .collect();
        world.send(member, Packet::PubRec(ack(ids[1])));
        world.read(member);
        let other = world.client(1, "o");
        world.subscribe(other, "$share/g/t", QoS::ExactlyOnce);
        world.lose(member);
        assert!(publishes(&mut world, other).is_empty());
        if is_back {
            let (member, present) = world.connect(1, lasting("m", 60));
            assert!(present);
            let again = world.read(member);
            let [Packet::Publish(first), Packet::PubRel(second)] = &again[..] else {
                panic!("{again:?}");
            };
            assert!(first.dup && first.payload == "sent");
            assert_eq!(second.packet_id.get(), ids[1]);
        } else {
            for _ in 0..3 {
                world.advance_s(30);
                world.send(other, Packet::PingReq);
            }
            assert_eq!(world.sum(|c| c.sessions_expired), 1);
            assert!(publishes(&mut world, other).is_empty());
        }
    }
}
