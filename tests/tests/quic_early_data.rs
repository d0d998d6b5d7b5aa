//! 0-RTT data (RFC 9001 §4.6) from outside: what one round trip is enough for, what waits for the end of the
//! handshake, and what a recorded flight does when somebody sends it again.

use bytes::Bytes;
use headgate_codec::{
    Ack, Connect, ConnectProperties, Disconnect, Packet, PacketId, Publish, QoS, ReasonCode,
    Subscribe, SubscriptionOptions, Text, Unsubscribe, Version, Will,
};
use headgate_tests::{
    broker::{Broker, Metrics},
    quic_client::{Client, Error, early_endpoint},
    readdress::{destination, readdressed},
    relay::{Conditions, Relay, Way},
};
use std::{
    net::{Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(30);

fn run(test: impl Future<Output = Result<(), Error>>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let result = runtime.block_on(async { tokio::time::timeout(6 * PATIENCE, test).await });
    result.expect("it takes too long").expect("it works");
}

fn endpoint() -> Result<quinn::Endpoint, Error> {
    early_endpoint(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?)
}

/// A CONNECT of a client that comes back: Clean Start 0.
fn connect(id: &str) -> Connect {
    Connect {
        version: Version::V5,
        clean_start: false,
        keep_alive_s: 60,
        client_id: Text::from(id),
        will: None,
        user_name: None,
        password: None,
        properties: ConnectProperties {
            session_expiry_s: Some(600),
            ..ConnectProperties::default()
        },
    }
}

fn publish(topic: &str, qos: QoS, retain: bool) -> Packet {
    Packet::Publish(Publish {
        dup: false,
        qos,
        retain,
        topic: Text::from(topic),
        packet_id: PacketId::new(7).filter(|_| qos != QoS::AtMostOnce),
        properties: None,
        payload: Bytes::from_static(b"early"),
    })
}

fn subscribe() -> Packet {
    Packet::Subscribe(Box::new(Subscribe {
        packet_id: PacketId::MIN,
        subscription_id: None,
        user_properties: Vec::new(),
        filters: vec![(Text::from("early/own"), SubscriptionOptions::default())],
    }))
}

/// An acknowledgement of the message that waits for the client in its session.
fn ack() -> Ack {
    Ack {
        packet_id: PacketId::MIN,
        reason: ReasonCode::SUCCESS,
        properties: None,
    }
}

/// What a client says first, by the name of the kind: each packet that a client sends (MQTT 5.0 §2.1.2), and the kinds of
/// CONNECT and PUBLISH that do different things.
fn flights() -> Vec<(&'static str, Connect, Option<Packet>)> {
    let mut clean = connect("clean");
    clean.clean_start = true;
    let mut will = connect("will");
    will.will = Some(Will {
        qos: QoS::AtMostOnce,
        retain: true,
        topic: Text::from("early/will"),
        payload: Bytes::from_static(b"gone"),
        delay_s: None,
        properties: None,
    });
    let unsubscribe = Unsubscribe {
        packet_id: PacketId::MIN,
        user_properties: Vec::new(),
        filters: vec![Text::from(KEPT)],
    };
    let of = |name| (name, connect(name));
    let with = |(name, connect), packet| (name, connect, Some(packet));
    vec![
        with(of("qos0"), publish("early/t", QoS::AtMostOnce, false)),
        with(of("qos1"), publish("early/t", QoS::AtLeastOnce, false)),
        with(of("qos2"), publish("early/t", QoS::ExactlyOnce, false)),
        with(of("retained"), publish("early/t", QoS::AtLeastOnce, true)),
        with(of("subscribe"), subscribe()),
        with(
            of("unsubscribe"),
            Packet::Unsubscribe(Box::new(unsubscribe)),
        ),
        with(of("puback"), Packet::PubAck(ack())),
        with(of("pubrec"), Packet::PubRec(ack())),
        with(of("pubrel"), Packet::PubRel(ack())),
        with(of("pubcomp"), Packet::PubComp(ack())),
        with(of("pingreq"), Packet::PingReq),
        with(of("auth"), Packet::Auth(Box::default())),
        with(of("disconnect"), Packet::Disconnect(Disconnect::default())),
        ("clean", clean, None),
        ("will", will, None),
        // The session of a client that is connected.
        ("taken", connect("taken"), None),
    ]
}

/// What the session of [`leave_session`] has subscribed to.
const KEPT: &str = "kept/own";

/// The client has been here: its session has a subscription, and a message that waits for it.
async fn leave_session(endpoint: &quinn::Endpoint, broker: &Broker, id: &str) -> Result<(), Error> {
    let mut client = Client::open(endpoint, broker.quic()).await?;
    client.send(&Packet::Connect(Box::new(connect(id)))).await?;
    expect_connack(&mut client).await?;
    client.subscribe(KEPT, QoS::AtLeastOnce).await?;
    client.connection.close(0u32.into(), b"");
    until(id, broker, |now| now.sum("headgate_clients") == 0.0).await;
    let mut sender = Client::connect(endpoint, broker.quic(), "sender").await?;
    sender.publish(KEPT, QoS::AtLeastOnce, b"kept").await?;
    sender.receive().await?;
    sender.connection.close(0u32.into(), b"");
    until(id, broker, |now| now.sum("headgate_clients") == 0.0).await;
    Ok(())
}

/// All that [`leave_session`] has left is still there.
async fn find_session(endpoint: &quinn::Endpoint, broker: &Broker, id: &str) -> Result<(), Error> {
    let mut client = Client::open(endpoint, broker.quic()).await?;
    client.send(&Packet::Connect(Box::new(connect(id)))).await?;
    assert!(expect_connack(&mut client).await?, "{id}: its session");
    let Packet::Publish(message) = client.receive().await? else {
        panic!("{id}: the message that waits");
    };
    assert_eq!(
        (message.topic.as_str(), &message.payload[..]),
        (KEPT, &b"kept"[..])
    );
    client
        .acknowledge(message.packet_id.ok_or("QoS 1")?)
        .await?;
    client.publish(KEPT, QoS::AtMostOnce, b"again").await?;
    let Packet::Publish(message) = client.receive().await? else {
        panic!("{id}: its subscription");
    };
    assert_eq!(&message.payload[..], b"again");
    Ok(())
}

/// Makes sure that the endpoint has a ticket of the broker's.
async fn get_ticket(endpoint: &quinn::Endpoint, relay: &Relay, id: &str) -> Result<(), Error> {
    let client = Client::connect(endpoint, relay.address(), id).await?;
    client.connection.close(0u32.into(), b"");
    endpoint.wait_idle().await;
    Ok(())
}

async fn early(
    endpoint: &quinn::Endpoint,
    relay: &Relay,
) -> Result<(Client, quinn::ZeroRttAccepted), Error> {
    let begun = Client::early(endpoint, relay.address()).await?;
    Ok(begun.ok_or("the broker gave no ticket")?)
}

/// Does the same with each flight, side by side: much of it is waiting for the metrics.
fn with_each_flight(
    test: impl AsyncFn(&'static str, Connect, Option<Packet>) -> Result<(), Error> + Sync,
) {
    std::thread::scope(|threads| {
        for (name, connect, packet) in flights() {
            let test = &test;
            threads.spawn(move || run(test(name, connect, packet)));
        }
    });
}

async fn until(what: &str, broker: &Broker, holds: impl Fn(&Metrics) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds(&broker.metrics()) {
        assert!(Instant::now() < deadline, "{what}: {:?}", broker.metrics());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The metrics, once they say the same twice. A worker publishes some of them with the first turn after a second, and
/// sleeps for a second at most.
async fn settled(broker: &Broker) -> Metrics {
    const SERIES: [&str; 4] = [
        "headgate_packets_received_total",
        "headgate_sessions{",
        "headgate_clients",
        "headgate_subscriptions",
    ];
    let mut last = broker.metrics();
    loop {
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        let now = broker.metrics();
        if SERIES
            .iter()
            .all(|series| now.sum(series) == last.sum(series))
        {
            return now;
        }
        last = now;
    }
}

async fn expect_connack(client: &mut Client) -> Result<bool, Error> {
    match client.receive().await? {
        Packet::ConnAck(ack) if ack.reason == ReasonCode::SUCCESS => Ok(ack.session_present),
        other => Err(format!("expected CONNACK, got {other:?}").into()),
    }
}

#[test]
fn connect_and_publish_are_acknowledged_one_round_trip_after_the_first_packet() {
    let broker = Broker::start("");
    run(async {
        let relay = Relay::start(broker.quic(), Conditions::default(), 1);
        let endpoint = endpoint()?;
        get_ticket(&endpoint, &relay, "first").await?;
        // Whatever is acknowledged is so because of the first flight: nothing else arrives.
        relay.set(Conditions {
            one_flight: true,
            ..Conditions::default()
        });
        let (mut client, _) = early(&endpoint, &relay).await?;
        client
            .send(&Packet::Connect(Box::new(connect("device"))))
            .await?;
        client
            .send(&publish("early/t", QoS::AtLeastOnce, false))
            .await?;
        assert!(!expect_connack(&mut client).await?);
        let acknowledged = client.receive().await?;
        assert!(
            matches!(acknowledged, Packet::PubAck(_)),
            "{acknowledged:?}"
        );
        let metrics = broker.metrics();
        assert_eq!(metrics.sum("headgate_early_connections_total"), 1.0);
        assert_eq!(metrics.sum("headgate_early_packets_held_total"), 0.0);
        Ok(())
    });
}

/// The client's first flight arrives, perhaps long after it was sent, and nothing else of it ever does.
#[test]
fn a_flight_whose_handshake_never_completes_changes_nothing_that_lasts() {
    with_each_flight(async |name, connect, packet| {
        let broker = Broker::start("mqtt.connect_timeout_s = 2");
        let relay = Relay::start(broker.quic(), Conditions::default(), 2);
        let endpoint = endpoint()?;
        let direct =
            headgate_tests::quic_client::endpoint(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?)?;
        let has_session = !["qos0", "qos1", "taken"].contains(&name);
        if has_session {
            leave_session(&direct, &broker, name).await?;
        }
        let mut watcher = Client::connect(&direct, broker.quic(), "watcher").await?;
        watcher.subscribe("early/#", QoS::ExactlyOnce).await?;
        let mut taken = Client::connect(&direct, broker.quic(), "taken").await?;
        let waits = !["qos0", "qos1"].contains(&name);
        get_ticket(&endpoint, &relay, "first").await?;
        let before = settled(&broker).await;
        relay.set(Conditions {
            one_flight: true,
            ..Conditions::default()
        });
        let (mut client, _) = early(&endpoint, &relay).await?;
        client.send(&Packet::Connect(Box::new(connect))).await?;
        if let Some(packet) = &packet {
            client.send(packet).await?;
        }
        let timeouts = "headgate_connect_timeouts_total";
        until(name, &broker, |now| {
            now.sum(timeouts) > before.sum(timeouts)
        })
        .await;
        let now = settled(&broker).await;
        for kept in ["headgate_subscriptions", "headgate_retained_messages "] {
            assert_eq!(now.sum(kept), before.sum(kept), "{name}: {kept}");
        }
        // What the watcher gets first is what nobody held back.
        if !waits {
            let Packet::Publish(message) = watcher.receive().await? else {
                panic!("{name}: the message of the flight");
            };
            assert_eq!(message.topic.as_str(), "early/t");
            if let Some(packet_id) = message.packet_id {
                watcher.acknowledge(packet_id).await?;
            }
        }
        watcher
            .publish("early/marker", QoS::AtMostOnce, name.as_bytes())
            .await?;
        let Packet::Publish(marker) = watcher.receive().await? else {
            panic!("{name}: nothing but the marker");
        };
        assert_eq!(marker.payload, name.as_bytes());
        client.connection.close(0u32.into(), b"");
        // Nobody took its session from it.
        taken.send(&Packet::PingReq).await?;
        assert!(matches!(taken.receive().await?, Packet::PingResp));
        if has_session {
            find_session(&direct, &broker, name).await?;
        }
        Ok(())
    });
}

/// What a client sends up to the end of its handshake, 0-RTT data included, as it was recorded on the way. The broker has
/// taken all of it, and the client is gone.
async fn taken_flight(
    broker: &Broker,
    name: &str,
    connect: Connect,
    packet: Option<Packet>,
) -> Result<Vec<Vec<u8>>, Error> {
    let relay = Relay::start(broker.quic(), Conditions::default(), 3);
    let endpoint = endpoint()?;
    get_ticket(&endpoint, &relay, "first").await?;
    relay.forget();
    let (mut client, accepted) = early(&endpoint, &relay).await?;
    client.send(&Packet::Connect(Box::new(connect))).await?;
    if let Some(packet) = &packet {
        client.send(packet).await?;
    }
    expect_connack(&mut client).await?;
    assert!(accepted.await, "{name}: the broker takes 0-RTT data");
    // All of the flight has had its effect once this is answered, or the connection has ended with it.
    let _ended = client.send(&Packet::PingReq).await;
    while !matches!(
        client.receive().await,
        Ok(Packet::PingResp | Packet::Disconnect(_)) | Err(_)
    ) {}
    client.connection.close(0u32.into(), b"");
    endpoint.wait_idle().await;
    until(name, broker, |now| now.sum("headgate_clients") == 0.0).await;
    // Long headers only: the flight, and what followed in the handshake.
    let mut flight = relay.recorded(Way::Up);
    flight.retain(|datagram| datagram[0] & 0x80 != 0);
    assert!(!flight.is_empty());
    Ok(flight)
}

/// Sends a flight that the broker has taken once again from elsewhere, as `again` makes it each time, until the broker has
/// begun another handshake in each of the series `handshakes`. Nothing else comes of it.
async fn replay(
    (name, connect, packet): (&str, Connect, Option<Packet>),
    handshakes: &[&str],
    mut again: impl FnMut(&[Vec<u8>]) -> Vec<Vec<u8>>,
) -> Result<(), Error> {
    let broker = Broker::start("");
    let flight = taken_flight(&broker, name, connect, packet).await?;
    let before = settled(&broker).await;
    let attacker = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let deadline = Instant::now() + PATIENCE;
    let has_begun = |now: &Metrics, of: &str| now.sum(of) > before.sum(of);
    while !handshakes.iter().all(|of| has_begun(&broker.metrics(), of)) {
        assert!(
            Instant::now() < deadline,
            "{name}: the flight begins a handshake"
        );
        for datagram in again(&flight) {
            attacker.send_to(&datagram, broker.quic())?;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let now = settled(&broker).await;
    for same in [
        "headgate_early_connections_total",
        "headgate_connects_accepted_total",
        "headgate_messages_received_total",
        "headgate_subscriptions",
        "headgate_sessions{",
        "headgate_sessions_taken_over_total",
        "headgate_retained_messages ",
    ] {
        assert_eq!(now.sum(same), before.sum(same), "{name}: {same}");
    }
    Ok(())
}

/// Byte for byte. The broker remembers the connection for a while, and its packets are duplicates then.
#[test]
fn a_recorded_flight_that_is_sent_again_does_nothing() {
    with_each_flight(async |name, connect, packet| {
        let handshakes = ["headgate_handshakes_total"];
        replay((name, connect, packet), &handshakes, <[_]>::to_vec).await
    });
}

/// Which worker gets a flight follows from its Destination Connection ID, so that the same bytes get to the same worker.
/// Whoever wants it at the other one has to send it to another ID.
#[test]
fn a_recorded_flight_that_is_sent_to_each_worker_does_nothing() {
    with_each_flight(async |name, connect, packet| {
        let handshakes = [
            "headgate_handshakes_total{worker=\"0\"",
            "headgate_handshakes_total{worker=\"1\"",
        ];
        let mut numbers = 1..=u8::MAX;
        replay((name, connect, packet), &handshakes, |flight| {
            let number = numbers.next().expect("IDs for many rounds");
            let first = destination(&flight[0]).expect("a long header");
            let dcid: Vec<u8> = first.iter().map(|byte| byte ^ number).collect();
            let again: Vec<_> = flight
                .iter()
                .filter_map(|datagram| readdressed(datagram, first, &dcid))
                .collect();
            assert!(!again.is_empty(), "{name}: packets of the client's own ID");
            again
        })
        .await
    });
}
