// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! `docs`: the book, and that nothing in it has drifted from what the programs do.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use xshell::{Shell, cmd};

use crate::tidy;
use crate::workspace::Workspace;

mod generated;
mod server;

/// Build the book into `target/book` and check its links, its commands and its generated parts.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Write the generated parts anew instead of checking them.
    #[arg(long)]
    update: bool,
}

/// The mdBook this is built with; fetched into `target/tools` once if the machine has none.
const MDBOOK: &str = "0.5.4";

pub(crate) fn run(ws: &Workspace, args: &Args) -> anyhow::Result<()> {
    let stale = generated::refresh(ws, args.update)?;
    if !stale.is_empty() {
        bail!(
            "out of date, run `cargo xtask docs --update`: {}",
            stale.join(", ")
        );
    }
    tidy::texts(ws)?;
    let sh = ws.shell()?;
    let mdbook = mdbook(ws, &sh)?;
    let book = ws.target().join("book");
    cmd!(sh, "{mdbook} build docs --dest-dir {book}")
        .env("MDBOOK_LOG", "warn")
        .run()?;
    println!("book: {}", book.join("index.html").display());
    Ok(())
}

/// An mdBook that runs here: the machine's own if it is the right one, else one built into `target/tools`.
fn mdbook(ws: &Workspace, sh: &Shell) -> anyhow::Result<PathBuf> {
    let tools = ws.target().join("tools");
    let ours = tools.join("bin/mdbook");
    for program in [PathBuf::from("mdbook"), ours.clone()] {
        let version = cmd!(sh, "{program} --version")
            .quiet()
            .ignore_stderr()
            .read();
        if version.is_ok_and(|v| v.trim().ends_with(MDBOOK)) {
            return Ok(program);
        }
    }
    eprintln!(
        "mdBook {MDBOOK} is not here: building it once into {}",
        tools.display()
    );
    cmd!(
        sh,
        "cargo install mdbook --version {MDBOOK} --locked --quiet --debug --root {tools}
         --no-default-features --features search"
    )
    .run()
    .context("cannot install mdBook; with the network back, run this again")?;
    Ok(ours)
}
