// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Blocks that are being written to another tier: held where they are until that is over.
//!
//! Invariant: a held block is pinned once by its spill, so its place keeps its bytes; it stays
//! readable, and may leave the index meanwhile.

use super::block::State;
use super::{Action, Core, Place};
use pegaflow_meta::BlockKey;

impl Core {
    /// Holds the sealed block at `place` until [`end_spill`](Self::end_spill). False if that use of
    /// the place is over, or the block is held already.
    pub fn begin_spill(&mut self, place: Place, generation: u32) -> bool {
        let Some(idx) = self.places.owner(place) else {
            return false;
        };
        let block = self.blocks.get(idx);
        let same = block.generation == generation && block.state == State::Sealed;
        if !same || block.place != place || self.spills.contains_key(&place) {
            return false;
        }
        self.blocks.get_mut(idx).pins += 1;
        self.spills.insert(place, idx);
        true
    }

    /// Another tier has a copy of this block: if it is here, it leaves first among equals.
    pub fn note_copy(&mut self, key: &BlockKey) {
        let Some(idx) = self.find(self.index.hash(key), key) else {
            return;
        };
        let block = self.blocks.get(idx);
        if block.state == State::Sealed {
            let tenant = self.namespaces.class(block.class).tenant;
            let policy = &mut self.tenants.get_mut(tenant).policy;
            policy.copied(&mut self.blocks, idx);
        }
    }

    /// Lets a held block go. Nothing reads its place for the other tier any more.
    pub fn end_spill(&mut self, place: Place, actions: &mut Vec<Action>) {
        if let Some(idx) = self.spills.remove(&place) {
            self.unpin(idx, actions);
        }
    }
}
