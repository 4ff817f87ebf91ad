// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! What came of all the rounds.

use std::fmt;

use serde_json::{Value, json};

use super::client::Seen;

/// Sums over all rounds and clients.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    pub(super) rounds: u32,
    pub(super) clients_killed: u32,
    /// Totals of all processes, those killed included.
    pub(super) seen: Seen,
    /// Outages as clients saw them, milliseconds: from the first refused call to the first answer.
    pub(super) outages_ms: Vec<f64>,
    /// From the kill until every client was served again, milliseconds, one a round.
    pub(super) recoveries_ms: Vec<f64>,
    /// What clients did just before the kills.
    pub(super) before: Seen,
    /// The same just after the recoveries.
    pub(super) after: Seen,
    pub(super) seconds: f64,
}

impl Tally {
    pub(super) fn json(&self, seed: u64) -> Value {
        json!({
            "rounds": self.rounds,
            "seed": seed,
            "seconds": self.seconds,
            "clients_killed": self.clients_killed,
            "requests": self.seen.requests,
            "bytes_verified": self.seen.bytes_verified,
            "mismatches": self.seen.mismatches,
            "damaged_blocks": self.seen.damaged_blocks,
            "prefix_hit_blocks": self.seen.prefix_hit_blocks,
            "late_hit_blocks": self.seen.late_hit_blocks,
            "outages_seen": self.outages_ms.len(),
            "outage_ms": quantiles(&self.outages_ms),
            "recovery_ms": quantiles(&self.recoveries_ms),
            "hit_share_before": share(self.before),
            "hit_share_after": share(self.after),
        })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = |ms: &[f64]| {
            let q = |q| quantile(ms, q);
            format!(
                "p50 {:.0} ms, p99 {:.0} ms, longest {:.0} ms",
                q(0.5),
                q(0.99),
                q(1.0)
            )
        };
        let percent = |hits| share(hits).map_or("none".into(), |s| format!("{:.1} %", s * 100.0));
        writeln!(
            f,
            "  rounds             {} in {:.0} s",
            self.rounds, self.seconds
        )?;
        writeln!(f, "  clients killed     {}", self.clients_killed)?;
        writeln!(f, "  requests           {}", self.seen.requests)?;
        writeln!(
            f,
            "  verified           {:.2} GB",
            self.seen.bytes_verified as f64 / 1e9
        )?;
        writeln!(f, "  wrong blocks       {}", self.seen.mismatches)?;
        writeln!(f, "  damaged, a miss    {}", self.seen.damaged_blocks)?;
        writeln!(
            f,
            "  hits from SSD      {} blocks",
            self.seen.late_hit_blocks
        )?;
        writeln!(f, "  kill to recovery   {}", times(&self.recoveries_ms))?;
        writeln!(
            f,
            "  as clients saw it  {} outages, {}",
            self.outages_ms.len(),
            times(&self.outages_ms)
        )?;
        writeln!(
            f,
            "  prefix hits        {} before, {} after",
            percent(self.before),
            percent(self.after)
        )
    }
}

fn share(seen: Seen) -> Option<f64> {
    let of = seen.blocks_referenced;
    (of > 0).then(|| seen.prefix_hit_blocks as f64 / of as f64)
}

fn quantiles(ms: &[f64]) -> Value {
    json!({ "p50": quantile(ms, 0.5), "p99": quantile(ms, 0.99), "max": quantile(ms, 1.0) })
}

/// The smallest value that a share `q` of all values does not exceed; 0 of nothing.
fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * q).ceil() as usize;
    sorted
        .get(rank.clamp(1, sorted.len().max(1)) - 1)
        .copied()
        .unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_few_and_of_none() {
        assert_eq!(quantile(&[], 0.5), 0.0);
        assert_eq!(quantile(&[3.0, 1.0, 2.0, 4.0], 0.5), 2.0);
        assert_eq!(quantile(&[3.0, 1.0, 2.0, 4.0], 0.99), 4.0);
        assert_eq!(quantile(&[3.0], 0.0), 3.0);
    }

    #[test]
    fn the_table_names_what_matters() {
        let tally = Tally {
            rounds: 3,
            before: Seen {
                prefix_hit_blocks: 1,
                blocks_referenced: 2,
                ..Seen::default()
            },
            ..Tally::default()
        };
        let text = tally.to_string();
        assert!(
            text.contains("wrong blocks       0") && text.contains("50.0 % before, none after")
        );
        assert_eq!(tally.json(1)["hit_share_before"], 0.5);
    }
}
