//! One timer structure for all connections of a worker.
//!
//! A hashed wheel in two rings: the near ring has a slot per millisecond, the far ring one per 2,048 ms. A timer is an
//! index (the connection's place in its slab); its node is linked into the slot of its deadline, so arming, disarming
//! and firing touch a constant number of nodes and nothing is ever left behind in a slot.
//!
//! The wheel is lazy: a connection has at most one entry, and a *later* deadline does not move it. Most deadlines of a
//! QUIC connection (loss detection, idle timeout) are pushed back by each packet and never expire; the entry then fires
//! at its old place, the owner asks the connection for its real deadline and arms it again.

/// Slots of each ring. The near ring covers 4,096 ms, the far ring 4,096 × 2.048 s = 2.3 hours: a deadline beyond that
/// waits in the last slot, and is looked at again when its turn comes.
const SLOTS: usize = 4096;
const NEAR_SLOTS: u64 = SLOTS as u64;
const FAR_SLOTS: u64 = SLOTS as u64;
/// Milliseconds per slot of the far ring. Half of the near ring, so that the next far slot always fits into it.
const FAR_SLOT_MS: u64 = NEAR_SLOTS / 2;
/// "No node": the end of a list.
const NONE: u32 = u32::MAX;
/// The first node of a list has no previous one; instead its `previous` names the ring (these bits) and the slot.
const HEAD_MASK: u32 = 0b11 << 30;
const NEAR_HEAD: u32 = 0b10 << 30;
const FAR_HEAD: u32 = 0b11 << 30;
/// Indexes must stay below the bits that mark a head.
const INDEX_LIMIT: u32 = 1 << 31;
/// `at_ms` of a node that is in no list.
const DISARMED: u64 = u64::MAX;

/// A lazy timer wheel, keyed by small integers.
///
/// Memory: 16 bytes per index up to the largest one ever armed (plus an eighth of slack while growing), and 49 KiB for
/// the rings. A million timers take 16–18 MB.
///
/// Resolution is 1 ms, at any distance; an entry never fires before its deadline. Times are milliseconds on any
/// monotonic clock, as long as it is always the same one.
#[derive(Debug)]
pub struct Wheel {
    nodes: Vec<Node>,
    near: Ring,
    far: Ring,
    /// Entries linked into each far slot since it was last emptied: at least as many as stand there.
    far_linked: Box<[u32]>,
    /// Everything due up to and including this moment has been reported.
    current_ms: u64,
    /// Entries of the far slot in progress that move to the near ring per millisecond.
    moves_per_ms: u32,
    armed: usize,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    at_ms: u64,
    next: u32,
    previous: u32,
}

impl Wheel {
    /// A wheel whose clock stands at `now_ms`.
    pub fn new(now_ms: u64) -> Self {
        Self {
            nodes: Vec::new(),
            near: Ring::new(),
            far: Ring::new(),
            far_linked: vec![0; SLOTS].into_boxed_slice(),
            current_ms: now_ms,
            moves_per_ms: 0,
            armed: 0,
        }
    }

    /// Makes `index` due at `at_ms`, unless it is armed for an earlier moment already: then that one stays, and the
    /// owner arms again when it has fired. A moment in the past is due at the next [`Wheel::advance`].
    ///
    /// The wheel's memory grows with the largest `index`, so that must be a dense number such as a slab's key.
    ///
    /// # Panics
    /// If `index` is 2³¹ or more.
    pub fn arm(&mut self, index: u32, at_ms: u64) {
        assert!(
            index < INDEX_LIMIT,
            "timer index {index} out of range: indexes must be dense"
        );
        let at_ms = at_ms.clamp(self.current_ms, DISARMED - 1);
        let needed = index as usize + 1;
        if self.nodes.len() < needed {
            self.grow(needed);
        }
        let armed_for = self.nodes[index as usize].at_ms;
        if armed_for <= at_ms {
            return;
        }
        if armed_for == DISARMED {
            self.armed += 1;
        } else {
            self.unlink(index);
        }
        self.link(index, at_ms);
    }

    /// Takes `index` out, if it is armed: for a connection that ended, before its index is given to another one.
    pub fn disarm(&mut self, index: u32) {
        let Some(node) = self.nodes.get(index as usize) else {
            return;
        };
        if node.at_ms == DISARMED {
            return;
        }
        self.unlink(index);
        self.nodes[index as usize].at_ms = DISARMED;
        self.armed -= 1;
    }

    /// Moves the clock to `now_ms` and appends every index whose deadline has come to `due`; these are disarmed. Does
    /// nothing but report what is already due if `now_ms` is not later than before.
    ///
    /// Indexes that fire together come in no particular order.
    pub fn advance(&mut self, now_ms: u64, due: &mut Vec<u32>) {
        self.fire(due);
        while self.current_ms < now_ms {
            if self.armed == 0 {
                // Nothing to look at on the way.
                self.current_ms = now_ms;
                self.moves_per_ms = 0;
                return;
            }
            self.current_ms = self.next_stop(now_ms);
            if self.current_ms.is_multiple_of(FAR_SLOT_MS) {
                self.open_far_slot();
            }
            self.move_near();
            self.fire(due);
        }
    }

    /// The earliest moment at which [`Wheel::advance`] may have something to do: never later than the next deadline,
    /// but up to 2.048 s earlier if that is more than 2 s away. `None` if nothing is armed.
    ///
    /// Looks at up to 2 × 64 machine words, and at no timer.
    pub fn next_ms(&self) -> Option<u64> {
        if self.armed == 0 {
            return None;
        }
        let near = self
            .near
            .first_from(self.current_ms)
            .map(|distance| self.current_ms + distance);
        let slot = self.current_ms / FAR_SLOT_MS;
        // The slot that is being emptied into the near ring is the next one: it starts within the near ring's reach.
        let far = self
            .far
            .first_from(slot + 1)
            .map(|distance| (slot + 1 + distance) * FAR_SLOT_MS);
        near.into_iter().chain(far).min()
    }

    /// How many indexes are armed.
    pub fn len(&self) -> usize {
        self.armed
    }

    /// Whether nothing is armed.
    pub fn is_empty(&self) -> bool {
        self.armed == 0
    }

    /// Whether `index` is armed, and if so, for which moment.
    pub fn deadline_ms(&self, index: u32) -> Option<u64> {
        self.nodes
            .get(index as usize)
            .map(|node| node.at_ms)
            .filter(|&at_ms| at_ms != DISARMED)
    }

    /// Heap memory of the wheel, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>()
            + self.near.memory_bytes()
            + self.far.memory_bytes()
            + size_of_val(&*self.far_linked)
    }

    fn grow(&mut self, needed: usize) {
        if self.nodes.capacity() < needed {
            // An eighth instead of Vec's doubling: at a million timers, doubling would waste up to 16 MB.
            let capacity = needed.max(self.nodes.len() + self.nodes.len() / 8).max(64);
            self.nodes.reserve_exact(capacity - self.nodes.len());
        }
        self.nodes.resize(
            needed,
            Node {
                at_ms: DISARMED,
                next: NONE,
                previous: NONE,
            },
        );
    }

    /// The next moment at which something may happen, at most `now_ms`.
    fn next_stop(&self, now_ms: u64) -> u64 {
        if self.moves_per_ms > 0 {
            return self.current_ms + 1;
        }
        let boundary = (self.current_ms / FAR_SLOT_MS + 1) * FAR_SLOT_MS;
        let fire = self
            .near
            .first_from(self.current_ms + 1)
            .map_or(u64::MAX, |distance| self.current_ms + 1 + distance);
        now_ms.min(boundary).min(fire)
    }

    /// Called as a far period begins: the slot of the period after it is emptied while this one passes, a little per
    /// millisecond, so that a slot with 30,000 connections does not stop the worker for milliseconds.
    fn open_far_slot(&mut self) {
        let linked =
            std::mem::take(&mut self.far_linked[position(self.current_ms / FAR_SLOT_MS + 1)]);
        self.moves_per_ms = linked.div_ceil(FAR_SLOT_MS as u32);
    }

    fn move_near(&mut self) {
        let slot = position(self.current_ms / FAR_SLOT_MS + 1);
        for _ in 0..self.moves_per_ms {
            let index = self.far.heads[slot];
            if index == NONE {
                self.moves_per_ms = 0;
                return;
            }
            let at_ms = self.nodes[index as usize].at_ms;
            self.unlink(index);
            self.link(index, at_ms);
        }
    }

    fn fire(&mut self, due: &mut Vec<u32>) {
        let slot = position(self.current_ms);
        let mut index = self.near.heads[slot];
        if index == NONE {
            return;
        }
        self.near.set(slot, NONE);
        while index != NONE {
            let node = &mut self.nodes[index as usize];
            node.at_ms = DISARMED;
            due.push(index);
            self.armed -= 1;
            index = node.next;
        }
    }

    fn link(&mut self, index: u32, at_ms: u64) {
        let current_slot = self.current_ms / FAR_SLOT_MS;
        let (ring, slot, tag) = if at_ms - self.current_ms < NEAR_SLOTS {
            let slot = position(at_ms);
            (&mut self.near, slot, NEAR_HEAD)
        } else {
            let slot = position((at_ms / FAR_SLOT_MS).min(current_slot + FAR_SLOTS - 1));
            self.far_linked[slot] = self.far_linked[slot].saturating_add(1);
            (&mut self.far, slot, FAR_HEAD)
        };
        let next = ring.heads[slot];
        ring.set(slot, index);
        if next != NONE {
            self.nodes[next as usize].previous = index;
        }
        self.nodes[index as usize] = Node {
            at_ms,
            next,
            previous: tag | slot as u32,
        };
    }

    fn unlink(&mut self, index: u32) {
        let Node { next, previous, .. } = self.nodes[index as usize];
        match previous & HEAD_MASK {
            NEAR_HEAD => self.near.set((previous & !HEAD_MASK) as usize, next),
            FAR_HEAD => self.far.set((previous & !HEAD_MASK) as usize, next),
            _ => self.nodes[previous as usize].next = next,
        }
        if next != NONE {
            self.nodes[next as usize].previous = previous;
        }
    }
}

/// The heads of a ring's lists, and a bit for each that is not empty.
#[derive(Debug)]
struct Ring {
    heads: Box<[u32]>,
    occupied: Box<[u64]>,
}

impl Ring {
    fn new() -> Self {
        Self {
            heads: vec![NONE; SLOTS].into_boxed_slice(),
            occupied: vec![0; SLOTS / 64].into_boxed_slice(),
        }
    }

    fn set(&mut self, slot: usize, head: u32) {
        self.heads[slot] = head;
        let bit = 1 << (slot % 64);
        if head == NONE {
            self.occupied[slot / 64] &= !bit;
        } else {
            self.occupied[slot / 64] |= bit;
        }
    }

    /// How many slots after that of `start` the first list stands that is not empty, going round once.
    fn first_from(&self, start: u64) -> Option<u64> {
        let start = position(start);
        let words = self.occupied.len();
        let first = self.occupied[start / 64] >> (start % 64);
        if first != 0 {
            return Some(u64::from(first.trailing_zeros()));
        }
        // The last round looks at the first word again, for its bits before `start`.
        for step in 1..=words {
            let word = (start / 64 + step) % words;
            if self.occupied[word] != 0 {
                let slot = word * 64 + self.occupied[word].trailing_zeros() as usize;
                return Some(((slot + SLOTS - start) % SLOTS) as u64);
            }
        }
        None
    }

    fn memory_bytes(&self) -> usize {
        size_of_val(&*self.heads) + size_of_val(&*self.occupied)
    }
}

/// The place in either ring of an absolute slot number.
fn position(slot: u64) -> usize {
    (slot % SLOTS as u64) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Arm { index: u32, in_ms: u64 },
        Disarm { index: u32 },
        Advance { by_ms: u64 },
        AdvanceToNext,
    }

    /// Spans on both sides of every limit of the rings.
    fn span_ms() -> impl Strategy<Value = u64> {
        prop_oneof![
            4 => 0..50u64,
            2 => 2_000..2_100u64,
            2 => 4_000..4_200u64,
            4 => 0..200_000u64,
            1 => 8_300_000..8_500_000u64,
            1 => 0..100_000_000u64,
        ]
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0..40u32, span_ms()).prop_map(|(index, in_ms)| Step::Arm { index, in_ms }),
            1 => (0..40u32).prop_map(|index| Step::Disarm { index }),
            3 => span_ms().prop_map(|by_ms| Step::Advance { by_ms }),
            2 => Just(Step::AdvanceToNext),
        ];
        prop::collection::vec(step, 1..120)
    }

    fn check_advance(wheel: &mut Wheel, model: &mut BTreeMap<u32, u64>, now_ms: u64) {
        let mut due = Vec::new();
        wheel.advance(now_ms, &mut due);
        due.sort_unstable();
        let expected: Vec<u32> = model
            .iter()
            .filter(|&(_, &at_ms)| at_ms <= now_ms)
            .map(|(&index, _)| index)
            .collect();
        assert_eq!(due, expected, "due at {now_ms}");
        model.retain(|_, at_ms| *at_ms > now_ms);
    }

    proptest! {
        /// Whatever is armed fires at the first `advance` that reaches it, once, and nothing else does.
        #[test]
        fn agrees_with_a_sorted_map(start_ms in 0..10_000_000u64, steps in steps()) {
            let mut wheel = Wheel::new(start_ms);
            let mut model = BTreeMap::new();
            let mut now_ms = start_ms;
            let mut beyond_reach = false;
            for step in steps {
                match step {
                    Step::Arm { index, in_ms } => {
                        beyond_reach |= in_ms >= (FAR_SLOTS - 1) * FAR_SLOT_MS;
                        wheel.arm(index, now_ms + in_ms);
                        let at_ms = model.entry(index).or_insert(u64::MAX);
                        *at_ms = (*at_ms).min(now_ms + in_ms);
                    }
                    Step::Disarm { index } => {
                        wheel.disarm(index);
                        model.remove(&index);
                    }
                    Step::Advance { by_ms } => {
                        now_ms += by_ms;
                        check_advance(&mut wheel, &mut model, now_ms);
                    }
                    Step::AdvanceToNext => {
                        now_ms = wheel.next_ms().map_or(now_ms, |next_ms| next_ms.max(now_ms));
                        check_advance(&mut wheel, &mut model, now_ms);
                    }
                }
                prop_assert_eq!(wheel.len(), model.len());
                for (&index, &at_ms) in &model {
                    prop_assert_eq!(wheel.deadline_ms(index), Some(at_ms));
                }
                match (wheel.next_ms(), model.values().min()) {
                    (None, None) => {}
                    (Some(next_ms), Some(&at_ms)) => {
                        prop_assert!(next_ms <= at_ms, "{} is too late for {}", next_ms, at_ms);
                        prop_assert!(beyond_reach || at_ms - next_ms < FAR_SLOT_MS, "{} is too early for {}", next_ms, at_ms);
                        prop_assert!(next_ms >= now_ms, "a poll timeout in the past would spin");
                    }
                    other => prop_assert!(false, "{:?}", other),
                }
            }
        }
    }

    #[test]
    fn going_from_next_to_next_reaches_a_deadline_in_few_steps() {
        let mut wheel = Wheel::new(777);
        wheel.arm(3, 777 + 3_600_000);
        let (mut steps, mut due) = (0, Vec::new());
        while due.is_empty() {
            let next_ms = wheel.next_ms().expect("armed");
            wheel.advance(next_ms, &mut due);
            steps += 1;
        }
        assert_eq!(due, [3]);
        assert!(steps <= 3, "{steps} wake-ups for one deadline an hour away");
    }

    #[test]
    fn a_later_deadline_does_not_move_an_entry_and_an_earlier_one_does() {
        let mut wheel = Wheel::new(0);
        wheel.arm(0, 100);
        wheel.arm(0, 5_000);
        assert_eq!(wheel.deadline_ms(0), Some(100));
        wheel.arm(0, 50);
        assert_eq!(wheel.deadline_ms(0), Some(50));
        let mut due = Vec::new();
        wheel.advance(49, &mut due);
        assert!(due.is_empty());
        wheel.advance(10_000, &mut due);
        assert_eq!(due, [0], "one entry per index, so it fires once");
        assert!(wheel.is_empty());
    }

    #[test]
    fn a_far_slot_is_moved_a_little_per_millisecond() {
        let mut wheel = Wheel::new(0);
        let at_ms = 10 * FAR_SLOT_MS;
        for index in 0..30_000 {
            wheel.arm(index, at_ms + u64::from(index) % FAR_SLOT_MS);
        }
        let mut due = Vec::new();
        wheel.advance(9 * FAR_SLOT_MS, &mut due);
        assert!(
            (1..=15).contains(&wheel.moves_per_ms),
            "{}",
            wheel.moves_per_ms
        );
        wheel.advance(at_ms + FAR_SLOT_MS, &mut due);
        assert_eq!(due.len(), 30_000);
    }

    #[test]
    fn a_million_timers_take_the_stated_memory() {
        let mut wheel = Wheel::new(0);
        for index in 0..1_000_000 {
            wheel.arm(index, 30_000 + u64::from(index % 60_000));
        }
        assert_eq!(wheel.len(), 1_000_000);
        assert!(
            wheel.memory_bytes() <= 18 * 1_000_000 + 64 * 1024,
            "{}",
            wheel.memory_bytes()
        );
        let mut due = Vec::new();
        for now_ms in (0..=90_000).step_by(7) {
            wheel.advance(now_ms, &mut due);
        }
        assert_eq!(due.len(), 1_000_000);
        due.sort_unstable();
        due.dedup();
        assert_eq!(due.len(), 1_000_000);
    }
}
