//! What a power loss may take away, and what it leaves.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::content::{Content, SECTOR_BYTES};
use super::state::{Body, Ino, Node, ROOT, State};
use headgate_sim::Rng;

/// A change of one file that no fsync has made safe yet.
#[derive(Clone, Debug)]
pub enum Change {
    Write { offset: u64, bytes: Box<[u8]> },
    SetLen(u64),
    Allocate { offset: u64, len: u64 },
    Zero { offset: u64, len: u64 },
}

impl Change {
    pub fn apply(&self, content: &mut Content) {
        match self {
            Self::Write { offset, bytes } => content.write(*offset, bytes),
            Self::SetLen(len) => content.set_len(*len),
            Self::Allocate { offset, len } => content.allocate(*offset, *len),
            Self::Zero { offset, len } => content.zero(*offset, *len),
        }
    }

    /// The beginning of a write, up to a sector's end; `None` if it fits into one.
    fn torn(&self, random: &mut Rng) -> Option<Self> {
        let Self::Write { offset, bytes } = self else {
            return None;
        };
        let first = SECTOR_BYTES - offset % SECTOR_BYTES;
        let ends = (bytes.len() as u64)
            .saturating_sub(first)
            .div_ceil(SECTOR_BYTES);
        if ends == 0 {
            return None;
        }
        let length = first + SECTOR_BYTES * random.below(ends as usize) as u64;
        Some(Self::Write {
            offset: *offset,
            bytes: bytes[..length as usize].into(),
        })
    }
}

/// What a name in a folder leads to from now on.
#[derive(Clone, Debug)]
pub struct Entry {
    folder: Ino,
    name: OsString,
    ino: Option<Ino>,
}

impl Entry {
    pub fn new(folder: Ino, name: &OsStr, ino: Option<Ino>) -> Self {
        Self {
            folder,
            name: name.to_owned(),
            ino,
        }
    }
}

/// Names that change together: two for a rename.
#[derive(Clone, Debug)]
pub struct NameChange {
    pub entries: Vec<Entry>,
}

impl NameChange {
    pub fn apply(&self, nodes: &mut HashMap<Ino, Node>) {
        for entry in &self.entries {
            let Some(Node {
                body: Body::Folder(names),
                ..
            }) = nodes.get_mut(&entry.folder)
            else {
                continue;
            };
            match entry.ino {
                Some(ino) => names.insert(entry.name.clone(), ino),
                None => names.remove(&entry.name),
            };
        }
    }

    pub fn folders(&self) -> impl Iterator<Item = Ino> {
        self.entries.iter().map(|entry| entry.folder)
    }
}

/// What a power loss took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lost {
    /// Changes of files that are gone.
    pub changes: usize,
    /// Changes of files that no fsync had made safe, and that were kept all the same.
    pub kept: usize,
    /// Writes of which a part is left.
    pub torn: usize,
    /// Names that were made, changed or removed, and are again as before.
    pub names: usize,
}

/// What happens to what was not synced.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    /// All of it is lost.
    Forgotten,
    /// Chance decides from this seed. Of names a beginning is kept, as journals of filesystems do it. Of each file's
    /// changes any may be kept, up to a lost change of its length, and the last write that is kept may be torn.
    Chance(u64),
}

impl State {
    /// Takes the power away, and gives it back.
    pub fn lose_power(&mut self, fate: Fate) -> Lost {
        let mut lost = Lost::default();
        let mut nodes = std::mem::take(&mut self.durable);
        let mut random = match fate {
            Fate::Forgotten => None,
            Fate::Chance(seed) => Some(Rng::new(seed)),
        };
        let names_kept = random
            .as_mut()
            .map_or(0, |random| random.below(self.names.len() + 1));
        for change in &self.names[..names_kept] {
            change.apply(&mut nodes);
        }
        lost.names = self.names.len() - names_kept;
        let mut files: Vec<_> = self.changes.drain().collect();
        // The same seed shall do the same.
        files.sort_unstable_by_key(|(ino, _)| *ino);
        for (ino, changes) in files {
            let Some(Node {
                body: Body::File(content),
                ..
            }) = nodes.get_mut(&ino)
            else {
                continue;
            };
            match random.as_mut() {
                Some(random) => keep_some(&changes, content, random, &mut lost),
                None => lost.changes += changes.len(),
            }
        }
        self.start_from(reachable(nodes));
        lost
    }

    /// Turns bits over in files that `chosen` wants, for programs and on the disk alike; says where.
    pub fn flip_bits(
        &mut self,
        seed: u64,
        count: usize,
        chosen: impl Fn(&Path) -> bool,
    ) -> Vec<String> {
        let mut files = Vec::new();
        self.files(ROOT, Path::new(""), &mut files);
        files.retain(|(path, _, len)| *len > 0 && chosen(path));
        let mut random = Rng::new(seed);
        let mut flipped = Vec::new();
        // A hole has no bits; a file that is all holes would keep this going.
        for _ in 0..1000 * count {
            if files.is_empty() || flipped.len() == count {
                break;
            }
            let (path, ino, len) = &files[random.below(files.len())];
            let (offset, bit) = (random.next() % len, random.below(8) as u8);
            let flip = |nodes: &mut HashMap<Ino, Node>| match nodes.get_mut(ino) {
                Some(Node {
                    body: Body::File(content),
                    ..
                }) => content.flip(offset, bit),
                _ => false,
            };
            if flip(&mut self.durable) {
                flip(&mut self.live);
                flipped.push(format!("{}: bit {bit} of byte {offset}", path.display()));
            }
        }
        flipped
    }

    /// The files below a folder, in the order of their names.
    fn files(&self, folder: Ino, path: &Path, found: &mut Vec<(PathBuf, Ino, u64)>) {
        let Ok(names) = self.entries(folder) else {
            return;
        };
        for (name, ino) in names {
            let path = path.join(name);
            match self.content(*ino) {
                Ok(content) => found.push((path, *ino, content.len())),
                Err(_) => self.files(*ino, &path, found),
            }
        }
    }
}

/// Applies some of the changes to a file.
fn keep_some(changes: &[Change], content: &mut Content, random: &mut Rng, lost: &mut Lost) {
    // Some files were written back as a whole, of some nothing was.
    let chance = random.below(5);
    let mut kept = Vec::new();
    for change in changes {
        if random.below(4) < chance {
            kept.push(change);
        } else if matches!(change, Change::SetLen(_)) {
            break;
        }
    }
    lost.kept += kept.len();
    lost.changes += changes.len() - kept.len();
    if let Some((last, before)) = kept.split_last() {
        before.iter().for_each(|change| change.apply(content));
        let torn = match random.below(2) {
            0 => last.torn(random),
            _ => None,
        };
        lost.torn += usize::from(torn.is_some());
        torn.as_ref().unwrap_or(last).apply(content);
    }
}

/// The nodes that names lead to.
fn reachable(mut nodes: HashMap<Ino, Node>) -> HashMap<Ino, Node> {
    let mut found: HashMap<Ino, Node> = HashMap::new();
    let mut open = vec![ROOT];
    while let Some(ino) = open.pop() {
        if let Some(known) = found.get_mut(&ino) {
            known.links += 1;
        } else if let Some(mut node) = nodes.remove(&ino) {
            if let Body::Folder(names) = &node.body {
                open.extend(names.values());
            }
            node.opens = 0;
            node.links = 1;
            found.insert(ino, node);
        }
    }
    found
}
