//! Keep Alive of all clients: PINGREQs, spread evenly.

use super::{
    engine::Engine,
    record::Kind,
    tally::{State, Tally},
};
use std::{collections::VecDeque, time::Duration};

/// A client pings after this share of its Keep Alive.
const SHARE: f64 = 0.8;
/// When a client that sleeps sends a PINGREQ again that wasn't answered.
const AGAIN: Duration = Duration::from_secs(2);
/// How often, at most: the server ends the connection then, by itself.
const TRIES_MAX: u8 = 10;

/// When who pings.
pub(super) struct Pinger {
    /// Between two pings of all clients together, ns; 0 = nobody pings.
    period_ns: f64,
    clients: u32,
    /// Pings that have been due.
    due: u64,
    /// PINGREQs of clients that sleep: when they are looked at, ns after the run began, and how often they were sent.
    waiting: VecDeque<(u64, u32, u8)>,
}

impl Pinger {
    pub(super) fn new(keep_alive_s: u16, clients: u32) -> Self {
        let period_ns = f64::from(keep_alive_s) * SHARE * 1e9 / f64::from(clients.max(1));
        Self {
            period_ns,
            clients,
            due: 0,
            waiting: VecDeque::new(),
        }
    }

    /// The server wants a shorter Keep Alive, seconds; 0 = none.
    pub(super) fn shorten(&mut self, keep_alive_s: u16, now_ns: u64) {
        let other = Self::new(keep_alive_s, self.clients).period_ns;
        if self.period_ns == 0.0 || other == 0.0 || other >= self.period_ns {
            return;
        }
        self.period_ns = other;
        // Goes on where it is, without making up for what would have been due.
        self.due = (now_ns as f64 / other) as u64;
    }

    /// How long nobody has to ping.
    pub(super) fn quiet(&self, now_ns: u64) -> Duration {
        if self.period_ns == 0.0 {
            return Duration::MAX;
        }
        Duration::from_nanos(self.due_ns(self.due).saturating_sub(now_ns))
    }

    /// Lets those ping whose turn it is.
    pub(super) fn ping(&mut self, now_ns: u64, engine: &mut Engine, tally: &mut Tally) {
        if self.period_ns == 0.0 {
            return;
        }
        while self.due_ns(self.due) <= now_ns {
            let due_ns = self.due_ns(self.due);
            let client = (self.due % u64::from(self.clients)) as u32;
            self.due += 1;
            // One that was not answered is not joined by another.
            let may = tally.states[client as usize] == State::Ready
                && !tally.pinged.contains_key(&client);
            if may && engine.ping(client) {
                tally.pinged.insert(client, due_ns);
                tally.recorder.offered(Kind::Ping, 1);
                let again_ns = now_ns + AGAIN.as_nanos() as u64;
                self.waiting.push_back((again_ns, client, 1));
            }
        }
        while let Some((at_ns, client, tries)) = self.waiting.front().copied()
            && at_ns <= now_ns
        {
            self.waiting.pop_front();
            // Whoever doesn't sleep needs no help, and is given as long.
            if !tally.pinged.contains_key(&client) || tries == TRIES_MAX {
                continue;
            }
            engine.ping_again(client);
            let again_ns = now_ns + AGAIN.as_nanos() as u64;
            self.waiting.push_back((again_ns, client, tries + 1));
        }
    }

    /// When the nth ping is due, ns after the run began.
    fn due_ns(&self, number: u64) -> u64 {
        (number as f64 * self.period_ns) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_pings_within_its_keep_alive() {
        let pinger = Pinger::new(60, 1_000);
        assert_eq!(pinger.due_ns(0), 0);
        assert_eq!(pinger.due_ns(1_000), 48_000_000_000);
        assert_eq!(pinger.quiet(0), Duration::ZERO);
        assert_eq!(Pinger::new(0, 5).quiet(0), Duration::MAX);
    }

    #[test]
    fn the_server_may_ask_for_more_pings_and_never_for_less() {
        let mut pinger = Pinger::new(60, 1_000);
        pinger.shorten(600, 0);
        assert_eq!(pinger.period_ns, 48e6);
        pinger.shorten(6, 10_000_000_000);
        assert!((pinger.period_ns - 4.8e6).abs() < 1.0);
        let wait = pinger.quiet(10_000_000_000);
        assert!(wait <= Duration::from_micros(4_800), "{wait:?}");
    }
}
