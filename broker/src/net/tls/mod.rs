//! TLS for QUIC with little memory per idle connection.
//!
//! rustls does the handshake. After it, a connection keeps its keys in their shortest form and of the
//! session only what a key update needs. The exporter (RFC 5705) is not available.

mod by_name;
mod clients;
mod identity;
mod keys;
mod parameters;
mod post_quantum;
mod session;
pub mod stream;
mod tickets;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use headgate_common::token::NEW_TOKEN_LIFE_S;
use quinn_proto::congestion::{BbrConfig, ControllerFactory, CubicConfig, NewRenoConfig};
use quinn_proto::crypto::HandshakeTokenKey;
use quinn_proto::{
    EndpointConfig, IdleTimeout, MtuDiscoveryConfig, QlogStream, ServerConfig, TransportConfig,
    VarInt,
};
use ring::hmac;

use super::token::UsedTokens;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::cipher_suite;

pub use clients::ClientAuthorities;
pub use identity::{TlsError, TlsIdentity};
pub use keys::{ClientKeys, Decryptions};
pub use post_quantum::X25519_MLKEM768;
pub use session::SecretsTap;
pub use tickets::TicketStore;

/// QUIC version 1 (RFC 9000 §15).
const QUIC_VERSION_1: u32 = 1;

/// Congestion control (RFC 9002 §7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// RFC 9002 §7.
    #[default]
    NewReno,
    /// RFC 9438.
    Cubic,
    /// By the measured rate.
    Bbr,
}

impl Congestion {
    fn factory(self) -> Arc<dyn ControllerFactory + Send + Sync> {
        match self {
            Self::NewReno => Arc::new(NewRenoConfig::default()),
            Self::Cubic => Arc::new(CubicConfig::default()),
            Self::Bbr => Arc::new(BbrConfig::default()),
        }
    }
}

/// How both sides come to a common secret (RFC 8446 §4.2.7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyExchange {
    /// [`X25519_MLKEM768`] for clients that offer it, which costs both sides a few dozen microseconds more and a client
    /// a second datagram; for others, as below.
    #[default]
    PostQuantum,
    /// X25519, P-256 and P-384 only.
    Classical,
}

/// What a QUIC listener offers to its peers.
///
/// A connection's worst case is `receive_window_bytes` of data received and not yet read, `send_window_bytes` of data
/// sent and not yet acknowledged, and `crypto_buffer_bytes` during the handshake.
#[derive(Debug, Clone)]
pub struct QuicSettings {
    /// Application protocols (ALPN) in the order of preference; a client that offers none of them is refused with
    /// `no_application_protocol` (RFC 9001 §8.1). Default: `mqtt`.
    pub protocols: Vec<Vec<u8>>,
    /// Bidirectional streams that the client may have open at once. Default 3, which costs a connection as much as
    /// one does; 10 take 500 bytes more, used or not. The worker can raise it for a connection that uses them.
    pub bidi_streams_max: u32,
    /// Unidirectional streams that the client may have open at once. Default 0: MQTT has no use for them.
    pub uni_streams_max: u32,
    /// Bytes that the client may send on one stream before the worker reads them. Default 1 MiB; what the whole
    /// connection may send is less at first.
    pub stream_receive_window_bytes: u32,
    /// Bytes that the client may send on all streams before the worker reads them. Default 64 KiB; the worker can
    /// raise it for a connection that needs more.
    pub receive_window_bytes: u32,
    /// Bytes written by the worker that wait for acknowledgement. Default 256 KiB.
    pub send_window_bytes: u32,
    /// Bytes of datagrams (RFC 9221) that wait in one connection, in each direction. Default 64 KiB; 0 = datagrams are not
    /// offered.
    pub datagram_buffer_bytes: u32,
    /// Bytes of handshake messages that wait for those before them. Default 8 KiB: a ClientHello with a post-quantum
    /// key share has 1.8 KiB.
    pub crypto_buffer_bytes: usize,
    /// The idle timeout (RFC 9000 §10.1) that is advertised, in milliseconds; the smaller one of both sides counts.
    /// Default one hour. It is only a ceiling: the broker ends silent connections itself, by their keep-alive.
    pub idle_timeout_ms_max: u32,
    /// The longest UDP payload that we take, in bytes. Default 1,472; at least 1,200 (RFC 9000 §14).
    pub udp_payload_bytes_max: u16,
    /// Session tickets (RFC 8446 §4.6.1) for each handshake. Default 1: each is good once.
    pub session_tickets: usize,
    /// Congestion control. Default NewReno.
    pub congestion: Congestion,
    /// Look for a path MTU above 1,200 bytes (RFC 8899). Default no: MQTT's packets are small.
    pub mtu_discovery: bool,
    /// Take 0-RTT data (RFC 9001 §4.6) of clients that resume a session. Default yes.
    pub early_data: bool,
    /// Address validation tokens (RFC 9000 §8.1.3) for each connection. Default 1.
    pub new_tokens: u32,
    /// How long a token of a Retry packet is good. Default 15 s.
    pub retry_token_life: Duration,
    /// Key exchanges. Default with the post-quantum one.
    pub key_exchange: KeyExchange,
}

impl Default for QuicSettings {
    fn default() -> Self {
        Self {
            protocols: vec![b"mqtt".to_vec()],
            bidi_streams_max: 3,
            uni_streams_max: 0,
            stream_receive_window_bytes: 1 << 20,
            receive_window_bytes: 64 << 10,
            send_window_bytes: 256 << 10,
            datagram_buffer_bytes: 64 << 10,
            crypto_buffer_bytes: 8 << 10,
            idle_timeout_ms_max: 3_600_000,
            udp_payload_bytes_max: 1472,
            session_tickets: 1,
            congestion: Congestion::default(),
            mtu_discovery: false,
            early_data: true,
            new_tokens: 1,
            retry_token_life: Duration::from_secs(15),
            key_exchange: KeyExchange::default(),
        }
    }
}

/// A TLS configuration that can be replaced: handshakes that are under way keep the one that they began with.
#[derive(Debug)]
pub struct LiveTls(RwLock<Arc<rustls::ServerConfig>>);

impl LiveTls {
    /// Begins with `config`.
    pub fn new(config: impl Into<Arc<rustls::ServerConfig>>) -> Arc<Self> {
        Arc::new(Self(RwLock::new(config.into())))
    }

    /// For a new connection.
    pub fn current(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// For all connections from now on.
    pub fn replace(&self, config: impl Into<Arc<rustls::ServerConfig>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = config.into();
    }
}

/// quinn-proto's configuration for all workers of a listener: make it once and clone it, so that a ticket from one
/// worker is good at another. `tls` is of [`quic_tls_config`] with the same `settings`, `token_key` protects Retry and
/// NEW_TOKEN tokens.
pub fn quic_server_config(
    tls: &Arc<LiveTls>,
    settings: &QuicSettings,
    token_key: Arc<dyn HandshakeTokenKey>,
) -> ServerConfig {
    let crypto = Arc::new(session::LeanServer::new(Arc::clone(tls)));
    let mut server = ServerConfig::new(crypto, token_key);
    server.transport_config(Arc::new(transport_config(settings, None)));
    server
        .validation_token
        .sent(settings.new_tokens)
        .lifetime(Duration::from_secs(NEW_TOKEN_LIFE_S.into()))
        .log(Arc::new(UsedTokens::default()));
    server.retry_token_lifetime(settings.retry_token_life);
    // The worker accepts or refuses at once: nothing has to be kept for connections that nobody looked at yet.
    server
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BUFFER_BYTES);
    server.incoming_buffer_size_total(INCOMING_BUFFER_TOTAL_BYTES);
    server
}

/// rustls's configuration of listeners over TCP, for TLS 1.2 and 1.3: make it once and clone it, so that a ticket from
/// one worker is good at another.
///
/// `protocols` is for clients that offer any (ALPN, RFC 7301); one that offers others only is refused.
///
/// # Errors
/// [`TlsError::Identity`] if rustls doesn't take the identity.
pub fn tcp_server_config(
    identity: &TlsIdentity,
    clients: Option<&ClientAuthorities>,
    protocols: &[&str],
    key_exchange: KeyExchange,
) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let provider = provider(key_exchange);
    let mut tls = server_config(identity, clients, rustls::ALL_VERSIONS, provider)?;
    (tls.send_tls13_tickets, tls.max_tls13_tickets) = (TCP_SESSION_TICKETS, TCP_SESSION_TICKETS);
    // Tickets that hold the session themselves: nothing to store, nothing to share but the key.
    tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    tls.ticketer = rustls::crypto::ring::Ticketer::new().map_err(TlsError::Identity)?;
    tls.alpn_protocols = protocols
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    Ok(Arc::new(tls))
}

/// rustls's configuration of a QUIC listener. `tickets` keeps the sessions that can be resumed.
///
/// # Errors
/// [`TlsError::Identity`] if rustls doesn't take the identity.
pub fn quic_tls_config(
    identity: &TlsIdentity,
    clients: Option<&ClientAuthorities>,
    settings: &QuicSettings,
    tickets: &Arc<TicketStore>,
) -> Result<rustls::ServerConfig, TlsError> {
    let versions = &[&rustls::version::TLS13];
    let mut tls = server_config(identity, clients, versions, provider(settings.key_exchange))?;
    tls.send_tls13_tickets = settings.session_tickets;
    tls.max_tls13_tickets = settings.session_tickets;
    // A ticket that holds the session itself could be used twice, so rustls takes no 0-RTT data with one.
    tls.session_storage = Arc::clone(tickets) as Arc<dyn rustls::server::StoresServerSessions>;
    // All or nothing (RFC 9001 §4.6.1): QUIC's flow control bounds the data.
    tls.max_early_data_size = if settings.early_data { u32::MAX } else { 0 };
    tls.alpn_protocols.clone_from(&settings.protocols);
    tls.key_log = Arc::new(SecretsTap);
    Ok(tls)
}

fn server_config(
    identity: &TlsIdentity,
    clients: Option<&ClientAuthorities>,
    versions: &[&'static rustls::SupportedProtocolVersion],
    provider: Arc<CryptoProvider>,
) -> Result<rustls::ServerConfig, TlsError> {
    let builder = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(TlsError::Identity)?;
    let builder = match clients {
        Some(clients) => builder.with_client_cert_verifier(clients.verifier()),
        None => builder.with_no_client_auth(),
    };
    let mut tls = builder.with_cert_resolver(identity.resolver());
    // By our preference, AES-128 before AES-256: a tenth less CPU per handshake, and shorter keys to keep.
    tls.ignore_client_order = true;
    Ok(tls)
}

/// Session tickets for each full handshake over TCP.
const TCP_SESSION_TICKETS: usize = 1;

/// ring's suites in the server's order of preference: those of TLS 1.3, the only version that QUIC has (RFC 9001
/// §4.2), and behind them those of TLS 1.2.
fn provider(key_exchange: KeyExchange) -> Arc<CryptoProvider> {
    let mut ring = rustls::crypto::ring::default_provider();
    if key_exchange == KeyExchange::PostQuantum {
        ring.kx_groups.insert(0, X25519_MLKEM768);
    }
    let mut cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    let older = ring
        .cipher_suites
        .iter()
        .filter(|suite| suite.tls13().is_none());
    cipher_suites.extend(older);
    Arc::new(CryptoProvider {
        cipher_suites,
        ..ring
    })
}

/// Connections that were announced to the worker and not yet accepted or refused.
const MAX_INCOMING: usize = 1024;
/// Bytes kept for one such connection.
const INCOMING_BUFFER_BYTES: u64 = 16 << 10;
/// Bytes kept for all such connections.
const INCOMING_BUFFER_TOTAL_BYTES: u64 = 4 << 20;

/// Of connections; with a `qlog`, of one alone.
pub(super) fn transport_config(
    settings: &QuicSettings,
    qlog: Option<QlogStream>,
) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let datagrams = settings.datagram_buffer_bytes as usize;
    transport
        .max_concurrent_bidi_streams(settings.bidi_streams_max.into())
        .max_concurrent_uni_streams(settings.uni_streams_max.into())
        .stream_receive_window(settings.stream_receive_window_bytes.into())
        .receive_window(settings.receive_window_bytes.into())
        .send_window(settings.send_window_bytes.into())
        .crypto_buffer_size(settings.crypto_buffer_bytes)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(
            settings.idle_timeout_ms_max,
        ))))
        // RFC 9221. The buffers are empty, and take no memory, until a datagram is in them.
        .datagram_receive_buffer_size((datagrams > 0).then_some(datagrams))
        .datagram_send_buffer_size(datagrams)
        // 1,200 bytes pass everywhere.
        .mtu_discovery_config(settings.mtu_discovery.then(MtuDiscoveryConfig::default))
        .allow_spin(false)
        .congestion_controller_factory(settings.congestion.factory())
        .qlog_stream(qlog);
    transport
}

/// quinn-proto's configuration of an endpoint, which each worker completes with its own
/// [`cid_generator`](EndpointConfig::cid_generator).
///
/// `reset_key` must be the same at all workers, so that any of them can tell a client that its connection is gone
/// (RFC 9000 §10.3).
///
/// # Errors
/// [`TlsError::Settings`] if `udp_payload_bytes_max` is out of range.
pub fn quic_endpoint_config(
    settings: &QuicSettings,
    reset_key: hmac::Key,
) -> Result<EndpointConfig, TlsError> {
    let mut endpoint = EndpointConfig::new(Arc::new(reset_key));
    endpoint
        .max_udp_payload_size(settings.udp_payload_bytes_max)
        .map_err(|_| TlsError::Settings {
            problem: format!(
                "udp_payload_bytes_max is {}: it must be from 1200 to 65527",
                settings.udp_payload_bytes_max
            ),
        })?;
    // The drafts that quinn-proto would also take are seen in no client that matters.
    endpoint.supported_versions(vec![QUIC_VERSION_1]);
    // The worker has a budget for them. Its clock stands still within a turn, so that any interval here would mean one
    // reset per turn.
    endpoint.min_reset_interval(Duration::ZERO);
    Ok(endpoint)
}

#[cfg(test)]
mod pair;
#[cfg(test)]
mod tests;
