//! Why a client's work ends early.

use headgate_codec::{DecodeError, ReasonCode};
use std::{io, path::PathBuf, time::Duration};

/// Why a client's work ends early, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The name has no address.
    #[error("no address for host {host}: {source}; check the name")]
    Resolve {
        /// As it was given.
        host: String,
        /// Of the resolver.
        source: io::Error,
    },
    /// Nobody answered, or somebody refused at the transport's level.
    #[error("can't reach {target}: {reason}; is the broker running there, and its port open?")]
    Unreachable {
        /// Scheme, host and port.
        target: String,
        /// What the transport said.
        reason: String,
    },
    /// The server's certificate doesn't verify.
    #[error(
        "the certificate of {target} is not trusted: {reason}; \
         give its authority with --cafile FILE, or skip the check with --insecure"
    )]
    Certificate {
        /// Scheme, host and port.
        target: String,
        /// What the verifier said.
        reason: String,
    },
    /// The certificates to trust can't be read.
    #[error("can't use {}: {reason}; --cafile takes PEM certificates", path.display())]
    TrustFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The client's own certificate or key can't be used.
    #[error("can't use {}: {reason}; --cert takes a PEM certificate, --key its PEM key", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The system has no certificates to trust.
    #[error(
        "this system has no certificate authorities ({reason}); \
         give one with --cafile FILE, or skip the check with --insecure"
    )]
    NoTrust {
        /// What was found instead.
        reason: String,
    },
    /// A file beside a QUIC connection can't be used.
    #[error("can't use {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The server gives no session ticket, or none that is good for 0-RTT data.
    #[error("{target} takes no 0-RTT data; connect without --0rtt")]
    NoEarlyData {
        /// Scheme, host and port.
        target: String,
    },
    /// The server's CONNACK refuses (§3.2.2.2).
    #[error("the server refuses the connection: {}", named(*reason, text.as_deref()))]
    Refused {
        /// Connect Reason Code.
        reason: ReasonCode,
        /// Reason String.
        text: Option<String>,
    },
    /// The server's DISCONNECT (§3.14).
    #[error("the server ends the connection: {}", named(*reason, text.as_deref()))]
    Disconnected {
        /// Disconnect Reason Code.
        reason: ReasonCode,
        /// Reason String.
        text: Option<String>,
    },
    /// The server closed the connection without a DISCONNECT.
    #[error("the server closed the connection{}", .reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default())]
    Closed {
        /// What the transport said.
        reason: Option<String>,
    },
    /// The server didn't answer in time.
    #[error("no answer from {what} within {}", seconds(*after))]
    Timeout {
        /// Who should have answered to what.
        what: String,
        /// How long that was waited for.
        after: Duration,
    },
    /// The server sent something that isn't MQTT, or not now.
    #[error("the server breaks the protocol: {0}")]
    Protocol(String),
    /// The server's limits don't allow what was asked.
    #[error("the server doesn't take this: {0}")]
    NotSupported(String),
    /// All 65,535 Packet Identifiers are in use.
    #[error("too many unacknowledged packets: all 65,535 Packet Identifiers are in use")]
    NoPacketId,
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Of the operating system.
        source: io::Error,
    },
}

impl From<DecodeError> for ClientError {
    fn from(error: DecodeError) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// A reason code for a reader: "not authorized (0x87)", with the Reason String if there is one.
pub(crate) fn named(reason: ReasonCode, text: Option<&str>) -> String {
    let name = reason
        .name()
        .unwrap_or("UNKNOWN_REASON")
        .to_lowercase()
        .replace('_', " ");
    let text = text.map(|t| format!(", \"{t}\"")).unwrap_or_default();
    format!("{name} ({:#04x}){text}", reason.0)
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}
