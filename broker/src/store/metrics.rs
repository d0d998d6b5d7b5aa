//! What the store counts.

use crate::metrics::Number;
use headgate_core::StorageState;
use serde::Serialize;

/// Numbers of the store, for all workers together.
#[derive(Debug, Default)]
pub struct StoreMetrics {
    /// Records that were committed.
    pub records: Number,
    /// Commits.
    pub commits: Number,
    /// Time that commits took, microseconds.
    pub commit_us: Number,
    /// Units that wait for their commit.
    pub pending: Number,
    /// What the store's files occupy, bytes.
    pub bytes: Number,
    /// 0 all well, 1 too little room, 2 doesn't work.
    state: Number,
    /// Errors of the disk or of the engine.
    pub failures: Number,
    /// Times that the engine was opened again after one.
    pub reopened: Number,
    /// Entries that could not be read and were left out.
    pub damaged: Number,
    /// Repairs when the store was opened.
    pub repairs: Number,
    /// Parts of queues that were read back.
    pub loads: Number,
    /// Sessions that were read after the start.
    pub sessions_restored: Number,
    /// Retained messages that were read after the start.
    pub retained_restored: Number,
    /// 1 while sessions or retained messages are being read.
    pub restoring: Number,
    /// How long that took after the start, milliseconds.
    pub restore_ms: Number,
}

/// Name, kind and help of each number, in the order of [`StoreMetrics::families`].
const NAMES: [(&str, &str, &str); 15] = [
    (
        "headgate_store_records_total",
        "counter",
        "Records that were committed.",
    ),
    ("headgate_store_commits_total", "counter", "Group commits."),
    (
        "headgate_store_commit_seconds_total",
        "counter",
        "Time that commits took.",
    ),
    (
        "headgate_store_pending_units",
        "gauge",
        "Units of records that wait for their commit.",
    ),
    (
        "headgate_store_bytes",
        "gauge",
        "What the store's files occupy.",
    ),
    (
        "headgate_store_state",
        "gauge",
        "0 all well, 1 too little room, 2 doesn't work.",
    ),
    (
        "headgate_store_failures_total",
        "counter",
        "Errors of the disk or the store's engine.",
    ),
    (
        "headgate_store_reopened_total",
        "counter",
        "Times that the store was opened again after an error.",
    ),
    (
        "headgate_store_damaged_entries_total",
        "counter",
        "Entries that could not be read and were left out.",
    ),
    (
        "headgate_store_repairs_total",
        "counter",
        "Repairs when the store was opened.",
    ),
    (
        "headgate_store_loads_total",
        "counter",
        "Parts of queues that were read back.",
    ),
    (
        "headgate_store_sessions_restored_total",
        "counter",
        "Sessions that were read back.",
    ),
    (
        "headgate_store_retained_restored_total",
        "counter",
        "Retained messages that were read back.",
    ),
    (
        "headgate_store_restoring",
        "gauge",
        "1 while sessions or retained messages are being read back.",
    ),
    (
        "headgate_store_restore_seconds",
        "gauge",
        "How long that took after the start.",
    ),
];

impl StoreMetrics {
    /// What the store can do from now on.
    pub fn set_state(&self, state: StorageState) {
        self.state.store(match state {
            StorageState::Ok => 0,
            StorageState::Full => 1,
            StorageState::Failed => 2,
        });
    }

    /// Name, kind, help and value of each.
    pub fn families(&self) -> [(&'static str, &'static str, &'static str, f64); 15] {
        let values = [
            (&self.records, 1.0),
            (&self.commits, 1.0),
            (&self.commit_us, 1e6),
            (&self.pending, 1.0),
            (&self.bytes, 1.0),
            (&self.state, 1.0),
            (&self.failures, 1.0),
            (&self.reopened, 1.0),
            (&self.damaged, 1.0),
            (&self.repairs, 1.0),
            (&self.loads, 1.0),
            (&self.sessions_restored, 1.0),
            (&self.retained_restored, 1.0),
            (&self.restoring, 1.0),
            (&self.restore_ms, 1e3),
        ];
        let mut values = values.into_iter();
        NAMES.map(|(name, kind, help)| {
            let value = values.next().map_or(0.0, |(n, per)| n.get() as f64 / per);
            (name, kind, help, value)
        })
    }

    /// For `headgate status`.
    pub fn status(&self) -> StoreStatus {
        StoreStatus {
            state: match self.state.get() {
                0 => "ok",
                1 => "full",
                _ => "failed",
            },
            bytes: self.bytes.get(),
            restoring: self.restoring.get() == 1,
            sessions_restored: self.sessions_restored.get(),
            retained_restored: self.retained_restored.get(),
            damaged_entries: self.damaged.get(),
            repairs: self.repairs.get(),
        }
    }
}

/// What a running server says of its store.
#[derive(Clone, Debug, Serialize)]
pub struct StoreStatus {
    /// `ok`, `full` or `failed`.
    pub state: &'static str,
    /// What its files occupy.
    pub bytes: u64,
    /// Sessions or retained messages are still being read.
    pub restoring: bool,
    /// Sessions that were read after the start.
    pub sessions_restored: u64,
    /// Retained messages that were read after the start.
    pub retained_restored: u64,
    /// Entries that could not be read.
    pub damaged_entries: u64,
    /// Repairs when the store was opened.
    pub repairs: u64,
}
