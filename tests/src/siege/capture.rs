//! What somebody sees who watches the fleet's network.

use super::Siege;
use crate::packets::QUIC_PORT;
use std::{
    ffi::CString,
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// Records what devices of the fleet send to the broker.
pub struct Capture(OwnedFd);

/// A datagram that a device has sent.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Who has sent it.
    pub from: SocketAddrV4,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Capture {
    /// Begins.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn begin(siege: &Siege) -> Self {
        let opened = siege.clients.enter(|| open("c0")).join();
        Self(opened.expect("no panic").expect("a packet socket"))
    }

    /// What was sent since the last time; the kernel keeps a few hundred datagrams.
    pub fn seen(&self) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut frame = [0u8; 2048];
        loop {
            // SAFETY: the buffer is as long as is said.
            let len = unsafe {
                libc::recv(
                    self.0.as_raw_fd(),
                    frame.as_mut_ptr().cast(),
                    frame.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            let Ok(len) = usize::try_from(len) else {
                return seen;
            };
            seen.extend(read(&frame[..len]));
        }
    }

    /// The last datagram so far that `is_it`.
    ///
    /// # Panics
    /// When there was none.
    #[must_use]
    pub fn last(&self, what: &str, is_it: impl Fn(&[u8]) -> bool) -> Seen {
        let seen = self.seen();
        let last = seen.iter().rfind(|seen| is_it(&seen.payload));
        let last = last.unwrap_or_else(|| panic!("no {what} among {} datagrams", seen.len()));
        last.clone()
    }
}

/// An Ethernet frame with IPv4 without options and a datagram to the broker.
fn read(frame: &[u8]) -> Option<Seen> {
    let ip = frame.get(14..)?;
    let udp = ip.get(20..)?;
    let port = |at: usize| Some(u16::from_be_bytes([*udp.get(at)?, *udp.get(at + 1)?]));
    if frame[12..14] != [8, 0] || ip[0] != 0x45 || ip[9] != 17 || port(2)? != QUIC_PORT {
        return None;
    }
    let address: [u8; 4] = *ip.get(12..)?.first_chunk()?;
    Some(Seen {
        from: SocketAddrV4::new(Ipv4Addr::from(address), port(0)?),
        payload: udp.get(8..usize::from(port(4)?))?.to_vec(),
    })
}

fn open(device: &str) -> io::Result<OwnedFd> {
    let all = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: plain system call; the result is checked.
    let fd = unsafe {
        libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            all.into(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let name = CString::new(device)?;
    // SAFETY: all zeros is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    // SAFETY: a NUL-terminated name.
    address.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) } as i32;
    // SAFETY: the address is as long as is said.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
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
