// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Which way a batch takes, from rates that were measured on the device.
//!
//! Four ways lead from scattered runs of device memory to blocks in the pool. Each is the cheapest somewhere: see
//! [`Method`]. The choice is an estimate of time from [`Rates`]; no size is written down here that came from one GPU.

use super::JobShape;
use std::fmt;
use std::str::FromStr;

/// A way to copy a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Method {
    /// One DMA copy per run, one call each: works with every driver.
    Plain,
    /// One DMA copy per run, many in one call; a kernel reads the device side once more for the checksum.
    Batch,
    /// A kernel gathers into a staging slot (or scatters from it), DMA moves the slot in large pieces.
    Staged,
    /// A kernel reads or writes the pool itself.
    Direct,
}

impl Method {
    /// All of them.
    pub const ALL: [Method; 4] = [Method::Plain, Method::Batch, Method::Staged, Method::Direct];

    /// The name in settings and results.
    pub fn name(self) -> &'static str {
        match self {
            Method::Plain => "plain",
            Method::Batch => "batch",
            Method::Staged => "staged",
            Method::Direct => "direct",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Method {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let find = Method::ALL.into_iter().find(|m| m.name() == s);
        find.ok_or_else(|| format!("{s:?} is no copy method (plain, batch, staged, direct)"))
    }
}

/// A rate (GB/s) that depends on the length of the pieces: measured points, lengths ascending.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Curve(pub Vec<(u64, f64)>);

impl Curve {
    /// The rate for pieces of `bytes`: between two points in proportion to the logarithm of the length, beyond the ends
    /// as at the end (below the first point: in proportion to the length, since the cost is then per piece).
    pub fn at(&self, bytes: u64) -> f64 {
        let points = &self.0;
        let Some((first, last)) = points.first().zip(points.last()) else {
            return 0.0;
        };
        if bytes <= first.0 {
            return first.1 * bytes as f64 / first.0 as f64;
        }
        if bytes >= last.0 {
            return last.1;
        }
        let i = points.partition_point(|p| p.0 <= bytes);
        let ((x0, y0), (x1, y1)) = (points[i - 1], points[i]);
        let share = (bytes as f64 / x0 as f64).ln() / (x1 as f64 / x0 as f64).ln();
        y0 + (y1 - y0) * share
    }
}

/// What was measured for one direction. Rates in GB/s, times in microseconds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rates {
    /// One DMA copy per run, by length of run; empty if not measured.
    pub plain: Curve,
    /// The same in one call; empty without that call.
    pub batch: Curve,
    /// Pitched DMA between a staging slot and the pool, by length of row.
    pub rows: Curve,
    /// A kernel on the pool itself; 0 where kernels cannot run.
    pub direct: f64,
    /// From submitting an almost empty direct copy to its end.
    pub direct_us: f64,
    /// The same for one DMA copy and its checksum.
    pub dma_us: f64,
    /// What the staged way takes on top of its DMA: filling or draining the pipeline.
    pub staged_us: f64,
    /// Bytes of a staging slot and number of slots that moved the most; `None` without staging.
    pub ring: Option<(u64, u64)>,
    /// What that ring moves where DMA has long pieces; 0 without staging.
    pub staged: f64,
}

/// What the choice depends on besides the rates.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    /// The job.
    pub job: JobShape,
    /// Runs of one entry that are contiguous on both sides.
    pub runs_per_entry: u64,
    /// Whether the staged way is open: kernels loaded, memory there, a row fits a slot.
    pub staged_open: bool,
    /// Whether kernels can touch the pool.
    pub direct_open: bool,
}

/// Pieces that the staged way is measured with.
pub(crate) const STAGED_PIECE_BYTES: u64 = 4 << 20;
/// A cache file that asks for a larger ring is not ours.
const RING_BYTES_MAX: u64 = 1 << 30;
/// Rectangles are measured close to each other; far apart in a large pool they come so much slower.
const ROWS_SHARE: f64 = 0.65;
/// The direct way holds multiprocessors for as long as the link takes. It must be this much faster to be worth that.
const DIRECT_GAIN_MIN: f64 = 1.08;
/// Below this a job is over so soon that multiprocessor time does not matter.
const DIRECT_FREE_BYTES: u64 = 4 << 20;

impl Rates {
    /// Estimated microseconds of each way that is open.
    pub fn estimates(&self, q: &Question) -> Vec<(Method, f64)> {
        let bytes = q.job.bytes() as f64;
        let run = q.job.entry_bytes() / q.runs_per_entry.max(1);
        let micros = |rate: f64| bytes / (rate * 1e3);
        let mut all = vec![];
        if self.batch.at(run) > 0.0 {
            all.push((Method::Batch, self.dma_us + micros(self.batch.at(run))));
        }
        if self.plain.at(run) > 0.0 {
            all.push((Method::Plain, self.dma_us + micros(self.plain.at(run))));
        }
        let rate = self.staged_rate(&q.job);
        if q.staged_open && rate > 0.0 {
            all.push((Method::Staged, self.dma_us + self.staged_us + micros(rate)));
        }
        if q.direct_open && self.direct > 0.0 {
            let handicap = if q.job.bytes() <= DIRECT_FREE_BYTES {
                1.0
            } else {
                DIRECT_GAIN_MIN
            };
            all.push((
                Method::Direct,
                self.direct_us + handicap * micros(self.direct),
            ));
        }
        all
    }

    /// GB/s of the staged way: that of its ring, less where the pool's side comes in pieces shorter than it was measured with.
    fn staged_rate(&self, job: &JobShape) -> f64 {
        if !job.is_dense() {
            return self.staged.min(self.rows.at(job.row_bytes) * ROWS_SHARE);
        }
        let dma = if self.batch.0.is_empty() {
            &self.plain
        } else {
            &self.batch
        };
        let full = dma.at(STAGED_PIECE_BYTES);
        let share = if full > 0.0 {
            (dma.at(job.entry_bytes()) / full).min(1.0)
        } else {
            1.0
        };
        self.staged * share
    }

    /// The cheapest way. [`Method::Plain`] if nothing was measured.
    pub fn choose(&self, q: &Question) -> Method {
        let all = self.estimates(q);
        let best = all.into_iter().min_by(|a, b| a.1.total_cmp(&b.1));
        best.map_or(Method::Plain, |b| b.0)
    }

    /// As lines of text, for the cache file: `name value` or `name length:rate ...`.
    pub fn to_text(&self, prefix: &str) -> String {
        let curve = |name: &str, c: &Curve| {
            let points: Vec<_> = c.0.iter().map(|(x, y)| format!("{x}:{y}")).collect();
            format!("{prefix}.{name} {}\n", points.join(" "))
        };
        let number = |name: &str, v: f64| format!("{prefix}.{name} {v}\n");
        [
            curve("plain", &self.plain),
            curve("batch", &self.batch),
            curve("rows", &self.rows),
            number("direct", self.direct),
            number("direct_us", self.direct_us),
            number("dma_us", self.dma_us),
            number("staged_us", self.staged_us),
            number("staged", self.staged),
            number("slot_bytes", self.ring.map_or(0.0, |r| r.0 as f64)),
            number("slots", self.ring.map_or(0.0, |r| r.1 as f64)),
        ]
        .concat()
    }

    /// Reads what [`to_text`](Self::to_text) wrote; `None` if a line is missing or makes no sense.
    pub fn from_text(prefix: &str, text: &str) -> Option<Self> {
        let find = |name: &str| {
            text.lines().find_map(|l| {
                l.strip_prefix(prefix)?
                    .strip_prefix('.')?
                    .strip_prefix(name)?
                    .strip_prefix(' ')
            })
        };
        let sane = |v: f64| (v.is_finite() && v >= 0.0).then_some(v);
        let number = |name: &str| sane(find(name)?.trim().parse().ok()?);
        let curve = |name: &str| {
            let mut points: Vec<(u64, f64)> = vec![];
            for point in find(name)?.split_whitespace() {
                let (x, y) = point.split_once(':')?;
                let (x, y) = (x.parse().ok()?, sane(y.parse().ok()?)?);
                if x == 0 || points.last().is_some_and(|p| p.0 >= x) {
                    return None;
                }
                points.push((x, y));
            }
            Some(Curve(points))
        };
        let (slot_bytes, slots) = (number("slot_bytes")? as u64, number("slots")? as u64);
        if slot_bytes.saturating_mul(slots) > RING_BYTES_MAX {
            return None;
        }
        Some(Self {
            ring: (slot_bytes > 0 && slots > 0).then_some((slot_bytes, slots)),
            staged: number("staged")?,
            plain: curve("plain")?,
            batch: curve("batch")?,
            rows: curve("rows")?,
            direct: number("direct")?,
            direct_us: number("direct_us")?,
            dma_us: number("dma_us")?,
            staged_us: number("staged_us")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The rates of one H200 (device to host), rounded: for examples only.
    fn h200() -> Rates {
        Rates {
            plain: Curve(vec![
                (16 << 10, 7.0),
                (64 << 10, 17.0),
                (1 << 20, 49.0),
                (4 << 20, 54.0),
            ]),
            batch: Curve(vec![
                (16 << 10, 31.0),
                (64 << 10, 47.8),
                (256 << 10, 53.0),
                (1 << 20, 54.5),
            ]),
            rows: Curve(vec![(4 << 10, 45.3), (16 << 10, 45.8), (64 << 10, 53.8)]),
            direct: 52.2,
            direct_us: 11.0,
            dma_us: 13.0,
            staged_us: 20.0,
            ring: Some((8 << 20, 2)),
            staged: 54.0,
        }
    }

    fn question(entries: u32, rows: u32, row_bytes: u64, pitch: u64) -> Question {
        Question {
            job: JobShape {
                entries,
                rows,
                row_bytes,
                pool_pitch: pitch,
            },
            runs_per_entry: rows as u64,
            staged_open: true,
            direct_open: true,
        }
    }

    #[test]
    fn choices_by_example() {
        let check = |q, expect| assert_eq!(h200().choose(&q), expect, "{q:?}");
        // One run: latency decides.
        check(question(1, 1, 64 << 10, 64 << 10), Method::Direct);
        // Many short runs of whole blocks: staged, for the link's sake.
        check(question(512, 64, 16 << 10, 16 << 10), Method::Staged);
        // Long runs: DMA alone.
        check(question(64, 64, 4 << 20, 4 << 20), Method::Batch);
        // A few heads of each block, short rows in the pool: a kernel on the pool.
        check(question(512, 128, 4 << 10, 32 << 10), Method::Direct);
        // The same where kernels cannot reach it.
        let mut q = question(512, 128, 4 << 10, 32 << 10);
        q.direct_open = false;
        check(q, Method::Staged);
        q.staged_open = false;
        check(q, Method::Batch);
        assert_eq!(Rates::default().choose(&q), Method::Plain);
    }

    fn rates() -> impl Strategy<Value = Rates> {
        let curve = || {
            proptest::collection::btree_map(1u64..1 << 22, 0f64..100.0, 0..6)
                .prop_map(|m| Curve(m.into_iter().collect()))
        };
        let n = || 0f64..100.0;
        let ring = proptest::option::of((1u64..1 << 24, 1u64..8));
        ((curve(), curve(), curve()), n(), n(), n(), n(), n(), ring).prop_map(
            |((plain, batch, rows), direct, direct_us, dma_us, staged_us, staged, ring)| Rates {
                plain,
                batch,
                rows,
                direct,
                direct_us,
                dma_us,
                staged_us,
                ring,
                staged,
            },
        )
    }

    proptest! {
        #[test]
        fn only_open_ways_are_chosen(
            r in rates(), entries in 1u32..1000, rows in 1u32..200, row in 8u64..1 << 20, more in 0u64..1 << 20,
            staged_open: bool, direct_open: bool,
        ) {
            let q = Question { staged_open, direct_open, ..question(entries, rows, row, row + more) };
            let choice = r.choose(&q);
            prop_assert!(staged_open || choice != Method::Staged);
            prop_assert!(direct_open || choice != Method::Direct);
            let all = r.estimates(&q);
            if let Some(mine) = all.iter().find(|e| e.0 == choice) {
                prop_assert!(all.iter().all(|e| e.1 >= mine.1));
            } else {
                prop_assert!(all.is_empty() && choice == Method::Plain);
            }
        }

        #[test]
        fn rates_survive_the_cache_file(save in rates(), load in rates()) {
            let text = save.to_text("save") + &load.to_text("load");
            prop_assert_eq!(Rates::from_text("save", &text), Some(save));
            prop_assert_eq!(Rates::from_text("load", &text), Some(load));
        }

        #[test]
        fn the_cache_file_may_hold_anything(text in ".{0,300}") {
            let _ = Rates::from_text("save", &text);
        }

        #[test]
        fn a_curve_stays_between_its_points(points in proptest::collection::btree_map(1u64..1 << 22, 0.1f64..100.0, 1..6), x in 1u64..1 << 23) {
            let curve = Curve(points.into_iter().collect());
            let most = curve.0.iter().map(|p| p.1).fold(0.0, f64::max);
            prop_assert!(curve.at(x) > 0.0 && curve.at(x) <= most * 1.0001);
        }
    }
}
