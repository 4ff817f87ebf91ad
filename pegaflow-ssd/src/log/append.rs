// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! New records into the open segment, many with one header.

use std::collections::VecDeque;

use super::{Batch, Effect, InBatch, Log, NewRecord, State};
use crate::format::{self, HEADER_BYTES_MAX, Record, header_bytes, summary_pages};
use crate::sys::{PAGE, pages};

impl Log {
    /// Takes records from the front of `queue` into one batch. Returns how many; 0: there is no room until something was reclaimed.
    pub(crate) fn append(
        &mut self,
        now_s: u64,
        queue: &mut VecDeque<NewRecord>,
        effects: &mut Vec<Effect>,
    ) -> usize {
        // The last free segment is for what reclaim itself must write.
        let taken = match self.free.is_empty() && queue.front().is_some_and(|r| !r.put.internal()) {
            true => 0,
            false => self.append_batch(queue, effects),
        };
        if taken > 0 {
            self.vain_reclaims = 0;
        }
        self.advance(now_s, effects);
        taken
    }

    pub(super) fn append_batch(
        &mut self,
        queue: &mut VecDeque<NewRecord>,
        effects: &mut Vec<Effect>,
    ) -> usize {
        let Some(first) = queue.front() else { return 0 };
        let reserve = usize::from(!first.put.internal());
        loop {
            let Some(open) = self.open else {
                if self.free.len() <= reserve {
                    return 0;
                }
                let marked = self.has_room_for_mark(first);
                self.open_segment(marked, effects);
                continue;
            };
            let n = self.fitting(open, queue);
            if n > 0 {
                let records = queue.drain(..n).collect();
                self.write_batch(open, records, effects);
                return n;
            }
            self.close(open);
        }
    }

    fn has_room_for_mark(&self, first: &NewRecord) -> bool {
        let header = header_bytes(1, first.meta.len()) as u64;
        let all_pages = (header + pages(first.bytes.into())) / PAGE as u64;
        1 + all_pages + u64::from(summary_pages(1)) <= u64::from(self.geometry.pages())
    }

    // A segment begins with a mark, a header of no records: it is written long before the first block is, and so are its blocks' answers not
    // held up by the first of them.
    fn open_segment(&mut self, marked: bool, effects: &mut Vec<Effect>) {
        let Some(segment) = self.free.pop_front() else {
            return;
        };
        let generation = self.sequence;
        self.sequence += 1;
        let s = self.segment(segment);
        debug_assert_eq!(s.state, State::Free);
        (s.state, s.generation) = (State::Open, generation);
        self.open = Some(segment);
        if marked {
            self.write_batch(segment, Vec::new(), effects);
        }
    }

    /// No more records for this segment; it is sealed when its batches are over.
    pub(super) fn close(&mut self, segment: u32) {
        if self.open == Some(segment) {
            self.open = None;
            self.segment(segment).state = State::Closing;
            self.settle(segment);
        }
    }

    /// Closes the open segment, if it holds anything, so that opening the store anew needs only its summary.
    pub(crate) fn close_open(&mut self, now_s: u64, effects: &mut Vec<Effect>) {
        if let Some(open) = self
            .open
            .filter(|s| self.segments[*s as usize].used_pages > 0)
        {
            self.close(open);
        }
        self.advance(now_s, effects);
    }

    // How many records from the front of the queue go with the next header.
    fn fitting(&self, segment: u32, queue: &VecDeque<NewRecord>) -> usize {
        let s = &self.segments[segment as usize];
        let (mut meta, mut body, mut n) = (0usize, 0u64, 0usize);
        for r in queue {
            let (next_meta, next_body) = (meta + r.meta.len(), body + pages(r.bytes.into()));
            let header = header_bytes(n + 1, next_meta);
            let all_pages = (header as u64 + next_body) / PAGE as u64;
            let total =
                u64::from(s.used_pages) + all_pages + u64::from(summary_pages(s.records + n + 1));
            let fits = header <= HEADER_BYTES_MAX
                && s.records + n < self.index.records_max()
                && total <= u64::from(self.geometry.pages())
                && (n == 0 || next_body <= self.settings.batch_bytes_max);
            if !fits {
                break;
            }
            (meta, body, n) = (next_meta, next_body, n + 1);
        }
        n
    }

    fn write_batch(&mut self, segment: u32, records: Vec<NewRecord>, effects: &mut Vec<Effect>) {
        let (io, sequence) = (self.io(), self.sequence);
        self.sequence += records.len() as u64;
        let meta: usize = records.iter().map(|r| r.meta.len()).sum();
        let first_page = self.segments[segment as usize].used_pages;
        let mut page = first_page + (header_bytes(records.len(), meta) / PAGE) as u32;
        let (mut headers, mut metas) = (Vec::new(), Vec::new());
        let (mut parts, mut waiting) = (Vec::new(), Vec::new());
        for (i, r) in records.into_iter().enumerate() {
            let record = Record {
                key: r.key,
                checksum: r.checksum,
                sequence: sequence + i as u64,
                page,
                bytes: r.bytes,
                expires_s: r.expires_s,
                header_page: first_page,
                header_index: i as u16,
                tombstone: r.kind.tombstone(),
            };
            page += (pages(r.bytes.into()) / PAGE as u64) as u32;
            self.pending.entry(r.key).or_default().count += 1;
            headers.push(record.clone());
            metas.push(r.meta);
            parts.push((r.put, r.bytes));
            waiting.push(InBatch {
                put: r.put,
                kind: r.kind,
                record,
                failed: None,
            });
        }
        let batch = format::Batch {
            generation: self.segments[segment as usize].generation,
            sequence,
            page: first_page,
            pages: page - first_page,
            records: headers,
            metas,
        };
        let header = batch.encode(self.geometry.place(segment));
        let at = self.geometry.at(segment, first_page);
        let count = waiting.len();
        let s = self.segment(segment);
        s.used_pages = page;
        s.records += count;
        s.batches.push_back(Batch {
            io,
            records: waiting,
            written: false,
            flushed: false,
        });
        self.batches.insert(io, segment);
        self.stats.device_bytes += u64::from(page - first_page) * PAGE as u64;
        effects.push(Effect::WriteBatch {
            io,
            at,
            header,
            parts,
        });
    }
}
