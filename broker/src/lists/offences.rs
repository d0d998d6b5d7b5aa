//! What is counted against sources: within a minute, and for a bounded number of them.

use crate::kernel::Prefix;
use std::collections::HashMap;

/// Sources that something is counted against. Worst case: about 60 bytes each. What further ones do is not counted,
/// until the minute of one of these is over.
const SOURCES_MAX: usize = 65_536;
/// For how long is counted, seconds.
const WINDOW_S: u64 = 60;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offence {
    /// Bytes that are no MQTT packet.
    Malformed,
    /// An authentication that failed.
    FailedAuthentication,
}

#[derive(Clone, Copy, Debug)]
struct Count {
    since_s: u64,
    malformed: u32,
    failed: u32,
}

/// The counts.
#[derive(Debug, Default)]
pub(super) struct Offences {
    sources: HashMap<Prefix, Count>,
    /// When there will be room at the earliest, if there is none.
    full_until_s: u64,
}

impl Offences {
    /// Counts; how many there were within the minute. `None`: too many sources are counted for.
    pub fn count(&mut self, source: Prefix, offence: Offence, now_s: u64) -> Option<u32> {
        if !self.sources.contains_key(&source) && !self.has_room(now_s) {
            return None;
        }
        let fresh = Count {
            since_s: now_s,
            malformed: 0,
            failed: 0,
        };
        let count = self.sources.entry(source).or_insert(fresh);
        if now_s.saturating_sub(count.since_s) >= WINDOW_S {
            *count = fresh;
        }
        let number = match offence {
            Offence::Malformed => &mut count.malformed,
            Offence::FailedAuthentication => &mut count.failed,
        };
        *number = number.saturating_add(1);
        Some(*number)
    }

    /// Nothing stands against a source any more.
    pub fn forget(&mut self, source: Prefix) {
        self.sources.remove(&source);
    }

    /// Makes room where there is none. It looks at all sources at most once a second.
    fn has_room(&mut self, now_s: u64) -> bool {
        if self.sources.len() < SOURCES_MAX {
            return true;
        }
        if now_s < self.full_until_s {
            return false;
        }
        self.full_until_s = now_s + 1;
        self.sources
            .retain(|_, count| now_s.saturating_sub(count.since_s) < WINDOW_S);
        self.sources.len() < SOURCES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn source(number: u32) -> Prefix {
        Prefix::of_host(Ipv4Addr::from_bits(number).into())
    }

    #[test]
    fn a_minute_is_counted_and_each_offence_by_itself() {
        let mut offences = Offences::default();
        let mut count = |offence, now_s| offences.count(source(1), offence, now_s);
        assert_eq!(count(Offence::Malformed, 100), Some(1));
        assert_eq!(count(Offence::Malformed, 159), Some(2));
        assert_eq!(count(Offence::FailedAuthentication, 159), Some(1));
        assert_eq!(count(Offence::Malformed, 160), Some(1));
    }

    #[test]
    fn the_sources_are_bounded() {
        let mut offences = Offences::default();
        for number in 0..SOURCES_MAX as u32 {
            assert!(
                offences
                    .count(source(number), Offence::Malformed, 100)
                    .is_some()
            );
        }
        let more = source(u32::MAX);
        assert_eq!(offences.count(more, Offence::Malformed, 159), None);
        assert_eq!(offences.count(source(5), Offence::Malformed, 159), Some(2));
        assert_eq!(offences.count(more, Offence::Malformed, 160), Some(1));
        assert_eq!(offences.sources.len(), 1);
    }
}
