// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! `pegaflow-replay`: a workload against a node, every byte verified.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool speaks to its user"
)]

mod args;
mod progress;

use std::path::Path;
use std::process::ExitCode;

use args::Args;
use clap::Parser;
use pegaflow_cache::replay::Error;
use pegaflow_cache::replay::drive::Replay;
use pegaflow_cache::replay::node::{NodePort, Place};
use pegaflow_cache::replay::port::Port;
use pegaflow_cache::replay::report::{Report, Rss, peak_rss_bytes};
use pegaflow_cache::replay::source::Source;
use pegaflow_cache::tier::SsdSettings;
use progress::{Extent, Shown};

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| "error".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    match run(&args) {
        Ok(report) if report.counts.mismatches == 0 => ExitCode::SUCCESS,
        Ok(report) => {
            eprintln!(
                "error: {} blocks came back with wrong bytes",
                report.counts.mismatches
            );
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<Report, Error> {
    let settings = args.settings();
    let extent = Extent {
        requests: args.requests_expected()?,
        seconds: args.seconds,
    };
    if args.progress != args::Progress::Events {
        eprintln!("{}", args::headline(args));
    }
    let place = match &args.connect {
        Some(socket) => Place::Remote {
            socket: socket.clone(),
        },
        None => Place::Embedded {
            ram_bytes: args.ram,
            pool_dir: args.pool_dir.clone(),
            eviction: args.eviction,
            ssd: SsdSettings {
                path: args.ssd_path.clone().unwrap_or_default(),
                bytes: args.ssd_bytes,
                ..SsdSettings::default()
            },
        },
    };
    let port = NodePort::open(&place, &settings)?;
    let capacity_blocks = port
        .facts()
        .map_err(|e| Error::Node {
            op: "asking the node",
            reason: e.to_string(),
        })?
        .capacity_blocks;
    let source = Source::new(args.workload()?, settings.requests_max, capacity_blocks);
    let mut shown = Shown::new(args.progress, extent);
    let replay = Replay {
        port: &port,
        ranks: port.ranks(),
        settings: &settings,
        namespace: port.namespace(),
    };
    let outcome = replay.run(source, |progress| {
        shown.update(progress);
        true
    });
    shown.finish();
    let rss = Rss {
        replay_bytes: rss_bytes("self").unwrap_or(0),
        server_bytes: args.server_pid.and_then(|pid| rss_bytes(&pid.to_string())),
    };
    let report = Report::new(outcome?, capacity_blocks, settings, rss);
    publish(args, &report)?;
    Ok(report)
}

fn rss_bytes(process: &str) -> Option<u64> {
    peak_rss_bytes(&std::fs::read_to_string(format!("/proc/{process}/status")).ok()?)
}

fn publish(args: &Args, report: &Report) -> Result<(), Error> {
    let json = serde_json::to_string_pretty(report).expect("a report is plain data");
    match args.json.as_deref() {
        Some(path) if path == Path::new("-") => println!("{json}"),
        Some(path) => std::fs::write(path, json).map_err(|e| Error::Settings {
            setting: "json",
            reason: format!("cannot write {}: {e}", path.display()),
        })?,
        None => {}
    }
    if args.progress != args::Progress::Events && args.json.as_deref() != Some(Path::new("-")) {
        println!("\n{report}");
    }
    Ok(())
}
