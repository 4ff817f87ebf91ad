// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Blocks that come from another tier: places for them, and lookups that wait for them.
//!
//! To the core a fetch is a writer like any other: it reserves whole blocks, and seals them or gives
//! them up one by one. So everybody who looks such a block up waits for the same write.
//!
//! Invariant: as for reservations; and a key is followed only if it is in the index, or promised.

use super::block::State;
use super::error::Error;
use super::lookup::BATCH;
use super::reserve::{ReserveReply, ReserveRequest};
use super::write::{Progress, WriteIdx};
use super::{
    Action, BlockIdx, Core, LeaseId, LookupReply, LookupRequest, NamespaceIndex, Now, SessionId,
};
use pegaflow_mem::Slot;
use pegaflow_meta::{BlockKey, GroupId};

/// Where a block is, as far as the core knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// In a pool, and visible.
    Ready,
    /// On its way into a pool.
    Writing,
    /// Not here.
    Absent,
}

/// Blocks to make room for, because they come from another tier.
#[derive(Debug, Clone, Copy)]
pub struct FetchRequest<'a> {
    /// Namespace of the keys.
    pub namespace: NamespaceIndex,
    /// Cache group of the keys.
    pub group: GroupId,
    /// The block before `keys[0]` in its prefix; none if that is the first.
    pub parent: Option<BlockKey>,
    /// Blocks in the order of the prefix.
    pub keys: &'a [BlockKey],
}

impl Core {
    /// Where each of these blocks is. Counts as no use.
    ///
    /// # Errors
    /// [`Error::UnknownNamespace`], [`Error::UnknownGroup`].
    pub fn presence(
        &self,
        namespace: NamespaceIndex,
        group: GroupId,
        keys: &[BlockKey],
        out: &mut Vec<Presence>,
    ) -> Result<(), Error> {
        let class = self.namespaces.class_of(namespace, group)?;
        let mut batch = [BlockIdx::NONE; BATCH];
        for keys in keys.chunks(BATCH) {
            self.probe(class, keys, &mut batch);
            let found = batch[..keys.len()].iter();
            out.extend(found.map(|idx| match *idx {
                BlockIdx::NONE => Presence::Absent,
                idx if self.blocks.get(idx).state == State::Sealed => Presence::Ready,
                _ => Presence::Writing,
            }));
        }
        Ok(())
    }

    /// Reserves whole blocks for a fetch; `session` is the one that fetches. As
    /// [`reserve`](Self::reserve), but counted as no client's.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve).
    pub fn reserve_fetch(
        &mut self,
        now: Now,
        session: SessionId,
        request: &FetchRequest<'_>,
        reply: &mut ReserveReply,
        actions: &mut Vec<Action>,
    ) -> Result<(), Error> {
        let class = self.namespaces.class_of(request.namespace, request.group)?;
        let slot = Slot::whole(&self.namespaces.class(class).shape.shape);
        let request = ReserveRequest {
            namespace: request.namespace,
            group: request.group,
            slot: &slot,
            parent: request.parent,
            keys: request.keys,
        };
        self.reserve_places(now, session, &request, reply, actions)?;
        Ok(())
    }

    /// Lets a lookup that was just made wait for `begun` keys behind those it found ready or pending,
    /// which are on their way now, and `promised` behind these: [`promised`](Self::promised) says when
    /// they are. Gives it a lease if it has none.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup); [`Error::Bad`] without a ticket and a lease.
    pub fn follow_on(
        &mut self,
        now: Now,
        session: SessionId,
        request: &LookupRequest<'_>,
        begun: u32,
        promised: u32,
        reply: &mut LookupReply,
    ) -> Result<(), Error> {
        let (Some(ticket), Some(ttl_ms)) = (request.ticket, request.lease_ttl_ms) else {
            return Err(Error::ticket_alone());
        };
        let class = self.namespaces.class_of(request.namespace, request.group)?;
        let known = reply.blocks.len() + reply.pending as usize;
        if begun == 0 {
            return Ok(());
        }
        let more = begun + promised;
        let keys = &request.keys[known..][..more as usize];
        let lease = match reply.lease {
            Some(lease) => lease,
            None => {
                self.check_lease_room(session, true)?;
                self.grant_read(now, session, class, ttl_ms, &[])
            }
        };
        reply.lease = Some(lease);
        reply.pending += more;
        self.tenant_of(class).counters.pending_blocks += u64::from(more);
        self.follow_more(class, lease, ticket, keys, begun as usize);
        Ok(())
    }

    /// Gives items of a write lease up; with `quiesced` nothing touches their places any more, and
    /// they are free. Without, they stay out of use until they are given up again with it.
    ///
    /// # Errors
    /// As [`seal`](Self::seal).
    pub fn drop_items(
        &mut self,
        now: Now,
        session: SessionId,
        lease: LeaseId,
        items: &[u32],
        quiesced: bool,
        actions: &mut Vec<Action>,
    ) -> Result<(), Error> {
        self.check_items(session, lease, items)?;
        let mut blocks = self.leases.take_blocks(lease);
        // From the leaf on: a prefix block without children is dropped more cheaply.
        for item in items.iter().rev() {
            let idx = blocks[*item as usize];
            if quiesced {
                blocks[*item as usize] = BlockIdx::NONE;
                self.quiet_slot(now, lease, idx, actions);
            } else {
                self.quarantine_slot(lease, idx, actions);
            }
        }
        if quiesced {
            self.finish_items(now, lease, blocks, items.len() as u32);
        } else {
            self.leases.put_blocks(lease, blocks);
        }
        Ok(())
    }

    /// Gives a slot up whose writer may still write.
    pub(super) fn quarantine_slot(
        &mut self,
        lease: LeaseId,
        idx: BlockIdx,
        actions: &mut Vec<Action>,
    ) {
        let block = *self.blocks.get(idx);
        let write = self.writes.get_mut(WriteIdx(block.policy[0]));
        if let Some(slot) = write.slot_of(lease) {
            slot.progress = Progress::Quarantined;
        }
        if block.state == State::Writing {
            self.abandon(idx, actions);
        }
    }
}
