//! The table for people, in Markdown.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::Kind;
use super::figures::PeersRow;

/// All rows side by side; below them, where their bars come from, and why some brokers have no value.
pub fn markdown(rows: &[PeersRow], versions: &BTreeMap<Kind, String>) -> String {
    let mut text = String::from("| work |");
    for kind in Kind::ALL {
        let version = versions.get(&kind).map_or("", |version| version.as_str());
        text.push_str(format!(" {kind} {version}").trim_end());
        text.push_str(" |");
    }
    text.push_str(" × mosquitto | × best peer | bar | met |\n|---|");
    text.push_str(&"--:|".repeat(Kind::ALL.len() + 3));
    text.push_str("---|\n");
    let mut notes = Notes::default();
    for row in rows {
        line(row, &mut notes, &mut text);
    }
    text.push_str(&notes.list());
    text
}

fn line(row: &PeersRow, notes: &mut Notes, text: &mut String) {
    let mut cells = vec![format!("`{}`", row.row.name), number(row.row.value)];
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Headgate) {
        cells.push(match row.peers.get(kind.name()) {
            Some(value) => number(*value),
            None => match row.without.get(kind.name()) {
                Some(reason) => format!("– {}", notes.mark(format!("{kind}: {reason}"))),
                None => NOTHING.to_owned(),
            },
        });
    }
    let ratio =
        |ratio: Option<f64>| ratio.map_or(NOTHING.to_owned(), |ratio| format!("{ratio:.2}"));
    cells.push(ratio(row.times_mosquitto));
    cells.push(ratio(row.times_best_peer));
    cells.push(match (row.row.bar, &row.bar_origin) {
        (Some(bar), Some(origin)) => {
            format!("{} {}", number(bar), notes.mark(format!("bar: {origin}")))
        }
        _ => NOTHING.to_owned(),
    });
    cells.push(match (row.row.bar, row.row.met) {
        (None, _) => NOTHING.to_owned(),
        (Some(_), true) => "yes".to_owned(),
        (Some(_), false) => "**no**".to_owned(),
    });
    writeln!(text, "| {} |", cells.join(" | ")).expect("it is memory");
}

/// What stands in a cell without a value.
const NOTHING: &str = "–";

/// What stands below the table, each with a number.
#[derive(Default)]
struct Notes(Vec<String>);

impl Notes {
    fn mark(&mut self, note: String) -> String {
        let at = self.0.iter().position(|known| *known == note);
        let at = at.unwrap_or_else(|| {
            self.0.push(note);
            self.0.len() - 1
        });
        format!("({})", at + 1)
    }

    fn list(&self) -> String {
        let notes = self.0.iter().enumerate();
        let notes: Vec<String> = notes
            .map(|(at, note)| format!("({}) {note}", at + 1))
            .collect();
        if notes.is_empty() {
            return String::new();
        }
        format!("\n{}\n", notes.join(" · "))
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
    use crate::peers::figures::{Bar, Direction};

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
        let bar = Bar {
            value: 1_000.0,
            exceed: true,
            origin: "mosquitto".to_owned(),
        };
        let row = PeersRow::new("x", &figure, "1/s", Direction::Up, Some(bar));
        let versions = BTreeMap::from([(Kind::Mosquitto, "2.0.11".to_owned())]);
        let text = markdown(&[row.clone(), row], &versions);
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].contains("| headgate | mosquitto 2.0.11 | rumqttd |"),
            "{text}"
        );
        let row = "| `x` | 2,000 | 1,000 | – | – | – (1) | 2.00 | 2.00 | 1,000 (2) | yes |";
        assert_eq!(lines[2..4], [row, row]);
        assert_eq!(lines[4..], ["", "(1) mqttd: is slow · (2) bar: mosquitto"]);
    }
}
