// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! One block copy as pieces (per layer, part, head) and as runs (pieces merged).

use super::{BlockCopy, KvLayout};
use std::ops::Range;

/// A contiguous copy: `bytes` bytes at `device` in the engine's memory and at `pool` in the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Run {
    /// Device address.
    pub device: u64,
    /// Byte offset in the pool.
    pub pool: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// `inner_bytes` of one head: what one step of a checksum is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Piece {
    /// Device address.
    pub device: u64,
    /// Byte offset in the pool.
    pub pool: u64,
    /// Length in bytes.
    pub bytes: u32,
    /// Head, counted from the slot's first head: which checksum the piece adds to.
    pub head: u32,
    /// [Position](crate::BlockShape::position) of its first word.
    pub position: u64,
}

/// Iterator of [`KvLayout::pieces_of`].
#[derive(Debug, Clone)]
pub struct Pieces<'a> {
    layout: &'a KvLayout,
    copy: BlockCopy,
    layers: Range<u32>,
    part: u32,
    head: u32,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(layout: &'a KvLayout, copy: BlockCopy, layers: Range<u32>) -> Self {
        Self {
            layout,
            copy,
            layers,
            part: 0,
            head: 0,
        }
    }

    fn current(&self) -> Piece {
        let shape = self.layout.shape();
        let slot = self.layout.slot();
        let layer = self.layers.start;
        let view = &self.layout.views()[(layer - slot.layers.start) as usize];
        let device = view.base
            + self.copy.block as u64 * view.block_stride
            + self.part as u64 * view.part_stride
            + self.head as u64 * view.head_stride;
        let offset = shape.offset(layer, self.part, slot.heads.start + self.head);
        Piece {
            device,
            pool: self.copy.place.saturating_add(offset),
            bytes: shape.inner_bytes,
            head: self.head,
            position: shape.position(layer, self.part),
        }
    }

    fn advance(&mut self) {
        self.head += 1;
        if self.head < self.layout.slot().heads.len() as u32 {
            return;
        }
        self.head = 0;
        self.part += 1;
        if self.part == self.layout.shape().parts {
            self.part = 0;
            self.layers.start += 1;
        }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.layers.is_empty() {
            return None;
        }
        let piece = self.current();
        self.advance();
        Some(piece)
    }
}

/// Iterator of [`KvLayout::runs`].
#[derive(Debug, Clone)]
pub struct Runs<'a> {
    pieces: std::iter::Peekable<Pieces<'a>>,
}

impl<'a> Runs<'a> {
    pub(super) fn new(pieces: Pieces<'a>) -> Self {
        Self {
            pieces: pieces.peekable(),
        }
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let first = self.pieces.next()?;
        let mut run = Run {
            device: first.device,
            pool: first.pool,
            bytes: first.bytes as u64,
        };
        let follows = |run: &Run, p: &Piece| {
            p.device == run.device + run.bytes && p.pool == run.pool.saturating_add(run.bytes)
        };
        while let Some(piece) = self.pieces.next_if(|p| follows(&run, p)) {
            run.bytes += piece.bytes as u64;
        }
        Some(run)
    }
}
