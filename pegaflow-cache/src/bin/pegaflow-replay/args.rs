// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The command line.

use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use pegaflow_cache::core::EvictionPolicy;
use pegaflow_cache::describe::parse_bytes;
use pegaflow_cache::replay::source::Workload;
use pegaflow_cache::replay::synth::{Synth, SynthSettings};
use pegaflow_cache::replay::trace::TraceReader;
use pegaflow_cache::replay::{Error, ReplaySettings};

/// Replay a workload against a PegaFlow node, and verify every byte that comes back.
///
/// Plays an inference engine: looks up the prefix of every request, loads what is there, checks every byte
/// against what its key says, saves what was missing. Exits with status 1 if any byte was wrong.
#[derive(Debug, Parser)]
#[command(name = "pegaflow-replay", version, max_term_width = 100)]
pub(crate) struct Args {
    /// Replay this trace (JSON lines, plain or gzip) instead of the synthetic workload
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Seed of the synthetic workload
    #[arg(long, default_value_t = SynthSettings::default().seed)]
    pub(crate) seed: u64,
    /// Share of the synthetic requests that come from agents, 0 to 1; the rest is chat
    #[arg(long, default_value_t = SynthSettings::default().agent_share, value_name = "SHARE")]
    pub(crate) agent_share: f64,
    /// Unix socket of a running `pegaflow-server`; without, a node runs inside this process
    #[arg(long, value_name = "SOCKET")]
    pub(crate) connect: Option<PathBuf>,
    /// Memory of the node inside this process
    #[arg(long, default_value = "1GiB", value_parser = parse_bytes, value_name = "BYTES")]
    pub(crate) ram: u64,
    /// Folder for the pool of the node inside this process; anonymous memory without
    #[arg(long, value_name = "DIR", conflicts_with = "connect")]
    pub(crate) pool_dir: Option<PathBuf>,
    /// Which blocks of the node inside this process leave first: `gittins` or `lru`
    #[arg(long, value_parser = parse_eviction, value_name = "POLICY", conflicts_with = "connect", default_value = "gittins")]
    pub(crate) eviction: EvictionPolicy,
    /// File or device with blocks beside the pool of the node inside this process
    #[arg(
        long,
        value_name = "PATH",
        conflicts_with = "connect",
        requires = "wait_ms"
    )]
    pub(crate) ssd_path: Option<String>,
    /// Bytes of that file, if it is to be made
    #[arg(long, value_parser = parse_bytes, value_name = "BYTES", default_value = "64GiB")]
    pub(crate) ssd_bytes: u64,
    /// How long a request waits for blocks that are on their way, from SSD or from another request
    #[arg(long, value_name = "MS")]
    pub(crate) wait_ms: Option<u32>,
    /// Layers of the model
    #[arg(long, default_value_t = ReplaySettings::default().layers)]
    pub(crate) layers: u32,
    /// KV heads of the model
    #[arg(long, default_value_t = ReplaySettings::default().heads)]
    pub(crate) heads: u32,
    /// Bytes of a block: all layers, K and V, all heads
    #[arg(long, default_value = "128KiB", value_parser = parse_bytes, value_name = "BYTES")]
    pub(crate) block_bytes: u64,
    /// Tensor-parallel ranks
    #[arg(long, default_value_t = ReplaySettings::default().ranks)]
    pub(crate) ranks: u32,
    /// Most requests in flight at once
    #[arg(long, default_value_t = ReplaySettings::default().in_flight_max, value_name = "N")]
    pub(crate) in_flight: u32,
    /// Most blocks copied by one load or save call
    #[arg(long, default_value_t = ReplaySettings::default().chunk_blocks, value_name = "N")]
    pub(crate) chunk_blocks: u32,
    /// Trace time per real time, for example 1 for as it happened; 0 for as fast as possible
    #[arg(long, default_value_t = 0.0)]
    pub(crate) speed: f64,
    /// Stop after this many seconds; 0 for no limit
    #[arg(long, default_value_t = 0.0)]
    pub(crate) seconds: f64,
    /// Stop after this many requests; 0 for no limit
    #[arg(long, default_value_t = 0)]
    pub(crate) requests: u64,
    /// How long to wait for a server that went away, in milliseconds
    #[arg(long, default_value_t = ReplaySettings::default().reconnect_ms_max, value_name = "MS")]
    pub(crate) reconnect_ms_max: u64,
    /// Process of the server, to report its memory
    #[arg(long, value_name = "PID", requires = "connect")]
    pub(crate) server_pid: Option<u32>,
    /// How often the curves and the progress get a point, in milliseconds
    #[arg(long, default_value_t = ReplaySettings::default().sample_ms, value_name = "MS")]
    pub(crate) sample_ms: u32,
    /// Write the whole result to this file as JSON; `-` for standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// How to show progress
    #[arg(long, value_enum, default_value_t = Progress::Auto)]
    pub(crate) progress: Progress,
}

/// How to show progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Progress {
    /// A bar on a terminal, lines elsewhere
    Auto,
    /// A bar on standard error
    Bar,
    /// A line every few seconds on standard error
    Lines,
    /// A JSON object per sample on standard output
    Events,
    /// Nothing
    None,
}

fn parse_eviction(name: &str) -> Result<EvictionPolicy, String> {
    let name = toml::Value::from(name);
    name.try_into().map_err(|error| error.to_string())
}

impl Args {
    pub(crate) fn settings(&self) -> ReplaySettings {
        ReplaySettings {
            layers: self.layers,
            heads: self.heads,
            block_bytes: self.block_bytes,
            ranks: self.ranks,
            in_flight_max: self.in_flight,
            chunk_blocks: self.chunk_blocks,
            speed: self.speed,
            seconds: self.seconds,
            requests_max: self.requests,
            sample_ms: self.sample_ms,
            wait_ms: self.wait_ms.unwrap_or(0),
            reconnect_ms_max: self.reconnect_ms_max,
        }
    }

    pub(crate) fn workload(&self) -> Result<Workload, Error> {
        Ok(match &self.trace {
            Some(path) => Workload::Trace(TraceReader::open(path)?),
            None => Workload::Synthetic(Box::new(Synth::new(SynthSettings {
                seed: self.seed,
                agent_share: self.agent_share,
                ..SynthSettings::default()
            }))),
        })
    }

    /// Requests there will be, if that is known beforehand. Reads the whole trace once, which also finds its
    /// errors before anything is started.
    pub(crate) fn requests_expected(&self) -> Result<Option<u64>, Error> {
        let limit = (self.requests > 0).then_some(self.requests);
        let Some(path) = &self.trace else {
            return Ok(limit);
        };
        let mut requests = 0;
        for request in TraceReader::open(path)? {
            request?;
            requests += 1;
        }
        Ok(Some(limit.map_or(requests, |limit| limit.min(requests))))
    }
}

/// One line about what is going to happen.
pub(crate) fn headline(args: &Args) -> String {
    let what = match &args.trace {
        Some(path) => format!("trace {}", file_name(path)),
        None => format!("synthetic workload, seed {}", args.seed),
    };
    let node = match &args.connect {
        Some(socket) => format!("the server at {}", socket.display()),
        None => "a node inside this process".into(),
    };
    let (ranks, heads, layers) = (args.ranks, args.heads, args.layers);
    format!("{what}, {ranks} ranks, {layers} layers x {heads} heads, against {node}")
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}
