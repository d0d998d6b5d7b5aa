//! Small files of the state folder: read whole, replaced at once.

use serde::{Deserialize, Serialize};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
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
    fs::rename(&new, path).map_err(failed)
}
