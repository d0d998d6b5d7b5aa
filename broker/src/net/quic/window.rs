//! How much a client may send before it is read (RFC 9000 §4.1): little at first, more for a client that uses it.
//!
//! An idle connection costs nothing for its window, but one that sends and is not read from may fill it. A path with
//! loss needs a large one: what is behind a gap waits in it.

use std::time::Duration;

/// The window of a connection: it is doubled when a client fills half of it within two round trips.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    bytes: u32,
    /// What data streams have besides.
    beside: u32,
    read: u32,
    since_ms: u32,
}

/// A round trip is taken to be at least this long: on a local network the next turn of the worker is further away.
const ROUND_TRIP_MIN: Duration = Duration::from_millis(5);
/// The most of all, whatever is configured, bytes.
const TOTAL_MAX: u32 = 1 << 30;

impl Window {
    /// Begins with `bytes` at a time in milliseconds.
    pub fn new(bytes: u32, now_ms: u64) -> Self {
        Self {
            bytes,
            beside: 0,
            read: 0,
            since_ms: now_ms as u32,
        }
    }

    /// `bytes` of the client's were read. The larger window, up to `bytes_max`, if it is time for one.
    pub fn read(
        &mut self,
        bytes: usize,
        bytes_max: u32,
        round_trip: Duration,
        now_ms: u64,
    ) -> Option<u32> {
        self.read = self
            .read
            .saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if self.bytes >= bytes_max || self.read < self.bytes / 2 {
            return None;
        }
        let took = Duration::from_millis((now_ms as u32).wrapping_sub(self.since_ms).into());
        let is_busy = took < 2 * round_trip.max(ROUND_TRIP_MIN);
        (self.read, self.since_ms) = (0, now_ms as u32);
        if !is_busy {
            return None;
        }
        self.bytes = self.bytes.saturating_mul(2).min(bytes_max);
        Some(self.total())
    }

    /// Room for data streams, besides what the use of the connection has brought: this much, and never less than
    /// before. The larger window, if it is one.
    pub fn reserve(&mut self, bytes: u32) -> Option<u32> {
        if bytes <= self.beside {
            return None;
        }
        self.beside = bytes;
        Some(self.total())
    }

    fn total(&self) -> u32 {
        self.bytes.saturating_add(self.beside).min(TOTAL_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(100);
    const MAX: u32 = 1 << 20;

    #[test]
    fn it_grows_for_a_client_that_fills_it_and_no_further_than_allowed() {
        let mut window = Window::new(64 << 10, 0);
        let mut grown = Vec::new();
        for turn in 0..40 {
            let now = turn * 25;
            grown.extend(window.read(64 << 10, MAX, RTT, now));
        }
        assert_eq!(grown, [128 << 10, 256 << 10, 512 << 10, MAX]);
    }

    #[test]
    fn room_for_data_streams_comes_on_top_and_stays() {
        let mut window = Window::new(64 << 10, 0);
        assert_eq!(window.reserve(64 << 10), Some(128 << 10));
        assert_eq!(window.reserve(32 << 10), None);
        assert_eq!(window.read(64 << 10, MAX, RTT, 1), Some(192 << 10));
        assert_eq!(window.reserve(u32::MAX), Some(TOTAL_MAX));
    }

    #[test]
    fn a_client_that_sends_now_and_then_keeps_a_small_one() {
        let mut window = Window::new(64 << 10, 0);
        for minute in 1..1_000 {
            assert_eq!(window.read(1_000, MAX, RTT, minute * 60_000), None);
        }
    }
}
