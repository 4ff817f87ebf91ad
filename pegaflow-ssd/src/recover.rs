// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! From what is on the device to a log. Pure: asks for bytes through a closure, decides, and hands a [`Log`] over.
//!
//! A sealed segment is known by its summary. A segment without one was open when the store ended. If there is a header at its
//! beginning, it is read whole, and a block counts only if its bytes match its checksum. Of several records of a key the highest sequence counts.

use std::collections::HashMap;

use crate::format::{
    Batch, Place, Record, Seal, Trailer, checksum, decode_void, peek_generation, summary_pages,
};
use crate::key::Key;
use crate::log::{Geometry, Log, LogSettings};
use crate::reclaim::ReclaimPolicy;
use crate::sys::PAGE;

/// Segments looked at together.
const CHUNK: u32 = 512;
/// Sequences go on from the highest seen plus a random gap below this: a batch that was under way when the store ended, and was not seen
/// because one before it is missing, cannot be taken for a part of what is written next.
pub(crate) const SEQUENCE_GAP_MAX: u64 = 1 << 40;

/// A wish for bytes: offset on the device and length. Answered in order; nothing where the device failed.
pub(crate) type ReadMany<'a> = dyn FnMut(&[(u64, usize)]) -> Vec<Option<Vec<u8>>> + 'a;

/// What opening a store found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Blocks found.
    pub blocks: u64,
    /// Segments known by their summary.
    pub sealed_segments: u32,
    /// Segments read whole, because they were open or their summary was damaged.
    pub scanned_segments: u32,
    /// Blocks in those whose bytes did not match: written in part when the store ended, or damaged since.
    pub torn_blocks: u64,
    /// Segments that could not be read.
    pub unreadable_segments: u32,
    /// Segments that are gone because the device is smaller than when the store was made.
    pub missing_segments: u32,
    /// Segments that are new because the device is larger.
    pub added_segments: u32,
}

/// One segment's content.
#[derive(Debug, Default)]
pub(crate) struct FoundSegment {
    pub(crate) generation: u64,
    pub(crate) used_pages: u32,
    pub(crate) sealed: bool,
    /// It could not be read: it must be left alone.
    pub(crate) bad: bool,
    /// Nothing in it counts, but it must be made void once more.
    pub(crate) half_void: bool,
    pub(crate) records: Vec<Record>,
}

struct Finder<'a, 'b> {
    geometry: Geometry,
    read: &'a mut ReadMany<'b>,
    report: RecoveryReport,
    /// Above every sequence seen.
    sequence: u64,
    found: Vec<Option<FoundSegment>>,
}

/// Reads what is there and makes a log of it.
pub(crate) fn recover(
    geometry: Geometry,
    settings: LogSettings,
    policy: Box<dyn ReclaimPolicy>,
    gap: u64,
    read: &mut ReadMany<'_>,
) -> (Log, RecoveryReport) {
    let found = (0..geometry.segments).map(|_| None).collect();
    let report = RecoveryReport::default();
    let mut finder = Finder {
        geometry,
        read,
        report,
        sequence: 0,
        found,
    };
    let mut from = 0;
    while from < geometry.segments {
        let to = geometry.segments.min(from + CHUNK);
        finder.look_at(from..to);
        from = to;
    }
    let Finder {
        mut report,
        sequence,
        found,
        ..
    } = finder;
    let log = Log::restore(
        geometry,
        settings,
        policy,
        sequence + 1 + gap % SEQUENCE_GAP_MAX,
        found,
    );
    report.blocks = log.stats().blocks;
    (log, report)
}

impl Finder<'_, '_> {
    fn look_at(&mut self, segments: std::ops::Range<u32>) {
        let last = self.geometry.pages() - 1;
        let wishes: Vec<_> = segments
            .clone()
            .map(|s| (self.geometry.at(s, last), PAGE))
            .collect();
        let tails = (self.read)(&wishes);
        let (mut sealed, mut open) = (Vec::new(), Vec::new());
        for (segment, tail) in segments.zip(tails) {
            let place = self.geometry.place(segment);
            let Some(tail) = tail else {
                self.unreadable(segment);
                continue;
            };
            let floor = decode_void(&tail, place).unwrap_or(0);
            self.sequence = self.sequence.max(floor);
            let trailer = Trailer::decode(&tail, place);
            // Whatever its summary is worth: who uses the segment next must be told from it.
            let after = trailer.map_or(0, |t| t.generation + 1);
            self.sequence = self.sequence.max(after);
            match trailer {
                // Half made void: to be done again before anything else is written there.
                Some(t) if t.generation < floor => {
                    let half = FoundSegment {
                        half_void: true,
                        ..FoundSegment::default()
                    };
                    self.found[segment as usize] = Some(half);
                }
                Some(t) if summary_pages(t.records as usize) <= last => {
                    sealed.push((segment, summary_pages(t.records as usize), t.generation));
                }
                _ => open.push((segment, floor)),
            }
        }
        self.read_summaries(&sealed, &mut open);
        self.read_open(&open);
    }

    // Whether something in it must not come back cannot be known, so it is left alone.
    fn unreadable(&mut self, segment: u32) {
        self.report.unreadable_segments += 1;
        self.found[segment as usize] = Some(FoundSegment {
            bad: true,
            ..FoundSegment::default()
        });
    }

    fn read_summaries(&mut self, sealed: &[(u32, u32, u64)], open: &mut Vec<(u32, u64)>) {
        let pages = self.geometry.pages();
        let wish =
            |(s, n, _): &(u32, u32, u64)| (self.geometry.at(*s, pages - n), *n as usize * PAGE);
        let wishes: Vec<_> = sealed.iter().map(wish).collect();
        for ((segment, _, generation), bytes) in sealed.iter().zip((self.read)(&wishes)) {
            let place = self.geometry.place(*segment);
            match bytes.and_then(|b| Seal::decode(&b, place)) {
                Some(seal) if seal.records.iter().all(|r| self.inside(r)) => {
                    self.report.sealed_segments += 1;
                    self.keep(
                        *segment,
                        seal.generation,
                        seal.used_pages,
                        true,
                        seal.records,
                    );
                }
                // The summary is damaged; the headers still say it all.
                _ => open.push((*segment, *generation)),
            }
        }
    }

    fn inside(&self, r: &Record) -> bool {
        let end = u64::from(r.page) * PAGE as u64 + u64::from(r.bytes);
        end <= self.geometry.segment_bytes && r.header_page < self.geometry.pages()
    }

    fn read_open(&mut self, open: &[(u32, u64)]) {
        let wishes: Vec<_> = open
            .iter()
            .map(|(s, _)| (self.geometry.at(*s, 0), PAGE))
            .collect();
        let heads = (self.read)(&wishes);
        for ((segment, floor), head) in open.iter().zip(heads) {
            let place = self.geometry.place(*segment);
            let generation = head.and_then(|h| peek_generation(&h, place));
            if generation.is_some_and(|g| g >= *floor) {
                self.scan(*segment, *floor);
            }
        }
    }

    fn scan(&mut self, segment: u32, floor: u64) {
        const PART: usize = 8 << 20;
        let (start, all) = (
            self.geometry.at(segment, 0),
            self.geometry.segment_bytes as usize,
        );
        let wishes: Vec<_> = (0..all)
            .step_by(PART)
            .map(|at| (start + at as u64, PART.min(all - at)))
            .collect();
        let parts = (self.read)(&wishes);
        let mut bytes = Vec::with_capacity(all);
        for (part, (_, n)) in parts.into_iter().zip(&wishes) {
            // What cannot be read is as if it was never written.
            bytes.extend(part.unwrap_or_else(|| vec![0; *n]));
        }
        let scanned = scan_segment(&bytes, self.geometry.place(segment), floor);
        self.report.scanned_segments += 1;
        self.report.torn_blocks += scanned.torn;
        self.sequence = self.sequence.max(scanned.sequence);
        let (generation, used) = (scanned.generation, scanned.used_pages);
        self.keep(segment, generation, used, false, scanned.records);
    }

    fn keep(
        &mut self,
        segment: u32,
        generation: u64,
        used: u32,
        sealed: bool,
        records: Vec<Record>,
    ) {
        let newest = records.iter().map(|r| r.sequence + 1).max().unwrap_or(0);
        self.sequence = self.sequence.max(newest).max(generation + 1);
        let used_pages = used.min(self.geometry.pages());
        self.found[segment as usize] = Some(FoundSegment {
            generation,
            used_pages,
            sealed,
            records,
            ..FoundSegment::default()
        });
    }
}

/// What headers and bytes of one segment say.
#[derive(Debug, Default)]
pub(crate) struct Scanned {
    pub(crate) generation: u64,
    pub(crate) used_pages: u32,
    pub(crate) sequence: u64,
    pub(crate) records: Vec<Record>,
    pub(crate) torn: u64,
}

/// Collects the batches of the use of the segment that its first header tells of. Behind one that was not written whole, others may have
/// been: the next header is looked for page by page. What an earlier use left there is of another generation.
pub(crate) fn scan_segment(bytes: &[u8], place: Place, floor: u64) -> Scanned {
    let pages = (bytes.len() / PAGE) as u32;
    let header_at = |page: u32| {
        let batch = Batch::decode(&bytes[page as usize * PAGE..], place)?;
        (batch.page == page && batch.pages > 0 && batch.generation >= floor).then_some(batch)
    };
    let mut out = Scanned::default();
    let Some(first) = header_at(0) else {
        return out;
    };
    out.generation = first.generation;
    let mut page = out.take(first, bytes);
    while page < pages {
        let ours = |b: &Batch| b.generation == out.generation && b.sequence >= out.sequence;
        page = match header_at(page).filter(ours) {
            Some(batch) => out.take(batch, bytes),
            None => page + 1,
        };
    }
    out
}

impl Scanned {
    // Returns the page behind it.
    fn take(&mut self, batch: Batch, bytes: &[u8]) -> u32 {
        self.sequence = batch.sequence + batch.records.len() as u64;
        for record in batch.records {
            let from = record.page as usize * PAGE;
            let body = bytes.get(from..from + record.bytes as usize);
            let whole = record.tombstone || body.is_some_and(|b| checksum(b) == record.checksum);
            match whole {
                true => self.records.push(record),
                false => self.torn += 1,
            }
        }
        let end = batch.page.saturating_add(batch.pages);
        self.used_pages = end.min((bytes.len() / PAGE) as u32);
        end
    }
}

/// Which record of each key counts: none where that is a tombstone.
pub(crate) fn newest_of(found: &[Option<FoundSegment>]) -> HashMap<Key, u64> {
    let mut removed: HashMap<Key, u64> = HashMap::new();
    for r in found
        .iter()
        .flatten()
        .flat_map(|f| &f.records)
        .filter(|r| r.tombstone)
    {
        let newest = removed.entry(r.key).or_default();
        *newest = r.sequence.max(*newest);
    }
    removed
}
