//! Frames (RFC 6455 §5): what clients send becomes a stream of bytes again.

use super::Stop;
use headgate_codec::ReasonCode;
use std::io::Cursor;
use tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Control, Data, OpCode},
};

/// The longest header, bytes: with a length of eight bytes and a mask.
const HEADER_BYTES_MAX: usize = 14;

/// The longest header that the server makes, bytes: without a mask.
pub const BINARY_HEADER_BYTES_MAX: usize = 10;

/// The longest payload of a control frame, bytes (RFC 6455 §5.5).
const CONTROL_BYTES_MAX: u64 = 125;

/// Status codes of Close frames (RFC 6455 §7.4.1).
mod status {
    pub(super) const NORMAL: u16 = 1000;
    pub(super) const GOING_AWAY: u16 = 1001;
    pub(super) const PROTOCOL_ERROR: u16 = 1002;
    pub(super) const UNSUPPORTED_DATA: u16 = 1003;
    pub(super) const POLICY_VIOLATION: u16 = 1008;
    pub(super) const MESSAGE_TOO_BIG: u16 = 1009;
    pub(super) const TRY_AGAIN_LATER: u16 = 1013;
}

/// The frame whose payload is arriving.
#[derive(Clone, Copy, Debug)]
struct Frame {
    /// `None` for data.
    control: Option<Control>,
    /// What has not come, bytes.
    remaining: u64,
    /// For the next byte.
    mask: [u8; 4],
}

/// The client's side of a WebSocket connection after the upgrade. An idle one holds no buffer.
#[derive(Debug)]
pub struct Frames {
    frame_bytes_max: u32,
    /// The beginning of a header.
    header: [u8; HEADER_BYTES_MAX],
    header_len: usize,
    frame: Option<Frame>,
    /// Frames of a message have come, its last one hasn't.
    fragmented: bool,
    /// Payload of a control frame that is arriving; at most 125 bytes.
    control: Vec<u8>,
    /// What the Close frame is going to say, because the client has broken a rule.
    fault: Option<u16>,
    /// A Close frame was sent.
    closed: bool,
}

impl Frames {
    /// Frames may be `frame_bytes_max` long.
    pub fn new(frame_bytes_max: u32) -> Self {
        Self {
            frame_bytes_max,
            header: [0; HEADER_BYTES_MAX],
            header_len: 0,
            frame: None,
            fragmented: false,
            control: Vec::new(),
            fault: None,
            closed: false,
        }
    }

    /// Takes frames apart: the payload of binary frames is moved to the front of `data`, and its length is returned.
    /// MQTT packets may begin and end anywhere in them \[MQTT-6.0.0-2\]. Pings are answered in `replies`. With a `Stop`
    /// the connection is to be ended, once what came before has been used.
    pub fn receive(&mut self, data: &mut [u8], replies: &mut Vec<u8>) -> (usize, Result<(), Stop>) {
        let mut payload = 0;
        let end = self.take_apart(data, &mut payload, replies);
        (payload, end)
    }

    fn take_apart(
        &mut self,
        data: &mut [u8],
        payload: &mut usize,
        replies: &mut Vec<u8>,
    ) -> Result<(), Stop> {
        let mut at = 0;
        while at < data.len() {
            let Some(frame) = &mut self.frame else {
                at += self.header(&data[at..])?;
                self.complete(replies)?;
                continue;
            };
            let room = data.len() - at;
            let length = usize::try_from(frame.remaining).map_or(room, |rest| room.min(rest));
            let piece = at..at + length;
            unmask(&mut data[piece.clone()], &mut frame.mask);
            if frame.control.is_some() {
                self.control.extend_from_slice(&data[piece.clone()]);
            } else {
                data.copy_within(piece, *payload);
                *payload += length;
            }
            at += length;
            frame.remaining -= length as u64;
            self.complete(replies)?;
        }
        Ok(())
    }

    /// Appends a Close frame, unless there was one: for the rule that the client has broken, or for `reason`.
    pub fn close(&mut self, reason: ReasonCode, out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        let status = self.fault.unwrap_or(match reason {
            ReasonCode::SUCCESS | ReasonCode::SESSION_TAKEN_OVER => status::NORMAL,
            ReasonCode::SERVER_SHUTTING_DOWN => status::GOING_AWAY,
            ReasonCode::PACKET_TOO_LARGE => status::MESSAGE_TOO_BIG,
            ReasonCode::MALFORMED_PACKET | ReasonCode::PROTOCOL_ERROR => status::PROTOCOL_ERROR,
            ReasonCode::SERVER_BUSY | ReasonCode::QUOTA_EXCEEDED => status::TRY_AGAIN_LATER,
            _ => status::POLICY_VIOLATION,
        });
        control_frame(Control::Close, &status.to_be_bytes(), out);
    }

    /// Takes bytes of a header; returns how many. With the last one the frame begins.
    fn header(&mut self, data: &[u8]) -> Result<usize, Stop> {
        let before = self.header_len;
        let length = data.len().min(HEADER_BYTES_MAX - before);
        self.header[before..before + length].copy_from_slice(&data[..length]);
        let mut cursor = Cursor::new(&self.header[..before + length]);
        let parsed = FrameHeader::parse(&mut cursor);
        let end = usize::try_from(cursor.position()).unwrap_or(HEADER_BYTES_MAX);
        let Ok(parsed) = parsed else {
            return Err(self.refuse(status::PROTOCOL_ERROR));
        };
        let Some((header, payload)) = parsed else {
            self.header_len = before + length;
            return Ok(length);
        };
        self.header_len = 0;
        self.begin(&header, payload)?;
        Ok(end - before)
    }

    fn begin(&mut self, header: &FrameHeader, length: u64) -> Result<(), Stop> {
        // RFC 6455 §5.1: a client's frames are masked. §5.2: no extension gives a meaning to RSV1 to RSV3.
        let Some(mask) = header.mask else {
            return Err(self.refuse(status::PROTOCOL_ERROR));
        };
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(self.refuse(status::PROTOCOL_ERROR));
        }
        let control = match header.opcode {
            OpCode::Control(control) if header.is_final && length <= CONTROL_BYTES_MAX => {
                Some(control)
            }
            // [MQTT-6.0.0-1]: nothing but binary frames.
            OpCode::Data(Data::Text) => return Err(self.refuse(status::UNSUPPORTED_DATA)),
            OpCode::Data(Data::Binary) if !self.fragmented => None,
            OpCode::Data(Data::Continue) if self.fragmented => None,
            _ => return Err(self.refuse(status::PROTOCOL_ERROR)),
        };
        if length > u64::from(self.frame_bytes_max) {
            return Err(self.refuse(status::MESSAGE_TOO_BIG));
        }
        if control.is_none() {
            self.fragmented = !header.is_final;
        }
        self.frame = Some(Frame {
            control,
            remaining: length,
            mask,
        });
        Ok(())
    }

    /// Ends the frame if its last byte has come.
    fn complete(&mut self, replies: &mut Vec<u8>) -> Result<(), Stop> {
        let Some(frame) = self.frame.take_if(|frame| frame.remaining == 0) else {
            return Ok(());
        };
        let Some(control) = frame.control else {
            return Ok(());
        };
        let payload = std::mem::take(&mut self.control);
        match control {
            Control::Ping => control_frame(Control::Pong, &payload, replies),
            Control::Close => {
                // The same status goes back (§5.5.1).
                let status = payload.get(..2).unwrap_or_default();
                control_frame(Control::Close, status, replies);
                self.closed = true;
                return Err(Stop::PeerClosed);
            }
            _ => {}
        }
        Ok(())
    }

    fn refuse(&mut self, status: u16) -> Stop {
        self.fault = Some(status);
        Stop::Refused(match status {
            status::MESSAGE_TOO_BIG => ReasonCode::PACKET_TOO_LARGE,
            status::UNSUPPORTED_DATA => ReasonCode::PROTOCOL_ERROR,
            _ => ReasonCode::MALFORMED_PACKET,
        })
    }
}

/// The header of a binary frame with `length` bytes, and how many of the bytes it has. MQTT goes out in binary frames
/// only \[MQTT-6.0.0-1\].
pub fn binary_header(length: usize) -> ([u8; BINARY_HEADER_BYTES_MAX], usize) {
    let mut bytes = [0; BINARY_HEADER_BYTES_MAX];
    let mut cursor = Cursor::new(&mut bytes[..]);
    let header = FrameHeader {
        opcode: OpCode::Data(Data::Binary),
        ..FrameHeader::default()
    };
    let _there_is_room = header.format(length as u64, &mut cursor);
    let end = usize::try_from(cursor.position()).unwrap_or(BINARY_HEADER_BYTES_MAX);
    (bytes, end)
}

fn control_frame(control: Control, payload: &[u8], out: &mut Vec<u8>) {
    let header = FrameHeader {
        opcode: OpCode::Control(control),
        ..FrameHeader::default()
    };
    let _to_memory = header.format(payload.len() as u64, out);
    out.extend_from_slice(payload);
}

/// RFC 6455 §5.3. Afterwards `mask` is for the byte that follows.
fn unmask(bytes: &mut [u8], mask: &mut [u8; 4]) {
    let [a, b, c, d] = *mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut chunks = bytes.chunks_exact_mut(8);
    for chunk in &mut chunks {
        if let Ok(eight) = <[u8; 8]>::try_from(&*chunk) {
            chunk.copy_from_slice(&(u64::from_ne_bytes(eight) ^ wide).to_ne_bytes());
        }
    }
    for (byte, key) in chunks.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
    mask.rotate_left(bytes.len() % 4);
}
