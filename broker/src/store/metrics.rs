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
        let number = |number: &Number| number.get() as f64;
        [
            (
                "headgate_store_records_total",
                "counter",
                "Records that were committed.",
                number(&self.records),
            ),
            (
                "headgate_store_commits_total",
                "counter",
                "Group commits.",
                number(&self.commits),
            ),
            (
                "headgate_store_commit_seconds_total",
                "counter",
                "Time that commits took.",
                number(&self.commit_us) / 1e6,
            ),
            (
                "headgate_store_pending_units",
                "gauge",
                "Units of records that wait for their commit.",
                number(&self.pending),
            ),
            (
                "headgate_store_bytes",
                "gauge",
                "What the store's files occupy.",
                number(&self.bytes),
            ),
            (
                "headgate_store_state",
                "gauge",
                "0 all well, 1 too little room, 2 doesn't work.",
                number(&self.state),
            ),
            (
                "headgate_store_failures_total",
                "counter",
                "Errors of the disk or the store's engine.",
                number(&self.failures),
            ),
            (
                "headgate_store_reopened_total",
                "counter",
                "Times that the store was opened again after an error.",
                number(&self.reopened),
            ),
            (
                "headgate_store_damaged_entries_total",
                "counter",
                "Entries that could not be read and were left out.",
                number(&self.damaged),
            ),
            (
                "headgate_store_repairs_total",
                "counter",
                "Repairs when the store was opened.",
                number(&self.repairs),
            ),
            (
                "headgate_store_loads_total",
                "counter",
                "Parts of queues that were read back.",
                number(&self.loads),
            ),
            (
                "headgate_store_sessions_restored_total",
                "counter",
                "Sessions that were read back.",
                number(&self.sessions_restored),
            ),
            (
                "headgate_store_retained_restored_total",
                "counter",
                "Retained messages that were read back.",
                number(&self.retained_restored),
            ),
            (
                "headgate_store_restoring",
                "gauge",
                "1 while sessions or retained messages are being read back.",
                number(&self.restoring),
            ),
            (
                "headgate_store_restore_seconds",
                "gauge",
                "How long that took after the start.",
                number(&self.restore_ms) / 1e3,
            ),
        ]
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
