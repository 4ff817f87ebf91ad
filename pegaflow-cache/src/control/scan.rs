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
