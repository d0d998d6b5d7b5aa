//! UTF-8 strings that share the buffer they were decoded from.

use bytes::Bytes;
use core::{fmt, ops::Deref};

/// A UTF-8 Encoded String (MQTT 5.0 §1.5.4): validated bytes that may share a larger buffer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Text(Bytes);

impl Text {
    /// Takes `bytes` if they are well-formed UTF-8 without U+0000
    /// \[MQTT-1.5.4-1\] \[MQTT-1.5.4-2\].
    pub fn new(bytes: Bytes) -> Option<Self> {
        let text = core::str::from_utf8(&bytes).ok()?;
        (!text.contains('\0')).then(|| Self(bytes))
    }

    /// The string.
    pub fn as_str(&self) -> &str {
        // Validated in `new`; the crate forbids unsafe code, so it is checked once more here on
        // the paths that need a `str` (paths that don't use `as_bytes`).
        core::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The encoded bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes with their shared buffer.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }

    /// A copy in a buffer of its own, for what is kept longer than the datagram it came in.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl Deref for Text {
    type Target = str;
    fn deref(&self) -> &str {
        self.as_str()
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
