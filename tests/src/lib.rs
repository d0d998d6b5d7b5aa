//! End-to-end tests, load generators and fuzz targets.

pub mod skip;
