// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Benchmark lines as one SVG: a row per point, its share of the floor as a bar, its latencies on a logarithmic axis.

use std::path::Path;

use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::bench::line::Line;
use crate::bench::table;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const ROW: i32 = 22;
const HEAD: i32 = 64;
const FOOT: i32 = 16;
const LABEL: i32 = 330;
const PANEL: i32 = 300;
const GAP: i32 = 40;
const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
const BAR: RGBColor = RGBColor(0x3b, 0x7d, 0xd8);
const MARK: RGBColor = RGBColor(0xd8, 0x5a, 0x3b);

/// Writes the picture of one benchmark's lines to `path`.
pub(crate) fn draw(path: &Path, lines: &[Line]) -> anyhow::Result<()> {
    let height = HEAD + ROW * i32::try_from(lines.len())? + FOOT;
    let width = LABEL + 2 * PANEL + 2 * GAP + 60;
    let size = (u32::try_from(width)?, u32::try_from(height)?);
    let area = SVGBackend::new(path, size).into_drawing_area();
    paint(&area, lines).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

fn paint(area: &Area<'_>, lines: &[Line]) -> Result<(), Box<dyn std::error::Error>> {
    area.fill(&WHITE)?;
    let bench = lines.first().map_or("", |line| line.bench.as_str());
    text(area, bench, (12, 10), 18)?;
    shares(area, lines)?;
    latencies(area, lines)?;
    for (line, y) in lines.iter().zip(rows()) {
        text(area, &line.label(), (12, y + 4), 12)?;
    }
    area.present()?;
    Ok(())
}

/// The upper edge of each row.
fn rows() -> impl Iterator<Item = i32> {
    (0..).map(|row| HEAD + row * ROW)
}

fn shares(area: &Area<'_>, lines: &[Line]) -> Result<(), Box<dyn std::error::Error>> {
    let most = lines.iter().filter_map(|line| line.floor_share);
    let most = most.fold(1.0, f64::max);
    let x = |share: f64| LABEL + (share / most * f64::from(PANEL)) as i32;
    text(
        area,
        "share of floor (1.0 is the limit)",
        (LABEL, HEAD - 34),
        12,
    )?;
    grid(area, x(1.0), lines.len())?;
    text(area, "1.0", (x(1.0) - 8, HEAD - 16), 11)?;
    for (line, y) in lines.iter().zip(rows()) {
        if let Some(share) = line.floor_share {
            let bar = [(LABEL, y + 4), (x(share), y + ROW - 4)];
            area.draw(&Rectangle::new(bar, BAR.filled()))?;
            text(area, &format!("{share:.2}"), (x(share) + 4, y + 4), 11)?;
        }
    }
    Ok(())
}

fn latencies(area: &Area<'_>, lines: &[Line]) -> Result<(), Box<dyn std::error::Error>> {
    let all = lines.iter().flat_map(|line| line.latency_us).flatten();
    let all: Vec<f64> = all.filter(|us| *us > 0.0).collect();
    let Some(low) = all.iter().copied().reduce(f64::min) else {
        return Ok(());
    };
    let high = all.iter().copied().fold(low, f64::max);
    let (low, high) = (low.log10().floor(), high.log10().floor() + 1.0);
    let left = LABEL + PANEL + GAP;
    let x = |us: f64| left + ((us.log10() - low) / (high - low) * f64::from(PANEL)) as i32;
    text(
        area,
        "latency: p50, to p99 and p99.9",
        (left, HEAD - 34),
        12,
    )?;
    let mut decade = 10f64.powf(low);
    while decade <= 10f64.powf(high) * 1.01 {
        grid(area, x(decade), lines.len())?;
        text(
            area,
            &table::duration(decade),
            (x(decade) - 12, HEAD - 16),
            11,
        )?;
        decade *= 10.0;
    }
    for (line, y) in lines.iter().zip(rows()) {
        let points = line.latency_us.into_iter().flatten().filter(|us| *us > 0.0);
        let points: Vec<(i32, i32)> = points.map(|us| (x(us), y + ROW / 2)).collect();
        area.draw(&PathElement::new(points.clone(), MARK.stroke_width(2)))?;
        if let Some(p50) = points.first() {
            area.draw(&Circle::new(*p50, 4, MARK.filled()))?;
        }
    }
    Ok(())
}

fn grid(area: &Area<'_>, x: i32, rows: usize) -> Result<(), Box<dyn std::error::Error>> {
    let bottom = HEAD + ROW * i32::try_from(rows)?;
    area.draw(&PathElement::new([(x, HEAD), (x, bottom)], GRID))?;
    Ok(())
}

fn text(
    area: &Area<'_>,
    words: &str,
    at: (i32, i32),
    size: i32,
) -> Result<(), Box<dyn std::error::Error>> {
    let style = ("sans-serif", size).into_font().color(&INK);
    area.draw(&Text::new(words.to_owned(), at, style))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_names_every_point() {
        let raw = r#"{"bench":"b","settings":{"op":"read"},"machine":{"cpus":2},"gb_per_s":null,"ops_per_s":null,"p50_us":3,"p99_us":40,"p999_us":null,"floor":{"what":"x","gb_per_s":1,"us":null},"floor_share":1.25}"#;
        let bare = raw.replace("read", "<idle>").replace("1.25", "null");
        let lines = [raw, &bare].map(|raw| Line::parse(raw).expect("it keeps the contract"));
        let folder = tempfile::tempdir().expect("a folder for the picture");
        let path = folder.path().join("b.svg");
        draw(&path, &lines).expect("it can be drawn");
        let svg = std::fs::read_to_string(&path).expect("it was written");
        assert!(svg.starts_with("<svg") && svg.contains("1.25"), "{svg}");
        assert!(svg.contains("&lt;idle&gt;"), "names are escaped: {svg}");
    }
}
