//! What is measured, over time: latencies, throughput, memory and CPU time, in phases.

use super::process::Usage;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::{Duration, Instant};

/// The longest latency that is told from longer ones, ns: an hour.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;
/// Significant decimal digits of latencies.
const DIGITS: u8 = 3;

/// What happens in a phase, and is counted and timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A client connects: from when it was due until it is connected and has its subscriptions.
    Connect,
    /// A PINGREQ, until its PINGRESP.
    Ping,
    /// A message: from when it was due to be published until a subscriber has it.
    Delivery,
}

/// Latencies, µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// How many there were.
    pub count: u64,
    /// The mean.
    pub mean_us: f64,
    /// Half of them are shorter.
    pub p50_us: f64,
    /// 90 % are shorter.
    pub p90_us: f64,
    /// 99 % are shorter.
    pub p99_us: f64,
    /// 99.9 % are shorter.
    pub p999_us: f64,
    /// 99.99 % are shorter.
    pub p9999_us: f64,
    /// The longest.
    pub max_us: f64,
}

impl Percentiles {
    fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            count: histogram.len(),
            mean_us: histogram.mean() / 1e3,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            p9999_us: at(0.9999),
            max_us: histogram.max() as f64 / 1e3,
        }
    }
}

/// What a process spent in a phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spent {
    /// CPU time, seconds.
    pub cpu_s: f64,
    /// Resident memory when the phase began, bytes.
    pub resident_bytes_before: i64,
    /// Resident memory when it ended, bytes.
    pub resident_bytes_after: i64,
}

impl Spent {
    fn between(before: Usage, after: Usage) -> Self {
        Self {
            cpu_s: (after - before).cpu.as_secs_f64(),
            resident_bytes_before: before.resident_bytes,
            resident_bytes_after: after.resident_bytes,
        }
    }
}

/// A part of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Phase {
    /// What is done.
    pub name: String,
    /// What is timed.
    pub of: Kind,
    /// When it began, seconds after the run.
    pub from_s: f64,
    /// When it ended.
    pub to_s: f64,
    /// How many were due of what is timed.
    pub offered: u64,
    /// How many were done.
    pub done: u64,
    /// What the broker spent, if its process is known.
    pub broker: Option<Spent>,
    /// What this process spent.
    pub generator: Spent,
}

/// A moment of a run: what happened since the one before.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// Seconds after the run began.
    pub at_s: f64,
    /// What is timed.
    pub of: Kind,
    /// Clients that are connected.
    pub clients: u64,
    /// How many a second were due.
    pub offered_per_s: f64,
    /// How many a second were done.
    pub done_per_s: f64,
    /// Latencies, µs; `None` when nothing was done.
    pub p50_us: Option<f64>,
    /// 99 % are shorter.
    pub p99_us: Option<f64>,
    /// 99.9 % are shorter.
    pub p999_us: Option<f64>,
    /// The longest.
    pub max_us: Option<f64>,
    /// Resident memory of the broker, bytes, if its process is known.
    pub broker_resident_bytes: Option<i64>,
    /// CPU time that the broker spent in a second, seconds.
    pub broker_cores: Option<f64>,
    /// Resident memory of this process, bytes.
    pub generator_resident_bytes: i64,
    /// CPU time that this process spent in a second, seconds.
    pub generator_cores: f64,
}

/// Takes what happens, and makes samples of it.
pub struct Recorder {
    start: Instant,
    interval: Duration,
    broker: Option<u32>,
    /// Latencies of the whole run, ns, by kind.
    totals: [Histogram<u64>; 3],
    /// Those since the last sample.
    recent: Histogram<u64>,
    offered: u64,
    done: u64,
    sampled: Instant,
    used: Used,
    phases: Vec<Phase>,
    began: Used,
    is_running: bool,
    samples: Vec<Sample>,
}

/// Usage of both processes.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    broker: Option<Usage>,
    generator: Usage,
}

impl Used {
    fn now(broker: Option<u32>) -> Self {
        Self {
            // One that has ended tells nothing more.
            broker: broker.and_then(|pid| Usage::of(pid).ok()),
            generator: Usage::of(std::process::id()).unwrap_or_default(),
        }
    }
}

impl Recorder {
    /// Begins a run. `broker` is its process, if it is on this machine.
    ///
    /// # Panics
    /// Never: the histograms' range is a constant.
    pub fn new(broker: Option<u32>, interval: Duration) -> Self {
        let histogram = || {
            let histogram = Histogram::new_with_max(LATENCY_NS_MAX, DIGITS);
            histogram.expect("an hour, by three digits, is a range")
        };
        let start = Instant::now();
        Self {
            start,
            interval,
            broker,
            totals: std::array::from_fn(|_| histogram()),
            recent: histogram(),
            offered: 0,
            done: 0,
            sampled: start,
            used: Used::now(broker),
            phases: Vec::new(),
            began: Used::default(),
            is_running: false,
            samples: Vec::new(),
        }
    }

    /// Time since the run began, ns.
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Begins a phase, after the one before.
    pub fn begin(&mut self, name: &str, of: Kind, clients: u64) {
        self.end(clients);
        let at_s = self.start.elapsed().as_secs_f64();
        self.began = Used::now(self.broker);
        self.is_running = true;
        self.phases.push(Phase {
            name: name.to_owned(),
            of,
            from_s: at_s,
            to_s: at_s,
            offered: 0,
            done: 0,
            broker: None,
            generator: Spent::default(),
        });
    }

    /// Ends the phase.
    pub fn end(&mut self, clients: u64) {
        if !self.is_running {
            self.sampled = Instant::now();
            self.used = Used::now(self.broker);
            return;
        }
        self.is_running = false;
        let is_whole = self.sampled.elapsed() * 4 >= self.interval;
        if is_whole || self.done > 0 && self.has_no_sample() {
            self.sample(clients);
        } else {
            // CPU times are in steps of 10 ms: of a short rest they would say nothing.
            self.recent.reset();
            (self.offered, self.done) = (0, 0);
            (self.sampled, self.used) = (Instant::now(), Used::now(self.broker));
        }
        let (used, at_s) = (self.used, self.start.elapsed().as_secs_f64());
        let began = self.began;
        if let Some(phase) = self.phases.last_mut() {
            phase.to_s = at_s;
            phase.generator = Spent::between(began.generator, used.generator);
            let both = began.broker.zip(used.broker);
            phase.broker = both.map(|(before, after)| Spent::between(before, after));
        }
    }

    /// So many were due.
    pub fn offered(&mut self, of: Kind, count: u64) {
        if let Some(phase) = self.running(of) {
            phase.offered += count;
            self.offered += count;
        }
    }

    /// One was done, so long after it was due.
    pub fn done(&mut self, of: Kind, latency_ns: u64) {
        self.totals[of as usize].saturating_record(latency_ns);
        if let Some(phase) = self.running(of) {
            phase.done += 1;
            self.done += 1;
            self.recent.saturating_record(latency_ns);
        }
    }

    /// Takes a sample if it is time.
    pub fn tick(&mut self, clients: u64) {
        if self.is_running && self.sampled.elapsed() >= self.interval {
            self.sample(clients);
        }
    }

    /// The phases so far.
    pub fn phases(&self) -> &[Phase] {
        &self.phases
    }

    /// The samples so far.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// Latencies of the whole run; `None` if there are none.
    pub fn latency(&self, of: Kind) -> Option<Percentiles> {
        let histogram = &self.totals[of as usize];
        (!histogram.is_empty()).then(|| Percentiles::of(histogram))
    }

    /// The process of the broker.
    pub fn broker(&self) -> Option<u32> {
        self.broker
    }

    fn running(&mut self, of: Kind) -> Option<&mut Phase> {
        let is_running = self.is_running;
        let phase = self.phases.last_mut();
        phase.filter(|phase| is_running && phase.of == of)
    }

    /// Whether the last phase has none.
    fn has_no_sample(&self) -> bool {
        let last = self.samples.last().map_or(f64::MIN, |sample| sample.at_s);
        self.phases.last().is_some_and(|phase| phase.from_s > last)
    }

    fn sample(&mut self, clients: u64) {
        let Some(of) = self.phases.last().map(|phase| phase.of) else {
            return;
        };
        let now = Instant::now();
        let passed = now.duration_since(self.sampled).as_secs_f64().max(1e-6);
        let (before, used) = (self.used, Used::now(self.broker));
        let cores = |before: Usage, after: Usage| (after - before).cpu.as_secs_f64() / passed;
        let recent = (!self.recent.is_empty()).then(|| Percentiles::of(&self.recent));
        self.samples.push(Sample {
            at_s: now.duration_since(self.start).as_secs_f64(),
            of,
            clients,
            offered_per_s: self.offered as f64 / passed,
            done_per_s: self.done as f64 / passed,
            p50_us: recent.map(|recent| recent.p50_us),
            p99_us: recent.map(|recent| recent.p99_us),
            p999_us: recent.map(|recent| recent.p999_us),
            max_us: recent.map(|recent| recent.max_us),
            broker_resident_bytes: used.broker.map(|broker| broker.resident_bytes),
            broker_cores: before.broker.zip(used.broker).map(|(b, a)| cores(b, a)),
            generator_resident_bytes: used.generator.resident_bytes,
            generator_cores: cores(before.generator, used.generator),
        });
        self.recent.reset();
        (self.offered, self.done) = (0, 0);
        (self.sampled, self.used) = (now, used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;

    #[test]
    fn phases_count_only_what_they_are_about() {
        let mut recorder = Recorder::new(Some(std::process::id()), Duration::from_millis(10));
        recorder.begin("connect", Kind::Connect, 0);
        recorder.offered(Kind::Connect, 2);
        recorder.done(Kind::Connect, 1_000_000);
        recorder.done(Kind::Ping, 5);
        sleep(Duration::from_millis(15));
        recorder.tick(1);
        recorder.done(Kind::Connect, 3_000_000);
        recorder.begin("load", Kind::Delivery, 2);
        recorder.done(Kind::Connect, 9);
        recorder.done(Kind::Delivery, 2_000);
        recorder.end(2);
        let [connect, load] = recorder.phases() else {
            panic!("two phases: {:?}", recorder.phases());
        };
        assert_eq!((connect.offered, connect.done), (2, 2));
        assert_eq!((load.offered, load.done), (0, 1));
        assert!(connect.to_s <= load.from_s && connect.broker.is_some());
        let first = &recorder.samples()[0];
        assert_eq!((first.clients, first.of), (1, Kind::Connect));
        assert!(first.p50_us.is_some_and(|p50| (p50 - 1_000.0).abs() < 1.0));
        assert!(first.offered_per_s > 2.0 * first.done_per_s - 1e-6);
        let last = recorder.samples().last().expect("each phase has one");
        assert_eq!((last.clients, last.of), (2, Kind::Delivery));
        let all = recorder.latency(Kind::Connect).expect("there were some");
        assert_eq!(all.count, 3);
        assert!((all.max_us - 3_000.0).abs() < 5.0);
    }

    #[test]
    fn a_broker_that_has_ended_is_left_out() {
        let mut recorder = Recorder::new(Some(u32::MAX), Duration::from_secs(1));
        recorder.begin("load", Kind::Delivery, 0);
        recorder.done(Kind::Delivery, 1);
        recorder.end(0);
        assert_eq!(recorder.phases()[0].broker, None);
        assert_eq!(recorder.samples()[0].broker_cores, None);
    }
}
