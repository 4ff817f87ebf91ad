// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Where everything lies in a control file. All offsets are in 8-byte words.
//!
//! ```text
//! 0            superblock, one page
//! slabs        one entry of 4 words for each unit of the pool
//! namespaces   a log: registered namespaces in order
//! sessions     one entry of 4 words for each session that may be open
//! records      a window for each unit; a slab's records lie in the windows of its units
//! ```
//!
//! The file is sparse: only records of blocks that exist take memory.

/// Words of the superblock: one page.
pub const SUPERBLOCK_WORDS: u64 = 512;
/// Words of a slab entry.
pub const SLAB_WORDS: u64 = 4;
/// Words of a session entry.
pub const SESSION_WORDS: u64 = 4;
/// Entries of the session table; with more sessions, several share an entry's bit.
pub const SESSIONS: u64 = 4096;
/// Words of the namespace log.
pub const NAMESPACE_WORDS: u64 = (16 << 20) / 8;
/// Words of a record before its checksums.
pub const RECORD_WORDS: u64 = 8;
/// A unit's window is this part of the unit: records take at most that share of a pool.
pub const WINDOW_SHARE: u64 = 4;
const PAGE_WORDS: u64 = 512;

/// The sizes from which all offsets follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of the pool.
    pub capacity_bytes: u64,
    /// Bytes of a unit: what slabs are made of.
    pub unit_bytes: u64,
}

impl Geometry {
    /// Whether such a pool can be.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.unit_bytes.is_power_of_two()
            && (4096..=1 << 30).contains(&self.unit_bytes)
            && self.capacity_bytes >= self.unit_bytes
            && self.capacity_bytes < 1 << 56
            && self.units() <= 1 << 22
    }

    /// Units of the pool.
    #[must_use]
    pub fn units(&self) -> u64 {
        self.capacity_bytes / self.unit_bytes
    }

    /// Start of the slab table.
    #[must_use]
    pub fn slabs(&self) -> u64 {
        SUPERBLOCK_WORDS
    }

    /// Start of the namespace log.
    #[must_use]
    pub fn namespaces(&self) -> u64 {
        let end = self.slabs() + self.units() * SLAB_WORDS;
        end.next_multiple_of(PAGE_WORDS)
    }

    /// Start of the session table.
    #[must_use]
    pub fn sessions(&self) -> u64 {
        self.namespaces() + NAMESPACE_WORDS
    }

    /// Start of the records.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.sessions() + SESSIONS * SESSION_WORDS
    }

    /// Words of one unit's window.
    #[must_use]
    pub fn window_words(&self) -> u64 {
        self.unit_bytes / WINDOW_SHARE / 8
    }

    /// Bytes of the whole file.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        (self.records() + self.units() * self.window_words()) * 8
    }
}

/// A slab as the control file has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slab {
    /// First unit.
    pub first: u32,
    /// Units it spans.
    pub units: u32,
    /// Bytes from one place to the next.
    pub place_bytes: u64,
    /// Words from one record to the next.
    pub stride_words: u32,
}

impl Slab {
    /// The longest stride whose records fit the windows of the slab.
    #[must_use]
    pub fn stride_words_max(geometry: &Geometry, place_bytes: u64) -> u64 {
        let _ = geometry;
        place_bytes / WINDOW_SHARE / 8
    }

    /// Whether the slab can be in a pool of this geometry.
    #[must_use]
    pub fn is_valid(&self, geometry: &Geometry) -> bool {
        let bytes = u64::from(self.units) * geometry.unit_bytes;
        let stride = u64::from(self.stride_words);
        self.units > 0
            && u64::from(self.first) + u64::from(self.units) <= geometry.units()
            && self.place_bytes > 0
            && self.place_bytes <= bytes
            && stride >= RECORD_WORDS
            && stride <= Self::stride_words_max(geometry, self.place_bytes)
    }

    /// How many places it has.
    #[must_use]
    pub fn places(&self, geometry: &Geometry) -> u64 {
        u64::from(self.units) * geometry.unit_bytes / self.place_bytes
    }

    /// Byte offset in the pool of its place `index`.
    #[must_use]
    pub fn place(&self, geometry: &Geometry, index: u64) -> u64 {
        u64::from(self.first) * geometry.unit_bytes + index * self.place_bytes
    }

    /// First word of the record of the place at byte `offset`, if a place of this slab starts
    /// there.
    #[must_use]
    pub fn record(&self, geometry: &Geometry, offset: u64) -> Option<u64> {
        let start = u64::from(self.first) * geometry.unit_bytes;
        let within = offset.checked_sub(start)?;
        let index = within / self.place_bytes;
        let end = u64::from(self.units) * geometry.unit_bytes;
        if index * self.place_bytes != within || within + self.place_bytes > end {
            return None;
        }
        let window = geometry.records() + u64::from(self.first) * geometry.window_words();
        Some(window + index * u64::from(self.stride_words))
    }

    /// The words of the windows of its units.
    #[must_use]
    pub fn windows(&self, geometry: &Geometry) -> std::ops::Range<u64> {
        let words = geometry.window_words();
        let start = geometry.records() + u64::from(self.first) * words;
        start..start + u64::from(self.units) * words
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Records of one slab never overlap and stay inside its windows, whatever the stride.
        #[test]
        fn records_stay_in_their_windows(
            unit_shift in 12u32..24, units in 1u32..64, first in 0u32..64,
            class in 1u64..4096, stride in 0u64..5000,
        ) {
            let geometry = Geometry { capacity_bytes: 128 << unit_shift, unit_bytes: 1 << unit_shift };
            prop_assert!(geometry.is_valid());
            let place_bytes = class * 256;
            let slab = Slab { first, units, place_bytes, stride_words: stride as u32 };
            prop_assume!(slab.is_valid(&geometry));
            let windows = slab.windows(&geometry);
            prop_assert!(windows.end * 8 <= geometry.file_bytes());
            for index in [0, slab.places(&geometry) / 2, slab.places(&geometry) - 1] {
                let place = slab.place(&geometry, index);
                let record = slab.record(&geometry, place).expect("a place starts there");
                prop_assert_eq!(record, windows.start + index * stride);
                prop_assert!(record + stride <= windows.end);
                prop_assert_eq!(slab.record(&geometry, place + 1), None);
            }
            prop_assert_eq!(slab.record(&geometry, slab.place(&geometry, slab.places(&geometry))), None);
        }
    }
}
