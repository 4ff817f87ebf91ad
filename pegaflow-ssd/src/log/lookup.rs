// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! What callers ask of a log.

use super::{Log, State};
use crate::error::Error;
use crate::format::HEADER_BYTES_MAX;
use crate::index::Ref;
use crate::key::Key;
use crate::sys::PAGE;

/// Where a block is on the device, and how to check it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) key: Key,
    pub(crate) segment: u32,
    /// Of the segment when it was looked up: if it is another after the read, the read means nothing.
    pub(crate) generation: u64,
    pub(crate) at: u64,
    pub(crate) bytes: u32,
    pub(crate) checksum: u64,
    pub(crate) expires_s: u32,
    pub(crate) header_at: u64,
    pub(crate) header_bytes: usize,
    pub(crate) header_index: u16,
}

impl Log {
    /// Where the block is, if there is one and it has not expired.
    pub(crate) fn peek(&self, key: &Key, now_s: u64) -> Option<Location> {
        let r = self.index.get(key)?;
        (!self.index.entry(r).expired(now_s)).then(|| self.location(r))
    }

    /// As [`Log::peek`], and counts it as read.
    pub(crate) fn lookup(&mut self, key: &Key, now_s: u64) -> Option<Location> {
        let found = self.peek(key, now_s)?;
        let r = self.index.get(key)?;
        self.index.entry_mut(r).set_read();
        let s = self.segment(found.segment);
        (s.reads, s.read_s) = (s.reads + 1, now_s);
        Some(found)
    }

    pub(super) fn location(&self, r: Ref) -> Location {
        let entry = self.index.entry(r);
        let header_pages = (entry.page() - entry.header_page()) as usize;
        Location {
            key: entry.key,
            segment: r.segment,
            generation: self.segments[r.segment as usize].generation,
            at: self.geometry.at(r.segment, entry.page()),
            bytes: entry.bytes,
            checksum: entry.checksum(),
            expires_s: entry.expires_s,
            header_at: self.geometry.at(r.segment, entry.header_page()),
            header_bytes: (header_pages * PAGE).min(HEADER_BYTES_MAX),
            header_index: entry.header_index(),
        }
    }

    /// Whether the segment still is what it was when the location was handed out.
    pub(crate) fn still(&self, location: &Location) -> bool {
        let s = &self.segments[location.segment as usize];
        s.generation == location.generation && s.state != State::Voiding
    }

    /// What is at this location is not what was written: from now on it is not found. Its record stays until its segment leaves.
    pub(crate) fn spoiled(&mut self, location: &Location) {
        let Some(r) = self.index.get(&location.key) else {
            return;
        };
        if self.location(r) == *location {
            self.stats.corrupt_blocks += 1;
            let bytes = u64::from(location.bytes);
            let entry = self.index.entry_mut(r);
            entry.expires_s = 1;
            if entry.pinned() {
                entry.set_pinned(false);
                self.segment(r.segment).pinned_bytes -= bytes;
            }
        }
    }

    /// Whether a record of the key is, or may be, on this device: then later ones must go here, too.
    pub(crate) fn knows(&self, key: &Key) -> bool {
        self.index.get(key).is_some()
            || self.pending.contains_key(key)
            || self.shadows.contains_key(key)
    }

    /// Keeps a block until it is unpinned, or lets it go. Returns whether it was there.
    ///
    /// # Errors
    /// `Busy` if more than `pinned_percent_max` would be pinned.
    pub(crate) fn pin(&mut self, key: &Key, pinned: bool, now_s: u64) -> Result<bool, Error> {
        let Some(r) = self.index.get(key) else {
            return Ok(false);
        };
        let entry = *self.index.entry(r);
        if entry.expired(now_s) || entry.pinned() == pinned {
            return Ok(!entry.expired(now_s));
        }
        let bytes = u64::from(entry.bytes);
        let limit = self.geometry.capacity() * u64::from(self.settings.pinned_percent_max) / 100;
        let all: u64 = self.segments.iter().map(|s| s.pinned_bytes).sum();
        if pinned && all + bytes > limit {
            let (what, setting) = ("room for pinned blocks", "pinned_percent_max");
            return Err(Error::Busy {
                what,
                setting,
                limit,
            });
        }
        self.index.entry_mut(r).set_pinned(pinned);
        let s = self.segment(r.segment);
        match pinned {
            true => s.pinned_bytes += bytes,
            false => {
                s.pinned_bytes -= bytes;
                self.vain_reclaims = 0;
            }
        }
        Ok(true)
    }

    /// Every block that is found, with its place.
    pub(crate) fn blocks(&self, now_s: u64) -> impl Iterator<Item = Location> + '_ {
        let segments = 0..self.geometry.segments;
        segments.flat_map(move |segment| {
            let list = self.index.records(segment).iter().enumerate();
            list.filter(move |(_, e)| !e.dead() && !e.expired(now_s))
                .map(move |(i, _)| {
                    self.location(Ref {
                        segment,
                        index: i as u32,
                    })
                })
        })
    }
}
