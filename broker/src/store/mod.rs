//! Where Persist outputs go.
//!
//! The core emits a Persist for whatever must survive and lets no acknowledgement leave before its completion, so that
//! durability is an executor here. [`WorkerStore`] passes the records on to the store's thread ([`thread`]), which writes
//! those of all workers in groups; [`MemoryStore`], with `store.enabled = false`, completes each at once and keeps nothing.
//!
//! ```text
//! workers ── lanes ──► gather ──► batches ──► engine (fjall) ──► disk
//!    ▲                                          │
//!    └── mail: Persisted, Loaded, Restore ◄─────┴── load, restore
//! ```

mod batches;
pub mod codec;
pub mod engine;
pub mod files;
pub mod fjall;
pub mod gather;
pub mod journal;
pub mod keys;
pub mod lane;
pub mod lines;
pub mod load;
pub mod metrics;
pub mod restore;
pub mod space;
pub mod thread;
pub mod writer;

use headgate_codec::Text;
use headgate_core::{Completion, OpId, Record, SessionId, Txn};
pub use lane::{LoadRequest, MAIL_PER_TURN, StoreMail, WorkerStore};

/// Executes Persist outputs of one worker.
pub trait Store: Send {
    /// Takes a record into the current unit.
    fn persist(&mut self, op: OpId, session: SessionId, epoch: u32, sequence: u64, record: Record);

    /// The current unit is a part of a transaction.
    fn join(&mut self, txn: Txn, weight: u32);

    /// The outputs of one input end here: what was recorded since the last end is committed together.
    fn end_unit(&mut self);

    /// A part of a transaction will not come.
    fn unjoin(&mut self, txn: Txn);

    /// Reads a part of a queue.
    fn load(&mut self, request: LoadRequest);

    /// Finds the session of a client.
    fn recover(&mut self, op: OpId, client_id: Text);

    /// What is over already, for a store that answers at once.
    fn done(&mut self) -> Option<Completion> {
        None
    }

    /// The next of what the store has to say.
    fn mail(&mut self) -> Option<StoreMail>;

    /// Whether it has something to say.
    fn has_mail(&self) -> bool;

    /// So much waits to be written that whoever causes more should wait.
    fn is_full(&self) -> bool;

    /// Records taken so far.
    fn records(&self) -> u64;
}

/// Nothing is kept beyond the process: what is in the core's memory is as safe as it gets.
#[derive(Debug, Default)]
pub struct MemoryStore {
    last: Option<OpId>,
    records: u64,
    loads: Vec<LoadRequest>,
    recovers: Vec<OpId>,
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

    fn join(&mut self, _: Txn, _: u32) {}

    fn end_unit(&mut self) {}

    fn unjoin(&mut self, _: Txn) {}

    /// The core leaves nothing to a store that doesn't keep queues.
    fn load(&mut self, request: LoadRequest) {
        self.loads.push(request);
    }

    fn recover(&mut self, op: OpId, _: Text) {
        self.recovers.push(op);
    }

    fn done(&mut self) -> Option<Completion> {
        if let Some(op) = self.recovers.pop() {
            return Some(Completion::Recovered { op, session: None });
        }
        if let Some(up_to) = self.last.take() {
            return Some(Completion::Persisted { up_to });
        }
        let request = self.loads.pop()?;
        Some(Completion::Loaded {
            op: request.op,
            handle: request.handle,
            messages: Vec::new(),
            more: false,
            failed: false,
        })
    }

    fn mail(&mut self) -> Option<StoreMail> {
        None
    }

    fn has_mail(&self) -> bool {
        false
    }

    fn is_full(&self) -> bool {
        false
    }

    fn records(&self) -> u64 {
        self.records
    }
}
