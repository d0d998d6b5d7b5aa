//! The topic table: which subscribers a topic name reaches (MQTT 5 §4.7).
//!
//! [`Table`] holds every subscription of the broker and is shared by all workers; [`Cache`] is one worker's bounded
//! memory of recent topics. Validity of names and filters is checked once, at the edge, with [`validate_filter`] and
//! [`validate_topic_name`].

mod cache;
mod filter;
mod hash;
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
