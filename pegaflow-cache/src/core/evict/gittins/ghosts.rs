// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Lives of blocks that are not here: evicted, or asked for and not saved yet.
//!
//! Eight bytes a ghost, eight to a bucket of one cache line; a full bucket forgets its oldest. The
//! key itself is not kept: one in some two million other keys is taken for the ghost, which costs a
//! wrong count.
//!
//! Nearly every access misses the caches, so they go in batches: a block's ghost waits until there are
//! [`BATCH`] of them, and what is to be looked up is [read ahead](Ghosts::read_ahead).
//!
//! Invariant: whatever was put in comes out once: taken, replaced, or retired.

use super::ages::Tick;
use super::class::Class;
use pegaflow_meta::BlockKey;

const BUCKET: usize = 8;
const CHUNK: usize = 512;
const MARK_BITS: u32 = 24;
/// Keys whose cache misses overlap.
pub(super) const BATCH: usize = 64;

type Bucket = [u64; BUCKET];
type Chunk = Box<[Bucket; CHUNK]>;

/// A life that goes on elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ghost {
    pub(super) start: Tick,
    pub(super) class: Class,
}

/// Where a key's ghost would be, and how it is known there.
#[derive(Debug, Clone, Copy)]
struct Home {
    hash: u64,
    mark: u64,
}

impl Home {
    fn new(key: &BlockKey) -> Self {
        let (low, high) = key.0.split_at(8);
        let word = |half: &[u8]| {
            half.iter()
                .rfold(0u64, |word, byte| word << 8 | u64::from(*byte))
        };
        let hash = (word(low) ^ word(high).rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mark = (hash >> (64 - MARK_BITS)).max(1);
        Self {
            hash: hash ^ hash >> 32,
            mark,
        }
    }

    fn pack(self, ghost: Ghost) -> u64 {
        u64::from(ghost.start) << 32 | u64::from(ghost.class) << MARK_BITS | self.mark
    }

    fn is(self, entry: u64) -> bool {
        entry & ((1 << MARK_BITS) - 1) == self.mark
    }
}

fn unpack(entry: u64) -> Ghost {
    Ghost {
        start: (entry >> 32) as Tick,
        class: (entry >> MARK_BITS) as Class,
    }
}

/// One table of a fixed size; memory is taken as it is used.
#[derive(Debug, Default)]
struct Table {
    chunks: Vec<Option<Chunk>>,
}

impl Table {
    fn new(chunks: usize) -> Self {
        Self {
            chunks: std::iter::repeat_with(|| None).take(chunks).collect(),
        }
    }

    fn place(&self, home: Home) -> Option<(usize, usize)> {
        let buckets = (self.chunks.len() * CHUNK) as u64;
        let at = (((home.hash & 0xffff_ffff) * buckets) >> 32) as usize;
        (buckets > 0).then_some((at / CHUNK, at % CHUNK))
    }

    fn bucket(&self, home: Home) -> Option<&Bucket> {
        let (chunk, at) = self.place(home)?;
        self.chunks[chunk].as_ref().map(|chunk| &chunk[at])
    }

    fn bucket_mut(&mut self, home: Home) -> Option<&mut Bucket> {
        let (chunk, at) = self.place(home)?;
        self.chunks[chunk].as_mut().map(|chunk| &mut chunk[at])
    }

    fn take(&mut self, home: Home) -> Option<Ghost> {
        let entry = self
            .bucket_mut(home)?
            .iter_mut()
            .find(|entry| home.is(**entry))?;
        Some(unpack(std::mem::take(entry)))
    }

    fn put(&mut self, home: Home, ghost: Ghost) -> Option<Ghost> {
        let Some((chunk, at)) = self.place(home) else {
            return Some(ghost);
        };
        let chunk = self.chunks[chunk].get_or_insert_with(|| {
            let fresh = vec![[0; BUCKET]; CHUNK].into_boxed_slice();
            fresh.try_into().expect("it has the length of a chunk")
        });
        // Empty entries are zero, and older ones are less: the least is the one to replace.
        let oldest = chunk[at].iter_mut().min().expect("a bucket has entries");
        let gone = std::mem::replace(oldest, home.pack(ghost));
        (gone != 0).then(|| unpack(gone))
    }
}

/// The ghosts of one policy.
#[derive(Debug, Default)]
pub(super) struct Ghosts {
    now: Table,
    /// The smaller table before, until it has been walked.
    before: Table,
    /// Not in the tables yet.
    waiting: Vec<(Home, Ghost)>,
}

impl Ghosts {
    /// Makes room for that many ghosts. What is there already stays for a while.
    pub(super) fn grow(&mut self, ghosts: usize) {
        let chunks = ghosts.div_ceil(BUCKET * CHUNK);
        if chunks > self.now.chunks.len() && self.before.chunks.is_empty() {
            self.before = std::mem::replace(&mut self.now, Table::new(chunks));
        }
    }

    /// Ghosts there is room for.
    pub(super) fn room(&self) -> usize {
        self.now.chunks.len() * CHUNK * BUCKET
    }

    /// Takes a part of the smaller table before away, and says whose ghosts are gone.
    pub(super) fn retire(&mut self, mut gone: impl FnMut(Ghost)) {
        if let Some(Some(chunk)) = self.before.chunks.pop() {
            let entries = chunk.iter().flatten().filter(|entry| **entry != 0);
            entries.for_each(|entry| gone(unpack(*entry)));
        }
    }

    /// Begins to read what the next calls with these keys will need: at most [`BATCH`] keys.
    pub(super) fn read_ahead<'a>(&self, keys: impl Iterator<Item = &'a BlockKey>) {
        self.touch(keys.map(Home::new));
    }

    fn touch(&self, homes: impl Iterator<Item = Home>) {
        let first = |home| self.now.bucket(home).map_or(0, |bucket| bucket[0]);
        std::hint::black_box(homes.fold(0, |all, home| all ^ first(home)));
    }

    /// Whether a key has a ghost.
    pub(super) fn has(&self, key: &BlockKey) -> bool {
        let home = Home::new(key);
        let tables = [&self.now, &self.before];
        let mut buckets = tables.iter().filter_map(|table| table.bucket(home));
        buckets.any(|bucket| bucket.iter().any(|entry| home.is(*entry)))
    }

    /// Takes a key's ghost out.
    pub(super) fn take(&mut self, key: &BlockKey) -> Option<Ghost> {
        let home = Home::new(key);
        self.now.take(home).or_else(|| self.before.take(home))
    }

    /// Puts a ghost in for a key that has none; returns the one that is forgotten for it, which
    /// without room is the same.
    pub(super) fn put(&mut self, key: &BlockKey, ghost: Ghost) -> Option<Ghost> {
        self.now.put(Home::new(key), ghost)
    }

    /// Puts a ghost in for a key that has none, at the next [`settle`](Self::settle). Says whether that
    /// should be now.
    #[must_use]
    pub(super) fn put_by_and_by(&mut self, key: &BlockKey, ghost: Ghost) -> bool {
        self.waiting.push((Home::new(key), ghost));
        self.waiting.len() >= BATCH
    }

    /// Puts in what waits, and says which ghosts are forgotten for it. Before the next look at any.
    pub(super) fn settle(&mut self, mut gone: impl FnMut(Ghost)) {
        self.touch(self.waiting.iter().map(|(home, _)| *home));
        for (home, ghost) in self.waiting.drain(..) {
            if let Some(ghost) = self.now.put(home, ghost) {
                gone(ghost);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        let chunks = self.now.chunks.iter().chain(&self.before.chunks);
        let entries = chunks
            .flatten()
            .flat_map(|chunk| chunk.iter().flatten().copied());
        entries.filter(|entry| *entry != 0).count() + self.waiting.len()
    }

    pub(super) fn bytes(&self) -> usize {
        let chunks = self.now.chunks.iter().chain(&self.before.chunks);
        chunks.flatten().count() * CHUNK * size_of::<Bucket>()
    }
}
