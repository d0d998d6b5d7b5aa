//! Quota classes: each client gets what its class may use, and its neighbours don't notice.

use crate::common::*;
use headgate_codec::{Packet, QoS, ReasonCode, SubscriptionOptions, Version};
use headgate_core::{
    AboveQuota, AuthResult, CoreConfig, Granted, Input, QuotaLimits, RetainedLimits, Transport,
};
use std::sync::Arc;

/// Class 0 has no limits, class 1 has `limits`; clients without a name are of class 1.
fn world(workers: u8, limits: QuotaLimits) -> World {
    World::with(
        workers,
        RetainedLimits::default(),
        |config: &mut CoreConfig| {
            config.quotas = [QuotaLimits::default(), limits].into();
            config.listener_classes[Transport::Tcp as usize] = 1;
        },
    )
}

/// A client of the default class.
fn free_client(world: &mut World, name: &str) -> Id {
    let id = world.open(0);
    let mut connect = connect(name);
    connect.user_name = Some(name.into());
    world.send(id, Packet::Connect(Box::new(connect)));
    world.answer(AuthResult::Granted(Granted {
        user_name: Some(name.into()),
        quota_class: Some(0),
        data: None,
    }));
    assert!(matches!(world.read_one(id), Packet::ConnAck(a) if a.reason == ReasonCode::SUCCESS));
    id
}

fn rate(messages_per_s: u32, above: AboveQuota) -> QuotaLimits {
    QuotaLimits {
        messages_per_s,
        above,
        ..QuotaLimits::default()
    }
}

fn refusal(world: &mut World, worker: usize, name: &str) -> Option<ReasonCode> {
    let id = world.open(worker);
    world.send(id, Packet::Connect(Box::new(connect(name))));
    match world.read(id).first() {
        Some(Packet::ConnAck(connack)) => Some(connack.reason).filter(|r| r.0 >= 0x80),
        other => panic!("CONNACK expected, not {other:?}"),
    }
}

#[test]
fn a_client_above_its_rate_is_read_from_more_slowly_and_others_are_not() {
    let mut world = world(1, rate(10, AboveQuota::Slow));
    let reader = free_client(&mut world, "reader");
    world.subscribe(reader, "#", QoS::AtMostOnce);
    let (free, limited) = (free_client(&mut world, "free"), world.client(0, "limited"));
    for number in 0..100 {
        world.send(
            limited,
            Packet::Publish(publish("a", &format!("l{number}"))),
        );
        world.send(free, Packet::Publish(publish("a", "f")));
    }
    let of = |payloads: Vec<String>, first: char| {
        payloads.iter().filter(|p| p.starts_with(first)).count()
    };
    let at_once = world.payloads(reader);
    assert_eq!(of(at_once.clone(), 'f'), 100);
    assert_eq!(of(at_once, 'l'), 10, "a second's worth");
    assert!(!world.wires[limited].reading && world.wires[free].reading);
    let mut got = 10;
    for second in 1..=4 {
        world.advance_s(1);
        got += of(world.payloads(reader), 'l');
        let allowed = 10 + 10 * second;
        assert!((allowed - 3..=allowed).contains(&got), "{got} of {allowed}");
    }
    world.advance_s(6);
    got += of(world.payloads(reader), 'l');
    assert_eq!(got, 100, "none is lost");
    world.advance_s(2);
    assert!(world.wires[limited].reading && world.wires[limited].closed.is_none());
    assert!(world.counters(0).quota_slowed > 0);
}

#[test]
fn bytes_are_limited_like_messages_and_a_slow_client_is_not_taken_for_dead() {
    let limits = QuotaLimits {
        bytes_per_s: 100,
        ..QuotaLimits::default()
    };
    let mut world = world(1, limits);
    let mut big = connect("big");
    big.keep_alive_s = 5;
    let (id, _) = world.connect(0, big);
    world.send(id, Packet::Publish(publish("a", &"x".repeat(3_000))));
    assert!(!world.wires[id].reading);
    world.send(id, Packet::PingReq);
    world.advance_s(28);
    assert!(!world.wires[id].reading && world.wires[id].closed.is_none());
    world.advance_s(3);
    assert!(world.wires[id].reading && world.wires[id].closed.is_none());
    world.run();
    assert_eq!(world.read_one(id), Packet::PingResp);
}

#[test]
fn a_client_above_its_rate_is_told_so_by_0x97() {
    let mut world = world(1, rate(2, AboveQuota::Refuse));
    let reader = free_client(&mut world, "reader");
    world.subscribe(reader, "#", QoS::AtMostOnce);
    let id = world.client(0, "limited");
    for number in 1..=4 {
        let qos = [QoS::AtLeastOnce, QoS::ExactlyOnce][usize::from(number % 2)];
        let message = publish_acked("a", &number.to_string(), qos, number);
        world.send(id, Packet::Publish(message));
    }
    world.send(id, Packet::Publish(publish("a", "5")));
    let answers = world.read(id);
    let reasons: Vec<_> = answers
        .iter()
        .map(|packet| match packet {
            Packet::PubAck(ack) | Packet::PubRec(ack) => (ack.packet_id.get(), ack.reason.0),
            other => panic!("an acknowledgement expected, not {other:?}"),
        })
        .collect();
    assert_eq!(reasons, [(1, 0), (2, 0), (3, 0x97), (4, 0x97)]);
    assert_eq!(world.payloads(reader), ["1", "2"]);
    assert!(world.wires[id].closed.is_none());
    assert_eq!(world.counters(0).quota_messages, 3);
    // What was refused may come again, under the same Packet Identifier, and what was accepted is no new message.
    let again = publish_acked("a", "1", QoS::ExactlyOnce, 1);
    world.send(id, Packet::Publish(again));
    assert!(matches!(world.read_one(id), Packet::PubRec(ack) if ack.reason == ReasonCode::SUCCESS));
    world.advance_s(2);
    world.send(
        id,
        Packet::Publish(publish_acked("a", "3", QoS::ExactlyOnce, 3)),
    );
    assert!(matches!(world.read_one(id), Packet::PubRec(ack) if ack.reason == ReasonCode::SUCCESS));
    assert_eq!(world.payloads(reader), ["3"]);
}

#[test]
fn a_client_that_knows_no_reason_codes_is_not_told_that_its_message_is_safe() {
    let mut world = world(1, rate(1, AboveQuota::Refuse));
    let mut old = connect("old");
    old.version = Version::V311;
    let (id, _) = world.connect(0, old);
    world.send(id, Packet::Publish(publish("a", "1")));
    world.send(id, Packet::Publish(publish("a", "2")));
    assert!(world.wires[id].closed.is_none(), "QoS 0 is just dropped");
    world.send(
        id,
        Packet::Publish(publish_acked("a", "3", QoS::AtLeastOnce, 3)),
    );
    assert_eq!(world.read(id), []);
    assert_eq!(world.wires[id].closed, Some(ReasonCode::QUOTA_EXCEEDED));
}

#[test]
fn a_class_may_disconnect_who_is_above_its_rate() {
    let mut world = world(1, rate(1, AboveQuota::Disconnect));
    let id = world.client(0, "limited");
    world.send(id, Packet::Publish(publish("a", "1")));
    assert!(world.wires[id].closed.is_none());
    world.send(id, Packet::Publish(publish("a", "2")));
    assert_eq!(world.read_one(id), disconnect(ReasonCode::QUOTA_EXCEEDED));
    assert_eq!(world.wires[id].closed, Some(ReasonCode::QUOTA_EXCEEDED));
}

#[test]
fn connections_of_a_class_are_counted_over_all_workers() {
    let limits = QuotaLimits {
        connections: 2,
        ..QuotaLimits::default()
    };
    let mut world = world(2, limits);
    let (first, _second) = (world.client(0, "a"), world.client(1, "b"));
    assert_eq!(
        refusal(&mut world, 0, "c"),
        Some(ReasonCode::QUOTA_EXCEEDED)
    );
    assert_eq!(
        refusal(&mut world, 1, "c"),
        Some(ReasonCode::QUOTA_EXCEEDED)
    );
    free_client(&mut world, "of another class");
    assert_eq!(world.sum(|c| c.limit_class_connections), 2);
    world.lose(first);
    assert_eq!(refusal(&mut world, 1, "c"), None);
    assert_eq!(
        refusal(&mut world, 0, "d"),
        Some(ReasonCode::QUOTA_EXCEEDED)
    );
    // A class may also come with a re-authentication, and go.
    let workers = [headgate_core::WorkerSlot(0), headgate_core::WorkerSlot(1)];
    assert_eq!(world.shared.class_connections(&workers, 1), 2);
    assert_eq!(world.shared.class_connections(&workers, 0), 1);
}

#[test]
fn subscriptions_and_queues_are_those_of_the_class() {
    let limits = QuotaLimits {
        subscriptions: 2,
        queued_messages: 3,
        ..QuotaLimits::default()
    };
    let mut world = world(1, limits);
    let (limited, _) = world.connect(0, lasting("limited", 60));
    world.subscribe(limited, "a", QoS::AtLeastOnce);
    world.subscribe(limited, "b", QoS::AtLeastOnce);
    let third = subscribe(2, "c", SubscriptionOptions::default());
    world.send(limited, third);
    assert!(matches!(
        world.read_one(limited),
        Packet::SubAck(a) if a.reasons == [ReasonCode::QUOTA_EXCEEDED]
    ));
    let free = free_client(&mut world, "free");
    for filter in ["a", "b", "c"] {
        world.subscribe(free, filter, QoS::AtLeastOnce);
    }
    world.lose(limited);
    for number in 1..=5 {
        let message = publish_acked("a", &number.to_string(), QoS::AtLeastOnce, number);
        world.send(free, Packet::Publish(message));
    }
    let (limited, present) = world.connect(0, lasting("limited", 60));
    assert!(present);
    assert_eq!(world.payloads(limited), ["1", "2", "3"]);
    assert_eq!(world.counters(0).limit_queued_messages, 2);
}

#[test]
fn the_kernel_polices_who_goes_on_above_the_rate_until_that_has_ended() {
    let limits = QuotaLimits {
        is_policed: true,
        ..rate(10, AboveQuota::Refuse)
    };
    let mut world = world(1, limits);
    let (limited, busy) = (world.client(0, "limited"), world.client(0, "busy"));
    let (worker, conn) = (0, world.wires[limited].conn);
    // One goes on, the other one sends as much at a time, but pauses.
    for tenth in 0..100 {
        assert_eq!(world.penalties.len(), usize::from(tenth > 52), "{tenth}");
        for _ in 0..5 {
            world.send(limited, Packet::Publish(publish("a", "x")));
        }
        if tenth % 20 == 0 {
            for _ in 0..15 {
                world.send(busy, Packet::Publish(publish("a", "x")));
            }
        }
        world.advance_ms(100);
    }
    assert_eq!(world.penalties, [(worker, conn, Some(1))]);
    assert_eq!(world.counters(0).quota_penalties, 1);
    world.advance_s(9);
    assert_eq!(world.penalties.len(), 1);
    // Within the rate is not above it.
    world.send(limited, Packet::Publish(publish("a", "x")));
    world.advance_s(2);
    assert_eq!(world.penalties[1..], [(worker, conn, None)]);
}

#[test]
fn a_slowed_client_that_never_pauses_is_policed_too() {
    let limits = QuotaLimits {
        is_policed: true,
        ..rate(10, AboveQuota::Slow)
    };
    let mut world = world(1, limits);
    let limited = world.client(0, "limited");
    for _ in 0..120 {
        world.send(limited, Packet::Publish(publish("a", "x")));
    }
    world.advance_s(4);
    assert_eq!(world.penalties, []);
    world.advance_s(2);
    assert_eq!(world.penalties.len(), 1);
    world.advance_s(60);
    let ended: Vec<_> = world.penalties.iter().map(|p| p.2).collect();
    assert_eq!(ended, [Some(1), None]);
    assert!(world.wires[limited].reading);
}

#[test]
fn nothing_is_policed_where_the_kernel_has_no_limit() {
    let mut world = world(1, rate(10, AboveQuota::Refuse));
    let limited = world.client(0, "limited");
    for _ in 0..100 {
        for _ in 0..5 {
            world.send(limited, Packet::Publish(publish("a", "x")));
        }
        world.advance_ms(100);
    }
    assert_eq!(world.penalties, []);
}

#[test]
fn new_quotas_apply_at_once() {
    let mut world = world(1, rate(2, AboveQuota::Refuse));
    let id = world.client(0, "limited");
    let burst = |world: &mut World| {
        for number in 1..=20 {
            let message = publish_acked("a", "x", QoS::AtLeastOnce, number);
            world.send(id, Packet::Publish(message));
        }
        let is_refused = |packet: &&Packet| matches!(packet, Packet::PubAck(ack) if ack.reason == ReasonCode::QUOTA_EXCEEDED);
        world.read(id).iter().filter(is_refused).count()
    };
    assert_eq!(burst(&mut world), 18);
    let unlimited: Arc<[QuotaLimits]> = [QuotaLimits::default(); 2].into();
    world.handle(0, Input::Quotas(unlimited));
    assert_eq!(burst(&mut world), 0);
    let wider: Arc<[QuotaLimits]> = [QuotaLimits::default(), rate(10, AboveQuota::Refuse)].into();
    world.handle(0, Input::Quotas(wider));
    world.advance_s(2);
    assert_eq!(burst(&mut world), 10);
    // A class that is gone is the default one.
    world.handle(0, Input::Quotas([rate(5, AboveQuota::Refuse)].into()));
    world.advance_s(2);
    assert_eq!(burst(&mut world), 15);
}

#[test]
fn whoever_is_slowed_goes_on_when_the_rate_is_gone() {
    let mut world = world(1, rate(1, AboveQuota::Slow));
    let id = world.client(0, "limited");
    for _ in 0..20 {
        world.send(id, Packet::Publish(publish("a", "x")));
    }
    assert!(!world.wires[id].reading);
    world.handle(0, Input::Quotas([QuotaLimits::default(); 2].into()));
    world.advance_s(2);
    assert!(world.wires[id].reading && world.wires[id].unsent.is_empty());
}
