// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

#![doc = include_str!("CHECKSUM.md")]

pub(crate) mod sys;
#[cfg(test)]
mod tests;

pub use sys::Kernel;

/// The constant that keys advance by from word to word: 2^64 divided by the golden ratio, made odd.
pub const KEY_STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// Key of the word at `position`.
#[inline]
pub const fn key(position: u64) -> u64 {
    position.wrapping_add(1).wrapping_mul(KEY_STEP)
}

/// What the word `word` adds when its key is `key`.
#[inline]
pub const fn term(word: u64, key: u64) -> u64 {
    let x = word ^ key;
    (x & 0xffff_ffff)
        .wrapping_mul(x >> 32)
        .wrapping_add(x.rotate_left(32))
}

/// The checksum of `bytes`, whose first word stands at `position`. Add (wrapping) the results of several runs to get
/// the checksum of all. A tail shorter than 8 bytes counts as if padded with zeros.
pub fn checksum(position: u64, bytes: &[u8]) -> u64 {
    Kernel::best().sum(position, bytes)
}

/// The definition, word by word: what every other version must equal.
pub fn portable(position: u64, bytes: &[u8]) -> u64 {
    let mut key = key(position);
    let mut sum = 0u64;
    let (words, tail) = bytes.as_chunks::<8>();
    for word in words {
        sum = sum.wrapping_add(term(u64::from_le_bytes(*word), key));
        key = key.wrapping_add(KEY_STEP);
    }
    if !tail.is_empty() {
        let mut word = [0; 8];
        word[..tail.len()].copy_from_slice(tail);
        sum = sum.wrapping_add(term(u64::from_le_bytes(word), key));
    }
    sum
}
