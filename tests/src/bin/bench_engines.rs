//! Measures two embedded stores, fjall and redb, on the broker's work: the choice between them is
//! explained in broker/ARCHITECTURE.md.
//!
//! Both get the same keys and values: commits of 1, 16 and 256 queued messages of 100 bytes, each
//! commit synced, the deletion of what was acknowledged, the bytes on disk, and a start after a
//! kill with 100,000 sessions, a queued message each, and 1,000,000 retained messages. The kill
//! is real: the store is filled by a child process that ends without closing it.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use headgate_tests::bench::{self, Row};
use nix::time::{ClockId, clock_gettime};
use redb::{Durability, ReadableDatabase, ReadableTable, TableDefinition};

const COMMITS: usize = 400;
const SESSIONS: u64 = 100_000;
const RETAINED: u64 = 1_000_000;
/// What a queued message of 100 bytes comes to with its topic and properties.
const VALUE: [u8; 150] = [b'x'; 150];

/// What the broker needs of a store.
trait Engine {
    /// One atomic commit; `true` = it is on the disk when this returns.
    fn commit(&mut self, puts: &[([u8; 24], &[u8])], deletes: &[[u8; 24]], sync: bool);
    /// Entries from the beginning to the end.
    fn scan(&self) -> u64;
}

struct Fjall {
    db: fjall::Database,
    keys: fjall::Keyspace,
}

impl Fjall {
    fn open(path: &Path) -> Self {
        let db = fjall::Database::builder(path).open();
        let db = db.expect("the folder can be used");
        let options = || fjall::KeyspaceCreateOptions::default().max_memtable_size(16 << 20);
        let keys = db.keyspace("q", options).expect("the folder can be used");
        Self { db, keys }
    }
}

impl Engine for Fjall {
    fn commit(&mut self, puts: &[([u8; 24], &[u8])], deletes: &[[u8; 24]], sync: bool) {
        let mut batch = self.db.batch();
        if sync {
            batch = batch.durability(Some(fjall::PersistMode::SyncData));
        }
        for (key, value) in puts {
            batch.insert(&self.keys, &key[..], *value);
        }
        for key in deletes {
            batch.remove(&self.keys, &key[..]);
        }
        batch.commit().expect("the disk works");
    }

    fn scan(&self) -> u64 {
        let entries = self.keys.iter().map(|entry| {
            let (_, value) = entry.into_inner().expect("the disk works");
            u64::from(!value.is_empty())
        });
        entries.sum()
    }
}

const TABLE: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("q");

struct Redb {
    db: redb::Database,
    quick_repair: bool,
}

impl Redb {
    fn open(path: &Path, quick_repair: bool) -> Self {
        fs::create_dir_all(path).expect("the folder can be used");
        let db = redb::Database::builder()
            .set_cache_size(64 << 20)
            .create(path.join("redb"));
        Self {
            db: db.expect("the file can be used"),
            quick_repair,
        }
    }
}

impl Engine for Redb {
    fn commit(&mut self, puts: &[([u8; 24], &[u8])], deletes: &[[u8; 24]], sync: bool) {
        let mut txn = self.db.begin_write().expect("there is one writer");
        if !sync {
            txn.set_durability(Durability::None).expect("no savepoints");
        }
        txn.set_quick_repair(self.quick_repair);
        {
            let mut table = txn.open_table(TABLE).expect("it has this type");
            for (key, value) in puts {
                table.insert(&key[..], *value).expect("the disk works");
            }
            for key in deletes {
                table.remove(&key[..]).expect("the disk works");
            }
        }
        txn.commit().expect("the disk works");
    }

    fn scan(&self) -> u64 {
        let txn = self.db.begin_read().expect("it is open");
        let table = txn.open_table(TABLE).expect("it was made");
        let entries = table.iter().expect("the disk works").map(|entry| {
            let (_, value) = entry.expect("the disk works");
            u64::from(!value.value().is_empty())
        });
        entries.sum()
    }
}

fn open(engine: &str, path: &Path) -> Box<dyn Engine> {
    match engine {
        "fjall" => Box::new(Fjall::open(path)),
        "redb" => Box::new(Redb::open(path, false)),
        _ => Box::new(Redb::open(path, true)),
    }
}

const ENGINES: [&str; 3] = ["fjall", "redb", "redb_quick_repair"];

/// Session in the first 16 bytes, scattered as sessions are; then the record's sequence.
fn key(session: u64, sequence: u64) -> [u8; 24] {
    let mut key = [0; 24];
    let scattered = session.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    key[..8].copy_from_slice(&scattered.to_be_bytes());
    key[8..16].copy_from_slice(&session.to_be_bytes());
    key[16..].copy_from_slice(&sequence.to_be_bytes());
    key
}

fn cpu() -> Duration {
    let clock = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID);
    clock.expect("every Linux has this clock").into()
}

fn disk_bytes(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => disk_bytes(&entry.path()),
        Ok(data) => data.blocks() * 512,
        Err(_) => 0,
    };
    entries.map(of).sum()
}

/// Commits of `size` messages for as many sessions, and then of their deletion.
fn commits(engine: &mut dyn Engine, size: u64, rows: &mut Vec<Row>, name: &str) {
    let (start, spent) = (Instant::now(), cpu());
    for round in 0..COMMITS as u64 {
        let puts: Vec<_> = (0..size)
            .map(|at| (key(at, round + 1), &VALUE[..]))
            .collect();
        engine.commit(&puts, &[], true);
    }
    let (wall, used) = (start.elapsed(), cpu() - spent);
    let records = COMMITS as f64 * size as f64;
    let row = |what: &str, value: f64, unit| Row::info(&format!("{name}_{what}"), value, unit);
    rows.push(row(
        &format!("commit_{size}_us"),
        wall.as_micros() as f64 / COMMITS as f64,
        "us",
    ));
    rows.push(row(
        &format!("records_per_cpu_s_in_{size}"),
        (records / used.as_secs_f64()).round(),
        "/s",
    ));
    let start = Instant::now();
    for round in 0..COMMITS as u64 {
        let keys: Vec<_> = (0..size).map(|at| key(at, round + 1)).collect();
        engine.commit(&[], &keys, true);
    }
    rows.push(row(
        &format!("delete_{size}_us"),
        start.elapsed().as_micros() as f64 / COMMITS as f64,
        "us",
    ));
}

fn fill(engine: &mut dyn Engine) {
    let entries = (0..SESSIONS)
        .flat_map(|session| (0..4).map(move |n| key(session, n)))
        .chain((0..RETAINED).map(|topic| key(topic | 1 << 63, 0)));
    let entries: Vec<_> = entries.map(|key| (key, &VALUE[..])).collect();
    for portion in entries.chunks(10_000) {
        engine.commit(portion, &[], false);
    }
    engine.commit(&[(key(0, 9), &VALUE[..])], &[], true);
}

fn measure(name: &str, path: &Path) -> Vec<Row> {
    let mut rows = Vec::new();
    let small = path.join("small");
    for size in [1, 16, 256] {
        commits(&mut *open(name, &small), size, &mut rows, name);
    }
    let queue = path.join("queue");
    let mut engine = open(name, &queue);
    for portion in 0..1_000 {
        let keys = (0..100).map(|at| (key(at, portion), &VALUE[..]));
        engine.commit(&keys.collect::<Vec<_>>(), &[], portion % 10 == 9);
    }
    let bytes = disk_bytes(&queue) as f64 / 100_000.0;
    rows.push(Row::info(&format!("{name}_bytes_per_entry"), bytes, "B"));
    drop(engine);
    let large = path.join("large");
    let program = env::current_exe().expect("it is running");
    let filled = Command::new(program).arg(name).arg(&large).status();
    assert!(filled.is_ok_and(|status| status.code() == Some(9)));
    let start = Instant::now();
    let engine = open(name, &large);
    rows.push(Row::info(
        &format!("{name}_open_after_kill_s"),
        start.elapsed().as_secs_f64(),
        "s",
    ));
    assert_eq!(engine.scan(), 4 * SESSIONS + RETAINED + 1);
    rows.push(Row::info(
        &format!("{name}_open_and_scan_s"),
        start.elapsed().as_secs_f64(),
        "s",
    ));
    let bytes = disk_bytes(&large) as f64 / (4 * SESSIONS + RETAINED) as f64;
    rows.push(Row::info(
        &format!("{name}_large_bytes_per_entry"),
        bytes,
        "B",
    ));
    rows
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [engine, path] = &arguments[..] {
        let mut engine = open(engine, Path::new(path));
        fill(&mut *engine);
        // As good as a kill: nothing is closed.
        // SAFETY: ends the process, whatever other threads do.
        unsafe { libc::_exit(9) };
    }
    let folder = tempfile::tempdir_in(env::current_dir().expect("there is one"));
    let folder = folder.expect("the folder can be written");
    let rows = ENGINES.map(|name| {
        eprintln!("{name}");
        measure(name, &folder.path().join(name))
    });
    bench::print(&rows.concat());
}
