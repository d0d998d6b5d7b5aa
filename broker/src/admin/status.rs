//! The answer to "status".

use super::AdminSource;
use crate::{
    limits::Limit,
    metrics::{Label, Metrics, PerLabel, WorkerMetrics, resident_bytes},
};
use serde_json::{Map, Value, json};

/// What the server says of itself, and beside it the process and its counters, summed over the
/// workers.
pub fn snapshot(source: &AdminSource) -> Value {
    let metrics = &source.metrics;
    let mut status = match (source.server)() {
        Value::Object(object) => object,
        other => Map::from_iter([("server".to_owned(), other)]),
    };
    status.insert("pid".to_owned(), std::process::id().into());
    status.insert("resident_bytes".to_owned(), resident_bytes().into());
    status.insert("open".to_owned(), per_label(metrics, |m| &m.connections));
    status.insert(
        "messages".to_owned(),
        json!({
            "received": metrics.sum(|m| m.messages_received.sum()),
            "sent": metrics.sum(|m| m.messages_sent.sum()),
            "dropped": per_label(metrics, |m| &m.messages_dropped),
        }),
    );
    status.insert(
        "refused".to_owned(),
        per_label::<Limit>(metrics, |m| &m.refused),
    );
    status.insert(
        "worker_restarts".to_owned(),
        metrics.sum(|m| m.restarts.get()).into(),
    );
    status.insert(
        "datagrams".to_owned(),
        json!({
            "received": metrics.sum(|m| m.datagrams_received.get()),
            "sent": metrics.sum(|m| m.datagrams_sent.get()),
            "at_wrong_worker": metrics.sum(|m| m.datagrams_wrong_worker.get()),
        }),
    );
    if let Some(kernel) = metrics.kernel() {
        let object = |counts: &[(&str, u64)]| {
            counts
                .iter()
                .map(|(reason, n)| ((*reason).to_owned(), (*n).into()))
                .collect::<Map<_, _>>()
        };
        status.insert("kernel_drops".to_owned(), object(&kernel.drops).into());
        status.insert("kernel_passes".to_owned(), object(&kernel.passes).into());
        status.insert("kernel_answers".to_owned(), object(&kernel.answers).into());
        status.insert("kernel_sockets".to_owned(), object(&kernel.sockets).into());
        status.insert("kernel_redirected".to_owned(), kernel.redirected.into());
    }
    status.into()
}

/// label → sum over the workers
fn per_label<L: Label>(metrics: &Metrics, read: impl Fn(&WorkerMetrics) -> &PerLabel<L>) -> Value {
    L::ALL
        .iter()
        .map(|label| {
            (
                label.text().to_owned(),
                metrics.sum(|m| read(m)[*label].get()).into(),
            )
        })
        .collect::<Map<_, _>>()
        .into()
}
