//! Load on a real broker: many MQTT clients over QUIC, TCP, TLS or WebSocket in one thread, and what the broker spends on them.

pub mod client;
pub mod clients;
pub mod crowd;
pub mod daemon;
pub mod mosquitto;
pub mod probe;
pub mod process;
pub mod session;
pub mod swarm;
pub mod tickets;

pub use client::Profile;
pub use clients::Clients;
pub use crowd::{Carrier, Crowd};
pub use mosquitto::Mosquitto;
pub use probe::Probe;
pub use process::Usage;
pub use session::{ClientRef, Counts, Plan, Progress};
pub use swarm::Swarm;
