//! The store's folder: who has it, which version it is, and what has to be said before it is opened.
//!
//! ```text
//! store/lock     locked by the process that uses the store
//! store/format   "headgate store 1": there is a store here, of this version
//! store/data/    the engine's files
//! ```

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    engine::{Batch, Engine, EngineError, Table},
    fjall::FjallEngine,
    journal::{self, Verdict},
    keys,
    thread::Opener,
};
use crate::state_file;

const FORMAT_FILE: &str = "format";
const LOCK_FILE: &str = "lock";
const SPARE_FILE: &str = "journal.new";
const DATA: &str = "data";
const FORMAT_BEGINS: &str = "headgate store ";
/// fjall's own marker: without it, it takes the folder for a new one.
const ENGINE_MARKER: &str = "version";
/// Where fjall writes first.
const ENGINE_TABLES: &str = "keyspaces";

/// Why a store can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder or a file in it can't be used.
    #[error("can't use the store {}: {source}", path.display())]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has it.
    #[error("the store {} is in use by another process: stop that broker first", .0.display())]
    InUse(PathBuf),
    /// There is none.
    #[error("there is no store in {}", .0.display())]
    Missing(PathBuf),
    /// A newer version.
    #[error(
        "the store {} has format {format}, and this headgate knows {}: a newer headgate wrote it. Use that one, or let it \
         write the store out with `headgate store export`",
        path.display(), keys::FORMAT
    )]
    Newer {
        /// The folder.
        path: PathBuf,
        /// What it says.
        format: String,
    },
    /// What is there isn't what was written.
    #[error("the store {} is damaged: {what}. {help}", path.display())]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// Where.
        what: String,
        /// What to do.
        help: &'static str,
    },
}

const RESTORE_HELP: &str =
    "Put a copy of it back, or move the folder away to start without what was stored";
const REPAIR_HELP: &str = "`headgate store check --repair` cuts it there and tells what is left; or put a copy of it back";

/// How a store is to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Make one, if there is none.
    OrNew,
    /// The same, of a broker that doesn't wait for the disk: a loss of power may have left holes in what wasn't synced, and
    /// what lies behind them is cut off. A hole in what was synced is damage.
    OrNewUnsynced,
    /// It has to be there.
    Existing,
    /// It has to be there; what can't be read at the end of its journals is cut off, whatever lies behind.
    Repaired,
}

/// A store that nobody else can open.
pub struct StoreFiles {
    path: PathBuf,
    /// Held for as long as the store is used.
    lock: File,
    /// The engine.
    pub engine: Box<dyn Engine>,
    /// What the journals were like.
    pub journals: Verdict,
}

impl StoreFiles {
    /// Locks and opens the store in `path`.
    ///
    /// # Errors
    /// See [`StoreError`]; nothing is changed then, but for the lock file.
    pub fn open(path: &Path, wanted: Wanted) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Io {
            path: path.to_owned(),
            source,
        };
        if matches!(wanted, Wanted::OrNew | Wanted::OrNewUnsynced) {
            state_file::make_folder(path).map_err(failed)?;
        } else if !path.join(FORMAT_FILE).exists() {
            return Err(StoreError::Missing(path.to_owned()));
        }
        let lock = lock(path)?;
        let data = path.join(DATA);
        let format = path.join(FORMAT_FILE);
        let is_new = !format.try_exists().map_err(failed)?;
        if is_new {
            if data.try_exists().map_err(failed)? {
                // Whoever made it did not come as far as to say so; nothing was acknowledged.
                fs::remove_dir_all(&data).map_err(failed)?;
            }
        } else {
            check_format(path, &format)?;
            for file in ["", ENGINE_MARKER, ENGINE_TABLES] {
                if !data.join(file).try_exists().map_err(failed)? {
                    return Err(damaged(
                        path,
                        format!("{} is missing", data.join(file).display()),
                        RESTORE_HELP,
                    ));
                }
            }
        }
        let journals = journal::look_over(&data, false).map_err(|error| refused(path, error))?;
        let is_refused = match wanted {
            Wanted::Repaired => false,
            Wanted::OrNewUnsynced => journals.is_synced,
            Wanted::OrNew | Wanted::Existing => journals.is_damaged() || journals.is_synced,
        };
        if is_refused {
            let what = format!(
                "a journal can't be read behind its commit {}, and at least {} commits lie behind that",
                journals.commits, journals.lost_commits
            );
            return Err(damaged(path, what, REPAIR_HELP));
        }
        if journals.torn_bytes > 0 {
            journal::look_over(&data, true).map_err(|error| refused(path, error))?;
        }
        let mut engine = open_engine(&data).map_err(|error| refused(path, error))?;
        // The engine syncs what is in the folders of its tables, and not their names; an older version had fewer tables.
        state_file::sync_folder(&data.join(ENGINE_TABLES)).map_err(failed)?;
        if is_new {
            engine.sync().map_err(|error| refused(path, error))?;
            write_format(path, &format).map_err(failed)?;
        }
        Ok(Self {
            path: path.to_owned(),
            lock,
            engine,
            journals,
        })
    }

    /// Takes note of another start: its number, which no earlier one had, and which is the time if that grows.
    ///
    /// # Errors
    /// The store can't be read or written.
    pub fn begin(&mut self) -> Result<u32, StoreError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_secs() as u32);
        let before = self.engine.reader().get(Table::Meta, keys::META_STARTS);
        let before = before.map_err(|error| refused(&self.path, error))?;
        let before = before.and_then(|value| Some(u32::from_be_bytes(*value.first_chunk()?)));
        let start = before.map_or(now, |before| now.max(before.wrapping_add(1)));
        let mut batch = Batch::default();
        batch.put(
            Table::Meta,
            keys::META_STARTS.to_vec(),
            start.to_be_bytes().to_vec(),
        );
        let written = self.engine.apply(&batch, true);
        written.map_err(|error| refused(&self.path, error))?;
        Ok(start)
    }

    /// The engine, the way to open it again, and the lock that has to be held meanwhile.
    pub fn into_parts(self) -> (Box<dyn Engine>, Opener, Arc<File>) {
        let lock = Arc::new(self.lock);
        let (data, held) = (self.path.join(DATA), Arc::clone(&lock));
        let spare = self.path.join(SPARE_FILE);
        let opener = move || {
            let _held = &held;
            // After a failed write the journal's end is torn as after a crash.
            journal::rewrite(&data, &spare)?;
            open_engine(&data)
        };
        (self.engine, Box::new(opener), lock)
    }
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let file = path.join(LOCK_FILE);
    let opened = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&file);
    let opened = opened.map_err(|source| StoreError::Io {
        path: file.clone(),
        source,
    })?;
    match opened.try_lock() {
        Ok(()) => Ok(opened),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(StoreError::Io { path: file, source }),
    }
}

fn check_format(path: &Path, file: &Path) -> Result<(), StoreError> {
    let text = fs::read_to_string(file).map_err(|source| StoreError::Io {
        path: file.to_owned(),
        source,
    })?;
    let number = text
        .strip_prefix(FORMAT_BEGINS)
        .and_then(|rest| rest.trim_end().parse().ok());
    match number {
        Some(keys::FORMAT) => Ok(()),
        Some(0) | None => Err(damaged(
            path,
            format!("{} says {text:?}", file.display()),
            RESTORE_HELP,
        )),
        Some(newer) => Err(StoreError::Newer {
            path: path.to_owned(),
            format: newer.to_string(),
        }),
    }
}

/// The store is there once this has happened.
fn write_format(path: &Path, file: &Path) -> io::Result<()> {
    let text = format!("{FORMAT_BEGINS}{}\n", keys::FORMAT);
    let half = path.join("format.new");
    let mut written = File::create(&half)?;
    written.write_all(text.as_bytes())?;
    written.sync_all()?;
    fs::rename(half, file)?;
    state_file::sync_folder(path)
}

/// fjall is trusted to report what is wrong; a panic of it is a report, too.
fn open_engine(data: &Path) -> Result<Box<dyn Engine>, EngineError> {
    let opened = catch_unwind(AssertUnwindSafe(|| FjallEngine::open(data)));
    let opened = opened.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(EngineError::Damaged(
            said.unwrap_or("it can't be opened").to_owned(),
        ))
    });
    opened.map(|engine| Box::new(engine) as Box<dyn Engine>)
}

fn damaged(path: &Path, what: String, help: &'static str) -> StoreError {
    StoreError::Damaged {
        path: path.to_owned(),
        what,
        help,
    }
}

/// What an engine's error means for a store.
pub fn refused(path: &Path, error: EngineError) -> StoreError {
    match error {
        EngineError::Io(source) if source.kind() == io::ErrorKind::NotFound => {
            damaged(path, format!("a file is missing ({source})"), RESTORE_HELP)
        }
        EngineError::Io(source) => StoreError::Io {
            path: path.to_owned(),
            source,
        },
        EngineError::Locked => StoreError::InUse(path.to_owned()),
        EngineError::Newer => StoreError::Newer {
            path: path.to_owned(),
            format: "of another engine".into(),
        },
        EngineError::Damaged(what) => damaged(path, what, RESTORE_HELP),
        EngineError::Stopped => damaged(path, EngineError::Stopped.to_string(), RESTORE_HELP),
    }
}
