// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! `pegaflow-server top`: what a node does now, from two looks at its `/metrics`.
//!
//! Pure: text in, text out. Whoever calls it asks the server and keeps the time.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::describe::format_bytes;
use crate::metrics::{self, Metric};

/// One look: every series with its value.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Look {
    series: BTreeMap<String, f64>,
}

impl Look {
    /// Reads the text form of Prometheus. Lines that are none are passed over.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let series = lines.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self {
            series: series.collect(),
        }
    }

    /// The sum of the series of a metric that carry this label; of all if it is empty.
    fn sum(&self, name: &str, label: &str) -> f64 {
        let own = self.series.range(name.to_owned()..);
        let own = own.take_while(|(series, _)| series.starts_with(name));
        let own = own.filter(|(series, _)| {
            let labels = &series[name.len()..];
            (labels.is_empty() || labels.starts_with('{')) && labels.contains(label)
        });
        own.map(|(_, value)| value).sum()
    }
}

/// Two looks, and the seconds between them.
struct Between<'a> {
    before: &'a Look,
    now: &'a Look,
    seconds: f64,
}

impl Between<'_> {
    fn gauge(&self, metric: Metric, label: &str) -> f64 {
        self.now.sum(metric.name, label)
    }

    fn grown(&self, name: &str, label: &str) -> f64 {
        (self.now.sum(name, label) - self.before.sum(name, label)).max(0.0)
    }

    fn rate(&self, metric: Metric, label: &str) -> f64 {
        self.grown(metric.name, label) / self.seconds.max(1e-3)
    }

    /// The upper bound of the bucket that a share `q` of the new observations does not exceed.
    fn quantile(&self, metric: Metric, label: &str, q: f64) -> Option<f64> {
        let name = format!("{}_bucket", metric.name);
        let of = |bound: f64| {
            let le = format!("le=\"{bound}\"");
            let series = self.now.series.range(name.clone()..);
            let series = series.take_while(|(series, _)| series.starts_with(&name));
            let own = series.filter(|(series, _)| series.contains(&le) && series.contains(label));
            let grown = own.map(|(series, value)| {
                value - self.before.series.get(series).copied().unwrap_or(0.0)
            });
            grown.sum::<f64>()
        };
        let all = self.grown(&format!("{}_count", metric.name), label);
        let fits = |bound: &&f64| of(**bound) >= q * all;
        (all > 0.0).then(|| {
            metric
                .buckets
                .iter()
                .find(fits)
                .copied()
                .unwrap_or(f64::INFINITY)
        })
    }
}

/// One screen.
#[must_use]
pub fn screen(before: &Look, now: &Look, seconds: f64) -> String {
    let between = Between {
        before,
        now,
        seconds,
    };
    let mut out = String::new();
    tiers(&between, &mut out);
    calls(&between, &mut out);
    troubles(&between, &mut out);
    out
}

fn tiers(b: &Between<'_>, out: &mut String) {
    let asked = b.rate(metrics::LOOKUP_BLOCKS, "");
    let share = |part: f64| {
        if asked > 0.0 {
            100.0 * part / asked
        } else {
            0.0
        }
    };
    let hits = share(b.rate(metrics::LOOKUP_BLOCKS, "\"hit\""));
    let fetched = share(b.rate(metrics::SSD_FETCH_BLOCKS, "\"fetched\""));
    let _ = writeln!(
        out,
        "lookups {:>9.0}/s   blocks {asked:>9.0}/s   from the pool {hits:>5.1} %   from SSD {fetched:>5.1} %\n",
        b.rate(metrics::LOOKUPS, "")
    );
    let _ = writeln!(
        out,
        "{:<6}{:>12}{:>12}{:>14}{:>14}",
        "tier", "used", "of", "in", "out"
    );
    let bytes = |n: f64| format_bytes(round(n));
    let rows = [
        (
            "pool",
            [metrics::POOL_USED_BYTES, metrics::POOL_CAPACITY_BYTES],
            [metrics::SEALED_BYTES, metrics::HIT_BYTES],
        ),
        (
            "SSD",
            [metrics::SSD_USED_BYTES, metrics::SSD_CAPACITY_BYTES],
            [metrics::SSD_SPILL_BYTES, metrics::SSD_FETCH_BYTES],
        ),
    ];
    for (name, [used, of], [to, from]) in rows {
        let _ = writeln!(
            out,
            "{name:<6}{:>12}{:>12}{:>12}/s{:>12}/s",
            bytes(b.gauge(used, "")),
            bytes(b.gauge(of, "")),
            bytes(b.rate(to, "")),
            bytes(b.rate(from, "")),
        );
    }
}

/// Whole MiB, where there are any: screens need no more.
fn round(bytes: f64) -> u64 {
    let bytes = bytes.max(0.0) as u64;
    let step = match bytes {
        0..0x40_0000 => 1 << 10,
        0x40_0000..0x1_0000_0000 => 1 << 20,
        _ => 1 << 30,
    };
    bytes / step * step
}

fn calls(b: &Between<'_>, out: &mut String) {
    let _ = writeln!(
        out,
        "\n{:<20}{:>12}{:>14}{:>14}",
        "call", "a second", "half in", "99 % in"
    );
    let time = |us: Option<f64>| us.map_or("-".to_owned(), |s| format!("{:.2} ms", s * 1e3));
    let mut row = |name: &str, metric: Metric, label: &str| {
        let count = b.grown(&format!("{}_count", metric.name), label);
        if count > 0.0 {
            let _ = writeln!(
                out,
                "{name:<20}{:>12.0}{:>14}{:>14}",
                count / b.seconds,
                time(b.quantile(metric, label, 0.5)),
                time(b.quantile(metric, label, 0.99)),
            );
        }
    };
    for call in metrics::CALLS {
        row(call, metrics::CALL_SECONDS, &format!("call=\"{call}\""));
    }
    row("fetch from SSD", metrics::SSD_FETCH_SECONDS, "");
}

fn troubles(b: &Between<'_>, out: &mut String) {
    let _ = writeln!(
        out,
        "\nsessions {:.0}   leases {:.0}   waiting lookups {:.0}   blocks waiting for SSD {:.0}",
        b.gauge(metrics::SESSIONS, ""),
        b.gauge(metrics::LEASES, ""),
        b.gauge(metrics::WAITERS, ""),
        b.gauge(metrics::SSD_WAITING_BLOCKS, ""),
    );
    let counts = [
        ("evicted", metrics::EVICTED_BLOCKS, ""),
        ("refused", metrics::RESERVE_BLOCKS, "\"refused\""),
        ("failed calls", metrics::CALL_FAILURES, ""),
    ];
    for (name, metric, label) in counts {
        let _ = write!(out, "{name} {:.0}/s   ", b.rate(metric, label));
    }
    let wrong =
        b.gauge(metrics::CORRUPT_BLOCKS, "") + b.gauge(metrics::SSD_FETCH_BLOCKS, "\"corrupt\"");
    let failed = b.gauge(metrics::SSD_FETCH_BLOCKS, "\"failed\"")
        + b.gauge(metrics::SSD_SPILL_BLOCKS, "\"failed\"");
    let _ = writeln!(
        out,
        "wrong bytes found, ever {wrong:.0}   SSD failures, ever {failed:.0}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "# HELP x y\n\
        pegaflow_lookups_total 10\n\
        pegaflow_lookup_blocks_total{outcome=\"hit\"} 100\n\
        pegaflow_lookup_blocks_total{outcome=\"miss\"} 100\n\
        pegaflow_call_seconds_bucket{call=\"lookup\",le=\"0.00001\"} 1\n\
        pegaflow_call_seconds_bucket{call=\"lookup\",le=\"0.001\"} 1\n\
        pegaflow_call_seconds_count{call=\"lookup\"} 1\n";
    const NOW: &str = "pegaflow_lookups_total 30\n\
        pegaflow_lookup_blocks_total{outcome=\"hit\"} 400\n\
        pegaflow_lookup_blocks_total{outcome=\"miss\"} 200\n\
        pegaflow_pool_used_bytes 4194304\n\
        pegaflow_call_seconds_bucket{call=\"lookup\",le=\"0.00001\"} 2\n\
        pegaflow_call_seconds_bucket{call=\"lookup\",le=\"0.001\"} 11\n\
        pegaflow_call_seconds_count{call=\"lookup\"} 11\n\
        not a series\n";

    #[test]
    fn two_looks_make_a_screen() {
        let screen = screen(&Look::parse(BEFORE), &Look::parse(NOW), 2.0);
        for part in [
            "lookups        10/s",
            "from the pool  75.0 %",
            "4MiB",
            "lookup                         5       1.00 ms       1.00 ms",
        ] {
            assert!(screen.contains(part), "`{part}` in\n{screen}");
        }
    }

    #[test]
    fn a_server_that_does_nothing_has_a_screen_too() {
        let screen = screen(&Look::default(), &Look::default(), 0.0);
        assert!(
            screen.contains("from SSD   0.0 %") && !screen.contains("NaN"),
            "{screen}"
        );
    }
}
