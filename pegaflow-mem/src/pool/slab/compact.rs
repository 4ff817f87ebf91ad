// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Which places to move so that slabs run empty and the free units lie together.
//!
//! Two steps. *Pack*: within a class, empty the sparsest slabs into the free places of the others. *Sink* (see there): where
//! nothing is left to pack but free units are scattered, move whole slabs. A slab whose moves do not fit into one plan is *leaving*: it gets nothing new, and the
//! next plan goes on with it. Packing lowers the number of places that slabs hold; sinking keeps it: so repeated plans end.

use super::{Place, SlabAllocator};

/// Copy the bytes of `from` to `to`, then [free](SlabAllocator::free) `from`; or [abandon](SlabAllocator::abandon_move) the move.
/// `to` is handed out already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Where the bytes are.
    pub from: Place,
    /// Where they should be.
    pub to: Place,
    /// How many bytes a place of this class has.
    pub bytes: u64,
}

/// Densities are compared in this many steps; among equals the higher slab is emptied.
const DENSITY_STEPS: u64 = 8;

impl SlabAllocator {
    /// At most `moves_max` moves that bring free units together. Empty when nothing is worth moving. Until a plan's moves
    /// are done or abandoned, the slabs they leave get no new places. Cost: proportional to the number of slabs.
    pub fn compaction_plan(&mut self, moves_max: usize) -> Vec<Move> {
        let mut plan = Vec::new();
        self.go_on(moves_max, &mut plan);
        for class in 0..self.classes.len() as u32 {
            self.pack(class, moves_max, &mut plan);
        }
        if plan.is_empty() && moves_max > 0 {
            self.sink(moves_max, &mut plan);
        }
        plan
    }

    /// Gives up a planned move: its `to` becomes free, `from` stays as it is. Not needed once `from` was freed.
    ///
    /// # Errors
    /// [`Error::NotAllocated`](crate::Error::NotAllocated) if this move is not planned (any more).
    pub fn abandon_move(&mut self, planned: Move) -> crate::Result<()> {
        if self.moving.get(&planned.from) != Some(&planned.to) {
            return Err(crate::Error::NotAllocated {
                place: planned.to.0,
            });
        }
        self.moving.remove(&planned.from);
        self.arrived(planned.to);
        let (first, _) = self.find(planned.from)?;
        self.spans.at(first).moves -= 1;
        self.stop_leaving(first);
        self.free(planned.to).map(|_| ())
    }

    /// A planned move to `to` is over, one way or the other.
    pub(super) fn arrived(&mut self, to: Place) {
        if let Ok((first, _)) = self.find(to) {
            let span = self.spans.at(first);
            span.arrivals = span.arrivals.saturating_sub(1);
        }
    }

    /// Slabs with the fewest live places first: evicting these frees slabs soonest. Slabs without a live place are left out.
    pub fn sparsest(&self, slabs_max: usize) -> Vec<super::SlabInfo> {
        let mut slabs: Vec<_> = self.slabs().filter(|s| s.live > 0).collect();
        slabs.sort_by_key(|s| {
            (
                s.live as u64 * DENSITY_STEPS / s.places as u64,
                u32::MAX - s.slab,
            )
        });
        slabs.truncate(slabs_max);
        slabs
    }

    fn pack(&mut self, class: u32, moves_max: usize, plan: &mut Vec<Move>) {
        let mut free: u64 = 0;
        let mut slabs: Vec<(u64, u32, u32)> = Vec::new();
        for first in &self.classes[class as usize].open {
            let span = &self.spans[*first];
            if span.is_empty() {
                continue;
            }
            free += span.free as u64;
            if span.arrivals == 0 {
                let live = (span.places - span.free) as u64;
                slabs.push((
                    live * DENSITY_STEPS / span.places as u64,
                    u32::MAX - first,
                    *first,
                ));
            }
        }
        if free == 0 {
            return;
        }
        slabs.sort_unstable();
        // Choose the slabs first: none of them may be another's destination.
        let mut sources = Vec::new();
        for (_, _, first) in slabs {
            let span = &self.spans[first];
            let live = (span.places - span.free) as u64;
            if free < span.free as u64 + live {
                break;
            }
            free -= span.free as u64 + live;
            self.classes[class as usize].open.remove(&first);
            sources.push(first);
        }
        // An empty slab as destination gains nothing: it is as good as unassigned.
        let empties: Vec<u32> = self.classes[class as usize]
            .open
            .iter()
            .copied()
            .filter(|f| self.empty.contains(f))
            .collect();
        for first in &empties {
            self.classes[class as usize].open.remove(first);
        }
        for first in &sources {
            self.plan_from(*first, moves_max, plan);
        }
        self.reopen(class, sources.into_iter().chain(empties));
    }

    /// Slabs that earlier plans began to empty.
    fn go_on(&mut self, moves_max: usize, plan: &mut Vec<Move>) {
        for first in self.leaving.clone() {
            if self.spans[first].moves == 0 {
                self.stop_leaving(first);
                let class = self.spans[first].class;
                self.classes[class as usize].open.remove(&first);
                self.plan_from(first, moves_max, plan);
                self.reopen(class, std::iter::once(first));
            }
        }
    }

    /// The slab is as others again.
    pub(super) fn stop_leaving(&mut self, first: u32) {
        self.leaving.remove(&first);
        self.spans.at(first).leaving = false;
        let class = self.spans[first].class;
        self.reopen(class, std::iter::once(first));
    }

    /// Plans moves out of one slab into open slabs of its class, lowest first. The caller closed the slab itself.
    pub(super) fn plan_from(&mut self, first: u32, moves_max: usize, plan: &mut Vec<Move>) {
        let places: Vec<Place> = self.places(first).collect();
        let class = self.spans[first].class;
        let bytes = self.classes[class as usize].bytes;
        for from in places {
            let Some(target) = self.classes[class as usize].open.first().copied() else {
                return;
            };
            if plan.len() >= moves_max {
                if self.spans[first].moves > 0 {
                    self.spans.at(first).leaving = true;
                    self.leaving.insert(first);
                }
                return;
            }
            let to = self.take_from(target);
            self.moving.insert(from, to);
            self.spans.at(target).arrivals += 1;
            self.spans.at(first).moves += 1;
            plan.push(Move { from, to, bytes });
        }
    }

    pub(super) fn reopen(&mut self, class: u32, slabs: impl Iterator<Item = u32>) {
        for first in slabs {
            let span = &self.spans[first];
            if span.moves == 0 && span.free > 0 && !span.leaving {
                self.classes[class as usize].open.insert(first);
            }
        }
    }
}
