// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! What transfers became: batches are acknowledged, segments sealed, flushes shared.

use super::{AfterFlush, Batch, Effect, InBatch, IoId, Log, PagesFor, PutId, RecordKind, State};
use crate::error::{Error, Result};
use crate::format::{Record, Seal, summary_pages};
use crate::index::{Entry, Ref};
use crate::sys::PAGE;

/// Bytes of full segments whose summaries may wait for company before the flush that they need.
const UNSEALED_BYTES_MAX: u64 = 256 << 20;

impl Log {
    /// A batch is over. `header`: whether its header was written; `failed`: blocks that were not.
    pub(crate) fn batch_done(
        &mut self,
        now_s: u64,
        io: IoId,
        header: Result<()>,
        failed: &[(PutId, Error)],
        effects: &mut Vec<Effect>,
    ) {
        let Some(segment) = self.batches.remove(&io) else {
            return;
        };
        let flushed = self.settings.flushed;
        let s = &mut self.segments[segment as usize];
        if let Some(batch) = s.batches.iter_mut().find(|b| b.io == io) {
            batch.written = true;
            for r in &mut batch.records {
                r.failed = failed
                    .iter()
                    .find(|(put, _)| *put == r.put)
                    .map(|(_, e)| e.clone());
                // Without its header a record has no metadata, and a tombstone is nothing else.
                if let Err(e) = &header {
                    r.failed = Some(e.clone());
                }
            }
        }
        if header.is_err() && s.led_by(io) {
            s.broken = true;
            self.close(segment);
        } else if flushed {
            self.flush_wanted.push(AfterFlush::Batch { segment, io });
        }
        self.settle_into(segment, effects);
        self.advance(now_s, effects);
    }

    /// Pages of the log's own are written, or not.
    pub(crate) fn pages_done(
        &mut self,
        now_s: u64,
        io: IoId,
        result: Result<()>,
        effects: &mut Vec<Effect>,
    ) {
        match (self.pages.remove(&io), result) {
            (Some(PagesFor::Seal(s)), Ok(())) if self.segments[s as usize].broken => {
                self.flush_wanted.push(AfterFlush::SealDurable(s));
            }
            // Without a summary, opening reads the whole segment; that is all.
            (Some(PagesFor::Seal(s)), result) => self.sealed(now_s, s, result, effects),
            (Some(PagesFor::Void(s)), Ok(())) => self.flush_wanted.push(AfterFlush::Free(s)),
            (Some(PagesFor::Void(s)), Err(_)) => self.give_up(s),
            (None, _) => {}
        }
        self.advance(now_s, effects);
    }

    /// A flush is over.
    pub(crate) fn flush_done(
        &mut self,
        now_s: u64,
        io: IoId,
        result: Result<()>,
        effects: &mut Vec<Effect>,
    ) {
        match self.flush_running.take() {
            Some((running, waiting)) if running == io => {
                for after in waiting {
                    self.after_flush(now_s, after, result.clone(), effects);
                }
            }
            other => self.flush_running = other,
        }
        self.advance(now_s, effects);
    }

    fn after_flush(
        &mut self,
        now_s: u64,
        after: AfterFlush,
        result: Result<()>,
        effects: &mut Vec<Effect>,
    ) {
        match after {
            AfterFlush::Batch { segment, io } => {
                let s = &mut self.segments[segment as usize];
                if let Some(batch) = s.batches.iter_mut().find(|b| b.io == io) {
                    batch.flushed = true;
                    if let Err(e) = result {
                        batch
                            .records
                            .iter_mut()
                            .for_each(|r| r.failed = Some(e.clone()));
                        if s.led_by(io) {
                            s.broken = true;
                            self.close(segment);
                        }
                    }
                }
                self.settle_into(segment, effects);
            }
            AfterFlush::WriteSeal(segment) => match result {
                Ok(()) => self.write_seal(segment, effects),
                Err(e) => self.sealed(now_s, segment, Err(e), effects),
            },
            AfterFlush::SealDurable(segment) => self.sealed(now_s, segment, result, effects),
            AfterFlush::WriteVoid(segment) => match result {
                Ok(()) => self.write_void(segment, effects),
                Err(_) => self.give_up(segment),
            },
            AfterFlush::Free(segment) => match result {
                Ok(()) => self.freed(segment),
                Err(_) => self.give_up(segment),
            },
        }
    }

    /// After every event: whatever can go on, goes on.
    pub(super) fn advance(&mut self, now_s: u64, effects: &mut Vec<Effect>) {
        self.reclaim(now_s, effects);
        while !self.internal.is_empty() {
            let mut own = std::mem::take(&mut self.internal);
            let n = self.append_batch(&mut own, effects);
            own.append(&mut self.internal);
            self.internal = own;
            if n == 0 {
                break;
            }
        }
        if self.flush_running.is_none() && !self.flush_wanted.is_empty() && !self.flush_can_wait() {
            let io = self.io();
            self.flush_running = Some((io, std::mem::take(&mut self.flush_wanted)));
            self.stats.flushes += 1;
            effects.push(Effect::Flush { io });
        }
    }

    // Whether nobody needs the next flush soon: only summaries and marks wait for it, of few bytes of segments (which opening would read whole if the
    // store were killed now), more blocks are on their way, and either there is room or another flush comes anyway.
    fn flush_can_wait(&self) -> bool {
        let summaries = self.flush_wanted.iter().all(|after| match after {
            AfterFlush::WriteSeal(s) => !self.segments[*s as usize].broken,
            AfterFlush::Batch { segment, io } => self.segments[*segment as usize].marked_by(*io),
            _ => false,
        });
        let bytes = self.flush_wanted.len() as u64 * self.geometry.segment_bytes;
        let room = self.free.len() > self.low_water();
        let another = || self.pages.values().any(|p| matches!(p, PagesFor::Void(_)));
        summaries && bytes < UNSEALED_BYTES_MAX && !self.batches.is_empty() && (room || another())
    }

    /// Without acknowledging: a segment that takes no more and whose batches are over is sealed.
    pub(super) fn settle(&mut self, segment: u32) {
        let s = self.segment(segment);
        let over = match s.broken {
            true => s.batches.iter().all(|b| b.written),
            false => s.batches.is_empty(),
        };
        if s.state == State::Closing && over {
            s.state = State::Sealing;
            self.flush_wanted.push(AfterFlush::WriteSeal(segment));
        }
    }

    // Acknowledges what may be acknowledged: in any order, once the segment's first header leads there.
    fn settle_into(&mut self, segment: u32, effects: &mut Vec<Effect>) {
        let flushed = self.settings.flushed;
        let over = |b: &Batch| b.written && (b.flushed || !flushed);
        let s = &mut self.segments[segment as usize];
        s.led |= !s.broken && s.batches.front().is_some_and(over);
        while let Some(batch) = self.segment(segment).take_led(over) {
            self.commit(segment, batch, effects);
        }
        self.settle(segment);
    }

    fn commit(&mut self, segment: u32, batch: Batch, effects: &mut Vec<Effect>) {
        for r in batch.records {
            let (put, failed) = (r.put, r.failed.clone());
            self.commit_record(segment, r);
            let result = failed.map_or(Ok(()), Err);
            effects.push(Effect::Done { put, result });
        }
    }

    fn commit_record(&mut self, segment: u32, r: InBatch) {
        let key = r.record.key;
        let pending = self.pending.entry(key).or_default();
        pending.count -= 1;
        let newest = r.failed.is_none() && r.record.sequence > pending.done;
        if newest {
            pending.done = r.record.sequence;
        }
        if pending.count == 0 {
            self.pending.remove(&key);
        }
        self.segment(segment).sequences.push(r.record.sequence);
        let mut entry = Entry::new(&r.record);
        if r.failed.is_some() {
            entry.set_failed();
        }
        match r.kind {
            RecordKind::Tombstone | RecordKind::Bury { .. } => {
                self.stats.tombstones += 1;
                if newest {
                    self.forget(&key);
                }
                self.index.insert_dead(segment, entry);
            }
            RecordKind::Move {
                segment: from,
                index,
            } => {
                let still = self.index.get(&key)
                    == Some(Ref {
                        segment: from,
                        index,
                    });
                self.moved(newest && still, segment, entry, &r);
            }
            RecordKind::Put if newest => {
                self.stats.stored_blocks += 1;
                self.stats.stored_bytes += u64::from(r.record.bytes);
                self.found_from_now(segment, entry);
            }
            RecordKind::Put => self.outdated(segment, entry),
        }
        if r.put.internal() {
            self.internal_over(&r);
        }
    }

    // Takes a key's block out of the index; its record stays on the device as a shadow.
    pub(super) fn forget(&mut self, key: &crate::key::Key) {
        if let Some(old) = self.index.remove(key) {
            self.vain_reclaims = 0;
            self.uncount(old);
            self.shadow(*key, old.segment);
        }
    }

    pub(super) fn found_from_now(&mut self, segment: u32, mut entry: Entry) {
        let (key, bytes) = (entry.key, u64::from(entry.bytes));
        let pinned = self
            .index
            .get(&key)
            .is_some_and(|r| self.index.entry(r).pinned());
        entry.set_pinned(pinned);
        if let Some(old) = self.index.insert(segment, entry) {
            self.uncount(old);
            self.shadow(key, old.segment);
        }
        let s = self.segment(segment);
        s.live_bytes += bytes;
        s.pinned_bytes += if pinned { bytes } else { 0 };
        self.policy.found(&key, bytes);
    }

    pub(super) fn outdated(&mut self, segment: u32, entry: Entry) {
        self.shadow(entry.key, segment);
        self.index.insert_dead(segment, entry);
    }

    fn uncount(&mut self, r: Ref) {
        let entry = *self.index.entry(r);
        let s = self.segment(r.segment);
        s.live_bytes -= u64::from(entry.bytes);
        s.pinned_bytes -= if entry.pinned() {
            u64::from(entry.bytes)
        } else {
            0
        };
        self.policy.gone(&entry.key, u64::from(entry.bytes));
    }

    fn write_seal(&mut self, segment: u32, effects: &mut Vec<Effect>) {
        let s = &self.segments[segment as usize];
        let old = self.index.records(segment).iter().zip(&s.sequences);
        let old = old.filter(|(e, _)| !e.failed());
        let mut records: Vec<Record> = old.map(|(e, sequence)| e.record(*sequence)).collect();
        // Behind a header that failed: only this summary leads to them.
        let rest = s
            .batches
            .iter()
            .flat_map(|b| &b.records)
            .filter(|r| r.failed.is_none());
        records.extend(rest.map(|r| r.record.clone()));
        let page = self.geometry.pages() - summary_pages(records.len());
        let seal = Seal {
            generation: s.generation,
            used_pages: s.used_pages,
            records,
        };
        let bytes = seal.encode(self.geometry.place(segment));
        let io = self.io();
        self.pages.insert(io, PagesFor::Seal(segment));
        self.stats.device_bytes += bytes.len() as u64;
        let at = self.geometry.at(segment, page);
        debug_assert!(page >= seal.used_pages && bytes.len().is_multiple_of(PAGE));
        effects.push(Effect::WritePages {
            io,
            parts: vec![(at, bytes)],
        });
    }

    fn sealed(&mut self, now_s: u64, segment: u32, result: Result<()>, effects: &mut Vec<Effect>) {
        let batches = std::mem::take(&mut self.segment(segment).batches);
        for mut batch in batches {
            if let Err(e) = &result {
                batch
                    .records
                    .iter_mut()
                    .for_each(|r| r.failed = Some(e.clone()));
            }
            self.commit(segment, batch, effects);
        }
        self.index.shrink(segment);
        let s = self.segment(segment);
        s.sequences = Vec::new();
        (s.state, s.filled_s, s.broken) = (State::Sealed, now_s, false);
    }
}
