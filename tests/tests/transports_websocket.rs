//! MQTT over WebSocket, with clients that this project did not write.

use headgate_codec::QoS;
use headgate_tests::{
    broker::Broker,
    clients::{Client, Message},
    skip,
};

#[test]
fn foreign_clients_hear_each_other_over_websocket() {
    for client in [Client::PahoWs, Client::PahoWss] {
        if let Err(reason) = client.available() {
            skip!("{reason}");
        }
    }
    let broker = Broker::start("");
    let clear = Client::PahoWs.subscribe(&broker, "ws/+", QoS::ExactlyOnce, 2);
    let secret = Client::PahoWss.subscribe(&broker, "ws/+", QoS::AtLeastOnce, 2);
    for (client, topic, payload) in [
        (Client::PahoWs, "ws/1", "in the clear"),
        (Client::PahoWss, "ws/2", "over TLS"),
    ] {
        client.publish(
            &broker,
            Message {
                topic,
                payload,
                qos: QoS::ExactlyOnce,
                retain: false,
            },
        );
    }
    for subscriber in [clear, secret] {
        assert_eq!(subscriber.messages(), ["in the clear", "over TLS"]);
    }
}
