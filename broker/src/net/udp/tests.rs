//! Sockets on the loopback interface.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use quinn_proto::{EcnCodepoint, Transmit};

use super::*;

/// What a datagram was, as owned values.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Received {
    data: Vec<u8>,
    source: SocketAddr,
    destination_ip: Option<IpAddr>,
    ecn: Option<u8>,
}

fn options() -> UdpOptions {
    UdpOptions {
        recv_buffer_bytes: 4 << 20,
        send_buffer_bytes: 4 << 20,
        ..UdpOptions::default()
    }
}

fn bind(address: &str) -> UdpSocket {
    UdpSocket::bind(address.parse().unwrap(), &options()).unwrap()
}

fn address(socket: &UdpSocket, ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), socket.local_addr().unwrap().port())
}

fn transmit(destination: SocketAddr, size: usize) -> Transmit {
    Transmit {
        destination,
        ecn: None,
        size,
        segment_size: None,
        src_ip: None,
    }
}

fn send(socket: &UdpSocket, transmit: Transmit, bytes: &[u8]) -> SendCounters {
    let mut batch = SendBatch::new();
    batch.push(&transmit, bytes);
    batch.flush(socket).unwrap();
    *batch.counters()
}

/// Calls `step` until it says that it has seen all: the kernel may deliver on another CPU, a moment later.
fn until_done(mut step: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(20);
    while !step() {
        assert!(
            Instant::now() < give_up,
            "datagrams sent over loopback did not arrive"
        );
        std::thread::yield_now();
    }
}

fn receive(socket: &UdpSocket, count: usize) -> Vec<Received> {
    let mut batch = RecvBatch::new(socket);
    let mut received = Vec::new();
    until_done(|| {
        let deliver = |datagram: Datagram<'_>| {
            received.push(Received {
                data: datagram.data.to_vec(),
                source: datagram.source,
                destination_ip: datagram.destination_ip,
                ecn: datagram.ecn.map(|ecn| ecn as u8),
            });
        };
        batch.recv(socket, deliver).unwrap();
        received.len() >= count
    });
    received
}

fn receive_one(socket: &UdpSocket) -> Received {
    let [one] = receive(socket, 1).try_into().unwrap();
    one
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + seed) as u8).collect()
}

#[test]
fn datagrams_of_all_sizes_arrive_whole_over_ipv4_and_ipv6() {
    for ip in ["127.0.0.1", "::1"] {
        let bound = SocketAddr::new(ip.parse().unwrap(), 0).to_string();
        let (server, client) = (bind(&bound), bind(&bound));
        for len in [1, 2, 20, 1199, 1200, 1472, 1500, 2048] {
            let data = pattern(len, len);
            send(&client, transmit(address(&server, ip), len), &data);
            let expected = Received {
                data,
                source: address(&client, ip),
                destination_ip: Some(ip.parse().unwrap()),
                ecn: None,
            };
            assert_eq!(receive_one(&server), expected, "{len} bytes over {ip}");
        }
    }
}

#[test]
fn what_no_peer_may_send_is_dropped_and_counted() {
    let (server, client) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let to = address(&server, "127.0.0.1");
    let mut out = SendBatch::new();
    for len in [2049, 9000, 5] {
        out.push(&transmit(to, len), &pattern(len, 0));
    }
    assert_eq!(out.flush(&client).unwrap(), 3);
    let mut batch = RecvBatch::new(&server);
    let (mut lens, mut messages) = (Vec::new(), 0);
    until_done(|| {
        messages += batch
            .recv(&server, |datagram| lens.push(datagram.data.len()))
            .unwrap();
        messages == 3
    });
    assert_eq!(lens, [5]);
    assert_eq!(batch.truncated(), 2);
    assert_eq!(
        batch.recv(&server, |_| panic!("nothing was sent")).unwrap(),
        0
    );
}

#[test]
fn a_dual_stack_socket_gives_and_takes_plain_ipv4_addresses() {
    let server = bind("[::]:0");
    for ip in ["127.0.0.1", "::1"] {
        let client = bind(&SocketAddr::new(ip.parse().unwrap(), 0).to_string());
        send(&client, transmit(address(&server, ip), 4), b"ping");
        let request = receive_one(&server);
        assert_eq!(request.source, address(&client, ip));
        assert_eq!(request.destination_ip, Some(ip.parse().unwrap()));
        let reply = Transmit {
            src_ip: request.destination_ip,
            ecn: Some(EcnCodepoint::Ect0),
            ..transmit(request.source, 4)
        };
        send(&server, reply, b"pong");
        let reply = receive_one(&client);
        assert_eq!(
            (reply.data, reply.source),
            (b"pong".to_vec(), address(&server, ip))
        );
        assert_eq!(reply.ecn, Some(EcnCodepoint::Ect0 as u8));
    }
}

#[test]
fn a_reply_leaves_from_the_address_that_was_asked() {
    for bound in ["0.0.0.0:0", "[::]:0"] {
        let (server, client) = (bind(bound), bind("127.0.0.1:0"));
        send(&client, transmit(address(&server, "127.0.0.2"), 4), b"ping");
        let request = receive_one(&server);
        assert_eq!(
            request.destination_ip,
            Some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)))
        );
        let reply = Transmit {
            src_ip: request.destination_ip,
            ..transmit(request.source, 4)
        };
        send(&server, reply, b"pong");
        let reply = receive_one(&client);
        assert_eq!(reply.source, address(&server, "127.0.0.2"));
    }
}

#[test]
fn ecn_marks_survive_both_ways() {
    for (ip, other) in [
        ("127.0.0.1", "0.0.0.0:0"),
        ("::1", "[::]:0"),
        ("127.0.0.1", "[::]:0"),
    ] {
        let client = bind(&SocketAddr::new(ip.parse().unwrap(), 0).to_string());
        let server = bind(other);
        for ecn in [
            None,
            Some(EcnCodepoint::Ect0),
            Some(EcnCodepoint::Ect1),
            Some(EcnCodepoint::Ce),
        ] {
            let expected = ecn.map(|ecn| ecn as u8);
            send(
                &client,
                Transmit {
                    ecn,
                    ..transmit(address(&server, ip), 1)
                },
                b"x",
            );
            assert_eq!(receive_one(&server).ecn, expected, "to {other} over {ip}");
            send(
                &server,
                Transmit {
                    ecn,
                    ..transmit(address(&client, ip), 1)
                },
                b"y",
            );
            assert_eq!(receive_one(&client).ecn, expected, "from {other} over {ip}");
        }
    }
}

#[test]
fn trains_arrive_as_the_datagrams_they_were_cut_into() {
    for gro in [false, true] {
        for ip in ["127.0.0.1", "::1"] {
            let bound = SocketAddr::new(ip.parse().unwrap(), 0);
            let server = UdpSocket::bind(bound, &UdpOptions { gro, ..options() }).unwrap();
            let client = bind(&bound.to_string());
            let data = pattern(10 * 1200 + 300, 3);
            let train = Transmit {
                segment_size: Some(1200),
                ecn: Some(EcnCodepoint::Ect0),
                ..transmit(address(&server, ip), data.len())
            };
            assert_eq!(send(&client, train, &data).datagrams, 11);
            let mut batch = RecvBatch::new(&server);
            let mut datagrams = Vec::new();
            let mut messages = 0;
            until_done(|| {
                let deliver = |datagram: Datagram<'_>| {
                    assert_eq!(datagram.source, address(&client, ip));
                    assert_eq!(datagram.ecn, Some(EcnCodepoint::Ect0));
                    datagrams.push(datagram.data.to_vec());
                };
                messages += batch.recv(&server, deliver).unwrap();
                datagrams.len() >= 11
            });
            assert_eq!(
                datagrams,
                data.chunks(1200).map(<[u8]>::to_vec).collect::<Vec<_>>()
            );
            assert_eq!(
                messages,
                if gro { 1 } else { 11 },
                "gro {gro}: the kernel joins if asked, and only then"
            );
            assert_eq!(
                sys::option(&server, libc::SOL_UDP, libc::UDP_GRO).unwrap() != 0,
                gro
            );
        }
    }
}

#[test]
fn batches_longer_than_a_call_arrive_in_order() {
    let (server, client) = (bind("[::]:0"), bind("127.0.0.1:0"));
    let mut out = SendBatch::new();
    let to = address(&server, "127.0.0.1");
    for number in 0..300u16 {
        // Each longer than the one before, so that they don't become trains.
        let bytes = [&number.to_be_bytes()[..], &vec![0; usize::from(number)]].concat();
        out.push(&transmit(to, bytes.len()), &bytes);
        assert_eq!(out.is_full(), number >= 63);
    }
    assert_eq!(out.flush(&client).unwrap(), 300);
    assert!(out.is_empty() && !out.is_full());
    assert_eq!(out.counters().calls, 5);
    let mut batch = RecvBatch::new(&server);
    let mut numbers = Vec::new();
    until_done(|| {
        let before = numbers.len();
        let deliver = |datagram: Datagram<'_>| {
            numbers.push(u16::from_be_bytes(datagram.data[..2].try_into().unwrap()))
        };
        let messages = batch.recv(&server, deliver).unwrap();
        assert!(messages <= batch.messages_max());
        assert_eq!(messages, numbers.len() - before);
        numbers.len() >= 300
    });
    assert_eq!(numbers, (0..300).collect::<Vec<_>>());
}

#[test]
fn unreachable_destinations_are_skipped() {
    let (server, client) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let mut out = SendBatch::new();
    // A socket bound to loopback can't reach a documentation address, nor send what no datagram can hold.
    out.push(&transmit(SocketAddr::from(([192, 0, 2, 1], 9)), 1), b"x");
    out.push(
        &transmit(address(&server, "127.0.0.1"), 65_535),
        &[0; 65_535],
    );
    let elsewhere = Transmit {
        src_ip: Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7))),
        segment_size: Some(10),
        ..transmit(address(&server, "127.0.0.1"), 30)
    };
    out.push(&elsewhere, &[1; 30]);
    out.push(&transmit(address(&server, "127.0.0.1"), 2), b"ok");
    assert_eq!(out.flush(&client).unwrap(), 1);
    assert_eq!(receive_one(&server).data, b"ok");
    assert_eq!(out.counters().dropped(), 3);
    assert_eq!(out.counters().too_long, 1);
    assert_eq!(
        out.max_segments(),
        64,
        "a wrong source address is no proof against GSO"
    );
}

#[test]
fn sockets_share_a_port_only_when_asked() {
    let shared = UdpOptions {
        reuse_port: true,
        ..options()
    };
    let first = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &shared).unwrap();
    let taken = first.local_addr().unwrap();
    assert!(UdpSocket::bind(taken, &shared).is_ok());
    let error = UdpSocket::bind(taken, &options()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn sockets_never_fragment() {
    let v4 = bind("127.0.0.1:0");
    assert_eq!(
        sys::option(&v4, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER).unwrap(),
        libc::IP_PMTUDISC_PROBE
    );
    let v6 = bind("[::]:0");
    assert_eq!(
        sys::option(&v6, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER).unwrap(),
        libc::IP_PMTUDISC_PROBE
    );
    assert_eq!(
        sys::option(&v6, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER).unwrap(),
        libc::IPV6_PMTUDISC_PROBE
    );
}

#[test]
fn only_the_unspecified_ipv6_address_takes_ipv4() {
    for (bound, only_v6) in [(Ipv6Addr::LOCALHOST, true), (Ipv6Addr::UNSPECIFIED, false)] {
        let socket = UdpSocket::bind(SocketAddr::new(bound.into(), 0), &options()).unwrap();
        assert_eq!(socket.socket.only_v6().unwrap(), only_v6);
    }
}

#[test]
fn datagrams_that_the_kernel_drops_are_known() {
    let server = UdpSocket::bind(
        "127.0.0.1:0".parse().unwrap(),
        &UdpOptions {
            recv_buffer_bytes: 1,
            ..options()
        },
    )
    .unwrap();
    let client = bind("127.0.0.1:0");
    let mut out = SendBatch::new();
    for _ in 0..100 {
        out.push(&transmit(address(&server, "127.0.0.1"), 1000), &[0; 1000]);
    }
    assert_eq!(out.flush(&client).unwrap(), 100);
    let mut batch = RecvBatch::new(&server);
    let mut arrived = 0;
    // Every datagram is accounted for: it arrived or the kernel says that it dropped it.
    until_done(|| {
        arrived += batch.recv(&server, |_| ()).unwrap();
        arrived + server.kernel_drops().unwrap() as usize == 100
    });
    assert!(arrived < 100);
}

#[test]
fn a_tiny_send_buffer_loses_nothing() {
    // On loopback the receiver is charged, so the kernel seldom pushes back; when it does, the rest must wait.
    let client = UdpSocket::bind(
        "127.0.0.1:0".parse().unwrap(),
        &UdpOptions {
            send_buffer_bytes: 1,
            ..options()
        },
    )
    .unwrap();
    let server = bind("127.0.0.1:0");
    assert!(client.send_buffer_bytes().unwrap() < 8192);
    let mut out = SendBatch::new();
    for number in 0..500u16 {
        out.push(
            &transmit(address(&server, "127.0.0.1"), 1000),
            &[number.to_be_bytes().as_slice(), &[0; 998]].concat(),
        );
    }
    let mut batch = RecvBatch::new(&server);
    let (mut numbers, mut sent) = (Vec::new(), 0);
    until_done(|| {
        sent += out.flush(&client).unwrap();
        let deliver = |datagram: Datagram<'_>| {
            numbers.push(u16::from_be_bytes(datagram.data[..2].try_into().unwrap()))
        };
        batch.recv(&server, deliver).unwrap();
        numbers.len() >= 500
    });
    assert_eq!((sent, out.counters().dropped()), (500, 0));
    assert_eq!(numbers, (0..500).collect::<Vec<_>>());
}

#[test]
fn the_stated_memory_is_what_is_used() {
    let plain = RecvBatch::new(&bind("127.0.0.1:0"));
    assert!(
        plain.memory_bytes() <= 160 << 10,
        "{}",
        plain.memory_bytes()
    );
    let gro_socket = UdpSocket::bind(
        "127.0.0.1:0".parse().unwrap(),
        &UdpOptions {
            gro: true,
            ..options()
        },
    )
    .unwrap();
    let gro = RecvBatch::new(&gro_socket);
    assert!(
        gro.memory_bytes() <= (1 << 20) + (16 << 10),
        "{}",
        gro.memory_bytes()
    );
    let mut out = SendBatch::new();
    let to = SocketAddr::from(([127, 0, 0, 1], 9));
    for len in [1, 1200, 60_000].into_iter().cycle().take(1_000) {
        out.push(&transmit(to, len), &pattern(len, 1));
    }
    assert!(out.memory_bytes() <= 3 << 20, "{}", out.memory_bytes());
}
