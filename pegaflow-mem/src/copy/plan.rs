// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Cuts a job into steps: which rows of which entries go together.
//!
//! A job is a list of entries (blocks), each with the same rows (one a layer and part) of the same length. A step is a
//! rectangle of them that fits a staging slot or a launch. Invariant: the steps of a cut cover every row of every
//! entry exactly once, none is larger than asked, and layers come in order when they are to be signalled.

use std::ops::Range;

/// What the planner has to know of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobShape {
    /// Blocks to copy.
    pub entries: u32,
    /// Rows of each: layers x parts.
    pub rows: u32,
    /// Bytes of a row: heads of the slot x inner bytes.
    pub row_bytes: u64,
    /// Bytes from row to row in the pool; `row_bytes` where the slot holds all heads.
    pub pool_pitch: u64,
}

impl JobShape {
    /// Bytes of one entry.
    pub fn entry_bytes(&self) -> u64 {
        self.rows as u64 * self.row_bytes
    }

    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.entries as u64 * self.entry_bytes()
    }

    /// Whether an entry is one contiguous run in the pool.
    pub fn is_dense(&self) -> bool {
        self.pool_pitch == self.row_bytes || self.rows == 1
    }
}

/// Rows of some entries that are copied together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Entries, by index.
    pub entries: Range<u32>,
    /// Rows of each.
    pub rows: Range<u32>,
    /// Bytes of the step.
    pub bytes: u64,
}

/// How to cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Most bytes of a step (the staging slot).
    pub step_bytes_max: u64,
    /// Most entries of a step (what a launch can carry).
    pub step_entries_max: u32,
    /// Rows that are signalled together: steps do not cross a multiple of it, and all entries of a group come before
    /// the next group. `None`: as few steps as possible.
    pub group_rows: Option<u32>,
    /// Which step is a short one, where there are no groups.
    pub short: Option<Short>,
}

/// The step that somebody waits for: it has at most [`SHORT_BYTES`], or one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Short {
    /// The DMA engine starts after the first gather.
    First,
    /// The end is reached soon after the last byte is on the device.
    Last,
}

/// Bytes of a short step: a burst for fewer takes almost as long.
pub const SHORT_BYTES: u64 = 8 << 20;

impl Cut {
    /// Whether a job can be cut this way: at least one row must fit a step.
    pub fn fits(&self, job: &JobShape) -> bool {
        job.row_bytes <= self.step_bytes_max && self.step_entries_max > 0
    }

    /// The steps of `job`, in order.
    ///
    /// # Panics
    /// If it does not [fit](Self::fits).
    pub fn steps(&self, job: &JobShape) -> Vec<Step> {
        assert!(
            self.fits(job),
            "a row of {} bytes must fit a step",
            job.row_bytes
        );
        let mut steps = vec![];
        for group in self.groups(job) {
            self.cut_group(job, group, &mut steps);
        }
        steps
    }

    fn groups(&self, job: &JobShape) -> Vec<Range<u32>> {
        let each = self
            .group_rows
            .unwrap_or(job.rows)
            .clamp(1, job.rows.max(1));
        (0..job.rows)
            .step_by(each as usize)
            .map(|r| r..(r + each).min(job.rows))
            .collect()
    }

    fn cut_group(&self, job: &JobShape, rows: Range<u32>, steps: &mut Vec<Step>) {
        let group_bytes = rows.len() as u64 * job.row_bytes;
        if group_bytes > self.step_bytes_max {
            self.cut_rows(job, rows, steps);
            return;
        }
        let most = ((self.step_bytes_max / group_bytes) as u32).min(self.step_entries_max);
        for entries in self.entry_ranges(job.entries, most, group_bytes) {
            let bytes = entries.len() as u64 * group_bytes;
            steps.push(Step {
                entries,
                rows: rows.clone(),
                bytes,
            });
        }
    }

    /// Ranges of at most `most` entries.
    fn entry_ranges(&self, entries: u32, most: u32, entry_bytes: u64) -> Vec<Range<u32>> {
        let few = ((SHORT_BYTES / entry_bytes.max(1)) as u32).clamp(1, most);
        let (head, tail) = match self.short.filter(|_| self.group_rows.is_none()) {
            Some(Short::First) => (few.min(entries), 0),
            Some(Short::Last) => (0, few.min(entries)),
            None => (0, 0),
        };
        let cut = |range: Range<u32>| {
            range
                .clone()
                .step_by(most as usize)
                .map(move |at| at..(at + most).min(range.end))
        };
        cut(0..head)
            .chain(cut(head..entries - tail))
            .chain(cut(entries - tail..entries))
            .collect()
    }

    /// Entries larger than a step: each by itself, in even parts.
    fn cut_rows(&self, job: &JobShape, rows: Range<u32>, steps: &mut Vec<Step>) {
        let most = (self.step_bytes_max / job.row_bytes) as u32;
        let parts = (rows.len() as u32).div_ceil(most);
        let each = (rows.len() as u32).div_ceil(parts);
        for entry in 0..job.entries {
            let mut at = rows.start;
            while at < rows.end {
                let end = (at + each).min(rows.end);
                let bytes = (end - at) as u64 * job.row_bytes;
                steps.push(Step {
                    entries: entry..entry + 1,
                    rows: at..end,
                    bytes,
                });
                at = end;
            }
        }
    }
}

/// Joins neighbouring pieces of a list: `(start, bytes)` in order, joined where the next begins at the end of the last
/// and `keep` agrees (both ends of the joint are given).
pub fn join_runs(pieces: impl Iterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
    let mut joined: Vec<(u64, u64)> = vec![];
    for (start, bytes) in pieces {
        match joined.last_mut() {
            Some(last) if last.0 + last.1 == start => last.1 += bytes,
            _ => joined.push((start, bytes)),
        }
    }
    joined
}

/// Splits `start..start + bytes` at the multiples of `chunk` (bytes): what was registered in chunks is copied in chunks.
pub fn split_at_chunks(start: u64, bytes: u64, chunk: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = start + bytes;
    let mut at = start;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let stop = ((at / chunk + 1) * chunk).min(end);
        let piece = (at, stop - at);
        at = stop;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn job(entries: u32, rows: u32, row_bytes: u64) -> JobShape {
        JobShape {
            entries,
            rows,
            row_bytes,
            pool_pitch: row_bytes,
        }
    }

    fn check(job: JobShape, cut: Cut, expect: &[(Range<u32>, Range<u32>)]) {
        let got: Vec<_> = cut
            .steps(&job)
            .into_iter()
            .map(|s| (s.entries, s.rows))
            .collect();
        assert_eq!(got, expect);
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn steps_by_example() {
        let short = |max, group, short| Cut {
            step_bytes_max: max,
            step_entries_max: 960,
            group_rows: group,
            short,
        };
        let cut = |max, group| short(max, group, None);
        // 5 entries of 2 MiB, slots of 4 MiB.
        check(
            job(5, 2, MIB),
            cut(4 * MIB, None),
            &[(0..2, 0..2), (2..4, 0..2), (4..5, 0..2)],
        );
        // Short first for a save, short last for a load.
        check(
            job(9, 4, MIB),
            short(16 * MIB, None, Some(Short::First)),
            &[(0..2, 0..4), (2..6, 0..4), (6..9, 0..4)],
        );
        check(
            job(9, 4, MIB),
            short(16 * MIB, None, Some(Short::Last)),
            &[(0..4, 0..4), (4..7, 0..4), (7..9, 0..4)],
        );
        check(
            job(1, 2, MIB),
            short(8 * MIB, None, Some(Short::Last)),
            &[(0..1, 0..2)],
        );
        // An entry larger than a slot is cut into even parts.
        check(
            job(1, 6, MIB),
            cut(4 * MIB, None),
            &[(0..1, 0..3), (0..1, 3..6)],
        );
        // Layer by layer: all entries of the first group come first.
        check(
            job(3, 4, MIB),
            cut(4 * MIB, Some(2)),
            &[(0..2, 0..2), (2..3, 0..2), (0..2, 2..4), (2..3, 2..4)],
        );
    }

    proptest! {
        #[test]
        fn steps_cover_every_row_once(
            entries in 1u32..80, rows in 1u32..70, row_kib in 1u64..600, slot_mib in 1u64..9,
            entries_max in 1u32..50, group in proptest::option::of(1u32..80),
            short in proptest::sample::select(vec![None, Some(Short::First), Some(Short::Last)]),
        ) {
            let job = job(entries, rows, row_kib << 10);
            let cut = Cut { step_bytes_max: slot_mib << 20, step_entries_max: entries_max, group_rows: group, short };
            prop_assume!(cut.fits(&job));
            let steps = cut.steps(&job);
            let mut seen = vec![0u8; (entries * rows) as usize];
            let mut last_row = 0;
            for step in &steps {
                prop_assert_eq!(step.bytes, step.entries.len() as u64 * step.rows.len() as u64 * job.row_bytes);
                prop_assert!(step.bytes > 0 && step.bytes <= cut.step_bytes_max);
                prop_assert!(step.entries.len() as u32 <= entries_max);
                if let Some(group) = group {
                    prop_assert!(step.rows.start / group == (step.rows.end - 1) / group || group > rows);
                    prop_assert!(step.rows.start / group >= last_row / group, "groups come in order");
                    last_row = step.rows.start;
                }
                for e in step.entries.clone() {
                    for r in step.rows.clone() {
                        seen[(e * rows + r) as usize] += 1;
                    }
                }
            }
            prop_assert!(seen.iter().all(|n| *n == 1));
        }

        #[test]
        fn chunks_cover_and_respect_their_borders(start in 0u64..5000, bytes in 0u64..5000, chunk in 1u64..700) {
            let pieces: Vec<_> = split_at_chunks(start, bytes, chunk).collect();
            prop_assert_eq!(pieces.iter().map(|p| p.1).sum::<u64>(), bytes);
            let mut at = start;
            for (from, len) in pieces {
                prop_assert_eq!(from, at);
                prop_assert!(len > 0 && from / chunk == (from + len - 1) / chunk);
                at += len;
            }
        }

        #[test]
        fn joined_runs_hold_the_same_bytes(lens in proptest::collection::vec((0u64..3, 1u64..50), 0..40)) {
            let mut at = 0;
            let pieces: Vec<_> = lens.iter().map(|(gap, len)| { at += gap + len; (at - len, *len) }).collect();
            let joined = join_runs(pieces.iter().copied());
            prop_assert_eq!(joined.iter().map(|p| p.1).sum::<u64>(), pieces.iter().map(|p| p.1).sum::<u64>());
            prop_assert!(joined.windows(2).all(|w| w[0].0 + w[0].1 < w[1].0), "nothing is left to join");
        }
    }
}
