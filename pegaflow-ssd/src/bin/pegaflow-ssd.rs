// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Looks into stores: what is in them, and whether it is still what was written.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool speaks to its user"
)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use pegaflow_ssd::{
    BlockStore, Buf, Device, Error, Fetched, Get, Result, Settings, SsdStore, inspect,
};

/// Look into a block store. It must not be in use.
#[derive(Debug, Parser)]
#[command(name = "pegaflow-ssd", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One line for each block: key, bytes, and when it expires (seconds since 1970).
    Ls(Paths),
    /// Read every block and compare it with its checksum. Fails if one does not match.
    Verify(Paths),
    /// Figures as JSON: how full it is, what opening found, what the device can do.
    Stats(Paths),
    /// What a device says about itself; works while the store is in use.
    Inspect(Paths),
}

#[derive(Debug, clap::Args)]
struct Paths {
    /// The store's files or devices, all of them.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Ls(p) => ls(&p),
        Command::Verify(p) => verify(&p),
        Command::Stats(p) => stats(&p),
        Command::Inspect(p) => inspect_all(&p),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn open(p: &Paths) -> Result<SsdStore> {
    let devices: Vec<Device> = p.paths.iter().map(Device::existing).collect();
    let (segment_bytes, ..) = inspect(&p.paths[0])?;
    SsdStore::open(
        Settings {
            segment_bytes,
            ..Settings::default()
        },
        &devices,
    )
}

fn ls(p: &Paths) -> Result<bool> {
    for (key, info) in open(p)?.blocks() {
        println!("{key} {} {}", info.bytes, info.expires_s);
    }
    Ok(true)
}

fn verify(p: &Paths) -> Result<bool> {
    let store = open(p)?;
    let (mut good, mut gone, mut bad) = (0u64, 0u64, 0u64);
    for (key, info) in store.blocks() {
        let get = Get {
            meta: true,
            ..Get::new(key, Buf::new(info.bytes as usize))
        };
        match store.get(get).map_err(|r| r.error)?.wait().result {
            Ok(Fetched::Hit { .. }) => good += 1,
            Ok(Fetched::Miss) => gone += 1,
            Err(error @ (Error::Corrupt { .. } | Error::Io { .. })) => {
                bad += 1;
                println!("{key}: {error}");
            }
            Err(error) => return Err(error),
        }
    }
    println!("{good} blocks are what was written, {bad} are not, {gone} expired meanwhile");
    Ok(bad == 0)
}

fn stats(p: &Paths) -> Result<bool> {
    let store = open(p)?;
    let found: Vec<String> = store.recovery().iter().map(|r| format!("{r:?}")).collect();
    let value = serde_json::json!({"stats": store.stats(), "recovery": found});
    println!("{value:#}");
    Ok(true)
}

fn inspect_all(p: &Paths) -> Result<bool> {
    for path in &p.paths {
        let (segment_bytes, segments, member, members) = inspect(path)?;
        println!(
            "{}: {segments} segments of {segment_bytes} bytes, device {} of {members}",
            path.display(),
            member + 1
        );
    }
    Ok(true)
}
