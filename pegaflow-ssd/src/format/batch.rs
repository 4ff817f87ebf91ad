// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The header before a group of blocks.

use super::{
    BATCH_MAGIC, Place, Record, key_at, put_u16, put_u32, put_u64, sign, signed, u16_at, u32_at,
    u64_at,
};
use crate::sys::pages;

/// A header has at most this many bytes, so that one read gets any of it.
pub(crate) const HEADER_BYTES_MAX: usize = 64 << 10;
/// Longest opaque metadata of a block, bytes.
pub(crate) const META_BYTES_MAX: usize = 256;

const FIXED: usize = 64;
const RECORD: usize = 48;

/// Whole pages a header needs, bytes: for so many records with so many bytes of metadata together.
pub(crate) fn header_bytes(records: usize, meta_bytes: usize) -> usize {
    pages((FIXED + records * RECORD + meta_bytes) as u64) as usize
}

/// A header with its records and their metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    /// The sequence at which the segment was begun; tells this use of a segment from earlier ones.
    pub(crate) generation: u64,
    /// Sequence of the first record; the others follow.
    pub(crate) sequence: u64,
    /// Page of the header in the segment.
    pub(crate) page: u32,
    /// Pages of header and blocks together.
    pub(crate) pages: u32,
    pub(crate) records: Vec<Record>,
    pub(crate) metas: Vec<Vec<u8>>,
}

impl Batch {
    /// The header's bytes, whole pages.
    pub(crate) fn encode(&self, place: Place) -> Vec<u8> {
        let meta_total: usize = self.metas.iter().map(Vec::len).sum();
        let used = FIXED + self.records.len() * RECORD + meta_total;
        let mut b = vec![0; header_bytes(self.records.len(), meta_total)];
        put_u64(&mut b, 0, BATCH_MAGIC);
        put_u64(&mut b, 16, place.store);
        put_u32(&mut b, 24, place.segment);
        put_u32(&mut b, 28, self.records.len() as u32);
        put_u64(&mut b, 32, self.generation);
        put_u64(&mut b, 40, self.sequence);
        put_u32(&mut b, 48, used as u32);
        put_u32(&mut b, 52, self.page);
        put_u32(&mut b, 56, self.pages);
        let mut meta_at = FIXED + self.records.len() * RECORD;
        for (i, (r, meta)) in self.records.iter().zip(&self.metas).enumerate() {
            let at = FIXED + i * RECORD;
            b[at..at + 16].copy_from_slice(&r.key.0);
            put_u64(&mut b, at + 16, r.checksum);
            put_u32(&mut b, at + 24, r.bytes);
            put_u32(&mut b, at + 28, r.page);
            put_u32(&mut b, at + 32, r.expires_s);
            put_u32(&mut b, at + 36, meta_at as u32);
            put_u16(&mut b, at + 40, meta.len() as u16);
            put_u16(&mut b, at + 42, u16::from(r.tombstone));
            b[meta_at..meta_at + meta.len()].copy_from_slice(meta);
            meta_at += meta.len();
        }
        sign(&mut b[..used]);
        b
    }

    /// Reads a header at the start of `b`; nothing if it is none, is damaged, or belongs elsewhere.
    pub(crate) fn decode(b: &[u8], place: Place) -> Option<Self> {
        if b.len() < FIXED {
            return None;
        }
        let (count, used) = (u32_at(b, 28) as usize, u32_at(b, 48) as usize);
        let fits = used <= b.len() && used <= HEADER_BYTES_MAX && FIXED + count * RECORD <= used;
        if !fits || !signed(&b[..used], BATCH_MAGIC, place) {
            return None;
        }
        let (sequence, page) = (u64_at(b, 40), u32_at(b, 52));
        let mut records = Vec::with_capacity(count);
        let mut metas = Vec::with_capacity(count);
        for i in 0..count {
            let at = FIXED + i * RECORD;
            let (meta_at, meta_bytes) = (u32_at(b, at + 36) as usize, u16_at(b, at + 40) as usize);
            metas.push(b.get(meta_at..meta_at + meta_bytes)?.to_vec());
            records.push(Record {
                key: key_at(b, at),
                checksum: u64_at(b, at + 16),
                sequence: sequence + i as u64,
                page: u32_at(b, at + 28),
                bytes: u32_at(b, at + 24),
                expires_s: u32_at(b, at + 32),
                header_page: page,
                header_index: i as u16,
                tombstone: u16_at(b, at + 42) & 1 != 0,
            });
        }
        let (generation, all_pages) = (u64_at(b, 32), u32_at(b, 56));
        Some(Self {
            generation,
            sequence,
            page,
            pages: all_pages,
            records,
            metas,
        })
    }
}
