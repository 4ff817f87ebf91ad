// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Time in references, and ages in steps of a quarter of an octave.
//!
//! A *tick* is sixteen block references. Lives are kept together by when they began, in *slots*: of
//! one tick each for the last eight, then four for every octave of age. Which slot a life is in
//! follows from its first tick and the time alone, so nothing is written to a life as it ages; as
//! time passes two slots become one of the next level.
//!
//! Invariant: at any time every life is in exactly one slot; a slot's bin is that of the oldest life it
//! can have.

/// References a tick, as a power of two.
const TICK_BITS: u32 = 4;
/// Levels of slots. The last one keeps everything older: 2^26 references.
const LEVELS: u32 = 20;
/// Slots a level. Four are in use above the first, eight while two of them wait to be merged.
const RING: u32 = 8;
/// Pairs of slots that a level keeps.
const PAIRS: u32 = 4;
const LAST: u32 = LEVELS - 1;

/// How many slots there are.
pub(super) const SLOTS: usize = (LEVELS * RING) as usize;
/// How many bins of age there are.
pub(super) const BINS: usize = (RING + LAST * PAIRS) as usize;

/// Time in ticks.
pub(super) type Tick = u32;

/// The tick that a reference falls into.
pub(super) fn tick_of(references: u64) -> Tick {
    (references >> TICK_BITS) as Tick
}

/// References in that many ticks.
pub(super) fn references(ticks: Tick) -> f32 {
    ticks as f32 * f32::from(1u16 << TICK_BITS)
}

/// How old a life is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Age {
    pub(super) slot: usize,
    pub(super) bin: usize,
}

impl Age {
    /// That of a life that began at `start`.
    pub(super) fn of(start: Tick, now: Tick) -> Self {
        Self {
            slot: slot_of(start, now),
            bin: bin_of(now.saturating_sub(start)),
        }
    }
}

/// The slot of a life that began at `start`.
pub(super) fn slot_of(start: Tick, now: Tick) -> usize {
    let age = now.saturating_sub(start);
    let mut level = (age | 1).ilog2().saturating_sub(3).min(LAST);
    while level < LAST && (now >> (level + 1)) - (start >> (level + 1)) >= PAIRS {
        level += 1;
    }
    let oldest = match level {
        LAST => (now >> LAST).saturating_sub(RING - 1),
        _ => 0,
    };
    slot(level, (start >> level).max(oldest))
}

/// The bin of an age in ticks.
pub(super) fn bin_of(age: Tick) -> usize {
    if age < RING {
        return age as usize;
    }
    let level = (age.ilog2() - 2).min(LAST);
    ((age >> level).min(RING - 1) + PAIRS * level) as usize
}

/// The bin that a slot's lives are in.
pub(super) fn bin_of_slot(slot: usize, now: Tick) -> usize {
    let (level, index) = (slot as u32 / RING, slot as u32 % RING);
    let distance = (now >> level).wrapping_sub(index) % RING;
    (distance + PAIRS * level) as usize
}

/// How long a life stays in a bin, in ticks.
pub(super) fn width_of(bin: usize) -> f64 {
    let level = (bin as u32 / PAIRS).saturating_sub(1).min(LAST);
    f64::from(1 << level)
}

/// The slots that become one as `now` begins: from, into.
pub(super) fn merges(now: Tick) -> impl Iterator<Item = (usize, usize)> {
    let pairs = (0..LAST).take_while(move |level| is_aligned(now, level + 1));
    let pairs = pairs.filter_map(move |level| {
        let into = (now >> (level + 1)).checked_sub(PAIRS)?;
        Some([2 * into, 2 * into + 1].map(|from| (slot(level, from), slot(level + 1, into))))
    });
    let over = (now >> LAST).checked_sub(RING);
    let over = over.filter(|_| is_aligned(now, LAST));
    pairs
        .flatten()
        .chain(over.map(|oldest| (slot(LAST, oldest), slot(LAST, oldest + 1))))
}

/// The slots whose bin changes as `now` begins.
pub(super) fn aged(now: Tick) -> std::ops::Range<usize> {
    let levels = (0..LEVELS).take_while(|level| is_aligned(now, *level));
    0..levels.count() * RING as usize
}

fn slot(level: u32, index: u32) -> usize {
    (level * RING + index % RING) as usize
}

fn is_aligned(now: Tick, bits: u32) -> bool {
    now & ((1 << bits) - 1) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_moves_exactly_as_its_slot_is_merged() {
        let ends = (1 << 14..(1 << 14) + 40).chain((1 << 23)..(1 << 23) + 40);
        let starts: Vec<Tick> = (0..60)
            .chain(16_000..16_384)
            .chain(8_388_000..8_388_640)
            .collect();
        let mut at: Vec<Option<usize>> = vec![None; starts.len()];
        let mut before = 0;
        for now in (1..700).chain(ends) {
            for (start, at) in starts.iter().zip(&mut at) {
                if *start > now {
                    continue;
                }
                let slot = slot_of(*start, now);
                if let Some(old) = at.filter(|_| now == before + 1) {
                    let moved = merges(now)
                        .fold(old, |at, (from, into)| if at == from { into } else { at });
                    assert_eq!(moved, slot, "life of {start} at {now}");
                }
                *at = Some(slot);
            }
            before = now;
        }
    }

    #[test]
    fn a_slots_bin_is_that_of_its_oldest_lives() {
        for now in (1..3000).chain(1 << 20..(1 << 20) + 100) {
            for age in (0..now).step_by(1 + now as usize / 300) {
                let slot = slot_of(now - age, now);
                let level = slot as u32 / RING;
                let oldest = (now - age) >> level << level;
                assert_eq!(
                    bin_of_slot(slot, now),
                    bin_of(now - oldest),
                    "{age} at {now}"
                );
                assert!(slot as u32 / RING == level && now - oldest < 2 * age.max(8));
            }
        }
    }

    #[test]
    fn bins_are_as_wide_as_the_ages_in_them() {
        let mut ages = [0u32; 40];
        (0..2048).for_each(|age| ages[bin_of(age)] += 1);
        for (bin, ages) in ages.iter().enumerate() {
            assert_eq!(f64::from(*ages), width_of(bin), "bin {bin}");
        }
        assert_eq!(bin_of(Tick::MAX), BINS - 1);
    }

    #[test]
    fn every_slot_that_changes_its_bin_is_named() {
        for now in 1..2000 {
            for slot in aged(now).end..SLOTS {
                assert_eq!(bin_of_slot(slot, now), bin_of_slot(slot, now - 1));
            }
        }
    }
}
