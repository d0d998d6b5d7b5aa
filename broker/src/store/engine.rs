//! What the store needs of an embedded database: sorted tables, atomic batches, a sync that says when it failed.

use bytes::Bytes;
use std::{io, ops::ControlFlow, sync::Arc};

/// The tables; [`keys`](super::keys) says what is in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// The format's version, the count of starts.
    Meta,
    /// Client Identifier → session.
    Clients,
    /// What a session is, but for its queue.
    Sessions,
    /// Queued messages.
    Queues,
    /// Retained messages.
    Retained,
    /// Wills that have come due and wait to be published.
    Wills,
}

impl Table {
    /// All tables.
    pub const ALL: [Self; 6] = [
        Self::Meta,
        Self::Clients,
        Self::Sessions,
        Self::Queues,
        Self::Retained,
        Self::Wills,
    ];

    /// Its name on the disk.
    pub fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Clients => "clients",
            Self::Sessions => "sessions",
            Self::Queues => "queues",
            Self::Retained => "retained",
            Self::Wills => "wills",
        }
    }
}

/// Why an engine can't go on. After any of them it has to be opened anew.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Reading or writing failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What is there isn't what was written.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// Another process has it.
    #[error("another process is using the store")]
    Locked,
    /// The engine's own files are of a version that this program doesn't know.
    #[error(
        "the store's files have a format that this headgate doesn't know; a newer headgate wrote them: use that one"
    )]
    Newer,
    /// An earlier error has stopped the engine.
    #[error("the store has stopped after an earlier error")]
    Stopped,
}

/// One change: `None` deletes.
pub type Change = (Table, Vec<u8>, Option<Vec<u8>>);

/// Changes that are made together or not at all. Applying a batch twice is the same as once.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// In their order; a later one for the same key counts.
    pub changes: Vec<Change>,
    /// Sum of keys and values.
    pub bytes: usize,
}

impl Batch {
    /// Sets a value.
    pub fn put(&mut self, table: Table, key: Vec<u8>, value: Vec<u8>) {
        self.bytes += key.len() + value.len();
        self.changes.push((table, key, Some(value)));
    }

    /// Deletes a key, if it is there.
    pub fn delete(&mut self, table: Table, key: Vec<u8>) {
        self.bytes += key.len();
        self.changes.push((table, key, None));
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// Takes an entry; `Break` ends the reading.
pub type Each<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// The tables as they were at one moment.
pub trait Reader: Send + Sync {
    /// The value of a key.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// The entries from `from` on, in the order of their keys, to the first that doesn't begin with `prefix`.
    fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        each: Each<'_>,
    ) -> Result<(), EngineError>;
}

/// An embedded database. One thread writes.
pub trait Engine: Send {
    /// Makes the changes. Whoever reads sees all of them when this returns, and so does whoever opens the store after
    /// this process was killed. With `sync` they, and all before them, survive a loss of power, too.
    fn apply(&mut self, batch: &Batch, sync: bool) -> Result<(), EngineError>;

    /// All that was applied survives a loss of power when this returns.
    fn sync(&mut self) -> Result<(), EngineError>;

    /// Moves what was written before an error out of the files that the error may have left in doubt: what is synced
    /// from here on does not depend on them. To be called once after opening it anew.
    fn settle(&mut self) -> Result<(), EngineError>;

    /// The tables as they are now.
    fn reader(&self) -> Arc<dyn Reader>;

    /// What it occupies on the disk, bytes.
    fn disk_bytes(&self) -> u64;

    /// Begins to give back the room of what was deleted; it is done meanwhile.
    fn reclaim(&mut self);
}
