// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Parts of the texts that are made by programs, between a line `<!-- generated: WHAT -->` and a line
//! `<!-- end of generated -->`.
//!
//! WHAT is one of: `bench FILE` (the table of a benchmark's lines, FILE relative to `docs/data`), `help COMMAND` (what
//! `cargo xtask COMMAND --help` prints), `server help`, `server settings`, `server metrics` (what `pegaflow-server` says of
//! itself).

use std::path::Path;

use anyhow::{Context as _, bail};
use clap::CommandFactory as _;

use crate::Cli;
use crate::bench;
use crate::docs::server;
use crate::workspace::Workspace;

const BEGIN: &str = "<!-- generated: ";
const END: &str = "<!-- end of generated -->";

/// Makes every generated part anew. Returns the texts in which one differed; writes them only if `write` is set, and
/// then returns none.
pub(crate) fn refresh(ws: &Workspace, write: bool) -> anyhow::Result<Vec<String>> {
    let mut stale = vec![];
    for path in ws.files()? {
        if path.extension().is_none_or(|end| end != "md") {
            continue;
        }
        let Some(text) = ws.text(&path) else { continue };
        let fresh = renew(&text, |what| make(ws, what))
            .with_context(|| format!("in {}", path.display()))?;
        if fresh == text {
            continue;
        }
        if write {
            std::fs::write(ws.root().join(&path), fresh)?;
            println!("renewed {}", path.display());
        } else {
            stale.push(path.display().to_string());
        }
    }
    Ok(stale)
}

/// The text with every generated part made anew.
fn renew(text: &str, make: impl Fn(&str) -> anyhow::Result<String>) -> anyhow::Result<String> {
    let mut out = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        out += line;
        out.push('\n');
        let what = line
            .strip_prefix(BEGIN)
            .and_then(|l| l.strip_suffix(" -->"));
        let Some(what) = what else { continue };
        if !lines.any(|line| line == END) {
            bail!("`{line}` has no `{END}`");
        }
        out += &format!("\n{}\n\n{END}\n", make(what)?.trim_end());
    }
    Ok(out)
}

fn make(ws: &Workspace, what: &str) -> anyhow::Result<String> {
    match what.split_once(' ') {
        Some(("bench", file)) => {
            let path = ws.root().join("docs/data").join(file);
            Ok(table(&path)?)
        }
        Some(("help", command)) => help(command),
        Some(("server", "help")) => server::help(ws),
        Some(("server", "settings")) => server::settings(ws),
        Some(("server", "metrics")) => server::metrics(ws),
        _ => bail!("unknown kind of generated text: `{what}`"),
    }
}

fn table(path: &Path) -> anyhow::Result<String> {
    let lines = bench::read(path)?;
    let machine = lines.first().map(|line| &line.machine);
    let machine = machine.into_iter().flatten();
    let machine: Vec<String> = machine
        .map(|(key, value)| format!("{key} {value}"))
        .collect();
    let table = bench::table::render(&lines);
    Ok(format!("{table}\nMachine: {}.", machine.join(", ")))
}

fn help(command: &str) -> anyhow::Result<String> {
    let mut cli = Cli::command();
    cli.build();
    let found = cli.find_subcommand_mut(command);
    let help = found.with_context(|| format!("no subcommand `{command}`"))?;
    Ok(format!(
        "```text\n{}\n```",
        help.render_long_help().to_string().trim_end()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_parts_are_current() {
        let ws = Workspace::find().expect("tests run inside the workspace");
        let stale = refresh(&ws, false).expect("every part can be made");
        assert!(stale.is_empty(), "cargo xtask docs --update: {stale:?}");
    }

    #[test]
    fn what_stands_between_the_marks_is_replaced() {
        let old = "a\n<!-- generated: x -->\nold\n<!-- end of generated -->\nb\n";
        let make = |what: &str| Ok(format!("new {what}\n"));
        let new = renew(old, make).expect("the marks pair up");
        let want = "a\n<!-- generated: x -->\n\nnew x\n\n<!-- end of generated -->\nb\n";
        assert_eq!(new, want);
        assert_eq!(renew(&new, make).expect("the marks pair up"), want);
        renew("<!-- generated: x -->\n", make).expect_err("no end");
    }
}
