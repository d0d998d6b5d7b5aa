//! The core from outside: several of them, a directory, a mesh and clients, with a clock that the test turns.

mod common;

mod aliases;
mod auth;
mod back_pressure;
mod conformance_connect;
mod conformance_flow;
mod conformance_shared;
mod conformance_topics;
mod connect;
mod durable;
mod early;
mod found;
mod full;
mod message_cost;
mod messages;
mod model;
mod pressure;
mod queues;
mod quotas;
mod reasons;
mod restoring;
mod server;
mod shared;
mod streams;
mod streams_durable;
mod subscriptions;
mod undone;
mod wills;
