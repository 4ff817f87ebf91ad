// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! An engine's KV memory, played: filled with what the model would have computed, checked after loads.
//!
//! Addresses follow the engine's strides here, one head of one part of one layer at a time, and not the merged
//! runs of the copy engine: a wrong run would otherwise be wrong on both sides and go unnoticed.

use std::sync::Arc;

use pegaflow_mem::device::host::HostMemory;
use pegaflow_mem::layout::{BlockShape, KvLayout, LayerView, Slot};
use pegaflow_meta::BlockKey;

use super::content::{Canonical, Content};
use super::error::Error;

/// Memory that an engine keeps its KV in. Addresses are those of a [`KvLayout`].
pub trait EngineMemory: Send + Sync {
    /// Copies `bytes` to `address`.
    fn write(&self, address: u64, bytes: &[u8]);
    /// Copies from `address` into `bytes`.
    fn read(&self, address: u64, bytes: &mut [u8]);
}

// Layouts point into the memory they were made for, so every address lies inside.
impl EngineMemory for HostMemory {
    fn write(&self, address: u64, bytes: &[u8]) {
        self.copy_in(address.wrapping_sub(self.base()), bytes)
            .expect("the layout lies in this memory");
    }
    fn read(&self, address: u64, bytes: &mut [u8]) {
        self.copy_out(address.wrapping_sub(self.base()), bytes)
            .expect("the layout lies in this memory");
    }
}

/// The layout of a common engine: one tensor a layer, `[part][block][head][inner]`, in one piece from `base`.
///
/// # Errors
/// [`Error::Memory`] for an invalid shape or slot.
pub fn engine_layout(
    shape: BlockShape,
    slot: Slot,
    base: u64,
    blocks: u32,
) -> Result<KvLayout, Error> {
    let head_stride = u64::from(shape.inner_bytes);
    let block_stride = head_stride * slot.heads.len() as u64;
    let part_stride = block_stride * u64::from(blocks);
    let layer_bytes = part_stride * u64::from(shape.parts);
    let view = |layer: u64| LayerView {
        base: base + layer * layer_bytes,
        block_stride,
        part_stride,
        head_stride,
    };
    let views = (0..slot.layers.len() as u64).map(view).collect();
    Ok(KvLayout::new(shape, slot, views, blocks)?)
}

/// Bytes of memory that [`engine_layout`] spans.
pub fn engine_bytes(shape: &BlockShape, slot: &Slot, blocks: u32) -> u64 {
    slot.bytes(shape) * u64::from(blocks)
}

/// One rank's engine memory.
#[derive(Clone)]
pub struct Rank {
    layout: Arc<KvLayout>,
    memory: Arc<dyn EngineMemory>,
}

/// A byte that is not what the key says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrong {
    /// Byte offset in the whole block, canonical order.
    pub offset: u64,
}

impl Rank {
    /// A rank whose KV lies in `memory` as `layout` says.
    pub fn new(layout: Arc<KvLayout>, memory: Arc<dyn EngineMemory>) -> Self {
        Self { layout, memory }
    }

    /// Bytes of one block that this rank holds.
    pub fn block_bytes(&self) -> u64 {
        self.layout.slot().bytes(self.layout.shape())
    }

    /// Computes the KV of `key` into engine block `block`. `scratch` is reused between calls.
    pub fn fill(&self, key: &BlockKey, block: u32, scratch: &mut Vec<u8>) {
        let content = Content::of(&key.0);
        self.each_head(block, |address, position, bytes| {
            scratch.resize(bytes, 0);
            content.fill(position, scratch);
            self.memory.write(address, scratch);
            None::<()>
        });
    }

    /// Checks every byte of engine block `block`: the first wrong one, or `None`.
    pub fn check(&self, key: &BlockKey, block: u32, scratch: &mut Vec<u8>) -> Option<Wrong> {
        let content = Content::of(&key.0);
        self.each_head(block, |address, position, bytes| {
            scratch.resize(bytes, 0);
            self.memory.read(address, scratch);
            let at = content.first_difference(position, scratch)?;
            Some(Wrong {
                offset: position * 8 + at as u64,
            })
        })
    }

    // Every head's run: address, canonical position in words, length in bytes. Stops at the first answer.
    fn each_head<T>(
        &self,
        block: u32,
        mut visit: impl FnMut(u64, u64, usize) -> Option<T>,
    ) -> Option<T> {
        let (shape, slot) = (self.layout.shape(), self.layout.slot());
        let inner_words = shape.inner_bytes / 8;
        let canonical = Canonical {
            parts: shape.parts,
            heads: shape.heads,
            inner_words,
        };
        for (layer, view) in slot.layers.clone().zip(self.layout.views()) {
            for part in 0..shape.parts {
                for (i, head) in slot.heads.clone().enumerate() {
                    let address = view.base
                        + u64::from(block) * view.block_stride
                        + u64::from(part) * view.part_stride
                        + i as u64 * view.head_stride;
                    let position = canonical.position(layer, part, head);
                    if let Some(answer) = visit(address, position, shape.inner_bytes as usize) {
                        return Some(answer);
                    }
                }
            }
        }
        None
    }
}
