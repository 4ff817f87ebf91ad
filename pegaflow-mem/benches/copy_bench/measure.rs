// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Clocks and percentiles.

use std::time::{Duration, Instant};

/// Sorted times, in microseconds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Times(Vec<f64>);

impl Times {
    pub(crate) fn new(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        Self(times)
    }

    /// The value that `share` of all do not exceed; `None` with too few to tell.
    pub(crate) fn at(&self, share: f64) -> Option<f64> {
        let beyond = (self.0.len() as f64 * (1.0 - share)).floor();
        let enough = share <= 0.5 || beyond >= 1.0;
        let index = ((self.0.len() as f64 * share) as usize).min(self.0.len().saturating_sub(1));
        self.0.get(index).copied().filter(|_| enough)
    }

    pub(crate) fn p50(&self) -> f64 {
        self.at(0.5).unwrap_or(f64::NAN)
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Repeats the pair in turn for about `seconds`: times of `floor` and of `copy`.
pub(crate) fn in_turn(
    seconds: f64,
    mut floor: impl FnMut() -> Duration,
    mut copy: impl FnMut(usize) -> Duration,
) -> (Times, Times) {
    let (mut floors, mut copies) = (vec![], vec![]);
    floor();
    copy(0);
    copy(1);
    let begun = now();
    let mut i = 2;
    while begun.elapsed().as_secs_f64() < seconds || copies.len() < 3 {
        floors.push(micros(floor()));
        copies.push(micros(copy(i)));
        i += 1;
    }
    (Times::new(floors), Times::new(copies))
}
