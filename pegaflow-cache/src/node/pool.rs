// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! One pool of a running node: its data, and its control file as the core's actions change it.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

use pegaflow_mem::SharedMemory;
use rustix::fs::{FallocateFlags, fallocate};

use super::files::Files;
use crate::control::geometry::{Geometry, Slab};
use crate::control::record::{self, Record, State, record_words};
use crate::control::tables;
use crate::control::words::Words;

/// Records come in steps of this many words, so that namespaces with a few more checksums than
/// others share slabs with them.
const STRIDE_STEP: u64 = 8;

/// One pool.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) data: Arc<SharedMemory>,
    pub(super) control: Arc<SharedMemory>,
    pub(super) geometry: Geometry,
    pub(super) uuid: [u8; 16],
    /// Words of a record, by size of place: what the namespaces known by now need.
    strides: HashMap<u64, u64>,
    /// The slab used last. Nobody else writes to the slab table, so it stays true until this does.
    last: Cell<Option<Slab>>,
}

impl Pool {
    pub(super) fn new(files: &Files) -> Self {
        Self {
            data: files.data.clone(),
            control: files.control.clone(),
            geometry: files.superblock.geometry,
            uuid: files.superblock.uuid,
            strides: HashMap::new(),
            last: Cell::new(None),
        }
    }

    /// Whether records of this many checksums fit beside places of this size; if so, slabs of such
    /// places have room for them from now on.
    pub(super) fn expect_records(&mut self, place_bytes: u64, checksums: u32) -> bool {
        let max = Slab::stride_words_max(&self.geometry, place_bytes);
        let words = record_words(checksums);
        if words > max {
            return false;
        }
        let stride = words.next_multiple_of(STRIDE_STEP).min(max);
        let known = self.strides.entry(place_bytes).or_insert(stride);
        *known = stride.max(*known);
        true
    }

    pub(super) fn assign_slab(&mut self, first: u32, units: u32, place_bytes: u64) {
        let stride = self.strides.get(&place_bytes).copied();
        let stride = stride.unwrap_or(record_words(0));
        let slab = Slab {
            first,
            units,
            place_bytes,
            stride_words: u32::try_from(stride).expect("a record is short"),
        };
        debug_assert!(slab.is_valid(&self.geometry), "{slab:?}");
        self.last.set(None);
        self.clear_windows(&slab);
        tables::write_slab(&*self.control, &self.geometry, &slab);
    }

    pub(super) fn release_slab(&self, first: u32) {
        self.last.set(None);
        tables::erase_slab(&*self.control, &self.geometry, first);
    }

    /// Old checksums must not look like new records: gives the windows' memory back, which zeroes
    /// them.
    fn clear_windows(&self, slab: &Slab) {
        let windows = slab.windows(&self.geometry);
        let (start, bytes) = (windows.start * 8, (windows.end - windows.start) * 8);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if fallocate(self.control.fd(), flags, start, bytes).is_err() {
            let cleared = self.control.fill(start, bytes, 0);
            debug_assert!(cleared.is_ok(), "windows lie inside the file");
        }
    }

    fn at(&self, offset: u64) -> Option<(Slab, u64)> {
        if let Some(slab) = self.last.get()
            && let Some(at) = slab.record(&self.geometry, offset)
        {
            return Some((slab, at));
        }
        let slab = tables::slab_at(&*self.control, &self.geometry, offset)?;
        self.last.set(Some(slab));
        let at = slab.record(&self.geometry, offset)?;
        Some((slab, at))
    }

    /// Word of the record of the place at byte `offset`.
    pub(super) fn record_at(&self, offset: u64) -> Option<u64> {
        self.at(offset).map(|(_, at)| at)
    }

    /// The record's word, in a slab with room for its checksums.
    pub(super) fn roomy_record_at(&self, offset: u64, checksums: u16) -> Option<u64> {
        let (slab, at) = self.at(offset)?;
        if record_words(checksums.into()) <= slab.stride_words.into() {
            return Some(at);
        }
        self.widen(&slab);
        self.record_at(offset)
    }

    /// Gives the records of a slab more room each. Seldom: only when namespaces of unlike numbers of
    /// checksums share a size of place. Killed half-way, the slab's blocks are lost, nothing else;
    /// clients that verify meanwhile see no record, hence a miss.
    fn widen(&self, slab: &Slab) {
        let stride = self.strides.get(&slab.place_bytes).copied();
        let Some(stride) = stride.and_then(|stride| u32::try_from(stride).ok()) else {
            return;
        };
        let file = &*self.control;
        let mut kept = vec![];
        for index in 0..slab.places(&self.geometry) {
            let offset = slab.place(&self.geometry, index);
            let Some(at) = slab.record(&self.geometry, offset) else {
                continue;
            };
            if file.load(at) != 0 {
                let mut words = vec![0; slab.stride_words as usize];
                file.load_all(at, &mut words);
                kept.push((offset, words));
            }
        }
        let wide = Slab {
            stride_words: stride,
            ..*slab
        };
        self.last.set(None);
        tables::erase_slab(file, &self.geometry, slab.first);
        self.clear_windows(slab);
        for (offset, words) in kept {
            if let Some(at) = wide.record(&self.geometry, offset) {
                file.store_all(at + 1, &words[1..]);
                file.store(at, words[0]);
            }
        }
        tables::write_slab(file, &self.geometry, &wide);
        tracing::debug!(slab = slab.first, stride, "records of a slab got more room");
    }

    /// Writes the record of a copied block, if that of its source is still this use of the place.
    pub(super) fn copy_record(
        &self,
        from: u64,
        to: &Pool,
        to_offset: u64,
        generation: u32,
    ) -> bool {
        let Some(from) = self.record_at(from) else {
            return false;
        };
        let (state, record) = Record::read(&*self.control, from);
        if state != State::Sealed || record.generation != generation {
            return false;
        }
        let Some(at) = to.roomy_record_at(to_offset, record.checksums) else {
            return false;
        };
        let mut checksums = vec![0; usize::from(record.checksums)];
        self.control.load_all(
            from + crate::control::geometry::RECORD_WORDS,
            &mut checksums,
        );
        record.begin(&*to.control, at, 0);
        record::put_checksums(&*to.control, at, 0, &checksums);
        record::seal(&*to.control, at);
        true
    }
}
