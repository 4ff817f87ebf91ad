// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! `dist`: whether every crate is ready for crates.io.

use anyhow::{bail, ensure};
use xshell::{Shell, cmd};

use crate::workspace::Workspace;

/// Check that every public crate packages for crates.io and builds from its package.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Check only. Nothing else is offered yet: publishing is done by hand.
    #[arg(long, required = true)]
    pub(crate) check: bool,
}

/// The largest package crates.io takes.
const PACKAGE_BYTES_MAX: u64 = 10 << 20;

/// What every package must hold beside its code.
const FILES: [&str; 3] = ["README.md", "LICENSE", "Cargo.toml"];

pub(crate) fn run(ws: &Workspace, args: &Args) -> anyhow::Result<()> {
    ensure!(args.check, "only `--check` is offered");
    let sh = ws.shell()?;
    package(ws, &sh)?;
    for package in ws.public() {
        contents(ws, &sh, package.name.as_str(), &package.version.to_string())?;
    }
    semver(&sh)?;
    println!("dist: {} crates are ready", ws.public().count());
    Ok(())
}

/// Packages all public crates at once, so that they find each other before any is published, and builds each from what
/// was packaged.
fn package(ws: &Workspace, sh: &Shell) -> anyhow::Result<()> {
    let names = ws.public().flat_map(|p| ["-p", p.name.as_str()]);
    cmd!(sh, "cargo package --quiet --allow-dirty {names...}").run()?;
    Ok(())
}

fn contents(ws: &Workspace, sh: &Shell, name: &str, version: &str) -> anyhow::Result<()> {
    let listed = cmd!(sh, "cargo package --quiet --allow-dirty --list -p {name}")
        .quiet()
        .read()?;
    for file in FILES {
        if !listed.lines().any(|line| line == file) {
            bail!("{name}: the package lacks {file}");
        }
    }
    let packed = ws.target().join(format!("package/{name}-{version}.crate"));
    let bytes = std::fs::metadata(&packed)?.len();
    ensure!(
        bytes <= PACKAGE_BYTES_MAX,
        "{name}: {bytes} bytes packed, {PACKAGE_BYTES_MAX} is the most"
    );
    println!(
        "{name} {version}: {} files, {} KiB",
        listed.lines().count(),
        bytes >> 10
    );
    Ok(())
}

/// Compares the API with the last release, where there is one and the tool for it.
fn semver(sh: &Shell) -> anyhow::Result<()> {
    let tag = cmd!(sh, "git tag --list v* --sort=-version:refname")
        .quiet()
        .read()?;
    let tool = cmd!(sh, "cargo semver-checks --version")
        .quiet()
        .ignore_stderr();
    match tag.lines().next() {
        None => println!("skipped: semver: no release yet, nothing to compare with"),
        Some(_) if tool.read().is_err() => {
            println!("skipped: semver: cargo-semver-checks is not installed");
        }
        Some(tag) => cmd!(sh, "cargo semver-checks --workspace --baseline-rev {tag}").run()?,
    }
    Ok(())
}
