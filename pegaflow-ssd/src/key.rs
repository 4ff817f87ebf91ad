// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! What a block is called.

/// Sixteen bytes that name a block; the store gives them no meaning.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Key(pub [u8; 16]);

impl Key {
    /// A number that spreads keys evenly, also when they are not hashes themselves.
    pub(crate) fn spread(&self) -> u64 {
        let (low, high) = self.0.split_at(8);
        let word = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("eight of sixteen bytes"));
        let mixed = word(low)
            ^ word(high)
                .rotate_left(29)
                .wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        mixed ^ (mixed >> 32)
    }
}

impl From<u128> for Key {
    fn from(n: u128) -> Self {
        Self(n.to_le_bytes())
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({self})")
    }
}
