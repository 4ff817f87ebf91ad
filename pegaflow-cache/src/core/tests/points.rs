// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Hybrid lookups that wait, planned and held as a node does it, against the definition of a point.

use super::hybrid::{GROUPS, all_keys, all_requests, group_key, hybrid, needed, usable};
use super::rig::*;
use crate::core::*;
use crate::tier::plan::Limits;
use crate::tier::points::{At, Group, Plan, plan};
use pegaflow_meta::GroupId;
use proptest::prelude::*;
use std::collections::HashMap;

const T: TicketId = TicketId(7);

/// A block on its way, by the lease and item that writes it; or what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Open(LeaseId, u32),
    Sealed,
    Lost,
}

/// A lookup by B that waits for what A writes or fetches.
struct Waiting {
    rig: Rig,
    found: HybridReply,
    plan: Plan,
    ways: HashMap<GroupBlock, Way>,
}

impl Waiting {
    /// `+` ready, `w` being written, `s` on SSD, anything else nowhere; `room` blocks are free.
    fn new(blocks: [&[At]; 3], room: u64) -> Option<Self> {
        let is = |wanted| blocks.map(|blocks| blocks.iter().map(|at| *at == wanted).collect());
        let ready: [Vec<bool>; 3] = is(At::Ready);
        let all = blocks.concat();
        let known = all.iter().filter(|at| matches!(at, At::Ready | At::Coming));
        let mut rig = hybrid(
            known.count() as u64 + room,
            ready.each_ref().map(|group| &**group),
        );
        let mut ways = HashMap::new();
        for (group, coming) in (0..).zip::<[Vec<bool>; 3]>(is(At::Coming)) {
            rig.group = GroupId(group);
            for at in (0..)
                .zip(coming)
                .filter(|(_, coming)| *coming)
                .map(|(at, _)| at)
            {
                let key = group_key(usize::from(group), u64::from(at));
                let lease = rig.reserve(A, &[key]).lease.expect("a place");
                let block = GroupBlock {
                    group: GroupId(group),
                    at,
                };
                ways.insert(block, Way::Open(lease, 0));
            }
        }
        let needs = rig.core.group_needs(rig.namespace).expect("registered");
        let groups = needs.into_iter().zip(blocks);
        let groups: Vec<_> = groups
            .map(|(need, blocks)| Group::new(need, BLOCK_BYTES, blocks.to_vec()))
            .collect();
        let found = rig.find_waiting(Some(T));
        let limits = Limits {
            budget_bytes: u64::MAX,
            ..Limits::default()
        };
        let plan = plan(&groups, found.tokens, &limits);
        let waiting = Self {
            rig,
            found,
            plan,
            ways,
        };
        waiting.begin()
    }

    /// Holds, fetches and waits, as a node does; none if there is too little room, or nothing to wait for.
    fn begin(mut self) -> Option<Self> {
        let keys = [0, 1, 2].map(all_keys);
        let requests = all_requests(&keys);
        let request = self.rig.request(&requests, Some(T));
        let Self {
            rig,
            found,
            plan,
            ways,
        } = &mut self;
        if plan.awaited.points.is_empty() {
            return None;
        }
        let held = rig
            .core
            .hold_more(rig.now, B, &request, &plan.awaited.ready, found);
        held.expect("there is room for a lease");
        for (group, run) in &plan.runs {
            let keys = &keys[usize::from(group.0)];
            let wanted = FetchRequest {
                namespace: rig.namespace,
                group: *group,
                parent: run.start.checked_sub(1).map(|at| keys[at as usize]),
                keys: &keys[run.start as usize..run.end as usize],
            };
            let mut reply = ReserveReply::default();
            let fetched = rig
                .core
                .reserve_fetch(rig.now, A, &wanted, &mut reply, &mut rig.actions);
            fetched.expect("reserves");
            for (item, answer) in (0..).zip(&reply.answers) {
                if let (Answer::Place { .. }, Some(lease)) = (answer, reply.lease) {
                    let block = GroupBlock {
                        group: *group,
                        at: run.start + item,
                    };
                    ways.insert(block, Way::Open(lease, item));
                }
            }
            if reply.answers.contains(&Answer::OutOfBudget) {
                self.give_up();
                return None;
            }
        }
        let waits = rig.core.await_points(&request, &plan.awaited, found);
        waits.expect("it has a lease and a ticket");
        Some(self)
    }

    fn give_up(mut self) {
        let open: Vec<_> = self.ways.keys().copied().collect();
        open.into_iter().for_each(|block| self.finish(block, false));
        let lease = self.found.lease.expect("held");
        self.rig
            .core
            .hold_less(lease, self.found.blocks.len(), &mut self.rig.actions);
        if !self.found.blocks.is_empty() {
            let released = self.rig.core.release(B, lease, &mut self.rig.actions);
            released.expect("as it was before");
        }
        assert_eq!(self.rig.core.stats().leases, 0);
        self.rig.done();
    }

    /// Ends the way of a block: seals it, or loses it.
    fn finish(&mut self, block: GroupBlock, good: bool) {
        let Some(Way::Open(lease, item)) = self.ways.get(&block).copied() else {
            return;
        };
        let Rig {
            core, actions, now, ..
        } = &mut self.rig;
        match good {
            true => drop(core.seal(*now, A, lease, &[item], actions).expect("open")),
            false => core
                .drop_items(*now, A, lease, &[item], true, actions)
                .expect("open"),
        }
        let after = if good { Way::Sealed } else { Way::Lost };
        self.ways.insert(block, after);
    }

    /// Tokens by the definition: the farthest point told whose blocks, and those waited for before them,
    /// have all come.
    fn tokens(&self) -> u64 {
        let missing = self.plan.awaited.missing.iter();
        let come = missing
            .take_while(|block| self.ways[*block] == Way::Sealed)
            .count();
        let points = self.plan.awaited.points.iter();
        let whole = points.filter(|(count, _)| *count as usize <= come);
        whole
            .map(|point| point.1)
            .next_back()
            .unwrap_or(self.found.tokens)
    }

    /// What the client gets now: a whole point, all of it, and nothing else.
    fn check_claim(&self) {
        let mut claimed = HybridReply::default();
        let lease = self.found.lease.expect("it waits");
        let answer = self.rig.core.claim_hybrid(B, lease, &mut claimed);
        answer.expect("the lease lives");
        assert_eq!(claimed.tokens, self.tokens());
        let groups = claimed
            .groups
            .iter()
            .map(|range| range.start as usize..range.end as usize);
        for (group, range) in groups.enumerate() {
            let ats: Vec<_> = claimed.blocks[range]
                .iter()
                .map(|block| u64::from(block.key))
                .collect();
            let wanted: Vec<_> = needed(group, claimed.tokens as u32).collect();
            assert_eq!(ats, wanted, "group {group} at {} tokens", claimed.tokens);
        }
        let mut places: Vec<_> = claimed.blocks.iter().map(|block| block.place).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(
            places.len(),
            claimed.blocks.len(),
            "each block has a place of its own"
        );
    }
}

fn blocks(len: usize) -> impl Strategy<Value = Vec<At>> {
    let one = prop_oneof![
        6 => Just(At::Ready), 1 => Just(At::Coming), 6 => Just(At::Ssd), 1 => Just(At::Absent)
    ];
    prop::collection::vec(one, len)
}

proptest! {
    /// Blocks come in any order, or are lost; others are saved meanwhile. At each step the lease gives a
    /// whole point and the ticket tells it, and in the end nothing is left behind.
    #[test]
    fn at_any_time_a_whole_point_or_nothing(
        full in blocks(20), window in blocks(20), state in blocks(10),
        room in prop_oneof![Just(60u64), 0..40u64],
        steps in prop::collection::vec((any::<prop::sample::Index>(), prop::bool::weighted(0.97)), 0..60),
    ) {
        let Some(mut waiting) = Waiting::new([&full, &window, &state], room) else {
            return Ok(());
        };
        waiting.check_claim();
        waiting.rig.group = GroupId(0);
        let others: Vec<_> = (0..4).map(|n| key(90_000 + n)).collect();
        waiting.rig.save(A, &others);
        let all: Vec<_> = waiting.plan.awaited.missing.clone();
        let mut told = waiting.found.tokens;
        for (which, good) in steps {
            let next = if all.is_empty() { continue } else { *which.get(&all) };
            waiting.finish(next, good);
            waiting.check_claim();
            for action in waiting.rig.drain() {
                if let Action::Ticket { ticket: T, ready, .. } = action {
                    told = ready.into();
                }
            }
            prop_assert_eq!(told, waiting.tokens());
        }
        all.iter().for_each(|block| waiting.finish(*block, true));
        waiting.check_claim();
        let lost = waiting.ways.values().any(|way| *way == Way::Lost);
        prop_assert!(lost || waiting.tokens() == waiting.found.pending_tokens);
        let blocks = [&full, &window, &state].map(|blocks| blocks.iter().map(|at| *at != At::Absent).collect());
        let there: [Vec<bool>; 3] = blocks;
        prop_assert!(waiting.tokens() == 0 || usable(waiting.tokens() as u32, there.each_ref().map(|b| &**b)));
        let (lease, open) = (waiting.found.lease.expect("it waits"), waiting.ways.keys().copied());
        open.collect::<Vec<_>>().into_iter().for_each(|block| waiting.finish(block, false));
        waiting.rig.core.release(B, lease, &mut waiting.rig.actions).expect("the lease lives");
        prop_assert_eq!(waiting.rig.core.stats().leases, 0);
        waiting.rig.done();
    }
}

#[test]
fn a_lease_that_does_not_wait_is_not_claimed_as_one_that_does() {
    let mut rig = hybrid(64, [&[true; 20], &[true; 20], &[true; 10]]);
    let found = rig.find_waiting(None);
    let lease = found.lease.expect("pinned");
    let claimed = rig.core.claim_hybrid(B, lease, &mut HybridReply::default());
    assert!(matches!(claimed, Err(Error::Bad { what: "lease", .. })));
    let other = rig.core.claim_hybrid(A, lease, &mut HybridReply::default());
    assert_eq!(other, Err(Error::UnknownLease(lease)));
    rig.core.release(B, lease, &mut rig.actions).expect("held");
    rig.done();
}

#[test]
fn a_ticket_needs_a_lease() {
    let mut rig = hybrid(64, [&[], &[], &[]]);
    let keys = [0, 1, 2].map(all_keys);
    let requests = all_requests(&keys);
    let request = HybridRequest {
        lease_ttl_ms: None,
        ..rig.request(&requests, Some(T))
    };
    let refused = rig
        .core
        .lookup_hybrid(rig.now, B, &request, &mut HybridReply::default());
    assert!(matches!(refused, Err(Error::Bad { what: "ticket", .. })));
    assert_eq!(GROUPS.len(), requests.len());
    rig.done();
}
