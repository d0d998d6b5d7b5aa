//! Sends a client's first flight to another Destination Connection ID, which is all that somebody who recorded it can
//! change: Initial packets are sealed with keys that follow from that ID (RFC 9001 §5.2), 0-RTT packets with keys that only
//! the client and the server have, over a header that has the ID in it.

use rustls::{
    Side,
    crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
    quic::{DirectionalKeys, Version},
};

/// Bits of the first byte that say the form and the type. Between them is the fixed bit, which a client that knows the server
/// may clear (RFC 9287).
const TYPE: u8 = 0xb0;

/// The long header's form with the types Initial and 0-RTT (RFC 9000 §17.2).
const INITIAL: u8 = 0x80;
const EARLY: u8 = 0x90;

/// One packet of a flight, by offsets in its datagram.
struct Long {
    kind: u8,
    dcid: std::ops::Range<usize>,
    /// Where the packet number begins.
    number: usize,
    end: usize,
}

/// The Destination Connection ID of a datagram whose first packet has a long header.
#[must_use]
pub fn destination(datagram: &[u8]) -> Option<&[u8]> {
    let len = usize::from(*datagram.get(5)?);
    datagram.get(6..6 + len)
}

/// A datagram of a first flight, with its Initial and 0-RTT packets sent to `dcid` instead. `None` if there are none, or
/// if they are not for `from`: once it has heard of the server a client sends to the ID that the server chose.
///
/// # Panics
/// When an Initial packet does not open with the keys of `from`, or `dcid` has another length.
#[must_use]
pub fn readdressed(datagram: &[u8], from: &[u8], dcid: &[u8]) -> Option<Vec<u8>> {
    assert_eq!(from.len(), dcid.len(), "all lengths stay as they are");
    let mut out = Vec::with_capacity(datagram.len());
    let mut rest = datagram;
    while let Some(packet) = next(rest) {
        if rest[packet.dcid.clone()] == *from {
            let mut bytes = rest[..packet.end].to_vec();
            match packet.kind {
                INITIAL => reseal(&mut bytes, &packet, from, dcid),
                _ => bytes[packet.dcid.clone()].copy_from_slice(dcid),
            }
            out.extend(bytes);
        }
        rest = &rest[packet.end..];
    }
    // What follows are zeros, with which an endpoint may fill a datagram behind its packets.
    out.resize(if out.is_empty() { 0 } else { datagram.len() }, 0);
    (!out.is_empty()).then_some(out)
}

/// The packet that `bytes` begin with, if it is an Initial or a 0-RTT packet of version 1 (RFC 9000 §17.2).
fn next(bytes: &[u8]) -> Option<Long> {
    let kind = bytes.first()? & TYPE;
    if ![INITIAL, EARLY].contains(&kind) {
        return None;
    }
    let dcid = 6..6 + usize::from(*bytes.get(5)?);
    let mut at = dcid.end + 1 + usize::from(*bytes.get(dcid.end)?);
    if kind == INITIAL {
        let (token_len, after) = variable(bytes, at)?;
        at = after + token_len;
    }
    let (length, number) = variable(bytes, at)?;
    let end = number + length;
    (end <= bytes.len()).then_some(Long {
        kind,
        dcid,
        number,
        end,
    })
}

/// A variable-length integer (RFC 9000 §16), and where it ends.
fn variable(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let len = 1 << (bytes.get(at)? >> 6);
    let value = bytes.get(at..at + len)?;
    let first = usize::from(value[0] & 0x3f);
    let value = value[1..]
        .iter()
        .fold(first, |sum, byte| sum << 8 | usize::from(*byte));
    Some((value, at + len))
}

/// Opens an Initial packet and seals it for another Destination Connection ID.
fn reseal(bytes: &mut [u8], packet: &Long, from: &[u8], dcid: &[u8]) {
    let opens = client_keys(from);
    let (header, payload) = bytes.split_at_mut(packet.number);
    let (number, sample) = payload.split_at_mut(4);
    let sample_len = opens.header.sample_len();
    opens
        .header
        .decrypt_in_place(&sample[..sample_len], &mut header[0], number)
        .expect("a sample of the right length");
    let number_len = usize::from(header[0] & 3) + 1;
    let value = payload[..number_len]
        .iter()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    let (header, sealed) = bytes.split_at_mut(packet.number + number_len);
    opens
        .packet
        .decrypt_in_place(value, header, sealed)
        .expect("the keys of the first Destination Connection ID open it");
    header[packet.dcid.clone()].copy_from_slice(dcid);
    let seals = client_keys(dcid);
    let plain_len = sealed.len() - seals.packet.tag_len();
    let (plain, tag) = sealed.split_at_mut(plain_len);
    let made = seals
        .packet
        .encrypt_in_place(value, header, plain)
        .expect("a short payload");
    tag.copy_from_slice(made.as_ref());
    let (header, payload) = bytes.split_at_mut(packet.number);
    let (number, sample) = payload.split_at_mut(4);
    seals
        .header
        .encrypt_in_place(
            &sample[..sample_len],
            &mut header[0],
            &mut number[..number_len],
        )
        .expect("a sample of the right length");
}

/// The keys of a client's Initial packets.
fn client_keys(dcid: &[u8]) -> DirectionalKeys {
    let suite = TLS13_AES_128_GCM_SHA256.tls13();
    let quic = suite.and_then(|suite| suite.quic_suite());
    let quic = quic.expect("this suite of TLS 1.3 protects QUIC");
    quic.keys(dcid, Side::Client, Version::V1).local
}
