// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What happened so far, by tenant: plain numbers that only grow, for the shell to export.

/// Events of one tenant since the node started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Lookups answered.
    pub lookups: u64,
    /// Keys asked for in lookups.
    pub lookup_keys: u64,
    /// Keys found ready in lookups.
    pub hit_blocks: u64,
    /// Bytes of the blocks found.
    pub hit_bytes: u64,
    /// Keys found in flight behind the ready ones.
    pub pending_blocks: u64,
    /// Reservations answered.
    pub reserves: u64,
    /// Keys answered with a place.
    pub reserved_blocks: u64,
    /// Keys that need no copy: sealed already, or being written by somebody else.
    pub deduplicated_blocks: u64,
    /// Keys refused for want of room.
    pub refused_blocks: u64,
    /// Blocks that became visible.
    pub sealed_blocks: u64,
    /// Bytes of these.
    pub sealed_bytes: u64,
    /// Blocks evicted for room.
    pub evicted_blocks: u64,
    /// Bytes of these.
    pub evicted_bytes: u64,
    /// Seconds since their last touch, summed over the evicted blocks.
    pub evicted_age_s: u64,
    /// Blocks dropped because their bytes were not what was saved.
    pub corrupt_blocks: u64,
    /// Blocks given up before they were sealed.
    pub aborted_blocks: u64,
    /// Blocks moved by compaction.
    pub moved_blocks: u64,
    /// Read leases that ran out.
    pub expired_read_leases: u64,
    /// Write leases that ran out.
    pub expired_write_leases: u64,
}

impl std::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.lookups += other.lookups;
        self.lookup_keys += other.lookup_keys;
        self.hit_blocks += other.hit_blocks;
        self.hit_bytes += other.hit_bytes;
        self.pending_blocks += other.pending_blocks;
        self.reserves += other.reserves;
        self.reserved_blocks += other.reserved_blocks;
        self.deduplicated_blocks += other.deduplicated_blocks;
        self.refused_blocks += other.refused_blocks;
        self.sealed_blocks += other.sealed_blocks;
        self.sealed_bytes += other.sealed_bytes;
        self.evicted_blocks += other.evicted_blocks;
        self.evicted_bytes += other.evicted_bytes;
        self.evicted_age_s += other.evicted_age_s;
        self.corrupt_blocks += other.corrupt_blocks;
        self.aborted_blocks += other.aborted_blocks;
        self.moved_blocks += other.moved_blocks;
        self.expired_read_leases += other.expired_read_leases;
        self.expired_write_leases += other.expired_write_leases;
    }
}

/// How things stand now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Bytes of all pools.
    pub capacity_bytes: u64,
    /// Bytes of the blocks that have a place, whatever their state.
    pub used_bytes: u64,
    /// Visible blocks.
    pub sealed_blocks: u64,
    /// Blocks being written.
    pub writing_blocks: u64,
    /// Blocks out of the index whose place waits for a reader, a writer, or a dead process.
    pub detached_blocks: u64,
    /// Open sessions.
    pub sessions: u64,
    /// Leases, of readers and writers.
    pub leases: u64,
    /// Registered namespaces.
    pub namespaces: u64,
    /// Lookups that wait on a ticket.
    pub waiters: u64,
    /// Block moves in flight.
    pub moves: u64,
    /// Bytes of places that hints keep pinned; those of several pins count as often.
    pub pinned_bytes: u64,
    /// Bytes of memory that the core's tables take, without the allocator's overhead.
    pub metadata_bytes: u64,
}
