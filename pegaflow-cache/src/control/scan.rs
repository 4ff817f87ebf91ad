// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Finding the blocks of an earlier run of the server, with several threads.
//!
//! Reads records only. The pool's data is not touched: its pages may not even be in memory.

use super::geometry::{Geometry, Slab};
use super::record::{Record, State, writers};
use super::tables::slabs;
use super::words::Words;

/// What an earlier run left at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundRecord {
    /// Byte offset of the place in the pool.
    pub offset: u64,
    /// Word of the record in the control file.
    pub at: u64,
    /// The record.
    pub record: Record,
    /// Whether the block is complete; if not, who was writing.
    pub sealed: bool,
    /// Bits of the session table: who was writing.
    pub writers: u64,
}

/// What an earlier run left in one pool.
#[derive(Debug, Default)]
pub struct Scan {
    /// Its slabs.
    pub slabs: Vec<Slab>,
    /// Its records that are not empty, slab by slab.
    pub records: Vec<FoundRecord>,
}

/// Reads all slabs and records with up to `threads` threads.
pub fn scan<W: Words + Sync + ?Sized>(file: &W, geometry: &Geometry, threads: usize) -> Scan {
    let slabs = slabs(file, geometry);
    let each = slabs.len().div_ceil(threads.max(1)).max(1);
    let records = std::thread::scope(|scope| {
        let parts: Vec<_> = slabs
            .chunks(each)
            .map(|part| scope.spawn(move || scan_slabs(file, geometry, part)))
            .collect();
        parts
            .into_iter()
            .flat_map(|part| part.join().expect("scanning does not panic"))
            .collect()
    });
    Scan { slabs, records }
}

fn scan_slabs<W: Words + ?Sized>(
    file: &W,
    geometry: &Geometry,
    slabs: &[Slab],
) -> Vec<FoundRecord> {
    let mut found = vec![];
    for slab in slabs {
        for index in 0..slab.places(geometry) {
            let offset = slab.place(geometry, index);
            let Some(at) = slab.record(geometry, offset) else {
                continue;
            };
            if file.load(at) == 0 {
                continue;
            }
            let (state, record) = Record::read(file, at);
            if state != State::Empty {
                found.push(FoundRecord {
                    offset,
                    at,
                    record,
                    sealed: state == State::Sealed,
                    writers: writers(file, at),
                });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::tables::write_slab;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicU64;

    const GEOMETRY: Geometry = Geometry {
        capacity_bytes: 16 << 12,
        unit_bytes: 4096,
    };

    proptest! {
        /// Whatever stands in the windows of real slabs, what is found lies at their places.
        #[test]
        fn any_words_scan_without_panic(
            words in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 0..200),
            units in 1u32..8, class in 1u64..16, threads in 0usize..4,
        ) {
            let file: Vec<AtomicU64> =
                (0..GEOMETRY.file_bytes() / 8).map(|_| AtomicU64::new(0)).collect();
            let slab = Slab { first: 3, units, place_bytes: class * 256, stride_words: 8 };
            write_slab(&file, &GEOMETRY, &slab);
            let windows = slab.windows(&GEOMETRY);
            let len = (windows.end - windows.start) as usize;
            for (at, word) in words {
                // Often a state, seldom anything else.
                let word = if word % 3 == 0 { word } else { word & !0xffff | 0x57 };
                file.store(windows.start + at.index(len) as u64, word);
            }
            let found = scan(&file, &GEOMETRY, threads);
            prop_assert_eq!(&found.slabs, &[slab]);
            for record in &found.records {
                prop_assert_eq!(slab.record(&GEOMETRY, record.offset), Some(record.at));
            }
        }
    }
}
