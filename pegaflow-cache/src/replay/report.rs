// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The result of a replay, as JSON for programs and as a table for people.

use std::fmt;

use serde::Serialize;

use super::drive::Outcome;
use super::facts::TraceFacts;
use super::meter::{Counts, Latencies, Latency, Sample};
use super::settings::ReplaySettings;
use super::source::PlainLru;

/// Everything a replay found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Counts; `mismatches` must be 0.
    #[serde(flatten)]
    pub counts: Counts,
    /// Blocks of this shape that the node's pool can hold.
    pub capacity_blocks: u64,
    /// Share of the blocks that were prefix hits, 0 to 1.
    pub prefix_hit_share: f64,
    /// Share of the blocks that were prefix hits from SSD, or from a save that was waited for, 0 to 1.
    pub late_hit_share: f64,
    /// An independent plain LRU of the same capacity, on the same requests in the same order.
    pub plain_lru: PlainLru,
    /// Its share of prefix hits, 0 to 1.
    pub plain_lru_hit_share: f64,
    /// Latencies: a lookup, and the save or load of one chunk of blocks of one rank.
    #[serde(flatten)]
    pub latencies: Latencies,
    /// Wall time.
    pub seconds: f64,
    /// Largest resident memory of all processes together: the replay's, with the pool pages it touched, and
    /// the server's, if there is one.
    pub peak_rss_bytes: u64,
    /// The server's part of it.
    pub server_rss_bytes: Option<u64>,
    /// How long the node was away each time, milliseconds.
    pub recoveries_ms: Vec<f64>,
    /// Facts about the requests.
    pub workload: TraceFacts,
    /// What was replayed, and how.
    pub settings: ReplaySettings,
    /// The curves.
    pub series: Vec<Sample>,
}

/// Largest resident memory of the processes of a replay, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rss {
    /// The replaying process, with the node if that is inside, and with what it touched of the pool.
    pub replay_bytes: u64,
    /// The server, if there is one.
    pub server_bytes: Option<u64>,
}

impl Report {
    /// Puts together what a replay found.
    pub fn new(outcome: Outcome, capacity_blocks: u64, settings: ReplaySettings, rss: Rss) -> Self {
        let share = |hits: u64, of: u64| hits as f64 / of.max(1) as f64;
        let (counts, facts, lru) = (outcome.counts, outcome.facts, outcome.plain_lru);
        Self {
            prefix_hit_share: share(counts.prefix_hit_blocks, counts.blocks_referenced),
            late_hit_share: share(counts.late_hit_blocks, counts.blocks_referenced),
            plain_lru_hit_share: share(lru.prefix_hit_blocks, facts.references),
            plain_lru: lru,
            counts,
            capacity_blocks,
            latencies: outcome.latencies,
            seconds: outcome.seconds,
            peak_rss_bytes: rss.replay_bytes + rss.server_bytes.unwrap_or(0),
            server_rss_bytes: rss.server_bytes,
            recoveries_ms: outcome.recoveries_ms,
            workload: facts,
            settings,
            series: outcome.series,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = &self.counts;
        let per_s = |n: u64| n as f64 / self.seconds.max(1e-9);
        let gb = |bytes: u64| bytes as f64 / 1e9;
        let line = |f: &mut fmt::Formatter<'_>, name: &str, value: String, note: String| {
            writeln!(f, "  {name:<20}{value:>14}   {note}")
        };
        let rate = format!(
            "in {:.1} s, {:.0} a second",
            self.seconds,
            per_s(c.requests)
        );
        line(f, "requests", grouped(c.requests), rate)?;
        let pool = format!("the pool holds {}", grouped(self.capacity_blocks));
        line(f, "blocks referenced", grouped(c.blocks_referenced), pool)?;
        let lru = format!(
            "a plain LRU of as many blocks: {:.2} %",
            self.plain_lru_hit_share * 100.0
        );
        line(
            f,
            "prefix hits",
            format!("{:.2} %", self.prefix_hit_share * 100.0),
            lru,
        )?;
        if self.settings.wait_ms > 0 {
            let percent = |share: f64| format!("{:.2} %", share * 100.0);
            let ram = percent(self.prefix_hit_share - self.late_hit_share);
            line(f, "  from the pool", ram, "ready at once".to_owned())?;
            let waited = &self.latencies.wait_us;
            let note = format!(
                "waited for {:.1} ms (p50), {:.1} ms (p99)",
                waited.p50 / 1e3,
                waited.p99 / 1e3
            );
            line(f, "  from SSD", percent(self.late_hit_share), note)?;
        }
        for (name, bytes) in [
            ("saved", c.bytes_saved),
            ("loaded", c.bytes_loaded),
            ("verified", c.bytes_verified),
        ] {
            let rate = format!("{:.2} GB/s", gb(bytes) / self.seconds.max(1e-9));
            line(f, name, format!("{:.2} GB", gb(bytes)), rate)?;
        }
        let damaged = match c.damaged_blocks {
            0 => String::new(),
            n => format!("{n} found damaged and treated as a miss"),
        };
        line(f, "wrong blocks", grouped(c.mismatches), damaged)?;
        if c.refused_blocks + c.refused_requests > 0 {
            let note = format!("and {} requests", c.refused_requests);
            line(f, "refused blocks", grouped(c.refused_blocks), note)?;
        }
        if !self.recoveries_ms.is_empty() {
            let longest = self.recoveries_ms.iter().copied().fold(0.0, f64::max);
            let n = self.recoveries_ms.len() as u64;
            line(
                f,
                "outages",
                grouped(n),
                format!("the longest took {longest:.0} ms"),
            )?;
        }
        let server = self.server_rss_bytes.map_or(String::new(), |bytes| {
            format!(", of that {:.0} MB the server's own", bytes as f64 / 1e6)
        });
        let rss = format!("{:.2} GB", gb(self.peak_rss_bytes));
        line(f, "peak memory", rss, format!("with the pool{server}"))?;
        self.latency_table(f)
    }
}

impl Report {
    fn latency_table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["p50", "p99", "p99.9", "max"];
        write!(f, "\n  {:<20}", "latency, us")?;
        names.iter().try_for_each(|name| write!(f, "{name:>11}"))?;
        let chunk = self.settings.chunk_blocks;
        let rows = [
            ("lookup".to_owned(), &self.latencies.lookup_us),
            (format!("save, <= {chunk} blocks"), &self.latencies.save_us),
            (format!("load, <= {chunk} blocks"), &self.latencies.load_us),
        ];
        for (
            name,
            Latency {
                p50,
                p99,
                p999,
                max,
                ..
            },
        ) in rows
        {
            write!(
                f,
                "\n  {name:<20}{p50:>11.0}{p99:>11.0}{p999:>11.0}{max:>11.0}"
            )?;
        }
        writeln!(f)
    }
}

/// A number with separators: `12,345`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Largest resident memory of a process so far, in bytes, from the text of its `/proc/<pid>/status`.
pub fn peak_rss_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let outcome = Outcome {
            counts: Counts {
                requests: 1234,
                blocks_referenced: 20_000,
                prefix_hit_blocks: 5_000,
                bytes_saved: 3_000_000_000,
                ..Counts::default()
            },
            latencies: Latencies::default(),
            plain_lru: PlainLru {
                prefix_hit_blocks: 4_000,
                ..PlainLru::default()
            },
            facts: TraceFacts {
                references: 20_000,
                ..TraceFacts::default()
            },
            seconds: 2.0,
            recoveries_ms: vec![10.0, 30.0],
            series: vec![],
        };
        Report::new(outcome, 9_999, ReplaySettings::default(), Rss::default())
    }

    #[test]
    fn programs_find_what_they_look_for() {
        let json = serde_json::to_value(report()).expect("plain data");
        for field in [
            "requests",
            "blocks_referenced",
            "capacity_blocks",
            "prefix_hit_blocks",
            "bytes_saved",
            "bytes_loaded",
            "bytes_verified",
            "mismatches",
            "seconds",
            "peak_rss_bytes",
        ] {
            assert!(json[field].is_number(), "{field}");
        }
        for latency in ["lookup_us", "save_us", "load_us"] {
            assert!(json[latency]["p50"].is_number() && json[latency]["p99"].is_number());
        }
        assert_eq!(json["prefix_hit_share"], 0.25);
        assert_eq!(json["plain_lru_hit_share"], 0.2);
    }

    #[test]
    fn people_read_the_essentials() {
        let text = report().to_string();
        for part in [
            "1,234",
            "617 a second",
            "25.00 %",
            "20.00 %",
            "3.00 GB",
            "longest took 30 ms",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }

    #[test]
    fn peak_memory_is_read_from_proc() {
        assert_eq!(
            peak_rss_bytes("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS: 1 kB"),
            Some(2 << 20)
        );
        assert_eq!(peak_rss_bytes("Name:\tx\n"), None);
    }
}
