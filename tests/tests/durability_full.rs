//! A disk that is full, or fails, under load: persistent work is refused with a Reason Code, everything else goes on,
//! nothing that was acknowledged is lost, and when the disk is well again, so is the broker.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use headgate_codec::{Connect, Packet, QoS, ReasonCode, Version};
use headgate_tests::broker::{Broker, Settings};
use headgate_tests::crash::{Load, Plan};
use headgate_tests::disk::{Disk, Fate, Fault, On};
use headgate_tests::mounts::{self, Tmpfs};
use headgate_tests::skip;
use headgate_tests::tcp_client::{TcpClient, connect, publish};
use nix::sys::statvfs::statvfs;

/// No queue of the load is ever full, and the disk is before the store's own limits are.
const LIMITS: &str =
    "[limits]\nqueued_messages_per_session = 60000\nmemory_per_connection_bytes = 100000000";

/// `store.reserve_bytes` of the tests.
const RESERVE_BYTES: u64 = 16 << 20;

/// Size of the small filesystem.
const SMALL_DISK_BYTES: u64 = 96 << 20;

/// What is left of it for the store, above the reserve, when the filler is there.
const ROOM_BYTES: u64 = 4 << 20;

const PAYLOAD_BYTES: usize = 4096;

/// How long something may take that must happen.
const DEADLINE: Duration = Duration::from_secs(60);

const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// `headgate_store_state`.
const OK: f64 = 0.0;
const FULL: f64 = 1.0;
const FAILED: f64 = 2.0;

fn start(folder: &Path) -> Broker {
    Broker::start_with(Settings {
        config: format!("{LIMITS}\n[store]\nreserve_bytes = {RESERVE_BYTES}"),
        state_dir: Some(folder.join("state")),
        ..Settings::default()
    })
}

fn wait_for(what: &str, broker: &Broker, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !happened() {
        let log = broker.log();
        assert!(Instant::now() < deadline, "{what} does not happen. {log}");
        thread::sleep(LOOK_INTERVAL);
    }
}

fn wait_for_state(broker: &Broker, state: f64) {
    wait_for(&format!("store state {state}"), broker, || {
        broker.metrics().get("headgate_store_state") == Some(state)
    });
}

fn lasting(id: &str) -> Connect {
    let mut connect = connect(id);
    connect.clean_start = false;
    connect.properties.session_expiry_s = Some(3600);
    connect
}

/// A session without a connection, with a subscription to `kept/#`.
fn keeper(broker: &Broker) {
    let (mut client, reason) = TcpClient::try_connect(broker.tcp(), lasting("keeper"));
    assert_eq!(reason, ReasonCode::SUCCESS);
    let granted = client.subscribe(&["kept/#"], QoS::AtLeastOnce);
    assert_eq!(granted, [ReasonCode::GRANTED_QOS_1]);
    client.send(&Packet::Disconnect(headgate_codec::Disconnect::default()));
    assert_eq!(client.receive(), None);
}

fn payload(number: u32) -> Vec<u8> {
    let mut payload = format!("{number}:").into_bytes();
    payload.resize(PAYLOAD_BYTES, b'-');
    payload
}

/// Publishes for the keeper until the broker refuses; the numbers of what it acknowledged are added.
fn publish_until_refused(broker: &Broker, next: &mut u32, acknowledged: &mut Vec<u32>) {
    let mut publisher = TcpClient::connect(broker.tcp(), "publisher");
    let deadline = Instant::now() + DEADLINE;
    loop {
        let message = publish("kept/x", QoS::AtLeastOnce, payload(*next));
        let reason = publisher.publish_acked(message);
        *next += 1;
        if reason == ReasonCode::QUOTA_EXCEEDED {
            return;
        }
        assert!(reason.0 < 0x80, "{reason:?}");
        acknowledged.push(*next - 1);
        assert!(
            Instant::now() < deadline,
            "the disk isn't full: {}",
            broker.log()
        );
    }
}

/// What goes on and what is refused while nothing can be stored.
fn check_refusals(broker: &Broker) {
    // One that was accepted has a session to come back to.
    let mut newcomers = (0..).map(|n| format!("newcomer {n}"));
    let mut name = || newcomers.next().unwrap_or_default();
    let mut new = until_refused(ReasonCode::QUOTA_EXCEEDED, || {
        TcpClient::try_connect(broker.tcp(), lasting(&name()))
    });
    assert_eq!(new.receive(), None);
    // Return code 3: server unavailable (MQTT 3.1.1 §3.2.2.3).
    until_refused(ReasonCode::SERVER_UNAVAILABLE, || {
        let mut old = TcpClient::open(broker.tcp(), Version::V311);
        let reason = old.shake_hands(Connect {
            version: Version::V311,
            clean_start: false,
            ..connect(&name())
        });
        ((), reason)
    });

    let mut volatile = TcpClient::connect(broker.tcp(), "volatile");
    let granted = volatile.subscribe(&["live/#"], QoS::AtLeastOnce);
    assert_eq!(granted, [ReasonCode::GRANTED_QOS_1]);
    let mut publisher = TcpClient::connect(broker.tcp(), "live publisher");
    publisher.send(&Packet::Publish(publish("live/0", QoS::AtMostOnce, "zero")));
    let reason = publisher.publish_acked(publish("live/1", QoS::AtLeastOnce, "one"));
    assert!(reason.0 < 0x80, "{reason:?}");
    for expected in ["zero", "one"] {
        match volatile.receive() {
            Some(Packet::Publish(publish)) => assert_eq!(publish.payload, expected),
            other => panic!("expected {expected}, got {other:?}"),
        }
    }
    until_refused(ReasonCode::QUOTA_EXCEEDED, || {
        let mut retained = publish("live/retained", QoS::AtLeastOnce, "kept");
        retained.retain = true;
        ((), publisher.publish_acked(retained))
    });
    // Its worker knows by now.
    let refused = publish("kept/x", QoS::AtLeastOnce, "refused");
    assert_eq!(publisher.publish_acked(refused), ReasonCode::QUOTA_EXCEEDED);
}

/// Tries until it is refused, and for this reason: each worker hears for itself that nothing can be stored.
fn until_refused<T>(expected: ReasonCode, mut attempt: impl FnMut() -> (T, ReasonCode)) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let (value, reason) = attempt();
        if reason != ReasonCode::SUCCESS && reason != ReasonCode::NO_MATCHING_SUBSCRIBERS {
            assert_eq!(reason, expected);
            return value;
        }
        assert!(Instant::now() < deadline, "not refused");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Tries until it isn't refused any more: each worker hears for itself that there is room again.
fn patiently<T>(mut attempt: impl FnMut() -> (T, ReasonCode)) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let (value, reason) = attempt();
        if reason.0 < 0x80 {
            return value;
        }
        assert_eq!(reason, ReasonCode::QUOTA_EXCEEDED);
        assert!(Instant::now() < deadline, "still refused");
        thread::sleep(Duration::from_millis(20));
    }
}

/// What the keeper finds when it comes back: all that was acknowledged, in order.
fn check_kept(broker: &Broker, acknowledged: &[u32]) {
    let mut client = patiently(|| TcpClient::try_connect(broker.tcp(), lasting("keeper")));
    let mut received: Vec<u32> = Vec::new();
    while received.len() < acknowledged.len() {
        let Some(Packet::Publish(publish)) = client.receive() else {
            panic!("the connection ended after {received:?}");
        };
        let text = String::from_utf8_lossy(&publish.payload).into_owned();
        let number = text
            .split(':')
            .next()
            .and_then(|number| number.parse().ok());
        received.push(number.unwrap_or_else(|| panic!("nobody sent {text:?}")));
        client.send(&Packet::PubAck(headgate_codec::Ack {
            packet_id: publish.packet_id.expect("QoS 1 has an identifier"),
            reason: ReasonCode::SUCCESS,
            properties: None,
        }));
    }
    assert_eq!(received, acknowledged);
}

#[test]
fn a_small_filesystem_fills_up_and_gets_room_again() {
    if let Err(reason) = mounts::available() {
        skip!("{reason}");
    }
    let disk = Tmpfs::mount(SMALL_DISK_BYTES);
    let mut broker = start(disk.path());
    keeper(&broker);
    let filler = disk.path().join("filler");
    let told = statvfs(disk.path()).expect("statvfs");
    let free = told.blocks_available() * told.fragment_size();
    fs::write(
        &filler,
        vec![1; (free - RESERVE_BYTES - ROOM_BYTES) as usize],
    )
    .expect("there is room");

    let (mut next, mut acknowledged) = (0, Vec::new());
    publish_until_refused(&broker, &mut next, &mut acknowledged);
    assert!(!acknowledged.is_empty());
    wait_for_state(&broker, FULL);
    // Each worker says now and then what it has counted.
    wait_for("a count of refusals", &broker, || {
        broker.metrics().sum("headgate_store_refused_total") > 0.0
    });
    check_refusals(&broker);

    // A full disk is no reason not to start, and what is on it is served.
    broker.kill();
    broker.restart();
    wait_for_state(&broker, FULL);
    check_refusals(&broker);

    fs::remove_file(&filler).expect("deleting");
    wait_for_state(&broker, OK);
    let mut publisher = TcpClient::connect(broker.tcp(), "publisher");
    patiently(|| {
        let message = publish("kept/x", QoS::AtLeastOnce, payload(next));
        ((), publisher.publish_acked(message))
    });
    acknowledged.push(next);
    check_kept(&broker, &acknowledged);
}

/// The load goes on over faults of the disk, and the power is lost at the end: what the broker acknowledged is on the
/// disk, also when that had failed before.
fn survives(name: &str, break_disk: impl Fn(&Disk), mend: impl Fn(&Disk)) {
    let disk = Disk::mount(256 << 20);
    let mut broker = start(disk.path());
    keeper(&broker);
    let load = Load::start(
        broker.tcp(),
        Plan {
            publishers: 2,
            messages_per_s: 100,
            is_foreign: false,
        },
    );
    let progress = |broker: &Broker| {
        let before = load.ledger().acknowledgements();
        wait_for("progress", broker, || {
            load.ledger().acknowledgements() > before + 50
        });
    };
    for _ in 0..2 {
        progress(&broker);
        break_disk(&disk);
        wait_for_state(&broker, FAILED);
        check_refusals(&broker);
        mend(&disk);
        wait_for_state(&broker, OK);
        progress(&broker);
    }
    broker.kill();
    let lost = disk.lose_power(Fate::Forgotten);
    broker.restart();
    progress(&broker);
    let verdict = load.finish();
    println!("{name}: {lost:?}, {:?}, {verdict}", disk.activity());
    assert!(verdict.is_clean(), "{name}: {verdict}");
}

fn injected(on: On) {
    let fault = Fault {
        on,
        errno: libc::EIO,
        after: 5,
    };
    survives(
        &format!("{on:?}"),
        |disk| disk.fail(fault),
        |disk| {
            assert!(disk.activity().faults > 0);
            disk.heal();
        },
    );
}

#[test]
fn writes_that_fail() {
    if let Err(reason) = Disk::available() {
        skip!("{reason}");
    }
    injected(On::Write);
}

#[test]
fn syncs_that_fail() {
    if let Err(reason) = Disk::available() {
        skip!("{reason}");
    }
    injected(On::Sync);
}

/// The store is told that there is room, and then there isn't.
#[test]
fn space_that_ends_without_a_warning() {
    if let Err(reason) = Disk::available() {
        skip!("{reason}");
    }
    survives(
        "ENOSPC",
        |disk| {
            disk.claim_free(Some(128 << 20));
            disk.resize(0);
        },
        |disk| {
            disk.resize(256 << 20);
            disk.claim_free(None);
        },
    );
}
