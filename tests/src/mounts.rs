//! Mounts of a test's own: in a mount namespace that the calling thread and its children have to themselves. The kernel
//! removes it with the last of them, so nothing is left behind when a test fails or is killed.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use crate::skip;

/// Whether mounts can be made here.
///
/// # Errors
/// The reason, for [`skip!`](crate::skip!).
pub fn available() -> Result<(), String> {
    if !skip::is_root() {
        return Err("needs root to mount a filesystem".to_owned());
    }
    // On a thread of its own, which takes the namespace with it.
    let tried = std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNS)).join();
    match tried {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("no mount namespace can be made here: {error}")),
        Err(_) => Err("no thread can be started here".to_owned()),
    }
}

/// Takes the calling thread into a mount namespace of its own.
///
/// # Panics
/// When that fails though [`available`] said it would not.
pub fn enter() {
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    let none: Option<&str> = None;
    // What is mounted here must not show up elsewhere.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .expect("making the mounts private");
}

/// Unmounts what is mounted at `path`, as soon as nobody uses it; whether something was.
pub fn detach(path: &Path) -> bool {
    umount2(path, MntFlags::MNT_DETACH).is_ok()
}

/// A small filesystem in memory of the kernel's own, tmpfs(5).
#[derive(Debug)]
pub struct Tmpfs {
    folder: TempDir,
}

impl Tmpfs {
    /// Mounts one of so many bytes, in a namespace that only this thread, and what it starts from now on, sees.
    ///
    /// # Panics
    /// When that fails though [`available`] said it would not.
    pub fn mount(bytes_max: u64) -> Self {
        enter();
        let folder = tempfile::Builder::new()
            .prefix("headgate-tmpfs-")
            .tempdir()
            .expect("a mount point");
        let size = format!("size={bytes_max}");
        let (source, kind) = (Some("headgate-tmpfs"), Some("tmpfs"));
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        mount(source, folder.path(), kind, flags, Some(size.as_str())).expect("mounting a tmpfs");
        Self { folder }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        detach(self.path());
    }
}
