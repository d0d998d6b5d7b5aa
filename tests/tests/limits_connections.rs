//! The limits on connections, hit on purpose from outside, over TCP and QUIC.

use headgate_codec::{Packet, QoS, Version};
use headgate_tests::{
    broker::Broker,
    clients::Client as Foreign,
    hostile,
    quic_client::{Client, Error, endpoint},
    skip,
    tcp_client::TcpClient,
};
use std::{
    net::{Ipv4Addr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(60);

fn refused(broker: &Broker, limit: &str) -> f64 {
    let metrics = broker.metrics();
    let of_worker = |worker| {
        metrics.get(&format!(
            "headgate_refused_total{{worker=\"{worker}\",limit=\"{limit}\"}}"
        ))
    };
    (0..2).filter_map(of_worker).sum()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} does not come about");
        thread::sleep(Duration::from_millis(50));
    }
}

fn run<T>(test: impl Future<Output = Result<T, Error>>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(async { tokio::time::timeout(PATIENCE, test).await })
        .expect("in time")
        .expect("no error")
}

fn quic_from(address: [u8; 4]) -> Result<quinn::Endpoint, Error> {
    endpoint(UdpSocket::bind((Ipv4Addr::from(address), 0))?)
}

/// A refused TCP connection is closed without a word: nothing was read yet that would say which
/// version of MQTT to answer in.
fn is_closed(mut client: TcpClient) -> bool {
    client.send(&Packet::PingReq);
    client.receive().is_none()
}

/// RFC 9000 §20.1: CONNECTION_REFUSED is 0x02.
fn is_refused(error: &quinn::ConnectionError) -> bool {
    matches!(error, quinn::ConnectionError::ConnectionClosed(close)
        if u64::from(close.error_code) == 0x02)
}

#[test]
fn connections() {
    let broker = Broker::start("[limits]\nconnections = 2");
    let tcp = TcpClient::connect(broker.tcp(), "tcp");
    run(async {
        let endpoint = quic_from([127, 0, 0, 1])?;
        let mut quic = Client::connect(&endpoint, broker.quic(), "quic").await?;
        assert!(is_closed(TcpClient::open(broker.tcp(), Version::V5)));
        let third = endpoint.connect(broker.quic(), "localhost")?.await;
        let error = third.err().ok_or("the third connection was let in")?;
        assert!(is_refused(&error), "{error:?}");
        assert_eq!(refused(&broker, "connections"), 2.0);
        // Those that are in notice nothing, and one that leaves makes room.
        quic.subscribe("a", QoS::AtMostOnce).await?;
        drop(tcp);
        let deadline = Instant::now() + PATIENCE;
        while Client::connect(&endpoint, broker.quic(), "next")
            .await
            .is_err()
        {
            assert!(Instant::now() < deadline, "a place comes free");
        }
        Ok(())
    });
}

#[test]
fn connections_per_prefix() {
    let broker = Broker::start("[limits]\nconnections_per_prefix = 2");
    run(async {
        let near = [quic_from([127, 0, 0, 1])?, quic_from([127, 0, 0, 99])?];
        let far = quic_from([127, 0, 1, 1])?;
        let _first = Client::connect(&near[0], broker.quic(), "first").await?;
        let _second = Client::connect(&near[1], broker.quic(), "second").await?;
        let third = near[1].connect(broker.quic(), "localhost")?.await;
        let error = third.err().ok_or("the third connection was let in")?;
        assert!(is_refused(&error), "{error:?}");
        assert!(
            is_closed(TcpClient::open(broker.tcp(), Version::V5)),
            "TCP counts as well"
        );
        assert_eq!(refused(&broker, "connections_per_prefix"), 2.0);
        Client::connect(&far, broker.quic(), "far").await?;
        assert_eq!(
            refused(&broker, "connections_per_prefix"),
            2.0,
            "another prefix has its own"
        );
        Ok(())
    });
}

/// A burst above the rate: over TCP the rest is closed; QUIC clients get no answer, repeat their
/// Initial, and are all let in one after the other.
#[test]
fn handshakes_per_second() {
    let broker = Broker::start("[limits]\nhandshakes_per_second = 2");
    let clients: Vec<_> = (0..20)
        .map(|_| TcpClient::open(broker.tcp(), Version::V5))
        .collect();
    eventually("a refusal", || {
        refused(&broker, "handshakes_per_second") > 0.0
    });
    run(async {
        let endpoint = quic_from([127, 0, 0, 1])?;
        let before = refused(&broker, "handshakes_per_second");
        let burst = (0..4)
            .map(|_| endpoint.connect(broker.quic(), "localhost"))
            .collect::<Result<Vec<_>, _>>()?;
        for connecting in burst.into_iter().map(tokio::spawn) {
            connecting.await??;
        }
        assert!(
            refused(&broker, "handshakes_per_second") > before,
            "some had to come again"
        );
        Ok(())
    });
    drop(clients);
}

/// RFC 9000 §4.6: the client may open as many streams as it was given credit for. One that opens more is no client that
/// has a library for QUIC, so this one writes the frame itself.
#[test]
fn streams_per_connection() {
    if let Err(reason) = Foreign::Aioquic.available() {
        skip!("{reason}");
    }
    let broker = Broker::start("[limits]\nstreams_per_connection = 2");
    run(async {
        let endpoint = quic_from([127, 0, 0, 1])?;
        let mut client = Client::connect(&endpoint, broker.quic(), "wide").await?;
        // An octet on the third stream, and STREAM_LIMIT_ERROR.
        let answered = hostile::answers(&broker, &["packet data 0 080861".to_owned()]);
        assert_eq!(answered, ["closed 0x4"]);
        eventually("the count", || {
            refused(&broker, "streams_per_connection") == 1.0
        });
        client.subscribe("a", QoS::AtMostOnce).await?;
        client.publish("a", QoS::AtMostOnce, b"still here").await?;
        match client.receive().await? {
            Packet::Publish(publish) => assert_eq!(publish.payload, "still here"),
            other => panic!("expected PUBLISH, got {other:?}"),
        }
        Ok(())
    });
}

/// A client that connects and says nothing is closed after `mqtt.connect_timeout_s`.
#[test]
fn connect_timeout() {
    let broker = Broker::start("[mqtt]\nconnect_timeout_s = 1");
    let mut silent = TcpClient::open(broker.tcp(), Version::V5);
    assert_eq!(silent.receive(), None);
    eventually("the count", || {
        let metrics = broker.metrics();
        let closed = |worker| {
            metrics.get(&format!(
                "headgate_connect_timeouts_total{{worker=\"{worker}\"}}"
            ))
        };
        (0..2).filter_map(closed).sum::<f64>() == 1.0
    });
}
