// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The steps of a block's life that several calls share: leaving the index, losing a pin, giving
//! the place back, being evicted.
//!
//! Invariant: a block leaves the index once, and its place is given back once, after that.

use super::block::{BlockIdx, ClassIdx, State};
use super::evict::Lost;
use super::index::Hash;
use super::{Action, Core, Now, Place};

/// Victims whose cache misses overlap.
const VICTIMS_AHEAD: usize = 16;

impl Core {
    /// Takes a block out of the index. From now on nobody finds it; its place stays taken.
    pub(super) fn detach(&mut self, idx: BlockIdx) {
        let block = *self.blocks.get(idx);
        debug_assert!(
            matches!(block.state, State::Writing | State::Sealed),
            "detached twice"
        );
        let removed = self.index.remove(self.index.hash(&block.key), idx);
        debug_assert!(removed, "blocks in these states are in the index");
        if block.state == State::Sealed {
            let tenant = self.namespaces.class(block.class).tenant;
            let tenant = self.tenants.get_mut(tenant);
            tenant.demoted.forget(&[idx]);
            tenant.policy.remove(&mut self.blocks, idx);
            self.sealed -= 1;
        }
        self.blocks.get_mut(idx).state = match block.state {
            State::Sealed => State::Detached,
            _ => State::Abandoned,
        };
        self.detached += 1;
        if let Some(parent) = self.blocks.unlink(idx) {
            self.ripen(parent, Lost::Child);
        }
    }

    /// Tells the policy that a block may have become evictable.
    pub(super) fn ripen(&mut self, idx: BlockIdx, lost: Lost) {
        let block = self.blocks.get(idx);
        if block.is_evictable() {
            let tenant = self.namespaces.class(block.class).tenant;
            let tenant = self.tenants.get_mut(tenant);
            tenant.demoted.ripe(idx);
            tenant.policy.ripe(&mut self.blocks, idx, lost);
        }
    }

    /// Gives a detached block's place back. Nobody may hold it any more.
    pub(super) fn give_back(&mut self, idx: BlockIdx, actions: &mut Vec<Action>) {
        let block = *self.blocks.get(idx);
        debug_assert!(
            matches!(block.state, State::Detached | State::Abandoned),
            "still in the index"
        );
        debug_assert_eq!(block.pins, 0, "somebody holds it");
        actions.push(Action::EraseRecord {
            place: block.place,
            generation: block.generation,
        });
        self.places.free(block.place);
        let bytes = self.namespaces.class(block.class).place_bytes;
        self.tenant_of(block.class).used_bytes -= bytes;
        self.blocks.remove(idx);
        self.detached -= 1;
    }

    /// Ends one pin; the last one of a detached block gives its place back.
    pub(super) fn unpin(&mut self, idx: BlockIdx, actions: &mut Vec<Action>) {
        let block = self.blocks.get_mut(idx);
        block.pins -= 1;
        if block.pins > 0 {
            return;
        }
        match block.state {
            State::Detached => self.give_back(idx, actions),
            _ => self.ripen(idx, Lost::Pin),
        }
    }

    /// Drops a sealed block: a miss from now on, its place free after its last reader.
    pub(super) fn drop_sealed(&mut self, idx: BlockIdx, actions: &mut Vec<Action>) {
        self.detach(idx);
        if self.blocks.get(idx).pins == 0 {
            self.give_back(idx, actions);
        }
    }

    /// Evicts one block that nobody holds.
    fn evict(&mut self, now: Now, idx: BlockIdx, actions: &mut Vec<Action>) {
        let block = *self.blocks.get(idx);
        let bytes = self.namespaces.class(block.class).bytes;
        let counters = &mut self.tenant_of(block.class).counters;
        counters.evicted_blocks += 1;
        counters.evicted_bytes += bytes;
        counters.evicted_age_s += u64::from(seconds(now).saturating_sub(block.touched_s));
        self.drop_sealed(idx, actions);
    }

    /// Evicts the block that the tenant of `class` values least; whether there was one.
    pub(super) fn evict_own(
        &mut self,
        now: Now,
        class: ClassIdx,
        actions: &mut Vec<Action>,
    ) -> bool {
        let tenant = self.namespaces.class(class).tenant;
        let victim = self.tenants.get_mut(tenant).victim(&mut self.blocks);
        let Some(victim) = victim else {
            return false;
        };
        self.read_ahead(victim);
        self.evict(now, victim, actions);
        true
    }

    /// Begins to read what evicting the next victims will need, so that their cache misses overlap.
    /// Policies let a chain leave as a whole, so these are most likely the blocks above this one.
    fn read_ahead(&mut self, victim: BlockIdx) {
        if self.victims_ahead > 0 {
            self.victims_ahead -= 1;
            return;
        }
        let mut next = Some(victim);
        let chain = std::iter::from_fn(|| {
            let idx = next?;
            next = self.blocks.parent(idx);
            Some(self.index.hash(&self.blocks.get(idx).key))
        });
        let mut hashes = [Hash::default(); VICTIMS_AHEAD];
        let mut count = 0;
        for (hash, of_victim) in hashes.iter_mut().zip(chain) {
            *hash = of_victim;
            count += 1;
        }
        self.index.read_ahead(&hashes[..count]);
        self.victims_ahead = count - 1;
    }

    /// Evicts what is worth least on the whole node, to make room for a place of `place_bytes`:
    /// one block, or all of its slab where that holds places of another size. Returns how many.
    pub(super) fn evict_any(
        &mut self,
        now: Now,
        place_bytes: u64,
        actions: &mut Vec<Action>,
    ) -> u32 {
        let Some(victim) = self.tenants.victim(&mut self.blocks) else {
            return 0;
        };
        self.read_ahead(victim);
        let slab = self.places.slab_blocks(self.blocks.get(victim).place);
        let other_size = slab.filter(|(_, bytes)| *bytes != place_bytes);
        let Some((neighbours, _)) = other_size else {
            self.evict(now, victim, actions);
            return 1;
        };
        let is_free = |idx: &BlockIdx| {
            let block = self.blocks.get(*idx);
            block.state == State::Sealed && block.pins == 0
        };
        self.wants_compaction = true;
        let all: Vec<_> = neighbours
            .iter()
            .copied()
            .filter(|idx| !idx.is_none())
            .collect();
        if !all.iter().all(is_free) {
            self.evict(now, victim, actions);
            return 1;
        }
        for idx in &all {
            self.evict(now, *idx, actions);
        }
        all.len() as u32
    }

    /// A place for one more block of `class`, with room for it in the arena and in its tenant's
    /// quota; evicts at most `budget` blocks, and takes them off it.
    pub(super) fn make_room(
        &mut self,
        now: Now,
        class: ClassIdx,
        near: u8,
        budget: &mut u32,
        actions: &mut Vec<Action>,
    ) -> Option<Place> {
        let (bytes, place_bytes) = {
            let class = self.namespaces.class(class);
            (class.bytes, class.place_bytes)
        };
        // Nothing is evicted for a block that would not fit into an empty pool.
        if !self.places.could_hold(place_bytes) || !self.tenant_of(class).could_hold(place_bytes) {
            return None;
        }
        while !self.tenant_of(class).has_room(place_bytes) {
            if *budget == 0 || !self.evict_own(now, class, actions) {
                return None;
            }
            *budget -= 1;
        }
        loop {
            if !self.blocks.is_full()
                && let Some(place) = self.places.alloc(bytes, near, actions)
            {
                self.tenant_of(class).used_bytes += place_bytes;
                return Some(place);
            }
            if *budget == 0 {
                return None;
            }
            let evicted = self.evict_any(now, place_bytes, actions);
            if evicted == 0 {
                return None;
            }
            *budget = budget.saturating_sub(evicted);
        }
    }
}

/// Whole seconds of a time, as blocks keep them.
pub(super) fn seconds(now: Now) -> u32 {
    (now.0 / 1000) as u32
}
