// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
use super::rig::*;
use crate::core::*;

const T: TicketId = TicketId(7);

/// A lookup by B that is extended by a fetch of `more` blocks by A.
fn fetch(rig: &mut Rig, blocks: u64, more: u64) -> (LookupReply, ReserveReply) {
    let all = keys(0..blocks + more);
    let (namespace, group) = (rig.namespace, rig.group);
    let request = LookupRequest {
        namespace,
        group,
        keys: &all,
        mode: LookupMode::Prefix,
        lease_ttl_ms: Some(1000),
        ticket: Some(T),
    };
    let (mut found, mut reserved) = (LookupReply::default(), ReserveReply::default());
    rig.core
        .lookup(rig.now, B, &request, &mut found)
        .expect("looks up");
    let known = found.blocks.len() + found.pending as usize;
    assert_eq!(known as u64, blocks);
    let wanted = FetchRequest {
        namespace,
        group,
        parent: known.checked_sub(1).map(|at| all[at]),
        keys: &all[known..],
    };
    let actions = &mut rig.actions;
    let fetched = rig
        .core
        .reserve_fetch(rig.now, A, &wanted, &mut reserved, actions);
    fetched.expect("reserves");
    let room = reserved
        .answers
        .iter()
        .take_while(|a| **a != Answer::OutOfBudget)
        .count();
    let followed = rig
        .core
        .follow_on(rig.now, B, &request, room as u32, 0, &mut found);
    followed.expect("follows");
    (found, reserved)
}

fn last_word(rig: &mut Rig) -> Option<(u32, bool)> {
    let mut words = rig.drain().into_iter().filter_map(|action| match action {
        Action::Ticket {
            ticket: T,
            ready,
            done,
        } => Some((ready, done)),
        _ => None,
    });
    words.next_back()
}

#[test]
fn a_lookup_follows_what_is_fetched_for_it() {
    let mut rig = Rig::new(8);
    rig.save(A, &keys(0..2));
    let counted = rig.core.counters().next().map(|(_, c)| c.reserves);
    let (found, reserved) = fetch(&mut rig, 2, 3);
    assert_eq!((found.blocks.len(), found.pending), (2, 3));
    assert_eq!(rig.core.counters().next().map(|(_, c)| c.reserves), counted);
    rig.seal(A, &reserved);
    assert_eq!(last_word(&mut rig), Some((5, true)));
    rig.release(B, &found);
    rig.done();
}

#[test]
fn a_wait_that_was_begun_goes_on_over_what_is_fetched() {
    let mut rig = Rig::new(8);
    let written = rig.reserve(A, &keys(0..1));
    let (found, reserved) = fetch(&mut rig, 1, 2);
    assert_eq!((found.blocks.len(), found.pending), (0, 3));
    rig.seal(A, &reserved);
    assert_eq!(last_word(&mut rig), None, "the first comes first");
    rig.seal(A, &written);
    assert_eq!(last_word(&mut rig), Some((3, true)));
    rig.release(B, &found);
    rig.done();
}

#[test]
fn a_block_given_up_ends_the_wait_and_frees_its_place_once_it_is_quiet() {
    for quiesced in [true, false] {
        let mut rig = Rig::new(3);
        let (found, reserved) = fetch(&mut rig, 0, 3);
        let lease = reserved.lease.expect("places");
        let drop_one = |rig: &mut Rig, quiesced| {
            let actions = &mut rig.actions;
            let dropped = rig
                .core
                .drop_items(rig.now, A, lease, &[1], quiesced, actions);
            dropped.expect("the item is open");
        };
        rig.core
            .seal(rig.now, A, lease, &[0], &mut rig.actions)
            .expect("seals");
        drop_one(&mut rig, quiesced);
        assert_eq!(last_word(&mut rig), Some((1, true)));
        rig.core
            .seal(rig.now, A, lease, &[2], &mut rig.actions)
            .expect("seals");
        if !quiesced {
            assert_eq!(
                rig.core.stats().detached_blocks,
                1,
                "its place is out of use"
            );
            drop_one(&mut rig, true);
        }
        assert_eq!(rig.core.stats().detached_blocks, 0);
        rig.release(B, &found);
        assert_eq!(rig.core.stats().leases, 0);
        rig.done();
    }
}

#[test]
fn the_end_of_a_waiting_lease_is_told() {
    let mut rig = Rig::new(8);
    let (found, reserved) = fetch(&mut rig, 0, 2);
    rig.drain();
    rig.release(B, &found);
    assert_eq!(rig.drain(), [Action::WaitOver { ticket: T }]);
    rig.seal(A, &reserved);
    assert_eq!(last_word(&mut rig), None);
    rig.done();
}

/// A lookup of 4 blocks, of which `begun` have room at once.
fn promise(rig: &mut Rig, begun: u64) -> (LookupReply, ReserveReply) {
    let all = keys(0..4);
    let request = LookupRequest {
        namespace: rig.namespace,
        group: rig.group,
        keys: &all,
        mode: LookupMode::Prefix,
        lease_ttl_ms: Some(1000),
        ticket: Some(T),
    };
    let mut found = LookupReply::default();
    let looked = rig.core.lookup(rig.now, B, &request, &mut found);
    looked.expect("looks up");
    let reserved = rig.reserve(A, &keys(0..begun));
    let (begun, rest) = (begun as u32, 4 - begun as u32);
    let followed = rig
        .core
        .follow_on(rig.now, B, &request, begun, rest, &mut found);
    followed.expect("follows");
    assert_eq!(found.pending, 4);
    rig.core.check();
    (found, reserved)
}

#[test]
fn a_wait_goes_on_over_what_was_promised() {
    for begun_before_ready in [true, false] {
        let mut rig = Rig::new(8);
        let (found, first) = promise(&mut rig, 2);
        let lease = found.lease.expect("it waits");
        if !begun_before_ready {
            rig.seal(A, &first);
            assert_eq!(last_word(&mut rig), Some((2, false)), "more will come");
        }
        let second = rig.reserve(A, &keys(2..4));
        rig.core.promised(lease, 2, false, &mut rig.actions);
        if begun_before_ready {
            rig.seal(A, &first);
        }
        assert_eq!(last_word(&mut rig), Some((2, false)));
        rig.seal(A, &second);
        assert_eq!(last_word(&mut rig), Some((4, true)));
        rig.release(B, &found);
        rig.done();
    }
}

#[test]
fn a_promise_taken_back_ends_the_wait_at_what_was_begun() {
    let mut rig = Rig::new(8);
    let (found, first) = promise(&mut rig, 2);
    let lease = found.lease.expect("it waits");
    rig.seal(A, &first);
    let second = rig.reserve(A, &keys(2..3));
    rig.core.promised(lease, 1, true, &mut rig.actions);
    assert_eq!(last_word(&mut rig), Some((2, false)));
    rig.seal(A, &second);
    assert_eq!(last_word(&mut rig), Some((3, true)));
    rig.core.promised(lease, 1, true, &mut rig.actions);
    assert_eq!(last_word(&mut rig), None, "it is over");
    rig.release(B, &found);

    let mut rig = Rig::new(8);
    let (found, first) = promise(&mut rig, 2);
    rig.seal(A, &first);
    rig.core
        .promised(found.lease.expect("it waits"), 0, true, &mut rig.actions);
    assert_eq!(last_word(&mut rig), Some((2, true)));
    rig.release(B, &found);
    rig.done();
}

#[test]
fn a_lease_that_ends_while_blocks_are_promised_leaves_no_wait() {
    let mut rig = Rig::new(8);
    let (found, first) = promise(&mut rig, 1);
    rig.seal(A, &first);
    rig.drain();
    rig.release(B, &found);
    assert_eq!(rig.drain(), [Action::WaitOver { ticket: T }]);
    assert_eq!(rig.core.stats().waiters, 0);
    rig.done();
}

#[test]
fn presence_says_where_each_block_is() {
    let mut rig = Rig::new(8);
    rig.save(A, &keys(0..1));
    rig.reserve(A, &keys(1..2));
    let mut out = vec![];
    let asked = rig
        .core
        .presence(rig.namespace, rig.group, &keys(0..3), &mut out);
    asked.expect("a known namespace");
    assert_eq!(out, [Presence::Ready, Presence::Writing, Presence::Absent]);
}

#[test]
fn a_block_being_spilled_keeps_its_place() {
    let mut rig = Rig::new(2);
    rig.save(A, &keys(0..1));
    let block = rig.lookup(B, &keys(0..1));
    let (place, generation) = (block.blocks[0].place, block.blocks[0].generation);
    rig.release(B, &block);
    assert!(
        !rig.core.begin_spill(place, generation + 1),
        "another use of the place"
    );
    assert!(rig.core.begin_spill(place, generation));
    assert!(!rig.core.begin_spill(place, generation), "held already");
    rig.core.check();
    rig.save(A, &keys(10..13));
    assert_eq!(rig.peek(&keys(0..1)), 1, "it is not evicted");
    let reported = rig
        .core
        .report_corrupt(B, &key(0), place, generation, &mut rig.actions);
    assert_eq!(reported, Ok(true));
    assert_eq!(
        rig.core.stats().detached_blocks,
        1,
        "the place waits for the spill"
    );
    rig.core.end_spill(place, &mut rig.actions);
    assert_eq!(rig.core.stats().detached_blocks, 0);
    rig.done();
}

#[test]
fn among_equals_what_another_tier_has_leaves_first() {
    let settings = CoreSettings {
        eviction: EvictionPolicy::Gittins,
        ..CoreSettings::default()
    };
    let mut rig = Rig::with(settings, 4);
    for n in 0..4 {
        rig.save(A, &keys(10 * n..10 * n + 1));
    }
    rig.core.note_copy(&key(20));
    rig.core.note_copy(&key(999));
    rig.save(A, &keys(40..41));
    let left = [0, 10, 20, 30].map(|n| rig.peek(&keys(n..n + 1)));
    assert_eq!(left, [1, 1, 0, 1]);
    rig.core.check();
}
