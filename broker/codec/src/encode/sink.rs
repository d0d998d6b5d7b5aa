//! Where encoded fields go: into a buffer, or into a count of bytes.

use crate::{Text, UserProperty, frame, property};
use bytes::{BufMut, Bytes, BytesMut};

/// Takes the fields of a packet in order. The same code writes and counts, so lengths can't differ
/// from what follows them.
pub(super) trait Sink {
    fn slice(&mut self, bytes: &[u8]);

    /// As [`Sink::slice`], for what is no longer than a word or a few as a rule.
    #[inline]
    fn text_bytes(&mut self, bytes: &[u8]) {
        self.slice(bytes);
    }

    fn u8(&mut self, value: u8) {
        self.slice(&[value]);
    }

    fn u16(&mut self, value: u16) {
        self.slice(&value.to_be_bytes());
    }

    /// Variable Byte Integer in its shortest form (§1.5.5) \[MQTT-1.5.5-1\].
    fn varint(&mut self, value: usize) {
        if value < 0x80 {
            return self.u8(value as u8);
        }
        let (octets, len) = varint(value);
        self.slice(&octets[..len]);
    }

    /// Binary Data (§1.5.6). It has 16 bits of length: more is a bug of the caller, and cut so
    /// that the packet stays well-formed.
    fn binary(&mut self, bytes: &[u8]) {
        let bytes = cut(bytes);
        self.u16(bytes.len() as u16);
        self.text_bytes(bytes);
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
            let [high, low] = value.to_be_bytes();
            self.slice(&[id, high, low]);
        }
    }

    fn property_u32(&mut self, id: u8, value: Option<u32>) {
        if let Some(value) = value {
            let [a, b, c, d] = value.to_be_bytes();
            self.slice(&[id, a, b, c, d]);
        }
    }

    fn property_text(&mut self, id: u8, value: Option<&Text>) {
        if let Some(value) = value {
            self.identified(id, value.as_bytes());
        }
    }

    fn property_binary(&mut self, id: u8, value: Option<&Bytes>) {
        if let Some(value) = value {
            self.identified(id, value);
        }
    }

    /// A property's identifier and its value, which is Binary Data or a string.
    fn identified(&mut self, id: u8, value: &[u8]) {
        let value = cut(value);
        let [high, low] = (value.len() as u16).to_be_bytes();
        self.slice(&[id, high, low]);
        self.text_bytes(value);
    }

    /// User Properties in their order \[MQTT-3.3.2-18\] \[MQTT-3.1.3-10\].
    fn user_properties(&mut self, properties: &[UserProperty]) {
        for (name, value) in properties {
            self.identified(property::USER_PROPERTY, name.as_bytes());
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

/// Room that is written from its front on.
pub(super) struct Room<'a>(&'a mut [u8]);

impl Room<'_> {
    /// Appends `len` zeros to `out`, and calls `write` to write over them. For many short fields this is cheaper than to
    /// append each: every append waits for the length that the one before has stored.
    #[inline]
    pub(super) fn append(out: &mut BytesMut, len: usize, write: impl FnOnce(&mut Room<'_>)) {
        let start = out.len();
        if len <= ROOM_BYTES {
            // A known length is zeroed by a few stores, without a call.
            out.put_slice(&[0; ROOM_BYTES]);
            out.truncate(start + len);
        } else {
            out.put_bytes(0, len);
        }
        write(&mut Room(out.get_mut(start..).unwrap_or_default()));
    }
}

/// What is zeroed at once, bytes.
const ROOM_BYTES: usize = 128;

impl<'a> Room<'a> {
    #[inline]
    fn take(&mut self, len: usize) -> &'a mut [u8] {
        let rest = core::mem::take(&mut self.0);
        debug_assert!(len <= rest.len(), "what was counted is what is written");
        let (taken, rest) = rest.split_at_mut_checked(len).unwrap_or_default();
        self.0 = rest;
        taken
    }
}

impl Sink for Room<'_> {
    #[inline]
    fn slice(&mut self, bytes: &[u8]) {
        let room = self.take(bytes.len());
        if room.len() == bytes.len() {
            room.copy_from_slice(bytes);
        }
    }

    #[inline]
    fn text_bytes(&mut self, bytes: &[u8]) {
        match bytes.len() {
            16..=32 => halves::<16>(bytes, self.take(bytes.len())),
            8..16 => halves::<8>(bytes, self.take(bytes.len())),
            4..8 => halves::<4>(bytes, self.take(bytes.len())),
            _ => self.slice(bytes),
        }
    }
}

/// Copies at least `N` bytes and at most twice as many: the first and the last `N`, which may overlap. Known lengths need no
/// call of memcpy.
#[inline]
fn halves<const N: usize>(from: &[u8], to: &mut [u8]) {
    if let (Some(from), Some(to)) = (from.first_chunk::<N>(), to.first_chunk_mut::<N>()) {
        *to = *from;
    }
    if let (Some(from), Some(to)) = (from.last_chunk::<N>(), to.last_chunk_mut::<N>()) {
        *to = *from;
    }
}

/// What Binary Data can say of `bytes`.
#[inline]
fn cut(bytes: &[u8]) -> &[u8] {
    debug_assert!(
        bytes.len() <= Text::LEN_MAX,
        "Binary Data of {} bytes",
        bytes.len()
    );
    &bytes[..bytes.len().min(Text::LEN_MAX)]
}

/// A Variable Byte Integer: its octets, and how many of them count.
#[inline]
pub(super) fn varint(value: usize) -> ([u8; 4], usize) {
    debug_assert!(value <= frame::REMAINING_LENGTH_MAX);
    if value < 0x80 {
        return ([value as u8, 0, 0, 0], 1);
    }
    if value < 0x4000 {
        return ([value as u8 | 0x80, (value >> 7) as u8, 0, 0], 2);
    }
    let len = frame::varint_len(value);
    let mut octets = [0; 4];
    for (i, octet) in octets.iter_mut().enumerate() {
        let more = if i + 1 < len { 0x80 } else { 0 };
        *octet = (value >> (7 * i) & 0x7f) as u8 | more;
    }
    (octets, len)
}
