// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The log of one device: which segment takes the next blocks, what is acknowledged when, what is found, what leaves.
//!
//! Pure: blocks are numbers here, their bytes stay in the shell; time is an argument; what must be done goes out as [`Effect`]s, and what
//! became of it comes back through `*_done`. So every interleaving and every crash can be played through in a test.
//!
//! Invariants:
//! - A block is found (and acknowledged) only when its header, its bytes and the first header of its segment are written. The first says
//!   that the segment is in use; the others are found wherever they are.
//! - A segment's summary is written only when all of its batches are over and flushed.
//! - A segment is used again only when it is void on the device, and it is made void only when what must outlive it is elsewhere.
//! - `shadows` names every segment that holds an outdated record of a key; while there is one, the key's newest record (block or
//!   tombstone) is not given up without a newer one.

mod append;
mod commit;
mod lookup;
mod restore;
mod vacate;

use std::collections::{HashMap, VecDeque};

use crate::error::Error;
use crate::format::{Place, Record, SEGMENTS_AT};
use crate::index::{Index, Ref};
use crate::key::Key;
use crate::reclaim::ReclaimPolicy;
use crate::sys::PAGE;

pub(crate) use lookup::Location;

/// The shell's name for a block on its way to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PutId(pub(crate) u64);

impl PutId {
    /// The log's own records have names from here on.
    pub(crate) const INTERNAL: u64 = 1 << 63;

    /// Whether the log made it, not a caller.
    pub(crate) fn internal(self) -> bool {
        self.0 >= Self::INTERNAL
    }
}

/// The log's name for a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct IoId(pub(crate) u64);

/// What a record is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordKind {
    /// A block.
    Put,
    /// The end of a key.
    Tombstone,
    /// As a tombstone, so that nothing older comes back when this segment has left.
    Bury { segment: u32 },
    /// A block of the leaving segment, written again.
    Move { segment: u32, index: u32 },
}

impl RecordKind {
    fn tombstone(self) -> bool {
        matches!(self, Self::Tombstone | Self::Bury { .. })
    }
}

/// A record that wants into the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewRecord {
    pub(crate) put: PutId,
    pub(crate) key: Key,
    pub(crate) bytes: u32,
    pub(crate) checksum: u64,
    pub(crate) expires_s: u32,
    pub(crate) meta: Vec<u8>,
    pub(crate) kind: RecordKind,
}

/// What the shell must do next.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Effect {
    /// Write a header and the blocks behind it, each from a new page on; then call `batch_done`.
    WriteBatch {
        io: IoId,
        at: u64,
        header: Vec<u8>,
        parts: Vec<(PutId, u32)>,
    },
    /// Write these pages; then call `pages_done`.
    WritePages {
        io: IoId,
        parts: Vec<(u64, Vec<u8>)>,
    },
    /// Make what is written durable; then call `flush_done`.
    Flush { io: IoId },
    /// Read and check a block, keep its bytes under this name; then call `move_ready`.
    Move { put: PutId, from: Location },
    /// The record is found from now on, or failed. For the log's own records: drop the bytes.
    Done {
        put: PutId,
        result: Result<(), Error>,
    },
}

/// What a log is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub(crate) store: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) segments: u32,
}

impl Geometry {
    pub(crate) fn pages(&self) -> u32 {
        (self.segment_bytes / PAGE as u64) as u32
    }
    pub(crate) fn place(&self, segment: u32) -> Place {
        Place {
            store: self.store,
            segment,
        }
    }
    /// Byte offset of a page of a segment on the device.
    pub(crate) fn at(&self, segment: u32, page: u32) -> u64 {
        SEGMENTS_AT + u64::from(segment) * self.segment_bytes + u64::from(page) * PAGE as u64
    }
    /// Longest block that fits in a segment, bytes.
    pub(crate) fn block_bytes_max(&self) -> u64 {
        self.segment_bytes - 2 * PAGE as u64
    }
    pub(crate) fn capacity(&self) -> u64 {
        u64::from(self.segments) * self.segment_bytes
    }
}

/// Fewest segments a device must have: one open, one leaving, one in reserve, one full.
pub(crate) const SEGMENTS_MIN: u32 = 4;

/// What the log needs of the store's settings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogSettings {
    pub(crate) flushed: bool,
    pub(crate) batch_bytes_max: u64,
    pub(crate) second_chance_percent_max: u32,
    pub(crate) pinned_percent_max: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Open,
    /// Takes no more; its batches are on their way.
    Closing,
    /// All is written; the summary is on its way.
    Sealing,
    Sealed,
    /// Its blocks leave.
    Vacating,
    /// It is being made void.
    Voiding,
    /// The device refused to make it void. Not used until the store is opened anew.
    Bad,
}

#[derive(Debug)]
struct Segment {
    state: State,
    generation: u64,
    used_pages: u32,
    records: usize,
    live_bytes: u64,
    pinned_bytes: u64,
    filled_s: u64,
    read_s: u64,
    reads: u64,
    batches: VecDeque<Batch>,
    /// Sequences of the index's records of this segment; only until it is sealed.
    sequences: Vec<u64>,
    /// The first header is written, as durably as was asked for: who opens the store sees that there is something, and looks on.
    led: bool,
    /// The first header could not be written: what follows it is reached through the summary only.
    broken: bool,
}

impl Segment {
    fn new() -> Self {
        Self {
            state: State::Free,
            generation: 0,
            used_pages: 0,
            records: 0,
            live_bytes: 0,
            pinned_bytes: 0,
            filled_s: 0,
            read_s: 0,
            reads: 0,
            batches: VecDeque::new(),
            sequences: Vec::new(),
            led: false,
            broken: false,
        }
    }

    /// Whether this is the first batch, on its way.
    fn led_by(&self, io: IoId) -> bool {
        !self.led && self.batches.front().is_some_and(|b| b.io == io)
    }

    /// A batch that may be acknowledged.
    fn take_led(&mut self, over: impl Fn(&Batch) -> bool) -> Option<Batch> {
        let at = self.batches.iter().position(over).filter(|_| self.led)?;
        self.batches.remove(at)
    }

    /// Whether this batch is the mark of a new segment.
    fn marked_by(&self, io: IoId) -> bool {
        self.led_by(io) && self.batches[0].records.is_empty()
    }
}

#[derive(Debug)]
struct Batch {
    io: IoId,
    records: Vec<InBatch>,
    written: bool,
    flushed: bool,
}

#[derive(Debug)]
struct InBatch {
    put: PutId,
    kind: RecordKind,
    record: Record,
    failed: Option<Error>,
}

/// Writes of one key that are under way.
#[derive(Debug, Default)]
struct Pending {
    count: u32,
    /// Sequence of the newest that is done.
    done: u64,
}

/// What happens after the next flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AfterFlush {
    Batch { segment: u32, io: IoId },
    WriteSeal(u32),
    SealDurable(u32),
    WriteVoid(u32),
    Free(u32),
}

#[derive(Debug, Clone, Copy)]
enum PagesFor {
    Seal(u32),
    Void(u32),
}

#[derive(Debug)]
struct Victim {
    segment: u32,
    /// Records still to look at; true: leaves in any case.
    todo: Vec<(u32, bool)>,
    /// Keys whose end could not be written.
    unburied: Vec<Key>,
    outstanding: u32,
    kept_bytes: u64,
    wrote: bool,
    failures: u32,
}

/// Figures of one log. Counts are since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LogStats {
    pub(crate) blocks: u64,
    pub(crate) live_bytes: u64,
    pub(crate) pinned_bytes: u64,
    pub(crate) capacity_bytes: u64,
    pub(crate) free_segments: u64,
    pub(crate) full_segments: u64,
    pub(crate) bad_segments: u64,
    pub(crate) index_bytes: u64,
    pub(crate) stored_blocks: u64,
    pub(crate) stored_bytes: u64,
    pub(crate) device_bytes: u64,
    pub(crate) moved_blocks: u64,
    pub(crate) moved_bytes: u64,
    pub(crate) reclaimed_segments: u64,
    pub(crate) reclaimed_blocks: u64,
    pub(crate) reclaimed_bytes: u64,
    /// Age of the segment reclaimed last, seconds.
    pub(crate) reclaim_age_s: u64,
    pub(crate) expired_blocks: u64,
    pub(crate) corrupt_blocks: u64,
    pub(crate) tombstones: u64,
    pub(crate) flushes: u64,
}

/// The log of one device.
pub(crate) struct Log {
    geometry: Geometry,
    settings: LogSettings,
    policy: Box<dyn ReclaimPolicy>,
    index: Index,
    segments: Vec<Segment>,
    free: VecDeque<u32>,
    open: Option<u32>,
    sequence: u64,
    next_io: u64,
    next_internal: u64,
    pending: HashMap<Key, Pending>,
    shadows: HashMap<Key, Vec<u32>>,
    batches: HashMap<IoId, u32>,
    pages: HashMap<IoId, PagesFor>,
    flush_wanted: Vec<AfterFlush>,
    flush_running: Option<(IoId, Vec<AfterFlush>)>,
    /// The log's own records, ready to be written.
    internal: VecDeque<NewRecord>,
    moving: HashMap<PutId, (Key, Ref)>,
    victim: Option<Victim>,
    /// Segments reclaimed since a caller's record was taken or something was let go: many, and there is nothing to gain.
    vain_reclaims: u32,
    stats: LogStats,
}

impl Log {
    /// An empty log over void segments.
    pub(crate) fn new(
        geometry: Geometry,
        settings: LogSettings,
        policy: Box<dyn ReclaimPolicy>,
    ) -> Self {
        Self {
            index: Index::new(geometry.segments, geometry.pages()),
            segments: (0..geometry.segments).map(|_| Segment::new()).collect(),
            free: (0..geometry.segments).collect(),
            open: None,
            sequence: 1,
            next_io: 0,
            next_internal: PutId::INTERNAL,
            pending: HashMap::new(),
            shadows: HashMap::new(),
            batches: HashMap::new(),
            pages: HashMap::new(),
            flush_wanted: Vec::new(),
            flush_running: None,
            internal: VecDeque::new(),
            moving: HashMap::new(),
            victim: None,
            vain_reclaims: 0,
            stats: LogStats::default(),
            geometry,
            settings,
            policy,
        }
    }

    /// Another policy from now on. It hears of every block that is found.
    pub(crate) fn reclaim_by(&mut self, mut policy: Box<dyn ReclaimPolicy>) {
        // Expired blocks are on the device as well.
        for block in self.blocks(0) {
            policy.found(&block.key, u64::from(block.bytes));
        }
        self.policy = policy;
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Nothing is on its way to the device.
    pub(crate) fn idle(&self) -> bool {
        self.batches.is_empty()
            && self.pages.is_empty()
            && self.flush_running.is_none()
            && self.flush_wanted.is_empty()
            && self.internal.is_empty()
            && self.moving.is_empty()
    }

    pub(crate) fn stats(&self) -> LogStats {
        let count = |f: fn(&Segment) -> bool| self.segments.iter().filter(|s| f(s)).count() as u64;
        LogStats {
            blocks: self.index.len() as u64,
            live_bytes: self.segments.iter().map(|s| s.live_bytes).sum(),
            pinned_bytes: self.segments.iter().map(|s| s.pinned_bytes).sum(),
            capacity_bytes: self.geometry.capacity(),
            free_segments: self.free.len() as u64,
            full_segments: count(|s| s.state == State::Sealed),
            bad_segments: count(|s| s.state == State::Bad),
            index_bytes: self.index.memory_bytes() as u64,
            ..self.stats
        }
    }

    /// Nothing more can be taken until something is unpinned or removed.
    pub(crate) fn full(&self) -> bool {
        self.vain_reclaims >= self.vain_reclaims_max() && self.victim.is_none()
    }

    fn vain_reclaims_max(&self) -> u32 {
        2 * self.geometry.segments
    }

    fn io(&mut self) -> IoId {
        self.next_io += 1;
        IoId(self.next_io)
    }

    fn segment(&mut self, segment: u32) -> &mut Segment {
        &mut self.segments[segment as usize]
    }

    fn shadow(&mut self, key: Key, segment: u32) {
        let list = self.shadows.entry(key).or_default();
        if !list.contains(&segment) {
            list.push(segment);
        }
    }
}

#[cfg(test)]
mod tests;
