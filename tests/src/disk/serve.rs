//! The kernel's requests, answered from a [`State`].

use std::ffi::OsStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::content::BLOCK_BYTES;
use super::state::{Body, Errno, Ino, State};

/// The kernel asks again each time: after a power loss what it remembers would be wrong.
const TTL: Duration = Duration::ZERO;

/// Reads and writes go past the kernel's page cache, for the same reason.
const OPENED: FopenFlags =
    FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);

/// Longest name, bytes.
const NAME_BYTES_MAX: u32 = 255;

/// Serves one state.
#[derive(Debug)]
pub struct Server(pub Arc<Mutex<State>>);

/// Whoever panicked while it held the state has failed the test already.
pub fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    fn attributes(state: &State, ino: Ino) -> Result<FileAttr, Errno> {
        let node = state.node(ino)?;
        let (kind, size, blocks) = match &node.body {
            Body::File(content) => (FileType::RegularFile, content.len(), content.blocks()),
            Body::Folder(_) => (FileType::Directory, 0, 0),
        };
        Ok(FileAttr {
            ino: INodeNo(ino),
            size,
            // Of 512 bytes, whatever the filesystem's own are (stat(2)).
            blocks: blocks * (BLOCK_BYTES / 512),
            atime: node.modified,
            mtime: node.modified,
            ctime: node.modified,
            crtime: node.modified,
            kind,
            perm: node.mode,
            nlink: node.links,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK_BYTES as u32,
            flags: 0,
        })
    }

    fn make(
        &self,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        is_folder: bool,
    ) -> Result<FileAttr, Errno> {
        let mut state = self.state();
        let permissions = (mode & 0o7777) as u16;
        let ino = state.create(parent.0, name, permissions, is_folder)?;
        Self::attributes(&state, ino)
    }
}

fn error(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno)
}

/// Answers an operation that has no result.
fn answer(done: Result<(), Errno>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(error(errno)),
    }
}

fn answer_entry(made: Result<FileAttr, Errno>, reply: ReplyEntry) {
    match made {
        Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
        Err(errno) => reply.error(error(errno)),
    }
}

fn answer_attributes(found: Result<FileAttr, Errno>, reply: ReplyAttr) {
    match found {
        Ok(attributes) => reply.attr(&TTL, &attributes),
        Err(errno) => reply.error(error(errno)),
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let state = self.state();
        let found = state.lookup(parent.0, name);
        answer_entry(found.and_then(|ino| Self::attributes(&state, ino)), reply);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer_attributes(Self::attributes(&self.state(), ino.0), reply);
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = self.state();
        let mode = mode.map(|mode| (mode & 0o7777) as u16);
        let done = mode
            .map_or(Ok(()), |mode| state.set_mode(ino.0, mode))
            .and_then(|()| size.map_or(Ok(()), |size| state.set_len(ino.0, size)))
            .and_then(|()| Self::attributes(&state, ino.0));
        answer_attributes(done, reply);
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        answer_entry(self.make(parent, name, mode, true), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(self.state().remove(parent.0, name, false), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(self.state().remove(parent.0, name, true), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let keeps = flags.contains(RenameFlags::RENAME_NOREPLACE);
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return reply.error(error(libc::EINVAL));
        }
        let (from, to) = ((parent.0, name), (new_parent.0, new_name));
        answer(self.state().rename(from, to, keeps), reply);
    }

    fn link(
        &self,
        _: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let mut state = self.state();
        let done = state.link(ino.0, new_parent.0, new_name);
        let attributes = done.and_then(|()| Self::attributes(&state, ino.0));
        answer_entry(attributes, reply);
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let made = self.make(parent, name, mode, false);
        let mut state = self.state();
        match made.and_then(|made| state.open(made.ino.0).map(|handle| (made, handle))) {
            Ok((made, handle)) => {
                reply.created(&TTL, &made, Generation(0), FileHandle(handle), OPENED)
            }
            Err(errno) => reply.error(error(errno)),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.state().open(ino.0) {
            Ok(handle) => reply.opened(FileHandle(handle), OPENED),
            Err(errno) => reply.error(error(errno)),
        }
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.state().release(ino.0, handle.0);
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.state().read(ino.0, offset, size as usize) {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(error(errno)),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.state();
        let done = state.write(ino.0, offset, data).and_then(|written| {
            // O_SYNC contains O_DSYNC.
            if flags.0 & libc::O_DSYNC != 0 {
                state.sync(ino.0)?;
            }
            Ok(written)
        });
        match done {
            Ok(written) => reply.written(written as u32),
            Err(errno) => reply.error(error(errno)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(self.state().sync(ino.0), reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(self.state().sync_folder(ino.0), reply);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let state = self.state();
        let names = match state.entries(ino.0) {
            Ok(names) => names,
            Err(errno) => return reply.error(error(errno)),
        };
        let dots = [".", ".."].map(|name| (OsStr::new(name), ino.0));
        let named = names.iter().map(|(name, ino)| (name.as_os_str(), *ino));
        for (number, (name, ino)) in (1..).zip(dots.into_iter().chain(named)) {
            if number <= offset {
                continue;
            }
            let kind = match state.entries(ino) {
                Ok(_) => FileType::Directory,
                Err(_) => FileType::RegularFile,
            };
            if reply.add(INodeNo(ino), number, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let state = self.state();
        let (all, free) = (state.blocks_max, state.free_blocks());
        let block = BLOCK_BYTES as u32;
        reply.statfs(all, free, free, 0, 0, block, NAME_BYTES_MAX, block);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mut state = self.state();
        let keeps_len = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let done = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => state.allocate(ino.0, offset, length, keeps_len),
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE if keeps_len => {
                state.zero(ino.0, offset, length)
            }
            _ => Err(libc::EOPNOTSUPP),
        };
        answer(done, reply);
    }
}
