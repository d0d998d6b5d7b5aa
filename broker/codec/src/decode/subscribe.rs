//! SUBSCRIBE, UNSUBSCRIBE and their acknowledgements (§3.8 to §3.11).

use super::{
    Reader,
    publish::{qos, reason_properties},
    reader::{non_zero, once},
    reason,
};
use crate::{
    DecodeError, ReasonCode, ReasonProperties, SubAck, Subscribe, SubscriptionOptions, Unsubscribe,
    Version, frame, property as id,
};
use alloc::vec::Vec;

pub(super) fn subscribe(version: Version, r: &mut Reader<'_>) -> Result<Subscribe, DecodeError> {
    let mut packet = Subscribe {
        packet_id: r.packet_id()?,
        subscription_id: None,
        user_properties: Vec::new(),
        filters: Vec::new(),
    };
    if version == Version::V5 {
        r.properties(|id, r| match id {
            id::SUBSCRIPTION_IDENTIFIER => {
                once(&mut packet.subscription_id, id, non_zero(id, r.varint()))
            }
            id::USER_PROPERTY => {
                packet.user_properties.push(r.pair()?);
                Ok(())
            }
            _ => Err(DecodeError::InvalidProperty(id)),
        })?;
    }
    // [MQTT-3.8.3-2]
    if r.is_empty() {
        return Err(DecodeError::EmptyPayload);
    }
    while !r.is_empty() {
        // [MQTT-3.8.3-1]
        let filter = r.text()?;
        let options = options(r.u8()?, version)?;
        // [MQTT-3.8.3-4]
        if options.no_local && filter.as_bytes().starts_with(b"$share/") {
            return Err(DecodeError::NoLocalShared);
        }
        packet.filters.push((filter, options));
    }
    Ok(packet)
}

/// Subscription Options (§3.8.3.1); MQTT 3.x has the QoS alone.
fn options(octet: u8, version: Version) -> Result<SubscriptionOptions, DecodeError> {
    let reserved = match version {
        Version::V5 => 0b1100_0000,
        Version::V311 => 0b1111_1100,
        // MQTT 3.1 calls the other bits unused.
        Version::V31 => 0,
    };
    // [MQTT-3.8.3-5]
    if octet & reserved != 0 {
        return Err(DecodeError::SubscriptionOptionsReserved(octet));
    }
    let qos = qos(octet & 0b11).ok_or(DecodeError::SubscriptionOptions(octet))?;
    if version != Version::V5 {
        return Ok(SubscriptionOptions {
            qos,
            ..SubscriptionOptions::default()
        });
    }
    let retain_handling = octet >> 4 & 0b11;
    if retain_handling == 3 {
        return Err(DecodeError::SubscriptionOptions(octet));
    }
    Ok(SubscriptionOptions {
        qos,
        no_local: octet & 0b0100 != 0,
        retain_as_published: octet & 0b1000 != 0,
        retain_handling,
    })
}

pub(super) fn suback(version: Version, r: &mut Reader<'_>) -> Result<SubAck, DecodeError> {
    let packet_id = r.packet_id()?;
    let properties = properties(version, r)?;
    let reasons = reasons(frame::SUBACK, r)?;
    if version != Version::V5
        && let Some(code) = reasons
            .iter()
            .find(|c| **c > ReasonCode::GRANTED_QOS_2 && c.0 != 0x80)
    {
        return Err(DecodeError::ReasonCode(*code));
    }
    Ok(SubAck {
        packet_id,
        properties,
        reasons,
    })
}

pub(super) fn unsubscribe(
    version: Version,
    r: &mut Reader<'_>,
) -> Result<Unsubscribe, DecodeError> {
    let packet_id = r.packet_id()?;
    let mut user_properties = Vec::new();
    if version == Version::V5 {
        r.properties(|id, r| match id {
            id::USER_PROPERTY => {
                user_properties.push(r.pair()?);
                Ok(())
            }
            _ => Err(DecodeError::InvalidProperty(id)),
        })?;
    }
    // [MQTT-3.10.3-2]
    if r.is_empty() {
        return Err(DecodeError::EmptyPayload);
    }
    let mut filters = Vec::new();
    while !r.is_empty() {
        // [MQTT-3.10.3-1]
        filters.push(r.text()?);
    }
    Ok(Unsubscribe {
        packet_id,
        user_properties,
        filters,
    })
}

pub(super) fn unsuback(version: Version, r: &mut Reader<'_>) -> Result<SubAck, DecodeError> {
    let packet_id = r.packet_id()?;
    let properties = properties(version, r)?;
    // MQTT 3.x has no payload here (3.1.1 §3.11.3).
    let reasons = if version == Version::V5 {
        reasons(frame::UNSUBACK, r)?
    } else {
        Vec::new()
    };
    r.finish()?;
    Ok(SubAck {
        packet_id,
        properties,
        reasons,
    })
}

fn properties(version: Version, r: &mut Reader<'_>) -> Result<ReasonProperties, DecodeError> {
    if version == Version::V5 {
        reason_properties(r)
    } else {
        Ok(ReasonProperties::default())
    }
}

/// The Reason Codes that fill the rest of the packet; at least one.
fn reasons(packet_type: u8, r: &mut Reader<'_>) -> Result<Vec<ReasonCode>, DecodeError> {
    if r.is_empty() {
        return Err(DecodeError::EmptyPayload);
    }
    let mut reasons = Vec::with_capacity(r.len());
    while !r.is_empty() {
        reasons.push(reason(packet_type, r)?);
    }
    Ok(reasons)
}
