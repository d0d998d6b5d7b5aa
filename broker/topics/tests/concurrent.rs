//! Readers beside writers: nobody who stays is missed or met twice, nobody else is met, a takeover shows one of two.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use headgate_topics::{Cache, Subscriber, Table, filter_matches};

const FILTERS: [&str; 10] = [
    "a/b/c", "a/+/c", "a/#", "+/b/c", "#", "a/b/+", "a/b/#", "x/y", "x/+", "a/b",
];
const TOPICS: [&str; 5] = ["a/b/c", "a/b", "x/y", "a/z/c", "q"];
/// Who stays: one in each of the first filters, and this many in `a/b/c`.
const STEADY: u64 = 1_500;
const WRITER_STEPS: u64 = if cfg!(miri) { 200 } else { 150_000 };

/// Identifiers tell the filter, so that a reader can check each: role · filter · number.
fn id(role: u64, filter: usize, number: u64) -> u64 {
    role << 40 | (filter as u64) << 32 | number
}

const STAYS: u64 = 1;
const COMES_AND_GOES: u64 = 2;
const TAKES_OVER: u64 = 3;

fn steady_count() -> u64 {
    if cfg!(miri) { 20 } else { STEADY }
}

fn set_up(table: &Table) {
    for (index, filter) in FILTERS.iter().enumerate() {
        table.subscribe(filter, Subscriber::new(id(STAYS, index, 0), 0));
        table.subscribe(filter, Subscriber::new(id(TAKES_OVER, index, 0), 0));
    }
    for number in 1..steady_count() {
        table.subscribe(FILTERS[0], Subscriber::new(id(STAYS, 0, number), 0));
    }
}

/// Checks what one match found.
fn check(topic: &str, found: &[Subscriber]) {
    let mut seen: HashMap<(u64, u64), u64> = HashMap::new();
    for subscriber in found {
        let (role, filter, number) = (
            subscriber.id() >> 40,
            subscriber.id() >> 32 & 0xFF,
            subscriber.id() & 0xFFFF_FFFF,
        );
        let filter_text = FILTERS[filter as usize];
        assert!(
            filter_matches(filter_text, topic),
            "{topic} must not reach {filter_text}"
        );
        // A takeover goes to and fro between the numbers 0 and 1: one of them is there.
        let number = if role == TAKES_OVER { 0 } else { number };
        *seen.entry((role, filter << 32 | number)).or_default() += 1;
    }
    for (index, filter) in FILTERS
        .iter()
        .enumerate()
        .filter(|(_, filter)| filter_matches(filter, topic))
    {
        let key = (index as u64) << 32;
        assert_eq!(
            seen.get(&(STAYS, key)),
            Some(&1),
            "{topic} reaches {filter} once"
        );
        assert_eq!(
            seen.get(&(TAKES_OVER, key)),
            Some(&1),
            "{topic} reaches {filter}'s old or new session"
        );
        if index == 0 {
            for number in 1..steady_count() {
                assert_eq!(seen.get(&(STAYS, key | number)), Some(&1), "{number}");
            }
        }
    }
}

fn write(table: &Table, seed: u64) {
    let mut random = seed;
    let mut next = |bound: u64| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % bound
    };
    let mut taken = [0; FILTERS.len()];
    for _ in 0..WRITER_STEPS {
        let index = next(FILTERS.len() as u64) as usize;
        let number = seed << 16 | next(24);
        let subscriber = Subscriber::new(id(COMES_AND_GOES, index, number), 0);
        match next(8) {
            0..3 => {
                table.subscribe(FILTERS[index], subscriber);
            }
            3..6 => {
                table.unsubscribe(FILTERS[index], subscriber.id());
            }
            // Filters of its own, so that slots are made, freed and reused and segments grow and shrink.
            6 => {
                let filter = format!(
                    "{}/{}",
                    FILTERS[index].trim_end_matches(['#', '/']),
                    next(3000)
                );
                let subscriber = Subscriber::new(seed, 0);
                if table.subscribe(&filter, subscriber).is_some() {
                    table.unsubscribe(&filter, seed);
                }
            }
            _ if seed == 1 => {
                let old = taken[index];
                let new = 1 - old;
                assert!(table.replace(
                    FILTERS[index],
                    id(TAKES_OVER, index, old),
                    Subscriber::new(id(TAKES_OVER, index, new), 0)
                ));
                taken[index] = new;
            }
            _ => {}
        }
    }
}

#[test]
fn readers_beside_writers() {
    let table = Arc::new(Table::new([7, 8]));
    set_up(&table);
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (table, done) = (Arc::clone(&table), Arc::clone(&done));
            thread::spawn(move || {
                let mut cache = Cache::new(8);
                let mut found = Vec::new();
                loop {
                    let last = done.load(Ordering::Acquire);
                    for topic in TOPICS {
                        found.clear();
                        table.matches(topic, &mut found);
                        check(topic, &found);
                        check(topic, cache.matches(&table, topic));
                    }
                    if last {
                        return;
                    }
                }
            })
        })
        .collect();
    let writers: Vec<_> = [1, 2]
        .map(|seed| {
            let table = Arc::clone(&table);
            thread::spawn(move || write(&table, seed))
        })
        .into();
    for writer in writers {
        writer.join().expect("no writer panics");
    }
    done.store(true, Ordering::Release);
    for reader in readers {
        reader.join().expect("every reader saw what it should");
    }
}
