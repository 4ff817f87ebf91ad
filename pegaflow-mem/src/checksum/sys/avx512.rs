// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Eight words at a time. A step of four vectors keeps four independent sums.

use super::{KEY_STEP, portable_copy_sum, portable_sum};
use std::arch::asm;
use std::arch::x86_64::*;

const LANES: usize = 8;
const VECTOR_BYTES: usize = LANES * 8;
const STEP: usize = 4 * LANES;

/// # Safety
/// `src..+VECTOR_BYTES` must be readable; others may change it meanwhile.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(src: *const u8) -> __m512i {
    let v;
    // SAFETY: one unaligned vector load from memory that the caller vouches for.
    unsafe {
        asm!("vmovdqu64 {}, [{}]", out(zmm_reg) v, in(reg) src,
            options(nostack, preserves_flags, readonly));
    }
    v
}

/// # Safety
/// `dst..+VECTOR_BYTES` must be writable, and for `STREAM` aligned to `VECTOR_BYTES`; others may change it meanwhile.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<const STREAM: bool>(dst: *mut u8, v: __m512i) {
    // SAFETY: one vector store to memory that the caller vouches for.
    unsafe {
        if STREAM {
            asm!("vmovntdq [{}], {}", in(reg) dst, in(zmm_reg) v, options(nostack, preserves_flags));
        } else {
            asm!("vmovdqu64 [{}], {}", in(reg) dst, in(zmm_reg) v, options(nostack, preserves_flags));
        }
    }
}

/// Keys of the words of the first vector.
#[inline]
#[target_feature(enable = "avx512f")]
fn keys(key: u64) -> __m512i {
    let lane = |i: u64| key.wrapping_add(i.wrapping_mul(KEY_STEP)) as i64;
    _mm512_setr_epi64(
        lane(0),
        lane(1),
        lane(2),
        lane(3),
        lane(4),
        lane(5),
        lane(6),
        lane(7),
    )
}

/// Adds a vector's terms to its sums.
#[inline]
#[target_feature(enable = "avx512f")]
fn add(sums: __m512i, words: __m512i, keys: __m512i) -> __m512i {
    let x = _mm512_xor_si512(words, keys);
    // Swaps the halves of each word: at once the rotation and the second factor.
    let swapped = _mm512_shuffle_epi32::<0b10_11_00_01>(x);
    _mm512_add_epi64(
        sums,
        _mm512_add_epi64(swapped, _mm512_mul_epu32(x, swapped)),
    )
}

#[inline]
#[target_feature(enable = "avx512f")]
fn total(sums: [__m512i; 4]) -> u64 {
    let all = _mm512_add_epi64(
        _mm512_add_epi64(sums[0], sums[1]),
        _mm512_add_epi64(sums[2], sums[3]),
    );
    let mut lanes = [0u64; LANES];
    // SAFETY: an unaligned store of one vector into an array of its size.
    unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), all) };
    lanes.into_iter().fold(0, u64::wrapping_add)
}

/// # Safety
/// `src..+8*words` must be readable, and the CPU have avx512f.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn sum(key: u64, src: *const u8, words: usize) -> u64 {
    let next = _mm512_set1_epi64(KEY_STEP.wrapping_mul(LANES as u64) as i64);
    let mut keys = keys(key);
    let mut sums = [_mm512_setzero_si512(); 4];
    let mut at = 0;
    while words - at >= STEP {
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `at + STEP <= words`.
            let v = unsafe { load(src.add(at * 8 + i * VECTOR_BYTES)) };
            *sums = add(*sums, v, keys);
            keys = _mm512_add_epi64(keys, next);
        }
        at += STEP;
    }
    let rest = key.wrapping_add(KEY_STEP.wrapping_mul(at as u64));
    // SAFETY: `at <= words`: what is left of the range.
    total(sums).wrapping_add(unsafe { portable_sum(rest, src.add(at * 8), words - at) })
}

/// # Safety
/// `src..+8*words` must be readable, `dst..+8*words` writable and for `STREAM` aligned to `VECTOR_BYTES`, the two apart, and the CPU have avx512f.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn copy_sum<const STREAM: bool>(
    key: u64,
    src: *const u8,
    dst: *mut u8,
    words: usize,
) -> u64 {
    let next = _mm512_set1_epi64(KEY_STEP.wrapping_mul(LANES as u64) as i64);
    let mut keys = keys(key);
    let mut sums = [_mm512_setzero_si512(); 4];
    let mut at = 0;
    while words - at >= STEP {
        for (i, sums) in sums.iter_mut().enumerate() {
            let offset = at * 8 + i * VECTOR_BYTES;
            // SAFETY: `at + STEP <= words` on both sides; `dst` plus whole vectors keeps its alignment.
            let v = unsafe {
                let v = load(src.add(offset));
                store::<STREAM>(dst.add(offset), v);
                v
            };
            *sums = add(*sums, v, keys);
            keys = _mm512_add_epi64(keys, next);
        }
        at += STEP;
    }
    let rest = key.wrapping_add(KEY_STEP.wrapping_mul(at as u64));
    // SAFETY: `at <= words`: what is left of both ranges.
    let tail = unsafe { portable_copy_sum(rest, src.add(at * 8), dst.add(at * 8), words - at) };
    total(sums).wrapping_add(tail)
}
