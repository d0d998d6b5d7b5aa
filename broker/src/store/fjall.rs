//! The engine: fjall, a log-structured merge tree with a journal.

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};
use std::{
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::engine::{Batch, Each, Engine, EngineError, Reader, Table};

/// What is written before a table's newest part is moved from the journal to a file of its own, bytes.
const MEMTABLE_BYTES: u64 = 16 << 20;
/// Journals that are read again at a start, bytes; what fjall allows at least.
const JOURNAL_BYTES: u64 = 128 << 20;
/// Cache for reading, bytes. Only queues of sessions that come back are read.
const CACHE_BYTES: u64 = 16 << 20;
/// Parts of a table that may wait to be written to files. fjall waits without end for the fifth if its threads have
/// failed, so the waiting is done here.
const SEALED_MAX: usize = 3;
/// Files of a table's first level; fjall slows down and stops further up.
const FILES_MAX: usize = 18;

/// fjall in a folder.
pub struct FjallEngine {
    db: Database,
    tables: [Keyspace; Table::ALL.len()],
    reclaiming: Arc<AtomicBool>,
}

impl FjallEngine {
    /// Opens the folder, or makes it.
    ///
    /// # Errors
    /// It can't be read, is damaged, or somebody else uses it.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        let db = Database::builder(path)
            .max_journaling_size(JOURNAL_BYTES)
            .cache_size(CACHE_BYTES)
            .worker_threads(1)
            .open()?;
        let open = |table: Table| {
            let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
            db.keyspace(table.name(), options)
        };
        let [meta, clients, sessions, queues, retained, wills] = Table::ALL.map(open);
        let tables = [meta?, clients?, sessions?, queues?, retained?, wills?];
        Ok(Self {
            db,
            tables,
            reclaiming: Arc::default(),
        })
    }

    /// Waits until there is room for another batch, as long as fjall's threads work.
    fn wait(&self) -> Result<(), EngineError> {
        let is_behind = |table: &Keyspace| {
            table.sealed_memtable_count() > SEALED_MAX - 1 || table.l0_table_count() > FILES_MAX
        };
        while self.tables.iter().any(is_behind) {
            // Says that they have failed.
            self.db.persist(PersistMode::Buffer)?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Engine for FjallEngine {
    fn apply(&mut self, batch: &Batch, sync: bool) -> Result<(), EngineError> {
        self.wait()?;
        let mode = if sync {
            PersistMode::SyncData
        } else {
            PersistMode::Buffer
        };
        let mut changes = self.db.batch().durability(Some(mode));
        for (table, key, value) in &batch.changes {
            let table = &self.tables[*table as usize];
            match value {
                Some(value) => changes.insert(table, &key[..], &value[..]),
                None => changes.remove(table, &key[..]),
            }
        }
        Ok(changes.commit()?)
    }

    fn sync(&mut self) -> Result<(), EngineError> {
        Ok(self.db.persist(PersistMode::SyncData)?)
    }

    /// The journal's end may be in memory only, although it can be read: behind it nothing is safe. So everything moves
    /// to files that are synced now.
    fn settle(&mut self) -> Result<(), EngineError> {
        for table in &self.tables {
            table.rotate_memtable()?;
        }
        while self
            .tables
            .iter()
            .any(|table| table.sealed_memtable_count() > 0)
        {
            self.db.persist(PersistMode::Buffer)?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn reader(&self) -> Arc<dyn Reader> {
        Arc::new(FjallReader {
            snapshot: self.db.snapshot(),
            tables: self.tables.clone(),
        })
    }

    fn disk_bytes(&self) -> u64 {
        self.db.disk_space().unwrap_or(0)
    }

    fn reclaim(&mut self) {
        if self.reclaiming.swap(true, Ordering::AcqRel) {
            return;
        }
        let (tables, reclaiming) = (self.tables.clone(), Arc::clone(&self.reclaiming));
        let work = move || {
            for table in &tables {
                let done = table.rotate_memtable().and_then(|_| table.major_compact());
                if let Err(error) = done {
                    tracing::debug!(%error, "the store could not give back room");
                    break;
                }
            }
            reclaiming.store(false, Ordering::Release);
        };
        let thread = std::thread::Builder::new().name("headgate-reclaim".into());
        if let Err(error) = thread.spawn(work) {
            tracing::debug!(%error, "no thread to give back room of the store");
            self.reclaiming.store(false, Ordering::Release);
        }
    }
}

struct FjallReader {
    snapshot: Snapshot,
    tables: [Keyspace; Table::ALL.len()],
}

impl Reader for FjallReader {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let value = self.snapshot.get(&self.tables[table as usize], key)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        each: Each<'_>,
    ) -> Result<(), EngineError> {
        for entry in self.snapshot.range(&self.tables[table as usize], from..) {
            let (key, value) = entry.into_inner()?;
            if !key.starts_with(prefix) || each(&key, &value) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }
}

impl From<fjall::Error> for EngineError {
    fn from(error: fjall::Error) -> Self {
        match error {
            fjall::Error::Io(error) => Self::Io(error),
            fjall::Error::Storage(fjall::LsmError::Io(error)) => Self::Io(error),
            fjall::Error::Poisoned => Self::Stopped,
            fjall::Error::Locked => Self::Locked,
            fjall::Error::InvalidVersion(_) => Self::Newer,
            error => Self::Damaged(error.to_string()),
        }
    }
}
