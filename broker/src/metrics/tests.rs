use super::*;
use std::collections::{BTreeMap, BTreeSet};

/// Reads the text format 0.0.4: name → (type, samples by label text).
fn parse(text: &str) -> BTreeMap<String, (String, BTreeMap<String, f64>)> {
    let mut families: BTreeMap<String, (String, BTreeMap<String, f64>)> = BTreeMap::new();
    let mut helped = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("HELP has a text");
            assert!(help.len() > 5, "{name}");
            assert!(helped.insert(name.to_owned()), "{name} has one HELP");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("TYPE has a type");
            assert!(helped.contains(name), "HELP comes before TYPE of {name}");
            let former = families.insert(name.to_owned(), (kind.to_owned(), BTreeMap::new()));
            assert!(former.is_none(), "{name} is one family");
        } else {
            let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
            let (name, labels) = series.split_once('{').map_or((series, ""), |(name, rest)| {
                (
                    name,
                    rest.strip_suffix('}').expect("labels end with a brace"),
                )
            });
            let family = families
                .get_mut(name)
                .expect("TYPE comes before the samples");
            let former = family
                .1
                .insert(labels.to_owned(), value.parse().expect("a number"));
            assert!(former.is_none(), "{series} appears once");
        }
    }
    families
}

#[test]
fn what_was_counted_is_what_is_shown() {
    let metrics = Metrics::new();
    metrics.worker(3).messages_received[Qos::Qos1].add(7);
    metrics.worker(0).connections[Transport::Quic].add(2);
    metrics.worker(0).connections[Transport::Quic].dec();
    metrics.worker(0).refused[Limit::Connections].inc();
    let families = parse(&metrics.render());
    let value = |name: &str, labels: &str| families[name].1[labels];
    assert_eq!(
        value("headgate_messages_received_total", "worker=\"3\",qos=\"1\""),
        7.0
    );
    assert_eq!(
        value("headgate_messages_received_total", "worker=\"0\",qos=\"1\""),
        0.0
    );
    assert_eq!(
        value("headgate_connections", "worker=\"0\",transport=\"quic\""),
        1.0
    );
    assert_eq!(
        value(
            "headgate_refused_total",
            "worker=\"0\",limit=\"connections\""
        ),
        1.0
    );
    assert_eq!(metrics.sum(|m| m.messages_received.sum()), 7);
}

#[test]
fn names_follow_the_guide() {
    let metrics = Metrics::new();
    metrics.worker(0);
    metrics.register_kernel(|| {
        Some(KernelCounters {
            drops: vec![("a", 1)],
            passes: vec![("b", 2)],
            answers: vec![("version_negotiation", 1)],
            sockets: vec![("own_cid", 2)],
            redirected: 3,
        })
    });
    for (name, (kind, samples)) in parse(&metrics.render()) {
        assert!(name.starts_with("headgate_"), "{name}");
        assert!(
            name.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
            "{name}"
        );
        assert_eq!(
            kind == "counter",
            name.ends_with("_total"),
            "{name} is a {kind}"
        );
        assert!(!samples.is_empty(), "{name}");
    }
}

#[test]
fn kernel_counters_appear_when_there_is_a_kernel_part() {
    let metrics = Metrics::new();
    let without = parse(&metrics.render());
    assert!(!without.contains_key("headgate_kernel_drops_total"));
    assert_eq!(without["headgate_kernel_active"].1[""], 0.0);
    metrics.register_kernel(|| {
        Some(KernelCounters {
            drops: vec![("forged_cid", 5), ("fragment_budget", 0)],
            passes: vec![("steered", 9)],
            answers: vec![("version_negotiation", 1)],
            sockets: vec![("own_cid", 2)],
            redirected: 3,
        })
    });
    let families = parse(&metrics.render());
    assert_eq!(families["headgate_kernel_active"].1[""], 1.0);
    assert_eq!(
        families["headgate_kernel_drops_total"].1["reason=\"forged_cid\""],
        5.0
    );
    assert_eq!(
        families["headgate_kernel_drops_total"].1["reason=\"fragment_budget\""],
        0.0
    );
    assert_eq!(
        families["headgate_kernel_passes_total"].1["reason=\"steered\""],
        9.0
    );
}

#[test]
fn workers_write_to_cache_lines_of_their_own() {
    assert_eq!(align_of::<WorkerMetrics>() % 128, 0);
}

fn check_label<L: Label + PartialEq + fmt::Debug>() {
    let texts: BTreeSet<_> = L::ALL.iter().map(|label| label.text()).collect();
    assert_eq!(texts.len(), L::ALL.len(), "texts are unique");
    for (index, label) in L::ALL.iter().enumerate() {
        assert_eq!(label.index(), index, "{label:?}");
    }
}

#[test]
fn labels_are_consistent() {
    check_label::<Transport>();
    check_label::<Qos>();
    check_label::<MessageDrop>();
    check_label::<DatagramDrop>();
    check_label::<Limit>();
}
