//! Whether a port is anybody's. The workers' sockets share their port (SO_REUSEPORT), and would
//! share it with another broker of the same user just as well: each would get some of the clients.

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
};

/// Fails with `AddrInUse` if a TCP listener or a UDP socket has the address, shared or not.
pub(super) fn check(kind: Type, address: SocketAddr) -> io::Result<()> {
    let protocol = if kind == Type::STREAM {
        Protocol::TCP
    } else {
        Protocol::UDP
    };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if let SocketAddr::V6(v6) = address {
        socket.set_only_v6(*v6.ip() != Ipv6Addr::UNSPECIFIED)?;
    }
    // Connections of a former broker in TIME_WAIT are nobody's listener.
    socket.set_reuse_address(kind == Type::STREAM)?;
    socket.bind(&SockAddr::from(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_port_is_somebodys() {
        for kind in [Type::STREAM, Type::DGRAM] {
            let other = Socket::new(Domain::IPV4, kind, None).expect("there are sockets");
            other.set_reuse_port(true).expect("Linux has it");
            let any: SocketAddr = ([127, 0, 0, 1], 0).into();
            other.bind(&any.into()).expect("a port is free");
            if kind == Type::STREAM {
                other.listen(1).expect("it is bound");
            }
            let address = other
                .local_addr()
                .ok()
                .and_then(|address| address.as_socket());
            let address = address.expect("it has an IP address");
            let error = check(kind, address).expect_err("the other one has it");
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            drop(other);
            assert!(check(kind, address).is_ok());
        }
    }
}
