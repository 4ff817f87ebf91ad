// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Benchmark lines as an aligned table: plain for the terminal, which is also valid Markdown for the book.

use std::collections::BTreeSet;

use crate::bench::line::Line;

/// The lines as a table with one column per setting and one per measure that any line has.
pub(crate) fn render(lines: &[Line]) -> String {
    let settings: BTreeSet<&String> = lines.iter().flat_map(|l| l.settings.keys()).collect();
    let settings: Vec<&String> = settings.into_iter().filter(|key| *key != "op").collect();
    let mut header = vec!["op".to_owned()];
    header.extend(settings.iter().map(|key| (*key).clone()));
    header.extend(["GB/s", "ops/s", "p50", "p99", "p99.9", "of floor", "floor"].map(String::from));
    let more: BTreeSet<&String> = lines.iter().flat_map(|l| l.more.keys()).collect();
    header.extend(more.iter().map(|key| (*key).clone()));
    let mut rows: Vec<Vec<String>> = vec![header];
    for line in lines {
        let mut row = vec![line.settings["op"].clone()];
        let cell = |key: &&String| line.settings.get(*key).cloned().unwrap_or_default();
        row.extend(settings.iter().map(cell));
        row.extend(measures(line));
        let figure = |key: &&String| {
            let figure = line.more.get(*key);
            figure.map(|f| of_name(key, *f)).unwrap_or_default()
        };
        row.extend(more.iter().map(figure));
        rows.push(row);
    }
    align(&drop_empty_columns(rows))
}

fn measures(line: &Line) -> [String; 7] {
    let [p50, p99, p999] = line
        .latency_us
        .map(|us| us.map(duration).unwrap_or_default());
    let floor = line.floor.as_ref().map(|floor| {
        let rate = floor.gb_per_s.map(|rate| format!(" {rate:.2} GB/s"));
        let time = floor.us.map(|us| format!(" {}", duration(us)));
        let hits = floor.hit_share.map(|share| format!(" {share:.4}"));
        let figures = [rate, time, hits].into_iter().flatten();
        floor.what.clone() + &figures.collect::<String>()
    });
    [
        line.gb_per_s
            .map(|rate| format!("{rate:.2}"))
            .unwrap_or_default(),
        line.ops_per_s.map(rate).unwrap_or_default(),
        p50,
        p99,
        p999,
        line.floor_share
            .map(|share| format!("{:.0} %", share * 100.0))
            .unwrap_or_default(),
        floor.unwrap_or_default(),
    ]
}

/// A figure of a benchmark's own: shares to four digits, all else as a rate.
fn of_name(name: &str, figure: f64) -> String {
    match name.ends_with("_share") {
        true => format!("{figure:.4}"),
        false => rate(figure),
    }
}

/// Microseconds in the unit that reads best.
pub(crate) fn duration(us: f64) -> String {
    match us {
        _ if us < 1.0 => format!("{:.0} ns", us * 1e3),
        _ if us < 1e3 => format!("{} us", three(us)),
        _ if us < 1e6 => format!("{} ms", three(us / 1e3)),
        _ => format!("{} s", three(us / 1e6)),
    }
}

/// Operations a second in the unit that reads best.
pub(crate) fn rate(ops: f64) -> String {
    match ops {
        _ if ops < 1e3 => three(ops),
        _ if ops < 1e6 => format!("{} k", three(ops / 1e3)),
        _ => format!("{} M", three(ops / 1e6)),
    }
}

/// Three significant digits of a number from 1 to 1000.
fn three(n: f64) -> String {
    match n {
        _ if n < 9.995 => format!("{n:.2}"),
        _ if n < 99.95 => format!("{n:.1}"),
        _ => format!("{n:.0}"),
    }
}

fn drop_empty_columns(rows: Vec<Vec<String>>) -> Vec<Vec<String>> {
    let columns = rows[0].len();
    let kept: Vec<bool> = (0..columns)
        .map(|column| rows.len() == 1 || rows[1..].iter().any(|row| !row[column].is_empty()))
        .collect();
    rows.into_iter()
        .map(|row| {
            let cells = row.into_iter().zip(&kept);
            cells
                .filter(|(_, kept)| **kept)
                .map(|(cell, _)| cell)
                .collect()
        })
        .collect()
}

/// Pads the cells of each column to one width; the first row is the header. Numbers stand right.
fn align(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|c| width(c).unwrap_or(0).max(2))
        .collect();
    let right: Vec<bool> = (0..rows[0].len())
        .map(|c| rows.len() > 1 && rows[1..].iter().all(|row| numeric(&row[c])))
        .collect();
    let mut out = String::new();
    for (at, row) in rows.iter().enumerate() {
        for ((cell, &width), &right) in row.iter().zip(&widths).zip(&right) {
            out += &if right {
                format!("| {cell:>width$} ")
            } else {
                format!("| {cell:<width$} ")
            };
        }
        out += "|\n";
        if at == 0 {
            for (&width, &right) in widths.iter().zip(&right) {
                out += &format!("|-{}{}", "-".repeat(width), if right { ':' } else { '-' });
            }
            out += "|\n";
        }
    }
    out
}

fn numeric(cell: &str) -> bool {
    cell.is_empty() || cell.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_empty_ones_are_left_out() {
        let line = |op: &str, depth: u32, rest: &str| {
            let raw = format!(
                r#"{{"bench":"ring","settings":{{"op":"{op}","depth":{depth}}},"machine":{{"cpus":2}},{rest}}}"#
            );
            Line::parse(&raw).expect("the line keeps the contract")
        };
        let table = render(&[
            line(
                "read",
                8,
                r#""gb_per_s":1.5,"ops_per_s":null,"p50_us":0.25,"p99_us":2,"p999_us":null,"floor":{"what":"memcpy","gb_per_s":2.0,"us":null},"floor_share":0.75"#,
            ),
            line(
                "write",
                128,
                r#""gb_per_s":12.25,"ops_per_s":null,"p50_us":1500,"p99_us":25000,"p999_us":null,"floor":null,"floor_share":null"#,
            ),
        ]);
        let want = "\
| op    | depth |  GB/s |     p50 |     p99 | of floor | floor            |
|-------|------:|------:|--------:|--------:|---------:|------------------|
| read  |     8 |  1.50 |  250 ns | 2.00 us |     75 % | memcpy 2.00 GB/s |
| write |   128 | 12.25 | 1.50 ms | 25.0 ms |          |                  |
";
        assert_eq!(table, want);
    }

    #[test]
    fn units_read_well() {
        for (us, text) in [
            (0.04, "40 ns"),
            (9.999, "10.0 us"),
            (123.4, "123 us"),
            (2.5e6, "2.50 s"),
        ] {
            assert_eq!(duration(us), text);
        }
        for (ops, text) in [(12.0, "12.0"), (1234.0, "1.23 k"), (1.85e7, "18.5 M")] {
            assert_eq!(rate(ops), text);
        }
    }
}
