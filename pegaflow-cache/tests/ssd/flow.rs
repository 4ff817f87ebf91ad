// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What a client sees of two tiers, on a real file.

use pegaflow_cache::node::PoolFiles;
use pegaflow_cache::tier::SpillAdmission;
use pegaflow_cache::worker::LoadState;

use crate::rig::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_the_pool_has_no_room_for_comes_back_from_ssd() {
    let dir = tempfile::tempdir().expect("a folder");
    let rig = Rig::new(&settings(dir.path())).await;
    rig.fill(10, 24).await;
    for prompt in 0..10 {
        assert_eq!(rig.load(prompt, 24).await, 24, "prompt {prompt}");
    }
    let stats = rig.stats();
    assert!(stats.fetched_blocks >= 7 * 24, "{stats:?}");
    assert_eq!(stats.store.dropped.corrupt + stats.fetch_corrupt, 0);
    rig.settled().await;
    assert_eq!(
        rig.stats().spilled_blocks,
        240,
        "what came from there is not written again"
    );
    rig.quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_lookup_takes_from_both_tiers() {
    let dir = tempfile::tempdir().expect("a folder");
    let rig = Rig::new(&settings(dir.path())).await;
    rig.fill(4, 24).await;
    // The beginning of prompt 0 comes into the pool, the rest stays on SSD.
    assert_eq!(rig.load(0, 10).await, 10);
    let before = rig.stats().fetched_blocks;
    let found = rig.look(&rig.keys(0, 24)).await;
    assert_eq!((found.blocks.len(), found.pending), (10, 14));
    assert_eq!(found.fetching, 14);
    let also = rig.look(&rig.keys(0, 24)).await;
    assert_eq!(
        also.fetching, also.pending,
        "who comes later waits for the same"
    );
    let _ = rig.client.release(&also.lease.expect("pinned")).await;
    let found = rig.wait(found).await;
    assert_eq!(found.blocks.len(), 24);
    assert_eq!(rig.stats().fetched_blocks - before, 14);
    rig.client
        .release(&found.lease.expect("pinned"))
        .await
        .expect("releases");
    rig.quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_lookups_cause_one_fetch() {
    let dir = tempfile::tempdir().expect("a folder");
    let rig = Rig::new(&settings(dir.path())).await;
    rig.fill(4, 24).await;
    let before = rig.stats();
    let keys = rig.keys(0, 24);
    let mut all = vec![];
    for _ in 0..1000 {
        all.push(rig.look(&keys).await);
    }
    for found in all {
        let lease = found
            .lease
            .clone()
            .expect("something is there or on its way");
        assert_eq!(rig.wait(found).await.blocks.len(), 24);
        rig.client.release(&lease).await.expect("releases");
    }
    let stats = rig.stats();
    assert_eq!(stats.fetched_blocks - before.fetched_blocks, 24);
    assert_eq!(stats.store.hits - before.store.hits, 24);
    rig.quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lookups_given_up_leave_nothing_behind() {
    let dir = tempfile::tempdir().expect("a folder");
    let rig = Rig::new(&settings(dir.path())).await;
    rig.fill(6, 24).await;
    rig.quiet().await;
    for round in 0..200 {
        let found = rig.look(&rig.keys(round % 6, 24)).await;
        if let Some(lease) = found.lease {
            rig.client.release(&lease).await.expect("releases");
        }
    }
    rig.settled().await;
    rig.quiet().await;
    for prompt in 0..6 {
        assert_eq!(rig.load(prompt, 24).await, 24);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_finds_what_is_on_ssd() {
    let dir = tempfile::tempdir().expect("a folder");
    let settings = settings(dir.path());
    let rig = Rig::new(&settings).await;
    rig.fill(6, 24).await;
    drop(rig);
    let rig = Rig::new(&settings).await;
    for prompt in 0..6 {
        assert_eq!(rig.load(prompt, 24).await, 24, "prompt {prompt}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_a_recovered_pool_are_written_if_the_drive_has_them_not() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut settings = settings(dir.path());
    settings.files = PoolFiles::Directory(dir.path().join("pools"));
    let with_ssd = settings.clone();
    settings.ssd.path.clear();
    let rig = Rig::of(pegaflow_cache::node::Node::start(&settings).expect("starts")).await;
    rig.save(0, 24).await;
    drop(rig);
    let rig = Rig::new(&with_ssd).await;
    rig.settled().await;
    assert_eq!(rig.stats().spilled_blocks, 24);
    drop(rig);
    let rig = Rig::new(&with_ssd).await;
    rig.settled().await;
    let stats = rig.stats();
    assert_eq!((stats.spilled_blocks, stats.spill_known), (0, 24));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_stays_within_its_budget() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut settings = settings(dir.path());
    settings.ssd.fetch_bytes_max = 8 * SHAPE.bytes();
    let rig = Rig::new(&settings).await;
    rig.fill(4, 24).await;
    let found = rig.look(&rig.keys(0, 24)).await;
    assert_eq!((found.blocks.len(), found.pending), (0, 8));
    assert_eq!(
        rig.wait(found).await.blocks.len(),
        8,
        "a part of the prefix is of use"
    );
    assert_eq!(rig.stats().plan_over_budget, 16);
}

/// A lookup is answered before there is room for all of it. What has none then ends the prefix.
#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_ends_where_the_pool_has_no_room_left() {
    let dir = tempfile::tempdir().expect("a folder");
    let rig = Rig::new(&settings(dir.path())).await;
    rig.fill(4, 32).await;
    // The pool has prompts 2 and 3; 40 of its 64 blocks are in use.
    let held = rig.look(&rig.keys(3, 32)).await;
    let more = rig.look(&rig.keys(2, 8)).await;
    assert_eq!((held.blocks.len(), more.blocks.len()), (32, 8));
    let found = rig.look(&rig.keys(0, 32)).await;
    assert_eq!((found.blocks.len(), found.pending), (0, 32));
    let found = rig.wait(found).await;
    assert_eq!(found.blocks.len(), 24);
    assert_eq!(rig.stats().plan_no_room, 8);
    for lease in [held.lease, more.lease, found.lease] {
        let released = rig.client.release(&lease.expect("pinned")).await;
        released.expect("releases");
    }
    rig.settled().await;
    rig.quiet().await;
    assert_eq!(rig.load(0, 32).await, 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_larger_than_the_pool_gets_what_fits() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut settings = settings(dir.path());
    let large = settings.clone();
    settings.pool_bytes = 1 << 20;
    let wide = pegaflow_cache::node::NodeSettings {
        pool_bytes: 4 << 20,
        ..large
    };
    let rig = Rig::new(&wide).await;
    rig.fill(1, 100).await;
    drop(rig);
    let rig = Rig::new(&settings).await;
    // Half of the pool may be on its way at once; the rest of the pool comes with the next lookup.
    let loaded = rig.load(0, 100).await;
    assert_eq!(loaded, 32);
    assert_eq!(rig.load(0, 100).await, 64);
    assert_eq!(rig.load(0, 100).await, 64, "all of the pool, and no more");
    rig.quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fast_engine_computes_rather_than_fetches() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut settings = settings(dir.path());
    settings.ssd.prefill_tokens_per_s = u64::MAX;
    let rig = Rig::new(&settings).await;
    rig.fill(4, 24).await;
    let found = rig.look(&rig.keys(0, 24)).await;
    assert_eq!((found.blocks.len(), found.pending), (0, 0));
    assert_eq!(rig.stats().plan_too_slow, 24);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_four_budgets_loses_no_block_that_the_pool_still_holds() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut settings = settings(dir.path());
    settings.ssd.spill_bytes_max = 14 * SHAPE.bytes();
    let rig = Rig::new(&settings).await;
    rig.save(0, 56).await;
    rig.settled().await;
    let stats = rig.stats();
    assert_eq!(stats.spilled_blocks, 56, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_waiting_blocks_are_counted_and_not_written() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut settings = settings(dir.path());
    settings.ssd.spill_blocks_max = 1;
    settings.ssd.spill_bytes_max = 1;
    let rig = Rig::new(&settings).await;
    rig.save(0, 56).await;
    rig.settled().await;
    let stats = rig.stats();
    assert!(stats.spill_queue_full > 0, "{stats:?}");
    assert_eq!(stats.spilled_blocks + stats.spill_queue_full, 56);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_used_once_can_be_kept_off_the_drive() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut settings = settings(dir.path());
    settings.ssd.admission = SpillAdmission::SecondSave;
    let rig = Rig::new(&settings).await;
    for prompt in [0, 1, 2, 0] {
        rig.save(prompt, 24).await;
        rig.settled().await;
    }
    let stats = rig.stats();
    assert!(
        stats.spilled_blocks > 0 && stats.spilled_blocks <= 24,
        "{stats:?}"
    );
    assert_eq!(
        stats.spilled_blocks + stats.spill_declined,
        24 * 3 + stats.spilled_blocks
    );
}

/// The copy in the pool goes bad: it is found, and the one on SSD takes its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_copy_in_the_pool_is_replaced_by_the_one_on_ssd() {
    let dir = tempfile::tempdir().expect("a folder");
    let rig = Rig::new(&settings(dir.path())).await;
    rig.fill(1, 24).await;
    let found = rig.look(&rig.keys(0, 24)).await;
    let place = found.blocks[5].place;
    let pool = found.session.pools().of(place).expect("a pool");
    pool.data
        .copy_in(place.offset() + 77, &[0xee; 9])
        .expect("inside");
    rig.client
        .release(&found.lease.expect("pinned"))
        .await
        .expect("releases");
    let states = rig.load_states(0, 24).await;
    assert_eq!(states[5], LoadState::Corrupt);
    assert_eq!(rig.load(0, 24).await, 24, "the drive has it");
    assert_eq!(rig.stats().fetched_blocks, 1);
    rig.quiet().await;
}

/// The pool's copy was bad before it was written: both are dropped.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_copy_on_ssd_is_dropped_after_one_read() {
    let dir = tempfile::tempdir().expect("a folder");
    let rig = Rig::new(&settings(dir.path())).await;
    // Sums that no bytes have.
    let keys = rig.keys(0, 4);
    let slot = pegaflow_mem::Slot::whole(&SHAPE);
    let reserve = pegaflow_cache::client::Reserve {
        namespace: &rig.namespace,
        group: GROUP,
        slot: &slot,
        parent: None,
        keys: &keys,
    };
    let reserved = rig.client.reserve(&reserve).await.expect("reserves");
    rig.client
        .seal(&reserved, &[0, 1, 2, 3], &[7; 16])
        .await
        .expect("seals");
    rig.settled().await;
    assert_eq!(rig.load_states(0, 4).await, [LoadState::Corrupt; 4]);
    assert_eq!(rig.load(0, 4).await, 0, "nor does the drive have them");
    rig.settled().await;
    assert_eq!(rig.stats().fetch_corrupt, 4);
    assert_eq!(rig.load(0, 4).await, 0);
    assert_eq!(rig.stats().fetch_corrupt, 4, "they were dropped");
    rig.quiet().await;
}
