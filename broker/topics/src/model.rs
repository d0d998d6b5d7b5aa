//! The table against a list of filters, by random operations; with a weakened hash too, so that filters collide.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::hash::PathHasher;
use crate::{Cache, Subscriber, Table, filter_matches, validate_filter, validate_topic_name};

#[derive(Clone, Debug)]
enum Operation {
    Subscribe(String, u64, u8),
    Unsubscribe(String, u64),
    Replace(String, u64, u64, u8),
    Match(String),
}

fn topic() -> impl Strategy<Value = String> {
    let level = prop_oneof![4 => Just(""), 8 => Just("a"), 8 => Just("b"), 2 => Just("longer than eight bytes"), 2 => Just("$x")];
    vec(level, 1..5)
        .prop_map(|levels| levels.join("/"))
        .prop_filter("valid", |topic| validate_topic_name(topic).is_ok())
}

fn filter() -> impl Strategy<Value = String> {
    let level = prop_oneof![3 => Just(""), 8 => Just("a"), 8 => Just("b"), 6 => Just("+"), 2 => Just("$x"), 1 => Just("longer than eight bytes")];
    (vec(level, 1..5), prop::bool::weighted(0.25))
        .prop_map(|(mut levels, multi)| {
            if multi {
                levels.pop();
                levels.push("#");
            }
            levels.join("/")
        })
        .prop_filter("valid", |filter| validate_filter(filter).is_ok())
}

fn operation() -> impl Strategy<Value = Operation> {
    let id = 1..14u64;
    prop_oneof![
        5 => (filter(), id.clone(), any::<u8>()).prop_map(|(filter, id, options)| Operation::Subscribe(filter, id, options)),
        3 => (filter(), id.clone()).prop_map(|(filter, id)| Operation::Unsubscribe(filter, id)),
        1 => (filter(), id.clone(), id, any::<u8>()).prop_map(|(filter, old, new, options)| Operation::Replace(filter, old, new, options)),
        3 => topic().prop_map(Operation::Match),
    ]
}

/// The obvious table.
#[derive(Default)]
struct Model(Vec<(String, Subscriber)>);

impl Model {
    fn position(&self, filter: &str, id: u64) -> Option<usize> {
        self.0
            .iter()
            .position(|(own, subscriber)| own == filter && subscriber.id() == id)
    }

    fn subscribe(&mut self, filter: &str, subscriber: Subscriber) -> Option<Subscriber> {
        match self.position(filter, subscriber.id()) {
            Some(at) => Some(std::mem::replace(&mut self.0[at].1, subscriber)),
            None => {
                self.0.push((filter.into(), subscriber));
                None
            }
        }
    }

    fn unsubscribe(&mut self, filter: &str, id: u64) -> Option<Subscriber> {
        self.position(filter, id).map(|at| self.0.remove(at).1)
    }

    fn replace(&mut self, filter: &str, old: u64, new: Subscriber) -> bool {
        if self.position(filter, old).is_none() {
            return false;
        }
        self.unsubscribe(filter, old);
        self.subscribe(filter, new);
        true
    }

    fn matches(&self, topic: &str) -> Vec<Subscriber> {
        self.0
            .iter()
            .filter(|(filter, _)| filter_matches(filter, topic))
            .map(|entry| entry.1)
            .collect()
    }
}

fn sorted(mut subscribers: Vec<Subscriber>) -> Vec<Subscriber> {
    subscribers.sort_by_key(|subscriber| subscriber.bits());
    subscribers
}

fn run(table: &Table, operations: Vec<Operation>) -> Result<(), TestCaseError> {
    let empty_bytes = table.memory_bytes();
    let mut model = Model::default();
    let mut cache = Cache::new(4);
    for operation in operations {
        match operation {
            Operation::Subscribe(filter, id, options) => {
                let subscriber = Subscriber::new(id, options);
                prop_assert_eq!(
                    table.subscribe(&filter, subscriber),
                    model.subscribe(&filter, subscriber)
                );
            }
            Operation::Unsubscribe(filter, id) => {
                prop_assert_eq!(
                    table.unsubscribe(&filter, id),
                    model.unsubscribe(&filter, id)
                );
            }
            Operation::Replace(filter, old, new, options) => {
                let new = Subscriber::new(new, options);
                prop_assert_eq!(
                    table.replace(&filter, old, new),
                    model.replace(&filter, old, new)
                );
            }
            Operation::Match(topic) => {
                let mut found = Vec::new();
                table.matches(&topic, &mut found);
                let expected = sorted(model.matches(&topic));
                prop_assert_eq!(&sorted(found), &expected, "{}", &topic);
                prop_assert_eq!(
                    &sorted(cache.matches(table, &topic).to_vec()),
                    &expected,
                    "cached {}",
                    &topic
                );
            }
        }
        prop_assert_eq!(table.len(), model.0.len());
    }
    for (filter, subscriber) in model.0 {
        prop_assert_eq!(
            table.unsubscribe(&filter, subscriber.id()),
            Some(subscriber)
        );
    }
    prop_assert_eq!(
        (table.len(), table.memory_bytes()),
        (0, empty_bytes),
        "everything is given back"
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 600 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_model(seed: [u64; 2], operations in vec(operation(), 1..if cfg!(miri) { 40 } else { 200 })) {
        run(&Table::new(seed), operations)?;
    }

    /// With 2 to 16 different hashes nearly all filters collide; nothing may go astray.
    #[test]
    fn agrees_with_the_model_when_hashes_collide(seed: [u64; 2], bits in 1..5u32, operations in vec(operation(), 1..if cfg!(miri) { 40 } else { 120 })) {
        let mask = ((1 << bits) - 1) << 4;
        run(&Table::with_hasher(PathHasher::with_mask(seed, mask)), operations)?;
    }
}

/// Long lists, through all their shapes and back, against the model; order of leaving: first, last and middle.
#[test]
fn long_lists_grow_and_shrink() {
    let count = if cfg!(miri) { 40 } else { 5000 };
    for order in 0..3 {
        let table = Table::new([1, 2]);
        let empty_bytes = table.memory_bytes();
        for id in 1..=count {
            assert_eq!(table.subscribe("a/+", Subscriber::new(id, 1)), None);
            assert_eq!(
                table
                    .subscribe("a/+", Subscriber::new(id, 2))
                    .map(Subscriber::options),
                Some(1)
            );
        }
        let mut left: Vec<u64> = (1..=count).collect();
        while !left.is_empty() {
            let at = [0, left.len() - 1, left.len() / 2][order];
            let id = left.remove(at);
            assert_eq!(table.unsubscribe("a/+", id), Some(Subscriber::new(id, 2)));
            assert_eq!(table.unsubscribe("a/+", id), None);
            if left.len().is_multiple_of(97) || left.len() < 20 {
                let mut found = Vec::new();
                table.matches("a/b", &mut found);
                let mut ids: Vec<_> = found.into_iter().map(Subscriber::id).collect();
                ids.sort_unstable();
                assert_eq!(ids, left);
            }
            if let Some(&id) = left.get(left.len() / 3) {
                // Takeover: to a new identifier and back.
                assert!(table.replace("a/+", id, Subscriber::new(count + id, 3)));
                assert!(!table.replace("a/+", id, Subscriber::new(count + id, 3)));
                assert!(table.replace("a/+", count + id, Subscriber::new(id, 2)));
            }
        }
        assert_eq!((table.len(), table.memory_bytes()), (0, empty_bytes));
    }
}

/// Many filters: segments grow, shrink and are cleaned of freed slots.
#[test]
fn segments_grow_and_shrink() {
    let table = Table::new([3, 4]);
    let empty_bytes = table.memory_bytes();
    let count: u64 = if cfg!(miri) { 300 } else { 60_000 };
    let filter = |id: u64| format!("site/{}/device/{id}/+", id % 50);
    for round in 0..2 {
        for id in 1..=count {
            assert_eq!(
                table.subscribe(&filter(id), Subscriber::new(id, round)),
                None
            );
        }
        for id in 1..=count {
            let mut found = Vec::new();
            table.matches(&format!("site/{}/device/{id}/x", id % 50), &mut found);
            assert_eq!(found, [Subscriber::new(id, round)]);
        }
        for id in 1..=count {
            assert_eq!(
                table.unsubscribe(&filter(id), id),
                Some(Subscriber::new(id, round))
            );
        }
    }
    assert_eq!((table.len(), table.memory_bytes()), (0, empty_bytes));
}

/// Deeper topics than filters can be: only `#` reaches them.
#[test]
fn deep_topics() {
    let table = Table::new([5, 6]);
    table.subscribe("a/#", Subscriber::new(1, 0));
    table.subscribe(
        &("a/+".to_owned() + &"/+".repeat(126)),
        Subscriber::new(2, 0),
    );
    let found = |levels: usize| {
        let mut found = Vec::new();
        table.matches(&("a".to_owned() + &"/x".repeat(levels - 1)), &mut found);
        sorted(found)
            .into_iter()
            .map(Subscriber::id)
            .collect::<Vec<_>>()
    };
    assert_eq!(found(127), [1]);
    assert_eq!(found(128), [1, 2]);
    assert_eq!(found(129), [1]);
    assert_eq!(found(60_000), [1]);
}

/// What was lost goes from every filter, what was not stays.
#[test]
fn removes_what_is_named() {
    let table = Table::new([7, 8]);
    let empty_bytes = table.memory_bytes();
    let filters = ["a", "a/b", "a/+", "a/#", "+/b", "#"];
    for filter in filters {
        for id in 1..=200 {
            table.subscribe(filter, Subscriber::new(id, 0));
        }
    }
    assert_eq!(table.remove_where(|s| s.id() % 2 == 0), filters.len() * 100);
    assert_eq!(table.len(), filters.len() * 100);
    let mut found = Vec::new();
    table.matches("a/b", &mut found);
    assert!(found.iter().all(|s| s.id() % 2 == 1));
    assert_eq!(found.len(), 500);
    assert_eq!(table.remove_where(|_| true), filters.len() * 100);
    assert_eq!((table.len(), table.memory_bytes()), (0, empty_bytes));
}
