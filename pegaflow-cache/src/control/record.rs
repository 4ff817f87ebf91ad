// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! One record: what lies at one place of a pool.
//!
//! | word | content |
//! |---|---|
//! | 0 | state 8 bits, zero 8, number of checksums 16, generation 32 |
//! | 1, 2 | key |
//! | 3, 4 | key of the block before it |
//! | 5 | namespace 32, group 16, flags 16 (1: there is a block before it) |
//! | 6 | who writes: bit `n % 64` for entry `n` of the session table |
//! | 7 | CRC-32 of all the rest but word 6, in its low half; high half zero |
//! | 8.. | checksums: stage by stage, head by head |
//!
//! Invariant: word 0 is written last when a record begins or is sealed, and first when it is
//! erased. So whoever sees a state sees all that belongs to it, also after `kill -9`.

use std::sync::atomic::{Ordering, fence};

use pegaflow_meta::{BlockKey, GroupId};

use super::geometry::RECORD_WORDS;
use super::superblock::crc;
use super::words::Words;

/// What is known of a place's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing.
    Empty,
    /// Somebody writes them.
    Writing,
    /// They are the block.
    Sealed,
}

const WRITING: u64 = 0x57;
const SEALED: u64 = 0x53;
/// The most checksums of one block.
pub const CHECKSUMS_MAX: u32 = u16::MAX as u32;

/// A record without its checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Distinguishes this use of the place from earlier ones.
    pub generation: u32,
    /// Name of the block.
    pub key: BlockKey,
    /// The block before it in its prefix.
    pub parent: Option<BlockKey>,
    /// The namespace's number in the namespace log.
    pub namespace: u32,
    /// Cache group.
    pub group: GroupId,
    /// How many checksums follow.
    pub checksums: u16,
}

/// Words of a record with this many checksums.
#[must_use]
pub fn record_words(checksums: u32) -> u64 {
    RECORD_WORDS + u64::from(checksums)
}

fn key_words(key: BlockKey) -> [u64; 2] {
    let (low, high) = key.0.split_at(8);
    [low, high].map(|half| u64::from_le_bytes(half.try_into().expect("half a key is 8 bytes")))
}

fn key_of(words: [u64; 2]) -> BlockKey {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&words[0].to_le_bytes());
    key[8..].copy_from_slice(&words[1].to_le_bytes());
    BlockKey(key)
}

/// The checksums of a record being read: on the stack for the usual number of heads.
struct Checksums {
    few: [u64; Self::FEW],
    many: Vec<u64>,
    len: usize,
}

impl Checksums {
    const FEW: usize = 32;

    fn load<W: Words + ?Sized>(file: &W, at: u64, count: u16) -> Self {
        let mut read = Self {
            few: [0; Self::FEW],
            many: vec![],
            len: count.into(),
        };
        if read.len > Self::FEW {
            read.many = vec![0; read.len];
        }
        file.load_all(at + RECORD_WORDS, read.all_mut());
        read
    }

    fn all_mut(&mut self) -> &mut [u64] {
        match self.len > Self::FEW {
            true => &mut self.many,
            false => &mut self.few[..self.len],
        }
    }

    fn into_vec(mut self) -> Vec<u64> {
        match self.len > Self::FEW {
            true => self.many,
            false => self.all_mut().to_vec(),
        }
    }
}

impl Record {
    fn encode(&self, state: u64) -> [u64; 6] {
        let parent = self.parent.map_or([0; 2], key_words);
        let key = key_words(self.key);
        [
            state | u64::from(self.checksums) << 16 | u64::from(self.generation) << 32,
            key[0],
            key[1],
            parent[0],
            parent[1],
            u64::from(self.namespace)
                | u64::from(self.group.0) << 32
                | u64::from(self.parent.is_some()) << 48,
        ]
    }

    fn decode(words: &[u64; 6]) -> (State, Self) {
        let state = match words[0] & 0xffff {
            SEALED => State::Sealed,
            WRITING => State::Writing,
            _ => State::Empty,
        };
        let has_parent = words[5] >> 48 & 1 == 1;
        let record = Self {
            generation: (words[0] >> 32) as u32,
            key: key_of([words[1], words[2]]),
            parent: has_parent.then(|| key_of([words[3], words[4]])),
            namespace: words[5] as u32,
            group: GroupId((words[5] >> 32) as u16),
            checksums: (words[0] >> 16) as u16,
        };
        (state, record)
    }

    /// Says that this block is being written to the place of the record at word `at`, by the
    /// sessions of `writers`.
    pub fn begin<W: Words + ?Sized>(&self, file: &W, at: u64, writers: u64) {
        let words = self.encode(WRITING);
        file.store(at, 0);
        file.store_all(at + 1, &words[1..]);
        file.store_all(at + 6, &[writers, 0]);
        file.store(at, words[0]);
    }

    /// Reads the record at word `at`; what is torn or damaged reads as empty.
    pub fn read<W: Words + ?Sized>(file: &W, at: u64) -> (State, Self) {
        let (state, record, _) = Self::read_all(file, at);
        (state, record)
    }

    /// The record, and its checksums if it is sealed.
    fn read_all<W: Words + ?Sized>(file: &W, at: u64) -> (State, Self, Option<Checksums>) {
        let words = header(file, at);
        let (state, record) = Self::decode(&words);
        if state != State::Sealed {
            return (state, record, None);
        }
        let mut checksums = Checksums::load(file, at, record.checksums);
        if crc([&words, checksums.all_mut()]) == file.load(at + 7) {
            (State::Sealed, record, Some(checksums))
        } else {
            (State::Empty, record, None)
        }
    }
}

/// The first words of a record, the state not younger than the others.
fn header<W: Words + ?Sized>(file: &W, at: u64) -> [u64; 6] {
    let mut words = [0; 6];
    words[0] = file.load(at);
    file.load_all(at + 1, &mut words[1..]);
    words
}

/// Says that the block whose record was begun at word `at` is complete. Its checksums are already
/// there.
pub fn seal<W: Words + ?Sized>(file: &W, at: u64) {
    let mut words = header(file, at);
    debug_assert_eq!(Record::decode(&words).0, State::Writing, "record at {at}");
    words[0] = words[0] & !0xffff | SEALED;
    let mut checksums = Checksums::load(file, at, (words[0] >> 16) as u16);
    file.store(at + 7, crc([&words, checksums.all_mut()]));
    file.store(at, words[0]);
}

/// Adds writers to a record that is begun.
pub fn join<W: Words + ?Sized>(file: &W, at: u64, writers: u64) {
    file.store(at + 6, file.load(at + 6) | writers);
}

/// Who writes to the place, as bits of the session table.
pub fn writers<W: Words + ?Sized>(file: &W, at: u64) -> u64 {
    file.load(at + 6)
}

/// The place holds nothing any more.
pub fn erase<W: Words + ?Sized>(file: &W, at: u64) {
    file.store(at, 0);
}

/// Sets checksums `first..` of the record.
pub fn put_checksums<W: Words + ?Sized>(file: &W, at: u64, first: u32, checksums: &[u64]) {
    file.store_all(at + RECORD_WORDS + u64::from(first), checksums);
}

/// The checksums of a sealed block, if the record is still that of this use of the place by this
/// key. For readers of another process: what comes back was whole at one moment.
pub fn checksums_of<W: Words + ?Sized>(
    file: &W,
    at: u64,
    key: BlockKey,
    generation: u32,
) -> Option<Vec<u64>> {
    let (_, record, checksums) = Record::read_all(file, at);
    let checksums = checksums?;
    if record.key != key || record.generation != generation {
        return None;
    }
    fence(Ordering::Acquire);
    (file.load(at) == record.encode(SEALED)[0]).then(|| checksums.into_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicU64;

    fn file(words: usize) -> Vec<AtomicU64> {
        (0..words).map(|_| AtomicU64::new(0)).collect()
    }

    fn record() -> impl Strategy<Value = Record> {
        let key = || any::<[u8; 16]>().prop_map(BlockKey);
        (
            any::<u32>(),
            key(),
            prop::option::of(key()),
            any::<u32>(),
            any::<u16>(),
            0u16..40,
        )
            .prop_map(
                |(generation, key, parent, namespace, group, checksums)| Record {
                    generation,
                    key,
                    parent,
                    namespace,
                    group: GroupId(group),
                    checksums,
                },
            )
    }

    proptest! {
        #[test]
        fn a_record_reads_as_it_was_written(record in record(), seed: u64) {
            let file = file(64);
            prop_assert_eq!(Record::read(&file, 3).0, State::Empty);
            record.begin(&file, 3, 5);
            prop_assert_eq!(Record::read(&file, 3), (State::Writing, record));
            join(&file, 3, 8);
            prop_assert_eq!(writers(&file, 3), 13);
            let sums: Vec<u64> = (0..u64::from(record.checksums)).map(|i| i ^ seed).collect();
            put_checksums(&file, 3, 0, &sums);
            prop_assert_eq!(checksums_of(&file, 3, record.key, record.generation), None);
            seal(&file, 3);
            prop_assert_eq!(Record::read(&file, 3), (State::Sealed, record));
            prop_assert_eq!(checksums_of(&file, 3, record.key, record.generation), Some(sums));
            prop_assert_eq!(checksums_of(&file, 3, record.key, !record.generation), None);
            prop_assert_eq!(checksums_of(&file, 3, BlockKey([1; 16]), record.generation), None);
            erase(&file, 3);
            prop_assert_eq!(Record::read(&file, 3).0, State::Empty);
        }

        /// One flipped bit, wherever: the record is no longer taken for sealed, unless it hit the
        /// writers, which say nothing any more.
        #[test]
        fn a_damaged_record_is_not_a_block(record in record(), word in 0u64..48, bit in 0u32..64) {
            let file = file(64);
            record.begin(&file, 0, 0);
            seal(&file, 0);
            let len = record_words(u32::from(record.checksums));
            prop_assume!(word < len && word != 6);
            file.store(word, file.load(word) ^ 1 << bit);
            prop_assert_ne!(Record::read(&file, 0).0, State::Sealed);
        }

        #[test]
        fn any_words_read_without_panic(words in prop::collection::vec(any::<u64>(), 0..80), at in 0u64..100) {
            let file: Vec<AtomicU64> = words.into_iter().map(AtomicU64::new).collect();
            let (_, record) = Record::read(&file, at);
            let _ = checksums_of(&file, at, record.key, record.generation);
        }
    }
}
