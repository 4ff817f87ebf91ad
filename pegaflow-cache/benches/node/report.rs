// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Times, and the line that tells them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Microseconds, sorted.
pub(crate) struct Times(Vec<f64>);

impl Times {
    pub(crate) fn new(times: Vec<Duration>) -> Self {
        let mut us: Vec<_> = times.iter().map(|time| time.as_secs_f64() * 1e6).collect();
        us.sort_by(f64::total_cmp);
        Self(us)
    }

    /// Of one of `count` calls that each time is the sum of.
    pub(crate) fn of_each(self, count: f64) -> Self {
        Self(self.0.iter().map(|us| us / count).collect())
    }

    pub(crate) fn at(&self, share: f64) -> f64 {
        self.0[((self.0.len() - 1) as f64 * share).round() as usize]
    }
}

/// A point of the matrix.
pub(crate) struct Point<'a> {
    pub(crate) op: &'a str,
    pub(crate) keys: usize,
    pub(crate) layers: u32,
}

impl Point<'_> {
    /// Prints the line. `floor` says what the least possible is, and how long it took.
    pub(crate) fn print(&self, times: &Times, floor: Option<(&str, &Times)>, extra: Value) {
        let floor_us = floor.map(|(_, times)| times.at(0.5));
        let share = floor_us.map(|us| us / times.at(0.5));
        let mut line = json!({
            "bench": "node",
            "settings": {"op": self.op, "keys": self.keys, "layers": self.layers},
            "machine": machine(),
            "gb_per_s": null,
            "ops_per_s": self.keys as f64 / times.at(0.5) * 1e6,
            "p50_us": times.at(0.5), "p99_us": times.at(0.99), "p999_us": times.at(0.999),
            "floor": {"what": floor.map(|floor| floor.0), "gb_per_s": null, "us": floor_us},
            "floor_share": share,
        });
        if let (Some(line), Some(extra)) = (line.as_object_mut(), extra.as_object()) {
            line.extend(extra.clone());
        }
        eprintln!(
            "{:14} {:>7} keys, {:>2} layers: p50 {:9.3} us, p99 {:9.3}, floor {:9.3}",
            self.op,
            self.keys,
            self.layers,
            times.at(0.5),
            times.at(0.99),
            floor_us.unwrap_or(f64::NAN),
        );
        println!("{line}");
    }
}

fn machine() -> Value {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|line| line.starts_with("model name"));
    let model = model.and_then(|line| line.split(':').nth(1)).map(str::trim);
    json!({"cpus": cpus, "cpu": model})
}
