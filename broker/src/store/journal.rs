//! Looks over fjall's journals before they are opened. fjall cuts a journal at the first entry that it can't read and says
//! nothing; here it is told apart whether that is the end of a write that was cut off, which nobody was promised, or
//! damage with whole commits behind it.
//!
//! A journal is a row of commits: start (tag 1, count of items, sequence number), items (tag 2) or clears (tag 4), end
//! (tag 3, XXH3 of the items, trailer); then zeros.

use std::{fs, io::Write, path::Path};
use xxhash_rust::xxh3::Xxh3;

use super::{engine::EngineError, keys};
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
    /// A commit behind what can't be read says that all before it had been synced ([`keys::META_SYNCED`]): so it isn't what
    /// a loss of power leaves of what wasn't.
    pub is_synced: bool,
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
        sum.is_synced |= verdict.is_synced;
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
    while let Some(commit) = commit(&bytes[at..]) {
        at += commit.length;
        commits += 1;
    }
    let behind = &bytes[at..];
    let torn = length_without_zeros(behind);
    let ends = behind[..torn].windows(TRAILER.len());
    let verdict = Verdict {
        commits,
        torn_bytes: torn as u64,
        lost_commits: ends.filter(|window| *window == TRAILER).count() as u64,
        is_synced: (0..torn).any(|start| {
            let commit = commit(&behind[start..torn]);
            commit.is_some_and(|commit| commit.notes_sync)
        }),
    };
    (verdict, at)
}

/// A whole commit.
struct Commit {
    /// Bytes.
    length: usize,
    /// It says that all before it was synced.
    notes_sync: bool,
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

/// The commit at the beginning, if it is whole.
fn commit(bytes: &[u8]) -> Option<Commit> {
    let [1, rest @ ..] = bytes else { return None };
    let (count, rest) = rest.split_first_chunk()?;
    let mut rest = rest.get(8..)?;
    let (mut hash, mut notes_sync) = (Xxh3::new(), false);
    for _ in 0..u32::from_le_bytes(*count) {
        let length = item(rest)?;
        let (item, behind) = rest.split_at_checked(length)?;
        hash.update(item);
        notes_sync |= key(item) == Some(keys::META_SYNCED);
        rest = behind;
    }
    let [3, rest @ ..] = rest else { return None };
    let (checksum, rest) = rest.split_first_chunk()?;
    let rest = rest.strip_prefix(TRAILER)?;
    (u64::from_le_bytes(*checksum) == hash.digest()).then(|| Commit {
        length: bytes.len() - rest.len(),
        notes_sync,
    })
}

/// Bytes of an item in front of its key.
const ITEM_HEAD: usize = 21;

/// The key of an item.
fn key(item: &[u8]) -> Option<&[u8]> {
    let length: &[u8; 2] = item.get(11..)?.first_chunk()?;
    item.get(ITEM_HEAD..)?
        .get(..usize::from(u16::from_le_bytes(*length)))
}

/// Length of an item or a clear.
fn item(bytes: &[u8]) -> Option<usize> {
    match bytes.first()? {
        2 => {
            // Tag, kind, compression, table.
            let (key, rest) = bytes.get(11..)?.split_first_chunk()?;
            let value = rest.get(4..)?.first_chunk()?;
            let value = u32::from_le_bytes(*value) as usize;
            Some(ITEM_HEAD + usize::from(u16::from_le_bytes(*key)) + value)
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
        journal_with(commits, None)
    }

    /// The same; commit `noted` says that all before it is synced.
    fn journal_with(commits: usize, noted: Option<usize>) -> Vec<u8> {
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
            if noted == Some(n) {
                batch.put(Table::Meta, keys::META_SYNCED.to_vec(), vec![1]);
            }
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

    /// Where each of the whole commits begins.
    fn starts(bytes: &[u8]) -> Vec<usize> {
        let mut starts = vec![0];
        while let Some(found) = commit(&bytes[starts[starts.len() - 1]..]) {
            starts.push(starts[starts.len() - 1] + found.length);
        }
        starts.pop();
        starts
    }

    #[test]
    fn a_hole_in_front_of_the_note_that_all_was_synced_is_damage() {
        let bytes = journal_with(8, Some(4));
        let starts = starts(&bytes);
        let note = starts.iter().position(|start| {
            let commit = commit(&bytes[*start..]);
            commit.is_some_and(|commit| commit.notes_sync)
        });
        let note = note.expect("it is there");
        assert_eq!(starts.len() - note, 4, "three commits come behind it");
        for (number, start) in starts.iter().enumerate() {
            let end = starts.get(number + 1).copied().unwrap_or(bytes.len());
            let mut flipped = bytes.clone();
            flipped[(start + end) / 2] ^= 1;
            let mut empty = bytes.clone();
            empty[*start..end].fill(0);
            for damaged in [flipped, empty] {
                let (verdict, _) = read(&damaged);
                assert_eq!(verdict.is_synced, number < note, "{number}: {verdict:?}");
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
