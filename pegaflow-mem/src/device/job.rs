// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! What is to be copied, and the checks that every device makes first.

use super::{DeviceEvent, DeviceId, PoolHandle};
use crate::layout::{BlockCopy, KvLayout};
use crate::pool::shm::{Access, SharedMemory};
use crate::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the device into the pool.
    Save,
    /// From the pool to the device.
    Load,
}

/// One copy of several blocks. Owned by the device from its start until nothing touches it any more.
#[derive(Debug, Clone)]
pub struct CopyJob {
    /// Where the engine keeps its KV.
    pub layout: Arc<KvLayout>,
    /// The pool, attached to the same device.
    pub pool: PoolHandle,
    /// Which blocks, from where to where. No two may share a byte of the side that is written.
    pub blocks: Vec<BlockCopy>,
    /// Only these layers (absolute numbers) of the slot; all if `None`.
    pub layers: Option<Range<u32>>,
    /// Start after this work of the engine.
    pub after: Option<DeviceEvent>,
    /// Tell layer by layer how far the copy is.
    pub progress: Option<Progress>,
}

impl CopyJob {
    /// A job for all layers of the slot, started at once.
    pub fn new(layout: Arc<KvLayout>, pool: PoolHandle, blocks: Vec<BlockCopy>) -> Self {
        Self {
            layout,
            pool,
            blocks,
            layers: None,
            after: None,
            progress: None,
        }
    }

    /// The layers to copy (absolute numbers).
    pub fn layer_range(&self) -> Range<u32> {
        self.layers
            .clone()
            .unwrap_or_else(|| self.layout.slot().layers.clone())
    }

    /// Bytes that the job copies.
    pub fn bytes(&self) -> u64 {
        let shape = self.layout.shape();
        let row = self.layout.slot().heads.len() as u64 * shape.inner_bytes as u64;
        self.blocks.len() as u64 * self.layer_range().len() as u64 * shape.parts as u64 * row
    }

    /// Number of checksums in the outcome: one per block and head of the slot, block by block.
    pub fn checksums(&self) -> usize {
        self.blocks.len() * self.layout.slot().checksums()
    }

    /// What every device checks before it starts.
    ///
    /// # Errors
    /// [`Error::Foreign`] for a pool of another device, [`Error::BlockOutOfRange`], [`Error::OutOfBounds`] for a block outside
    /// the pool, [`Error::ReadOnly`] for a save into a read-only pool, [`Error::Layout`] for layers outside the slot.
    pub fn check(&self, device: DeviceId, direction: Direction) -> Result<()> {
        if self.pool.device() != device {
            return Err(Error::Foreign { what: "the pool" });
        }
        let pool = self.pool.pool();
        if direction == Direction::Save && pool.access() == Access::Read {
            return Err(Error::ReadOnly);
        }
        self.layout.check_layer_range(&self.layer_range())?;
        let (bytes, len, blocks) = (
            self.layout.shape().bytes(),
            pool.len(),
            self.layout.blocks(),
        );
        for copy in &self.blocks {
            if copy.block >= blocks {
                return Err(Error::BlockOutOfRange {
                    block: copy.block,
                    blocks,
                });
            }
            if copy.place > len || bytes > len - copy.place {
                return Err(Error::OutOfBounds {
                    what: "pool",
                    offset: copy.place,
                    bytes,
                    len,
                });
            }
        }
        Ok(())
    }
}

/// A shared word that counts finished layers: `n` means that the first `n` layers of the job are copied, for all its blocks.
#[derive(Debug, Clone)]
pub struct Progress {
    memory: Arc<SharedMemory>,
    offset: u64,
}

impl Progress {
    /// The word at `offset` (a multiple of 8) of `memory`; set to 0.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`], [`Error::Misaligned`], [`Error::ReadOnly`].
    pub fn new(memory: Arc<SharedMemory>, offset: u64) -> Result<Self> {
        memory.word(offset)?.store(0)?;
        Ok(Self { memory, offset })
    }

    /// Layers finished so far.
    pub fn layers(&self) -> u32 {
        self.memory
            .word(self.offset)
            .expect("checked by new")
            .load() as u32
    }

    /// For devices: `layers` layers are finished, and their bytes visible.
    pub fn set(&self, layers: u32) {
        let word = self.memory.word(self.offset).expect("checked by new");
        word.store(layers as u64).expect("checked by new");
    }

    /// Where the word lies, for devices that write it themselves.
    pub fn location(&self) -> (&Arc<SharedMemory>, u64) {
        (&self.memory, self.offset)
    }
}
