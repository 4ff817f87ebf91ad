// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A report for people: a line for each check, then what to do about what is not good.

use std::fmt::Write;

use super::{Level, Report};

const WIDTH: usize = 92;

pub(super) fn render(report: &Report) -> String {
    let mut out = format!("PegaFlow {} on this machine\n\n", report.version);
    for check in &report.checks {
        let mark = match check.level {
            Level::Good => "ok  ",
            Level::Note => "note",
            Level::Missing => "no  ",
        };
        let mut parts = check.found.split("; ");
        let _ = writeln!(
            out,
            "  {mark}  {:<12} {}",
            check.name,
            parts.next().unwrap_or_default()
        );
        for part in parts {
            let _ = writeln!(out, "  {:18} {part}", "");
        }
    }
    let open: Vec<_> = report
        .checks
        .iter()
        .filter(|c| !c.advice.is_empty())
        .collect();
    if open.is_empty() {
        out.push_str("\nNothing to do.\n");
        return out;
    }
    out.push_str("\nWhat could be better (PegaFlow works without all of it)\n");
    for check in open {
        let _ = writeln!(out, "\n  {}", check.name);
        wrap(&mut out, &check.advice);
        for command in &check.commands {
            let _ = writeln!(out, "      {command}");
        }
    }
    out
}

fn wrap(out: &mut String, text: &str) {
    let mut column = 0;
    for word in text.split_whitespace() {
        if column == 0 || column + 1 + word.len() > WIDTH {
            let _ = write!(out, "{}    {word}", if column == 0 { "" } else { "\n" });
            column = 4 + word.len();
        } else {
            let _ = write!(out, " {word}");
            column += 1 + word.len();
        }
    }
    out.push('\n');
}
