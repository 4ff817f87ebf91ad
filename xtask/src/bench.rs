// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! `bench`: runs one benchmark, reads its lines by the contract, shows them, and compares them with an earlier run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use cargo_metadata::{Package, Target};

use crate::run;
use crate::test::vllm;
use crate::workspace::Workspace;

mod against;
mod chart;
pub(crate) mod line;
pub(crate) mod table;

use line::Line;

/// Run a benchmark of the workspace and show its figures as a table and an SVG.
///
/// The SVG goes to `target/bench/NAME.svg`. Without a name, lists the benchmarks.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The benchmark: the name of a file in a crate's `benches/`.
    pub(crate) name: Option<String>,
    /// Also write the lines to this file, one JSON object each.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Show lines that were measured before, perhaps elsewhere, instead of measuring.
    #[arg(long, value_name = "FILE")]
    lines: Option<PathBuf>,
    /// Compare with an earlier run's `--json` file; fail if a point became worse by more than the threshold.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// What counts as worse for `--against`: 0.1 is 10 %.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    threshold: f64,
    /// A few seconds only: shows that the benchmark works, the figures mean little.
    #[arg(long)]
    quick: bool,
    /// For `eviction`: also replay this request trace, plain or gzip.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// For `ssd`: alternate with fio running the same job.
    #[arg(long)]
    fio: bool,
    /// Build with these features of the crate.
    #[arg(long, value_name = "NAMES")]
    features: Option<String>,
}

pub(crate) fn run(ws: &Workspace, args: &Args) -> anyhow::Result<()> {
    let Some(name) = &args.name else {
        for (package, target) in benches(ws) {
            println!("{:<16} {}", target.name, package.name);
        }
        for (name, _) in ENGINE {
            println!("{name:<16} pegaflow-py");
        }
        return Ok(());
    };
    // Read first: a mistyped name must not cost the run.
    let then = args.against.as_deref().map(read).transpose()?;
    let lines = match &args.lines {
        Some(file) => read(file)?,
        None => measure(ws, name, args)?,
    };
    print!("{}", table::render(&lines));
    let folder = ws.target().join("bench");
    std::fs::create_dir_all(&folder)?;
    let picture = folder.join(format!("{name}.svg"));
    chart::draw(&picture, &lines)?;
    eprintln!("picture: {}", picture.display());
    if let Some(path) = &args.json {
        let raw: String = lines.iter().map(|line| line.raw.clone() + "\n").collect();
        std::fs::write(path, raw).with_context(|| format!("cannot write {}", path.display()))?;
    }
    match then {
        Some(then) => judge(&then, &lines, args.threshold),
        None => Ok(()),
    }
}

/// Benchmarks that need vLLM: scripts in `pegaflow-py/bench`.
const ENGINE: [(&str, &str); 2] = [("vllm", "engine.py"), ("vllm-step", "step.py")];

/// Whether there is a benchmark of this name.
pub(crate) fn is_known(ws: &Workspace, name: &str) -> bool {
    ENGINE.iter().any(|(known, _)| *known == name) || benches(ws).any(|(_, t)| t.name == name)
}

/// Every benchmark of the workspace with the package it belongs to.
pub(crate) fn benches(ws: &Workspace) -> impl Iterator<Item = (&Package, &Target)> {
    ws.packages().flat_map(|package| {
        let targets = package.targets.iter().filter(|target| target.is_bench());
        targets.map(move |target| (package, target))
    })
}

/// Runs a benchmark in a few seconds and without optimisation: only to see that it keeps the contract.
pub(crate) fn smoke(ws: &Workspace, name: &str) -> anyhow::Result<usize> {
    let (package, target) = find(ws, name)?;
    let mut cargo = cargo_bench(ws, package, target, None);
    cargo.args(["--profile", "dev", "--", "--quick"]);
    Ok(collect(cargo, name)?.len())
}

fn find<'a>(ws: &'a Workspace, name: &str) -> anyhow::Result<(&'a Package, &'a Target)> {
    benches(ws)
        .find(|(_, target)| target.name == name)
        .with_context(|| {
            let known: Vec<&str> = benches(ws).map(|(_, t)| t.name.as_str()).collect();
            format!("no benchmark `{name}`; there are: {}", known.join(", "))
        })
}

fn measure(ws: &Workspace, name: &str, args: &Args) -> anyhow::Result<Vec<Line>> {
    if let Some((_, script)) = ENGINE.iter().find(|(known, _)| *known == name) {
        return with_engine(ws, name, script, args.quick);
    }
    let (package, target) = find(ws, name)?;
    let mut cargo = cargo_bench(ws, package, target, args.features.as_deref());
    cargo.arg("--");
    if args.quick {
        cargo.arg("--quick");
    }
    if args.fio {
        cargo.arg("--fio");
    }
    if let Some(trace) = &args.trace {
        // A benchmark runs in the folder of its crate.
        let path = std::path::absolute(trace)?;
        cargo.arg("--trace").arg(path);
    }
    collect(cargo, name)
}

/// Runs a script in the environment with vLLM. What the engine itself prints is not a line of ours.
fn with_engine(ws: &Workspace, name: &str, script: &str, quick: bool) -> anyhow::Result<Vec<Line>> {
    let engine = match vllm::ready(ws, true)? {
        Ok(engine) => engine,
        Err(why) => bail!("`{name}` needs vLLM: {why}"),
    };
    let mut python = engine.command("python");
    python.arg(ws.root().join("pegaflow-py/bench").join(script));
    if quick {
        python.arg("--quick");
    }
    let mut lines = vec![];
    let status = run::out_lines(python, |raw| lines.extend(Line::parse(raw).ok()))?;
    ensure!(
        status.success() && !lines.is_empty(),
        "benchmark `{name}` failed ({status})"
    );
    Ok(lines)
}

fn cargo_bench(
    ws: &Workspace,
    package: &Package,
    target: &Target,
    features: Option<&str>,
) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(ws.root()).args(["bench", "--quiet"]);
    cargo.args(["--package", package.name.as_str(), "--bench", &target.name]);
    let mut wanted = target.required_features.clone();
    wanted.extend(features.map(str::to_owned));
    if !wanted.is_empty() {
        cargo.args(["--features", &wanted.join(",")]);
    }
    cargo
}

/// The lines that `cargo` prints: every line of its standard output must keep the contract.
fn collect(cargo: Command, name: &str) -> anyhow::Result<Vec<Line>> {
    let mut lines = vec![];
    let mut broken = None;
    let status = run::out_lines(cargo, |raw| match Line::parse(raw) {
        _ if raw.is_empty() => {}
        Ok(line) => lines.push(line),
        Err(error) => {
            broken.get_or_insert(error.context(format!("`{name}` printed: {raw}")));
        }
    })?;
    if let Some(error) = broken {
        return Err(error);
    }
    ensure!(status.success(), "benchmark `{name}` failed ({status})");
    ensure!(!lines.is_empty(), "benchmark `{name}` printed no line");
    if let Some(stray) = lines.iter().find(|line| line.bench != name) {
        bail!("`{name}` printed a line of `{}`", stray.bench);
    }
    Ok(lines)
}

/// Reads a file that `--json` wrote.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Line>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read benchmark lines from {}", path.display()))?;
    let mut lines = vec![];
    for (raw, number) in text.lines().zip(1..) {
        let line = Line::parse(raw).with_context(|| format!("{}:{number}", path.display()))?;
        lines.push(line);
    }
    Ok(lines)
}

fn judge(then: &[Line], now: &[Line], threshold: f64) -> anyhow::Result<()> {
    let machine = |lines: &[Line]| lines.first().map(|line| line.machine.clone());
    if machine(then) != machine(now) {
        eprintln!("note: the earlier run was on another machine; only shares of a floor compare");
    }
    let result = against::compare(then, now, threshold);
    println!("\nagainst the earlier run (more is better):");
    for text in &result.points {
        println!("  {text}");
    }
    for label in &result.gone {
        println!("  {label}: only in the earlier run");
    }
    for label in &result.new {
        println!("  {label}: new");
    }
    ensure!(
        !result.points.is_empty(),
        "the two runs have no point in common"
    );
    let worse = result.regressions.len();
    if worse > 0 {
        bail!(
            "{worse} of {} points are worse by more than {:.0} %:\n  {}",
            result.points.len(),
            threshold * 100.0,
            result.regressions.join("\n  ")
        );
    }
    println!("no point is worse by more than {:.0} %", threshold * 100.0);
    Ok(())
}
