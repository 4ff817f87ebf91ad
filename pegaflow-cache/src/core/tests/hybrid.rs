// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
use super::rig::*;
use crate::core::*;
use pegaflow_meta::{BlockKey, GroupId, GroupKind};
use proptest::prelude::*;

pub(super) const GROUPS: [(GroupKind, u32); 3] = [
    (GroupKind::FullAttention, 16),
    (GroupKind::SlidingWindow { window_tokens: 33 }, 16),
    (GroupKind::State, 32),
];
const TOKENS: u32 = 320;

pub(super) fn group_key(group: usize, at: u64) -> BlockKey {
    key(group as u64 * 1000 + at)
}

pub(super) fn all_keys(group: usize) -> Vec<BlockKey> {
    (0..u64::from(TOKENS / GROUPS[group].1))
        .map(|at| group_key(group, at))
        .collect()
}

/// Every group with its keys.
pub(super) fn all_requests(keys: &[Vec<BlockKey>; 3]) -> Vec<GroupKeys<'_>> {
    let groups = (0..).map(GroupId).zip(keys);
    groups
        .map(|(group, keys)| GroupKeys { group, keys })
        .collect()
}

/// A node with room for `capacity` blocks and the given ones of each group.
pub(super) fn hybrid(capacity: u64, present: [&[bool]; 3]) -> Rig {
    let mut rig = Rig::new(capacity);
    let spec = spec("one", 2, &GROUPS);
    rig.namespace = rig
        .core
        .register_namespace(&spec)
        .expect("a valid namespace");
    for (group, present) in present.iter().enumerate() {
        rig.group = GroupId(group as u16);
        for at in (0..)
            .zip(*present)
            .filter(|(_, there)| **there)
            .map(|(at, _)| at)
        {
            rig.save(A, &[group_key(group, at)]);
        }
    }
    rig
}

impl Rig {
    pub(super) fn request<'a>(
        &self,
        groups: &'a [GroupKeys<'a>],
        ticket: Option<TicketId>,
    ) -> HybridRequest<'a> {
        HybridRequest {
            namespace: self.namespace,
            groups,
            lease_ttl_ms: Some(1),
            ticket,
        }
    }

    /// Looks all keys up for B.
    pub(super) fn find_waiting(&mut self, ticket: Option<TicketId>) -> HybridReply {
        let keys = [0, 1, 2].map(all_keys);
        let groups = all_requests(&keys);
        let request = self.request(&groups, ticket);
        let mut reply = HybridReply::default();
        let found = self.core.lookup_hybrid(self.now, B, &request, &mut reply);
        found.expect("a valid request");
        reply
    }
}

fn find(rig: &mut Rig) -> HybridReply {
    rig.find_waiting(None)
}

/// The blocks of a group that a prefix needs, token by token from the definition.
pub(super) fn needed(group: usize, tokens: u32) -> impl Iterator<Item = u64> {
    let (kind, block) = GROUPS[group];
    let from = match kind {
        GroupKind::SlidingWindow { window_tokens } => tokens.saturating_sub(window_tokens - 1),
        GroupKind::State => tokens.saturating_sub(block),
        _ => 0,
    };
    let blocks = (from..tokens).map(move |token| u64::from(token / block));
    blocks
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
}

/// Whether all blocks that a prefix needs are present.
pub(super) fn usable(tokens: u32, present: [&[bool]; 3]) -> bool {
    let has = |(group, present): (usize, &[bool])| {
        needed(group, tokens).all(|at| present.get(at as usize) == Some(&true))
    };
    present.into_iter().enumerate().all(has)
}

proptest! {
    #[test]
    fn the_longest_point_that_every_group_has(
        full in 0..20usize,
        window in prop::collection::vec(prop::bool::weighted(0.8), 20),
        state in prop::collection::vec(prop::bool::weighted(0.4), 10),
    ) {
        let full: Vec<_> = (0..20).map(|at| at < full).collect();
        let present = [&full[..], &window[..], &state[..]];
        let mut rig = hybrid(64, present);
        let reply = find(&mut rig);
        let points = (1..=TOKENS / 32).rev().map(|n| n * 32);
        let best = { points }.find(|tokens| usable(*tokens, present));
        prop_assert_eq!(reply.tokens, u64::from(best.unwrap_or(0)));
        prop_assert_eq!(reply.lease.is_some(), reply.tokens > 0);
        rig.done();
    }
}

#[test]
fn a_point_leaves_with_its_first_block() {
    let mut rig = hybrid(64, [&[true; 20], &[true; 20], &[true; 10]]);
    let reply = find(&mut rig);
    assert_eq!(reply.tokens, 320);
    let [full, window, state] = &reply.groups[..] else {
        panic!("three groups")
    };
    assert_eq!((full.len(), window.len(), state.len()), (20, 2, 1));
    let last = reply.blocks[state.start as usize];
    let key = group_key(2, 9);
    let (place, generation) = (last.place, last.generation);
    rig.core
        .report_corrupt(B, &key, place, generation, &mut rig.actions)
        .expect("open");
    assert_eq!(find(&mut rig).tokens, 288);
    rig.now = Now(10);
    rig.core.tick(rig.now, &mut rig.actions);
    rig.done();
}

#[test]
fn what_is_written_counts_as_pending() {
    let mut rig = hybrid(64, [&[true; 20], &[true; 20], &[true; 9]]);
    rig.group = GroupId(2);
    let reply = rig.reserve(A, &[group_key(2, 9)]);
    let found = find(&mut rig);
    assert_eq!((found.tokens, found.pending_tokens), (288, 320));
    rig.seal(A, &reply);
    assert_eq!(find(&mut rig).tokens, 320);
    rig.done();
}

#[test]
fn every_group_must_be_named() {
    let mut rig = hybrid(64, [&[], &[], &[]]);
    let keys = all_keys(0);
    let groups = [GroupKeys {
        group: GroupId(0),
        keys: &keys,
    }];
    let request = HybridRequest {
        namespace: rig.namespace,
        groups: &groups,
        lease_ttl_ms: None,
        ticket: None,
    };
    let refused = rig
        .core
        .lookup_hybrid(rig.now, B, &request, &mut HybridReply::default());
    assert!(matches!(refused, Err(Error::Bad { what: "groups", .. })));
    rig.done();
}
