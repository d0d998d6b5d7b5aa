//! The clients of the load generator: asleep they hold little, and are alive all the same.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use headgate::bench::{Fleet, FleetOptions, Plan};
use headgate_tests::broker::Broker;
use headgate_tests::load::client::{publish, tls_of_one_suite};

/// Sleeping clients.
const CLIENTS: u32 = 40;
/// More than quinn-proto sends before its first key update, which are 10 to 1,000 packets.
const ROUNDS: u32 = 1_100;
const PATIENCE: Duration = Duration::from_secs(120);

fn fleet(broker: &Broker) -> Fleet {
    Fleet::new(FleetOptions {
        server: broker.quic(),
        server_name: "localhost".to_owned(),
        tls: tls_of_one_suite(),
        local: vec![IpAddr::V4(Ipv4Addr::LOCALHOST); 2],
    })
    .expect("sockets on the loopback")
}

fn plan(client_id: String, filters: Vec<String>, sleeps: bool) -> Plan {
    Plan {
        client_id,
        filters,
        keep_alive_s: 60,
        sleeps,
    }
}

fn wait_for(fleet: &mut Fleet, what: &str, holds: impl Fn(&Fleet) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds(fleet) {
        assert!(Instant::now() < deadline, "{what}: {:?}", fleet.counts());
        fleet.turn(Duration::from_millis(5), |_, _| {});
        let counts = fleet.counts();
        assert_eq!(counts.lost, 0, "{:?}", fleet.last_loss());
    }
}

#[test]
fn sleeping_clients_ping_follow_key_updates_and_get_their_messages() {
    let broker = Broker::start("");
    let mut fleet = fleet(&broker);
    for number in 0..CLIENTS {
        let filters = vec![format!("to/{number}")];
        let plan = plan(format!("sleeper-{number}"), filters, true);
        fleet.connect(plan).expect("a connection can be begun");
    }
    wait_for(&mut fleet, "all sleep", |fleet| {
        fleet.counts().asleep == u64::from(CLIENTS)
    });
    for round in 1..=ROUNDS {
        for client in 0..CLIENTS {
            assert!(fleet.ping(client));
        }
        let wanted = u64::from(round) * u64::from(CLIENTS);
        wait_for(&mut fleet, "PINGRESPs", |fleet| {
            fleet.counts().pongs == wanted
        });
    }
    // The broker's connections have sent more than 1,000 packets each.
    assert!(
        fleet.counts().key_updates >= u64::from(CLIENTS),
        "{:?}",
        fleet.counts()
    );
    let publisher = plan("publisher".to_owned(), Vec::new(), false);
    let publisher = fleet.connect(publisher).expect("a connection can be begun");
    wait_for(&mut fleet, "the publisher", |fleet| {
        fleet.counts().ready == u64::from(CLIENTS) + 1
    });
    for number in 0..CLIENTS {
        let message = publish(&format!("to/{number}"), &number.to_be_bytes());
        fleet.send(publisher, message);
    }
    let (mut got, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    while got.len() < CLIENTS as usize && Instant::now() < deadline {
        fleet.turn(Duration::from_millis(5), |client, packet| {
            let payload = packet.last_chunk().map(|bytes| u32::from_be_bytes(*bytes));
            got.push((client, payload));
        });
    }
    got.sort_unstable();
    let wanted: Vec<_> = (0..CLIENTS).map(|number| (number, Some(number))).collect();
    assert_eq!(got, wanted, "each its own");
    broker.counts("headgate_clients{", f64::from(CLIENTS) + 1.0);
}

#[test]
fn a_sleeping_client_hears_that_its_connection_is_over() {
    let broker = Broker::start("");
    let mut fleet = fleet(&broker);
    let sleeper = plan("sleeper".to_owned(), Vec::new(), true);
    fleet.connect(sleeper).expect("a connection can be begun");
    wait_for(&mut fleet, "it sleeps", |fleet| fleet.counts().asleep == 1);
    // Another connection of the same client.
    let again = plan("sleeper".to_owned(), Vec::new(), false);
    fleet.connect(again).expect("a connection can be begun");
    let deadline = Instant::now() + PATIENCE;
    while fleet.counts().lost == 0 {
        assert!(Instant::now() < deadline, "{:?}", fleet.counts());
        fleet.turn(Duration::from_millis(5), |_, _| {});
    }
    assert!(!fleet.ping(0), "it is gone");
}
