//! Performs a list of operations, and what comes after them: everybody returns, takes everything, and leaves.

use bytes::{Bytes, BytesMut};
use headgate_codec::{
    Connect, ConnectProperties, Disconnect, DisconnectProperties, Packet, Publish,
    PublishProperties, QoS, ReasonCode, Subscribe, SubscriptionOptions, Text, Unsubscribe, Version,
    Will,
};
use std::num::NonZeroU16;

use super::draw::Rng;
use super::model::Message;
use super::operations::{
    Connecting, Content, FILTERS, Fault, Op, PACKET_BYTES_MAX, Scenario, Step, TOPICS,
};
use super::world::World;

/// Performs the steps, and everything that has to come true after them. Panics at the first thing that must not be.
pub(crate) fn perform(world: &mut World, steps: &[Step]) {
    for (i, step) in steps.iter().enumerate() {
        world.note(|| format!("{i}: {:?}", step.op));
        let mut rng = Rng::new(step.schedule);
        apply(world, &step.op, &mut rng);
        let count = rng.below(16);
        world.go_on(count, &mut rng);
    }
    finish(world);
}

fn apply(world: &mut World, op: &Op, rng: &mut Rng) {
    match *op {
        Op::Connect(ref connecting) => connect(world, connecting, rng),
        Op::Drop { client } => hang_up(world, client, rng),
        Op::Disconnect {
            client,
            with_will,
            expiry_s,
        } => disconnect(world, client, with_will, expiry_s),
        Op::Publish {
            client,
            ref message,
        } => publish(world, client, message, false),
        Op::Subscribe {
            client,
            ref filters,
            id,
        } => subscribe(world, client, filters, id),
        Op::Unsubscribe { client, filter } => {
            let Some(link) = up(world, client) else {
                return;
            };
            let packet = Unsubscribe {
                packet_id: world.clients[client].ask(),
                user_properties: Vec::new(),
                filters: vec![Text::from(FILTERS[filter])],
            };
            world.send(link, &Packet::Unsubscribe(Box::new(packet)), None);
        }
        Op::Ping { client } => {
            if let Some(link) = up(world, client) {
                world.send(link, &Packet::PingReq, None);
            }
        }
        Op::HoldAcks { client, on: true } => world.clients[client].holds_acks = true,
        Op::HoldAcks { client, on: false } => release_acks(world, client),
        Op::Stall { client, on } => {
            if let Some(link) = world.clients[client].link {
                world.links[link].stalled = on;
            }
        }
        Op::Misbehave { client, how } => misbehave(world, client, how),
        Op::Advance { ms } => world.advance(ms, rng),
        Op::Settle => world.settle(false, rng),
        Op::Crash { worker } => {
            // A worker that crashes between its claim and the takeover leaves a session without an owner behind.
            world.settle(true, rng);
            world.crash(worker);
        }
        Op::Restart => world.restart(rng),
    }
}

/// The client's connection, if it has had its CONNACK.
fn up(world: &World, client: usize) -> Option<usize> {
    let c = &world.clients[client];
    c.link.filter(|_| c.is_up)
}

fn connect(world: &mut World, connecting: &Connecting, rng: &mut Rng) {
    let client = connecting.client;
    if let Some(link) = world.clients[client].link
        && !(connecting.leave_open && world.clients[client].is_up)
    {
        world.cut(link, rng);
    }
    let version = connecting.version;
    let is_v5 = version == Version::V5;
    let link = world.open(client, connecting.worker, version);
    world.clients[client].begin(link, version);
    let will = connecting
        .will
        .as_ref()
        .map(|(content, delay_s)| will_of(world, content, *delay_s, is_v5));
    let properties = ConnectProperties {
        session_expiry_s: Some(connecting.expiry_s),
        receive_maximum: connecting.receive_maximum,
        maximum_packet_size: connecting.maximum_packet_size,
        topic_alias_maximum: connecting.topic_alias_maximum,
        ..ConnectProperties::default()
    };
    let packet = Connect {
        version,
        clean_start: connecting.clean,
        keep_alive_s: connecting.keep_alive_s,
        client_id: Text::from(format!("c{client}").as_str()),
        will,
        user_name: None,
        password: None,
        properties: if is_v5 {
            properties
        } else {
            ConnectProperties::default()
        },
    };
    world.send(link, &Packet::Connect(Box::new(packet)), None);
}

fn will_of(world: &mut World, content: &Content, delay_s: u32, is_v5: bool) -> Will {
    // A will without a payload would not show which one it is.
    let content = Content {
        size: content.size.or(Some(0)),
        ..*content
    };
    let mut message = message_of(world, &content, is_v5);
    message.is_will = true;
    let properties = PublishProperties {
        message_expiry_s: message.expiry_s,
        ..message.properties.clone().unwrap_or_default()
    };
    let will = Will {
        qos: message.qos,
        retain: message.retain,
        topic: Text::from(message.topic),
        payload: message.payload.clone(),
        delay_s: is_v5.then_some(delay_s),
        properties: (properties != PublishProperties::default()).then(|| Box::new(properties)),
    };
    world.model.add_message(message);
    will
}

/// The message with the next number.
fn message_of(world: &World, content: &Content, is_v5: bool) -> Message {
    let n = world.model.messages.len();
    let payload = content.size.map_or(Bytes::new(), |size| {
        format!("{n}|{}", ".".repeat(size)).into()
    });
    let mut message = Message::new(TOPICS[content.topic], payload, content.qos, content.retain);
    if !is_v5 {
        return message;
    }
    message.expiry_s = content.expiry_s;
    let has = |bit: u8| content.properties & bit != 0;
    let text = |text: &str| Text::from(text);
    let properties = PublishProperties {
        payload_format_utf8: has(1).then_some(true),
        response_topic: has(2).then(|| text("answers/here")),
        correlation_data: has(4).then(|| Bytes::from_static(&[0, 1, 255])),
        user_properties: match has(8) {
            true => vec![(text("k"), text("1")), (text("k"), text("2"))],
            false => Vec::new(),
        },
        content_type: has(16).then(|| text("text/plain")),
        ..PublishProperties::default()
    };
    message.properties = (properties != PublishProperties::default()).then_some(properties);
    message
}

fn hang_up(world: &mut World, client: usize, rng: &mut Rng) {
    if let Some(link) = world.clients[client].link.take() {
        world.clients[client].is_up = false;
        world.cut(link, rng);
    }
}

fn disconnect(world: &mut World, client: usize, with_will: bool, expiry_s: Option<u32>) {
    let Some(link) = up(world, client) else {
        return;
    };
    let is_v5 = world.clients[client].version == Version::V5;
    let properties = expiry_s.filter(|_| is_v5).map(|expiry_s| {
        Box::new(DisconnectProperties {
            session_expiry_s: Some(expiry_s),
            ..DisconnectProperties::default()
        })
    });
    let reason = match with_will && is_v5 {
        true => ReasonCode::DISCONNECT_WITH_WILL,
        false => ReasonCode::SUCCESS,
    };
    world.send(
        link,
        &Packet::Disconnect(Disconnect { reason, properties }),
        None,
    );
    let l = &mut world.links[link];
    (l.client_open, l.is_graceful) = (false, true);
    l.in_flight.clear();
    (world.clients[client].link, world.clients[client].is_up) = (None, false);
}

fn publish(world: &mut World, client: usize, content: &Content, may_exceed: bool) {
    let Some(link) = up(world, client) else {
        return;
    };
    let is_v5 = world.clients[client].version == Version::V5;
    let message = message_of(world, content, is_v5);
    let n = world.model.messages.len();
    if let Some(packet) = world.clients[client].publish(content, (n, &message), may_exceed) {
        world.model.add_message(message);
        world.send(link, &Packet::Publish(packet), Some(n));
    }
}

fn subscribe(world: &mut World, client: usize, filters: &[super::operations::Wanted], id: u32) {
    let Some(link) = up(world, client) else {
        return;
    };
    let is_v5 = world.clients[client].version == Version::V5;
    let options = |w: &super::operations::Wanted| match is_v5 {
        true => SubscriptionOptions {
            qos: w.qos,
            // [MQTT-3.8.3-4]
            no_local: w.no_local && !FILTERS[w.filter].starts_with("$share/"),
            retain_as_published: w.retain_as_published,
            retain_handling: w.retain_handling,
        },
        false => SubscriptionOptions {
            qos: w.qos,
            ..SubscriptionOptions::default()
        },
    };
    let packet = Subscribe {
        packet_id: world.clients[client].ask(),
        subscription_id: (id != 0 && is_v5).then_some(id),
        user_properties: Vec::new(),
        filters: filters
            .iter()
            .map(|w| (Text::from(FILTERS[w.filter]), options(w)))
            .collect(),
    };
    world.send(link, &Packet::Subscribe(Box::new(packet)), None);
}

fn release_acks(world: &mut World, client: usize) {
    let packets = world.clients[client].release_acks();
    let Some(link) = up(world, client) else {
        return;
    };
    for packet in packets {
        world.send(link, &packet, None);
    }
}

fn misbehave(world: &mut World, client: usize, how: Fault) {
    let Some(link) = up(world, client) else {
        return;
    };
    let is_v5 = world.clients[client].version == Version::V5;
    let plain = |topic: &str, properties: Option<PublishProperties>, len: usize| {
        Packet::Publish(Publish {
            dup: false,
            qos: QoS::AtMostOnce,
            retain: false,
            topic: Text::from(topic),
            packet_id: None,
            properties: properties.map(Box::new),
            payload: vec![0; len].into(),
        })
    };
    let alias = NonZeroU16::new(world.scenario.topic_aliases + 1);
    match how {
        Fault::Garbage => world.send_bytes(link, &BytesMut::from(&[0_u8, 0][..])),
        Fault::SecondConnect => world.send_bytes(link, &BytesMut::from(&[0x10_u8, 2, 0, 0][..])),
        Fault::WildcardTopic => world.send(link, &plain("a/+", None, 0), None),
        Fault::TooLarge => world.send(link, &plain("a", None, PACKET_BYTES_MAX as usize), None),
        Fault::AliasTooHigh if is_v5 => {
            let properties = PublishProperties {
                topic_alias: alias,
                ..PublishProperties::default()
            };
            world.send(link, &plain("a", Some(properties), 0), None);
        }
        Fault::SubscriptionId if is_v5 => {
            let properties = PublishProperties {
                subscription_ids: vec![1],
                ..PublishProperties::default()
            };
            world.send(link, &plain("a", Some(properties), 0), None);
        }
        Fault::TooMany if is_v5 => {
            let content = Content {
                topic: 0,
                qos: QoS::AtLeastOnce,
                retain: false,
                size: Some(0),
                expiry_s: None,
                properties: 0,
                alias: false,
            };
            for _ in 0..=world.scenario.receive_maximum {
                publish(world, client, &content, true);
            }
        }
        _ => return,
    }
    // It sends nothing more on this connection.
    world.clients[client].is_up = false;
}

/// Everybody comes back, and takes what there is. Then everybody leaves, and nothing stays.
fn finish(world: &mut World) {
    let mut rng = Rng::new(1);
    world.note(|| "the end".to_owned());
    for client in 0..world.scenario.clients {
        if let Some(link) = world.clients[client].link {
            world.links[link].stalled = false;
        }
        release_acks(world, client);
    }
    world.cut_forgotten(&mut rng);
    world.settle(false, &mut rng);
    for client in 0..world.scenario.clients {
        // One that has broken the protocol, and the server did not see it.
        if !world.clients[client].is_up {
            hang_up(world, client, &mut rng);
        }
    }
    world.settle(false, &mut rng);
    // A client that floods itself with what it repeats may be disconnected for that, and come back to a full queue.
    for _ in 0..4 {
        for client in world.model.unfinished() {
            let connecting = last_connect(world, client);
            connect(world, &connecting, &mut rng);
        }
        world.settle(false, &mut rng);
    }
    assert!(
        world.model.unfinished().is_empty(),
        "clients can't come back"
    );
    let dropped = world.dropped();
    world.model.finished(dropped);
    assert_eq!(
        world.retained(),
        world.model.retained_now(),
        "retained messages"
    );
    let (owners, _) = world.entries();
    assert_eq!(
        world.sum(|c| c.sessions),
        owners as u64,
        "sessions and directory differ"
    );
    for client in 0..world.scenario.clients {
        hang_up(world, client, &mut rng);
    }
    world.cut_forgotten(&mut rng);
    world.settle(false, &mut rng);
    world.advance(60_000, &mut rng);
    world.settle(false, &mut rng);
    world.advance(60_000, &mut rng);
    assert_eq!(world.sum(|c| c.sessions), 0, "sessions stay");
    assert_eq!(world.groups(), 0, "groups of Shared Subscriptions stay");
    assert_eq!(world.sum(|c| c.subscriptions), 0, "subscriptions stay");
    assert_eq!(
        world.entries(),
        (0, 0),
        "entries of the directory or the topic table stay"
    );
}

fn last_connect(world: &World, client: usize) -> Connecting {
    Connecting {
        client,
        worker: client % world.scenario.workers,
        version: Version::V5,
        clean: false,
        expiry_s: 40,
        keep_alive_s: 0,
        receive_maximum: None,
        maximum_packet_size: None,
        topic_alias_maximum: None,
        will: None,
        leave_open: false,
    }
}

/// A run as it is printed.
pub(crate) fn print(scenario: &Scenario, steps: &[Step]) -> String {
    let mut text = format!("{scenario:?}\n");
    for (i, step) in steps.iter().enumerate() {
        text.push_str(&format!("{i:>4}: {:?}\n", step.op));
    }
    text
}
