// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Least recently used, leaves before their prefixes.
//!
//! A request touches its blocks from the leaf to the root, so among equals the leaf is older. A block
//! that is the oldest but pinned or not a leaf is set aside, and is next in line as soon as it can
//! leave: it is older than everything still in the log.

use super::Eviction;
use super::log::{IN_LOG, Log};
use crate::core::block::{BlockIdx, Blocks};

/// `policy[1]` of blocks that are not in the log.
const NOWHERE: u32 = 0;
/// Was the oldest, but could not leave.
const ASIDE: u32 = 2;
/// Was set aside, can leave, and waits in `ripe`.
const RIPE: u32 = 3;

/// The policy.
#[derive(Debug, Default)]
pub(super) struct Lru {
    log: Log,
    /// Blocks to leave next, last first, each with its generation. Those whose state is no longer
    /// `RIPE` are passed over.
    ripe: Vec<(BlockIdx, u32)>,
}

impl Lru {
    fn forget(&mut self, blocks: &mut Blocks, block: BlockIdx) {
        let [position, state] = blocks.get(block).policy;
        if state == IN_LOG {
            self.log.forget(position);
        }
    }

    fn next_ripe(&mut self, blocks: &mut Blocks) -> Option<BlockIdx> {
        while let Some(&(idx, generation)) = self.ripe.last() {
            let block = blocks.get_mut(idx);
            if block.generation == generation && block.policy[1] == RIPE {
                if block.is_evictable() {
                    return Some(idx);
                }
                block.policy[1] = ASIDE;
            }
            self.ripe.pop();
        }
        None
    }
}

impl Eviction for Lru {
    fn insert(&mut self, blocks: &mut Blocks, block: BlockIdx) {
        self.log.append(blocks, block);
    }

    fn touch(&mut self, blocks: &mut Blocks, chain: &[BlockIdx]) {
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

    fn ripe(&mut self, blocks: &mut Blocks, block: BlockIdx) {
        let entry = blocks.get_mut(block);
        if entry.policy[1] == ASIDE && entry.is_evictable() {
            entry.policy[1] = RIPE;
            self.ripe.push((block, entry.generation));
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
            blocks.get_mut(block).policy[1] = ASIDE;
        }
    }

    fn bytes(&self) -> usize {
        self.log.bytes() + self.ripe.capacity() * size_of::<(BlockIdx, u32)>()
    }
}
