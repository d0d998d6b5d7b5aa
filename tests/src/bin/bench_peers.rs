//! Measures headgate beside other brokers, each doing the same work for the same clients: deliveries and connects per
//! second of the broker's CPU time (utime + stime), and resident bytes. The brokers of a row all run at once and take
//! turns, in windows; the median counts. Parts of names of rows as arguments limit the run to those.
//!
//! The table is written to `table.md` in the folder that the peers are in, too. `HEADGATE_BENCH_BRIEF` = short windows and small numbers, to see that everything works.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use headgate_codec::QoS;
use headgate_tests::bench;
use headgate_tests::peers::connects::{Churn, idle_bytes};
use headgate_tests::peers::deliveries::{Side, WORKLOADS};
use headgate_tests::peers::figures::{Bar, Direction, PeersRow, bar};
use headgate_tests::peers::table::markdown;
use headgate_tests::peers::wildcards::Forest;
use headgate_tests::peers::{Effort, Figure, Kind, Outcome, Peer, Transport, brokers, median};

const DELIVERIES: &str = "deliveries/CPU-s";
/// What was offered has to come, or the figure says how much of it did.
const SHARE_MIN: f64 = 0.95;
/// Of deliveries per CPU-second among few subscriptions, what is left among many.
const FLAT_MIN: f64 = 0.9;
const SUBSCRIPTION_BYTES_MAX: f64 = 90.0;

fn main() {
    let brief = std::env::var_os("HEADGATE_BENCH_BRIEF").is_some();
    let mut run = Run {
        wanted: std::env::args().skip(1).collect(),
        effort: if brief { Effort::BRIEF } else { Effort::FULL },
        versions: BTreeMap::new(),
        absent: BTreeMap::new(),
        reached: BTreeSet::new(),
        unreachable: BTreeMap::new(),
        of_tcp: BTreeMap::new(),
        rows: Vec::new(),
    };
    for kind in Kind::ALL {
        match kind.version() {
            Ok(version) => {
                eprintln!("{kind} {version}");
                run.versions.insert(kind, version);
            }
            Err(reason) => {
                eprintln!("{kind}: {reason}");
                run.absent.insert(kind, reason);
            }
        }
    }
    for transport in Transport::ALL {
        run.deliveries(transport);
        run.connects(transport);
        run.idle(transport);
    }
    run.wildcards();
    let table = markdown(&run.rows, &run.versions);
    eprintln!("\n{table}");
    let file = brokers::folder().join("table.md");
    if let Err(error) = fs::write(&file, table) {
        eprintln!("{}: {error}", file.display());
    }
    bench::print(&run.rows);
}

struct Run {
    wanted: Vec<String>,
    effort: Effort,
    /// What is installed.
    versions: BTreeMap<Kind, String>,
    absent: BTreeMap<Kind, String>,
    /// Who has served clients over a transport.
    reached: BTreeSet<(Kind, Transport)>,
    /// Who has served none when first asked, and why: it isn't tried again.
    unreachable: BTreeMap<(Kind, Transport), String>,
    /// Figures over TCP, by what was done.
    of_tcp: BTreeMap<String, Figure>,
    rows: Vec<PeersRow>,
}

/// What is measured of one broker, window by window.
type Windows = Box<dyn FnMut() -> Outcome>;

impl Run {
    fn is_wanted(&self, name: &str) -> bool {
        let mut wanted = self.wanted.iter();
        self.wanted.is_empty() || wanted.any(|part| name.contains(part.as_str()))
    }

    fn deliveries(&mut self, transport: Transport) {
        for workload in WORKLOADS {
            for (number, qos) in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce]
                .into_iter()
                .enumerate()
            {
                let work = format!("{}_qos{number}", workload.name);
                let effort = self.effort;
                self.row(transport, &work, DELIVERIES, true, |peer| {
                    let kind = peer.kind();
                    let mut side = Side::new(peer, transport, workload, qos)?;
                    Ok(Box::new(move || {
                        let sample = side.window(effort)?;
                        if sample.share < SHARE_MIN {
                            let percent = sample.share * 100.0;
                            eprintln!("  {kind} delivers {percent:.0} % of what was offered");
                        }
                        Ok(sample.per_cpu_s)
                    }))
                });
            }
        }
    }

    fn connects(&mut self, transport: Transport) {
        let works: &[(&str, bool)] = match transport {
            Transport::Tcp => &[("connects", false)],
            Transport::Tls | Transport::Quic => {
                &[("connects_full", false), ("connects_resumed", true)]
            }
        };
        for (work, resumes) in works {
            let effort = self.effort;
            self.row(transport, work, "connects/CPU-s", false, |peer| {
                let mut churn = Churn::new(peer, transport, *resumes)?;
                Ok(Box::new(move || churn.window(effort)))
            });
        }
    }

    /// Measures something of all brokers in turns, and adds its row. `compares`: QUIC does the same work as TCP.
    fn row(
        &mut self,
        transport: Transport,
        work: &str,
        unit: &'static str,
        compares: bool,
        begin: impl Fn(Peer) -> Result<Windows, String>,
    ) {
        let name = format!("{}_{work}_per_cpu_s", transport.name());
        if !self.is_wanted(&name) {
            return;
        }
        let figure = self.measure(&name, transport, begin);
        let of_tcp = self.of_tcp.get(work).filter(|_| compares);
        let bar = bar(transport, work, Direction::Up, &figure, of_tcp);
        self.rows
            .push(PeersRow::new(&name, &figure, unit, Direction::Up, bar));
        if transport == Transport::Tcp {
            self.of_tcp.insert(work.to_owned(), figure);
        }
    }

    fn start(&self, kind: Kind, transport: Transport) -> Result<Peer, String> {
        match self.unreachable.get(&(kind, transport)) {
            Some(reason) => Err(reason.clone()),
            None => Peer::start(kind, transport),
        }
    }

    fn measure(
        &mut self,
        name: &str,
        transport: Transport,
        begin: impl Fn(Peer) -> Result<Windows, String>,
    ) -> Figure {
        let mut figure = self.figure();
        let mut sides = Vec::new();
        for kind in self.versions.keys().copied().collect::<Vec<_>>() {
            match self.start(kind, transport).and_then(&begin) {
                Ok(windows) => {
                    self.reached.insert((kind, transport));
                    sides.push((kind, windows, Vec::new()));
                }
                Err(reason) => {
                    if !self.reached.contains(&(kind, transport)) {
                        self.unreachable.insert((kind, transport), reason.clone());
                    }
                    figure.outcomes.insert(kind, Err(reason));
                }
            }
        }
        // The first windows are for warming up.
        for window in 0..=self.effort.windows {
            sides.retain_mut(|(kind, windows, values)| match windows() {
                Ok(value) => {
                    if window > 0 {
                        values.push(value);
                    }
                    true
                }
                Err(reason) => {
                    figure.outcomes.insert(*kind, Err(reason));
                    false
                }
            });
        }
        for (kind, _, values) in sides {
            figure.outcomes.insert(kind, Ok(median(values)));
        }
        tell(name, &figure);
        figure
    }

    /// Nobody's values, but the reasons of those that are not installed.
    fn figure(&self) -> Figure {
        let absent = self.absent.iter();
        Figure {
            outcomes: absent
                .map(|(kind, reason)| (*kind, Err(reason.clone())))
                .collect(),
        }
    }

    fn idle(&mut self, transport: Transport) {
        let name = format!("{}_idle_session_bytes", transport.name());
        if !self.is_wanted(&name) {
            return;
        }
        let mut figure = self.figure();
        for kind in self.versions.keys() {
            let outcome = self
                .start(*kind, transport)
                .and_then(|mut peer| idle_bytes(&mut peer, transport, self.effort));
            figure.outcomes.insert(*kind, outcome);
        }
        tell(&name, &figure);
        let bar = bar(transport, "idle", Direction::Down, &figure, None);
        let row = PeersRow::new(&name, &figure, "B", Direction::Down, bar);
        self.rows.push(row);
    }

    fn wildcards(&mut self) {
        let (mut first, transport) = (None, Transport::Tcp);
        for subscriptions in self.effort.wildcards {
            let name = format!("tcp_wildcards_{subscriptions}_per_cpu_s");
            if !self.is_wanted(&name) {
                continue;
            }
            let (mut figure, mut bytes) = (self.figure(), self.figure());
            for kind in self.versions.keys() {
                let (value, each) = self.wildcards_of(*kind, transport, subscriptions);
                figure.outcomes.insert(*kind, value);
                bytes.outcomes.insert(*kind, each);
            }
            tell(&name, &figure);
            let bar = bar(transport, "wildcards", Direction::Up, &figure, None);
            self.rows.push(PeersRow::new(
                &name,
                &figure,
                DELIVERIES,
                Direction::Up,
                bar,
            ));
            let first = first.get_or_insert_with(|| figure.clone());
            if subscriptions == self.effort.wildcards[2] {
                self.wildcards_compared(first, &figure, &bytes);
            }
        }
    }

    /// One after the other: they would not fit into memory side by side.
    fn wildcards_of(
        &self,
        kind: Kind,
        transport: Transport,
        subscriptions: usize,
    ) -> (Outcome, Outcome) {
        let forest = self
            .start(kind, transport)
            .and_then(|peer| Forest::new(peer, transport, subscriptions));
        let mut forest = match forest {
            Ok(forest) => forest,
            Err(reason) => return (Err(reason.clone()), Err(reason)),
        };
        let windows = (0..=self.effort.windows).map(|_| forest.window(self.effort));
        // The first is for warming up.
        let values: Result<Vec<f64>, String> = windows.skip(1).collect();
        (values.map(median), Ok(forest.bytes_each))
    }

    /// Among many subscriptions: how much is left of the speed among few, and what they take.
    fn wildcards_compared(&mut self, few: &Figure, many: &Figure, bytes: &Figure) {
        let mut left = Figure::default();
        for (kind, outcome) in &many.outcomes {
            let percent = outcome.clone().and_then(|value| {
                let of = few.value(*kind).ok_or("nothing to compare with")?;
                Ok(100.0 * value / of)
            });
            left.outcomes.insert(*kind, percent);
        }
        let bar = |value, origin: &str| {
            Some(Bar {
                value,
                exceed: false,
                origin: origin.to_owned(),
            })
        };
        let (name, flat) = ("tcp_wildcards_speed_left_percent", FLAT_MIN * 100.0);
        tell(name, &left);
        self.rows.push(PeersRow::new(
            name,
            &left,
            "%",
            Direction::Up,
            bar(flat, "flat from few to many"),
        ));
        let name = "tcp_wildcards_subscription_bytes";
        tell(name, bytes);
        self.rows.push(PeersRow::new(
            name,
            bytes,
            "B",
            Direction::Down,
            bar(SUBSCRIPTION_BYTES_MAX, "set"),
        ));
    }
}

/// Progress, on standard error.
fn tell(name: &str, figure: &Figure) {
    eprintln!("{name}:");
    for (kind, outcome) in &figure.outcomes {
        match outcome {
            Ok(value) => eprintln!("  {:<12}{value:>12.0}", kind.name()),
            Err(reason) => {
                let reason = reason.lines().next().unwrap_or_default();
                eprintln!("  {:<12}{:>12}  {reason}", kind.name(), "-");
            }
        }
    }
}
