//! Measures what a round trip costs a device over QUIC: how many of them pass until its first message is acknowledged, and how long
//! its messages stay away when its address changes. The broker is behind a network with a fixed delay.

use std::error::Error;
use std::future::Future;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use headgate_codec::{Connect, ConnectProperties, Packet, QoS, Text, Version};
use headgate_tests::bench::{self, Row};
use headgate_tests::broker::Broker;
use headgate_tests::quic_client::{Client, early_endpoint};
use headgate_tests::relay::{Conditions, Relay};

/// One way. A round trip is long beside what both sides compute.
const DELAY: Duration = Duration::from_millis(50);
/// Times that each figure is taken; the median counts.
const TIMES: usize = 9;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() {
    let broker = Broker::start("");
    let round_trip = 2.0 * DELAY.as_secs_f64();
    let early = median(|seed| run(first_publish(&broker, seed, true)));
    let full = median(|seed| run(first_publish(&broker, seed, false)));
    let gap = median(|seed| run(gap(&broker, seed)));
    bench::print(&[
        // A whole round trip, and a quarter of one for everything that isn't the network.
        Row::at_most(
            "quic_0rtt_first_publish_rtts",
            early / round_trip,
            "RTT",
            1.25,
        ),
        Row::info("quic_1rtt_first_publish_rtts", full / round_trip, "RTT"),
        // A device that sends all the time is back after the round trip that its next message takes.
        Row::at_most(
            "quic_migration_gap_ms",
            gap * 1_000.0,
            "ms",
            1.5 * round_trip * 1_000.0,
        ),
    ]);
}

fn median(mut measure: impl FnMut(u64) -> f64) -> f64 {
    let mut values: Vec<f64> = (0..TIMES).map(|time| measure(time as u64 + 1)).collect();
    values.sort_by(f64::total_cmp);
    values[TIMES / 2]
}

fn run(measured: impl Future<Output = Result<f64>>) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(measured).expect("the broker answers")
}

fn network(broker: &Broker, seed: u64) -> Relay {
    let conditions = Conditions {
        delay: DELAY,
        ..Conditions::default()
    };
    Relay::start(broker.quic(), conditions, seed)
}

fn endpoint() -> Result<quinn::Endpoint> {
    early_endpoint(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?)
}

/// Seconds from the client's first packet until its first message with QoS 1 is acknowledged.
async fn first_publish(broker: &Broker, seed: u64, early: bool) -> Result<f64> {
    let (relay, endpoint) = (network(broker, seed), endpoint()?);
    let id = format!("device-{seed}-{early}");
    if early {
        let first = Client::connect(&endpoint, relay.address(), "for a ticket").await?;
        first.connection.close(0u32.into(), b"");
        endpoint.wait_idle().await;
    }
    let begun = Instant::now();
    let mut client = match early {
        true => {
            Client::early(&endpoint, relay.address())
                .await?
                .ok_or("a ticket")?
                .0
        }
        false => Client::open(&endpoint, relay.address()).await?,
    };
    client
        .send(&Packet::Connect(Box::new(connect(&id))))
        .await?;
    client
        .publish("bench/first", QoS::AtLeastOnce, b"1")
        .await?;
    loop {
        match client.receive().await? {
            Packet::PubAck(_) => return Ok(begun.elapsed().as_secs_f64()),
            Packet::ConnAck(_) => {}
            other => return Err(format!("unexpected {other:?}").into()),
        }
    }
}

/// Clean Start 0, which may be said in 0-RTT data.
fn connect(id: &str) -> Connect {
    Connect {
        version: Version::V5,
        clean_start: false,
        keep_alive_s: 60,
        client_id: Text::from(id),
        will: None,
        user_name: None,
        password: None,
        properties: ConnectProperties::default(),
    }
}

/// Seconds from the moment when the client has another port until the first message that it sends then is acknowledged.
async fn gap(broker: &Broker, seed: u64) -> Result<f64> {
    let (relay, endpoint) = (network(broker, seed), endpoint()?);
    let id = format!("roaming-{seed}");
    let mut client = Client::connect(&endpoint, relay.address(), &id).await?;
    for _ in 0..5 {
        client
            .publish("bench/roaming", QoS::AtLeastOnce, b"1")
            .await?;
        client.receive().await?;
    }
    relay.rebind(Ipv4Addr::LOCALHOST);
    let changed = Instant::now();
    client
        .publish("bench/roaming", QoS::AtLeastOnce, b"1")
        .await?;
    match client.receive().await? {
        Packet::PubAck(_) => Ok(changed.elapsed().as_secs_f64()),
        other => Err(format!("unexpected {other:?}").into()),
    }
}
