// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! From keys to blocks: a sharded hash table of 8-byte slots in buckets of one cache line.
//!
//! A slot is a 32-bit tag and a 32-bit block index; the key itself lies in the block. Shards are
//! small and grow one by one, so no single insert pays for more than one shard. The hash is seeded:
//! a client that picks its keys cannot pick their buckets.
//!
//! Knows nothing of blocks: the caller compares keys.
//!
//! Invariant: for every slot, all buckets between its home bucket and its own are full, so a search
//! ends at the first bucket with an empty slot.

use super::block::BlockIdx;
use pegaflow_meta::BlockKey;

const SHARD_BITS: u32 = 9;
const SHARDS: usize = 1 << SHARD_BITS;
const BUCKET: usize = 8;
/// A shard grows when more than 13 of 16 slots are taken, by a half.
const FULL_OF_16: usize = 13;

/// The hash of a key under one index's seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Hash(u64);

impl Hash {
    fn shard(self) -> usize {
        (self.0 >> (64 - SHARD_BITS)) as usize
    }

    fn tag(self) -> u32 {
        self.0 as u32
    }

    /// Low bits, for small tables of the moment.
    pub(crate) fn low(self) -> usize {
        self.0 as usize
    }
}

/// Eight slots: tags together, so that they are compared together and without a branch.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Bucket {
    tags: [u32; BUCKET],
    /// The block's index plus one; 0 where the slot is empty.
    blocks: [u32; BUCKET],
}

const EMPTY: u32 = 0;

/// A tag and a block's index plus one.
type Slot = (u32, u32);

fn idx_of(block: u32) -> BlockIdx {
    BlockIdx(block.wrapping_sub(1))
}

/// Bit `i` is set where `values[i]` is `wanted`.
fn equal(values: &[u32; BUCKET], wanted: u32) -> u32 {
    let mut mask = 0;
    for (i, value) in values.iter().enumerate() {
        mask |= u32::from(*value == wanted) << i;
    }
    mask
}

impl Bucket {
    const EMPTY: Self = Self {
        tags: [0; BUCKET],
        blocks: [EMPTY; BUCKET],
    };

    fn is_full(&self) -> bool {
        equal(&self.blocks, EMPTY) == 0
    }

    fn empty_slot(&self) -> Option<usize> {
        let empty = equal(&self.blocks, EMPTY);
        (empty != 0).then(|| empty.trailing_zeros() as usize)
    }

    fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        let all = self.tags.iter().copied().zip(self.blocks);
        all.filter(|(_, block)| *block != EMPTY)
    }

    fn set(&mut self, at: usize, (tag, block): Slot) {
        (self.tags[at], self.blocks[at]) = (tag, block);
    }
}

#[derive(Debug, Default)]
struct Shard {
    buckets: Vec<Bucket>,
    len: usize,
}

impl Shard {
    /// Order-preserving in the tag, so growing reads and writes from front to back.
    fn home(&self, tag: u32) -> usize {
        ((u64::from(tag) * self.buckets.len() as u64) >> 32) as usize
    }

    fn next(&self, bucket: usize) -> usize {
        if bucket + 1 == self.buckets.len() {
            0
        } else {
            bucket + 1
        }
    }

    /// Buckets from `from` on to `to`, going round.
    fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from {
            to - from
        } else {
            to + self.buckets.len() - from
        }
    }

    /// The first block in the home bucket with this tag, or none. Without branches, so that the
    /// cache misses of many calls overlap.
    fn guess(&self, tag: u32) -> BlockIdx {
        let bucket = &self.buckets[self.home(tag)];
        let same = equal(&bucket.tags, tag);
        let block = bucket.blocks[same.trailing_zeros() as usize & (BUCKET - 1)];
        idx_of(if same == 0 { EMPTY } else { block })
    }

    fn find(&self, tag: u32, is_it: impl Fn(BlockIdx) -> bool) -> Option<BlockIdx> {
        let mut at = self.home(tag);
        loop {
            let bucket = &self.buckets[at];
            let mut same = equal(&bucket.tags, tag);
            while same != 0 {
                let block = bucket.blocks[same.trailing_zeros() as usize];
                if block != EMPTY && is_it(idx_of(block)) {
                    return Some(idx_of(block));
                }
                same &= same - 1;
            }
            if !bucket.is_full() {
                return None;
            }
            at = self.next(at);
        }
    }

    fn insert(&mut self, tag: u32, idx: BlockIdx) {
        if (self.len + 1) * 16 > self.buckets.len() * BUCKET * FULL_OF_16 {
            self.grow();
        }
        self.place((tag, idx.0 + 1));
        self.len += 1;
    }

    fn place(&mut self, slot: Slot) {
        let mut at = self.home(slot.0);
        loop {
            if let Some(free) = self.buckets[at].empty_slot() {
                self.buckets[at].set(free, slot);
                return;
            }
            at = self.next(at);
        }
    }

    fn grow(&mut self) {
        let wanted = self.buckets.len() * 3 / 2 + 1;
        let old = std::mem::replace(&mut self.buckets, vec![Bucket::EMPTY; wanted]);
        for slot in old.iter().flat_map(Bucket::slots) {
            self.place(slot);
        }
    }

    fn remove(&mut self, tag: u32, idx: BlockIdx) -> bool {
        let mut at = self.home(tag);
        for _ in 0..self.buckets.len() {
            let bucket = &mut self.buckets[at];
            let found = equal(&bucket.blocks, idx.0 + 1) & equal(&bucket.tags, tag);
            let was_full = bucket.is_full();
            if found != 0 {
                let i = found.trailing_zeros() as usize;
                bucket.blocks[i] = EMPTY;
                self.len -= 1;
                if was_full {
                    self.close_hole(at, i);
                }
                return true;
            }
            if !was_full {
                return false;
            }
            at = self.next(at);
        }
        false
    }

    /// A full bucket lost a slot: pull back what had passed over it, until nothing had.
    fn close_hole(&mut self, mut hole: usize, mut hole_slot: usize) {
        let mut at = self.next(hole);
        while at != hole {
            let was_full = self.buckets[at].is_full();
            let reach = self.distance(hole, at);
            let passed = |tag: u32| self.distance(self.home(tag), at) >= reach;
            let bucket = self.buckets[at];
            let taken = |i: &usize| bucket.blocks[*i] != EMPTY && passed(bucket.tags[*i]);
            if let Some(i) = (0..BUCKET).find(taken) {
                self.buckets[hole].set(hole_slot, (bucket.tags[i], bucket.blocks[i]));
                self.buckets[at].blocks[i] = EMPTY;
                (hole, hole_slot) = (at, i);
            }
            if !was_full {
                return;
            }
            at = self.next(at);
        }
    }
}

/// The index of a node.
#[derive(Debug)]
pub(crate) struct Index {
    shards: Vec<Shard>,
    seed: [u64; 2],
}

impl Index {
    /// An empty index. The seed should be drawn at random by the shell, once.
    pub(crate) fn new(seed: [u64; 2]) -> Self {
        let empty = || Shard {
            buckets: vec![Bucket::EMPTY],
            len: 0,
        };
        Self {
            shards: (0..SHARDS).map(|_| empty()).collect(),
            seed,
        }
    }

    pub(crate) fn hash(&self, key: &BlockKey) -> Hash {
        let whole = u128::from_le_bytes(key.0);
        let low = whole as u64 ^ self.seed[0];
        let high = (whole >> 64) as u64 ^ self.seed[1];
        let product = u128::from(low) * u128::from(high);
        // The second multiplication spreads what the first left unmixed when a factor is small.
        let folded = (product as u64 ^ (product >> 64) as u64 ^ low.rotate_left(32))
            .wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Hash(folded ^ folded >> 32)
    }

    /// A block of this hash, most likely the one that is looked for; none decides nothing.
    pub(crate) fn guess(&self, hash: Hash) -> BlockIdx {
        self.shards[hash.shard()].guess(hash.tag())
    }

    /// Begins to read what the next calls with these hashes will need.
    pub(crate) fn read_ahead(&self, hashes: &[Hash]) {
        let all = hashes.iter().map(|hash| self.guess(*hash).0);
        std::hint::black_box(all.fold(0, |all, idx| all ^ idx));
    }

    /// The block of this hash for which `is_it` holds.
    pub(crate) fn find(&self, hash: Hash, is_it: impl Fn(BlockIdx) -> bool) -> Option<BlockIdx> {
        self.shards[hash.shard()].find(hash.tag(), is_it)
    }

    /// Adds a block that is not in the index yet.
    pub(crate) fn insert(&mut self, hash: Hash, idx: BlockIdx) {
        self.shards[hash.shard()].insert(hash.tag(), idx);
    }

    /// Takes a block out; whether it was there.
    pub(crate) fn remove(&mut self, hash: Hash, idx: BlockIdx) -> bool {
        self.shards[hash.shard()].remove(hash.tag(), idx)
    }

    /// Blocks in the index.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.len).sum()
    }

    /// Bytes of the table.
    pub(crate) fn bytes(&self) -> usize {
        self.shards
            .iter()
            .map(|s| s.buckets.capacity() * size_of::<Bucket>())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// Few tags, so that buckets overflow and searches go round.
    fn crowded(tag: u8) -> Hash {
        Hash(u64::from(tag) << 24)
    }

    fn check_invariant(shard: &Shard) {
        for (at, bucket) in shard.buckets.iter().enumerate() {
            for (tag, _) in bucket.slots() {
                let mut walk = shard.home(tag);
                while walk != at {
                    assert!(shard.buckets[walk].is_full(), "a search would end early");
                    walk = shard.next(walk);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(ops in prop::collection::vec((any::<bool>(), any::<u8>(), 0u32..200), 1..600)) {
            let mut index = Index::new([1, 2]);
            let mut model = HashMap::new();
            for (add, tag, idx) in ops {
                let idx = BlockIdx(idx);
                if add {
                    if let std::collections::hash_map::Entry::Vacant(e) = model.entry(idx) {
                        e.insert(tag);
                        index.insert(crowded(tag), idx);
                    }
                } else {
                    let there = model.get(&idx) == Some(&tag);
                    prop_assert_eq!(index.remove(crowded(tag), idx), there);
                    if there {
                        model.remove(&idx);
                    }
                }
                prop_assert_eq!(index.len(), model.len());
            }
            check_invariant(&index.shards[0]);
            for (idx, tag) in model {
                prop_assert_eq!(index.find(crowded(tag), |i| i == idx), Some(idx));
            }
        }
    }

    /// Keys in sequence, as tests and careless clients make them, spread over all shards.
    #[test]
    fn poor_keys_spread() {
        let mut index = Index::new([3, 4]);
        for i in 0..100_000u32 {
            let hash = index.hash(&BlockKey(u128::from(i).to_le_bytes()));
            index.insert(hash, BlockIdx(i));
        }
        let fullest = index.shards.iter().map(|s| s.len).max();
        assert!(
            fullest < Some(400),
            "195 a shard would be even, the fullest has {fullest:?}"
        );
    }
}
