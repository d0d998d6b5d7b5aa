//! `$SYS` topics and `headgate drain`, as a client and an operator see them.

use headgate_codec::{Packet, QoS, ReasonCode};
use headgate_tests::{
    broker::{Broker, binary},
    tcp_client::{TcpClient, connect},
};
use std::{collections::BTreeMap, process::Command};

/// What a monitoring tool for mosquitto reads is there, and moves. The counters are told one after the other, each when it
/// has changed: only what all have come to can be waited for.
#[test]
fn sys_topics_have_mosquittos_names_and_true_values() {
    let broker = Broker::start("[mqtt]\nsys_interval_s = 1\n");
    let mut reader = TcpClient::connect(broker.tcp(), "reader");
    reader.subscribe(&["$SYS/#"], QoS::AtMostOnce);
    let mut other = TcpClient::connect(broker.tcp(), "other");
    other.subscribe(&["$share/g/a", "b"], QoS::AtMostOnce);
    let mut values: BTreeMap<String, String> = BTreeMap::new();
    while !is_told(&values) {
        match reader.receive() {
            Some(Packet::Publish(publish)) => {
                let topic = publish.topic.to_string();
                let value = String::from_utf8_lossy(&publish.payload).into_owned();
                let name = topic.strip_prefix("$SYS/broker/").expect("a topic of ours");
                values.insert(name.to_owned(), value);
            }
            other => panic!("{other:?} after {values:?}"),
        }
    }
    assert!(values["version"].starts_with("headgate "));
    assert!(values["uptime"].ends_with(" seconds"));
    let retained = broker.metrics().get("headgate_retained_messages");
    assert!(retained.is_some_and(|count| count as usize >= values.len()));
}

/// All topics have come, and what they tell is true of two clients with three subscriptions.
fn is_told(values: &BTreeMap<String, String>) -> bool {
    let exactly = [
        ("clients/connected", "2"),
        ("clients/total", "2"),
        ("clients/maximum", "2"),
        ("clients/disconnected", "0"),
        ("clients/expired", "0"),
        ("subscriptions/count", "3"),
        ("shared_subscriptions/count", "1"),
        ("publish/messages/received", "0"),
        ("publish/messages/dropped", "0"),
    ];
    // Two CONNECTs, two SUBSCRIBEs, and their acknowledgements.
    let at_least = [
        ("messages/received", 4),
        ("messages/sent", 4),
        ("publish/messages/sent", 1),
        ("bytes/received", 1),
        ("bytes/sent", 1),
        ("retained messages/count", 1),
        ("heap/current", 1),
    ];
    let value = |topic: &str| values.get(topic);
    let number = |topic: &str| value(topic).map(|v| v.parse::<u64>().expect("a number"));
    let loads = values.keys().filter(|t| t.starts_with("load/")).count();
    exactly
        .iter()
        .all(|(topic, v)| value(topic).is_some_and(|is| is == v))
        && at_least
            .iter()
            .all(|(topic, least)| number(topic).is_some_and(|n| n >= *least))
        && ["version", "uptime"]
            .iter()
            .all(|topic| value(topic).is_some())
        && loads >= 27
}

#[test]
fn drain_sends_clients_to_another_server_until_it_is_cancelled() {
    let broker = Broker::start("");
    let drain = |arguments: &[&str]| {
        let output = Command::new(binary())
            .args(["drain", "--config"])
            .arg(broker.config_file())
            .args(arguments)
            .output()
            .expect("the binary runs");
        assert!(output.status.success(), "{output:?}");
    };
    let mut here = TcpClient::connect(broker.tcp(), "here");
    drain(&["--to", "other.example:8883"]);
    let reference = loop {
        match here.receive() {
            Some(Packet::Disconnect(end)) => {
                assert_eq!(end.reason, ReasonCode::USE_ANOTHER_SERVER);
                break end.properties.and_then(|p| p.server_reference);
            }
            Some(_) => {}
            None => panic!("closed without DISCONNECT"),
        }
    };
    let reference = reference.as_ref().map(|text| text.as_str());
    assert_eq!(reference, Some("other.example:8883"));
    let (_, reason) = TcpClient::try_connect(broker.tcp(), connect("late"));
    assert_eq!(reason, ReasonCode::USE_ANOTHER_SERVER);
    drain(&["--moved"]);
    let (_, reason) = TcpClient::try_connect(broker.tcp(), connect("late"));
    assert_eq!(reason, ReasonCode::SERVER_MOVED);
    drain(&["--cancel"]);
    let (_, reason) = TcpClient::try_connect(broker.tcp(), connect("late"));
    assert_eq!(reason, ReasonCode::SUCCESS);
}
