// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
use super::*;
use proptest::prelude::*;

fn sample() -> Namespace {
    Namespace {
        model: [1; 32],
        weights: [2; 32],
        kv_dtype: "bfloat16".into(),
        kv_quantisation: String::new(),
        hash_algorithm: "sha256_cbor".into(),
        hash_seed: b"0".to_vec(),
        groups: vec![
            GroupSpec {
                kind: GroupKind::FullAttention,
                block_tokens: 16,
                layout: "hnd".into(),
            },
            GroupSpec {
                kind: GroupKind::SlidingWindow {
                    window_tokens: 1024,
                },
                block_tokens: 16,
                layout: "hnd".into(),
            },
        ],
        tenant_salt: TenantSalt(b"secret".to_vec()),
    }
}

/// The fingerprint is a format: blocks kept under it are lost if it changes.
#[test]
fn fingerprint_is_pinned() {
    let id = sample().fingerprint().expect("within limits");
    assert_eq!(id.to_string(), PINNED);
    assert_eq!(id.to_string().parse(), Ok(id));
}
const PINNED: &str = "618176fe3329b70969d5d4ec7b71575dacc5f6ccdbeb75bd79747aea8e460998";

/// Each field alone changes the fingerprint.
#[test]
fn every_field_counts() {
    let changes: [fn(&mut Namespace); 12] = [
        |n| n.model[31] ^= 1,
        |n| n.weights[0] ^= 1,
        |n| n.kv_dtype.push('x'),
        |n| n.kv_quantisation.push('x'),
        |n| n.hash_algorithm.push('x'),
        |n| n.hash_seed.push(0),
        |n| n.groups[0].kind = GroupKind::Mla,
        |n| {
            n.groups[1].kind = GroupKind::SlidingWindow {
                window_tokens: 1025,
            }
        },
        |n| n.groups[0].block_tokens = 32,
        |n| n.groups[0].layout.push('x'),
        |n| n.groups.truncate(1),
        |n| n.tenant_salt.0.clear(),
    ];
    let base = sample().fingerprint();
    for (i, change) in changes.iter().enumerate() {
        let mut other = sample();
        change(&mut other);
        assert_ne!(other.fingerprint(), base, "change {i}");
    }
}

#[test]
fn refusals_name_the_field() {
    let check = |change: fn(&mut Namespace), expect: Error| {
        let mut n = sample();
        change(&mut n);
        assert_eq!(n.encode(), Err(expect));
    };
    check(
        |n| n.groups.clear(),
        Error::BadValue {
            field: "groups",
            value: 0,
        },
    );
    check(
        |n| n.groups = vec![n.groups[0].clone(); 65],
        Error::TooLong {
            field: "groups",
            len: 65,
            max: 64,
        },
    );
    check(
        |n| n.groups[0].block_tokens = 0,
        Error::BadValue {
            field: "block_tokens",
            value: 0,
        },
    );
    check(
        |n| n.tenant_salt.0 = vec![0; 70_000],
        Error::TooLong {
            field: "tenant_salt",
            len: 70_000,
            max: 64,
        },
    );
}

#[test]
fn the_salt_is_not_printed() {
    assert!(!format!("{:?}", sample()).contains("secret"));
    assert!(format!("{:?}", sample()).contains("TenantSalt(6 bytes)"));
}

#[test]
fn unknown_versions_are_refused() {
    let mut bytes = sample().encode().expect("within limits");
    bytes[4] = 2;
    assert_eq!(Namespace::decode(&bytes), Err(Error::UnknownVersion(2)));
}

fn kinds() -> impl Strategy<Value = GroupKind> {
    prop_oneof![
        Just(GroupKind::FullAttention),
        (1..=u32::MAX).prop_map(|window_tokens| GroupKind::SlidingWindow { window_tokens }),
        Just(GroupKind::Mla),
        Just(GroupKind::State),
    ]
}

fn groups() -> impl Strategy<Value = GroupSpec> {
    (kinds(), 1..=u32::MAX, ".{0,40}").prop_map(|(kind, block_tokens, layout)| GroupSpec {
        kind,
        block_tokens,
        layout,
    })
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..=64)
}

fn namespaces() -> impl Strategy<Value = Namespace> {
    let fixed = (any::<[u8; 32]>(), any::<[u8; 32]>());
    let texts = (".{0,16}", ".{0,40}", ".{0,16}");
    let groups = prop::collection::vec(groups(), 1..=64);
    (fixed, texts, bytes(), groups, bytes()).prop_map(|(fixed, texts, hash_seed, groups, salt)| {
        Namespace {
            model: fixed.0,
            weights: fixed.1,
            kv_dtype: texts.0,
            kv_quantisation: texts.1,
            hash_algorithm: texts.2,
            hash_seed,
            groups,
            tenant_salt: TenantSalt(salt),
        }
    })
}

proptest! {
    #[test]
    fn encodings_round_trip_and_no_prefix_decodes(n in namespaces(), cut in any::<prop::sample::Index>()) {
        let mut bytes = n.encode().expect("within limits");
        prop_assert_eq!(Namespace::decode(&bytes), Ok(n));
        prop_assert!(Namespace::decode(&bytes[..cut.index(bytes.len())]).is_err());
        bytes.push(0);
        prop_assert_eq!(Namespace::decode(&bytes), Err(Error::TrailingBytes(1)));
    }

    /// Canonical: whatever decodes at all encodes to the same bytes.
    #[test]
    fn damaged_encodings_are_refused_or_canonical(
        n in namespaces(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = n.encode().expect("within limits");
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(read) = Namespace::decode(&bytes) {
            prop_assert_eq!(read.encode(), Ok(bytes));
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Namespace::decode(&bytes).is_err());
    }
}
