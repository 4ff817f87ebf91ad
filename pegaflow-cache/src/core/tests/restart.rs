// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
use super::rig::*;
use super::shell::Shell;
use crate::core::*;
use proptest::prelude::*;

/// Saves two prefixes that share their first half, and returns the books.
fn saved() -> Shell {
    let mut rig = Rig::new(16);
    let mut shell = Shell::new(BLOCK_BYTES);
    shell.block_bytes.insert(rig.namespace, BLOCK_BYTES);
    rig.save(A, &keys(0..6));
    rig.save(A, &[keys(0..3), keys(10..13)].concat());
    rig.reserve(B, &keys(20..22));
    shell.apply(&mut rig.actions);
    shell
}

/// Restores a core from the books, their records in the given order.
fn restored(shell: &Shell, order: &[usize]) -> Rig {
    let mut rig = Rig::new(16);
    for ((pool, slab), (units, place_bytes)) in &shell.slabs {
        rig.core
            .restore_slab(*pool, *slab, *units, *place_bytes)
            .expect("as it was");
    }
    let records: Vec<_> = shell.records.iter().collect();
    for at in order {
        let (place, record) = records[*at];
        let (place, namespace, group) = (*place, record.namespace, record.group);
        if record.sealed {
            let (key, parent, generation) = (record.key, record.parent, record.generation);
            let block = RestoredBlock {
                place,
                namespace,
                group,
                key,
                parent,
                generation,
            };
            assert_eq!(rig.core.restore_block(rig.now, &block), Ok(true));
            let again = rig.core.restore_block(rig.now, &block);
            assert_eq!(again, Ok(false), "a second record of a block is erased");
        } else {
            let (session, generation) = (B, record.generation);
            let write = RestoredWrite {
                place,
                namespace,
                group,
                session,
                generation,
            };
            assert_eq!(rig.core.restore_write(rig.now, &write), Ok(()));
        }
    }
    rig.core.finish_restore();
    rig
}

proptest! {
    #[test]
    fn records_restore_in_any_order(order in Just((0..11).collect::<Vec<_>>()).prop_shuffle()) {
        let mut rig = restored(&saved(), &order);
        rig.core.check();
        prop_assert_eq!(rig.peek(&keys(0..6)), 6);
        prop_assert_eq!(rig.peek(&[keys(0..3), keys(10..13)].concat()), 6);
        prop_assert_eq!(rig.peek(&keys(20..22)), 0, "what was not sealed is gone");
        // 9 sealed and 2 in quarantine leave 5; then leaves go first, so the shared half stays.
        rig.save(A, &keys(30..41));
        prop_assert_eq!(rig.peek(&keys(0..3)), 3);
        prop_assert_eq!(rig.peek(&keys(30..41)), 11);
        rig.core.process_gone(rig.now, B, &mut rig.actions).expect("it is open");
        prop_assert_eq!(rig.save(A, &keys(50..52)).places, 2);
        prop_assert_eq!(rig.peek(&keys(0..3)), 3, "the quarantined places served");
        rig.done();
    }
}

/// A client may name parents so that they form a ring; it must not keep its blocks for ever.
#[test]
fn a_ring_of_parents_is_cut() {
    let mut rig = Rig::new(4);
    let mut shell = Shell::new(BLOCK_BYTES);
    shell.block_bytes.insert(rig.namespace, BLOCK_BYTES);
    for (key_no, parent) in [(0, 2), (1, 0), (2, 1)] {
        let slot = rank(0, 1);
        let reply = rig.reserve_slot(A, &slot, Some(key(parent)), &keys(key_no..key_no + 1));
        rig.seal(A, &reply.expect("valid"));
    }
    shell.apply(&mut rig.actions);
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let mut rig = restored(&shell, &order);
        rig.core.check();
        assert_eq!(
            rig.save(A, &keys(10..26)).places,
            16,
            "all three could leave"
        );
    }
    assert_eq!(
        rig.save(A, &keys(10..14)).places,
        4,
        "all three could leave"
    );
    rig.done();
}

#[test]
fn records_that_cannot_be_are_refused() {
    let mut rig = Rig::new(16);
    let namespace = rig.namespace;
    let block = RestoredBlock {
        place: Place::new(0, 0),
        namespace,
        group: rig.group,
        key: key(0),
        parent: Some(key(0)),
        generation: 7,
    };
    let unknown = |place| Err(Error::UnknownPlace { place });
    assert_eq!(
        rig.core.restore_block(rig.now, &block),
        unknown(block.place),
        "no slab"
    );
    assert!(
        rig.core.restore_slab(0, 0, 17, BLOCK_BYTES).is_err(),
        "beyond the pool"
    );
    assert!(
        rig.core.restore_slab(1, 0, 1, BLOCK_BYTES).is_err(),
        "no such pool"
    );
    rig.core
        .restore_slab(0, 0, 4, BLOCK_BYTES)
        .expect("four places");
    assert!(
        rig.core.restore_slab(0, 3, 2, BLOCK_BYTES).is_err(),
        "overlaps"
    );
    for place in [
        Place::new(0, 100),
        Place::new(0, 4 * BLOCK_BYTES),
        Place::new(3, 0),
    ] {
        let other = RestoredBlock { place, ..block };
        assert_eq!(rig.core.restore_block(rig.now, &other), unknown(place));
    }
    let nobody = RestoredBlock {
        namespace: NamespaceIndex(9),
        ..block
    };
    let refused = Err(Error::UnknownNamespace(NamespaceIndex(9)));
    assert_eq!(rig.core.restore_block(rig.now, &nobody), refused);
    assert_eq!(rig.core.restore_block(rig.now, &block), Ok(true));
    let taken = RestoredBlock {
        key: key(1),
        ..block
    };
    assert_eq!(
        rig.core.restore_block(rig.now, &taken),
        unknown(block.place),
        "in use"
    );
    assert_eq!(rig.peek(&keys(0..1)), 1);
    rig.done();
}
