//! Every interleaving of small histories, by loom: what readers may see while something is published. `cargo xtask test` runs it; alone:
//! `RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=3 cargo test --release -p headgate-topics --lib --target-dir target/loom -- interleavings`.
//!
//! Under loom the table has one segment of 8 slots, of which 6 may be used, and chunks of 8.

use std::sync::Arc;

use loom::thread;

use crate::hash::PathHasher;
use crate::{Cache, Subscriber, Table};

const SEED: [u64; 2] = [1, 2];

fn ids(table: &Table, topic: &str) -> Vec<u64> {
    let mut found = Vec::new();
    table.matches(topic, &mut found);
    let mut ids: Vec<_> = found.into_iter().map(Subscriber::id).collect();
    ids.sort_unstable();
    ids
}

fn subscriber(id: u64) -> Subscriber {
    Subscriber::new(id, 0)
}

/// Runs `write` beside a reader of `topic`, who may see any of `allowed`, and afterwards the last of them.
fn race(
    setup: fn(&Table),
    write: fn(&Table),
    topic: &'static str,
    allowed: &'static [&'static [u64]],
    hasher: fn() -> PathHasher,
) {
    loom::model(move || {
        let table = Arc::new(Table::with_hasher(hasher()));
        setup(&table);
        let writer = thread::spawn({
            let table = Arc::clone(&table);
            move || write(&table)
        });
        let seen = ids(&table, topic);
        assert!(allowed.contains(&&*seen), "{seen:?}");
        writer.join().expect("no panic");
        assert_eq!(ids(&table, topic), *allowed[allowed.len() - 1]);
    });
}

fn good() -> PathHasher {
    PathHasher::new(SEED)
}

/// All paths have one of two hashes.
fn colliding() -> PathHasher {
    PathHasher::with_mask(SEED, 1 << 20)
}

#[test]
fn a_subscription_appears_whole() {
    race(
        |table| {
            table.subscribe("a/b", subscriber(1));
        },
        |table| {
            table.subscribe("a/+", subscriber(2));
        },
        "a/b",
        &[&[1], &[1, 2]],
        good,
    );
}

#[test]
fn replace_shows_the_old_or_the_new() {
    race(
        |table| {
            table.subscribe("a/+", subscriber(1));
        },
        |table| assert!(table.replace("a/+", 1, subscriber(2))),
        "a/b",
        &[&[1], &[2]],
        good,
    );
}

#[test]
fn replace_in_a_list_shows_the_old_or_the_new() {
    race(
        |table| {
            for id in 1..=8 {
                table.subscribe("a", subscriber(id));
            }
        },
        |table| assert!(table.replace("a", 3, subscriber(9))),
        "a",
        &[&[1, 2, 3, 4, 5, 6, 7, 8], &[1, 2, 4, 5, 6, 7, 8, 9]],
        good,
    );
}

#[test]
fn who_stays_in_a_list_is_seen_once() {
    race(
        |table| {
            for id in 1..=9 {
                table.subscribe("a", subscriber(id));
            }
        },
        |table| {
            table.unsubscribe("a", 2);
        },
        "a",
        &[&[1, 2, 3, 4, 5, 6, 7, 8, 9], &[1, 3, 4, 5, 6, 7, 8, 9]],
        good,
    );
}

/// The slot of one filter is taken by another while a reader looks at it.
#[test]
fn a_slot_that_changes_hands_misleads_nobody() {
    race(
        |table| {
            table.subscribe("a", subscriber(1));
            table.subscribe("b", subscriber(2));
        },
        |table| {
            table.unsubscribe("a", 1);
            table.subscribe("c", subscriber(3));
        },
        "b",
        &[&[2]],
        colliding,
    );
}

/// A terminal's slot becomes a node's and the other way round.
#[test]
fn a_slot_that_changes_its_kind_misleads_nobody() {
    race(
        |table| {
            table.subscribe("a/b", subscriber(1));
        },
        |table| {
            table.unsubscribe("a/b", 1);
            table.subscribe("c/d", subscriber(2));
            table.subscribe("a", subscriber(3));
        },
        "a/b",
        &[&[1], &[]],
        good,
    );
}

#[test]
fn a_growing_segment_loses_nothing() {
    race(
        |table| {
            // Root, node and 3 terminals.
            table.subscribe("a/+", subscriber(1));
            table.subscribe("a/b", subscriber(2));
            table.subscribe("a/c", subscriber(3));
        },
        |table| {
            table.subscribe("a/d", subscriber(4));
            table.subscribe("a/e", subscriber(5));
            table.unsubscribe("a/c", 3);
        },
        "a/b",
        &[&[1, 2]],
        good,
    );
}

/// What the cache answers after a change was completed is what the table answers.
#[test]
fn the_cache_is_never_behind() {
    loom::model(|| {
        let table = Arc::new(Table::new(SEED));
        table.subscribe("a", subscriber(1));
        let writer = thread::spawn({
            let table = Arc::clone(&table);
            move || {
                table.subscribe("+", subscriber(2));
            }
        });
        let mut cache = Cache::new(1);
        let first = cache.matches(&table, "a").len();
        assert!(first == 1 || first == 2);
        writer.join().expect("no panic");
        assert_eq!(cache.matches(&table, "a").len(), 2);
    });
}
