// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Compares a run with an earlier one, point by point.
//!
//! Each point is judged by one figure, the first of these that both runs have: share of the floor (most of a slow or
//! busy machine cancels out of it), operations a second, GB/s, median latency. Tails are shown in the table but not
//! judged: they differ between two runs of the same program.

use crate::bench::line::Line;

/// How two runs of a benchmark differ.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Comparison {
    /// One text per point that both runs have.
    pub(crate) points: Vec<String>,
    /// The points among them that are worse by more than the threshold.
    pub(crate) regressions: Vec<String>,
    /// Points of the earlier run that this one lacks.
    pub(crate) gone: Vec<String>,
    /// Points that only this run has.
    pub(crate) new: Vec<String>,
}

/// Compares `now` with `then`; worse by more than `threshold` (0.1 is 10 %) is a regression.
pub(crate) fn compare(then: &[Line], now: &[Line], threshold: f64) -> Comparison {
    let same = |a: &Line, b: &Line| a.bench == b.bench && a.settings == b.settings;
    let mut result = Comparison::default();
    for line in now {
        let Some(before) = then.iter().find(|before| same(before, line)) else {
            result.new.push(line.label());
            continue;
        };
        let Some((what, ratio)) = judge(before, line) else {
            result.gone.push(format!(
                "{}: no figure that both runs measured",
                line.label()
            ));
            continue;
        };
        let text = format!("{}: {what} {:+.1} %", line.label(), 100.0 * (ratio - 1.0));
        if ratio < 1.0 - threshold {
            result.regressions.push(text.clone());
        }
        result.points.push(text);
    }
    let gone = then.iter().filter(|b| !now.iter().any(|l| same(b, l)));
    result.gone.extend(gone.map(Line::label));
    result
}

/// The figure that decides, and this run's over the earlier one's: above 1 is better, whatever the figure.
fn judge(then: &Line, now: &Line) -> Option<(&'static str, f64)> {
    let more = |a: Option<f64>, b: Option<f64>| Some(b? / a.filter(|a| *a > 0.0)?);
    more(then.floor_share, now.floor_share)
        .map(|ratio| ("share of floor", ratio))
        .or_else(|| more(then.ops_per_s, now.ops_per_s).map(|ratio| ("ops/s", ratio)))
        .or_else(|| more(then.gb_per_s, now.gb_per_s).map(|ratio| ("GB/s", ratio)))
        .or_else(|| more(now.latency_us[0], then.latency_us[0]).map(|ratio| ("1/p50", ratio)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(op: &str, share: Option<f64>, ops: Option<f64>, p50: Option<f64>) -> Line {
        let json = |n: Option<f64>| n.map_or("null".to_owned(), |n| n.to_string());
        let floor = share.map_or("null", |_| r#"{"what":"x","gb_per_s":1,"us":null}"#);
        let raw = format!(
            r#"{{"bench":"b","settings":{{"op":"{op}"}},"machine":{{"cpus":2}},"gb_per_s":null,"ops_per_s":{},"p50_us":{},"p99_us":null,"p999_us":null,"floor":{floor},"floor_share":{}}}"#,
            json(ops),
            json(p50),
            json(share)
        );
        Line::parse(&raw).expect("the line keeps the contract")
    }

    /// One point before and after against what is said of it, at a threshold of 10 %.
    fn check(then: Line, now: Line, points: &[&str], regressed: bool) {
        let got = compare(&[then], &[now], 0.1);
        assert_eq!(got.points, points);
        assert_eq!(!got.regressions.is_empty(), regressed);
    }

    #[test]
    fn the_share_of_the_floor_decides_before_raw_figures() {
        check(
            line("a", Some(0.8), Some(100.0), None),
            line("a", Some(0.8), Some(50.0), None),
            &["a: share of floor +0.0 %"],
            false,
        );
    }

    #[test]
    fn worse_than_the_threshold_is_a_regression_and_better_never() {
        let p50 = |us| line("a", None, None, Some(us));
        check(p50(10.0), p50(10.9), &["a: 1/p50 -8.3 %"], false);
        check(p50(10.0), p50(12.0), &["a: 1/p50 -16.7 %"], true);
        check(p50(10.0), p50(1.0), &["a: 1/p50 +900.0 %"], false);
    }

    #[test]
    fn points_that_come_and_go_are_named() {
        let got = compare(
            &[line("a", None, Some(1.0), None)],
            &[line("b", None, Some(1.0), None)],
            0.1,
        );
        assert_eq!((got.gone, got.new), (vec!["a".into()], vec!["b".into()]));
    }
}
