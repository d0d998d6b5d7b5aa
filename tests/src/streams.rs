//! Blocking connections to a broker: TCP, and TLS and WebSocket laid on it by libraries that are not the broker's own
//! code. They may lie on each other in any order that makes sense.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tungstenite::{ClientRequestBuilder, Message, WebSocket, client};

/// How long a test waits for the broker: a machine that runs many tests at once is slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// TLS over `S`.
pub type Tls<S> = StreamOwned<ClientConnection, S>;

/// A TCP connection.
///
/// # Panics
/// When nobody listens.
pub fn tcp(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).expect("the broker listens");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("it is a socket");
    stream.set_nodelay(true).expect("it is a socket");
    stream
}

/// A TLS configuration that trusts the authority in the file `ca`, and shows the certificate of these two files.
///
/// # Panics
/// When a file can't be used.
pub fn tls_config(ca: &Path, certificate: Option<(&Path, &Path)>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(ca).expect("a certificate"))
        .expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has suites for them")
        .with_root_certificates(roots);
    Arc::new(match certificate {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(chain).expect("a certificate")],
                PrivateKeyDer::from_pem_file(key).expect("a key"),
            )
            .expect("they belong together"),
    })
}

/// TLS on `stream`; the handshake happens with the first byte.
///
/// # Panics
/// When the configuration can't be used.
pub fn tls<S: Read + Write>(stream: S, config: &Arc<ClientConfig>) -> Tls<S> {
    let name = "localhost".try_into().expect("a name");
    let connection = ClientConnection::new(Arc::clone(config), name).expect("a configuration");
    StreamOwned::new(connection, stream)
}

/// WebSocket on a stream, as a stream of bytes again: what is written leaves as binary messages.
#[derive(Debug)]
pub struct WsStream<S> {
    socket: WebSocket<S>,
    rest: Vec<u8>,
}

/// WebSocket with subprotocol `mqtt` on `stream`.
///
/// # Panics
/// When the broker refuses.
pub fn web_socket<S: Read + Write>(stream: S) -> WsStream<S> {
    let uri = "ws://localhost/mqtt".parse().expect("a URI");
    let request = ClientRequestBuilder::new(uri).with_sub_protocol("mqtt");
    match client(request, stream) {
        Ok((socket, _)) => WsStream {
            socket,
            rest: Vec::new(),
        },
        Err(error) => panic!("the broker takes no WebSocket: {error}"),
    }
}

impl<S: Read + Write> WsStream<S> {
    /// The WebSocket, for what a test wants to do with it besides.
    pub fn socket(&mut self) -> &mut WebSocket<S> {
        &mut self.socket
    }

    /// The status of the Close frame that comes next, whatever comes before it.
    ///
    /// # Panics
    /// When the connection ends without one.
    pub fn close_status(&mut self) -> u16 {
        loop {
            match self.socket.read() {
                Ok(Message::Close(Some(close))) => return close.code.into(),
                Ok(_) => {}
                Err(error) => panic!("no Close with a status: {error}"),
            }
        }
    }
}

impl<S: Read + Write> Read for WsStream<S> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.socket.read() {
                Ok(Message::Binary(bytes)) => self.rest = bytes.to_vec(),
                Ok(Message::Close(_)) => return Ok(0),
                Ok(_) => {}
                Err(error) => return error_of(error).map_or(Ok(0), Err),
            }
        }
        let length = to.len().min(self.rest.len());
        to[..length].copy_from_slice(&self.rest[..length]);
        self.rest.drain(..length);
        Ok(length)
    }
}

impl<S: Read + Write> Write for WsStream<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.socket.send(Message::binary(bytes.to_vec())) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => Err(error_of(error).unwrap_or_else(|| ErrorKind::BrokenPipe.into())),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.socket.flush() {
            Ok(()) => Ok(()),
            Err(error) => error_of(error).map_or(Ok(()), Err),
        }
    }
}

/// `None` at the regular end.
fn error_of(error: tungstenite::Error) -> Option<io::Error> {
    match error {
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => None,
        tungstenite::Error::Io(error) => Some(error),
        // The broker has closed the socket without a Close.
        tungstenite::Error::Protocol(_) => None,
        other => Some(io::Error::other(other)),
    }
}
