//! The account of a load over crashes, by brokers of which is known what they lose.

use std::net::SocketAddr;
use std::time::Duration;

use headgate_tests::crash::{Load, Plan, Rounds, Victim};
use headgate_tests::load::{Carrier, Mosquitto};
use headgate_tests::skip;
use nix::sys::signal::Signal;

struct Foreign(Mosquitto, Signal);

impl Victim for Foreign {
    fn address(&self) -> SocketAddr {
        self.0.address(Carrier::Tcp).expect("it has TCP")
    }

    fn end(&mut self) {
        self.0.stop(self.1);
    }

    fn start_again(&mut self) {
        self.0.restart();
    }

    fn log(&self) -> String {
        String::new()
    }
}

/// mosquitto writes all sessions to its database when it ends well, and loses what came since when it is killed.
/// mosquitto_sub ends with a broker that ends well, so only our clients see that one.
#[test]
fn mosquitto_loses_when_it_is_killed_and_not_when_it_ends_well() {
    if let Err(reason) = Load::available() {
        skip!("{reason}");
    }
    for (signal, is_clean) in [(Signal::SIGTERM, true), (Signal::SIGKILL, false)] {
        let mosquitto = match Mosquitto::start_persistent() {
            Ok(mosquitto) => mosquitto,
            Err(reason) => skip!("{reason}"),
        };
        let rounds = Rounds {
            count: 3,
            seed: 1,
            at_least: Duration::ZERO,
            plan: Plan {
                publishers: 1,
                messages_per_s: 100,
                is_foreign: !is_clean,
            },
        };
        let verdict = rounds.run(&mut Foreign(mosquitto, signal), |_, _| ());
        assert_eq!(verdict.is_clean(), is_clean, "{signal}: {verdict}");
        assert_eq!(verdict.lost.is_empty(), is_clean, "{signal}: {verdict}");
    }
}
