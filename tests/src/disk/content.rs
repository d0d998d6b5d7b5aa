//! What is in a file, with holes where nothing was written.

use std::collections::BTreeMap;

/// Bytes of a block: what a filesystem hands out space by.
pub const BLOCK_BYTES: u64 = 4096;

/// Bytes that a device writes as a whole: a torn write ends at a multiple of this.
pub const SECTOR_BYTES: u64 = 512;

type Block = [u8; BLOCK_BYTES as usize];

/// The bytes of one file.
#[derive(Clone, Debug, Default)]
pub struct Content {
    blocks: BTreeMap<u64, Box<Block>>,
    len: u64,
}

impl Content {
    /// Length, bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// How many blocks take space.
    pub fn blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// Up to `size` bytes from `offset` on.
    pub fn read(&self, offset: u64, size: usize) -> Vec<u8> {
        let end = self.len.min(offset.saturating_add(size as u64));
        let mut bytes = vec![0; end.saturating_sub(offset) as usize];
        for part in parts(offset, bytes.len()) {
            if let Some(block) = self.blocks.get(&part.block) {
                bytes[part.of_bytes.clone()].copy_from_slice(&block[part.in_block()]);
            }
        }
        bytes
    }

    /// Writes `bytes`, at least one, at `offset`; behind the end if need be.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        for part in parts(offset, bytes.len()) {
            let block = self
                .blocks
                .entry(part.block)
                .or_insert_with(|| Box::new([0; BLOCK_BYTES as usize]));
            block[part.in_block()].copy_from_slice(&bytes[part.of_bytes.clone()]);
        }
        self.len = self.len.max(offset + bytes.len() as u64);
    }

    /// Cuts it off, or lengthens it with a hole.
    pub fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.blocks.split_off(&len.div_ceil(BLOCK_BYTES));
            self.zero(len, len.next_multiple_of(BLOCK_BYTES) - len);
        }
        self.len = len;
    }

    /// Makes zeros of what is there from `offset` on; the length stays.
    pub fn zero(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        let touched = offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        let numbers: Vec<u64> = self
            .blocks
            .range(touched)
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            let start = number * BLOCK_BYTES;
            if offset <= start && start + BLOCK_BYTES <= end {
                self.blocks.remove(&number);
            } else if let Some(block) = self.blocks.get_mut(&number) {
                let from = offset.saturating_sub(start) as usize;
                let to = (end - start).min(BLOCK_BYTES) as usize;
                block[from..to].fill(0);
            }
        }
    }

    /// Takes space for what is a hole from `offset` on; the length stays.
    pub fn allocate(&mut self, offset: u64, len: u64) {
        for number in offset / BLOCK_BYTES..(offset + len).div_ceil(BLOCK_BYTES) {
            self.blocks
                .entry(number)
                .or_insert_with(|| Box::new([0; BLOCK_BYTES as usize]));
        }
    }

    /// How many blocks of a range take no space yet.
    pub fn holes(&self, offset: u64, len: u64) -> u64 {
        let touched = offset / BLOCK_BYTES..(offset + len).div_ceil(BLOCK_BYTES);
        (touched.end - touched.start) - self.blocks.range(touched).count() as u64
    }

    /// Turns one bit of the byte at `offset` over, if something was written there.
    pub fn flip(&mut self, offset: u64, bit: u8) -> bool {
        let block = self.blocks.get_mut(&(offset / BLOCK_BYTES));
        let Some(block) = block.filter(|_| offset < self.len) else {
            return false;
        };
        block[(offset % BLOCK_BYTES) as usize] ^= 1 << (bit % 8);
        true
    }
}

/// A piece of a range that lies in one block.
struct Part {
    block: u64,
    start: usize,
    of_bytes: std::ops::Range<usize>,
}

impl Part {
    fn in_block(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.of_bytes.len()
    }
}

fn parts(offset: u64, len: usize) -> impl Iterator<Item = Part> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let start = (at % BLOCK_BYTES) as usize;
        let length = (BLOCK_BYTES as usize - start).min(len - done);
        let part = Part {
            block: at / BLOCK_BYTES,
            start,
            of_bytes: done..done + length,
        };
        done += length;
        (length > 0).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>),
        SetLen(u64),
        Zero(u64, u64),
        Allocate(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let offset = || 0..20_000_u64;
        prop_oneof![
            (offset(), proptest::collection::vec(any::<u8>(), 1..9000))
                .prop_map(|(at, bytes)| Step::Write(at, bytes)),
            offset().prop_map(Step::SetLen),
            (offset(), 0..9000_u64).prop_map(|(at, len)| Step::Zero(at, len)),
            (offset(), 0..9000_u64).prop_map(|(at, len)| Step::Allocate(at, len)),
        ]
    }

    proptest! {
        #[test]
        fn behaves_as_a_vector_of_bytes(steps in proptest::collection::vec(step(), 1..20)) {
            let mut content = Content::default();
            let mut plain: Vec<u8> = Vec::new();
            for step in steps {
                match step {
                    Step::Write(at, bytes) => {
                        let at = at as usize;
                        plain.resize(plain.len().max(at + bytes.len()), 0);
                        plain[at..at + bytes.len()].copy_from_slice(&bytes);
                        content.write(at as u64, &bytes);
                    }
                    Step::SetLen(len) => {
                        plain.resize(len as usize, 0);
                        content.set_len(len);
                    }
                    Step::Zero(at, len) => {
                        let end = plain.len().min((at + len) as usize);
                        if let Some(range) = plain.get_mut(at as usize..end) {
                            range.fill(0);
                        }
                        content.zero(at, len);
                    }
                    Step::Allocate(at, len) => {
                        content.allocate(at, len);
                        prop_assert_eq!(content.holes(at, len), 0);
                    }
                }
                prop_assert_eq!(content.len(), plain.len() as u64);
                prop_assert_eq!(&content.read(0, plain.len() + 10), &plain);
            }
            let middle = plain.len() / 2;
            prop_assert_eq!(&content.read(middle as u64, 100)[..], &plain[middle..plain.len().min(middle + 100)]);
        }
    }

    #[test]
    fn holes_take_no_space() {
        let mut content = Content::default();
        content.set_len(1 << 30);
        assert_eq!(content.blocks(), 0);
        content.write(10 * BLOCK_BYTES - 1, b"ab");
        assert_eq!(content.blocks(), 2);
        content.zero(9 * BLOCK_BYTES, BLOCK_BYTES);
        assert_eq!(content.blocks(), 1);
        assert_eq!(content.read(10 * BLOCK_BYTES - 1, 2), b"\0b");
    }

    #[test]
    fn bits_are_flipped_only_where_something_was_written() {
        let mut content = Content::default();
        content.write(5, b"a");
        assert!(content.flip(5, 1));
        assert_eq!(content.read(5, 1), b"c");
        assert!(!content.flip(5000, 1));
    }
}
