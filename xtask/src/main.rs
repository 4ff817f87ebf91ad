// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask`: the development tasks of the workspace.
//!
//! One subcommand is one module: it has `Args` (clap) and `run(&Workspace, &Args)`, is named in [`Command`], and
//! stays under 300 lines (parts go into modules below it). This crate depends on none of the workspace's crates: it
//! builds in seconds, and what it runs (servers, replays, benchmarks) it starts as programs, in the profile they need.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool speaks to its user"
)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod chaos;
mod ci;
mod dashboard;
mod demo;
mod dist;
mod docs;
mod kernels;
mod markdown;
mod programs;
mod python;
mod run;
mod test;
mod tidy;
mod vm;
mod wheel;
mod workspace;

use workspace::Workspace;

/// Development tasks of the PegaFlow workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Bench(bench::Args),
    Chaos(chaos::Args),
    Ci(ci::Args),
    Dashboard(dashboard::Args),
    Demo(demo::Args),
    Dist(dist::Args),
    Docs(docs::Args),
    Kernels(kernels::Args),
    Test(test::Args),
    Tidy(tidy::Args),
    Vm(vm::Args),
    Wheel(wheel::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match Workspace::find().and_then(|ws| dispatch(&ws, &cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(ws: &Workspace, command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Bench(args) => bench::run(ws, args),
        Command::Chaos(args) => chaos::run(ws, args),
        Command::Ci(args) => ci::run(ws, args),
        Command::Dashboard(args) => dashboard::run(ws, args),
        Command::Demo(args) => demo::run(ws, args),
        Command::Dist(args) => dist::run(ws, args),
        Command::Docs(args) => docs::run(ws, args),
        Command::Kernels(args) => kernels::run(ws, args),
        Command::Test(args) => test::run(ws, args),
        Command::Tidy(args) => tidy::run(ws, args),
        Command::Vm(args) => vm::run(ws, args),
        Command::Wheel(args) => wheel::run(ws, args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
