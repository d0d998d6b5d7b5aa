//! Listeners behind a load balancer that speaks the PROXY protocol, and clients that never finish what they begin.

use headgate_codec::{Packet, ReasonCode, Version};
use headgate_tests::{
    broker::Broker,
    streams,
    tcp_client::{TcpClient, connect},
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

/// How long to wait for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection that begins with `header`.
fn behind(header: &[u8], server: SocketAddr) -> TcpStream {
    let mut stream = streams::tcp(server);
    stream.write_all(header).expect("it is sent");
    stream
}

/// A header of version 1.
fn v1(source: &str) -> Vec<u8> {
    format!("PROXY TCP4 {source} 192.0.2.1 4711 1883\r\n").into_bytes()
}

/// A header of version 2 for IPv4 over TCP, or LOCAL.
fn v2(source: Option<[u8; 4]>) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    match source {
        None => header.extend([0x20, 0, 0, 0]),
        Some(source) => {
            header.extend([0x21, 0x11, 0, 12]);
            header.extend(source);
            header.extend([192, 0, 2, 1, 0x12, 0x67, 0x07, 0x5b]);
        }
    }
    header
}

/// Whether MQTT is spoken on `stream`.
fn is_served(stream: TcpStream, id: &str) -> Option<TcpClient> {
    let mut client = TcpClient::over(stream, Version::V5);
    client.send(&Packet::Connect(Box::new(connect(id))));
    match client.receive() {
        Some(Packet::ConnAck(ack)) => {
            assert_eq!(ack.reason, ReasonCode::SUCCESS);
            Some(client)
        }
        None => None,
        other => panic!("expected CONNACK, got {other:?}"),
    }
}

/// The limit per prefix counts the clients in the headers, not the balancer.
#[test]
fn the_address_in_the_header_counts() {
    let broker =
        Broker::start("[listen]\nproxy_protocol = [\"tcp\"]\n[limits]\nconnections_per_prefix = 1");
    let through = |header: &[u8], id: &str| is_served(behind(header, broker.tcp()), id);
    let first = through(&v1("203.0.113.7"), "1").expect("the first of its prefix");
    assert!(
        through(&v1("203.0.113.99"), "2").is_none(),
        "the same prefix"
    );
    assert!(
        through(&v2(Some([203, 0, 113, 1])), "3").is_none(),
        "the same prefix, in version 2"
    );
    let _other = through(&v2(Some([198, 51, 100, 1])), "4").expect("another prefix");
    let _local = through(&v2(None), "5").expect("the balancer itself, by its own address");
    assert!(
        through(b"PROXY UNKNOWN\r\n", "6").is_none(),
        "the balancer's prefix as well"
    );
    assert_eq!(broker.metrics().sum("headgate_refused_total"), 3.0);
    drop(first);
    let deadline = Instant::now() + PATIENCE;
    while through(&v1("203.0.113.8"), "7").is_none() {
        assert!(Instant::now() < deadline, "a place comes free");
    }
}

/// The header comes before TLS, and may come in pieces or together with what follows.
#[test]
fn tls_follows_the_header() {
    let broker = Broker::start("[listen]\nproxy_protocol = [\"tls\", \"wss\"]");
    let config = streams::tls_config(&broker.ca_certificate(), None);
    let header = v1("203.0.113.7");
    let (begin, end) = header.split_at(9);
    let mut stream = behind(begin, broker.tls());
    stream.write_all(end).expect("it is sent");
    let mut client = TcpClient::over(streams::tls(stream, &config), Version::V5);
    assert_eq!(client.shake_hands(connect("tls")), ReasonCode::SUCCESS);
    let tls = streams::tls(behind(&v2(Some([203, 0, 113, 7])), broker.wss()), &config);
    let mut client = TcpClient::over(streams::web_socket(tls), Version::V5);
    assert_eq!(client.shake_hands(connect("wss")), ReasonCode::SUCCESS);
    TcpClient::connect(broker.tcp(), "the other listeners know nothing of it");
}

#[test]
fn without_a_header_nobody_is_served() {
    let broker = Broker::start("[listen]\nproxy_protocol = [\"tcp\"]");
    assert!(is_served(streams::tcp(broker.tcp()), "none").is_none());
    for garbage in [
        &b"PROXY TCP4 nonsense\r\n"[..],
        b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 99999\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        &[&b"PROXY "[..], &[b'x'; 200]].concat(),
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
        b"\r\n\r\n\0\r\nQUIT\n\x91\x11\0\x0c............",
    ] {
        assert!(is_served(behind(garbage, broker.tcp()), "garbage").is_none());
    }
    assert!(is_served(behind(&v1("203.0.113.7"), broker.tcp()), "good").is_some());
}

/// `mqtt.connect_timeout_s` holds for every layer, and whoever is slow makes nobody else wait.
#[test]
fn who_never_finishes_is_closed_and_others_are_served() {
    let broker =
        Broker::start("[listen]\nproxy_protocol = [\"tcp\"]\n[mqtt]\nconnect_timeout_s = 1");
    let begun: [(&str, SocketAddr, &[u8]); 7] = [
        ("nothing of a PROXY header", broker.tcp(), b""),
        ("half a PROXY header", broker.tcp(), b"PROXY TCP4 203"),
        ("nothing of TLS", broker.tls(), b""),
        (
            "half a ClientHello",
            broker.tls(),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        ),
        (
            "half a request",
            broker.ws(),
            b"GET / HTTP/1.1\r\nHost: h\r\n",
        ),
        ("nothing of a request", broker.ws(), b""),
        ("nothing of TLS for WebSocket", broker.wss(), b""),
    ];
    let slow = begun.map(|(what, server, bytes)| (what, behind(bytes, server)));
    let mut quick = is_served(behind(&v1("203.0.113.7"), broker.tcp()), "quick").expect("served");
    for (what, mut stream) in slow {
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        assert!(ended.is_ok() || rest.is_empty(), "{what}: {ended:?}");
    }
    quick.send(&Packet::PingReq);
    assert_eq!(quick.receive(), Some(Packet::PingResp));
    let deadline = Instant::now() + PATIENCE;
    while broker.metrics().sum("headgate_connect_timeouts_total") != 7.0 {
        assert!(Instant::now() < deadline, "all seven are counted");
        thread::sleep(Duration::from_millis(50));
    }
}
