//! How many stateless resets (RFC 9000 §10.3) a worker sends.
//!
//! After a restart each device is told with one that its connection is gone, instead of finding out by a timeout; but
//! whoever has recorded connection IDs could have others sent to addresses of their choice.

use std::time::{Duration, Instant};

/// A second's worth may come at once: devices that all send their keep-alive after a restart.
const BURST: Duration = Duration::from_secs(1);

/// A budget that fills up with time (GCRA: one word of state).
#[derive(Clone, Copy, Debug)]
pub struct ResetBudget {
    interval: Duration,
    /// When the budget will be full again.
    full_at: Option<Instant>,
}

impl ResetBudget {
    /// This many per second; 0 = none.
    pub fn new(per_second: u32) -> Self {
        let interval = BURST.checked_div(per_second).unwrap_or(Duration::MAX);
        Self {
            interval,
            full_at: None,
        }
    }

    /// Whether one may be sent now; then it is counted.
    pub fn take(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.unwrap_or(now).max(now);
        let Some(next) = full_at.checked_add(self.interval) else {
            return false;
        };
        if next.saturating_duration_since(now) > BURST {
            return false;
        }
        self.full_at = Some(next);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A million devices on two workers, each of which sends something within the minute after a restart.
    #[test]
    fn a_fleet_is_told_within_a_minute() {
        let mut budget = ResetBudget::new(20_000 / 2);
        let start = Instant::now();
        let devices = 500_000u32;
        let told = (0..devices).filter(|n| {
            // A turn of the worker takes what has come in 10 ms, all at the same time.
            let ms = u64::from(*n) * 60_000 / u64::from(devices) / 10 * 10;
            budget.take(start + Duration::from_millis(ms))
        });
        assert_eq!(told.count(), devices as usize);
    }

    #[test]
    fn no_second_has_more_than_two_seconds_worth_and_no_minute_more_than_sixty_one() {
        let mut budget = ResetBudget::new(100);
        let start = Instant::now();
        let mut per_second = [0u32; 60];
        for ms in 0..60_000u64 {
            let taken = budget.take(start + Duration::from_millis(ms));
            per_second[(ms / 1_000) as usize] += u32::from(taken);
        }
        assert!(per_second.iter().all(|count| *count <= 200));
        assert!((6_000..=6_100).contains(&per_second.iter().sum::<u32>()));
    }

    #[test]
    fn none_is_sent_where_none_is_wanted() {
        assert!(!ResetBudget::new(0).take(Instant::now()));
    }
}
