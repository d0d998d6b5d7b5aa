//! UTF-8 strings that share the buffer they were decoded from.

use alloc::string::String;
use bytes::Bytes;
use bytestring::ByteString;
use core::{borrow::Borrow, fmt, ops::Deref};

/// A UTF-8 Encoded String (MQTT 5.0 §1.5.4): checked bytes that may share a larger buffer.
///
/// Always well-formed, without U+0000 and at most [`Text::LEN_MAX`] bytes long. Reading it as
/// `str` costs nothing: it is checked once, when it is made.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Text(ByteString);

impl Text {
    /// The longest string that its two-byte length can describe, bytes \[MQTT-4.7.3-3\].
    pub const LEN_MAX: usize = 65_535;

    /// Takes `bytes` if they are well-formed UTF-8 without U+0000 and no longer than
    /// [`Text::LEN_MAX`] \[MQTT-1.5.4-1\] \[MQTT-1.5.4-2\]. A byte order mark stays
    /// \[MQTT-1.5.4-3\].
    #[inline]
    pub fn new(bytes: Bytes) -> Option<Self> {
        // Without an early end the search for U+0000 takes many bytes at a time.
        let nul = bytes
            .iter()
            .fold(false, |found, octet| found | (*octet == 0));
        if nul || bytes.len() > Self::LEN_MAX {
            return None;
        }
        ByteString::try_from(bytes).ok().map(Self)
    }

    /// The string.
    #[inline]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The encoded bytes.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The bytes with their shared buffer.
    pub fn into_bytes(self) -> Bytes {
        self.0.into_bytes()
    }

    /// A copy in a buffer of its own, for what is kept longer than the datagram it came in.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self(ByteString::from(self.as_str()))
    }
}

impl From<&str> for Text {
    /// A copy. What the wire format can't carry is left out: U+0000, and what goes beyond
    /// [`Text::LEN_MAX`] bytes. [`Text::new`] refuses such strings instead.
    fn from(text: &str) -> Self {
        if text.len() <= Self::LEN_MAX && !text.contains('\0') {
            return Self(ByteString::from(text));
        }
        let mut kept: String = text.chars().filter(|c| *c != '\0').collect();
        kept.truncate(kept.floor_char_boundary(Self::LEN_MAX));
        Self(ByteString::from(kept))
    }
}

impl Deref for Text {
    type Target = str;
    #[inline]
    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for Text {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl Borrow<str> for Text {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq<str> for Text {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for Text {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
