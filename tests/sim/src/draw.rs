//! Where decisions come from: a seeded generator, or the bytes of a fuzzer.

/// A small generator of random numbers (SplitMix64): the same seed gives the same numbers everywhere.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `n`.
    ///
    /// # Panics
    /// When `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// A source of choices that may run dry.
pub(crate) enum Draw<'a> {
    Random(Rng),
    /// One byte for each choice; 0 when there are none left.
    Bytes(&'a [u8]),
}

impl Draw<'_> {
    /// Less than `n`, which isn't 0; from bytes, `n` is at most 256.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        match self {
            Self::Random(rng) => rng.below(n),
            Self::Bytes(bytes) => {
                let Some((first, rest)) = bytes.split_first() else {
                    return 0;
                };
                *bytes = rest;
                usize::from(*first) % n
            }
        }
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.below(2) == 1
    }

    /// True in one of `n` cases.
    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// A seed for what happens after an operation.
    pub(crate) fn schedule(&mut self) -> u64 {
        match self {
            Self::Random(rng) => rng.next(),
            Self::Bytes(_) => self.below(256) as u64,
        }
    }

    pub(crate) fn is_dry(&self) -> bool {
        matches!(self, Self::Bytes(bytes) if bytes.is_empty())
    }
}
