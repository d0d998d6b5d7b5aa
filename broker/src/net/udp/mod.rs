//! UDP in batches: one `recvmmsg` or `sendmmsg` for up to 64 messages, each of which may be a train of datagrams (GRO
//! on receipt, GSO on sending).
//!
//! **Addresses.** A dual-stack socket sees an IPv4 peer as `::ffff:a.b.c.d`. Here it is always the plain IPv4 address,
//! in both directions and for both ends, and the flow label of an IPv6 address is left out: quinn-proto takes a peer
//! whose address differs in anything for one that has migrated (RFC 9000 §9).

mod recv;
mod send;
mod sys;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use socket2::{Domain, Protocol, Socket, Type};

pub use recv::{Datagram, RecvBatch};
pub use send::{SendBatch, SendCounters};

/// How a [`UdpSocket`] is made.
#[derive(Debug, Clone, Copy)]
pub struct UdpOptions {
    /// SO_REUSEPORT: several sockets, one per worker, share the address.
    pub reuse_port: bool,
    /// UDP_GRO: the kernel joins datagrams of one peer that follow each other. Saves system calls, but a train is
    /// steered as a whole by its first datagram, so that with several workers parts of it may reach the wrong one.
    pub gro: bool,
    /// Receive buffer of the socket in bytes, as payload: the kernel doubles it for its own records.
    pub recv_buffer_bytes: usize,
    /// Send buffer of the socket in bytes, as payload: the kernel doubles it for its own records.
    pub send_buffer_bytes: usize,
}

impl Default for UdpOptions {
    fn default() -> Self {
        Self {
            reuse_port: false,
            gro: false,
            recv_buffer_bytes: 8 << 20,
            send_buffer_bytes: 8 << 20,
        }
    }
}

/// A UDP socket set up for QUIC: non-blocking, never fragmenting, telling each datagram's destination address and ECN
/// mark.
#[derive(Debug)]
pub struct UdpSocket {
    socket: Socket,
    ipv6: bool,
    gro: bool,
}

impl UdpSocket {
    /// Binds to `address`. An unspecified IPv6 address (`[::]`) takes IPv4 as well.
    ///
    /// The buffer sizes are asked for as the superuser may (beyond `net.core.rmem_max`), else as far as the system
    /// allows; [`UdpSocket::recv_buffer_bytes`] says what came of it.
    ///
    /// # Errors
    /// The kernel's error, most often that the address is taken (another process without SO_REUSEPORT) or not local.
    pub fn bind(address: SocketAddr, options: &UdpOptions) -> io::Result<Self> {
        let ipv6 = address.is_ipv6();
        let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        if options.reuse_port {
            sys::set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
        }
        let dual_stack = ipv6 && address.ip().is_unspecified();
        if ipv6 {
            socket.set_only_v6(!dual_stack)?;
        }
        set_buffer(
            &socket,
            libc::SO_RCVBUFFORCE,
            libc::SO_RCVBUF,
            options.recv_buffer_bytes,
        )?;
        set_buffer(
            &socket,
            libc::SO_SNDBUFFORCE,
            libc::SO_SNDBUF,
            options.send_buffer_bytes,
        )?;
        if ipv6 {
            sys::set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
            sys::set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
            // RFC 9000 §14: datagrams must not be fragmented. "Probe" ignores what the kernel believes of the path,
            // which a forged ICMP message could lower.
            let probe = libc::IPV6_PMTUDISC_PROBE;
            sys::set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, probe)?;
            sys::set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1)?;
        }
        if !ipv6 || dual_stack {
            sys::set_option(&socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
            sys::set_option(
                &socket,
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                libc::IP_PMTUDISC_PROBE,
            )?;
        }
        if !ipv6 {
            sys::set_option(&socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
        }
        // A kernel before 5.0 has no GRO for UDP: receiving without it is only slower.
        let gro = options.gro && sys::set_option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
        socket.bind(&address.into())?;
        Ok(Self { socket, ipv6, gro })
    }

    /// The address that the socket is bound to, with the port that the kernel chose if 0 was asked for.
    ///
    /// # Errors
    /// The kernel's, which for a bound socket would be a bug.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket
            .local_addr()?
            .as_socket()
            .ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    /// Whether UDP_GRO is on: asked for, and known to the kernel.
    pub fn gro(&self) -> bool {
        self.gro
    }

    /// The receive buffer that the kernel granted, in bytes of its own count (twice what was asked for).
    ///
    /// # Errors
    /// The kernel's, which for a bound socket would be a bug.
    pub fn recv_buffer_bytes(&self) -> io::Result<usize> {
        self.socket.recv_buffer_size()
    }

    /// The send buffer that the kernel granted, in bytes of its own count (twice what was asked for).
    ///
    /// # Errors
    /// The kernel's, which for a bound socket would be a bug.
    pub fn send_buffer_bytes(&self) -> io::Result<usize> {
        self.socket.send_buffer_size()
    }

    /// Datagrams that the kernel dropped at this socket since it was made, mostly because the receive buffer was
    /// full: the worker doesn't keep up. Wraps at 2³².
    ///
    /// # Errors
    /// The kernel's: before Linux 4.12 it cannot tell.
    pub fn kernel_drops(&self) -> io::Result<u32> {
        const SK_MEMINFO_DROPS: usize = 8;
        let mut values = [0; SK_MEMINFO_DROPS + 1];
        sys::read_options(
            &self.socket,
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            &mut values,
        )?;
        Ok(values[SK_MEMINFO_DROPS] as u32)
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for UdpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Beyond the system's limit if we may, else up to it.
fn set_buffer(
    socket: &Socket,
    forced: libc::c_int,
    plain: libc::c_int,
    bytes: usize,
) -> io::Result<()> {
    // The kernel doubles the value, in a signed 32-bit number.
    let bytes = bytes.min(i32::MAX as usize / 2) as i32;
    sys::set_option(socket, libc::SOL_SOCKET, forced, bytes)
        .or_else(|_| sys::set_option(socket, libc::SOL_SOCKET, plain, bytes))
}

#[cfg(test)]
mod tests;
