//! Who gets a message: an identifier and options in one word.

/// One subscriber of one topic filter: an identifier of 56 bits and 8 bits of options.
///
/// One machine word, so that a table entry is replaced by a single store. Both parts are the caller's: the table
/// compares identifiers and carries options.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Subscriber(u64);

impl Subscriber {
    /// Largest identifier: 2⁵⁶ − 1.
    pub const ID_MAX: u64 = u64::MAX >> 8;

    /// A subscriber with this identifier and these options.
    ///
    /// # Panics
    /// If `id` is 0 or above [`Subscriber::ID_MAX`]: a bug in the caller.
    #[must_use]
    pub const fn new(id: u64, options: u8) -> Self {
        assert!(
            id != 0 && id <= Self::ID_MAX,
            "a subscriber's identifier has 56 bits and isn't 0"
        );
        Self(id << 8 | options as u64)
    }

    /// The identifier, 1 to [`Subscriber::ID_MAX`].
    #[must_use]
    pub const fn id(self) -> u64 {
        self.0 >> 8
    }

    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    /// Of bits that came from `bits`.
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The options, as given to [`Subscriber::new`].
    #[must_use]
    pub const fn options(self) -> u8 {
        self.0 as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back() {
        for (id, options) in [(1, 0), (Subscriber::ID_MAX, 255), (0xAB_CDEF, 7)] {
            let subscriber = Subscriber::new(id, options);
            assert_eq!((subscriber.id(), subscriber.options()), (id, options));
        }
    }

    #[test]
    #[should_panic(expected = "56 bits")]
    fn zero_is_refused() {
        let _ = Subscriber::new(0, 1);
    }
}
