// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Shared memory as 64-bit words.
//!
//! Everything in a control file is made of words that are loaded and stored whole: another process
//! may look at any moment, and this one may be killed at any moment, so a torn value must not be.

use std::sync::atomic::{AtomicU64, Ordering};

/// Words that other processes may see. Loads outside are 0 and stores outside do nothing in release
/// builds: offsets are checked where they are made, this is the last fence.
pub trait Words {
    /// All of them.
    fn words(&self) -> &[AtomicU64];

    /// One word, with whatever was stored before it.
    fn load(&self, at: u64) -> u64 {
        self.word(at).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Sets one word, after everything stored before.
    fn store(&self, at: u64, value: u64) {
        if let Some(word) = self.word(at) {
            word.store(value, Ordering::Release);
        }
    }

    /// One word.
    fn word(&self, at: u64) -> Option<&AtomicU64> {
        self.words().get(usize::try_from(at).ok()?)
    }

    /// Copies words out, in no particular order.
    fn load_all(&self, at: u64, out: &mut [u64]) {
        let words = run(self.words(), at, out.len()).unwrap_or(&[]);
        out.fill(0);
        for (out, word) in out.iter_mut().zip(words) {
            *out = word.load(Ordering::Relaxed);
        }
    }

    /// Copies words in, in no particular order.
    fn store_all(&self, at: u64, values: &[u64]) {
        let words = run(self.words(), at, values.len());
        debug_assert!(
            words.is_some(),
            "{} words at {at} are outside",
            values.len()
        );
        for (word, value) in words.unwrap_or(&[]).iter().zip(values) {
            word.store(*value, Ordering::Relaxed);
        }
    }

    /// How many there are.
    fn len_words(&self) -> u64 {
        self.words().len() as u64
    }
}

fn run(words: &[AtomicU64], at: u64, len: usize) -> Option<&[AtomicU64]> {
    let at = usize::try_from(at).ok()?;
    words.get(at..at.checked_add(len)?)
}

impl Words for [AtomicU64] {
    fn words(&self) -> &[AtomicU64] {
        self
    }
}

impl Words for Vec<AtomicU64> {
    fn words(&self) -> &[AtomicU64] {
        self
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
