// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
use super::rig::*;
use crate::core::*;
use pegaflow_meta::BlockKey;

const BOTH: [EvictionPolicy; 2] = [EvictionPolicy::Lru, EvictionPolicy::Gittins];

fn rig(eviction: EvictionPolicy, blocks: u64) -> Rig {
    let settings = CoreSettings {
        eviction,
        pin_ttl_max_ms: 5000,
        ..CoreSettings::default()
    };
    Rig::with(settings, blocks)
}

impl Rig {
    fn hint<'a>(&self, keys: &'a [BlockKey]) -> HintRequest<'a> {
        HintRequest {
            namespace: self.namespace,
            group: self.group,
            keys,
        }
    }

    fn pin(&mut self, session: SessionId, keys: &[BlockKey], ttl_ms: u64) -> Hinted {
        let hint = self.hint(keys);
        let pinned = self.core.pin(self.now, session, &hint, ttl_ms);
        pinned.expect("a valid request")
    }

    fn demote(&mut self, keys: &[BlockKey]) -> Hinted {
        let hint = self.hint(keys);
        self.core.demote(A, &hint).expect("a valid request")
    }

    fn release_branch(&mut self, keys: &[BlockKey]) -> Hinted {
        let hint = self.hint(keys);
        let released = self.core.release_branch(A, &hint, &mut self.actions);
        released.expect("a valid request")
    }

    fn pinned_bytes(&self) -> u64 {
        self.core.stats().pinned_bytes
    }

    /// Saves blocks that nobody has seen until the pool has none but pinned ones beside them.
    fn flood(&mut self, blocks: u64) {
        for n in 0..2 * blocks {
            self.save(A, &[key(1_000_000 + n)]);
        }
    }

    fn is_here(&mut self, keys: &[BlockKey]) -> Vec<bool> {
        keys.iter().map(|key| self.peek(&[*key]) == 1).collect()
    }
}

#[test]
fn pinned_blocks_stay_until_their_time_is_over() {
    for eviction in BOTH {
        let mut rig = rig(eviction, 16);
        let mine = keys(0..4);
        rig.save(A, &mine);
        let pinned = rig.pin(A, &keys(0..6), 1000);
        assert_eq!((pinned.done, pinned.absent, pinned.refused), (4, 2, 0));
        assert_eq!(rig.pinned_bytes(), 4 * BLOCK_BYTES);
        rig.flood(16);
        assert_eq!(rig.peek(&mine), 4);
        rig.now = Now(1001);
        rig.core.tick(rig.now, &mut rig.actions);
        assert_eq!(rig.pinned_bytes(), 0);
        let expired: u64 = rig
            .core
            .counters()
            .map(|(_, c)| c.expired_read_leases)
            .sum();
        assert_eq!(expired, 0, "it ended as it was meant to");
        rig.flood(16);
        assert_eq!(rig.peek(&mine), 0);
        rig.done();
    }
}

#[test]
fn a_pin_over_the_budget_gets_what_fits() {
    let mut rig = rig(EvictionPolicy::Lru, 16);
    let mine = keys(0..10);
    rig.save(A, &mine);
    // A quarter of the pool.
    let pinned = rig.pin(A, &mine, 1000);
    assert_eq!((pinned.done, pinned.refused), (4, 6));
    let more = rig.pin(B, &mine, 1000);
    assert_eq!((more.done, more.refused, more.lease), (0, 10, None));
    let lease = pinned.lease.expect("something is pinned");
    rig.core.release(A, lease, &mut rig.actions).expect("held");
    assert_eq!(rig.pin(B, &mine, u64::MAX).done, 4, "there is room again");
    rig.now = Now(5000);
    rig.core.tick(rig.now, &mut rig.actions);
    assert_eq!(
        rig.pinned_bytes(),
        0,
        "no pin lives longer than the node lets it"
    );
    rig.done();
}

#[test]
fn no_budget_pins_nothing() {
    let settings = CoreSettings {
        pin_bytes_max: 0,
        ..CoreSettings::default()
    };
    let mut rig = Rig::with(settings, 16);
    rig.save(A, &keys(0..4));
    let pinned = rig.pin(A, &keys(0..4), 1000);
    assert_eq!((pinned.done, pinned.refused, pinned.lease), (0, 4, None));
    rig.done();
}

#[test]
fn pins_end_with_their_session() {
    let mut rig = rig(EvictionPolicy::Lru, 16);
    rig.save(A, &keys(0..4));
    assert_eq!(rig.pin(B, &keys(0..4), 5000).done, 4);
    rig.core
        .close_session(rig.now, B, &mut rig.actions)
        .expect("open");
    assert_eq!((rig.pinned_bytes(), rig.core.stats().leases), (0, 0));
    rig.flood(16);
    assert_eq!(rig.peek(&keys(0..4)), 0);
    rig.done();
}

#[test]
fn demoted_blocks_leave_first_unless_they_are_used_again() {
    for eviction in BOTH {
        let mut rig = rig(eviction, 16);
        for prompt in 0..4u64 {
            let keys = keys(prompt * 10..prompt * 10 + 4);
            rig.lookup(A, &keys);
            rig.save(A, &keys);
        }
        // The youngest two are of no more use; one of them is, after all.
        assert_eq!(rig.demote(&keys(20..25)).done, 4);
        assert_eq!(
            rig.demote(&keys(30..34)),
            Hinted {
                done: 4,
                ..Hinted::default()
            }
        );
        let again = rig.lookup(A, &keys(30..34));
        rig.release(A, &again);
        rig.save(A, &keys(50..52));
        assert_eq!(
            rig.is_here(&keys(20..24)),
            [true, true, false, false],
            "from the leaf"
        );
        rig.save(A, &keys(60..62));
        assert_eq!(rig.peek(&keys(20..24)), 0);
        for prompt in [0, 10, 30] {
            assert_eq!(rig.peek(&keys(prompt..prompt + 4)), 4, "{prompt}");
        }
        rig.done();
    }
}

#[test]
fn a_demoted_block_in_use_leaves_when_it_no_longer_is() {
    let mut rig = rig(EvictionPolicy::Gittins, 8);
    rig.save(A, &keys(0..4));
    rig.save(A, &keys(10..14));
    let reading = rig.lookup(B, &keys(10..14));
    rig.demote(&keys(10..14));
    rig.save(A, &[key(20)]);
    assert_eq!(rig.peek(&keys(10..14)), 4, "somebody reads it");
    rig.release(B, &reading);
    rig.save(A, &keys(21..25));
    assert_eq!(rig.peek(&keys(10..14)), 0);
    rig.done();
}

/// A trunk of three blocks with two branches of two.
fn tree(rig: &mut Rig) -> [Vec<BlockKey>; 2] {
    let branch = |from: u64| [keys(0..3), keys(from..from + 2)].concat();
    let branches = [branch(10), branch(20)];
    branches.iter().for_each(|keys| drop(rig.save(A, keys)));
    branches
}

#[test]
fn a_branch_leaves_up_to_where_another_begins() {
    let mut rig = rig(EvictionPolicy::Lru, 16);
    let [one, other] = tree(&mut rig);
    let released = rig.release_branch(&one);
    assert_eq!(
        (released.done, released.refused, released.absent),
        (2, 3, 0)
    );
    assert_eq!((rig.peek(&one), rig.peek(&other)), (3, 5));
    let released = rig.release_branch(&one);
    assert_eq!(
        (released.done, released.refused, released.absent),
        (0, 3, 2)
    );
    assert_eq!(
        rig.release_branch(&other).done,
        5,
        "the trunk goes with the last"
    );
    assert_eq!(rig.core.stats().used_bytes, 0);
    rig.done();
}

#[test]
fn what_is_in_use_of_a_branch_leaves_first_later() {
    let mut rig = rig(EvictionPolicy::Lru, 7);
    let [one, other] = tree(&mut rig);
    let reading = rig.lookup(B, &one[..4]);
    let released = rig.release_branch(&one);
    assert_eq!((released.done, released.refused), (2, 3));
    assert_eq!(rig.is_here(&one), [true, true, true, true, false]);
    rig.release(B, &reading);
    rig.save(A, &keys(30..32));
    assert_eq!(rig.is_here(&one), [true, true, true, false, false]);
    assert_eq!(rig.peek(&other), 5);
    rig.done();
}

#[test]
fn what_cannot_be_hinted_is_refused_and_changes_nothing() {
    let mut rig = rig(EvictionPolicy::Lru, 8);
    rig.save(A, &keys(0..3));
    let twice = [key(1), key(1)];
    let hint = rig.hint(&twice);
    let duplicate = Err(Error::DuplicateKey(key(1)));
    assert_eq!(
        rig.core.release_branch(A, &hint, &mut rig.actions),
        duplicate
    );
    assert_eq!(rig.core.demote(A, &hint), duplicate);
    assert_eq!(rig.core.pin(rig.now, A, &hint, 1), duplicate);
    let (keys, nobody) = (keys(0..3), SessionId(99));
    let unknown = rig.core.demote(nobody, &rig.hint(&keys));
    assert_eq!(unknown, Err(Error::UnknownSession(nobody)));
    assert_eq!(rig.peek(&keys), 3);
    rig.done();
}
