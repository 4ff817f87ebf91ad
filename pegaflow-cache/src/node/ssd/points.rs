// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Blocks on SSD that a block point of a hybrid model needs: all of them are begun, or none.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;

use pegaflow_meta::BlockKey;
use pegaflow_ssd::{BlockStore, Key};

use super::Tier;
use super::fetch::give_up;
use super::plan::jobs;
use crate::core::{Answer, FetchRequest, GroupBlock, HybridRequest, Now};
use crate::error::Result;
use crate::node::state::State;
use crate::tier::fetch::Job;
use crate::tier::points::{At, Plan};
use crate::tier::share::Tag;

/// What is to be fetched, by what it is.
type Jobs = HashMap<GroupBlock, Job>;

impl Tier {
    /// Whether the drive keeps failing.
    pub(in crate::node) fn is_left_alone(&self, now: Now) -> bool {
        self.breaker.lock().is_open(now)
    }

    /// Finds those of the blocks that are not in the pools.
    pub(in crate::node) fn find_absent(&self, tag: Tag, keys: &[BlockKey], blocks: &mut [At]) {
        let absent = |at: &usize| blocks[*at] == At::Absent;
        let absent: Vec<_> = (0..keys.len()).filter(absent).collect();
        let names: Vec<_> = absent.iter().map(|at| Key(tag.name(keys[*at]))).collect();
        let fetching = self.fetches.lock();
        for (at, found) in absent.into_iter().zip(self.store.find(&names)) {
            // One that is under way and not in the core was given up: its place is not free yet.
            if found.is_some() && !fetching.fetches.has(&keys[at]) {
                blocks[at] = At::Ssd;
            }
        }
    }

    /// Begins all fetches of a plan, and lets the lookup's ticket want them and what else it waits for; how
    /// many come from SSD. Where there is no room for all of them none is begun: there was for so many
    /// bytes.
    pub(in crate::node) fn begin_points(
        &self,
        state: &mut State,
        now: Now,
        request: &HybridRequest<'_>,
        plan: &Plan,
    ) -> Result<std::result::Result<u32, u64>> {
        let Some(ticket) = request.ticket else {
            return Ok(Ok(0));
        };
        let mut begun = Jobs::new();
        let room = self.reserve_points(state, now, request, plan, &mut begun);
        if !matches!(room, Ok(true)) {
            let bytes = begun.values().map(|job| job.bytes).sum();
            for job in begun.values() {
                give_up(state, now, self, job, true);
            }
            self.counters
                .plan_no_room
                .fetch_add(u64::from(plan.fetches) - begun.len() as u64, Relaxed);
            return room.map(|_| Err(bytes));
        }
        self.count_skipped(plan.over_budget, plan.too_slow);
        let missing = plan.awaited.missing.iter();
        let keys = missing
            .clone()
            .map(|block| request.groups[usize::from(block.group.0)].keys[block.at as usize]);
        let keys: Vec<_> = keys.collect();
        let mut fetching = self.fetches.lock();
        for job in missing.filter_map(|block| begun.remove(block)) {
            fetching.fetches.begin(job, ticket, true);
        }
        debug_assert!(begun.is_empty(), "what is fetched is waited for");
        let fetches = fetching.fetches.want(ticket, &keys);
        drop(fetching);
        self.reader.ring();
        Ok(Ok(fetches))
    }

    /// Reserves the places of a plan; whether there is room for all.
    fn reserve_points(
        &self,
        state: &mut State,
        now: Now,
        request: &HybridRequest<'_>,
        plan: &Plan,
        begun: &mut Jobs,
    ) -> Result<bool> {
        for (group, run) in &plan.runs {
            let keys = request.groups[usize::from(group.0)].keys;
            let wanted = FetchRequest {
                namespace: request.namespace,
                group: *group,
                parent: run.start.checked_sub(1).map(|at| keys[at as usize]),
                keys: &keys[run.start as usize..run.end as usize],
            };
            let State {
                core,
                reserve,
                actions,
                ..
            } = state;
            core.reserve_fetch(now, self.session, &wanted, reserve, actions)?;
            state.apply(None);
            let block = |job: &Job| GroupBlock {
                group: *group,
                at: run.start + job.item,
            };
            begun.extend(jobs(state, &wanted).map(|job| (block(&job), job)));
            if state.reserve.answers.contains(&Answer::OutOfBudget) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
