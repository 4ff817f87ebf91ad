// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! `ci`: everything that must hold before a change is taken, one step after the other.

use std::time::Duration;

use anyhow::{bail, ensure};
use clap::ValueEnum as _;
use xshell::cmd;

use crate::workspace::Workspace;
use crate::{bench, dist, docs, test, tidy};

/// Run every check that a change must pass, and say which failed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run only these steps.
    #[arg(value_name = "STEP")]
    steps: Vec<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Step {
    /// Formatting.
    Fmt,
    /// Lints, as errors.
    Clippy,
    /// House rules.
    Tidy,
    /// Every test.
    Test,
    /// Each crate by itself, with each of its features alone.
    Alone,
    /// API documentation and the book.
    Docs,
    /// Every benchmark for a few seconds: that it runs and keeps the contract.
    Bench,
    /// That every crate packages.
    Dist,
}

pub(crate) fn run(ws: &Workspace, args: &Args) -> anyhow::Result<()> {
    let mut steps = args.steps.clone();
    if steps.is_empty() {
        steps = Step::value_variants().to_vec();
    }
    let mut report = vec![];
    let mut failed = 0;
    for step in steps {
        println!("== {}", name(step));
        let (result, took) = timed(|| step.run(ws));
        let verdict = match &result {
            Ok(()) => "ok".to_owned(),
            Err(error) => format!("FAILED: {error:#}"),
        };
        failed += u32::from(result.is_err());
        println!("== {}: {verdict}", name(step));
        report.push(format!(
            "{:<8}{:>6.0} s  {verdict}",
            name(step),
            took.as_secs_f64()
        ));
    }
    println!("\n{}", report.join("\n"));
    if failed > 0 {
        bail!("{failed} of {} steps failed", report.len());
    }
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "a tool that says how long its steps take"
)]
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = std::time::Instant::now();
    let value = work();
    (value, start.elapsed())
}

fn name(step: Step) -> String {
    step.to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

impl Step {
    fn run(self, ws: &Workspace) -> anyhow::Result<()> {
        let sh = ws.shell()?;
        match self {
            Self::Fmt => cmd!(sh, "cargo fmt --all --check").run()?,
            Self::Clippy => {
                cmd!(sh, "cargo clippy --workspace --all-targets -- -D warnings").run()?;
            }
            Self::Tidy => tidy::run(ws, &tidy::Args {})?,
            Self::Test => test::run(ws, &test::Args::default())?,
            Self::Alone => alone(ws)?,
            Self::Docs => {
                let _strict = sh.push_env("RUSTDOCFLAGS", "-D warnings");
                cmd!(sh, "cargo doc --workspace --all-features --no-deps --quiet").run()?;
                docs::run(ws, &docs::Args::default())?;
            }
            Self::Bench => smoke(ws)?,
            Self::Dist => dist::run(ws, &dist::Args { check: true })?,
        }
        Ok(())
    }
}

/// Builds each public crate with nothing switched on, then with each feature alone.
fn alone(ws: &Workspace) -> anyhow::Result<()> {
    let sh = ws.shell()?;
    for package in ws.public() {
        let name = package.name.as_str();
        let check = || cmd!(sh, "cargo check --quiet -p {name} --no-default-features");
        check().run()?;
        for feature in package.features.keys().filter(|f| *f != "default") {
            check().args(["--features", feature]).run()?;
        }
    }
    Ok(())
}

fn smoke(ws: &Workspace) -> anyhow::Result<()> {
    let mut broken = vec![];
    for (_, target) in bench::benches(ws) {
        match bench::smoke(ws, &target.name) {
            Ok(points) => println!("{}: {points} points", target.name),
            Err(error) => broken.push(format!("{error:#}")),
        }
    }
    ensure!(broken.is_empty(), "{}", broken.join("; "));
    Ok(())
}
