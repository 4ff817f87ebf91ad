// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Which block point of a hybrid model to wait for, and what has to be fetched for it.
//!
//! A point is of use only if every group has its blocks, so the plan looks at points, not at blocks:
//! of those that the pools and the drive have together, the one for which fetching before it and
//! computing behind it take the least time. Earlier points that come whole on the way are of use at a
//! deadline: they are noted where waiting for them costs nothing.
//!
//! Invariant: every block that a point of the plan needs is in the pool, on its way there, or to be
//! fetched; and no block is waited for that the last point does not need.

use std::ops::Range;

use super::plan::Limits;
use crate::core::{Awaited, GroupBlock, GroupNeed, points};
use pegaflow_meta::GroupId;

/// Where one block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// In the pool.
    Ready,
    /// On its way there.
    Coming,
    /// On SSD.
    Ssd,
    /// Nowhere.
    Absent,
}

/// One cache group, and where its blocks are.
#[derive(Debug, Clone)]
pub struct Group {
    need: GroupNeed,
    block_bytes: u64,
    blocks: Vec<At>,
    /// How many blocks before each one, and before the end, are nowhere; on SSD; or not in the pool.
    absent: Vec<u32>,
    on_ssd: Vec<u32>,
    missing: Vec<u32>,
}

/// What to do for a hybrid lookup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// What to wait for; nothing if there are no points.
    pub awaited: Awaited,
    /// Blocks to make room for: of a group, in the order of its keys, without a gap. Those in the pool
    /// between others are named as well.
    pub runs: Vec<(GroupId, Range<u32>)>,
    /// Blocks to fetch.
    pub fetches: u32,
    /// Further blocks that the farthest point needs, not fetched because the budget is used up.
    pub over_budget: u32,
    /// Further ones that are computed faster than fetched.
    pub too_slow: u32,
}

impl Group {
    /// A group whose keys' blocks are there.
    #[must_use]
    pub fn new(need: GroupNeed, block_bytes: u64, blocks: Vec<At>) -> Self {
        let sums = |wanted: fn(At) -> bool| {
            let mut sum = 0;
            let all = blocks.iter().map(|at| {
                sum += u32::from(wanted(*at));
                sum
            });
            std::iter::once(0).chain(all).collect()
        };
        Self {
            absent: sums(|at| at == At::Absent),
            on_ssd: sums(|at| at == At::Ssd),
            missing: sums(|at| at != At::Ready),
            need,
            block_bytes,
            blocks,
        }
    }

    fn has(&self, tokens: u64) -> bool {
        count(&self.absent, self.need.needed(tokens)) == 0
    }

    fn fetches(&self, tokens: u64) -> u32 {
        count(&self.on_ssd, self.need.needed(tokens))
    }

    /// Whether the point needs no block, of those not in the pool, that the point `last` does not need.
    fn comes_before(&self, tokens: u64, last: u64) -> bool {
        let (own, of_last) = (self.need.needed(tokens), self.need.needed(last));
        count(&self.missing, own.start..own.end.min(of_last.start)) == 0
    }
}

fn count(sums: &[u32], blocks: Range<u64>) -> u32 {
    let Range { start, end } = blocks;
    match start < end {
        true => sums[end as usize] - sums[start as usize],
        false => 0,
    }
}

/// Plans what a lookup that can begin from `from` tokens should wait for. `limits.compute_us` is that of
/// a token.
#[must_use]
pub fn plan(groups: &[Group], from: u64, limits: &Limits) -> Plan {
    let has = |tokens: &u64| groups.iter().all(|group| group.has(*tokens));
    let reachable: Vec<_> = points(groups.iter().map(|group| (group.need, group.blocks.len())))
        .behind(from)
        .filter(has)
        .collect();
    let fetches = |tokens: u64| {
        let each = groups.iter().map(|group| group.fetches(tokens));
        each.sum::<u32>()
    };
    let Some(farthest) = reachable.last() else {
        return Plan::default();
    };
    let bytes = |tokens: u64| {
        let each = groups
            .iter()
            .map(|group| u64::from(group.fetches(tokens)) * group.block_bytes);
        each.sum::<u64>()
    };
    let affordable = || {
        let all = reachable.iter().map(|tokens| (*tokens, bytes(*tokens)));
        all.filter(|(_, bytes)| *bytes <= limits.budget_bytes)
    };
    let within = affordable()
        .next_back()
        .map_or(0, |(tokens, _)| fetches(tokens));
    let target = match limits.compute_us {
        Some(token_us) => cheapest(affordable(), from, *farthest, limits, token_us),
        None => affordable().next_back().map(|(tokens, _)| tokens),
    };
    let taken = target.map_or(0, fetches);
    let mut plan = target.map_or_else(Plan::default, |target| {
        on_the_way(groups, from, target, &reachable)
    });
    plan.fetches = taken;
    plan.over_budget = fetches(*farthest).saturating_sub(within);
    plan.too_slow = within.saturating_sub(taken);
    plan
}

/// The point for which fetching before it and computing behind it take the least time, the farthest of
/// several; none if that is where the lookup can begin already.
fn cheapest(
    points: impl Iterator<Item = (u64, u64)>,
    from: u64,
    farthest: u64,
    limits: &Limits,
    token_us: f64,
) -> Option<u64> {
    let computed = |tokens: u64| (farthest - tokens) as f64 * token_us;
    let mut best = (None, computed(from));
    for (tokens, bytes) in points {
        let us = limits.ssd.us(bytes, limits.ahead_bytes) + computed(tokens);
        if us <= best.1 {
            best = (Some(tokens), us);
        }
    }
    best.0
}

/// What the points up to `target` need beyond what one at `from` does, in the order of the points.
fn on_the_way(groups: &[Group], from: u64, target: u64, reachable: &[u64]) -> Plan {
    let mut plan = Plan::default();
    // Needs never go back, so what an earlier point needed lies before the end of its need.
    let mut ends: Vec<_> = groups.iter().map(|group| group.need.needed(from)).collect();
    let on_the_way = reachable.iter().filter(|tokens| {
        let free = |group: &Group| group.comes_before(**tokens, target);
        **tokens <= target && groups.iter().all(free)
    });
    let mut runs = vec![None; groups.len()];
    for tokens in on_the_way {
        for ((group, of), known) in (0..).map(GroupId).zip(groups).zip(&mut ends) {
            let needed = of.need.needed(*tokens);
            for at in needed.start.max(known.end)..needed.end {
                let block = GroupBlock {
                    group,
                    at: at as u32,
                };
                match of.blocks[at as usize] {
                    At::Ready => plan.awaited.ready.push(block),
                    At::Coming | At::Ssd | At::Absent => plan.awaited.missing.push(block),
                }
                let run = &mut runs[usize::from(group.0)];
                extend(
                    run,
                    block,
                    of.blocks[at as usize] == At::Ssd,
                    &mut plan.runs,
                );
            }
            *known = needed;
        }
        let count = plan.awaited.missing.len() as u32;
        match plan.awaited.points.last_mut() {
            Some(last) if last.0 == count => last.1 = *tokens,
            _ => plan.awaited.points.push((count, *tokens)),
        }
    }
    plan.runs
        .extend(runs.into_iter().flatten().filter_map(Run::on_ssd));
    plan
}

/// Needed blocks of a group side by side.
#[derive(Debug, Clone)]
struct Run {
    group: GroupId,
    end: u32,
    /// From the first to the last that is on SSD.
    on_ssd: Option<Range<u32>>,
}

impl Run {
    fn on_ssd(self) -> Option<(GroupId, Range<u32>)> {
        self.on_ssd.map(|blocks| (self.group, blocks))
    }
}

fn extend(
    run: &mut Option<Run>,
    block: GroupBlock,
    on_ssd: bool,
    done: &mut Vec<(GroupId, Range<u32>)>,
) {
    let GroupBlock { group, at } = block;
    if run.as_ref().is_none_or(|run| run.end != at) {
        let new = Run {
            group,
            end: at,
            on_ssd: None,
        };
        done.extend(run.replace(new).and_then(Run::on_ssd));
    }
    let Some(run) = run else { return };
    run.end = at + 1;
    if on_ssd {
        let start = run.on_ssd.as_ref().map_or(at, |blocks| blocks.start);
        run.on_ssd = Some(start..at + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tier::estimate::Estimate;
    use pegaflow_meta::GroupKind;
    use proptest::prelude::*;

    const BLOCK: u64 = 1000;
    /// Kinds and tokens a block: points are multiples of 8 tokens.
    const GROUPS: [(GroupKind, u64); 3] = [
        (GroupKind::FullAttention, 4),
        (GroupKind::SlidingWindow { window_tokens: 9 }, 4),
        (GroupKind::State, 8),
    ];

    fn limits(latency_us: u32, block_us: u32, token_us: Option<u32>, budget: u64) -> Limits {
        Limits {
            ssd: Estimate {
                latency_us: latency_us.into(),
                bytes_per_us: BLOCK as f64 / f64::from(block_us),
            },
            ahead_bytes: 0,
            budget_bytes: budget * BLOCK,
            compute_us: token_us.map(f64::from),
        }
    }

    /// `+` in the pool, `w` being written, `s` on SSD, anything else nowhere.
    fn at(text: &str) -> Vec<At> {
        let one = |c| match c {
            '+' => At::Ready,
            'w' => At::Coming,
            's' => At::Ssd,
            _ => At::Absent,
        };
        text.chars().map(one).collect()
    }

    fn groups(texts: &[&str]) -> Vec<Group> {
        let group = |(&(kind, block_tokens), text): (&(GroupKind, u64), &&str)| {
            Group::new(GroupNeed { kind, block_tokens }, BLOCK, at(text))
        };
        GROUPS.iter().zip(texts).map(group).collect()
    }

    /// Points with the number of missing blocks they wait for, against texts of the groups' blocks.
    fn check(texts: &[&str], from: u64, limits: Limits, points: &[(u32, u64)], fetches: u32) {
        let plan = plan(&groups(texts), from, &limits);
        assert_eq!(
            (&*plan.awaited.points, plan.fetches),
            (points, fetches),
            "{texts:?}"
        );
    }

    #[test]
    fn it_waits_for_points_that_all_groups_can_have() {
        let all = || limits(10, 1, None, 99);
        check(&["ssss", "ssss", "ss"], 0, all(), &[(7, 16)], 7);
        // The window and the state of an earlier point are there by chance: it comes on the way.
        check(&["ssss", "+++s", "+s"], 0, all(), &[(2, 8), (6, 16)], 6);
        // Blocks being written are waited for, and not fetched.
        check(&["++ww", "++sw", "+w"], 8, all(), &[(5, 16)], 1);
        check(&["ssss", "ss s", "ss"], 0, all(), &[(5, 8)], 5);
        check(&["ssss", "ssss", "  "], 0, all(), &[], 0);
        check(&["++++", "++++", "++"], 16, all(), &[], 0);
    }

    #[test]
    fn it_stops_where_computing_is_faster_or_the_budget_ends() {
        // Seven blocks cost 17, 16 tokens 32 or 16.
        check(
            &["ssss", "ssss", "ss"],
            0,
            limits(10, 1, Some(2), 99),
            &[(7, 16)],
            7,
        );
        check(
            &["ssss", "ssss", "ss"],
            0,
            limits(10, 1, Some(1), 99),
            &[],
            0,
        );
        check(
            &["ssss", "ssss", "ss"],
            0,
            limits(10, 1, None, 6),
            &[(5, 8)],
            5,
        );
        let plan = plan(
            &groups(&["ssss", "ssss", "ss"]),
            0,
            &limits(10, 1, Some(1), 6),
        );
        assert_eq!((plan.over_budget, plan.too_slow), (2, 5));
    }

    fn blocks(len: usize) -> impl Strategy<Value = String> {
        let one = prop_oneof![4 => Just('+'), 1 => Just('w'), 4 => Just('s'), 1 => Just(' ')];
        prop::collection::vec(one, len).prop_map(|blocks| blocks.into_iter().collect())
    }

    /// The blocks of each group that a point needs, from the definition.
    fn needed(tokens: u64) -> Vec<GroupBlock> {
        let of_group = |(group, &(kind, block)): (u16, &(GroupKind, u64))| {
            let from = match kind {
                GroupKind::SlidingWindow { window_tokens } => {
                    tokens.saturating_sub(u64::from(window_tokens) - 1)
                }
                GroupKind::State => tokens - block,
                _ => 0,
            };
            let group = GroupId(group);
            (from / block..tokens / block).map(move |at| GroupBlock {
                group,
                at: at as u32,
            })
        };
        (0..).zip(&GROUPS).flat_map(of_group).collect()
    }

    proptest! {
        /// Against the definition: every point of the plan is whole when its missing blocks have come,
        /// the last is the best of all, and no earlier one that comes whole on the way is left out.
        #[test]
        fn no_other_point_is_better(
            texts in (blocks(12), blocks(12), blocks(6)),
            token_us in prop::option::of(0..4u32), budget in 0..40u64,
        ) {
            let texts = [&*texts.0, &*texts.1, &*texts.2];
                        let at = |block: &GroupBlock| {
                at(texts[usize::from(block.group.0)])[block.at as usize]
            };
            let ready = |tokens: &u64| needed(*tokens).iter().all(|b| at(b) == At::Ready);
            let from = (1..=6).map(|n| n * 8).rfind(ready).unwrap_or(0);
            let limits = limits(5, 1, token_us, budget);
            let plan = plan(&groups(&texts), from, &limits);
            let ssd = |tokens: u64| needed(tokens).iter().filter(|b| at(b) == At::Ssd).count() as u64;
            let has = |tokens: &u64| needed(*tokens).iter().all(|b| at(b) != At::Absent);
            let reachable: Vec<_> = (from / 8 + 1..=6).map(|n| n * 8).filter(has).collect();
            let end = reachable.last().copied().unwrap_or(from);
            let cost = |tokens: u64| {
                let fetch = if tokens == from { 0.0 } else { limits.ssd.us(ssd(tokens) * BLOCK, 0) };
                fetch + (end - tokens) as f64 * f64::from(token_us.unwrap_or(1000))
            };
            let target = plan.awaited.points.last().map_or(from, |point| point.1);
            prop_assert!(target == from || (ssd(target) <= budget && reachable.contains(&target)));
            prop_assert_eq!(u64::from(plan.fetches), if target == from { 0 } else { ssd(target) });
            for other in reachable.iter().filter(|tokens| ssd(**tokens) <= budget) {
                prop_assert!(cost(target) <= cost(*other) + 1e-6, "{} is better than {target}", other);
            }

            let mut held: Vec<_> = match from { 0 => vec![], from => needed(from) };
            held.extend_from_slice(&plan.awaited.ready);
            prop_assert!(plan.awaited.ready.iter().all(|b| at(b) == At::Ready));
            let whole = |count: usize, tokens: u64| {
                let come = &plan.awaited.missing[..count];
                needed(tokens).iter().all(|b| held.contains(b) || come.contains(b))
            };
            for (count, tokens) in &plan.awaited.points {
                prop_assert!(whole(*count as usize, *tokens), "{tokens} is not whole");
            }
            for tokens in reachable.iter().filter(|tokens| **tokens <= target) {
                let of_target = needed(target);
                let free = needed(*tokens).iter().all(|b| at(b) == At::Ready || of_target.contains(b));
                let told = plan.awaited.points.iter().any(|(_, told)| told >= tokens);
                prop_assert!(!free || told);
            }
            let in_runs = |b: &&GroupBlock| plan.runs.iter().any(|(g, r)| *g == b.group && r.contains(&b.at));
            let fetched = plan.awaited.missing.iter().filter(|b| at(b) == At::Ssd);
            prop_assert!(fetched.clone().all(|b| in_runs(&b)));
            prop_assert_eq!(fetched.count(), plan.fetches as usize);
            for (group, run) in &plan.runs {
                for at in run.clone() {
                    let block = GroupBlock { group: *group, at };
                    prop_assert!(plan.awaited.missing.contains(&block) || held.contains(&block));
                }
            }
        }
    }
}
