// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The pool's units: which are free, and which slab owns the others.

use super::bits::Bits;

const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Units {
    free: Bits,
    free_count: u32,
    /// First unit of the slab a unit belongs to, or `NONE`.
    owner: Vec<u32>,
    /// No free run is longer than this. Makes a full pool refuse at once.
    longest: u32,
}

impl Units {
    pub(super) fn new(len: u32) -> Self {
        Self {
            free: Bits::full(len),
            free_count: len,
            owner: vec![NONE; len as usize],
            longest: len,
        }
    }

    pub(super) fn len(&self) -> u32 {
        self.owner.len() as u32
    }

    pub(super) fn free(&self) -> u32 {
        self.free_count
    }

    pub(super) fn owner(&self, unit: u32) -> Option<u32> {
        self.owner
            .get(unit as usize)
            .copied()
            .filter(|o| *o != NONE)
    }

    pub(super) fn is_free(&self, first: u32, units: u32) -> bool {
        self.free.next_gap(first, self.len()) - first >= units
    }

    pub(super) fn take(&mut self, first: u32, units: u32) {
        for unit in first..first + units {
            let was_free = self.free.remove(unit);
            debug_assert!(was_free, "unit {unit} has two owners");
            self.owner[unit as usize] = first;
        }
        self.free_count -= units;
    }

    pub(super) fn give(&mut self, first: u32, units: u32) {
        for unit in first..first + units {
            self.free.insert(unit);
            self.owner[unit as usize] = NONE;
        }
        self.free_count += units;
        self.longest = self.len();
    }

    /// Free runs from the lowest up: `(first, units)`.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let first = self.free.next(from)?;
            from = self.free.next_gap(first, self.len());
            Some((first, from - first))
        })
    }

    /// The lowest run of at least `units`.
    pub(super) fn first_fit(&mut self, units: u32) -> Option<u32> {
        self.first_fit_or_longest(units)
            .filter(|(_, n)| *n >= units)
            .map(|(first, _)| first)
    }

    /// The lowest run of at least `units`, cut to it; or else the longest there is.
    pub(super) fn first_fit_or_longest(&mut self, units: u32) -> Option<(u32, u32)> {
        let mut best: Option<(u32, u32)> = None;
        if self.longest == 0 || self.free_count == 0 {
            return None;
        }
        for (first, n) in self.runs() {
            if n >= units {
                return Some((first, units));
            }
            if best.is_none_or(|(_, most)| n > most) {
                best = Some((first, n));
            }
        }
        self.longest = best.map_or(0, |(_, n)| n);
        best
    }

    pub(super) fn metadata_bytes(&self) -> usize {
        self.owner.capacity() * 4 + self.free.metadata_bytes()
    }
}
