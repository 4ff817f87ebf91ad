// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A lookup that the pools cannot answer whole: what of the rest is on SSD, and its fetch.
//!
//! Runs under the node's lock, so nothing it sees can change before it is used. It asks the store's
//! index, never the drive. A lookup makes room for its first blocks only; the thread that fetches makes
//! the rest, step by step, and the lock is free between.

use std::sync::atomic::Ordering::Relaxed;

use pegaflow_meta::BlockKey;
use pegaflow_ssd::{BlockStore, Key};

use super::Tier;
use super::stats::Counters;
use crate::core::{Answer, FetchRequest, LookupRequest, Now, Presence, SessionId, TicketId};
use crate::error::Result;
use crate::node::state::State;
use crate::tier::fetch::{Fetches, Job, Promise, Purpose, Step};
use crate::tier::plan::{Limits, Place, Plan, plan};
use crate::tier::share::Tag;

/// Keys looked for on SSD at once: a prefix often ends early.
const CHUNK: usize = 64;
/// Blocks that a lookup makes room for before it is answered.
const FIRST: usize = 16;

impl Tier {
    /// Extends a lookup that was just made, and has a ticket, by blocks on SSD: their fetch is begun
    /// and the ticket follows it. How many of the blocks that it waits for come from SSD.
    pub(in crate::node) fn extend(
        &self,
        state: &mut State,
        now: Now,
        session: SessionId,
        request: &LookupRequest<'_>,
        purpose: Purpose,
    ) -> Result<u32> {
        let Some(ticket) = request.ticket else {
            return Ok(0);
        };
        let ready = state.lookup.blocks.len();
        let known = ready + state.lookup.pending as usize;
        let mut fetching = 0;
        if known > ready {
            let fetches = &mut self.fetches.lock().fetches;
            fetching = fetches.want(ticket, &request.keys[ready..known]);
        }
        if known == request.keys.len() || self.breaker.lock().is_open(now) {
            return Ok(fetching);
        }
        let places = self.locate(state, request, known)?;
        let Some(plan) = self.plan(state, request, &places, purpose) else {
            return Ok(fetching);
        };
        let more = self.follow(state, now, session, request, &plan, purpose);
        if more.is_err() {
            self.wait_over(ticket);
        }
        Ok(fetching + more?)
    }

    /// Begins what was planned and lets the lookup wait for it; how many of the blocks come from SSD.
    fn follow(
        &self,
        state: &mut State,
        now: Now,
        session: SessionId,
        request: &LookupRequest<'_>,
        plan: &Plan,
        purpose: Purpose,
    ) -> Result<u32> {
        let known = state.lookup.blocks.len() + state.lookup.pending as usize;
        let keys = &request.keys[known..][..plan.blocks as usize];
        // With blocks of the pool in between it is one request: that evicts none of them.
        let at_once = match plan.fetches == plan.blocks {
            true => keys.len().min(FIRST),
            false => keys.len(),
        };
        let fresh = purpose == Purpose::Lookup;
        let wanted = FetchRequest {
            namespace: request.namespace,
            group: request.group,
            parent: known.checked_sub(1).map(|at| request.keys[at]),
            keys: &keys[..at_once],
        };
        let (room, fetching) = self.begin(state, now, &wanted, request.ticket, fresh)?;
        let later = match room == at_once {
            true => &keys[at_once..],
            false => &[],
        };
        let State { core, lookup, .. } = state;
        let (begun, promised) = (room as u32, later.len() as u32);
        core.follow_on(now, session, request, begun, promised, lookup)?;
        self.promise(state, request, wanted.keys, later);
        let refused = (keys.len() - room - later.len()) as u64;
        self.counters.plan_no_room.fetch_add(refused, Relaxed);
        Ok(fetching + promised)
    }

    /// Leaves blocks behind `begun` to the thread that fetches.
    fn promise(
        &self,
        state: &State,
        request: &LookupRequest<'_>,
        begun: &[BlockKey],
        later: &[BlockKey],
    ) {
        let layout = state.group(request.namespace, request.group);
        let (Some(ticket), Some(lease)) = (request.ticket, state.lookup.lease) else {
            return;
        };
        let (Some(parent), Some(layout), false) = (begun.last(), layout, later.is_empty()) else {
            return;
        };
        let promise = Promise {
            lease,
            namespace: request.namespace,
            group: request.group,
            parent: *parent,
            keys: later.iter().copied().collect(),
            block_bytes: layout.shape.bytes(),
        };
        self.fetches.lock().fetches.promise(ticket, promise);
        self.reader.ring();
    }

    /// Makes room for some blocks that were promised, if there are any and little waits for the drive.
    pub(super) fn step(&self, state: &mut State, now: Now) {
        let next = {
            let fetches = &mut self.fetches.lock().fetches;
            let ticket = fetches.next_step();
            ticket.and_then(|ticket| Some((ticket, fetches.step(ticket)?)))
        };
        let Some((ticket, step)) = next else { return };
        let room = self.begin_step(state, now, ticket, &step);
        let last = room < step.keys.len();
        if last {
            let later = self.fetches.lock().fetches.take_back_promise(ticket);
            let refused = (step.keys.len() - room) as u64 + u64::from(later);
            self.counters.plan_no_room.fetch_add(refused, Relaxed);
        }
        let State { core, actions, .. } = state;
        core.promised(step.lease, room as u32, last, actions);
        state.apply(None);
    }

    /// How many blocks of the step can be waited for.
    fn begin_step(&self, state: &mut State, now: Now, ticket: TicketId, step: &Step) -> usize {
        let mut presence = vec![];
        let known = state
            .core
            .presence(step.namespace, step.group, &step.keys, &mut presence);
        debug_assert!(known.is_ok(), "{known:?}");
        let free = {
            let fetches = &self.fetches.lock().fetches;
            // As in `locate`: its place is not free yet.
            let given_up =
                |(key, at): &(&BlockKey, &Presence)| **at == Presence::Absent && fetches.has(key);
            let keys = step.keys.iter().zip(&presence);
            keys.take_while(|one| !given_up(one)).count()
        };
        let wanted = FetchRequest {
            namespace: step.namespace,
            group: step.group,
            parent: Some(step.parent),
            keys: &step.keys[..free],
        };
        match self.begin(state, now, &wanted, Some(ticket), false) {
            Ok((room, _)) => room,
            Err(error) => {
                // The lookup gets what it has.
                tracing::debug!(%error, lease = step.lease.0, "a prefix from SSD is cut short");
                0
            }
        }
    }

    /// Where the blocks from key `known` on are, as far as there is no gap.
    fn locate(
        &self,
        state: &State,
        request: &LookupRequest<'_>,
        known: usize,
    ) -> Result<Vec<Place>> {
        let (mut places, mut present) = (vec![], vec![]);
        let tag = state.tag(request.namespace);
        for keys in request.keys[known..].chunks(CHUNK) {
            present.clear();
            let core = &state.core;
            core.presence(request.namespace, request.group, keys, &mut present)?;
            let on_ssd = self.store.find(
                &keys
                    .iter()
                    .map(|key| Key(tag.name(*key)))
                    .collect::<Vec<_>>(),
            );
            let fetching = self.fetches.lock();
            for ((key, present), on_ssd) in keys.iter().zip(&present).zip(on_ssd) {
                // A block that is under way and not in the core was given up: its place is not free yet.
                places.push(match present {
                    Presence::Ready | Presence::Writing => Place::Ram,
                    Presence::Absent if on_ssd.is_some() && !fetching.fetches.has(key) => {
                        Place::Ssd
                    }
                    Presence::Absent => return Ok(places),
                });
            }
        }
        Ok(places)
    }

    /// What to fetch; none if it is nothing.
    fn plan(
        &self,
        state: &State,
        request: &LookupRequest<'_>,
        places: &[Place],
        purpose: Purpose,
    ) -> Option<Plan> {
        if !places.contains(&Place::Ssd) {
            return None;
        }
        let layout = state.namespaces.get(request.namespace.0 as usize)?;
        let group = usize::from(request.group.0);
        let tokens = layout.namespace.groups.get(group)?.block_tokens;
        let block_bytes = layout.groups.get(group)?.shape.bytes();
        let mut limits = self.limits(tokens);
        limits.compute_us = limits.compute_us.filter(|_| purpose == Purpose::Lookup);
        let plan = plan(places, block_bytes, &limits);
        self.count_skipped(plan.over_budget, plan.too_slow);
        (plan.fetches > 0).then_some(plan)
    }

    /// What limits a plan whose steps are so many tokens long.
    pub(in crate::node) fn limits(&self, step_tokens: u32) -> Limits {
        let ahead_bytes = self.fetches.lock().fetches.bytes();
        let speed = self.settings.prefill_tokens_per_s;
        Limits {
            ssd: *self.estimate.lock(),
            ahead_bytes,
            budget_bytes: self.fetch_bytes_max.saturating_sub(ahead_bytes),
            compute_us: (speed > 0).then(|| f64::from(step_tokens) * 1e6 / speed as f64),
        }
    }

    /// Counts blocks on SSD that a lookup does without.
    pub(super) fn count_skipped(&self, over_budget: u32, too_slow: u32) {
        let Counters {
            plan_over_budget,
            plan_too_slow,
            ..
        } = &self.counters;
        plan_over_budget.fetch_add(over_budget.into(), Relaxed);
        plan_too_slow.fetch_add(too_slow.into(), Relaxed);
    }

    /// Reserves places and queues their fetch, in the turn of `ticket`; `fresh` if that has had nothing
    /// yet. How many of the blocks can be followed, and how many of these come from SSD.
    fn begin(
        &self,
        state: &mut State,
        now: Now,
        wanted: &FetchRequest<'_>,
        ticket: Option<TicketId>,
        fresh: bool,
    ) -> Result<(usize, u32)> {
        let State {
            core,
            reserve,
            actions,
            ..
        } = state;
        let Some(ticket) = ticket.filter(|_| !wanted.keys.is_empty()) else {
            return Ok((0, 0));
        };
        core.reserve_fetch(now, self.session, wanted, reserve, actions)?;
        state.apply(None);
        let answers = state.reserve.answers.iter();
        let room = answers.take_while(|answer| **answer != Answer::OutOfBudget);
        let room = room.count();
        let mut fetching = self.fetches.lock();
        queue(&mut fetching.fetches, state, wanted, ticket, fresh);
        // Before a fetch can be over: it counts as one that the lookup waits for.
        let begun = fetching.fetches.want(ticket, &wanted.keys[..room]);
        drop(fetching);
        self.reader.ring();
        Ok((room, begun))
    }

    /// Removes a block from the drive: its bytes are not the block's.
    pub(super) fn remove(&self, key: BlockKey, tag: Tag) {
        if let Err(error) = self.store.remove(Key(tag.name(key))) {
            tracing::debug!(%key, %error, "a bad block stays on SSD for now");
        }
    }
}

/// Queues the fetch of what was just given a place.
fn queue(
    fetches: &mut Fetches,
    state: &State,
    wanted: &FetchRequest<'_>,
    ticket: TicketId,
    fresh: bool,
) {
    for job in jobs(state, wanted) {
        fetches.begin(job, ticket, fresh);
    }
}

/// What is to be read into the places that were just given.
pub(super) fn jobs(state: &State, wanted: &FetchRequest<'_>) -> impl Iterator<Item = Job> {
    let FetchRequest {
        namespace,
        group,
        keys,
        ..
    } = *wanted;
    let held = state.reserve.lease.zip(state.group(namespace, group));
    let answers = (0..).zip(&state.reserve.answers).zip(keys);
    answers.filter_map(move |((item, answer), key)| {
        let (Answer::Place { place, .. }, Some((lease, layout))) = (*answer, held) else {
            return None;
        };
        Some(Job {
            key: *key,
            namespace,
            group,
            tag: state.tag(namespace),
            place,
            lease,
            item,
            bytes: layout.shape.bytes(),
            checksums: layout.checksums(),
        })
    })
}
