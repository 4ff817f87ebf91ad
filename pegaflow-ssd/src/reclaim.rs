// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Who leaves first when space is needed. Pure; one policy a type.

use crate::key::Key;
use crate::settings::Reclaim;

/// A full segment, as a policy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentView {
    /// Which segment.
    pub segment: u32,
    /// Rises with every segment that is begun: the smallest is the oldest.
    pub generation: u64,
    /// Bytes it holds room for.
    pub bytes: u64,
    /// Bytes of blocks in it that are still found.
    pub live_bytes: u64,
    /// When it was filled, seconds since 1970.
    pub filled_s: u64,
    /// When one of its blocks was last read, seconds since 1970; 0: never.
    pub read_s: u64,
    /// How often its blocks were read.
    pub reads: u64,
}

/// A block of the segment that leaves, as a policy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockView {
    /// Its key.
    pub key: Key,
    /// Its length.
    pub bytes: u32,
    /// Whether it was read since it was written here.
    pub was_read: bool,
}

/// Chooses what leaves. Called with the store's lock held: it must neither wait nor look outside.
pub trait ReclaimPolicy: Send {
    /// Its name in figures.
    fn name(&self) -> &'static str;

    /// Which of `full` (never empty) leaves next: a place in that list.
    fn victim(&mut self, full: &[SegmentView], now_s: u64) -> usize;

    /// Whether a block of the leaving segment is worth writing again. Asked in the order the blocks were written.
    fn keep(&mut self, block: &BlockView) -> bool;

    /// A block of so many bytes is found from now on: written, written again, or there when the policy came.
    fn found(&mut self, _key: &Key, _bytes: u64) {}

    /// A block is found no more, or not in that place: it left, was removed, replaced or written again.
    fn gone(&mut self, _key: &Key, _bytes: u64) {}
}

/// The policy that the setting names.
pub fn policy(setting: Reclaim) -> Box<dyn ReclaimPolicy> {
    match setting {
        Reclaim::Fifo => Box::new(Fifo),
        Reclaim::Clock => Box::new(Clock),
        Reclaim::ExpectedReuse => Box::new(ExpectedReuse),
    }
}

fn oldest(full: &[SegmentView]) -> usize {
    let least = full.iter().enumerate().min_by_key(|(_, s)| s.generation);
    least.map_or(0, |(i, _)| i)
}

/// The oldest segment, whole.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fifo;

impl ReclaimPolicy for Fifo {
    fn name(&self) -> &'static str {
        "fifo"
    }
    fn victim(&mut self, full: &[SegmentView], _: u64) -> usize {
        oldest(full)
    }
    fn keep(&mut self, _: &BlockView) -> bool {
        false
    }
}

/// The oldest segment; what was read since it was written gets a second chance.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock;

impl ReclaimPolicy for Clock {
    fn name(&self) -> &'static str {
        "clock"
    }
    fn victim(&mut self, full: &[SegmentView], _: u64) -> usize {
        oldest(full)
    }
    fn keep(&mut self, block: &BlockView) -> bool {
        block.was_read
    }
}

/// The segment that loses least: expected reads of its bytes, by how often they were read for their age, over the room it gives.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExpectedReuse;

impl ExpectedReuse {
    // Reads per second of age and of silence: a segment that was busy once and is silent since counts as cold.
    fn worth(s: &SegmentView, now_s: u64) -> f64 {
        let age = now_s.saturating_sub(s.filled_s) as f64 + 1.0;
        let silence = now_s.saturating_sub(s.read_s.max(s.filled_s)) as f64 + 1.0;
        let rate = (s.reads as f64 + 0.5) / age.max(silence * 2.0);
        let room = (s.bytes - s.live_bytes.min(s.bytes)) as f64 + 1.0;
        rate * s.live_bytes as f64 / (room + s.live_bytes as f64)
    }
}

impl ReclaimPolicy for ExpectedReuse {
    fn name(&self) -> &'static str {
        "expected_reuse"
    }
    fn victim(&mut self, full: &[SegmentView], now_s: u64) -> usize {
        let worth = full.iter().map(|s| Self::worth(s, now_s));
        let least = worth.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
        least.map_or(0, |(i, _)| i)
    }
    fn keep(&mut self, block: &BlockView) -> bool {
        block.was_read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seg(
        segment: u32,
        generation: u64,
        live: u64,
        filled: u64,
        read: u64,
        reads: u64,
    ) -> SegmentView {
        SegmentView {
            segment,
            generation,
            bytes: 100,
            live_bytes: live,
            filled_s: filled,
            read_s: read,
            reads,
        }
    }

    #[test]
    fn each_policy_picks_its_own() {
        let full = [
            seg(0, 30, 100, 50, 99, 80),
            seg(1, 10, 100, 10, 98, 500),
            seg(2, 20, 100, 20, 25, 90),
        ];
        assert_eq!(Fifo.victim(&full, 100), 1, "the oldest");
        assert_eq!(Clock.victim(&full, 100), 1, "the oldest");
        assert_eq!(
            ExpectedReuse.victim(&full, 100),
            2,
            "the one nobody reads any more"
        );
        let empty = [full[0], seg(3, 40, 0, 90, 90, 900)];
        assert_eq!(
            ExpectedReuse.victim(&empty, 100),
            1,
            "nothing is lost with it"
        );
    }
}
