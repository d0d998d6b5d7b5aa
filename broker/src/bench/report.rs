//! What a run has measured, for people and for programs.

use super::{
    options::{Load, Options},
    publishers::Publishers,
    record::{Kind, Percentiles, Phase, Sample},
    tally::Tally,
};
use headgate_codec::Version;
use serde::Serialize;
use std::collections::BTreeMap;

/// Of the JSON; another one when a member changes its meaning.
const FORMAT: &str = "headgate-bench-1";
/// Messages that leave so much later than they were due make the generator a part of what is measured, µs.
const LATENESS_US_MAX: f64 = 5_000.0;

/// CPU times are in steps of 10 ms; of less than this, nothing is derived, seconds.
const CPU_S_MIN: f64 = 0.05;
/// Memory comes in pages; it isn't divided among fewer clients.
const CLIENTS_MIN: u64 = 100;

/// A run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Of this JSON.
    pub format: &'static str,
    /// The program that measured.
    pub generator: String,
    /// What was asked for.
    pub setup: Setup,
    /// What went wrong: clients that did not come through or were lost, QoS 1 and 2 messages that were.
    pub failures: Vec<String>,
    /// What makes figures doubtful, or may have been meant otherwise.
    pub warnings: Vec<String>,
    /// The clients.
    pub clients: Clients,
    /// From when a client was due to connect until it had its subscriptions; retries from when each was due.
    pub connect: Option<Percentiles>,
    /// The messages, if there were any.
    pub messages: Option<Messages>,
    /// PINGREQ to PINGRESP.
    pub ping: Option<Percentiles>,
    /// What the broker spent, if its process is known.
    pub broker: Option<Broker>,
    /// The storms.
    pub storms: Vec<Storm>,
    /// The parts of the run.
    pub phases: Vec<Phase>,
    /// The run over time.
    pub series: Vec<Sample>,
}

/// What was asked for.
#[derive(Clone, Debug, Serialize)]
pub struct Setup {
    /// The server, as a URL.
    pub target: String,
    /// How TLS was used.
    pub tls: Option<String>,
    /// Local addresses.
    pub sources: Vec<String>,
    /// Protocol Version, as in CONNECT.
    pub mqtt_version: u8,
    /// Who sends to whom.
    pub pattern: String,
    /// Clients that only stay connected.
    pub clients: u32,
    /// Clients that get messages.
    pub subscribers: u32,
    /// Clients that publish.
    pub publishers: u32,
    /// Topics, where they are drawn.
    pub topics: u32,
    /// Topic Filters of a client, where there may be several.
    pub subscriptions: u32,
    /// How topics are drawn.
    pub topic_choice: String,
    /// Messages a second of all publishers, in an open loop.
    pub rate_per_s: Option<f64>,
    /// Messages on their way of one publisher, saturated.
    pub window: Option<u32>,
    /// QoS, or how it is mixed.
    pub qos: String,
    /// Payloads, bytes, or how they are drawn.
    pub size: String,
    /// Time of publishing, or of holding, seconds.
    pub duration_s: f64,
    /// Connects a second; `None` = as fast as it goes.
    pub ramp_per_s: Option<f64>,
    /// Clients that connect at the same time, at most.
    pub at_once: u32,
    /// Keep Alive, seconds.
    pub keep_alive_s: u16,
    /// Of what is left to chance.
    pub seed: u64,
}

/// The clients of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Clients {
    /// How many there were to be, counted again for each storm.
    pub wanted: u64,
    /// How many did not come through, each counted once for the ramp and once for each storm.
    pub not_connected: u64,
    /// How many lost their connection after they had come through.
    pub lost: u64,
    /// Why, by attempt.
    pub reasons: BTreeMap<String, u64>,
}

/// The messages of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Messages {
    /// Messages that were due.
    pub offered: u64,
    /// Messages that went out.
    pub published: u64,
    /// Deliveries that had to come of them.
    pub expected: u64,
    /// Deliveries that came.
    pub delivered: u64,
    /// Deliveries by QoS that had to come.
    pub expected_by_qos: [u64; 3],
    /// Deliveries by QoS that came.
    pub delivered_by_qos: [u64; 3],
    /// Whether each message came exactly as often as it had to: counts and fingerprints agree.
    pub exactly_once: bool,
    /// QoS 1 and 2 messages that the broker completed.
    pub completed: u64,
    /// QoS 1 and 2 messages that it refused.
    pub refused: u64,
    /// Messages of others that came.
    pub foreign: u64,
    /// Payloads that were published, bytes.
    pub published_bytes: u64,
    /// Payloads that came, bytes.
    pub delivered_bytes: u64,
    /// Deliveries a second while messages were published.
    pub delivered_per_s: f64,
    /// From when a message was due until a subscriber had it; saturated, from when it was given to the connection.
    pub latency: Option<Percentiles>,
    /// By how much 99 % of the messages left later than they were due, at most, µs: this program's own part, and that of
    /// windows and Receive Maximum.
    pub lateness_p99_us: f64,
}

/// What the broker's process spent.
#[derive(Clone, Debug, Serialize)]
pub struct Broker {
    /// The process.
    pub pid: u32,
    /// How much more of its memory was resident after the clients had connected and it had come to rest, for each, bytes;
    /// `None` with fewer than 100 clients, or when it had so much free before. What it had free makes this less.
    pub resident_bytes_per_client: Option<f64>,
    /// CPU time for one connect, µs; here and below `None` if it was less than 50 ms in all.
    pub cpu_us_per_connect: Option<f64>,
    /// CPU time for one ping, in the phases without messages, µs.
    pub cpu_us_per_ping: Option<f64>,
    /// Deliveries for one second of CPU time.
    pub deliveries_per_cpu_s: Option<f64>,
}

/// All clients connecting again.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Storm {
    /// Clients that were connected before.
    pub clients: u64,
    /// Clients that came back.
    pub back: u64,
    /// Until the last of them had.
    pub seconds: f64,
    /// Attempts that failed meanwhile.
    pub failed_attempts: u64,
}

impl Report {
    pub(super) fn of(
        options: &Options,
        tally: &Tally,
        (publishers, never_came): (&Publishers, u64),
        storms: Vec<Storm>,
    ) -> Self {
        let shape = &options.shape;
        let once =
            u64::from(shape.idle) + u64::from(shape.subscribers) + u64::from(shape.publishers);
        let recorder = &tally.recorder;
        let mut report = Self {
            format: FORMAT,
            generator: format!("headgate {}", env!("CARGO_PKG_VERSION")),
            setup: Setup::of(options),
            failures: Vec::new(),
            warnings: Vec::new(),
            clients: Clients {
                wanted: once + u64::from(options.storms) * u64::from(shape.idle),
                not_connected: never_came,
                lost: tally.lost,
                reasons: tally.reasons.clone(),
            },
            connect: recorder.latency(Kind::Connect),
            messages: (options.load != Load::None).then(|| Messages::of(tally, publishers)),
            ping: recorder.latency(Kind::Ping),
            broker: recorder
                .broker()
                .map(|pid| Broker::of(pid, recorder.phases())),
            storms,
            phases: recorder.phases().to_vec(),
            series: recorder.samples().to_vec(),
        };
        report.judge(publishers);
        report
    }

    /// Whether nothing went wrong.
    pub fn is_success(&self) -> bool {
        self.failures.is_empty()
    }

    fn judge(&mut self, publishers: &Publishers) {
        let Clients {
            wanted,
            not_connected,
            lost,
            reasons,
        } = &self.clients;
        let why = || {
            let reasons: Vec<_> = reasons
                .iter()
                .map(|(why, n)| format!("{why} ({n}×)"))
                .collect();
            reasons.join("; ")
        };
        if *not_connected > 0 {
            let text = format!(
                "{not_connected} of {wanted} clients did not come through: {}",
                why()
            );
            self.failures.push(text);
        }
        if *lost > 0 {
            self.failures
                .push(format!("{lost} clients lost their connection: {}", why()));
        }
        if let Some(messages) = self.messages.take() {
            self.judge_messages(&messages, publishers);
            self.messages = Some(messages);
        }
    }

    fn judge_messages(&mut self, messages: &Messages, publishers: &Publishers) {
        let missing = |qos: usize| {
            messages.expected_by_qos[qos].saturating_sub(messages.delivered_by_qos[qos])
        };
        for qos in [1, 2] {
            if missing(qos) > 0 {
                self.failures.push(format!(
                    "{} deliveries with QoS {qos} did not come",
                    missing(qos)
                ));
            }
        }
        if messages.delivered_by_qos[2] > messages.expected_by_qos[2] {
            self.failures
                .push("messages with QoS 2 came more than once".to_owned());
        }
        if messages.refused > 0 {
            self.failures
                .push(format!("the broker refused {} messages", messages.refused));
        }
        if missing(0) > 0 {
            let share = missing(0) as f64 * 100.0 / messages.expected_by_qos[0] as f64;
            self.warnings.push(format!(
                "{} deliveries with QoS 0 did not come ({share:.3} %)",
                missing(0)
            ));
        }
        if publishers.unsent() > 0 {
            self.warnings.push(format!(
                "{} messages that were due never left: the broker, or this program, does not keep up with --rate, and \
                 their latency is in no figure",
                publishers.unsent()
            ));
        }
        if publishers.given_up > 0 {
            self.warnings.push(format!(
                "{} deliveries on their way were given up after a standstill",
                publishers.given_up
            ));
        }
        if messages.lateness_p99_us > LATENESS_US_MAX {
            self.warnings.push(format!(
                "1 % of the messages left {:.1} ms late or more, which is in their latency: this program, the \
                 connection's window or the broker's Receive Maximum held them up",
                messages.lateness_p99_us / 1e3
            ));
        }
        if messages.foreign > 0 {
            self.warnings.push(format!(
                "{} messages came that are not of this run",
                messages.foreign
            ));
        }
    }
}

impl Setup {
    fn of(options: &Options) -> Self {
        let shape = &options.shape;
        Self {
            target: options.target.clone(),
            tls: options.tls.clone(),
            sources: options.sources.clone(),
            mqtt_version: match options.version {
                Version::V31 => 3,
                Version::V311 => 4,
                Version::V5 => 5,
            },
            pattern: shape.pattern.to_string(),
            clients: shape.idle,
            subscribers: shape.subscribers,
            publishers: shape.publishers,
            topics: shape.topics,
            subscriptions: shape.subscriptions,
            topic_choice: shape.choice.to_string(),
            rate_per_s: match options.load {
                Load::Rate(rate) => Some(rate),
                _ => None,
            },
            window: match options.load {
                Load::Window(window) => Some(window),
                _ => None,
            },
            qos: options.qos.to_string(),
            size: options.sizes.to_string(),
            duration_s: options.duration.as_secs_f64(),
            ramp_per_s: options.ramp,
            at_once: options.at_once,
            keep_alive_s: options.keep_alive_s,
            seed: options.seed,
        }
    }
}

impl Messages {
    fn of(tally: &Tally, publishers: &Publishers) -> Self {
        let (sent, came) = (&publishers.sent, &tally.came);
        // The first of them has the load, the second waits for the rest.
        let mut phases = tally.recorder.phases().iter();
        let load = phases.find(|phase| phase.of == Kind::Delivery);
        let (done, seconds) = load.map_or((0, 0.0), |p| (p.done, p.to_s - p.from_s));
        Self {
            offered: sent.offered,
            published: sent.messages,
            expected: sent.expected.iter().sum(),
            delivered: came.delivered.iter().sum(),
            expected_by_qos: sent.expected,
            delivered_by_qos: came.delivered,
            exactly_once: sent.expected == came.delivered && sent.fingerprints == came.fingerprints,
            completed: came.completed,
            refused: came.refused,
            foreign: came.foreign,
            published_bytes: sent.bytes,
            delivered_bytes: came.bytes,
            delivered_per_s: done as f64 / seconds.max(1e-6),
            latency: tally.recorder.latency(Kind::Delivery),
            lateness_p99_us: publishers.lateness_p99_us(),
        }
    }
}

impl Broker {
    fn of(pid: u32, phases: &[Phase]) -> Self {
        let ratio = |cpu_s: f64, count: u64| {
            (count > 0 && cpu_s >= CPU_S_MIN).then(|| cpu_s * 1e6 / count as f64)
        };
        let spent = |of: Kind| {
            let phases = phases.iter().filter(|phase| phase.of == of);
            phases.fold((0.0, 0), |(cpu_s, done), phase| {
                let spent = phase.broker.map_or(0.0, |spent| spent.cpu_s);
                (cpu_s + spent, done + phase.done)
            })
        };
        let (cpu_s, connects) = spent(Kind::Connect);
        let cpu_us_per_connect = ratio(cpu_s, connects);
        let (cpu_s, pings) = spent(Kind::Ping);
        let cpu_us_per_ping = ratio(cpu_s, pings);
        let (cpu_s, deliveries) = spent(Kind::Delivery);
        // Memory after the phase behind the first connects, or after them if there is none.
        let rested = phases.get(1).filter(|phase| phase.of == Kind::Ping);
        let resident = phases.first().and_then(|first| {
            let before = first.broker?.resident_bytes_before;
            let after = rested.unwrap_or(first).broker?.resident_bytes_after;
            let is_known = first.done >= CLIENTS_MIN && after > before;
            is_known.then(|| (after - before) as f64 / first.done as f64)
        });
        Self {
            pid,
            resident_bytes_per_client: resident,
            cpu_us_per_connect,
            cpu_us_per_ping,
            deliveries_per_cpu_s: (cpu_s >= CPU_S_MIN).then(|| deliveries as f64 / cpu_s),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        draw::Random,
        layout::{Layout, Pattern},
        options::tests::options,
        record::Recorder,
        session::Listener,
        tally::Begun,
    };
    use super::*;
    use std::time::Duration;

    /// A run in which of two clients one came through, and no message was delivered.
    fn report(qos: &str) -> Report {
        let mut options = options(Pattern::PeerToPeer, (0, 1, 1), Load::Rate(5.0));
        options.qos = qos.parse().expect("a QoS");
        let mut random = Random::new(1);
        let layout = Layout::new(options.shape, 9, &mut random);
        let mut recorder = Recorder::new(Some(std::process::id()), Duration::from_secs(1));
        recorder.begin("connect", Kind::Connect, 0);
        let mut tally = Tally::new(recorder, 9, (2, 1), false);
        for client in 0..2 {
            tally.begun(
                client,
                Begun {
                    due_ns: 0,
                    at_ns: 0,
                },
            );
        }
        tally.ready(0);
        tally.lost(1, "refused");
        tally.recorder.end(1);
        let mut publishers = Publishers::new(&options, &layout, (9, random));
        let qos = usize::from(qos != "0");
        (publishers.sent.offered, publishers.sent.messages) = (7, 5);
        publishers.sent.expected[qos] = 5;
        Report::of(&options, &tally, (&publishers, 1), Vec::new())
    }

    #[test]
    fn losses_fail_by_their_qos_and_say_why() {
        let lossy = report("0");
        assert_eq!(
            lossy.failures,
            ["1 of 2 clients did not come through: refused (1×)"]
        );
        assert_eq!(
            lossy.warnings[0],
            "5 deliveries with QoS 0 did not come (100.000 %)"
        );
        assert!(lossy.warnings[1].starts_with("2 messages that were due never left"));
        let failed = report("1");
        assert_eq!(failed.failures[1], "5 deliveries with QoS 1 did not come");
        assert!(!failed.is_success());
    }

    #[test]
    fn the_json_has_its_members() {
        let json = serde_json::to_value(report("1")).expect("plain data");
        assert_eq!(json["format"], FORMAT);
        assert_eq!(json["setup"]["rate_per_s"], 5.0);
        assert_eq!(json["connect"]["count"], 1);
        assert_eq!(json["messages"]["expected"], 5);
        assert_eq!(json["messages"]["exactly_once"], false);
        assert_eq!(json["phases"][0]["of"], "connect");
        assert_eq!(json["series"][0]["clients"], 1);
        assert!(json["broker"]["pid"].is_number());
    }
}
