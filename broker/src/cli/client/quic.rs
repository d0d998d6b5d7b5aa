//! A QUIC connection: with 0-RTT data, tokens from earlier connections and qlog where they are asked for.

use super::{
    ClientError, Target, TlsOptions, Transport,
    resume::{Tickets, Tokens},
    tls,
    transport::unreachable,
};
use quinn::{Connection, ConnectionError, Endpoint, VarInt, crypto::rustls::QuicClientConfig};
use std::{
    fs::File,
    io::LineWriter,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::time::timeout;

/// How long a server has for a ticket once the handshake is complete.
const TICKET_WAIT_MAX: Duration = Duration::from_secs(2);

/// What is done over QUIC besides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuicOptions {
    /// Send what comes first as 0-RTT data (RFC 9001 §4.6), with a ticket that a connection before it has got.
    pub early_data: bool,
    /// Where address validation tokens (RFC 9000 §8.1.3) are kept from one process to the next.
    pub resume_file: Option<PathBuf>,
    /// Where a qlog of the connection goes.
    pub qlog: Option<PathBuf>,
}

/// Connects and opens the control stream.
pub(super) async fn open(
    address: SocketAddr,
    target: &Target,
    options: &TlsOptions,
) -> Result<Transport, ClientError> {
    let tickets = Tickets::new();
    let mut tls = tls::config(options, &[&rustls::version::TLS13], "mqtt")?;
    if options.quic.early_data {
        tls.enable_early_data = true;
        tls.resumption = rustls::client::Resumption::store(tickets.clone());
    }
    let tls = QuicClientConfig::try_from(tls).map_err(|error| unreachable(target, error))?;
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    if let Some(path) = &options.quic.resume_file {
        config.token_store(Tokens::open(path)?);
    }
    config.transport_config(Arc::new(transport(None)?));
    let local: SocketAddr = if address.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let endpoint = Endpoint::client(local).map_err(|error| unreachable(target, error))?;
    let begin = |config| {
        let connecting = endpoint.connect_with(config, address, &target.host);
        connecting.map_err(|error| unreachable(target, error))
    };
    if options.quic.early_data {
        let first = begin(config.clone())?.await;
        let first = first.map_err(|error| handshake(target, &error))?;
        // Without one, the next connection says so.
        let _ = timeout(TICKET_WAIT_MAX, tickets.came()).await;
        first.close(VarInt::from_u32(0), b"");
    }
    config.transport_config(Arc::new(transport(options.quic.qlog.as_deref())?));
    let connecting = begin(config)?;
    let connection = match options.quic.early_data {
        false => connecting
            .await
            .map_err(|error| handshake(target, &error))?,
        true => {
            let begun = connecting.into_0rtt();
            let (connection, _) = begun.map_err(|_| ClientError::NoEarlyData {
                target: target.to_string(),
            })?;
            connection
        }
    };
    control_stream(endpoint, connection, target).await
}

async fn control_stream(
    endpoint: Endpoint,
    connection: Connection,
    target: &Target,
) -> Result<Transport, ClientError> {
    let opened = connection.open_bi().await;
    let (send, recv) = opened.map_err(|error| unreachable(target, error))?;
    Ok(Transport::Quic {
        endpoint,
        connection,
        send,
        recv,
    })
}

fn transport(qlog: Option<&Path>) -> Result<quinn::TransportConfig, ClientError> {
    let mut transport = quinn::TransportConfig::default();
    // Keep Alive of MQTT decides how long silence lasts; the server's timeout still counts.
    transport.max_idle_timeout(None);
    if let Some(path) = qlog {
        let file = File::create(path).map_err(|error| ClientError::File {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        let mut qlog = quinn::QlogConfig::default();
        // Complete lines, so that the file can be read while the connection lasts.
        qlog.writer(Box::new(LineWriter::new(file)))
            .title(Some("headgate, client".to_owned()));
        transport.qlog_stream(qlog.into_stream());
    }
    Ok(transport)
}

/// What a failed handshake means: TLS alerts 42 to 48 (RFC 8446 §6.2) speak of the certificate, and
/// 51 of a signature, of the certificate too; a QUIC CRYPTO_ERROR carries them in its low octet
/// (RFC 9001 §4.8).
fn handshake(target: &Target, error: &ConnectionError) -> ClientError {
    if let ConnectionError::TransportError(error) = error {
        let code = u64::from(error.code);
        if matches!(code, 0x12a..=0x130 | 0x133) {
            let (target, reason) = (target.to_string(), error.reason.clone());
            return ClientError::Certificate { target, reason };
        }
    }
    unreachable(target, error)
}
