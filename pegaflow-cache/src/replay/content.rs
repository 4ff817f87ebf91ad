// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The bytes of a block, derived from its key: whoever knows the key can tell every right byte from a wrong one.
//!
//! A block is a sequence of 8-byte words in its canonical order `[layer][part][head][inner]`. A word depends
//! only on the key and on its position in that order, so each TP rank makes and checks just the heads it holds,
//! and all ranks, however many, describe the same block. A word that was moved, left over from another block or
//! never written shows as a difference.
//!
//! Not cryptographic: a test pattern, made to be faster than the copies it checks.

/// The keystream of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    start: u64,
    mask: u64,
}

const STEP: u64 = 0xD1B5_4A32_D192_ED03;
const WORD: usize = 8;
// Bytes compared at a time before looking whether they were right.
const STRIDE: usize = 512 * WORD;

impl Content {
    /// The content of the block with this key.
    pub fn of(key: &[u8; 16]) -> Self {
        let [mut low, mut high] = [[0; 8]; 2];
        low.copy_from_slice(&key[..8]);
        high.copy_from_slice(&key[8..]);
        Self {
            start: u64::from_le_bytes(low),
            mask: u64::from_le_bytes(high),
        }
    }

    /// The word at `position` (in words from the start of the block).
    pub fn word(self, position: u64) -> u64 {
        self.mix(self.counter(position))
    }

    fn counter(self, position: u64) -> u64 {
        self.start.wrapping_add(position.wrapping_mul(STEP))
    }

    // One 32 x 32 -> 64 bit product: every vector unit has it, so the loops below become vector code.
    #[inline(always)]
    fn mix(self, x: u64) -> u64 {
        (x & 0xffff_ffff).wrapping_mul(x >> 32) ^ x.rotate_left(32) ^ self.mask
    }

    /// Writes the words from `position` on into `out`, little-endian. A last piece shorter than a word gets
    /// that word's first bytes.
    pub fn fill(self, position: u64, out: &mut [u8]) {
        let mut x = self.counter(position);
        let (words, rest) = out.as_chunks_mut::<WORD>();
        for slot in words {
            *slot = self.mix(x).to_le_bytes();
            x = x.wrapping_add(STEP);
        }
        rest.copy_from_slice(&self.mix(x).to_le_bytes()[..rest.len()]);
    }

    /// Compares `bytes` with the words from `position` on: the offset of the first wrong byte, or `None` if
    /// every byte is right.
    pub fn first_difference(self, position: u64, bytes: &[u8]) -> Option<usize> {
        for (i, chunk) in bytes.chunks(STRIDE).enumerate() {
            let at = position.wrapping_add((i * STRIDE / WORD) as u64);
            if !self.is_right(at, chunk) {
                return Some(i * STRIDE + self.first_wrong(at, chunk));
            }
        }
        None
    }

    fn is_right(self, position: u64, chunk: &[u8]) -> bool {
        let mut x = self.counter(position);
        let mut wrong = 0;
        let (words, rest) = chunk.as_chunks::<WORD>();
        for bytes in words {
            wrong |= self.mix(x) ^ u64::from_le_bytes(*bytes);
            x = x.wrapping_add(STEP);
        }
        wrong == 0 && self.mix(x).to_le_bytes().starts_with(rest)
    }

    #[cold]
    fn first_wrong(self, position: u64, chunk: &[u8]) -> usize {
        let right = (0..).flat_map(|i| self.word(position.wrapping_add(i)).to_le_bytes());
        right.zip(chunk).take_while(|(a, b)| a == *b).count()
    }
}

/// Shape of a block as the content sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Canonical {
    /// K and V apart: 2.
    pub parts: u32,
    /// KV heads of the whole block, not of a rank.
    pub heads: u32,
    /// Words of one head of one part of one layer.
    pub inner_words: u32,
}

impl Canonical {
    /// Position, in words, of the first word of a head.
    pub fn position(self, layer: u32, part: u32, head: u32) -> u64 {
        let row = u64::from(layer) * u64::from(self.parts) + u64::from(part);
        (row * u64::from(self.heads) + u64::from(head)) * u64::from(self.inner_words)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: [u8; 16] = *b"0123456789abcdef";

    fn made(key: &[u8; 16], position: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        Content::of(key).fill(position, &mut out);
        out
    }

    #[test]
    fn ranks_of_any_number_make_the_same_block() {
        let shape = Canonical {
            parts: 2,
            heads: 4,
            inner_words: 5,
        };
        let whole = made(&KEY, 0, 3 * 2 * 4 * 5 * 8);
        for ranks in [1, 2, 4] {
            let mut block = vec![0; whole.len()];
            let heads = shape.heads / ranks;
            for (layer, part, rank) in
                (0..3).flat_map(|l| (0..2).flat_map(move |p| (0..ranks).map(move |r| (l, p, r))))
            {
                let position = shape.position(layer, part, rank * heads);
                let slice = made(&KEY, position, (heads * shape.inner_words) as usize * 8);
                let at = position as usize * 8;
                block[at..at + slice.len()].copy_from_slice(&slice);
            }
            assert_eq!(block, whole, "{ranks} ranks");
        }
    }

    #[test]
    fn words_of_a_block_and_of_its_neighbours_differ() {
        let mut words = std::collections::HashSet::new();
        for key in 0..16u8 {
            let mut bytes = KEY;
            bytes[key as usize] ^= 1;
            words.extend((0..4096).map(|p| Content::of(&bytes).word(p)));
        }
        assert_eq!(words.len(), 16 * 4096);
    }

    proptest! {
        #[test]
        fn any_single_wrong_byte_is_found(len in 1usize..9_000, at: prop::sample::Index, flip in 1u8.., position: u64) {
            let mut bytes = made(&KEY, position, len);
            prop_assert_eq!(Content::of(&KEY).first_difference(position, &bytes), None);
            let at = at.index(len);
            bytes[at] ^= flip;
            prop_assert_eq!(Content::of(&KEY).first_difference(position, &bytes), Some(at));
        }

        #[test]
        fn a_piece_is_part_of_the_whole(from in 0usize..40, len in 0usize..300) {
            let whole = made(&KEY, 0, 8 * 40 + 300);
            prop_assert_eq!(made(&KEY, from as u64, len), &whole[from * 8..from * 8 + len]);
        }
    }
}
