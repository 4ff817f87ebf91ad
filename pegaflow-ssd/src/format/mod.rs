// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! What lies on the device. Pure: bytes in, values out, and back. Little-endian; every structure carries a CRC-64/NVME.
//!
//! ```text
//! 0         superblock, one page, and a copy of it in the next
//! 1 MiB     segment 0: batch, batch, ... (free) ..., summary | trailer at the segment's very end
//! + n * segment_bytes   segment n
//! ```
//! A *batch* is a header (one record for each block: key, place, length, checksum, expiry, the caller's metadata), then the blocks,
//! each on pages of its own. The first batch is a *mark*, a header without records, where the first block leaves room for it. The
//! *summary* repeats the records of a full segment, so that opening a store reads those and not every header: it is the index's
//! checkpoint, kept in parts. A *void* page at a segment's end says that nothing written there before counts.
//!
//! Invariant: nothing here trusts a length before the checksum over it was checked.

mod batch;
mod seal;
mod superblock;

use crate::key::Key;
use crate::sys::PAGE;

pub(crate) use batch::{Batch, HEADER_BYTES_MAX, META_BYTES_MAX, header_bytes};
pub(crate) use seal::{Seal, Trailer, summary_pages};
pub(crate) use superblock::{Found, Superblock};

/// Version of the format written, and the only one read.
pub const FORMAT_VERSION: u32 = 1;
/// Where segment 0 begins, bytes.
pub(crate) const SEGMENTS_AT: u64 = 1 << 20;

const BATCH_MAGIC: u64 = u64::from_le_bytes(*b"PgfBatch");
const SEAL_MAGIC: u64 = u64::from_le_bytes(*b"PgfSeal1");
const VOID_MAGIC: u64 = u64::from_le_bytes(*b"PgfVoid1");
const SUPER_MAGIC: u64 = u64::from_le_bytes(*b"PgfSsd\x00\x01");

/// The checksum of everything on the device.
pub fn checksum(bytes: &[u8]) -> u64 {
    crc_fast::crc64_nvme(bytes)
}

/// The checksum of bytes in several pieces.
pub(crate) fn checksum_of<'a>(parts: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    parts.for_each(|p| digest.update(p));
    digest.finalize()
}

/// One block as its header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) key: Key,
    /// Of the block's bytes.
    pub(crate) checksum: u64,
    /// Orders all records of a store; the highest of a key counts.
    pub(crate) sequence: u64,
    /// First page of the block in its segment.
    pub(crate) page: u32,
    pub(crate) bytes: u32,
    /// Seconds since 1970 from which on it does not exist; 0: never.
    pub(crate) expires_s: u32,
    /// Page of the batch header in the segment.
    pub(crate) header_page: u32,
    /// Its place in the batch.
    pub(crate) header_index: u16,
    /// No block: says that the key was removed.
    pub(crate) tombstone: bool,
}

/// Who and where a structure must be to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) store: u64,
    pub(crate) segment: u32,
}

/// Bytes that a device writes whole or not at all.
const SECTOR: usize = 512;

/// The last page of a segment in which nothing counts that was begun before `floor`. Said in each sector, so that neither a torn write
/// nor a damaged sector takes it back.
pub(crate) fn void_page(place: Place, floor: u64) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    for sector in page.chunks_mut(SECTOR) {
        put_u64(sector, 0, VOID_MAGIC);
        put_u64(sector, 16, place.store);
        put_u32(sector, 24, place.segment);
        put_u64(sector, 32, floor);
        sign(sector);
    }
    page
}

/// The floor that any sector of a page still says.
pub(crate) fn decode_void(page: &[u8], place: Place) -> Option<u64> {
    let sectors = page
        .chunks_exact(SECTOR)
        .filter(|s| signed(s, VOID_MAGIC, place));
    sectors.map(|s| u64_at(s, 32)).max()
}

// The common beginning: magic (8), checksum of all that follows it (8), store (8), segment (4).
fn sign(bytes: &mut [u8]) {
    let sum = checksum(&bytes[16..]);
    put_u64(bytes, 8, sum);
}

fn signed(bytes: &[u8], magic: u64, place: Place) -> bool {
    bytes.len() >= 64
        && u64_at(bytes, 0) == magic
        && u64_at(bytes, 16) == place.store
        && u32_at(bytes, 24) == place.segment
        && u64_at(bytes, 8) == checksum(&bytes[16..])
}

/// The generation in a batch header's first sector, unchecked: to decide whether reading the segment is worth it.
pub(crate) fn peek_generation(head: &[u8], place: Place) -> Option<u64> {
    let ours =
        head.len() >= 64 && u64_at(head, 0) == BATCH_MAGIC && u64_at(head, 16) == place.store;
    ours.then(|| u64_at(head, 32))
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().expect("eight bytes"))
}
fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().expect("four bytes"))
}
fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(b[at..at + 2].try_into().expect("two bytes"))
}
fn key_at(b: &[u8], at: usize) -> Key {
    Key(b[at..at + 16].try_into().expect("sixteen bytes"))
}
fn put_u64(b: &mut [u8], at: usize, v: u64) {
    b[at..at + 8].copy_from_slice(&v.to_le_bytes());
}
fn put_u32(b: &mut [u8], at: usize, v: u32) {
    b[at..at + 4].copy_from_slice(&v.to_le_bytes());
}
fn put_u16(b: &mut [u8], at: usize, v: u16) {
    b[at..at + 2].copy_from_slice(&v.to_le_bytes());
}

#[cfg(test)]
mod tests;
