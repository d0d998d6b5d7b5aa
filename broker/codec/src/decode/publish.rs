//! PUBLISH (§3.3) and its acknowledgements (§3.4 to §3.7).

use super::{
    Reader,
    reader::{flag, non_zero, once},
    reason,
};
use crate::{
    Ack, DecodeError, Packet, Publish, PublishProperties, QoS, ReasonCode, ReasonProperties, Text,
    Version, property as id,
};
use alloc::boxed::Box;
use bytes::Bytes;
use core::num::NonZeroU16;

/// Takes the PUBLISH with these lengths from the front of `input`. Topic Name and payload are
/// sliced out of it, which counts two references; a packet of its own would be a third.
#[inline]
pub(super) fn publish(
    first: u8,
    version: Version,
    input: &mut Bytes,
    header: usize,
    remaining: usize,
) -> Result<Option<Packet>, DecodeError> {
    let qos = qos(first >> 1 & 0b11).ok_or(DecodeError::Qos3)?;
    let end = header + remaining;
    let body = &input[header..end];
    let topic_len = usize::from(u16_at(body, 0)?);
    let mut at = 2 + topic_len;
    // [MQTT-2.2.1-2] [MQTT-2.2.1-3]
    let packet_id = if qos == QoS::AtMostOnce {
        None
    } else {
        at += 2;
        Some(NonZeroU16::new(u16_at(body, at - 2)?).ok_or(DecodeError::ZeroPacketId)?)
    };
    let mut properties = None;
    if version == Version::V5 {
        // The common PUBLISH has none and takes no allocation [MQTT-2.2.2-1].
        match body.get(at).ok_or(DecodeError::Truncated)? {
            0 => at += 1,
            _ => (properties, at) = self::properties(input, header, at, remaining)?,
        }
    } else if at > remaining {
        return Err(DecodeError::Truncated);
    }
    // [MQTT-3.3.2-1]
    let topic = input.slice(header + 2..header + 2 + topic_len);
    let topic = Text::new(topic).ok_or(DecodeError::NotUtf8)?;
    if topic_len == 0 && properties.as_ref().is_none_or(|p| p.topic_alias.is_none()) {
        return Err(DecodeError::NoTopic);
    }
    Ok(Some(Packet::Publish(Publish {
        // Only MQTT 3.1 gets here with DUP and QoS 0, where the bit means nothing.
        dup: first & 0b1000 != 0 && qos != QoS::AtMostOnce,
        qos,
        retain: first & 1 != 0,
        topic,
        packet_id,
        properties,
        payload: super::take_front(input, header + at, end),
    })))
}

#[inline]
fn u16_at(body: &[u8], at: usize) -> Result<u16, DecodeError> {
    let octets = body.get(at..).and_then(|rest| rest.first_chunk());
    octets
        .map(|octets| u16::from_be_bytes(*octets))
        .ok_or(DecodeError::Truncated)
}

/// The properties at `at` of a body of `remaining` bytes, and where they end.
#[inline(never)]
fn properties(
    input: &Bytes,
    header: usize,
    at: usize,
    remaining: usize,
) -> Result<(Option<Box<PublishProperties>>, usize), DecodeError> {
    let mut r = Reader::within(input, &input[header + at..header + remaining]);
    let mut p = Box::<PublishProperties>::default();
    r.properties(|id, r| property(&mut p, id, r))?;
    Ok((Some(p), remaining - r.len()))
}

pub(super) fn qos(bits: u8) -> Option<QoS> {
    match bits {
        0 => Some(QoS::AtMostOnce),
        1 => Some(QoS::AtLeastOnce),
        2 => Some(QoS::ExactlyOnce),
        _ => None,
    }
}

fn property(p: &mut PublishProperties, id: u8, r: &mut Reader<'_>) -> Result<(), DecodeError> {
    match id {
        id::TOPIC_ALIAS => {
            // [MQTT-3.3.2-8]
            let alias = r
                .u16()
                .and_then(|a| NonZeroU16::new(a).ok_or(DecodeError::TopicAliasZero));
            once(&mut p.topic_alias, id, alias)
        }
        // May repeat in what a server sends [MQTT-3.3.4-4].
        id::SUBSCRIPTION_IDENTIFIER => {
            p.subscription_ids.push(non_zero(id, r.varint())?);
            Ok(())
        }
        _ => message_property(p, id, r),
    }
}

/// A property that a PUBLISH shares with the Will (§3.1.3.2).
pub(super) fn message_property(
    p: &mut PublishProperties,
    id: u8,
    r: &mut Reader<'_>,
) -> Result<(), DecodeError> {
    match id {
        id::PAYLOAD_FORMAT_INDICATOR => once(&mut p.payload_format_utf8, id, flag(id, r.u8())),
        id::MESSAGE_EXPIRY_INTERVAL => once(&mut p.message_expiry_s, id, r.u32()),
        // [MQTT-3.3.2-19]
        id::CONTENT_TYPE => once(&mut p.content_type, id, r.text()),
        // [MQTT-3.3.2-13]
        id::RESPONSE_TOPIC => once(&mut p.response_topic, id, r.text()),
        id::CORRELATION_DATA => once(&mut p.correlation_data, id, r.binary()),
        id::USER_PROPERTY => {
            p.user_properties.push(r.pair()?);
            Ok(())
        }
        _ => Err(DecodeError::InvalidProperty(id)),
    }
}

#[inline]
pub(super) fn ack(
    packet_type: u8,
    version: Version,
    r: &mut Reader<'_>,
) -> Result<Ack, DecodeError> {
    let packet_id = r.packet_id()?;
    if r.is_empty() {
        return Ok(Ack {
            packet_id,
            reason: ReasonCode::SUCCESS,
            properties: None,
        });
    }
    if version != Version::V5 {
        return Err(DecodeError::TrailingBytes);
    }
    let reason = reason(packet_type, r)?;
    // A Remaining Length below 4 means no properties (§3.4.2.2.1).
    let properties = if r.is_empty() {
        None
    } else {
        boxed_reason_properties(r)?
    };
    r.finish()?;
    Ok(Ack {
        packet_id,
        reason,
        properties,
    })
}

fn boxed_reason_properties(
    r: &mut Reader<'_>,
) -> Result<Option<Box<ReasonProperties>>, DecodeError> {
    let p = reason_properties(r)?;
    Ok((p != ReasonProperties::default()).then(|| Box::new(p)))
}

pub(super) fn reason_properties(r: &mut Reader<'_>) -> Result<ReasonProperties, DecodeError> {
    let mut p = ReasonProperties::default();
    r.properties(|id, r| match id {
        id::REASON_STRING => once(&mut p.reason_string, id, r.text()),
        id::USER_PROPERTY => {
            p.user_properties.push(r.pair()?);
            Ok(())
        }
        _ => Err(DecodeError::InvalidProperty(id)),
    })?;
    Ok(p)
}
