// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The name of a block: sixteen bytes, everywhere.
//!
//! Invariant: equal keys mean interchangeable bytes. Whatever can make KV differ is in the
//! namespace's fingerprint, the group, or the engine's own hash of the block, and all three go
//! into the key.

use crate::namespace::NamespaceId;

/// A cache group of a model (full attention, sliding window, state, ...): its index in
/// [`Namespace::groups`](crate::Namespace::groups).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GroupId(pub u16);

/// Names the KV of one block, all its layers and heads: the first 16 bytes of a keyed BLAKE3.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct BlockKey(pub [u8; 16]);

crate::hex::hex_text!(BlockKey);

impl BlockKey {
    /// Bytes of a key.
    pub const BYTES: usize = 16;

    /// The key of the block which the engine calls `engine_hash` in `group` of `namespace`.
    ///
    /// `BLAKE3.keyed_hash(key = namespace fingerprint, group as u16 LE || engine_hash)[..16]`.
    /// An engine hash of up to 62 bytes costs one compression. The engine's hash must be chained
    /// (cover the whole prefix), which is what engines with prefix caching do.
    #[must_use]
    pub fn derive(namespace: &NamespaceId, group: GroupId, engine_hash: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(&namespace.0);
        hasher.update(&group.0.to_le_bytes());
        hasher.update(engine_hash);
        let mut key = [0; 16];
        hasher.finalize_xof().fill(&mut key);
        Self(key)
    }

    /// The keys in a buffer of concatenated ones: how keys travel.
    ///
    /// # Errors
    /// [`Error::TrailingBytes`](crate::Error::TrailingBytes) if the length is no multiple of 16.
    pub fn parse_all(
        bytes: &[u8],
    ) -> Result<impl ExactSizeIterator<Item = Self> + '_, crate::Error> {
        let (keys, rest) = bytes.as_chunks::<16>();
        if !rest.is_empty() {
            return Err(crate::Error::TrailingBytes(rest.len()));
        }
        Ok(keys.iter().map(|key| Self(*key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use proptest::prelude::*;

    fn derive(namespace: u8, group: u16, hash: &[u8]) -> BlockKey {
        BlockKey::derive(&NamespaceId([namespace; 32]), GroupId(group), hash)
    }

    /// The derivation is a format: stored blocks are lost if it changes.
    #[test]
    fn derivation_is_pinned() {
        let whole = blake3::keyed_hash(&[7; 32], b"\x02\x01hash");
        assert_eq!(derive(7, 0x0102, b"hash").0, whole.as_bytes()[..16]);
        assert_eq!(derive(7, 0x0102, b"hash").to_string(), PINNED);
    }
    const PINNED: &str = "ecf0ab28da0d1e653bedc6c2313b1b0e";

    #[test]
    fn everything_that_matters_changes_the_key() {
        let base = derive(1, 0, b"block");
        for other in [
            derive(2, 0, b"block"),
            derive(1, 1, b"block"),
            derive(1, 0, b"blocks"),
        ] {
            assert_ne!(base, other);
        }
    }

    proptest! {
        #[test]
        fn keys_travel_concatenated(keys in prop::collection::vec(any::<[u8; 16]>(), 0..20), extra in 0usize..16) {
            let mut wire = keys.concat();
            let read: Vec<_> = BlockKey::parse_all(&wire).expect("whole keys").map(|k| k.0).collect();
            prop_assert_eq!(&read, &keys);
            wire.extend(vec![0; extra]);
            let bad = BlockKey::parse_all(&wire).err();
            prop_assert_eq!(bad, (extra > 0).then_some(Error::TrailingBytes(extra)));
        }

        #[test]
        fn text_round_trips(key in any::<[u8; 16]>()) {
            prop_assert_eq!(BlockKey(key).to_string().parse(), Ok(BlockKey(key)));
        }
    }
}
