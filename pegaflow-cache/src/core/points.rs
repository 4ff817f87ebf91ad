// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Lookups of a hybrid model that wait: which block points they can begin from as blocks come.
//!
//! What is waited for is one list over all groups, in the order in which block points need it; behind
//! some of its blocks a point is whole. So a wait over several groups is one like any other, and all
//! that is kept of a point is how many blocks it takes.
//!
//! Invariant: a point is told, and claimed, only when the lease pins all that each group needs for it.

use super::block::State;
use super::error::Error;
use super::hybrid::{HybridReply, HybridRequest};
use super::lease::Kind;
use super::lookup::block_ref;
use super::need::GroupNeed;
use super::{Action, Core, LeaseId, NamespaceIndex, Now, SessionId};
use pegaflow_meta::GroupId;

/// A block of a hybrid lookup: its group, and which of that group's keys it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupBlock {
    /// The group.
    pub group: GroupId,
    /// Which of its keys.
    pub at: u32,
}

/// What a hybrid lookup waits for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Awaited {
    /// Blocks that its points need beyond what the lookup found, and that are ready.
    pub ready: Vec<GroupBlock>,
    /// Those that are not, in the order in which the points need them.
    pub missing: Vec<GroupBlock>,
    /// With so many of the missing ones the prefix has so many tokens. Both ascend.
    pub points: Vec<(u32, u64)>,
}

/// What becomes of a lease while its lookup waits.
#[derive(Debug)]
pub(crate) struct Reach {
    needs: Vec<GroupNeed>,
    /// What each of its blocks is, in the order in which they are added.
    order: Vec<GroupBlock>,
    /// With so many blocks, so many tokens. Both ascend.
    points: Vec<(u32, u64)>,
}

impl Reach {
    /// Tokens of the prefix that a lease with so many blocks has.
    pub(crate) fn tokens(&self, blocks: usize) -> u64 {
        let whole = self
            .points
            .partition_point(|(count, _)| *count as usize <= blocks);
        whole.checked_sub(1).map_or(0, |last| self.points[last].1)
    }
}

impl Core {
    /// What each group of a namespace needs of a prefix.
    ///
    /// # Errors
    /// [`Error::UnknownNamespace`].
    pub fn group_needs(&self, namespace: NamespaceIndex) -> Result<Vec<GroupNeed>, Error> {
        let groups = (0..self.namespaces.groups(namespace)?).map(GroupId);
        let need = |group| {
            let class = self.namespaces.class_of(namespace, group)?;
            Ok(self.namespaces.class(class).need())
        };
        groups.map(need).collect()
    }

    /// Pins blocks beyond those that a hybrid lookup has just found, under the same lease: what
    /// [`await_points`](Self::await_points) will need must not be evicted for what is fetched beside it.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup); [`Error::Bad`] without a ticket and a lease.
    pub fn hold_more(
        &mut self,
        now: Now,
        session: SessionId,
        request: &HybridRequest<'_>,
        more: &[GroupBlock],
        reply: &mut HybridReply,
    ) -> Result<(), Error> {
        let (Some(_), Some(ttl_ms)) = (request.ticket, request.lease_ttl_ms) else {
            return Err(Error::ticket_alone());
        };
        let lease = match reply.lease {
            Some(lease) => lease,
            None => {
                self.check_lease_room(session, true)?;
                let class = self.namespaces.class_of(request.namespace, GroupId(0))?;
                self.grant_read(now, session, class, ttl_ms, &[])
            }
        };
        reply.lease = Some(lease);
        for block in more {
            let key = &request.groups[usize::from(block.group.0)].keys[block.at as usize];
            let class = self.namespaces.class_of(request.namespace, block.group)?;
            let found = self.find_in(class, key);
            debug_assert!(
                found.is_some_and(|idx| self.blocks.get(idx).state == State::Sealed),
                "{block:?} is not ready"
            );
            if let (Some(idx), Some(lease)) = (found, self.leases.get_mut(lease)) {
                self.blocks.get_mut(idx).pins += 1;
                lease.blocks.push(idx);
            }
        }
        Ok(())
    }

    /// Lets go of all but the first `keep` blocks of a lease, and of the lease if that is none.
    pub fn hold_less(&mut self, lease: LeaseId, keep: usize, actions: &mut Vec<Action>) {
        if keep == 0 {
            return self.end_read(lease, actions);
        }
        let mut blocks = self.leases.take_blocks(lease);
        for idx in blocks.drain(keep.min(blocks.len())..) {
            self.unpin(idx, actions);
        }
        self.leases.put_blocks(lease, blocks);
    }

    /// Lets a hybrid lookup that was just made wait for blocks that are on their way. Its lease holds
    /// what it found and `awaited.ready`, in this order.
    ///
    /// # Errors
    /// [`Error::UnknownNamespace`]; [`Error::Bad`] without a ticket and a lease.
    pub fn await_points(
        &mut self,
        request: &HybridRequest<'_>,
        awaited: &Awaited,
        reply: &mut HybridReply,
    ) -> Result<(), Error> {
        let (Some(ticket), Some(lease)) = (request.ticket, reply.lease) else {
            return Err(Error::ticket_alone());
        };
        let class_of = |block: &GroupBlock| {
            let class = self.namespaces.class_of(request.namespace, block.group)?;
            let key = request.groups[usize::from(block.group.0)].keys[block.at as usize];
            Ok((class, key))
        };
        let keys = awaited.missing.iter().map(class_of);
        let keys = keys.collect::<Result<Vec<_>, Error>>()?;
        let reach = Reach::new(self.group_needs(request.namespace)?, reply, awaited);
        reply.pending_tokens = reach.points.last().map_or(reply.tokens, |point| point.1);
        if let Some(lease) = self.leases.get_mut(lease) {
            lease.reach = Some(Box::new(reach));
        }
        if let Some((class, _)) = keys.first() {
            let counters = &mut self.tenant_of(*class).counters;
            counters.pending_blocks += keys.len() as u64;
        }
        self.follow_keys(lease, ticket, keys, awaited.missing.len());
        Ok(())
    }

    /// The longest prefix that a lease of a hybrid lookup which waits, or has waited, can begin from by
    /// now, and its blocks.
    ///
    /// # Errors
    /// [`Error::UnknownSession`]; [`Error::UnknownLease`]; [`Error::Bad`] for a lease of another kind of
    /// lookup.
    pub fn claim_hybrid(
        &self,
        session: SessionId,
        lease: LeaseId,
        reply: &mut HybridReply,
    ) -> Result<(), Error> {
        self.open(session)?;
        let held = self.leases.get(lease);
        let held = held.filter(|held| held.session == session && held.kind == Kind::Read);
        let held = held.ok_or(Error::UnknownLease(lease))?;
        let Some(reach) = &held.reach else {
            let (what, reason) = ("lease", "is not one of a hybrid lookup that waits");
            return Err(Error::Bad { what, reason });
        };
        let tokens = reach.tokens(held.blocks.len());
        let mut all: Vec<_> = reach.order.iter().zip(&held.blocks).collect();
        all.sort_unstable_by_key(|(block, _)| **block);
        reply.lease = Some(lease);
        (reply.tokens, reply.pending_tokens) = (tokens, tokens);
        reply.blocks.clear();
        reply.groups.clear();
        for (group, need) in (0..).map(GroupId).zip(&reach.needs) {
            let (needed, from) = (need.needed(tokens), reply.blocks.len() as u32);
            let own = all
                .iter()
                .filter(|(block, _)| block.group == group && needed.contains(&u64::from(block.at)));
            let refs = own.map(|(block, idx)| block_ref(self.blocks.get(**idx), block.at as usize));
            reply.blocks.extend(refs);
            reply.groups.push(from..reply.blocks.len() as u32);
        }
        Ok(())
    }
}

impl Reach {
    fn new(needs: Vec<GroupNeed>, found: &HybridReply, awaited: &Awaited) -> Self {
        let of_group = |(group, range): (u16, &std::ops::Range<u32>)| {
            let group = GroupId(group);
            let blocks = &found.blocks[range.start as usize..range.end as usize];
            blocks.iter().map(move |block| GroupBlock {
                group,
                at: block.key,
            })
        };
        let mut order: Vec<_> = (0..).zip(&found.groups).flat_map(of_group).collect();
        order.extend_from_slice(&awaited.ready);
        let base = order.len() as u32;
        order.extend_from_slice(&awaited.missing);
        let at_once = std::iter::once((base, found.tokens));
        let later = awaited
            .points
            .iter()
            .map(|(count, tokens)| (base + count, *tokens));
        Self {
            needs,
            points: at_once.chain(later).collect(),
            order,
        }
    }
}
