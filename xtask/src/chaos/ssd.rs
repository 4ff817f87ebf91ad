// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! `chaos ssd`: a process that writes to a block store is killed; every block it was promised must be there.

use std::path::PathBuf;
use std::process::Command;

use anyhow::ensure;

use crate::workspace::Workspace;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// How often the process is killed
    #[arg(long, default_value_t = 20)]
    rounds: u32,
    /// Replay the run with this seed; printed at every start
    #[arg(long)]
    seed: Option<u64>,
    /// The file or device to write to, overwritten; without it, a file in the folder for temporary files
    #[arg(long)]
    path: Option<PathBuf>,
}

pub(crate) fn run(ws: &Workspace, args: &Args) -> anyhow::Result<()> {
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(ws.root())
        .args(["run", "--quiet", "--release"]);
    cargo.args(["--package", "pegaflow-ssd", "--example", "chaos", "--"]);
    cargo.arg("--rounds").arg(args.rounds.to_string());
    if let Some(seed) = args.seed {
        cargo.arg("--seed").arg(seed.to_string());
    }
    if let Some(path) = &args.path {
        cargo.arg("--path").arg(path);
    }
    ensure!(cargo.status()?.success(), "the store broke its word");
    Ok(())
}
