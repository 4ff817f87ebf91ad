// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Blocks that are being written: which slots are taken, by whom, and whether they cover the block.
//!
//! Invariant: the slots of one block are disjoint, so they cover it exactly if their areas add up.

use super::block::BlockIdx;
use super::types::{LeaseId, Now, SessionId};
use pegaflow_mem::{BlockShape, Slot};
use std::ops::Range;

/// Where a block is in the table of writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WriteIdx(pub(crate) u32);

/// A slot, small: layers and heads fit into 16 bits in every valid shape of the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rect {
    layers: [u16; 2],
    heads: [u16; 2],
}

/// Most layers, and most heads, of a block in the core.
pub(crate) const SIDE_MAX: u32 = u16::MAX as u32;

impl Rect {
    /// The slot must lie in a shape whose sides are within [`SIDE_MAX`].
    pub(crate) fn new(slot: &Slot) -> Self {
        let side = |range: &Range<u32>| [range.start as u16, range.end as u16];
        Self {
            layers: side(&slot.layers),
            heads: side(&slot.heads),
        }
    }

    fn area(self) -> u64 {
        let side = |[from, to]: [u16; 2]| u64::from(to - from);
        side(self.layers) * side(self.heads)
    }

    /// Whether all of `other` lies in this slot.
    pub(crate) fn covers(self, other: Self) -> bool {
        let inside = |a: [u16; 2], b: [u16; 2]| a[0] <= b[0] && b[1] <= a[1];
        inside(self.layers, other.layers) && inside(self.heads, other.heads)
    }

    fn overlaps(self, other: Self) -> bool {
        let meet = |a: [u16; 2], b: [u16; 2]| a[0] < b[1] && b[0] < a[1];
        meet(self.layers, other.layers) && meet(self.heads, other.heads)
    }
}

/// How far the writing of one slot has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Its session may write at any moment.
    Writing,
    /// Written and checksummed; its session touches it no more.
    Done,
    /// Given up, but its session may still write.
    Quarantined,
}

/// One slot of a block being written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SlotWrite {
    pub(crate) rect: Rect,
    pub(crate) session: SessionId,
    pub(crate) lease: LeaseId,
    pub(crate) progress: Progress,
}

/// A block being written.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) block: BlockIdx,
    pub(crate) slots: Vec<SlotWrite>,
    /// Layers times heads of the whole block.
    area: u64,
    /// When a slot was last taken or finished.
    pub(crate) since: Now,
    /// Tickets that wait for this block.
    pub(crate) waiters: Vec<u32>,
}

impl Write {
    pub(crate) fn overlaps(&self, rect: Rect) -> Option<&SlotWrite> {
        self.slots.iter().find(|slot| slot.rect.overlaps(rect))
    }

    pub(crate) fn slot_of(&mut self, lease: LeaseId) -> Option<&mut SlotWrite> {
        self.slots
            .iter_mut()
            .find(|s| s.lease == lease && s.progress != Progress::Done)
    }

    /// Whether every slot is written.
    pub(crate) fn is_covered(&self) -> bool {
        let done = self
            .slots
            .iter()
            .filter(|slot| slot.progress == Progress::Done);
        done.map(|slot| slot.rect.area()).sum::<u64>() == self.area
    }

    /// Whether nobody can touch the place any more.
    pub(crate) fn is_quiet(&self) -> bool {
        self.slots
            .iter()
            .all(|slot| slot.progress == Progress::Done)
    }
}

/// All blocks that are being written. Entries are reused with their buffers.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    table: Vec<Write>,
    free: Vec<u32>,
}

impl Writes {
    pub(crate) fn insert(&mut self, now: Now, block: BlockIdx, shape: &BlockShape) -> WriteIdx {
        let area = u64::from(shape.layers) * u64::from(shape.heads);
        if let Some(idx) = self.free.pop() {
            let write = &mut self.table[idx as usize];
            (write.block, write.area, write.since) = (block, area, now);
            return WriteIdx(idx);
        }
        let write = Write {
            block,
            slots: Vec::with_capacity(1),
            area,
            since: now,
            waiters: Vec::new(),
        };
        self.table.push(write);
        WriteIdx((self.table.len() - 1) as u32)
    }

    pub(crate) fn get(&self, idx: WriteIdx) -> &Write {
        &self.table[idx.0 as usize]
    }

    pub(crate) fn get_mut(&mut self, idx: WriteIdx) -> &mut Write {
        &mut self.table[idx.0 as usize]
    }

    /// Ends an entry. Its waiters must have been taken out before.
    pub(crate) fn remove(&mut self, idx: WriteIdx) {
        let write = self.get_mut(idx);
        debug_assert!(write.waiters.is_empty(), "a ticket would wait for ever");
        write.slots.clear();
        write.block = BlockIdx::NONE;
        self.free.push(idx.0);
    }

    #[cfg(test)]
    /// Blocks being written or in quarantine.
    pub(crate) fn len(&self) -> usize {
        self.table.len() - self.free.len()
    }
}
