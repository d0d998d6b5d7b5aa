//! What a QUIC stack has to do for the commands.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// How long anything may take that a command waits for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where the broker is, and who vouches for it.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its UDP address.
    pub broker: SocketAddr,
    /// The authority's certificate, PEM.
    pub authority: PathBuf,
}

/// A stack whose connections know sessions of earlier ones.
pub trait Stack {
    /// Makes a connection that offers this ALPN protocol, and completes the handshake. The former one is forgotten.
    ///
    /// # Errors
    /// The handshake fails.
    fn dial(&mut self, alpn: &str) -> Result<(), End>;

    /// Makes a connection, and sends `first` on its first stream in 0-RTT packets. Returns the stream.
    ///
    /// # Errors
    /// There is no session to resume, or the stack can't do it.
    fn dial_early(&mut self, first: &[u8]) -> Result<u64, End>;

    /// Makes a connection, and offers a version at first that there is not (RFC 9000 §6.3).
    ///
    /// # Errors
    /// The handshake fails, or the stack can't do it.
    fn dial_unknown_version(&mut self) -> Result<(), End>;

    /// Opens a bidirectional stream.
    ///
    /// # Errors
    /// The connection is over.
    fn open(&mut self) -> Result<u64, End>;

    /// Sends all of `data` on a stream.
    ///
    /// # Errors
    /// The connection or the stream is over.
    fn send(&mut self, stream: u64, data: &[u8]) -> Result<(), End>;

    /// Waits for more of a stream.
    ///
    /// # Errors
    /// The connection or the stream is over, or nothing comes.
    fn receive(&mut self, stream: u64) -> Result<Vec<u8>, End>;

    /// Sends a datagram (RFC 9221).
    ///
    /// # Errors
    /// The connection is over, or the broker takes none of this size.
    fn send_datagram(&mut self, data: &[u8]) -> Result<(), End>;

    /// Waits for a datagram.
    ///
    /// # Errors
    /// The connection is over, or none comes.
    fn receive_datagram(&mut self) -> Result<Vec<u8>, End>;

    /// Goes on from another port of this address, with another connection ID (RFC 9000 §9.2), and waits until the path is
    /// validated.
    ///
    /// # Errors
    /// The broker does not answer there, or the stack can't do it.
    fn move_to(&mut self, address: IpAddr) -> Result<(), End>;

    /// Closes the connection without an error.
    fn close(&mut self);

    /// What the stack says of its connection: words, or names with numbers.
    fn facts(&mut self) -> Vec<String>;
}

/// Why something can't go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// CONNECTION_CLOSE with a code of RFC 9000 §20.1.
    Transport(u64),
    /// CONNECTION_CLOSE with a code of MQTT over QUIC.
    Application(u64),
    /// A stateless reset (RFC 9000 §10.3).
    Reset,
    /// Anything else, in words.
    Other(String),
}

impl End {
    /// Something else that went wrong.
    pub fn other(what: impl fmt::Display) -> Self {
        Self::Other(what.to_string())
    }
}

impl fmt::Display for End {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(code) => write!(out, "closed {code:#x}"),
            Self::Application(code) => write!(out, "closed by the application {code:#x}"),
            Self::Reset => out.write_str("reset"),
            Self::Other(what) => write!(out, "failed: {what}"),
        }
    }
}
