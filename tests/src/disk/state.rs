//! The files as programs see them, and what of them would survive a power loss.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::time::SystemTime;

use super::content::{BLOCK_BYTES, Content};
use super::faults::{Faults, On};
use super::unsynced::{Change, Entry, NameChange};

/// Number of a file or folder. None is given out twice.
pub type Ino = u64;

/// The folder that is mounted.
pub const ROOT: Ino = 1;

/// An error number, as `errno` has it.
pub type Errno = i32;

/// What a number stands for.
#[derive(Clone, Debug)]
pub enum Body {
    File(Content),
    Folder(BTreeMap<OsString, Ino>),
}

/// A file or a folder.
#[derive(Clone, Debug)]
pub struct Node {
    pub body: Body,
    /// Permission bits.
    pub mode: u16,
    pub modified: SystemTime,
    /// How often it is open. What is open outlives its name.
    pub opens: u32,
    /// How many names lead to it.
    pub links: u32,
}

impl Node {
    fn new(body: Body, mode: u16) -> Self {
        Self {
            body,
            mode,
            modified: SystemTime::now(),
            opens: 0,
            links: 1,
        }
    }

    fn blocks(&self) -> u64 {
        match &self.body {
            Body::File(content) => content.blocks(),
            Body::Folder(_) => 0,
        }
    }
}

/// How often programs asked for something.
#[derive(Clone, Copy, Debug, Default)]
pub struct Activity {
    /// Reads from files.
    pub reads: u64,
    /// Writes to files.
    pub writes: u64,
    /// fsync and fdatasync of files and folders.
    pub syncs: u64,
    /// Operations that an injected fault failed.
    pub faults: u64,
}

/// A filesystem in memory.
#[derive(Debug)]
pub struct State {
    pub(super) live: HashMap<Ino, Node>,
    /// What a power loss would leave. It has nodes that no name leads to: those are lost.
    pub(super) durable: HashMap<Ino, Node>,
    pub(super) changes: HashMap<Ino, Vec<Change>>,
    pub(super) names: Vec<NameChange>,
    pub faults: Faults,
    next: Ino,
    /// How often the power came back.
    starts: u64,
    used_blocks: u64,
    /// Size of the disk.
    pub blocks_max: u64,
    /// Blocks that statfs says are free, if that isn't the truth.
    pub free_claimed: Option<u64>,
    activity: Activity,
}

impl State {
    /// An empty disk of so many bytes.
    pub fn new(bytes_max: u64) -> Self {
        let root = Node::new(Body::Folder(BTreeMap::new()), 0o755);
        Self {
            live: HashMap::from([(ROOT, root.clone())]),
            durable: HashMap::from([(ROOT, root)]),
            changes: HashMap::new(),
            names: Vec::new(),
            faults: Faults::default(),
            next: ROOT + 1,
            starts: 0,
            used_blocks: 0,
            blocks_max: bytes_max / BLOCK_BYTES,
            free_claimed: None,
            activity: Activity::default(),
        }
    }

    pub fn activity(&self) -> Activity {
        Activity {
            faults: self.faults.hits(),
            ..self.activity
        }
    }

    /// Blocks that are free, as statfs tells it.
    pub fn free_blocks(&self) -> u64 {
        let free = self.blocks_max.saturating_sub(self.used_blocks);
        self.free_claimed.unwrap_or(free)
    }

    pub fn node(&self, ino: Ino) -> Result<&Node, Errno> {
        self.live.get(&ino).ok_or(libc::ESTALE)
    }

    fn node_mut(&mut self, ino: Ino) -> Result<&mut Node, Errno> {
        self.live.get_mut(&ino).ok_or(libc::ESTALE)
    }

    pub fn entries(&self, folder: Ino) -> Result<&BTreeMap<OsString, Ino>, Errno> {
        match &self.node(folder)?.body {
            Body::Folder(entries) => Ok(entries),
            Body::File(_) => Err(libc::ENOTDIR),
        }
    }

    pub fn content(&self, ino: Ino) -> Result<&Content, Errno> {
        match &self.node(ino)?.body {
            Body::File(content) => Ok(content),
            Body::Folder(_) => Err(libc::EISDIR),
        }
    }

    pub fn lookup(&self, folder: Ino, name: &OsStr) -> Result<Ino, Errno> {
        self.entries(folder)?.get(name).copied().ok_or(libc::ENOENT)
    }

    pub fn set_mode(&mut self, ino: Ino, mode: u16) -> Result<(), Errno> {
        self.node_mut(ino)?.mode = mode;
        Ok(())
    }

    /// Opens a file; the handle is for [`State::release`].
    pub fn open(&mut self, ino: Ino) -> Result<u64, Errno> {
        self.node_mut(ino)?.opens += 1;
        Ok(self.starts)
    }

    /// A handle is closed. Those from before a power loss lead nowhere.
    pub fn release(&mut self, ino: Ino, handle: u64) {
        if handle != self.starts {
            return;
        }
        if let Ok(node) = self.node_mut(ino) {
            node.opens = node.opens.saturating_sub(1);
            self.forget_unused(ino);
        }
    }

    /// Makes a file or folder.
    pub fn create(
        &mut self,
        folder: Ino,
        name: &OsStr,
        mode: u16,
        is_folder: bool,
    ) -> Result<Ino, Errno> {
        if self.entries(folder)?.contains_key(name) {
            return Err(libc::EEXIST);
        }
        self.faults.check(On::Names)?;
        if self.used_blocks >= self.blocks_max {
            return Err(libc::ENOSPC);
        }
        let ino = self.next;
        self.next += 1;
        let body = match is_folder {
            true => Body::Folder(BTreeMap::new()),
            false => Body::File(Content::default()),
        };
        let node = Node::new(body, mode);
        self.live.insert(ino, node.clone());
        self.durable.insert(ino, node);
        self.rename_all(vec![Entry::new(folder, name, Some(ino))]);
        Ok(ino)
    }

    /// Gives a file one more name.
    pub fn link(&mut self, ino: Ino, folder: Ino, name: &OsStr) -> Result<(), Errno> {
        self.content(ino).map_err(|_| libc::EPERM)?;
        if self.entries(folder)?.contains_key(name) {
            return Err(libc::EEXIST);
        }
        self.faults.check(On::Names)?;
        self.rename_all(vec![Entry::new(folder, name, Some(ino))]);
        self.node_mut(ino)?.links += 1;
        Ok(())
    }

    /// Takes a name away, of a folder only if it is empty.
    pub fn remove(&mut self, folder: Ino, name: &OsStr, is_folder: bool) -> Result<(), Errno> {
        let ino = self.lookup(folder, name)?;
        match &self.node(ino)?.body {
            Body::Folder(_) if !is_folder => return Err(libc::EISDIR),
            Body::File(_) if is_folder => return Err(libc::ENOTDIR),
            Body::Folder(entries) if !entries.is_empty() => return Err(libc::ENOTEMPTY),
            _ => {}
        }
        self.faults.check(On::Names)?;
        self.rename_all(vec![Entry::new(folder, name, None)]);
        self.unname(ino);
        Ok(())
    }

    /// Renames, over a file or empty folder that has the new name unless `keeps` it.
    pub fn rename(
        &mut self,
        from: (Ino, &OsStr),
        to: (Ino, &OsStr),
        keeps: bool,
    ) -> Result<(), Errno> {
        let ino = self.lookup(from.0, from.1)?;
        let replaced = self.lookup(to.0, to.1).ok();
        if replaced == Some(ino) {
            return Ok(());
        }
        if let Some(replaced) = replaced {
            let is_folder = |ino| self.entries(ino).is_ok();
            match (is_folder(ino), is_folder(replaced)) {
                _ if keeps => return Err(libc::EEXIST),
                (true, false) => return Err(libc::ENOTDIR),
                (false, true) => return Err(libc::EISDIR),
                (true, true) if !self.entries(replaced)?.is_empty() => {
                    return Err(libc::ENOTEMPTY);
                }
                _ => {}
            }
        }
        self.faults.check(On::Names)?;
        self.rename_all(vec![
            Entry::new(from.0, from.1, None),
            Entry::new(to.0, to.1, Some(ino)),
        ]);
        replaced.into_iter().for_each(|ino| self.unname(ino));
        Ok(())
    }

    pub fn read(&mut self, ino: Ino, offset: u64, size: usize) -> Result<Vec<u8>, Errno> {
        self.activity.reads += 1;
        self.faults.check(On::Read)?;
        Ok(self.content(ino)?.read(offset, size))
    }

    /// Writes at least one byte, and says how many: where space ends, a write is short.
    pub fn write(&mut self, ino: Ino, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        self.activity.writes += 1;
        self.faults.check(On::Write)?;
        let content = self.content(ino)?;
        let free = self.blocks_max.saturating_sub(self.used_blocks);
        let mut len = bytes.len() as u64;
        while len > 0 && content.holes(offset, len) > free {
            // Without what is in the last block.
            len = ((offset + len - 1) / BLOCK_BYTES * BLOCK_BYTES).saturating_sub(offset);
        }
        if len == 0 {
            return Err(libc::ENOSPC);
        }
        let bytes = bytes[..len as usize].into();
        self.change(ino, Change::Write { offset, bytes })?;
        Ok(len as usize)
    }

    pub fn set_len(&mut self, ino: Ino, len: u64) -> Result<(), Errno> {
        self.faults.check(On::Write)?;
        self.change(ino, Change::SetLen(len))
    }

    /// fallocate(2) with mode 0 or FALLOC_FL_KEEP_SIZE.
    pub fn allocate(
        &mut self,
        ino: Ino,
        offset: u64,
        len: u64,
        keeps_len: bool,
    ) -> Result<(), Errno> {
        self.faults.check(On::Write)?;
        self.take_space(self.content(ino)?.holes(offset, len))?;
        if !keeps_len && offset + len > self.content(ino)?.len() {
            self.change(ino, Change::SetLen(offset + len))?;
        }
        self.change(ino, Change::Allocate { offset, len })
    }

    /// fallocate(2) with FALLOC_FL_PUNCH_HOLE or FALLOC_FL_ZERO_RANGE and FALLOC_FL_KEEP_SIZE.
    pub fn zero(&mut self, ino: Ino, offset: u64, len: u64) -> Result<(), Errno> {
        self.faults.check(On::Write)?;
        let len = len.min(self.content(ino)?.len().saturating_sub(offset));
        self.change(ino, Change::Zero { offset, len })
    }

    /// fsync(2) and fdatasync(2) of a file. Its name is not made safe: that takes one of its folder.
    pub fn sync(&mut self, ino: Ino) -> Result<(), Errno> {
        self.activity.syncs += 1;
        let checked = self.faults.check(On::Sync);
        let changes = self.changes.remove(&ino).unwrap_or_default();
        checked?;
        if let Some(Node {
            body: Body::File(content),
            ..
        }) = self.durable.get_mut(&ino)
        {
            changes.iter().for_each(|change| change.apply(content));
        }
        Ok(())
    }

    /// fsync(2) of a folder: the names in it are safe, and every rename into it or out of it.
    pub fn sync_folder(&mut self, folder: Ino) -> Result<(), Errno> {
        self.activity.syncs += 1;
        self.faults.check(On::Names)?;
        let mut folders = vec![folder];
        let mut kept = Vec::new();
        let mut safe = Vec::new();
        // A rename between two folders happens as a whole, so what happened in the other before it is safe as well.
        for change in self.names.drain(..).rev() {
            if change.folders().any(|own| folders.contains(&own)) {
                folders.extend(change.folders());
                safe.push(change);
            } else {
                kept.push(change);
            }
        }
        kept.reverse();
        self.names = kept;
        for change in safe.iter().rev() {
            change.apply(&mut self.durable);
        }
        Ok(())
    }

    /// What is on the disk becomes what programs see, after a power loss.
    pub(super) fn start_from(&mut self, nodes: HashMap<Ino, Node>) {
        self.changes.clear();
        self.names.clear();
        self.starts += 1;
        self.live = nodes.clone();
        self.durable = nodes;
        self.used_blocks = self.live.values().map(Node::blocks).sum();
    }

    fn change(&mut self, ino: Ino, change: Change) -> Result<(), Errno> {
        let node = self.live.get_mut(&ino).ok_or(libc::ESTALE)?;
        let before = node.blocks();
        let Body::File(content) = &mut node.body else {
            return Err(libc::EISDIR);
        };
        change.apply(content);
        node.modified = SystemTime::now();
        self.used_blocks = self.used_blocks + node.blocks() - before;
        self.changes.entry(ino).or_default().push(change);
        Ok(())
    }

    fn take_space(&self, blocks: u64) -> Result<(), Errno> {
        if self.used_blocks + blocks > self.blocks_max {
            return Err(libc::ENOSPC);
        }
        Ok(())
    }

    fn rename_all(&mut self, entries: Vec<Entry>) {
        let change = NameChange { entries };
        change.apply(&mut self.live);
        self.names.push(change);
    }

    fn unname(&mut self, ino: Ino) {
        if let Ok(node) = self.node_mut(ino) {
            node.links = node.links.saturating_sub(1);
            self.forget_unused(ino);
        }
    }

    fn forget_unused(&mut self, ino: Ino) {
        let unused = self
            .live
            .get(&ino)
            .is_some_and(|node| node.links == 0 && node.opens == 0);
        if unused && let Some(node) = self.live.remove(&ino) {
            self.used_blocks -= node.blocks();
            // Nothing leads there once its removal is safe, and before it what was synced is what counts.
            self.changes.remove(&ino);
        }
    }
}
