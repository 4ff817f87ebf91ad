// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! How long a fetch takes: latency and bytes a second of a source, as averages that follow what was
//! measured.
//!
//! Invariant: both stay positive and finite whatever is observed.

use super::Source;

/// The share of a new observation in the average.
const WEIGHT: f64 = 0.125;

/// What is believed of one source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Time of one small read of an idle source, in microseconds.
    pub latency_us: f64,
    /// Bytes in a microsecond, that is megabytes (10^6) in a second, when many reads are under way.
    pub bytes_per_us: f64,
}

impl Estimate {
    /// Before anything was measured.
    #[must_use]
    pub fn of(source: Source) -> Self {
        match source {
            // A common NVMe drive of PCIe 3.
            Source::Ssd => Self {
                latency_us: 200.0,
                bytes_per_us: 2_000.0,
            },
        }
    }

    /// A read of `bytes` bytes took `us` microseconds, `ahead_bytes` being under way before it.
    pub fn observe(&mut self, bytes: u64, ahead_bytes: u64, us: u64) {
        let us = us.max(1) as f64;
        let total = bytes.saturating_add(ahead_bytes).max(1) as f64;
        if ahead_bytes == 0 {
            // What a lone read shows is mostly latency; how fast its bytes came is known from others.
            let latency_us = (us - total / self.bytes_per_us).max(1.0);
            self.latency_us += WEIGHT * (latency_us - self.latency_us);
        } else {
            let moving_us = (us - self.latency_us).max(us / 8.0);
            self.bytes_per_us += WEIGHT * (total / moving_us - self.bytes_per_us);
        }
    }

    /// Microseconds until `bytes` more bytes are here, behind `ahead_bytes` that are under way.
    #[must_use]
    pub fn us(&self, bytes: u64, ahead_bytes: u64) -> f64 {
        if bytes == 0 {
            return 0.0;
        }
        self.latency_us + bytes.saturating_add(ahead_bytes) as f64 / self.bytes_per_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_stays_a_time(seen in prop::collection::vec(any::<(u64, u64, u64)>(), 0..50), bytes: u64) {
            let mut estimate = Estimate::of(Source::Ssd);
            for (bytes, ahead, us) in seen {
                estimate.observe(bytes, ahead, us);
            }
            prop_assert!(estimate.latency_us > 0.0 && estimate.latency_us.is_finite());
            prop_assert!(estimate.bytes_per_us > 0.0 && estimate.bytes_per_us.is_finite());
            prop_assert!(estimate.us(bytes, 0) <= estimate.us(bytes.saturating_add(1 << 20), 1 << 20));
        }

        /// A drive of any speed is known within a fifth after a hundred reads of each kind.
        #[test]
        fn it_learns_a_drive(latency_us in 20u64..5_000, mb_s in 50u64..12_000, block in 16u64..2_000) {
            let mut estimate = Estimate::of(Source::Ssd);
            let (bytes, rate) = (block << 10, mb_s as f64);
            let took = |total: u64| latency_us + (total as f64 / rate) as u64;
            for _ in 0..100 {
                let ahead = 64 * bytes;
                estimate.observe(bytes, ahead, took(bytes + ahead));
                estimate.observe(bytes, 0, took(bytes));
            }
            for total in [bytes, 32 * bytes] {
                let (guess, truth) = (estimate.us(total, 0), took(total) as f64);
                prop_assert!((guess - truth).abs() <= 0.2 * truth + 2.0, "{guess} for {truth}");
            }
        }
    }
}
