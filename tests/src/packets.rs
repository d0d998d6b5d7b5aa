//! Builds packets as they come from a wire, and reads the answers. Written apart from the parsers that it tests.

use std::net::IpAddr;

/// The UDP port that tests of the shield use.
pub const QUIC_PORT: u16 = 14567;

/// What a packet is made of, from the outside in.
#[derive(Clone, Debug)]
pub struct Packet {
    /// The tag's content, if there is one.
    pub vlan: Option<u16>,
    /// Where it comes from.
    pub source: IpAddr,
    /// Where it goes; of the same version.
    pub destination: IpAddr,
    /// IPv4: the flags and the fragment offset as they stand in the header. IPv6: a Fragment header if not 0.
    pub fragment: u16,
    /// IPv4 options or an IPv6 Destination Options header, 8 bytes.
    pub options: bool,
    /// What follows.
    pub transport: Transport,
}

/// UDP or TCP.
#[derive(Clone, Debug)]
pub enum Transport {
    /// A datagram.
    Udp {
        /// Source port.
        from: u16,
        /// Destination port.
        to: u16,
        /// Its payload.
        payload: Vec<u8>,
        /// What the Length field says beyond the truth.
        length_error: i32,
    },
    /// A segment without payload.
    Tcp {
        /// Source port.
        from: u16,
        /// Destination port.
        to: u16,
        /// The octet with SYN (2) and ACK (16).
        flags: u8,
    },
}

impl Packet {
    /// A UDP datagram to [`QUIC_PORT`].
    #[must_use]
    pub fn quic(source: IpAddr, payload: Vec<u8>) -> Self {
        let transport = Transport::Udp {
            from: 40_000,
            to: QUIC_PORT,
            payload,
            length_error: 0,
        };
        Self::with(source, transport)
    }

    /// A TCP segment.
    #[must_use]
    pub fn tcp(source: IpAddr, to: u16, flags: u8) -> Self {
        Self::with(
            source,
            Transport::Tcp {
                from: 40_000,
                to,
                flags,
            },
        )
    }

    fn with(source: IpAddr, transport: Transport) -> Self {
        let destination = match source {
            IpAddr::V4(_) => IpAddr::from([192, 0, 2, 1]),
            IpAddr::V6(_) => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
        };
        Self {
            vlan: None,
            source,
            destination,
            fragment: 0,
            options: false,
            transport,
        }
    }

    /// The same with a VLAN tag.
    #[must_use]
    pub fn tagged(mut self, id: u16) -> Self {
        self.vlan = Some(id);
        self
    }

    /// The bytes on the wire, with right checksums except for the UDP checksum, which is 0 over IPv4.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        if let Some(id) = self.vlan {
            bytes.extend([0x81, 0x00]);
            bytes.extend(id.to_be_bytes());
        }
        let (protocol, transport) = self.transport.bytes();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let options: &[u8] = if self.options { &[1; 8] } else { &[] };
                let header_len = 20 + options.len();
                bytes.extend([0x08, 0x00]);
                let at = bytes.len();
                bytes.extend([0x40 | (header_len / 4) as u8, 0]);
                bytes.extend(((header_len + transport.len()) as u16).to_be_bytes());
                bytes.extend([0x12, 0x34]);
                bytes.extend(self.fragment.to_be_bytes());
                bytes.extend([63, protocol, 0, 0]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                bytes.extend(options);
                let checksum = !sum(&bytes[at..], 0);
                bytes[at + 10..at + 12].copy_from_slice(&checksum.to_be_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut extensions = Vec::new();
                let mut first = protocol;
                if self.fragment != 0 {
                    extensions.extend([protocol, 0]);
                    extensions.extend(self.fragment.to_be_bytes());
                    extensions.extend([0, 0, 0, 7]);
                    first = 44;
                }
                if self.options {
                    let mut header = vec![first, 0, 1, 4, 0, 0, 0, 0];
                    header.append(&mut extensions);
                    extensions = header;
                    first = 60;
                }
                bytes.extend([0x86, 0xdd, 0x60, 0x12, 0x34, 0x56]);
                bytes.extend(((extensions.len() + transport.len()) as u16).to_be_bytes());
                bytes.extend([first, 63]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                bytes.extend(extensions);
            }
            _ => panic!("source and destination are of one IP version"),
        }
        bytes.extend(transport);
        bytes
    }
}

impl Transport {
    fn bytes(&self) -> (u8, Vec<u8>) {
        let mut bytes = Vec::new();
        match self {
            Self::Udp {
                from,
                to,
                payload,
                length_error,
            } => {
                bytes.extend(from.to_be_bytes());
                bytes.extend(to.to_be_bytes());
                let length = (payload.len() as i32 + 8 + length_error) as u16;
                bytes.extend(length.to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(payload);
                (17, bytes)
            }
            Self::Tcp { from, to, flags } => {
                bytes.extend(from.to_be_bytes());
                bytes.extend(to.to_be_bytes());
                bytes.extend([0; 8]);
                bytes.extend([0x50, *flags, 0xff, 0xff, 0, 0, 0, 0]);
                (6, bytes)
            }
        }
    }
}

/// RFC 1071: the one's complement sum of big-endian words, not yet complemented.
#[must_use]
pub fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut total = start;
    for pair in bytes.chunks(2) {
        total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// Whether the UDP checksum is right; `ip` and `udp` are where these headers begin.
#[must_use]
pub fn udp_checksum_is_right(packet: &[u8], ip: usize, udp: usize) -> bool {
    let addresses = if packet[ip] >> 4 == 4 {
        &packet[ip + 12..ip + 20]
    } else {
        &packet[ip + 8..ip + 40]
    };
    let length = u16::from_be_bytes([packet[udp + 4], packet[udp + 5]]);
    let pseudo = u32::from(sum(addresses, 0)) + u32::from(length) + 17;
    sum(&packet[udp..udp + usize::from(length)], pseudo) == 0xffff
}

/// A QUIC v1 long header, padded to `len` bytes. `kind` is its type: 0 Initial, 1 0-RTT, 2 Handshake, 3 Retry.
#[must_use]
pub fn long(kind: u8, version: u32, dcid: &[u8], scid: &[u8], len: usize) -> Vec<u8> {
    let mut bytes = vec![0xc0 | kind << 4];
    bytes.extend(version.to_be_bytes());
    bytes.push(dcid.len() as u8);
    bytes.extend(dcid);
    bytes.push(scid.len() as u8);
    bytes.extend(scid);
    bytes.resize(bytes.len().max(len), 0x5a);
    bytes
}

/// A QUIC short header, padded to `len` bytes; the fixed bit is clear, as RFC 9287 lets a peer do.
#[must_use]
pub fn short(dcid: &[u8], len: usize) -> Vec<u8> {
    let mut bytes = vec![0x21];
    bytes.extend(dcid);
    bytes.resize(bytes.len().max(len), 0x5a);
    bytes
}

/// A QUIC v1 Initial with a token (RFC 9000 §17.2.2), padded to `len` bytes.
#[must_use]
pub fn initial(dcid: &[u8], scid: &[u8], token: &[u8], len: usize) -> Vec<u8> {
    let mut bytes = long(0, 1, dcid, scid, 0);
    if token.len() < 64 {
        bytes.push(token.len() as u8);
    } else {
        bytes.extend((token.len() as u16 | 0x4000).to_be_bytes());
    }
    bytes.extend(token);
    bytes.resize(bytes.len().max(len), 0x5a);
    bytes
}

/// Checks that an answer goes back to where its request came from, with right lengths and checksums; its UDP payload.
///
/// # Panics
/// When something isn't right.
#[must_use]
pub fn check_turned<'a>(packet: &Packet, request: &[u8], answer: &'a [u8]) -> &'a [u8] {
    let ip = if packet.vlan.is_some() { 18 } else { 14 };
    let udp = ip + if packet.source.is_ipv4() { 20 } else { 40 };
    assert_eq!(answer[..6], request[6..12], "to where it came from");
    assert_eq!(answer[6..12], request[..6]);
    assert_eq!(answer[12..ip], request[12..ip], "the same tag and protocol");
    let payload = &answer[udp + 8..];
    if packet.source.is_ipv4() {
        assert_eq!(answer[ip], 0x45);
        assert_eq!(
            usize::from(u16::from_be_bytes([answer[ip + 2], answer[ip + 3]])),
            answer.len() - ip
        );
        assert_eq!(answer[ip + 8], 64, "a time to live of its own");
        assert_eq!(sum(&answer[ip..ip + 20], 0), 0xffff, "header checksum");
        assert_eq!(answer[ip + 12..ip + 16], request[ip + 16..ip + 20]);
        assert_eq!(answer[ip + 16..ip + 20], request[ip + 12..ip + 16]);
    } else {
        assert_eq!(answer[ip..ip + 4], [0x60, 0, 0, 0]);
        assert_eq!(
            usize::from(u16::from_be_bytes([answer[ip + 4], answer[ip + 5]])),
            answer.len() - ip - 40
        );
        assert_eq!(answer[ip + 6..ip + 8], [17, 64]);
        assert_eq!(answer[ip + 8..ip + 24], request[ip + 24..ip + 40]);
        assert_eq!(answer[ip + 24..ip + 40], request[ip + 8..ip + 24]);
    }
    assert_eq!(
        answer[udp..udp + 2],
        request[udp + 2..udp + 4],
        "ports change places"
    );
    assert_eq!(answer[udp + 2..udp + 4], request[udp..udp + 2]);
    assert_eq!(
        usize::from(u16::from_be_bytes([answer[udp + 4], answer[udp + 5]])),
        payload.len() + 8
    );
    assert!(udp_checksum_is_right(answer, ip, udp));
    payload
}
