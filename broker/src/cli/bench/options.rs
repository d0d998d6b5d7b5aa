//! The flags of `headgate bench`.

use crate::{
    bench::{Choice, Load, Options, Pattern, QosMix, Shape, Sizes, Sources},
    cli::{
        client::Target,
        server_args::{ServerArgs, VersionArg},
    },
};
use clap::{ArgAction, Args};
use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    path::PathBuf,
    time::Duration,
};

/// Clients of `idle` and `storm`, if nothing is said.
const CLIENTS: u32 = 1_000;
/// Clients on the many's side, if nothing is said.
const MANY: u32 = 10;
/// Topics of `mixed`, if nothing is said.
const TOPICS: u32 = 100;
/// Messages a second, if nothing is said.
const RATE: f64 = 1_000.0;
/// The shortest time between two samples, if nothing is said.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// The longest time between two samples, if nothing is said.
const INTERVAL_MAX: Duration = Duration::from_secs(1);
/// Before a client of `storm` tries again, if nothing is said.
const STORM_RETRY: Duration = Duration::from_secs(1);

/// Put load on an MQTT broker, this one or any other, and measure what it makes of it
///
/// Many clients in one thread. Latency counts from when a message was due, not from when it could be sent, so that a
/// broker that stalls can't hide it. Figures of the broker's process are in the report if it runs on this machine.
#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    after_help = "\
PATTERN says who sends to whom:
  idle      clients that only stay connected; with --rate, publishers send to random ones of them
  p2p       1 → 1: as many subscribers as publishers, each pair with a topic of its own
  fan-in    n → 1: each subscriber gets the topics of its share of the publishers
  fan-out   1 → n: each subscriber gets what each publisher sends
  mixed     publishers and subscribers that draw their --topics
  storm     idle, and then --storms times all clients lose their connection at once and come back

Examples:
  headgate bench p2p -L mqtt://localhost --publishers 50 --rate 10000 --duration 30
  headgate bench p2p -L mqtt://localhost --publishers 10 --window 1000 --qos 1    as fast as it goes
  headgate bench fan-out -L quic://broker.example --cafile ca.pem --subscribers 200 --rate 100
  headgate bench mixed -L mqtts://broker.example --subscribers 500 --topics 2000 --topic-choice zipf:1.1 \\
      --size lognormal:200,1 --qos 0:70,1:25,2:5 --rate 5000
  headgate bench idle -L quic://127.0.0.1 --insecure --clients 1000000 --keepalive 1800 --rate 1000 \\
      --source 127.0.0.1 --source 127.0.0.2 --svg million.svg --json million.json
  headgate bench storm -L mqtts://localhost --cafile ca.pem --clients 5000 --storms 3

What the figures mean is in broker/docs/bench.md."
)]
pub struct BenchArgs {
    /// idle, p2p, fan-in, fan-out, mixed or storm
    #[arg(value_name = "PATTERN")]
    pattern: Pattern,
    #[command(flatten)]
    pub(super) server: ServerArgs,
    /// Protocol Version
    #[arg(short = 'V', long, value_enum, default_value_t = VersionArg::Mqttv5, value_name = "VERSION", help_heading = "Connection")]
    protocol_version: VersionArg,
    /// Keep Alive, seconds: each client pings in time; 0 = nobody pings
    #[arg(
        short,
        long,
        default_value_t = 60,
        value_name = "SECONDS",
        help_heading = "Connection"
    )]
    keepalive: u16,
    /// An address of this machine that clients come from, or a prefix of them (127.0.0.0/28); more than once = they take
    /// turns. A broker sees as many sources
    #[arg(long, action = ArgAction::Append, value_name = "ADDRESS", help_heading = "Connection")]
    source: Vec<Sources>,
    /// Resume TLS sessions by tickets where a client connects again; without it, all handshakes are full
    #[arg(long, help_heading = "Connection")]
    pub(super) resume: bool,
    /// Exchange keys by X25519MLKEM768 instead of X25519
    #[arg(long, help_heading = "Connection")]
    pub(super) post_quantum: bool,
    /// Clients that only stay connected; over QUIC each takes about 200 bytes here [default: 1000 with idle and storm]
    #[arg(long, value_name = "COUNT", help_heading = "Clients")]
    clients: Option<u32>,
    /// Clients that publish [default: 1 with fan-out, and with idle if there is a --rate; else 10]
    #[arg(long, value_name = "COUNT", help_heading = "Clients")]
    publishers: Option<u32>,
    /// Clients that get messages [default: 1 with fan-in, as many as publishers with p2p; else 10]
    #[arg(long, value_name = "COUNT", help_heading = "Clients")]
    subscribers: Option<u32>,
    /// Topic Filters of a client of idle and storm [default: 1], or of a subscriber of mixed [default: 10]
    #[arg(long, value_name = "COUNT", help_heading = "Clients")]
    subscriptions: Option<u32>,
    /// Connects a second; without it, as fast as the broker takes them
    #[arg(long, value_name = "PER_SECOND", help_heading = "Clients")]
    ramp: Option<f64>,
    /// Clients that connect at the same time, at most
    #[arg(
        long,
        default_value_t = 256,
        value_name = "COUNT",
        help_heading = "Clients"
    )]
    at_once: u32,
    /// How long a client may take to connect, seconds
    #[arg(long, default_value = "10", value_parser = seconds, value_name = "SECONDS", help_heading = "Clients")]
    connect_timeout: Duration,
    /// A client that doesn't come through tries again after up to so many seconds, then up to twice as many, up to 60
    /// [default: 1 with storm; else it doesn't]
    #[arg(long, value_parser = seconds, value_name = "SECONDS", help_heading = "Clients")]
    retry: Option<Duration>,
    /// How often all lose their connection, with storm [default: 1]
    #[arg(long, value_name = "COUNT", help_heading = "Clients")]
    storms: Option<u32>,
    /// Messages a second of all publishers together, evenly, whether the broker keeps up or not [default: 1000 where
    /// messages are what it is about]
    #[arg(
        long,
        value_name = "PER_SECOND",
        conflicts_with = "window",
        help_heading = "Messages"
    )]
    rate: Option<f64>,
    /// Saturate: each publisher keeps so many messages on their way, and sends the next when one has come
    #[arg(long, value_name = "MESSAGES", help_heading = "Messages")]
    window: Option<u32>,
    /// QoS, of messages and subscriptions; or mixed by weights: 0:70,1:25,2:5
    #[arg(
        short,
        long,
        default_value = "0",
        value_name = "QOS",
        help_heading = "Messages"
    )]
    qos: QosMix,
    /// Payloads, bytes, 16 at least: 128, 64..1024 (uniform), lognormal:MEDIAN,SIGMA[,MAX], or SIZE:WEIGHT,SIZE:WEIGHT,…
    #[arg(
        short,
        long,
        default_value = "128",
        value_name = "SIZE",
        help_heading = "Messages"
    )]
    size: Sizes,
    /// Topics of mixed [default: 100]
    #[arg(long, value_name = "COUNT", help_heading = "Messages")]
    topics: Option<u32>,
    /// How topics of mixed are drawn, or the clients that messages of idle go to: uniform, or zipf:EXPONENT [default:
    /// uniform]
    #[arg(long, value_name = "CHOICE", help_heading = "Messages")]
    topic_choice: Option<Choice>,
    /// How long messages are published, or clients just stay, seconds
    #[arg(short, long, default_value = "10", value_parser = seconds, value_name = "SECONDS", help_heading = "Run")]
    duration: Duration,
    /// Quiet time after connecting, before the broker's memory is read, seconds
    #[arg(long, default_value = "1", value_parser = seconds, value_name = "SECONDS", help_heading = "Run")]
    settle: Duration,
    /// How long what is missing at the end is waited for while nothing comes, seconds
    #[arg(long, default_value = "5", value_parser = seconds, value_name = "SECONDS", help_heading = "Run")]
    drain: Duration,
    /// What is left to chance is the same with the same number [default: another one each time; it is in the report]
    #[arg(long, value_name = "NUMBER", help_heading = "Run")]
    seed: Option<u64>,
    /// The broker's process; found by itself if it listens on this machine; 0 = don't look
    #[arg(long, value_name = "PID", help_heading = "Report")]
    pid: Option<u32>,
    /// Write the report, as JSON; - = to standard output
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    pub(super) json: Option<PathBuf>,
    /// Draw latency, throughput and memory over time, as SVG
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    pub(super) svg: Option<PathBuf>,
    /// Time between two samples of the report, seconds; a sample takes about 200 bytes [default: a fiftieth of
    /// --duration, 0.1 at least and 1 at most]
    #[arg(
        long,
        value_parser = seconds,
        value_name = "SECONDS",
        help_heading = "Report"
    )]
    interval: Option<Duration>,
    /// Don't show how far it is
    #[arg(long, help_heading = "Report")]
    quiet: bool,
    /// Print this help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

impl BenchArgs {
    /// The server.
    pub(super) fn target(&self) -> Target {
        self.server.target()
    }

    /// Local addresses.
    pub(super) fn sources(&self) -> Vec<IpAddr> {
        let all = self.source.iter().flat_map(|Sources(addresses)| addresses);
        all.copied().collect()
    }

    /// Whether progress is not shown.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// All that the run is told, the broker's process if it was said.
    pub(super) fn options(&self) -> Result<Options, String> {
        if self.server.topic().is_some() {
            return Err("bench has topics of its own; the URL ends with the port".to_owned());
        }
        let target = self.target();
        let key_exchange = match self.post_quantum {
            true => "X25519MLKEM768",
            false => "X25519",
        };
        let handshakes = if self.resume { "resumed" } else { "full" };
        let is_encrypted = target.scheme.is_encrypted();
        if (self.resume || self.post_quantum) && !is_encrypted {
            let text = "--resume and --post-quantum go with mqtts://, wss:// and quic://";
            return Err(text.to_owned());
        }
        let user_name = self.server.user_name().map(str::to_owned);
        let load = self.load();
        Ok(Options {
            target: target.to_string(),
            tls: is_encrypted.then(|| format!("{key_exchange}, {handshakes} handshakes")),
            sources: self.sources().iter().map(ToString::to_string).collect(),
            shape: self.shape(load)?,
            load,
            sizes: self.size.clone(),
            qos: self.qos.clone(),
            ramp: self.ramp,
            at_once: self.at_once,
            connect_timeout: self.connect_timeout,
            retry: self
                .retry
                .or((self.pattern == Pattern::Storm).then_some(STORM_RETRY)),
            version: self.protocol_version.version(),
            user_name,
            password: self.server.password().map(str::to_owned),
            keep_alive_s: self.keepalive,
            settle: self.settle,
            duration: self.duration,
            drain: self.drain,
            storms: match self.pattern {
                Pattern::Storm => self.storms.unwrap_or(1),
                _ => self.storms.unwrap_or(0),
            },
            interval: self
                .interval
                .unwrap_or_else(|| (self.duration / 50).clamp(INTERVAL_MIN, INTERVAL_MAX)),
            broker: self.pid,
            seed: self.seed.unwrap_or_else(|| {
                // Short enough to be typed again.
                RandomState::new().hash_one(std::process::id()) & 0xffff_ffff
            }),
        })
    }

    fn load(&self) -> Load {
        match (self.rate, self.window) {
            (Some(rate), _) => Load::Rate(rate),
            (None, Some(window)) => Load::Window(window),
            (None, None) if self.pattern.is_idle() => Load::None,
            (None, None) => Load::Rate(RATE),
        }
    }

    fn shape(&self, load: Load) -> Result<Shape, String> {
        let pattern = self.pattern;
        let is_mixed = pattern == Pattern::Mixed;
        if self.topics.is_some() && !is_mixed {
            return Err(format!(
                "--topics goes with mixed; {pattern} has topics of its own"
            ));
        }
        let draws = is_mixed || pattern.is_idle();
        if self.subscriptions.is_some() && !draws {
            return Err(format!(
                "--subscriptions goes with idle, storm and mixed, not with {pattern}"
            ));
        }
        if self.topic_choice.is_some() && !draws {
            return Err(format!(
                "--topic-choice goes with idle, storm and mixed, not with {pattern}"
            ));
        }
        let has_load = u32::from(load != Load::None);
        let (subscribers, publishers) = match pattern {
            Pattern::Idle | Pattern::Storm => (0, has_load),
            Pattern::PeerToPeer => {
                let pairs = self.publishers.or(self.subscribers).unwrap_or(MANY);
                (pairs, self.subscribers.unwrap_or(pairs))
            }
            Pattern::FanIn => (1, MANY),
            Pattern::FanOut => (MANY, 1),
            Pattern::Mixed => (MANY, MANY),
        };
        let topics = self.topics.unwrap_or(if is_mixed { TOPICS } else { 0 });
        Ok(Shape {
            pattern,
            idle: self.clients.unwrap_or(match pattern.is_idle() {
                true => CLIENTS,
                false => 0,
            }),
            subscribers: self.subscribers.unwrap_or(subscribers),
            publishers: self.publishers.unwrap_or(publishers),
            topics,
            subscriptions: self.subscriptions.unwrap_or(match is_mixed {
                true => MANY.min(topics),
                false => 1,
            }),
            choice: self.topic_choice.unwrap_or(Choice::Uniform),
        })
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "seconds are expected")?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn options(line: &str) -> Result<Options, String> {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        let options = line.args.options()?;
        options.check().map_err(|error| error.to_string())?;
        Ok(options)
    }

    #[test]
    fn each_pattern_works_without_further_flags() {
        for (pattern, (idle, subscribers, publishers)) in [
            ("idle", (1_000, 0, 0)),
            ("storm", (1_000, 0, 0)),
            ("p2p", (0, 10, 10)),
            ("fan-in", (0, 1, 10)),
            ("fan-out", (0, 10, 1)),
            ("mixed", (0, 10, 10)),
        ] {
            let shape = options(pattern).map(|options| options.shape);
            let shape = shape.unwrap_or_else(|error| panic!("{pattern}: {error}"));
            let counts = (shape.idle, shape.subscribers, shape.publishers);
            assert_eq!(counts, (idle, subscribers, publishers), "{pattern}");
        }
        for line in ["p2p --publishers 7", "p2p --subscribers 7"] {
            let shape = options(line).expect("it works").shape;
            assert_eq!((shape.publishers, shape.subscribers), (7, 7));
        }
        let idle = options("idle --rate 5 --clients 3").expect("it works");
        assert_eq!((idle.shape.publishers, idle.load), (1, Load::Rate(5.0)));
    }

    #[test]
    fn what_a_pattern_cant_do_is_refused() {
        for (line, word) in [
            ("p2p --topics 5", "--topics"),
            ("fan-in --subscriptions 2", "--subscriptions"),
            ("fan-out --topic-choice zipf:1", "--topic-choice"),
            ("p2p --storms 1", "--storms"),
            ("p2p --rate 1 --window 1", "cannot be used with"),
            ("idle -L mqtt://h/topic", "topics of its own"),
            ("idle --resume", "--resume"),
            ("sideways", "none of idle"),
            ("p2p --size 3", "16"),
        ] {
            let error = options(line).expect_err("it is refused");
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
