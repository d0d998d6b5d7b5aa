//! A machine with many cores, simulated: what happens between workers when each has a core of its own. It knows what the
//! broker's mesh does (bounded rings for each ordered pair of workers, turns that take all mail, publishers that wait while a
//! ring is full) and takes what work costs from measurements.

use std::collections::VecDeque;

use crate::flood::Random;

/// What is simulated. Times in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Workers, each on a core of its own.
    pub workers: usize,
    /// To receive a PUBLISH and to route it.
    pub publish_ns: f64,
    /// To deliver it to one session.
    pub deliver_ns: f64,
    /// To pass it to another worker, both sides together.
    pub mesh_ns: f64,
    /// What a turn costs beside what is done in it: system calls, timers, a look at each ring.
    pub turn_ns: f64,
    /// Messages in a ring, at most.
    pub ring: usize,
    /// Datagrams that a worker takes from its socket in a turn.
    pub batch: usize,
}

/// One worker that does nothing for a while.
#[derive(Clone, Copy, Debug)]
pub struct Stall {
    /// From when.
    pub from_ns: f64,
    /// For how long.
    pub lasts_ns: f64,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Messages that were delivered.
    pub delivered: u64,
    /// From a message's arrival at the machine to the end of the turn that delivers it, 99 % of them; of workers that didn't
    /// stall, ns.
    pub p99_ns: f64,
    /// Messages that a ring ever held, at most.
    pub ring_max: usize,
    /// How often a publisher had to wait because a ring was full.
    pub held: u64,
    /// The share of its time that a worker worked, on average.
    pub busy: f64,
}

/// A message on its way to another worker.
#[derive(Clone, Copy, Debug)]
struct Mail {
    came_ns: f64,
    sent_ns: f64,
}

#[derive(Debug, Default)]
struct Worker {
    /// Simulated time up to which it has worked.
    now_ns: f64,
    worked_ns: f64,
    /// When its next PUBLISH comes.
    next_ns: f64,
    /// Messages that came and wait in its socket.
    socket: VecDeque<f64>,
    /// Messages that the ring to another worker had no room for, and that worker: each one's publisher is not read from until
    /// it has.
    held: VecDeque<(f64, usize)>,
}

/// One run.
struct Run {
    machine: Machine,
    workers: Vec<Worker>,
    /// By `from * workers + to`.
    rings: Vec<VecDeque<Mail>>,
    random: Random,
    gap_ns: f64,
    latencies_ns: Vec<f64>,
    outcome: Outcome,
    stall: Option<Stall>,
}

impl Machine {
    /// Publishes come at random, `per_s` in a second in all, evenly to all workers, each for one session that is as likely on
    /// one worker as on another. A stall is one of worker 0.
    pub fn run(self, per_s: f64, lasts_ns: f64, stall: Option<Stall>) -> Outcome {
        let mut run = Run {
            machine: self,
            workers: (0..self.workers).map(|_| Worker::default()).collect(),
            rings: vec![VecDeque::new(); self.workers * self.workers],
            random: Random::new(7),
            gap_ns: 1e9 * self.workers as f64 / per_s,
            latencies_ns: Vec::new(),
            outcome: Outcome::default(),
            stall,
        };
        for worker in 0..self.workers {
            run.workers[worker].next_ns = run.gap();
        }
        // Always the worker that is furthest behind.
        while let Some(next) = run.behind(lasts_ns) {
            run.turn(next);
        }
        run.end(lasts_ns)
    }

    /// The most messages a second whose 99th percentile stays below `p99_ns` while no publisher waits, to 1 %.
    pub fn capacity(self, p99_ns: f64, lasts_ns: f64) -> f64 {
        let is_good = |per_s: f64| {
            let outcome = self.run(per_s, lasts_ns, None);
            outcome.held == 0 && outcome.p99_ns < p99_ns
        };
        let least_ns = self.publish_ns + self.deliver_ns;
        let (mut good, mut bad) = (0.0, 1e9 * self.workers as f64 / least_ns);
        while bad - good > bad / 100.0 {
            let middle = f64::midpoint(good, bad);
            *if is_good(middle) { &mut good } else { &mut bad } = middle;
        }
        good
    }
}

impl Run {
    /// Exponentially distributed: arrivals don't know of each other.
    fn gap(&mut self) -> f64 {
        let uniform = (self.random.word() >> 11) as f64 / (1_u64 << 53) as f64;
        -self.gap_ns * (1.0 - uniform).ln()
    }

    fn behind(&self, lasts_ns: f64) -> Option<usize> {
        let times = self.workers.iter().map(|worker| worker.now_ns).enumerate();
        let behind = times.min_by(|a, b| a.1.total_cmp(&b.1))?;
        (behind.1 < lasts_ns).then_some(behind.0)
    }

    /// One turn of one worker: its mail, then a batch from its socket.
    fn turn(&mut self, index: usize) {
        let start_ns = self.workers[index].now_ns;
        if let Some(stall) = self
            .stall
            .filter(|stall| index == 0 && stall.from_ns <= start_ns)
        {
            self.stall = None;
            self.workers[0].now_ns += stall.lasts_ns;
            return;
        }
        let mut delivered = Vec::new();
        let mut cost_ns = self.mail(index, start_ns, &mut delivered);
        self.send_held(index, start_ns + cost_ns);
        cost_ns += self.socket(index, (start_ns, cost_ns), &mut delivered);
        let worker = &mut self.workers[index];
        if cost_ns == 0.0 {
            // It sleeps until something comes; to be woken takes about as long.
            worker.now_ns += self.machine.turn_ns.max(10_000.0);
            return;
        }
        cost_ns += self.machine.turn_ns;
        worker.now_ns += cost_ns;
        worker.worked_ns += cost_ns;
        let end_ns = worker.now_ns;
        self.outcome.delivered += delivered.len() as u64;
        self.latencies_ns
            .extend(delivered.iter().map(|came| end_ns - came));
    }

    fn mail(&mut self, index: usize, now_ns: f64, delivered: &mut Vec<f64>) -> f64 {
        let before = delivered.len();
        for from in 0..self.machine.workers {
            let ring = &mut self.rings[from * self.machine.workers + index];
            while ring.front().is_some_and(|mail| mail.sent_ns <= now_ns) {
                delivered.extend(ring.pop_front().map(|mail| mail.came_ns));
            }
        }
        let each = self.machine.deliver_ns + self.machine.mesh_ns;
        (delivered.len() - before) as f64 * each
    }

    /// What the socket holds at the turn's start; the turn has cost something already.
    fn socket(
        &mut self,
        index: usize,
        (start_ns, before_ns): (f64, f64),
        delivered: &mut Vec<f64>,
    ) -> f64 {
        while self.workers[index].next_ns <= start_ns {
            let gap = self.gap();
            let worker = &mut self.workers[index];
            worker.socket.push_back(worker.next_ns);
            worker.next_ns += gap;
        }
        let mut cost_ns = 0.0;
        for _ in 0..self.machine.batch {
            let Some(came_ns) = self.workers[index].socket.pop_front() else {
                break;
            };
            cost_ns += self.machine.publish_ns;
            let to = (self.random.word() >> 32) as usize % self.machine.workers;
            if to == index {
                cost_ns += self.machine.deliver_ns;
                delivered.push(came_ns);
            } else if !self.send(index, to, came_ns, start_ns + before_ns + cost_ns) {
                self.outcome.held += 1;
                self.workers[index].held.push_back((came_ns, to));
            }
        }
        cost_ns
    }

    fn send_held(&mut self, index: usize, now_ns: f64) {
        for _ in 0..self.workers[index].held.len() {
            let Some((came_ns, to)) = self.workers[index].held.pop_front() else {
                break;
            };
            if !self.send(index, to, came_ns, now_ns) {
                self.workers[index].held.push_back((came_ns, to));
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, came_ns: f64, sent_ns: f64) -> bool {
        let ring = &mut self.rings[from * self.machine.workers + to];
        if ring.len() >= self.machine.ring {
            return false;
        }
        ring.push_back(Mail { came_ns, sent_ns });
        self.outcome.ring_max = self.outcome.ring_max.max(ring.len());
        true
    }

    fn end(mut self, lasts_ns: f64) -> Outcome {
        self.latencies_ns.sort_by(f64::total_cmp);
        let at = (self.latencies_ns.len() as f64 * 0.99) as usize;
        let worked: f64 = self.workers.iter().map(|worker| worker.worked_ns).sum();
        Outcome {
            p99_ns: self.latencies_ns.get(at).copied().unwrap_or(f64::NAN),
            busy: worked / lasts_ns / self.machine.workers as f64,
            ..self.outcome
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(workers: usize) -> Machine {
        Machine {
            workers,
            publish_ns: 1_000.0,
            deliver_ns: 3_000.0,
            mesh_ns: 500.0,
            turn_ns: 2_000.0,
            ring: 1_000,
            batch: 64,
        }
    }

    #[test]
    fn below_its_capacity_all_is_delivered_and_above_it_is_not() {
        let calm = machine(4).run(400_000.0, 1e8, None);
        assert!((39_000..=41_000).contains(&calm.delivered), "{calm:?}");
        assert_eq!(calm.held, 0);
        // 4 workers at 4.375 µs a message do at most 914,000.
        let flooded = machine(4).run(2_000_000.0, 1e8, None);
        assert!(flooded.delivered < 95_000, "{flooded:?}");
        assert!(
            flooded.busy > 0.95 && flooded.p99_ns > calm.p99_ns,
            "{flooded:?}"
        );
    }

    #[test]
    fn capacity_grows_with_workers() {
        let capacity = |workers| machine(workers).capacity(1e6, 5e7);
        let (one, four) = (capacity(1), capacity(4));
        assert!(four / one > 3.3 && four / one < 3.9, "{one} {four}");
    }

    #[test]
    fn a_worker_that_stands_still_fills_the_rings_to_it() {
        let stall = |lasts_ns| {
            Some(Stall {
                from_ns: 1e8,
                lasts_ns,
            })
        };
        // 100,000 publishes a second are 6,250 for each ordered pair of 4 workers: 1,000 in 160 ms.
        let short = machine(4).run(100_000.0, 5e8, stall(8e7));
        let long = machine(4).run(100_000.0, 5e8, stall(3e8));
        assert_eq!(short.held, 0, "{short:?}");
        assert!((300..=700).contains(&short.ring_max), "{short:?}");
        assert!(long.held > 0 && long.ring_max == 1_000, "{long:?}");
    }
}
