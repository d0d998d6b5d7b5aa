//! `$SYS` topics and `headgate drain`, as a client and an operator see them.

use headgate_codec::{Packet, QoS, ReasonCode};
use headgate_tests::{
    broker::{Broker, binary},
    tcp_client::{TcpClient, connect},
};
use std::{collections::BTreeMap, process::Command};

/// What a monitoring tool for mosquitto reads is there, and moves.
#[test]
fn sys_topics_have_mosquittos_names_and_true_values() {
    let broker = Broker::start("[mqtt]\nsys_interval_s = 1\n");
    let mut reader = TcpClient::connect(broker.tcp(), "reader");
    reader.subscribe(&["$SYS/#"], QoS::AtMostOnce);
    let mut other = TcpClient::connect(broker.tcp(), "other");
    other.subscribe(&["$share/g/a", "b"], QoS::AtMostOnce);
    let mut values: BTreeMap<String, String> = BTreeMap::new();
    let expected = [
        ("$SYS/broker/clients/connected", "2"),
        ("$SYS/broker/clients/total", "2"),
        ("$SYS/broker/clients/maximum", "2"),
        ("$SYS/broker/subscriptions/count", "3"),
        ("$SYS/broker/shared_subscriptions/count", "1"),
    ];
    let is_there = |values: &BTreeMap<String, String>| {
        let as_expected =
            |(topic, value): (&str, &str)| values.get(topic).is_some_and(|v| v == value);
        let loads = values.keys().filter(|t| t.contains("/load/")).count();
        expected.into_iter().all(as_expected) && loads >= 27
    };
    while !is_there(&values) {
        match reader.receive() {
            Some(Packet::Publish(publish)) => {
                let value = String::from_utf8_lossy(&publish.payload).into_owned();
                values.insert(publish.topic.to_string(), value);
            }
            other => panic!("{other:?} after {values:?}"),
        }
    }
    assert!(values["$SYS/broker/version"].starts_with("headgate "));
    assert!(values["$SYS/broker/uptime"].ends_with(" seconds"));
    let number = |topic: &str| values[topic].parse::<u64>().expect("a number");
    // Two CONNECTs and two SUBSCRIBEs at least have been counted by the time that the clients are.
    assert!(number("$SYS/broker/messages/received") >= 2);
    assert!(number("$SYS/broker/messages/sent") >= 2);
    assert!(number("$SYS/broker/bytes/received") > 0);
    let retained = broker.metrics().get("headgate_retained_messages");
    assert!(retained.is_some_and(|count| count as usize >= values.len()));
    for topic in [
        "publish/messages/received",
        "publish/messages/sent",
        "publish/messages/dropped",
        "bytes/sent",
        "retained messages/count",
        "heap/current",
        "clients/disconnected",
        "clients/expired",
    ] {
        number(&format!("$SYS/broker/{topic}"));
    }
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
