//! End-to-end tests, load generators and fuzz targets.

pub mod bench;
pub mod broker;
pub mod skip;
