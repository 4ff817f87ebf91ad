// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A lookup that the pools cannot answer whole: what of the rest is on SSD, and its fetch.
//!
//! Runs under the node's lock, so nothing it sees can change before it is used. It asks the store's
//! index, never the drive.

use std::sync::atomic::Ordering::Relaxed;

use pegaflow_meta::BlockKey;
use pegaflow_ssd::{BlockStore, Key};

use super::Tier;
use crate::core::{Answer, FetchRequest, LookupRequest, Now, Presence, SessionId};
use crate::error::Result;
use crate::node::state::State;
use crate::tier::fetch::Job;
use crate::tier::plan::{Limits, Place, Plan, plan};

/// Keys looked for on SSD at once: a prefix often ends early.
const CHUNK: usize = 64;

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
        let more = self.begin(state, now, request, known, &plan)?;
        let State { core, lookup, .. } = state;
        core.follow_on(now, session, request, more, lookup)?;
        let followed = &request.keys[known..][..more as usize];
        fetching += self.fetches.lock().fetches.want(ticket, followed);
        self.reader.ring();
        Ok(fetching)
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

    /// Reserves places for what is to be fetched and queues it. How many blocks can be followed.
    fn begin(
        &self,
        state: &mut State,
        now: Now,
        request: &LookupRequest<'_>,
        known: usize,
        plan: &Plan,
    ) -> Result<u32> {
        let before = known.checked_sub(1);
        let wanted = FetchRequest {
            namespace: request.namespace,
            group: request.group,
            parent: before.and_then(|at| request.keys.get(at)).copied(),
            keys: &request.keys[known..][..plan.blocks as usize],
        };
        let State {
            core,
            reserve,
            actions,
            ..
        } = state;
        core.reserve_fetch(now, self.session, &wanted, reserve, actions)?;
        state.apply(None);
        let answers = &state.reserve.answers;
        let room = answers
            .iter()
            .take_while(|answer| **answer != Answer::OutOfBudget)
            .count();
        let refused = plan.blocks - room as u32;
        self.counters
            .plan_no_room
            .fetch_add(refused.into(), Relaxed);
        self.queue(state, &wanted);
        Ok(room as u32)
    }

    fn queue(&self, state: &State, wanted: &FetchRequest<'_>) {
        let Some(lease) = state.reserve.lease else {
            return;
        };
        let bytes = block_bytes(state, wanted);
        let mut fetching = self.fetches.lock();
        for ((item, answer), key) in (0..).zip(&state.reserve.answers).zip(wanted.keys) {
            if let Answer::Place { place, .. } = *answer {
                fetching.fetches.begin(Job {
                    key: *key,
                    namespace: wanted.namespace,
                    group: wanted.group,
                    place,
                    lease,
                    item,
                    bytes,
                });
            }
        }
    }

    /// Removes a block from the drive: its bytes are not the block's.
    pub(super) fn remove(&self, key: BlockKey) {
        if let Err(error) = self.store.remove(Key(key.0)) {
            tracing::debug!(%key, %error, "a bad block stays on SSD for now");
        }
    }
}

fn block_bytes(state: &State, wanted: &FetchRequest<'_>) -> u64 {
    let layout = state.namespaces.get(wanted.namespace.0 as usize);
    let group = layout.and_then(|layout| layout.groups.get(usize::from(wanted.group.0)));
    group.map_or(0, |group| group.shape.bytes())
}
