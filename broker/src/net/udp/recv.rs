//! Receiving in batches.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use quinn_proto::EcnCodepoint;

use super::UdpSocket;
use super::sys::Incoming;

/// Messages per system call without GRO.
const SLOTS: usize = 64;
/// Bytes per slot without GRO: more than `max_udp_payload_size`, and than any datagram that an Ethernet carries.
const SLOT_BYTES: usize = 2048;
/// Messages per system call with GRO: each may be a train of up to 64 datagrams.
const GRO_SLOTS: usize = 16;
/// Bytes per slot with GRO: the longest train.
const GRO_SLOT_BYTES: usize = 65_536;

/// One UDP datagram.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// Its payload; never empty.
    pub data: &'a [u8],
    /// Who sent it.
    pub source: SocketAddr,
    /// The local address that it was sent to.
    pub destination_ip: Option<IpAddr>,
    /// Its mark in the IP header (RFC 3168), if it has one.
    pub ecn: Option<EcnCodepoint>,
}

/// Buffers for receiving, allocated once: 144 KiB for a socket without GRO, 1 MiB with GRO.
pub struct RecvBatch {
    incoming: Incoming,
    truncated: u64,
}

impl RecvBatch {
    /// Buffers that fit `socket`.
    pub fn new(socket: &UdpSocket) -> Self {
        let (slots, slot_bytes) = if socket.gro() {
            (GRO_SLOTS, GRO_SLOT_BYTES)
        } else {
            (SLOTS, SLOT_BYTES)
        };
        Self {
            incoming: Incoming::new(slots, slot_bytes),
            truncated: 0,
        }
    }

    /// Receives with one system call, without waiting, and hands each datagram to `deliver` in the order of arrival.
    ///
    /// Returns how many messages (trains, with GRO) were read: 0 if nothing was there, less than
    /// [`RecvBatch::messages_max`] if the socket is probably empty now.
    ///
    /// # Errors
    /// The kernel's. An error that belongs to an earlier send (an ICMP message came back) may show up here; it costs
    /// nothing to go on.
    pub fn recv(
        &mut self,
        socket: &UdpSocket,
        mut deliver: impl FnMut(Datagram<'_>),
    ) -> io::Result<usize> {
        let received = loop {
            match self.incoming.receive(socket.as_fd()) {
                Ok(received) => break received,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                Err(error) => return Err(error),
            }
        };
        for slot in 0..received {
            let Some(message) = self.incoming.message(slot) else {
                continue;
            };
            if message.truncated {
                self.truncated += 1;
                continue;
            }
            // Zero would cut endlessly; an empty datagram has no chunk and vanishes here.
            let segment_bytes = message
                .segment_bytes
                .filter(|&bytes| bytes > 0)
                .unwrap_or(usize::MAX);
            for data in message.data.chunks(segment_bytes) {
                deliver(Datagram {
                    data,
                    source: message.source,
                    destination_ip: message.destination_ip,
                    ecn: EcnCodepoint::from_bits(message.ecn_bits & 0b11),
                });
            }
        }
        Ok(received)
    }

    /// How many messages one call reads at most.
    pub fn messages_max(&self) -> usize {
        self.incoming.slots()
    }

    /// Datagrams dropped because they were longer than any that a peer may send us (2,048 bytes; 64 KiB with GRO).
    pub fn truncated(&self) -> u64 {
        self.truncated
    }

    /// Heap memory, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.incoming.memory_bytes()
    }
}

impl fmt::Debug for RecvBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecvBatch")
            .field("messages_max", &self.messages_max())
            .field("truncated", &self.truncated)
            .finish_non_exhaustive()
    }
}
