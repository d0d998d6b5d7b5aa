//! From a measured value to a level, with hysteresis.

use std::time::{Duration, Instant};

/// The highest level.
pub const LEVELS: usize = 3;

/// When a level is reached and left.
#[derive(Clone, Copy, Debug)]
pub struct Steps {
    /// A value of so much reaches the level, from 1 on.
    pub up: [u64; LEVELS],
    /// A value of less than so much leaves it. Not more than `up`.
    pub down: [u64; LEVELS],
    /// For so long the value has to be as high.
    pub rise: Duration,
    /// And so many values in a row, so that one that took long isn't enough.
    pub rise_values: u32,
    /// For so long it has to be as low.
    pub fall: Duration,
}

/// Since when a value has been high enough for a level, and how many there were.
#[derive(Clone, Copy, Debug)]
struct Above {
    since: Instant,
    values: u32,
}

/// The level of one resource.
#[derive(Debug)]
pub struct Ladder {
    steps: Steps,
    level: u8,
    above: [Option<Above>; LEVELS],
    below_since: Option<Instant>,
}

impl Ladder {
    /// At level 0.
    pub fn new(steps: Steps) -> Self {
        Self {
            steps,
            level: 0,
            above: [None; LEVELS],
            below_since: None,
        }
    }

    /// The level.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Takes a value that has held from `since` to `now`; the level.
    pub fn note(&mut self, value: u64, (since, now): (Instant, Instant)) -> u8 {
        let steps = &self.steps;
        for (index, above) in self.above.iter_mut().enumerate() {
            if value < steps.up[index] {
                *above = None;
                continue;
            }
            let above = above.get_or_insert(Above { since, values: 0 });
            above.values = above.values.saturating_add(1);
            let is_long = now.saturating_duration_since(above.since) >= steps.rise;
            if is_long && above.values >= steps.rise_values {
                self.level = self.level.max(index as u8 + 1);
            }
        }
        let kept = steps.down.iter().filter(|down| value >= **down).count() as u8;
        if kept >= self.level {
            self.below_since = None;
            return self.level;
        }
        let below_since = *self.below_since.get_or_insert(since);
        if now.saturating_duration_since(below_since) >= steps.fall {
            self.level = kept;
            self.below_since = None;
        }
        self.level
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STEPS: Steps = Steps {
        up: [85, 92, 97],
        down: [80, 88, 94],
        rise: Duration::from_secs(1),
        rise_values: 3,
        fall: Duration::from_secs(2),
    };

    /// Values at intervals of `ms`; the level after each.
    fn levels(ladder: &mut Ladder, now: &mut Instant, ms: u64, values: &[u64]) -> Vec<u8> {
        let step = |value: &u64| {
            let since = *now;
            *now += Duration::from_millis(ms);
            ladder.note(*value, (since, *now))
        };
        values.iter().map(step).collect()
    }

    #[test]
    fn a_level_comes_when_the_value_stays_high_and_goes_when_it_stays_low() {
        let (mut ladder, mut now) = (Ladder::new(STEPS), Instant::now());
        let mut after = |values: &[u64]| levels(&mut ladder, &mut now, 400, values);
        assert_eq!(after(&[90, 90, 90]), [0, 0, 1]);
        // Between the two thresholds nothing changes, however long.
        assert_eq!(after(&[81; 20]), [1; 20]);
        assert_eq!(after(&[79, 79, 79, 79, 81]), [1; 5]);
        assert_eq!(after(&[79, 79, 79, 79, 79]), [1, 1, 1, 1, 0]);
        // A jump takes all levels at once, a fall as well.
        assert_eq!(after(&[99, 99, 99]), [0, 0, 3]);
        assert_eq!(after(&[89, 89, 89, 89, 89]), [3, 3, 3, 3, 2]);
        assert_eq!(after(&[1, 1, 1, 1, 1]), [2, 2, 2, 2, 0]);
    }

    #[test]
    fn one_long_value_is_not_enough() {
        let (mut ladder, mut now) = (Ladder::new(STEPS), Instant::now());
        assert_eq!(levels(&mut ladder, &mut now, 5_000, &[99, 99]), [0, 0]);
        assert_eq!(levels(&mut ladder, &mut now, 10, &[1]), [0]);
        assert_eq!(
            levels(&mut ladder, &mut now, 5_000, &[99, 99, 99]),
            [0, 0, 3]
        );
    }

    proptest! {
        #[test]
        fn no_value_means_a_level_that_it_has_not_reached(
            values in proptest::collection::vec(0u64..100, 1..200),
        ) {
            let (mut ladder, mut now) = (Ladder::new(STEPS), Instant::now());
            let mut highest = 0;
            for value in values {
                let level = levels(&mut ladder, &mut now, 500, &[value])[0];
                let reached = STEPS.up.iter().filter(|up| value >= **up).count() as u8;
                prop_assert!(level <= reached || level <= highest, "{level} at {value}");
                highest = level;
            }
        }
    }
}
