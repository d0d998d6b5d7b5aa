//! Enhanced authentication (MQTT 5.0 §4.12) with SCRAM-SHA-256, seen from outside.

use bytes::Bytes;
use headgate_codec::{Auth, ConnAck, Connect, Packet, QoS, ReasonCode, Text, Version};
use headgate_tests::{
    broker::Broker,
    clients::{Client, Message},
    skip,
    tcp_client::{TcpClient, connect, publish},
    users::{ScramClient, Users},
};

const METHOD: &str = "SCRAM-SHA-256";

fn first(id: &str, method: &str, data: &str) -> Packet {
    let mut connect: Connect = connect(id);
    connect.properties.authentication_method = Some(Text::from(method));
    connect.properties.authentication_data = Some(Bytes::copy_from_slice(data.as_bytes()));
    Packet::Connect(Box::new(connect))
}

fn auth(reason: ReasonCode, method: &str, data: &str) -> Packet {
    Packet::Auth(Box::new(Auth {
        reason,
        authentication_method: Some(Text::from(method)),
        authentication_data: Some(Bytes::copy_from_slice(data.as_bytes())),
        ..Auth::default()
    }))
}

fn connack(client: &mut TcpClient) -> ConnAck {
    match client.receive() {
        Some(Packet::ConnAck(ack)) => *ack,
        other => panic!("expected CONNACK, got {other:?}"),
    }
}

/// AUTH with this reason; its data.
fn received(client: &mut TcpClient, reason: ReasonCode) -> Bytes {
    match client.receive() {
        Some(Packet::Auth(auth)) => {
            assert_eq!(auth.reason, reason);
            // [MQTT-4.12.0-5]
            assert_eq!(auth.authentication_method.as_deref(), Some(METHOD));
            auth.authentication_data.expect("it carries data")
        }
        other => panic!("expected AUTH, got {other:?}"),
    }
}

/// The whole exchange; the client and CONNACK.
fn authenticate(broker: &Broker, id: &str, scram: &mut ScramClient) -> (TcpClient, ConnAck) {
    let mut client = TcpClient::open(broker.tcp(), Version::V5);
    client.send(&first(id, METHOD, &scram.first()));
    // [MQTT-4.12.0-2]
    let challenge = received(&mut client, ReasonCode::CONTINUE_AUTHENTICATION);
    let last = scram.last(&challenge);
    client.send(&auth(ReasonCode::CONTINUE_AUTHENTICATION, METHOD, &last));
    let connack = connack(&mut client);
    (client, connack)
}

fn up(broker: &Broker, id: &str) -> TcpClient {
    let (client, connack) = authenticate(broker, id, &mut ScramClient::new("ann", "secret"));
    assert_eq!(connack.reason, ReasonCode::SUCCESS);
    client
}

fn begin_again(client: &mut TcpClient, scram: &mut ScramClient) -> String {
    client.send(&auth(ReasonCode::RE_AUTHENTICATE, METHOD, &scram.first()));
    let challenge = received(client, ReasonCode::CONTINUE_AUTHENTICATION);
    scram.last(&challenge)
}

#[test]
fn a_foreign_client_authenticates_by_scram() {
    let client = Client::Mqttv5Tcp;
    if let Err(reason) = client.available() {
        skip!("{reason}");
    }
    let users = Users::new(&[("ann", "secret")]);
    let broker = Broker::start(&users.config(false));
    let as_ann = |password| ["--auth-method", "scram", "-u", "ann", "-P", password];
    let mut subscriber = up(&broker, "subscriber");
    subscriber.subscribe(&["t"], QoS::AtMostOnce);
    let message = |payload| Message {
        topic: "t",
        payload,
        qos: QoS::AtLeastOnce,
        retain: false,
    };
    let (success, lines) = client.try_publish(&broker, message("wrong"), &as_ann("Secret"));
    assert!(!success, "{lines:#?}");
    let (success, lines) = client.try_publish(&broker, message("right"), &as_ann("secret"));
    assert!(success, "{lines:#?}");
    match subscriber.receive() {
        Some(Packet::Publish(publish)) => assert_eq!(publish.payload, "payload:right"),
        other => panic!("expected PUBLISH, got {other:?}"),
    }
}

#[test]
fn both_sides_prove_that_they_know_the_password() {
    let users = Users::new(&[("ann", "secret"), ("a=b,c", "x")]);
    let broker = Broker::start(&users.config(false));
    for (name, password) in [("ann", "secret"), ("a=b,c", "x")] {
        let mut scram = ScramClient::new(name, password);
        let (_client, connack) = authenticate(&broker, "c", &mut scram);
        assert_eq!(connack.reason, ReasonCode::SUCCESS);
        let properties = connack.properties;
        assert_eq!(properties.authentication_method.as_deref(), Some(METHOD));
        assert!(scram.trusts(properties.authentication_data.as_deref()));
    }
}

/// A wrong password and a name that nobody has differ in nothing. [MQTT-4.12.0-4]
#[test]
fn whoever_does_not_know_the_password_is_refused_in_the_end() {
    let users = Users::new(&[("ann", "secret")]);
    let broker = Broker::start(&users.config(true));
    for (name, password) in [("ann", "Secret"), ("bob", "secret"), ("ann", "")] {
        let mut scram = ScramClient::new(name, password);
        let (mut client, connack) = authenticate(&broker, "c", &mut scram);
        assert_eq!(connack.reason, ReasonCode::NOT_AUTHORIZED, "{name}");
        assert_eq!(connack.properties.authentication_data, None);
        assert_eq!(client.receive(), None, "the connection ends");
    }
    let metrics = broker.metrics();
    let failed = |worker| {
        metrics.get(&format!(
            "headgate_authentications_failed_total{{worker=\"{worker}\",method=\"scram-sha-256\"}}"
        ))
    };
    assert_eq!((0..2).filter_map(failed).sum::<f64>(), 3.0);
}

/// [MQTT-4.12.0-1] [MQTT-4.12.0-3] [MQTT-4.12.0-5] [MQTT-3.1.2-30]
#[test]
fn whatever_is_no_exchange_is_refused() {
    let users = Users::new(&[("ann", "secret")]);
    let broker = Broker::start(&users.config(true));
    let scram = || ScramClient::new("ann", "secret");
    let channel_binding = scram().with_header("p=tls-exporter,,").first();
    for (method, data, reason) in [
        (
            "SCRAM-SHA-1",
            scram().first(),
            ReasonCode::BAD_AUTHENTICATION_METHOD,
        ),
        (
            "SCRAM-SHA-256-PLUS",
            scram().first(),
            ReasonCode::BAD_AUTHENTICATION_METHOD,
        ),
        (METHOD, channel_binding, ReasonCode::NOT_AUTHORIZED),
        (METHOD, "ann secret".to_owned(), ReasonCode::NOT_AUTHORIZED),
    ] {
        let mut client = TcpClient::open(broker.tcp(), Version::V5);
        client.send(&first("c", method, &data));
        assert_eq!(connack(&mut client).reason, reason, "{method} {data}");
        assert_eq!(client.receive(), None);
    }
    let error = ReasonCode::PROTOCOL_ERROR;
    for (packet, reason) in [
        (auth(ReasonCode::RE_AUTHENTICATE, METHOD, "x"), error),
        (
            auth(ReasonCode::CONTINUE_AUTHENTICATION, "X", "x"),
            ReasonCode::BAD_AUTHENTICATION_METHOD,
        ),
        (
            auth(ReasonCode::CONTINUE_AUTHENTICATION, METHOD, "x"),
            ReasonCode::NOT_AUTHORIZED,
        ),
        (Packet::PingReq, error),
    ] {
        let mut client = TcpClient::open(broker.tcp(), Version::V5);
        client.send(&first("c", METHOD, &scram().first()));
        received(&mut client, ReasonCode::CONTINUE_AUTHENTICATION);
        client.send(&packet);
        assert_eq!(connack(&mut client).reason, reason, "{packet:?}");
        assert_eq!(client.receive(), None);
    }
    // "y": the client could bind to the channel, and sees that the server doesn't offer it.
    let mut scram = scram().with_header("y,,");
    let (_, connack) = authenticate(&broker, "c", &mut scram);
    assert_eq!(connack.reason, ReasonCode::SUCCESS);
}

/// §4.12.1
#[test]
fn a_session_goes_on_while_its_client_authenticates_again() {
    let users = Users::new(&[("ann", "secret")]);
    let broker = Broker::start(&users.config(false));
    let mut client = up(&broker, "c");
    client.subscribe(&["t"], QoS::AtMostOnce);
    for _ in 0..2 {
        let mut scram = ScramClient::new("ann", "secret");
        let last = begin_again(&mut client, &mut scram);
        client.send(&Packet::Publish(publish("t", QoS::AtMostOnce, "meanwhile")));
        assert!(matches!(client.receive(), Some(Packet::Publish(_))));
        client.send(&auth(ReasonCode::CONTINUE_AUTHENTICATION, METHOD, &last));
        let proof = received(&mut client, ReasonCode::SUCCESS);
        assert!(scram.trusts(Some(&proof)));
    }
}

/// [MQTT-4.12.1-1] [MQTT-4.12.1-2] [MQTT-4.12.0-7]
#[test]
fn a_re_authentication_that_fails_ends_the_connection() {
    let users = Users::new(&[("ann", "secret"), ("bob", "secret")]);
    let broker = Broker::start(&users.config(true));
    // A wrong password, and another user: the session is ann's.
    for (name, password) in [("ann", "Secret"), ("bob", "secret")] {
        let mut client = up(&broker, "c");
        let last = begin_again(&mut client, &mut ScramClient::new(name, password));
        client.send(&auth(ReasonCode::CONTINUE_AUTHENTICATION, METHOD, &last));
        assert_eq!(client.disconnected(), ReasonCode::NOT_AUTHORIZED, "{name}");
    }
    let mut client = up(&broker, "c");
    client.send(&auth(ReasonCode::RE_AUTHENTICATE, "X", "x"));
    assert_eq!(client.disconnected(), ReasonCode::BAD_AUTHENTICATION_METHOD);
    let mut client = TcpClient::connect(broker.tcp(), "c");
    client.send(&auth(ReasonCode::RE_AUTHENTICATE, METHOD, "x"));
    assert_eq!(client.disconnected(), ReasonCode::PROTOCOL_ERROR);
}
