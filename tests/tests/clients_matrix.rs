//! Clients that this project did not write talk to each other through the broker: over QUIC and TCP, with MQTT 3.1.1
//! and 5.0.

use std::collections::BTreeSet;

use headgate_codec::QoS;
use headgate_tests::broker::Broker;
use headgate_tests::clients::{Client, Message};
use headgate_tests::skip;

/// Why the test can't be tried with all of `clients`, if it can't.
fn unavailable(clients: &[Client]) -> Option<String> {
    clients.iter().find_map(|client| client.available().err())
}

/// Each of `clients` receives what each of them publishes, once.
fn everybody_hears_everybody(clients: &[Client], qos: QoS) {
    let broker = Broker::start("");
    let subscribers: Vec<_> = clients
        .iter()
        .map(|client| {
            (
                client,
                client.subscribe(&broker, "fleet/+/state", qos, clients.len()),
            )
        })
        .collect();
    for (number, client) in clients.iter().enumerate() {
        let topic = format!("fleet/{number}/state");
        client.publish(
            &broker,
            Message {
                topic: &topic,
                payload: &client.to_string(),
                qos,
                retain: false,
            },
        );
    }
    let published: BTreeSet<String> = clients.iter().map(Client::to_string).collect();
    for (client, subscriber) in subscribers {
        let received = subscriber.messages();
        assert_eq!(
            received.len(),
            clients.len(),
            "{client} received a message twice: {received:?}"
        );
        assert_eq!(
            BTreeSet::from_iter(received),
            published,
            "what {client} received"
        );
    }
}

#[test]
fn every_client_hears_every_other_at_qos_0() {
    if let Some(reason) = unavailable(&Client::ALL) {
        skip!("{reason}");
    }
    everybody_hears_everybody(&Client::ALL, QoS::AtMostOnce);
}

#[test]
fn every_client_hears_every_other_at_qos_1() {
    if let Some(reason) = unavailable(&Client::ALL) {
        skip!("{reason}");
    }
    everybody_hears_everybody(&Client::ALL, QoS::AtLeastOnce);
}

#[test]
fn every_client_hears_every_other_at_qos_2() {
    if let Some(reason) = unavailable(&Client::ALL) {
        skip!("{reason}");
    }
    everybody_hears_everybody(&Client::ALL, QoS::ExactlyOnce);
}

/// A message that was retained before a client subscribed is its first one [MQTT-3.3.1-6].
#[test]
fn retained_messages_reach_every_client() {
    if let Some(reason) = unavailable(&Client::ALL) {
        skip!("{reason}");
    }
    let broker = Broker::start("");
    for (number, publisher) in Client::ALL.iter().enumerate() {
        let topic = format!("retained/{number}");
        let payload = format!("kept by {publisher}");
        publisher.publish(
            &broker,
            Message {
                topic: &topic,
                payload: &payload,
                qos: QoS::AtLeastOnce,
                retain: true,
            },
        );
    }
    for subscriber in Client::ALL {
        let received = subscriber
            .subscribe(&broker, "retained/#", QoS::AtLeastOnce, Client::ALL.len())
            .messages();
        let expected = Client::ALL
            .iter()
            .map(|publisher| format!("kept by {publisher}"));
        assert_eq!(
            BTreeSet::from_iter(received),
            BTreeSet::from_iter(expected),
            "what {subscriber} received"
        );
    }
}
