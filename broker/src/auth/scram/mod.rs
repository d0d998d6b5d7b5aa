//! SCRAM-SHA-256 (RFC 5802, RFC 7677), the server's side, without channel binding.
//!
//! ```text
//! CONNECT  n,,n=name,r=nonce          ──►
//!          r=nonce+ours,s=salt,i=…    ◄──  AUTH 0x18
//! AUTH     c=biws,r=nonce+ours,p=…    ──►
//!          v=ServerSignature          ◄──  CONNACK 0x00 (AUTH 0x00 when it was done again)
//! ```
//! A name that nobody has gets a challenge like any other, always the same one, and fails with
//! the proof: names can't be probed.

pub mod message;
mod verifier;

pub use verifier::{ITERATIONS_DEFAULT, ITERATIONS_MAX, ITERATIONS_MIN, Verifier};

use super::{Authenticator, Exchange, Method, Verdict, random, users::Users};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use headgate_codec::ReasonCode;
use headgate_core::{Credentials, Granted};
use message::{ClientFinal, ClientFirst};
use std::{num::NonZeroU32, sync::Arc};

/// The Authentication Method.
pub const METHOD: &str = "SCRAM-SHA-256";

/// Random bytes of the server's nonce, before Base64.
const NONCE_BYTES: usize = 18;

/// Makes the verifier for a password, with a new salt. `None` if the operating system gives no
/// random bytes. `password` has to be prepared by SASLprep.
pub fn verifier(password: &str, iterations: NonZeroU32) -> Option<Verifier> {
    let salt: [u8; verifier::SALT_BYTES] = random()?;
    Some(Verifier::new(password, &salt, iterations))
}

/// Users that prove by SCRAM that they know their password.
pub struct Scram {
    users: Arc<Users>,
    /// Makes the salts of users that don't exist.
    secret: [u8; 32],
}

impl Scram {
    /// `secret` has to be the same after a restart, or names could be probed by one.
    pub fn new(users: Arc<Users>, secret: [u8; 32]) -> Self {
        Self { users, secret }
    }

    fn challenge(&self, first: &ClientFirst<'_>, nonce: &str) -> Challenge {
        let user = self.users.get(&first.name);
        let known = user.and_then(|user| Some((user.scram.clone()?, user.granted())));
        // Made for every name, so that it takes no longer where it is needed.
        let decoy = self.decoy(&first.name);
        let (verifier, granted) = match known {
            Some((verifier, granted)) => (verifier, Some(granted)),
            None => (decoy, None),
        };
        let nonce = format!("{}{nonce}", first.nonce);
        let salt = BASE64_STANDARD.encode(&verifier.salt);
        let server_first = format!("r={nonce},s={salt},i={}", verifier.iterations);
        Challenge {
            gs2_header: first.gs2_header.into(),
            bare: first.bare.into(),
            server_first,
            nonce,
            verifier,
            granted,
        }
    }

    fn decoy(&self, name: &str) -> Verifier {
        let salt = verifier::mac(&self.secret, name.as_bytes());
        Verifier {
            iterations: self.users.scram_iterations(),
            salt: salt[..verifier::SALT_BYTES].into(),
            stored_key: verifier::mac(&self.secret, &salt),
            server_key: [0; 32],
        }
    }
}

impl Authenticator for Scram {
    fn method(&self) -> Method {
        Method::Scram
    }

    fn begin(&self, credentials: &Credentials) -> Verdict {
        if credentials.method.as_deref() != Some(METHOD) {
            return Verdict::Pass;
        }
        let first = credentials.data.as_deref().and_then(ClientFirst::parse);
        let (Some(first), Some(random)) = (first, random::<NONCE_BYTES>()) else {
            return Verdict::Refused(ReasonCode::NOT_AUTHORIZED);
        };
        let challenge = self.challenge(&first, &BASE64_STANDARD.encode(random));
        Verdict::Continue {
            data: Bytes::copy_from_slice(challenge.server_first.as_bytes()),
            exchange: Box::new(challenge),
        }
    }
}

/// The client has got its challenge.
struct Challenge {
    gs2_header: Box<str>,
    bare: Box<str>,
    server_first: String,
    nonce: String,
    verifier: Verifier,
    /// `None`: there is no such user.
    granted: Option<Granted>,
}

impl Exchange for Challenge {
    fn proceed(self: Box<Self>, data: Option<&[u8]>) -> Verdict {
        let refused = Verdict::Refused(ReasonCode::NOT_AUTHORIZED);
        let Some(last) = data.and_then(ClientFinal::parse) else {
            return refused;
        };
        if last.gs2_header != self.gs2_header.as_bytes() || last.nonce != self.nonce {
            return refused;
        }
        let message = format!("{},{},{}", self.bare, self.server_first, last.without_proof);
        let is_proved = self.verifier.accepts(message.as_bytes(), &last.proof);
        match self.granted {
            Some(mut granted) if is_proved => {
                let signature = BASE64_STANDARD.encode(self.verifier.sign(message.as_bytes()));
                granted.data = Some(Bytes::from(format!("v={signature}")));
                Verdict::Granted(granted)
            }
            _ => refused,
        }
    }
}

#[cfg(test)]
mod tests;
