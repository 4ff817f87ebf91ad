// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Figures of a running store. Counting costs an addition; reading them stops nobody.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::disk::{DiskInfo, DiskLoad};

/// Eight buckets for each doubling: a percentile is at most an eighth too high.
const PER_DOUBLING: u64 = 8;
const BUCKETS: usize = 30 * PER_DOUBLING as usize;

/// Latencies in microseconds, from 1 us to about 15 minutes.
#[derive(Debug)]
pub struct Histogram {
    buckets: Vec<AtomicU64>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl Histogram {
    /// Counts one.
    pub fn record(&self, us: u64) {
        let us = us.max(PER_DOUBLING);
        let doubling = u64::from(us.ilog2());
        let part = (us >> (doubling - 3)) - PER_DOUBLING;
        let bucket = ((doubling - 3) * PER_DOUBLING + part) as usize;
        self.buckets[bucket.min(BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn summary(&self) -> Latency {
        let counts: Vec<u64> = self
            .buckets
            .iter()
            .map(|b| b.load(Ordering::Relaxed))
            .collect();
        let count: u64 = counts.iter().sum();
        let at = |share: f64| {
            let rank = (count as f64 * share).ceil() as u64;
            let mut seen = 0;
            let bucket = counts.iter().position(|c| {
                seen += c;
                seen >= rank.max(1)
            });
            bucket.map_or(0, |b| {
                let (doubling, part) = (b as u64 / PER_DOUBLING, b as u64 % PER_DOUBLING);
                (PER_DOUBLING + part + 1) << doubling
            })
        };
        Latency {
            count,
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
        }
    }
}

/// A summary of latencies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// How many.
    pub count: u64,
    /// Half were at most this, microseconds.
    pub p50_us: u64,
    /// 99 of 100 were at most this, microseconds.
    pub p99_us: u64,
    /// 999 of 1,000 were at most this, microseconds.
    pub p999_us: u64,
}

/// Why blocks were not stored, or are not found any more. Counts since the store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// Not taken, because a queue was full.
    pub busy: u64,
    /// Not taken, because the admission policy said so.
    pub declined: u64,
    /// Failed on the way to the device.
    pub failed: u64,
    /// Gave room to newer ones.
    pub reclaimed: u64,
    /// Over their time.
    pub expired: u64,
    /// Not what was written.
    pub corrupt: u64,
}

/// Figures of one device of a store.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeviceStats {
    /// Which backend runs it.
    pub backend: &'static str,
    /// Whether transfers go past the page cache.
    pub direct: bool,
    /// What a user should know.
    pub notes: Vec<String>,
    /// Transfers waiting for their turn.
    pub queued: u64,
    /// Transfers with the device.
    pub inflight: u64,
    /// Bytes of them.
    pub inflight_bytes: u64,
    /// Bytes of reads that may be with the device now; moves with how long they take there.
    pub read_limit_bytes: u64,
    /// Bytes of writes that may be with the device now; moves with the reads' latency.
    pub write_limit_bytes: u64,
    /// Transfers given up and still held by the device.
    pub stuck: u64,
    /// Segments free for new blocks.
    pub free_segments: u64,
    /// Full segments.
    pub full_segments: u64,
    /// Segments the device failed on.
    pub bad_segments: u64,
    /// Segments sealed and then given up for new blocks, since the store was opened.
    pub reclaimed_segments: u64,
    /// Age of the segment that left last, seconds.
    pub reclaim_age_s: u64,
    /// Flushes sent to the device.
    pub flushes: u64,
}

impl DeviceStats {
    pub(crate) fn new(
        info: DiskInfo,
        load: DiskLoad,
        stuck: u64,
        log: &crate::log::LogStats,
    ) -> Self {
        Self {
            backend: info.backend,
            direct: info.direct,
            notes: info.notes,
            queued: load.queued,
            inflight: load.inflight,
            inflight_bytes: load.inflight_bytes,
            read_limit_bytes: load.read_limit_bytes,
            write_limit_bytes: load.write_limit_bytes,
            stuck,
            free_segments: log.free_segments,
            full_segments: log.full_segments,
            bad_segments: log.bad_segments,
            reclaimed_segments: log.reclaimed_segments,
            reclaim_age_s: log.reclaim_age_s,
            flushes: log.flushes,
        }
    }
}

/// Figures of a store. Counts are since it was opened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stats {
    /// Blocks that are found.
    pub blocks: u64,
    /// Bytes of them.
    pub live_bytes: u64,
    /// Bytes of pinned blocks.
    pub pinned_bytes: u64,
    /// Bytes of all segments.
    pub capacity_bytes: u64,
    /// Memory of the index, bytes.
    pub index_bytes: u64,
    /// Blocks stored.
    pub stored_blocks: u64,
    /// Bytes of them.
    pub stored_bytes: u64,
    /// Bytes written to the devices for all that: headers, padding, summaries and moved blocks included.
    pub device_bytes: u64,
    /// `device_bytes` over `stored_bytes`.
    pub write_amplification: f64,
    /// Blocks written again because they earned a second chance or are pinned.
    pub moved_blocks: u64,
    /// Blocks read.
    pub hits: u64,
    /// Bytes of them.
    pub hit_bytes: u64,
    /// Keys asked for and not there.
    pub misses: u64,
    /// Why blocks are gone.
    pub dropped: Dropped,
    /// Bytes of blocks on their way to the devices.
    pub write_queue_bytes: u64,
    /// Bytes of reads on their way.
    pub read_queue_bytes: u64,
    /// From `put` to acknowledged.
    pub put_latency: Latency,
    /// From `get` to checked.
    pub get_latency: Latency,
    /// Of a read on the device.
    pub device_read_latency: Latency,
    /// Each device.
    pub devices: Vec<DeviceStats>,
}

/// What a running store counts.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) put_us: Histogram,
    pub(crate) get_us: Histogram,
    pub(crate) device_read_us: Histogram,
    pub(crate) hits: AtomicU64,
    pub(crate) hit_bytes: AtomicU64,
    pub(crate) misses: AtomicU64,
    pub(crate) busy: AtomicU64,
    pub(crate) declined: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) write_queue_bytes: AtomicU64,
    pub(crate) read_queue_bytes: AtomicU64,
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_at_most_an_eighth_too_high() {
        let h = Histogram::default();
        for us in 1..=10_000 {
            h.record(us);
        }
        let s = h.summary();
        assert_eq!(s.count, 10_000);
        for (got, want) in [(s.p50_us, 5000.0), (s.p99_us, 9900.0), (s.p999_us, 9990.0)] {
            assert!(
                got as f64 >= want && got as f64 <= want * 1.15,
                "{got} for {want}"
            );
        }
        h.record(u64::MAX);
    }
}
