// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The checksum over raw memory, alone or on the way of a copy, in the widest vectors this CPU has.
//!
//! Memory may be changed by others meanwhile (see [`crate::copy::sys`]): every access is in assembly or atomic, each
//! word is read once, and the sum is over the bytes that were stored.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use super::{KEY_STEP, key, term};
use crate::copy::sys::{read_word, write_word};

/// A way to compute the checksum. All give the same value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kernel {
    /// One word at a time; runs everywhere.
    Portable,
    /// Four words at a time.
    Avx2,
    /// Eight words at a time.
    Avx512,
}

/// How a copy stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Store {
    /// Through the cache.
    Cached,
    /// Past the cache, where the destination's alignment allows. Other threads see the bytes after [`fence_stores`].
    Streaming,
}

impl Kernel {
    /// The fastest one that this CPU runs.
    pub fn best() -> Self {
        *Self::available()
            .last()
            .expect("the portable one is always there")
    }

    /// All that this CPU runs, slowest first.
    pub fn available() -> &'static [Self] {
        #[cfg(target_arch = "x86_64")]
        {
            if std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx2") {
                return &[Kernel::Portable, Kernel::Avx2, Kernel::Avx512];
            }
            if std::is_x86_feature_detected!("avx2") {
                return &[Kernel::Portable, Kernel::Avx2];
            }
        }
        &[Kernel::Portable]
    }

    /// The checksum of `bytes` from word `position` on, as [`checksum`](super::checksum).
    ///
    /// # Panics
    /// If this CPU does not run this kernel (it is not in [`available`](Self::available)).
    pub fn sum(self, position: u64, bytes: &[u8]) -> u64 {
        assert!(
            Self::available().contains(&self),
            "this CPU has no {self:?}"
        );
        let (words, tail) = bytes.as_chunks::<8>();
        // SAFETY: the words are ours to read, and the kernel is available.
        let sum = unsafe { self.sum_raw(position, words.as_ptr().cast(), words.len()) };
        sum.wrapping_add(super::portable(
            position.wrapping_add(words.len() as u64),
            tail,
        ))
    }

    /// The checksum of `words` words at `src`.
    ///
    /// # Safety
    /// `src..+8*words` must be readable, and the kernel [available](Self::available).
    pub(crate) unsafe fn sum_raw(self, position: u64, src: *const u8, words: usize) -> u64 {
        // SAFETY: handed on; each kernel reads exactly `words` words.
        unsafe {
            match self {
                Kernel::Portable => portable_sum(key(position), src, words),
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx2 => avx2::sum(key(position), src, words),
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx512 => avx512::sum(key(position), src, words),
                #[cfg(not(target_arch = "x86_64"))]
                _ => portable_sum(key(position), src, words),
            }
        }
    }

    /// Copies `words` words and returns the checksum of what was stored.
    ///
    /// # Safety
    /// `src..+8*words` must be readable, `dst..+8*words` writable, the two apart, and the kernel [available](Self::available).
    pub(crate) unsafe fn copy_sum(
        self,
        position: u64,
        src: *const u8,
        dst: *mut u8,
        words: usize,
        store: Store,
    ) -> u64 {
        // SAFETY: handed on; each kernel reads and writes exactly `words` words. Streaming stores need an aligned
        // destination, which is checked here.
        unsafe {
            match self {
                Kernel::Portable => portable_copy_sum(key(position), src, dst, words),
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx2 if store == Store::Streaming && (dst as usize).is_multiple_of(32) => {
                    avx2::copy_sum::<true>(key(position), src, dst, words)
                }
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx2 => avx2::copy_sum::<false>(key(position), src, dst, words),
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx512
                    if store == Store::Streaming && (dst as usize).is_multiple_of(64) =>
                {
                    avx512::copy_sum::<true>(key(position), src, dst, words)
                }
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx512 => avx512::copy_sum::<false>(key(position), src, dst, words),
                #[cfg(not(target_arch = "x86_64"))]
                _ => portable_copy_sum(key(position), src, dst, words),
            }
        }
    }
}

/// Makes streaming stores of this thread visible to others before anything it stores later.
pub(crate) fn fence_stores() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of every x86-64 CPU, and a fence touches no memory.
    unsafe {
        std::arch::x86_64::_mm_sfence()
    };
}

/// # Safety
/// `src..+8*words` must be readable.
unsafe fn portable_sum(mut key: u64, src: *const u8, words: usize) -> u64 {
    let mut sum = 0u64;
    for i in 0..words {
        // SAFETY: `i < words`.
        let word = u64::from_le(unsafe { read_word(src.add(i * 8)) });
        sum = sum.wrapping_add(term(word, key));
        key = key.wrapping_add(KEY_STEP);
    }
    sum
}

/// # Safety
/// `src..+8*words` must be readable, `dst..+8*words` writable, the two apart.
unsafe fn portable_copy_sum(mut key: u64, src: *const u8, dst: *mut u8, words: usize) -> u64 {
    let mut sum = 0u64;
    for i in 0..words {
        // SAFETY: `i < words`, on both sides.
        let word = unsafe {
            let word = read_word(src.add(i * 8));
            write_word(dst.add(i * 8), word);
            u64::from_le(word)
        };
        sum = sum.wrapping_add(term(word, key));
        key = key.wrapping_add(KEY_STEP);
    }
    sum
}
