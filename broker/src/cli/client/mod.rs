//! A small MQTT client over TCP, TLS, WebSocket and QUIC, for `headgate pub` and `headgate sub` and for tests.
//!
//! One task drives a session: nothing happens in the background. Whoever waits for
//! [`Session::next`] also acknowledges what arrives and keeps the connection alive.

mod error;
mod lanes;
mod quic;
mod resume;
mod session;
mod target;
mod tls;
mod transport;

pub(crate) use error::named;
pub(in crate::cli) use tls::config_with;

pub use error::ClientError;
pub use lanes::Beside;
pub use quic::QuicOptions;
pub use session::{Event, Session};
pub use target::{Scheme, Target, TargetError, Url};
pub use tls::{Identity, TlsOptions, Trust};
pub use transport::Transport;
