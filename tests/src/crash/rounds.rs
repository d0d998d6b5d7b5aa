//! Crashes under load, one after the other.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::ledger::Verdict;
use super::load::{Load, Plan};
use crate::broker::Broker;
use headgate_sim::Rng;

/// How many messages are acknowledged at least between two crashes, except those in quick succession.
const PROGRESS: usize = 100;

/// How long that may take. Only a broken broker takes longer.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest time between that and the crash, ms.
const DELAY_MS_MAX: usize = 500;

/// Which of our subscribers comes and goes.
const RESTLESS: usize = 2;

/// Which is away for several rounds, so that its queue grows.
const LATE: usize = 3;

/// How many rounds the late one is away, and then how many it is there.
const LATE_ROUNDS: u32 = 2;

/// A run of crashes: the broker is killed under load and started again, as often as said.
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    /// How often the broker is killed.
    pub count: u32,
    /// Chooses the moments.
    pub seed: u64,
    /// Shortest time between a start and the next crash; if it is zero, some follow each other at once.
    pub at_least: Duration,
    /// The load.
    pub plan: Plan,
}

/// A broker that can be ended and started again.
pub trait Victim {
    /// Where it listens for MQTT over TCP.
    fn address(&self) -> SocketAddr;

    /// Ends it.
    fn end(&mut self);

    /// Starts it again as it was, and waits until it accepts clients.
    fn start_again(&mut self);

    /// What it has to say when nothing goes on.
    fn log(&self) -> String;
}

impl Victim for Broker {
    fn address(&self) -> SocketAddr {
        self.tcp()
    }

    fn end(&mut self) {
        self.kill();
    }

    fn start_again(&mut self) {
        self.restart();
    }

    fn log(&self) -> String {
        self.log()
    }
}

impl Rounds {
    /// Runs them. `between` is called while the broker is dead, with the number of the round.
    ///
    /// # Panics
    /// When the broker doesn't start, or nothing goes on.
    pub fn run(self, broker: &mut impl Victim, mut between: impl FnMut(u32, &Load)) -> Verdict {
        println!("{} rounds, seed {}", self.count, self.seed);
        let mut random = Rng::new(self.seed);
        let load = Load::start(broker.address(), self.plan);
        for round in 0..self.count {
            load.want(LATE, round / LATE_ROUNDS % 2 == 1);
            // Now and then it has hardly started, and is still busy with what was before.
            if !self.at_least.is_zero() || random.below(5) > 0 {
                wait_for_progress(broker, &load, &mut random, self.at_least);
            }
            thread::sleep(Duration::from_millis(random.below(DELAY_MS_MAX) as u64));
            broker.end();
            between(round, &load);
            broker.start_again();
        }
        let verdict = load.finish();
        print!("seed {}: {verdict}", self.seed);
        verdict
    }
}

fn wait_for_progress(broker: &impl Victim, load: &Load, random: &mut Rng, at_least: Duration) {
    let (before, started) = (load.ledger().acknowledgements(), Instant::now());
    let is_enough = || load.ledger().acknowledgements() >= before + PROGRESS;
    while !is_enough() || started.elapsed() < at_least {
        assert!(
            is_enough() || started.elapsed() < PROGRESS_TIMEOUT,
            "{} messages in {PROGRESS_TIMEOUT:?}. The broker's log:\n{}",
            load.ledger().acknowledgements() - before,
            broker.log()
        );
        load.want(RESTLESS, random.below(3) > 0);
        thread::sleep(Duration::from_millis(50));
    }
}

/// The number in an environment variable, or another one.
///
/// # Panics
/// When it holds something else.
pub fn number_from(variable: &str, otherwise: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")),
        Err(_) => otherwise,
    }
}

/// The seed in an environment variable, or one that nobody has had yet.
pub fn seed_from(variable: &str) -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    number_from(variable, since.map_or(0, |since| since.as_micros() as u64))
}
