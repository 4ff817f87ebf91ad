// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Finding blocks: the longest ready prefix, or every ready block of a set.
//!
//! Invariant: what a lookup returns under a lease is sealed and pinned, all of it.

use super::block::{BlockIdx, ClassIdx, State};
use super::error::{Error, within};
use super::evict;
use super::index::Hash;
use super::lease::Kind;
use super::life::seconds;
use super::{Action, Core, LeaseId, NamespaceIndex, Now, Place, SessionId, TicketId};
use pegaflow_meta::{BlockKey, GroupId};

/// What to look for.
#[derive(Debug, Clone, Copy)]
pub struct LookupRequest<'a> {
    /// Namespace of the keys.
    pub namespace: NamespaceIndex,
    /// Cache group of the keys.
    pub group: GroupId,
    /// The keys; for [`LookupMode::Prefix`] in the order of the prefix.
    pub keys: &'a [BlockKey],
    /// What counts as found.
    pub mode: LookupMode,
    /// Life of the lease that pins what is found, in milliseconds, at most
    /// `read_lease_ttl_max_ms`; none for a probe that pins nothing and counts as no use.
    pub lease_ttl_ms: Option<u64>,
    /// Follows the pending blocks of a prefix: as they become ready they are pinned under the
    /// lease, and the shell is told by [`Action::Ticket`]. Needs a lease and
    /// [`LookupMode::Prefix`].
    pub ticket: Option<TicketId>,
}

/// What counts as found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupMode {
    /// The blocks before the first one that is not ready.
    Prefix,
    /// Every block that is ready.
    Set,
}

/// One block found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRef {
    /// Where it lies.
    pub place: Place,
    /// The use of the place; its record carries the same.
    pub generation: u32,
    /// Which key of the request it is.
    pub key: u32,
}

/// The answer to a lookup. Kept by the caller, so that its buffer serves many lookups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LookupReply {
    /// Pins the blocks; none if none was asked for, or nothing found.
    pub lease: Option<LeaseId>,
    /// The blocks found, in the order of the keys.
    pub blocks: Vec<BlockRef>,
    /// Prefix: blocks after the ready ones that will be ready once those being written are. Set:
    /// blocks being written.
    pub pending: u32,
}

/// Keys whose memory accesses overlap.
pub(super) const BATCH: usize = 64;

impl Core {
    /// Looks keys up, and pins and touches what it finds if a lease is asked for.
    ///
    /// # Errors
    /// [`Error::UnknownSession`], [`Error::UnknownNamespace`], [`Error::UnknownGroup`],
    /// [`Error::OverLimit`] for keys or leases.
    pub fn lookup(
        &mut self,
        now: Now,
        session: SessionId,
        request: &LookupRequest<'_>,
        reply: &mut LookupReply,
    ) -> Result<(), Error> {
        self.answer(now, session, request, true, reply)
    }

    /// As [`lookup`](Self::lookup), for blocks that nobody reads yet: it counts as no use of them, and in no
    /// counter.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup).
    pub fn look_ahead(
        &mut self,
        now: Now,
        session: SessionId,
        request: &LookupRequest<'_>,
        reply: &mut LookupReply,
    ) -> Result<(), Error> {
        self.answer(now, session, request, false, reply)
    }

    fn answer(
        &mut self,
        now: Now,
        session: SessionId,
        request: &LookupRequest<'_>,
        counts: bool,
        reply: &mut LookupReply,
    ) -> Result<(), Error> {
        let class = self.namespaces.class_of(request.namespace, request.group)?;
        within(
            "request_keys_max",
            request.keys.len(),
            self.settings.request_keys_max,
        )?;
        self.check_lease_room(session, request.lease_ttl_ms.is_some())?;
        self.check_ticket(request)?;
        reply.blocks.clear();
        (reply.lease, reply.pending) = (None, 0);
        let mut found = std::mem::take(&mut self.scratch.found);
        match request.mode {
            LookupMode::Prefix => self.scan_prefix(class, request.keys, &mut found, reply),
            LookupMode::Set => self.scan_set(class, request.keys, &mut found, reply),
        }
        if counts && request.lease_ttl_ms.is_some() {
            let missing = match request.mode {
                LookupMode::Prefix => &request.keys[found.len()..],
                LookupMode::Set => &[],
            };
            self.note_use(class, request.keys.len(), &found, missing);
        }
        let follow = request.ticket.filter(|_| reply.pending > 0);
        if let Some(ttl_ms) = request.lease_ttl_ms
            && (!found.is_empty() || follow.is_some())
        {
            let lease = self.grant_read(now, session, class, ttl_ms, &found);
            reply.lease = Some(lease);
            if let Some(ticket) = follow {
                let rest = &request.keys[found.len()..][..reply.pending as usize];
                self.follow(class, lease, ticket, rest, rest.len());
            }
        }
        if counts {
            self.count_lookup(class, request.keys.len(), reply);
        }
        found.clear();
        self.scratch.found = found;
        Ok(())
    }

    /// Ends a read lease.
    ///
    /// # Errors
    /// [`Error::UnknownSession`]; [`Error::UnknownLease`], also for a lease of a writer.
    pub fn release(
        &mut self,
        session: SessionId,
        lease: LeaseId,
        actions: &mut Vec<Action>,
    ) -> Result<(), Error> {
        self.open(session)?;
        let held = self
            .leases
            .get(lease)
            .filter(|l| l.session == session && l.kind == Kind::Read);
        held.ok_or(Error::UnknownLease(lease))?;
        self.end_read(lease, actions);
        Ok(())
    }

    /// The blocks that a read lease holds, in the order they were added: those of the lookup, then
    /// those that its ticket has added.
    ///
    /// # Errors
    /// As [`release`](Self::release).
    pub fn lease_blocks(
        &self,
        session: SessionId,
        lease: LeaseId,
        out: &mut Vec<BlockRef>,
    ) -> Result<(), Error> {
        self.open(session)?;
        let held = self
            .leases
            .get(lease)
            .filter(|l| l.session == session && l.kind == Kind::Read);
        let held = held.ok_or(Error::UnknownLease(lease))?;
        out.clear();
        let blocks = held.blocks.iter().enumerate();
        out.extend(blocks.map(|(at, idx)| block_ref(self.blocks.get(*idx), at)));
        Ok(())
    }

    /// A reader found that a block's bytes are not what was saved: it is a miss from now on. False
    /// if that use of the place is over already.
    ///
    /// # Errors
    /// [`Error::UnknownSession`].
    pub fn report_corrupt(
        &mut self,
        session: SessionId,
        key: &BlockKey,
        place: Place,
        generation: u32,
        actions: &mut Vec<Action>,
    ) -> Result<bool, Error> {
        self.open(session)?;
        let Some(idx) = self.find(self.index.hash(key), key) else {
            return Ok(false);
        };
        let block = *self.blocks.get(idx);
        let same = block.place == place && block.generation == generation;
        if !same || block.state != State::Sealed {
            return Ok(false);
        }
        self.tenant_of(block.class).counters.corrupt_blocks += 1;
        self.drop_sealed(idx, actions);
        Ok(true)
    }

    pub(super) fn check_lease_room(&self, session: SessionId, wanted: bool) -> Result<(), Error> {
        let open = self.open(session)?;
        if wanted {
            within(
                "leases_max",
                self.leases.len() + 1,
                self.settings.leases_max,
            )?;
            let own = open.leases as usize + 1;
            within("session_leases_max", own, self.settings.session_leases_max)?;
        }
        Ok(())
    }

    pub(super) fn end_read(&mut self, lease: LeaseId, actions: &mut Vec<Action>) {
        self.unfollow(lease, actions);
        let pinned = self.leases.get(lease).filter(|held| held.pinned_bytes > 0);
        if let Some((class, bytes)) = pinned.map(|held| (held.class, held.pinned_bytes)) {
            self.tenant_of(class).pinned_bytes -= bytes;
        }
        let blocks = self.leases.take_blocks(lease);
        for idx in &blocks {
            self.unpin(*idx, actions);
        }
        self.end_lease(lease, blocks);
    }

    /// Forgets a lease that holds nothing any more.
    pub(super) fn end_lease(&mut self, lease: LeaseId, buffer: Vec<BlockIdx>) {
        let session = self.leases.get(lease).map(|lease| lease.session);
        self.leases.remove(lease, buffer);
        if let Some(session) = session.and_then(|session| self.sessions.get_mut(&session)) {
            session.leases -= 1;
        }
    }

    /// The block of each key that is in the index and of this class, or none.
    pub(super) fn probe(&self, class: ClassIdx, keys: &[BlockKey], out: &mut [BlockIdx; BATCH]) {
        self.probe_all(keys, out);
        for out in &mut out[..keys.len()] {
            if !out.is_none() && self.blocks.get(*out).class != class {
                *out = BlockIdx::NONE;
            }
        }
    }

    /// The block of each key that is in the index, or none, by passes so that cache misses overlap.
    pub(super) fn probe_all(&self, keys: &[BlockKey], out: &mut [BlockIdx; BATCH]) {
        let mut hashes = [Hash::default(); BATCH];
        for (hash, key) in hashes.iter_mut().zip(keys) {
            *hash = self.index.hash(key);
        }
        for (out, hash) in out.iter_mut().zip(&hashes[..keys.len()]) {
            *out = self.index.guess(*hash);
        }
        for ((out, key), hash) in out.iter_mut().zip(keys).zip(&hashes) {
            if out.is_none() || self.blocks.get(*out).key != *key {
                *out = self.find(*hash, key).unwrap_or(BlockIdx::NONE);
            }
        }
    }

    fn scan_prefix(
        &self,
        class: ClassIdx,
        keys: &[BlockKey],
        found: &mut Vec<BlockIdx>,
        reply: &mut LookupReply,
    ) {
        let mut batch = [BlockIdx::NONE; BATCH];
        for (chunk, keys) in keys.chunks(BATCH).enumerate() {
            self.probe(class, keys, &mut batch);
            for (at, idx) in batch[..keys.len()].iter().enumerate() {
                if idx.is_none() {
                    return;
                }
                let block = self.blocks.get(*idx);
                // A sealed block behind an unsealed one is no use before that one is ready.
                if block.state != State::Sealed || reply.pending > 0 {
                    reply.pending += 1;
                } else {
                    found.push(*idx);
                    reply.blocks.push(block_ref(block, chunk * BATCH + at));
                }
            }
        }
    }

    fn scan_set(
        &self,
        class: ClassIdx,
        keys: &[BlockKey],
        found: &mut Vec<BlockIdx>,
        reply: &mut LookupReply,
    ) {
        let mut batch = [BlockIdx::NONE; BATCH];
        for (chunk, keys) in keys.chunks(BATCH).enumerate() {
            self.probe(class, keys, &mut batch);
            for (at, idx) in batch[..keys.len()].iter().enumerate() {
                if idx.is_none() {
                    continue;
                }
                let block = self.blocks.get(*idx);
                if block.state == State::Sealed {
                    found.push(*idx);
                    reply.blocks.push(block_ref(block, chunk * BATCH + at));
                } else {
                    reply.pending += 1;
                }
            }
        }
    }

    /// Pins sealed blocks under a new lease. Room for it was checked.
    pub(super) fn grant_read(
        &mut self,
        now: Now,
        session: SessionId,
        class: ClassIdx,
        ttl_ms: u64,
        found: &[BlockIdx],
    ) -> LeaseId {
        let ttl_ms = ttl_ms.min(self.settings.read_lease_ttl_max_ms);
        let deadline = Now(now.0.saturating_add(ttl_ms));
        self.grant_until(now, session, class, deadline, found)
    }

    /// The same until a time.
    pub(super) fn grant_until(
        &mut self,
        now: Now,
        session: SessionId,
        class: ClassIdx,
        deadline: Now,
        found: &[BlockIdx],
    ) -> LeaseId {
        let id = self.leases.insert(session, Kind::Read, class, deadline);
        let touched_s = seconds(now);
        for idx in found {
            let block = self.blocks.get_mut(*idx);
            block.pins += 1;
            block.touched_s = touched_s;
        }
        if let Some(lease) = self.leases.get_mut(id) {
            lease.blocks.extend_from_slice(found);
        }
        if let Some(session) = self.sessions.get_mut(&session) {
            session.leases += 1;
        }
        id
    }

    /// Tells the policy what a lookup asked for, and found.
    pub(super) fn note_use(
        &mut self,
        class: ClassIdx,
        keys: usize,
        found: &[BlockIdx],
        missing: &[BlockKey],
    ) {
        let tenant = self.namespaces.class(class).tenant;
        let request = evict::Request {
            keys,
            found,
            missing,
        };
        let tenant = self.tenants.get_mut(tenant);
        tenant.demoted.forget(found);
        tenant.policy.request(&mut self.blocks, &request);
    }

    fn count_lookup(&mut self, class: ClassIdx, keys: usize, reply: &LookupReply) {
        let bytes = self.namespaces.class(class).bytes;
        let counters = &mut self.tenant_of(class).counters;
        counters.lookups += 1;
        counters.lookup_keys += keys as u64;
        counters.hit_blocks += reply.blocks.len() as u64;
        counters.hit_bytes += reply.blocks.len() as u64 * bytes;
        counters.pending_blocks += u64::from(reply.pending);
    }
}

pub(super) fn block_ref(block: &super::block::Block, key: usize) -> BlockRef {
    BlockRef {
        place: block.place,
        generation: block.generation,
        key: key as u32,
    }
}
