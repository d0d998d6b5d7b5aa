//! MQTT 5.0 clients on QUIC stacks that have nothing to do with the broker's, for its tests: a program per stack, and
//! here what they have in common. A program reads a command from each line of its standard input, does it, and answers
//! with one line; [`commands`] lists them.

pub mod commands;
pub mod mqtt;
pub mod stack;
