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
    pub(crate) fn new(times: &[Duration]) -> Self {
        let mut us: Vec<_> = times.iter().map(|time| time.as_secs_f64() * 1e6).collect();
        us.sort_by(f64::total_cmp);
        Self(us)
    }

    pub(crate) fn at(&self, share: f64) -> f64 {
        self.0[((self.0.len() - 1) as f64 * share).round() as usize]
    }
}

/// One point: what was measured, and beside it what it is compared with.
pub(crate) struct Point<'a> {
    pub(crate) op: &'a str,
    pub(crate) blocks: u64,
    pub(crate) bytes: u64,
    pub(crate) floor: &'a str,
}

impl Point<'_> {
    pub(crate) fn print(&self, times: &Times, floor: &Times) {
        let (us, floor_us) = (times.at(0.5), floor.at(0.5));
        let gb_per_s = |us: f64| (self.bytes > 0).then(|| self.bytes as f64 / us / 1e3);
        eprintln!(
            "{:12} p50 {us:10.1} us, p99 {:10.1}; {}: {floor_us:10.1} us; share {:.3}",
            self.op,
            times.at(0.99),
            self.floor,
            floor_us / us
        );
        let line = json!({
            "bench": "tiers",
            "settings": {"op": self.op, "blocks": self.blocks, "bytes": self.bytes},
            "machine": machine(),
            "gb_per_s": gb_per_s(us),
            "ops_per_s": self.blocks as f64 / us * 1e6,
            "p50_us": us, "p99_us": times.at(0.99), "p999_us": times.at(0.999),
            "floor": {"what": self.floor, "gb_per_s": gb_per_s(floor_us), "us": floor_us},
            "floor_share": floor_us / us,
        });
        println!("{line}");
    }

    /// A point whose value is a share, with what it was made of.
    pub(crate) fn print_share(&self, share: f64, extra: Value) {
        eprintln!("{:12} share {share:.3}; {extra}", self.op);
        let mut line = json!({
            "bench": "tiers",
            "settings": {"op": self.op, "blocks": self.blocks, "bytes": self.bytes},
            "machine": machine(),
            "gb_per_s": null, "ops_per_s": null, "p50_us": null, "p99_us": null, "p999_us": null,
            "floor": {"what": self.floor, "gb_per_s": null, "us": null},
            "floor_share": share,
        });
        if let (Some(line), Some(extra)) = (line.as_object_mut(), extra.as_object()) {
            line.extend(extra.clone());
        }
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
