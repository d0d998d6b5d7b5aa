//! The bytes of one connection: a TCP stream, with TLS or not, WebSocket on either, or the control stream of a QUIC
//! connection.

use super::{ClientError, Scheme, Target, TlsOptions, quic, tls};
use bytes::BytesMut;
use futures_util::{SinkExt, StreamExt};
use quinn::{Endpoint, RecvStream, SendStream, VarInt};
use rustls::pki_types::ServerName;
use std::{future::poll_fn, io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{WebSocketStream, client_async};
use tungstenite::{ClientRequestBuilder, Message, http::Uri};

/// How long closing waits for the peer to have everything.
pub(super) const CLOSE_WAIT_MAX: Duration = Duration::from_secs(2);

/// A stream of bytes in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug> Stream for S {}

/// An open connection.
#[derive(Debug)]
pub enum Transport {
    /// MQTT over TCP, or over TLS.
    Stream(Box<dyn Stream>),
    /// MQTT over WebSocket, or over WebSocket over TLS.
    WebSocket(Box<WebSocketStream<Box<dyn Stream>>>),
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
    pub async fn connect(target: &Target, options: &TlsOptions) -> Result<Self, ClientError> {
        let (transport, _) = Self::connect_to(target, options, |_| true).await?;
        Ok(transport)
    }

    /// Connects to the first of the host's addresses that is of use and answers, and says which it is.
    ///
    /// # Errors
    /// The host has no such address, none of them answers, or its certificate isn't trusted.
    pub async fn connect_to(
        target: &Target,
        options: &TlsOptions,
        is_of_use: impl Fn(&SocketAddr) -> bool,
    ) -> Result<(Self, SocketAddr), ClientError> {
        let resolve = |source| ClientError::Resolve {
            host: target.host.clone(),
            source,
        };
        let found = lookup_host((target.host.as_str(), target.port))
            .await
            .map_err(resolve)?;
        let addresses: Vec<SocketAddr> = found.filter(is_of_use).collect();
        let mut failure = resolve(io::ErrorKind::NotFound.into());
        for address in addresses {
            let opened = match target.scheme {
                Scheme::Quic => quic::open(address, target, options).await,
                _ => over_tcp(address, target, options).await,
            };
            match opened {
                Ok(transport) => return Ok((transport, address)),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Appends what has arrived to `buffer`; 0 at the end. Can be cancelled without losing bytes.
    pub(super) async fn read(&mut self, buffer: &mut BytesMut) -> Result<usize, ClientError> {
        let read = match self {
            Self::Stream(stream) => stream.read_buf(buffer).await,
            Self::WebSocket(socket) => return receive(socket, buffer).await,
            Self::Quic { recv, .. } => recv.read_buf(buffer).await,
        };
        read.map_err(closed)
    }

    /// Writes the front of `buffer` and takes it out. Can be cancelled without losing bytes.
    pub(super) async fn write(&mut self, buffer: &mut BytesMut) -> Result<(), ClientError> {
        let written = match self {
            Self::Stream(stream) => {
                let written = stream.write_buf(buffer).await;
                match written {
                    // TLS may hold it back otherwise. What is not flushed yet goes with the next write.
                    Ok(_) => stream.flush().await,
                    Err(error) => Err(error),
                }
            }
            Self::WebSocket(socket) => return transmit(socket, buffer).await,
            Self::Quic { send, .. } => send.write_buf(buffer).await.map(drop),
        };
        written.map_err(closed)
    }

    /// Closes after everything that was written has arrived, as far as can be known within
    /// two seconds.
    pub(in crate::cli) async fn close(mut self) {
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
            Self::WebSocket(socket) => {
                // §5.5.1: the peer answers with a Close, and ends the connection.
                if WebSocketStream::close(socket, None).await.is_ok() {
                    while socket.next().await.is_some_and(|message| message.is_ok()) {}
                }
                Ok(())
            }
            Self::Stream(stream) => {
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

pub(super) fn unreachable(target: &Target, reason: impl ToString) -> ClientError {
    ClientError::Unreachable {
        target: target.to_string(),
        reason: reason.to_string(),
    }
}

async fn over_tcp(
    address: SocketAddr,
    target: &Target,
    options: &TlsOptions,
) -> Result<Transport, ClientError> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|e| unreachable(target, e))?;
    stream
        .set_nodelay(true)
        .map_err(|e| unreachable(target, e))?;
    let is_web_socket = matches!(target.scheme, Scheme::Ws | Scheme::Wss);
    let stream: Box<dyn Stream> = match target.scheme.is_encrypted() {
        false => Box::new(stream),
        true => {
            let protocol = if is_web_socket { "http/1.1" } else { "mqtt" };
            let config = tls::config(options, rustls::ALL_VERSIONS, protocol)?;
            let name = ServerName::try_from(target.host.clone());
            let name = name.map_err(|error| unreachable(target, error))?;
            let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
            Box::new(connecting.await.map_err(|error| over_tls(target, &error))?)
        }
    };
    if !is_web_socket {
        return Ok(Transport::Stream(stream));
    }
    // Nobody looks at the host in the URI: the stream is there.
    let uri = Uri::from_static("ws://headgate/mqtt");
    let request = ClientRequestBuilder::new(uri).with_sub_protocol("mqtt");
    let opened = client_async(request, stream).await;
    let (socket, _) = opened.map_err(|error| unreachable(target, error))?;
    Ok(Transport::WebSocket(Box::new(socket)))
}

/// Appends the next binary message to `buffer`; 0 at the end.
async fn receive(
    socket: &mut WebSocketStream<Box<dyn Stream>>,
    buffer: &mut BytesMut,
) -> Result<usize, ClientError> {
    // Something may be unsent since a write was cancelled.
    socket.flush().await.map_err(web_socket)?;
    while let Some(message) = socket.next().await {
        match message.map_err(web_socket)? {
            Message::Binary(bytes) if !bytes.is_empty() => {
                buffer.extend_from_slice(&bytes);
                return Ok(bytes.len());
            }
            Message::Close(_) => return Ok(0),
            Message::Text(_) => {
                let text = "a WebSocket frame of text [MQTT-6.0.0-1]";
                return Err(ClientError::Protocol(text.into()));
            }
            _ => {}
        }
    }
    Ok(0)
}

/// Sends all of `buffer` as one binary message. What was taken out is on its way, even if this is cancelled.
async fn transmit(
    socket: &mut WebSocketStream<Box<dyn Stream>>,
    buffer: &mut BytesMut,
) -> Result<(), ClientError> {
    poll_fn(|context| socket.poll_ready_unpin(context))
        .await
        .map_err(web_socket)?;
    let message = Message::Binary(buffer.split().freeze());
    socket.start_send_unpin(message).map_err(web_socket)?;
    socket.flush().await.map_err(web_socket)
}

fn web_socket(error: tungstenite::Error) -> ClientError {
    ClientError::Closed {
        reason: Some(error.to_string()),
    }
}

/// What a failed handshake of TLS over TCP means.
fn over_tls(target: &Target, error: &io::Error) -> ClientError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    if let Some(rustls::Error::InvalidCertificate(_)) = inner {
        return ClientError::Certificate {
            target: target.to_string(),
            reason: error.to_string(),
        };
    }
    unreachable(target, error)
}
