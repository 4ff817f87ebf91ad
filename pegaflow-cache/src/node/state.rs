// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What a node holds under its one lock: the core, and the world its actions change.
//!
//! Invariant: whoever takes the lock leaves no action unapplied. So records in the control files
//! always say what the core believes.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use pegaflow_mem::SlabAllocator;
use pegaflow_meta::GroupId;

use super::layout::{GroupLayout, NamespaceLayout};
use super::pool::Pool;
use super::sessions::Sessions;
use super::ssd::Tier;
use super::tickets::Tickets;
use super::trace::Traces;
use crate::control::record::{self, Record};
use crate::control::tables;
use crate::core::{
    Action, Core, HybridReply, LeaseId, LookupReply, NamespaceIndex, Place, ReserveReply,
    SessionId, TicketId,
};
use crate::rpc::proto::{SessionEvent, session_event::Kind};
use crate::tier::share::Tag;
use crate::tier::spill::Candidate;

pub(super) fn micros_since(epoch: Instant) -> u64 {
    u64::try_from(epoch.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// A lease that was not released is surely over so long after it should be, in milliseconds.
const EXPIRED_MS: u64 = 1_000;

/// What the holder of a write lease will bring checksums of.
#[derive(Debug, Clone)]
pub(super) struct WriteLease {
    pub(super) session: SessionId,
    /// Heads of a whole block.
    pub(super) heads_all: u32,
    pub(super) stages: Range<u32>,
    pub(super) heads: Range<u32>,
    /// Items that are not sealed.
    pub(super) open: u32,
}

impl WriteLease {
    /// Checksums that come with one block.
    pub(super) fn checksums(&self) -> usize {
        self.stages.len() * self.heads.len()
    }
}

/// A block to copy, outside the lock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Move {
    pub(super) from: Place,
    pub(super) to: Place,
    pub(super) bytes: u64,
    pub(super) generation: u32,
}

/// What came with a seal request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sums<'a> {
    pub(super) lease: &'a WriteLease,
    pub(super) checksums: &'a [u64],
}

/// Everything under the lock.
#[derive(Debug)]
pub(super) struct State {
    pub(super) core: Core,
    pub(super) pools: Vec<Pool>,
    pub(super) tickets: Tickets,
    pub(super) sessions: Sessions,
    /// By their numbers.
    pub(super) namespaces: Vec<NamespaceLayout>,
    /// Where the namespace log of the first pool ends.
    pub(super) namespaces_end: u64,
    pub(super) writes: HashMap<LeaseId, WriteLease>,
    pub(super) moves: Vec<Move>,
    pub(super) actions: Vec<Action>,
    pub(super) lookup: LookupReply,
    pub(super) hybrid: HybridReply,
    pub(super) reserve: ReserveReply,
    /// Fetches that nobody waits for, and those that are over.
    pub(super) prefetches: HashMap<TicketId, (SessionId, LeaseId)>,
    pub(super) prefetches_over: Vec<(SessionId, LeaseId)>,
    /// The SSD tier, if there is one.
    pub(super) tier: Option<Arc<Tier>>,
    pub(super) traces: Traces,
    /// When the node started.
    pub(super) epoch: Instant,
    pub(super) recovered: u64,
    pub(super) dropped_unsealed: u64,
}

impl State {
    /// Applies what the core wants done, in order.
    pub(super) fn apply(&mut self, sums: Option<Sums<'_>>) {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            self.apply_one(action, sums);
        }
        self.actions = actions;
        self.end_prefetches();
    }

    fn apply_one(&mut self, action: Action, sums: Option<Sums<'_>>) {
        match action {
            Action::AssignSlab {
                pool,
                slab,
                units,
                place_bytes,
            } => self.pools[usize::from(pool)].assign_slab(slab, units, place_bytes),
            Action::ReleaseSlab { pool, slab } => {
                self.pools[usize::from(pool)].release_slab(slab);
            }
            Action::BeginRecord {
                place,
                generation,
                namespace,
                group,
                session,
                key,
                parent,
            } => {
                let record = Record {
                    generation,
                    key,
                    parent,
                    namespace: namespace.0,
                    group,
                    checksums: self.checksums(namespace, group),
                };
                let writers = self.sessions.bit(session);
                let pool = &self.pools[usize::from(place.pool())];
                if let Some(at) = pool.roomy_record_at(place.offset(), record.checksums) {
                    record.begin(&*pool.control, at, writers);
                }
            }
            Action::JoinRecord { place, session, .. } => {
                let writers = self.sessions.bit(session);
                self.on_record(place, |pool, at| record::join(&*pool.control, at, writers));
            }
            Action::SealRecord {
                place,
                generation,
                item,
                complete,
            } => {
                self.seal_record(place, item, complete, sums);
                if complete {
                    self.offer(place, generation, sums);
                }
            }
            Action::EraseRecord { place, .. } => {
                self.on_record(place, |pool, at| record::erase(&*pool.control, at));
            }
            Action::MoveBlock {
                from,
                to,
                bytes,
                generation,
                ..
            } => self.moves.push(Move {
                from,
                to,
                bytes,
                generation,
            }),
            Action::Ticket {
                ticket,
                ready,
                done,
            } => {
                self.tickets.put(ticket, ready, done);
                if done {
                    self.wait_over(ticket);
                    self.trace_ready(ticket, ready);
                    self.note_prefetch_over(ticket);
                }
            }
            Action::WaitOver { ticket } => {
                self.wait_over(ticket);
                self.note_prefetch_over(ticket);
            }
            Action::WriteExpired { session, lease } => self.write_expired(session, lease),
        }
    }

    fn seal_record(&self, place: Place, item: u32, complete: bool, sums: Option<Sums<'_>>) {
        let Some(Sums { lease, checksums }) = sums else {
            debug_assert!(false, "only a seal request seals");
            return;
        };
        let each = lease.checksums();
        let own = checksums.chunks_exact(each).nth(item as usize);
        self.on_record(place, |pool, at| {
            let file = &*pool.control;
            let rows = own.unwrap_or(&[]).chunks_exact(lease.heads.len());
            for (stage, row) in lease.stages.clone().zip(rows) {
                let first = stage * lease.heads_all + lease.heads.start;
                record::put_checksums(file, at, first, row);
            }
            if complete {
                record::seal(file, at);
            }
        });
    }

    /// Offers a block that was just sealed to the tier below, unless it comes from there.
    fn offer(&self, place: Place, generation: u32, sums: Option<Sums<'_>>) {
        let (Some(tier), Some(sums)) = (&self.tier, sums) else {
            return;
        };
        if tier.is_own(sums.lease.session) {
            return;
        }
        self.on_record(place, |pool, at| {
            let (_, record) = Record::read(&*pool.control, at);
            if let Some(block) = self.candidate(place, generation, &record) {
                tier.sealed(block);
            }
        });
    }

    /// What the tier below must know of a block.
    pub(super) fn candidate(
        &self,
        place: Place,
        generation: u32,
        record: &Record,
    ) -> Option<Candidate> {
        let namespace = NamespaceIndex(record.namespace);
        let group = self.group(namespace, record.group)?;
        Some(Candidate {
            key: record.key,
            place,
            generation,
            namespace,
            group: record.group,
            tag: self.tag(namespace),
            bytes: group.shape.bytes(),
        })
    }

    /// Microseconds since the node started: for traces, finer than the core's time.
    pub(super) fn now_us(&self) -> u64 {
        micros_since(self.epoch)
    }

    /// Ends the traces of leases that are over for sure.
    pub(super) fn expire_traces(&mut self) {
        let now_us = self.now_us();
        let life_us = (self.core.settings().read_lease_ttl_max_ms + EXPIRED_MS) * 1000;
        self.traces.expire(now_us.saturating_sub(life_us), now_us);
    }

    fn trace_ready(&mut self, ticket: TicketId, ready: u32) {
        if let Some(lease) = self.tickets.lease_of(ticket) {
            self.traces.ready(lease, self.now_us(), ready);
        }
    }

    fn wait_over(&self, ticket: TicketId) {
        if let Some(tier) = &self.tier {
            tier.wait_over(ticket);
        }
    }

    fn on_record(&self, place: Place, f: impl FnOnce(&Pool, u64)) {
        let pool = &self.pools[usize::from(place.pool())];
        let at = pool.record_at(place.offset());
        debug_assert!(at.is_some(), "{place:?} has no record");
        if let Some(at) = at {
            f(pool, at);
        }
    }

    fn checksums(&self, namespace: NamespaceIndex, group: GroupId) -> u16 {
        let group = self.group(namespace, group);
        group.map_or(0, |group| group.checksums() as u16)
    }

    /// The tenant of a namespace.
    pub(super) fn tag(&self, namespace: NamespaceIndex) -> Tag {
        let layout = self.namespaces.get(namespace.0 as usize);
        Tag::of(layout.map_or("", |layout| &layout.tenant))
    }

    /// The layout of a cache group.
    pub(super) fn group(&self, namespace: NamespaceIndex, group: GroupId) -> Option<&GroupLayout> {
        let layout = self.namespaces.get(namespace.0 as usize)?;
        layout.groups.get(usize::from(group.0))
    }

    fn write_expired(&mut self, session: SessionId, lease: LeaseId) {
        tracing::warn!(
            session = session.0,
            lease = lease.0,
            "a reservation is over its time; its places stay out of use until the client is quiet or gone"
        );
        if let Some(session) = self.sessions.get(session) {
            session.tell(SessionEvent {
                kind: Kind::WriteExpired.into(),
                lease: lease.0,
            });
        }
    }

    /// Whether records of the group fit beside its places; if so, slabs of such places have room for
    /// them from now on.
    pub(super) fn fits(&mut self, group: &GroupLayout) -> bool {
        let place_bytes = SlabAllocator::class_bytes(group.shape.bytes());
        let checksums = group.checksums();
        let mut pools = self.pools.iter_mut();
        pools.all(|pool| pool.expect_records(place_bytes, checksums))
    }

    /// Notes a namespace that the core has just given the next number.
    pub(super) fn add_layout(&mut self, layout: NamespaceLayout) {
        self.namespaces.push(layout);
    }

    /// Ends what the shell keeps for a session that is gone.
    pub(super) fn forget_session(&mut self, session: SessionId) {
        self.writes.retain(|_, lease| lease.session != session);
        if let Some(entry) = self.sessions.remove(session) {
            self.erase_entry(entry);
        }
    }

    pub(super) fn erase_entry(&self, entry: u64) {
        let pool = &self.pools[0];
        tables::erase_session(&*pool.control, &pool.geometry, entry);
    }

    /// The ticket is no longer needed.
    pub(super) fn drop_ticket(&mut self, ticket: Option<TicketId>) {
        if let Some(ticket) = ticket {
            self.tickets.give(ticket);
        }
    }
}
