//! The bytes of one connection: a TCP stream, or the control stream of a QUIC connection.

use super::{ClientError, Scheme, Target, Trust, tls};
use bytes::BytesMut;
use quinn::{
    ConnectionError, Endpoint, RecvStream, SendStream, VarInt, crypto::rustls::QuicClientConfig,
};
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, lookup_host},
    time::timeout,
};

/// How long closing waits for the peer to have everything.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(2);

/// An open connection.
#[derive(Debug)]
pub enum Transport {
    /// MQTT over TCP.
    Tcp(TcpStream),
    /// MQTT over QUIC: plain MQTT framing on the first bidirectional stream.
    Quic {
        /// The socket; it must outlive the connection.
        endpoint: Endpoint,
        /// The connection.
        connection: quinn::Connection,
        /// Client to server.
        send: SendStream,
        /// Server to client.
        recv: RecvStream,
    },
}

impl Transport {
    /// Connects to the first of the host's addresses that answers.
    ///
    /// # Errors
    /// The host has no address, none of them answers, or its certificate isn't trusted.
    pub async fn connect(target: &Target, trust: &Trust) -> Result<Self, ClientError> {
        let resolve = |source| ClientError::Resolve {
            host: target.host.clone(),
            source,
        };
        let found = lookup_host((target.host.as_str(), target.port))
            .await
            .map_err(resolve)?;
        let addresses: Vec<SocketAddr> = found.collect();
        let mut failure = resolve(io::ErrorKind::NotFound.into());
        for address in addresses {
            let opened = match target.scheme {
                Scheme::Mqtt => tcp(address, target).await,
                Scheme::Quic => quic(address, target, trust).await,
            };
            match opened {
                Ok(transport) => return Ok(transport),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Appends what has arrived to `buffer`; 0 at the end. Can be cancelled without losing bytes.
    pub(super) async fn read(&mut self, buffer: &mut BytesMut) -> Result<usize, ClientError> {
        let read = match self {
            Self::Tcp(stream) => stream.read_buf(buffer).await,
            Self::Quic { recv, .. } => recv.read_buf(buffer).await,
        };
        read.map_err(closed)
    }

    /// Writes the front of `buffer` and takes it out. Can be cancelled without losing bytes.
    pub(super) async fn write(&mut self, buffer: &mut BytesMut) -> Result<(), ClientError> {
        let written = match self {
            Self::Tcp(stream) => stream.write_buf(buffer).await,
            Self::Quic { send, .. } => send.write_buf(buffer).await,
        };
        written.map(drop).map_err(closed)
    }

    /// Closes after everything that was written has arrived, as far as can be known within
    /// two seconds.
    pub(super) async fn close(mut self) {
        // The peer may be gone already; there is nobody to tell then.
        let _ = timeout(CLOSE_WAIT_MAX, self.drain()).await;
        if let Self::Quic {
            endpoint,
            connection,
            ..
        } = self
        {
            connection.close(VarInt::from_u32(0), b"");
            let _ = timeout(CLOSE_WAIT_MAX, endpoint.wait_idle()).await;
        }
    }

    async fn drain(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.shutdown().await?;
                // Closing with unread data would reset the connection and could take back what was sent.
                let mut rest = [0; 1024];
                while stream.read(&mut rest).await? > 0 {}
                Ok(())
            }
            Self::Quic { send, .. } => {
                send.finish()?;
                send.stopped().await?;
                Ok(())
            }
        }
    }
}

/// An end that was not asked for.
fn closed(error: io::Error) -> ClientError {
    ClientError::Closed {
        reason: Some(error.to_string()),
    }
}

fn unreachable(target: &Target, reason: impl ToString) -> ClientError {
    ClientError::Unreachable {
        target: target.to_string(),
        reason: reason.to_string(),
    }
}

async fn tcp(address: SocketAddr, target: &Target) -> Result<Transport, ClientError> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|e| unreachable(target, e))?;
    stream
        .set_nodelay(true)
        .map_err(|e| unreachable(target, e))?;
    Ok(Transport::Tcp(stream))
}

async fn quic(
    address: SocketAddr,
    target: &Target,
    trust: &Trust,
) -> Result<Transport, ClientError> {
    let tls = QuicClientConfig::try_from(tls::config(trust)?)
        .map_err(|error| unreachable(target, error))?;
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    let mut transport = quinn::TransportConfig::default();
    // Keep Alive of MQTT decides how long silence lasts; the server's timeout still counts.
    transport.max_idle_timeout(None);
    config.transport_config(Arc::new(transport));
    let local: SocketAddr = if address.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let endpoint = Endpoint::client(local).map_err(|error| unreachable(target, error))?;
    let connecting = endpoint
        .connect_with(config, address, &target.host)
        .map_err(|error| unreachable(target, error))?;
    let connection = connecting
        .await
        .map_err(|error| handshake(target, &error))?;
    let opened = connection.open_bi().await;
    let (send, recv) = opened.map_err(|error| unreachable(target, error))?;
    Ok(Transport::Quic {
        endpoint,
        connection,
        send,
        recv,
    })
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
