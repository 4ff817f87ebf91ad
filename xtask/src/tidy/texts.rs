// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Rules about the texts: every link leads somewhere, every command that a reader may type exists.

use std::path::{Component, Path, PathBuf};

use clap::Parser as _;

use crate::Cli;
use crate::bench;
use crate::markdown::{self, Document};
use crate::tidy::Findings;
use crate::workspace::Workspace;

/// Programs that the texts may use beside Cargo and our own.
const PROGRAMS: &[&str] = &[
    "apt-get", "cat", "cd", "curl", "df", "echo", "git", "grep", "ls", "mount", "sudo", "sysctl",
    "pip", "vllm", "python",
];

/// The page on which every flag and setting of our programs stands: made from the programs themselves.
const REFERENCE: &str = "docs/src/configuration.md";

pub(super) fn links(ws: &Workspace, findings: &mut Findings) -> anyhow::Result<()> {
    for (path, document) in documents(ws)? {
        for link in &document.links {
            if let Some(complaint) = broken(ws, &path, link) {
                findings.error(format!("{}: {complaint}", path.display()));
            }
        }
    }
    Ok(())
}

pub(super) fn book_pages(ws: &Workspace, findings: &mut Findings) -> anyhow::Result<()> {
    let book = Path::new("docs/src");
    let Some(summary) = ws.text(&book.join("SUMMARY.md")) else {
        return Ok(());
    };
    let listed = markdown::parse(&summary).links;
    for (path, _) in documents(ws)? {
        let Ok(page) = path.strip_prefix(book) else {
            continue;
        };
        let known = listed.iter().any(|link| Path::new(link) == page);
        if !known && page != Path::new("SUMMARY.md") {
            findings.error(format!("{} is not in SUMMARY.md", path.display()));
        }
    }
    Ok(())
}

pub(super) fn commands(ws: &Workspace, findings: &mut Findings) -> anyhow::Result<()> {
    let reference = ws.text(Path::new(REFERENCE)).unwrap_or_default();
    let known = Known { ws, reference };
    for (path, document) in documents(ws)? {
        let lines = document.commands.iter().flat_map(|line| simple(line));
        let spans = document.spans.iter().map(String::as_str);
        let spans = spans.filter(|span| span.starts_with("cargo "));
        for words in lines.chain(spans.map(split)) {
            if let Err(complaint) = known.check(&words) {
                let command = words.join(" ");
                findings.error(format!("{}: `{command}`: {complaint}", path.display()));
            }
        }
    }
    Ok(())
}

fn documents(ws: &Workspace) -> anyhow::Result<Vec<(PathBuf, Document)>> {
    let files = ws.files()?.into_iter();
    let texts = files.filter(|path| path.extension().is_some_and(|end| end == "md"));
    Ok(texts
        .filter_map(|path| ws.text(&path).map(|text| (path, markdown::parse(&text))))
        .collect())
}

/// What is wrong with a link of the text at `path`; other hosts are not asked, and `crate::item` is for rustdoc to check.
fn broken(ws: &Workspace, path: &Path, link: &str) -> Option<String> {
    if link.contains("::") || link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = if file.is_empty() {
        path.to_owned()
    } else {
        normal(&path.parent().unwrap_or(Path::new("")).join(file))
    };
    if !ws.root().join(&target).exists() {
        return Some(format!("`{link}` leads nowhere"));
    }
    if anchor.is_empty() {
        return None;
    }
    let anchors = markdown::parse(&ws.text(&target)?).anchors;
    (!anchors.iter().any(|a| a == anchor))
        .then(|| format!("`{link}`: no heading makes `#{anchor}`"))
}

/// The path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::CurDir => {}
            part => out.push(part),
        }
    }
    out
}

/// The simple commands of a line, as words: split at `&&`, `|` and `;`, without variables in front, redirections and
/// comments behind.
fn simple(line: &str) -> Vec<Vec<String>> {
    let words = split(line);
    let commands = words.split(|word| ["&&", "||", "|", ";", "&"].contains(&word.as_str()));
    commands
        .map(|words| {
            let words = words.iter().take_while(|w| !w.starts_with(['#', '>', '<']));
            let words = words.skip_while(|word| word.contains('=') && !word.starts_with('-'));
            words.cloned().collect()
        })
        .filter(|words: &Vec<String>| !words.is_empty())
        .collect()
}

/// Words at white space; quotes hold one together.
fn split(line: &str) -> Vec<String> {
    let mut words = vec![];
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(q), _) if c == q => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, _) if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// What the workspace offers to type.
struct Known<'a> {
    ws: &'a Workspace,
    reference: String,
}

impl Known<'_> {
    fn check(&self, words: &[String]) -> Result<(), String> {
        let program = words[0].rsplit('/').next().unwrap_or_default();
        match program {
            "cargo" if words.get(1).is_some_and(|w| w == "xtask") => self.xtask(&words[1..]),
            "cargo" => self.cargo(&words[1..]),
            "run" if words[0] == ".ci/run" => Ok(()),
            _ if self.ours(program) => self.flags(&words[1..]),
            _ if PROGRAMS.contains(&program) => Ok(()),
            _ => Err(format!("no program `{program}` here")),
        }
    }

    fn xtask(&self, words: &[String]) -> Result<(), String> {
        if words.len() == 1 {
            return Ok(()); // the tool itself
        }
        let cli = Cli::try_parse_from(words).map_err(|error| error.kind().to_string())?;
        match &cli.command {
            crate::Command::Bench(args) => args.name.as_deref().map_or(Ok(()), |name| {
                let known = name == "NAME" || bench::is_known(self.ws, name);
                known.then_some(()).ok_or(format!("no benchmark `{name}`"))
            }),
            _ => Ok(()),
        }
    }

    fn cargo(&self, words: &[String]) -> Result<(), String> {
        for pair in words.windows(2) {
            let [flag, name] = pair else { continue };
            let there = match flag.as_str() {
                "-p" | "--package" => self.ws.packages().any(|p| p.name.as_str() == name),
                "--bin" | "--bench" | "--example" | "--test" => {
                    let targets = self.ws.packages().flat_map(|p| &p.targets);
                    let mut named = targets.filter(|target| target.name == *name);
                    named.any(|t| t.kind.iter().any(|k| flag[2..] == k.to_string()))
                }
                "--features" => name
                    .split(',')
                    .all(|feature| self.ws.packages().any(|p| p.features.contains_key(feature))),
                "--" => break,
                _ => true,
            };
            if !there {
                return Err(format!("no `{flag} {name}` here"));
            }
        }
        Ok(())
    }

    /// Whether a binary of this name is built here.
    fn ours(&self, program: &str) -> bool {
        let mut targets = self.ws.packages().flat_map(|p| &p.targets);
        targets.any(|target| target.is_bin() && target.name == program)
    }

    fn flags(&self, words: &[String]) -> Result<(), String> {
        for word in words.iter().filter(|word| word.starts_with("--")) {
            let flag = word.split('=').next().unwrap_or(word);
            let mut words = self
                .reference
                .split(|c: char| !c.is_alphanumeric() && c != '-');
            if !words.any(|known| known == flag) {
                return Err(format!("`{flag}` is not on {REFERENCE}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_becomes_simple_commands() {
        let words = simple("A=1 cargo test -p 'x y' && ls | grep a > b # why");
        let joined: Vec<String> = words.iter().map(|words| words.join("_")).collect();
        assert_eq!(joined, ["cargo_test_-p_x y", "ls", "grep_a"]);
    }

    #[test]
    fn a_command_that_does_not_exist_is_found() {
        let ws = Workspace::find().expect("tests run inside the workspace");
        let known = Known {
            ws: &ws,
            reference: "`--socket PATH`".into(),
        };
        for (line, good) in [
            ("cargo xtask tidy", true),
            ("cargo xtask tidy --hard", false),
            ("cargo xtask polish", false),
            ("cargo xtask bench no-such-bench", false),
            ("cargo test -p pegaflow-mem", true),
            ("cargo test -p pegaflow-men", false),
            ("cargo run --bin xtask", true),
            ("target/release/xtask --socket x", true),
            ("target/release/xtask --sockets x", false),
            ("rm -rf x", false),
        ] {
            assert_eq!(known.check(&split(line)).is_ok(), good, "{line}");
        }
    }

    #[test]
    fn paths_lose_their_dots() {
        assert_eq!(
            normal(Path::new("docs/src/../x/./y")),
            Path::new("docs/x/y")
        );
    }
}
