//! End-to-end tests, load generators and fuzz targets.

pub mod bench;
pub mod broker;
pub mod clients;
pub mod cores;
pub mod crash;
pub mod disk;
pub mod flood;
pub mod heap;
pub mod hostile;
pub mod load;
pub mod lossy;
pub mod mounts;
pub mod netns;
pub mod packets;
pub mod peers;
pub mod quic_client;
pub mod readdress;
pub mod relay;
pub mod rig;
pub mod siege;
pub mod skip;
pub mod stacks;
pub mod streams;
pub mod stuck;
pub mod tcp_client;
pub mod users;
