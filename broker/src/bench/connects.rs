//! Who connects when: by a ramp or as fast as it goes, and again after a failure.

use super::{draw::Random, options::Options, tally::Tally};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    ops::Range,
    time::Duration,
};

/// The longest time between two attempts of a client.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Clients that have to connect.
pub(super) struct Connects {
    clients: Range<u32>,
    start_ns: u64,
    /// Per second.
    ramp: Option<f64>,
    /// How many were due.
    offered: u64,
    /// How many have begun.
    begun: u64,
    timeout_ns: u64,
    /// When those that have begun are looked at, ns after the run began, and when they had begun.
    watched: VecDeque<(u64, u32, u64)>,
    retry: Option<Duration>,
    /// Clients that try again: when, and since when they were due.
    again: BinaryHeap<Reverse<(u64, u32)>>,
    /// Failures of a client.
    failures: HashMap<u32, u32>,
    /// Further attempts so far.
    pub(super) retries: u64,
}

impl Connects {
    pub(super) fn new(options: &Options, clients: Range<u32>, start_ns: u64) -> Self {
        Self {
            clients,
            start_ns,
            ramp: options.ramp,
            offered: 0,
            begun: 0,
            timeout_ns: options.connect_timeout.as_nanos() as u64,
            watched: VecDeque::new(),
            retry: options.retry,
            again: BinaryHeap::new(),
            failures: HashMap::new(),
            retries: 0,
        }
    }

    fn total(&self) -> u64 {
        u64::from(self.clients.end - self.clients.start)
    }

    /// When the nth client is due.
    fn due_ns(&self, number: u64) -> u64 {
        let after_ns = self.ramp.map_or(0.0, |ramp| number as f64 * 1e9 / ramp);
        self.start_ns + after_ns as u64
    }

    /// How many have become due.
    pub(super) fn offer(&mut self, now_ns: u64) -> u64 {
        let before = self.offered;
        while self.offered < self.total() && self.due_ns(self.offered) <= now_ns {
            self.offered += 1;
        }
        self.offered - before
    }

    /// The next client to begin, and when it was due.
    pub(super) fn next(&mut self, now_ns: u64) -> Option<(u32, u64)> {
        let (client, due_ns) = match self.again.peek() {
            Some(Reverse((at_ns, client))) if *at_ns <= now_ns => {
                let found = (*client, *at_ns);
                self.again.pop();
                self.retries += 1;
                found
            }
            _ if self.begun < self.offered => {
                let number = self.begun;
                self.begun += 1;
                // Without a ramp it is due when there is room for it.
                let due_ns = self.ramp.map_or(now_ns, |_| self.due_ns(number));
                (self.clients.start + number as u32, due_ns)
            }
            _ => return None,
        };
        self.watched
            .push_back((now_ns + self.timeout_ns, client, now_ns));
        Some((client, due_ns))
    }

    /// Clients whose time to connect is over.
    pub(super) fn overdue(&mut self, tally: &Tally, now_ns: u64) -> Vec<u32> {
        let mut overdue = Vec::new();
        while let Some((at_ns, client, begun_ns)) = self.watched.front().copied()
            && at_ns <= now_ns
        {
            self.watched.pop_front();
            // It may have failed, and begun again.
            let begun = tally.connecting.get(&client);
            if begun.is_some_and(|begun| begun.at_ns == begun_ns) {
                overdue.push(client);
            }
        }
        overdue
    }

    /// Takes those that failed: they try again, if they are to.
    pub(super) fn failed(&mut self, tally: &mut Tally, (now_ns, random): (u64, &mut Random)) {
        for client in std::mem::take(&mut tally.failed) {
            let Some(retry) = self.retry else { continue };
            let failures = self.failures.entry(client).or_default();
            let longest = retry
                .saturating_mul(1 << (*failures).min(16))
                .min(RETRY_MAX);
            *failures += 1;
            // Half of it to all of it: they are not to come at once again.
            let wait_ns = longest.as_nanos() as f64 * (0.5 + 0.5 * random.share());
            self.again.push(Reverse((now_ns + wait_ns as u64, client)));
        }
    }

    /// Whether all have begun, and nobody tries again.
    pub(super) fn is_over(&self) -> bool {
        self.begun == self.total() && self.again.is_empty()
    }

    /// Whether somebody is due who has not begun.
    pub(super) fn is_behind(&self) -> bool {
        self.begun < self.offered
    }

    /// Whether some are not due yet.
    pub(super) fn is_waiting(&self) -> bool {
        self.offered < self.total()
    }

    /// How long nobody is due.
    pub(super) fn quiet(&self, now_ns: u64) -> Duration {
        let next = (self.offered < self.total()).then(|| self.due_ns(self.offered));
        let again = self.again.peek().map(|Reverse((at_ns, _))| *at_ns);
        let due_ns = next.into_iter().chain(again).min().unwrap_or(u64::MAX);
        Duration::from_nanos(due_ns.saturating_sub(now_ns)).max(Duration::from_micros(100))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        layout::Pattern,
        options::{Load, tests::options},
        record::Recorder,
        session::Listener,
        tally::Begun,
    };
    use super::*;

    fn connects(ramp: Option<f64>, retry: Option<Duration>) -> (Connects, Tally) {
        let mut options = options(Pattern::Idle, (10, 0, 0), Load::None);
        (options.ramp, options.retry) = (ramp, retry);
        let recorder = Recorder::new(None, Duration::from_secs(1));
        (
            Connects::new(&options, 0..10, 1_000),
            Tally::new(recorder, 0, (10, 0), false),
        )
    }

    #[test]
    fn a_ramp_is_kept_and_who_is_late_is_known() {
        let (mut connects, _) = connects(Some(1_000.0), None);
        assert_eq!(connects.offer(1_000), 1);
        assert_eq!(connects.next(1_000), Some((0, 1_000)));
        assert_eq!(connects.next(1_000), None);
        assert_eq!(connects.quiet(1_000), Duration::from_millis(1));
        // 3 ms later; they were due one after the other.
        assert_eq!(connects.offer(3_001_000), 3);
        assert!(connects.is_behind());
        let next = connects.next(3_001_000);
        assert_eq!(next, Some((1, 1_001_000)));
        assert!(connects.is_waiting() && !connects.is_over());
    }

    #[test]
    fn without_a_ramp_all_are_due_at_once() {
        let (mut connects, _) = connects(None, None);
        assert_eq!(connects.offer(1_000), 10);
        let begun: Vec<_> = std::iter::from_fn(|| connects.next(5_000)).collect();
        assert_eq!(begun.len(), 10);
        assert!(begun.iter().all(|(_, due_ns)| *due_ns == 5_000));
        assert!(connects.is_over());
    }

    #[test]
    fn who_fails_tries_again_later_and_later() {
        let (mut connects, mut tally) = connects(None, Some(Duration::from_secs(1)));
        let mut random = Random::new(1);
        connects.offer(1_000);
        while connects.next(1_000).is_some() {}
        let mut now_ns = 1_000;
        for seconds in [1.0, 2.0, 4.0] {
            let begun = Begun {
                due_ns: now_ns,
                at_ns: now_ns,
            };
            tally.begun(3, begun);
            tally.lost(3, "refused");
            connects.failed(&mut tally, (now_ns, &mut random));
            let wait = connects.quiet(now_ns).as_secs_f64();
            assert!((seconds / 2.0..=seconds).contains(&wait), "{wait}");
            now_ns += (wait * 1e9) as u64 + 1;
            assert_eq!(connects.next(now_ns).map(|(client, _)| client), Some(3));
        }
        assert_eq!(connects.retries, 3);
        assert!(connects.is_over());
    }

    #[test]
    fn who_gets_no_answer_is_found() {
        let (mut connects, mut tally) = connects(None, None);
        connects.offer(1_000);
        for _ in 0..2 {
            let (client, due_ns) = connects.next(1_000).expect("ten are due");
            let at_ns = 1_000;
            tally.begun(client, Begun { due_ns, at_ns });
        }
        tally.ready(1);
        assert!(connects.overdue(&tally, 9_000_000_000).is_empty());
        assert_eq!(connects.overdue(&tally, 10_000_001_000), [0]);
    }
}
