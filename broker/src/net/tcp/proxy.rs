//! The PROXY protocol, versions 1 and 2: what a load balancer says of the client before the
//! client's own first byte.

use ppp::{v1, v2};
use std::net::SocketAddr;

/// The longest header of version 1, bytes, the line's end included.
const V1_BYTES_MAX: usize = 107;

/// The longest header of version 2 that is taken, bytes. The format could say 65,551; with the
/// addresses (216 at most) and what balancers add (a certificate's names, checksums, ids) it is
/// hundreds. This is also what a connection holds at most until its header is complete.
pub const V2_BYTES_MAX: usize = 4_096;

/// What version 1 begins with.
const V1_PREFIX: &[u8] = b"PROXY ";
/// What version 2 begins with; version, command, family and the length follow.
const V2_PREFIX: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The fixed part of version 2, bytes.
const V2_FIXED: usize = 16;

/// What came was no PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoHeader;

/// A whole header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The client's address; `None` if the balancer speaks for itself (LOCAL) or doesn't know
    /// (UNKNOWN, or a family that is not IP).
    pub source: Option<SocketAddr>,
    /// How many of the bytes that came last belong to it.
    pub consumed: usize,
}

/// A header that is arriving, in pieces of any size.
#[derive(Debug, Default)]
pub struct Receiver {
    received: Vec<u8>,
}

impl Receiver {
    /// Adds what came. `Ok(None)`: the end has not come yet.
    ///
    /// # Errors
    /// It is no header, or one longer than is taken.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<Option<Header>, NoHeader> {
        let before = self.received.len();
        let room = V2_BYTES_MAX.saturating_sub(before);
        self.received
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
        let Some(length) = length(&self.received)? else {
            return Ok(None);
        };
        let Some(whole) = self.received.get(..length) else {
            return Ok(None);
        };
        let source = source(whole)?;
        // The header's last byte is one of those that came last, or the end was found before.
        let consumed = length.checked_sub(before).ok_or(NoHeader)?;
        self.received = Vec::new();
        Ok(Some(Header { source, consumed }))
    }
}

/// The header's length, once it is known.
fn length(received: &[u8]) -> Result<Option<usize>, NoHeader> {
    if begins(received, V1_PREFIX) {
        let line = &received[..received.len().min(V1_BYTES_MAX)];
        let end = line.windows(2).position(|pair| pair == b"\r\n");
        return match end {
            Some(at) => Ok(Some(at + 2)),
            None if line.len() == V1_BYTES_MAX => Err(NoHeader),
            None => Ok(None),
        };
    }
    if !begins(received, V2_PREFIX) {
        return Err(NoHeader);
    }
    let Some(&[high, low]) = received.get(V2_FIXED - 2..V2_FIXED) else {
        return Ok(None);
    };
    let length = V2_FIXED + usize::from(u16::from_be_bytes([high, low]));
    match length <= V2_BYTES_MAX {
        true => Ok(Some(length)),
        false => Err(NoHeader),
    }
}

/// Whether `received` is, or can become, something that begins with `prefix`.
fn begins(received: &[u8], prefix: &[u8]) -> bool {
    received.iter().zip(prefix).all(|(a, b)| a == b)
}

fn source(header: &[u8]) -> Result<Option<SocketAddr>, NoHeader> {
    if begins(header, V1_PREFIX) {
        let header = v1::Header::try_from(header).map_err(|_| NoHeader)?;
        return Ok(match header.addresses {
            v1::Addresses::Tcp4(a) => Some((a.source_address, a.source_port).into()),
            v1::Addresses::Tcp6(a) => Some((a.source_address, a.source_port).into()),
            v1::Addresses::Unknown => None,
        });
    }
    let header = v2::Header::try_from(header).map_err(|_| NoHeader)?;
    if header.command == v2::Command::Local {
        return Ok(None);
    }
    Ok(match header.addresses {
        v2::Addresses::IPv4(a) => Some((a.source_address, a.source_port).into()),
        v2::Addresses::IPv6(a) => Some((a.source_address, a.source_port).into()),
        v2::Addresses::Unspecified | v2::Addresses::Unix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v2(command: u8, family: u8, addresses: &[u8], extra: usize) -> Vec<u8> {
        let mut header = V2_PREFIX.to_vec();
        header.extend([0x20 | command, family]);
        header.extend(((addresses.len() + extra) as u16).to_be_bytes());
        header.extend(addresses);
        // Padding as the protocol has it: type 4 (PP2_TYPE_NOOP), then its length.
        if extra >= 3 {
            header.push(4);
            header.extend(((extra - 3) as u16).to_be_bytes());
            header.extend(vec![0; extra - 3]);
        }
        header
    }

    const V4: [u8; 12] = [203, 0, 113, 7, 192, 0, 2, 1, 0x30, 0x39, 0x07, 0x5b];

    fn headers() -> Vec<(Vec<u8>, Option<&'static str>)> {
        let mut v6 = [0u8; 36];
        v6[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        v6[15] = 7;
        v6[32..34].copy_from_slice(&[0x30, 0x39]);
        vec![
            (
                b"PROXY TCP4 203.0.113.7 192.0.2.1 12345 1883\r\n".to_vec(),
                Some("203.0.113.7:12345"),
            ),
            (
                b"PROXY TCP6 2001:db8::7 ::1 12345 1883\r\n".to_vec(),
                Some("[2001:db8::7]:12345"),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ::1 1 2\r\n".to_vec(), None),
            (v2(1, 0x11, &V4, 0), Some("203.0.113.7:12345")),
            (v2(1, 0x11, &V4, 200), Some("203.0.113.7:12345")),
            (v2(1, 0x21, &v6, 0), Some("[2001:db8::7]:12345")),
            (v2(0, 0, &[], 0), None),
            (v2(0, 0x11, &V4, 0), None),
            (v2(1, 0x31, &[b'/'; 216], 0), None),
        ]
    }

    /// The header of `wire` when it comes in pieces that end at `cuts`.
    fn in_pieces(
        wire: &[u8],
        cuts: &[usize],
    ) -> Result<Option<(Option<SocketAddr>, usize)>, NoHeader> {
        let mut receiver = Receiver::default();
        let mut from = 0;
        for to in cuts.iter().copied().chain([wire.len()]) {
            if to < from {
                continue;
            }
            if let Some(header) = receiver.receive(&wire[from..to])? {
                return Ok(Some((header.source, from + header.consumed)));
            }
            from = to;
        }
        Ok(None)
    }

    proptest! {
        /// However it is cut, a header says the same, and what follows it is left alone.
        #[test]
        fn pieces_make_no_difference(
            which in 0..10usize,
            follows in prop::collection::vec(any::<u8>(), 0..40),
            mut cuts in prop::collection::vec(0..300usize, 0..20),
        ) {
            let (header, source) = &headers()[which];
            let wire = [&header[..], &follows].concat();
            cuts.sort_unstable();
            cuts.retain(|cut| *cut <= wire.len());
            let source = source.map(|text| text.parse().unwrap());
            prop_assert_eq!(in_pieces(&wire, &cuts), Ok(Some((source, header.len()))));
        }

        /// A beginning is waited for; nothing that came is held beyond the limit.
        #[test]
        fn a_cut_header_is_waited_for(which in 0..10usize, cut in any::<prop::sample::Index>()) {
            let (header, _) = &headers()[which];
            prop_assert_eq!(in_pieces(&header[..cut.index(header.len())], &[]), Ok(None));
        }

        #[test]
        fn anything_else_is_refused(wire in prop::collection::vec(any::<u8>(), 12..300)) {
            prop_assume!(!wire.starts_with(V1_PREFIX) && !wire.starts_with(V2_PREFIX));
            prop_assert_eq!(in_pieces(&wire, &[]), Err(NoHeader));
        }

        /// Whatever follows a good beginning: an answer, and no panic.
        #[test]
        fn nothing_makes_it_panic(
            second in any::<bool>(),
            rest in prop::collection::vec(any::<u8>(), 0..400),
            cuts in prop::collection::vec(0..400usize, 0..5),
        ) {
            let wire = [if second { V2_PREFIX } else { V1_PREFIX }, &rest].concat();
            let cuts: Vec<_> = cuts.into_iter().filter(|cut| *cut <= wire.len()).collect();
            let _any = in_pieces(&wire, &cuts);
        }
    }

    #[test]
    fn what_is_too_long_is_refused_before_it_has_come() {
        let endless = [V1_PREFIX, &[b'1'; V1_BYTES_MAX]].concat();
        assert_eq!(in_pieces(&endless, &[]), Err(NoHeader));
        let announced = [V2_PREFIX, &[0x21, 0x11, 0xff, 0xff]].concat();
        assert_eq!(in_pieces(&announced, &[]), Err(NoHeader));
    }

    #[test]
    fn wrong_addresses_are_refused() {
        for wire in [
            &b"PROXY TCP4 203.0.113 192.0.2.1 1 2\r\n"[..],
            b"PROXY TCP4 203.0.113.7 192.0.2.1 70000 2\r\n",
            b"PROXY TCP4 2001:db8::7 ::1 1 2\r\n",
            b"PROXY SCTP 203.0.113.7 192.0.2.1 1 2\r\n",
            b"PROXY TCP4\r\n",
            &v2(1, 0x11, &V4[..8], 0),
            &v2(7, 0x11, &V4, 0),
        ] {
            assert_eq!(in_pieces(wire, &[]), Err(NoHeader), "{wire:?}");
        }
    }
}
