// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Least recently used, leaves before their prefixes.
//!
//! A request touches its blocks from the leaf to the root, so among equals the leaf is older. A block
//! that is the oldest but pinned or not a leaf is set aside, and is next in line as soon as it can
//! leave: it is older than everything still in the log.

use super::log::{Log, TAG_MIN};
use super::{Eviction, Lost, Request};
use crate::core::block::{BlockIdx, Blocks};
use std::collections::BTreeSet;

/// `policy[1]` of blocks that are not in the log.
const NOWHERE: u32 = 0;
/// Was the oldest, but could not leave; `policy[0]` counts those set aside, so it keeps their order.
const ASIDE: u32 = 2;
/// Was set aside, can leave, and waits in `ripe`.
const RIPE: u32 = 3;

/// The policy.
#[derive(Debug)]
pub(super) struct Lru {
    log: Log,
    /// Blocks to leave next, by the order in which they were set aside, each with its generation.
    /// Those whose state is no longer `RIPE` are passed over.
    ripe: BTreeSet<(u32, BlockIdx, u32)>,
    /// Blocks set aside so far.
    aside: u32,
}

const _: () = assert!(RIPE < TAG_MIN, "a log's tag means that the block is in it");

impl Lru {
    /// A policy over blocks of its own; `id` is that of no other.
    pub(super) fn new(id: u32) -> Self {
        Self {
            log: Log::new(id),
            ripe: BTreeSet::new(),
            aside: 0,
        }
    }

    fn forget(&mut self, blocks: &Blocks, block: BlockIdx) {
        if self.log.holds(blocks, block) {
            self.log.forget(blocks.get(block).policy[0]);
        }
    }

    fn next_ripe(&mut self, blocks: &mut Blocks) -> Option<BlockIdx> {
        while let Some(&(_, idx, generation)) = self.ripe.first() {
            let block = blocks.get_mut(idx);
            if block.generation == generation && block.policy[1] == RIPE {
                if block.is_evictable() {
                    return Some(idx);
                }
                block.policy[1] = ASIDE;
            }
            self.ripe.pop_first();
        }
        None
    }
}

impl Eviction for Lru {
    fn insert(&mut self, blocks: &mut Blocks, chain: &[BlockIdx]) {
        for block in chain {
            self.log.append(blocks, *block);
        }
    }

    fn request(&mut self, blocks: &mut Blocks, request: &Request<'_>) {
        self.refresh(blocks, request.found);
    }

    fn refresh(&mut self, blocks: &mut Blocks, chain: &[BlockIdx]) {
        for block in chain.iter().rev() {
            self.forget(blocks, *block);
            // The block must not look alive at its old position while the log is compacted.
            blocks.get_mut(*block).policy[1] = NOWHERE;
            self.log.append(blocks, *block);
        }
    }

    fn remove(&mut self, blocks: &mut Blocks, block: BlockIdx) {
        self.forget(blocks, block);
        blocks.get_mut(block).policy[1] = NOWHERE;
    }

    fn ripe(&mut self, blocks: &mut Blocks, block: BlockIdx, _: Lost) {
        let entry = blocks.get_mut(block);
        if entry.policy[1] == ASIDE && entry.is_evictable() {
            entry.policy[1] = RIPE;
            self.ripe.insert((entry.policy[0], block, entry.generation));
        }
    }

    fn victim(&mut self, blocks: &mut Blocks) -> Option<BlockIdx> {
        if let Some(block) = self.next_ripe(blocks) {
            return Some(block);
        }
        loop {
            let block = self.log.oldest(blocks)?;
            if blocks.get(block).is_evictable() {
                return Some(block);
            }
            self.forget(blocks, block);
            self.aside = self.aside.wrapping_add(1);
            blocks.get_mut(block).policy[..2].copy_from_slice(&[self.aside, ASIDE]);
        }
    }

    #[cfg(test)]
    fn check(&self, blocks: &Blocks, tracked: &[BlockIdx]) {
        let is = |wanted: u32| {
            let state = move |idx: &&BlockIdx| blocks.get(**idx).policy[1] == wanted;
            tracked.iter().filter(state)
        };
        let living = tracked.iter().filter(|idx| self.log.holds(blocks, **idx));
        self.log.check(blocks, &living.copied().collect::<Vec<_>>());
        assert_eq!(is(NOWHERE).count(), 0, "a visible block is not tracked");
        for idx in is(RIPE) {
            let block = blocks.get(*idx);
            assert!(
                self.ripe
                    .contains(&(block.policy[0], *idx, block.generation))
            );
        }
        for idx in is(ASIDE) {
            assert!(
                !blocks.get(*idx).is_evictable(),
                "{idx:?} was forgotten aside"
            );
        }
    }

    fn bytes(&self) -> usize {
        self.log.bytes() + self.ripe.len() * 2 * size_of::<(u32, BlockIdx, u32)>()
    }
}
