// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The blocks that can leave, so that the one worth least is found without looking at the others.
//!
//! A *bag* is the list of the evictable blocks of one class and slot: all of one index. Bags that are
//! not empty hang in buckets by their index, 32 to an octave, under a bitmap of buckets in use.
//!
//! Invariant: a block is in a bag exactly if its second word is not [`NOWHERE`]; the lists are rings
//! through the first two words.

use super::ages::SLOTS;
use super::class::CLASSES;
use crate::core::block::{BlockIdx, Blocks};

/// `policy[1]` of a block in no bag.
const NOWHERE: u32 = u32::MAX;
const NONE: u16 = u16::MAX;
/// How many buckets there are.
const BUCKETS: usize = 2048;
/// Bits of an index's float that choose its bucket, and the lowest index that has its own.
const STEP_BITS: u32 = 18;
const LOWEST: f32 = 1.0 / (1u64 << 50) as f32;

/// A class and a slot.
pub(super) type BagIdx = u16;

/// A step of worth: more is to be kept longer.
pub(super) type Bucket = u16;

const _: () = assert!(SLOTS * CLASSES < NONE as usize, "a bag's number is small");

#[derive(Debug, Clone, Copy)]
struct Bag {
    head: BlockIdx,
    bucket: Bucket,
    prev: BagIdx,
    next: BagIdx,
}

/// All bags of one policy.
#[derive(Debug)]
pub(super) struct Bags {
    bags: Vec<Bag>,
    /// The classes of each slot whose bags are not empty.
    filled: Vec<u128>,
    heads: Vec<BagIdx>,
    used: [u64; BUCKETS / 64],
}

/// The bucket of an index.
pub(super) fn bucket_of(index: f32) -> Bucket {
    let steps = (index.max(LOWEST).to_bits() - LOWEST.to_bits()) >> STEP_BITS;
    steps.min(BUCKETS as u32 - 1) as Bucket
}

/// The bag of a class and slot.
pub(super) fn bag_of(class: u8, slot: usize) -> BagIdx {
    (slot * CLASSES + usize::from(class)) as BagIdx
}

/// Marks a block as one that is in no bag.
pub(super) fn clear(blocks: &mut Blocks, block: BlockIdx) {
    blocks.get_mut(block).policy[1] = NOWHERE;
}

/// Whether a block is in a bag.
pub(super) fn holds(blocks: &Blocks, block: BlockIdx) -> bool {
    blocks.get(block).policy[1] != NOWHERE
}

impl Bags {
    pub(super) fn new() -> Self {
        let empty = Bag {
            head: BlockIdx::NONE,
            bucket: 0,
            prev: NONE,
            next: NONE,
        };
        Self {
            bags: vec![empty; SLOTS * CLASSES],
            filled: vec![0; SLOTS],
            heads: vec![NONE; BUCKETS],
            used: [0; BUCKETS / 64],
        }
    }

    /// Puts a block into a bag whose index is in `bucket`: to be taken first, or last of the bag.
    pub(super) fn put(
        &mut self,
        blocks: &mut Blocks,
        at: BagIdx,
        bucket: Bucket,
        block: BlockIdx,
        first: bool,
    ) {
        let head = self.bags[usize::from(at)].head;
        if head.is_none() {
            blocks.get_mut(block).policy[..2].copy_from_slice(&[block.0; 2]);
            self.fill(at, block, bucket);
            return;
        }
        let tail = BlockIdx(blocks.get(head).policy[0]);
        blocks.get_mut(block).policy[..2].copy_from_slice(&[tail.0, head.0]);
        blocks.get_mut(tail).policy[1] = block.0;
        blocks.get_mut(head).policy[0] = block.0;
        if first {
            self.bags[usize::from(at)].head = block;
        }
    }

    /// Takes a block out of its bag.
    pub(super) fn take(&mut self, blocks: &mut Blocks, at: BagIdx, block: BlockIdx) {
        let [prev, next, _] = blocks.get(block).policy;
        clear(blocks, block);
        if next == block.0 {
            self.empty(at);
            return;
        }
        blocks.get_mut(BlockIdx(prev)).policy[1] = next;
        blocks.get_mut(BlockIdx(next)).policy[0] = prev;
        let head = &mut self.bags[usize::from(at)].head;
        if *head == block {
            *head = BlockIdx(next);
        }
    }

    /// Moves all bags of a slot behind those of another.
    pub(super) fn merge(&mut self, blocks: &mut Blocks, from: usize, into: usize) {
        for class in bits(self.filled[from]) {
            let (from, into) = (bag_of(class, from), bag_of(class, into));
            let Bag { head, bucket, .. } = self.bags[usize::from(from)];
            self.empty(from);
            let above = self.bags[usize::from(into)].head;
            if above.is_none() {
                self.fill(into, head, bucket);
                continue;
            }
            let (tail, last) = (blocks.get(above).policy[0], blocks.get(head).policy[0]);
            blocks.get_mut(BlockIdx(tail)).policy[1] = head.0;
            blocks.get_mut(head).policy[0] = tail;
            blocks.get_mut(BlockIdx(last)).policy[1] = above.0;
            blocks.get_mut(above).policy[0] = last;
        }
    }

    /// Hangs a slot's bags into the buckets that their classes now have.
    pub(super) fn revalue(&mut self, slot: usize, bucket_of_class: impl Fn(u8) -> Bucket) {
        for class in bits(self.filled[slot]) {
            self.rehang(bag_of(class, slot), bucket_of_class(class));
        }
    }

    /// Hangs one bag, if it is not empty, into another bucket.
    pub(super) fn rehang(&mut self, at: BagIdx, bucket: Bucket) {
        let bag = self.bags[usize::from(at)];
        if !bag.head.is_none() && bag.bucket != bucket {
            self.unhang(at);
            self.hang(at, bucket);
        }
    }

    /// The first block of the bag that is worth least.
    pub(super) fn least(&self) -> Option<(BagIdx, BlockIdx)> {
        let (word, bits) = self.used.iter().enumerate().find(|(_, bits)| **bits != 0)?;
        let bucket = word * 64 + bits.trailing_zeros() as usize;
        let bag = self.heads[bucket];
        Some((bag, self.bags[usize::from(bag)].head))
    }

    /// Panics unless every bag's ring holds blocks of that bag, and hangs where the bitmap says.
    #[cfg(test)]
    pub(super) fn check(&self, blocks: &Blocks, bag_of: impl Fn(BlockIdx) -> BagIdx) {
        let mut hung = 0;
        for (bucket, head) in self.heads.iter().enumerate() {
            let used = self.used[bucket / 64] >> (bucket % 64) & 1;
            assert_eq!(used == 1, *head != NONE, "bucket {bucket}");
            let (mut at, mut before) = (*head, NONE);
            while at != NONE {
                let bag = self.bags[usize::from(at)];
                assert_eq!((usize::from(bag.bucket), bag.prev), (bucket, before));
                let (mut block, mut prev) = (bag.head, blocks.get(bag.head).policy[0]);
                loop {
                    let [back, next, _] = blocks.get(block).policy;
                    assert_eq!((back, bag_of(block)), (prev, at), "{block:?}");
                    (prev, block) = (block.0, BlockIdx(next));
                    if block == bag.head {
                        break;
                    }
                }
                (before, at, hung) = (at, bag.next, hung + 1);
            }
        }
        let filled = self.bags.iter().filter(|bag| !bag.head.is_none());
        assert_eq!(filled.count(), hung, "bags that are not empty");
        let bits = self.filled.iter().map(|mask| mask.count_ones() as usize);
        assert_eq!(bits.sum::<usize>(), hung, "bits of bags that are not empty");
    }

    pub(super) fn bytes(&self) -> usize {
        self.bags.len() * size_of::<Bag>() + self.filled.len() * 16 + BUCKETS * (2 + 1)
    }

    fn fill(&mut self, at: BagIdx, head: BlockIdx, bucket: Bucket) {
        self.bags[usize::from(at)].head = head;
        let (slot, class) = (usize::from(at) / CLASSES, usize::from(at) % CLASSES);
        self.filled[slot] |= 1 << class;
        self.hang(at, bucket);
    }

    fn empty(&mut self, at: BagIdx) {
        self.bags[usize::from(at)].head = BlockIdx::NONE;
        let (slot, class) = (usize::from(at) / CLASSES, usize::from(at) % CLASSES);
        self.filled[slot] &= !(1 << class);
        self.unhang(at);
    }

    fn hang(&mut self, at: BagIdx, bucket: Bucket) {
        let next = std::mem::replace(&mut self.heads[usize::from(bucket)], at);
        let bag = &mut self.bags[usize::from(at)];
        (bag.bucket, bag.prev, bag.next) = (bucket, NONE, next);
        if next != NONE {
            self.bags[usize::from(next)].prev = at;
        }
        self.used[usize::from(bucket) / 64] |= 1 << (bucket % 64);
    }

    fn unhang(&mut self, at: BagIdx) {
        let Bag {
            bucket, prev, next, ..
        } = self.bags[usize::from(at)];
        match prev {
            NONE => self.heads[usize::from(bucket)] = next,
            _ => self.bags[usize::from(prev)].next = next,
        }
        if next != NONE {
            self.bags[usize::from(next)].prev = prev;
        }
        if self.heads[usize::from(bucket)] == NONE {
            self.used[usize::from(bucket) / 64] &= !(1 << (bucket % 64));
        }
    }
}

/// The numbers of the bits that are set.
fn bits(mut mask: u128) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let bit = (mask != 0).then(|| mask.trailing_zeros() as u8)?;
        mask &= mask - 1;
        Some(bit)
    })
}
