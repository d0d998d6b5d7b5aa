//! From the workers' units to batches of the engine.

use headgate_core::{Record, Shared, Txn};
use std::{collections::HashMap, sync::Arc};

use super::{
    codec,
    engine::{Batch, Engine, EngineError, Reader, Table},
    keys,
    lane::{Item, Unit},
    writer::Records,
};

/// What was written.
pub struct Written {
    /// In their order.
    pub batches: Vec<Batch>,
    /// Records in them.
    pub records: u64,
}

/// Collects the changes of a commit. A record that has to look at the store (the end of a session) wants to see what
/// came before it, so that is written first; but a transaction is never cut by that.
pub struct Batches<'a> {
    records: &'a Records,
    shared: &'a Shared,
    batch: Batch,
    written: Written,
    /// Shows the store with all of `written`, and without `batch`.
    reader: Option<Arc<dyn Reader>>,
    open: HashMap<Txn, u32>,
    /// Each batch is synced before the next is written: a journal then has a hole only if it is damaged.
    sync: bool,
}

impl<'a> Batches<'a> {
    /// Nothing yet.
    pub fn new(records: &'a Records, shared: &'a Shared, sync: bool) -> Self {
        Self {
            records,
            shared,
            batch: Batch::default(),
            written: Written {
                batches: Vec::new(),
                records: 0,
            },
            reader: None,
            open: HashMap::new(),
            sync,
        }
    }

    /// Notes that all that was written before is synced.
    pub fn note_synced(&mut self) {
        let key = keys::META_SYNCED.to_vec();
        self.batch.put(Table::Meta, key, vec![codec::VALUE]);
    }

    /// Adds what a worker said.
    ///
    /// # Errors
    /// The engine's.
    pub fn add(&mut self, engine: &mut dyn Engine, item: &Item) -> Result<(), EngineError> {
        let Item::Unit(unit) = item else {
            return Ok(());
        };
        self.note(unit);
        let looks = |record: &Record| matches!(record, Record::SessionEnded | Record::WillGone);
        let looks = unit.entries.iter().any(|entry| looks(&entry.record));
        if looks && self.open.is_empty() && !self.batch.is_empty() {
            self.write(engine)?;
        }
        let reader = self.reader.get_or_insert_with(|| engine.reader());
        for entry in &unit.entries {
            self.records
                .add(entry, &self.shared.retained, &**reader, &mut self.batch)?;
        }
        self.written.records += unit.entries.len() as u64;
        Ok(())
    }

    /// Which transactions have begun and aren't whole.
    fn note(&mut self, unit: &Unit) {
        for (txn, weight) in &unit.joins {
            let sum = self.open.entry(*txn).or_default();
            *sum = sum.saturating_add(*weight);
            if *sum >= Txn::WHOLE {
                self.open.remove(txn);
            }
        }
    }

    fn write(&mut self, engine: &mut dyn Engine) -> Result<(), EngineError> {
        engine.apply(&self.batch, self.sync)?;
        self.written.batches.push(std::mem::take(&mut self.batch));
        self.reader = None;
        Ok(())
    }

    /// Writes the rest.
    ///
    /// # Errors
    /// The engine's.
    pub fn finish(mut self, engine: &mut dyn Engine) -> Result<Written, EngineError> {
        if !self.batch.is_empty() {
            self.write(engine)?;
        }
        Ok(self.written)
    }
}
