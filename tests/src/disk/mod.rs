//! A disk that forgets: a filesystem (FUSE) of a test's own, in memory, that can lose its power, its space and its
//! health. What was not made safe with fsync is lost with the power, so a program that says "stored" too early shows.
//!
//! A new file is there after a power loss only when its folder was synced, too; so are a rename and a deletion. That
//! is all that POSIX promises, and less than what most filesystems do. Not offered: symbolic links, shared memory
//! maps, and sync(2), of which FUSE doesn't tell a filesystem.

mod content;
mod faults;
mod serve;
mod state;
mod unsynced;

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::{Arc, Mutex};

use fuser::{BackgroundSession, Config, MountOption};
use tempfile::TempDir;

pub use content::{BLOCK_BYTES, SECTOR_BYTES};
pub use faults::{Fault, On};
pub use state::Activity;
pub use unsynced::{Fate, Lost};

use crate::mounts;
use serve::{Server, lock};
use state::State;

/// A mounted disk. Only the thread that mounted it, and programs and threads that it starts from then on, see it; when they
/// have ended it is gone, however they ended.
#[derive(Debug)]
pub struct Disk {
    state: Arc<Mutex<State>>,
    session: Option<BackgroundSession>,
    folder: TempDir,
}

impl Disk {
    /// Whether such a disk can be had here.
    ///
    /// # Errors
    /// The reason, for [`skip!`](crate::skip!).
    pub fn available() -> Result<(), String> {
        mounts::available()?;
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        device.map_err(|error| format!("needs /dev/fuse: {error}"))?;
        Ok(())
    }

    /// Mounts an empty disk of `bytes_max`.
    ///
    /// # Panics
    /// When that fails though [`Disk::available`] said it would not.
    pub fn mount(bytes_max: u64) -> Self {
        mounts::enter();
        let folder = tempfile::Builder::new()
            .prefix("headgate-disk-")
            .tempdir()
            .expect("a folder for the disk");
        let state = Arc::new(Mutex::new(State::new(bytes_max)));
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("headgate-disk".to_owned()),
            MountOption::NoExec,
        ];
        let server = Server(Arc::clone(&state));
        let session =
            fuser::spawn_mount(server, folder.path(), &config).expect("mounting with FUSE");
        Self {
            state,
            session: Some(session),
            folder,
        }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Takes the power away and gives it back. The programs that had files open must have ended.
    pub fn lose_power(&self, fate: Fate) -> Lost {
        lock(&self.state).lose_power(fate)
    }

    /// Fails operations from now on, or after some more, until [`Disk::heal`].
    pub fn fail(&self, fault: Fault) {
        lock(&self.state).faults.add(fault);
    }

    /// Ends all faults.
    pub fn heal(&self) {
        lock(&self.state).faults.clear();
    }

    /// Changes the size of the disk, bytes. It may become smaller than what is on it.
    pub fn resize(&self, bytes_max: u64) {
        lock(&self.state).blocks_max = bytes_max / BLOCK_BYTES;
    }

    /// Has statfs(2) say that so many bytes are free, or the truth again.
    pub fn claim_free(&self, bytes: Option<u64>) {
        lock(&self.state).free_claimed = bytes.map(|bytes| bytes / BLOCK_BYTES);
    }

    /// Turns `count` bits of what is written on it over, and says where. Files whose path `chosen` doesn't want stay as
    /// they are.
    pub fn flip_bits(
        &self,
        seed: u64,
        count: usize,
        chosen: impl Fn(&Path) -> bool,
    ) -> Vec<String> {
        lock(&self.state).flip_bits(seed, count, chosen)
    }

    /// What programs have asked of it.
    pub fn activity(&self) -> Activity {
        lock(&self.state).activity()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else {
            return;
        };
        // A program that still has files open keeps the disk until it ends; the mount point is free at once.
        if !mounts::detach(self.path()) {
            eprintln!(
                "{} stays mounted until this test ends",
                self.path().display()
            );
            return;
        }
        drop(session);
    }
}
