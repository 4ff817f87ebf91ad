// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
use super::rig::*;
use crate::core::*;

const T: TicketId = TicketId(7);

fn wait(rig: &mut Rig, keys: &[pegaflow_meta::BlockKey]) -> LookupReply {
    rig.drain();
    rig.look(B, keys, LookupMode::Prefix, Some(1000), Some(T))
}

fn tickets(rig: &mut Rig) -> Vec<(u32, bool)> {
    let ticket = |action| match action {
        Action::Ticket {
            ticket: T,
            ready,
            done,
        } => Some((ready, done)),
        _ => None,
    };
    rig.drain().into_iter().filter_map(ticket).collect()
}

#[test]
fn a_ticket_follows_the_prefix_and_pins_it() {
    let mut rig = Rig::new(4);
    rig.save(A, &keys(0..1));
    let second = rig.reserve(A, &keys(1..2));
    let third = rig.reserve(A, &keys(2..4));
    let found = wait(&mut rig, &keys(0..4));
    assert_eq!((found.blocks.len(), found.pending), (1, 3));
    rig.seal(A, &third);
    assert_eq!(tickets(&mut rig), [], "the second block comes first");
    rig.seal(A, &second);
    assert_eq!(tickets(&mut rig), [(4, true)]);
    assert_eq!(
        rig.reserve(A, &keys(10..11)).answers,
        [Answer::OutOfBudget],
        "all are pinned"
    );
    let lease = found.lease.expect("something was found");
    let mut blocks = vec![];
    rig.core
        .lease_blocks(B, lease, &mut blocks)
        .expect("it lives");
    assert_eq!(blocks.len(), 4);
    rig.release(B, &found);
    assert_eq!(rig.core.stats().waiters, 0);
    rig.done();
}

#[test]
fn a_ticket_ends_where_a_writer_fails() {
    let mut rig = Rig::new(8);
    let first = rig.reserve(A, &keys(0..1));
    let rest = rig.reserve(A, &keys(1..3));
    let found = wait(&mut rig, &keys(0..3));
    assert_eq!(found.blocks, []);
    rig.seal(A, &first);
    assert_eq!(tickets(&mut rig), [(1, false)]);
    rig.core
        .abort(
            rig.now,
            A,
            rest.lease.expect("places"),
            false,
            &mut rig.actions,
        )
        .expect("ok");
    assert_eq!(tickets(&mut rig), [(1, true)]);
    assert_eq!(rig.core.stats().waiters, 0);
    rig.done();
}

#[test]
fn a_thousand_tickets_wait_for_one_write() {
    let mut rig = Rig::new(8);
    let reply = rig.reserve(A, &keys(0..2));
    for _ in 0..1000 {
        wait(&mut rig, &keys(0..2));
    }
    rig.seal(A, &reply);
    assert_eq!(tickets(&mut rig), vec![(2, true); 1000]);
    rig.done();
}

#[test]
fn a_lease_that_ends_takes_its_ticket_along() {
    let mut rig = Rig::new(8);
    let reply = rig.reserve(A, &keys(0..2));
    let found = wait(&mut rig, &keys(0..2));
    wait(&mut rig, &keys(0..2));
    rig.release(B, &found);
    assert_eq!(rig.core.stats().waiters, 1);
    rig.now = Now(1000);
    rig.core.tick(rig.now, &mut rig.actions);
    assert_eq!(rig.core.stats().waiters, 0);
    rig.seal(A, &reply);
    assert_eq!(tickets(&mut rig), []);
    rig.done();
}

#[test]
fn tickets_have_a_limit_and_need_a_lease() {
    let mut rig = Rig::with(
        CoreSettings {
            waiters_max: 1,
            ..CoreSettings::default()
        },
        8,
    );
    rig.reserve(A, &keys(0..2));
    wait(&mut rig, &keys(0..2));
    let over = Error::OverLimit {
        setting: "waiters_max",
        wanted: 2,
        limit: 1,
    };
    let again = rig.try_look(B, &keys(0..2), LookupMode::Prefix, Some(1), Some(T));
    assert_eq!(again, Err(over));
    for (mode, ttl) in [(LookupMode::Set, Some(1)), (LookupMode::Prefix, None)] {
        assert!(matches!(
            rig.try_look(B, &keys(0..2), mode, ttl, Some(T)),
            Err(Error::Bad { .. })
        ));
    }
    rig.done();
}
