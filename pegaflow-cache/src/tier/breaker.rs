// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Leaves a source alone that fails again and again, and tries it anew after a while.
//!
//! Invariant: one success closes it; pauses double up to a limit, so a source that is back is found
//! within that time.

use crate::core::Now;

/// Failures in a row that open it.
const FAILURES_MAX: u32 = 8;
const PAUSE_MS_MIN: u64 = 250;
const PAUSE_MS_MAX: u64 = 30_000;

/// Whether a source is worth asking.
#[derive(Debug, Clone, Copy, Default)]
pub struct Breaker {
    failures: u32,
    pause_ms: u64,
    until: Now,
}

impl Breaker {
    /// Whether the source should be left alone.
    #[must_use]
    pub fn is_open(&self, now: Now) -> bool {
        now < self.until
    }

    /// The source answered.
    pub fn success(&mut self) {
        *self = Self::default();
    }

    /// The source failed. True if it is left alone from now on.
    pub fn failure(&mut self, now: Now) -> bool {
        self.failures += 1;
        if self.failures < FAILURES_MAX || self.is_open(now) {
            return false;
        }
        self.pause_ms = (self.pause_ms * 2).clamp(PAUSE_MS_MIN, PAUSE_MS_MAX);
        self.until = Now(now.0.saturating_add(self.pause_ms));
        // One more failure after the pause is enough.
        self.failures = FAILURES_MAX - 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_it_answers() {
        let mut breaker = Breaker::default();
        let opened: Vec<_> = (0..8).map(|n| breaker.failure(Now(n))).collect();
        assert_eq!(opened, [vec![false; 7], vec![true]].concat());
        assert!(breaker.is_open(Now(256)) && !breaker.is_open(Now(257)));
        assert!(!breaker.failure(Now(20)), "it is open already");
        let mut now = 0;
        for pause in [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
            now += 100_000;
            assert!(breaker.failure(Now(now)));
            assert!(breaker.is_open(Now(now + pause - 1)) && !breaker.is_open(Now(now + pause)));
        }
        breaker.success();
        assert!(!breaker.is_open(Now(now)) && !breaker.failure(Now(now)));
    }
}
