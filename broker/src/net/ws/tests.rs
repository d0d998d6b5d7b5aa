//! Requests and frames, cut in every way, against what they were made of.

use super::*;
use proptest::prelude::*;
use std::io::Cursor;
use tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Control, Data, OpCode},
};

const FRAME_BYTES_MAX: u32 = 1_000;

const REQUEST: &str = "GET /mqtt HTTP/1.1\r\nHost: broker\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";

/// A client's frame.
fn frame(opcode: OpCode, is_final: bool, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut header = FrameHeader::default();
    (header.opcode, header.is_final, header.mask) = (opcode, is_final, mask);
    let mut wire = Vec::new();
    header.format(payload.len() as u64, &mut wire).unwrap();
    let key = mask.unwrap_or_default();
    wire.extend(
        payload
            .iter()
            .zip(key.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
    wire
}

fn binary(payload: &[u8]) -> Vec<u8> {
    frame(
        OpCode::Data(Data::Binary),
        true,
        payload,
        Some([1, 2, 3, 4]),
    )
}

/// What a server's frames hold: opcodes and payloads.
fn parsed(mut wire: &[u8]) -> Vec<(OpCode, Vec<u8>)> {
    let mut frames = Vec::new();
    while !wire.is_empty() {
        let mut cursor = Cursor::new(wire);
        let (header, length) = FrameHeader::parse(&mut cursor).unwrap().unwrap();
        assert!(
            header.mask.is_none() && header.is_final,
            "RFC 6455 §5.1: a server masks nothing"
        );
        let from = cursor.position() as usize;
        let to = from + length as usize;
        frames.push((header.opcode, wire[from..to].to_vec()));
        wire = &wire[to..];
    }
    frames
}

/// What becomes of a client's bytes.
#[derive(Debug, Default)]
struct Became {
    mqtt: Vec<u8>,
    replies: Vec<u8>,
    stop: Option<Stop>,
}

/// Gives `wire` to a connection in pieces that end at `cuts`.
fn give(web_socket: &mut WebSocket, wire: &[u8], cuts: &[usize]) -> Became {
    let mut became = Became::default();
    let mut from = 0;
    for to in cuts.iter().copied().chain([wire.len()]) {
        let (Some(piece), None) = (wire.get(from..to), became.stop) else {
            continue;
        };
        let mut piece = piece.to_vec();
        let (range, end) = web_socket.receive(&mut piece, &mut became.replies);
        became.mqtt.extend_from_slice(&piece[range]);
        became.stop = end.err();
        from = to;
    }
    became
}

/// A connection after its upgrade.
fn opened() -> WebSocket {
    let mut web_socket = WebSocket::new(FRAME_BYTES_MAX);
    let became = give(&mut web_socket, REQUEST.as_bytes(), &[]);
    assert_eq!(became.stop, None);
    web_socket
}

/// The answer to a request, and whether the connection is open then.
fn answer(request: &str) -> (String, bool) {
    let mut web_socket = WebSocket::new(FRAME_BYTES_MAX);
    let became = give(&mut web_socket, request.as_bytes(), &[]);
    let is_open = web_socket.is_open();
    assert_eq!(is_open, became.stop.is_none(), "{became:?}");
    (String::from_utf8(became.replies).unwrap(), is_open)
}

fn close_status(became: &Became, web_socket: &mut WebSocket) -> Option<u16> {
    let Some(Stop::Refused(reason)) = became.stop else {
        return None;
    };
    let mut out = Vec::new();
    web_socket.close(reason, &mut out);
    web_socket.close(reason, &mut out);
    match &parsed(&out)[..] {
        [(OpCode::Control(Control::Close), status)] => {
            Some(u16::from_be_bytes([status[0], status[1]]))
        }
        other => panic!("one Close is expected: {other:?}"),
    }
}

#[derive(Clone, Debug)]
enum Sent {
    /// A message in one frame or several, with pings between.
    Message(Vec<Vec<u8>>),
    Ping(Vec<u8>),
    Pong,
}

fn sent() -> impl Strategy<Value = Sent> {
    let bytes = |max| prop::collection::vec(any::<u8>(), 0..max);
    prop_oneof![
        3 => prop::collection::vec(bytes(300), 1..4).prop_map(Sent::Message),
        1 => bytes(126).prop_map(Sent::Ping),
        1 => Just(Sent::Pong),
    ]
}

proptest! {
    /// However messages are fragmented and the stream is cut, MQTT's bytes come out as they went in, and each ping is
    /// answered with its own payload.
    #[test]
    fn the_stream_comes_out_as_it_went_in(
        messages in prop::collection::vec(sent(), 0..12),
        mask in any::<[u8; 4]>(),
        mut cuts in prop::collection::vec(0..4_000usize, 0..40),
        bytewise in any::<bool>(),
    ) {
        let (mut wire, mut mqtt, mut pings) = (REQUEST.as_bytes().to_vec(), Vec::new(), Vec::new());
        for message in messages {
            match message {
                Sent::Message(fragments) => {
                    let last = fragments.len() - 1;
                    for (number, fragment) in fragments.iter().enumerate() {
                        let data = if number == 0 { Data::Binary } else { Data::Continue };
                        wire.extend(frame(OpCode::Data(data), number == last, fragment, Some(mask)));
                        mqtt.extend_from_slice(fragment);
                        if number < last {
                            // Control frames may come between fragments (§5.4).
                            wire.extend(frame(OpCode::Control(Control::Ping), true, b"between", Some(mask)));
                            pings.push((OpCode::Control(Control::Pong), b"between".to_vec()));
                        }
                    }
                }
                Sent::Ping(payload) => {
                    wire.extend(frame(OpCode::Control(Control::Ping), true, &payload, Some(mask)));
                    pings.push((OpCode::Control(Control::Pong), payload));
                }
                Sent::Pong => wire.extend(frame(OpCode::Control(Control::Pong), true, b"late", Some(mask))),
            }
        }
        cuts.sort_unstable();
        if bytewise {
            cuts = (0..wire.len()).collect();
        }
        let became = give(&mut WebSocket::new(FRAME_BYTES_MAX), &wire, &cuts);
        prop_assert_eq!(became.stop, None);
        prop_assert_eq!(became.mqtt, mqtt);
        let end = became.replies.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        prop_assert!(became.replies.starts_with(b"HTTP/1.1 101 "));
        prop_assert_eq!(parsed(&became.replies[end..]), pings);
    }

    /// Anything at all: an end or none, but no panic, and no more replies than an echo of what came.
    #[test]
    fn nothing_makes_it_panic(
        wire in prop::collection::vec(any::<u8>(), 0..600),
        upgraded in any::<bool>(),
        mut cuts in prop::collection::vec(0..600usize, 0..8),
    ) {
        cuts.sort_unstable();
        let mut web_socket = if upgraded { opened() } else { WebSocket::new(FRAME_BYTES_MAX) };
        let became = give(&mut web_socket, &wire, &cuts);
        prop_assert!(became.mqtt.len() <= wire.len());
        prop_assert!(became.replies.len() <= wire.len() + 300);
    }

    /// The same with headers that are nearly right, which random bytes hardly ever are.
    #[test]
    fn frames_with_any_header_are_taken_or_refused(
        first in any::<u8>(),
        second in any::<u8>(),
        rest in prop::collection::vec(any::<u8>(), 0..200),
        mut cuts in prop::collection::vec(0..200usize, 0..8),
    ) {
        cuts.sort_unstable();
        let wire = [&[first, second][..], &rest].concat();
        let mut web_socket = opened();
        let became = give(&mut web_socket, &wire, &cuts);
        let plain = first & 0x70 == 0 && matches!(first & 0x0f, 0 | 2 | 8 | 9 | 10);
        if second & 0x80 == 0 || !plain {
            // Two bytes are enough to see that; the length and the mask are waited for.
            let whole = match second & 0x7f { 126 => 2, 127 => 8, _ => 0 } + usize::from(second >> 7) * 4;
            if rest.len() >= whole {
                prop_assert!(became.stop.is_some(), "{:02x} {:02x}", first, second);
            }
            prop_assert!(became.mqtt.is_empty());
        }
        let status = close_status(&became, &mut web_socket);
        prop_assert!(matches!(status, None | Some(1002 | 1003 | 1009)), "{:?}", status);
    }
}

/// The example of RFC 6455 §1.3.
#[test]
fn a_request_is_accepted_with_its_subprotocol() {
    let (answered, open) = answer(REQUEST);
    assert!(open);
    assert!(
        answered.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"),
        "{answered}"
    );
    assert!(
        answered.contains("Sec-WebSocket-Protocol: mqtt\r\n"),
        "{answered}"
    );
    for (offered, chosen) in [
        ("chat, mqtt", "mqtt"),
        ("mqttv3.1,mqtt", "mqtt"),
        ("mqttv3.1", "mqttv3.1"),
        ("chat\r\nSec-WebSocket-Protocol: mqtt", "mqtt"),
    ] {
        let request = REQUEST.replace("Protocol: mqtt", &format!("Protocol: {offered}"));
        let (answered, open) = answer(&request);
        assert!(open, "{offered}: {answered}");
        assert!(
            answered.ends_with(&format!("Protocol: {chosen}\r\n\r\n")),
            "{offered}: {answered}"
        );
    }
    let (answered, open) = answer(
        &REQUEST
            .to_lowercase()
            .replacen("get /mqtt http", "GET / HTTP", 1)
            .replace("dghlihnhbxbszsbub25jzq", "dGhlIHNhbXBsZSBub25jZQ"),
    );
    assert!(open, "the names of fields have no case: {answered}");
}

#[test]
fn other_requests_are_told_what_is_wrong() {
    let without = |line: &str| REQUEST.replace(line, "");
    for (request, status) in [
        (REQUEST.replace("Protocol: mqtt", "Protocol: chat"), "400"),
        (REQUEST.replace("Protocol: mqtt", "Protocol: MQTT"), "400"),
        (without("\r\nSec-WebSocket-Protocol: mqtt"), "400"),
        (without("\r\nHost: broker"), "400"),
        (
            without("\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
            "400",
        ),
        (
            REQUEST.replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZQ=="),
            "400",
        ),
        (REQUEST.replace("GET", "POST"), "400"),
        (REQUEST.replace("HTTP/1.1", "HTTP/1.0"), "400"),
        (REQUEST.replace("Version: 13", "Version: 8"), "426"),
        (without("Upgrade: websocket\r\n"), "426"),
        (REQUEST.replace("keep-alive, Upgrade", "keep-alive"), "426"),
        (
            format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(REQUEST_BYTES_MAX)),
            "431",
        ),
        (
            REQUEST.replace("Host: broker", &"X: y\r\n".repeat(100)),
            "431",
        ),
        ("\x10\x0c\0\x04MQTT\x05\n\r\n\r\n".to_owned(), "400"),
    ] {
        let (answered, open) = answer(&request);
        assert!(!open, "{request}");
        assert!(
            answered.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request}: {answered}"
        );
    }
}

#[test]
fn rules_that_are_broken_have_their_status() {
    let masked = Some([9, 9, 9, 9]);
    let text = OpCode::Data(Data::Text);
    let ping = OpCode::Control(Control::Ping);
    let too_long = vec![0; FRAME_BYTES_MAX as usize + 1];
    let mut reserved = binary(b"x");
    reserved[0] |= 0x40;
    for (what, wire, expected) in [
        ("text [MQTT-6.0.0-1]", frame(text, true, b"x", masked), 1003),
        (
            "not masked",
            frame(OpCode::Data(Data::Binary), true, b"x", None),
            1002,
        ),
        ("too long", binary(&too_long), 1009),
        ("a long ping", frame(ping, true, &[0; 126], masked), 1002),
        (
            "a ping in fragments",
            frame(ping, false, b"x", masked),
            1002,
        ),
        (
            "nothing to go on",
            frame(OpCode::Data(Data::Continue), true, b"x", masked),
            1002,
        ),
        (
            "a message within a message",
            [
                frame(OpCode::Data(Data::Binary), false, b"x", masked),
                binary(b"y"),
            ]
            .concat(),
            1002,
        ),
        ("a reserved bit", reserved, 1002),
        ("a reserved opcode", vec![0x83, 0x80, 0, 0, 0, 0], 1002),
        (
            "an endless frame",
            [&[0x82, 0xff][..], &[0xff; 12]].concat(),
            1009,
        ),
    ] {
        let mut web_socket = opened();
        let good = binary(b"before");
        let became = give(&mut web_socket, &[good, wire].concat(), &[]);
        assert!(
            became.mqtt.starts_with(b"before"),
            "{what}: what came before counts"
        );
        assert_eq!(
            close_status(&became, &mut web_socket),
            Some(expected),
            "{what}"
        );
    }
}

#[test]
fn the_longest_frame_is_taken() {
    let payload = vec![7; FRAME_BYTES_MAX as usize];
    let became = give(&mut opened(), &binary(&payload), &[]);
    assert_eq!((became.stop, became.mqtt), (None, payload));
}

/// RFC 6455 §5.5.1: the same status goes back, once.
#[test]
fn a_close_is_answered() {
    for status in [&[3, 232][..], &[]] {
        let mut web_socket = opened();
        let close = frame(OpCode::Control(Control::Close), true, status, Some([5; 4]));
        let mut became = give(&mut web_socket, &close, &[]);
        assert_eq!(became.stop, Some(Stop::PeerClosed));
        web_socket.close(ReasonCode::SUCCESS, &mut became.replies);
        assert_eq!(
            parsed(&became.replies),
            [(OpCode::Control(Control::Close), status.to_vec())]
        );
    }
}

#[test]
fn what_leaves_is_one_binary_frame() {
    for length in [0, 1, 125, 126, 65_535, 65_536] {
        let (header, header_len) = binary_header(length);
        let wire = [&header[..header_len], &vec![3; length]].concat();
        assert_eq!(
            parsed(&wire),
            [(OpCode::Data(Data::Binary), vec![3; length])]
        );
    }
}
