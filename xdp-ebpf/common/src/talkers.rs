//! Who sends the most: a bounded sketch of source prefixes.
//!
//! Prefixes share a few cells by keyed hash, and each cell holds an election (Boyer and Moore's): a packet of the cell's
//! prefix is a vote for it, one of another a vote against it, and at no votes the next prefix gets the cell. Whoever
//! sends more than all others of its cell together holds it, whatever else arrives; random sources hold nothing for long.

/// Cells. A flood of random sources spreads over all of them.
pub const TALKER_CELLS: u32 = 512;

/// Each CPU looks at one packet in so many.
pub const TALKER_SAMPLE: u64 = 32;

/// Whether a CPU looks at its packet with this number, among those with the same verdict. Not at every 32nd: sources that
/// take turns would be seen always or never. Multiples of the golden ratio fall evenly into all parts of the numbers, and
/// so do those of every second, third, …
#[inline(always)]
#[must_use]
pub const fn is_sampled(number: u64) -> bool {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) < u64::MAX / TALKER_SAMPLE
}

/// A prefix that has been busy for long is forgotten after so many packets of others in its cell.
const VOTES_MAX: u64 = 1 << 12;

/// Values of the map `talkers`, per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Talker {
    /// The /64 that has the cell: its eight bytes; or the /24: its three bytes, four zeros and 255.
    pub prefix: [u8; 8],
    /// How sure that is.
    pub votes: u64,
    /// Sampled packets of the prefix since it got the cell.
    pub packets: u64,
    /// How many of them were dropped.
    pub drops: u64,
}

impl Talker {
    /// Counts a sampled packet that fell into this cell.
    #[inline(always)]
    pub const fn vote(&mut self, prefix: u64, is_dropped: bool) {
        // As [`crate::frame::Source::prefix`] has it.
        if u64::from_le_bytes(self.prefix) != prefix {
            if self.votes > 0 {
                self.votes -= 1;
                return;
            }
            *self = Self {
                prefix: prefix.to_le_bytes(),
                votes: 0,
                packets: 0,
                drops: 0,
            };
        }
        if self.votes < VOTES_MAX {
            self.votes += 1;
        }
        self.packets += 1;
        self.drops += is_dropped as u64;
    }
}

const _: () = assert!(size_of::<Talker>() == 32);

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    /// A generator of numbers: xorshift64.
    fn next(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    #[test]
    fn who_sends_most_of_a_cells_packets_holds_it() {
        let mut state = 7;
        let mut cells = vec![Talker::default(); TALKER_CELLS as usize];
        let mut sent = 0;
        for _ in 0..200_000 {
            let random = next(&mut state);
            // One in fifty is the talker's: far less than all others together send.
            let prefix = if next(&mut state).is_multiple_of(50) {
                42
            } else {
                random
            };
            sent += u64::from(prefix == 42);
            let cell = prefix.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 55;
            cells[cell as usize].vote(prefix, prefix == 42);
        }
        let found = cells.iter().max_by_key(|cell| cell.packets);
        let found = found.expect("there are cells");
        assert_eq!(found.prefix, 42_u64.to_le_bytes());
        assert!(
            found.packets > sent * 9 / 10 && found.packets <= sent,
            "{found:?} of {sent}"
        );
        assert_eq!(found.drops, found.packets);
    }

    #[test]
    fn sources_that_take_turns_are_all_seen() {
        for turns in 1..=16 {
            for turn in 0..turns {
                let numbers = (0..32_000).map(|round| round * turns + turn);
                let seen = numbers.filter(|number| is_sampled(*number)).count();
                assert!(
                    (900..1_100).contains(&seen),
                    "{seen} of 32000, {turn} of {turns}"
                );
            }
        }
    }

    #[test]
    fn who_has_stopped_is_forgotten() {
        let mut cell = Talker::default();
        for _ in 0..1_000_000 {
            cell.vote(1, false);
        }
        for _ in 0..=VOTES_MAX {
            cell.vote(2, true);
        }
        assert_eq!((cell.prefix[0], cell.packets, cell.drops), (2, 1, 1));
    }
}
