// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A model with full attention and a sliding window on two tiers: whole block points or nothing.

use std::sync::Arc;

use pegaflow_cache::client::{Client, HybridFound, HybridLookup, NamespaceHandle, TicketState};
use pegaflow_cache::core::GroupKeys;
use pegaflow_cache::node::{NamespaceLayout, Node, NodeSettings};
use pegaflow_cache::worker::LoadState;
use pegaflow_meta::{BlockKey, GroupId, GroupKind, GroupSpec};
use pegaflow_ssd::IoKind;
use pegaflow_ssd::disk::{Fault, FaultPlan};

use crate::faults::{EIO, node_on};
use crate::rig::*;

const TOKENS: u64 = 16;
/// The next token sees three blocks of the window group.
const WINDOW: u32 = 48;
const SEEN: u64 = 3;

struct HybridRig {
    /// The same node, for what does not depend on groups.
    plain: Rig,
    namespace: NamespaceHandle,
    engines: [Engine; 2],
}

impl HybridRig {
    async fn new(settings: &NodeSettings) -> Self {
        Self::of(Node::start(settings).expect("starts")).await
    }

    async fn of(node: Arc<Node>) -> Self {
        let plain = Rig::of(node).await;
        let mut namespace = namespace("");
        namespace.groups.push(GroupSpec {
            kind: GroupKind::SlidingWindow {
                window_tokens: WINDOW,
            },
            ..namespace.groups[0].clone()
        });
        let layout = NamespaceLayout::new(namespace, &[SHAPE, SHAPE]);
        let namespace = plain.client.register_namespace(layout).await;
        let namespace = namespace.expect("registers");
        let engines = [0, 1].map(|group| Engine::new(&plain.client, &namespace, GroupId(group)));
        Self {
            plain,
            namespace,
            engines,
        }
    }

    fn client(&self) -> &Client {
        &self.plain.client
    }

    fn keys(&self, prompt: u32, blocks: u32) -> [Vec<BlockKey>; 2] {
        let hash = |at: u32| [prompt.to_le_bytes(), at.to_le_bytes()].concat();
        [0, 1].map(|group| {
            let key = |at| self.namespace.key(GroupId(group), &hash(at));
            (0..blocks).map(key).collect()
        })
    }

    async fn save(&self, prompt: u32, blocks: u32) {
        for (engine, keys) in self.engines.iter().zip(self.keys(prompt, blocks)) {
            assert_eq!(engine.save(keys).await.out_of_budget, 0);
        }
        self.plain.settled().await;
    }

    async fn look(&self, keys: &[Vec<BlockKey>; 2]) -> HybridFound {
        let groups = (0..).map(GroupId).zip(keys);
        let groups: Vec<_> = groups
            .map(|(group, keys)| GroupKeys { group, keys })
            .collect();
        let lookup = HybridLookup::new(&self.namespace, &groups).with_ticket();
        let found = self.client().lookup_hybrid(&lookup).await;
        found.expect("looks up")
    }

    /// What a lookup gets in the end.
    async fn wait(&self, found: HybridFound) -> HybridFound {
        let Some(ticket) = &found.ticket else {
            return found;
        };
        let TicketState::Done { ready } = ticket.wait(PATIENCE).await else {
            panic!("{:?}", ticket.poll())
        };
        let claimed = self.claim(&found).await;
        assert_eq!(claimed.tokens, u64::from(ready), "the ticket counts tokens");
        claimed
    }

    async fn claim(&self, found: &HybridFound) -> HybridFound {
        let lease = found.lease.as_ref().expect("a ticket has a lease");
        let claimed = self.client().claim_hybrid(lease).await.expect("claims");
        check_whole(&claimed);
        claimed
    }

    async fn release(&self, found: HybridFound) {
        if let Some(lease) = &found.lease {
            self.client().release(lease).await.expect("releases");
        }
    }

    /// Looks a prompt up, waits, loads what is there, and checks every byte. How many tokens.
    async fn load(&self, prompt: u32, blocks: u32) -> u64 {
        let keys = self.keys(prompt, blocks);
        let found = self.look(&keys).await;
        let found = self.wait(found).await;
        check_whole(&found);
        for ((engine, refs), keys) in self.engines.iter().zip(&found.groups).zip(&keys) {
            let states = engine.load(refs.clone(), keys).await;
            let loaded = states.iter().filter(|state| **state == LoadState::Loaded);
            assert_eq!(loaded.count(), refs.len());
        }
        let tokens = found.tokens;
        self.release(found).await;
        tokens
    }
}

/// All blocks of a point in both groups, and no others.
fn check_whole(found: &HybridFound) {
    let end = found.tokens / TOKENS;
    for (refs, first) in found.groups.iter().zip([0, end.saturating_sub(SEEN)]) {
        let ats = refs.iter().map(|block| u64::from(block.key));
        assert!(ats.eq(first..end), "{} tokens: {refs:?}", found.tokens);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_group_comes_back_from_ssd() {
    let dir = tempfile::tempdir().expect("a folder");
    let rig = HybridRig::new(&settings(dir.path())).await;
    for prompt in 0..5 {
        rig.save(prompt, 24).await;
    }
    let before = rig.plain.stats().fetched_blocks;
    for prompt in 0..5 {
        assert_eq!(rig.load(prompt, 24).await, 24 * TOKENS, "prompt {prompt}");
    }
    let fetched = rig.plain.stats().fetched_blocks - before;
    assert!(fetched >= 3 * (24 + SEEN), "{fetched}");
    assert!(
        fetched <= 5 * (24 + SEEN),
        "only what the window sees: {fetched}"
    );
    rig.plain.settled().await;
    rig.plain.quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_lookups_cause_one_fetch() {
    let dir = tempfile::tempdir().expect("a folder");
    let rig = HybridRig::new(&settings(dir.path())).await;
    for prompt in 0..4 {
        rig.save(prompt, 24).await;
    }
    let before = rig.plain.stats().fetched_blocks;
    let keys = rig.keys(0, 24);
    let mut all = vec![];
    for _ in 0..100 {
        all.push(rig.look(&keys).await);
    }
    assert_eq!(u64::from(all[0].fetching), 24 + SEEN);
    for found in all {
        let found = rig.wait(found).await;
        assert_eq!(found.tokens, 24 * TOKENS);
        rig.release(found).await;
    }
    assert_eq!(rig.plain.stats().fetched_blocks - before, 24 + SEEN);
    rig.plain.quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_the_budget_a_shorter_point_is_fetched() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut settings = settings(dir.path());
    settings.ssd.fetch_bytes_max = 20 * SHAPE.bytes();
    let rig = HybridRig::new(&settings).await;
    for prompt in 0..4 {
        rig.save(prompt, 24).await;
    }
    let tokens = rig.load(0, 24).await;
    assert_eq!(tokens, (20 - SEEN) * TOKENS);
    assert_eq!(rig.plain.stats().plan_over_budget, 24 - (20 - SEEN));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_pool_has_too_little_room_a_shorter_point_is_fetched() {
    let dir = tempfile::tempdir().expect("a folder");
    let rig = HybridRig::new(&settings(dir.path())).await;
    for prompt in 0..4 {
        rig.save(prompt, 24).await;
    }
    // 48 of the 64 blocks of the pool are in use.
    rig.plain.save(9, 48).await;
    rig.plain.settled().await;
    let held = rig.plain.look(&rig.plain.keys(9, 48)).await;
    assert_eq!(held.blocks.len(), 48);
    let tokens = rig.load(0, 24).await;
    assert_eq!(tokens, (16 - SEEN) * TOKENS);
    let released = rig.client().release(&held.lease.expect("pinned")).await;
    released.expect("releases");
    rig.plain.quiet().await;
    assert_eq!(rig.load(0, 24).await, 24 * TOKENS);
}

/// The drive never answers one read: at a deadline there is a whole point or nothing, and every place
/// comes back when the drive lets go.
#[tokio::test(flavor = "multi_thread")]
async fn at_a_deadline_there_is_a_whole_point_or_nothing() {
    let plan = FaultPlan::new();
    let rig = HybridRig::of(node_on(&plan, 10_000)).await;
    for prompt in 0..4 {
        rig.save(prompt, 24).await;
    }
    plan.add(IoKind::Read, 0..u64::MAX, 20, 1, Fault::Stuck);
    let found = rig.look(&rig.keys(0, 24)).await;
    assert_eq!((found.tokens, found.pending_tokens), (0, 24 * TOKENS));
    let fetched = rig.plain.stats().fetched_blocks;
    let (rest, plain) = (24 + SEEN - 1, &rig.plain);
    plain
        .until("all but one block come", |rig| {
            rig.stats().fetched_blocks - fetched == rest
        })
        .await;
    let claimed = rig.claim(&found).await;
    assert_eq!(
        claimed.tokens, 0,
        "the windows of earlier points were not asked for"
    );
    rig.release(found).await;
    plan.release();
    rig.plain.settled().await;
    rig.plain.quiet().await;
    assert_eq!(rig.load(0, 24).await, 24 * TOKENS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_the_drive_lost_costs_its_points_and_no_wrong_byte() {
    let plan = FaultPlan::new();
    let rig = HybridRig::of(node_on(&plan, 10_000)).await;
    for prompt in 0..4 {
        rig.save(prompt, 24).await;
    }
    for fault in [Fault::Error(EIO), Fault::Flip(50)] {
        plan.add(IoKind::Read, 0..u64::MAX, 7, 1, fault);
        assert!(rig.load(0, 24).await < 24 * TOKENS, "{fault:?}");
        rig.plain.settled().await;
        rig.plain.quiet().await;
        for prompt in 1..4 {
            assert_eq!(rig.load(prompt, 24).await, 24 * TOKENS);
        }
    }
    assert_eq!(rig.plain.stats().fetch_corrupt, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn lookups_given_up_leave_nothing_behind() {
    let dir = tempfile::tempdir().expect("a folder");
    let rig = HybridRig::new(&settings(dir.path())).await;
    for prompt in 0..5 {
        rig.save(prompt, 24).await;
    }
    for round in 0..100 {
        let found = rig.look(&rig.keys(round % 5, 24)).await;
        rig.release(found).await;
    }
    rig.plain.settled().await;
    rig.plain.quiet().await;
    for prompt in 0..5 {
        assert_eq!(rig.load(prompt, 24).await, 24 * TOKENS);
    }
}
