// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Shared memory as 64-bit words.
//!
//! Everything in a control file is made of words that are loaded and stored whole: another process
//! may look at any moment, and this one may be killed at any moment, so a torn value must not be.

#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};

use pegaflow_mem::pool::shm::SharedMemory;

/// Words that other processes may see. Loads outside are 0 and stores outside do nothing: offsets
/// are checked where they are made, this is the last fence.
pub trait Words {
    /// One word, with whatever was stored before it.
    fn load(&self, at: u64) -> u64;

    /// Sets one word, after everything stored before.
    fn store(&self, at: u64, value: u64);

    /// How many there are.
    fn len_words(&self) -> u64;

    /// Copies words out, with whatever was stored before them.
    fn load_all(&self, at: u64, out: &mut [u64]) {
        for (out, at) in out.iter_mut().zip(at..) {
            *out = self.load(at);
        }
    }

    /// Copies words in, after everything stored before; in no order among themselves.
    fn store_all(&self, at: u64, values: &[u64]) {
        for (value, at) in values.iter().zip(at..) {
            self.store(at, *value);
        }
    }
}

impl Words for SharedMemory {
    fn load(&self, at: u64) -> u64 {
        self.word(at.saturating_mul(8))
            .map_or(0, |word| word.load())
    }

    fn store(&self, at: u64, value: u64) {
        let stored = self
            .word(at.saturating_mul(8))
            .and_then(|word| word.store(value));
        debug_assert!(stored.is_ok(), "word {at}: {stored:?}");
    }

    fn len_words(&self) -> u64 {
        self.len() / 8
    }

    fn load_all(&self, at: u64, out: &mut [u64]) {
        if self.load_words(at.saturating_mul(8), out).is_err() {
            out.fill(0);
        }
    }

    fn store_all(&self, at: u64, values: &[u64]) {
        let stored = self.store_words(at.saturating_mul(8), values);
        debug_assert!(stored.is_ok(), "words at {at}: {stored:?}");
    }
}

#[cfg(test)]
impl Words for [AtomicU64] {
    fn load(&self, at: u64) -> u64 {
        let word = usize::try_from(at).ok().and_then(|at| self.get(at));
        word.map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn store(&self, at: u64, value: u64) {
        if let Some(word) = usize::try_from(at).ok().and_then(|at| self.get(at)) {
            word.store(value, Ordering::Release);
        }
    }

    fn len_words(&self) -> u64 {
        self.len() as u64
    }
}

#[cfg(test)]
impl Words for Vec<AtomicU64> {
    fn load(&self, at: u64) -> u64 {
        self.as_slice().load(at)
    }

    fn store(&self, at: u64, value: u64) {
        self.as_slice().store(at, value);
    }

    fn len_words(&self) -> u64 {
        self.len() as u64
    }
}

/// The bytes of `values`, little-endian.
pub(crate) fn to_bytes(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Bytes as words, little-endian, the last one filled up with zeros.
pub(crate) fn from_bytes(bytes: &[u8]) -> Vec<u64> {
    bytes
        .chunks(8)
        .map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        })
        .collect()
}
