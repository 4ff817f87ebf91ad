// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The first page: what store this is.

use super::{FORMAT_VERSION, SEGMENTS_AT, SUPER_MAGIC, checksum, put_u32, put_u64, u32_at, u64_at};
use crate::sys::PAGE;

/// What was fixed when the store was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// Random; the same for all devices of a store. Nothing written by another store counts.
    pub(crate) store: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) segments: u32,
    /// Which of the store's devices this is.
    pub(crate) member: u32,
    pub(crate) members: u32,
}

/// What a first page turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// A store of this version.
    Store(Superblock),
    /// A store of another version.
    OtherVersion(u32),
    /// Nothing of ours, or damaged.
    Nothing,
}

impl Superblock {
    /// Segments that fit on so many bytes.
    pub(crate) fn segments_on(bytes: u64, segment_bytes: u64) -> u32 {
        let n = bytes.saturating_sub(SEGMENTS_AT) / segment_bytes;
        n.min(u64::from(u32::MAX / 2)) as u32
    }

    /// The page's bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut b = vec![0; PAGE];
        put_u64(&mut b, 0, SUPER_MAGIC);
        put_u64(&mut b, 16, self.store);
        put_u32(&mut b, 24, FORMAT_VERSION);
        put_u32(&mut b, 28, self.segments);
        put_u64(&mut b, 32, self.segment_bytes);
        put_u32(&mut b, 40, self.member);
        put_u32(&mut b, 44, self.members);
        let sum = checksum(&b[16..]);
        put_u64(&mut b, 8, sum);
        b
    }

    /// Reads a page. The version is looked at only after the checksum, which all versions share.
    pub(crate) fn decode(b: &[u8]) -> Found {
        let ours =
            b.len() == PAGE && u64_at(b, 0) == SUPER_MAGIC && u64_at(b, 8) == checksum(&b[16..]);
        if !ours {
            return Found::Nothing;
        }
        let version = u32_at(b, 24);
        if version != FORMAT_VERSION {
            return Found::OtherVersion(version);
        }
        Found::Store(Self {
            store: u64_at(b, 16),
            segment_bytes: u64_at(b, 32),
            segments: u32_at(b, 28),
            member: u32_at(b, 40),
            members: u32_at(b, 44),
        })
    }
}
