// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The arena of blocks: one 64-byte entry for every block that is known, sealed or not.
//!
//! Knows nothing of keys' order, time or bytes. Chunks are never moved, so growing copies nothing.
//!
//! Invariant: an index stays the same block until it is freed; a freed and reused index has another
//! generation.

use super::types::Place;
use pegaflow_meta::BlockKey;

/// Where a block is in the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct BlockIdx(pub(crate) u32);

impl BlockIdx {
    /// No block.
    pub(crate) const NONE: Self = Self(u32::MAX);

    pub(crate) fn is_none(self) -> bool {
        self == Self::NONE
    }
}

/// Which namespace and group a block belongs to: an index into the core's table of classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ClassIdx(pub(crate) u16);

/// A block's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// Not a block: on the free list.
    Free,
    /// In the index, has a place, not all slots are written.
    Writing,
    /// In the index and visible.
    Sealed,
    /// Was sealed, is out of the index; the place waits for the last reader.
    Detached,
    /// Never was sealed, is out of the index; the place waits for the last writer.
    Abandoned,
}

/// One block.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Block {
    pub(crate) key: BlockKey,
    pub(crate) place: Place,
    /// Distinguishes this use of the arena entry and of the place from all earlier ones.
    pub(crate) generation: u32,
    /// Valid only while the parent's generation is `parent_generation` and it is in the index.
    pub(crate) parent: BlockIdx,
    pub(crate) parent_generation: u32,
    /// Blocks in the index whose valid parent this is.
    pub(crate) children: u32,
    /// Read leases (and moves) that hold the place.
    pub(crate) pins: u32,
    pub(crate) class: ClassIdx,
    /// Belongs to the eviction policy while the block is sealed; before that, `policy[0]` is the
    /// block's place in the table of writes.
    pub(crate) policy: [u32; 3],
    /// As `policy`: what kind of block the policy takes it for.
    pub(crate) label: u8,
    /// Second of the last touch, for ages and to compare tenants.
    pub(crate) touched_s: u32,
    pub(crate) state: State,
}

const _: () = assert!(std::mem::size_of::<Block>() == 64, "one cache line a block");

impl Block {
    const FREE: Self = Self {
        key: BlockKey([0; 16]),
        place: Place::new(0, 0),
        generation: 0,
        parent: BlockIdx::NONE,
        parent_generation: 0,
        children: 0,
        pins: 0,
        class: ClassIdx(0),
        policy: [0; 3],
        label: 0,
        touched_s: 0,
        state: State::Free,
    };

    /// Whether evicting it takes nothing from anybody: visible, unpinned, without children.
    pub(crate) fn is_evictable(&self) -> bool {
        self.state == State::Sealed && self.pins == 0 && self.children == 0
    }
}

/// What is known of a new block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewBlock {
    pub(crate) key: BlockKey,
    pub(crate) place: Place,
    pub(crate) class: ClassIdx,
}

// Half a megabyte: what the system takes to hand it out is no pause.
const CHUNK_BITS: u32 = 13;
const CHUNK: usize = 1 << CHUNK_BITS;

/// All blocks of a node.
#[derive(Debug)]
pub(crate) struct Blocks {
    chunks: Vec<Box<[Block; CHUNK]>>,
    /// Head of the free list, linked through `parent`.
    free: BlockIdx,
    /// Entries ever used; the next fresh one.
    fresh: u32,
    len: u32,
    max: u32,
    generation: u32,
}

impl Blocks {
    pub(crate) fn new(max: u32) -> Self {
        let max = max.min(u32::MAX - 1);
        Self {
            chunks: Vec::new(),
            free: BlockIdx::NONE,
            fresh: 0,
            len: 0,
            max,
            generation: 0,
        }
    }

    /// Blocks that are not free.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len >= self.max
    }

    pub(crate) fn get(&self, idx: BlockIdx) -> &Block {
        &self.chunks[(idx.0 >> CHUNK_BITS) as usize][idx.0 as usize & (CHUNK - 1)]
    }

    pub(crate) fn get_mut(&mut self, idx: BlockIdx) -> &mut Block {
        &mut self.chunks[(idx.0 >> CHUNK_BITS) as usize][idx.0 as usize & (CHUNK - 1)]
    }

    /// A new block in state *writing*; none if the limit is reached.
    pub(crate) fn insert(&mut self, new: NewBlock) -> Option<BlockIdx> {
        if self.is_full() {
            return None;
        }
        let idx = self.take_free();
        self.len += 1;
        self.generation = self.generation.wrapping_add(1).max(1);
        let generation = self.generation;
        let NewBlock { key, place, class } = new;
        *self.get_mut(idx) = Block {
            key,
            place,
            class,
            generation,
            state: State::Writing,
            ..Block::FREE
        };
        Some(idx)
    }

    /// Gives a block that was just inserted the generation it had before a restart.
    pub(crate) fn set_generation(&mut self, idx: BlockIdx, generation: u32) {
        self.generation = self.generation.max(generation);
        self.get_mut(idx).generation = generation;
    }

    fn take_free(&mut self) -> BlockIdx {
        if !self.free.is_none() {
            let idx = self.free;
            self.free = self.get(idx).parent;
            return idx;
        }
        let idx = BlockIdx(self.fresh);
        if idx.0 as usize >= self.chunks.len() << CHUNK_BITS {
            let chunk = vec![Block::FREE; CHUNK].into_boxed_slice();
            self.chunks
                .push(chunk.try_into().expect("it has the length of a chunk"));
        }
        self.fresh += 1;
        idx
    }

    /// Gives the entry back.
    pub(crate) fn remove(&mut self, idx: BlockIdx) {
        let free = self.free;
        let block = self.get_mut(idx);
        debug_assert_ne!(block.state, State::Free, "freed twice");
        debug_assert_eq!(block.pins, 0, "freed under a reader");
        *block = Block {
            parent: free,
            ..Block::FREE
        };
        self.free = idx;
        self.len -= 1;
    }

    /// The parent, if it is still the block it was when the link was made, and in the index.
    pub(crate) fn parent(&self, idx: BlockIdx) -> Option<BlockIdx> {
        let block = self.get(idx);
        let parent = block.parent;
        if parent.is_none() {
            return None;
        }
        let above = self.get(parent);
        let same = above.generation == block.parent_generation;
        let in_index = matches!(above.state, State::Writing | State::Sealed);
        (same && in_index).then_some(parent)
    }

    /// Makes `child` a child of `parent`. The child must have no valid parent.
    pub(crate) fn link(&mut self, child: BlockIdx, parent: BlockIdx) {
        let above = self.get_mut(parent);
        above.children += 1;
        let parent_generation = above.generation;
        let below = self.get_mut(child);
        (below.parent, below.parent_generation) = (parent, parent_generation);
    }

    /// Ends the child's link to its parent, and returns the parent if it was still there.
    pub(crate) fn unlink(&mut self, child: BlockIdx) -> Option<BlockIdx> {
        let parent = self.parent(child)?;
        self.get_mut(parent).children -= 1;
        self.get_mut(child).parent = BlockIdx::NONE;
        Some(parent)
    }

    /// Bytes of the arena.
    pub(crate) fn bytes(&self) -> usize {
        self.chunks.len() * CHUNK * size_of::<Block>()
    }

    #[cfg(test)]
    /// Every entry that is not free. Slow: for tests and for rare sweeps.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (BlockIdx, &Block)> {
        let all = (0..self.fresh)
            .map(BlockIdx)
            .map(|idx| (idx, self.get(idx)));
        all.filter(|(_, block)| block.state != State::Free)
    }
}
