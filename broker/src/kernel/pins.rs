//! What lies under the pin folder, and whether it may be used.

use std::ffi::CString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData, MapInfo, MapType};
use aya::programs::links::PinnedLink;
use headgate_common::quota::{CLASSES_MAX, PENALTIES_MAX, Penalty, QuotaClass};
use headgate_common::records::{
    Budgets, Config, LAYOUT_VERSION, ListEntry, PREFIXES_MAX, WORKERS_MAX, Worker,
};
use headgate_common::talkers::{TALKER_CELLS, Talker};
use headgate_common::{Answers, Drops, Passes, Sockets, Steering};

use super::error::{KernelError, chain};
use super::maps::ConfigWords;
use super::status::{Adoption, AttachedMode};

/// The shape of a pinned map.
struct Shape {
    name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    entries: u32,
}

const fn shape<V>(name: &'static str, kind: MapType, key: usize, entries: usize) -> Shape {
    Shape {
        name,
        kind,
        key,
        value: size_of::<V>(),
        entries: entries as u32,
    }
}

/// Every map that is pinned, by the name of its pin.
const PINNED: [Shape; 13] = [
    shape::<Config>("config", MapType::Array, 4, 1),
    shape::<Budgets>("budgets", MapType::Array, 4, 1),
    shape::<Steering>("steering", MapType::Array, 4, 1),
    shape::<Worker>("workers", MapType::Array, 4, WORKERS_MAX as usize),
    shape::<ListEntry>("prefixes4", MapType::LpmTrie, 8, PREFIXES_MAX as usize),
    shape::<ListEntry>("prefixes6", MapType::LpmTrie, 20, PREFIXES_MAX as usize),
    shape::<QuotaClass>("quotas", MapType::Array, 4, CLASSES_MAX as usize),
    shape::<Penalty>("penalties", MapType::LruHash, 16, PENALTIES_MAX as usize),
    shape::<Drops>("drops", MapType::PerCpuArray, 4, 1),
    shape::<Passes>("passes", MapType::PerCpuArray, 4, 1),
    shape::<Answers>("answers", MapType::PerCpuArray, 4, 1),
    shape::<Sockets>("sockets", MapType::PerCpuArray, 4, 1),
    shape::<Talker>("talkers", MapType::PerCpuArray, 4, TALKER_CELLS as usize),
];

/// How long to wait for another process to let go of the folder.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// The folder for the pins.
#[derive(Debug)]
pub(super) struct PinFolder {
    path: PathBuf,
    /// Holds the lock that keeps two brokers from sharing the folder. The kernel lets go of it when the process ends,
    /// however that happens.
    _lock: File,
}

impl PinFolder {
    /// Makes the folder where it is missing, and mounts the BPF file system at its usual place if nobody has.
    pub(super) fn open(path: &Path) -> Result<Self, KernelError> {
        let usual = Path::new("/sys/fs/bpf");
        if path.starts_with(usual) && !is_bpf(usual) {
            mount(usual)?;
        }
        make(path)?;
        if !is_bpf(path) {
            // Only a folder that is empty goes, and it may stay: nobody is harmed.
            let _ = fs::remove_dir(path);
            return Err(KernelError::NoBpfFileSystem {
                path: path.to_owned(),
            });
        }
        let lock = lock(path)?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Where a map's pin is.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The names of all pinned maps.
    pub(super) fn map_names() -> impl Iterator<Item = &'static str> {
        PINNED.iter().map(|shape| shape.name)
    }

    /// Where the pin of an interface's XDP link is. Its name says the mode, which the kernel doesn't tell of a link;
    /// it has the interface's index, because names may hold dots and pins may not.
    pub(super) fn link(&self, mode: AttachedMode, interface_index: u32) -> PathBuf {
        self.path
            .join(format!("link_{}_{interface_index}", mode.name()))
    }

    /// The names of everything in the folder.
    pub(super) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    /// Decides whether an earlier process's maps can be used. If not, they are removed, and its links with them, so
    /// that the interfaces are free.
    pub(super) fn prepare(&self) -> Result<Adoption, KernelError> {
        let present: Vec<_> = PINNED
            .iter()
            .filter(|shape| self.map(shape.name).exists())
            .collect();
        if present.is_empty() {
            // A link without its maps belongs to a program that nobody can talk to.
            self.remove_links(&[])?;
            return Ok(Adoption::Fresh);
        }
        match self.misfit() {
            None => Ok(Adoption::Adopted),
            Some(reason) => {
                self.remove_all()?;
                Ok(Adoption::Replaced { reason })
            }
        }
    }

    /// Why the pinned maps cannot be used.
    fn misfit(&self) -> Option<String> {
        for shape in &PINNED {
            let path = self.map(shape.name);
            if !path.exists() {
                return Some(format!("{} is missing", shape.name));
            }
            let info = match MapInfo::from_pin(&path) {
                Ok(info) => info,
                Err(error) => {
                    return Some(format!(
                        "{} cannot be opened: {}",
                        shape.name,
                        chain(&error)
                    ));
                }
            };
            if let Some(difference) = shape.difference(&info) {
                return Some(difference);
            }
        }
        match self.layout_version() {
            Ok(LAYOUT_VERSION) => None,
            Ok(other) => Some(format!(
                "their layout version is {other}, this broker's is {LAYOUT_VERSION}"
            )),
            Err(error) => Some(format!("config cannot be read: {}", chain(&error))),
        }
    }

    fn layout_version(&self) -> Result<u32, aya::maps::MapError> {
        let map = Map::from_map_data(MapData::from_pin(self.map("config"))?)?;
        let config = Array::<_, ConfigWords>::try_from(map)?;
        let [version, ..] = config.get(&0, 0)?;
        Ok(version)
    }

    /// Detaches the links of interfaces that are not in `keep` (their pins' paths).
    pub(super) fn remove_links(&self, keep: &[PathBuf]) -> Result<(), KernelError> {
        for name in self
            .names()
            .into_iter()
            .filter(|name| name.starts_with("link_"))
        {
            let path = self.path.join(name);
            if !keep.contains(&path) {
                remove_link(&path)?;
            }
        }
        Ok(())
    }

    /// Removes everything of ours, which detaches the shield, and the folder if nothing else is in it.
    pub(super) fn remove_all(&self) -> Result<(), KernelError> {
        self.remove_links(&[])?;
        for shape in &PINNED {
            remove(&self.map(shape.name))?;
        }
        Ok(())
    }

    /// Removes the folder if nothing is in it.
    pub(super) fn remove_folder(&self) {
        // Somebody else's pins may be in it, and then it stays.
        let _ = fs::remove_dir(&self.path);
    }
}

/// Checks that a loaded object has the maps that this broker expects.
pub(super) fn check_object(ebpf: &aya::Ebpf) -> Result<(), KernelError> {
    for shape in &PINNED {
        let stale = |what: String| KernelError::StaleObject { what };
        let map = ebpf
            .map(shape.name)
            .ok_or_else(|| stale(format!("no map {}", shape.name)))?;
        let data =
            map_data(map).ok_or_else(|| stale(format!("{} is of another type", shape.name)))?;
        let info = data
            .info()
            .map_err(|error| stale(format!("{}: {}", shape.name, chain(&error))))?;
        if let Some(difference) = shape.difference(&info) {
            return Err(stale(difference));
        }
    }
    Ok(())
}

fn map_data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data) | Map::LpmTrie(data) | Map::LruHashMap(data) | Map::PerCpuArray(data) => {
            Some(data)
        }
        _ => None,
    }
}

impl Shape {
    fn difference(&self, info: &MapInfo) -> Option<String> {
        let name = self.name;
        match info.map_type() {
            Ok(kind) if kind == self.kind => {}
            other => {
                return Some(format!(
                    "{name} is a map of type {other:?}, not {:?}",
                    self.kind
                ));
            }
        }
        let seen = (
            info.key_size() as usize,
            info.value_size() as usize,
            info.max_entries(),
        );
        let wanted = (self.key, self.value, self.entries);
        (seen != wanted)
            .then(|| format!("{name} has (key, value, entries) {seen:?}, not {wanted:?}"))
    }
}

/// Opens a pinned link, if it is there and the kernel knows it.
pub(super) fn open_link(path: &Path) -> Option<PinnedLink> {
    path.exists()
        .then(|| PinnedLink::from_pin(path).ok())
        .flatten()
}

/// Detaches a pinned link and removes its pin.
pub(super) fn remove_link(path: &Path) -> Result<(), KernelError> {
    if path.exists()
        && let Err(error) = super::link::detach(path)
    {
        // Its interface is gone, most likely; without its pin, the kernel lets go of it in any case.
        tracing::debug!(path = %path.display(), %error, "a link cannot be detached");
    }
    remove(path)
}

/// Removes a pin.
fn remove(path: &Path) -> Result<(), KernelError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(KernelError::Pin {
            action: "remove",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn lock(path: &Path) -> Result<File, KernelError> {
    let failed = |source| KernelError::Pin {
        action: "lock",
        path: path.to_owned(),
        source,
    };
    let mut folder = File::open(path).map_err(failed)?;
    // A process that has just ended may hold it a moment longer, by a child that it was starting.
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match folder.try_lock() {
            Ok(()) if is_at(&folder, path) => return Ok(folder),
            // Whoever had it has removed the folder: this lock would keep nobody out.
            Ok(()) => {
                make(path)?;
                folder = File::open(path).map_err(failed)?;
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_PATIENCE / 20);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(KernelError::InUse {
                    pin_dir: path.to_owned(),
                });
            }
        }
    }
}

/// Whether `path` still is the folder that was opened there.
fn is_at(folder: &File, path: &Path) -> bool {
    match (folder.metadata(), fs::metadata(path)) {
        (Ok(opened), Ok(there)) => (opened.dev(), opened.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

fn make(path: &Path) -> Result<(), KernelError> {
    fs::create_dir_all(path).map_err(|source| match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => KernelError::NotPermitted {
            pin_dir: path.to_owned(),
        },
        _ => KernelError::Pin {
            action: "make",
            path: path.to_owned(),
            source,
        },
    })
}

fn is_bpf(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: an all-zero statfs is a valid value of that plain record.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is a string with its end, and `stat` a record of the kernel's shape.
    let result = unsafe { libc::statfs(path.as_ptr(), &raw mut stat) };
    result == 0 && stat.f_type as u64 == BPF_FS_MAGIC
}

fn mount(at: &Path) -> Result<(), KernelError> {
    if fs::metadata(at).map(|metadata| metadata.mode()).is_err() {
        return Err(KernelError::NoBpfFileSystem {
            path: at.to_owned(),
        });
    }
    let Ok(target) = CString::new(at.as_os_str().as_bytes()) else {
        return Err(KernelError::NoBpfFileSystem {
            path: at.to_owned(),
        });
    };
    let kind = c"bpf";
    // SAFETY: all arguments are strings with their ends; there is no data.
    let result = unsafe {
        libc::mount(
            kind.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    if result == 0 {
        tracing::info!(path = %at.display(), "mounted the BPF file system");
        return Ok(());
    }
    match io::Error::last_os_error().raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Err(KernelError::NotPermitted {
            pin_dir: at.to_owned(),
        }),
        _ => Err(KernelError::NoBpfFileSystem {
            path: at.to_owned(),
        }),
    }
}
