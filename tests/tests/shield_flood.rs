//! A flood that ends in the kernel: live sessions and new connections while somebody sends as fast as it can.

use std::time::{Duration, Instant};

use headgate_tests::broker::{Broker, Metrics, kernel_available};
use headgate_tests::netns;
use headgate_tests::siege::{Attack, Fleet, Flood, Nic, Phase, Siege};
use headgate_tests::skip;

const LIVE: usize = 1_000;
/// How long each measurement takes.
const LENGTH: Duration = Duration::from_secs(4);
/// What comes later is lost.
const PATIENCE: Duration = Duration::from_secs(20);
/// Pairs of measurements at most: whatever else the machine does can only make a flood look worse.
const ROUNDS: usize = 4;

/// What the kernel part and the drivers have counted.
struct Seen {
    metrics: Metrics,
    nics: [Nic; 2],
}

impl Seen {
    fn now(siege: &Siege, broker: &Broker) -> Self {
        Self {
            metrics: broker.metrics(),
            nics: [siege.nic("s0"), siege.nic("s1")],
        }
    }

    /// What was counted in between.
    fn since(&self, before: &Self) -> impl Fn(&str) -> u64 {
        let (after, before) = (self.metrics.clone(), before.metrics.clone());
        move |series| (after.sum(series) - before.sum(series)) as u64
    }
}

/// Initials without a valid token that were given to a socket.
fn let_through(count: &impl Fn(&str) -> u64) -> u64 {
    let reasons = [
        "initial\"",
        "initial_foreign_token",
        "initial_invalid_new_token",
    ];
    reasons
        .iter()
        .map(|reason| count(&format!("headgate_kernel_passes_total{{reason=\"{reason}")))
        .sum()
}

fn opened(count: &impl Fn(&str) -> u64) -> u64 {
    let series = ["0", "1"].map(|worker| {
        format!("headgate_connections_opened_total{{worker=\"{worker}\",transport=\"quic\"")
    });
    series.iter().map(|series| count(series)).sum()
}

/// Every packet of the flood is in a counter of the shield's, as the drivers counted them, and none reached a socket.
fn check(siege: &Siege, broker: &Broker, before: &Seen, (sent, phase): (u64, &Phase)) {
    let deadline = Instant::now() + Duration::from_secs(30);
    // What is in the device's queue is seen within a moment.
    let after = loop {
        let after = Seen::now(siege, broker);
        let flood = after.nics[1] - before.nics[1];
        if flood.dropped + flood.sent_back == sent {
            break after;
        }
        assert!(Instant::now() < deadline, "{flood:?} of {sent}");
        std::thread::sleep(Duration::from_millis(50));
    };
    let count = after.since(before);
    let [fleet, flood] = [0, 1].map(|nic| after.nics[nic] - before.nics[nic]);
    let (answered, dropped) = (
        count("headgate_kernel_answers_total"),
        count("headgate_kernel_drops_total"),
    );
    println!("{sent} spoofed Initials: {flood:?}; answered {answered}, dropped {dropped}");
    assert_eq!(answered, fleet.sent_back + flood.sent_back);
    assert_eq!(dropped, fleet.dropped + flood.dropped);
    assert_eq!(let_through(&count), 0, "no Initial without a token passed");
    assert_eq!(
        count("headgate_retries_total"),
        0,
        "user space answers none"
    );
    assert_eq!(opened(&count), phase.connected as u64);
    assert_eq!(count("headgate_handshakes_total"), phase.connected as u64);
}

fn print(what: &str, sent: u64, phase: &Phase) {
    println!(
        "{what}: {sent} packets sent; {} messages of live sessions, p99 {:?}, {} lost; {} new connections, the slowest \
         {:?}, {} not made",
        phase.round_trips.len(),
        phase.p99(),
        phase.lost,
        phase.connected,
        phase.slowest,
        phase.refused
    );
}

fn is_well(phase: &Phase) {
    assert_eq!(phase.lost, 0, "messages of live sessions");
    assert_eq!(phase.refused, 0, "new connections that weren't made");
    assert!(phase.connected > 0);
    assert!(phase.round_trips.len() >= 20, "{}", phase.round_trips.len());
}

#[test]
fn a_flood_of_spoofed_initials_reaches_no_socket_and_keeps_nobody_out() {
    if let Some(reason) = netns::available().and_then(|()| kernel_available()).err() {
        skip!("{reason}");
    }
    let siege = Siege::deaf("f");
    let broker = siege
        .broker("[kernel]\nmode = \"native\"\ninterfaces = [\"s0\", \"s1\"]\nretry = \"always\"\n");
    let mut fleet = Fleet::connect(&siege, LIVE);
    let mut ratios = Vec::new();
    while ratios.len() < ROUNDS && ratios.iter().all(|ratio| *ratio >= 2.0) {
        let attack = Attack::spoofed_initials(&siege, Flood::Nowhere);
        let quiet = fleet.phase(LENGTH, PATIENCE);
        print("quiet", attack.end(), &quiet);
        is_well(&quiet);
        let before = Seen::now(&siege, &broker);
        let attack = Attack::spoofed_initials(&siege, Flood::Broker);
        let flooded = fleet.phase(LENGTH, PATIENCE);
        let sent = attack.end();
        print("flood", sent, &flooded);
        is_well(&flooded);
        assert!(sent > 100_000, "a flood: {sent}");
        check(&siege, &broker, &before, (sent, &flooded));
        ratios.push(flooded.p99().as_secs_f64() / quiet.p99().as_secs_f64());
    }
    fleet.end();
    println!("p99 of live sessions, flood : quiet: {ratios:.2?}");
    assert!(ratios.iter().any(|ratio| *ratio < 2.0), "{ratios:?}");
}

#[test]
fn without_the_shield_the_same_flood_does_what_it_does() {
    if let Some(reason) = netns::available().and_then(|()| kernel_available()).err() {
        skip!("{reason}");
    }
    let siege = Siege::deaf("u");
    let broker = siege.broker("[kernel]\nmode = \"off\"\nretry = \"always\"\n");
    let mut fleet = Fleet::connect(&siege, LIVE);
    let before = broker.metrics();
    let attack = Attack::spoofed_initials(&siege, Flood::Broker);
    let flooded = fleet.phase(LENGTH, Duration::from_secs(2));
    let sent = attack.end();
    print("flood without the shield", sent, &flooded);
    let answered =
        broker.metrics().sum("headgate_retries_total") - before.sum("headgate_retries_total");
    println!("{answered} of {sent} spoofed Initials were answered by user space");
    assert!(answered > 0.0, "the flood reaches the sockets");
}
