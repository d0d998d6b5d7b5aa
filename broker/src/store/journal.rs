//! Looks over fjall's journals before they are opened. fjall cuts a journal at the first entry that it can't read and says
//! nothing; here it is told apart whether that is the end of a write that was cut off, which nobody was promised, or
//! damage with whole commits behind it.
//!
//! A journal is a row of commits: start (tag 1, count of items, sequence number), items (tag 2) or clears (tag 4), end
//! (tag 3, XXH3 of the items, trailer); then zeros.

use std::{fs, io::Write, path::Path};
use xxhash_rust::xxh3::Xxh3;

use super::engine::EngineError;
use crate::state_file;

const TRAILER: &[u8] = b"FJL\x03";

/// What was found in the journals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Whole commits.
    pub commits: u64,
    /// Bytes behind the last of these, up to the last that isn't 0.
    pub torn_bytes: u64,
    /// Ends of commits among them.
    pub lost_commits: u64,
}

impl Verdict {
    /// Whether whole commits lie behind what can't be read: no torn write, in which at most one was under way.
    pub fn is_damaged(&self) -> bool {
        self.lost_commits > 1
    }
}

/// Looks over all journals of a folder. With `cut` each is cut behind its last whole commit, if that isn't its end.
///
/// # Errors
/// A file can't be read or cut.
pub fn look_over(folder: &Path, cut: bool) -> Result<Verdict, EngineError> {
    let mut sum = Verdict::default();
    if !folder.exists() {
        return Ok(sum);
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "jnl") {
            continue;
        }
        let bytes = fs::read(&path)?;
        let (verdict, whole) = read(&bytes);
        sum.commits += verdict.commits;
        sum.torn_bytes += verdict.torn_bytes;
        sum.lost_commits += verdict.lost_commits;
        if cut && verdict.torn_bytes > 0 {
            let file = fs::OpenOptions::new().write(true).open(&path)?;
            file.set_len(whole as u64)?;
            file.sync_all()?;
        }
    }
    Ok(sum)
}

/// Writes what is whole of each journal into a new file that takes its place. After a failed sync a file can be read and
/// yet have a hole on the disk, and what is appended to it later would lie behind that after a loss of power. `spare` is
/// where a half-written file may be, on the same filesystem.
///
/// # Errors
/// Reading or writing fails; each journal is then the old one or the new one.
pub fn rewrite(folder: &Path, spare: &Path) -> Result<(), EngineError> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "jnl") {
            continue;
        }
        let bytes = fs::read(&path)?;
        let (_, whole) = read(&bytes);
        let mut file = fs::File::create(spare)?;
        let written = file
            .write_all(&bytes[..whole])
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(spare, &path));
        if written.is_err() {
            // It takes room that somebody may need; the next attempt replaces it if it stays.
            let _ = fs::remove_file(spare);
        }
        written?;
    }
    Ok(state_file::sync_folder(folder)?)
}

/// What is in a journal, and where its last whole commit ends.
fn read(bytes: &[u8]) -> (Verdict, usize) {
    let (mut at, mut commits) = (0, 0);
    while let Some(length) = commit(&bytes[at..]) {
        at += length;
        commits += 1;
    }
    let behind = &bytes[at..];
    let torn = length_without_zeros(behind);
    let ends = behind[..torn].windows(TRAILER.len());
    let verdict = Verdict {
        commits,
        torn_bytes: torn as u64,
        lost_commits: ends.filter(|window| *window == TRAILER).count() as u64,
    };
    (verdict, at)
}

/// Length up to the last byte that isn't 0. A journal is mostly room for later commits, so pages are compared at once.
fn length_without_zeros(bytes: &[u8]) -> usize {
    const PAGE: [u8; 4_096] = [0; 4_096];
    let is_empty = |page: &[u8]| *page == PAGE[..page.len()];
    let mut length = bytes.len();
    for page in bytes.rchunks(PAGE.len()) {
        if !is_empty(page) {
            let last = page.iter().rposition(|byte| *byte != 0);
            return length - page.len() + last.map_or(0, |last| last + 1);
        }
        length -= page.len();
    }
    0
}

/// Length of the commit at the beginning, if it is whole.
fn commit(bytes: &[u8]) -> Option<usize> {
    let [1, rest @ ..] = bytes else { return None };
    let (count, rest) = rest.split_first_chunk()?;
    let mut rest = rest.get(8..)?;
    let mut hash = Xxh3::new();
    for _ in 0..u32::from_le_bytes(*count) {
        let length = item(rest)?;
        let (item, behind) = rest.split_at_checked(length)?;
        hash.update(item);
        rest = behind;
    }
    let [3, rest @ ..] = rest else { return None };
    let (checksum, rest) = rest.split_first_chunk()?;
    let rest = rest.strip_prefix(TRAILER)?;
    (u64::from_le_bytes(*checksum) == hash.digest()).then(|| bytes.len() - rest.len())
}

/// Length of an item or a clear.
fn item(bytes: &[u8]) -> Option<usize> {
    match bytes.first()? {
        2 => {
            // Tag, kind, compression, table.
            let (key, rest) = bytes.get(11..)?.split_first_chunk()?;
            let value = rest.get(4..)?.first_chunk()?;
            let value = u32::from_le_bytes(*value) as usize;
            Some(21 + usize::from(u16::from_le_bytes(*key)) + value)
        }
        4 => Some(9),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        engine::{Batch, Engine, Table},
        fjall::FjallEngine,
    };
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A journal that fjall wrote, with commits of one entry each, up to its last byte that isn't 0.
    fn journal(commits: usize) -> Vec<u8> {
        // Tests run side by side in one process.
        static FOLDERS: AtomicU32 = AtomicU32::new(0);
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let name = format!("headgate-journal-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        let _old = fs::remove_dir_all(&folder);
        let mut engine = FjallEngine::open(&folder).expect("the folder can be used");
        for n in 0..commits {
            let mut batch = Batch::default();
            batch.put(Table::Queues, vec![n as u8 + 1; 22], vec![b'x'; 100]);
            batch.delete(Table::Sessions, vec![1]);
            engine.apply(&batch, true).expect("the disk works");
        }
        let entries = fs::read_dir(&folder).expect("it is there").flatten();
        let path = entries
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|e| e == "jnl"));
        let mut bytes = fs::read(path.expect("there is a journal")).expect("it can be read");
        let end = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        bytes.truncate(end);
        drop(engine);
        fs::remove_dir_all(&folder).expect("it is ours");
        bytes
    }

    #[test]
    fn what_fjall_writes_is_whole_and_any_flipped_bit_is_seen() {
        let bytes = journal(5);
        let (whole, end) = read(&bytes);
        assert_eq!(
            (whole.torn_bytes, whole.lost_commits, end),
            (0, 0, bytes.len())
        );
        assert!(whole.commits >= 5, "{whole:?}");
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            let (verdict, _) = read(&flipped);
            // The sequence number isn't covered by fjall's checksum.
            let seen = verdict.torn_bytes > 0;
            assert!(seen || verdict == whole, "{at}: {verdict:?}");
            if seen && verdict.commits + 3 < whole.commits {
                assert!(verdict.is_damaged(), "{at}: {verdict:?}");
            }
        }
    }

    #[test]
    fn a_journal_that_ends_anywhere_is_torn_and_not_damaged() {
        let bytes = journal(3);
        let (whole, _) = read(&bytes);
        for length in 0..bytes.len() {
            let (verdict, end) = read(&bytes[..length]);
            assert!(!verdict.is_damaged(), "{length}: {verdict:?}");
            assert!(end <= length && verdict.commits < whole.commits);
        }
    }
}
