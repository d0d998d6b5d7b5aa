//! Address validation tokens (RFC 9000 §8.1) as quinn-proto makes and checks them: in the form that the kernel makes
//! and checks them, too.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use headgate_common::records::RetryMode;
use headgate_common::token::{
    EPOCH_S, OriginalCid, RETRY_TOKEN_LEN, RETRY_WORDS, Sender, TokenKeys,
};
use quinn_proto::crypto::{AeadKey, CryptoError, HandshakeTokenKey};
use quinn_proto::{BloomTokenLog, TokenLog, TokenReuseError};

use crate::keys::Keys;

/// Length of the nonce that quinn-proto chooses and writes behind what is sealed, in bytes.
const NONCE_LEN: usize = 16;
/// quinn-proto's types of tokens.
const KIND_RETRY: u8 = 0;
const KIND_NEW: u8 = 1;
/// And of addresses.
const IPV4: u8 = 0;
const IPV6: u8 = 1;

/// The keys of tokens for quinn-proto: they change with time.
pub struct TokenKey {
    keys: Keys,
    /// Those of an epoch.
    derived: RwLock<(u64, TokenKeys)>,
}

impl TokenKey {
    /// Derives today's keys.
    #[must_use]
    pub fn new(keys: Keys) -> Self {
        let now = unix_s();
        let derived = RwLock::new((now / EPOCH_S, keys.token_keys(now)));
        Self { keys, derived }
    }

    fn now(&self) -> TokenKeys {
        let now = unix_s();
        let (epoch, keys) = *self.derived.read().unwrap_or_else(PoisonError::into_inner);
        if epoch == now / EPOCH_S {
            return keys;
        }
        let fresh = self.keys.token_keys(now);
        *self.derived.write().unwrap_or_else(PoisonError::into_inner) = (now / EPOCH_S, fresh);
        fresh
    }
}

impl HandshakeTokenKey for TokenKey {
    fn aead_from_hkdf(&self, nonce: &[u8]) -> Box<dyn AeadKey> {
        let mut words = [0; 2];
        for (word, bytes) in words.iter_mut().zip(nonce.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Box::new(TokenSeal {
            keys: self.now(),
            nonce: words,
        })
    }
}

/// Seals and opens one token.
struct TokenSeal {
    keys: TokenKeys,
    nonce: [u64; 2],
}

impl AeadKey for TokenSeal {
    /// Turns quinn-proto's plaintext into all of our token but its nonce.
    fn seal(&self, data: &mut Vec<u8>, _: &[u8]) -> Result<(), CryptoError> {
        let mut plain = Reader(data);
        let kind = plain.octet()?;
        let address = plain.address()?;
        let mut sealed = Vec::with_capacity(RETRY_TOKEN_LEN);
        match kind {
            KIND_RETRY => {
                let port = u16::from_le_bytes(*plain.take::<2>()?);
                let cid = plain.cid()?;
                let issued_s = plain.seconds()?;
                let sender = Sender { address, port };
                let token = self.keys.retry(sender, cid, issued_s, self.nonce);
                sealed.extend(token.iter().flat_map(|word| word.to_le_bytes()));
            }
            KIND_NEW => {
                let issued_s = plain.seconds()?;
                let token = self.keys.new_token(address, issued_s, self.nonce);
                sealed.extend(token.iter().flat_map(|word| word.to_le_bytes()));
            }
            _ => return Err(CryptoError),
        }
        sealed.truncate(sealed.len() - NONCE_LEN);
        *data = sealed;
        Ok(())
    }

    /// Turns what [`TokenSeal::seal`] made, or the kernel, into quinn-proto's plaintext, in its place.
    fn open<'a>(&self, data: &'a mut [u8], _: &[u8]) -> Result<&'a mut [u8], CryptoError> {
        let mut token = [0; RETRY_WORDS];
        let (words, []) = data.as_chunks::<8>() else {
            return Err(CryptoError);
        };
        let len = words.len() + self.nonce.len();
        for (to, from) in token.iter_mut().zip(words) {
            *to = u64::from_le_bytes(*from);
        }
        let [.., a, b] = token.get_mut(..len).ok_or(CryptoError)? else {
            return Err(CryptoError);
        };
        [*a, *b] = self.nonce;
        let mut plain = Vec::with_capacity(64);
        if len == RETRY_WORDS {
            let [first, a, b, c, d, e, ..] = *self.keys.open_retry(&token).ok_or(CryptoError)?;
            plain.push(KIND_RETRY);
            write_address(&mut plain, [a, b]);
            plain.extend(((first >> 16) as u16).to_le_bytes());
            let cid: Vec<u8> = [c, d, e]
                .iter()
                .flat_map(|word| word.to_le_bytes())
                .collect();
            let cid = cid.get(..usize::from((e >> 32) as u8)).ok_or(CryptoError)?;
            plain.push(cid.len() as u8);
            plain.extend(cid);
            plain.extend((first >> 32).to_be_bytes());
        } else {
            let [first, a, b] = self.keys.open_new(&token).ok_or(CryptoError)?;
            plain.push(KIND_NEW);
            write_address(&mut plain, [a, b]);
            plain.extend((first >> 32).to_be_bytes());
        }
        let room = data.get_mut(..plain.len()).ok_or(CryptoError)?;
        room.copy_from_slice(&plain);
        Ok(room)
    }
}

/// As the workers' sockets show addresses: those of IPv4 never in IPv6 form.
fn write_address(to: &mut Vec<u8>, [high, low]: [u64; 2]) {
    if high == 0 && low as u32 == 0xffff_0000 {
        to.push(IPV4);
        to.extend(((low >> 32) as u32).to_le_bytes());
    } else {
        to.push(IPV6);
        to.extend(high.to_le_bytes());
        to.extend(low.to_le_bytes());
    }
}

/// Reads quinn-proto's plaintext.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<&'a [u8; N], CryptoError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(CryptoError)?;
        self.0 = rest;
        Ok(taken)
    }

    fn octet(&mut self) -> Result<u8, CryptoError> {
        let [octet] = self.take()?;
        Ok(*octet)
    }

    /// In IPv6 form.
    fn address(&mut self) -> Result<[u64; 2], CryptoError> {
        match self.octet()? {
            IPV4 => {
                let address = u32::from_le_bytes(*self.take()?);
                Ok([0, 0xffff_0000 | u64::from(address) << 32])
            }
            IPV6 => {
                let high = u64::from_le_bytes(*self.take()?);
                Ok([high, u64::from_le_bytes(*self.take()?)])
            }
            _ => Err(CryptoError),
        }
    }

    fn cid(&mut self) -> Result<OriginalCid, CryptoError> {
        let len = self.octet()?;
        let (cid, rest) = self.0.split_at_checked(len.into()).ok_or(CryptoError)?;
        self.0 = rest;
        let mut padded = [0; 24];
        padded
            .get_mut(..cid.len())
            .ok_or(CryptoError)?
            .copy_from_slice(cid);
        let mut words = [0; 3];
        for (word, bytes) in words.iter_mut().zip(padded.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Ok(OriginalCid { words, len })
    }

    /// Good until 2106.
    fn seconds(&mut self) -> Result<u32, CryptoError> {
        let seconds = u64::from_be_bytes(*self.take()?);
        u32::try_from(seconds).map_err(|_| CryptoError)
    }
}

/// Which tokens of NEW_TOKEN frames were used: all workers share it, so that each is good for one connection.
pub struct UsedTokens {
    log: BloomTokenLog,
    /// What was used before that is not known any more.
    since: SystemTime,
}

impl UsedTokens {
    /// Memory of the log at most, in bytes.
    const BYTES_MAX: usize = 4 << 20;
    /// Tokens used within the life of one. Above it, more and more are refused that were never used: their clients are
    /// treated as if they had none.
    const TOKENS: u64 = 1_000_000;
}

impl Default for UsedTokens {
    fn default() -> Self {
        Self {
            log: BloomTokenLog::new_expected_items(Self::BYTES_MAX, Self::TOKENS),
            since: SystemTime::now(),
        }
    }
}

impl TokenLog for UsedTokens {
    fn check_and_insert(
        &self,
        nonce: u128,
        issued: SystemTime,
        lifetime: Duration,
    ) -> Result<(), TokenReuseError> {
        // Issued is in whole seconds: one of this very second may be from before as well.
        if issued <= self.since {
            return Err(TokenReuseError);
        }
        self.log.check_and_insert(nonce, issued, lifetime)
    }
}

/// Whether user space answers connections from addresses that are not validated with Retry. Where the kernel does it,
/// hardly any get here.
#[derive(Debug)]
pub struct RetryGate {
    start: Instant,
    mode: AtomicU32,
    above_per_second: AtomicU32,
    below_per_second: AtomicU32,
    meter: AtomicU64,
    hold: AtomicU64,
}

impl RetryGate {
    /// Never, until [`RetryGate::set`].
    #[must_use]
    pub fn new(start: Instant) -> Self {
        Self {
            start,
            mode: AtomicU32::new(RetryMode::Never as u32),
            above_per_second: AtomicU32::new(0),
            below_per_second: AtomicU32::new(0),
            meter: AtomicU64::new(0),
            hold: AtomicU64::new(0),
        }
    }

    /// Changes when there is Retry: as in the kernel's map `config`.
    pub fn set(&self, mode: RetryMode, above_per_second: u32, below_per_second: u32) {
        self.mode.store(mode as u32, Ordering::Relaxed);
        self.above_per_second
            .store(above_per_second, Ordering::Relaxed);
        self.below_per_second
            .store(below_per_second, Ordering::Relaxed);
    }

    /// Whether a connection that begins now has to prove its address first. It counts as load.
    #[must_use]
    pub fn asks(&self, now: Instant) -> bool {
        match RetryMode::from_number(self.mode.load(Ordering::Relaxed)) {
            RetryMode::Always => true,
            RetryMode::Never => false,
            RetryMode::Auto => {
                let now = now.saturating_duration_since(self.start).as_nanos() as u64;
                headgate_common::shield::is_loaded(
                    (&self.hold, &self.meter),
                    (
                        self.above_per_second.load(Ordering::Relaxed),
                        self.below_per_second.load(Ordering::Relaxed),
                    ),
                    now,
                )
            }
        }
    }
}

fn unix_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests;
