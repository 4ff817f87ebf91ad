// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Where an engine keeps its KV, and the proof that its strides make sense.

use super::{BlockCopy, BlockShape, Pieces, Runs, Slot};
use crate::{Error, Result};
use std::ops::Range;

/// Where one layer of a worker's KV lies in device memory. Strides are in bytes and may come in any order of size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayerView {
    /// Address of block 0, part 0, first head of the slot.
    pub base: u64,
    /// From one block to the next.
    pub block_stride: u64,
    /// From one part (K) to the next (V).
    pub part_stride: u64,
    /// From one head to the next.
    pub head_stride: u64,
}

/// A worker's KV memory: shape, slot and one [`LayerView`] per layer of the slot. Valid by construction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvLayout {
    shape: BlockShape,
    slot: Slot,
    layers: Vec<LayerView>,
    blocks: u32,
}

impl KvLayout {
    /// Checks and keeps a layout. `layers` has one view per layer of `slot.layers`, in order; `blocks` is the number of
    /// the engine's blocks.
    ///
    /// # Errors
    /// [`Error::Layout`] if the shape or slot is invalid, the number of views is wrong, addresses overflow, or two runs
    /// would share a byte.
    pub fn new(shape: BlockShape, slot: Slot, layers: Vec<LayerView>, blocks: u32) -> Result<Self> {
        shape.validate()?;
        slot.validate(&shape)?;
        let layout = Self {
            shape,
            slot,
            layers,
            blocks,
        };
        layout.check_views()?;
        layout.check_layers_apart()?;
        Ok(layout)
    }

    /// A layout in one piece of `base..`: `[layer][block][part][head][inner]`, as a plain engine has it.
    ///
    /// # Errors
    /// As [`KvLayout::new`].
    pub fn dense(shape: BlockShape, slot: Slot, base: u64, blocks: u32) -> Result<Self> {
        shape.validate()?;
        slot.validate(&shape)?;
        let head_stride = shape.inner_bytes as u64;
        let part_stride = head_stride * slot.heads.len() as u64;
        let block_stride = part_stride * shape.parts as u64;
        let views = (0..slot.layers.len() as u64)
            .map(|l| LayerView {
                base: base.saturating_add(l * block_stride * blocks as u64),
                block_stride,
                part_stride,
                head_stride,
            })
            .collect();
        Self::new(shape, slot, views, blocks)
    }

    /// Shape of the whole block.
    pub fn shape(&self) -> &BlockShape {
        &self.shape
    }

    /// What this worker holds of it.
    pub fn slot(&self) -> &Slot {
        &self.slot
    }

    /// Number of the engine's blocks.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// One view per layer of the slot, in order.
    pub fn views(&self) -> &[LayerView] {
        &self.layers
    }

    /// Device addresses that layer `index` of the slot (0 = its first layer) may touch: first byte, and length.
    pub fn layer_extent(&self, index: usize) -> (u64, u64) {
        let view = &self.layers[index];
        (
            view.base,
            self.span(view).expect("checked when the layout was made"),
        )
    }

    /// The contiguous runs of one block copy, longest first merged: neighbours on both sides become one run.
    ///
    /// # Errors
    /// [`Error::BlockOutOfRange`].
    pub fn runs(&self, copy: BlockCopy) -> Result<Runs<'_>> {
        self.runs_of(copy, self.slot.layers.clone())
    }

    /// As [`runs`](Self::runs) for some layers (absolute numbers) of the slot.
    ///
    /// # Errors
    /// [`Error::BlockOutOfRange`]; [`Error::Layout`] if the layers are not all in the slot.
    pub fn runs_of(&self, copy: BlockCopy, layers: Range<u32>) -> Result<Runs<'_>> {
        Ok(Runs::new(self.pieces_of(copy, layers)?))
    }

    /// The pieces a checksum is taken over: one per layer, part and head, in canonical order.
    ///
    /// # Errors
    /// As [`runs_of`](Self::runs_of).
    pub fn pieces_of(&self, copy: BlockCopy, layers: Range<u32>) -> Result<Pieces<'_>> {
        self.check_layer_range(&layers)?;
        if copy.block >= self.blocks {
            return Err(Error::BlockOutOfRange {
                block: copy.block,
                blocks: self.blocks,
            });
        }
        Ok(Pieces::new(self, copy, layers))
    }

    /// Checks that `layers` (absolute numbers) is a part of the slot.
    ///
    /// # Errors
    /// [`Error::Layout`] if it is not, or is empty.
    pub fn check_layer_range(&self, layers: &Range<u32>) -> Result<()> {
        let own = &self.slot.layers;
        if layers.is_empty() || layers.start < own.start || layers.end > own.end {
            return Err(Error::Layout {
                what: "layer range",
                reason: "it must be a non-empty part of the slot's layers",
            });
        }
        Ok(())
    }

    /// Dimensions of one view that have more than one element, `(count, stride)`, smallest stride first.
    fn dims(&self, view: &LayerView) -> ([(u64, u64); 3], usize) {
        let all = [
            (self.slot.heads.len() as u64, view.head_stride),
            (self.shape.parts as u64, view.part_stride),
            (self.blocks as u64, view.block_stride),
        ];
        let mut dims = [(0, 0); 3];
        let mut n = 0;
        for dim in all.into_iter().filter(|d| d.0 > 1) {
            dims[n] = dim;
            n += 1;
        }
        dims[..n].sort_by_key(|d| d.1);
        (dims, n)
    }

    /// Bytes from the view's base to the end of its last run; `None` on overflow or overlap.
    fn span(&self, view: &LayerView) -> Option<u64> {
        let (dims, n) = self.dims(view);
        let mut extent = self.shape.inner_bytes as u64;
        for (count, stride) in &dims[..n] {
            if *stride < extent {
                return None;
            }
            extent = stride.checked_mul(count - 1)?.checked_add(extent)?;
        }
        view.base.checked_add(extent)?;
        Some(extent)
    }

    fn check_views(&self) -> Result<()> {
        let fail = |reason| {
            Err(Error::Layout {
                what: "KV layout",
                reason,
            })
        };
        if self.layers.len() != self.slot.layers.len() {
            return fail("there must be one view per layer of the slot");
        }
        if self.blocks == 0 {
            return fail("the engine must have at least one block");
        }
        if self.layers.iter().any(|v| self.span(v).is_none()) {
            return fail("strides overlap, or addresses pass 64 bits");
        }
        Ok(())
    }

    // Layers may interleave (an engine may keep all layers of a block together), but no byte belongs to two of them.
    fn check_layers_apart(&self) -> Result<()> {
        let fail = |reason| {
            Err(Error::Layout {
                what: "KV layout",
                reason,
            })
        };
        let mut order: Vec<(u64, u64, &LayerView)> = self
            .layers
            .iter()
            .map(|v| {
                (
                    v.base,
                    v.base + self.span(v).expect("checked by check_views"),
                    v,
                )
            })
            .collect();
        order.sort_by_key(|(base, _, _)| *base);
        for (i, (base, end, view)) in order.iter().enumerate() {
            for (other_base, _, other) in order[i + 1..].iter().take_while(|o| o.0 < *end) {
                let same = view.block_stride == other.block_stride
                    && view.part_stride == other.part_stride
                    && view.head_stride == other.head_stride;
                if !same {
                    return fail("layers with unlike strides interleave");
                }
                if self.collide(view, (other_base - base) as i128) {
                    return fail("two layers share bytes");
                }
            }
        }
        Ok(())
    }

    /// Whether two views with the same strides and bases `distance` apart share a byte. Exact: strides are nested, so
    /// at each level only the two neighbouring multiples of the stride can bring the distance near zero.
    fn collide(&self, view: &LayerView, distance: i128) -> bool {
        let (dims, n) = self.dims(view);
        fn near(dims: &[(u64, u64)], inner: i128, distance: i128) -> bool {
            let Some(((count, stride), rest)) = dims.split_last() else {
                return distance.abs() < inner;
            };
            let (count, stride) = (*count as i128, *stride as i128);
            let q = distance.div_euclid(stride);
            [q, q + 1]
                .into_iter()
                .filter(|k| k.abs() < count)
                .any(|k| near(rest, inner, distance - k * stride))
        }
        near(&dims[..n], self.shape.inner_bytes as i128, distance)
    }
}
