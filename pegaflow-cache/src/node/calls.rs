// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What clients ask of a node, one method a call. Each takes the lock once.

use std::collections::hash_map::Entry;

use pegaflow_mem::Slot;
use pegaflow_meta::{BlockKey, GroupId};

use super::Node;
use super::layout::NamespaceLayout;
use super::ssd::SsdStats;
use super::state::{State, Sums, WriteLease, micros_since};
use super::trace::Seen;
use crate::control::tables;
use crate::core::{
    BlockRef, Counters, LeaseId, LookupMode, LookupReply, LookupRequest, NamespaceIndex, Now,
    Place, ReserveReply, ReserveRequest, SealReply, SessionId, TicketId,
};
use crate::error::{Error, Result};
use crate::rpc::proto as pb;
use crate::tier::fetch::Purpose;
use crate::tier::share::Usage as SsdUsage;

/// What to look for.
#[derive(Debug, Clone, Copy)]
pub struct LookupCall<'a> {
    /// Namespace of the keys.
    pub namespace: NamespaceIndex,
    /// Cache group of the keys.
    pub group: GroupId,
    /// The keys.
    pub keys: &'a [BlockKey],
    /// What counts as found.
    pub mode: LookupMode,
    /// Life of the lease, in milliseconds; none for no lease.
    pub lease_ttl_ms: Option<u64>,
    /// Give a ticket if blocks behind the ready prefix are being written.
    pub ticket: bool,
}

/// What to make room for.
#[derive(Debug, Clone, Copy)]
pub struct ReserveCall<'a> {
    /// Namespace of the keys.
    pub namespace: NamespaceIndex,
    /// Cache group of the keys.
    pub group: GroupId,
    /// The part of each block that the caller writes.
    pub slot: &'a Slot,
    /// The block before the first key.
    pub parent: Option<BlockKey>,
    /// The blocks, in the order of their prefix.
    pub keys: &'a [BlockKey],
}

/// What a lookup found, as long as the node is held.
#[derive(Debug, Clone, Copy)]
pub struct Refs<'a> {
    /// Pins the blocks.
    pub lease: Option<LeaseId>,
    /// The blocks.
    pub blocks: &'a [BlockRef],
    /// Further ones that are being written.
    pub pending: u32,
    /// How many of these come from SSD.
    pub fetching: u32,
    /// Tells how far these are.
    pub ticket: Option<TicketId>,
}

/// Bytes of a namespace with its layout, as written down.
const NAMESPACE_BYTES_MAX: usize = 64 << 10;

impl Node {
    /// Makes a namespace known.
    ///
    /// # Errors
    /// [`Error::Core`] if it is known with other shapes or cannot be; [`Error::Protocol`] if its blocks
    /// are too small for their checksums or it is known with other stages; [`Error::Limit`] if there is
    /// no room to write it down.
    pub fn register_namespace(
        &self,
        _session: SessionId,
        layout: &NamespaceLayout,
    ) -> Result<NamespaceIndex> {
        let (spec, bytes) = (layout.spec()?, layout.encode()?);
        if bytes.len() > NAMESPACE_BYTES_MAX {
            return Err(Error::protocol(format_args!(
                "a namespace with its layout has at most {NAMESPACE_BYTES_MAX} bytes, not {}",
                bytes.len()
            )));
        }
        self.shared.with(|state, _| {
            state.check_records_fit(layout)?;
            let index = state.core.register_namespace(&spec)?;
            if let Some(known) = state.namespaces.get(index.0 as usize) {
                return same_stages(known, layout).map(|()| index);
            }
            state.write_namespace(&bytes);
            state.add_layout(layout.clone());
            Ok(index)
        })
    }

    /// Looks keys up and shows what it found to `f`.
    ///
    /// # Errors
    /// [`Error::Core`]; [`Error::Limit`] if no ticket is left.
    pub fn lookup<R>(
        &self,
        session: SessionId,
        call: &LookupCall<'_>,
        f: impl FnOnce(Refs<'_>) -> R,
    ) -> Result<R> {
        self.shared.with(|state, now| {
            let ticket = state.take_ticket(now, call.ticket, call.lease_ttl_ms)?;
            let request = LookupRequest {
                namespace: call.namespace,
                group: call.group,
                keys: call.keys,
                mode: call.mode,
                lease_ttl_ms: call.lease_ttl_ms,
                ticket,
            };
            let State { core, lookup, .. } = state;
            if let Err(error) = core.lookup(now, session, &request, lookup) {
                state.drop_ticket(ticket);
                return Err(error.into());
            }
            let fetching = state.fetch_rest(now, session, &request, Purpose::Lookup);
            let LookupReply { lease, pending, .. } = state.lookup;
            let (lease, ready) = (lease.filter(|_| pending > 0), state.lookup.blocks.len());
            let ticket = state.keep_ticket(ticket, lease, ready as u64);
            state.trace_lookup(session, call.keys.len());
            let reply = &state.lookup;
            Ok(f(Refs {
                lease: reply.lease,
                blocks: &reply.blocks,
                pending: reply.pending,
                fetching,
                ticket,
            }))
        })
    }

    /// Shows all blocks that a read lease pins to `f`.
    ///
    /// # Errors
    /// [`Error::Core`].
    pub fn claim<R>(
        &self,
        session: SessionId,
        lease: LeaseId,
        f: impl FnOnce(Refs<'_>) -> R,
    ) -> Result<R> {
        self.shared.with(|state, _| {
            let State { core, lookup, .. } = state;
            core.claim(session, lease, lookup)?;
            Ok(f(Refs {
                lease: Some(lease),
                blocks: &lookup.blocks,
                pending: 0,
                fetching: 0,
                ticket: None,
            }))
        })
    }

    /// Reserves places and shows them to `f`.
    ///
    /// # Errors
    /// [`Error::Core`]; [`Error::Protocol`] for a slot that cuts a stage; [`Error::Refused`] for a
    /// session that shares no memory with the node.
    pub fn reserve<R>(
        &self,
        session: SessionId,
        call: &ReserveCall<'_>,
        f: impl FnOnce(&ReserveReply) -> R,
    ) -> Result<R> {
        self.shared.with(|state, now| {
            state.check_memory(session)?;
            let stages = state.stages(call)?;
            let request = ReserveRequest {
                namespace: call.namespace,
                group: call.group,
                slot: call.slot,
                parent: call.parent,
                keys: call.keys,
            };
            let State {
                core,
                reserve,
                actions,
                ..
            } = state;
            core.reserve(now, session, &request, reserve, actions)?;
            state.apply(None);
            if let Some(lease) = state.reserve.lease {
                let held = WriteLease {
                    session,
                    open: state.reserve.places,
                    ..stages
                };
                state.writes.insert(lease, held);
            }
            Ok(f(&state.reserve))
        })
    }

    /// Seals items of a reservation. `checksums` has, for each of them, those of the slot: stage by
    /// stage, head by head.
    ///
    /// # Errors
    /// [`Error::Core`]; [`Error::Protocol`] for a wrong number of checksums.
    pub fn seal(
        &self,
        session: SessionId,
        lease: LeaseId,
        items: &[u32],
        checksums: &[u64],
    ) -> Result<SealReply> {
        let sealed = self.shared.with(|state, now| {
            let unknown = crate::core::Error::UnknownLease(lease);
            let held = state
                .writes
                .get(&lease)
                .filter(|held| held.session == session);
            let held = held.ok_or(unknown)?.clone();
            let wanted = items.len() * held.checksums();
            if checksums.len() != wanted {
                return Err(Error::protocol(format_args!(
                    "{} checksums for {} blocks of {} each",
                    checksums.len(),
                    items.len(),
                    held.checksums()
                )));
            }
            let State { core, actions, .. } = state;
            let reply = core.seal(now, session, lease, items, actions)?;
            state.apply(Some(Sums {
                lease: &held,
                checksums,
            }));
            state.finish_items(lease, items.len());
            Ok(reply)
        });
        if let Some(tier) = self.tier.as_ref().filter(|_| sealed.is_ok()) {
            tier.tier().ring_writer();
        }
        sealed
    }

    /// Makes some of the room that the next save will need: to be called when nobody waits. Says whether
    /// more is to be done.
    pub fn evict_ahead(&self) -> bool {
        self.shared.evict_ahead()
    }

    /// Gives a reservation back. With `quiesced` no copy touches its places any more.
    ///
    /// # Errors
    /// [`Error::Core`].
    pub fn abort(&self, session: SessionId, lease: LeaseId, quiesced: bool) -> Result<()> {
        self.shared.with(|state, now| {
            let State { core, actions, .. } = state;
            core.abort(now, session, lease, quiesced, actions)?;
            state.apply(None);
            if quiesced {
                state.writes.remove(&lease);
            }
            Ok(())
        })
    }

    /// Ends a read lease.
    ///
    /// # Errors
    /// [`Error::Core`].
    pub fn release(&self, session: SessionId, lease: LeaseId) -> Result<()> {
        self.shared.with(|state, _| {
            state.core.release(session, lease, &mut state.actions)?;
            state.apply(None);
            let epoch = state.epoch;
            state.traces.end(lease, || micros_since(epoch));
            state.tickets.lease_ended(lease);
            Ok(())
        })
    }

    /// Drops a block whose bytes are not what was saved; whether it was still there.
    ///
    /// # Errors
    /// [`Error::Core`].
    pub fn report_corrupt(
        &self,
        session: SessionId,
        key: &BlockKey,
        place: Place,
        generation: u32,
    ) -> Result<bool> {
        self.shared.with(|state, _| {
            let State { core, actions, .. } = state;
            let dropped = core.report_corrupt(session, key, place, generation, actions)?;
            state.apply(None);
            if dropped {
                if let Some(tier) = &state.tier {
                    tier.suspect(*key);
                }
                tracing::error!(
                    %key,
                    ?place,
                    generation,
                    session = session.0,
                    "block dropped: a client found bytes that are not what was saved"
                );
            }
            Ok(dropped)
        })
    }

    /// The copies of an ended session of the same process are over: what it had reserved is free.
    ///
    /// # Errors
    /// [`Error::Core`] if `caller` is not open; [`Error::Refused`] if the ended session was that of
    /// another process, or has not ended.
    pub fn quiesced(&self, caller: SessionId, ended: SessionId) -> Result<()> {
        self.shared.with(|state, _| {
            let open = state.sessions.get(caller);
            let open = open.ok_or(crate::core::Error::UnknownSession(caller))?;
            let (process, closed) = match state.sessions.get(ended) {
                Some(session) => (session.entry.process, session.closed),
                None => match state.sessions.left_over(ended) {
                    Some(entry) => (entry.process, true),
                    // Nothing is left of it: as wished.
                    None => return Ok(()),
                },
            };
            if process != open.entry.process || !closed {
                return Err(Error::Refused {
                    why: "that session is not an ended one of the caller's process".to_owned(),
                });
            }
            Ok(())
        })?;
        self.session_gone(ended);
        Ok(())
    }

    /// Counters and sizes.
    #[must_use]
    pub fn stats(&self) -> pb::StatsReply {
        self.shared.with(|state, _| {
            let mut all = Counters::default();
            state.core.counters().for_each(|(_, one)| all += *one);
            let stats = state.core.stats();
            let ssd = state.tier.as_ref().map(|tier| tier.stats());
            pb::StatsReply {
                blocks: stats.sealed_blocks,
                capacity_bytes: stats.capacity_bytes,
                used_bytes: stats.used_bytes,
                detached_blocks: stats.detached_blocks,
                writing_blocks: stats.writing_blocks,
                sessions: stats.sessions,
                leases: stats.leases,
                tickets: state.tickets.in_use(),
                lookup_keys: all.lookup_keys,
                lookup_hits: all.hit_blocks,
                sealed: all.sealed_blocks,
                evicted: all.evicted_blocks,
                corrupt: all.corrupt_blocks,
                out_of_budget: all.refused_blocks,
                recovered: state.recovered,
                dropped_unsealed: state.dropped_unsealed,
                metadata_bytes: stats.metadata_bytes,
                ssd_fetched: ssd.as_ref().map_or(0, |ssd| ssd.fetched_blocks),
                ssd_spilled: ssd.as_ref().map_or(0, |ssd| ssd.spilled_blocks),
                ssd_waiting: ssd.as_ref().map_or(0, |ssd| ssd.spill_waiting_blocks),
                ssd_spilling_bytes: ssd.as_ref().map_or(0, |ssd| ssd.spilling_bytes),
            }
        })
    }

    /// Figures of the SSD tier, if there is one.
    #[must_use]
    pub fn ssd_stats(&self) -> Option<SsdStats> {
        let tier = self.shared.with(|state, _| state.tier.clone());
        tier.map(|tier| tier.stats())
    }

    /// What the tenants of the configuration have on SSD and moved so far; others together, or each by
    /// itself, without a name. Empty without an SSD tier.
    #[must_use]
    pub fn ssd_tenants(&self) -> Vec<(Option<String>, SsdUsage)> {
        let tier = self.shared.with(|state, _| state.tier.clone());
        tier.map(|tier| tier.tenants()).unwrap_or_default()
    }

    /// Shows the core to `f`, for gauges and counters.
    pub fn inspect<R>(&self, f: impl FnOnce(&crate::core::Core) -> R) -> R {
        self.shared.with(|state, _| f(&state.core))
    }
}

fn same_stages(known: &NamespaceLayout, new: &NamespaceLayout) -> Result<()> {
    let stages = |layout: &NamespaceLayout| {
        let ends = layout.groups.iter().map(|group| group.stage_ends.clone());
        ends.collect::<Vec<_>>()
    };
    if stages(known) == stages(new) {
        return Ok(());
    }
    Err(Error::protocol(format_args!(
        "the namespace is registered with stages that end at {:?}",
        stages(known)
    )))
}

impl State {
    /// Begins to fetch what a lookup that was just made lacks and SSD has; how many of the blocks it waits for
    /// come from there.
    pub(super) fn fetch_rest(
        &mut self,
        now: Now,
        session: SessionId,
        request: &LookupRequest<'_>,
        purpose: Purpose,
    ) -> u32 {
        let Some(tier) = self.tier.clone().filter(|_| request.ticket.is_some()) else {
            return 0;
        };
        tier.extend(self, now, session, request, purpose)
            .unwrap_or_else(|error| {
                // The lookup stands without what is on SSD.
                tracing::debug!(%error, session = session.0, "a lookup goes without SSD");
                0
            })
    }

    fn check_records_fit(&mut self, layout: &NamespaceLayout) -> Result<()> {
        for group in &layout.groups {
            group.validate()?;
            if !self.fits(group) {
                return Err(Error::protocol(format_args!(
                    "a block of {} bytes is too small for {} checksums of 8 bytes; use longer blocks or fewer stages",
                    group.shape.bytes(),
                    group.checksums()
                )));
            }
        }
        let room = tables::namespace_room(&self.pools[0].geometry, self.namespaces_end);
        if room < NAMESPACE_BYTES_MAX as u64 {
            return Err(Error::Limit {
                what: "namespaces written down",
                limit: self.namespaces.len() as u64,
                setting: "namespaces_max",
            });
        }
        Ok(())
    }

    fn write_namespace(&mut self, bytes: &[u8]) {
        let pool = &self.pools[0];
        let end =
            tables::append_namespace(&*pool.control, &pool.geometry, self.namespaces_end, bytes);
        debug_assert!(end.is_some(), "room was checked");
        self.namespaces_end = end.unwrap_or(self.namespaces_end);
    }

    fn check_memory(&self, session: SessionId) -> Result<()> {
        match self.sessions.get(session) {
            Some(held) if held.has_memory => Ok(()),
            Some(_) => Err(Error::Refused {
                why: "a session without the pools cannot write to them; connect to the session socket"
                    .to_owned(),
            }),
            None => Err(crate::core::Error::UnknownSession(session).into()),
        }
    }

    fn stages(&self, call: &ReserveCall<'_>) -> Result<WriteLease> {
        let layout = self.namespaces.get(call.namespace.0 as usize);
        let layout = layout.ok_or(crate::core::Error::UnknownNamespace(call.namespace))?;
        let group = layout.groups.get(usize::from(call.group.0));
        let unknown = crate::core::Error::UnknownGroup(call.namespace, call.group);
        let group = group.ok_or(unknown)?;
        Ok(WriteLease {
            session: SessionId(0),
            heads_all: group.shape.heads,
            stages: group.stages_of(call.slot)?,
            heads: call.slot.heads.clone(),
            open: 0,
        })
    }

    pub(super) fn take_ticket(
        &mut self,
        now: Now,
        wanted: bool,
        lease_ttl_ms: Option<u64>,
    ) -> Result<Option<TicketId>> {
        if !wanted {
            return Ok(None);
        }
        let max = self.core.settings().read_lease_ttl_max_ms;
        let ttl_ms = lease_ttl_ms.unwrap_or(max).min(max);
        let ticket = self.tickets.take(Now(now.0.saturating_add(ttl_ms)));
        let limit = u64::from(self.tickets.max());
        let (what, setting) = ("lookups that wait", "tickets_max");
        ticket.map(Some).ok_or(Error::Limit {
            what,
            limit,
            setting,
        })
    }

    /// Keeps the ticket of a lookup if there is a lease to wait for, which has `ready` blocks or tokens.
    pub(super) fn keep_ticket(
        &mut self,
        ticket: Option<TicketId>,
        lease: Option<LeaseId>,
        ready: u64,
    ) -> Option<TicketId> {
        let ticket = ticket?;
        match lease {
            Some(lease) => {
                let ready = u32::try_from(ready).unwrap_or(u32::MAX);
                self.tickets.bind(ticket, lease, ready);
                Some(ticket)
            }
            None => {
                self.tickets.give(ticket);
                None
            }
        }
    }

    /// Notes the lookup just made, if it may become a line of the log.
    fn trace_lookup(&mut self, session: SessionId, keys: usize) {
        let Some(lease) = self.lookup.lease else {
            return;
        };
        if self.traces.wants(self.lookup.pending > 0) {
            let seen = Seen {
                session,
                unit: "blocks",
                keys: keys as u32,
                at_once: self.lookup.blocks.len() as u32,
                pending: self.lookup.pending,
            };
            self.traces.begin(lease, self.now_us(), seen);
        }
    }

    fn finish_items(&mut self, lease: LeaseId, items: usize) {
        if let Entry::Occupied(mut held) = self.writes.entry(lease) {
            held.get_mut().open -= items as u32;
            if held.get().open == 0 {
                held.remove();
            }
        }
    }
}
