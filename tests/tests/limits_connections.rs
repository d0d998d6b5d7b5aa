//! The limits on connections, hit on purpose from outside, over TCP and QUIC.

use headgate::bench::{Fleet, FleetOptions, Plan};
use headgate_codec::{Connect, Packet, QoS, ReasonCode, Version, Will};
use headgate_tests::{
    broker::Broker,
    clients::Client as Foreign,
    hostile,
    load::client::tls_of_one_suite,
    quic_client::{Client, Error, endpoint},
    skip,
    tcp_client::{TcpClient, connect, publish},
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

/// A burst above the rate: all wait, and are let in one after the other.
#[test]
fn handshakes_per_second() {
    let broker = Broker::start("[limits]\nhandshakes_per_second = 2");
    let begun = Instant::now();
    let clients: Vec<_> = (0..4)
        .map(|n| TcpClient::connect(broker.tcp(), &format!("tcp-{n}")))
        .collect();
    assert!(
        begun.elapsed() > Duration::from_millis(900),
        "two had to wait"
    );
    assert!(refused(&broker, "handshakes_per_second") > 0.0);
    run(async {
        let endpoint = quic_from([127, 0, 0, 1])?;
        let before = refused(&broker, "handshakes_per_second");
        let burst = (0..4)
            .map(|_| endpoint.connect(broker.quic(), "localhost"))
            .collect::<Result<Vec<_>, _>>()?;
        // They stay: an Initial that was repeated, and waited, would begin the handshake of one that is gone again.
        let mut connections = Vec::new();
        for connecting in burst.into_iter().map(tokio::spawn) {
            connections.push(connecting.await??);
        }
        assert!(
            refused(&broker, "handshakes_per_second") > before,
            "some had to wait"
        );
        let begun = broker.metrics().sum("headgate_handshakes_total{");
        assert_eq!(begun, 4.0, "none had to come again");
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

/// Clients that each hold a will of 64 KiB come until memory is short: further ones are told so, those that are in go on,
/// and when some have left, new ones come in.
#[test]
fn memory_limit() {
    let used = || {
        let broker = Broker::start("[store]\nenabled = false");
        eventually("a look at the memory", || used_bytes(&broker) > 0.0);
        used_bytes(&broker)
    };
    // New connections are refused from 85 % on: with 16 MiB more than the broker needs by itself.
    let limit = ((used() + 16.0 * 1_048_576.0) / 0.85) as u64;
    let broker = Broker::start(&format!(
        "[limits]\nmemory_limit = {limit}\n[store]\nenabled = false"
    ));
    let mut live = TcpClient::connect(broker.tcp(), "live");
    live.subscribe(&["a", "$SYS/broker/overload/memory"], QoS::AtMostOnce);
    let (mut inside, mut turned_away) = (Vec::new(), 0);
    while turned_away < 20 {
        let number = inside.len() + turned_away;
        assert!(number < 3_000, "never short");
        let (client, reason) = TcpClient::try_connect(broker.tcp(), heavy(number));
        match reason {
            ReasonCode::SUCCESS => inside.push(client),
            ReasonCode::SERVER_BUSY => turned_away += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(inside.len() > 50, "{} fit", inside.len());
    eventually("the count", || refused(&broker, "memory_limit") >= 20.0);
    // A slow machine may look when it has come to more than that.
    let status = broker.status();
    assert!(status.contains("overload    memory: "), "{status}");
    assert!(broker.log().contains("memory is short"));
    run(async {
        let endpoint = quic_from([127, 0, 0, 1])?;
        let connecting = endpoint.connect(broker.quic(), "localhost")?.await;
        let error = connecting.err().ok_or("it was let in over QUIC")?;
        assert!(is_refused(&error), "{error:?}");
        Ok(())
    });
    eventually("$SYS says so", || {
        let is_short = |level: &String| ["1", "2", "3"].contains(&level.as_str());
        exchange(&mut live).iter().any(is_short)
    });
    let resident = broker.metrics().get("headgate_resident_memory_bytes");
    assert!(
        resident.is_some_and(|bytes| bytes <= limit as f64),
        "{resident:?}"
    );
    drop(inside);
    eventually("room", || {
        broker
            .metrics()
            .get("headgate_overload_level{resource=\"memory\"}")
            == Some(0.0)
    });
    TcpClient::connect(broker.tcp(), "after");
    eventually("$SYS says so", || {
        exchange(&mut live).last().is_some_and(|level| level == "0")
    });
}

fn used_bytes(broker: &Broker) -> f64 {
    broker
        .metrics()
        .get("headgate_memory_used_bytes")
        .unwrap_or(0.0)
}

fn heavy(number: usize) -> Connect {
    let mut heavy = connect(&format!("heavy-{number}"));
    heavy.will = Some(Will {
        qos: QoS::AtMostOnce,
        retain: false,
        topic: "will".into(),
        payload: vec![b'x'; 65_000].into(),
        delay_s: None,
        properties: None,
    });
    heavy
}

/// A client sends itself a message. What it was told below `$SYS` before that has come.
fn exchange(client: &mut TcpClient) -> Vec<String> {
    let message = publish("a", QoS::AtMostOnce, "still here");
    client.send(&Packet::Publish(message));
    let mut told = Vec::new();
    loop {
        match client.receive() {
            Some(Packet::Publish(got)) if got.topic.as_str() == "a" => return told,
            Some(Packet::Publish(got)) => {
                told.push(String::from_utf8_lossy(&got.payload).into_owned());
            }
            other => panic!("expected PUBLISH, got {other:?}"),
        }
    }
}

/// A fleet comes back at once after a restart: it is let in at the rate that is set, and no client has to begin anew.
#[test]
fn a_reconnect_storm() {
    const CLIENTS: u32 = 150;
    const PER_SECOND: u32 = 50;
    let mut broker = Broker::start(&format!(
        "[limits]\nhandshakes_per_second = {PER_SECOND}\n[kernel]\nretry = \"never\""
    ));
    broker.kill();
    broker.restart();
    let mut fleet = Fleet::new(FleetOptions {
        server: broker.quic(),
        server_name: "localhost".to_owned(),
        tls: tls_of_one_suite(),
        local: vec![Ipv4Addr::LOCALHOST.into()],
    })
    .expect("a socket on the loopback");
    let begun = Instant::now();
    for number in 0..CLIENTS {
        let plan = Plan {
            client_id: format!("device-{number}"),
            filters: vec![format!("to/{number}")],
            keep_alive_s: 60,
            sleeps: true,
        };
        fleet.connect(plan).expect("a connection can be begun");
    }
    while fleet.counts().ready < u64::from(CLIENTS) {
        assert!(begun.elapsed() < PATIENCE, "{:?}", fleet.counts());
        fleet.turn(Duration::from_millis(5), |_, _| {});
        assert_eq!(fleet.counts().lost, 0, "{:?}", fleet.last_loss());
    }
    // A second's worth comes at once.
    let least = Duration::from_secs(u64::from(CLIENTS / PER_SECOND - 1));
    assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
    let sum = |series| broker.metrics().sum(series);
    assert_eq!(sum("headgate_handshakes_total{"), f64::from(CLIENTS));
    assert!(sum("headgate_initials_delayed_total{") > 0.0);
    assert_eq!(sum("headgate_handshakes_failed_total{"), 0.0);
}
