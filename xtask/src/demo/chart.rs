// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The curves of a demo as one SVG: hit rate above, latencies below, both over time.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use plotters::coord::Shift;
use plotters::coord::ranged1d::Ranged;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use serde_json::Value;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

const SIZE: (u32, u32) = (960, 640);
// Room for the legends, right of the curves.
const LEGEND: i32 = 210;
const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const GRID: RGBColor = RGBColor(0xe4, 0xe4, 0xe4);
const BLUE: RGBColor = RGBColor(0x3b, 0x7d, 0xd8);
const RED: RGBColor = RGBColor(0xd8, 0x5a, 0x3b);
const GREEN: RGBColor = RGBColor(0x3f, 0x9b, 0x5b);
const GREY: RGBColor = RGBColor(0x99, 0x99, 0x99);

struct Curve {
    label: &'static str,
    color: RGBColor,
    width: u32,
    points: Vec<(f64, f64)>,
}

/// Writes the picture of a replay's result to `path`.
pub(super) fn draw(path: &Path, result: &Value) -> anyhow::Result<()> {
    let series = result["series"]
        .as_array()
        .context("the result has no series")?;
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    paint(&area, series, result).map_err(|e| anyhow!("cannot draw {}: {e}", path.display()))
}

fn paint(area: &Area<'_>, series: &[Value], result: &Value) -> Drawn {
    area.fill(&WHITE)?;
    let (top, bottom) = area.split_vertically(SIZE.1 / 2);
    let end = result["seconds"].as_f64().unwrap_or(1.0).max(0.1);
    let shares = [
        curve("plain LRU of the same size", GREY, 1, series, |s| {
            s["plain_lru_hit_share"].as_f64()
        }),
        curve("PegaFlow", BLUE, 2, series, |s| s["hit_share"].as_f64()),
    ];
    let shares = shares.map(|curve| Curve {
        points: smooth(&curve.points),
        ..curve
    });
    hit_rate(&top, &shares, end)?;
    let p = |name: &'static str, q: &'static str| {
        move |s: &Value| s[name][q].as_f64().filter(|us| *us > 0.0)
    };
    let times = [
        curve("load p99", GREEN, 1, series, p("load_us", "p99")),
        curve("load p50", GREEN, 2, series, p("load_us", "p50")),
        curve("save p99", RED, 1, series, p("save_us", "p99")),
        curve("save p50", RED, 2, series, p("save_us", "p50")),
        curve("lookup p99", BLUE, 1, series, p("lookup_us", "p99")),
        curve("lookup p50", BLUE, 2, series, p("lookup_us", "p50")),
    ];
    latencies(&bottom, &times, end)?;
    area.present()?;
    Ok(())
}

fn curve(
    label: &'static str,
    color: RGBColor,
    width: u32,
    series: &[Value],
    value: impl Fn(&Value) -> Option<f64>,
) -> Curve {
    let point = |s: &Value| Some((s["seconds"].as_f64()?, value(s)?));
    Curve {
        label,
        color,
        width,
        points: series.iter().filter_map(point).collect(),
    }
}

// Mean over the last eight points: a quarter of a second of requests is noisy.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mean = |(i, point): (usize, &(f64, f64))| {
        let window = &points[i.saturating_sub(7)..=i];
        let sum: f64 = window.iter().map(|p| p.1).sum();
        (point.0, sum / window.len() as f64)
    };
    points.iter().enumerate().map(mean).collect()
}

fn hit_rate(area: &Area<'_>, curves: &[Curve], end: f64) -> Drawn {
    let mut chart = ChartBuilder::on(area)
        .caption(
            "prefix hits, share of blocks (mean of 2 s)",
            ("sans-serif", 16, &INK),
        )
        .margin(12)
        .margin_right(LEGEND)
        .x_label_area_size(24)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..end, 0.0..1.0)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .y_label_formatter(&|share| format!("{:.0} %", share * 100.0))
        .x_label_formatter(&|s| format!("{s:.0} s"))
        .draw()?;
    plot(&mut chart, curves)?;
    Ok(())
}

fn latencies(area: &Area<'_>, curves: &[Curve], end: f64) -> Drawn {
    let all = curves.iter().flat_map(|c| c.points.iter().map(|p| p.1));
    let (low, high) = all.fold((f64::MAX, 10.0_f64), |(l, h), us| (l.min(us), h.max(us)));
    let low = low.min(high / 10.0).max(0.1);
    let mut chart = ChartBuilder::on(area)
        .caption("latency of a call", ("sans-serif", 16, &INK))
        .margin(12)
        .margin_right(LEGEND)
        .x_label_area_size(24)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..end, (low / 1.5..high * 1.5).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .y_label_formatter(&|us| micros(*us))
        .x_label_formatter(&|s| format!("{s:.0} s"))
        .draw()?;
    plot(&mut chart, curves)?;
    Ok(())
}

fn plot<'a, Y: Ranged<ValueType = f64>>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, Y>>,
    curves: &[Curve],
) -> Drawn {
    for Curve {
        label,
        color,
        width,
        points,
    } in curves
    {
        let style = color.stroke_width(*width);
        let line = LineSeries::new(points.iter().copied(), style);
        let key = move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style);
        chart.draw_series(line)?.label(*label).legend(key);
    }
    chart
        .configure_series_labels()
        .background_style(WHITE)
        .border_style(GRID)
        .draw()?;
    Ok(())
}

fn micros(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{:.0} s", us / 1e6),
        us if us >= 1e3 => format!("{:.0} ms", us / 1e3),
        us => format!("{us:.0} us"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Draws a result with these samples, and returns the SVG.
    fn check(series: Value) -> String {
        let folder = tempfile::tempdir().expect("a folder for the picture");
        let path = folder.path().join("demo.svg");
        let result = serde_json::json!({ "seconds": 2.0, "series": series });
        draw(&path, &result).expect("it can be drawn");
        std::fs::read_to_string(&path).expect("it was written")
    }

    #[test]
    fn curves_are_drawn_with_gaps_and_without_data() {
        let sample = |s: f64, hit: Value| {
            let us = serde_json::json!({ "p50": 10.0 * s, "p99": 900.0 });
            serde_json::json!({
                "seconds": s, "hit_share": hit, "plain_lru_hit_share": 0.5,
                "lookup_us": us, "save_us": { "p50": 0.0, "p99": 0.0 }, "load_us": us,
            })
        };
        let svg = check(serde_json::json!([
            sample(0.5, 0.1.into()),
            sample(1.0, Value::Null),
            sample(1.5, 0.7.into())
        ]));
        for part in ["<svg", "prefix hits", "PegaFlow", "lookup p99", "plain LRU"] {
            assert!(svg.contains(part), "{part}");
        }
        assert!(check(serde_json::json!([])).contains("latency of a call"));
    }
}
