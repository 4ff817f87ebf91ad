// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The summary at the end of a full segment: its part of the index, in one piece.

use super::{
    Place, Record, SEAL_MAGIC, checksum, key_at, put_u16, put_u32, put_u64, sign, signed, u16_at,
    u32_at, u64_at,
};
use crate::sys::{PAGE, pages};

const TRAILER: usize = 64;
const RECORD: usize = 56;

/// Pages that the summary of so many records needs, trailer included.
pub(crate) fn summary_pages(records: usize) -> u32 {
    (pages((records * RECORD + TRAILER) as u64) / PAGE as u64) as u32
}

/// The last 64 bytes of a sealed segment: says where the summary is and how to check it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) generation: u64,
    pub(crate) records: u32,
    /// Pages written before the summary.
    pub(crate) used_pages: u32,
    /// Of the summary's bytes before the trailer.
    pub(crate) summary_checksum: u64,
}

impl Trailer {
    /// Reads the trailer at the end of a segment's last page.
    pub(crate) fn decode(last_page: &[u8], place: Place) -> Option<Self> {
        let t = &last_page[last_page.len().checked_sub(TRAILER)?..];
        signed(t, SEAL_MAGIC, place).then(|| Self {
            generation: u64_at(t, 32),
            records: u32_at(t, 28),
            used_pages: u32_at(t, 48),
            summary_checksum: u64_at(t, 40),
        })
    }
}

/// A whole summary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seal {
    pub(crate) generation: u64,
    pub(crate) used_pages: u32,
    pub(crate) records: Vec<Record>,
}

impl Seal {
    /// The bytes for the last `summary_pages` pages of the segment.
    pub(crate) fn encode(&self, place: Place) -> Vec<u8> {
        let mut b = vec![0; summary_pages(self.records.len()) as usize * PAGE];
        for (i, r) in self.records.iter().enumerate() {
            let at = i * RECORD;
            b[at..at + 16].copy_from_slice(&r.key.0);
            put_u64(&mut b, at + 16, r.checksum);
            put_u64(&mut b, at + 24, r.sequence);
            put_u32(&mut b, at + 32, r.page);
            put_u32(&mut b, at + 36, r.bytes);
            put_u32(&mut b, at + 40, r.expires_s);
            put_u32(&mut b, at + 44, r.header_page);
            put_u16(&mut b, at + 48, r.header_index);
            put_u16(&mut b, at + 50, u16::from(r.tombstone));
        }
        let end = b.len() - TRAILER;
        let sum = checksum(&b[..end]);
        let t = &mut b[end..];
        put_u64(t, 0, SEAL_MAGIC);
        put_u64(t, 16, place.store);
        put_u32(t, 24, place.segment);
        put_u32(t, 28, self.records.len() as u32);
        put_u64(t, 32, self.generation);
        put_u64(t, 40, sum);
        put_u32(t, 48, self.used_pages);
        sign(t);
        b
    }

    /// Reads a summary whose trailer was read before; `b` are the segment's last `summary_pages` pages.
    pub(crate) fn decode(b: &[u8], place: Place) -> Option<Self> {
        let trailer = Trailer::decode(b, place)?;
        let end = b.len() - TRAILER;
        let count = trailer.records as usize;
        let whole = summary_pages(count) as usize * PAGE == b.len();
        if !whole || checksum(&b[..end]) != trailer.summary_checksum {
            return None;
        }
        let records = (0..count).map(|i| decode_record(&b[i * RECORD..(i + 1) * RECORD]));
        Some(Self {
            generation: trailer.generation,
            used_pages: trailer.used_pages,
            records: records.collect(),
        })
    }
}

fn decode_record(b: &[u8]) -> Record {
    Record {
        key: key_at(b, 0),
        checksum: u64_at(b, 16),
        sequence: u64_at(b, 24),
        page: u32_at(b, 32),
        bytes: u32_at(b, 36),
        expires_s: u32_at(b, 40),
        header_page: u32_at(b, 44),
        header_index: u16_at(b, 48),
        tombstone: u16_at(b, 50) & 1 != 0,
    }
}
