//! The power is lost under load: the broker is killed, and its disk forgets what was not synced. What each level of
//! `store.fsync` promises, holds, and the weakest is seen to lose.

use std::time::{Duration, Instant};

use headgate_tests::broker::{Broker, Settings};
use headgate_tests::crash::{Load, Plan, Rounds, Verdict, number_from, seed_from};
use headgate_tests::disk::{Disk, Fate};
use headgate_tests::skip;

/// Runs this many rounds instead of [`ROUNDS`].
const COUNT: &str = "HEADGATE_POWER_ROUNDS";

/// Runs with this seed.
const SEED: &str = "HEADGATE_CRASH_SEED";

/// Rounds of an ordinary run.
const ROUNDS: u64 = 5;

/// Far more than the load writes.
const DISK_BYTES: u64 = 1 << 30;

/// No queue of the load is ever full.
const LIMITS: &str =
    "[limits]\nqueued_messages_per_session = 60000\nmemory_per_connection_bytes = 100000000";

/// `store.fsync_interval_ms` of the test.
const INTERVAL: Duration = Duration::from_millis(500);

/// How much later than the interval says a sync may be over, on a machine that does much else.
const LATENESS: Duration = Duration::from_secs(3);

struct Outcome {
    verdict: Verdict,
    /// When the broker was killed.
    crashes: Vec<Instant>,
    /// Changes of files that the disk forgot.
    forgotten: usize,
}

/// Runs with a level of `store.fsync`. In every second round nothing that wasn't synced is left, in the others chance
/// decides.
fn run(fsync: &str, rounds: Rounds) -> Outcome {
    let disk = Disk::mount(DISK_BYTES);
    let interval = INTERVAL.as_millis();
    let mut broker = Broker::start_with(Settings {
        config: format!("{LIMITS}\n[store]\nfsync = {fsync:?}\nfsync_interval_ms = {interval}"),
        state_dir: Some(disk.path().join("state")),
        ..Settings::default()
    });
    let (mut crashes, mut forgotten) = (Vec::new(), 0);
    let verdict = rounds.run(&mut broker, |round, _| {
        crashes.push(Instant::now());
        let lost = disk.lose_power(match round % 2 {
            0 => Fate::Forgotten,
            _ => Fate::Chance(rounds.seed.wrapping_add(u64::from(round))),
        });
        println!("round {round}: {lost:?}");
        forgotten += lost.changes;
    });
    Outcome {
        verdict,
        crashes,
        forgotten,
    }
}

fn rounds(count: u64, at_least: Duration) -> Rounds {
    Rounds {
        count: count as u32,
        seed: seed_from(SEED),
        at_least,
        plan: Plan {
            publishers: 2,
            messages_per_s: 100,
            is_foreign: Load::available().is_ok(),
        },
    }
}

#[test]
fn always_loses_nothing() {
    if let Err(reason) = Disk::available() {
        skip!("{reason}");
    }
    let rounds = rounds(number_from(COUNT, ROUNDS), Duration::ZERO);
    let outcome = run("always", rounds);
    let verdict = outcome.verdict;
    assert!(verdict.is_clean(), "{SEED}={}: {verdict}", rounds.seed);
}

/// Otherwise this disk would not show anything.
#[test]
fn never_is_seen_to_lose() {
    if let Err(reason) = Disk::available() {
        skip!("{reason}");
    }
    let outcome = run("never", rounds(2, Duration::from_secs(1)));
    assert!(outcome.forgotten > 0);
    assert!(!outcome.verdict.lost.is_empty(), "{}", outcome.verdict);
}

#[test]
fn interval_loses_the_last_moments_at_most() {
    if let Err(reason) = Disk::available() {
        skip!("{reason}");
    }
    let rounds = rounds(2, INTERVAL + 2 * LATENESS);
    let outcome = run("interval", rounds);
    // The first moments after it may still show an acknowledgement from before it.
    let is_recent = |when: Instant| {
        let last_moments = INTERVAL + LATENESS;
        let mut crashes = outcome.crashes.iter();
        crashes.any(|crash| {
            when < *crash + LATENESS && crash.saturating_duration_since(when) < last_moments
        })
    };
    let too_old: Vec<_> = outcome
        .verdict
        .lost
        .iter()
        .filter(|finding| !is_recent(finding.when))
        .collect();
    assert!(
        too_old.is_empty(),
        "{SEED}={}: {too_old:?}\n{}",
        rounds.seed,
        outcome.verdict
    );
}
