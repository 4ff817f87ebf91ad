// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! What a replay counts and times.

use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;

use super::source::PlainLru;

/// A timed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Finding a prefix.
    Lookup,
    /// Saving one chunk of blocks of one rank, sealed.
    Save,
    /// Loading one chunk of blocks of one rank, verified against the checksums of its save.
    Load,
    /// Waiting for blocks of a prefix that were on their way.
    Wait,
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Requests served.
    pub requests: u64,
    /// Blocks of their prompts.
    pub blocks_referenced: u64,
    /// Blocks found as a prefix and loaded.
    pub prefix_hit_blocks: u64,
    /// Of these, blocks that were not in the pool at once: they came from SSD, or another request was saving them.
    pub late_hit_blocks: u64,
    /// Bytes that ranks copied into the pool.
    pub bytes_saved: u64,
    /// Bytes that ranks copied out of the pool.
    pub bytes_loaded: u64,
    /// Bytes compared with what the key says.
    pub bytes_verified: u64,
    /// Blocks of a rank with a wrong byte after a load that claimed success. Must be 0.
    pub mismatches: u64,
    /// Blocks of a rank that the node's own checksum found damaged: a miss, no wrong answer.
    pub damaged_blocks: u64,
    /// Blocks of a rank that were there already when they were to be saved.
    pub had_blocks: u64,
    /// Blocks of a rank the node had no room for.
    pub refused_blocks: u64,
    /// Requests the node had no time for.
    pub refused_requests: u64,
    /// Calls that found the node gone.
    pub unavailable: u64,
    /// Requests that had to start over.
    pub restarted_requests: u64,
}

/// Quantiles of a latency, microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Calls.
    pub count: u64,
    /// Median.
    pub p50: f64,
    /// 99 of 100 are below.
    pub p99: f64,
    /// 999 of 1000 are below.
    pub p999: f64,
    /// Slowest.
    pub max: f64,
}

/// Latencies of the calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Latencies {
    /// Of [`Op::Lookup`].
    pub lookup_us: Latency,
    /// Of [`Op::Save`].
    pub save_us: Latency,
    /// Of [`Op::Load`].
    pub load_us: Latency,
    /// Of [`Op::Wait`].
    pub wait_us: Latency,
}

/// One point of the curves: what happened since the point before.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sample {
    /// Since the start, seconds.
    pub seconds: f64,
    /// Requests served.
    pub requests: u64,
    /// Share of the blocks that were prefix hits; `None` without requests.
    pub hit_share: Option<f64>,
    /// The same for the simulated plain LRU.
    pub plain_lru_hit_share: Option<f64>,
    /// Bytes copied, both ways, per second.
    pub bytes_per_s: f64,
    /// Latencies.
    #[serde(flatten)]
    pub latencies: Latencies,
}

struct Histograms([Histogram<u64>; 4]);

impl Histograms {
    fn new() -> Self {
        // 1 ns to 10 minutes, three digits: 180 KiB each.
        let empty = || Histogram::new_with_max(600_000_000_000, 3).expect("valid bounds");
        Self([empty(), empty(), empty(), empty()])
    }

    fn record(&mut self, op: Op, ns: u64) {
        self.0[op as usize].saturating_record(ns);
    }

    fn latencies(&self) -> Latencies {
        let [lookup_us, save_us, load_us, wait_us] = [0, 1, 2, 3].map(|i| latency(&self.0[i]));
        Latencies {
            lookup_us,
            save_us,
            load_us,
            wait_us,
        }
    }
}

fn latency(h: &Histogram<u64>) -> Latency {
    if h.is_empty() {
        return Latency::default();
    }
    let us = |ns: u64| ns as f64 / 1000.0;
    let at = |q| us(h.value_at_quantile(q));
    Latency {
        count: h.len(),
        p50: at(0.5),
        p99: at(0.99),
        p999: at(0.999),
        max: us(h.max()),
    }
}

struct State {
    counts: Counts,
    total: Histograms,
    recent: Histograms,
    last: (f64, Counts, PlainLru, u64),
    gone_since: Option<Duration>,
    recoveries_ms: Vec<f64>,
}

/// Counts and times of one replay, shared by its threads.
pub struct Meter(Mutex<State>);

impl Default for Meter {
    fn default() -> Self {
        Self(Mutex::new(State {
            counts: Counts::default(),
            total: Histograms::new(),
            recent: Histograms::new(),
            last: (0.0, Counts::default(), PlainLru::default(), 0),
            gone_since: None,
            recoveries_ms: Vec::new(),
        }))
    }
}

impl Meter {
    /// Changes the counts.
    pub fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.0.lock().counts);
    }

    /// The counts so far.
    pub fn counts(&self) -> Counts {
        self.0.lock().counts
    }

    /// Records a successful call.
    pub fn took(&self, op: Op, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let mut state = self.0.lock();
        state.total.record(op, ns);
        state.recent.record(op, ns);
    }

    /// Latencies since the start.
    pub fn latencies(&self) -> Latencies {
        self.0.lock().total.latencies()
    }

    /// The node was found gone at `at` (since the start).
    pub fn gone(&self, at: Duration) {
        let mut state = self.0.lock();
        state.counts.unavailable += 1;
        state.gone_since.get_or_insert(at);
    }

    /// The node answered at `at`: ends an outage, if there was one, and returns its length.
    pub fn answered(&self, at: Duration) -> Option<Duration> {
        let mut state = self.0.lock();
        let outage = at.saturating_sub(state.gone_since.take()?);
        state.recoveries_ms.push(outage.as_secs_f64() * 1000.0);
        Some(outage)
    }

    /// Lengths of the outages seen, milliseconds.
    pub fn recoveries_ms(&self) -> Vec<f64> {
        self.0.lock().recoveries_ms.clone()
    }

    /// Closes the interval since the last sample. `references` and `lru` are the source's running totals.
    pub fn sample(&self, seconds: f64, references: u64, lru: PlainLru) -> Sample {
        let mut state = self.0.lock();
        let now = (seconds, state.counts, lru, references);
        let before = std::mem::replace(&mut state.last, now);
        let recent = std::mem::replace(&mut state.recent, Histograms::new());
        let share = |hits: u64, of: u64| (of > 0).then(|| hits as f64 / of as f64);
        let (c, b) = (&state.counts, &before.1);
        let bytes = c.bytes_saved + c.bytes_loaded - b.bytes_saved - b.bytes_loaded;
        Sample {
            seconds,
            requests: c.requests - b.requests,
            hit_share: share(
                c.prefix_hit_blocks - b.prefix_hit_blocks,
                c.blocks_referenced - b.blocks_referenced,
            ),
            plain_lru_hit_share: share(
                lru.prefix_hit_blocks - before.2.prefix_hit_blocks,
                references - before.3,
            ),
            bytes_per_s: bytes as f64 / (seconds - before.0).max(1e-9),
            latencies: recent.latencies(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_cover_intervals_and_totals_cover_all() {
        let meter = Meter::default();
        let lru = |prefix_hit_blocks| PlainLru {
            prefix_hit_blocks,
            ..PlainLru::default()
        };
        meter.count(|c| (c.requests, c.blocks_referenced, c.prefix_hit_blocks) = (1, 10, 5));
        meter.took(Op::Load, Duration::from_micros(100));
        let first = meter.sample(1.0, 10, lru(4));
        assert_eq!(
            (first.hit_share, first.plain_lru_hit_share),
            (Some(0.5), Some(0.4))
        );
        assert_eq!(first.latencies.load_us.count, 1);
        meter.count(|c| {
            c.bytes_saved += 300;
            c.blocks_referenced += 10;
        });
        let second = meter.sample(3.0, 20, lru(4));
        assert_eq!((second.hit_share, second.requests), (Some(0.0), 0));
        assert_eq!(
            (second.bytes_per_s, second.latencies.load_us.count),
            (150.0, 0)
        );
        assert_eq!(meter.sample(4.0, 20, lru(4)).hit_share, None);
        let load = meter.latencies().load_us;
        assert!(
            (99.0..101.0).contains(&load.p50) && load.count == 1,
            "{load:?}"
        );
    }

    #[test]
    fn an_outage_lasts_until_the_first_answer() {
        let meter = Meter::default();
        let ms = Duration::from_millis;
        assert_eq!(meter.answered(ms(1)), None);
        meter.gone(ms(10));
        meter.gone(ms(20));
        assert_eq!(meter.answered(ms(30)), Some(ms(20)));
        assert_eq!(meter.answered(ms(40)), None);
        assert_eq!(
            (meter.counts().unavailable, meter.recoveries_ms()),
            (2, vec![20.0])
        );
    }
}
