//! A bounded flood of packets with spoofed sources, into a namespace of the test's own.

use std::{ffi::CString, io, os::fd::AsRawFd, os::fd::FromRawFd, os::fd::OwnedFd};

/// A small generator of pseudo-random numbers (xorshift64*), so that a flood can be repeated.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same flood.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next 64 bits.
    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Fills a slice.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.word().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// A QUIC v1 Initial with random connection IDs and a payload that nobody can decrypt, 1,200
/// bytes (RFC 9000 §17.2.2).
pub fn spoofed_initial(random: &mut Random) -> Vec<u8> {
    let mut packet = vec![0; 1200];
    random.fill(&mut packet);
    packet[0] = 0xc3;
    packet[1..5].copy_from_slice(&1u32.to_be_bytes());
    packet[5] = 8; // DCID
    packet[14] = 8; // SCID
    packet[23] = 0; // no token
    let length = (1200 - 26) as u16 | 0x4000;
    packet[24..26].copy_from_slice(&length.to_be_bytes());
    packet
}

/// A short-header packet to a connection ID that nobody issued (RFC 9000 §17.3).
pub fn forged_short_header(random: &mut Random, length: usize) -> Vec<u8> {
    let mut packet = vec![0; length];
    random.fill(&mut packet);
    packet[0] = 0x40 | (packet[0] & 0x3f);
    packet
}

/// Wraps a UDP payload into Ethernet and IPv4 from a random source (1.0.0.0 to 223.255.255.255).
pub fn frame_v4(
    random: &mut Random,
    (source_mac, target_mac): ([u8; 6], [u8; 6]),
    target: [u8; 4],
    port: u16,
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42 + payload.len());
    frame.extend_from_slice(&target_mac);
    frame.extend_from_slice(&source_mac);
    frame.extend_from_slice(&0x0800u16.to_be_bytes());
    let total = (28 + payload.len()) as u16;
    let mut ip = [0u8; 20];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    ip[8] = 64;
    ip[9] = 17;
    let source = random.word();
    ip[12..16].copy_from_slice(&[
        1 + (source % 222) as u8,
        (source >> 8) as u8,
        (source >> 16) as u8,
        (source >> 24) as u8,
    ]);
    if ip[12] == 10 || ip[12] == 127 {
        ip[12] = 11;
    }
    ip[16..20].copy_from_slice(&target);
    let mut sum: u32 = ip
        .chunks(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    ip[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    frame.extend_from_slice(&ip);
    let source_port = 1024 + (source >> 40) as u16 % 60_000;
    frame.extend_from_slice(&source_port.to_be_bytes());
    frame.extend_from_slice(&port.to_be_bytes());
    frame.extend_from_slice(&(8 + payload.len() as u16).to_be_bytes());
    frame.extend_from_slice(&[0, 0]); // no checksum: allowed over IPv4 (RFC 768)
    frame.extend_from_slice(payload);
    frame
}

/// A packet socket on one device of the namespace that the thread is in.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens it for sending only.
    pub fn open(device: &str) -> io::Result<Self> {
        // SAFETY: plain system call; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that nobody else owns.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        let name = CString::new(device)?;
        // SAFETY: a NUL-terminated name.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: all zeros is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = index as i32;
        // SAFETY: the address is as long as is said.
        let bound = unsafe {
            libc::bind(
                socket.0.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        if bound == 0 {
            Ok(socket)
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Sends one frame; waits while the device's queue is full.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        loop {
            // SAFETY: the buffer is as long as is said.
            let sent =
                unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
            if sent == frame.len() as isize {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::ENOBUFS | libc::EAGAIN | libc::EINTR) => std::thread::yield_now(),
                _ => return Err(error),
            }
        }
    }
}

/// The MAC address of a device of the namespace that the thread is in.
pub fn mac(device: &str) -> io::Result<[u8; 6]> {
    // /sys shows the namespace that it was mounted in: ask `ip`, which asks by netlink.
    let output = std::process::Command::new("ip")
        .args(["-br", "link", "show", "dev", device])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let field = text.split_whitespace().nth(2).unwrap_or_default();
    let bytes: Vec<u8> = field
        .split(':')
        .filter_map(|b| u8::from_str_radix(b, 16).ok())
        .collect();
    bytes
        .try_into()
        .map_err(|_| io::Error::other(format!("no MAC address in {text:?}")))
}
