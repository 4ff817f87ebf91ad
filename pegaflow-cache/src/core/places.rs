// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Places of all pools: an allocator for each pool, and the way back from a place to its block.
//!
//! Invariant: `owner` names the block of every live place; compaction and whole-slab eviction rely
//! on it.

use super::action::Action;
use super::block::BlockIdx;
use super::error::Error;
use super::types::Place;
use pegaflow_mem::pool::slab::{Move, SlabEvent, SlabInfo};
use pegaflow_mem::{Place as Offset, SlabAllocator};

/// The blocks of one slab, by the place's number in it.
#[derive(Debug)]
struct SlabBlocks {
    offset: u64,
    units: u32,
    place_bytes: u64,
    blocks: Box<[BlockIdx]>,
}

#[derive(Debug)]
struct Pool {
    allocator: SlabAllocator,
    unit_shift: u32,
    /// First unit of the slab that a unit belongs to.
    slab_of_unit: Vec<u32>,
    /// By first unit.
    slabs: Vec<Option<SlabBlocks>>,
    events: Vec<SlabEvent>,
}

const NO_SLAB: u32 = u32::MAX;

impl Pool {
    fn new(capacity_bytes: u64) -> Self {
        let allocator = SlabAllocator::new(capacity_bytes).with_events();
        let unit_shift = allocator.unit_bytes().trailing_zeros();
        let units = (allocator.capacity_bytes() >> unit_shift) as usize;
        let slabs = (0..units).map(|_| None).collect();
        let slab_of_unit = vec![NO_SLAB; units];
        Self {
            allocator,
            unit_shift,
            slab_of_unit,
            slabs,
            events: Vec::new(),
        }
    }

    /// Follows the allocator's slab table, and hands its changes on.
    fn sync(&mut self, pool: u8, actions: &mut Vec<Action>) {
        if !self.allocator.has_events() {
            return;
        }
        let mut events = std::mem::take(&mut self.events);
        events.extend(self.allocator.drain_events());
        for event in events.drain(..) {
            actions.push(match event {
                SlabEvent::Assigned(info) => self.assigned(pool, info),
                SlabEvent::Released(slab) => self.released(pool, slab),
            });
        }
        self.events = events;
    }

    fn assigned(&mut self, pool: u8, info: SlabInfo) -> Action {
        let SlabInfo {
            slab,
            units,
            offset,
            class_bytes: place_bytes,
            places,
            ..
        } = info;
        let blocks = vec![BlockIdx::NONE; places as usize].into_boxed_slice();
        self.slab_of_unit[slab as usize..(slab + units) as usize].fill(slab);
        self.slabs[slab as usize] = Some(SlabBlocks {
            offset,
            units,
            place_bytes,
            blocks,
        });
        Action::AssignSlab {
            pool,
            slab,
            units,
            place_bytes,
        }
    }

    fn released(&mut self, pool: u8, slab: u32) -> Action {
        if let Some(gone) = self.slabs[slab as usize].take() {
            self.slab_of_unit[slab as usize..(slab + gone.units) as usize].fill(NO_SLAB);
        }
        Action::ReleaseSlab { pool, slab }
    }

    /// The slab that an offset lies in, and the number of the place that starts there.
    fn find(&self, offset: u64) -> Option<(u32, usize)> {
        let unit = usize::try_from(offset >> self.unit_shift).ok()?;
        let first = *self.slab_of_unit.get(unit)?;
        let slab = self.slabs.get(first as usize)?.as_ref()?;
        let within = offset - slab.offset;
        let at = (within / slab.place_bytes) as usize;
        let starts = within.is_multiple_of(slab.place_bytes) && at < slab.blocks.len();
        starts.then_some((first, at))
    }

    fn owner_mut(&mut self, offset: u64) -> Option<&mut BlockIdx> {
        let (slab, at) = self.find(offset)?;
        self.slabs[slab as usize]
            .as_mut()
            .map(|slab| &mut slab.blocks[at])
    }
}

/// All places of a node.
#[derive(Debug, Default)]
pub(crate) struct Places {
    pools: Vec<Pool>,
}

impl Places {
    pub(crate) fn add_pool(&mut self, capacity_bytes: u64) -> Result<u8, Error> {
        let Ok(pool) = u8::try_from(self.pools.len()) else {
            return Err(Error::Bad {
                what: "pools",
                reason: "at most 256",
            });
        };
        self.pools.push(Pool::new(capacity_bytes));
        Ok(pool)
    }

    pub(crate) fn capacity_bytes(&self) -> u64 {
        self.pools
            .iter()
            .map(|pool| pool.allocator.capacity_bytes())
            .sum()
    }

    /// Whether any pool is large enough for one place of this size.
    pub(crate) fn could_hold(&self, place_bytes: u64) -> bool {
        let mut pools = self.pools.iter();
        pools.any(|pool| pool.allocator.capacity_bytes() >= place_bytes)
    }

    /// Bytes that belong to no place, in slabs of whatever size.
    pub(crate) fn free_bytes(&self) -> u64 {
        let free = |pool: &Pool| pool.allocator.capacity_bytes() - pool.allocator.live_bytes();
        self.pools.iter().map(free).sum()
    }

    /// Bytes of all places handed out.
    #[cfg(test)]
    pub(crate) fn live_bytes(&self) -> u64 {
        self.pools
            .iter()
            .map(|pool| pool.allocator.stats().live_bytes)
            .sum()
    }

    pub(crate) fn metadata_bytes(&self) -> u64 {
        self.pools.iter().map(|pool| pool.metadata_bytes()).sum()
    }

    /// A place of `bytes` bytes, in pool `near` if that has room, else in any other.
    pub(crate) fn alloc(
        &mut self,
        bytes: u64,
        near: u8,
        actions: &mut Vec<Action>,
    ) -> Option<Place> {
        let others = (0..self.pools.len() as u8).filter(|pool| *pool != near);
        for pool in std::iter::once(near).chain(others) {
            let Some(entry) = self.pools.get_mut(usize::from(pool)) else {
                continue;
            };
            let place = entry.allocator.alloc(bytes);
            entry.sync(pool, actions);
            if let Some(Offset(offset)) = place {
                return Some(Place::new(pool, offset));
            }
        }
        None
    }

    /// Gives back a place that was handed out.
    pub(crate) fn free(&mut self, place: Place) {
        if let Some(owner) = self.owner_mut(place) {
            *owner = BlockIdx::NONE;
        }
        let freed = self.pools[usize::from(place.pool())]
            .allocator
            .free(Offset(place.offset()));
        debug_assert!(
            freed.is_ok(),
            "the core frees only what it was handed: {freed:?}"
        );
    }

    fn owner_mut(&mut self, place: Place) -> Option<&mut BlockIdx> {
        self.pools
            .get_mut(usize::from(place.pool()))?
            .owner_mut(place.offset())
    }

    /// Notes whose block lies at a live place.
    pub(crate) fn set_owner(&mut self, place: Place, block: BlockIdx) {
        let owner = self.owner_mut(place);
        debug_assert!(owner.is_some(), "live places lie in a slab");
        if let Some(owner) = owner {
            *owner = block;
        }
    }

    /// Whose block lies at a place, if any.
    pub(crate) fn owner(&self, place: Place) -> Option<BlockIdx> {
        let pool = self.pools.get(usize::from(place.pool()))?;
        let (slab, at) = pool.find(place.offset())?;
        let owner = pool.slabs[slab as usize]
            .as_ref()
            .map(|slab| slab.blocks[at])?;
        (!owner.is_none()).then_some(owner)
    }

    /// All blocks of the slab that `place` lies in, and the bytes of its places.
    pub(crate) fn slab_blocks(&self, place: Place) -> Option<(&[BlockIdx], u64)> {
        let pool = self.pools.get(usize::from(place.pool()))?;
        let unit = (place.offset() >> pool.unit_shift) as usize;
        let slab = pool
            .slabs
            .get(*pool.slab_of_unit.get(unit)? as usize)?
            .as_ref()?;
        Some((&slab.blocks, slab.place_bytes))
    }

    /// Makes a slab as it was before a restart.
    pub(crate) fn restore_slab(
        &mut self,
        pool: u8,
        slab: u32,
        units: u32,
        place_bytes: u64,
    ) -> Result<(), Error> {
        let bad = Error::Bad {
            what: "slab",
            reason: "not a slab of this pool, or overlaps another",
        };
        let entry = self.pools.get_mut(usize::from(pool)).ok_or(bad.clone())?;
        entry
            .allocator
            .restore_slab(slab, units, place_bytes)
            .map_err(|_| bad)?;
        entry.sync(pool, &mut Vec::new());
        Ok(())
    }

    /// Takes a place as it was before a restart.
    pub(crate) fn mark_used(&mut self, place: Place) -> Result<(), Error> {
        let unknown = Error::UnknownPlace { place };
        let pool = self
            .pools
            .get_mut(usize::from(place.pool()))
            .ok_or(unknown.clone())?;
        pool.allocator
            .mark_used(Offset(place.offset()))
            .map_err(|_| unknown)
    }

    /// At most `moves_max` moves inside one pool that bring free room together.
    pub(crate) fn plan_moves(
        &mut self,
        moves_max: usize,
        actions: &mut Vec<Action>,
    ) -> Vec<(Place, Place)> {
        for (pool, entry) in (0..).zip(&mut self.pools) {
            let plan = entry.allocator.compaction_plan(moves_max);
            entry.sync(pool, actions);
            if !plan.is_empty() {
                let place = |offset: Offset| Place::new(pool, offset.0);
                return plan.iter().map(|m| (place(m.from), place(m.to))).collect();
            }
        }
        Vec::new()
    }

    /// Gives up a planned move; its destination is free again.
    pub(crate) fn abandon_move(&mut self, from: Place, to: Place, bytes: u64) {
        let planned = Move {
            from: Offset(from.offset()),
            to: Offset(to.offset()),
            bytes,
        };
        let allocator = &mut self.pools[usize::from(from.pool())].allocator;
        // The move ends with its source: if that was freed meanwhile, only the destination is left.
        if allocator.abandon_move(planned).is_err() {
            self.free(to);
        }
    }
}

impl Pool {
    fn metadata_bytes(&self) -> u64 {
        let blocks: usize = self
            .slabs
            .iter()
            .flatten()
            .map(|s| s.blocks.len() * size_of::<BlockIdx>())
            .sum();
        let tables = self.slab_of_unit.len() * (size_of::<u32>() + size_of::<Option<SlabBlocks>>());
        self.allocator.stats().metadata_bytes + (blocks + tables) as u64
    }
}
