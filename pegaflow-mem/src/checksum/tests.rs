// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

use super::sys::Store;
use super::*;
use proptest::prelude::*;

/// Vectors for other implementations: position, word count, byte rule, checksum.
const VECTORS: &str = include_str!("vectors.txt");

/// Byte `i` of a vector's data: `(i * multiplier) >> 5`, cut to 8 bits.
fn data(words: usize, multiplier: u64) -> Vec<u8> {
    (0..words as u64 * 8)
        .map(|i| (i.wrapping_mul(multiplier) >> 5) as u8)
        .collect()
}

#[test]
fn the_vectors_hold() {
    let mut lines = 0;
    for line in VECTORS.lines().filter(|l| !l.starts_with('#')) {
        let numbers: Vec<u64> = line
            .split_whitespace()
            .map(|n| match n.strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16).expect("hex"),
                None => n.parse().expect("decimal"),
            })
            .collect();
        let [position, words, multiplier, want] = numbers[..] else {
            panic!("{line}")
        };
        let bytes = data(words as usize, multiplier);
        for kernel in Kernel::available() {
            assert_eq!(kernel.sum(position, &bytes), want, "{kernel:?} {line}");
        }
        lines += 1;
    }
    assert!(lines >= 10);
}

#[test]
fn by_hand() {
    assert_eq!(checksum(0, &[]), 0);
    // One zero word at position 0: x = C.
    let c = KEY_STEP;
    let term = ((c & 0xffff_ffff) * (c >> 32)).wrapping_add(c.rotate_left(32));
    assert_eq!(checksum(0, &[0; 8]), term);
    assert_eq!(
        checksum(0, &[0; 3]),
        term,
        "a short tail is padded with zeros"
    );
}

#[test]
fn the_term_is_the_product_of_the_proof() {
    for (word, key) in [
        (0, 0),
        (1, 2),
        (u64::MAX, 7),
        (0x0123_4567_89ab_cdef, KEY_STEP),
    ] {
        let x: u64 = word ^ key;
        let (a, b) = (x & 0xffff_ffff, x >> 32);
        let product = (a + 1).wrapping_mul(b + (1 << 32)).wrapping_sub(1 << 32);
        assert_eq!(term(word, key), product);
    }
}

/// The same formula with halves of `H` bits, so that all words can be tried.
fn narrow_term<const H: u32>(word: u32, key: u32) -> u32 {
    let (half, full) = ((1 << H) - 1, ((1u64 << (2 * H)) - 1) as u32);
    let x = word ^ key;
    let (a, b) = (x & half, x >> H);
    (a * b).wrapping_add(a << H | b) & full
}

#[test]
fn a_change_in_one_half_is_always_caught() {
    for key in [0, 0x9e37, 0xffff, 0x0100] {
        for word in 0..=0xffffu32 {
            let sum = narrow_term::<8>(word, key);
            for d in 1..256 {
                assert_ne!(sum, narrow_term::<8>(word ^ d, key));
                assert_ne!(sum, narrow_term::<8>(word ^ (d << 8), key));
            }
        }
    }
}

#[test]
fn a_change_of_both_halves_is_rarely_missed() {
    // All 2^24 pairs of 12-bit words: the chance of a miss is near 2^-12, whatever the key.
    let pairs = (1u64 << 24) as f64;
    let mut counts = vec![0u64; 1 << 12];
    (0..1 << 12).for_each(|w| counts[narrow_term::<6>(w, 0x9e3) as usize] += 1);
    let misses: u64 = counts.iter().map(|n| n * n).sum::<u64>() - (1 << 12);
    let rate = misses as f64 / pairs * 4096.0;
    assert!(rate < 4.0, "{rate} times the chance of a random function");
}

fn with_kernels(check: impl Fn(Kernel)) {
    Kernel::available().iter().copied().for_each(check);
}

proptest! {
    #[test]
    fn kernels_equal_the_definition(
        bytes in prop::collection::vec(any::<u8>(), 0..1500), position: u64, skip in 0usize..70
    ) {
        let bytes = &bytes[skip.min(bytes.len())..];
        with_kernels(|k| assert_eq!(k.sum(position, bytes), portable(position, bytes), "{k:?}"));
    }

    #[test]
    fn a_copy_sums_what_it_stores(
        words in 0usize..200, seed: u64, position: u64, from in 0usize..70, to in 0usize..70, streaming: bool
    ) {
        let src = data(words + 20, seed);
        let store = if streaming { Store::Streaming } else { Store::Cached };
        with_kernels(|k| {
            // Room for an aligned start when `to` is 0.
            let mut dst = vec![0xAAu8; words * 8 + 256];
            let to = if to == 0 { dst.as_ptr().align_offset(64) } else { to };
            // SAFETY: both ranges lie inside their vectors, which are apart.
            let sum = unsafe {
                k.copy_sum(position, src.as_ptr().add(from), dst.as_mut_ptr().add(to), words, store)
            };
            sys::fence_stores();
            let bytes = &src[from..from + words * 8];
            assert_eq!(&dst[to..to + words * 8], bytes, "{k:?}");
            assert_eq!(sum, portable(position, bytes), "{k:?}");
            assert!(dst[..to].iter().all(|b| *b == 0xAA) && dst[to + words * 8..].iter().all(|b| *b == 0xAA));
        });
    }

    #[test]
    fn sums_of_parts_add_up(bytes in prop::collection::vec(any::<u8>(), 1..600), cut in any::<prop::sample::Index>(), p in 0u64..1 << 40) {
        let words = bytes.len() / 8;
        let cut = cut.index(words + 1);
        let (a, b) = bytes[..words * 8].split_at(cut * 8);
        let parts = checksum(p, a).wrapping_add(checksum(p + cut as u64, b));
        prop_assert_eq!(parts, checksum(p, &bytes[..words * 8]));
    }

    #[test]
    fn moved_words_are_caught(mut words in prop::collection::vec(any::<u64>(), 2..50), a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>()) {
        let bytes = |w: &[u64]| w.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
        let before = checksum(5, &bytes(&words));
        let (a, b) = (a.index(words.len()), b.index(words.len()));
        prop_assume!(words[a] != words[b]);
        words.swap(a, b);
        prop_assert_ne!(checksum(5, &bytes(&words)), before);
    }
}
