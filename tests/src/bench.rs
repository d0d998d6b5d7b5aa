//! Rows of `cargo xtask bench`.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// One measured figure.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured; the unit comes last in the name.
    pub name: String,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// The bar it has to meet, if it has one.
    pub bar: Option<f64>,
    /// Whether it does; true without a bar.
    pub met: bool,
}

impl Row {
    /// A figure that may not exceed its bar.
    #[must_use]
    pub fn at_most(name: &str, value: f64, unit: &'static str, bar: f64) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
            bar: Some(bar),
            met: value <= bar,
        }
    }

    /// A figure that must be smaller than another's, which is its bar.
    #[must_use]
    pub fn below(name: &str, value: f64, unit: &'static str, bar: f64) -> Self {
        Self {
            met: value < bar,
            ..Self::at_most(name, value, unit, bar)
        }
    }

    /// A figure that must be larger than another's, which is its bar.
    #[must_use]
    pub fn above(name: &str, value: f64, unit: &'static str, bar: f64) -> Self {
        Self {
            met: value > bar,
            ..Self::at_least(name, value, unit, bar)
        }
    }

    /// A figure that must reach its bar.
    #[must_use]
    pub fn at_least(name: &str, value: f64, unit: &'static str, bar: f64) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
            bar: Some(bar),
            met: value >= bar,
        }
    }

    /// A figure without a bar.
    #[must_use]
    pub fn info(name: &str, value: f64, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
            bar: None,
            met: true,
        }
    }
}

/// Prints the rows as a JSON array.
///
/// # Panics
/// If they can't be written as JSON: never, they are names and finite numbers.
pub fn print<R: Serialize>(rows: &[R]) {
    println!(
        "{}",
        serde_json::to_string_pretty(rows).expect("rows are plain data")
    );
}

/// CPU time of this thread so far.
///
/// # Panics
/// If the system has no such clock: never, Linux has it.
pub fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .expect("every Linux has this clock")
        .into()
}
