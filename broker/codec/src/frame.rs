//! The fixed header (§2.1): packet type, flags and Remaining Length.

use crate::{DecodeError, Version};

/// The largest Variable Byte Integer (§1.5.5), and so the largest Remaining Length, bytes.
pub const REMAINING_LENGTH_MAX: usize = 268_435_455;

pub(crate) const CONNECT: u8 = 1;
pub(crate) const CONNACK: u8 = 2;
pub(crate) const PUBLISH: u8 = 3;
pub(crate) const PUBACK: u8 = 4;
pub(crate) const PUBREC: u8 = 5;
pub(crate) const PUBREL: u8 = 6;
pub(crate) const PUBCOMP: u8 = 7;
pub(crate) const SUBSCRIBE: u8 = 8;
pub(crate) const SUBACK: u8 = 9;
pub(crate) const UNSUBSCRIBE: u8 = 10;
pub(crate) const UNSUBACK: u8 = 11;
pub(crate) const PINGREQ: u8 = 12;
pub(crate) const PINGRESP: u8 = 13;
pub(crate) const DISCONNECT: u8 = 14;
pub(crate) const AUTH: u8 = 15;

/// How long the packet at the front of `input` is or will be, bytes, fixed header included;
/// `None` while the fixed header is incomplete.
///
/// # Errors
/// The Remaining Length has more than four bytes, or the packet exceeds `maximum_packet_size`.
pub fn frame_len(input: &[u8], maximum_packet_size: u32) -> Result<Option<usize>, DecodeError> {
    Ok(lengths(input, maximum_packet_size)?.map(|(header, remaining)| header + remaining))
}

/// Length of the fixed header and Remaining Length; `None` while the header is incomplete.
#[inline]
pub(crate) fn lengths(
    input: &[u8],
    maximum_packet_size: u32,
) -> Result<Option<(usize, usize)>, DecodeError> {
    let Some(rest) = input.get(1..) else {
        return Ok(None);
    };
    let Some((remaining, octets)) = varint(rest)? else {
        return Ok(None);
    };
    let (header, remaining) = (1 + octets, remaining as usize);
    if header + remaining > maximum_packet_size as usize {
        return Err(DecodeError::TooLarge {
            len: header + remaining,
            maximum: maximum_packet_size,
        });
    }
    Ok(Some((header, remaining)))
}

/// A Variable Byte Integer and how many bytes it took; `None` if it isn't complete.
#[inline]
pub(crate) fn varint(input: &[u8]) -> Result<Option<(u32, usize)>, DecodeError> {
    let mut value = 0;
    for (i, &octet) in input.iter().take(4).enumerate() {
        value |= u32::from(octet & 0x7f) << (7 * i);
        if octet < 0x80 {
            return Ok(Some((value, i + 1)));
        }
    }
    if input.len() >= 4 {
        Err(DecodeError::VariableByteInteger)
    } else {
        Ok(None)
    }
}

/// Bytes that `value` takes as a Variable Byte Integer.
#[inline]
pub(crate) const fn varint_len(value: usize) -> usize {
    match value {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}

/// Checks the first octet of a packet: its type and flags (§2.1.3).
#[inline]
pub(crate) fn check_first_octet(octet: u8, version: Option<Version>) -> Result<(), DecodeError> {
    let (packet_type, flags) = (octet >> 4, octet & 0x0f);
    let Some(version) = version else {
        // [MQTT-3.1.0-1]: nothing but CONNECT comes first.
        return match (packet_type, flags) {
            (CONNECT, 0) => Ok(()),
            (CONNECT, _) => Err(DecodeError::FixedHeaderFlags { first_octet: octet }),
            (0, _) => Err(DecodeError::PacketType(0)),
            _ => Err(DecodeError::ExpectedConnect),
        };
    };
    if packet_type == PUBLISH {
        return match flags & 0b0110 {
            // [MQTT-3.3.1-4]
            0b0110 => Err(DecodeError::Qos3),
            // [MQTT-3.3.1-2]; MQTT 3.1 leaves the bit without meaning there.
            0 if flags & 0b1000 != 0 && version != Version::V31 => Err(DecodeError::DupWithQos0),
            _ => Ok(()),
        };
    }
    match packet_type {
        0 => return Err(DecodeError::PacketType(0)),
        AUTH if version < Version::V5 => return Err(DecodeError::PacketType(AUTH)),
        // [MQTT-3.1.0-2]
        CONNECT => return Err(DecodeError::SecondConnect),
        _ => {}
    }
    // [MQTT-2.1.3-1] [MQTT-3.6.1-1] [MQTT-3.8.1-1] [MQTT-3.10.1-1] [MQTT-3.14.1-1] [MQTT-3.15.1-1]
    let required = if matches!(packet_type, PUBREL | SUBSCRIBE | UNSUBSCRIBE) {
        0b0010
    } else {
        0
    };
    // MQTT 3.1 has DUP on retries of these three, and calls the other flags unused.
    if flags != required && version != Version::V31 {
        return Err(DecodeError::FixedHeaderFlags { first_octet: octet });
    }
    Ok(())
}
