//! Where encoded fields go: into a buffer, or into a count of bytes.

use crate::{Text, UserProperty, frame, property};
use bytes::{BufMut, Bytes, BytesMut};

/// Takes the fields of a packet in order. The same code writes and counts, so lengths can't differ
/// from what follows them.
pub(super) trait Sink {
    fn slice(&mut self, bytes: &[u8]);

    fn u8(&mut self, value: u8) {
        self.slice(&[value]);
    }

    fn u16(&mut self, value: u16) {
        self.slice(&value.to_be_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.slice(&value.to_be_bytes());
    }

    /// Variable Byte Integer in its shortest form (§1.5.5) \[MQTT-1.5.5-1\].
    fn varint(&mut self, value: usize) {
        let (octets, len) = varint(value);
        self.slice(&octets[..len]);
    }

    /// Binary Data (§1.5.6). It has 16 bits of length: more is a bug of the caller, and cut so
    /// that the packet stays well-formed.
    fn binary(&mut self, bytes: &[u8]) {
        debug_assert!(
            bytes.len() <= Text::LEN_MAX,
            "Binary Data of {} bytes",
            bytes.len()
        );
        let len = bytes.len().min(Text::LEN_MAX);
        self.u16(len as u16);
        self.slice(&bytes[..len]);
    }

    /// UTF-8 Encoded String (§1.5.4).
    fn text(&mut self, text: &Text) {
        self.binary(text.as_bytes());
    }

    fn property_u8(&mut self, id: u8, value: Option<u8>) {
        if let Some(value) = value {
            self.slice(&[id, value]);
        }
    }

    fn property_bool(&mut self, id: u8, value: Option<bool>) {
        self.property_u8(id, value.map(u8::from));
    }

    fn property_u16(&mut self, id: u8, value: Option<u16>) {
        if let Some(value) = value {
            self.u8(id);
            self.u16(value);
        }
    }

    fn property_u32(&mut self, id: u8, value: Option<u32>) {
        if let Some(value) = value {
            self.u8(id);
            self.u32(value);
        }
    }

    fn property_text(&mut self, id: u8, value: Option<&Text>) {
        if let Some(value) = value {
            self.u8(id);
            self.text(value);
        }
    }

    fn property_binary(&mut self, id: u8, value: Option<&Bytes>) {
        if let Some(value) = value {
            self.u8(id);
            self.binary(value);
        }
    }

    /// User Properties in their order \[MQTT-3.3.2-18\] \[MQTT-3.1.3-10\].
    fn user_properties(&mut self, properties: &[UserProperty]) {
        for (name, value) in properties {
            self.u8(property::USER_PROPERTY);
            self.text(name);
            self.text(value);
        }
    }

    /// Property Length and properties (§2.2.2); zero if there are none \[MQTT-2.2.2-1\].
    fn properties<P: Properties>(&mut self, properties: &P)
    where
        Self: Sized,
    {
        let mut count = Count(0);
        properties.write(&mut count);
        self.varint(count.0);
        properties.write(self);
    }
}

/// The properties of a packet.
pub(super) trait Properties {
    fn write<S: Sink>(&self, s: &mut S);
}

/// Counts bytes.
pub(super) struct Count(pub(super) usize);

impl Sink for Count {
    fn slice(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

impl Sink for BytesMut {
    #[inline]
    fn slice(&mut self, bytes: &[u8]) {
        self.put_slice(bytes);
    }
}

/// A Variable Byte Integer: its octets, and how many of them count.
#[inline]
pub(super) fn varint(value: usize) -> ([u8; 4], usize) {
    debug_assert!(value <= frame::REMAINING_LENGTH_MAX);
    let len = frame::varint_len(value);
    let mut octets = [0; 4];
    for (i, octet) in octets.iter_mut().enumerate() {
        let more = if i + 1 < len { 0x80 } else { 0 };
        *octet = (value >> (7 * i) & 0x7f) as u8 | more;
    }
    (octets, len)
}
