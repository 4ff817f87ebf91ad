// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Whose blocks leave when tenants share a pool.

use super::rig::*;
use crate::core::*;
use pegaflow_meta::GroupKind;

/// What tenants `one` and `two` have in a pool of 16 blocks after `one` saved 16, and `two` 40.
fn after_a_burst(eviction: EvictionPolicy, weights: [u32; 2]) -> [usize; 2] {
    let tenant = |weight| TenantSettings {
        weight,
        ..TenantSettings::default()
    };
    let [one, two] = weights.map(tenant);
    let settings = CoreSettings {
        eviction,
        tenants: [("one".to_owned(), one), ("two".to_owned(), two)].into(),
        ..CoreSettings::default()
    };
    let mut rig = Rig::with(settings, 16);
    rig.save(A, &keys(0..16));
    let other = spec("two", 2, &[(GroupKind::FullAttention, 16)]);
    let other = rig
        .core
        .register_namespace(&other)
        .expect("a valid namespace");
    let first = std::mem::replace(&mut rig.namespace, other);
    for n in (100..140).step_by(4) {
        rig.now = Now(rig.now.0 + 60_000);
        rig.save(A, &keys(n..n + 4));
    }
    let there = |rig: &mut Rig, from: u64, to: u64| -> usize {
        (from..to).map(|n| rig.peek(&keys(n..n + 1))).sum()
    };
    let theirs = there(&mut rig, 100, 140);
    rig.namespace = first;
    let ours = there(&mut rig, 0, 16);
    rig.core.check();
    [ours, theirs]
}

#[test]
fn a_burst_takes_no_more_than_its_share_from_others() {
    for eviction in [EvictionPolicy::Lru, EvictionPolicy::Gittins] {
        for (weights, shares) in [([1, 1], [8, 8]), ([3, 1], [12, 4]), ([1, 3], [4, 12])] {
            let there = after_a_burst(eviction, weights);
            // At equal pressure either may give way.
            let near = there
                .iter()
                .zip(shares)
                .all(|(n, share)| n.abs_diff(share) <= 1);
            assert!(near, "{eviction:?}, {weights:?}: {there:?}");
        }
    }
}
