// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A log from what was found on the device.

use std::collections::VecDeque;

use super::{Effect, Geometry, Log, LogSettings, State};
use crate::index::Entry;
use crate::reclaim::ReclaimPolicy;
use crate::recover::{FoundSegment, newest_of};

impl Log {
    /// A log over these segments, in their order; nothing: the segment is void.
    pub(crate) fn restore(
        geometry: Geometry,
        settings: LogSettings,
        policy: Box<dyn ReclaimPolicy>,
        sequence: u64,
        found: Vec<Option<FoundSegment>>,
    ) -> Self {
        let mut log = Self::new(geometry, settings, policy);
        log.sequence = sequence.max(1);
        log.free = VecDeque::new();
        let removed = newest_of(&found);
        let records = |f: &FoundSegment| f.records.len();
        log.index.reserve(found.iter().flatten().map(records).sum());
        let mut sequences: Vec<Vec<u64>> = vec![Vec::new(); found.len()];
        for (i, found) in found.into_iter().enumerate() {
            let segment = i as u32;
            let Some(found) = found else {
                log.free.push_back(segment);
                continue;
            };
            log.index.reserve_records(segment, found.records.len());
            sequences[i].reserve_exact(found.records.len());
            for record in &found.records {
                sequences[i].push(record.sequence);
                let gone = removed
                    .get(&record.key)
                    .is_some_and(|s| *s > record.sequence);
                let entry = Entry::new(record);
                let newer = log.index.get(&record.key).is_some_and(|r| {
                    sequences[r.segment as usize][r.index as usize] > record.sequence
                });
                if record.tombstone {
                    log.index.insert_dead(segment, entry);
                } else if gone || newer {
                    log.outdated(segment, entry);
                } else {
                    log.found_from_now(segment, entry);
                }
            }
            log.index.shrink(segment);
            let s = log.segment(segment);
            s.generation = found.generation;
            s.used_pages = found.used_pages;
            s.records = found.records.len();
            s.state = match &found {
                f if f.bad => State::Bad,
                f if f.half_void => State::Voiding,
                f if f.sealed => State::Sealed,
                _ => State::Closing,
            };
            if s.state == State::Closing {
                s.sequences = std::mem::take(&mut sequences[i]);
                // Still needed to compare with what later segments hold.
                sequences[i] = s.sequences.clone();
            }
        }
        log.stats = super::LogStats::default();
        log
    }

    /// Seals what was open when the store ended. To be called once, after restoring.
    pub(crate) fn start(&mut self, now_s: u64, effects: &mut Vec<Effect>) {
        for segment in 0..self.geometry.segments {
            let s = self.segment(segment);
            if s.state == State::Sealed {
                s.filled_s = now_s;
            }
            if s.state == State::Voiding {
                self.write_void(segment, effects);
            }
            self.settle(segment);
        }
        self.advance(now_s, effects);
    }
}
