// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A lookup that the pools cannot answer whole: what of the rest is on SSD, and its fetch.
//!
//! Runs under the node's lock, so nothing it sees can change before it is used. It asks the store's
//! index, never the drive.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use pegaflow_meta::BlockKey;
use pegaflow_ssd::{BlockStore, Key};

use super::Tier;
use crate::core::{Answer, FetchRequest, LookupRequest, Now, Presence, SessionId};
use crate::error::Result;
use crate::node::state::State;
use crate::tier::fetch::{Fetches, Job};
use crate::tier::plan::{Limits, Place, Plan, plan};

/// Keys looked for on SSD at once: a prefix often ends early.
const CHUNK: usize = 64;
/// Blocks whose fetch begins before room is made for the rest.
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
        let Some(plan) = self.plan(state, request, &places) else {
            return Ok(fetching);
        };
        let (more, begun) = self.begin(state, now, request, known, &plan)?;
        let State { core, lookup, .. } = state;
        if let Err(error) = core.follow_on(now, session, request, more, lookup) {
            self.wait_over(ticket);
            return Err(error.into());
        }
        Ok(fetching + begun)
    }

    /// Where the blocks from key `known` on are, as far as there is no gap.
    fn locate(
        &self,
        state: &State,
        request: &LookupRequest<'_>,
        known: usize,
    ) -> Result<Vec<Place>> {
        let (mut places, mut present) = (vec![], vec![]);
        for keys in request.keys[known..].chunks(CHUNK) {
            present.clear();
            let core = &state.core;
            core.presence(request.namespace, request.group, keys, &mut present)?;
            let on_ssd = self
                .store
                .find(&keys.iter().map(|key| Key(key.0)).collect::<Vec<_>>());
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
    fn plan(&self, state: &State, request: &LookupRequest<'_>, places: &[Place]) -> Option<Plan> {
        if !places.contains(&Place::Ssd) {
            return None;
        }
        let layout = state.namespaces.get(request.namespace.0 as usize)?;
        let group = usize::from(request.group.0);
        let tokens = f64::from(layout.namespace.groups.get(group)?.block_tokens);
        let ahead_bytes = self.fetches.lock().fetches.bytes();
        let speed = self.settings.prefill_tokens_per_s;
        let limits = Limits {
            ssd: *self.estimate.lock(),
            ahead_bytes,
            budget_bytes: self.fetch_bytes_max.saturating_sub(ahead_bytes),
            block_bytes: layout.groups.get(group)?.shape.bytes(),
            compute_us: (speed > 0).then(|| tokens * 1e6 / speed as f64),
        };
        let plan = plan(places, &limits);
        let counters = &self.counters;
        counters
            .plan_over_budget
            .fetch_add(plan.over_budget.into(), Relaxed);
        counters
            .plan_too_slow
            .fetch_add(plan.too_slow.into(), Relaxed);
        (plan.fetches > 0).then_some(plan)
    }

    /// Reserves places for what is to be fetched and queues it. How many blocks can be followed, and
    /// how many of these come from SSD.
    fn begin(
        &self,
        state: &mut State,
        now: Now,
        request: &LookupRequest<'_>,
        known: usize,
        plan: &Plan,
    ) -> Result<(u32, u32)> {
        let blocks = plan.blocks as usize;
        // Making room for all takes longer than reading the first. With blocks of the pool in between
        // it is one request: that evicts none of them.
        let first = match plan.fetches == plan.blocks {
            true => blocks.min(FIRST),
            false => blocks,
        };
        let (mut more, mut begun) = self.begin_some(state, now, request, known..known + first)?;
        if more == first && first < blocks {
            let rest = known + first..known + blocks;
            // What has begun is followed, whatever becomes of the rest.
            let rest = self.begin_some(state, now, request, rest);
            let rest = rest.unwrap_or_default();
            (more, begun) = (more + rest.0, begun + rest.1);
        }
        let refused = (blocks - more) as u64;
        self.counters.plan_no_room.fetch_add(refused, Relaxed);
        Ok((more as u32, begun))
    }

    /// Reserves places for the keys in `range` and queues their fetch. How many of them can be followed,
    /// and how many of these come from SSD.
    fn begin_some(
        &self,
        state: &mut State,
        now: Now,
        request: &LookupRequest<'_>,
        range: Range<usize>,
    ) -> Result<(usize, u32)> {
        let before = range.start.checked_sub(1);
        let wanted = FetchRequest {
            namespace: request.namespace,
            group: request.group,
            parent: before.and_then(|at| request.keys.get(at)).copied(),
            keys: &request.keys[range],
        };
        let State {
            core,
            reserve,
            actions,
            ..
        } = state;
        core.reserve_fetch(now, self.session, &wanted, reserve, actions)?;
        state.apply(None);
        let answers = state.reserve.answers.iter();
        let room = answers.take_while(|answer| **answer != Answer::OutOfBudget);
        let room = room.count();
        let mut fetching = self.fetches.lock();
        queue(&mut fetching.fetches, state, &wanted);
        // Before a fetch can be over: it counts as one that the lookup waits for.
        let ticket = request.ticket.into_iter();
        let begun = ticket.map(|ticket| fetching.fetches.want(ticket, &wanted.keys[..room]));
        let begun = begun.sum();
        drop(fetching);
        self.reader.ring();
        Ok((room, begun))
    }

    /// Removes a block from the drive: its bytes are not the block's.
    pub(super) fn remove(&self, key: BlockKey) {
        if let Err(error) = self.store.remove(Key(key.0)) {
            tracing::debug!(%key, %error, "a bad block stays on SSD for now");
        }
    }
}

/// Queues the fetch of what was just given a place.
fn queue(fetches: &mut Fetches, state: &State, wanted: &FetchRequest<'_>) {
    let namespace = state.namespaces.get(wanted.namespace.0 as usize);
    let layout = namespace.and_then(|layout| layout.groups.get(usize::from(wanted.group.0)));
    let (Some(lease), Some(layout)) = (state.reserve.lease, layout) else {
        return;
    };
    for ((item, answer), key) in (0..).zip(&state.reserve.answers).zip(wanted.keys) {
        if let Answer::Place { place, .. } = *answer {
            fetches.begin(Job {
                key: *key,
                namespace: wanted.namespace,
                group: wanted.group,
                place,
                lease,
                item,
                bytes: layout.shape.bytes(),
                checksums: layout.checksums(),
            });
        }
    }
}
