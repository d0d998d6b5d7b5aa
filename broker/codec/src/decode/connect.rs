//! CONNECT, CONNACK, DISCONNECT and AUTH (§3.1, §3.2, §3.14, §3.15).

use super::{
    Reader,
    publish::{message_property, qos},
    reader::{flag, non_zero, once},
    reason,
};
use crate::{
    Auth, ConnAck, ConnAckProperties, Connect, ConnectProperties, DecodeError, Disconnect,
    DisconnectProperties, PublishProperties, QoS, ReasonCode, Version, Will, frame, property as id,
    reason::from_return_code,
};
use alloc::boxed::Box;

/// CONNECT, whole and by its form \[MQTT-3.1.4-1\].
pub(super) fn connect(r: &mut Reader<'_>) -> Result<Connect, DecodeError> {
    let version = protocol(r)?;
    let flags = r.u8()?;
    check_flags(flags, version)?;
    let keep_alive_s = r.u16()?;
    let mut properties = ConnectProperties::default();
    if version == Version::V5 {
        r.properties(|id, r| connect_property(&mut properties, id, r))?;
        if properties.authentication_data.is_some() && properties.authentication_method.is_none() {
            return Err(DecodeError::AuthenticationMethodMissing);
        }
    }
    // [MQTT-3.1.3-3] [MQTT-3.1.3-4]
    let client_id = r.text()?;
    // [MQTT-3.1.2-9]
    let will = if flags & WILL != 0 {
        Some(will(flags, version, r)?)
    } else {
        None
    };
    // [MQTT-3.1.2-16] [MQTT-3.1.2-17] [MQTT-3.1.2-18] [MQTT-3.1.2-19] [MQTT-3.1.3-12]
    let user_name = if flags & USER_NAME != 0 {
        Some(r.text()?)
    } else {
        None
    };
    let password = if flags & PASSWORD != 0 {
        Some(r.binary()?)
    } else {
        None
    };
    r.finish()?;
    Ok(Connect {
        version,
        clean_start: flags & CLEAN_START != 0,
        keep_alive_s,
        client_id,
        will,
        user_name,
        password,
        properties,
    })
}

const CLEAN_START: u8 = 0x02;
const WILL: u8 = 0x04;
const WILL_QOS: u8 = 0x18;
const WILL_RETAIN: u8 = 0x20;
const PASSWORD: u8 = 0x40;
const USER_NAME: u8 = 0x80;

/// Protocol Name and Protocol Version (§3.1.2.1, §3.1.2.2).
fn protocol(r: &mut Reader<'_>) -> Result<Version, DecodeError> {
    let name = r.binary()?;
    let level = r.u8()?;
    match (&name[..], level) {
        (b"MQTT", 5) => Ok(Version::V5),
        (b"MQTT", 4) => Ok(Version::V311),
        (b"MQIsdp", 3) => Ok(Version::V31),
        // [MQTT-3.1.2-2]
        (b"MQTT" | b"MQIsdp", other) => Err(DecodeError::ProtocolVersion(other)),
        // [MQTT-3.1.2-1]
        _ => Err(DecodeError::ProtocolName),
    }
}

/// Connect Flags (§3.1.2.3).
fn check_flags(flags: u8, version: Version) -> Result<(), DecodeError> {
    // [MQTT-3.1.2-12]
    if flags & WILL_QOS == WILL_QOS {
        return Err(DecodeError::Qos3);
    }
    // [MQTT-3.1.2-3]; MQTT 3.1 calls the bit unused.
    let reserved = flags & 1 != 0 && version != Version::V31;
    // [MQTT-3.1.2-11] [MQTT-3.1.2-13]
    let will = flags & WILL == 0 && flags & (WILL_QOS | WILL_RETAIN) != 0;
    // 3.1.1 [MQTT-3.1.2-22]; MQTT 5.0 allows a password alone.
    let password = flags & (PASSWORD | USER_NAME) == PASSWORD && version != Version::V5;
    if reserved || will || password {
        Err(DecodeError::ReservedFlags(flags))
    } else {
        Ok(())
    }
}

fn connect_property(
    p: &mut ConnectProperties,
    id: u8,
    r: &mut Reader<'_>,
) -> Result<(), DecodeError> {
    match id {
        id::SESSION_EXPIRY_INTERVAL => once(&mut p.session_expiry_s, id, r.u32()),
        id::RECEIVE_MAXIMUM => once(&mut p.receive_maximum, id, non_zero(id, r.u16())),
        id::MAXIMUM_PACKET_SIZE => once(&mut p.maximum_packet_size, id, non_zero(id, r.u32())),
        id::TOPIC_ALIAS_MAXIMUM => once(&mut p.topic_alias_maximum, id, r.u16()),
        id::REQUEST_RESPONSE_INFORMATION => {
            once(&mut p.request_response_information, id, flag(id, r.u8()))
        }
        id::REQUEST_PROBLEM_INFORMATION => {
            once(&mut p.request_problem_information, id, flag(id, r.u8()))
        }
        id::USER_PROPERTY => {
            p.user_properties.push(r.pair()?);
            Ok(())
        }
        id::AUTHENTICATION_METHOD => once(&mut p.authentication_method, id, r.text()),
        id::AUTHENTICATION_DATA => once(&mut p.authentication_data, id, r.binary()),
        _ => Err(DecodeError::InvalidProperty(id)),
    }
}

fn will(flags: u8, version: Version, r: &mut Reader<'_>) -> Result<Will, DecodeError> {
    let mut delay_s = None;
    let mut properties = PublishProperties::default();
    if version == Version::V5 {
        r.properties(|id, r| match id {
            id::WILL_DELAY_INTERVAL => once(&mut delay_s, id, r.u32()),
            _ => message_property(&mut properties, id, r),
        })?;
    }
    Ok(Will {
        qos: qos((flags & WILL_QOS) >> 3).ok_or(DecodeError::Qos3)?,
        retain: flags & WILL_RETAIN != 0,
        // [MQTT-3.1.3-11]
        topic: r.text()?,
        payload: r.binary()?,
        delay_s,
        properties: (properties != PublishProperties::default()).then(|| Box::new(properties)),
    })
}

pub(super) fn connack(version: Version, r: &mut Reader<'_>) -> Result<ConnAck, DecodeError> {
    let flags = r.u8()?;
    // [MQTT-3.2.2-1]; in MQTT 3.1 the octet is unused.
    if flags > 1 && version != Version::V31 {
        return Err(DecodeError::ReservedFlags(flags));
    }
    let mut packet = ConnAck {
        session_present: flags == 1 && version != Version::V31,
        ..ConnAck::default()
    };
    if version == Version::V5 {
        packet.reason = reason(frame::CONNACK, r)?;
        r.properties(|id, r| connack_property(&mut packet.properties, id, r))?;
    } else {
        let code = r.u8()?;
        packet.reason = from_return_code(code).ok_or(DecodeError::ReasonCode(ReasonCode(code)))?;
    }
    // [MQTT-3.2.2-6], 3.1.1 [MQTT-3.2.2-4]
    if packet.session_present && packet.reason != ReasonCode::SUCCESS {
        return Err(DecodeError::SessionPresentInRefusal);
    }
    r.finish()?;
    Ok(packet)
}

fn connack_property(
    p: &mut ConnAckProperties,
    id: u8,
    r: &mut Reader<'_>,
) -> Result<(), DecodeError> {
    match id {
        id::SESSION_EXPIRY_INTERVAL => once(&mut p.session_expiry_s, id, r.u32()),
        id::RECEIVE_MAXIMUM => once(&mut p.receive_maximum, id, non_zero(id, r.u16())),
        id::MAXIMUM_QOS => {
            let value = flag(id, r.u8()).map(|one| {
                if one {
                    QoS::AtLeastOnce
                } else {
                    QoS::AtMostOnce
                }
            });
            once(&mut p.maximum_qos, id, value)
        }
        id::RETAIN_AVAILABLE => once(&mut p.retain_available, id, flag(id, r.u8())),
        id::MAXIMUM_PACKET_SIZE => once(&mut p.maximum_packet_size, id, non_zero(id, r.u32())),
        id::ASSIGNED_CLIENT_IDENTIFIER => once(&mut p.assigned_client_id, id, r.text()),
        id::TOPIC_ALIAS_MAXIMUM => once(&mut p.topic_alias_maximum, id, r.u16()),
        id::REASON_STRING => once(&mut p.reason_string, id, r.text()),
        id::USER_PROPERTY => {
            p.user_properties.push(r.pair()?);
            Ok(())
        }
        id::WILDCARD_SUBSCRIPTION_AVAILABLE => {
            once(&mut p.wildcard_subscription_available, id, flag(id, r.u8()))
        }
        id::SUBSCRIPTION_IDENTIFIER_AVAILABLE => once(
            &mut p.subscription_identifiers_available,
            id,
            flag(id, r.u8()),
        ),
        id::SHARED_SUBSCRIPTION_AVAILABLE => {
            once(&mut p.shared_subscription_available, id, flag(id, r.u8()))
        }
        id::SERVER_KEEP_ALIVE => once(&mut p.server_keep_alive_s, id, r.u16()),
        id::RESPONSE_INFORMATION => once(&mut p.response_information, id, r.text()),
        id::SERVER_REFERENCE => once(&mut p.server_reference, id, r.text()),
        id::AUTHENTICATION_METHOD => once(&mut p.authentication_method, id, r.text()),
        id::AUTHENTICATION_DATA => once(&mut p.authentication_data, id, r.binary()),
        _ => Err(DecodeError::InvalidProperty(id)),
    }
}

pub(super) fn disconnect(version: Version, r: &mut Reader<'_>) -> Result<Disconnect, DecodeError> {
    if r.is_empty() {
        return Ok(Disconnect::default());
    }
    if version != Version::V5 {
        return Err(DecodeError::TrailingBytes);
    }
    let reason = reason(frame::DISCONNECT, r)?;
    let mut p = DisconnectProperties::default();
    // A Remaining Length below 2 means no properties (§3.14.2.2.1).
    if !r.is_empty() {
        r.properties(|id, r| match id {
            id::SESSION_EXPIRY_INTERVAL => once(&mut p.session_expiry_s, id, r.u32()),
            id::REASON_STRING => once(&mut p.reason_string, id, r.text()),
            id::USER_PROPERTY => {
                p.user_properties.push(r.pair()?);
                Ok(())
            }
            id::SERVER_REFERENCE => once(&mut p.server_reference, id, r.text()),
            _ => Err(DecodeError::InvalidProperty(id)),
        })?;
    }
    r.finish()?;
    let properties = (p != DisconnectProperties::default()).then(|| Box::new(p));
    Ok(Disconnect { reason, properties })
}

pub(super) fn auth(r: &mut Reader<'_>) -> Result<Auth, DecodeError> {
    let mut packet = Auth::default();
    // Success without properties may be left out altogether (§3.15.2.1).
    if r.is_empty() {
        return Ok(packet);
    }
    packet.reason = reason(frame::AUTH, r)?;
    r.properties(|id, r| match id {
        id::AUTHENTICATION_METHOD => once(&mut packet.authentication_method, id, r.text()),
        id::AUTHENTICATION_DATA => once(&mut packet.authentication_data, id, r.binary()),
        id::REASON_STRING => once(&mut packet.reason_string, id, r.text()),
        id::USER_PROPERTY => {
            packet.user_properties.push(r.pair()?);
            Ok(())
        }
        _ => Err(DecodeError::InvalidProperty(id)),
    })?;
    if packet.authentication_method.is_none() {
        return Err(DecodeError::AuthenticationMethodMissing);
    }
    r.finish()?;
    Ok(packet)
}
