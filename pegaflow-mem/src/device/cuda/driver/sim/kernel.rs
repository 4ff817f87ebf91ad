// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The copy kernels of the simulated driver: what a launch does, entry by entry.

use super::super::module::{Args, FLAG_PARTIALS, FLAG_PLACES, FLAG_PUBLISH, FLAG_SIGNAL};
use super::move_bytes;
use crate::checksum::{key, term};
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The arguments of a launch, as far as it has any.
pub(super) struct Head {
    args: Box<Args>,
    layers: Vec<[u64; 4]>,
}

impl Head {
    /// Reads the arguments at `from`: `Args`, or as much of it as its entries need.
    ///
    /// # Safety
    /// `from` points to the arguments of a launch of one of the copy kernels.
    pub(super) unsafe fn read(from: *const c_void) -> Self {
        let words_at = std::mem::offset_of!(Args, words);
        // SAFETY: zeros are a valid `Args`; then its fixed part is read, then the words that the entries have.
        unsafe {
            let mut args: Box<Args> = Box::new(std::mem::zeroed());
            let to = (&raw mut *args).cast::<u8>();
            std::ptr::copy_nonoverlapping(from.cast::<u8>(), to, words_at);
            let each = if args.flags & FLAG_PLACES != 0 { 3 } else { 1 };
            let bytes = args.entries as usize * each * 4;
            std::ptr::copy_nonoverlapping(from.cast::<u8>().add(words_at), to.add(words_at), bytes);
            if args.entries == 0 {
                return Self {
                    layers: vec![],
                    args,
                };
            }
            let layers = (args.row_first + args.rows).div_ceil(args.parts) as usize;
            let table = std::slice::from_raw_parts(args.layers as *const [u64; 4], layers);
            Self {
                layers: table.to_vec(),
                args,
            }
        }
    }

    /// Runs kernel `number` on them.
    pub(super) fn run(&self, number: usize) {
        let a = &self.args;
        let mut sums = vec![];
        for entry in 0..a.entries {
            for row in 0..a.rows {
                for head in 0..a.heads {
                    for chunk in 0..a.chunks_per_run {
                        let sum = self.chunk(number, entry, row, head, chunk);
                        sums.push((entry * a.heads + head, sum));
                    }
                }
            }
        }
        for (i, (at, sum)) in sums.into_iter().enumerate() {
            let partial = a.flags & FLAG_PARTIALS != 0;
            let to = (a.sums + 8 * if partial { i as u64 } else { at as u64 }) as *const AtomicU64;
            // SAFETY: inside the sums, as `Launch::args` asserts.
            let to = unsafe { &*to };
            if partial {
                to.store(sum, Ordering::SeqCst);
            } else {
                to.fetch_add(sum, Ordering::SeqCst);
            }
        }
        if a.flags & FLAG_PUBLISH != 0 {
            self.publish();
        }
        if a.flags & FLAG_SIGNAL != 0 {
            // SAFETY: a word of the pinned memory under test.
            unsafe { (*(a.signal as *const AtomicU32)).store(a.signal_value, Ordering::SeqCst) };
        }
    }

    fn publish(&self) {
        for i in 0..self.args.publish_count as u64 {
            let (from, to) = (self.args.publish_from + 8 * i, self.args.publish_to + 8 * i);
            // SAFETY: inside the sums and the pinned memory, as `Publish::put` asserts.
            let (from, to) = unsafe { (&*(from as *const AtomicU64), &*(to as *const AtomicU64)) };
            to.store(from.swap(0, Ordering::SeqCst), Ordering::SeqCst);
        }
    }

    fn chunk(&self, number: usize, entry: u32, row: u32, head: u32, chunk: u32) -> u64 {
        let a = &self.args;
        let slot_row = a.row_first + row;
        let [base, block_stride, part_stride, head_stride] =
            self.layers[(slot_row / a.parts) as usize];
        let places = a.flags & FLAG_PLACES != 0;
        let word = |i: u32| a.words[i as usize] as u64;
        let block = if places { word(3 * entry) } else { word(entry) };
        let offset = chunk as u64 * a.chunk_bytes as u64;
        let bytes = (a.inner_bytes - offset).min(a.chunk_bytes as u64);
        let part = (slot_row % a.parts) as u64;
        let near =
            base + block * block_stride + part * part_stride + head as u64 * head_stride + offset;
        let far = a.far + row as u64 * a.far_row_stride + head as u64 * a.inner_bytes + offset;
        let far = far
            + if places {
                word(3 * entry + 1) | word(3 * entry + 2) << 32
            } else {
                entry as u64 * a.far_entry_stride
            };
        let from = if number == 2 { far } else { near };
        let position = ((a.layer_first * a.parts + slot_row) as u64 * a.inner_bytes + offset) / 8;
        let mut sum = 0u64;
        for i in 0..bytes / 8 {
            // SAFETY: as in `move_bytes`.
            let word = unsafe { ((from + i * 8) as *const u64).read_unaligned() };
            sum = sum.wrapping_add(term(word, key(position + i)));
        }
        match number {
            1 => move_bytes(far, near, bytes as usize),
            2 => move_bytes(near, far, bytes as usize),
            _ => {}
        }
        sum
    }
}
