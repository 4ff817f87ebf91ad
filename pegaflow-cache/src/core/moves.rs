// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Compaction: sealed blocks that nobody holds move together, so that slabs run empty.
//!
//! Invariant: a block under way is pinned by its move, and stays readable where it was; only one that
//! nobody else holds at the end changes its place.

use super::block::{BlockIdx, State};
use super::{Action, Core, Error, Place};

/// A move in flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moving {
    to: Place,
    pub(super) idx: BlockIdx,
}

impl Core {
    /// Starts at most `moves_max` moves (and never more than the setting of that name allows in
    /// flight) that bring free room together; returns how many.
    pub fn compact(&mut self, moves_max: u32, actions: &mut Vec<Action>) -> u32 {
        let room = (self.settings.moves_max as usize).saturating_sub(self.moves.len());
        let plan = self
            .places
            .plan_moves(room.min(moves_max as usize), actions);
        let started = plan
            .into_iter()
            .filter(|(from, to)| self.start_move(*from, *to, actions));
        started.count() as u32
    }

    fn start_move(&mut self, from: Place, to: Place, actions: &mut Vec<Action>) -> bool {
        let idx = self.places.owner(from);
        let block = idx.map(|idx| *self.blocks.get(idx));
        let (Some(idx), Some(block)) = (idx, block) else {
            self.places.abandon_move(from, to, 0);
            return false;
        };
        let class = self.namespaces.class(block.class);
        if block.state != State::Sealed || block.pins > 0 {
            self.places.abandon_move(from, to, class.place_bytes);
            return false;
        }
        self.blocks.get_mut(idx).pins += 1;
        self.moves.insert(from, Moving { to, idx });
        let (bytes, key, generation) = (class.bytes, block.key, block.generation);
        actions.push(Action::MoveBlock {
            from,
            to,
            bytes,
            key,
            generation,
        });
        true
    }

    /// A move is over: with `copied` the block's bytes and record are at the destination. Whoever
    /// reads the block meanwhile keeps it where it was.
    ///
    /// # Errors
    /// [`Error::UnknownPlace`] if no move from there is in flight.
    pub fn move_done(
        &mut self,
        from: Place,
        copied: bool,
        actions: &mut Vec<Action>,
    ) -> Result<(), Error> {
        let Moving { to, idx } = self
            .moves
            .remove(&from)
            .ok_or(Error::UnknownPlace { place: from })?;
        let block = *self.blocks.get(idx);
        let generation = block.generation;
        if copied && block.state == State::Sealed && block.pins == 1 {
            actions.push(Action::EraseRecord {
                place: from,
                generation,
            });
            self.places.free(from);
            self.places.set_owner(to, idx);
            self.blocks.get_mut(idx).place = to;
            self.tenant_of(block.class).counters.moved_blocks += 1;
        } else {
            let bytes = self.namespaces.class(block.class).place_bytes;
            actions.push(Action::EraseRecord {
                place: to,
                generation,
            });
            self.places.abandon_move(from, to, bytes);
        }
        self.unpin(idx, actions);
        Ok(())
    }
}
