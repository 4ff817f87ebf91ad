// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What is to be written to another tier: sealed blocks in the order they were sealed, so a prefix
//! before its leaf, and never more bytes at once than the budget.
//!
//! Blocks over the budget are not dropped: they wait here as a few words each, and are written when
//! their turn comes, if the pool still has them.
//!
//! Invariant: bytes under way are within the budget, or one block is under way.

use std::collections::VecDeque;

use pegaflow_meta::{BlockKey, GroupId};

use super::share::Tag;
use crate::core::{NamespaceIndex, Place};

/// One sealed block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub key: BlockKey,
    /// Where it lies.
    pub place: Place,
    /// The use of the place.
    pub generation: u32,
    /// Namespace of the block.
    pub namespace: NamespaceIndex,
    /// Cache group of the block.
    pub group: GroupId,
    /// Its tenant.
    pub tag: Tag,
    /// Bytes of the block.
    pub bytes: u64,
}

/// What waits to be written, and how much is under way.
#[derive(Debug)]
pub struct Spill {
    waiting: VecDeque<Candidate>,
    blocks_max: usize,
    bytes_max: u64,
    under_way_bytes: u64,
}

impl Spill {
    /// At most `blocks_max` blocks wait, and at most `bytes_max` bytes are under way.
    #[must_use]
    pub fn new(blocks_max: u32, bytes_max: u64) -> Self {
        Self {
            waiting: VecDeque::new(),
            blocks_max: blocks_max as usize,
            bytes_max,
            under_way_bytes: 0,
        }
    }

    /// Takes a block that was just sealed. False if too many wait: it is not written.
    pub fn offer(&mut self, candidate: Candidate) -> bool {
        let room = self.waiting.len() < self.blocks_max;
        if room {
            self.waiting.push_back(candidate);
        }
        room
    }

    /// The next block to write, if the budget allows one. Books its bytes.
    pub fn take(&mut self) -> Option<Candidate> {
        let bytes = self.waiting.front()?.bytes;
        let wanted = self.under_way_bytes.saturating_add(bytes);
        // A block larger than the whole budget must not wait for ever.
        if self.under_way_bytes > 0 && wanted > self.bytes_max {
            return None;
        }
        self.under_way_bytes = wanted;
        self.waiting.pop_front()
    }

    /// A block is written, or will not be.
    pub fn done(&mut self, bytes: u64) {
        self.under_way_bytes -= bytes;
    }

    /// Blocks that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Bytes under way.
    #[must_use]
    pub fn under_way_bytes(&self) -> u64 {
        self.under_way_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(n: u64, bytes: u64) -> Candidate {
        Candidate {
            key: BlockKey(u128::from(n).to_le_bytes()),
            place: Place::new(0, n << 12),
            generation: 1,
            namespace: NamespaceIndex(0),
            group: GroupId(0),
            tag: Tag::of(""),
            bytes,
        }
    }

    proptest! {
        /// A burst of any size: all that was taken is written, in order, within the budget.
        #[test]
        fn nothing_that_was_taken_is_dropped(sizes in prop::collection::vec(1u64..50, 0..100), bytes_max in 1u64..100) {
            let mut spill = Spill::new(u32::MAX, bytes_max);
            let all = (0..).zip(&sizes).map(|(n, bytes)| candidate(n, *bytes));
            let all: Vec<_> = all.collect();
            prop_assert!(all.iter().all(|one| spill.offer(*one)));
            let (mut written, mut under_way) = (vec![], VecDeque::new());
            while written.len() < all.len() {
                while let Some(next) = spill.take() {
                    under_way.push_back(next);
                }
                let bytes: u64 = under_way.iter().map(|one| one.bytes).sum();
                prop_assert_eq!(spill.under_way_bytes(), bytes);
                prop_assert!(bytes <= bytes_max || under_way.len() == 1);
                let first = under_way.pop_front().expect("the budget lets one through");
                spill.done(first.bytes);
                written.push(first);
            }
            prop_assert_eq!(written, all);
        }
    }

    #[test]
    fn a_full_queue_says_so() {
        let mut spill = Spill::new(2, 1);
        let taken: Vec<_> = (0..3).map(|n| spill.offer(candidate(n, 5))).collect();
        assert_eq!((taken, spill.waiting()), (vec![true, true, false], 2));
    }
}
