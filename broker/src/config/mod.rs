//! Configuration: one TOML file, every key with a default.
