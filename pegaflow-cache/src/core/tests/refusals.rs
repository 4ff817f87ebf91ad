// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
use super::rig::*;
use crate::core::*;
use pegaflow_mem::{ErrorKind, Slot};
use pegaflow_meta::{BlockKey, GroupId, GroupKind};

/// One call that must be refused, with the error; nothing may change.
type Call = fn(&mut Rig, LeaseId, LeaseId) -> Result<(), Error>;

/// A has a write lease on keys 0..2 and a read lease on key 5; then the call.
fn check(settings: CoreSettings, call: Call, kind: ErrorKind, says: &str) {
    let mut rig = Rig::with(settings, 16);
    rig.save(A, &keys(5..6));
    let write = rig.reserve(A, &keys(0..2)).lease.expect("room for two");
    let read = rig.lookup(A, &keys(5..6)).lease.expect("it is there");
    rig.drain();
    let before = rig.core.stats();
    let error = call(&mut rig, write, read).expect_err(says);
    assert_eq!(error.kind(), kind, "{error}");
    assert!(
        error.to_string().contains(says),
        "{error} does not say {says}"
    );
    assert_eq!(
        (rig.core.stats(), rig.drain()),
        (before, vec![]),
        "{error} changed something"
    );
    rig.done();
}

fn reserve(rig: &mut Rig, session: SessionId, slot: Slot, keys: &[BlockKey]) -> Result<(), Error> {
    rig.reserve_slot(session, &slot, None, keys).map(drop)
}

fn seal(rig: &mut Rig, session: SessionId, lease: LeaseId, items: &[u32]) -> Result<(), Error> {
    rig.core
        .seal(rig.now, session, lease, items, &mut rig.actions)
        .map(drop)
}

fn find(rig: &mut Rig, session: SessionId, keys: &[BlockKey]) -> Result<(), Error> {
    rig.try_look(session, keys, LookupMode::Prefix, Some(1), None)
        .map(drop)
}

const NOBODY: SessionId = SessionId(99);

#[test]
fn calls_that_can_never_work() {
    let refused = |call, kind, says| check(CoreSettings::default(), call, kind, says);
    use ErrorKind::{Closed, Invalid};
    refused(
        |r, _, _| find(r, NOBODY, &keys(0..1)),
        Closed,
        "SessionId(99)",
    );
    refused(
        |r, _, _| reserve(r, NOBODY, rank(0, 1), &keys(8..9)),
        Closed,
        "SessionId(99)",
    );
    refused(|r, w, _| seal(r, NOBODY, w, &[0]), Closed, "SessionId(99)");
    refused(
        |r, w, _| seal(r, B, w, &[0]),
        Closed,
        "not a lease of this session",
    );
    refused(
        |r, _, read| seal(r, A, read, &[0]),
        Closed,
        "not a lease of this session",
    );
    refused(|r, w, _| seal(r, A, w, &[0, 2]), Invalid, "item 2");
    refused(
        |r, w, _| seal(r, A, w, &[u32::MAX]),
        Invalid,
        "item 4294967295",
    );
    refused(|r, w, _| seal(r, A, w, &[1, 0]), Invalid, "must ascend");
    refused(|r, w, _| seal(r, A, w, &[0, 0]), Invalid, "must ascend");
    refused(
        |r, w, _| r.core.release(A, w, &mut r.actions),
        Closed,
        "not a lease",
    );
    refused(
        |r, _, read| r.core.release(B, read, &mut r.actions),
        Closed,
        "not a lease",
    );
    refused(
        |r, _, l| r.core.release(A, LeaseId(l.0 ^ 1 << 32), &mut r.actions),
        Closed,
        "lease",
    );
    refused(
        |r, w, _| r.core.abort(r.now, B, w, true, &mut r.actions),
        Closed,
        "not a lease",
    );
    refused(
        |r, _, l| r.core.abort(r.now, A, l, true, &mut r.actions),
        Closed,
        "not a lease",
    );
    refused(
        |r, _, _| r.core.open_session(A, 0),
        Invalid,
        "exists already",
    );
    refused(
        |r, _, _| r.core.move_done(Place::new(0, 0), true, &mut r.actions),
        Invalid,
        "Place",
    );
    refused(
        |r, _, _| reserve(r, A, rank(0, 1), &[key(8), key(9), key(8)]),
        Invalid,
        "twice in one request",
    );
}

#[test]
fn slots_and_names_that_cannot_be() {
    let refused = |call, says| check(CoreSettings::default(), call, ErrorKind::Invalid, says);
    refused(
        |r, _, _| {
            reserve(
                r,
                A,
                Slot {
                    layers: 0..2,
                    heads: 3..5,
                },
                &keys(8..9),
            )
        },
        "slot",
    );
    refused(
        |r, _, _| {
            reserve(
                r,
                A,
                Slot {
                    layers: 1..1,
                    heads: 0..4,
                },
                &keys(8..9),
            )
        },
        "slot",
    );
    refused(
        |r, _, _| {
            r.namespace = NamespaceIndex(7);
            find(r, A, &keys(0..1))
        },
        "NamespaceIndex(7)",
    );
    refused(
        |r, _, _| {
            r.group = GroupId(1);
            find(r, A, &keys(0..1))
        },
        "GroupId(1)",
    );
    refused(
        |r, _, _| {
            let other = spec("one", 1, &[(GroupKind::Mla, 16)]);
            r.core.register_namespace(&other).map(drop)
        },
        "differs in group 0",
    );
    refused(
        |r, _, _| {
            let stolen = spec("two", 1, &[(GroupKind::FullAttention, 16)]);
            r.core.register_namespace(&stolen).map(drop)
        },
        "the tenant differs",
    );
    refused(
        |r, _, _| r.core.register_namespace(&spec("one", 3, &[])).map(drop),
        "1 to 64 groups",
    );
}

#[test]
fn every_limit_has_a_name() {
    let d = CoreSettings::default;
    let busy = |settings, call, says| check(settings, call, ErrorKind::Busy, says);
    let four = CoreSettings {
        request_keys_max: 4,
        ..d()
    };
    busy(
        four.clone(),
        |r, _, _| find(r, A, &keys(0..5)),
        "request_keys_max",
    );
    busy(
        four,
        |r, _, _| reserve(r, A, rank(0, 1), &keys(8..13)),
        "request_keys_max",
    );
    let leases = CoreSettings {
        leases_max: 2,
        ..d()
    };
    busy(
        leases.clone(),
        |r, _, _| find(r, B, &keys(5..6)),
        "leases_max",
    );
    busy(
        leases,
        |r, _, _| reserve(r, B, rank(0, 1), &keys(8..9)),
        "leases_max",
    );
    let own = CoreSettings {
        session_leases_max: 2,
        ..d()
    };
    busy(own, |r, _, _| find(r, A, &keys(5..6)), "session_leases_max");
    let sessions = CoreSettings {
        sessions_max: 2,
        ..d()
    };
    busy(
        sessions,
        |r, _, _| r.core.open_session(NOBODY, 0),
        "sessions_max",
    );
    let one = spec("one", 9, &[(GroupKind::Mla, 16)]);
    let two = spec("two", 9, &[(GroupKind::Mla, 16)]);
    for (settings, spec, says) in [
        (
            CoreSettings {
                namespaces_max: 1,
                ..d()
            },
            one,
            "namespaces_max",
        ),
        (
            CoreSettings {
                tenants_max: 1,
                ..d()
            },
            two,
            "tenants_max",
        ),
    ] {
        let mut rig = Rig::with(settings, 4);
        let error = rig
            .core
            .register_namespace(&spec)
            .expect_err("over the limit");
        assert!(
            error.kind() == ErrorKind::Busy && error.to_string().contains(says),
            "{error}"
        );
    }
}

#[test]
fn limits_that_are_answered_per_key() {
    let answers = |settings, slots: &[(u32, u32)]| {
        let mut rig = Rig::with(settings, 16);
        let mut all = vec![];
        for (at, ranks) in slots {
            let reply = rig.reserve_slot(A, &rank(*at, *ranks), None, &keys(0..2));
            all.extend(reply.expect("a valid request").answers);
        }
        rig.done();
        all.iter()
            .filter(|answer| **answer == Answer::OutOfBudget)
            .count()
    };
    let d = CoreSettings::default;
    let bytes = CoreSettings {
        session_reserved_bytes_max: BLOCK_BYTES,
        ..d()
    };
    assert_eq!(answers(bytes, &[(0, 1)]), 1);
    assert_eq!(
        answers(
            CoreSettings {
                blocks_max: 1,
                ..d()
            },
            &[(0, 1)]
        ),
        1
    );
    assert_eq!(
        answers(
            CoreSettings {
                block_slots_max: 1,
                ..d()
            },
            &[(0, 2), (1, 2)]
        ),
        2
    );
    assert_eq!(answers(d(), &[(0, 2), (1, 2)]), 0);
}

/// A block that fits nowhere must not cost anybody else's.
#[test]
fn a_block_larger_than_its_room_evicts_nothing() {
    let quota = TenantSettings {
        bytes_max: Some(BLOCK_BYTES),
        ..TenantSettings::default()
    };
    let tenants = [("two".to_owned(), quota)].into();
    let mut rig = Rig::with(
        CoreSettings {
            tenants,
            ..CoreSettings::default()
        },
        16,
    );
    rig.save(A, &keys(0..16));
    for (id, tenant, layers) in [(2, "one", 64), (3, "two", 4), (4, "two", 2)] {
        let mut large = spec(tenant, id, &[(GroupKind::FullAttention, 16)]);
        large.groups[0].shape.layers = layers;
        let namespace = rig
            .core
            .register_namespace(&large)
            .expect("a valid namespace");
        let slot = Slot::whole(&large.groups[0].shape);
        let was = std::mem::replace(&mut rig.namespace, namespace);
        let keys_of = keys(100 * u64::from(id)..100 * u64::from(id) + 1);
        let reply = rig
            .reserve_slot(A, &slot, None, &keys_of)
            .expect("a valid request");
        rig.namespace = was;
        let fits = layers == 2;
        assert_eq!(reply.places, u32::from(fits), "{tenant}, {layers} layers");
        assert_eq!(rig.peek(&keys(0..16)), if fits { 15 } else { 16 });
    }
    rig.done();
}

#[test]
fn settings_of_zero_are_refused() {
    let zero = CoreSettings {
        leases_max: 0,
        ..CoreSettings::default()
    };
    let refused = Error::Bad {
        what: "leases_max",
        reason: "must be at least 1",
    };
    assert_eq!(Core::new(zero, [0; 2]).err(), Some(refused));
}

#[test]
fn a_key_of_another_namespace_is_a_miss_and_no_reservation() {
    let mut rig = Rig::new(16);
    rig.save(A, &keys(0..2));
    let other = spec("two", 2, &[(GroupKind::FullAttention, 16)]);
    rig.namespace = rig
        .core
        .register_namespace(&other)
        .expect("a valid namespace");
    assert_eq!(rig.peek(&keys(0..2)), 0, "another tenant sees nothing");
    let refused = reserve(&mut rig, A, rank(0, 1), &keys(0..1));
    assert_eq!(refused, Err(Error::ForeignKey(key(0))));
    rig.done();
}
