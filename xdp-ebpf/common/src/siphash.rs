//! SipHash-1-3 and SipHash-2-4-128 over messages whose length is known at compile time.
//!
//! The kernel's verifier wants straight-line code, so there is no streaming state: a caller hands over the full
//! words of its message and the last word, which carries the rest of the message and its length.

/// A SipHash key of 128 bits.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SipKey {
    /// First half, little-endian.
    pub k0: u64,
    /// Second half, little-endian.
    pub k1: u64,
}

impl SipKey {
    /// The key made of 16 bytes, as SipHash's definition reads them.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        let both = u128::from_le_bytes(bytes);
        Self {
            k0: both as u64,
            k1: (both >> 64) as u64,
        }
    }

    /// SipHash-1-3 of a message of `8 × N + rest` bytes (`rest` < 8): `words` are its full little-endian words,
    /// and `last` holds the remaining bytes in its low end and the message's length in its top byte.
    #[inline(always)]
    #[must_use]
    pub const fn hash<const N: usize>(&self, words: [u64; N], last: u64) -> u64 {
        let mut state = State {
            v0: self.k0 ^ 0x736f_6d65_7073_6575,
            v1: self.k1 ^ 0x646f_7261_6e64_6f6d,
            v2: self.k0 ^ 0x6c79_6765_6e65_7261,
            v3: self.k1 ^ 0x7465_6462_7974_6573,
        };
        let mut index = 0;
        while index < N {
            state = state.absorb(words[index]);
            index += 1;
        }
        state = state.absorb(last);
        state.v2 ^= 0xff;
        state = state.round().round().round();
        state.v0 ^ state.v1 ^ state.v2 ^ state.v3
    }

    /// SipHash-2-4 with 128 bits of output, as two little-endian words, of a message of `8 × N` bytes: a MAC that
    /// keeps tokens authentic.
    #[inline(always)]
    #[must_use]
    pub const fn mac<const N: usize>(&self, words: [u64; N]) -> [u64; 2] {
        let mut state = State {
            v0: self.k0 ^ 0x736f_6d65_7073_6575,
            v1: self.k1 ^ 0x646f_7261_6e64_6f6d ^ 0xee,
            v2: self.k0 ^ 0x6c79_6765_6e65_7261,
            v3: self.k1 ^ 0x7465_6462_7974_6573,
        };
        let mut index = 0;
        while index < N {
            state = state.absorb_twice(words[index]);
            index += 1;
        }
        state = state.absorb_twice((8 * N as u64) << 56);
        state.v2 ^= 0xee;
        state = state.round().round().round().round();
        let first = state.v0 ^ state.v1 ^ state.v2 ^ state.v3;
        state.v1 ^= 0xdd;
        state = state.round().round().round().round();
        [first, state.v0 ^ state.v1 ^ state.v2 ^ state.v3]
    }
}

/// A key never shows in a log.
impl core::fmt::Debug for SipKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("SipKey(secret)")
    }
}

#[derive(Clone, Copy)]
struct State {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
}

impl State {
    #[inline(always)]
    const fn absorb(mut self, word: u64) -> Self {
        self.v3 ^= word;
        self = self.round();
        self.v0 ^= word;
        self
    }

    #[inline(always)]
    const fn absorb_twice(mut self, word: u64) -> Self {
        self.v3 ^= word;
        self = self.round().round();
        self.v0 ^= word;
        self
    }

    #[inline(always)]
    const fn round(self) -> Self {
        let Self {
            mut v0,
            mut v1,
            mut v2,
            mut v3,
        } = self;
        v0 = v0.wrapping_add(v1);
        v2 = v2.wrapping_add(v3);
        v1 = v1.rotate_left(13) ^ v0;
        v3 = v3.rotate_left(16) ^ v2;
        v0 = v0.rotate_left(32).wrapping_add(v3);
        v2 = v2.wrapping_add(v1);
        v3 = v3.rotate_left(21) ^ v0;
        v1 = v1.rotate_left(17) ^ v2;
        v2 = v2.rotate_left(32);
        Self { v0, v1, v2, v3 }
    }
}

#[cfg(test)]
mod tests {
    use super::SipKey;
    use core::hash::Hasher as _;

    /// The reference is an implementation that we did not write.
    #[test]
    fn agrees_with_an_independent_implementation() {
        let key = SipKey::from_bytes(core::array::from_fn(|i| (i as u8).wrapping_mul(37)));
        let message: [u8; 26] = core::array::from_fn(|i| 0xf1u8.wrapping_mul(i as u8 + 3));
        let word =
            |i: usize| u64::from_le_bytes(message[i..i + 8].try_into().expect("eight bytes"));
        let reference = |length: usize| {
            let mut hasher = siphasher::sip::SipHasher13::new_with_keys(key.k0, key.k1);
            hasher.write(&message[..length]);
            hasher.finish()
        };
        assert_eq!(key.hash([], 0), reference(0));
        assert_eq!(key.hash([word(0)], 8 << 56), reference(8));
        assert_eq!(
            key.hash([word(0)], 10 << 56 | word(8) & 0xffff),
            reference(10)
        );
        assert_eq!(
            key.hash([word(0), word(8), word(16)], 26 << 56 | word(18) >> 48),
            reference(26)
        );
    }

    /// Of the reference implementation's vectors: the key 00…0f over the messages of 0, 8 and 16 bytes 00, 01, ….
    #[test]
    fn the_reference_vectors_of_128_bits_come_out() {
        let key = SipKey::from_bytes(core::array::from_fn(|i| i as u8));
        let word = |at: u8| u64::from_le_bytes(core::array::from_fn(|i| at + i as u8));
        let bytes = |[a, b]: [u64; 2]| u128::from(a) | u128::from(b) << 64;
        let vector = |octets: [u8; 16]| u128::from_le_bytes(octets);
        assert_eq!(
            bytes(key.mac([])),
            vector([
                0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6, 0x6d, 0xf6, 0x72, 0x14, 0xc7, 0x55,
                0x02, 0x93,
            ])
        );
        let reference = |length: u8| {
            use siphasher::sip128::Hasher128 as _;
            let mut hasher = siphasher::sip128::SipHasher24::new_with_keys(key.k0, key.k1);
            let message: std::vec::Vec<u8> = (0..length).collect();
            hasher.write(&message);
            hasher.finish128().as_u128()
        };
        assert_eq!(bytes(key.mac([word(0)])), reference(8));
        assert_eq!(bytes(key.mac([0, 8, 16, 24, 32].map(word))), reference(40));
        assert_eq!(
            bytes(key.mac([0, 8, 16, 24, 32, 40, 48, 56].map(word))),
            reference(64)
        );
    }

    #[test]
    fn a_key_does_not_show_in_a_log() {
        assert_eq!(
            std::format!("{:?}", SipKey { k0: 1, k1: 2 }),
            "SipKey(secret)"
        );
    }
}
