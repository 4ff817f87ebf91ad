// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Panels of curves as one SVG, three in a row.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::prelude::*;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// One time series.
#[derive(Debug, Clone)]
pub(super) struct Curve {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) name: String,
    /// Seconds and value.
    pub(super) points: Vec<(f64, f64)>,
}

/// One panel.
#[derive(Debug)]
pub(super) struct Panel {
    pub(super) title: String,
    /// As Grafana calls it.
    pub(super) unit: String,
    pub(super) curves: Vec<Curve>,
}

const COLUMNS: usize = 3;
const PANEL: (u32, u32) = (420, 250);
// Room for the legend below the curves.
const LEGEND: i32 = 34;
const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const GRID: RGBColor = RGBColor(0xe4, 0xe4, 0xe4);
const COLORS: [RGBColor; 8] = [
    RGBColor(0x3b, 0x7d, 0xd8),
    RGBColor(0xd8, 0x5a, 0x3b),
    RGBColor(0x3f, 0x9b, 0x5b),
    RGBColor(0x8a, 0x5b, 0xc7),
    RGBColor(0xc7, 0x9a, 0x1e),
    RGBColor(0x2a, 0x9d, 0xa8),
    RGBColor(0xc4, 0x4f, 0x8f),
    RGBColor(0x99, 0x99, 0x99),
];

impl Curve {
    /// Named as Grafana would: labels in place of `{{label}}`.
    pub(super) fn named(mut self, legend: &str) -> Self {
        let mut name = legend.to_owned();
        for (label, value) in &self.labels {
            name = name.replace(&format!("{{{{{label}}}}}"), value);
        }
        self.name = name;
        self
    }

    fn is_zero(&self) -> bool {
        self.points.iter().all(|point| point.1 == 0.0)
    }
}

/// Writes the picture of `panels` over so many seconds.
pub(super) fn draw(path: &Path, panels: &[Panel], seconds: f64) -> anyhow::Result<()> {
    let rows = panels.len().div_ceil(COLUMNS).max(1);
    let size = (PANEL.0 * COLUMNS as u32, PANEL.1 * rows as u32);
    let area = SVGBackend::new(path, size).into_drawing_area();
    paint(&area, panels, rows, seconds)
        .map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

fn paint(area: &Area<'_>, panels: &[Panel], rows: usize, seconds: f64) -> Drawn {
    area.fill(&WHITE)?;
    for (panel, area) in panels.iter().zip(area.split_evenly((rows, COLUMNS))) {
        paint_panel(&area, panel, seconds)?;
    }
    area.present()?;
    Ok(())
}

fn paint_panel(area: &Area<'_>, panel: &Panel, seconds: f64) -> Drawn {
    let values = panel.curves.iter().flat_map(|curve| &curve.points);
    let most = values.map(|point| point.1).fold(0.0, f64::max);
    let most = if most > 0.0 { most * 1.05 } else { 1.0 };
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, ("sans-serif", 14, &INK))
        .margin(8)
        .margin_bottom(LEGEND)
        .x_label_area_size(18)
        .y_label_area_size(58)
        .build_cartesian_2d(0.0..seconds, 0.0..most)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .x_labels(6)
        .y_labels(5)
        .x_label_formatter(&|s| format!("{s:.0} s"))
        .y_label_formatter(&|value| shown(*value, &panel.unit))
        .draw()?;
    let seen = panel.curves.iter().filter(|curve| !curve.is_zero());
    for (curve, color) in seen.clone().zip(COLORS.iter().cycle()) {
        let line = LineSeries::new(curve.points.iter().copied(), color.stroke_width(2));
        chart.draw_series(line)?;
    }
    legend(area, seen, panel)
}

/// Names side by side, in two lines at most; curves that are zero all along only by number.
fn legend<'a>(area: &Area<'_>, seen: impl Iterator<Item = &'a Curve>, panel: &Panel) -> Drawn {
    let zero = panel.curves.iter().filter(|curve| curve.is_zero()).count();
    let named = seen.map(|curve| curve.name.clone());
    let named = named.zip(COLORS.iter().copied().cycle());
    let rest = (zero > 0).then(|| (format!("{zero} at zero"), COLORS[7]));
    let (mut x, mut y) = (12, PANEL.1 as i32 - LEGEND + 4);
    for (name, color) in named.chain(rest) {
        let width = 22 + 6 * name.len() as i32;
        if x + width > PANEL.0 as i32 && x > 12 {
            (x, y) = (12, y + 14);
        }
        area.draw(&Rectangle::new(
            [(x, y + 4), (x + 8, y + 7)],
            color.filled(),
        ))?;
        area.draw_text(
            &name,
            &("sans-serif", 11).into_font().color(&INK),
            (x + 12, y),
        )?;
        x += width;
    }
    Ok(())
}

/// A value as its unit is written.
fn shown(value: f64, unit: &str) -> String {
    let scaled = |steps: &[(f64, &str)]| {
        let step = steps.iter().find(|(from, _)| value >= *from);
        let (from, name) = step.copied().unwrap_or((1.0, ""));
        let value = if from > 0.0 { value / from } else { value };
        format!(
            "{value:.*} {name}",
            usize::from(value < 10.0 && value > 0.0)
        )
    };
    match unit {
        "percentunit" => format!("{:.0} %", value * 100.0),
        "s" => scaled(&[(1.0, "s"), (1e-3, "ms"), (1e-6, "us")]),
        "Bps" => scaled(&[(1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (0.0, "B/s")]),
        "bytes" => scaled(&[
            (f64::from(1 << 30), "GiB"),
            (f64::from(1 << 20), "MiB"),
            (1024.0, "KiB"),
        ]),
        "ops" => scaled(&[(1e6, "M/s"), (1e3, "k/s"), (0.0, "/s")]),
        _ => scaled(&[(1e6, "M"), (1e3, "k")]),
    }
    .trim()
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_in_their_unit() {
        let check = |value, unit, text| assert_eq!(shown(value, unit), text);
        check(0.25, "percentunit", "25 %");
        check(0.0025, "s", "2.5 ms");
        check(12e-6, "s", "12 us");
        check(2.5e9, "Bps", "2.5 GB/s");
        check(f64::from(3 << 29), "bytes", "1.5 GiB");
        check(1500.0, "ops", "1.5 k/s");
        check(0.0, "short", "0");
    }

    #[test]
    fn legends_name_labels() {
        let curve = Curve {
            labels: [("call".to_owned(), "seal".to_owned())].into(),
            name: String::new(),
            points: vec![],
        };
        assert_eq!(curve.named("{{call}}, mean").name, "seal, mean");
    }
}
