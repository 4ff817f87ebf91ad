// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Engine memory of the benchmark, and the floor: plain copies by the C library between the same places.

use pegaflow_mem::SharedMemory;
use pegaflow_mem::device::host::HostMemory;
use std::ptr::NonNull;

const ALIGN: usize = 2 << 20;

/// Memory as an engine would have: aligned, touched, in pages as the system gives them.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is leaked for the life of the program; accesses are made by one side at a time (the benchmark waits in between).
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    pub(crate) fn new(len: usize) -> Self {
        let layout = std::alloc::Layout::from_size_align(len, ALIGN).expect("a sane size");
        // SAFETY: the size is not zero.
        let ptr = NonNull::new(unsafe { std::alloc::alloc(layout) }).expect("memory");
        for at in (0..len).step_by(8) {
            let word = (at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            // SAFETY: `at + 8 <= len`, as `len` is a multiple of 8; aligned, and nobody else has the memory yet.
            unsafe { ptr.as_ptr().add(at).cast::<u64>().write(word) };
        }
        Self { ptr, len }
    }

    pub(crate) fn to_host(self) -> HostMemory {
        // SAFETY: leaked, so it stays mapped for good; the benchmark orders accesses by waiting for outcomes.
        unsafe { HostMemory::foreign(self.ptr, self.len as u64, Box::new(())) }
    }
}

/// Copies all of `memory` to the start of `pool` (or back) by `threads` threads, each its equal share.
pub(crate) fn plain_copy(memory: Memory, pool: &SharedMemory, save: bool, threads: usize) {
    assert!(memory.len as u64 <= pool.len() && memory.len.is_multiple_of(threads));
    let share = memory.len / threads;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let memory = memory;
                let offset = thread * share;
                // SAFETY: `offset + share` is inside both, checked above; the two are different mappings, and no one else
                // accesses them now.
                unsafe {
                    let (a, b) = (
                        memory.ptr.add(offset).as_ptr(),
                        pool.as_ptr().add(offset).as_ptr(),
                    );
                    let (src, dst) = if save { (a, b) } else { (b, a) };
                    std::ptr::copy_nonoverlapping(src, dst, share);
                }
            });
        }
    });
}
