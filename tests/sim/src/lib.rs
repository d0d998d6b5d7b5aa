//! A deterministic simulation of the broker: real cores and the real codec, and around them a network, a mesh, a
//! directory, a store and a clock that do what a seed says. [`check_seed`] runs one seed against the reference model.
//!
//! Everything follows from the seed: the setting, the list of operations, and, for each operation, what happens by
//! chance until the next. So an operation can be left out and all others stay as they are, which is how a failing list
//! is made short.

mod client;
mod draw;
mod events;
#[expect(dead_code, reason = "the simulation needs less of it than the broker")]
#[path = "../../../broker/src/net/framing.rs"]
mod framing;
mod model;
mod network;
mod operations;
mod outputs;
mod run;
mod shrink;
mod store;
mod world;

use std::fmt;

pub use draw::Rng;

use operations::{Scenario, Step};

/// A run that went wrong.
#[derive(Debug)]
pub struct Failure {
    /// Where the run came from.
    pub origin: String,
    /// What must not be, and was.
    pub complaint: String,
    /// The shortest list of operations that was found to show it.
    pub operations: String,
    /// What happened in it, packet by packet.
    pub history: Vec<String>,
}

/// Runs a seed; a hash of everything that happened.
///
/// # Errors
/// What went wrong, with the list of operations made short.
pub fn check_seed(seed: u64) -> Result<u64, Box<Failure>> {
    let (scenario, steps) = operations::of_seed(seed);
    check(&scenario, &steps, || format!("seed {seed}"))
}

/// Runs the list of operations that a fuzzer's bytes describe.
///
/// # Errors
/// As [`check_seed`].
pub fn check_bytes(bytes: &[u8]) -> Result<u64, Box<Failure>> {
    let (scenario, steps) = operations::of_bytes(bytes);
    check(&scenario, &steps, || format!("input {bytes:?}"))
}

/// The list of operations of a seed, as it is printed.
pub fn operations_of(seed: u64) -> String {
    let (scenario, steps) = operations::of_seed(seed);
    run::print(&scenario, &steps)
}

fn check(
    scenario: &Scenario,
    steps: &[Step],
    origin: impl Fn() -> String,
) -> Result<u64, Box<Failure>> {
    let complaint = match shrink::attempt(scenario, steps) {
        Ok(hash) => return Ok(hash),
        Err(complaint) => complaint,
    };
    let steps = shrink::shorten(scenario, steps);
    let (complaint, history) = shrink::explain(scenario, &steps).unwrap_or((complaint, Vec::new()));
    Err(Box::new(Failure {
        origin: origin(),
        complaint,
        operations: run::print(scenario, &steps),
        history,
    }))
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.origin, self.complaint)?;
        writeln!(f, "shortest list of operations:\n{}", self.operations)?;
        writeln!(f, "history:")?;
        self.history
            .iter()
            .try_for_each(|line| writeln!(f, "{line}"))
    }
}
