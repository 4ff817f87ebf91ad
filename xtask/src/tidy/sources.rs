// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Rules about files: where they are, how long, what they begin with, what they never contain.

use std::collections::BTreeSet;
use std::path::Path;

use crate::tidy::Findings;
use crate::workspace::Workspace;

/// The top level of the checkout, and nothing else: a new entry is a decision, made here.
const TOP_LEVEL: &[&str] = &[
    ".cargo",
    ".ci",
    ".gitattributes",
    ".github",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "clippy.toml",
    "docs",
    "pegaflow-cache",
    "pegaflow-mem",
    "pegaflow-meta",
    "pegaflow-pd",
    "pegaflow-py",
    "pegaflow-ssd",
    "pegaflow-transfer",
    "rustfmt.toml",
    "xtask",
];

const LINES_MAX: usize = 600;
const LINES_WARN: usize = 400;

const HEADER: [&str; 2] = [
    "Copyright PegaFlow contributors.",
    "SPDX-License-Identifier: Apache-2.0",
];

pub(super) fn top_level(ws: &Workspace, findings: &mut Findings) -> anyhow::Result<()> {
    let files = ws.files()?;
    let entries: BTreeSet<&str> = files
        .iter()
        .filter_map(|path| path.iter().next()?.to_str())
        .collect();
    for entry in entries.iter().filter(|entry| !TOP_LEVEL.contains(entry)) {
        findings.error(format!(
            "`{entry}` does not belong to the top level: move it into a crate or docs/"
        ));
    }
    Ok(())
}

pub(super) fn file_length(ws: &Workspace, findings: &mut Findings) -> anyhow::Result<()> {
    for path in ws.files()?.iter().filter(|path| comment(path).is_some()) {
        let lines = ws.text(path).map_or(0, |text| text.lines().count());
        let path = path.display();
        if lines > LINES_MAX {
            findings.error(format!(
                "{path} has {lines} lines: split it, {LINES_MAX} is the most"
            ));
        } else if lines > LINES_WARN {
            findings.warn(format!("{path} has {lines} lines: {LINES_WARN} is the aim"));
        }
    }
    Ok(())
}

pub(super) fn licence_header(ws: &Workspace, findings: &mut Findings) -> anyhow::Result<()> {
    for path in ws.files()? {
        let Some(comment) = comment(&path) else {
            continue;
        };
        let text = ws.text(&path).unwrap_or_default();
        let head = text.lines().skip_while(|line| line.starts_with("#!/"));
        let want = HEADER.iter().map(|line| format!("{comment} {line}"));
        if !head.take(HEADER.len()).eq(want) {
            findings.error(format!(
                "{}: begin with `{comment} {}` and `{comment} {}`",
                path.display(),
                HEADER[0],
                HEADER[1]
            ));
        }
    }
    Ok(())
}

/// How a comment begins in a source file of this kind; `None` for what is not source.
fn comment(path: &Path) -> Option<&'static str> {
    if path == Path::new(".ci/run") {
        return Some("#");
    }
    match path.extension()?.to_str()? {
        "rs" | "cu" | "cuh" | "c" | "h" | "proto" => Some("//"),
        "py" | "sh" => Some("#"),
        _ => None,
    }
}

/// Names of modules that may hold unsafe code; tests of such code may too.
const FENCED: &[&str] = &["sys", "ffi", "ring", "driver", "shm", "tests"];

pub(super) fn unsafe_fences(ws: &Workspace, findings: &mut Findings) -> anyhow::Result<()> {
    let code = ["unsafe {", "unsafe fn ", "unsafe impl ", "unsafe extern "];
    for path in ws.files()? {
        let parts: Vec<_> = path
            .with_extension("")
            .iter()
            .map(|p| p.to_owned())
            .collect();
        let fenced = parts.iter().any(|p| FENCED.iter().any(|name| p == name));
        if fenced || comment(&path) != Some("//") {
            continue;
        }
        let text = ws.text(&path).unwrap_or_default();
        for (line, number) in text.lines().map(str::trim_start).zip(1..) {
            if !line.starts_with("//") && code.iter().any(|word| begins_word(line, word)) {
                findings.error(format!(
                    "{}:{number}: unsafe code belongs into a module named {}",
                    path.display(),
                    FENCED.join(", ")
                ));
            }
        }
    }
    Ok(())
}

/// Whether `word` stands in `line` as code: not inside a text or as the end of another word.
fn begins_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = &line[..at];
        before.matches('"').count().is_multiple_of(2)
            && !before.ends_with(|c: char| c.is_alphanumeric())
    })
}

/// Words that only mean something on one machine. Split, so that this file does not contain them itself.
const MACHINE: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/Us", "ers/"),
];

/// The one place packages may come from, as the lock file spells it.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

pub(super) fn machine_paths(ws: &Workspace, findings: &mut Findings) -> anyhow::Result<()> {
    for path in ws.files()? {
        let Some(text) = ws.text(&path) else { continue };
        let lock = path.ends_with("Cargo.lock");
        for (line, number) in text.lines().zip(1..) {
            for word in MACHINE.iter().filter(|word| has_path(line, word)) {
                findings.error(format!(
                    "{}:{number}: `{word}` is a path of one machine: use a relative one, `~` or an argument",
                    path.display()
                ));
            }
            if lock && line.starts_with("source = ") && !line.contains(REGISTRY) {
                findings.error(format!(
                    "{}:{number}: only crates.io may be a source: {line}",
                    path.display()
                ));
            }
        }
    }
    Ok(())
}

/// Whether `line` holds an absolute path that starts with `prefix` (and not a URL or a longer path that contains it).
fn has_path(line: &str, prefix: &str) -> bool {
    line.match_indices(prefix).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "._-~}".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_a_machine_is_told_from_part_of_another() {
        for (line, found) in [
            (concat!("cd /ro", "ot/x"), true),
            (concat!("\"/ho", "me/me\""), true),
            (concat!("https://a.example/ho", "me/x"), false),
            (concat!("./ho", "me/x"), false),
            (concat!("/ho", "meless"), false),
        ] {
            let any = MACHINE.iter().any(|word| has_path(line, word));
            assert_eq!(any, found, "{line}");
        }
    }
}
