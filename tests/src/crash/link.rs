//! A connection of a client that expects it to break.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use headgate_codec::{ConnAck, Connect, ConnectProperties, Packet, Text, Version, decode, encode};

/// How long the broker may take to answer CONNECT and SUBSCRIBE: only a broken one takes longer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a client waits before it tries to connect again.
pub const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Session Expiry Interval of all clients, seconds.
const SESSION_EXPIRY_S: u32 = 3600;

/// A TCP connection with MQTT 5.0 on it.
#[derive(Debug)]
pub struct Link {
    stream: TcpStream,
    input: BytesMut,
    output: BytesMut,
}

impl Link {
    /// Connects to the session that `client_id` has, or a new one.
    pub fn connect(broker: SocketAddr, client_id: &str) -> io::Result<(Self, ConnAck)> {
        let stream = TcpStream::connect(broker)?;
        stream.set_nodelay(true)?;
        let mut link = Self {
            stream,
            input: BytesMut::new(),
            output: BytesMut::new(),
        };
        link.queue(&Packet::Connect(Box::new(Connect {
            version: Version::V5,
            clean_start: false,
            keep_alive_s: 0,
            client_id: Text::from(client_id),
            will: None,
            user_name: None,
            password: None,
            properties: ConnectProperties {
                session_expiry_s: Some(SESSION_EXPIRY_S),
                ..ConnectProperties::default()
            },
        })));
        link.flush()?;
        match link.receive(ANSWER_TIMEOUT)? {
            Some(Packet::ConnAck(ack)) => Ok((link, *ack)),
            other => Err(io::Error::other(format!("expected CONNACK, got {other:?}"))),
        }
    }

    /// Keeps a packet until [`Link::flush`].
    pub fn queue(&mut self, packet: &Packet) {
        encode(packet, Version::V5, &mut self.output);
    }

    /// Sends what was queued.
    pub fn flush(&mut self) -> io::Result<()> {
        let sent = self.stream.write_all(&self.output);
        self.output.clear();
        sent
    }

    /// The next packet; `None` when none comes in time.
    pub fn receive(&mut self, timeout: Duration) -> io::Result<Option<Packet>> {
        let deadline = Instant::now() + timeout;
        loop {
            let mut bytes = self.input.split().freeze();
            let packet = decode(&mut bytes, Some(Version::V5), u32::MAX)
                .map_err(|error| io::Error::new(ErrorKind::InvalidData, format!("{error:?}")))?;
            self.input = BytesMut::from(bytes);
            let left = deadline.saturating_duration_since(Instant::now());
            if packet.is_some() || left.is_zero() {
                return Ok(packet);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut buffer = [0; 16384];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.input.extend_from_slice(&buffer[..length]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }
}
