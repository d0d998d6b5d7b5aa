//! Load for MQTT brokers: many clients in one process.

mod awake;
mod fleet;
mod frames;
mod sleeper;

pub use awake::Plan;
pub use fleet::{Counts, Fleet, FleetOptions};
