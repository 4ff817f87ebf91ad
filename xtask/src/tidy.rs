// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! `tidy`: the house rules that no compiler checks.
//!
//! Each rule is a function from the workspace to findings, listed in [`RULES`]; the same list runs as tests, so
//! `cargo test` finds what `cargo xtask tidy` finds. A finding says what to do about it.

use anyhow::bail;

use crate::workspace::Workspace;

mod packages;
mod sources;
mod texts;

/// Check the house rules: file lengths, licence headers, dependency arrows, versions, commands in the texts.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// What a rule found, one line each.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// These must be mended.
    pub(crate) errors: Vec<String>,
    /// These are worth a look.
    pub(crate) warnings: Vec<String>,
}

impl Findings {
    fn error(&mut self, text: impl Into<String>) {
        self.errors.push(text.into());
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }
}

type Rule = fn(&Workspace, &mut Findings) -> anyhow::Result<()>;

const RULES: &[(&str, Rule)] = &[
    ("top_level", sources::top_level),
    ("file_length", sources::file_length),
    ("licence_header", sources::licence_header),
    ("unsafe_fences", sources::unsafe_fences),
    ("machine_paths", sources::machine_paths),
    ("arrows", packages::arrows),
    ("versions", packages::versions),
    ("front_page", packages::front_page),
    ("lints", packages::lints),
    ("default_features", packages::default_features),
    ("links", texts::links),
    ("book_pages", texts::book_pages),
    ("commands", texts::commands),
];

/// The rules about the texts: what `docs` checks beside building the book.
const TEXTS: [&str; 3] = ["links", "book_pages", "commands"];

pub(crate) fn run(ws: &Workspace, _: &Args) -> anyhow::Result<()> {
    apply(ws, RULES)?;
    println!("tidy: {} rules hold", RULES.len());
    Ok(())
}

/// Checks the rules about the texts alone.
pub(crate) fn texts(ws: &Workspace) -> anyhow::Result<()> {
    let rules = RULES.iter().filter(|(name, _)| TEXTS.contains(name));
    apply(ws, rules)
}

fn apply<'a>(
    ws: &Workspace,
    rules: impl IntoIterator<Item = &'a (&'a str, Rule)>,
) -> anyhow::Result<()> {
    let mut wrong = 0;
    for (name, rule) in rules {
        let mut findings = Findings::default();
        rule(ws, &mut findings)?;
        for text in &findings.warnings {
            println!("warning: {name}: {text}");
        }
        for text in &findings.errors {
            println!("error: {name}: {text}");
        }
        wrong += findings.errors.len();
    }
    if wrong > 0 {
        bail!("{wrong} findings");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: &str) {
        let ws = Workspace::find().expect("tests run inside the workspace");
        let (_, rule) = RULES
            .iter()
            .find(|(name, _)| *name == rule)
            .expect("the rule is listed");
        let mut findings = Findings::default();
        rule(&ws, &mut findings).expect("the rule can run");
        assert!(findings.errors.is_empty(), "{:#?}", findings.errors);
    }

    macro_rules! rules {
        ($($name:ident)*) => {
            $(#[test] fn $name() { check(stringify!($name)); })*

            #[test]
            fn every_rule_is_a_test() {
                let tested = [$(stringify!($name)),*];
                assert!(RULES.iter().map(|(name, _)| *name).eq(tested));
            }
        };
    }

    rules! {
        top_level file_length licence_header unsafe_fences machine_paths
        arrows versions front_page lints default_features
        links book_pages commands
    }
}
