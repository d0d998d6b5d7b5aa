//! Who a client is: ways to tell, in the order in which they are asked, and the threads that check
//! passwords.
//!
//! ```text
//! core ── Authenticate ──► Desk ── begin ──► Chain: certificate, SCRAM, password file, anonymous
//!  ▲                        │ ▲                        │
//!  └──── Authenticated ─────┘ └── answers ◄── Pool ◄───┘ what takes long
//! ```

pub mod anonymous;
pub mod certificate;
pub mod desk;
pub mod hash;
pub mod password_file;
pub mod pool;
pub mod scram;
pub mod users;

use crate::{config::Config, metrics::Label};
use bytes::Bytes;
use headgate_codec::ReasonCode;
use headgate_core::{Credentials, Granted};
use ring::rand::{SecureRandom, SystemRandom};
use std::sync::Arc;
use users::{Users, UsersError};

/// One way to tell who a client is. It must not block: it runs on a worker.
pub trait Authenticator: Send + Sync {
    /// Its name in the metrics.
    fn method(&self) -> Method;

    /// The first step: CONNECT, or AUTH 0x19 (with Authentication Method and Data only).
    fn begin(&self, credentials: &Credentials) -> Verdict;
}

/// The further steps of an authentication that takes several (MQTT 5.0 §4.12). It is dropped with
/// its connection.
pub trait Exchange: Send {
    /// AUTH 0x18 has come, with this Authentication Data.
    fn proceed(self: Box<Self>, data: Option<&[u8]>) -> Verdict;
}

/// Something that takes too long for a worker.
pub type Work = Box<dyn FnOnce() -> Result<Granted, ReasonCode> + Send>;

/// What an [`Authenticator`] says.
pub enum Verdict {
    /// The next one is asked.
    Pass,
    /// It is known who the client is.
    Granted(Granted),
    /// The client is refused, with this Reason Code of CONNACK.
    Refused(ReasonCode),
    /// The client has to say more.
    Continue {
        /// Authentication Data of AUTH 0x18.
        data: Bytes,
        /// Takes the client's answer.
        exchange: Box<dyn Exchange>,
    },
    /// A thread of the pool has to say.
    Work(Work),
}

/// Ways to tell who a client is, for the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// Everybody is let in.
    Anonymous,
    /// A client's certificate.
    Certificate,
    /// User Name and Password.
    Password,
    /// SCRAM-SHA-256.
    Scram,
    /// None of those that are configured has felt responsible.
    Unknown,
}

impl Label for Method {
    const NAME: &'static str = "method";
    const ALL: &'static [Self] = &[
        Self::Anonymous,
        Self::Certificate,
        Self::Password,
        Self::Scram,
        Self::Unknown,
    ];

    fn text(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Certificate => "certificate",
            Self::Password => "password",
            Self::Scram => "scram-sha-256",
            Self::Unknown => "unknown",
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

/// All ways that are configured, in their order. The same for all workers, and never changed: a
/// new configuration is a new chain.
#[derive(Default)]
pub struct Chain {
    ways: Vec<Box<dyn Authenticator>>,
    needs_pool: bool,
}

impl Chain {
    /// Loads what the configuration names. `secret` is known to this broker only and survives its
    /// restarts.
    ///
    /// # Errors
    /// When the password file can't be used, or names a quota class that there is not.
    pub fn load(config: &Config, secret: [u8; 32]) -> Result<Self, UsersError> {
        let anonymous = config.mqtt.allow_anonymous;
        let quota = &config.quota;
        let config = &config.auth;
        let mut users = Users::default();
        let file = &config.password_file;
        let has_file = !file.as_os_str().is_empty();
        if has_file {
            if users::is_world_readable(file) {
                tracing::warn!(file = %file.display(), "everybody on this machine can read the password file; chmod o-r helps");
            }
            users = Users::load(file)?;
            users.classify(file, |class| quota.number(class))?;
            tracing::info!(file = %file.display(), users = users.len(), "password file loaded");
        }
        let users = Arc::new(users);
        let mut ways: Vec<Box<dyn Authenticator>> = Vec::new();
        if config.certificate {
            ways.push(Box::new(certificate::Certificate::new(Arc::clone(&users))));
        }
        if has_file {
            ways.push(Box::new(scram::Scram::new(Arc::clone(&users), secret)));
            ways.push(Box::new(password_file::PasswordFile::new(users)));
        }
        if anonymous {
            ways.push(Box::new(anonymous::Anonymous));
        }
        Ok(Self {
            ways,
            needs_pool: has_file,
        })
    }

    /// Whether a verdict may be [`Verdict::Work`].
    pub fn needs_pool(&self) -> bool {
        self.needs_pool
    }

    /// Asks one after the other.
    pub fn begin(&self, credentials: &Credentials) -> (Method, Verdict) {
        for way in &self.ways {
            match way.begin(credentials) {
                Verdict::Pass => {}
                verdict => return (way.method(), verdict),
            }
        }
        // [MQTT-4.12.0-1]
        let reason = if credentials.method.is_some() {
            ReasonCode::BAD_AUTHENTICATION_METHOD
        } else if credentials.user_name.is_some() || credentials.password.is_some() {
            ReasonCode::BAD_USER_NAME_OR_PASSWORD
        } else {
            ReasonCode::NOT_AUTHORIZED
        };
        (Method::Unknown, Verdict::Refused(reason))
    }
}

/// Bytes of the operating system's random source.
fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests;
