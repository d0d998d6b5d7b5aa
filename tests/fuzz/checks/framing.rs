//! However a stream is cut, the same packets come out of it. The fuzz target and the replay of its
//! corpus share this.

use bytes::Bytes;
use headgate_codec::{DecodeError, Packet, Version};

#[expect(dead_code, reason = "the check needs less of it than the broker")]
#[path = "../../../broker/src/net/framing.rs"]
mod framing;

use framing::Inbox;

const MAXIMUM_PACKET_SIZE: u32 = 4_096;

/// `data`: an octet that chooses the version (3, 4, 5; others: before CONNECT), an octet that says
/// how many lengths of pieces follow, these, and then what the peer sends. The lengths are used
/// again and again.
pub fn check(data: &[u8]) {
    let [version, count, rest @ ..] = data else {
        return;
    };
    let (lengths, sent) = rest.split_at(usize::from(*count % 8).min(rest.len()));
    let version = match version {
        3 => Some(Version::V31),
        4 => Some(Version::V311),
        5 => Some(Version::V5),
        _ => None,
    };
    let whole = read([sent], version);
    let mut pieces = Vec::new();
    let mut left = sent;
    for length in lengths.iter().cycle() {
        let at = usize::from(*length).max(1).min(left.len());
        let (piece, after) = left.split_at(at);
        pieces.push(piece);
        left = after;
        if left.is_empty() {
            break;
        }
    }
    if lengths.is_empty() {
        pieces = sent.chunks(1).collect();
    }
    let cut = read(pieces, version);
    assert_eq!(cut.0, whole.0, "packets differ with the pieces");
    // In pieces, an error may show later: the first octet of a packet that is cut is looked at when all of it is there.
    assert!(
        cut.1.is_none() || whole.1.is_some(),
        "{:?} only in pieces",
        cut.1
    );
}

/// What comes out of the pieces, and how it ends.
fn read<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    mut version: Option<Version>,
) -> (Vec<Packet>, Option<DecodeError>) {
    let (mut inbox, mut packets, mut taken) = (Inbox::default(), Vec::new(), 0);
    for piece in pieces {
        taken += piece.len();
        inbox.push(Bytes::copy_from_slice(piece));
        assert!(inbox.len() <= taken, "there is more than has come");
        loop {
            match inbox.next(version, MAXIMUM_PACKET_SIZE) {
                Ok(Some(packet)) => {
                    if let Packet::Connect(connect) = &packet {
                        version = Some(connect.version);
                    }
                    packets.push(packet);
                }
                Ok(None) => break,
                Err(error) => return (packets, Some(error)),
            }
        }
    }
    (packets, None)
}
