//! Where Persist outputs go.
//!
//! The core emits a Persist for whatever must survive and lets no acknowledgement leave before
//! its completion, so that durability is an executor here and no change elsewhere. Sessions live
//! in memory in this version: [`MemoryStore`] counts the records and completes each at once.

use headgate_core::{Loaded, OpId, Record, SessionId, Txn};

/// Executes Persist outputs of one worker. Completions go back as the highest operation up to
/// which everything is safe.
pub trait Store: Send {
    /// Takes a record. `epoch` is the session's owner: a record of an older one is refused.
    fn persist(&mut self, op: OpId, session: SessionId, epoch: u32, sequence: u64, record: Record);

    /// The records of this input are a part of `txn`, which is written as a whole.
    fn join(&mut self, txn: Txn, weight: u32);

    /// Some part of `txn` will not come.
    fn unjoin(&mut self, txn: Txn);

    /// Reads a session's queue after a sequence: the entries, and whether there are more. `None` = it can't.
    fn load(&mut self, session: SessionId, after: u64) -> Option<(Vec<Loaded>, bool)>;

    /// Everything up to this operation is safe at the configured level.
    fn persisted_up_to(&mut self) -> Option<OpId>;

    /// Records taken so far.
    fn records(&self) -> u64;
}

/// Nothing is kept beyond the process: what is in the core's memory is as safe as it gets.
#[derive(Debug, Default)]
pub struct MemoryStore {
    last: Option<OpId>,
    records: u64,
}

impl Store for MemoryStore {
    fn persist(&mut self, op: OpId, _: SessionId, _: u32, _: u64, _: Record) {
        debug_assert!(
            self.last.is_none_or(|last| last < op),
            "operations count up"
        );
        self.last = Some(op);
        self.records += 1;
    }

    // Whatever is safe at once is safe together.
    fn join(&mut self, _: Txn, _: u32) {}

    fn unjoin(&mut self, _: Txn) {}

    // The core keeps every queue (`spills` is off), so that there is nothing to be asked for.
    fn load(&mut self, _: SessionId, _: u64) -> Option<(Vec<Loaded>, bool)> {
        None
    }

    fn persisted_up_to(&mut self) -> Option<OpId> {
        self.last.take()
    }

    fn records(&self) -> u64 {
        self.records
    }
}
