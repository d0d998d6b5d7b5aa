//! Ethernet, one VLAN tag, IPv4, IPv6, UDP and TCP headers, as far as the shield needs them.
//!
//! Offsets are constants wherever the formats allow it: the kernel's verifier then sees at a glance that a read lies
//! within the packet.

use crate::route::{HEAD_LEN, Head};

/// A packet, link-layer header first. The kernel's implementation reads the packet in place.
pub trait Packet {
    /// Some bytes that are known to be there.
    type Chunk: Chunk;

    /// The `len` bytes from `offset` of the packet's linear part.
    fn chunk(&self, offset: usize, len: usize) -> Option<Self::Chunk>;

    /// The first bytes of a datagram at `offset`, which may lie outside the linear part.
    fn head(&self, offset: usize) -> Option<Head>;

    /// `N` words from `offset`, which may lie outside the linear part.
    fn words<const N: usize>(&self, offset: u32) -> Option<[u64; N]>;

    /// Whether the packet has at least `end` bytes, in its linear part or outside.
    fn reaches(&self, end: u32) -> bool;
}

/// Bytes that are known to be there. Reading beyond them is a bug.
pub trait Chunk {
    /// One byte.
    fn octet(&self, offset: usize) -> u8;
    /// Two bytes, little-endian.
    fn half(&self, offset: usize) -> u16;
    /// Four bytes, little-endian.
    fn word(&self, offset: usize) -> u32;
    /// Eight bytes, little-endian.
    fn long(&self, offset: usize) -> u64;
}

/// A source address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// IPv4: four bytes, little-endian.
    V4(u32),
    /// IPv6: two times eight bytes, little-endian.
    V6([u64; 2]),
}

impl Source {
    /// The /32 or /64 that one host has.
    #[inline(always)]
    #[must_use]
    pub const fn host(&self) -> u64 {
        match self {
            // As below.
            Self::V4(address) => 0xff << 56 | *address as u64,
            Self::V6([prefix, _]) => *prefix,
        }
    }

    /// The /24 or /64 that it shares a budget with.
    #[inline(always)]
    #[must_use]
    pub const fn prefix(&self) -> u64 {
        match self {
            // The top bit keeps it apart from nearly all of IPv6: nothing is sent from ff00::/8.
            Self::V4(address) => 0xff << 56 | (*address & 0x00ff_ffff) as u64,
            Self::V6([prefix, _]) => *prefix,
        }
    }

    /// The address as one of IPv6, mapped if it is of IPv4 (RFC 4291 §2.5.5.2): two times eight bytes, little-endian.
    #[inline(always)]
    #[must_use]
    pub const fn mapped(&self) -> [u64; 2] {
        match self {
            Self::V4(address) => [0, 0xffff_0000 | (*address as u64) << 32],
            Self::V6(address) => *address,
        }
    }
}

impl From<core::net::IpAddr> for Source {
    fn from(address: core::net::IpAddr) -> Self {
        match address {
            core::net::IpAddr::V4(address) => Self::V4(u32::from_le_bytes(address.octets())),
            core::net::IpAddr::V6(address) => {
                let both = u128::from_le_bytes(address.octets());
                Self::V6([both as u64, (both >> 64) as u64])
            }
        }
    }
}

/// A UDP datagram with the lengths that its headers claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp {
    /// Where it claims to come from.
    pub source: Source,
    /// Source port as it lies in the packet, read little-endian.
    pub source_port: u16,
    /// Destination port.
    pub port: u16,
    /// The UDP Length field: header and payload, in bytes (RFC 768).
    pub length: u16,
    /// Where the payload begins, in bytes.
    pub payload: usize,
    /// Where the packet ends, in bytes, if its IP header is right.
    pub end: u32,
}

/// A TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Where it claims to come from.
    pub source: Source,
    /// Destination port.
    pub port: u16,
    /// SYN without ACK: opens a connection (RFC 9293 §3.5).
    pub opens: bool,
    /// Where the packet ends, in bytes, if its IP header is right.
    pub end: u32,
}

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Nothing that concerns us, or too short to tell.
    Other,
    /// UDP or TCP in a fragment, or behind IP options or extension headers.
    Fragment {
        /// Where it claims to come from.
        source: Source,
        /// Where the packet ends, in bytes, if its IP header is right.
        end: u32,
    },
    /// A whole UDP datagram.
    Udp(Udp),
    /// A whole TCP segment.
    Tcp(Tcp),
}

const ETHERNET_LEN: usize = 14;
const VLAN_LEN: usize = 4;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const UDP_LEN: usize = 8;
const TCP_LEN: usize = 20;

// As they lie in the packet, read little-endian.
const ETHERTYPE_IPV4: u16 = 0x0800u16.swap_bytes();
const ETHERTYPE_IPV6: u16 = 0x86ddu16.swap_bytes();
const ETHERTYPE_VLAN: u16 = 0x8100u16.swap_bytes();
const ETHERTYPE_VLAN_SERVICE: u16 = 0x88a8u16.swap_bytes();

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const HEADER_HOP_BY_HOP: u8 = 0;
const HEADER_ROUTING: u8 = 43;
const HEADER_FRAGMENT: u8 = 44;
const HEADER_AUTHENTICATION: u8 = 51;
const HEADER_ICMPV6: u8 = 58;
const HEADER_DESTINATION: u8 = 60;

/// Reads a packet's headers.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P) -> Frame {
    let Some(ethernet) = packet.chunk(0, ETHERNET_LEN) else {
        return Frame::Other;
    };
    match ethernet.half(12) {
        ETHERTYPE_IPV4 => ipv4::<P, ETHERNET_LEN>(packet),
        ETHERTYPE_IPV6 => ipv6::<P, ETHERNET_LEN>(packet),
        ETHERTYPE_VLAN | ETHERTYPE_VLAN_SERVICE => vlan(packet),
        _ => Frame::Other,
    }
}

#[inline(always)]
fn vlan<P: Packet>(packet: &P) -> Frame {
    const INNER: usize = ETHERNET_LEN + VLAN_LEN;
    let Some(tag) = packet.chunk(ETHERNET_LEN, VLAN_LEN) else {
        return Frame::Other;
    };
    match tag.half(2) {
        ETHERTYPE_IPV4 => ipv4::<P, INNER>(packet),
        ETHERTYPE_IPV6 => ipv6::<P, INNER>(packet),
        _ => Frame::Other,
    }
}

#[inline(always)]
fn ipv4<P: Packet, const AT: usize>(packet: &P) -> Frame {
    let Some(ip) = packet.chunk(AT, IPV4_LEN) else {
        return Frame::Other;
    };
    let protocol = ip.octet(9);
    let version_and_length = ip.octet(0);
    if version_and_length >> 4 != 4 || version_and_length & 0xf < 5 {
        return Frame::Other;
    }
    if protocol != PROTOCOL_UDP && protocol != PROTOCOL_TCP {
        return Frame::Other;
    }
    let source = Source::V4(ip.word(12));
    // RFC 791 §3.1: Total Length.
    let end = AT as u32 + u32::from(ip.half(2).swap_bytes());
    // RFC 791 §3.1: more fragments, or a fragment offset.
    let fragmented = ip.half(6) & 0x3fffu16.swap_bytes() != 0;
    if fragmented || version_and_length & 0xf != 5 {
        return Frame::Fragment { source, end };
    }
    transport(packet, AT + IPV4_LEN, protocol, source, end)
}

#[inline(always)]
fn ipv6<P: Packet, const AT: usize>(packet: &P) -> Frame {
    let Some(ip) = packet.chunk(AT, IPV6_LEN) else {
        return Frame::Other;
    };
    if ip.octet(0) >> 4 != 6 {
        return Frame::Other;
    }
    let source = Source::V6([ip.long(8), ip.long(16)]);
    // RFC 8200 §3: Payload Length.
    let end = (AT + IPV6_LEN) as u32 + u32::from(ip.half(4).swap_bytes());
    match ip.octet(6) {
        protocol @ (PROTOCOL_UDP | PROTOCOL_TCP) => {
            transport(packet, AT + IPV6_LEN, protocol, source, end)
        }
        HEADER_HOP_BY_HOP
        | HEADER_ROUTING
        | HEADER_FRAGMENT
        | HEADER_AUTHENTICATION
        | HEADER_DESTINATION => {
            // Neighbours' multicast reports come with a hop-by-hop option (RFC 3810 §5): never a matter for a budget.
            match packet.chunk(AT + IPV6_LEN, 8) {
                Some(extension) if extension.octet(0) != HEADER_ICMPV6 => {
                    Frame::Fragment { source, end }
                }
                _ => Frame::Other,
            }
        }
        _ => Frame::Other,
    }
}

#[inline(always)]
fn transport<P: Packet>(packet: &P, at: usize, protocol: u8, source: Source, end: u32) -> Frame {
    if protocol == PROTOCOL_UDP {
        let Some(udp) = packet.chunk(at, UDP_LEN) else {
            return Frame::Other;
        };
        let port = udp.half(2).swap_bytes();
        return Frame::Udp(Udp {
            source,
            source_port: udp.half(0),
            port,
            length: udp.half(4).swap_bytes(),
            payload: at + UDP_LEN,
            end,
        });
    }
    let Some(tcp) = packet.chunk(at, TCP_LEN) else {
        return Frame::Other;
    };
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    let opens = tcp.octet(13) & (SYN | ACK) == SYN;
    Frame::Tcp(Tcp {
        source,
        port: tcp.half(2).swap_bytes(),
        opens,
        end,
    })
}

impl Udp {
    /// The payload's length, if UDP's header, IP's header and the packet agree about it.
    #[inline(always)]
    pub fn payload_len<P: Packet>(&self, packet: &P) -> Option<u32> {
        let payload_len = u32::from(self.length).checked_sub(UDP_LEN as u32)?;
        let end = self.payload as u32 + payload_len;
        if end > self.end || !packet.reaches(end) {
            None
        } else {
            Some(payload_len)
        }
    }
}

/// A packet in a slice, on the host.
impl Packet for &[u8] {
    type Chunk = Self;

    fn chunk(&self, offset: usize, len: usize) -> Option<Self> {
        self.get(offset..offset.checked_add(len)?)
    }

    fn head(&self, offset: usize) -> Option<Head> {
        self.chunk(offset, HEAD_LEN).and_then(Head::of)
    }

    fn words<const N: usize>(&self, offset: u32) -> Option<[u64; N]> {
        let bytes = self.chunk(offset as usize, 8 * N)?;
        Some(core::array::from_fn(|word| bytes.long(8 * word)))
    }

    fn reaches(&self, end: u32) -> bool {
        self.len() >= end as usize
    }
}

impl Chunk for &[u8] {
    fn octet(&self, offset: usize) -> u8 {
        self[offset]
    }

    fn half(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self[offset], self[offset + 1]])
    }

    fn word(&self, offset: usize) -> u32 {
        u32::from(self.half(offset)) | u32::from(self.half(offset + 2)) << 16
    }

    fn long(&self, offset: usize) -> u64 {
        u64::from(self.word(offset)) | u64::from(self.word(offset + 4)) << 32
    }
}
