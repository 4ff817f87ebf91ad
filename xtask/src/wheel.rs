// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! `wheel`: the Python package with its native module, its type stubs and the servers.
//!
//! The servers go in as the programs that Cargo builds, not as entry points into the native module: a server then needs
//! no interpreter around it, and is the same program wherever it came from.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use crate::python::{Tools, Venv, output, run as run_command};
use crate::workspace::Workspace;

/// Build the Python wheel, and check it: install it into a fresh environment, start its programs, compare its type stubs
/// with the module, lint it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Build without optimisation: quicker, for tests.
    #[arg(long)]
    debug: bool,
}

/// The programs that come with the package.
const PROGRAMS: [&str; 2] = ["pegaflow-server", "pegaflow-replay"];

pub(crate) fn run(ws: &Workspace, args: &Args) -> anyhow::Result<()> {
    let tools = match Tools::ready(ws)? {
        Ok(tools) => tools,
        Err(why) => bail!("a wheel needs Python and maturin: {why}"),
    };
    let wheel = build(ws, &tools, !args.debug)?;
    check(ws, &tools, &wheel)?;
    let bytes = std::fs::metadata(&wheel)?.len();
    println!("wheel: {} ({:.1} MB)", wheel.display(), bytes as f64 / 1e6);
    Ok(())
}

/// Builds the wheel; where it lies.
pub(crate) fn build(ws: &Workspace, tools: &Tools, release: bool) -> anyhow::Result<PathBuf> {
    let profile = if release { "release" } else { "debug" };
    programs(ws, release)?;
    let out = ws.target().join("wheels").join(profile);
    if out.exists() {
        std::fs::remove_dir_all(&out)?;
    }
    let mut maturin = tools.venv().command("maturin");
    maturin.args(["build", "--quiet", "--out"]).arg(&out);
    maturin.current_dir(ws.root().join("pegaflow-py"));
    if release {
        maturin.arg("--release");
    }
    run_command(&mut maturin)?;
    let wheels: Vec<_> = std::fs::read_dir(&out)?.collect::<Result<_, _>>()?;
    ensure!(wheels.len() == 1, "maturin built {} wheels", wheels.len());
    Ok(wheels[0].path())
}

/// Builds the programs and puts them where maturin looks for what goes beside the package.
fn programs(ws: &Workspace, release: bool) -> anyhow::Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(ws.root());
    cargo.args([
        "build",
        "--quiet",
        "-p",
        "pegaflow-cache",
        "--features",
        "replay",
        "--bins",
    ]);
    if release {
        cargo.arg("--release");
    }
    run_command(&mut cargo)?;
    let scripts = ws.root().join("pegaflow-py/pegaflow.data/scripts");
    std::fs::create_dir_all(&scripts)?;
    let built = ws.target().join(if release { "release" } else { "debug" });
    for name in PROGRAMS {
        let to = scripts.join(name);
        std::fs::copy(built.join(name), &to).with_context(|| format!("no {name}"))?;
        // Without `strip` on the machine the programs are only larger.
        let _ = Command::new("strip").arg(&to).status();
    }
    Ok(())
}

fn check(ws: &Workspace, tools: &Tools, wheel: &Path) -> anyhow::Result<()> {
    let venv = tools.fresh("fresh")?;
    run_command(
        venv.command("pip")
            .args(["install", "--quiet", "--no-index"])
            .arg(wheel),
    )?;
    for name in PROGRAMS {
        let said = output(venv.command(name).arg("--version"))?;
        ensure!(said.starts_with(name), "{name} --version says {said:?}");
    }
    stubs(tools, &venv)?;
    lint(ws, tools)
}

/// Compares the type stubs with what the installed module has.
fn stubs(tools: &Tools, venv: &Venv) -> anyhow::Result<()> {
    let mut stubtest = tools.venv().command("stubtest");
    stubtest.env("PYTHONPATH", venv.site_packages()?);
    stubtest.env("MYPYPATH", venv.site_packages()?);
    stubtest.arg("pegaflow._native");
    run_command(&mut stubtest)
}

/// Style and types of the Python sources. vLLM and PyTorch are not needed: what comes from them is taken as it is.
fn lint(ws: &Workspace, tools: &Tools) -> anyhow::Result<()> {
    let package = ws.root().join("pegaflow-py");
    let tool = |name: &str| {
        let mut command = tools.venv().command(name);
        command.current_dir(&package);
        command
    };
    run_command(tool("ruff").args(["check", "--quiet", "python", "tests", "bench"]))?;
    run_command(tool("ruff").args(["format", "--check", "--quiet", "python", "tests", "bench"]))?;
    run_command(tool("mypy").args(["--no-error-summary", "python/pegaflow"]))
}
