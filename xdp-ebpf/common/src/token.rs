//! Address validation tokens (RFC 9000 §8.1), which the kernel makes and checks.
//!
//! ```text
//! octet  0      1     2–3   4–7       8–23     24–43     44      45–47  48–63  64–79
//! Retry  epoch  0     port  issued    address  ODCID     length  zero   MAC    nonce
//!
//! octet  0      1     2–3   4–7       8–23     24–39  40–55
//! NEW    epoch  1     zero  issued    address  MAC    nonce
//! ```
//!
//! Epoch and the last 16 octets are together the nonce: quinn-proto chooses the latter itself for the tokens that user
//! space makes, so that the epoch, which names the key, has a place of its own. The MAC is SipHash-2-4-128 over all
//! the rest. In a token of a NEW_TOKEN frame octets 2 to 23 are encrypted, because an observer must not be able to link
//! it to the connection that it came from (RFC 9000 §8.1.3); a Retry token is used at once from the address that it
//! names. Issued is in Unix seconds, little-endian; an IPv4 address is written in its IPv6 form.

use crate::siphash::SipKey;

/// Length of a token of a Retry packet, in bytes.
pub const RETRY_TOKEN_LEN: usize = 80;
/// Length of a token of a NEW_TOKEN frame, in bytes.
pub const NEW_TOKEN_LEN: usize = 56;
/// Words of a Retry token.
pub const RETRY_WORDS: usize = RETRY_TOKEN_LEN / 8;
/// A token of a NEW_TOKEN frame is good for so many seconds, if its key is.
pub const NEW_TOKEN_LIFE_S: u32 = 86_400;
/// An epoch takes so many seconds: its number is Unix time divided by this.
pub const EPOCH_S: u64 = 86_400;
/// A clock that was set back, or another node's, may be behind by so many seconds.
const CLOCK_TOLERANCE_S: u32 = 5;

const KIND_RETRY: u64 = 0;
const KIND_NEW: u64 = 1;
/// Epoch and kind, which are never encrypted.
const PLAIN: u64 = 0xffff;

/// The keys of one epoch.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenEpoch {
    /// Authenticates.
    pub mac: SipKey,
    /// Encrypts tokens of NEW_TOKEN frames.
    pub cipher: SipKey,
    /// Its number's low 8 bits, and bit 8 if the keys are live.
    pub number: u64,
}

impl TokenEpoch {
    /// Live keys.
    #[must_use]
    pub const fn new(number: u64, mac: SipKey, cipher: SipKey) -> Self {
        Self {
            mac,
            cipher,
            number: number & 0xff | LIVE,
        }
    }
}

const LIVE: u64 = 0x100;

/// The keys of the two epochs that are valid. In the kernel they live in a map that is not pinned.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenKeys {
    /// Makes tokens and checks them.
    pub current: TokenEpoch,
    /// Checks them.
    pub former: TokenEpoch,
}

/// What a token is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenState {
    /// There is none.
    Absent,
    /// Not made by us, or with a key that is gone: as if there were none (RFC 9000 §8.1.3).
    Foreign,
    /// Of one of our Retry packets, from this address, in time.
    Retry,
    /// Of one of our Retry packets, but too old.
    RetryExpired,
    /// Of one of our Retry packets, but to another address.
    RetryElsewhere,
    /// Of one of our NEW_TOKEN frames, from this address, in time. Whether it was used before, user space knows.
    New,
    /// Of one of our NEW_TOKEN frames, but too old or of another address: as if there were none.
    NewInvalid,
}

/// Who sends a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// The address in IPv6 form: two little-endian words.
    pub address: [u64; 2],
    /// The port as it lies in the packet, read little-endian.
    pub port: u16,
}

/// A client's first Destination Connection ID, with zeros behind it: little-endian words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginalCid {
    /// 20 bytes; the last 4 of these 24 are zero.
    pub words: [u64; 3],
    /// How many of them it has: 8 to 20.
    pub len: u8,
}

impl TokenKeys {
    /// The token of a Retry packet.
    #[inline(always)]
    #[must_use]
    pub const fn retry(
        &self,
        sender: Sender,
        cid: OriginalCid,
        now_s: u32,
        nonce: [u64; 2],
    ) -> [u64; RETRY_WORDS] {
        let first = self.current.number & 0xff
            | KIND_RETRY << 8
            | (sender.port as u64) << 16
            | (now_s as u64) << 32;
        let [a, b] = sender.address;
        let [c, d, e] = cid.words;
        let e = e & 0xffff_ffff | (cid.len as u64) << 32;
        let [mac_a, mac_b] = self
            .current
            .mac
            .mac([first, a, b, c, d, e, nonce[0], nonce[1]]);
        [first, a, b, c, d, e, mac_a, mac_b, nonce[0], nonce[1]]
    }

    /// The token of a NEW_TOKEN frame.
    #[must_use]
    pub const fn new_token(&self, address: [u64; 2], now_s: u32, nonce: [u64; 2]) -> [u64; 7] {
        let first = self.current.number & 0xff | KIND_NEW << 8 | (now_s as u64) << 32;
        let [first, a, b] = encrypt(&self.current.cipher, [first, address[0], address[1]], nonce);
        let [mac_a, mac_b] = self.current.mac.mac([first, a, b, nonce[0], nonce[1]]);
        [first, a, b, mac_a, mac_b, nonce[0], nonce[1]]
    }

    /// The keys that a token names, if they are live.
    #[inline(always)]
    #[must_use]
    pub const fn epoch(&self, first: u64) -> Option<&TokenEpoch> {
        let number = first & 0xff | LIVE;
        if self.current.number == number {
            Some(&self.current)
        } else if self.former.number == number {
            Some(&self.former)
        } else {
            None
        }
    }

    /// A token of [`RETRY_TOKEN_LEN`] bytes, if it is authentic.
    #[inline(always)]
    #[must_use]
    pub const fn open_retry<'a>(
        &self,
        token: &'a [u64; RETRY_WORDS],
    ) -> Option<&'a [u64; RETRY_WORDS]> {
        let [first, a, b, c, d, e, mac_a, mac_b, nonce_a, nonce_b] = *token;
        let Some(epoch) = self.epoch(first) else {
            return None;
        };
        let mac = epoch.mac.mac([first, a, b, c, d, e, nonce_a, nonce_b]);
        // The length tells the kinds apart for the MAC.
        if (mac[0] ^ mac_a) | (mac[1] ^ mac_b) != 0 {
            return None;
        }
        Some(token)
    }

    /// The first words, decrypted, of a token of [`NEW_TOKEN_LEN`] bytes, the first of `token`, if it is authentic.
    #[inline(always)]
    #[must_use]
    pub const fn open_new(&self, token: &[u64; RETRY_WORDS]) -> Option<[u64; 3]> {
        let [first, a, b, mac_a, mac_b, nonce_a, nonce_b, ..] = *token;
        let Some(epoch) = self.epoch(first) else {
            return None;
        };
        let mac = epoch.mac.mac([first, a, b, nonce_a, nonce_b]);
        if (mac[0] ^ mac_a) | (mac[1] ^ mac_b) != 0 {
            return None;
        }
        Some(encrypt(&epoch.cipher, [first, a, b], [nonce_a, nonce_b]))
    }

    /// What a token of [`RETRY_TOKEN_LEN`] bytes is worth.
    #[inline(always)]
    #[must_use]
    pub const fn check_retry(
        &self,
        token: &[u64; RETRY_WORDS],
        sender: Sender,
        now_s: u32,
        life_s: u32,
    ) -> TokenState {
        let Some([first, a, b, ..]) = self.open_retry(token) else {
            return TokenState::Foreign;
        };
        if (*first >> 16) as u16 != sender.port
            || *a != sender.address[0]
            || *b != sender.address[1]
        {
            return TokenState::RetryElsewhere;
        }
        if !is_in_time((*first >> 32) as u32, now_s, life_s) {
            return TokenState::RetryExpired;
        }
        TokenState::Retry
    }

    /// What a token of [`NEW_TOKEN_LEN`] bytes, the first of `token`, is worth.
    #[inline(always)]
    #[must_use]
    pub const fn check_new(
        &self,
        token: &[u64; RETRY_WORDS],
        address: [u64; 2],
        now_s: u32,
    ) -> TokenState {
        let Some([first, a, b]) = self.open_new(token) else {
            return TokenState::Foreign;
        };
        if a != address[0]
            || b != address[1]
            || !is_in_time((first >> 32) as u32, now_s, NEW_TOKEN_LIFE_S)
        {
            return TokenState::NewInvalid;
        }
        TokenState::New
    }
}

#[inline(always)]
const fn is_in_time(issued_s: u32, now_s: u32, life_s: u32) -> bool {
    let age = now_s as i64 - issued_s as i64;
    age <= life_s as i64 && age >= -(CLOCK_TOLERANCE_S as i64)
}

/// Encrypts and decrypts: SipHash of nonce and counter is the stream that the words are combined with.
#[inline(always)]
#[must_use]
pub const fn encrypt(key: &SipKey, [first, a, b]: [u64; 3], nonce: [u64; 2]) -> [u64; 3] {
    let [x, y] = key.mac([nonce[0], nonce[1], 0]);
    let [z, _] = key.mac([nonce[0], nonce[1], 1]);
    [first ^ x & !PLAIN, a ^ y, b ^ z]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u32 = 1_800_000_000;

    fn keys(epoch: u64) -> TokenKeys {
        let of = |epoch: u64| {
            let key = |k0| SipKey {
                k0,
                k1: epoch & 0xff,
            };
            TokenEpoch::new(epoch, key(1), key(2))
        };
        TokenKeys {
            current: of(epoch),
            former: of(epoch.wrapping_sub(1)),
        }
    }

    const SENDER: Sender = Sender {
        address: [0, 0x0101_a8c0_ffff_0000],
        port: 0x1234,
    };

    fn retry(epoch: u64, nonce: [u64; 2]) -> [u64; 10] {
        let cid = OriginalCid {
            words: [1, 2, 3],
            len: 20,
        };
        keys(epoch).retry(SENDER, cid, NOW, nonce)
    }

    fn new(epoch: u64, nonce: [u64; 2]) -> [u64; 10] {
        let [a, b, c, d, e, f, g] = keys(epoch).new_token(SENDER.address, NOW, nonce);
        [a, b, c, d, e, f, g, 9, 9, 9]
    }

    proptest! {
        #[test]
        fn tokens_are_accepted_while_their_epoch_is_current_or_former(epoch: u64, nonce: [u64; 2]) {
            let (retry, new) = (retry(epoch, nonce), new(epoch, nonce));
            for now in [epoch, epoch.wrapping_add(1)] {
                prop_assert_eq!(keys(now).check_retry(&retry, SENDER, NOW, 15), TokenState::Retry);
                prop_assert_eq!(keys(now).check_new(&new, SENDER.address, NOW), TokenState::New);
            }
            let later = keys(epoch.wrapping_add(2));
            prop_assert_eq!(later.check_retry(&retry, SENDER, NOW, 15), TokenState::Foreign);
            prop_assert_eq!(later.check_new(&new, SENDER.address, NOW), TokenState::Foreign);
        }

        #[test]
        fn any_changed_bit_is_noticed(nonce: [u64; 2], bit in 0..640usize) {
            let mut token = retry(3, nonce);
            token[bit / 64] ^= 1 << (bit % 64);
            prop_assert_eq!(keys(3).check_retry(&token, SENDER, NOW, 15), TokenState::Foreign);
            let mut token = new(3, nonce);
            token[bit / 64] ^= 1 << (bit % 64);
            let expected = if bit < 8 * NEW_TOKEN_LEN { TokenState::Foreign } else { TokenState::New };
            prop_assert_eq!(keys(3).check_new(&token, SENDER.address, NOW), expected);
        }

        #[test]
        fn nobody_else_and_nobody_later_can_use_a_token(nonce: [u64; 2], other: [u64; 2], port: u16, age in 0..200_000u32) {
            let (retry, new) = (retry(3, nonce), new(3, nonce));
            let at = |sender, now| keys(3).check_retry(&retry, sender, now, 15);
            let elsewhere = Sender { address: other, ..SENDER };
            prop_assert_eq!(at(elsewhere, NOW), TokenState::RetryElsewhere);
            let other_port = Sender { port, ..SENDER };
            let expected = if port == SENDER.port { TokenState::Retry } else { TokenState::RetryElsewhere };
            prop_assert_eq!(at(other_port, NOW), expected);
            let expected = if age <= 15 { TokenState::Retry } else { TokenState::RetryExpired };
            prop_assert_eq!(at(SENDER, NOW + age), expected);
            prop_assert_eq!(keys(3).check_new(&new, other, NOW), TokenState::NewInvalid);
            let expected = if age <= NEW_TOKEN_LIFE_S { TokenState::New } else { TokenState::NewInvalid };
            prop_assert_eq!(keys(3).check_new(&new, SENDER.address, NOW + age), expected);
        }
    }

    #[test]
    fn a_new_token_shows_nothing_of_where_it_comes_from() {
        let (one, other) = (new(3, [1, 2]), new(3, [1, 3]));
        assert_ne!(one[1..3], other[1..3]);
        assert_ne!(one[1], SENDER.address[0]);
        assert_ne!(one[2], SENDER.address[1]);
        assert_ne!(one[0] >> 32, u64::from(NOW));
    }

    #[test]
    fn a_token_from_the_future_is_refused() {
        let token = retry(3, [1, 2]);
        let at = |now| keys(3).check_retry(&token, SENDER, now, 15);
        assert_eq!(at(NOW - CLOCK_TOLERANCE_S), TokenState::Retry);
        assert_eq!(at(NOW - CLOCK_TOLERANCE_S - 1), TokenState::RetryExpired);
    }
}
