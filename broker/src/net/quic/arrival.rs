//! Datagrams on their way to quinn-proto.

use crate::{mesh::ForeignDatagram, net::udp::Datagram};
use headgate_common::route::Route;
use quinn_proto::ConnectionEvent;
use std::net::{IpAddr, SocketAddr};

/// A datagram that quinn-proto shall see.
#[derive(Debug)]
pub struct Arrival<'a> {
    /// Sender.
    pub source: SocketAddr,
    /// Address that it was sent to.
    pub destination: Option<IpAddr>,
    /// ECN codepoint.
    pub ecn: Option<quinn_proto::EcnCodepoint>,
    /// UDP payload.
    pub data: &'a [u8],
    /// Its Destination Connection ID is ours. Whoever knows one has received it, since 80 bits of it can't be guessed:
    /// that validates its address (RFC 9000 §8.1).
    pub is_own: bool,
    /// It may begin a connection: an Initial or 0-RTT packet whose Destination Connection ID the client has chosen.
    pub is_new: bool,
}

impl Arrival<'_> {
    /// The same, with what its way here says of it.
    #[must_use]
    pub fn routed(self, route: Route) -> Self {
        Self {
            is_own: matches!(route, Route::Own { .. }),
            is_new: matches!(route, Route::New { .. }),
            ..self
        }
    }
}

/// What waits in a batch for its connection.
pub(super) struct Arrived {
    /// The connection's place.
    pub index: u32,
    /// For quinn-proto.
    pub event: ConnectionEvent,
    /// Length of the datagram.
    pub bytes: usize,
    /// As in [`Arrival`].
    pub is_own: bool,
}

impl<'a> From<&'a ForeignDatagram> for Arrival<'a> {
    fn from(d: &'a ForeignDatagram) -> Self {
        Self {
            source: d.source,
            destination: d.destination,
            ecn: d.ecn,
            data: &d.data,
            is_own: false,
            is_new: false,
        }
    }
}

impl<'a> From<Datagram<'a>> for Arrival<'a> {
    fn from(d: Datagram<'a>) -> Self {
        Self {
            source: d.source,
            destination: d.destination_ip,
            ecn: d.ecn,
            data: d.data,
            is_own: false,
            is_new: false,
        }
    }
}
