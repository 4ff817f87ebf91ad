// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Blocks that somebody said are of no more use: they leave before whatever the policy would choose.
//!
//! Knows no policy: the blocks stay where they are in the tenant's. Costs nothing while there are none.
//!
//! Invariant: what is `ready` is in `order`, and a block that can leave is ready.

use super::block::{BlockIdx, Blocks};
use std::collections::{BTreeMap, HashMap};

/// The demoted blocks of one tenant.
#[derive(Debug, Default)]
pub(crate) struct Demoted {
    /// All of them, by when they were demoted.
    order: HashMap<BlockIdx, u64>,
    /// Those that could leave when they were last looked at.
    ready: BTreeMap<u64, BlockIdx>,
    next: u64,
}

impl Demoted {
    /// Demotes a visible block.
    pub(crate) fn add(&mut self, blocks: &Blocks, block: BlockIdx) {
        let next = self.next;
        let order = *self.order.entry(block).or_insert(next);
        self.next += u64::from(order == next);
        if blocks.get(block).is_evictable() {
            self.ready.insert(order, block);
        }
    }

    /// A block can leave now.
    pub(crate) fn ripe(&mut self, block: BlockIdx) {
        if let Some(order) = self.order.get(&block) {
            self.ready.insert(*order, block);
        }
    }

    /// Blocks are used again, or leave.
    pub(crate) fn forget(&mut self, blocks: &[BlockIdx]) {
        if self.order.is_empty() {
            return;
        }
        for block in blocks {
            if let Some(order) = self.order.remove(block) {
                self.ready.remove(&order);
            }
        }
    }

    /// The first that can leave. Asking again without a change gives the same.
    pub(crate) fn victim(&mut self, blocks: &Blocks) -> Option<BlockIdx> {
        while let Some((order, block)) = self.ready.first_key_value() {
            if blocks.get(*block).is_evictable() {
                return Some(*block);
            }
            // It comes back when what keeps it is gone.
            let order = *order;
            self.ready.remove(&order);
        }
        None
    }

    /// Panics unless all of them are among `tracked`, and all that can leave are ready.
    #[cfg(test)]
    pub(crate) fn check(&self, blocks: &Blocks, tracked: &[BlockIdx]) {
        for (block, order) in &self.order {
            assert!(tracked.contains(block), "{block:?} has left");
            let is_ready = self.ready.get(order) == Some(block);
            let evictable = blocks.get(*block).is_evictable();
            assert!(is_ready || !evictable, "{block:?} was forgotten");
        }
        let known = |(order, block): (&u64, &BlockIdx)| self.order.get(block) == Some(order);
        assert!(self.ready.iter().all(known));
    }
}
