// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Where the bytes of a block lie: pure stride arithmetic.
//!
//! In a pool a block is one contiguous run in the canonical order `[layer][part][head][inner]`. In an engine the same
//! bytes lie wherever the engine put them; [`KvLayout`] says where, by strides. [`KvLayout::runs`] turns one block copy
//! into the fewest contiguous runs, [`KvLayout::pieces_of`] into the pieces that a checksum is taken over.
//!
//! Knows nothing of memory: addresses are numbers here. Invariant: the runs of a valid layout never overlap on either
//! side, and the slots that tile a block cover it exactly once.

mod kv;
mod runs;
#[cfg(test)]
mod tests;

use crate::{Error, Result};
use std::ops::Range;

pub use kv::{KvLayout, LayerView};
pub use runs::{Piece, Pieces, Run, Runs};

/// Largest block there is, in bytes.
pub const BLOCK_BYTES_MAX: u64 = 256 << 20;

/// Size of a block: canonical order `[layer][part][head][inner]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockShape {
    /// Layers of the cache group.
    pub layers: u32,
    /// 2 where the engine keeps K and V apart, else 1.
    pub parts: u32,
    /// KV heads of the whole model (all tensor-parallel ranks together).
    pub heads: u32,
    /// Contiguous bytes of one head of one part of one layer; a multiple of 8.
    pub inner_bytes: u32,
}

impl BlockShape {
    /// Bytes of a whole block; saturates for absurd shapes (which [`validate`](Self::validate) refuses).
    pub fn bytes(&self) -> u64 {
        (self.layers as u64)
            .saturating_mul(self.parts as u64)
            .saturating_mul(self.heads as u64)
            .saturating_mul(self.inner_bytes as u64)
    }

    /// Bytes of one layer of a whole block.
    pub fn layer_bytes(&self) -> u64 {
        (self.parts as u64)
            .saturating_mul(self.heads as u64)
            .saturating_mul(self.inner_bytes as u64)
    }

    /// Checks the shape, once, where it enters the system.
    ///
    /// # Errors
    /// [`Error::Layout`] for a zero, for `inner_bytes` that is no multiple of 8, and above [`BLOCK_BYTES_MAX`].
    pub fn validate(&self) -> Result<()> {
        let fail = |reason| {
            Err(Error::Layout {
                what: "block shape",
                reason,
            })
        };
        if self.layers == 0 || self.parts == 0 || self.heads == 0 || self.inner_bytes == 0 {
            return fail("layers, parts, heads and inner_bytes must be at least 1");
        }
        if !self.inner_bytes.is_multiple_of(8) {
            return fail("inner_bytes must be a multiple of 8");
        }
        if self.bytes() > BLOCK_BYTES_MAX {
            return fail("a block has at most 256 MiB");
        }
        Ok(())
    }

    /// Byte offset of one head's run inside the block.
    pub fn offset(&self, layer: u32, part: u32, head: u32) -> u64 {
        let row = (layer as u64 * self.parts as u64 + part as u64) * self.heads as u64;
        (row + head as u64) * self.inner_bytes as u64
    }

    /// Position of the run's first word for the [checksum](crate::checksum). Does not depend on the head.
    pub fn position(&self, layer: u32, part: u32) -> u64 {
        (layer as u64 * self.parts as u64 + part as u64) * (self.inner_bytes as u64 / 8)
    }
}

/// The part of a block that one worker holds: a rectangle of layers and heads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Slot {
    /// Layers, counted in the whole block.
    pub layers: Range<u32>,
    /// KV heads, counted in the whole block.
    pub heads: Range<u32>,
}

impl Slot {
    /// The slot of a worker that holds everything.
    pub fn whole(shape: &BlockShape) -> Self {
        Self {
            layers: 0..shape.layers,
            heads: 0..shape.heads,
        }
    }

    /// The slot of tensor-parallel rank `rank` of `ranks`: all layers, an equal share of the heads. With more ranks
    /// than heads, neighbouring ranks hold the same head, as engines replicate them.
    ///
    /// # Errors
    /// [`Error::Layout`] if the heads cannot be shared out evenly.
    pub fn of_rank(shape: &BlockShape, rank: u32, ranks: u32) -> Result<Self> {
        let fail = |reason| {
            Err(Error::Layout {
                what: "slot",
                reason,
            })
        };
        if rank >= ranks {
            return fail("rank must be below the number of ranks");
        }
        let heads = if shape.heads.is_multiple_of(ranks) {
            let each = shape.heads / ranks;
            rank * each..(rank + 1) * each
        } else if ranks.is_multiple_of(shape.heads) {
            let head = rank / (ranks / shape.heads);
            head..head + 1
        } else {
            return fail("heads cannot be shared out evenly to the ranks");
        };
        Ok(Self {
            layers: 0..shape.layers,
            heads,
        })
    }

    /// Bytes of the slot.
    pub fn bytes(&self, shape: &BlockShape) -> u64 {
        self.layers.len() as u64
            * shape.parts as u64
            * self.heads.len() as u64
            * shape.inner_bytes as u64
    }

    /// How many checksums a slot has: one a head.
    pub fn checksums(&self) -> usize {
        self.heads.len()
    }

    /// Checks the slot against its shape.
    ///
    /// # Errors
    /// [`Error::Layout`] if it is empty or not inside the block.
    pub fn validate(&self, shape: &BlockShape) -> Result<()> {
        let fail = |reason| {
            Err(Error::Layout {
                what: "slot",
                reason,
            })
        };
        if self.layers.is_empty() || self.heads.is_empty() {
            return fail("layers and heads must not be empty");
        }
        if self.layers.end > shape.layers || self.heads.end > shape.heads {
            return fail("layers and heads must lie inside the block");
        }
        Ok(())
    }
}

/// One block to copy: where the engine has it, and where the pool has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockCopy {
    /// The engine's block index.
    pub block: u32,
    /// Byte offset of the whole block (not of the slot) in the pool.
    pub place: u64,
}
