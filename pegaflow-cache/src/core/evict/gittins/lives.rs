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

use super::ages::{self, Age, BINS, SLOTS, Tick};
use super::bags::{Bucket, bucket_of};
use super::class::{CLASSES, Class};

/// Lives of all classes that weigh as much as those of one class.
const PRIOR_LIVES: f32 = 8.0;

/// Counts of lives.
#[derive(Debug)]
pub(super) struct Lives {
    /// Lives that go on, by slot and class.
    open: Vec<u32>,
    /// Lives that go on, by class.
    living: [u32; CLASSES],
    /// Lives that ended at an age, by class and bin.
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
            open: vec![0; SLOTS * CLASSES],
            living: [0; CLASSES],
            ended: vec![0.0; CLASSES * BINS],
            used: vec![0.0; CLASSES * BINS],
            pooled: [0.0; BINS],
            buckets: vec![0; CLASSES * BINS],
        };
        new.pool(0);
        (0..CLASSES as Class).for_each(|class| new.learn(class, 0));
        new
    }

    /// A life begins.
    pub(super) fn begin(&mut self, class: Class, now: Tick) {
        self.count(class, ages::slot_of(now, now), 1);
    }

    /// A life of an age ends: with a use, or nobody will know.
    pub(super) fn end(&mut self, class: Class, age: Age, used: bool) {
        self.count(class, age.slot, u32::MAX);
        let at = usize::from(class) * BINS + age.bin;
        self.ended[at] += 1.0;
        self.used[at] += f32::from(u8::from(used));
    }

    fn count(&mut self, class: Class, slot: usize, change: u32) {
        let class = usize::from(class);
        let open = &mut self.open[slot * CLASSES + class];
        *open = open.wrapping_add(change);
        self.living[class] = self.living[class].wrapping_add(change);
    }

    /// Whether any life of a class goes on.
    pub(super) fn has_open(&self, class: Class) -> bool {
        self.living[usize::from(class)] > 0
    }

    /// Two slots become one.
    pub(super) fn merge(&mut self, from: usize, into: usize) {
        for class in 0..CLASSES {
            let moved = std::mem::take(&mut self.open[from * CLASSES + class]);
            self.open[into * CLASSES + class] += moved;
        }
    }

    /// The bucket of a class's index at an age.
    pub(super) fn bucket(&self, class: Class, bin: usize) -> Bucket {
        self.buckets[usize::from(class) * BINS + bin]
    }

    /// Works out the hazard of all classes anew.
    pub(super) fn pool(&mut self, now: Tick) {
        let (mut reached, mut used) = ([0.0; BINS], [0.0; BINS]);
        let rows = self
            .ended
            .chunks_exact(BINS)
            .zip(self.used.chunks_exact(BINS));
        for (ended_of_class, used_of_class) in rows {
            for bin in 0..BINS {
                reached[bin] += ended_of_class[bin];
                used[bin] += used_of_class[bin];
            }
        }
        for (slot, open) in self.open.chunks_exact(CLASSES).enumerate() {
            reached[ages::bin_of_slot(slot, now)] += open.iter().sum::<u32>() as f32;
        }
        sum_from_the_end(&mut reached);
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

    /// How many lives of a class reached each bin.
    fn reached(&self, class: usize, now: Tick) -> [f32; BINS] {
        let mut reached = [0.0; BINS];
        reached.copy_from_slice(&self.ended[class * BINS..][..BINS]);
        for slot in 0..SLOTS {
            reached[ages::bin_of_slot(slot, now)] += self.open[slot * CLASSES + class] as f32;
        }
        sum_from_the_end(&mut reached);
        reached
    }

    #[cfg(test)]
    pub(super) fn open_count(&self) -> usize {
        let all = |class: usize| {
            let slots = self.open.chunks(CLASSES);
            slots.map(|slot| slot[class] as usize).sum::<usize>()
        };
        assert!((0..CLASSES).all(|class| self.living[class] as usize == all(class)));
        (0..CLASSES).map(all).sum()
    }

    pub(super) fn bytes(&self) -> usize {
        4 * (self.open.len() + self.ended.len() + self.used.len())
            + 2 * self.buckets.len()
            + 4 * BINS
    }
}

/// From lives that ended in each bin to lives that reached it.
fn sum_from_the_end(bins: &mut [f32; BINS]) {
    let mut sum = 0.0;
    for bin in bins.iter_mut().rev() {
        sum += *bin;
        *bin = sum;
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
    // Points of the hull, each with the slope of the edge that begins there.
    let mut hull = [(Point::default(), 0.0); BINS + 1];
    hull[0].0 = curve[BINS];
    let mut top = 0;
    for bin in (0..BINS).rev() {
        let from = curve[bin];
        let mut slope = from.slope(hull[top].0);
        while top > 0 && slope <= hull[top].1 {
            top -= 1;
            slope = from.slope(hull[top].0);
        }
        buckets[bin] = bucket_of(slope as f32);
        top += 1;
        hull[top] = (from, slope);
    }
}
