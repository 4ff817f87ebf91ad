// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Shows how far a replay is: a bar for people, lines for logs, JSON for programs.

use std::io::{IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pegaflow_cache::replay::drive::Progress;
use pegaflow_cache::replay::report::grouped;

use crate::args;

const LINE_EVERY_S: f64 = 5.0;

/// What there is to come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// Requests, if that is known.
    pub(crate) requests: Option<u64>,
    /// Time limit, seconds; 0 for none.
    pub(crate) seconds: f64,
}

impl Extent {
    /// Share that is done, 0 to 1.
    fn done(&self, progress: &Progress<'_>) -> Option<f64> {
        let of = |part: f64, whole: f64| (whole > 0.0).then(|| (part / whole).min(1.0));
        let requests = self
            .requests
            .and_then(|n| of(progress.counts.requests as f64, n as f64));
        let seconds = of(progress.seconds, self.seconds);
        requests.into_iter().chain(seconds).reduce(f64::max)
    }
}

/// One way of showing.
pub(crate) enum Shown {
    Bar(ProgressBar, Extent),
    Lines { next_s: f64, extent: Extent },
    Events,
    Nothing,
}

// Steps of the bar: fine enough to move smoothly.
const STEPS: f64 = 10_000.0;

impl Shown {
    pub(crate) fn new(how: args::Progress, extent: Extent) -> Self {
        let terminal = std::io::stderr().is_terminal();
        match how {
            args::Progress::Auto if terminal => Self::bar(extent),
            args::Progress::Bar => Self::bar(extent),
            args::Progress::Auto | args::Progress::Lines => Self::Lines {
                next_s: LINE_EVERY_S,
                extent,
            },
            args::Progress::Events => Self::Events,
            args::Progress::None => Self::Nothing,
        }
    }

    fn bar(extent: Extent) -> Self {
        let bar = ProgressBar::with_draw_target(
            Some(STEPS as u64),
            ProgressDrawTarget::stderr_with_hz(10),
        );
        let style = ProgressStyle::with_template("  {bar:20.cyan/dim} {percent:>3}% {msg}");
        bar.set_style(style.expect("a valid template").progress_chars("━╸─"));
        Self::Bar(bar, extent)
    }

    pub(crate) fn update(&mut self, progress: &Progress<'_>) {
        match self {
            Shown::Bar(bar, extent) => {
                bar.set_message(summary(progress));
                bar.set_position((extent.done(progress).unwrap_or(0.0) * STEPS) as u64);
            }
            Shown::Lines { next_s, extent } if progress.seconds >= *next_s => {
                *next_s += LINE_EVERY_S;
                let done = extent
                    .done(progress)
                    .map_or(String::new(), |d| format!("{:>3.0} %  ", d * 100.0));
                eprintln!("  {done}{:>5.1} s  {}", progress.seconds, summary(progress));
            }
            Shown::Events => event(progress),
            Shown::Lines { .. } | Shown::Nothing => {}
        }
    }

    pub(crate) fn finish(self) {
        if let Shown::Bar(bar, _) = self {
            bar.finish_and_clear();
        }
    }
}

fn summary(progress: &Progress<'_>) -> String {
    let (c, s) = (&progress.counts, progress.sample);
    let hits = 100.0 * c.prefix_hit_blocks as f64 / c.blocks_referenced.max(1) as f64;
    let wrong = match c.mismatches {
        0 => "0 wrong".to_owned(),
        n => format!("{n} WRONG BLOCKS"),
    };
    format!(
        "{:>6} requests  hits {hits:>4.1} %  {:>4.1} GB/s  {:>5.1} GB verified, {wrong}  lookup p99 {:.0} us",
        grouped(c.requests),
        s.bytes_per_s / 1e9,
        c.bytes_verified as f64 / 1e9,
        s.latencies.lookup_us.p99,
    )
}

// A line per sample; a reader that is gone is no reason to stop.
fn event(progress: &Progress<'_>) {
    let line = serde_json::json!({
        "seconds": progress.seconds,
        "counts": progress.counts,
        "recoveries_ms": progress.recoveries_ms,
        "hit_share": progress.sample.hit_share,
    });
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
