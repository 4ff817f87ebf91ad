// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Hints where there is a second tier.

use pegaflow_cache::client::{Client, Hint, HintBlocks, Hinted};

use crate::rig::*;

async fn hint(rig: &Rig, client: &Client, prompt: u32, blocks: u32, hint: Hint) -> Hinted {
    let about = HintBlocks {
        namespace: &rig.namespace,
        group: GROUP,
        keys: &rig.keys(prompt, blocks),
    };
    client.hint(&about, hint).await.expect("is done")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefetch_brings_blocks_that_nobody_reads_yet() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut settings = settings(dir.path());
    // A lookup would compute; nobody does while nobody asks.
    settings.ssd.prefill_tokens_per_s = u64::MAX;
    let rig = Rig::new(&settings).await;
    rig.fill(4, 24).await;
    let lookups = |rig: &Rig| rig.node.stats().lookup_keys;
    let before = (lookups(&rig), rig.stats().fetched_blocks);
    let hinted = hint(&rig, &rig.client, 0, 30, Hint::Prefetch).await;
    assert_eq!((hinted.done, hinted.coming, hinted.absent), (0, 24, 6));
    rig.settled().await;
    rig.quiet().await;
    assert_eq!(rig.stats().fetched_blocks - before.1, 24);
    assert_eq!(lookups(&rig), before.0, "it is no lookup");
    let found = rig.look(&rig.keys(0, 24)).await;
    assert_eq!(found.blocks.len(), 24, "the pool has them");
    rig.client
        .release(&found.lease.expect("pinned"))
        .await
        .expect("releases");
    let again = hint(&rig, &rig.client, 0, 24, Hint::Prefetch).await;
    assert_eq!((again.done, again.coming), (24, 0));
    rig.quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefetch_of_a_session_that_ends_is_taken_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let rig = Rig::new(&settings(dir.path())).await;
    rig.fill(6, 24).await;
    for round in 0..20 {
        let other = Client::embedded(&rig.node).expect("opens");
        let namespace = other.register_namespace(rig.namespace.layout().clone());
        let namespace = namespace.await.expect("registers");
        let about = HintBlocks {
            namespace: &namespace,
            group: GROUP,
            keys: &rig.keys(round % 6, 24),
        };
        other.hint(&about, Hint::Prefetch).await.expect("is done");
    }
    rig.settled().await;
    rig.quiet().await;
    for prompt in 0..6 {
        assert_eq!(rig.load(prompt, 24).await, 24);
    }
}

/// What is pinned is not pushed out by what is fetched, and a branch that is over makes room for it.
#[tokio::test(flavor = "multi_thread")]
async fn pins_and_released_branches_hold_beside_fetches() {
    let dir = tempfile::tempdir().expect("a folder");
    let rig = Rig::new(&settings(dir.path())).await;
    rig.fill(5, 24).await;
    assert_eq!(rig.load(0, 10).await, 10);
    let ttl = std::time::Duration::from_secs(60);
    let pinned = hint(&rig, &rig.client, 0, 10, Hint::Pin { ttl }).await;
    assert_eq!((pinned.done, pinned.refused), (10, 0));
    for prompt in 1..5 {
        assert_eq!(rig.load(prompt, 24).await, 24);
    }
    let found = rig.look(&rig.keys(0, 10)).await;
    assert_eq!(found.blocks.len(), 10);
    let leases = [found.lease, pinned.lease];
    for lease in leases.into_iter().flatten() {
        rig.client.release(&lease).await.expect("held");
    }
    let used = rig.node.stats().used_bytes;
    let released = hint(&rig, &rig.client, 4, 24, Hint::ReleaseBranch).await;
    assert_eq!((released.done, released.refused), (24, 0));
    assert_eq!(used - rig.node.stats().used_bytes, 24 * SHAPE.bytes());
    assert_eq!(rig.load(4, 24).await, 24, "the copies on SSD stay");
    rig.quiet().await;
}
