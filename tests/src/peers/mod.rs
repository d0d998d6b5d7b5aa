//! headgate beside other brokers, under the same load: `cargo xtask bench peers`.

pub mod brokers;
pub mod connects;
pub mod deliveries;
pub mod figures;
pub mod table;
pub mod wildcards;

pub use brokers::{Kind, Peer, Transport};
pub use figures::{Figure, Outcome};

/// How long the measurements take.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Windows per figure and broker; the median counts.
    pub windows: usize,
    /// Length of a window, milliseconds.
    pub window_ms: u64,
    /// Sessions that are idle.
    pub idle: usize,
    /// Wildcard subscriptions, from few to many.
    pub wildcards: [usize; 3],
}

impl Effort {
    /// What the table in the README took.
    pub const FULL: Self = Self {
        windows: 3,
        window_ms: 1_000,
        idle: 5_000,
        wildcards: [1_000, 100_000, 1_000_000],
    };

    /// To see that everything works; the figures mean little.
    pub const BRIEF: Self = Self {
        windows: 1,
        window_ms: 300,
        idle: 500,
        wildcards: [1_000, 5_000, 10_000],
    };
}

/// The middle one; of an even number, the higher of the two in the middle.
///
/// # Panics
/// When there is none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![9.0]), 9.0);
        assert_eq!(median(vec![1.0, 4.0]), 4.0);
    }
}
