//! Timers: a hashed wheel of lazy entries. An entry is never cancelled or moved: when it fires,
//! its owner looks at its real deadline and arms again if that is later. So a packet that pushes
//! a keep-alive back costs nothing here, and an entry costs 12 bytes.

use crate::Time;

/// Length of a tick, as a power of two in milliseconds: deadlines are met up to 128 ms late.
const TICK_SHIFT: u32 = 7;
/// Slots of the wheel. A deadline further away than its 131 s fires early and is armed again.
const SLOTS: usize = 1_024;

/// Whose timer it is. Generations tell a late timer from one of a successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimerKey {
    /// A connection: index and generation.
    Conn(u32, u32),
    /// A place in the session slab and its generation (24 bits).
    Slot(u32, u32),
}

#[derive(Clone, Copy)]
struct Entry {
    tick: u32,
    /// Top bit: a session's.
    index: u32,
    generation: u32,
}

const SLOT_BIT: u32 = 1 << 31;

/// The wheel.
pub(crate) struct Timers {
    slots: Vec<Vec<Entry>>,
    occupied: [u64; SLOTS / 64],
    /// The last tick that has fired.
    current: u32,
    started: bool,
}

impl Timers {
    pub(crate) fn new() -> Self {
        Self {
            slots: (0..SLOTS).map(|_| Vec::new()).collect(),
            occupied: [0; SLOTS / 64],
            current: 0,
            started: false,
        }
    }

    /// Fires `key` at or soon after `deadline`, or earlier if that is far away.
    pub(crate) fn arm(&mut self, key: TimerKey, deadline: Time, now: Time) {
        self.start(now);
        let furthest = self.current + SLOTS as u32 - 1;
        let tick = (tick_of(deadline) + 1).clamp(self.current + 1, furthest);
        let (index, generation) = match key {
            TimerKey::Conn(index, generation) => (index, generation),
            TimerKey::Slot(index, generation) => (index | SLOT_BIT, generation),
        };
        let slot = tick as usize % SLOTS;
        self.slots[slot].push(Entry {
            tick,
            index,
            generation,
        });
        self.occupied[slot / 64] |= 1 << (slot % 64);
    }

    /// When the next entry fires.
    pub(crate) fn next(&self) -> Option<Time> {
        let mut tick = self.current + 1;
        let end = self.current + SLOTS as u32;
        while tick <= end {
            let slot = tick as usize % SLOTS;
            let word = self.occupied[slot / 64] >> (slot % 64);
            if word != 0 {
                return Some(Time(u64::from(tick + word.trailing_zeros()) << TICK_SHIFT));
            }
            tick += 64 - (slot % 64) as u32;
        }
        None
    }

    /// Takes what has fired up to `now` into `fired`.
    pub(crate) fn expire(&mut self, now: Time, fired: &mut Vec<TimerKey>) {
        self.start(now);
        let until = tick_of(now);
        if until <= self.current {
            return;
        }
        // After a pause longer than the wheel, one round covers every slot.
        let from = self.current + 1;
        let last = until.min(self.current + SLOTS as u32);
        self.current = until;
        for tick in from..=last {
            let slot = tick as usize % SLOTS;
            if self.occupied[slot / 64] & 1 << (slot % 64) == 0 {
                continue;
            }
            self.occupied[slot / 64] &= !(1 << (slot % 64));
            for entry in std::mem::take(&mut self.slots[slot]) {
                debug_assert!(entry.tick <= until, "the wheel holds one round");
                fired.push(match entry.index & SLOT_BIT {
                    0 => TimerKey::Conn(entry.index, entry.generation),
                    _ => TimerKey::Slot(entry.index & !SLOT_BIT, entry.generation),
                });
            }
        }
    }

    fn start(&mut self, now: Time) {
        if !self.started {
            self.started = true;
            self.current = tick_of(now);
        }
    }
}

/// Ticks fit 32 bits for 17 years of uptime.
fn tick_of(time: Time) -> u32 {
    u32::try_from(time.0 >> TICK_SHIFT).unwrap_or(u32::MAX - SLOTS as u32 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_entry_is_twelve_bytes() {
        assert_eq!(size_of::<Entry>(), 12);
    }

    proptest! {
        #[test]
        fn nothing_fires_early_or_is_lost(
            delays in prop::collection::vec(0_u64..100_000, 1..200),
            steps in prop::collection::vec(1_u64..40_000, 1..50),
        ) {
            let mut timers = Timers::new();
            let mut now = Time(77);
            let deadlines: Vec<Time> = delays.iter().map(|d| now.after_ms(*d)).collect();
            for (i, deadline) in deadlines.iter().enumerate() {
                timers.arm(TimerKey::Conn(i as u32, 1), *deadline, now);
            }
            let mut left = deadlines.len();
            for step in steps.into_iter().chain([200_000]) {
                now = now.after_ms(step);
                let due = timers.next();
                let mut fired = Vec::new();
                timers.expire(now, &mut fired);
                prop_assert!(fired.is_empty() || due.is_some_and(|at| at <= now));
                left -= fired.len();
                for key in fired {
                    let TimerKey::Conn(i, 1) = key else { panic!("not armed: {key:?}") };
                    prop_assert!(deadlines[i as usize] <= now);
                }
                prop_assert_eq!(left == 0, timers.next().is_none());
            }
            prop_assert_eq!(left, 0);
        }
    }
}
