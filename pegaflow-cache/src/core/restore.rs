// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Hot restart: the pool outlived the server; its records say what lies where.
//!
//! Records may come in any order, so links to parents that are not there yet are kept for later.
//!
//! Invariant: parents never form a ring, whatever the records say.

use super::block::{BlockIdx, ClassIdx, NewBlock, State};
use super::error::Error;
use super::lease::Kind;
use super::write::{Progress, Rect, SlotWrite};
use super::{Core, LeaseId, NamespaceIndex, Now, Place, SessionId};
use pegaflow_mem::Slot;
use pegaflow_meta::{BlockKey, GroupId};
use std::collections::HashMap;

/// A sealed block as its record tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoredBlock {
    /// Where it lies.
    pub place: Place,
    /// Namespace of the block.
    pub namespace: NamespaceIndex,
    /// Cache group of the block.
    pub group: GroupId,
    /// Name of the block.
    pub key: BlockKey,
    /// The block before it in its prefix.
    pub parent: Option<BlockKey>,
    /// The use of the place.
    pub generation: u32,
}

/// An unsealed place whose writer, a client of the earlier server, still lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoredWrite {
    /// The place.
    pub place: Place,
    /// Namespace of the block.
    pub namespace: NamespaceIndex,
    /// Cache group of the block.
    pub group: GroupId,
    /// The writer; open it first, and close it when all its places are restored.
    pub session: SessionId,
    /// The use of the place.
    pub generation: u32,
}

/// What is known only while restoring.
#[derive(Debug, Default)]
pub(super) struct Restoring {
    /// Children by the parent that is missing.
    orphans: HashMap<BlockKey, Vec<(BlockIdx, u32)>>,
    quarantines: HashMap<SessionId, LeaseId>,
}

/// A ring of more links than this is taken for none; the deepest prefix there is has fewer.
const DEPTH_MAX: u32 = 1 << 16;

impl Core {
    /// Makes a slab as an earlier life had it: first unit, units, bytes of its places.
    ///
    /// # Errors
    /// [`Error::Bad`] if it is not inside the pool or overlaps another slab.
    pub fn restore_slab(
        &mut self,
        pool: u8,
        slab: u32,
        units: u32,
        place_bytes: u64,
    ) -> Result<(), Error> {
        self.places.restore_slab(pool, slab, units, place_bytes)
    }

    /// Brings a sealed block back. False if its key is there already: then this record must be
    /// erased, its place is free.
    ///
    /// # Errors
    /// [`Error::UnknownNamespace`], [`Error::UnknownGroup`], [`Error::UnknownPlace`] for a place
    /// outside the slabs, of another size, or in use, [`Error::OverLimit`].
    pub fn restore_block(&mut self, now: Now, record: &RestoredBlock) -> Result<bool, Error> {
        let class = self.namespaces.class_of(record.namespace, record.group)?;
        let hash = self.index.hash(&record.key);
        if self.find(hash, &record.key).is_some() {
            return Ok(false);
        }
        let idx = self.restore_place(class, record.key, record.place)?;
        self.blocks.set_generation(idx, record.generation);
        self.index.insert(hash, idx);
        let block = self.blocks.get_mut(idx);
        block.state = State::Sealed;
        block.touched_s = super::life::seconds(now);
        self.sealed += 1;
        let tenant = self.namespaces.class(class).tenant;
        self.tenants
            .get_mut(tenant)
            .policy
            .insert(&mut self.blocks, &[idx]);
        self.restore_links(class, idx, record);
        Ok(true)
    }

    /// Keeps an unsealed place out of use until its writer says that it is quiet, or is gone.
    ///
    /// # Errors
    /// As [`restore_block`](Self::restore_block), and [`Error::UnknownSession`].
    pub fn restore_write(&mut self, now: Now, record: &RestoredWrite) -> Result<(), Error> {
        let class = self.namespaces.class_of(record.namespace, record.group)?;
        self.open(record.session)?;
        let idx = self.restore_place(class, BlockKey([0; 16]), record.place)?;
        self.blocks.set_generation(idx, record.generation);
        let lease = self.restored_quarantine(now, record.session, class);
        let shape = self.namespaces.class(class).shape.shape;
        let write = self.writes.insert(now, idx, &shape);
        let (rect, session) = (Rect::new(&Slot::whole(&shape)), record.session);
        let progress = Progress::Quarantined;
        self.writes.get_mut(write).slots.push(SlotWrite {
            rect,
            session,
            lease,
            progress,
        });
        let block = self.blocks.get_mut(idx);
        (block.state, block.policy[0]) = (State::Abandoned, write.0);
        self.detached += 1;
        if let Some(lease) = self.leases.get_mut(lease) {
            lease.blocks.push(idx);
            lease.open += 1;
        }
        Ok(())
    }

    /// Ends the restoration: parents that have not come will not come.
    pub fn finish_restore(&mut self) {
        self.restoring = Restoring::default();
    }

    fn restore_place(
        &mut self,
        class: ClassIdx,
        key: BlockKey,
        place: Place,
    ) -> Result<BlockIdx, Error> {
        let place_bytes = self.namespaces.class(class).place_bytes;
        if self
            .places
            .slab_blocks(place)
            .is_none_or(|(_, bytes)| bytes != place_bytes)
        {
            return Err(Error::UnknownPlace { place });
        }
        if self.blocks.is_full() {
            let limit = u64::from(self.settings.blocks_max);
            return Err(Error::OverLimit {
                setting: "blocks_max",
                wanted: limit + 1,
                limit,
            });
        }
        self.places.mark_used(place)?;
        let idx = self
            .blocks
            .insert(NewBlock { key, place, class })
            .expect("it is not full");
        self.places.set_owner(place, idx);
        self.tenant_of(class).used_bytes += place_bytes;
        Ok(idx)
    }

    fn restored_quarantine(&mut self, now: Now, session: SessionId, class: ClassIdx) -> LeaseId {
        if let Some(lease) = self.restoring.quarantines.get(&session) {
            return *lease;
        }
        let lease = self.leases.insert(session, Kind::Quarantine, class, now);
        self.leases.stop_clock(lease);
        if let Some(session) = self.sessions.get_mut(&session) {
            session.leases += 1;
        }
        self.restoring.quarantines.insert(session, lease);
        lease
    }

    /// Links a new block to the children that waited for it, and to its parent. The children first: a
    /// block without a parent cannot be their descendant.
    fn restore_links(&mut self, class: ClassIdx, idx: BlockIdx, record: &RestoredBlock) {
        for (child, generation) in self
            .restoring
            .orphans
            .remove(&record.key)
            .unwrap_or_default()
        {
            let block = self.blocks.get(child);
            if block.generation == generation
                && block.state == State::Sealed
                && block.class == class
            {
                self.blocks.link(child, idx);
            }
        }
        let Some(parent) = record.parent.filter(|parent| *parent != record.key) else {
            return;
        };
        match self.find_in(class, &parent) {
            Some(above) if !self.is_below(above, idx) => self.blocks.link(idx, above),
            Some(_) => {}
            None => {
                let generation = self.blocks.get(idx).generation;
                self.restoring
                    .orphans
                    .entry(parent)
                    .or_default()
                    .push((idx, generation));
            }
        }
    }

    /// Whether `idx` is `root` or one of its descendants.
    fn is_below(&self, idx: BlockIdx, root: BlockIdx) -> bool {
        if self.blocks.get(root).children == 0 {
            return idx == root;
        }
        let mut at = Some(idx);
        for _ in 0..DEPTH_MAX {
            match at {
                Some(above) if above == root => return true,
                Some(above) => at = self.blocks.parent(above),
                None => return false,
            }
        }
        true
    }
}
