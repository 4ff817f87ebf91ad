// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Bringing free units together by moving whole slabs.
//!
//! *Sink*: the highest slab whose live places fit into holes below it moves there. *Lift*: where no slab fits and holes still scatter more than a
//! small part of the pool, the slab above the lowest hole moves into the longest free run, so that its room joins the hole and others sink into it. The lowest hole only
//! ever moves up, so this ends.

use super::SlabAllocator;
use super::compact::Move;

/// Holes may scatter this part of the pool (1/64) before slabs are lifted.
const SCATTERED_SHARE: u32 = 64;

impl SlabAllocator {
    pub(super) fn sink(&mut self, moves_max: usize, plan: &mut Vec<Move>) {
        if !self.moving.is_empty() {
            // What the moves under way will leave behind is not known yet.
            return;
        }
        self.release_empty();
        let tops: Vec<u32> = self.spans.firsts().rev().collect();
        for top in tops {
            if self.units.runs().next().is_none_or(|(hole, _)| hole > top) {
                break;
            }
            if self.sink_one(top, moves_max, plan) {
                return;
            }
        }
        self.lift(moves_max, plan);
    }

    /// Moves slab `top` into holes below it, if all its live places fit there; says whether it planned anything.
    fn sink_one(&mut self, top: u32, moves_max: usize, plan: &mut Vec<Move>) -> bool {
        let (class, live, places) = self.load_of(top);
        let below: Vec<u32> = self.classes[class as usize]
            .open
            .range(..top)
            .copied()
            .collect();
        let mut room: u64 = below.iter().map(|f| self.spans[*f].free as u64).sum();
        let mut new = Vec::new();
        let mut added = 0;
        for (first, hole) in self.units.runs().take_while(|(first, _)| *first < top) {
            if room >= live {
                break;
            }
            let (units, fit) = self.cut(class, live - room, places - added, hole);
            if fit > 0 {
                new.push((first, units));
                (room, added) = (room + fit, added + fit);
            }
        }
        if room < live {
            return false;
        }
        for (first, units) in new {
            self.add_span(class, first, units);
        }
        self.move_out(top, |first| first < top, moves_max, plan)
    }

    /// Moves the slab above the lowest hole into the longest free run.
    fn lift(&mut self, moves_max: usize, plan: &mut Vec<Move>) {
        let runs: Vec<(u32, u32)> = self.units.runs().collect();
        let Some((far, longest)) = runs.iter().copied().max_by_key(|(first, n)| (*n, *first))
        else {
            return;
        };
        let scattered = self.units.free() - longest;
        if scattered <= self.units.len() / SCATTERED_SHARE {
            return;
        }
        for (hole, units) in runs {
            let above = hole + units;
            if hole >= far || self.spans.get(above).is_none() {
                continue;
            }
            let (class, live, places) = self.load_of(above);
            let (units, fit) = self.cut(class, live, places, longest);
            if fit >= live {
                self.add_span(class, far, units);
                self.move_out(above, |first| first == far, moves_max, plan);
                return;
            }
        }
    }

    /// Class, live places and places of a slab.
    fn load_of(&self, first: u32) -> (u32, u64, u64) {
        let span = &self.spans[first];
        (
            span.class,
            (span.places - span.free) as u64,
            span.places as u64,
        )
    }

    /// Units to take of a hole for `want` places, and how many places they really hold; at most `most`.
    fn cut(&self, class: u32, want: u64, most: u64, hole: u32) -> (u32, u64) {
        let bytes = self.classes[class as usize].bytes;
        let fit = |units: u64| (units << self.unit_shift) / bytes;
        let mut units = (want * bytes).div_ceil(self.unit_bytes()).min(hole as u64);
        while units > 0 && fit(units) > most {
            units -= 1;
        }
        // Places may end before the units do.
        let fit = fit(units);
        ((fit * bytes).div_ceil(self.unit_bytes()) as u32, fit)
    }

    /// Plans moves out of a slab into those open slabs of its class that `into` names.
    fn move_out(
        &mut self,
        first: u32,
        into: impl Fn(u32) -> bool,
        moves_max: usize,
        plan: &mut Vec<Move>,
    ) -> bool {
        let class = self.spans[first].class;
        let open = &mut self.classes[class as usize].open;
        let others: Vec<u32> = open
            .iter()
            .copied()
            .filter(|f| *f == first || !into(*f))
            .collect();
        for other in &others {
            open.remove(other);
        }
        let before = plan.len();
        self.plan_from(first, moves_max, plan);
        self.reopen(class, others.into_iter());
        plan.len() > before
    }
}
