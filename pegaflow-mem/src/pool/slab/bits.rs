// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A set of small numbers with a fast "lowest member": one bit each, and one summary bit per 64.

#[derive(Debug, Clone)]
pub(super) struct Bits {
    leaf: Vec<u64>,
    summary: Vec<u64>,
}

impl Bits {
    /// The set `0..len`.
    pub(super) fn full(len: u32) -> Self {
        let leaf = ones(len as usize);
        let summary = ones(leaf.len());
        Self { leaf, summary }
    }

    pub(super) fn contains(&self, i: u32) -> bool {
        self.leaf
            .get(i as usize / 64)
            .is_some_and(|w| w >> (i % 64) & 1 == 1)
    }

    /// Adds `i`; false if it was in already. `i` must be below the length.
    pub(super) fn insert(&mut self, i: u32) -> bool {
        let (at, bit) = (i as usize / 64, 1 << (i % 64));
        let new = self.leaf[at] & bit == 0;
        self.leaf[at] |= bit;
        self.summary[at / 64] |= 1 << (at % 64);
        new
    }

    /// Takes `i` out; false if it was not in.
    pub(super) fn remove(&mut self, i: u32) -> bool {
        let (at, bit) = (i as usize / 64, 1 << (i % 64));
        let had = self.leaf[at] & bit != 0;
        self.leaf[at] &= !bit;
        if self.leaf[at] == 0 {
            self.summary[at / 64] &= !(1 << (at % 64));
        }
        had
    }

    /// The lowest member.
    pub(super) fn first(&self) -> Option<u32> {
        let s = self.summary.iter().position(|w| *w != 0)?;
        let at = s * 64 + self.summary[s].trailing_zeros() as usize;
        Some(at as u32 * 64 + self.leaf[at].trailing_zeros())
    }

    /// The lowest member at or above `from`.
    pub(super) fn next(&self, from: u32) -> Option<u32> {
        let at = from as usize / 64;
        let head = self.leaf.get(at)? & (u64::MAX << (from % 64));
        if head != 0 {
            return Some(at as u32 * 64 + head.trailing_zeros());
        }
        let at = at + 1 + self.leaf[at + 1..].iter().position(|w| *w != 0)?;
        Some(at as u32 * 64 + self.leaf[at].trailing_zeros())
    }

    /// The lowest number in `from..len` that is not a member, or `len`.
    pub(super) fn next_gap(&self, from: u32, len: u32) -> u32 {
        let mut at = from as usize / 64;
        let mut mask = u64::MAX << (from % 64);
        while let Some(word) = self.leaf.get(at) {
            let gaps = !word & mask;
            if gaps != 0 {
                return (at as u32 * 64 + gaps.trailing_zeros()).min(len);
            }
            (at, mask) = (at + 1, u64::MAX);
        }
        len
    }

    pub(super) fn metadata_bytes(&self) -> usize {
        (self.leaf.capacity() + self.summary.capacity()) * 8
    }
}

fn ones(len: usize) -> Vec<u64> {
    let mut words = vec![u64::MAX; len.div_ceil(64)];
    if !len.is_multiple_of(64) {
        *words.last_mut().expect("len is not 0") = (1 << (len % 64)) - 1;
    }
    words
}
