//! The table for people, in Markdown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::Kind;
use super::figures::PeersRow;

/// All rows side by side; below them, why some have no value.
pub fn markdown(rows: &[PeersRow], versions: &BTreeMap<Kind, String>) -> String {
    let mut text = String::from("| work |");
    for kind in Kind::ALL {
        let version = versions.get(&kind).map_or("", |version| version.as_str());
        text.push_str(&format!(" {kind} {version}").trim_end().to_owned());
        text.push_str(" |");
    }
    text.push_str(" × mosquitto | × best peer | bar | met |\n|---|");
    text.push_str(&"--:|".repeat(Kind::ALL.len() + 3));
    text.push_str("---|\n");
    let mut reasons = Reasons::default();
    for row in rows {
        line(row, &mut reasons, &mut text);
    }
    text.push_str(&reasons.list());
    text
}

fn line(row: &PeersRow, reasons: &mut Reasons, text: &mut String) {
    let mut cells = vec![
        format!("{}, {}", row.row.name, row.row.unit),
        number(row.row.value),
    ];
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Headgate) {
        cells.push(match row.peers.get(kind.name()) {
            Some(value) => number(*value),
            None => match row.without.get(kind.name()) {
                Some(reason) => format!("– {}", reasons.mark(kind, reason)),
                None => "–".to_owned(),
            },
        });
    }
    let ratio = |ratio: Option<f64>| ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}"));
    cells.push(ratio(row.times_mosquitto));
    cells.push(ratio(row.times_best_peer));
    cells.push(row.row.bar.map_or("–".to_owned(), number));
    cells.push(match (row.row.bar, row.row.met) {
        (None, _) => "–".to_owned(),
        (Some(_), true) => "yes".to_owned(),
        (Some(_), false) => "**no**".to_owned(),
    });
    writeln!(text, "| {} |", cells.join(" | ")).expect("it is memory");
}

/// Reasons, each with a letter.
#[derive(Default)]
struct Reasons {
    known: Vec<(Kind, String)>,
    shown: BTreeSet<usize>,
}

impl Reasons {
    fn mark(&mut self, kind: Kind, reason: &str) -> String {
        let reason = (kind, reason.to_owned());
        let at = self.known.iter().position(|known| *known == reason);
        let at = at.unwrap_or_else(|| {
            self.known.push(reason);
            self.known.len() - 1
        });
        self.shown.insert(at);
        format!("({})", at + 1)
    }

    fn list(&self) -> String {
        let mut text = String::new();
        for at in &self.shown {
            let (kind, reason) = &self.known[*at];
            text.push_str(&format!("\n({}) {kind}: {reason}", at + 1));
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text
    }
}

/// Three digits, and commas between the thousands: more, a busy machine doesn't give.
fn number(value: f64) -> String {
    let digits = value.abs().max(1.0).log10().floor() as i32;
    let unit = 10_f64.powi((digits - 2).max(0));
    let whole = ((value / unit).round() * unit) as i64;
    let text = whole.abs().to_string();
    let mut parts: Vec<&str> = Vec::new();
    let mut rest = text.as_str();
    while rest.len() > 3 {
        let (head, tail) = rest.split_at(rest.len() - 3);
        parts.push(tail);
        rest = head;
    }
    parts.push(rest);
    parts.reverse();
    let sign = if whole < 0 { "-" } else { "" };
    format!("{sign}{}", parts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::Figure;
    use crate::peers::figures::Direction;

    #[test]
    fn numbers_have_three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (7.4, "7"),
            (812.0, "812"),
            (13_919.0, "13,900"),
            (1_036_412.0, "1,040,000"),
            (999_600.0, "1,000,000"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn a_row_is_a_line_and_reasons_stand_below() {
        let mut figure = Figure::default();
        let slow = || Err("is slow".to_owned());
        figure.outcomes.insert(Kind::Headgate, Ok(2_000.0));
        figure.outcomes.insert(Kind::Mosquitto, Ok(1_000.0));
        figure.outcomes.insert(Kind::Mqttd, slow());
        let row = PeersRow::new("x", &figure, "1/s", Direction::Up, None);
        let versions = BTreeMap::from([(Kind::Mosquitto, "2.0.11".to_owned())]);
        let text = markdown(&[row.clone(), row], &versions);
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].contains("| headgate | mosquitto 2.0.11 | rumqttd |"),
            "{text}"
        );
        let row = "| x, 1/s | 2,000 | 1,000 | – | – | – (1) | 2.00 | 2.00 | – | – |";
        assert_eq!(lines[2..4], [row, row]);
        assert_eq!(lines[4..], ["", "(1) mqttd: is slow"]);
    }
}
