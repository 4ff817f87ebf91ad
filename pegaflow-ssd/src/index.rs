// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Where every block is. Pure, and small: 40 bytes a block and a table of 5 bytes a slot.
//!
//! A segment owns the entries of all its records, in order, so giving a segment up needs no search; the table points into those lists.
//! Invariant: the table points to an entry exactly if that entry is not dead, and to one entry a key.

use crate::format::Record;
use crate::key::Key;

const SHARDS: usize = 64;
const EMPTY: u32 = u32::MAX;
const PAGE_BITS: u32 = 18;
const PAGE_MASK: u32 = (1 << PAGE_BITS) - 1;
const READ: u32 = 1 << 31;
const DEAD: u32 = 1 << 30;
const TOMBSTONE: u32 = 1 << 29;
const PINNED: u32 = 1 << 28;
const FAILED: u32 = 1 << 27;

/// What the index knows of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: Key,
    checksum: [u32; 2],
    page_flags: u32,
    pub(crate) bytes: u32,
    pub(crate) expires_s: u32,
    header: u32,
}

impl Entry {
    /// From a record; its sequence and metadata stay on the device.
    pub(crate) fn new(r: &Record) -> Self {
        debug_assert!(r.page <= PAGE_MASK && r.header_page <= PAGE_MASK);
        Self {
            key: r.key,
            checksum: [r.checksum as u32, (r.checksum >> 32) as u32],
            page_flags: r.page | if r.tombstone { TOMBSTONE } else { 0 },
            bytes: r.bytes,
            expires_s: r.expires_s,
            header: r.header_page | u32::from(r.header_index) << PAGE_BITS,
        }
    }

    /// Back to a record.
    pub(crate) fn record(&self, sequence: u64) -> Record {
        Record {
            key: self.key,
            checksum: self.checksum(),
            sequence,
            page: self.page(),
            bytes: self.bytes,
            expires_s: self.expires_s,
            header_page: self.header_page(),
            header_index: self.header_index(),
            tombstone: self.tombstone(),
        }
    }

    pub(crate) fn checksum(&self) -> u64 {
        u64::from(self.checksum[0]) | u64::from(self.checksum[1]) << 32
    }
    pub(crate) fn page(&self) -> u32 {
        self.page_flags & PAGE_MASK
    }
    pub(crate) fn header_page(&self) -> u32 {
        self.header & PAGE_MASK
    }
    pub(crate) fn header_index(&self) -> u16 {
        (self.header >> PAGE_BITS) as u16
    }
    pub(crate) fn dead(&self) -> bool {
        self.page_flags & DEAD != 0
    }
    pub(crate) fn tombstone(&self) -> bool {
        self.page_flags & TOMBSTONE != 0
    }
    pub(crate) fn was_read(&self) -> bool {
        self.page_flags & READ != 0
    }
    pub(crate) fn pinned(&self) -> bool {
        self.page_flags & PINNED != 0
    }
    /// Its bytes may not be what its header says.
    pub(crate) fn failed(&self) -> bool {
        self.page_flags & FAILED != 0
    }
    pub(crate) fn set_failed(&mut self) {
        self.page_flags |= FAILED;
    }
    pub(crate) fn set_read(&mut self) {
        self.page_flags |= READ;
    }
    pub(crate) fn set_pinned(&mut self, pinned: bool) {
        self.page_flags = self.page_flags & !PINNED | if pinned { PINNED } else { 0 };
    }
    pub(crate) fn expired(&self, now_s: u64) -> bool {
        self.expires_s != 0 && u64::from(self.expires_s) <= now_s
    }
}

/// Which entry: its segment and its place in that segment's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ref {
    pub(crate) segment: u32,
    pub(crate) index: u32,
}

#[derive(Debug, Clone, Default)]
struct Shard {
    tags: Vec<u8>,
    slots: Vec<u32>,
    used: usize,
}

/// All entries and the table over them.
#[derive(Debug)]
pub(crate) struct Index {
    shards: Vec<Shard>,
    segments: Vec<Vec<Entry>>,
    index_bits: u32,
    live: usize,
}

impl Index {
    /// For so many segments of so many pages.
    pub(crate) fn new(segments: u32, pages: u32) -> Self {
        let wanted = 32 - pages.max(16).leading_zeros();
        let room = (segments + 1).leading_zeros();
        Self {
            shards: vec![Shard::default(); SHARDS],
            segments: vec![Vec::new(); segments as usize],
            index_bits: wanted.min(room),
            live: 0,
        }
    }

    /// Makes room for so many blocks in an empty table: growing step by step would look at every key again and again.
    pub(crate) fn reserve(&mut self, blocks: usize) {
        debug_assert_eq!(self.live, 0, "a table in use grows by itself");
        // Keys spread evenly, but for a few square roots.
        let each = blocks / SHARDS;
        let size = (each + 3 * each.isqrt()) * 20 / 17 + 1;
        for shard in &mut self.shards {
            *shard = Shard {
                tags: vec![0; size],
                slots: vec![EMPTY; size],
                used: 0,
            };
        }
    }

    /// Makes room for so many records of a segment.
    pub(crate) fn reserve_records(&mut self, segment: u32, records: usize) {
        self.segments[segment as usize].reserve_exact(records);
    }

    /// Most records a segment may have.
    pub(crate) fn records_max(&self) -> usize {
        (1usize << self.index_bits) - 1
    }

    /// Blocks in the table.
    pub(crate) fn len(&self) -> usize {
        self.live
    }

    /// Bytes of memory held.
    pub(crate) fn memory_bytes(&self) -> usize {
        let table: usize = self.shards.iter().map(|s| s.slots.capacity() * 5).sum();
        let entries: usize = self.segments.iter().map(Vec::capacity).sum();
        table + entries * size_of::<Entry>()
    }

    /// All records of a segment, dead ones and tombstones too.
    pub(crate) fn records(&self, segment: u32) -> &[Entry] {
        &self.segments[segment as usize]
    }

    /// The entry `r` points to.
    pub(crate) fn entry(&self, r: Ref) -> &Entry {
        &self.segments[r.segment as usize][r.index as usize]
    }

    /// As [`Index::entry`], to change.
    pub(crate) fn entry_mut(&mut self, r: Ref) -> &mut Entry {
        &mut self.segments[r.segment as usize][r.index as usize]
    }

    /// Where the block of this key is.
    pub(crate) fn get(&self, key: &Key) -> Option<Ref> {
        let spread = key.spread();
        let slot = self.find(spread, key)?;
        Some(self.decode(self.shards[shard_of(spread)].slots[slot]))
    }

    /// Adds a record and points its key to it. Returns where the key's block was before; that entry is dead now.
    pub(crate) fn insert(&mut self, segment: u32, entry: Entry) -> Option<Ref> {
        let key = entry.key;
        let code = self.push(segment, entry);
        let spread = key.spread();
        if let Some(slot) = self.find(spread, &key) {
            let place = &mut self.shards[shard_of(spread)].slots[slot];
            let old = std::mem::replace(place, code);
            let old = self.decode(old);
            self.entry_mut(old).page_flags |= DEAD;
            return Some(old);
        }
        self.live += 1;
        self.grow_if_full(shard_of(spread));
        place(&mut self.shards[shard_of(spread)], spread, code);
        None
    }

    /// Adds a record that is no block of its key: a tombstone, or one that a newer record replaced before it was done.
    pub(crate) fn insert_dead(&mut self, segment: u32, mut entry: Entry) {
        entry.page_flags |= DEAD;
        self.push(segment, entry);
    }

    /// Takes the key out of the table. Its entry is dead now.
    pub(crate) fn remove(&mut self, key: &Key) -> Option<Ref> {
        let spread = key.spread();
        let slot = self.find(spread, key)?;
        let r = self.decode(self.shards[shard_of(spread)].slots[slot]);
        self.close_gap(shard_of(spread), slot);
        self.entry_mut(r).page_flags |= DEAD;
        self.live -= 1;
        Some(r)
    }

    /// Forgets all records of a segment. All must be dead.
    pub(crate) fn clear(&mut self, segment: u32) -> Vec<Entry> {
        let entries = std::mem::take(&mut self.segments[segment as usize]);
        debug_assert!(
            entries.iter().all(Entry::dead),
            "a live block's segment was given up"
        );
        entries
    }

    /// Gives spare memory of a full segment's list back.
    pub(crate) fn shrink(&mut self, segment: u32) {
        self.segments[segment as usize].shrink_to_fit();
    }

    fn push(&mut self, segment: u32, entry: Entry) -> u32 {
        let list = &mut self.segments[segment as usize];
        let index = list.len() as u32;
        list.push(entry);
        segment << self.index_bits | index
    }

    fn decode(&self, code: u32) -> Ref {
        Ref {
            segment: code >> self.index_bits,
            index: code & ((1 << self.index_bits) - 1),
        }
    }

    fn find(&self, spread: u64, key: &Key) -> Option<usize> {
        let shard = &self.shards[shard_of(spread)];
        if shard.slots.is_empty() {
            return None;
        }
        let (mut at, tag) = (home(spread, shard.slots.len()), tag_of(spread));
        while shard.slots[at] != EMPTY {
            if shard.tags[at] == tag && self.entry(self.decode(shard.slots[at])).key == *key {
                return Some(at);
            }
            at = next(at, shard.slots.len());
        }
        None
    }

    // Counts one more block in the shard, and makes room for it.
    fn grow_if_full(&mut self, shard: usize) {
        self.shards[shard].used += 1;
        let used = self.shards[shard].used;
        if self.shards[shard].slots.len() * 17 / 20 >= used {
            return;
        }
        let old = std::mem::take(&mut self.shards[shard]);
        // A fifth more at a time keeps the slack small; a shard is a 64th of the table, so the pause is, too.
        let size = (old.slots.len() + old.slots.len() / 5).max(16) + 1;
        let mut fresh = Shard {
            tags: vec![0; size],
            slots: vec![EMPTY; size],
            used,
        };
        for code in old.slots.into_iter().filter(|c| *c != EMPTY) {
            let spread = self.entry(self.decode(code)).key.spread();
            place(&mut fresh, spread, code);
        }
        self.shards[shard] = fresh;
    }

    // Linear probing without tombstones: what follows moves up, unless it would pass its home.
    fn close_gap(&mut self, shard: usize, mut gap: usize) {
        let len = self.shards[shard].slots.len();
        let mut at = next(gap, len);
        while self.shards[shard].slots[at] != EMPTY {
            let code = self.shards[shard].slots[at];
            let from = home(self.entry(self.decode(code)).key.spread(), len);
            let distance = |a: usize, b: usize| (b + len - a) % len;
            if distance(from, at) >= distance(gap, at) {
                let s = &mut self.shards[shard];
                (s.slots[gap], s.tags[gap]) = (code, s.tags[at]);
                gap = at;
            }
            at = next(at, len);
        }
        self.shards[shard].slots[gap] = EMPTY;
        self.shards[shard].used -= 1;
    }
}

fn shard_of(spread: u64) -> usize {
    spread as usize % SHARDS
}
fn tag_of(spread: u64) -> u8 {
    (spread >> 8) as u8
}
fn home(spread: u64, len: usize) -> usize {
    (((spread >> 32) * len as u64) >> 32) as usize
}
fn next(at: usize, len: usize) -> usize {
    if at + 1 == len { 0 } else { at + 1 }
}

fn place(shard: &mut Shard, spread: u64, code: u32) {
    let len = shard.slots.len();
    let mut at = home(spread, len);
    while shard.slots[at] != EMPTY {
        at = next(at, len);
    }
    (shard.slots[at], shard.tags[at]) = (code, tag_of(spread));
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn record(key: u128, page: u32) -> Record {
        Record {
            key: key.into(),
            checksum: !u64::from(page),
            sequence: 0,
            page,
            bytes: 4096,
            expires_s: 0,
            header_page: page / 2,
            header_index: 3,
            tombstone: false,
        }
    }

    #[test]
    fn room_made_at_once_is_enough_and_not_too_much() {
        for blocks in [0u32, 10, 5_000, 300_000] {
            let mut index = Index::new(64, 1 << 14);
            index.reserve(blocks as usize);
            let before: Vec<usize> = index.shards.iter().map(|s| s.slots.len()).collect();
            for i in 0..blocks {
                let entry = Entry::new(&record(u128::from(i) << 7, i % 8192));
                assert_eq!(index.insert(i / 8192, entry), None);
            }
            let after: Vec<usize> = index.shards.iter().map(|s| s.slots.len()).collect();
            let grown = before.iter().zip(&after).filter(|(b, a)| a != b).count();
            assert!(
                blocks < 300_000 || grown <= 2,
                "{grown} shards were too small"
            );
            let table: usize = after.iter().map(|slots| slots * 5).sum();
            assert!(
                blocks < 300_000 || table < 8 * blocks as usize,
                "{table} bytes"
            );
            assert_eq!(index.len(), blocks as usize);
        }
    }

    #[test]
    fn an_entry_has_forty_bytes_and_a_block_at_most_48() {
        assert_eq!(size_of::<Entry>(), 40);
        let (segments, each) = (64, 16_000);
        let mut index = Index::new(segments, 1 << 14);
        let mut worst = 0.0f64;
        for s in 0..segments {
            for i in 0..each {
                let key = u128::from(s) << 64 | u128::from(i);
                assert_eq!(index.insert(s, Entry::new(&record(key, i))), None);
            }
            index.shrink(s);
            worst = worst.max(index.memory_bytes() as f64 / index.len() as f64);
        }
        assert_eq!(index.len() as u32, segments * each);
        assert!(worst <= 48.0, "{worst} bytes a block");
    }

    #[test]
    fn records_come_back_whole() {
        let r = record(7, PAGE_MASK);
        assert_eq!(Entry::new(&r).record(0), r);
    }

    proptest! {
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((0u32..5, 0u128..60, 0u8..10), 0..400)) {
            let mut index = Index::new(5, 64);
            let mut model: HashMap<Key, (u32, u32)> = HashMap::new();
            for (n, (segment, key, what)) in steps.into_iter().enumerate() {
                let (key, page) = (Key::from(key), n as u32);
                match what {
                    0..6 => {
                        let old = index.insert(segment, Entry::new(&record(u128::from_le_bytes(key.0), page)));
                        prop_assert_eq!(old.is_some(), model.insert(key, (segment, page)).is_some());
                    }
                    6..9 => prop_assert_eq!(index.remove(&key).is_some(), model.remove(&key).is_some()),
                    _ => {
                        let keys: Vec<Key> = model.iter().filter(|(_, v)| v.0 == segment).map(|(k, _)| *k).collect();
                        for k in keys {
                            index.remove(&k);
                            model.remove(&k);
                        }
                        index.clear(segment);
                    }
                }
                prop_assert_eq!(index.len(), model.len());
                for (k, v) in &model {
                    let r = index.get(k).expect("it was put");
                    prop_assert_eq!((r.segment, index.entry(r).page()), *v);
                }
            }
        }
    }
}
