// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Tenants share a drive: by quota, and by weight.

use std::path::Path;

use pegaflow_cache::core::TenantSettings;
use pegaflow_cache::node::{Node, NodeSettings};

use crate::rig::*;

/// A drive of eight segments, and tenants of these names and quotas.
fn tenants(dir: &Path, named: &[(&str, Option<u64>)]) -> NodeSettings {
    let mut settings = settings(dir);
    settings.ssd.bytes = 8 << 20;
    for (name, ssd_bytes_max) in named {
        let limits = TenantSettings {
            ssd_bytes_max: *ssd_bytes_max,
            ..TenantSettings::default()
        };
        settings.core.tenants.insert((*name).to_owned(), limits);
    }
    settings
}

fn used(node: &Node, tenant: &str) -> u64 {
    let all = node.ssd_tenants();
    let own = all.iter().find(|(name, _)| name.as_deref() == Some(tenant));
    own.map_or(0, |(_, usage)| usage.bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn at_its_quota_a_tenants_oldest_blocks_leave_the_drive() {
    let dir = tempfile::tempdir().expect("a folder");
    let quota = 30 * (SHAPE.bytes() + 4096);
    let settings = tenants(dir.path(), &[("a", Some(quota)), ("bb", Some(0))]);
    let node = Node::start(&settings).expect("starts");
    let a = Rig::of_tenant(node.clone(), "a").await;
    let b = Rig::of_tenant(node.clone(), "bb").await;
    for prompt in 0..3 {
        a.save(prompt, 24).await;
        a.settled().await;
    }
    b.save(0, 5).await;
    b.settled().await;
    let stats = a.stats();
    assert_eq!((stats.spilled_blocks, stats.spill_over_quota), (72, 5));
    let has = used(&node, "a");
    assert!(has > quota / 2 && has <= quota, "{has} of {quota}");
    drop((a, b, node));

    let node = Node::start(&settings).expect("starts");
    assert_eq!(used(&node, "a"), has, "counted anew from what is there");
    let a = Rig::of_tenant(node, "a").await;
    assert_eq!((a.load(2, 24).await, a.load(0, 24).await), (24, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_takes_nothing_of_anothers_share_of_the_drive() {
    let dir = tempfile::tempdir().expect("a folder");
    let settings = tenants(dir.path(), &[("a", None), ("bb", None)]);
    let node = Node::start(&settings).expect("starts");
    let a = Rig::of_tenant(node.clone(), "a").await;
    let b = Rig::of_tenant(node.clone(), "bb").await;
    b.save(0, 20).await;
    b.settled().await;
    for prompt in 0..30 {
        a.save(prompt, 32).await;
        a.settled().await;
    }
    drop((a, b, node));

    let node = Node::start(&settings).expect("starts");
    let a = Rig::of_tenant(node.clone(), "a").await;
    let b = Rig::of_tenant(node, "bb").await;
    assert_eq!(a.load(0, 32).await, 0, "the flood has displaced itself");
    assert_eq!(b.load(0, 20).await, 20);
}
