//! Reads fields from the front of a packet's bytes.

use crate::{DecodeError, PacketId, Text, UserProperty, frame};
use bytes::Bytes;
use core::num::NonZeroU16;

/// The part of a packet that hasn't been read. Only what is kept counts a reference to the packet's buffer.
pub(super) struct Reader<'a> {
    packet: &'a Bytes,
    /// A part of `packet`.
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(packet: &'a Bytes) -> Self {
        Self::within(packet, packet)
    }

    /// Reads `part` of `packet`.
    pub(super) fn within(packet: &'a Bytes, part: &'a [u8]) -> Self {
        Self { packet, rest: part }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Bytes that haven't been read.
    pub(super) fn len(&self) -> usize {
        self.rest.len()
    }

    /// Nothing may follow the last field.
    pub(super) fn finish(&self) -> Result<(), DecodeError> {
        if self.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::TrailingBytes)
        }
    }

    #[inline]
    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        let (octet, rest) = self.rest.split_first().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(*octet)
    }

    #[inline]
    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        let (octets, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(u16::from_be_bytes(*octets))
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        let (octets, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(u32::from_be_bytes(*octets))
    }

    /// Variable Byte Integer (§1.5.5); only MQTT 5.0 has it behind the fixed header.
    #[inline]
    pub(super) fn varint(&mut self) -> Result<u32, DecodeError> {
        let (value, octets) = frame::varint(self.rest)?.ok_or(DecodeError::Truncated)?;
        // [MQTT-1.5.5-1]
        if octets > frame::varint_len(value as usize) {
            return Err(DecodeError::VariableByteInteger);
        }
        self.rest = self.rest.get(octets..).unwrap_or_default();
        Ok(value)
    }

    /// The next `len` bytes.
    #[inline]
    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Binary Data (§1.5.6).
    #[inline]
    pub(super) fn binary(&mut self) -> Result<Bytes, DecodeError> {
        let len = self.u16()?;
        let taken = self.take(usize::from(len))?;
        Ok(self.packet.slice_ref(taken))
    }

    /// UTF-8 Encoded String (§1.5.4).
    #[inline]
    pub(super) fn text(&mut self) -> Result<Text, DecodeError> {
        Text::new(self.binary()?).ok_or(DecodeError::NotUtf8)
    }

    /// UTF-8 String Pair (§1.5.7) \[MQTT-1.5.7-1\].
    pub(super) fn pair(&mut self) -> Result<UserProperty, DecodeError> {
        Ok((self.text()?, self.text()?))
    }

    #[inline]
    pub(super) fn packet_id(&mut self) -> Result<PacketId, DecodeError> {
        NonZeroU16::new(self.u16()?).ok_or(DecodeError::ZeroPacketId)
    }

    /// The packet's properties: calls `property` with each identifier, to read its value.
    #[inline]
    pub(super) fn properties(
        &mut self,
        mut property: impl FnMut(u8, &mut Self) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        let len = self.varint()?;
        if len == 0 {
            return Ok(());
        }
        let mut block = Self::within(self.packet, self.take(len as usize)?);
        while !block.is_empty() {
            // All identifiers in use fit one octet of the Variable Byte Integer.
            let id = block.u8()?;
            property(id, &mut block)?;
        }
        Ok(())
    }
}

/// Stores the value of property `id`, which may appear once.
pub(super) fn once<T>(
    slot: &mut Option<T>,
    id: u8,
    value: Result<T, DecodeError>,
) -> Result<(), DecodeError> {
    if slot.is_some() {
        return Err(DecodeError::DuplicateProperty(id));
    }
    *slot = Some(value?);
    Ok(())
}

/// A Byte property that must be 0 or 1.
pub(super) fn flag(id: u8, value: Result<u8, DecodeError>) -> Result<bool, DecodeError> {
    match value? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::PropertyValue(id)),
    }
}

/// A property that must not be 0.
pub(super) fn non_zero<T: PartialEq + From<u8>>(
    id: u8,
    value: Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    let value = value?;
    if value == T::from(0) {
        Err(DecodeError::PropertyValue(id))
    } else {
        Ok(value)
    }
}
