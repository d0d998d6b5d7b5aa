//! What a row says: the brokers' values, their ratios, and the bar.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Kind, Transport};
use crate::bench::Row;

/// Of a reason, so much is shown.
const REASON_CHARACTERS_MAX: usize = 160;

/// What a broker gave for a row, or why it gave nothing.
pub type Outcome = Result<f64, String>;

/// What all brokers gave for a row.
#[derive(Clone, Debug, Default)]
pub struct Figure {
    /// The values.
    pub outcomes: BTreeMap<Kind, Outcome>,
}

impl Figure {
    /// What a broker gave.
    pub fn value(&self, kind: Kind) -> Option<f64> {
        self.outcomes.get(&kind)?.as_ref().ok().copied()
    }

    /// The peer with the best value.
    pub fn best_peer(&self, direction: Direction) -> Option<(Kind, f64)> {
        let peers = self
            .outcomes
            .iter()
            .filter(|(kind, _)| **kind != Kind::Headgate);
        let values = peers.filter_map(|(kind, outcome)| Some((*kind, *outcome.as_ref().ok()?)));
        values.reduce(|best, next| {
            if direction.is_better(next.1, best.1) {
                next
            } else {
                best
            }
        })
    }
}

/// Which values are good.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// More is better.
    Up,
    /// Less is better.
    Down,
}

impl Direction {
    fn is_better(self, value: f64, than: f64) -> bool {
        match self {
            Self::Up => value > than,
            Self::Down => value < than,
        }
    }

    /// How many times as good; 1 = the same.
    fn ratio(self, value: f64, other: f64) -> f64 {
        match self {
            Self::Up => value / other,
            Self::Down => other / value,
        }
    }
}

/// What has to be met, and where it comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// The value.
    pub value: f64,
    /// Whether it has to be exceeded, and not only reached.
    pub exceed: bool,
    /// In words.
    pub origin: String,
}

/// A row of the table: what `cargo xtask bench` wants to know of every figure, and the peers' values.
#[derive(Clone, Debug, Serialize)]
pub struct PeersRow {
    #[serde(flatten)]
    pub(super) row: Row,
    /// Where the bar comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bar_origin: Option<String>,
    /// The peers' values.
    pub(super) peers: BTreeMap<&'static str, f64>,
    /// Why others have none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) without: BTreeMap<&'static str, String>,
    /// How many times as good as mosquitto; 1 = the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) times_mosquitto: Option<f64>,
    /// How many times as good as the best of the peers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) times_best_peer: Option<f64>,
}

impl PeersRow {
    /// Makes a row of what was measured. Where headgate couldn't do the work, its value is 0, and a bar is missed.
    pub fn new(
        name: &str,
        figure: &Figure,
        unit: &'static str,
        direction: Direction,
        bar: Option<Bar>,
    ) -> Self {
        let measured = figure.value(Kind::Headgate);
        let own = measured.unwrap_or(0.0);
        let mut row = match (&bar, direction) {
            (None, _) => Row::info(name, own.round(), unit),
            (Some(bar), Direction::Up) if bar.exceed => {
                Row::above(name, own.round(), unit, bar.value.round())
            }
            (Some(bar), Direction::Up) => Row::at_least(name, own.round(), unit, bar.value.round()),
            (Some(bar), Direction::Down) if bar.exceed => {
                Row::below(name, own.round(), unit, bar.value.round())
            }
            (Some(bar), Direction::Down) => {
                Row::at_most(name, own.round(), unit, bar.value.round())
            }
        };
        row.met &= measured.is_some();
        let mut peers = BTreeMap::new();
        let mut without = BTreeMap::new();
        for (kind, outcome) in &figure.outcomes {
            match outcome {
                Ok(_) if *kind == Kind::Headgate => {}
                Ok(value) => drop(peers.insert(kind.name(), value.round())),
                Err(reason) => drop(without.insert(kind.name(), in_a_line(reason))),
            }
        }
        let times = |other| two_digits(direction.ratio(own, other));
        Self {
            row,
            bar_origin: bar.map(|bar| bar.origin),
            peers,
            without,
            times_mosquitto: measured.and(figure.value(Kind::Mosquitto)).map(times),
            times_best_peer: measured
                .and(figure.best_peer(direction))
                .map(|(_, value)| times(value)),
        }
    }
}

/// What a broker logs may have many lines; the last one with words says most.
fn in_a_line(reason: &str) -> String {
    let mut lines = reason.lines().rev().map(str::trim);
    let line = lines.find(|line| line.contains(char::is_alphabetic));
    line.unwrap_or(reason)
        .chars()
        .take(REASON_CHARACTERS_MAX)
        .collect()
}

fn two_digits(ratio: f64) -> f64 {
    (ratio * 100.0).round() / 100.0
}

/// The best figure published for a QUIC broker, in what the row counts, and how many times as good headgate has to be.
/// mqtt5 (the broker of mqttv5-cli) and rmqtt were measured, on two cores of the same class.
const PUBLISHED_QUIC: [(&str, f64, f64); 11] = [
    ("p2p_50_to_50_qos0", 35_000.0, 2.7),
    ("p2p_50_to_50_qos1", 26_000.0, 2.7),
    ("fan_in_200_to_1_qos0", 35_000.0, 3.0),
    ("fan_in_200_to_1_qos1", 32_000.0, 3.0),
    ("fan_out_1_to_200_qos0", 72_000.0, 3.0),
    ("fan_out_1_to_200_qos1", 52_000.0, 3.0),
    ("saturated_10_to_10_qos0", 271_000.0, 3.0),
    ("saturated_10_to_10_qos1", 106_000.0, 3.0),
    ("connects_full", 5_000.0, 1.0),
    ("connects_resumed", 5_000.0, 1.0),
    ("idle", 53.9 * 1024.0, 3.0),
];

/// The bar of a row: `of_tcp` is what the same work gave over TCP.
pub fn bar(
    transport: Transport,
    work: &str,
    direction: Direction,
    figure: &Figure,
    of_tcp: Option<&Figure>,
) -> Option<Bar> {
    match transport {
        Transport::Tcp | Transport::Tls => figure.value(Kind::Mosquitto).map(|value| Bar {
            value,
            exceed: true,
            origin: "mosquitto in the same run".to_owned(),
        }),
        Transport::Quic => quic_bar(work, direction, of_tcp),
    }
}

/// Over QUIC both count: the best published figure, and mosquitto over TCP on the same work where QUIC doesn't add what TCP
/// hasn't: handshakes and keys.
fn quic_bar(work: &str, direction: Direction, of_tcp: Option<&Figure>) -> Option<Bar> {
    let published = PUBLISHED_QUIC.iter().find(|(name, _, _)| *name == work);
    let published = published.map(|(_, best, times)| Bar {
        value: match direction {
            Direction::Up => best * times,
            Direction::Down => best / times,
        },
        exceed: false,
        origin: match times {
            1.0 => "set for X25519".to_owned(),
            _ => format!("{times} times as good as the best published QUIC figure"),
        },
    });
    let mosquitto = of_tcp.and_then(|figure| figure.value(Kind::Mosquitto));
    let mosquitto = mosquitto.map(|value| Bar {
        value,
        exceed: false,
        origin: "mosquitto over TCP in the same run".to_owned(),
    });
    [published, mosquitto]
        .into_iter()
        .flatten()
        .reduce(|bar, next| {
            if direction.is_better(next.value, bar.value) {
                next
            } else {
                bar
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(values: &[(Kind, f64)]) -> Figure {
        Figure {
            outcomes: values
                .iter()
                .map(|(kind, value)| (*kind, Ok(*value)))
                .collect(),
        }
    }

    #[test]
    fn ratios_say_how_many_times_as_good() {
        let mut figure = figure(&[
            (Kind::Headgate, 300.0),
            (Kind::Mosquitto, 200.0),
            (Kind::Rumqttd, 400.0),
        ]);
        figure
            .outcomes
            .insert(Kind::Mqttd, Err("is slow".to_owned()));
        let bar = bar(Transport::Tcp, "x", Direction::Up, &figure, None);
        let row = PeersRow::new("x", &figure, "1/s", Direction::Up, bar);
        assert_eq!(
            (row.times_mosquitto, row.times_best_peer),
            (Some(1.5), Some(0.75))
        );
        assert_eq!(row.without["mqttd"], "is slow");
        assert!(row.row.met);
        // Bytes: half of them is twice as good.
        let row = PeersRow::new("x", &figure, "B", Direction::Down, None);
        assert_eq!(
            (row.times_mosquitto, row.times_best_peer),
            (Some(0.67), Some(0.67))
        );
    }

    #[test]
    fn a_row_is_an_object_as_all_benchmarks_print_them() {
        let figure = figure(&[(Kind::Headgate, 100.4), (Kind::Mosquitto, 100.0)]);
        let bar = bar(Transport::Tls, "x", Direction::Up, &figure, None);
        let row = PeersRow::new("x", &figure, "1/s", Direction::Up, bar);
        let row = serde_json::to_value(row).expect("plain data");
        assert_eq!(row["value"], 100.0);
        // The same isn't ahead.
        assert_eq!(row["met"], false);
        assert_eq!(row["peers"]["mosquitto"], 100.0);
    }

    #[test]
    fn over_quic_the_higher_bar_counts() {
        let of_tcp = |value| figure(&[(Kind::Mosquitto, value)]);
        let own = figure(&[(Kind::Headgate, 100_000.0)]);
        let bar = |tcp: Option<&Figure>| {
            bar(
                Transport::Quic,
                "p2p_50_to_50_qos0",
                Direction::Up,
                &own,
                tcp,
            )
        };
        let (low, high) = (of_tcp(90_000.0), of_tcp(130_000.0));
        assert_eq!(bar(None).map(|bar| bar.value.round()), Some(94_500.0));
        assert_eq!(bar(Some(&low)).map(|bar| bar.value.round()), Some(94_500.0));
        assert_eq!(bar(Some(&high)).map(|bar| bar.value), Some(130_000.0));
    }

    #[test]
    fn work_that_headgate_cannot_do_misses_its_bar() {
        let mut figure = figure(&[(Kind::Mosquitto, 600.0)]);
        figure
            .outcomes
            .insert(Kind::Headgate, Err("is slow".to_owned()));
        let bar = bar(Transport::Tcp, "x", Direction::Down, &figure, None);
        let row = PeersRow::new("x", &figure, "B", Direction::Down, bar);
        assert!(!row.row.met);
        assert_eq!((row.row.value, row.times_mosquitto), (0.0, None));
        assert_eq!(row.without["headgate"], "is slow");
    }

    #[test]
    fn less_memory_is_better() {
        let own = figure(&[(Kind::Headgate, 14_000.0)]);
        let bar = bar(Transport::Quic, "idle", Direction::Down, &own, None).expect("a bar");
        assert_eq!(bar.value.round(), 18_398.0);
        let row = PeersRow::new("idle", &own, "B", Direction::Down, Some(bar));
        assert!(row.row.met);
    }
}
