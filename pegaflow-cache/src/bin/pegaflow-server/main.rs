// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! `pegaflow-server`: one node of PegaFlow as a process.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod node;
mod pages;
mod run;
mod signals;
mod top;

use std::process::ExitCode;

fn main() -> ExitCode {
    let matches = match args::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() {
                commands::USAGE
            } else {
                0
            });
        }
    };
    commands::dispatch(&matches)
}
