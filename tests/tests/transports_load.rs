//! The load clients do what benchmarks rely on: every message reaches every subscriber, over each transport.

use headgate_codec::{PacketId, QoS};
use headgate_tests::{
    broker::Broker,
    load::{
        client::{publish, publish_qos1},
        crowd::{Carrier, Crowd},
    },
};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
const SUBSCRIBERS: usize = 100;
const MESSAGES: u64 = 50;

fn until(crowd: &mut Crowd, what: &str, holds: impl Fn(&Crowd) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds(crowd) {
        assert!(Instant::now() < deadline, "{what}: {:?}", crowd.counts());
        crowd.turn(Duration::from_millis(20));
    }
}

#[test]
fn every_message_reaches_every_member() {
    let broker = Broker::start("");
    for (carrier, server) in [
        (Carrier::Tcp, broker.tcp()),
        (Carrier::Tls, broker.tls()),
        (Carrier::WebSocket, broker.ws()),
    ] {
        let mut crowd = Crowd::new(server, carrier);
        let subscribers = crowd.connect_all(SUBSCRIBERS, 20, QoS::AtLeastOnce, |number| {
            (format!("{carrier:?}-{number}"), vec!["load/#".to_owned()])
        });
        let publisher = crowd.connect(format!("{carrier:?}"), Vec::new(), QoS::AtMostOnce);
        until(&mut crowd, "the publisher", |crowd| {
            crowd.counts().ready == SUBSCRIBERS + 1
        });
        for number in 1..=MESSAGES {
            let id = PacketId::new(u16::try_from(number).expect("few")).expect("it is not 0");
            crowd.send(publisher, &publish_qos1("load/1", &[7; 1_000], id));
            crowd.send(publisher, &publish("load/0", &[7; 100]));
        }
        let all = SUBSCRIBERS as u64 * MESSAGES * 2;
        until(&mut crowd, "all deliveries", |crowd| {
            crowd.counts().deliveries >= all
        });
        until(&mut crowd, "all acknowledgements", |crowd| {
            crowd.counts().acknowledged == MESSAGES
        });
        for subscriber in subscribers {
            assert_eq!(crowd.deliveries(subscriber), MESSAGES * 2, "{carrier:?}");
        }
    }
}
