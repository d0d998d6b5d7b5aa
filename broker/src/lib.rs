//! headgate: an MQTT broker for the edge, over QUIC and TCP.

pub mod admin;
pub mod auth;
pub mod bench;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod driver;
pub mod kernel;
pub mod keys;
pub mod limits;
pub mod lists;
pub mod mesh;
pub mod metrics;
pub mod net;
pub mod overload;
pub mod quotas;
pub mod server;
pub mod state_file;
pub mod store;
pub mod worker;
