//! The server's store and the threads that serve it.

use super::ServerError;
use crate::{
    config::{Config, StoreFsync},
    mesh::Mesh,
    store::{
        codec::Calendar,
        files::{StoreError, StoreFiles, Wanted},
        journal::Verdict,
        lane::Lanes,
        metrics::StoreMetrics,
        restore::{RestoreParts, RestoreThread, RestoringDirectory},
        space::SpaceLimits,
        thread::{self, Fsync, StoreHandle, StoreParts},
    },
};
use headgate_core::Shared;
use std::{
    fs::File,
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// A store that is open, with its threads.
pub(super) struct Durable {
    /// This start's number.
    pub start_number: u32,
    /// The workers' ways to the store.
    pub lanes: Arc<Lanes>,
    /// The store's thread.
    pub handle: StoreHandle,
    /// The directory, which knows what is still to come from the store.
    pub directory: Arc<RestoringDirectory>,
    /// What it counts.
    pub metrics: Arc<StoreMetrics>,
    /// Why the server can't go on.
    pub failure: Arc<OnceLock<StoreError>>,
    threads: Mutex<Option<(RestoreThread, JoinHandle<()>)>>,
    /// No other process may use the store meanwhile.
    _lock: Arc<File>,
}

/// What was repaired.
fn report(path: &Path, journals: &Verdict, metrics: &StoreMetrics) {
    let (path, bytes) = (path.display(), journals.torn_bytes);
    if bytes == 0 {
        return;
    }
    metrics.repairs.inc();
    if journals.is_damaged() {
        let commits = journals.lost_commits;
        tracing::error!(
            %path, bytes, commits,
            "the store's journal has a hole, as after a loss of power without fsync = \"always\": what lay behind it is lost"
        );
    } else {
        tracing::warn!(
            %path, bytes,
            "the store ended in a write that was cut off, which nobody had been promised: it was left out"
        );
    }
}

impl Durable {
    /// Opens the store of the configuration, and begins to read what is in it.
    pub fn open(
        config: &Config,
        start: Instant,
        mesh: &Arc<Mesh>,
        shared: &Arc<Shared>,
    ) -> Result<Self, ServerError> {
        let path = config.store_path();
        let wanted = match config.store.fsync {
            StoreFsync::Always => Wanted::OrNew,
            StoreFsync::Interval | StoreFsync::Never => Wanted::OrNewUnsynced,
        };
        let mut files = StoreFiles::open(&path, wanted)?;
        let metrics = Arc::new(StoreMetrics::default());
        report(&path, &files.journals, &metrics);
        let start_number = files.begin()?;
        let (engine, opener, lock) = files.into_parts();
        let lanes = Lanes::new(mesh.workers());
        let directory =
            RestoringDirectory::new(Arc::clone(&lanes), Arc::clone(mesh), Arc::clone(shared));
        let calendar = Calendar::of(start);
        let parts = StoreParts {
            opener,
            lanes: Arc::clone(&lanes),
            mesh: Arc::clone(mesh),
            shared: Arc::clone(shared),
            calendar,
            fsync: match config.store.fsync {
                StoreFsync::Always => Fsync::Always,
                StoreFsync::Interval => {
                    let interval_ms = config.store.fsync_interval_ms;
                    Fsync::Interval(Duration::from_millis(interval_ms.into()))
                }
                StoreFsync::Never => Fsync::Never,
            },
            limits: SpaceLimits {
                path: path.clone(),
                bytes_max: config.store.bytes_max,
                reserve_bytes: config.store.reserve_bytes,
            },
            metrics: Arc::clone(&metrics),
        };
        let (handle, store) = thread::start(engine, parts).map_err(ServerError::StoreThread)?;
        let failure = Arc::default();
        let restore = RestoreThread::start(RestoreParts {
            path,
            failure: Arc::clone(&failure),
            directory: Arc::clone(&directory),
            store: handle.clone(),
            shared: Arc::clone(shared),
            calendar,
            start,
            metrics: Arc::clone(&metrics),
        });
        let restore = restore.map_err(ServerError::StoreThread)?;
        Ok(Self {
            start_number,
            lanes,
            handle,
            directory,
            metrics,
            failure,
            threads: Mutex::new(Some((restore, store))),
            _lock: lock,
        })
    }

    /// Commits what the workers have said, and ends the threads.
    pub fn stop(&self) {
        let threads = self
            .threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.handle.stop();
        if let Some((restore, store)) = threads {
            let _ended = store.join();
            drop(restore);
        }
    }
}
