//! Load on a real broker: many MQTT clients over QUIC, TCP, TLS or WebSocket in one thread, and what the broker spends on them.

pub mod client;
pub mod crowd;
pub mod mosquitto;
pub mod probe;
pub mod process;
pub mod swarm;

pub use client::Profile;
pub use crowd::{Carrier, Crowd};
pub use mosquitto::Mosquitto;
pub use probe::Probe;
pub use process::Usage;
pub use swarm::Swarm;
