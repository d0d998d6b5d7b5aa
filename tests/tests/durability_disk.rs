//! The disk that forgets, itself: what programs may rely on, what is lost with the power, and the faults.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use headgate_tests::disk::{BLOCK_BYTES, Disk, Fate, Fault, On, SECTOR_BYTES};
use headgate_tests::skip;
use nix::sys::statvfs::statvfs;

/// Large enough for every test that isn't about space.
const BYTES: u64 = 64 << 20;

fn sync_folder(path: &Path) {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .expect("syncing a folder");
}

/// Writes a file and makes it safe, its name too.
fn store(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).expect("creating a file");
    file.write_all(bytes).expect("writing");
    file.sync_all().expect("syncing a file");
    sync_folder(path.parent().expect("it is in a folder"));
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("reading a folder");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
    let mut names: Vec<String> = entries
        .map(|entry| name(entry).to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    names
}

#[test]
fn programs_find_a_filesystem() {
    if let Err(reason) = Disk::available() {
        skip!("{reason}");
    }
    let disk = Disk::mount(BYTES);
    let root = disk.path();
    fs::create_dir_all(root.join("a/b")).expect("folders");
    let path = root.join("a/b/file");
    let mut file = OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .open(&path)
        .expect("a new file");
    let again = OpenOptions::new().create_new(true).write(true).open(&path);
    assert_eq!(
        again.map_err(|error| error.kind()).err(),
        Some(ErrorKind::AlreadyExists)
    );
    file.write_all(&[7; 10_000]).expect("writing");
    file.write_all_at(b"middle", 5_000).expect("writing");
    file.set_len(20_000).expect("lengthening");
    let mut read = Vec::new();
    file.seek(SeekFrom::Start(4_998)).expect("seeking");
    file.read_to_end(&mut read).expect("reading");
    assert_eq!(
        (&read[..9], read.len()),
        (&b"\x07\x07middle\x07"[..], 15_002)
    );
    file.set_len(3).expect("cutting");
    assert_eq!(fs::read(&path).expect("reading"), [7; 3]);

    // SAFETY: the descriptor is open.
    let allocated = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, 100_000) };
    assert_eq!(
        (allocated, file.metadata().expect("its length").len()),
        (0, 100_000)
    );
    let mut appended = OpenOptions::new()
        .append(true)
        .open(&path)
        .expect("the file");
    appended.write_all(b"end").expect("appending");
    assert_eq!(fs::metadata(&path).expect("its length").len(), 100_003);

    let other = File::open(&path).expect("the file again");
    file.lock().expect("nobody has locked it");
    assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
    file.unlock().expect("it is ours");
    other.try_lock().expect("it is free");

    fs::hard_link(&path, root.join("second")).expect("a second name");
    assert!(
        fs::hard_link(&path, root.join("second")).is_err(),
        "it exists"
    );
    fs::remove_file(root.join("second")).expect("deleting one name");
    assert_eq!(fs::metadata(&path).expect("the other").len(), 100_003);

    fs::write(root.join("target"), "old").expect("a file");
    fs::rename(&path, root.join("target")).expect("renaming over a file");
    assert_eq!(names(root), ["a", "target"]);
    assert!(fs::remove_dir(root.join("a")).is_err(), "it isn't empty");
    fs::remove_file(root.join("target")).expect("deleting");
    file.write_all_at(b"still there", 0)
        .expect("what is open outlives its name");
    let mut start = [0; 11];
    file.read_exact_at(&mut start, 0).expect("reading");
    assert_eq!(&start, b"still there");
    fs::remove_dir_all(root.join("a")).expect("deleting folders");
    assert_eq!(names(root), [""; 0]);
}

#[test]
fn only_what_was_synced_outlives_the_power() {
    if let Err(reason) = Disk::available() {
        skip!("{reason}");
    }
    let disk = Disk::mount(BYTES);
    let path = |name: &str| disk.path().join(name);
    store(&path("kept"), b"safe");
    store(&path("renamed"), b"renamed");
    store(&path("deleted"), b"deleted");
    fs::create_dir(path("folder")).expect("a folder");
    sync_folder(disk.path());

    // Written behind the sync, of a file whose name is safe.
    let kept = OpenOptions::new()
        .write(true)
        .open(path("kept"))
        .expect("the file");
    kept.write_all_at(b"lost", 0).expect("writing");
    kept.set_len(100).expect("lengthening");
    drop(kept);
    // Synced, but its name isn't.
    File::create(path("nameless"))
        .and_then(|file| file.sync_all())
        .expect("a file");
    fs::rename(path("renamed"), path("folder/moved")).expect("renaming");
    fs::remove_file(path("deleted")).expect("deleting");
    let lost = disk.lose_power(Fate::Forgotten);
    assert_eq!((lost.changes, lost.kept, lost.names), (2, 0, 3));
    assert_eq!(names(disk.path()), ["deleted", "folder", "kept", "renamed"]);
    assert_eq!(fs::read(path("kept")).expect("reading"), b"safe");
    assert_eq!(fs::read(path("deleted")).expect("reading"), b"deleted");

    // A rename is safe when one of its two folders is synced, and then in both.
    fs::rename(path("renamed"), path("folder/moved")).expect("renaming");
    fs::remove_file(path("deleted")).expect("deleting");
    sync_folder(&path("folder"));
    disk.lose_power(Fate::Forgotten);
    assert_eq!(names(disk.path()), ["deleted", "folder", "kept"]);
    assert_eq!(names(&path("folder")), ["moved"]);

    // O_DSYNC is an fsync with every write.
    let mut direct = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DSYNC)
        .open(path("kept"))
        .expect("the file");
    direct.write_all(b"SAFE").expect("writing");
    drop(direct);
    disk.lose_power(Fate::Forgotten);
    assert_eq!(fs::read(path("kept")).expect("reading"), b"SAFE");
}

/// The writes of one file that survive, over many seeds: some, not always the first ones, and some of them torn.
#[test]
fn chance_keeps_some_writes_and_tears_the_last() {
    if let Err(reason) = Disk::available() {
        skip!("{reason}");
    }
    const WRITES: u64 = 4;
    let disk = Disk::mount(BYTES);
    let path = disk.path().join("file");
    let (mut nothing, mut everything, mut reordered, mut torn) = (0, 0, 0, 0);
    for seed in 0..200 {
        store(&path, &vec![b'-'; (WRITES * BLOCK_BYTES) as usize]);
        let file = OpenOptions::new()
            .write(true)
            .open(&path)
            .expect("the file");
        for number in 0..WRITES {
            let bytes = vec![b'0' + number as u8; BLOCK_BYTES as usize];
            file.write_all_at(&bytes, number * BLOCK_BYTES)
                .expect("writing");
        }
        drop(file);
        let lost = disk.lose_power(Fate::Chance(seed));
        assert_eq!(lost.kept + lost.changes, WRITES as usize);
        let found = fs::read(&path).expect("reading");
        let mut kept = Vec::new();
        for (number, block) in (b'0'..).zip(found.chunks(BLOCK_BYTES as usize)) {
            let length = block.iter().take_while(|&&byte| byte == number).count();
            assert!(
                block[length..].iter().all(|&byte| byte == b'-'),
                "seed {seed}"
            );
            assert_eq!(length as u64 % SECTOR_BYTES, 0, "seed {seed}");
            torn += u32::from(length > 0 && length < block.len());
            kept.push(length > 0);
        }
        nothing += u32::from(!kept.contains(&true));
        everything += u32::from(!kept.contains(&false));
        reordered += u32::from(kept.is_sorted() && kept[0] != kept[3]);
        // What is left is on the disk: the next power loss takes nothing.
        assert_eq!(disk.lose_power(Fate::Forgotten).changes, 0);
        assert_eq!(fs::read(&path).expect("reading"), found);
    }
    let all = [nothing, everything, reordered, torn];
    assert!(all.iter().all(|&count| count > 5), "{all:?}");
}

#[test]
fn the_same_seed_does_the_same() {
    if let Err(reason) = Disk::available() {
        skip!("{reason}");
    }
    let run = |seed: u64| {
        let disk = Disk::mount(BYTES);
        for name in 0..20 {
            fs::write(disk.path().join(format!("{name:02}")), [1; 3000]).expect("writing");
        }
        disk.lose_power(Fate::Chance(seed));
        let left = names(disk.path());
        left.into_iter()
            .map(|name| (fs::read(disk.path().join(&name)).expect("reading"), name))
            .collect::<Vec<_>>()
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn operations_fail_as_told() {
    if let Err(reason) = Disk::available() {
        skip!("{reason}");
    }
    let disk = Disk::mount(BYTES);
    let path = disk.path().join("file");
    store(&path, b"before");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .expect("the file");
    let errno = |result: std::io::Result<()>| result.map_err(|error| error.raw_os_error());
    let failed = Err(Some(libc::EIO));
    let fault = |on, after| Fault {
        on,
        errno: libc::EIO,
        after,
    };
    disk.fail(fault(On::Write, 2));
    assert_eq!(errno(file.write_all(b"1")), Ok(()));
    assert_eq!(errno(file.write_all(b"2")), Ok(()));
    assert_eq!(errno(file.write_all(b"3")), failed);
    assert_eq!(errno(file.set_len(0)), failed);
    disk.heal();
    assert_eq!(errno(file.write_all(b"3")), Ok(()));
    disk.fail(fault(On::Read, 0));
    assert_eq!(errno(fs::read(&path).map(drop)), failed);
    disk.fail(fault(On::Names, 0));
    assert_eq!(errno(fs::remove_file(&path)), failed);
    assert_eq!(
        errno(File::create(disk.path().join("new")).map(drop)),
        failed
    );
    disk.heal();
    assert_eq!(fs::read(&path).expect("reading"), b"123ore");
    assert_eq!(disk.activity().faults, 5);

    // What a failed fsync should have made safe stays readable, is not tried again, and is lost with the power.
    disk.fail(fault(On::Sync, 0));
    assert_eq!(errno(file.sync_data()), failed);
    disk.heal();
    assert_eq!(errno(file.sync_data()), Ok(()));
    assert_eq!(fs::read(&path).expect("reading"), b"123ore");
    drop(file);
    disk.lose_power(Fate::Forgotten);
    assert_eq!(fs::read(&path).expect("reading"), b"before");
}

#[test]
fn space_ends_and_comes_back() {
    if let Err(reason) = Disk::available() {
        skip!("{reason}");
    }
    let disk = Disk::mount(1 << 20);
    let free = || {
        let told = statvfs(disk.path()).expect("statvfs");
        told.blocks_available() * told.fragment_size()
    };
    assert_eq!(free(), 1 << 20);
    let filler = disk.path().join("filler");
    fs::write(&filler, vec![1; (1 << 20) - 8192]).expect("there is room");
    assert_eq!(free(), 8192);
    let full = |result: std::io::Result<()>| {
        result.map_err(|error| error.kind()) == Err(ErrorKind::StorageFull)
    };
    let path = disk.path().join("file");
    assert!(full(fs::write(&path, vec![1; 8193])));
    assert_eq!(
        fs::metadata(&path).expect("its length").len(),
        8192,
        "what fitted"
    );
    assert!(full(fs::create_dir(disk.path().join("folder"))));
    fs::remove_file(&filler).expect("deleting");
    fs::write(&path, vec![1; 8193]).expect("there is room again");
    disk.resize(0);
    assert!(full(fs::write(&path, b"1")));
    assert_eq!(free(), 0);
    disk.claim_free(Some(8192));
    assert_eq!(free(), 8192);
}

#[test]
fn bits_are_flipped_where_told() {
    if let Err(reason) = Disk::available() {
        skip!("{reason}");
    }
    let disk = Disk::mount(BYTES);
    store(&disk.path().join("spared"), &[0; 1000]);
    store(&disk.path().join("chosen"), &[0; 1000]);
    let flipped = disk.flip_bits(1, 3, |path| path.ends_with("chosen"));
    assert_eq!(flipped.len(), 3);
    let ones = |name: &str| {
        let bytes = fs::read(disk.path().join(name)).expect("reading");
        bytes.iter().map(|byte| byte.count_ones()).sum::<u32>()
    };
    assert_eq!((ones("spared"), ones("chosen")), (0, 3));
    disk.lose_power(Fate::Forgotten);
    assert_eq!((ones("spared"), ones("chosen")), (0, 3));
    assert!(disk.flip_bits(1, 3, |_| false).is_empty());
}

/// A disk whose test fails, and one whose files are still open, leave no mount behind.
#[test]
fn no_mount_is_left_behind() {
    if let Err(reason) = Disk::available() {
        skip!("{reason}");
    }
    let is_mounted = |path: &Path| {
        let mounts = fs::read_to_string("/proc/thread-self/mounts").expect("the mounts");
        mounts.contains(&path.display().to_string())
    };
    let failing = std::thread::spawn(move || {
        let disk = Disk::mount(BYTES);
        assert!(is_mounted(disk.path()));
        let path = disk.path().to_owned();
        std::panic::panic_any(path);
    });
    let path = failing.join().expect_err("it panics");
    let path = path.downcast::<PathBuf>().expect("it panics with its path");
    assert!(!path.exists());

    let disk = Disk::mount(BYTES);
    let path = disk.path().to_owned();
    let open = File::create(path.join("open")).expect("a file");
    drop(disk);
    assert!(!is_mounted(&path));
    assert!(!path.exists());
    drop(open);
    let all = fs::read_to_string("/proc/self/mounts").expect("the mounts");
    assert!(!all.contains("headgate-disk"), "{all}");
}
