//! The topic table: which subscribers a topic name reaches (MQTT 5 §4.7).
//!
//! [`Table`] holds every subscription of the broker and is shared by all workers; [`Cache`] is one worker's bounded
//! memory of recent topics. Validity of names and filters is checked once, at the edge, with [`validate_filter`] and
//! [`validate_topic_name`].
//!
//! # How it is stored
//! A trie whose nodes are slots of a hash table, found by the hash of the whole path under a secret key: no pointers to
//! follow, and the slots of all prefixes of a topic are fetched at once. What a slot leads to is compared with the
//! path before anybody is delivered to.
//!
//! # Who waits for whom
//! Readers wait for nobody. Writers take turns; each holds the next up for about a microsecond, but
//! - when a segment of the table grows, for its copy: 20 µs with 1,000,000 filters, in proportion beyond;
//! - when one filter's subscribers outgrow a chunk of 1,024 for the first time, for their index: 100 µs;
//! - when one of many leaves a filter, for copying two chunks and 16 bytes per chunk: 1 µs, 20 µs with 1,000,000.
//!
//! Memory that readers may still look at is freed by crossbeam-epoch.

mod cache;
mod filter;
mod hash;
#[cfg(all(test, loom))]
mod interleavings;
mod list;
#[cfg(all(test, not(loom)))]
mod model;
mod record;
mod search;
mod slots;
mod stamps;
mod subscriber;
mod sync;
mod table;

pub use cache::Cache;
pub use filter::{
    FilterError, LEVELS_MAX, TOPIC_BYTES_MAX, TopicNameError, filter_matches, validate_filter,
    validate_topic_name,
};
pub use subscriber::Subscriber;
pub use table::Table;
