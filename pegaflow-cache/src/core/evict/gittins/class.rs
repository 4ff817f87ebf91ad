// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What is known of a block besides its age: how often it was used, and by what kind of request.
//!
//! One byte: three bits for the uses so far, two for how much of the request was new, two for how
//! far from the request's end the block is.

/// How many classes there are.
pub(super) const CLASSES: usize = USES * FRESH * ENDS;
const USES: usize = 8;
const FRESH: usize = 4;
const ENDS: usize = 3;

/// Uses that each step but the last stands for: 0, 1, 2, 3, 4-5, 6-10, 11-24.
const USES_OF_STEP: [u32; USES - 1] = [1, 1, 1, 1, 2, 5, 14];

/// Pauses between two uses, in references for each block of the cache: shorter ones count, longer
/// ones forget.
const PAUSE_COUNTS: f32 = 4.0;
const PAUSE_FORGETS: f32 = 8.0;

/// A class of lives.
pub(super) type Class = u8;

/// What a request says of its blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    fresh: usize,
    blocks: usize,
}

impl Shape {
    /// A request of `blocks` blocks, of which so many were unknown.
    pub(super) fn new(blocks: usize, unknown: usize) -> Self {
        let fresh = match unknown {
            0..=2 => 0,
            3..=6 => 1,
            7..=16 => 2,
            _ => 3,
        };
        Self { fresh, blocks }
    }

    /// The class of the request's block at a position, which had `step` of uses.
    pub(super) fn class(self, at: usize, step: usize) -> Class {
        let end = (self.blocks - 1 - at).min(ENDS - 1);
        ((step * FRESH + self.fresh) * ENDS + end) as Class
    }
}

/// The step of uses after one more, from a class.
///
/// A step that stands for many uses is left by chance (`dice`), once in as many: so three bits count
/// to 25. `pause` is the time since the use before, in references for each block of the cache: what
/// was not used for four times as long as blocks are kept counts no further, and half of the steps
/// are forgotten after eight times, so that what was popular once does not look popular for ever.
pub(super) fn used_again(class: Class, pause: f32, dice: u32) -> usize {
    let step = usize::from(class) / (FRESH * ENDS);
    let counts = USES_OF_STEP
        .get(step)
        .is_some_and(|uses| dice.is_multiple_of(*uses));
    match pause {
        _ if step == 0 => 1,
        pause if pause < PAUSE_COUNTS => step + usize::from(counts),
        pause if pause < PAUSE_FORGETS => step,
        _ => (step / 2).max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_its_number() {
        let mut seen = vec![];
        for unknown in [0, 3, 7, 17] {
            for step in 0..USES {
                seen.extend((0..ENDS).map(|at| Shape::new(3, unknown).class(at, step)));
            }
        }
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..CLASSES as u8));
    }

    #[test]
    fn uses_are_counted_to_25_on_average() {
        let mut dice = 1u32;
        let mut roll = || {
            dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            dice >> 8
        };
        let uses = (0..1000).map(|_| {
            let (mut class, mut uses) = (0, 0);
            while usize::from(class) / (FRESH * ENDS) < USES - 1 {
                class = Shape::new(9, 0).class(0, used_again(class, 0.0, roll()));
                uses += 1;
            }
            uses
        });
        let mean = uses.sum::<u32>() / 1000;
        assert!((24..=26).contains(&mean), "{mean}");
    }

    #[test]
    fn long_pauses_forget_uses() {
        let step = |step, pause| used_again(Shape::new(9, 0).class(0, step), pause, 0);
        assert_eq!([step(6, 3.9), step(7, 0.0)], [7, 7]);
        assert_eq!([step(6, 4.0), step(6, 7.9)], [6, 6]);
        assert_eq!([step(6, 8.0), step(1, 8.0), step(0, 8.0)], [3, 1, 1]);
    }
}
