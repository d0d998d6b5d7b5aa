//! What follows the fixed header, for all packets but PUBLISH.

use super::sink::{Properties, Sink};
use crate::{
    Ack, Auth, ConnAck, Connect, Disconnect, Packet, ReasonCode, ReasonProperties, SubAck,
    Subscribe, SubscriptionOptions, Unsubscribe, Version, frame, reason::to_return_code,
};

/// Packet type and flags (§2.1.2, §2.1.3).
pub(super) fn first_octet(packet: &Packet) -> u8 {
    match packet {
        Packet::Connect(_) => frame::CONNECT << 4,
        Packet::ConnAck(_) => frame::CONNACK << 4,
        Packet::Publish(_) => frame::PUBLISH << 4,
        Packet::PubAck(_) => frame::PUBACK << 4,
        Packet::PubRec(_) => frame::PUBREC << 4,
        // [MQTT-3.6.1-1]
        Packet::PubRel(_) => frame::PUBREL << 4 | 0b0010,
        Packet::PubComp(_) => frame::PUBCOMP << 4,
        // [MQTT-3.8.1-1]
        Packet::Subscribe(_) => frame::SUBSCRIBE << 4 | 0b0010,
        Packet::SubAck(_) => frame::SUBACK << 4,
        // [MQTT-3.10.1-1]
        Packet::Unsubscribe(_) => frame::UNSUBSCRIBE << 4 | 0b0010,
        Packet::UnsubAck(_) => frame::UNSUBACK << 4,
        Packet::PingReq => frame::PINGREQ << 4,
        Packet::PingResp => frame::PINGRESP << 4,
        Packet::Disconnect(_) => frame::DISCONNECT << 4,
        Packet::Auth(_) => frame::AUTH << 4,
    }
}

/// Whether the acknowledgement is a Packet Identifier and nothing else (§3.4.2.1).
#[inline]
pub(super) fn is_short(ack: &Ack, version: Version) -> bool {
    version < Version::V5 || ack.reason == ReasonCode::SUCCESS && ack.properties.is_none()
}

/// Writes variable header and payload. PUBLISH has its own code.
pub(super) fn write<S: Sink>(packet: &Packet, version: Version, s: &mut S) {
    match packet {
        // A CONNECT says its version itself.
        Packet::Connect(p) => connect(p, s),
        Packet::ConnAck(p) => connack(p, version, s),
        Packet::PubAck(p) | Packet::PubRec(p) | Packet::PubRel(p) | Packet::PubComp(p) => {
            ack(p, version, s);
        }
        Packet::Subscribe(p) => subscribe(p, version, s),
        Packet::SubAck(p) => suback(p, version, s),
        Packet::Unsubscribe(p) => unsubscribe(p, version, s),
        Packet::UnsubAck(p) => unsuback(p, version, s),
        Packet::Disconnect(p) => disconnect(p, version, s),
        Packet::Auth(p) => auth(p, s),
        Packet::Publish(_) | Packet::PingReq | Packet::PingResp => {}
    }
}

fn properties<S: Sink, P: Properties>(p: &P, version: Version, s: &mut S) {
    if version == Version::V5 {
        s.properties(p);
    }
}

fn connect<S: Sink>(p: &Connect, s: &mut S) {
    let name: &[u8] = if p.version == Version::V31 {
        b"MQIsdp"
    } else {
        b"MQTT"
    };
    s.binary(name);
    s.u8(p.version as u8);
    // [MQTT-3.1.2-11] [MQTT-3.1.2-13]: without a Will its QoS and retain bits are 0.
    let will = p
        .will
        .as_ref()
        .map_or(0, |w| 0x04 | (w.qos as u8) << 3 | u8::from(w.retain) << 5);
    s.u8(u8::from(p.clean_start) << 1
        | will
        | u8::from(p.password.is_some()) << 6
        | u8::from(p.user_name.is_some()) << 7);
    s.u16(p.keep_alive_s);
    properties(&p.properties, p.version, s);
    s.text(&p.client_id);
    if let Some(will) = &p.will {
        properties(will, p.version, s);
        s.text(&will.topic);
        s.binary(&will.payload);
    }
    if let Some(user_name) = &p.user_name {
        s.text(user_name);
    }
    if let Some(password) = &p.password {
        s.binary(password);
    }
}

fn connack<S: Sink>(p: &ConnAck, version: Version, s: &mut S) {
    // [MQTT-3.2.2-6]; in MQTT 3.1 the octet is unused.
    let present = p.session_present && p.reason == ReasonCode::SUCCESS && version != Version::V31;
    s.u8(u8::from(present));
    if version == Version::V5 {
        s.u8(p.reason.0);
        s.properties(&p.properties);
    } else {
        s.u8(to_return_code(p.reason));
    }
}

fn ack<S: Sink>(p: &Ack, version: Version, s: &mut S) {
    s.u16(p.packet_id.get());
    if is_short(p, version) {
        return;
    }
    s.u8(p.reason.0);
    if let Some(properties) = &p.properties {
        s.properties(&**properties);
    }
}

fn subscribe<S: Sink>(p: &Subscribe, version: Version, s: &mut S) {
    s.u16(p.packet_id.get());
    properties(p, version, s);
    for (filter, options) in &p.filters {
        s.text(filter);
        s.u8(subscription_options(*options, version));
    }
}

fn subscription_options(o: SubscriptionOptions, version: Version) -> u8 {
    if version < Version::V5 {
        return o.qos as u8;
    }
    o.qos as u8
        | u8::from(o.no_local) << 2
        | u8::from(o.retain_as_published) << 3
        | (o.retain_handling & 0b11) << 4
}

fn suback<S: Sink>(p: &SubAck, version: Version, s: &mut S) {
    s.u16(p.packet_id.get());
    properties::<S, ReasonProperties>(&p.properties, version, s);
    for code in &p.reasons {
        // MQTT 3.x knows one failure (3.1.1 §3.9.3).
        let failure = version < Version::V5 && *code > ReasonCode::GRANTED_QOS_2;
        s.u8(if failure {
            ReasonCode::UNSPECIFIED_ERROR.0
        } else {
            code.0
        });
    }
}

fn unsubscribe<S: Sink>(p: &Unsubscribe, version: Version, s: &mut S) {
    s.u16(p.packet_id.get());
    properties(p, version, s);
    for filter in &p.filters {
        s.text(filter);
    }
}

fn unsuback<S: Sink>(p: &SubAck, version: Version, s: &mut S) {
    s.u16(p.packet_id.get());
    if version == Version::V5 {
        s.properties(&p.properties);
        for code in &p.reasons {
            s.u8(code.0);
        }
    }
}

fn disconnect<S: Sink>(p: &Disconnect, version: Version, s: &mut S) {
    let short = p.reason == ReasonCode::SUCCESS && p.properties.is_none();
    if version < Version::V5 || short {
        return;
    }
    s.u8(p.reason.0);
    if let Some(properties) = &p.properties {
        s.properties(&**properties);
    }
}

fn auth<S: Sink>(p: &Auth, s: &mut S) {
    // Success without properties may be left out altogether (§3.15.2.1).
    if *p == Auth::default() {
        return;
    }
    s.u8(p.reason.0);
    s.properties(p);
}
