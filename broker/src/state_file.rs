//! The state folder: folders and files that are still there after a loss of power, and small files that are read whole
//! and replaced at once.

use serde::{Deserialize, Serialize};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Longest file that is read, bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Why a file of the state folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It can't be read.
    #[error("can't read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It isn't what this broker writes.
    #[error("{} is not what headgate writes: {source}; move it away to start without what it holds", path.display())]
    Contents {
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        source: serde_json::Error,
    },
    /// It can't be written.
    #[error("can't write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Reads a file; one that isn't there yet holds the default.
///
/// # Errors
/// When it can't be read, or isn't what [`write()`] has written.
pub fn read<T: Default + for<'a> Deserialize<'a>>(path: &Path) -> Result<T, StateError> {
    let failed = |source| StateError::Read {
        path: path.to_owned(),
        source,
    };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(T::default()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => {
            return Err(failed(io::Error::other("it is too long")));
        }
        Ok(_) => {}
    }
    let text = fs::read(path).map_err(failed)?;
    serde_json::from_slice(&text).map_err(|source| StateError::Contents {
        path: path.to_owned(),
        source,
    })
}

/// Replaces a file at once: after a crash it holds the old contents or the new ones.
///
/// # Errors
/// When it can't be written; the old one is then still there.
pub fn write(path: &Path, value: &impl Serialize) -> Result<(), StateError> {
    let failed = |source| StateError::Write {
        path: path.to_owned(),
        source,
    };
    let text = serde_json::to_vec_pretty(value).map_err(|error| failed(error.into()))?;
    let new = path.with_extension("json.new");
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&new).map_err(failed)?;
    file.write_all(&text).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs::rename(&new, path)
        .and_then(|()| sync_entry(path))
        .map_err(failed)
}

/// Makes a folder that only its owner may enter, and those above it, if they are missing. When this returns, a loss of
/// power doesn't take it away.
///
/// # Errors
/// When it can't be made, or what was made can't be synced.
pub fn make_folder(path: &Path) -> io::Result<()> {
    let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
    let missing: Vec<&Path> = path.ancestors().take_while(is_missing).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    for made in missing.iter().rev() {
        sync_entry(made)?;
    }
    // One that is there may be left by a broker that was killed before it came to this.
    match sync_entry(path) {
        Err(error) if missing.is_empty() && error.kind() == io::ErrorKind::PermissionDenied => {
            Ok(())
        }
        synced => synced,
    }
}

/// Syncs the folder that a file or folder is in, so that its name survives a loss of power.
///
/// # Errors
/// When the folder above it can't be opened or synced.
pub fn sync_entry(path: &Path) -> io::Result<()> {
    let above = match path.parent() {
        Some(above) if above.as_os_str().is_empty() => Path::new("."),
        Some(above) => above,
        // The root has no name.
        None => return Ok(()),
    };
    sync_folder(above)
}

/// Syncs the names in a folder.
///
/// # Errors
/// When it can't be opened or synced.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
