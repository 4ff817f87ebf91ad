// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Plain copies between raw ranges.
//!
//! Shared memory may be written by another process, or by another thread through the same safe API, while we copy. No `&[u8]` of it ever exists,
//! and the accesses are made so that a race gives unspecified *bytes*, never undefined behaviour: in assembly on x86-64 (the
//! compiler sees an opaque operation, as it would see relaxed atomics), by relaxed atomic bytes and words elsewhere.

/// Copies `len` bytes.
///
/// # Safety
/// `src..+len` must be readable and `dst..+len` writable, for the whole call. Either may be changed by others meanwhile; where the two overlap, the bytes written are unspecified.
pub(crate) unsafe fn copy(src: *const u8, dst: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `rep movsb` reads `src..+len` and writes `dst..+len`, both given by the caller; the direction flag is clear by the ABI.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") len => _, inout("rsi") src => _, inout("rdi") dst => _,
            options(nostack, preserves_flags)
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: handed on.
    unsafe {
        relaxed::copy(src, dst, len)
    }
}

/// Sets `len` bytes to `byte`.
///
/// # Safety
/// `dst..+len` must be writable for the whole call; others may change it meanwhile.
pub(crate) unsafe fn fill(dst: *mut u8, len: usize, byte: u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `rep stosb` writes `dst..+len`, given by the caller; the direction flag is clear by the ABI.
    unsafe {
        std::arch::asm!(
            "rep stosb",
            inout("rcx") len => _, inout("rdi") dst => _, in("al") byte,
            options(nostack, preserves_flags)
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: handed on.
    unsafe {
        relaxed::fill(dst, len, byte)
    }
}

/// The word at `src` (any alignment), as it is in memory at some moment; bytes of it may be from different moments.
///
/// # Safety
/// `src..+8` must be readable; others may change it meanwhile.
#[inline]
pub(crate) unsafe fn read_word(src: *const u8) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        let word: u64;
        // SAFETY: one 8-byte load from memory that the caller vouches for.
        unsafe {
            std::arch::asm!("mov {}, qword ptr [{}]", out(reg) word, in(reg) src,
                options(nostack, preserves_flags, readonly));
        }
        word
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let mut bytes = [0; 8];
        // SAFETY: the caller vouches for `src`; `bytes` is ours.
        unsafe { relaxed::copy(src, bytes.as_mut_ptr(), 8) };
        u64::from_ne_bytes(bytes)
    }
}

/// Stores a word at `dst` (any alignment).
///
/// # Safety
/// `dst..+8` must be writable; others may change it meanwhile.
#[inline]
pub(crate) unsafe fn write_word(dst: *mut u8, word: u64) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: one 8-byte store to memory that the caller vouches for.
    unsafe {
        std::arch::asm!("mov qword ptr [{}], {}", in(reg) dst, in(reg) word,
            options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller vouches for `dst`; the source is ours.
    unsafe {
        relaxed::copy(word.to_ne_bytes().as_ptr(), dst, 8)
    }
}

#[cfg(any(test, not(target_arch = "x86_64")))]
mod relaxed {
    use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

    /// # Safety
    /// As [`super::copy`].
    pub(super) unsafe fn copy(src: *const u8, dst: *mut u8, len: usize) {
        let words = (src as usize | dst as usize).is_multiple_of(8);
        let mut at = 0;
        while at < len {
            if words && len - at >= 8 {
                // SAFETY: both ranges are the caller's and `at + 8 <= len`; both addresses are multiples of 8.
                unsafe {
                    let from = AtomicU64::from_ptr(src.add(at).cast_mut().cast());
                    AtomicU64::from_ptr(dst.add(at).cast()).store(from.load(Relaxed), Relaxed);
                }
                at += 8;
            } else {
                // SAFETY: both ranges are the caller's and `at < len`.
                unsafe {
                    let from = AtomicU8::from_ptr(src.add(at).cast_mut());
                    AtomicU8::from_ptr(dst.add(at)).store(from.load(Relaxed), Relaxed);
                }
                at += 1;
            }
        }
    }

    /// # Safety
    /// As [`super::fill`].
    pub(super) unsafe fn fill(dst: *mut u8, len: usize, byte: u8) {
        for at in 0..len {
            // SAFETY: the range is the caller's and `at < len`.
            unsafe { AtomicU8::from_ptr(dst.add(at)) }.store(byte, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn both_ways_copy_and_fill_the_same() {
        let src: Vec<u8> = (0..100).collect();
        for (from, to, len) in [(0, 0, 0), (0, 0, 64), (8, 16, 43), (3, 3, 61), (1, 6, 50)] {
            let (mut a, mut b) = (vec![0u8; 100], vec![0u8; 100]);
            // SAFETY: all ranges lie inside vectors of 100 bytes, apart from each other.
            unsafe {
                super::copy(src.as_ptr().add(from), a.as_mut_ptr().add(to), len);
                super::relaxed::copy(src.as_ptr().add(from), b.as_mut_ptr().add(to), len);
            }
            assert_eq!(a[to..to + len], src[from..from + len]);
            assert_eq!(a, b);
            // SAFETY: as above.
            unsafe {
                super::fill(a.as_mut_ptr().add(to), len, 7);
                super::relaxed::fill(b.as_mut_ptr().add(to), len, 7);
            }
            assert_eq!(a, b);
        }
        let mut word = [0u8; 9];
        // SAFETY: bytes 1..9 lie inside.
        unsafe {
            super::write_word(word.as_mut_ptr().add(1), 0x0102_0304_0506_0708);
            assert_eq!(
                super::read_word(word.as_ptr().add(1)),
                0x0102_0304_0506_0708
            );
        }
    }
}
