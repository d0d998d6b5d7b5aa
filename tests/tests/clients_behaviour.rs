//! What the broker owes to clients that vanish, sleep, or misbehave, seen with clients that this project did not write.

use headgate_codec::QoS;
use headgate_tests::broker::Broker;
use headgate_tests::clients::{Client, Message, Misuse};
use headgate_tests::skip;

fn message<'a>(topic: &'a str, payload: &'a str) -> Message<'a> {
    Message {
        topic,
        payload,
        qos: QoS::AtLeastOnce,
        retain: false,
    }
}

/// [MQTT-3.1.2-8]: the network connection ends without a DISCONNECT, so the will is published.
#[test]
fn the_will_of_a_killed_tcp_client_reaches_a_quic_client() {
    for client in [Client::Mosquitto5, Client::Aioquic] {
        if let Err(reason) = client.available() {
            skip!("{reason}");
        }
    }
    let broker = Broker::start("");
    let heir = Client::Aioquic.subscribe(&broker, "wills/+", QoS::AtLeastOnce, 1);
    let will = [
        "--will-topic",
        "wills/pump",
        "--will-payload",
        "payload:pump is gone",
        "--will-qos",
        "1",
    ];
    let pump = Client::Mosquitto5.subscribe_with(&broker, "commands", QoS::AtMostOnce, 1, &will);
    drop(pump);
    assert_eq!(heir.messages(), ["pump is gone"]);
}

/// §4.1, §4.4: a session that isn't clean outlives its connection, and QoS 1 messages wait in it.
#[test]
fn messages_wait_for_a_client_that_is_away() {
    for client in [Client::Mosquitto311, Client::Mqttv5Quic] {
        if let Err(reason) = client.available() {
            skip!("{reason}");
        }
    }
    let broker = Broker::start("");
    let session = ["-c", "-i", "sleeper"];
    let sleeper =
        Client::Mosquitto311.subscribe_with(&broker, "night/#", QoS::AtLeastOnce, 1, &session);
    Client::Mqttv5Quic.publish(&broker, message("night/0", "good night"));
    assert_eq!(sleeper.messages(), ["good night"]);
    for number in 1..=3 {
        Client::Mqttv5Quic.publish(&broker, message("night/1", &format!("while away {number}")));
    }
    let sleeper =
        Client::Mosquitto311.subscribe_with(&broker, "night/#", QoS::AtLeastOnce, 3, &session);
    assert_eq!(
        sleeper.messages(),
        ["while away 1", "while away 2", "while away 3"]
    );
}

/// A client that completes the handshake and then opens no stream holds up nobody.
#[test]
fn silent_connections_block_nobody() {
    for client in [Client::Aioquic, Client::Mqttv5Quic, Client::Mosquitto5] {
        if let Err(reason) = client.available() {
            skip!("{reason}");
        }
    }
    let broker = Broker::start("");
    let mut silent = Misuse::start(&broker, &["silent", "--count", "20"]);
    silent.says("ready");
    let subscriber = Client::Aioquic.subscribe(&broker, "a/b", QoS::ExactlyOnce, 2);
    Client::Mqttv5Quic.publish(&broker, message("a/b", "over QUIC"));
    Client::Mosquitto5.publish(&broker, message("a/b", "over TCP"));
    assert_eq!(subscriber.messages(), ["over QUIC", "over TCP"]);
}

/// Each offence gets its Reason Code (§4.13), and the others don't notice.
#[test]
fn misbehaving_clients_are_told_why_and_disturb_nobody() {
    if let Err(reason) = Client::Aioquic.available() {
        skip!("{reason}");
    }
    let broker = Broker::start("[limits]\npacket_bytes_max = 1024\n");
    let bystander = Client::Aioquic.subscribe(&broker, "calm", QoS::AtLeastOnce, 1);
    let offences = [
        ("packet type 0", "0000", "0x81"),
        ("a length of five bytes", "30ffffffff01", "0x81"),
        ("QoS 3 [MQTT-3.3.1-4]", "36060001610001 00", "0x81"),
        (
            "SUBSCRIBE without its flags [MQTT-3.8.1-1]",
            "8007000100 00016100",
            "0x81",
        ),
        (
            "a second CONNECT [MQTT-3.1.0-2]",
            "100d00044d5154540502001e000000",
            "0x82",
        ),
        (
            "SUBSCRIBE without a filter [MQTT-3.8.3-2]",
            "8203000100",
            "0x82",
        ),
        (
            "a wildcard in a Topic Name [MQTT-3.3.2-2]",
            "300500022f2300 78",
            "0x90",
        ),
        (
            "Topic Alias 0 [MQTT-3.3.2-8]",
            "3007000161 03230000",
            "0x94",
        ),
        (
            "a packet over the limit [MQTT-3.1.2-24]",
            "30808001",
            "0x95",
        ),
    ];
    for (offence, octets, reason_code) in offences {
        println!("{offence}");
        let octets: String = octets.split(' ').collect();
        let mut offender = Misuse::start(&broker, &["send", &octets]);
        offender.says(&format!("disconnect {reason_code}"));
    }
    Client::Aioquic.publish(&broker, message("calm", "still here"));
    assert_eq!(bystander.messages(), ["still here"]);
}

/// RFC 9001 §8.1: without a common protocol there is no connection.
#[test]
fn another_protocol_than_mqtt_is_refused() {
    if let Err(reason) = Client::Aioquic.available() {
        skip!("{reason}");
    }
    let broker = Broker::start("");
    let mut client = Misuse::start(&broker, &["alpn", "h3"]);
    client.says("refused");
}
