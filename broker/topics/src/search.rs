//! Reading: from a topic to the records of all filters that match it.

use arrayvec::ArrayVec;

use crate::Subscriber;
use crate::filter::LEVELS_MAX;
use crate::hash::PathHash;
use crate::record::{self, View};
use crate::sync::{Cell, Guard, Look};
use crate::table::{HAS_MULTI, HAS_MULTI_NEXT, HAS_PLUS, Table};

/// A topic name, cut and hashed.
pub(crate) struct Topic<'t> {
    text: &'t [u8],
    levels: ArrayVec<Level, LEVELS_MAX>,
    /// It has more levels than filters can have: only `#` reaches its end.
    deeper: bool,
}

#[derive(Clone, Copy)]
struct Level {
    hash: u64,
    /// Where its text ends.
    end: u32,
}

impl<'t> Topic<'t> {
    /// Hashes the levels and prefetches the slots of the literal path.
    #[inline]
    pub(crate) fn new(table: &Table, topic: &'t str) -> Self {
        let mut cut = Topic {
            text: topic.as_bytes(),
            levels: ArrayVec::new(),
            deeper: false,
        };
        let mut path = table.hasher.root();
        table.slots.prefetch(path.node());
        let mut start = 0;
        loop {
            let rest = &cut.text[start..];
            let length = rest
                .iter()
                .position(|&byte| byte == b'/')
                .unwrap_or(rest.len());
            let hash = table.hasher.level(&rest[..length]);
            let end = start + length;
            // A topic is at most 65,535 bytes long; a longer one matches nothing longer than that.
            cut.levels.push(Level {
                hash,
                end: end as u32,
            });
            path = table.hasher.extend(path, hash);
            table.slots.prefetch(path.node());
            if end == cut.text.len() {
                return cut;
            }
            if cut.levels.is_full() {
                cut.deeper = true;
                return cut;
            }
            start = end + 1;
        }
    }

    fn start(&self, level: usize) -> usize {
        if level == 0 {
            0
        } else {
            self.levels[level - 1].end as usize + 1
        }
    }

    /// Whether `filter` is exactly the path that led to it.
    #[inline]
    fn verify(&self, filter: &[u8], path: &Path) -> bool {
        if path.plus == 0 && !path.multi {
            return filter == self.text;
        }
        let mut filter = filter;
        let mut from = 0;
        let mut plus = path.plus;
        while plus != 0 {
            let level = plus.trailing_zeros() as usize;
            plus &= plus - 1;
            let Some(rest) = filter.strip_prefix(&self.text[from..self.start(level)]) else {
                return false;
            };
            let Some(rest) = rest.strip_prefix(b"+") else {
                return false;
            };
            filter = rest;
            from = self.levels[level].end as usize;
        }
        let to = if path.level == 0 {
            0
        } else {
            self.levels[path.level - 1].end as usize
        };
        let Some(rest) = filter.strip_prefix(&self.text[from..to]) else {
            return false;
        };
        match (path.multi, path.level) {
            (false, _) => rest.is_empty(),
            (true, 0) => rest == b"#",
            (true, _) => rest == b"/#",
        }
    }
}

/// One of the ways through the wildcards that a topic can match.
#[derive(Clone, Copy)]
struct Path {
    hash: PathHash,
    /// Levels so far.
    level: usize,
    /// For each of them: taken by `+`.
    plus: u128,
    /// A `#` comes last; it isn't counted in `level`.
    multi: bool,
    /// There may be a `#` right after the last level.
    multi_next: bool,
}

struct Found {
    path: Path,
    word: *mut (),
}

/// Records whose memory is on its way before the first is looked at.
const PENDING: usize = 24;

pub(crate) struct Search<'s> {
    table: &'s Table,
    topic: &'s Topic<'s>,
    guard: &'s Guard,
    found: ArrayVec<Found, PENDING>,
    out: &'s mut Vec<Subscriber>,
}

impl<'s> Search<'s> {
    pub(crate) fn new(
        table: &'s Table,
        topic: &'s Topic<'s>,
        guard: &'s Guard,
        out: &'s mut Vec<Subscriber>,
    ) -> Self {
        Self {
            table,
            topic,
            guard,
            found: ArrayVec::new(),
            out,
        }
    }

    /// Appends the subscribers of all matching filters.
    #[inline]
    pub(crate) fn run(mut self) {
        let root = Path {
            hash: self.table.hasher.root(),
            level: 0,
            plus: 0,
            multi: false,
            multi_next: false,
        };
        // One `+` at most is left waiting per level: the path that was put aside last is followed first.
        let mut waiting: ArrayVec<Path, LEVELS_MAX> = ArrayVec::new();
        let mut next = Some(root);
        // A wildcard on the first level doesn't match names that begin with `$` [MQTT-4.7.2-1].
        let mut wildcards = !self.topic.text.starts_with(b"$");
        while let Some(mut path) = next {
            loop {
                let at_end = path.level == self.topic.levels.len();
                if at_end && !self.topic.deeper {
                    self.terminal(path);
                    if !path.multi_next {
                        break;
                    }
                }
                let Some(slot) = self
                    .table
                    .slots
                    .get(path.hash.node(), Look::Reader, self.guard)
                else {
                    break;
                };
                let flags = slot.value.read().addr();
                if flags & HAS_MULTI != 0 && wildcards {
                    let hash = self.table.hasher.multi(path.hash);
                    self.terminal(Path {
                        hash,
                        multi: true,
                        ..path
                    });
                }
                if at_end {
                    break;
                }
                path.multi_next = flags & HAS_MULTI_NEXT != 0;
                if flags & HAS_PLUS != 0 && wildcards {
                    let hash = self.table.hasher.plus(path.hash);
                    let plus = path.plus | 1 << path.level;
                    let aside = Path {
                        hash,
                        level: path.level + 1,
                        plus,
                        ..path
                    };
                    self.prefetch_from(&aside);
                    waiting.push(aside);
                }
                wildcards = true;
                path.hash = self
                    .table
                    .hasher
                    .extend(path.hash, self.topic.levels[path.level].hash);
                path.level += 1;
            }
            next = waiting.pop();
        }
        self.finish();
    }

    /// Asks for the slots along the rest of the topic.
    #[inline]
    fn prefetch_from(&self, path: &Path) {
        let mut hash = path.hash;
        self.table.slots.prefetch(hash.node());
        for level in &self.topic.levels[path.level..] {
            hash = self.table.hasher.extend(hash, level.hash);
            self.table.slots.prefetch(hash.node());
        }
    }

    /// Looks for the filter that ends here.
    #[inline]
    fn terminal(&mut self, path: Path) {
        let Some(slot) = self
            .table
            .slots
            .get(path.hash.terminal(), Look::Reader, self.guard)
        else {
            return;
        };
        let word = slot.value.read();
        record::prefetch(word);
        if self.found.is_full() {
            self.finish();
        }
        self.found.push(Found { path, word });
    }

    /// Compares the records found with their paths and reads them.
    fn finish(&mut self) {
        // The literal path's records were asked for when the slowest slots had come, so the others go first.
        while let Some(Found { path, word }) = self.found.pop() {
            // SAFETY: read under the guard.
            let view = unsafe { record::view(word) };
            match view {
                Some(view) if self.topic.verify(view.filter(), &path) => view.read(self.out),
                _ => self.search_all(&path),
            }
        }
    }

    /// Two filters have the same hash, or the slot has just changed hands: looks at every slot with this key.
    #[cold]
    fn search_all(&mut self, path: &Path) {
        for slot in self
            .table
            .slots
            .all(path.hash.terminal(), Look::Reader, self.guard)
        {
            // SAFETY: read under the guard.
            let view: Option<View<'_>> = unsafe { record::view(slot.value.read()) };
            if let Some(view) = view
                && self.topic.verify(view.filter(), path)
            {
                view.read(self.out);
                return;
            }
        }
    }
}
