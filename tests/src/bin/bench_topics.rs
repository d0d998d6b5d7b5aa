//! Measures the topic table: 1,000,000 subscriptions (85 % literal, 10 % with `+`, 5 % with `#`), published to on
//! 100,000 subscribed topics that match about 14 subscriptions each.
//!
//! Times are CPU time of this thread; of each stretch of 2,500 topics the best of several passes over all. Bytes are what
//! the allocator spends, its own headers and rounding included.

use std::hint::black_box;
use std::time::Duration;

use headgate_tests::bench::{self, Row, cpu};
use headgate_tests::heap::Counting;
use headgate_topics::{Cache, Subscriber, Table};

const SUBSCRIPTIONS: u64 = 1_000_000;
const TOPICS: usize = 100_000;
const HOT_TOPICS: usize = 1_000;
const PASSES: usize = 15;
/// Topics that are timed together: a few milliseconds.
const STRETCH: usize = 2_500;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Pseudo-random numbers, always the same (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at as u64 + 1) as usize);
        }
    }
}

/// A fleet: 1,000 accounts with 1,000 devices of 8 readings. Filters, and topics among the literal ones.
fn workload() -> (Vec<String>, Vec<String>) {
    let readings = [
        "temperature",
        "humidity",
        "pressure",
        "status",
        "alarm",
        "battery",
        "position",
        "cmd",
    ];
    let mut random = Random(7);
    let mut topics = Vec::new();
    let mut filters = Vec::new();
    for number in 0..SUBSCRIPTIONS {
        let (account, device) = (random.below(1000), random.below(1000));
        let reading = readings[random.below(8) as usize];
        filters.push(match number % 100 {
            0..85 => {
                let topic = format!("t/acct{account:04}/dev/node{device:05}/{reading}");
                topics.push(topic.clone());
                topic
            }
            85..90 => format!("t/acct{account:04}/dev/+/{reading}"),
            90..95 => format!("t/+/dev/node{device:05}/{reading}"),
            _ => format!("t/acct{account:04}/dev/node{device:05}/#"),
        });
    }
    random.shuffle(&mut filters);
    random.shuffle(&mut topics);
    topics.truncate(TOPICS);
    // In the order of use: the topic of a PUBLISH that was just decoded is in the cache, and these should be, too.
    (
        filters,
        topics.iter().map(|topic| topic.as_str().into()).collect(),
    )
}

/// CPU nanoseconds per topic: each stretch of topics by its fastest pass, so that what else the machine does counts little.
fn best_ns(topics: &[String], mut one: impl FnMut(&str)) -> f64 {
    let mut best = vec![Duration::MAX; topics.len().div_ceil(STRETCH)];
    for _ in 0..PASSES {
        for (stretch, best) in topics.chunks(STRETCH).zip(&mut best) {
            let start = cpu();
            stretch.iter().for_each(|topic| one(topic));
            *best = (cpu() - start).min(*best);
        }
    }
    best.iter().sum::<Duration>().as_nanos() as f64 / topics.len() as f64
}

fn main() {
    let (filters, topics) = workload();
    let live_before = Counting::live_bytes();
    let table = Table::new([0x0123_4567_89AB_CDEF, 0xFEDC_BA98_7654_3210]);
    let start = cpu();
    for (filter, id) in filters.iter().zip(1..) {
        table.subscribe(filter, Subscriber::new(id, 0));
    }
    let insert_ns = (cpu() - start).as_nanos() as f64 / SUBSCRIPTIONS as f64;
    // What writers gave up meanwhile is freed by and by; a few passes of readers see to it.
    let mut found = Vec::with_capacity(4096);
    let mut matched = 0;
    for topic in &topics {
        found.clear();
        table.matches(topic, &mut found);
        matched += found.len();
    }
    let live_bytes = Counting::live_bytes() - live_before - (found.capacity() * 8).cast_signed();

    let match_ns = best_ns(&topics, |topic| {
        found.clear();
        table.matches(topic, &mut found);
        black_box(&found);
    });
    let mut cache = Cache::new(2 * HOT_TOPICS);
    let cached_ns = best_ns(&topics[..HOT_TOPICS], |topic| {
        black_box(cache.matches(&table, topic));
    });
    let (none_ns, none_cached_ns) = unmatched(&table, &topics[..HOT_TOPICS]);
    let churned_ns = churned(&table, &mut cache, &topics[..HOT_TOPICS]);
    let (fan_out_add_ns, fan_out_read_ns) = fan_out();

    bench::print(&[
        Row::at_most("match_ns", match_ns.round(), "ns", 900.0),
        Row::at_most(
            "subscription_bytes",
            live_bytes as f64 / SUBSCRIPTIONS as f64,
            "B",
            90.0,
        ),
        Row::info(
            "subscription_requested_bytes",
            table.memory_bytes() as f64 / SUBSCRIPTIONS as f64,
            "B",
        ),
        Row::info(
            "matches_per_topic",
            matched as f64 / topics.len() as f64,
            "subscribers",
        ),
        Row::info("insert_ns", insert_ns.round(), "ns"),
        Row::at_most("match_cached_ns", cached_ns.round(), "ns", 60.0),
        Row::info("match_none_ns", none_ns.round(), "ns"),
        Row::info("match_none_cached_ns", none_cached_ns.round(), "ns"),
        Row::info("match_cached_under_churn_ns", churned_ns.round(), "ns"),
        Row::info("fan_out_insert_ns", fan_out_add_ns.round(), "ns"),
        Row::info("fan_out_read_ns_per_subscriber", fan_out_read_ns, "ns"),
    ]);
}

/// Nanoseconds without and with the cache for topics that share all levels but the last with some that somebody
/// subscribes to.
fn unmatched(table: &Table, topics: &[String]) -> (f64, f64) {
    let unknown: Vec<String> = topics
        .iter()
        .map(|topic| format!("{topic}-unknown"))
        .collect();
    let mut found = Vec::new();
    let table_ns = best_ns(&unknown, |topic| {
        found.clear();
        table.matches(topic, &mut found);
        black_box(&found);
    });
    let mut cache = Cache::new(2 * unknown.len());
    let cached_ns = best_ns(&unknown, |topic| {
        black_box(cache.matches(table, topic));
    });
    (table_ns, cached_ns)
}

/// Nanoseconds of a hit when somebody subscribes between any two publishes: each hit has to check the topic's prefixes.
fn churned(table: &Table, cache: &mut Cache, topics: &[String]) -> f64 {
    let mut churn = 0;
    let both_ns = best_ns(topics, |topic| {
        churn += 1;
        table.subscribe("elsewhere/+", Subscriber::new(1 + churn % 5, 0));
        black_box(cache.matches(table, topic));
    });
    let churn_alone_ns = best_ns(topics, |_| {
        churn += 1;
        table.subscribe("elsewhere/+", Subscriber::new(1 + churn % 5, 0));
    });
    both_ns - churn_alone_ns
}

/// 100,000 subscribers of one filter: nanoseconds to add one, and per subscriber to read them all.
fn fan_out() -> (f64, f64) {
    let table = Table::new([1, 2]);
    let count = 100_000;
    let start = cpu();
    for id in 1..=count {
        table.subscribe("all/devices/cmd", Subscriber::new(id, 0));
    }
    let added = (cpu() - start).as_nanos() as f64 / count as f64;
    let mut found = Vec::with_capacity(count as usize);
    let read = best_ns(&["all/devices/cmd".into()], |topic| {
        found.clear();
        table.matches(topic, &mut found);
        black_box(&found);
    });
    (added, read / count as f64)
}
