// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What is written behind a block's bytes: whose they are, and their checksums.
//!
//! | bytes | content |
//! |---|---|
//! | 0..4 | `PFB1` |
//! | 4..8 | number of checksums |
//! | 8..16 | bytes of the block |
//! | 16..32 | key |
//! | 32..64 | fingerprint of the namespace |
//! | 64..66 | cache group; zero to 72 |
//! | 72.. | checksums, 8 bytes each: stage by stage, head by head |
//!
//! It goes with the block in one transfer, and lies in whole pages behind the block's. The store's
//! own checksum covers both. All numbers are little-endian.

use pegaflow_meta::{BlockKey, GroupId, NamespaceId};
use pegaflow_ssd::{Buf, PAGE};

const MAGIC: [u8; 4] = *b"PFB1";
const HEAD_BYTES: usize = 72;

/// A block's trailer, without its checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trailer {
    pub(super) bytes: u64,
    pub(super) key: BlockKey,
    pub(super) namespace: NamespaceId,
    pub(super) group: GroupId,
}

/// Bytes of a trailer with so many checksums.
pub(super) fn trailer_bytes(checksums: u32) -> usize {
    HEAD_BYTES + checksums as usize * 8
}

/// Bytes of the run of a pool that holds a block: whole pages.
pub(super) fn run_bytes(block_bytes: u64) -> u64 {
    block_bytes.next_multiple_of(PAGE as u64)
}

impl Trailer {
    /// Writes it down.
    pub(super) fn encode(&self, checksums: &[u64]) -> Buf {
        let mut bytes = Vec::with_capacity(trailer_bytes(checksums.len() as u32));
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&(checksums.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.bytes.to_le_bytes());
        bytes.extend_from_slice(&self.key.0);
        bytes.extend_from_slice(&self.namespace.0);
        bytes.extend_from_slice(&self.group.0.to_le_bytes());
        bytes.resize(HEAD_BYTES, 0);
        checksums
            .iter()
            .for_each(|sum| bytes.extend_from_slice(&sum.to_le_bytes()));
        Buf::copy_of(&bytes)
    }

    /// Whether these bytes are the trailer of a block of another namespace or group under this key.
    pub(super) fn is_foreign(&self, bytes: &[u8]) -> bool {
        let own = self.encode(&[]);
        let whole = bytes.len() >= HEAD_BYTES && bytes[..4] == MAGIC;
        whole && bytes[16..32] == own[16..32] && bytes[32..HEAD_BYTES] != own[32..HEAD_BYTES]
    }

    /// The checksums behind exactly this trailer; none for any other bytes.
    pub(super) fn checksums_in(&self, bytes: &[u8], checksums: u32) -> Option<Vec<u64>> {
        let sums = bytes.get(HEAD_BYTES..)?.chunks_exact(8);
        let sum = |chunk: &[u8]| u64::from_le_bytes(chunk.try_into().expect("chunks of 8"));
        let sums: Vec<u64> = sums.map(sum).collect();
        let same = sums.len() == checksums as usize && self.encode(&sums)[..] == *bytes;
        same.then_some(sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn trailer() -> impl Strategy<Value = Trailer> {
        any::<(u64, [u8; 16], [u8; 32], u16)>().prop_map(|(bytes, key, namespace, group)| Trailer {
            bytes,
            key: BlockKey(key),
            namespace: NamespaceId(namespace),
            group: GroupId(group),
        })
    }

    proptest! {
        #[test]
        fn it_reads_as_it_was_written(trailer in trailer(), sums in prop::collection::vec(any::<u64>(), 0..600)) {
            let (bytes, n) = (trailer.encode(&sums), sums.len() as u32);
            prop_assert_eq!(bytes.len(), trailer_bytes(n));
            prop_assert_eq!(trailer.checksums_in(&bytes, n + 1), None);
            prop_assert_eq!(trailer.checksums_in(&bytes, n), Some(sums));
        }

        #[test]
        fn another_block_is_not_taken_for_it(one in trailer(), other in trailer(), sums in prop::collection::vec(any::<u64>(), 0..9)) {
            prop_assume!(one != other);
            prop_assert_eq!(one.checksums_in(&other.encode(&sums), sums.len() as u32), None);
            let same_key = Trailer { key: one.key, ..other };
            prop_assert!(one.is_foreign(&same_key.encode(&sums)));
            prop_assert!(!one.is_foreign(&one.encode(&sums)) && !one.is_foreign(&other.encode(&sums)));
        }

        #[test]
        fn any_bytes_are_read_without_panic(trailer in trailer(), bytes in prop::collection::vec(any::<u8>(), 0..300), n: u32) {
            prop_assert_eq!(trailer.checksums_in(&bytes, n), None);
        }
    }
}
