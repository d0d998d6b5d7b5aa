//! What lies between a client's socket over TCP and its MQTT: TLS, WebSocket, both or nothing.

use super::session::{Listener, Session};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::ClientConnection;
use std::io::{self, Cursor, ErrorKind, Read, Write};
use tungstenite::{
    handshake::derive_accept_key,
    protocol::frame::{
        FrameHeader,
        coding::{Control, Data, OpCode},
    },
};

/// The longest answer to a WebSocket upgrade, bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// The layers of one connection.
#[derive(Default)]
pub(super) struct Layers {
    pub(super) tls: Option<Box<ClientConnection>>,
    pub(super) web_socket: Option<Box<WebSocket>>,
    /// What the socket has still to take of what has left the session: frames, without TLS.
    wire: Vec<u8>,
}

/// WebSocket, the client's side (RFC 6455).
pub(super) struct WebSocket {
    key: String,
    is_open: bool,
    /// What has come and isn't a whole answer or frame.
    pending: Vec<u8>,
    /// Answers to pings.
    pongs: Vec<u8>,
}

impl Layers {
    /// Begins: what is to be said first goes to the wire. MQTT waits in the session.
    pub(super) fn begin(&mut self, host: &str) {
        let Some(web_socket) = &self.web_socket else {
            return;
        };
        let key = &web_socket.key;
        let request = format!(
            "GET /mqtt HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
        );
        self.wire.extend_from_slice(request.as_bytes());
    }

    /// Takes bytes of the socket.
    ///
    /// # Errors
    /// Why the connection is over.
    pub(super) fn receive(
        &mut self,
        bytes: &[u8],
        session: &mut Session,
        (client, listener): (u32, &mut impl Listener),
    ) -> Result<(), String> {
        let Self {
            tls, web_socket, ..
        } = self;
        let mut take = |bytes: &[u8]| match web_socket {
            None => session.take(bytes, client, listener),
            Some(web_socket) => {
                web_socket.receive(bytes, |payload| session.take(payload, client, listener))
            }
        };
        let Some(tls) = tls else {
            return take(bytes);
        };
        let (mut wire, mut plain) = (bytes, Vec::new());
        while !wire.is_empty() {
            tls.read_tls(&mut wire).map_err(|error| error.to_string())?;
            tls.process_new_packets()
                .map_err(|error| error.to_string())?;
            match tls.reader().read_to_end(&mut plain) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.to_string()),
                // close_notify
                Ok(_) => wire = &[],
            }
        }
        take(&plain)
    }

    /// Sends what there is, as far as the socket takes it.
    ///
    /// # Errors
    /// Of the socket.
    pub(super) fn flush(
        &mut self,
        session: &mut Session,
        socket: &mut impl Write,
    ) -> io::Result<()> {
        if self.tls.is_none() && self.web_socket.is_none() {
            let written = write_some(socket, session.output())?;
            session.written(written);
            return Ok(());
        }
        // What the socket doesn't take stays in the session, where it is counted.
        while self.write_wire(socket)? && self.fill_wire(session)? {}
        Ok(())
    }

    /// Writes what has left the session; whether all of it is gone.
    fn write_wire(&mut self, socket: &mut impl Write) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else {
            let written = write_some(socket, &self.wire)?;
            self.wire.drain(..written);
            return Ok(self.wire.is_empty());
        };
        if !self.wire.is_empty() {
            tls.writer().write_all(&self.wire)?;
            self.wire.clear();
        }
        while tls.wants_write() {
            match tls.write_tls(socket) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // Before the handshake is over, rustls would keep what it is given.
        Ok(!tls.is_handshaking())
    }

    /// Takes what the session has; whether it was anything.
    fn fill_wire(&mut self, session: &mut Session) -> io::Result<bool> {
        let output = session.output();
        let Some(web_socket) = &mut self.web_socket else {
            self.wire.extend_from_slice(output);
            output.clear();
            return Ok(!self.wire.is_empty());
        };
        self.wire.append(&mut web_socket.pongs);
        if web_socket.is_open && !output.is_empty() {
            frame(OpCode::Data(Data::Binary), output, &mut self.wire)?;
            output.clear();
        }
        Ok(!self.wire.is_empty())
    }

    /// Lets go of the buffers, if nothing is in them.
    pub(super) fn rest(&mut self) {
        if self.wire.is_empty() {
            self.wire = Vec::new();
        }
        if let Some(web_socket) = &mut self.web_socket
            && web_socket.pending.is_empty()
        {
            web_socket.pending = Vec::new();
        }
    }
}

impl WebSocket {
    /// Not yet open; `key` is the nonce of its request.
    pub(super) fn new(key: [u8; 16]) -> Self {
        Self {
            key: STANDARD.encode(key),
            is_open: false,
            pending: Vec::new(),
            pongs: Vec::new(),
        }
    }

    fn receive(
        &mut self,
        bytes: &[u8],
        mut take: impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        self.pending.extend_from_slice(bytes);
        if !self.is_open && !self.open()? {
            return Ok(());
        }
        let mut at = 0;
        loop {
            let mut rest = Cursor::new(&self.pending[at..]);
            let parsed = FrameHeader::parse(&mut rest).map_err(|error| error.to_string())?;
            let Some((header, length)) = parsed else {
                break;
            };
            let from = at + rest.position() as usize;
            let to = usize::try_from(length)
                .ok()
                .and_then(|n| from.checked_add(n));
            let to = to.ok_or("a WebSocket frame that no memory holds")?;
            let Some(payload) = self.pending.get(from..to) else {
                break;
            };
            match header.opcode {
                OpCode::Data(Data::Binary | Data::Continue) => take(payload)?,
                OpCode::Control(Control::Ping) => {
                    let pong = OpCode::Control(Control::Pong);
                    frame(pong, payload, &mut self.pongs).map_err(|error| error.to_string())?;
                }
                OpCode::Control(Control::Pong) => {}
                OpCode::Control(Control::Close) => {
                    return Err("the server closed the WebSocket".to_owned());
                }
                other => return Err(format!("a WebSocket frame of {other} [MQTT-6.0.0-1]")),
            }
            at = to;
        }
        self.pending.drain(..at);
        Ok(())
    }

    /// Reads the answer to the upgrade (RFC 6455 §4.2.2); whether it has come.
    fn open(&mut self) -> Result<bool, String> {
        let end = self.pending.windows(4).position(|four| four == b"\r\n\r\n");
        let Some(end) = end else {
            return match self.pending.len() > ANSWER_BYTES_MAX {
                true => Err("an endless answer to the WebSocket upgrade".to_owned()),
                false => Ok(false),
            };
        };
        let answer = String::from_utf8_lossy(&self.pending[..end]).into_owned();
        let status = answer.lines().next().unwrap_or_default();
        if !status.starts_with("HTTP/1.1 101 ") {
            return Err(format!("the server doesn't open a WebSocket: {status}"));
        }
        let accept = derive_accept_key(self.key.as_bytes());
        let accepts =
            answer
                .lines()
                .filter_map(|line| line.split_once(':'))
                .any(|(name, value)| {
                    name.eq_ignore_ascii_case("sec-websocket-accept") && value.trim() == accept
                });
        if !accepts {
            return Err("the answer to the WebSocket upgrade is not to this request".to_owned());
        }
        self.pending.drain(..end + 4);
        self.is_open = true;
        Ok(true)
    }
}

/// Appends a client's frame. Its mask is zero: XOR with it costs the server what any other does, and this side nothing.
fn frame(opcode: OpCode, payload: &[u8], to: &mut Vec<u8>) -> io::Result<()> {
    let header = FrameHeader {
        opcode,
        mask: Some([0; 4]),
        ..FrameHeader::default()
    };
    header
        .format(payload.len() as u64, to)
        .map_err(io::Error::other)?;
    to.extend_from_slice(payload);
    Ok(())
}

/// How many of the bytes the socket has taken.
fn write_some(socket: &mut impl Write, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match socket.write(&bytes[written..]) {
            Ok(length) => written += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}
