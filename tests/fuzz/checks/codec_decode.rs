//! What must hold for any bytes that reach the MQTT decoder. The fuzz target and the replay of
//! its corpus share this.

use bytes::{Bytes, BytesMut};
use headgate_codec::{Packet, Version, decode, encode, encoded_len, frame_len};

const MAXIMUM_PACKET_SIZE: u32 = 1 << 20;

/// `data`: an octet that chooses the version (3, 4, 5; others: before CONNECT), then what the
/// peer sends.
pub fn check(data: &[u8]) {
    let Some((&version, sent)) = data.split_first() else {
        return;
    };
    let mut version = match version {
        3 => Some(Version::V31),
        4 => Some(Version::V311),
        5 => Some(Version::V5),
        _ => None,
    };
    let mut input = Bytes::copy_from_slice(sent);
    loop {
        let before = input.clone();
        let len = frame_len(&before, MAXIMUM_PACKET_SIZE);
        match decode(&mut input, version, MAXIMUM_PACKET_SIZE) {
            Ok(Some(packet)) => {
                let len = len.expect("decoded").expect("complete");
                assert_eq!(input, before[len..], "took something else than one packet");
                let known = version;
                if let Packet::Connect(connect) = &packet {
                    version = Some(connect.version);
                }
                survives(&packet, known, version.expect("a CONNECT came"), len);
            }
            Ok(None) => {
                assert_eq!(input, before, "took from an incomplete packet");
                assert!(len.is_ok_and(|len| len.is_none_or(|len| len > before.len())));
                return;
            }
            Err(error) => {
                assert!(error.reason().0 >= 0x80, "{error}");
                return;
            }
        }
    }
}

/// A decoded packet encodes, not longer than it came, and decodes to itself.
fn survives(packet: &Packet, known: Option<Version>, version: Version, len: usize) {
    let mut out = BytesMut::new();
    encode(packet, version, &mut out);
    assert_eq!(out.len(), encoded_len(packet, version));
    assert!(
        out.len() <= len,
        "{packet:?} grew from {len} to {} bytes",
        out.len()
    );
    let again = decode(&mut out.freeze(), known, MAXIMUM_PACKET_SIZE);
    assert_eq!(again.as_ref(), Ok(&Some(packet.clone())));
}
