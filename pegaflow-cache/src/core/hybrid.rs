// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Lookups over all cache groups of a hybrid model: the longest prefix of which every group has what
//! it needs, or nothing.
//!
//! The answer is the largest number of tokens that is enough for all of them at once. Blocks that are
//! on their way may take it further: `points` waits for them.
//!
//! Invariant: a block point is answered with all its groups, or not answered: the loss of one block
//! takes the point from all groups at the same moment.

use super::block::{BlockIdx, State};
use super::error::{Error, within};
use super::lookup::{BATCH, block_ref};
use super::need::{GroupNeed, points};
use super::{BlockRef, Core, LeaseId, NamespaceIndex, Now, SessionId, TicketId};
use pegaflow_meta::{BlockKey, GroupId, GroupKind};
use std::ops::Range;

/// The keys of one group, from the first block of the prompt on.
#[derive(Debug, Clone, Copy)]
pub struct GroupKeys<'a> {
    /// The group.
    pub group: GroupId,
    /// Keys of its blocks in the order of the prefix.
    pub keys: &'a [BlockKey],
}

/// What to look for in all groups at once.
#[derive(Debug, Clone, Copy)]
pub struct HybridRequest<'a> {
    /// Namespace of the keys.
    pub namespace: NamespaceIndex,
    /// Every group of the namespace, once, in their order.
    pub groups: &'a [GroupKeys<'a>],
    /// Life of the lease in milliseconds, as in a plain lookup; none for a probe.
    pub lease_ttl_ms: Option<u64>,
    /// The lookup may wait for blocks: [`await_points`](Core::await_points) may follow. Needs a lease.
    pub ticket: Option<TicketId>,
}

/// The answer to a hybrid lookup. Kept by the caller, so that its buffers serve many.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HybridReply {
    /// Pins the blocks of all groups; none if none was asked for, or nothing found.
    pub lease: Option<LeaseId>,
    /// Tokens of the prefix that every group can start from; a multiple of every group's block.
    pub tokens: u64,
    /// What `tokens` would be if everything that is being written, or waited for, were ready.
    pub pending_tokens: u64,
    /// The blocks needed for it, group after group.
    pub blocks: Vec<BlockRef>,
    /// Which of them belong to each group, in the order of the request.
    pub groups: Vec<Range<u32>>,
}

/// One group's blocks as far as a search needs them.
struct Group {
    need: GroupNeed,
    /// In the order of the keys: none, or a block that is sealed or being written.
    blocks: Vec<BlockIdx>,
    /// How many blocks up to and including this one are usable without a gap.
    runs: Vec<u32>,
}

impl Group {
    fn has(&self, tokens: u64) -> bool {
        let Range { start, end } = self.need.needed(tokens);
        start == end || u64::from(self.runs[end as usize - 1]) >= end - start
    }

    fn count_runs(&mut self, usable: impl Fn(BlockIdx) -> bool) {
        let mut run = 0;
        self.runs.clear();
        self.runs.extend(self.blocks.iter().map(|idx| {
            run = if !idx.is_none() && usable(*idx) {
                run + 1
            } else {
                0
            };
            run
        }));
    }
}

impl Core {
    /// Finds the longest prefix that every group of the namespace can start from, and pins and
    /// touches what it needs if a lease is asked for.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup), and [`Error::Bad`] if not all groups are named in order, or for a
    /// ticket without a lease.
    pub fn lookup_hybrid(
        &mut self,
        now: Now,
        session: SessionId,
        request: &HybridRequest<'_>,
        reply: &mut HybridReply,
    ) -> Result<(), Error> {
        let keys = request.groups.iter().map(|group| group.keys.len()).sum();
        within("request_keys_max", keys, self.settings.request_keys_max)?;
        let leased = request.lease_ttl_ms.is_some();
        self.check_lease_room(session, leased)?;
        if request.ticket.is_some() {
            self.check_waiters(leased)?;
        }
        let mut groups = self.find_groups(request)?;
        groups
            .iter_mut()
            .for_each(|group| group.count_runs(|_| true));
        reply.pending_tokens = longest(&groups);
        let sealed = |idx| self.blocks.get(idx).state == State::Sealed;
        groups.iter_mut().for_each(|group| group.count_runs(sealed));
        reply.tokens = longest(&groups);
        let found = self.collect(&groups, reply);
        reply.lease = None;
        if request.lease_ttl_ms.is_some() {
            self.note_hybrid_use(request, &groups, reply, &found)?;
        }
        if let Some(ttl_ms) = request.lease_ttl_ms
            && !found.is_empty()
        {
            let class = self.namespaces.class_of(request.namespace, GroupId(0))?;
            reply.lease = Some(self.grant_read(now, session, class, ttl_ms, &found));
        }
        self.count_hybrid(request, reply)
    }

    fn find_groups(&self, request: &HybridRequest<'_>) -> Result<Vec<Group>, Error> {
        let all = self.namespaces.groups(request.namespace)?;
        let named = request.groups.iter().map(|group| group.group);
        if !named.eq((0..all).map(GroupId)) {
            let reason = "every group of the namespace must be named once, in order";
            return Err(Error::Bad {
                what: "groups",
                reason,
            });
        }
        let find = |named: &GroupKeys<'_>| {
            let class = self.namespaces.class_of(request.namespace, named.group)?;
            let mut blocks = Vec::with_capacity(named.keys.len());
            let mut batch = [BlockIdx::NONE; BATCH];
            for keys in named.keys.chunks(BATCH) {
                self.probe(class, keys, &mut batch);
                blocks.extend_from_slice(&batch[..keys.len()]);
            }
            Ok(Group {
                need: self.namespaces.class(class).need(),
                blocks,
                runs: Vec::new(),
            })
        };
        request.groups.iter().map(find).collect()
    }

    fn collect(&self, groups: &[Group], reply: &mut HybridReply) -> Vec<BlockIdx> {
        reply.blocks.clear();
        reply.groups.clear();
        let mut found = Vec::new();
        for group in groups {
            let from = reply.blocks.len() as u32;
            for at in group.need.needed(reply.tokens) {
                let idx = group.blocks[at as usize];
                reply
                    .blocks
                    .push(block_ref(self.blocks.get(idx), at as usize));
                found.push(idx);
            }
            reply.groups.push(from..reply.blocks.len() as u32);
        }
        found
    }

    fn note_hybrid_use(
        &mut self,
        request: &HybridRequest<'_>,
        groups: &[Group],
        reply: &HybridReply,
        found: &[BlockIdx],
    ) -> Result<(), Error> {
        for ((named, group), range) in request.groups.iter().zip(groups).zip(&reply.groups) {
            let class = self.namespaces.class_of(request.namespace, named.group)?;
            let found = &found[range.start as usize..range.end as usize];
            let missing = match group.need.kind {
                GroupKind::FullAttention | GroupKind::Mla => &named.keys[found.len()..],
                _ => &[],
            };
            self.note_use(class, named.keys.len(), found, missing);
        }
        Ok(())
    }

    fn count_hybrid(
        &mut self,
        request: &HybridRequest<'_>,
        reply: &HybridReply,
    ) -> Result<(), Error> {
        for (group, range) in request.groups.iter().zip(&reply.groups) {
            let class = self.namespaces.class_of(request.namespace, group.group)?;
            let bytes = self.namespaces.class(class).bytes;
            let counters = &mut self.tenant_of(class).counters;
            counters.lookup_keys += group.keys.len() as u64;
            counters.hit_blocks += range.len() as u64;
            counters.hit_bytes += range.len() as u64 * bytes;
            counters.lookups += u64::from(group.group == GroupId(0));
        }
        Ok(())
    }
}

/// The largest number of tokens that every group has what it needs for.
fn longest(groups: &[Group]) -> u64 {
    let needs = groups.iter().map(|group| (group.need, group.blocks.len()));
    let mut fit = points(needs)
        .behind(0)
        .rev()
        .filter(|tokens| groups.iter().all(|group| group.has(*tokens)));
    fit.next().unwrap_or(0)
}
