// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A point of the matrix, and jobs for it.

use pegaflow_mem::device::{CopyJob, PoolHandle};
use pegaflow_mem::{BlockCopy, BlockShape, KvLayout, LayerView, Slot};
use std::sync::Arc;

/// Blocks of one form, many of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Point {
    /// Contiguous bytes on the device: one row of a block.
    pub(crate) run_bytes: u64,
    pub(crate) layers: u32,
    /// Of `heads_all` heads in the block this worker holds the first `heads`.
    pub(crate) heads: u32,
    pub(crate) heads_all: u32,
    pub(crate) batch_bytes: u64,
    /// Blocks that lie side by side in the pool.
    pub(crate) neighbours: u64,
}

/// Keys and values.
const PARTS: u32 = 2;

impl Point {
    pub(crate) fn new(run_bytes: u64, layers: u32, batch_bytes: u64) -> Self {
        Self {
            run_bytes,
            layers,
            heads: 1,
            heads_all: 1,
            batch_bytes,
            neighbours: 1,
        }
    }

    pub(crate) fn shape(&self) -> BlockShape {
        let inner_bytes = (self.run_bytes / self.heads as u64) as u32;
        BlockShape {
            layers: self.layers,
            parts: PARTS,
            heads: self.heads_all,
            inner_bytes,
        }
    }

    pub(crate) fn slot(&self) -> Slot {
        Slot {
            layers: 0..self.layers,
            heads: 0..self.heads,
        }
    }

    pub(crate) fn slot_bytes(&self) -> u64 {
        self.slot().bytes(&self.shape())
    }

    /// Blocks of a batch.
    pub(crate) fn blocks(&self) -> u64 {
        (self.batch_bytes / self.slot_bytes()).max(1)
    }

    /// Bytes of a batch.
    pub(crate) fn bytes(&self) -> u64 {
        self.blocks() * self.slot_bytes()
    }

    /// Runs of a batch.
    pub(crate) fn runs(&self) -> u64 {
        self.bytes() / self.run_bytes
    }

    /// The engine's KV: `[layer][part][block][head][inner]`, as many blocks as the memory has room for.
    pub(crate) fn layout(&self, base: u64, bytes: u64) -> Arc<KvLayout> {
        let (layers, parts) = (self.layers as u64, PARTS as u64);
        let blocks = (bytes / self.slot_bytes()).max(1);
        let part = self.run_bytes * blocks;
        let view = |layer: u64| LayerView {
            base: base + layer * part * parts,
            block_stride: self.run_bytes,
            part_stride: part,
            head_stride: self.run_bytes / self.heads as u64,
        };
        let views = (0..layers).map(view).collect();
        let layout = KvLayout::new(self.shape(), self.slot(), views, blocks as u32);
        Arc::new(layout.expect("a valid layout"))
    }

    /// Some jobs at random places of both sides, to be used in turn.
    pub(crate) fn jobs(
        &self,
        layout: &Arc<KvLayout>,
        pool: &PoolHandle,
        count: usize,
    ) -> Vec<CopyJob> {
        let mut dice = Dice(0x1234_5678_9ABC_DEF0);
        let n = self.blocks();
        let group = self.neighbours.min(n);
        let places = pool.pool().len() / (self.shape().bytes() * group) * group;
        assert!(
            n <= places && n <= layout.blocks() as u64,
            "the memory has room for a batch"
        );
        (0..count)
            .map(|_| {
                let blocks = dice.some(n, layout.blocks() as u64);
                let groups = dice.some(n.div_ceil(group), places / group);
                let place = |i: usize| groups[i / group as usize] * group + i as u64 % group;
                let copies = blocks.iter().enumerate().map(|(i, block)| BlockCopy {
                    block: *block as u32,
                    place: place(i) * self.shape().bytes(),
                });
                CopyJob::new(Arc::clone(layout), pool.clone(), copies.collect())
            })
            .collect()
    }
}

/// A fixed sequence that looks random.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below
    }

    /// `n` different numbers below `below`, in random order.
    fn some(&mut self, n: u64, below: u64) -> Vec<u64> {
        let mut all: Vec<u64> = (0..below).collect();
        for i in 0..n as usize {
            let j = i + self.roll(below - i as u64) as usize;
            all.swap(i, j);
        }
        all.truncate(n as usize);
        all
    }
}
