//! Load that goes on while the broker dies and comes back, and an account of it: what publishers were told is taken,
//! and what subscribers received.
//!
//! The clients are ours and foreign ones. All sessions outlive their
//! connections, and the clients resume them as the standard says (MQTT 5.0 §4.4), so the account of each holds over
//! all crashes: a message that was acknowledged comes, one with QoS 2 once, and those of one publisher in order.

mod foreign;
mod ledger;
mod link;
mod load;
mod publisher;
mod rounds;
mod subscriber;

pub use ledger::{Finding, Ledger, MessageId, Verdict};
pub use load::{Load, Plan};
pub use rounds::{Rounds, Victim, number_from, seed_from};
