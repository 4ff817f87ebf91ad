// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Room made ahead of need.

use super::rig::*;
use crate::core::*;

/// Blocks of the pool: a 64th of it are 4.
const BLOCKS: u64 = 256;

/// A full pool of 256 blocks, of which the last save took `last`.
fn full(settings: CoreSettings, last: u64) -> Rig {
    let settings = CoreSettings {
        eviction: EvictionPolicy::Lru,
        ..settings
    };
    let mut rig = Rig::with(settings, BLOCKS);
    for n in 0..BLOCKS - last {
        rig.save(A, &keys(n..n + 1));
    }
    rig.save(A, &keys(BLOCKS - last..BLOCKS));
    rig
}

fn evict_ahead(rig: &mut Rig, blocks_max: u32) -> bool {
    rig.core.evict_ahead(rig.now, blocks_max, &mut rig.actions)
}

fn evicted(rig: &Rig) -> u64 {
    rig.core.counters().map(|(_, all)| all.evicted_blocks).sum()
}

#[test]
fn the_next_save_like_the_last_evicts_nothing() {
    let mut rig = full(CoreSettings::default(), 3);
    assert!(!evict_ahead(&mut rig, 64), "three blocks are done at once");
    assert_eq!(evicted(&rig), 3);
    assert_eq!(rig.peek(&keys(0..1)), 0, "the oldest went");
    assert_eq!(rig.save(A, &keys(1000..1003)).places, 3);
    assert_eq!(evicted(&rig), 3);
    rig.done();
}

#[test]
fn room_is_made_in_steps_and_never_more_than_a_64th() {
    let mut rig = full(CoreSettings::default(), 100);
    assert!(evict_ahead(&mut rig, 3), "one is missing");
    assert_eq!(evicted(&rig), 3);
    assert!(!evict_ahead(&mut rig, 3));
    assert_eq!(evicted(&rig), 4, "a 64th of the pool");
    assert!(!evict_ahead(&mut rig, 3));
    assert_eq!(evicted(&rig), 4);
    rig.done();
}

#[test]
fn no_room_is_made_where_there_is_some_or_none_is_wanted() {
    let off = CoreSettings {
        evict_ahead_blocks_max: 0,
        ..CoreSettings::default()
    };
    let mut rig = full(off, 3);
    assert!(!evict_ahead(&mut rig, 64));
    assert_eq!(evicted(&rig), 0);
    let mut roomy = Rig::new(BLOCKS);
    roomy.save(A, &keys(0..8));
    assert!(!evict_ahead(&mut roomy, 64));
    assert_eq!(evicted(&roomy), 0);
}

#[test]
fn a_tenant_at_its_quota_makes_room_among_its_own() {
    let limits = TenantSettings {
        bytes_max: Some(128 * BLOCK_BYTES),
        ..TenantSettings::default()
    };
    let settings = CoreSettings {
        tenants: [("one".to_owned(), limits)].into(),
        ..CoreSettings::default()
    };
    let mut rig = Rig::with(settings, BLOCKS);
    for n in 0..16 {
        rig.save(A, &keys(n * 8..n * 8 + 8));
    }
    assert_eq!(evicted(&rig), 0, "just full");
    assert!(!evict_ahead(&mut rig, 64));
    assert_eq!(evicted(&rig), 2, "a 64th of the quota");
    rig.done();
}

#[test]
fn held_blocks_stay() {
    let mut rig = full(CoreSettings::default(), 3);
    let all: Vec<_> = (0..BLOCKS)
        .map(|n| rig.look(A, &keys(n..n + 1), LookupMode::Set, Some(1000), None))
        .collect();
    assert!(!evict_ahead(&mut rig, 64), "nothing can be done");
    assert_eq!(evicted(&rig), 0);
    all.iter().for_each(|lease| rig.release(A, lease));
    rig.done();
}
