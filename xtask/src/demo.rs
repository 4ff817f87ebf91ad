// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! `demo`: the main job. Starts a real server, replays a workload against it, shows what happened.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::programs::{Place, Programs, Running};
use crate::workspace::Workspace;

mod chart;

/// Start a node, let workers save and load KV blocks through it, and verify every byte.
///
/// Builds in release, replays a synthetic multi-turn workload (or a trace) with a progress bar, prints a table
/// and draws the hit rate and the latencies over time.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Replay this trace (JSON lines, plain or .gz) instead of the synthetic workload
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Memory for KV blocks
    #[arg(long, default_value = "1GiB", value_name = "BYTES")]
    ram: String,
    /// Keep blocks on SSD as well, in a file of this size below the build folder
    #[arg(long, value_name = "BYTES")]
    ssd: Option<String>,
    /// Which blocks leave first: by `lru` a small model outside the node can say what the hit rate must be
    #[arg(long, default_value = "lru", value_parser = ["lru", "gittins"], value_name = "POLICY")]
    eviction: String,
    /// Tensor-parallel ranks
    #[arg(long, default_value_t = 2)]
    ranks: u32,
    /// Layers of the model
    #[arg(long, default_value_t = 4)]
    layers: u32,
    /// KV heads of the model
    #[arg(long, default_value_t = 4)]
    heads: u32,
    /// Bytes of a block: all layers, K and V, all heads
    #[arg(long, default_value = "128KiB", value_name = "BYTES")]
    block_bytes: String,
    /// Stop after this many seconds; by default 25 for the synthetic workload, none for a trace
    #[arg(long)]
    seconds: Option<f64>,
    /// Trace time per real time; 0 for as fast as possible
    #[arg(long, default_value_t = 0.0)]
    speed: f64,
    /// Seed of the synthetic workload
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the result to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Run the node inside the replaying process
    #[arg(long, conflicts_with = "remote")]
    embedded: bool,
    /// Run the node as a `pegaflow-server` (the default)
    #[arg(long)]
    remote: bool,
    /// Build without optimisation (for tests)
    #[arg(long, hide = true)]
    debug: bool,
}

const SYNTHETIC_SECONDS: f64 = 25.0;
// A drive that needs longer is no help.
const SSD_WAIT: Duration = Duration::from_secs(10);
// Longer than the server's own patience with running requests.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

pub(crate) fn run(ws: &Workspace, args: &Args) -> anyhow::Result<()> {
    let programs = Programs::build(ws, !args.debug)?;
    let dir = ws.target().join("demo");
    std::fs::create_dir_all(&dir)?;
    let json = dir.join("demo.json");
    let mut place = Place::new(ws, "demo", parse_bytes(&args.ram)?)?.with_eviction(&args.eviction);
    if let Some(ssd) = &args.ssd {
        place = place.with_ssd(ws, parse_bytes(ssd)?)?;
    }
    if args.embedded {
        let mut replay = programs.embedded();
        replay.args(["--ram", &args.ram, "--eviction", &args.eviction]);
        if let Some((path, bytes)) = place.ssd() {
            replay.arg("--ssd-path").arg(path);
            replay.args(["--ssd-bytes", &bytes.to_string()]);
        }
        finish(&mut replay, args, &json)?;
    } else {
        with_server(&place, &programs, args, &json)?;
    }
    let result: Value = serde_json::from_str(&std::fs::read_to_string(&json)?)?;
    let svg = dir.join("demo.svg");
    chart::draw(&svg, &result)?;
    println!("\n  curves  {}", shown(&svg));
    println!("  result  {}", shown(&json));
    if let Some(copy) = &args.json {
        std::fs::copy(&json, copy).with_context(|| format!("cannot write {}", copy.display()))?;
    }
    ensure!(result["mismatches"] == 0, "bytes came back wrong");
    Ok(())
}

// As seen from where the user stands.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here)
        .unwrap_or(path)
        .display()
        .to_string()
}

fn with_server(place: &Place, programs: &Programs, args: &Args, json: &Path) -> anyhow::Result<()> {
    let mut server = Running::server(programs, place)?;
    let mut replay = programs.replay(&place.socket());
    replay.args(["--server-pid", &server.id().to_string()]);
    let replayed = finish(&mut replay, args, json);
    if !server.is_running() {
        bail!("the server ended early:\n{}", place.log_tail());
    }
    replayed?;
    server.stop(STOP_PATIENCE)
}

fn finish(replay: &mut Command, args: &Args, json: &Path) -> anyhow::Result<()> {
    if let Some(trace) = &args.trace {
        replay.arg("--trace").arg(trace);
    }
    if args.ssd.is_some() {
        replay.args(["--wait-ms", &SSD_WAIT.as_millis().to_string()]);
    }
    let default = if args.trace.is_some() {
        0.0
    } else {
        SYNTHETIC_SECONDS
    };
    for (flag, value) in [
        ("--ranks", args.ranks.to_string()),
        ("--layers", args.layers.to_string()),
        ("--heads", args.heads.to_string()),
        ("--block-bytes", args.block_bytes.clone()),
        ("--seconds", args.seconds.unwrap_or(default).to_string()),
        ("--speed", args.speed.to_string()),
        ("--seed", args.seed.to_string()),
    ] {
        replay.args([flag, &value]);
    }
    let status = replay
        .arg("--json")
        .arg(json)
        .status()
        .context("cannot start the replay")?;
    ensure!(status.success(), "the replay failed");
    Ok(())
}

/// A size as people write it: `2GiB`, `512MiB`, a number of bytes.
pub(crate) fn parse_bytes(text: &str) -> anyhow::Result<u64> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];
    let found = units
        .iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
    let (number, shift) = found.unwrap_or((text, 0));
    let bytes = number
        .trim()
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift));
    bytes.with_context(|| format!("`{text}` is not a size; write for example 2GiB or 512MiB"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn sizes_people_write() {
        let ok = |text: &str| parse_bytes(text).ok();
        assert_eq!(
            (ok("2GiB"), ok("512 MiB"), ok("4096")),
            (Some(2 << 30), Some(512 << 20), Some(4096))
        );
        assert_eq!(
            (ok("2G"), ok("-1GiB"), ok(""), ok("99999999999TiB")),
            (None, None, None, None)
        );
    }

    /// The whole demo, small: a real server, a real replay, the JSON and the picture.
    #[test]
    fn the_demo_runs_and_keeps_its_contract() {
        let ws = Workspace::find().expect("tests run inside the workspace");
        let folder = tempfile::tempdir().expect("a folder for the result");
        let json = folder.path().join("out.json");
        let mut args = Cli::parse_from([
            "demo",
            "--debug",
            "--ram",
            "64MiB",
            "--seconds",
            "1.5",
            "--block-bytes",
            "64KiB",
        ])
        .args;
        args.json = Some(json.clone());
        run(&ws, &args).expect("the demo runs");
        let text = std::fs::read_to_string(json).expect("it was written");
        let result: Value = serde_json::from_str(&text).expect("it is JSON");
        for field in [
            "requests",
            "blocks_referenced",
            "capacity_blocks",
            "prefix_hit_blocks",
            "bytes_saved",
            "bytes_loaded",
            "bytes_verified",
            "seconds",
            "peak_rss_bytes",
        ] {
            assert!(
                result[field].as_f64().is_some_and(|n| n > 0.0),
                "{field}: {text}"
            );
        }
        assert_eq!(result["mismatches"], 0);
        for latency in ["lookup_us", "save_us", "load_us"] {
            assert!(
                result[latency]["p99"].as_f64() >= result[latency]["p50"].as_f64(),
                "{latency}"
            );
        }
        let svg = ws.target().join("demo/demo.svg");
        assert!(
            std::fs::read_to_string(svg)
                .expect("it was drawn")
                .contains("prefix hits")
        );
        on_two_tiers(&ws);
    }

    /// The pool holds a part of what the workload uses again: the rest comes from the file.
    fn on_two_tiers(ws: &Workspace) {
        for place in ["--remote", "--embedded"] {
            let folder = tempfile::tempdir().expect("a folder for the result");
            let json = folder.path().join("out.json");
            let flags = "demo --debug --ram 64MiB --ssd 1GiB --seconds 2 --block-bytes 64KiB";
            let mut args = Cli::parse_from(flags.split(' ').chain([place])).args;
            args.json = Some(json.clone());
            run(ws, &args).expect("the demo runs");
            let text = std::fs::read_to_string(json).expect("it was written");
            let result: Value = serde_json::from_str(&text).expect("it is JSON");
            assert_eq!(result["mismatches"], 0);
            let late = result["late_hit_blocks"].as_u64();
            assert!(late.is_some_and(|n| n > 0), "{place}: {text}");
        }
    }
}
