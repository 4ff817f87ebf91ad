// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The fence around memory and files of the operating system: everything unsafe that is not the ring.

mod buf;
mod file;

pub use buf::{Arena, Buf, Region};
pub use file::{BlockFile, MemoryFile, OpenOptions, SystemFile};

/// Every place, length and address of a transfer is a multiple of this many bytes. Fits sectors of 512 and of 4,096 bytes.
pub const PAGE: usize = 4096;

/// `n` rounded up to whole pages, bytes.
pub const fn pages(n: u64) -> u64 {
    n.div_ceil(PAGE as u64) * PAGE as u64
}

/// CPU time this process has used so far, microseconds (user and system).
pub fn cpu_time_us() -> u64 {
    // SAFETY: `rusage` is plain numbers, for which all zeroes is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is a live, writable `rusage`; RUSAGE_SELF needs nothing else.
    if unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) } != 0 {
        return 0;
    }
    let us = |t: libc::timeval| t.tv_sec as u64 * 1_000_000 + t.tv_usec as u64;
    us(usage.ru_utime) + us(usage.ru_stime)
}
