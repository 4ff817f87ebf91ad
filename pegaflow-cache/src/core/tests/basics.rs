// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
use super::rig::*;
use crate::core::*;

#[test]
fn saved_blocks_are_found_in_prefix_order() {
    let mut rig = Rig::new(64);
    rig.save(A, &keys(0..4));
    assert_eq!(rig.peek(&keys(0..6)), 4);
    assert_eq!(rig.peek(&keys(1..4)), 3);
    assert_eq!(rig.peek(&keys(4..6)), 0);
    let all = [keys(9..10), keys(2..4)].concat();
    let set = rig.look(A, &all, LookupMode::Set, None, None);
    assert_eq!(set.blocks.iter().map(|b| b.key).collect::<Vec<_>>(), [1, 2]);
    rig.done();
}

#[test]
fn an_unsealed_block_is_pending_not_found() {
    let mut rig = Rig::new(64);
    let reply = rig.reserve(A, &keys(0..2));
    let found = rig.lookup(B, &keys(0..3));
    assert_eq!(
        (found.blocks.len(), found.pending, found.lease),
        (0, 2, None)
    );
    rig.seal(A, &reply);
    assert_eq!(rig.peek(&keys(0..3)), 2);
    rig.done();
}

#[test]
fn a_full_pool_evicts_leaves_first_and_the_oldest_first() {
    let mut rig = Rig::new(8);
    rig.save(A, &keys(0..4));
    rig.save(A, &keys(10..14));
    rig.save(A, &keys(20..22));
    assert_eq!(
        rig.peek(&keys(0..4)),
        2,
        "the oldest prefix lost its two last blocks"
    );
    assert_eq!(rig.peek(&keys(10..14)), 4);
    assert_eq!(rig.peek(&keys(20..22)), 2);
    rig.done();
}

#[test]
fn leased_blocks_stay_and_the_rest_is_refused() {
    let mut rig = Rig::new(4);
    rig.save(A, &keys(0..3));
    let lease = rig.lookup(B, &keys(0..3));
    let reply = rig.reserve(A, &keys(10..13));
    assert!(matches!(reply.answers[0], Answer::Place { .. }));
    assert_eq!(reply.answers[1..], [Answer::OutOfBudget; 2]);
    rig.release(B, &lease);
    rig.seal(A, &reply);
    assert_eq!(rig.save(A, &keys(10..13)).places, 2);
    rig.done();
}

#[test]
fn ranks_join_one_place_and_the_block_waits_for_all() {
    let mut rig = Rig::new(8);
    let first = rig
        .reserve_slot(A, &rank(0, 2), None, &keys(0..1))
        .expect("valid");
    let again = rig
        .reserve_slot(B, &rank(0, 2), None, &keys(0..1))
        .expect("valid");
    assert_eq!(again.answers, [Answer::InFlight]);
    let second = rig
        .reserve_slot(B, &rank(1, 2), None, &keys(0..1))
        .expect("valid");
    assert_eq!(first.answers, second.answers);
    assert_eq!(
        rig.seal(A, &first),
        SealReply {
            partial: 1,
            ..SealReply::default()
        }
    );
    assert_eq!(rig.peek(&keys(0..1)), 0);
    let wider = rig
        .reserve_slot(A, &rank(0, 4), None, &keys(0..1))
        .expect("valid");
    assert_eq!(
        wider.answers,
        [Answer::Have],
        "another rank wrote these heads already"
    );
    assert_eq!(
        rig.seal(B, &second),
        SealReply {
            completed: 1,
            ..SealReply::default()
        }
    );
    assert_eq!(rig.peek(&keys(0..1)), 1);
    rig.done();
}

#[test]
fn a_dead_writers_place_waits_for_its_process() {
    let mut rig = Rig::new(1);
    let reply = rig.reserve(A, &keys(0..1));
    rig.core
        .close_session(rig.now, A, &mut rig.actions)
        .expect("open");
    assert_eq!(rig.reserve(B, &keys(0..1)).answers, [Answer::OutOfBudget]);
    rig.core
        .process_gone(rig.now, A, &mut rig.actions)
        .expect("known");
    let again = rig.reserve(B, &keys(0..1));
    assert_eq!(again.places, 1);
    assert_ne!(again.answers, reply.answers, "another generation");
    assert_eq!(
        rig.core.process_gone(rig.now, A, &mut rig.actions),
        Err(Error::UnknownSession(A))
    );
    rig.done();
}

#[test]
fn a_corrupt_block_is_a_miss_and_its_place_waits_for_its_reader() {
    let mut rig = Rig::new(1);
    rig.save(A, &keys(0..1));
    let found = rig.lookup(B, &keys(0..1));
    let BlockRef {
        place, generation, ..
    } = found.blocks[0];
    rig.drain();
    for expect in [true, false] {
        let dropped = rig
            .core
            .report_corrupt(B, &key(0), place, generation, &mut rig.actions);
        assert_eq!(dropped, Ok(expect));
    }
    assert_eq!(rig.peek(&keys(0..1)), 0);
    assert_eq!(rig.reserve(A, &keys(1..2)).answers, [Answer::OutOfBudget]);
    rig.release(B, &found);
    assert_eq!(rig.drain(), [Action::EraseRecord { place, generation }]);
    assert_eq!(rig.reserve(A, &keys(1..2)).places, 1);
    rig.done();
}

#[test]
fn duplicates_in_a_request_are_refused_and_change_nothing() {
    let mut rig = Rig::new(8);
    let twice = [key(0), key(1), key(0)];
    let slot = rank(0, 1);
    let before = rig.core.stats();
    assert_eq!(
        rig.reserve_slot(A, &slot, None, &twice),
        Err(Error::DuplicateKey(key(0)))
    );
    assert_eq!(rig.core.stats(), before);
    rig.done();
}
