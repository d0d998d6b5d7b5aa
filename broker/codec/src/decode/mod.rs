//! Bytes to packets.

mod connect;
mod publish;
mod reader;
mod subscribe;

use crate::{Ack, DecodeError, Packet, ReasonCode, Version, frame};
use alloc::boxed::Box;
use bytes::{Buf, Bytes};
use core::num::NonZeroU16;
use reader::Reader;

/// Takes one packet from the front of `input`; `None` if it isn't complete, and then `input` is
/// as before. Texts and payloads of the packet are slices of `input`'s buffer.
///
/// `version` is that of the connection's CONNECT, `None` before it has come. Types, flags and
/// the length are checked as soon as they are there, before the packet is complete.
///
/// Left to others: whether Topic Names and Topic Filters are valid (§4.7), what only a server or
/// only a client may send, and what depends on the session.
///
/// Memory: at most 48 bytes for each byte of the packet, and one box of up to 400 bytes.
///
/// # Errors
/// The packet is malformed, breaks the protocol or exceeds `maximum_packet_size` (bytes, fixed
/// header included). `input` is of no use afterwards.
pub fn decode(
    input: &mut Bytes,
    version: Option<Version>,
    maximum_packet_size: u32,
) -> Result<Option<Packet>, DecodeError> {
    let Some(&first) = input.first() else {
        return Ok(None);
    };
    frame::check_first_octet(first, version)?;
    let Some((header, remaining)) = frame::lengths(input, maximum_packet_size)? else {
        return Ok(None);
    };
    let minimal = header == 1 + frame::varint_len(remaining);
    // [MQTT-1.5.5-1]; MQTT 3.x doesn't ask for the shortest form.
    if !minimal && version == Some(Version::V5) {
        return Err(DecodeError::VariableByteInteger);
    }
    if input.len() < header + remaining {
        return Ok(None);
    }
    if first >> 4 == frame::PUBLISH
        && let Some(version) = version
    {
        return publish::publish(first, version, input, header, remaining);
    }
    if version.is_some() && remaining <= 2 {
        // The frequent packets that keep nothing of the input cost no reference to it.
        match (first >> 4, &input[header..header + remaining]) {
            (frame::PINGREQ, []) => return skip(input, header, Packet::PingReq),
            (frame::PINGRESP, []) => return skip(input, header, Packet::PingResp),
            (frame::PUBACK..=frame::PUBCOMP, &[high, low]) => {
                return short_ack(first, [high, low], input, header);
            }
            _ => {}
        }
    }
    let packet = take_front(input, header, header + remaining);
    body(first, version, minimal, Reader::new(&packet)).map(Some)
}

/// An acknowledgement that is a Packet Identifier and nothing else (§3.4.2.1).
#[inline]
fn short_ack(
    first: u8,
    packet_id: [u8; 2],
    input: &mut Bytes,
    header: usize,
) -> Result<Option<Packet>, DecodeError> {
    let packet_id = NonZeroU16::new(u16::from_be_bytes(packet_id));
    let packet_id = packet_id.ok_or(DecodeError::ZeroPacketId)?;
    let ack = Ack {
        packet_id,
        reason: ReasonCode::SUCCESS,
        properties: None,
    };
    let packet = match first >> 4 {
        frame::PUBACK => Packet::PubAck(ack),
        frame::PUBREC => Packet::PubRec(ack),
        frame::PUBREL => Packet::PubRel(ack),
        _ => Packet::PubComp(ack),
    };
    skip(input, header + 2, packet)
}

/// Leaves out the first `len` bytes, which were `packet`, and lets go of the buffer if none are
/// left.
#[inline]
fn skip(input: &mut Bytes, len: usize, packet: Packet) -> Result<Option<Packet>, DecodeError> {
    if input.len() == len {
        *input = Bytes::new();
    } else {
        input.advance(len);
    }
    Ok(Some(packet))
}

/// Takes `start..end` from `input` and leaves what follows. The last packet takes over the
/// buffer's reference instead of counting one more.
#[inline]
fn take_front(input: &mut Bytes, start: usize, end: usize) -> Bytes {
    let mut front = if input.len() == end {
        core::mem::take(input)
    } else if start == end {
        input.advance(end);
        return Bytes::new();
    } else {
        input.split_to(end)
    };
    front.advance(start);
    front
}

/// Decodes what follows the fixed header of the less frequent packets.
#[inline(never)]
fn body(
    first: u8,
    version: Option<Version>,
    minimal: bool,
    mut r: Reader<'_>,
) -> Result<Packet, DecodeError> {
    let Some(version) = version else {
        let connect = connect::connect(&mut r)?;
        if !minimal && connect.version == Version::V5 {
            return Err(DecodeError::VariableByteInteger);
        }
        return Ok(Packet::Connect(Box::new(connect)));
    };
    let packet_type = first >> 4;
    Ok(match packet_type {
        frame::PUBACK => Packet::PubAck(publish::ack(packet_type, version, &mut r)?),
        frame::PUBREC => Packet::PubRec(publish::ack(packet_type, version, &mut r)?),
        frame::PUBREL => Packet::PubRel(publish::ack(packet_type, version, &mut r)?),
        frame::PUBCOMP => Packet::PubComp(publish::ack(packet_type, version, &mut r)?),
        // Those without a body are done above.
        frame::PINGREQ | frame::PINGRESP => return Err(DecodeError::TrailingBytes),
        frame::SUBSCRIBE => Packet::Subscribe(Box::new(subscribe::subscribe(version, &mut r)?)),
        frame::SUBACK => Packet::SubAck(Box::new(subscribe::suback(version, &mut r)?)),
        frame::UNSUBSCRIBE => {
            Packet::Unsubscribe(Box::new(subscribe::unsubscribe(version, &mut r)?))
        }
        frame::UNSUBACK => Packet::UnsubAck(Box::new(subscribe::unsuback(version, &mut r)?)),
        frame::CONNACK => Packet::ConnAck(Box::new(connect::connack(version, &mut r)?)),
        frame::DISCONNECT => Packet::Disconnect(connect::disconnect(version, &mut r)?),
        frame::AUTH => Packet::Auth(Box::new(connect::auth(&mut r)?)),
        other => return Err(DecodeError::PacketType(other)),
    })
}

/// A Reason Code that packets of this type may carry.
fn reason(packet_type: u8, r: &mut Reader<'_>) -> Result<ReasonCode, DecodeError> {
    let code = ReasonCode(r.u8()?);
    if crate::reason::allowed(packet_type, code) {
        Ok(code)
    } else {
        Err(DecodeError::ReasonCode(code))
    }
}
