// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A drive that fails, is slow, is full, lies, or vanishes. The engine sees fewer blocks, never
//! wrong ones, and every place comes back.

use std::sync::Arc;

use pegaflow_cache::node::Node;
use pegaflow_ssd::disk::{Fault, FaultFile, FaultPlan};
use pegaflow_ssd::settings::{IoSettings, Settings};
use pegaflow_ssd::{IoKind, MemoryFile, SsdStore};

use crate::rig::*;

pub(crate) const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const PROMPTS: u32 = 6;
const BLOCKS: u32 = 24;

/// A rig whose drive follows `plan`, and gives up after `deadline_ms`.
async fn rig(plan: &FaultPlan, deadline_ms: u64) -> Rig {
    Rig::of(node_on(plan, deadline_ms)).await
}

/// A node on such a drive.
pub(crate) fn node_on(plan: &FaultPlan, deadline_ms: u64) -> Arc<Node> {
    let file = FaultFile::new(MemoryFile::new(64 << 20), plan.clone());
    let settings_of_store = Settings {
        segment_bytes: 1 << 20,
        io: IoSettings {
            deadline_ms,
            ..IoSettings::default()
        },
        ..Settings::default()
    };
    let store = SsdStore::over(settings_of_store, vec![("faults".into(), Arc::new(file))]);
    let dir = tempfile::tempdir().expect("a folder");
    let node = Node::start_on(&settings(dir.path()), store.expect("opens"));
    node.expect("starts")
}

/// Loads everything, whatever comes, and checks that nothing is left behind.
async fn survives(rig: &Rig) -> usize {
    let mut loaded = 0;
    for prompt in 0..PROMPTS {
        loaded += rig.load(prompt, BLOCKS).await;
    }
    rig.settled().await;
    rig.quiet().await;
    loaded
}

const ALL: usize = (PROMPTS * BLOCKS) as usize;

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_fails_is_a_miss() {
    let plan = FaultPlan::new();
    let rig = rig(&plan, 10_000).await;
    rig.fill(PROMPTS, BLOCKS).await;
    plan.add(IoKind::Read, 0..u64::MAX, 5, 1, Fault::Error(EIO));
    let loaded = survives(&rig).await;
    assert!(loaded < ALL, "one read failed");
    assert_eq!(rig.stats().fetch_failed, 1, "{:?}", rig.stats());
    assert_eq!(survives(&rig).await, ALL, "the block was not at fault");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drive_that_lies_is_found_out() {
    let plan = FaultPlan::new();
    let rig = rig(&plan, 10_000).await;
    rig.fill(PROMPTS, BLOCKS).await;
    plan.add(IoKind::Read, 0..u64::MAX, 3, 1, Fault::Flip(50));
    assert!(survives(&rig).await < ALL);
    assert_eq!(rig.stats().fetch_corrupt, 1);
    let second = survives(&rig).await;
    assert!(second < ALL, "the bad copy is dropped");
    assert_eq!(rig.stats().fetch_corrupt, 1, "and not read again");
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_writes_are_misses() {
    let plan = FaultPlan::new();
    let rig = rig(&plan, 10_000).await;
    plan.add(IoKind::Write, 0..u64::MAX, 4, 6, Fault::Lost);
    rig.fill(PROMPTS, BLOCKS).await;
    assert!(survives(&rig).await < ALL);
    assert!(rig.stats().fetch_corrupt > 0, "{:?}", rig.stats());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_drive_costs_nothing_but_its_blocks() {
    let plan = FaultPlan::new();
    let rig = rig(&plan, 10_000).await;
    plan.next(IoKind::Write, u64::MAX, Fault::Error(ENOSPC));
    for prompt in 0..PROMPTS {
        assert_eq!(rig.save(prompt, BLOCKS).await.out_of_budget, 0);
    }
    rig.until("it was noticed", |rig| rig.stats().spill_failed > 0)
        .await;
    let loaded = rig.load(PROMPTS - 1, BLOCKS).await;
    assert_eq!(loaded, BLOCKS as usize, "the pool has the last");
    plan.clear();
    rig.until("it is tried again", |rig| rig.stats().spilled_blocks > 0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_drive_is_waited_for() {
    let plan = FaultPlan::new();
    let rig = rig(&plan, 10_000).await;
    rig.fill(PROMPTS, BLOCKS).await;
    plan.next(IoKind::Read, 40, Fault::Delay(20));
    assert_eq!(survives(&rig).await, ALL);
}

/// The deadline passes, the block is a miss; its place is only used again when the drive lets go.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_drive_keeps_its_places_until_it_lets_go() {
    let plan = FaultPlan::new();
    let rig = rig(&plan, 100).await;
    rig.fill(PROMPTS, BLOCKS).await;
    rig.quiet().await;
    plan.next(IoKind::Read, 1, Fault::Stuck);
    assert!(rig.load(0, BLOCKS).await < BLOCKS as usize);
    assert!(rig.stats().fetch_failed > 0);
    assert!(
        rig.node.stats().detached_blocks > 0,
        "a place is out of use"
    );
    plan.release();
    rig.quiet().await;
    assert_eq!(rig.load(0, BLOCKS).await, BLOCKS as usize);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drive_that_vanishes_is_left_alone_and_found_again() {
    let plan = FaultPlan::new();
    let rig = rig(&plan, 10_000).await;
    rig.fill(PROMPTS, BLOCKS).await;
    plan.next(IoKind::Read, u64::MAX, Fault::Error(EIO));
    plan.next(IoKind::Write, u64::MAX, Fault::Error(EIO));
    for _ in 0..4 {
        survives(&rig).await;
    }
    let asked = rig.stats().fetch_failed;
    for _ in 0..4 {
        survives(&rig).await;
    }
    let again = rig.stats().fetch_failed - asked;
    assert!(again < asked, "left alone: {asked} reads, then {again}");
    plan.clear();
    rig.until("it is back", |rig| {
        let keys = rig.keys(0, BLOCKS);
        let found = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(rig.look(&keys))
        });
        let all = found.blocks.len() + found.pending as usize;
        if let Some(lease) = &found.lease {
            let released = tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(rig.client.release(lease))
            });
            released.expect("releases");
        }
        all == BLOCKS as usize
    })
    .await;
    rig.quiet().await;
}

/// Lookups come and go while the drive misbehaves in every way at once.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaks_while_everything_fails() {
    let plan = FaultPlan::new();
    let rig = rig(&plan, 200).await;
    rig.fill(PROMPTS, BLOCKS).await;
    for round in 0..40u32 {
        let fault = [
            Fault::Error(EIO),
            Fault::Flip(50),
            Fault::Delay(5),
            Fault::Short(4096),
        ][round as usize % 4];
        plan.add(IoKind::Read, 0..u64::MAX, u64::from(round % 7), 2, fault);
        let found = rig.look(&rig.keys(round % PROMPTS, BLOCKS)).await;
        match (round % 3, &found.lease) {
            (0, Some(lease)) => rig.client.release(lease).await.expect("releases"),
            _ => drop(rig.load(round % PROMPTS, BLOCKS).await),
        }
        if round % 3 != 0
            && let Some(lease) = &found.lease
        {
            rig.client.release(lease).await.expect("releases");
        }
        rig.save(100 + round, 8).await;
    }
    plan.clear();
    rig.settled().await;
    rig.quiet().await;
}
