//! A UDP socket of a fleet, and what is to leave by it.

use crate::net::udp::{SendBatch, UdpOptions, UdpSocket};
use quinn_proto::Transmit;
use std::{
    io,
    net::{IpAddr, SocketAddr},
};

/// A socket.
pub(super) struct Port {
    pub(super) socket: UdpSocket,
    pub(super) outgoing: SendBatch,
}

impl Port {
    pub(super) fn new(local: IpAddr) -> io::Result<Self> {
        let options = UdpOptions {
            gro: true,
            ..UdpOptions::default()
        };
        Ok(Self {
            socket: UdpSocket::bind(SocketAddr::new(local, 0), &options)?,
            outgoing: SendBatch::new(),
        })
    }

    pub(super) fn push(&mut self, server: SocketAddr, packet: &[u8]) {
        push(&mut self.outgoing, &self.socket, server, packet);
    }

    pub(super) fn flush(&mut self) {
        while !self.outgoing.is_empty() {
            // What the socket doesn't take is lost, as in a network.
            if self.outgoing.flush(&self.socket).is_err() {
                break;
            }
        }
    }
}

/// Adds a packet to what is to leave.
pub(super) fn push(
    outgoing: &mut SendBatch,
    socket: &UdpSocket,
    server: SocketAddr,
    packet: &[u8],
) {
    let transmit = Transmit {
        destination: server,
        ecn: None,
        size: packet.len(),
        segment_size: None,
        src_ip: None,
    };
    outgoing.push(&transmit, packet);
    if outgoing.is_full() {
        let _ = outgoing.flush(socket);
    }
}
