//! The system calls under the batches: the only place of this module with unsafe code.
//!
//! Everything that crosses to the kernel is owned by [`Incoming`] or [`Outgoing`] and allocated once.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use libc::{c_int, c_void, iovec, mmsghdr, socklen_t};

/// Room for the control messages of one datagram: destination address, ECN and segment size take 88 bytes at most.
const CONTROL_WORDS: usize = 16;

/// An IPv4 or IPv6 socket address as the kernel wants it.
#[derive(Clone, Copy)]
#[repr(C)]
union Name {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

/// Control messages of one datagram, aligned as `cmsghdr` needs it.
type Control = [u64; CONTROL_WORDS];

/// Sets an integer socket option.
pub(super) fn set_option(
    socket: &impl AsRawFd,
    level: c_int,
    name: c_int,
    value: c_int,
) -> io::Result<()> {
    // SAFETY: the kernel reads four bytes from a c_int that lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            ptr::from_ref(&value).cast::<c_void>(),
            size_of::<c_int>() as socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Reads an integer socket option.
#[cfg(test)]
pub(super) fn option(socket: &impl AsRawFd, level: c_int, name: c_int) -> io::Result<c_int> {
    let mut values = [0; 1];
    read_options(socket, level, name, &mut values)?;
    Ok(values[0])
}

/// Reads a socket option that is an array of 32-bit numbers; what the kernel doesn't fill stays as it is.
pub(super) fn read_options(
    socket: &impl AsRawFd,
    level: c_int,
    name: c_int,
    values: &mut [c_int],
) -> io::Result<()> {
    let mut len = size_of_val(values) as socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `values`, which is that long, and the length to `len`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            values.as_mut_ptr().cast::<c_void>(),
            &mut len,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What `recvmmsg` fills: a fixed number of slots.
pub(super) struct Incoming {
    // The headers point into the other vectors, which are never grown, so their memory stays where it is.
    buffers: Vec<u8>,
    slot_bytes: usize,
    names: Vec<Name>,
    controls: Vec<Control>,
    iovecs: Vec<iovec>,
    headers: Vec<mmsghdr>,
    /// Slots that the last call filled: their lengths must be set anew before the next one.
    filled: usize,
}

// SAFETY: the raw pointers in `headers` and `iovecs` lead into vectors that the same value owns, and they are followed
// only during `receive`, which has the value to itself.
unsafe impl Send for Incoming {}

/// One message as it came in: a datagram, or a train of datagrams that GRO joined.
pub(super) struct Message<'a> {
    pub data: &'a [u8],
    /// Length of each datagram of the train but the last.
    pub segment_bytes: Option<usize>,
    pub source: SocketAddr,
    pub destination_ip: Option<IpAddr>,
    pub ecn_bits: u8,
    /// The datagram was longer than the slot.
    pub truncated: bool,
}

impl Incoming {
    pub(super) fn new(slots: usize, slot_bytes: usize) -> Self {
        // SAFETY: mmsghdr, iovec and Name are plain C records for which all bits zero is a valid value.
        let (name, vector, header) = unsafe {
            (
                std::mem::zeroed::<Name>(),
                std::mem::zeroed::<iovec>(),
                std::mem::zeroed::<mmsghdr>(),
            )
        };
        let mut incoming = Self {
            buffers: vec![0; slots * slot_bytes],
            slot_bytes,
            names: vec![name; slots],
            controls: vec![[0; CONTROL_WORDS]; slots],
            iovecs: vec![vector; slots],
            headers: vec![header; slots],
            filled: slots,
        };
        let buffers = incoming.buffers.as_mut_ptr();
        let iovecs = incoming.iovecs.as_mut_ptr();
        let names = incoming.names.as_mut_ptr();
        let controls = incoming.controls.as_mut_ptr();
        for slot in 0..slots {
            // SAFETY: `slot` is below the length of all four vectors (times `slot_bytes` for the buffers).
            let (base, vector, name, control) = unsafe {
                (
                    buffers.add(slot * slot_bytes),
                    iovecs.add(slot),
                    names.add(slot),
                    controls.add(slot),
                )
            };
            incoming.iovecs[slot] = iovec {
                iov_base: base.cast(),
                iov_len: slot_bytes,
            };
            let header = &mut incoming.headers[slot].msg_hdr;
            header.msg_name = name.cast();
            header.msg_iov = vector;
            header.msg_iovlen = 1;
            header.msg_control = control.cast();
        }
        incoming
    }

    /// Receives what is there, without waiting; the number of messages.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        for header in &mut self.headers[..self.filled] {
            header.msg_hdr.msg_namelen = size_of::<Name>() as socklen_t;
            header.msg_hdr.msg_controllen = size_of::<Control>();
            header.msg_hdr.msg_flags = 0;
        }
        self.filled = 0;
        // SAFETY: each header points to a name, a control buffer and one iovec of the stated lengths; all of them are
        // owned by `self`, which is borrowed mutably, so the kernel alone writes to them during the call.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as u32,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        // A negative number is the only one that doesn't fit.
        self.filled = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        Ok(self.filled)
    }

    /// How many messages one call receives at most.
    pub(super) fn slots(&self) -> usize {
        self.headers.len()
    }

    /// The message in `slot`, which the last [`Incoming::receive`] must have filled; `None` if its source is of an
    /// unknown address family.
    pub(super) fn message(&self, slot: usize) -> Option<Message<'_>> {
        assert!(
            slot < self.filled,
            "slot {slot} of {} was not received",
            self.filled
        );
        let header = &self.headers[slot];
        let len = (header.msg_len as usize).min(self.slot_bytes);
        let mut message = Message {
            data: &self.buffers[slot * self.slot_bytes..][..len],
            segment_bytes: None,
            source: self.names[slot].to_socket_addr()?,
            destination_ip: None,
            ecn_bits: 0,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        };
        // SAFETY: the kernel has filled `msg_control` with well-formed control messages and set `msg_controllen`, so
        // the CMSG macros stay inside of it.
        let mut control = unsafe { libc::CMSG_FIRSTHDR(&header.msg_hdr) };
        while !control.is_null() {
            // SAFETY: `control` is not null, so it points to a whole control message, whose payload is of the type
            // that ip(7), ipv6(7) and udp(7) state for its level and type; unaligned reads ask for no alignment.
            unsafe {
                let data = libc::CMSG_DATA(control);
                match ((*control).cmsg_level, (*control).cmsg_type) {
                    (libc::IPPROTO_IP, libc::IP_TOS) => message.ecn_bits = data.read(),
                    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                        message.ecn_bits = data.cast::<c_int>().read_unaligned() as u8;
                    }
                    (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                        let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                        message.destination_ip = Some(ipv4(info.ipi_addr).into());
                    }
                    (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                        let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                        message.destination_ip =
                            Some(canonical_ip(Ipv6Addr::from(info.ipi6_addr.s6_addr)));
                    }
                    (libc::SOL_UDP, libc::UDP_GRO) => {
                        message.segment_bytes =
                            usize::try_from(data.cast::<c_int>().read_unaligned()).ok();
                    }
                    _ => {}
                }
                control = libc::CMSG_NXTHDR(&header.msg_hdr, control);
            }
        }
        Some(message)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let slot =
            size_of::<Name>() + size_of::<Control>() + size_of::<iovec>() + size_of::<mmsghdr>();
        self.buffers.len() + self.headers.len() * slot
    }
}

/// One message to send: a datagram, or several of one size in a row that the kernel is to cut (UDP_SEGMENT).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Where its bytes start in the batch's buffer.
    pub start: usize,
    pub len: usize,
    /// Length of each datagram but the last, if the kernel is to cut.
    pub segment_bytes: Option<u16>,
    pub destination: SocketAddr,
    pub source_ip: Option<IpAddr>,
    pub ecn_bits: u8,
}

/// What `sendmmsg` reads: room for a fixed number of messages.
pub(super) struct Outgoing {
    names: Vec<Name>,
    controls: Vec<Control>,
    iovecs: Vec<iovec>,
    headers: Vec<mmsghdr>,
}

// SAFETY: the raw pointers in `headers` and `iovecs` are written anew by each `send` before the kernel follows them,
// and are not followed otherwise.
unsafe impl Send for Outgoing {}

impl Outgoing {
    pub(super) fn new(slots: usize) -> Self {
        // SAFETY: mmsghdr, iovec and Name are plain C records for which all bits zero is a valid value.
        let (name, vector, header) = unsafe {
            (
                std::mem::zeroed::<Name>(),
                std::mem::zeroed::<iovec>(),
                std::mem::zeroed::<mmsghdr>(),
            )
        };
        Self {
            names: vec![name; slots],
            controls: vec![[0; CONTROL_WORDS]; slots],
            iovecs: vec![vector; slots],
            headers: vec![header; slots],
        }
    }

    /// Sends `parts` of `buffer`, at most as many as there is room for, and without waiting. `ipv6_socket` says that
    /// the socket is of that family, so that IPv4 destinations must be given as mapped addresses.
    ///
    /// The number of parts sent: at least one, or else the error of the first.
    pub(super) fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        ipv6_socket: bool,
        buffer: &[u8],
        parts: &[Part],
    ) -> io::Result<usize> {
        let count = parts.len().min(self.headers.len());
        for (slot, part) in parts[..count].iter().enumerate() {
            let (name, name_len) = Name::new(part.destination, ipv6_socket);
            self.names[slot] = name;
            let bytes = &buffer[part.start..part.start + part.len];
            self.iovecs[slot] = iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            };
            let control_len = write_control(&mut self.controls[slot], part);
            let header = &mut self.headers[slot].msg_hdr;
            header.msg_name = ptr::from_mut(&mut self.names[slot]).cast();
            header.msg_namelen = name_len;
            header.msg_iov = &mut self.iovecs[slot];
            header.msg_iovlen = 1;
            header.msg_control = if control_len == 0 {
                ptr::null_mut()
            } else {
                self.controls[slot].as_mut_ptr().cast()
            };
            header.msg_controllen = control_len;
        }
        // SAFETY: the first `count` headers were just filled with pointers to names, iovecs and control messages of
        // the stated lengths; `self` and `buffer` are borrowed through the call, and the kernel only reads from them
        // (but for `msg_len` in the headers).
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count as u32,
                libc::MSG_DONTWAIT,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let slot =
            size_of::<Name>() + size_of::<Control>() + size_of::<iovec>() + size_of::<mmsghdr>();
        self.headers.len() * slot
    }
}

/// Writes the control messages of `part`; their length in bytes.
fn write_control(control: &mut Control, part: &Part) -> usize {
    let mut writer = ControlWriter { control, len: 0 };
    if part.ecn_bits != 0 {
        if part.destination.is_ipv4() {
            writer.push(libc::IPPROTO_IP, libc::IP_TOS, c_int::from(part.ecn_bits));
        } else {
            writer.push(
                libc::IPPROTO_IPV6,
                libc::IPV6_TCLASS,
                c_int::from(part.ecn_bits),
            );
        }
    }
    if let Some(segment_bytes) = part.segment_bytes {
        writer.push(libc::SOL_UDP, libc::UDP_SEGMENT, segment_bytes);
    }
    match part.source_ip {
        None => {}
        Some(IpAddr::V4(ip)) => {
            let ipi_spec_dst = libc::in_addr {
                s_addr: u32::from_ne_bytes(ip.octets()),
            };
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst,
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            writer.push(libc::IPPROTO_IP, libc::IP_PKTINFO, info);
        }
        Some(IpAddr::V6(ip)) => {
            let ipi6_addr = libc::in6_addr {
                s6_addr: ip.octets(),
            };
            writer.push(
                libc::IPPROTO_IPV6,
                libc::IPV6_PKTINFO,
                libc::in6_pktinfo {
                    ipi6_addr,
                    ipi6_ifindex: 0,
                },
            );
        }
    }
    writer.len
}

struct ControlWriter<'a> {
    control: &'a mut Control,
    /// Bytes written, each message padded as CMSG_SPACE says.
    len: usize,
}

impl ControlWriter<'_> {
    fn push<T: Copy>(&mut self, level: c_int, kind: c_int, value: T) {
        // SAFETY: CMSG_SPACE and CMSG_LEN only calculate.
        let (space, cmsg_len) = unsafe {
            (
                libc::CMSG_SPACE(size_of::<T>() as u32) as usize,
                libc::CMSG_LEN(size_of::<T>() as u32) as usize,
            )
        };
        assert!(
            self.len + space <= size_of::<Control>(),
            "bug: no room for another control message"
        );
        // SAFETY: `len` is a sum of CMSG_SPACEs, so it is aligned for cmsghdr, and there is room for `space` bytes at
        // it: the header, and after it the payload, which is written without asking for alignment.
        unsafe {
            let header = self
                .control
                .as_mut_ptr()
                .byte_add(self.len)
                .cast::<libc::cmsghdr>();
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            (*header).cmsg_len = cmsg_len;
            libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
        }
        self.len += space;
    }
}

impl Name {
    fn new(address: SocketAddr, ipv6_socket: bool) -> (Self, socklen_t) {
        let address = match address {
            SocketAddr::V4(v4) if ipv6_socket => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
            other => other,
        };
        match address {
            SocketAddr::V4(v4) => {
                let name = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from_ne_bytes(v4.ip().octets()),
                    },
                    sin_zero: [0; 8],
                };
                (
                    Self { v4: name },
                    size_of::<libc::sockaddr_in>() as socklen_t,
                )
            }
            SocketAddr::V6(v6) => {
                let name = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr {
                        s6_addr: v6.ip().octets(),
                    },
                    sin6_scope_id: v6.scope_id(),
                };
                (
                    Self { v6: name },
                    size_of::<libc::sockaddr_in6>() as socklen_t,
                )
            }
        }
    }

    /// As a plain address: mapped ones become IPv4, and the flow label is left out.
    fn to_socket_addr(self) -> Option<SocketAddr> {
        // SAFETY: all members are plain integers, and every value of this type was zeroed or written as a whole, so
        // all bytes are initialized whatever the family.
        let (family, v4, v6) = unsafe { (self.family, self.v4, self.v6) };
        match c_int::from(family) {
            libc::AF_INET => {
                Some(SocketAddrV4::new(ipv4(v4.sin_addr), u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 => {
                let port = u16::from_be(v6.sin6_port);
                match canonical_ip(Ipv6Addr::from(v6.sin6_addr.s6_addr)) {
                    IpAddr::V4(ip) => Some(SocketAddrV4::new(ip, port).into()),
                    IpAddr::V6(ip) => Some(SocketAddrV6::new(ip, port, 0, v6.sin6_scope_id).into()),
                }
            }
            _ => None,
        }
    }
}

fn ipv4(address: libc::in_addr) -> Ipv4Addr {
    Ipv4Addr::from(address.s_addr.to_ne_bytes())
}

fn canonical_ip(ip: Ipv6Addr) -> IpAddr {
    ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4)
}
