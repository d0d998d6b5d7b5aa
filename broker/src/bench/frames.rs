//! The few QUIC frames (RFC 9000 §19) that a client needs to stay alive.

/// What a packet of the server's says to a client that sleeps.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    /// Bytes of a stream.
    Stream {
        id: u64,
        offset: u64,
        data: &'a [u8],
    },
    /// It has to be answered.
    PathChallenge([u8; 8]),
    /// The connection is over.
    Close,
    /// ACK or PADDING: nothing has to be acknowledged for it.
    Quiet,
    /// Anything else.
    Other,
}

/// A variable-length integer (RFC 9000 §16), taken from the front.
pub(super) fn varint(from: &mut &[u8]) -> Option<u64> {
    let first = *from.first()?;
    let (bytes, rest) = from.split_at_checked(1 << (first >> 6))?;
    *from = rest;
    let value = bytes
        .iter()
        .fold(0, |value, byte| value << 8 | u64::from(*byte));
    Some(value & (u64::MAX >> (64 - (8 << (first >> 6)) + 2)))
}

/// Appends a variable-length integer below 2⁶².
pub(super) fn push_varint(to: &mut Vec<u8>, value: u64) {
    match value {
        0..0x40 => to.push(value as u8),
        0x40..0x4000 => to.extend_from_slice(&(value as u16 | 0x4000).to_be_bytes()),
        0x4000..0x4000_0000 => to.extend_from_slice(&(value as u32 | 0x8000_0000).to_be_bytes()),
        _ => to.extend_from_slice(&(value | 0xc000_0000_0000_0000).to_be_bytes()),
    }
}

/// The next frame; `None` at the end, or when it is none.
pub(super) fn next<'a>(payload: &mut &'a [u8]) -> Option<Frame<'a>> {
    let kind = varint(payload)?;
    let skip = |payload: &mut &'a [u8], integers: usize| -> Option<()> {
        (0..integers).try_for_each(|_| varint(payload).map(drop))
    };
    match kind {
        // PADDING
        0x00 => Some(Frame::Quiet),
        // ACK
        0x02 | 0x03 => {
            skip(payload, 2)?;
            let ranges = varint(payload)?;
            skip(payload, 1)?;
            for _ in 0..ranges {
                skip(payload, 2)?;
            }
            skip(payload, if kind == 3 { 3 } else { 0 })?;
            Some(Frame::Quiet)
        }
        // STREAM
        0x08..=0x0f => {
            let id = varint(payload)?;
            let offset = if kind & 4 != 0 { varint(payload)? } else { 0 };
            let len = match kind & 2 {
                0 => payload.len(),
                _ => usize::try_from(varint(payload)?).ok()?,
            };
            let data = take(payload, len)?;
            Some(Frame::Stream { id, offset, data })
        }
        // CRYPTO, NEW_TOKEN
        0x06 | 0x07 => {
            skip(payload, usize::from(kind == 6))?;
            let len = usize::try_from(varint(payload)?).ok()?;
            take(payload, len)?;
            Some(Frame::Other)
        }
        // NEW_CONNECTION_ID
        0x18 => {
            skip(payload, 2)?;
            let len = usize::from(*take(payload, 1)?.first()?);
            take(payload, len + 16)?;
            Some(Frame::Other)
        }
        0x1a => Some(Frame::PathChallenge(take(payload, 8)?.try_into().ok()?)),
        0x1c | 0x1d => {
            *payload = &[];
            Some(Frame::Close)
        }
        // PING, HANDSHAKE_DONE, IMMEDIATE_ACK
        0x01 | 0x1e | 0x1f => Some(Frame::Other),
        // MAX_DATA, MAX_STREAMS, DATA_BLOCKED, STREAMS_BLOCKED, RETIRE_CONNECTION_ID
        0x10 | 0x12..=0x14 | 0x16 | 0x17 | 0x19 => skip(payload, 1).map(|()| Frame::Other),
        // STOP_SENDING, MAX_STREAM_DATA, STREAM_DATA_BLOCKED
        0x05 | 0x11 | 0x15 => skip(payload, 2).map(|()| Frame::Other),
        // RESET_STREAM
        0x04 => skip(payload, 3).map(|()| Frame::Other),
        // ACK_FREQUENCY
        0xaf => skip(payload, 4).map(|()| Frame::Other),
        _ => None,
    }
}

fn take<'a>(from: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(len)?;
    *from = rest;
    Some(taken)
}

/// Appends a STREAM frame with offset and length.
pub(super) fn push_stream(to: &mut Vec<u8>, id: u64, offset: u64, data: &[u8]) {
    to.push(0x0e);
    push_varint(to, id);
    push_varint(to, offset);
    push_varint(to, data.len() as u64);
    to.extend_from_slice(data);
}

/// Appends an ACK of one packet, without delay.
pub(super) fn push_ack(to: &mut Vec<u8>, number: u64) {
    to.push(0x02);
    push_varint(to, number);
    to.extend_from_slice(&[0, 0, 0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9000 §A.1.
    #[test]
    fn integers_are_those_of_the_standard() {
        let vectors: [(&[u8], u64); 5] = [
            (
                &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c],
                151_288_809_941_952_652,
            ),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x40, 0x25], 37),
            (&[0x25], 37),
        ];
        for (bytes, value) in vectors {
            let mut rest = bytes;
            assert_eq!(varint(&mut rest), Some(value));
            assert!(rest.is_empty());
        }
        for value in [
            0,
            63,
            64,
            16_383,
            16_384,
            (1 << 30) - 1,
            1 << 30,
            (1 << 62) - 1,
        ] {
            let mut bytes = Vec::new();
            push_varint(&mut bytes, value);
            assert_eq!(varint(&mut &bytes[..]), Some(value));
        }
        assert_eq!(varint(&mut &[0xc0, 0][..]), None);
    }

    #[test]
    fn frames_are_read_one_after_the_other() {
        let mut payload = vec![0x01];
        push_ack(&mut payload, 70_000);
        push_stream(&mut payload, 0, 300, b"abc");
        payload.extend_from_slice(&[0x1a, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0]);
        // The last one has no length.
        payload.extend_from_slice(&[0x08, 4]);
        payload.extend_from_slice(b"rest");
        let mut rest = &payload[..];
        let frames: Vec<_> = std::iter::from_fn(|| next(&mut rest)).collect();
        let stream = |id, offset, data| Frame::Stream { id, offset, data };
        assert_eq!(
            frames,
            [
                Frame::Other,
                Frame::Quiet,
                stream(0, 300, b"abc"),
                Frame::PathChallenge([1, 2, 3, 4, 5, 6, 7, 8]),
                Frame::Quiet,
                Frame::Quiet,
                stream(4, 0, b"rest"),
            ]
        );
    }
}
