//! Packets that tests send and look at.

use bytes::Bytes;
use headgate_codec::{
    Ack, Connect, ConnectProperties, Disconnect, Packet, PacketId, Publish, PublishProperties, QoS,
    ReasonCode, Subscribe, SubscriptionOptions, Text, Unsubscribe, Version,
};

pub fn connect(client_id: &str) -> Connect {
    Connect {
        version: Version::V5,
        clean_start: true,
        keep_alive_s: 60,
        client_id: Text::from(client_id),
        will: None,
        user_name: None,
        password: None,
        properties: ConnectProperties::default(),
    }
}

/// A client that comes back: Clean Start 0, with expiry.
pub fn lasting(client_id: &str, expiry_s: u32) -> Connect {
    let mut c = connect(client_id);
    c.clean_start = false;
    c.properties.session_expiry_s = Some(expiry_s);
    c
}

pub fn publish(topic: &str, payload: &str) -> Publish {
    Publish {
        dup: false,
        qos: QoS::AtMostOnce,
        retain: false,
        topic: Text::from(topic),
        packet_id: None,
        properties: None,
        payload: Bytes::copy_from_slice(payload.as_bytes()),
    }
}

pub fn publish_acked(topic: &str, payload: &str, qos: QoS, id: u16) -> Publish {
    Publish {
        qos,
        packet_id: PacketId::new(id),
        ..publish(topic, payload)
    }
}

pub fn with(publish: Publish, change: impl FnOnce(&mut PublishProperties)) -> Publish {
    let mut properties = publish.properties.clone().unwrap_or_default();
    change(&mut properties);
    Publish {
        properties: Some(properties),
        ..publish
    }
}

pub fn subscribe(packet_id: u16, filter: &str, options: SubscriptionOptions) -> Packet {
    Packet::Subscribe(Box::new(Subscribe {
        packet_id: PacketId::new(packet_id).unwrap(),
        subscription_id: None,
        user_properties: Vec::new(),
        filters: vec![(Text::from(filter), options)],
    }))
}

pub fn unsubscribe(packet_id: u16, filter: &str) -> Packet {
    Packet::Unsubscribe(Box::new(Unsubscribe {
        packet_id: PacketId::new(packet_id).unwrap(),
        user_properties: Vec::new(),
        filters: vec![Text::from(filter)],
    }))
}

pub fn ack(id: u16) -> Ack {
    Ack {
        packet_id: PacketId::new(id).unwrap(),
        reason: ReasonCode::SUCCESS,
        properties: None,
    }
}

pub fn disconnect(reason: ReasonCode) -> Packet {
    Packet::Disconnect(Disconnect {
        reason,
        properties: None,
    })
}

pub fn publish_of(packet: &Packet) -> Option<&Publish> {
    match packet {
        Packet::Publish(p) => Some(p),
        _ => None,
    }
}
