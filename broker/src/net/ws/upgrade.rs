//! The HTTP request that opens a WebSocket connection (RFC 6455 §4.2), and the answer.

use super::Stop;
use headgate_codec::ReasonCode;
use httparse::{Header, Request, Status};
use std::io::Write;

/// The longest request that is taken, bytes: browsers send cookies along. A connection holds no more until it is
/// complete.
pub const REQUEST_BYTES_MAX: usize = 8 * 1024;

/// Header fields of a request, at most.
const FIELDS_MAX: usize = 64;

/// Subprotocols that are MQTT, in the order of preference: the standard's name \[MQTT-6.0.0-3\], and that of 3.1, which
/// some clients still offer alone.
const SUBPROTOCOLS: [&str; 2] = ["mqtt", "mqttv3.1"];

/// A request that is arriving.
#[derive(Debug, Default)]
pub struct Upgrade {
    received: Vec<u8>,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Not HTTP, or not what RFC 6455 asks for.
    BadRequest(&'static str),
    /// HTTP, but no WebSocket.
    NoUpgrade,
    /// Another version of WebSocket (RFC 6455 §4.4).
    Version,
    /// Longer than is taken.
    TooLong,
}

impl Upgrade {
    /// Adds what came and answers a whole request in `replies`. Returns how many bytes of `data` belong to the request;
    /// `Ok(None)`: its end has not come.
    ///
    /// # Errors
    /// The request is refused; the answer is in `replies`.
    pub fn receive(&mut self, data: &[u8], replies: &mut Vec<u8>) -> Result<Option<usize>, Stop> {
        let before = self.received.len();
        self.received
            .extend_from_slice(&data[..data.len().min(REQUEST_BYTES_MAX - before)]);
        match self.answer(before, replies) {
            Ok(None) => Ok(None),
            Ok(Some(length)) => {
                self.received = Vec::new();
                Ok(Some(length - before))
            }
            Err(fault) => {
                refuse(fault, replies);
                self.received = Vec::new();
                Err(Stop::Refused(ReasonCode::PROTOCOL_ERROR))
            }
        }
    }

    fn answer(&self, before: usize, replies: &mut Vec<u8>) -> Result<Option<usize>, Fault> {
        // Parsed once it is whole: an end of the header has a line feed, nothing else between.
        if !ends(&self.received, before) {
            return match self.received.len() < REQUEST_BYTES_MAX {
                true => Ok(None),
                false => Err(Fault::TooLong),
            };
        }
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut request = Request::new(&mut fields);
        let length = match request.parse(&self.received) {
            Ok(Status::Complete(length)) => length,
            Ok(Status::Partial) if self.received.len() < REQUEST_BYTES_MAX => return Ok(None),
            Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                return Err(Fault::TooLong);
            }
            Err(_) => return Err(Fault::BadRequest("this is not HTTP/1.1")),
        };
        if length < before {
            return Err(Fault::BadRequest("this is not HTTP/1.1"));
        }
        accept(&request, replies)?;
        Ok(Some(length))
    }
}

/// Whether an empty line ends within what came from `before` on.
fn ends(received: &[u8], before: usize) -> bool {
    let from = before.saturating_sub(3);
    let new = &received[from..];
    new.windows(2).any(|pair| pair == b"\n\n") || new.windows(3).any(|three| three == b"\n\r\n")
}

/// RFC 6455 §4.2.1 and §4.2.2.
fn accept(request: &Request<'_, '_>, replies: &mut Vec<u8>) -> Result<(), Fault> {
    let fields = &*request.headers;
    if !lists(fields, "upgrade").any(|token| token.eq_ignore_ascii_case("websocket"))
        || !lists(fields, "connection").any(|token| token.eq_ignore_ascii_case("upgrade"))
    {
        return Err(Fault::NoUpgrade);
    }
    if request.method != Some("GET") || request.version != Some(1) {
        return Err(Fault::BadRequest(
            "an upgrade to WebSocket is a GET of HTTP/1.1",
        ));
    }
    if field(fields, "host").is_none() {
        return Err(Fault::BadRequest("the Host field is missing"));
    }
    if field(fields, "sec-websocket-version") != Some("13") {
        return Err(Fault::Version);
    }
    let key = field(fields, "sec-websocket-key").filter(|key| is_key(key));
    let key = key.ok_or(Fault::BadRequest("Sec-WebSocket-Key is missing or wrong"))?;
    // [MQTT-6.0.0-4]: the server names the one that it has chosen.
    let offered =
        |name: &&&str| lists(fields, "sec-websocket-protocol").any(|token| token == **name);
    let protocol = SUBPROTOCOLS.iter().find(offered).ok_or(Fault::BadRequest(
        "Sec-WebSocket-Protocol has to offer mqtt [MQTT-6.0.0-3]",
    ))?;
    let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
    let _to_memory = write!(
        replies,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
    );
    Ok(())
}

fn refuse(fault: Fault, replies: &mut Vec<u8>) {
    let (status, field, text) = match fault {
        Fault::BadRequest(text) => ("400 Bad Request", "", text),
        Fault::NoUpgrade => (
            "426 Upgrade Required",
            "Upgrade: websocket\r\n",
            "this port speaks MQTT over WebSocket",
        ),
        Fault::Version => (
            "426 Upgrade Required",
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
            "WebSocket version 13 is expected",
        ),
        Fault::TooLong => (
            "431 Request Header Fields Too Large",
            "",
            "the request is too long",
        ),
    };
    let connection = match fault {
        Fault::NoUpgrade | Fault::Version => "Upgrade, close",
        _ => "close",
    };
    let _to_memory = write!(
        replies,
        "HTTP/1.1 {status}\r\nConnection: {connection}\r\n{field}Content-Type: text/plain\r\n\
         Content-Length: {}\r\n\r\n{text}\n",
        text.len() + 1
    );
}

/// The one value of a field; `None` if there is none, or more than one.
fn field<'a>(fields: &'a [Header<'_>], name: &str) -> Option<&'a str> {
    let mut values = values(fields, name);
    let value = values.next()?;
    values.next().is_none().then_some(value)
}

/// The items of all comma-separated values of a field.
fn lists<'a>(fields: &'a [Header<'_>], name: &str) -> impl Iterator<Item = &'a str> {
    values(fields, name).flat_map(|value| value.split(',').map(str::trim))
}

fn values<'a>(fields: &'a [Header<'_>], name: &str) -> impl Iterator<Item = &'a str> {
    fields
        .iter()
        .filter(move |field| field.name.eq_ignore_ascii_case(name))
        .filter_map(|field| std::str::from_utf8(field.value).ok())
        .map(str::trim)
}

/// 16 bytes in base64 (RFC 6455 §4.1).
fn is_key(key: &str) -> bool {
    let (digits, padding) = key.split_at_checked(22).unwrap_or(("", ""));
    let is_digit = |c: u8| c.is_ascii_alphanumeric() || c == b'+' || c == b'/';
    padding == "==" && digits.bytes().all(is_digit)
}
