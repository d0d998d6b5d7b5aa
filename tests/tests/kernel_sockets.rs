//! The sk_reuseport program on the loopback interface: the right worker's socket, exactly.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use headgate::kernel::{KernelSettings, Steering};
use headgate_common::{Route, SocketReason};
use headgate_tests::packets::{long, short};
use headgate_tests::rig::{Rig, receive, settings, why_not};
use headgate_tests::skip;
use socket2::{Domain, Socket, Type};

/// `count` sockets in one SO_REUSEPORT group.
fn group(address: SocketAddr, count: usize) -> Vec<UdpSocket> {
    let mut address = address;
    (0..count)
        .map(|_| {
            let socket =
                Socket::new(Domain::for_address(address), Type::DGRAM, None).expect("a socket");
            if address.is_ipv6() {
                socket.set_only_v6(false).expect("dual stack");
            }
            socket.set_reuse_port(true).expect("SO_REUSEPORT");
            socket
                .set_read_timeout(Some(Duration::from_secs(5)))
                .expect("a timeout");
            socket.bind(&address.into()).expect("binds");
            let socket = UdpSocket::from(socket);
            address = socket.local_addr().expect("bound");
            socket
        })
        .collect()
}

/// Sends datagrams of every kind from several sockets, and checks that each arrives at the worker that the route in
/// user space names. Returns how many were sent.
fn every_datagram_arrives_where_it_belongs(
    rig: &Rig,
    workers: &[UdpSocket],
    to: SocketAddr,
) -> u64 {
    let from = if to.is_ipv4() {
        "127.0.0.1:0"
    } else {
        "[::1]:0"
    };
    let senders: Vec<UdpSocket> = (0..4)
        .map(|_| UdpSocket::bind(from).expect("a sender"))
        .collect();
    let router = rig.shield().router();
    let mut sent = 0;
    for round in 0..100u8 {
        let own = rig
            .cids()
            .encode(headgate_tests::rig::NODE, round % 4, [round; 6]);
        for mut datagram in [
            short(&own, 60),
            long(2, 1, &own, &[1; 8], 100),
            long(0, 1, &own, &[1; 8], 1200),
            long(0, 1, &[round; 8], &[1; 8], 1200),
            long(0, 1, &[round; 20], &[1; 8], 1200),
            long(1, 1, &[round; 17], &[1; 8], 90),
            long(0, 77, &[round; 9], &[1; 8], 1250),
            short(
                &rig.cids().encode(headgate_tests::rig::NODE, 99, [round; 6]),
                60,
            ),
        ] {
            let len = datagram.len();
            datagram[len - 8..].copy_from_slice(&(sent as u64).to_le_bytes());
            senders[sent % 4].send_to(&datagram, to).expect("sent");
            let slot = router
                .route(&datagram)
                .slot()
                .expect("every one of them has a worker");
            let mut buffer = [0; 2048];
            let received =
                receive(&workers[usize::from(slot)], &mut buffer).expect("arrives at its worker");
            assert_eq!(buffer[..received], datagram[..]);
            sent += 1;
        }
    }
    sent as u64
}

#[test]
fn every_kind_of_datagram_reaches_its_worker() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    for (bind, destinations) in [
        ("127.0.0.1:0", vec!["127.0.0.1", "127.9.9.9"]),
        ("[::]:0", vec!["::1", "127.0.0.1"]),
    ] {
        let mut bind: SocketAddr = bind.parse().expect("an address");
        if destinations.len() == 2 && bind.is_ipv4() {
            bind.set_ip(IpAddr::from([0, 0, 0, 0]));
        }
        let workers = group(bind, 4);
        let rig = Rig::with(settings(), 0);
        for (slot, socket) in workers.iter().enumerate() {
            rig.shield()
                .add_worker(slot as u8, socket, 0)
                .expect("the worker is added");
        }
        rig.shield()
            .attach_reuseport(&workers[0])
            .expect("the program is attached");
        let port = workers[0].local_addr().expect("bound").port();
        let mut sent = 0;
        for destination in destinations {
            let to = SocketAddr::new(destination.parse().expect("an address"), port);
            sent += every_datagram_arrives_where_it_belongs(&rig, &workers, to);
        }
        let seen = rig.at_sockets(SocketReason::OwnCid) + rig.at_sockets(SocketReason::Hashed);
        assert_eq!(seen, sent, "the counters add up");
        assert_eq!(
            rig.at_sockets(SocketReason::NoSocket) + rig.at_sockets(SocketReason::Refused),
            0
        );
    }
}

#[test]
fn forged_and_lost_datagrams_reach_nobody() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let workers = group("127.0.0.1:0".parse().expect("an address"), 2);
    let rig = Rig::with(settings(), 0);
    for (slot, socket) in workers.iter().enumerate() {
        rig.shield()
            .add_worker(slot as u8, socket, 0)
            .expect("the worker is added");
    }
    rig.shield()
        .attach_reuseport(&workers[0])
        .expect("the program is attached");
    let to = workers[0].local_addr().expect("bound");
    let sender = UdpSocket::bind("127.0.0.1:0").expect("a sender");
    for datagram in [
        short(&[1; 14], 60),
        long(2, 1, &[1; 14], &[], 100),
        vec![0x40; 20],
    ] {
        sender.send_to(&datagram, to).expect("sent");
    }
    rig.shield()
        .remove_worker(1)
        .expect("the worker is removed");
    let moved = short(&rig.cid(1), 70);
    assert!(matches!(
        rig.shield().router().route(&moved),
        Route::Orphan { slot: 0, .. }
    ));
    sender.send_to(&moved, to).expect("sent");
    let mut buffer = [0; 2048];
    let received = receive(&workers[0], &mut buffer)
        .expect("whoever is left gets it, to send a stateless reset");
    assert_eq!(buffer[..received], moved[..]);
    assert_eq!(rig.at_sockets(SocketReason::Refused), 3);
    workers[1].set_nonblocking(true).expect("non-blocking");
    assert!(receive(&workers[1], &mut buffer).is_err());
}

#[test]
fn a_worker_that_comes_back_gets_its_slot_again() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let mut workers = group("127.0.0.1:0".parse().expect("an address"), 2);
    let rig = Rig::with(settings(), 0);
    for (slot, socket) in workers.iter().enumerate() {
        rig.shield()
            .add_worker(slot as u8, socket, 0)
            .expect("the worker is added");
    }
    rig.shield()
        .attach_reuseport(&workers[0])
        .expect("the program is attached");
    let to = workers[0].local_addr().expect("bound");
    let sender = UdpSocket::bind("127.0.0.1:0").expect("a sender");
    // It panicked: its socket is closed, and nobody has said so.
    drop(workers.pop());
    sender.send_to(&short(&rig.cid(1), 60), to).expect("sent");
    while rig.at_sockets(SocketReason::NoSocket) == 0 {
        std::thread::yield_now();
    }
    workers.extend(group(to, 1));
    rig.shield()
        .add_worker(1, &workers[1], 0)
        .expect("the worker is added");
    let datagram = short(&rig.cid(1), 61);
    sender.send_to(&datagram, to).expect("sent");
    let mut buffer = [0; 2048];
    let received = receive(&workers[1], &mut buffer).expect("arrives at the new socket");
    assert_eq!(buffer[..received], datagram[..]);
}

#[test]
fn without_this_half_the_kernel_picks_by_address() {
    if let Some(reason) = why_not() {
        skip!("{reason}");
    }
    let workers = group("127.0.0.1:0".parse().expect("an address"), 4);
    let rig = Rig::with(
        KernelSettings {
            steering: Steering::None,
            ..settings()
        },
        0,
    );
    for (slot, socket) in workers.iter().enumerate() {
        rig.shield()
            .add_worker(slot as u8, socket, 0)
            .expect("the worker is added");
        socket.set_nonblocking(true).expect("non-blocking");
    }
    rig.shield()
        .attach_reuseport(&workers[0])
        .expect("nothing to do");
    assert!(!rig.shield().status().reuseport);
    let to = workers[0].local_addr().expect("bound");
    let mut at = [0u32; 4];
    for _ in 0..64 {
        let sender = UdpSocket::bind("127.0.0.1:0").expect("a sender");
        sender.send_to(&short(&rig.cid(1), 60), to).expect("sent");
        // On the loopback interface a datagram has arrived when it has been sent.
        let mut buffer = [0; 2048];
        for (count, worker) in at.iter_mut().zip(&workers) {
            *count += u32::from(receive(worker, &mut buffer).is_ok());
        }
    }
    assert_eq!(at.iter().sum::<u32>(), 64);
    assert!(at[1] < 64, "the connection ID makes no difference: {at:?}");
    assert_eq!(rig.at_sockets(SocketReason::OwnCid), 0);
}
