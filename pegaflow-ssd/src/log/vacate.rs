// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A segment leaves: its blocks are dropped or written again, then it is made void, then it is free.

use super::{
    AfterFlush, Effect, InBatch, Log, NewRecord, PagesFor, PutId, RecordKind, State, Victim,
};
use crate::error::Error;
use crate::format::void_page;
use crate::index::{Entry, Ref};
use crate::key::Key;
use crate::reclaim::{BlockView, SegmentView};

/// Failed records of one leaving segment after which it is left as it is.
const FAILURES_MAX: u32 = 8;

impl Log {
    // Begins or goes on with making room.
    pub(super) fn reclaim(&mut self, now_s: u64, effects: &mut Vec<Effect>) {
        let short = self.free.len() < self.low_water();
        if self.victim.is_none() && short && self.vain_reclaims < self.vain_reclaims_max() {
            self.victim = self.pick(now_s);
        }
        let Some(victim) = &mut self.victim else {
            return;
        };
        let segment = victim.segment;
        if self.segments[segment as usize].state != State::Vacating {
            return;
        }
        for (index, must_leave) in std::mem::take(&mut victim.todo) {
            self.vacate(now_s, Ref { segment, index }, must_leave, effects);
        }
        self.bury_again(segment);
        let Some(victim) = &self.victim else { return };
        if victim.failures > FAILURES_MAX {
            return self.give_up(segment);
        }
        if victim.todo.is_empty() && victim.unburied.is_empty() && victim.outstanding == 0 {
            let wrote = victim.wrote;
            self.segment(segment).state = State::Voiding;
            match wrote {
                // What it leaves behind elsewhere must be durable before it is void.
                true => self.flush_wanted.push(AfterFlush::WriteVoid(segment)),
                false => self.write_void(segment, effects),
            }
        }
    }

    pub(super) fn low_water(&self) -> usize {
        (self.segments.len() / 16).clamp(2, 4)
    }

    // A kill can leave the reserve in use: opened anew, there is nowhere to write to until a segment has left.
    fn can_write(&self) -> bool {
        self.open.is_some() || !self.free.is_empty()
    }

    fn pick(&mut self, now_s: u64) -> Option<Victim> {
        let bytes = self.geometry.segment_bytes;
        let full: Vec<SegmentView> = self
            .segments
            .iter()
            .enumerate()
            // A segment of pinned blocks gives no room.
            .filter(|(_, s)| s.state == State::Sealed && s.pinned_bytes * 4 <= bytes * 3)
            .map(|(i, s)| SegmentView {
                segment: i as u32,
                generation: s.generation,
                bytes,
                live_bytes: s.live_bytes,
                filled_s: s.filled_s,
                read_s: s.read_s,
                reads: s.reads,
            })
            .collect();
        if full.is_empty() {
            return None;
        }
        let empty = full.iter().find(|s| s.live_bytes == 0);
        let oldest = full.iter().min_by_key(|s| s.generation);
        let chosen = match (empty, oldest) {
            // With nowhere to write to, one of which nothing must outlive it: every other record of its keys is newer.
            (_, Some(oldest)) if !self.can_write() => *oldest,
            (Some(empty), _) => *empty,
            (None, _) => full[self.policy.victim(&full, now_s).min(full.len() - 1)],
        };
        let records = self.index.records(chosen.segment).len() as u32;
        self.segment(chosen.segment).state = State::Vacating;
        self.vain_reclaims += 1;
        self.stats.reclaimed_segments += 1;
        self.stats.reclaim_age_s = now_s.saturating_sub(chosen.filled_s);
        Some(Victim {
            segment: chosen.segment,
            todo: (0..records).map(|i| (i, false)).collect(),
            unburied: Vec::new(),
            outstanding: 0,
            kept_bytes: 0,
            wrote: false,
            failures: 0,
        })
    }

    fn vacate(&mut self, now_s: u64, r: Ref, must_leave: bool, effects: &mut Vec<Effect>) {
        let entry = *self.index.entry(r);
        if entry.dead() && !entry.tombstone() {
            return;
        }
        if self.pending.contains_key(&entry.key) {
            // What becomes of the key is open; look again when it is known.
            return self.look_again(r, must_leave);
        }
        if entry.tombstone() {
            if self.index.get(&entry.key).is_none() {
                self.bury(entry.key, r.segment);
            }
            return;
        }
        if !must_leave && self.keeps(now_s, &entry) {
            return self.move_out(r, &entry, effects);
        }
        self.count_leaving(now_s, &entry);
        self.forget(&entry.key);
        self.bury(entry.key, r.segment);
    }

    fn look_again(&mut self, r: Ref, must_leave: bool) {
        if let Some(victim) = &mut self.victim {
            victim.todo.push((r.index, must_leave));
        }
    }

    fn count_leaving(&mut self, now_s: u64, entry: &Entry) {
        if entry.expired(now_s) {
            self.stats.expired_blocks += 1;
        } else {
            self.stats.reclaimed_blocks += 1;
            self.stats.reclaimed_bytes += u64::from(entry.bytes);
        }
    }

    fn keeps(&mut self, now_s: u64, entry: &Entry) -> bool {
        if entry.pinned() {
            return true;
        }
        if !self.can_write() {
            return false;
        }
        let limit =
            self.geometry.segment_bytes * u64::from(self.settings.second_chance_percent_max) / 100;
        let kept = self.victim.as_ref().map_or(0, |v| v.kept_bytes);
        let view = BlockView {
            key: entry.key,
            bytes: entry.bytes,
            was_read: entry.was_read(),
        };
        !entry.expired(now_s) && kept + u64::from(entry.bytes) <= limit && self.policy.keep(&view)
    }

    fn move_out(&mut self, r: Ref, entry: &Entry, effects: &mut Vec<Effect>) {
        let put = self.internal_id();
        if let Some(victim) = &mut self.victim {
            victim.outstanding += 1;
            victim.kept_bytes += u64::from(entry.bytes);
        }
        self.moving.insert(put, (entry.key, r));
        let from = self.location(r);
        effects.push(Effect::Move { put, from });
    }

    fn internal_id(&mut self) -> PutId {
        self.next_internal += 1;
        PutId(self.next_internal)
    }

    // If an older record of the key is on the device elsewhere, it must not come back when `leaving` is gone.
    fn bury(&mut self, key: Key, leaving: u32) {
        let older = self
            .shadows
            .get(&key)
            .is_some_and(|s| s.iter().any(|s| *s != leaving));
        if !older {
            return;
        }
        if let Some(victim) = &mut self.victim {
            victim.outstanding += 1;
        }
        let put = self.internal_id();
        self.internal.push_back(NewRecord {
            put,
            key,
            bytes: 0,
            checksum: 0,
            expires_s: 0,
            meta: Vec::new(),
            kind: RecordKind::Bury { segment: leaving },
        });
        // Others may write the key before this reaches the log: it must come first.
        self.pending.entry(key).or_default();
    }

    /// A block that should be written again was read: its metadata, or why not. The shell keeps the bytes under `put`.
    pub(crate) fn move_ready(
        &mut self,
        now_s: u64,
        put: PutId,
        result: Result<Vec<u8>, Error>,
        effects: &mut Vec<Effect>,
    ) {
        if let Some((key, r)) = self.moving.remove(&put) {
            let current = self.index.get(&key) == Some(r);
            let busy = self.pending.contains_key(&key);
            match result {
                Ok(meta) if current && !busy => self.write_again(put, r, meta),
                result => {
                    if let Some(victim) = self.victim.as_mut().filter(|v| v.segment == r.segment) {
                        victim.outstanding -= 1;
                        victim.todo.push((r.index, result.is_err()));
                    }
                    effects.push(Effect::Done {
                        put,
                        result: Err(Error::Cancelled),
                    });
                }
            }
        }
        self.advance(now_s, effects);
    }

    fn write_again(&mut self, put: PutId, r: Ref, meta: Vec<u8>) {
        let entry = *self.index.entry(r);
        self.internal.push_back(NewRecord {
            put,
            key: entry.key,
            bytes: entry.bytes,
            checksum: entry.checksum(),
            expires_s: entry.expires_s,
            meta,
            kind: RecordKind::Move {
                segment: r.segment,
                index: r.index,
            },
        });
    }

    // A block was written again, or failed to be, or was replaced meanwhile.
    pub(super) fn moved(&mut self, current: bool, segment: u32, entry: Entry, r: &InBatch) {
        if current {
            self.stats.moved_blocks += 1;
            self.stats.moved_bytes += u64::from(r.record.bytes);
            self.found_from_now(segment, entry);
        } else {
            self.outdated(segment, entry);
        }
    }

    // One of the log's own records is over.
    pub(super) fn internal_over(&mut self, r: &InBatch) {
        let leaving = match r.kind {
            RecordKind::Move { segment, .. } | RecordKind::Bury { segment } => segment,
            _ => return,
        };
        let Some(victim) = self.victim.as_mut().filter(|v| v.segment == leaving) else {
            return;
        };
        victim.outstanding -= 1;
        victim.wrote = true;
        if r.failed.is_none() {
            return;
        }
        victim.failures += 1;
        match r.kind {
            RecordKind::Move { index, .. } => victim.todo.push((index, true)),
            _ => victim.unburied.push(r.record.key),
        }
    }

    // A block that was stored since must not be taken along, so what is under way is waited for.
    fn bury_again(&mut self, leaving: u32) {
        let Some(victim) = &mut self.victim else {
            return;
        };
        let pending = |key: &Key| self.pending.contains_key(key);
        let (wait, known): (Vec<_>, Vec<_>) = victim.unburied.drain(..).partition(pending);
        victim.unburied = wait;
        for key in known {
            if self.index.get(&key).is_none() {
                self.bury(key, leaving);
            }
        }
    }

    pub(super) fn write_void(&mut self, segment: u32, effects: &mut Vec<Effect>) {
        let page = void_page(self.geometry.place(segment), self.sequence);
        let parts = vec![(self.geometry.at(segment, self.geometry.pages() - 1), page)];
        let io = self.io();
        self.pages.insert(io, PagesFor::Void(segment));
        self.stats.device_bytes += crate::sys::PAGE as u64;
        effects.push(Effect::WritePages { io, parts });
    }

    pub(super) fn freed(&mut self, segment: u32) {
        for entry in self.index.clear(segment) {
            if let Some(list) = self.shadows.get_mut(&entry.key) {
                list.retain(|s| *s != segment);
                if list.is_empty() {
                    self.shadows.remove(&entry.key);
                }
            }
        }
        *self.segment(segment) = super::Segment::new();
        self.free.push_back(segment);
        self.no_victim(segment);
    }

    // The device will not make it void: what is dead in it stays a shadow, and nobody uses it.
    pub(super) fn give_up(&mut self, segment: u32) {
        self.segment(segment).state = State::Bad;
        self.no_victim(segment);
    }

    fn no_victim(&mut self, segment: u32) {
        if self.victim.as_ref().is_some_and(|v| v.segment == segment) {
            self.victim = None;
        }
    }
}
