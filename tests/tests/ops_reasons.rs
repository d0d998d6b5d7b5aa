//! broker/docs/reasons.md names every reason that something is counted by, in the section of its counter.

use headgate::limits::Limit;
use headgate::metrics::{DatagramDrop, Label, MessageDrop, QuotaRate};
use headgate_common::{AnswerReason, DropReason, PassReason, SocketReason};
use std::collections::BTreeSet;

/// The names in the first column of the tables below a heading.
fn rows(document: &str, heading: &str) -> BTreeSet<String> {
    let (_, section) = document
        .split_once(&format!("## {heading}\n"))
        .unwrap_or_else(|| panic!("there is no section {heading}"));
    let section = section.split("\n## ").next().unwrap_or_default();
    let name = |line: &str| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned());
    section.lines().filter_map(name).collect()
}

fn texts<L: Label>() -> Vec<&'static str> {
    L::ALL.iter().map(|label| label.text()).collect()
}

#[test]
fn every_reason_stands_in_the_table_of_its_counter() {
    let document = include_str!("../../broker/docs/reasons.md");
    let names = |all: Vec<&'static str>| all;
    for (heading, reasons) in [
        (
            "Packets that XDP dropped",
            names(DropReason::ALL.iter().map(|reason| reason.name()).collect()),
        ),
        (
            "Packets that XDP let through",
            names(PassReason::ALL.iter().map(|reason| reason.name()).collect()),
        ),
        (
            "Packets that XDP answered",
            names(
                AnswerReason::ALL
                    .iter()
                    .map(|reason| reason.name())
                    .collect(),
            ),
        ),
        (
            "Datagrams at the sockets",
            names(
                SocketReason::ALL
                    .iter()
                    .map(|reason| reason.name())
                    .collect(),
            ),
        ),
        ("What a limit refused", texts::<Limit>()),
        (
            "Messages that did not reach a subscriber",
            texts::<MessageDrop>(),
        ),
        ("Datagrams that user space dropped", texts::<DatagramDrop>()),
    ] {
        let rows = rows(document, heading);
        for reason in reasons {
            assert!(rows.contains(reason), "{reason} is missing below {heading}");
        }
    }
    for rate in texts::<QuotaRate>() {
        assert!(document.contains(&format!("rate=\"{rate}\"")), "{rate}");
    }
    let cells = document.lines().filter(|line| line.starts_with("| `"));
    for line in cells {
        assert_eq!(line.matches('|').count(), 5, "four columns: {line}");
    }
}
