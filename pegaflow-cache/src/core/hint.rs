// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What engines and agents know of blocks to come or to go: pins, demotions, branches that are over, and
//! looking ahead for a prefix that nobody reads yet.
//!
//! A pin is a read lease with a longer life and a budget. None of these counts as a use of a block.
//!
//! Invariant: pinned bytes of a tenant are those of its living pins, and within its budget when a pin is
//! taken.

use super::block::{BlockIdx, ClassIdx, State};
use super::error::{Error, within};
use super::lookup::BATCH;
use super::{Action, Core, LeaseId, NamespaceIndex, Now, SessionId};
use pegaflow_meta::{BlockKey, GroupId};

/// At most this share of the pools, and of a tenant's quota, is pinned by hints.
const PIN_SHARE: u64 = 4;

/// The blocks that a hint is about.
#[derive(Debug, Clone, Copy)]
pub struct HintRequest<'a> {
    /// Namespace of the keys.
    pub namespace: NamespaceIndex,
    /// Cache group of the keys.
    pub group: GroupId,
    /// The keys, in the order of their prefix.
    pub keys: &'a [BlockKey],
}

/// What became of a hint: one outcome for each key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hinted {
    /// Of a pin: to be released before its time. None if nothing was pinned.
    pub lease: Option<LeaseId>,
    /// Blocks that it was done to; of a prefetch, those in the pool already.
    pub done: u32,
    /// Of a prefetch: blocks on their way.
    pub coming: u32,
    /// Blocks that are not there.
    pub absent: u32,
    /// Blocks that it was not done to: over the budget of pins, or in use by another branch.
    pub refused: u32,
}

impl Core {
    /// Keeps blocks in the pool for `ttl_ms`, at most `pin_ttl_max_ms`, or until the lease is released or
    /// its session ends. Blocks beyond the tenant's budget of pins are refused, the last ones first.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup).
    pub fn pin(
        &mut self,
        now: Now,
        session: SessionId,
        request: &HintRequest<'_>,
        ttl_ms: u64,
    ) -> Result<Hinted, Error> {
        let (class, mut sealed) = self.hinted(session, request, true)?;
        let found = sealed.len();
        let place_bytes = self.namespaces.class(class).place_bytes;
        let room = self.pin_room(class) / place_bytes;
        sealed.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        let mut hinted = Hinted {
            done: sealed.len() as u32,
            absent: (request.keys.len() - found) as u32,
            refused: (found - sealed.len()) as u32,
            ..Hinted::default()
        };
        if sealed.is_empty() {
            return Ok(hinted);
        }
        let ttl_ms = ttl_ms.min(self.settings.pin_ttl_max_ms);
        let deadline = Now(now.0.saturating_add(ttl_ms));
        let lease = self.grant_until(now, session, class, deadline, &sealed);
        let bytes = sealed.len() as u64 * place_bytes;
        if let Some(lease) = self.leases.get_mut(lease) {
            lease.pinned_bytes = bytes;
        }
        self.tenant_of(class).pinned_bytes += bytes;
        hinted.lease = Some(lease);
        Ok(hinted)
    }

    /// Bytes that a tenant may pin beyond those it has.
    fn pin_room(&mut self, class: ClassIdx) -> u64 {
        let (all, most) = (self.places.capacity_bytes(), self.settings.pin_bytes_max);
        let pinned: u64 = self.tenants.iter().map(|tenant| tenant.pinned_bytes).sum();
        let tenant = self.tenant_of(class);
        let quota = tenant.limits.bytes_max.map_or(all, |quota| quota.min(all));
        let own = most.min(quota / PIN_SHARE);
        let own = own.saturating_sub(tenant.pinned_bytes);
        own.min((all / PIN_SHARE).saturating_sub(pinned))
    }

    /// Blocks are of no more use: they leave before others of their tenant, leaves first, unless they are
    /// used again.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup).
    pub fn demote(
        &mut self,
        session: SessionId,
        request: &HintRequest<'_>,
    ) -> Result<Hinted, Error> {
        let (class, sealed) = self.hinted(session, request, false)?;
        for block in sealed.iter().rev() {
            self.demote_one(class, *block);
        }
        Ok(Hinted {
            done: sealed.len() as u32,
            absent: (request.keys.len() - sealed.len()) as u32,
            ..Hinted::default()
        })
    }

    fn demote_one(&mut self, class: ClassIdx, block: BlockIdx) {
        let tenant = self.namespaces.class(class).tenant;
        let demoted = &mut self.tenants.get_mut(tenant).demoted;
        demoted.add(&self.blocks, block);
    }

    /// A branch of a tree of prefixes is over: from the last key up, blocks leave the pool until one that
    /// another branch shares. Those in use at the moment leave first when they no longer are.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup).
    pub fn release_branch(
        &mut self,
        session: SessionId,
        request: &HintRequest<'_>,
        actions: &mut Vec<Action>,
    ) -> Result<Hinted, Error> {
        let (class, sealed) = self.hinted(session, request, false)?;
        let mut hinted = Hinted {
            absent: (request.keys.len() - sealed.len()) as u32,
            ..Hinted::default()
        };
        // The block below on the branch, if it is still there.
        let mut below = None;
        for (above, block) in sealed.iter().enumerate().rev() {
            let own = below.is_some_and(|below| self.blocks.parent(below) == Some(*block));
            if self.blocks.get(*block).children > u32::from(own) {
                hinted.refused = above as u32 + 1;
                break;
            }
            hinted.done += 1;
            if self.blocks.get(*block).is_evictable() {
                self.drop_sealed(*block, actions);
                below = None;
            } else {
                self.demote_one(class, *block);
                below = Some(*block);
            }
        }
        Ok(hinted)
    }

    /// The blocks of a request that are visible, in its order.
    fn hinted(
        &mut self,
        session: SessionId,
        request: &HintRequest<'_>,
        lease: bool,
    ) -> Result<(ClassIdx, Vec<BlockIdx>), Error> {
        let class = self.namespaces.class_of(request.namespace, request.group)?;
        let keys_max = self.settings.request_keys_max;
        within("request_keys_max", request.keys.len(), keys_max)?;
        self.check_lease_room(session, lease)?;
        self.check_distinct(request.keys)?;
        let mut sealed = vec![];
        let mut batch = [BlockIdx::NONE; BATCH];
        for keys in request.keys.chunks(BATCH) {
            self.probe(class, keys, &mut batch);
            let found = batch[..keys.len()].iter().copied();
            let is_sealed = |idx: &BlockIdx| self.blocks.get(*idx).state == State::Sealed;
            sealed.extend(found.filter(|idx| !idx.is_none()).filter(is_sealed));
        }
        Ok((class, sealed))
    }
}
