//! What the server keeps of a password for SCRAM (RFC 5802 §3), in the form of RFC 5803.

use base64::{Engine, prelude::BASE64_STANDARD};
use ring::{digest, hmac, pbkdf2};
use std::num::NonZeroU32;
use subtle::ConstantTimeEq;

/// Iterations of PBKDF2 that `headgate passwd` uses where nothing else is asked for. The client
/// does them at each connect, unless it keeps the result.
pub const ITERATIONS_DEFAULT: u32 = 65_536;
/// The least that RFC 7677 §4 allows.
pub const ITERATIONS_MIN: u32 = 4_096;
/// More would keep a small client busy for minutes.
pub const ITERATIONS_MAX: u32 = 10_000_000;

/// Length of the salts that are made here, bytes.
pub(super) const SALT_BYTES: usize = 16;
/// Longest salt that is read, bytes: it goes into a challenge.
const SALT_BYTES_MAX: usize = 64;

/// A key of SHA-256's length.
pub(super) type Key = [u8; 32];

/// StoredKey and ServerKey of a user, and how the client gets there from its password.
#[derive(Clone)]
pub struct Verifier {
    pub(super) iterations: u32,
    pub(super) salt: Box<[u8]>,
    pub(super) stored_key: Key,
    pub(super) server_key: Key,
}

impl Verifier {
    /// Iterations of PBKDF2.
    pub fn iterations(&self) -> u32 {
        self.iterations
    }

    /// Makes a verifier. `password` has to be prepared by SASLprep (RFC 4013).
    pub fn new(password: &str, salt: &[u8], iterations: NonZeroU32) -> Self {
        let mut salted: Key = [0; 32];
        let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
        pbkdf2::derive(
            algorithm,
            iterations,
            salt,
            password.as_bytes(),
            &mut salted,
        );
        let client_key = mac(&salted, b"Client Key");
        Self {
            iterations: iterations.get(),
            salt: salt.into(),
            stored_key: hash(&client_key),
            server_key: mac(&salted, b"Server Key"),
        }
    }

    /// Reads `SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`, with Base64 for the last three.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(super::METHOD)?.strip_prefix('$')?;
        let (info, keys) = rest.split_once('$')?;
        let (iterations, salt) = info.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let iterations = iterations.parse().ok()?;
        let salt = BASE64_STANDARD.decode(salt).ok()?;
        let is_right = (ITERATIONS_MIN..=ITERATIONS_MAX).contains(&iterations)
            && (1..=SALT_BYTES_MAX).contains(&salt.len());
        is_right.then_some(Self {
            iterations,
            salt: salt.into(),
            stored_key: key(stored_key)?,
            server_key: key(server_key)?,
        })
    }

    /// As [`Verifier::parse`] reads it.
    pub fn to_text(&self) -> String {
        let base64 = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
        format!(
            "{}${}:{}${}:{}",
            super::METHOD,
            self.iterations,
            base64(&self.salt),
            base64(&self.stored_key),
            base64(&self.server_key)
        )
    }

    /// Whether `proof` is the ClientProof for `message` (the AuthMessage of RFC 5802 §3).
    pub(super) fn accepts(&self, message: &[u8], proof: &Key) -> bool {
        let mut client_key = mac(&self.stored_key, message);
        for (byte, proof) in client_key.iter_mut().zip(proof) {
            *byte ^= proof;
        }
        hash(&client_key).ct_eq(&self.stored_key).into()
    }

    /// The ServerSignature for `message`.
    pub(super) fn sign(&self, message: &[u8]) -> Key {
        mac(&self.server_key, message)
    }
}

/// Keys and salts aren't shown.
impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier")
            .field("iterations", &self.iterations)
            .finish_non_exhaustive()
    }
}

/// HMAC-SHA-256.
pub(super) fn mac(key: &[u8], message: &[u8]) -> Key {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
    let mut out = [0; 32];
    out.copy_from_slice(tag.as_ref());
    out
}

fn hash(message: &[u8]) -> Key {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, message).as_ref());
    out
}

pub(super) fn key(base64: &str) -> Option<Key> {
    BASE64_STANDARD.decode(base64).ok()?.try_into().ok()
}
