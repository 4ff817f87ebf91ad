// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What became of the blocks of each class, by age, and what a block is therefore worth.
//!
//! A *life* begins with a use and ends with the next one, or unseen. The hazard of a class at an age
//! is the share of the lives that reached the age and were used again right then; lives that have
//! not ended yet count among those that reached it, so nothing waits for their end. Where a class
//! has seen little, the hazard of all classes together stands in.
//!
//! The index of a block is the best rate at which keeping it pays: over all times to keep it, the
//! largest of P(used before then) / E(time kept until then). That is Gittins' index of a bandit with
//! one prize; for a cache of blocks that each are used or not it decides which one to give up.

use super::ages::{self, BINS, SLOTS, Tick};
use super::bags::{Bucket, bucket_of};
use super::class::{CLASSES, Class};

/// One row a class, and one for all.
const ROWS: usize = CLASSES + 1;
const ALL: usize = CLASSES;
/// Lives of all classes that weigh as much as those of one class.
const PRIOR_LIVES: f32 = 8.0;

/// Counts of lives.
#[derive(Debug)]
pub(super) struct Lives {
    /// Lives that go on, by slot and row.
    open: Vec<u32>,
    /// Lives that go on, by row.
    living: [u32; ROWS],
    /// Lives that ended at an age, by row and bin.
    ended: Vec<f32>,
    /// Those of them that ended with a use.
    used: Vec<f32>,
    /// Hazard of all classes by bin.
    pooled: [f32; BINS],
    /// By class and bin.
    buckets: Vec<Bucket>,
}

impl Lives {
    pub(super) fn new() -> Self {
        let mut new = Self {
            open: vec![0; SLOTS * ROWS],
            living: [0; ROWS],
            ended: vec![0.0; ROWS * BINS],
            used: vec![0.0; ROWS * BINS],
            pooled: [0.0; BINS],
            buckets: vec![0; CLASSES * BINS],
        };
        new.pool(0);
        (0..CLASSES as Class).for_each(|class| new.learn(class, 0));
        new
    }

    /// A life begins.
    pub(super) fn begin(&mut self, class: Class, now: Tick) {
        let slot = ages::slot_of(now, now);
        self.count(class, slot, 1);
    }

    /// A life that began at `start` ends: with a use, or nobody will know.
    pub(super) fn end(&mut self, class: Class, start: Tick, now: Tick, used: bool) {
        self.count(class, ages::slot_of(start, now), u32::MAX);
        let bin = ages::bin_of(now.saturating_sub(start));
        for row in [usize::from(class), ALL] {
            self.ended[row * BINS + bin] += 1.0;
            self.used[row * BINS + bin] += f32::from(u8::from(used));
        }
    }

    fn count(&mut self, class: Class, slot: usize, change: u32) {
        for row in [usize::from(class), ALL] {
            let open = &mut self.open[slot * ROWS + row];
            *open = open.wrapping_add(change);
            self.living[row] = self.living[row].wrapping_add(change);
        }
    }

    /// Whether any life of a class goes on.
    pub(super) fn has_open(&self, class: Class) -> bool {
        self.living[usize::from(class)] > 0
    }

    /// Two slots become one.
    pub(super) fn merge(&mut self, from: usize, into: usize) {
        for row in 0..ROWS {
            let moved = std::mem::take(&mut self.open[from * ROWS + row]);
            self.open[into * ROWS + row] += moved;
        }
    }

    /// The bucket of a class's index at an age.
    pub(super) fn bucket(&self, class: Class, bin: usize) -> Bucket {
        self.buckets[usize::from(class) * BINS + bin]
    }

    /// Works out the hazard of all classes anew.
    pub(super) fn pool(&mut self, now: Tick) {
        let reached = self.reached(ALL, now);
        let used = &self.used[ALL * BINS..];
        for (bin, pooled) in self.pooled.iter_mut().enumerate() {
            *pooled = (used[bin] + 0.01) / (reached[bin] + 1.0);
        }
    }

    /// Works out a class's indexes anew.
    pub(super) fn learn(&mut self, class: Class, now: Tick) {
        let reached = self.reached(usize::from(class), now);
        let row = usize::from(class) * BINS..(usize::from(class) + 1) * BINS;
        let used = &self.used[row.clone()];
        let mut hazard = [0.0; BINS];
        for (bin, hazard) in hazard.iter_mut().enumerate() {
            let uses = used[bin] + PRIOR_LIVES * self.pooled[bin];
            *hazard = (uses / (reached[bin] + PRIOR_LIVES)).min(1.0);
        }
        indexes(&hazard, &mut self.buckets[row]);
    }

    /// How many lives reached each bin.
    fn reached(&self, row: usize, now: Tick) -> [f32; BINS] {
        let mut reached = [0.0; BINS];
        reached.copy_from_slice(&self.ended[row * BINS..][..BINS]);
        for slot in 0..SLOTS {
            reached[ages::bin_of_slot(slot, now)] += self.open[slot * ROWS + row] as f32;
        }
        let mut sum = 0.0;
        for bin in reached.iter_mut().rev() {
            sum += *bin;
            *bin = sum;
        }
        reached
    }

    #[cfg(test)]
    pub(super) fn open_count(&self) -> usize {
        let all = |row: usize| {
            let slots = self.open.chunks(ROWS);
            slots.map(|slot| slot[row] as usize).sum::<usize>()
        };
        assert_eq!((0..CLASSES).map(all).sum::<usize>(), all(ALL));
        assert!((0..ROWS).all(|row| self.living[row] as usize == all(row)));
        all(ALL)
    }

    pub(super) fn bytes(&self) -> usize {
        4 * (self.open.len() + self.ended.len() + self.used.len())
            + 2 * self.buckets.len()
            + 4 * BINS
    }
}

/// A point of the curve that a life follows: uses expected so far against time kept so far.
#[derive(Debug, Clone, Copy, Default)]
struct Point {
    kept: f64,
    used: f64,
}

impl Point {
    fn slope(self, later: Self) -> f64 {
        (later.used - self.used) / (later.kept - self.kept)
    }
}

/// The index of every bin: the steepest line from there to a later point of the curve, which is the
/// first edge of the later points' upper hull.
fn indexes(hazard: &[f32; BINS], buckets: &mut [Bucket]) {
    let mut curve = [Point::default(); BINS + 1];
    let mut alive = 1.0;
    for bin in 0..BINS {
        let hazard = f64::from(hazard[bin]).min(0.9999);
        let kept = curve[bin].kept + ages::width_of(bin) * alive * (1.0 - hazard / 2.0);
        curve[bin + 1] = Point {
            kept,
            used: curve[bin].used + alive * hazard,
        };
        alive = (alive * (1.0 - hazard)).max(f64::MIN_POSITIVE);
    }
    let mut hull = [Point::default(); BINS + 1];
    hull[0] = curve[BINS];
    let mut top = 0;
    for bin in (0..BINS).rev() {
        let from = curve[bin];
        while top > 0 && from.slope(hull[top]) <= hull[top].slope(hull[top - 1]) {
            top -= 1;
        }
        buckets[bin] = bucket_of(from.slope(hull[top]) as f32);
        top += 1;
        hull[top] = from;
    }
}
