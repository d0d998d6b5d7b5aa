//! The broker is killed under load and started again: nothing that it acknowledged may be lost, nothing with QoS 2 may
//! come twice, and what one publisher sends stays in order.

use std::time::Duration;

use headgate_tests::broker::Broker;
use headgate_tests::crash::{Load, Plan, Rounds, number_from, seed_from};
use headgate_tests::skip;

/// Runs this many rounds instead of [`ROUNDS`].
const COUNT: &str = "HEADGATE_CRASH_ROUNDS";

/// Runs with this seed.
const SEED: &str = "HEADGATE_CRASH_SEED";

/// Rounds of an ordinary run.
const ROUNDS: u64 = 8;

/// No queue of the load is ever full.
const LIMITS: &str =
    "[limits]\nqueued_messages_per_session = 60000\nmemory_per_connection_bytes = 100000000";

const SMALL: Plan = Plan {
    publishers: 1,
    messages_per_s: 100,
    is_foreign: true,
};

#[test]
fn nothing_acknowledged_is_lost() {
    if let Err(reason) = Load::available() {
        skip!("{reason}");
    }
    let seed = seed_from(SEED);
    let rounds = Rounds {
        count: number_from(COUNT, ROUNDS) as u32,
        seed,
        at_least: Duration::ZERO,
        plan: Plan {
            publishers: 2,
            ..SMALL
        },
    };
    let verdict = rounds.run(&mut Broker::start(LIMITS), |_, _| ());
    assert!(verdict.is_clean(), "{SEED}={seed}: {verdict}");
}

/// The same load shows it when a broker keeps nothing.
#[test]
fn a_broker_without_a_store_is_seen_to_lose() {
    if let Err(reason) = Load::available() {
        skip!("{reason}");
    }
    let rounds = Rounds {
        count: 1,
        seed: 1,
        at_least: Duration::ZERO,
        plan: SMALL,
    };
    let config = format!("{LIMITS}\n[store]\nenabled = false");
    let verdict = rounds.run(&mut Broker::start(&config), |_, _| ());
    assert!(!verdict.lost.is_empty(), "{verdict}");
    assert!(!verdict.problems.is_empty(), "lost sessions: {verdict}");
}
