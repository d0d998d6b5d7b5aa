//! QUIC with stacks that this project did not write, aioquic above all: what lies below MQTT.

use std::{net::Ipv4Addr, time::Duration};

use headgate_codec::QoS;
use headgate_tests::{
    broker::Broker,
    clients::{BelowMqtt, Client, Message},
    relay::{Conditions, Relay},
    skip,
};

fn unavailable() -> Option<String> {
    Client::Aioquic.available().err()
}

#[test]
fn early_data_of_another_stack_is_taken() {
    if let Some(reason) = unavailable() {
        skip!("{reason}");
    }
    let broker = Broker::start("");
    BelowMqtt::start(&broker, &["early"]).says("early accepted");
    let metrics = broker.metrics();
    assert_eq!(metrics.sum("headgate_early_connections_total"), 1.0);
}

#[test]
fn key_updates_and_other_ports_of_another_stack_are_followed() {
    if let Some(reason) = unavailable() {
        skip!("{reason}");
    }
    let broker = Broker::start("");
    for action in ["rekey", "migrate"] {
        BelowMqtt::start(&broker, &[action]).says("done");
    }
    let metrics = broker.metrics();
    assert_eq!(metrics.sum("headgate_connections_opened_total"), 2.0);
}

/// With Retry an address is validated before anything else happens (RFC 9000 §8.1.2).
#[test]
fn retry_is_followed_by_other_stacks() {
    const STACKS: [Client; 2] = [Client::Aioquic, Client::Mqttv5Quic];
    if let Some(reason) = STACKS.iter().find_map(|c| c.available().err()) {
        skip!("{reason}");
    }
    let broker = Broker::start("[kernel]\nmode = \"off\"\nretry = \"always\"");
    for client in STACKS {
        let message = Message {
            topic: "validated",
            payload: "here",
            qos: QoS::AtLeastOnce,
            retain: false,
        };
        client.publish(&broker, message);
    }
    broker.counts_from("headgate_retries_total", 2.0);
}

#[test]
fn sessions_of_tls_are_resumed_and_versions_negotiated() {
    if let Some(reason) = unavailable() {
        skip!("{reason}");
    }
    let broker = Broker::start("");
    BelowMqtt::start(&broker, &["resume"]).says("resumed");
    // Version 2 is offered first, and answered with Version Negotiation (RFC 9000 §6).
    BelowMqtt::start(&broker, &["version"]).says("version 0x1");
}

/// The marks are counted (RFC 9000 §13.4.2), and the broker marks its own packets with ECT(0).
#[test]
fn marks_of_ecn_are_echoed() {
    if let Some(reason) = unavailable() {
        skip!("{reason}");
    }
    let broker = Broker::start("");
    let mut client = BelowMqtt::start(&broker, &["ecn"]);
    let counted = client.line("ect1 ");
    let numbers: Vec<u32> = counted
        .split([' ', ','])
        .filter_map(|word| word.parse().ok())
        .collect();
    let [ect1, sent_ect1, ce, sent_ce] = numbers[..] else {
        panic!("{counted}");
    };
    assert!(ect1 == sent_ect1 && ect1 >= 5, "{counted}");
    assert!(ce == sent_ce && ce >= 5, "{counted}");
    client.says("answer [2]");
}

/// A lossy network that reorders packets, whose NAT forgets its mapping again and again.
#[test]
fn loss_reordering_and_rebinding_are_survived() {
    if let Some(reason) = unavailable() {
        skip!("{reason}");
    }
    let broker = Broker::start("");
    let conditions = Conditions {
        delay: Duration::from_millis(5),
        lost_per_mille: 50,
        late_per_mille: 100,
        ..Conditions::default()
    };
    let relay = Relay::start(broker.quic(), conditions, 10);
    let mut client = BelowMqtt::start_at(&broker, relay.address(), &["rounds"]);
    for turn in 1..=6u8 {
        client.says(&format!("round {}", turn * 15));
        relay.rebind(Ipv4Addr::new(127, 0, 0, 1 + turn / 2));
    }
    client.says("done");
    let opened = broker.metrics().sum("headgate_connections_opened_total");
    assert_eq!(opened, 1.0);
}
