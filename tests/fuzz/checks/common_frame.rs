//! What must hold for the headers of any packet. The fuzz target, the property tests and the replay of the corpus share
//! this.

use headgate_common::frame::{Frame, Source, parse};

/// Compares the parser with one that reads the packet front to back.
pub fn check(data: &[u8]) {
    let frame = parse(&data);
    assert_eq!(frame, reference(data).unwrap_or(Frame::Other));
    if let Frame::Udp(udp) = frame
        && let Some(len) = udp.payload_len(&data)
    {
        assert!(
            udp.payload + len as usize <= data.len(),
            "the payload lies within the packet"
        );
        assert_eq!(len + 8, u32::from(udp.length));
        // What follows an IP packet on the wire is padding.
        let padded = [data, &[0; 20]].concat();
        assert_eq!(parse(&padded.as_slice()), frame);
        assert_eq!(udp.payload_len(&padded.as_slice()), Some(len));
    }
}

/// Takes a packet apart from the front.
struct Reader<'a> {
    rest: &'a [u8],
    taken: usize,
}

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (chunk, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        self.taken += N;
        Some(chunk)
    }
}

fn reference(data: &[u8]) -> Option<Frame> {
    let mut reader = Reader {
        rest: data,
        taken: 0,
    };
    let [.., high, low] = *reader.take::<14>()?;
    let mut ethertype = [high, low];
    if matches!(ethertype, [0x81, 0x00] | [0x88, 0xa8]) {
        let [_, _, high, low] = *reader.take::<4>()?;
        ethertype = [high, low];
    }
    let at = reader.taken as u32;
    match ethertype {
        [0x08, 0x00] => {
            let ip = reader.take::<20>()?;
            let source = Source::V4(u32::from_le_bytes([ip[12], ip[13], ip[14], ip[15]]));
            let end = at + u32::from(u16::from_be_bytes([ip[2], ip[3]]));
            let is_fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0;
            match ip[0] {
                0x45 if !is_fragment => transport(&mut reader, ip[9], source, end),
                0x45..=0x4f if matches!(ip[9], 6 | 17) => Some(Frame::Fragment { source, end }),
                _ => None,
            }
        }
        [0x86, 0xdd] => {
            let ip = reader.take::<40>()?;
            let half = |from: usize| {
                u64::from_le_bytes(ip[from..from + 8].try_into().expect("eight bytes"))
            };
            let source = Source::V6([half(8), half(16)]);
            let end = at + 40 + u32::from(u16::from_be_bytes([ip[4], ip[5]]));
            match ip[6] {
                _ if ip[0] >> 4 != 6 => None,
                0 | 43 | 44 | 51 | 60 if reader.take::<8>()?[0] != 58 => {
                    Some(Frame::Fragment { source, end })
                }
                protocol => transport(&mut reader, protocol, source, end),
            }
        }
        _ => None,
    }
}

fn transport(reader: &mut Reader<'_>, protocol: u8, source: Source, end: u32) -> Option<Frame> {
    use headgate_common::frame::{Tcp, Udp};
    match protocol {
        6 => {
            let tcp = reader.take::<20>()?;
            let port = u16::from_be_bytes([tcp[2], tcp[3]]);
            Some(Frame::Tcp(Tcp {
                source,
                port,
                opens: tcp[13] & 0x12 == 0x02,
                end,
            }))
        }
        17 => {
            let udp = reader.take::<8>()?;
            let port = u16::from_be_bytes([udp[2], udp[3]]);
            let length = u16::from_be_bytes([udp[4], udp[5]]);
            Some(Frame::Udp(Udp {
                source,
                source_port: u16::from_le_bytes([udp[0], udp[1]]),
                port,
                length,
                payload: reader.taken,
                end,
            }))
        }
        _ => None,
    }
}
