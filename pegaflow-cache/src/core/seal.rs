// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The end of writing: sealed, given up, or gone with its process.
//!
//! Invariant: the place of a block whose writer may still write is neither visible nor free. A writer
//! is done with a slot when it seals it, says that it is quiet, or its process is gone.

use super::block::{BlockIdx, State};
use super::error::Error;
use super::lease::Kind;
use super::life::seconds;
use super::write::{Progress, WriteIdx};
use super::{Action, Core, LeaseId, Now, SessionId};

/// What sealing came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SealReply {
    /// Blocks that are visible now.
    pub completed: u32,
    /// Blocks that miss slots of others.
    pub partial: u32,
    /// Blocks that were given up meanwhile, because another writer failed or the lease ran out.
    pub dropped: u32,
}

/// How one slot ended.
enum Sealed {
    Complete,
    Partial,
    Dropped,
}

impl Core {
    /// Marks items of a write lease as written. Blocks that are covered become visible. `items`
    /// count the keys of the reservation and must ascend. The lease ends with its last item.
    ///
    /// # Errors
    /// [`Error::UnknownSession`], [`Error::UnknownLease`], [`Error::UnknownItem`], [`Error::Bad`].
    pub fn seal(
        &mut self,
        now: Now,
        session: SessionId,
        lease: LeaseId,
        items: &[u32],
        actions: &mut Vec<Action>,
    ) -> Result<SealReply, Error> {
        self.check_items(session, lease, items)?;
        let mut blocks = self.leases.take_blocks(lease);
        let mut visible = std::mem::take(&mut self.scratch.found);
        visible.clear();
        let mut reply = SealReply::default();
        for (at, item) in (0..).zip(items) {
            let idx = std::mem::replace(&mut blocks[*item as usize], BlockIdx::NONE);
            match self.seal_slot(now, lease, idx, at, actions) {
                Sealed::Complete => {
                    reply.completed += 1;
                    visible.push(idx);
                }
                Sealed::Partial => reply.partial += 1,
                Sealed::Dropped => reply.dropped += 1,
            }
        }
        self.finish_items(now, lease, blocks, items.len() as u32);
        self.publish(now, &mut visible, actions);
        visible.clear();
        self.scratch.found = visible;
        Ok(reply)
    }

    /// Gives up what is left of a write lease. With `quiesced` the session says that nothing of it
    /// touches the places any more, so they are free; without, they stay out of use until it says
    /// so, or is gone.
    ///
    /// # Errors
    /// [`Error::UnknownSession`], [`Error::UnknownLease`].
    pub fn abort(
        &mut self,
        now: Now,
        session: SessionId,
        lease: LeaseId,
        quiesced: bool,
        actions: &mut Vec<Action>,
    ) -> Result<(), Error> {
        self.check_items(session, lease, &[])?;
        if quiesced {
            self.end_write(now, lease, actions);
        } else {
            self.quarantine(now, lease, actions);
        }
        Ok(())
    }

    /// The client's stream is closed: its read leases end, and what it had reserved is out of use
    /// until [`process_gone`](Self::process_gone).
    ///
    /// # Errors
    /// [`Error::UnknownSession`].
    pub fn close_session(
        &mut self,
        now: Now,
        session: SessionId,
        actions: &mut Vec<Action>,
    ) -> Result<(), Error> {
        self.open(session)?;
        for lease in self.leases.of_session(session) {
            match self.leases.get(lease).map(|lease| lease.kind) {
                Some(Kind::Read) => self.end_read(lease, actions),
                Some(Kind::Write) => self.quarantine(now, lease, actions),
                _ => {}
            }
        }
        if let Some(session) = self.sessions.get_mut(&session) {
            session.closed = true;
        }
        Ok(())
    }

    /// The session's process exists no more, so nothing writes to its places: they are free, and
    /// the session is forgotten.
    ///
    /// # Errors
    /// [`Error::UnknownSession`].
    pub fn process_gone(
        &mut self,
        now: Now,
        session: SessionId,
        actions: &mut Vec<Action>,
    ) -> Result<(), Error> {
        let known = *self
            .sessions
            .get(&session)
            .ok_or(Error::UnknownSession(session))?;
        if !known.closed {
            self.close_session(now, session, actions)?;
        }
        for lease in self.leases.of_session(session) {
            self.end_write(now, lease, actions);
        }
        self.sessions.remove(&session);
        Ok(())
    }

    pub(super) fn check_items(
        &self,
        session: SessionId,
        lease: LeaseId,
        items: &[u32],
    ) -> Result<(), Error> {
        self.open(session)?;
        let held = self.leases.get(lease);
        let held = held.filter(|held| held.session == session && held.kind != Kind::Read);
        let held = held.ok_or(Error::UnknownLease(lease))?;
        if !items.is_sorted_by(|a, b| a < b) {
            return Err(Error::Bad {
                what: "items",
                reason: "must ascend",
            });
        }
        let is_open = |item: u32| {
            held.blocks
                .get(item as usize)
                .is_some_and(|idx| !idx.is_none())
        };
        match items.iter().find(|item| !is_open(**item)) {
            Some(item) => Err(Error::UnknownItem { lease, item: *item }),
            None => Ok(()),
        }
    }

    fn seal_slot(
        &mut self,
        now: Now,
        lease: LeaseId,
        idx: BlockIdx,
        item: u32,
        actions: &mut Vec<Action>,
    ) -> Sealed {
        let block = *self.blocks.get(idx);
        let write = self.writes.get_mut(WriteIdx(block.policy[0]));
        write.since = now;
        if let Some(slot) = write.slot_of(lease) {
            slot.progress = Progress::Done;
        }
        if block.state == State::Abandoned {
            self.free_if_quiet(idx, actions);
            return Sealed::Dropped;
        }
        let (complete, quiet) = (write.is_covered(), write.is_quiet());
        let (place, generation) = (block.place, block.generation);
        actions.push(Action::SealRecord {
            place,
            generation,
            item,
            complete,
        });
        if complete {
            return Sealed::Complete;
        }
        if quiet {
            self.note_partial(now, idx);
        }
        Sealed::Partial
    }

    /// Makes covered blocks of one write lease visible: given from the root to the leaf, noted from
    /// the leaf on, so that the leaf is the older.
    fn publish(&mut self, now: Now, visible: &mut [BlockIdx], actions: &mut Vec<Action>) {
        let Some(first) = visible.first() else {
            return;
        };
        let class = self.namespaces.class(self.blocks.get(*first).class);
        let tenant = self.tenants.get_mut(class.tenant);
        tenant.counters.sealed_blocks += visible.len() as u64;
        tenant.counters.sealed_bytes += visible.len() as u64 * class.bytes;
        let mut waiters = Vec::new();
        for idx in &*visible {
            let block = self.blocks.get_mut(*idx);
            let write = WriteIdx(block.policy[0]);
            (block.policy, block.state) = ([0; 3], State::Sealed);
            block.touched_s = seconds(now);
            waiters.append(&mut self.writes.get_mut(write).waiters);
            self.writes.remove(write);
        }
        visible.reverse();
        tenant.policy.insert(&mut self.blocks, visible);
        self.sealed += visible.len() as u64;
        self.wake(&mut waiters, actions);
    }

    /// Books finished items; the lease ends with the last, and lives anew otherwise.
    pub(super) fn finish_items(
        &mut self,
        now: Now,
        lease: LeaseId,
        blocks: Vec<BlockIdx>,
        finished: u32,
    ) {
        let Some(held) = self.leases.get_mut(lease) else {
            return;
        };
        held.open -= finished;
        let (session, kind, bytes) = (
            held.session,
            held.kind,
            held.item_bytes * u64::from(finished),
        );
        let open = held.open;
        self.uncharge(session, bytes);
        if open == 0 {
            self.end_lease(lease, blocks);
            return;
        }
        self.leases.put_blocks(lease, blocks);
        if kind == Kind::Write {
            let deadline = Now(now.0.saturating_add(self.settings.write_lease_ttl_ms));
            self.leases.renew(lease, deadline);
        }
    }

    /// Ends a write lease of a session that is quiet: its unsealed slots are open to others.
    pub(super) fn end_write(&mut self, now: Now, lease: LeaseId, actions: &mut Vec<Action>) {
        let mut blocks = self.leases.take_blocks(lease);
        let open = blocks.iter().filter(|idx| !idx.is_none()).count() as u32;
        // From the leaf on: a prefix block without children is dropped more cheaply.
        for idx in blocks.iter_mut().rev().filter(|idx| !idx.is_none()) {
            self.quiet_slot(now, lease, *idx, actions);
            *idx = BlockIdx::NONE;
        }
        self.finish_items(now, lease, blocks, open);
    }

    pub(super) fn quiet_slot(
        &mut self,
        now: Now,
        lease: LeaseId,
        idx: BlockIdx,
        actions: &mut Vec<Action>,
    ) {
        let block = *self.blocks.get(idx);
        let write = self.writes.get_mut(WriteIdx(block.policy[0]));
        write
            .slots
            .retain(|slot| slot.lease != lease || slot.progress == Progress::Done);
        write.since = now;
        let (empty, quiet) = (write.slots.is_empty(), write.is_quiet());
        if block.state == State::Abandoned {
            self.free_if_quiet(idx, actions);
        } else if empty {
            self.abandon(idx, actions);
            self.free_if_quiet(idx, actions);
        } else if quiet {
            self.note_partial(now, idx);
        }
    }

    /// Gives up the blocks of a write lease whose session may still write: they leave the index,
    /// their places stay out of use.
    pub(super) fn quarantine(&mut self, _now: Now, lease: LeaseId, actions: &mut Vec<Action>) {
        self.leases.stop_clock(lease);
        let blocks = self.leases.take_blocks(lease);
        for idx in blocks.iter().rev().filter(|idx| !idx.is_none()) {
            self.quarantine_slot(lease, *idx, actions);
        }
        self.leases.put_blocks(lease, blocks);
        if let Some(lease) = self.leases.get_mut(lease) {
            lease.kind = Kind::Quarantine;
        }
    }

    /// Takes an unsealed block out of the index. Its place waits for its writers.
    pub(super) fn abandon(&mut self, idx: BlockIdx, actions: &mut Vec<Action>) {
        self.detach(idx);
        let block = *self.blocks.get(idx);
        self.tenant_of(block.class).counters.aborted_blocks += 1;
        let mut waiters =
            std::mem::take(&mut self.writes.get_mut(WriteIdx(block.policy[0])).waiters);
        self.wake(&mut waiters, actions);
    }

    /// Frees an abandoned block that nobody writes any more.
    pub(super) fn free_if_quiet(&mut self, idx: BlockIdx, actions: &mut Vec<Action>) {
        let at = WriteIdx(self.blocks.get(idx).policy[0]);
        if self.writes.get(at).is_quiet() {
            self.writes.remove(at);
            self.give_back(idx, actions);
        }
    }

    fn note_partial(&mut self, now: Now, idx: BlockIdx) {
        let until = Now(now.0.saturating_add(self.settings.partial_block_ttl_ms));
        let generation = self.blocks.get(idx).generation;
        self.partials.push_back((until, idx, generation));
    }
}
