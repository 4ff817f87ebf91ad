// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Least expected reuse: the block leaves whose keeping pays worst, by what became of blocks like it.
//!
//! Age is counted in block references. `class` says what blocks are alike, `lives` learns what becomes
//! of them and gives each class and age its index, `bags` finds the evictable block with the lowest,
//! `ghosts` remembers blocks that left, so that their return is learnt from too.
//!
//! A request is what a lookup asks for: it begins a new life for all its blocks, those that are not
//! here included. Saving a block is no use of it.
//!
//! Invariant: every sealed block and every ghost is one open life; exactly the evictable blocks (and
//! some that have been pinned meanwhile) are in bags.

mod ages;
mod bags;
mod class;
mod ghosts;
mod lives;
#[cfg(test)]
mod tests;

use super::{Eviction, Lost, Request};
use crate::core::block::{BlockIdx, Blocks};
use ages::{Age, Tick};
use bags::Bags;
use class::{CLASSES, Class, Shape};
use ghosts::{BATCH, Ghost, Ghosts};
use lives::Lives;
use pegaflow_meta::BlockKey;

/// The indexes of one class are worked out anew every so many ticks, and in a cache of more blocks
/// than this less often: so that all are once in a time in which a sixteenth of the blocks is used.
const LEARN_TICKS: usize = 8;
const LEARN_BLOCKS: usize = 1 << 15;
/// Room for ghosts: so many for each block, beyond the first [`GHOSTS_MIN`] fewer.
const GHOSTS_A_BLOCK: [usize; 2] = [16, 4];
const GHOSTS_MIN: usize = 1 << 20;
/// A block of a request that no lookup announced: all new, and not near its end.
const UNANNOUNCED: usize = 32;

/// Bit of a block's label beside its class: another tier has a copy of it.
const COPIED: u8 = 1 << 7;

const _: () = assert!(CLASSES <= COPIED as usize, "a class leaves the bit free");

/// The time since a life began.
#[derive(Debug)]
struct Past {
    start: Tick,
    age: Age,
    /// In references for each block of the cache.
    pause: f32,
}

/// The policy.
#[derive(Debug)]
pub(super) struct Gittins {
    references: u64,
    now: Tick,
    /// Blocks tracked.
    len: usize,
    bags: Bags,
    lives: Lives,
    ghosts: Ghosts,
    /// Whose indexes are worked out next.
    learning: usize,
}

impl Gittins {
    pub(super) fn new() -> Self {
        Self {
            references: 0,
            now: 0,
            len: 0,
            bags: Bags::new(),
            lives: Lives::new(),
            ghosts: Ghosts::default(),
            learning: 0,
        }
    }

    /// Lets so many references' time pass.
    fn pass(&mut self, blocks: &mut Blocks, references: usize) {
        self.references += references as u64;
        let until = ages::tick_of(self.references);
        while self.now < until {
            self.now += 1;
            for (from, into) in ages::merges(self.now) {
                self.bags.merge(blocks, from, into);
                self.lives.merge(from, into);
            }
            self.revalue(ages::aged(self.now));
            if (self.now as usize).is_multiple_of(LEARN_TICKS + self.len / LEARN_BLOCKS) {
                self.learn();
            }
        }
    }

    fn revalue(&mut self, slots: std::ops::Range<usize>) {
        for slot in slots {
            let bin = ages::bin_of_slot(slot, self.now);
            self.bags
                .revalue(slot, |class| self.lives.bucket(class, bin));
        }
    }

    /// Works out the indexes of the next class that has lives.
    fn learn(&mut self) {
        for _ in 0..CLASSES {
            if self.learning == 0 {
                self.lives.pool(self.now);
            }
            let class = self.learning as Class;
            self.learning = (self.learning + 1) % CLASSES;
            if self.lives.has_open(class) {
                self.lives.learn(class, self.now);
                for slot in 0..ages::SLOTS {
                    let bin = ages::bin_of_slot(slot, self.now);
                    let bag = bags::bag_of(class, slot);
                    self.bags.rehang(bag, self.lives.bucket(class, bin));
                }
                return;
            }
        }
    }

    fn life(blocks: &Blocks, block: BlockIdx) -> Ghost {
        let entry = blocks.get(block);
        Ghost {
            start: entry.policy[2],
            class: entry.label & !COPIED,
        }
    }

    fn set_life(blocks: &mut Blocks, block: BlockIdx, life: Ghost) {
        let entry = blocks.get_mut(block);
        entry.policy[2] = life.start;
        entry.label = entry.label & COPIED | life.class;
    }

    fn bag(&self, blocks: &Blocks, block: BlockIdx) -> bags::BagIdx {
        let Ghost { start, class } = Self::life(blocks, block);
        bags::bag_of(class, ages::slot_of(start, self.now))
    }

    /// Puts a block into its bag if it can leave: to be taken first, or last.
    fn put_in(&mut self, blocks: &mut Blocks, block: BlockIdx, first: bool) {
        if blocks.get(block).is_evictable() && !bags::holds(blocks, block) {
            let Ghost { start, class } = Self::life(blocks, block);
            let slot = ages::slot_of(start, self.now);
            let bucket = self.lives.bucket(class, ages::bin_of_slot(slot, self.now));
            let bag = bags::bag_of(class, slot);
            let first = first || blocks.get(block).label & COPIED != 0;
            self.bags.put(blocks, bag, bucket, block, first);
        }
    }

    fn put_out(&mut self, blocks: &mut Blocks, block: BlockIdx) {
        if bags::holds(blocks, block) {
            let bag = self.bag(blocks, block);
            self.bags.take(blocks, bag, block);
        }
    }

    fn past(&self, start: Tick) -> Past {
        Past {
            start,
            age: Age::of(start, self.now),
            pause: ages::references(self.now - start) / (self.len + 1) as f32,
        }
    }

    /// Ends a life of that class with a use, and begins the next.
    fn again(&mut self, class: Class, past: &Past, shape: Shape, at: usize) -> Ghost {
        self.lives.end(class, past.age, true);
        let seed = (self.references as u32).wrapping_add(at as u32);
        let dice = seed.wrapping_mul(0x9E37_79B1) >> 8;
        self.begin(shape.class(at, class::used_again(class, past.pause, dice)))
    }

    fn begin(&mut self, class: Class) -> Ghost {
        self.lives.begin(class, self.now);
        Ghost {
            start: self.now,
            class,
        }
    }

    /// A ghost is forgotten: what becomes of its life, nobody will know.
    fn lose(lives: &mut Lives, life: Ghost, now: Tick) {
        lives.end(life.class, Age::of(life.start, now), false);
    }

    fn settle(&mut self) {
        let (lives, now) = (&mut self.lives, self.now);
        self.ghosts.settle(|ghost| Self::lose(lives, ghost, now));
    }

    /// A request used the blocks it found, the first of which is its block `first`.
    fn use_found(&mut self, blocks: &mut Blocks, found: &[BlockIdx], shape: Shape, first: usize) {
        let mut past = self.past(self.now);
        for (at, block) in (first..).zip(found) {
            self.put_out(blocks, *block);
            let life = Self::life(blocks, *block);
            // Most blocks of a request were used together before.
            if life.start != past.start {
                past = self.past(life.start);
            }
            let life = self.again(life.class, &past, shape, at);
            Self::set_life(blocks, *block, life);
        }
    }

    /// A request would have used blocks that are not here, the first of which is its block `first`.
    fn use_missing(&mut self, missing: &[BlockKey], shape: Shape, first: usize) {
        for (batch, keys) in missing.chunks(BATCH).enumerate() {
            self.ghosts.read_ahead(keys.iter());
            for (at, key) in (first + batch * BATCH..).zip(keys) {
                let life = match self.ghosts.take(key) {
                    Some(ghost) => {
                        let past = self.past(ghost.start);
                        self.again(ghost.class, &past, shape, at)
                    }
                    None => self.begin(shape.class(at, 0)),
                };
                if let Some(gone) = self.ghosts.put(key, life) {
                    Self::lose(&mut self.lives, gone, self.now);
                }
            }
        }
    }

    /// Room for ghosts grows with the blocks.
    fn make_room_for_ghosts(&mut self) {
        let [few, many] = GHOSTS_A_BLOCK;
        let wanted = (few * self.len).min((many * self.len).max(GHOSTS_MIN));
        if wanted > self.ghosts.room() {
            self.ghosts.grow(wanted);
        }
        let (lives, now) = (&mut self.lives, self.now);
        self.ghosts.retire(|ghost| Self::lose(lives, ghost, now));
    }
}

impl Eviction for Gittins {
    fn request(&mut self, blocks: &mut Blocks, request: &Request<'_>) {
        let Request {
            found,
            missing,
            keys,
        } = *request;
        self.settle();
        self.pass(blocks, keys);
        let known = missing
            .iter()
            .take_while(|key| self.ghosts.has(key))
            .count();
        let shape = Shape::new(keys, missing.len() - known);
        let first_missing = keys - missing.len();
        self.use_found(blocks, found, shape, first_missing - found.len());
        self.use_missing(missing, shape, first_missing);
    }

    fn refresh(&mut self, _: &mut Blocks, _: &[BlockIdx]) {}

    fn insert(&mut self, blocks: &mut Blocks, chain: &[BlockIdx]) {
        self.settle();
        for chain in chain.chunks(BATCH) {
            self.len += chain.len();
            self.make_room_for_ghosts();
            let keys = chain.iter().map(|block| &blocks.get(*block).key);
            self.ghosts.read_ahead(keys);
            for block in chain {
                bags::clear(blocks, *block);
                let life = match self.ghosts.take(&blocks.get(*block).key) {
                    Some(life) => life,
                    None => self.begin(Shape::new(UNANNOUNCED, UNANNOUNCED).class(0, 0)),
                };
                blocks.get_mut(*block).label = 0;
                Self::set_life(blocks, *block, life);
                self.put_in(blocks, *block, false);
            }
        }
    }

    fn remove(&mut self, blocks: &mut Blocks, block: BlockIdx) {
        self.put_out(blocks, block);
        self.len -= 1;
        let (key, life) = (blocks.get(block).key, Self::life(blocks, block));
        if self.ghosts.put_by_and_by(&key, life) {
            self.settle();
        }
    }

    fn ripe(&mut self, blocks: &mut Blocks, block: BlockIdx, lost: Lost) {
        // Among equals a chain goes as a whole: what was saved together leaves together, and the next
        // chain finds its places side by side.
        self.put_in(blocks, block, lost == Lost::Child);
    }

    fn copied(&mut self, blocks: &mut Blocks, block: BlockIdx) {
        self.put_out(blocks, block);
        blocks.get_mut(block).label |= COPIED;
        self.put_in(blocks, block, true);
    }

    fn victim(&mut self, blocks: &mut Blocks) -> Option<BlockIdx> {
        loop {
            let (bag, block) = self.bags.least()?;
            if blocks.get(block).is_evictable() {
                return Some(block);
            }
            self.bags.take(blocks, bag, block);
        }
    }

    #[cfg(test)]
    fn check(&self, blocks: &Blocks, tracked: &[BlockIdx]) {
        assert_eq!(self.len, tracked.len(), "blocks");
        let ghosts = self.ghosts.count();
        assert_eq!(self.lives.open_count(), self.len + ghosts, "open lives");
        self.bags.check(blocks, |block| self.bag(blocks, block));
        for block in tracked {
            let evictable = blocks.get(*block).is_evictable();
            assert!(
                !evictable || bags::holds(blocks, *block),
                "{block:?} was forgotten"
            );
        }
    }

    fn bytes(&self) -> usize {
        self.bags.bytes() + self.lives.bytes() + self.ghosts.bytes()
    }
}
