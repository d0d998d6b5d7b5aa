//! Path hashes: one 64-bit value for the first levels of a filter or topic, extended level by level.
//!
//! Levels are hashed with SipHash-1-3 under a secret key, so that a peer can neither find colliding paths nor aim at a
//! slot. Collisions are harmless for correctness all the same: terminal entries carry their filter and are compared.

use siphasher::sip::SipHasher13;

/// The hash of a path's levels so far.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct PathHash(pub(crate) u64);

/// The key that a slot is found by: a [`PathHash`] and what the slot is for.
///
/// The two keys of one path differ in one bit that has no part in the slot's place, so both lie in one cache line
/// as a rule. Never 0 or 1, which mark free slots.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Key(pub(crate) u64);

impl PathHash {
    /// The key of what is known about the filters that continue below this path.
    #[inline]
    pub(crate) fn node(self) -> Key {
        Key(self.0 & !0b11 | 0b10)
    }

    /// The key of the filter that ends here.
    #[inline]
    pub(crate) fn terminal(self) -> Key {
        Key(self.0 | 0b11)
    }
}

/// The secret hash functions of one table.
#[derive(Debug)]
pub(crate) struct PathHasher {
    levels: SipHasher13,
    multiplier: u64,
    root: PathHash,
    plus: u64,
    hash: u64,
    /// Set bits stay; tests clear some to make collisions.
    #[cfg(test)]
    mask: u64,
}

impl PathHasher {
    pub(crate) fn new(seed: [u64; 2]) -> Self {
        // The wildcards' values come from another key than the levels', so no level's text can take their place.
        let own = SipHasher13::new_with_keys(!seed[0], seed[1].rotate_left(32));
        Self {
            levels: SipHasher13::new_with_keys(seed[0], seed[1]),
            multiplier: own.hash(b"multiplier") | 1,
            root: PathHash(own.hash(b"root")),
            plus: own.hash(b"+"),
            hash: own.hash(b"#"),
            #[cfg(test)]
            mask: u64::MAX,
        }
    }

    #[cfg(test)]
    pub(crate) fn with_mask(seed: [u64; 2], mask: u64) -> Self {
        Self {
            mask,
            ..Self::new(seed)
        }
    }

    /// The path of no levels.
    #[inline]
    pub(crate) fn root(&self) -> PathHash {
        self.root
    }

    /// The hash of one level's text.
    #[inline]
    pub(crate) fn level(&self, text: &[u8]) -> u64 {
        self.levels.hash(text)
    }

    /// `path` and one more level with this hash.
    #[inline]
    pub(crate) fn extend(&self, path: PathHash, level: u64) -> PathHash {
        let product = u128::from(path.0.rotate_left(23) ^ level) * u128::from(self.multiplier);
        let folded = product as u64 ^ (product >> 64) as u64;
        #[cfg(test)]
        let folded = folded & self.mask;
        PathHash(folded)
    }

    /// `path` and a `+`.
    #[inline]
    pub(crate) fn plus(&self, path: PathHash) -> PathHash {
        self.extend(path, self.plus)
    }

    /// `path` and a `#`.
    #[inline]
    pub(crate) fn multi(&self, path: PathHash) -> PathHash {
        self.extend(path, self.hash)
    }

    /// `path` and one more level of a filter.
    #[inline]
    pub(crate) fn filter_level(&self, path: PathHash, level: &[u8]) -> PathHash {
        match level {
            b"+" => self.plus(path),
            b"#" => self.multi(path),
            text => self.extend(path, self.level(text)),
        }
    }
}
