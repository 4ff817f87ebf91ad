// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The parts against hand-made cases, and the policy through a core.

use super::ages::Age;
use super::ghosts::{Ghost, Ghosts};
use super::lives::Lives;
use crate::core::tests::rig::{A, Rig, keys};
use crate::core::{CoreSettings, EvictionPolicy};
use pegaflow_meta::BlockKey;

fn key(n: u64) -> BlockKey {
    crate::core::tests::rig::key(n)
}

fn ghost(start: u32) -> Ghost {
    Ghost { start, class: 7 }
}

#[test]
fn a_ghost_is_found_until_it_is_taken() {
    let mut ghosts = Ghosts::default();
    assert_eq!(ghosts.put(&key(1), ghost(3)), Some(ghost(3)), "no room");
    ghosts.grow(100);
    assert_eq!(ghosts.put(&key(1), ghost(3)), None);
    assert!(ghosts.has(&key(1)) && !ghosts.has(&key(2)));
    assert_eq!(ghosts.take(&key(1)), Some(ghost(3)));
    assert_eq!((ghosts.take(&key(1)), ghosts.count()), (None, 0));
}

#[test]
fn a_full_bucket_forgets_its_oldest_and_growing_forgets_by_and_by() {
    let mut ghosts = Ghosts::default();
    ghosts.grow(1);
    let room = ghosts.room() as u32;
    let mut gone = vec![];
    for n in 0..4 * room {
        gone.extend(
            ghosts
                .put(&key(u64::from(n)), ghost(n))
                .map(|ghost| ghost.start),
        );
    }
    assert_eq!(gone.len() + ghosts.count(), 4 * room as usize);
    let old = gone.iter().filter(|start| **start < 3 * room).count();
    assert!(
        old * 10 > gone.len() * 9,
        "mostly old ones: {old} of {}",
        gone.len()
    );
    let before = ghosts.count();
    ghosts.grow(3 * room as usize);
    assert_eq!(ghosts.put(&key(1 << 40), ghost(9)), None);
    assert_eq!(ghosts.count(), before + 1, "what was there is still known");
    let mut retired = 0;
    ghosts.retire(|_| retired += 1);
    assert_eq!((retired, ghosts.count()), (before, 1));
}

#[test]
fn what_is_used_again_sooner_is_worth_more() {
    let mut lives = Lives::new();
    for _ in 0..100 {
        for (class, used_after) in [(1, Some(2)), (2, Some(200)), (3, None)] {
            lives.begin(class, 0);
            let age = Age::of(0, used_after.unwrap_or(1000));
            lives.end(class, age, used_after.is_some());
        }
    }
    lives.pool(0);
    (1..4).for_each(|class| lives.learn(class, 0));
    let bin = super::ages::bin_of;
    let fresh = [1, 2, 3].map(|class| lives.bucket(class, bin(0)));
    assert!(fresh[0] > fresh[1] && fresh[1] > fresh[2], "{fresh:?}");
    let at = |age| lives.bucket(2, bin(age));
    assert!(at(150) > at(0), "its use comes nearer");
    assert!(at(400) < at(0), "its use has not come");
}

#[test]
fn lives_that_go_on_count_as_not_used_yet() {
    let mut lives = Lives::new();
    for class in [1, 2] {
        (0..50).for_each(|_| lives.begin(class, 0));
    }
    (0..50).for_each(|_| {
        lives.begin(1, 100);
        lives.end(1, Age::of(100, 104), true);
    });
    lives.pool(0);
    lives.learn(1, 0);
    let alone = lives.bucket(1, 0);
    (0..500).for_each(|_| lives.begin(1, 0));
    (1..=200).for_each(|now| super::ages::merges(now).for_each(|(a, b)| lives.merge(a, b)));
    lives.learn(1, 200);
    assert!(lives.bucket(1, 0) < alone);
}

/// Blocks of a prefix that come back while long scans pass by, found by a cache smaller than a scan.
fn found_between_scans(eviction: EvictionPolicy) -> usize {
    let settings = CoreSettings {
        eviction,
        ..CoreSettings::default()
    };
    let mut rig = Rig::with(settings, 96);
    let mut ask = |from: u64| {
        let keys = keys(from..from + 16);
        let reply = rig.lookup(A, &keys);
        let found = reply.blocks.len();
        if reply.lease.is_some() {
            rig.release(A, &reply);
        }
        if found < 16 {
            rig.save(A, &keys);
        }
        found
    };
    let mut found = 0;
    for round in 0..60 {
        let hit = ask(0);
        found += if round >= 30 { hit } else { 0 };
        (0..8).for_each(|n| {
            ask(1000 + (round * 8 + n) * 16);
        });
    }
    rig.core.check();
    found
}

#[test]
fn scans_do_not_push_out_what_is_used_again() {
    assert_eq!(found_between_scans(EvictionPolicy::Lru), 0);
    let found = found_between_scans(EvictionPolicy::Gittins);
    assert!(found > 25 * 16, "{found} of {}", 30 * 16);
}
