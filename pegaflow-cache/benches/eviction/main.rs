// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! How many blocks each eviction policy finds again, and what a decision costs.
//!
//! The node's own policies run inside a real core; LRU, S3-FIFO, SIEVE and ARC are simulators, and the floor is the
//! offline optimum on the same requests. A hit is a prefix hit: a block counts only if all before it hit as well. Shares
//! are of all references, so what no cache could have found (a block's first use) is in them.
//!
//! Napkin for a decision: a bitmap of 32 words, the head of a list, its two neighbours, the parent, a line of the ghosts;
//! the block and its neighbours were saved together and lie together. Two or three misses of some 30 ns each.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "lines for tools on stdout, text for people on stderr"
)]

mod cache;
mod points;
mod tiers;

use std::path::PathBuf;

use pegaflow_cache::replay::synth::{Synth, SynthSettings};
use pegaflow_cache::replay::trace::TraceReader;
use pegaflow_cache::replay::workloads::{self, Workload};

/// Requests of each made-up workload.
const REQUESTS: usize = 12_000;
const SEED: u64 = 7;

/// Requests by name, each as its block ids.
struct Trace {
    name: String,
    requests: Vec<Vec<u64>>,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value = |name: &str| {
        let at = args.iter().position(|arg| arg == name)?;
        args.get(at + 1).cloned()
    };
    let quick = args.iter().any(|arg| arg == "--quick");
    let trace = value("--trace").map(|path| read(PathBuf::from(path)));
    let only = value("--workload");
    let traces = trace
        .into_iter()
        .chain(made_up(if quick { 300 } else { REQUESTS }));
    for trace in traces.filter(|trace| only.as_ref().is_none_or(|only| *only == trace.name)) {
        points::measure(&trace.name, &trace.requests, quick);
        tiers::measure(&trace.name, &trace.requests, quick);
    }
    points::decisions(quick);
}

fn read(path: PathBuf) -> Trace {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_default();
    let name = name.split('.').next().unwrap_or_default().to_owned();
    let reader =
        TraceReader::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let requests = reader.map(|request| request.map(|request| request.blocks));
    let requests = requests.collect::<Result<_, _>>();
    let requests = requests.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Trace { name, requests }
}

fn made_up(requests: usize) -> impl Iterator<Item = Trace> {
    let likeness = move || {
        let synth = Synth::new(SynthSettings::default()).take(requests);
        Trace {
            name: "synthetic".to_owned(),
            requests: synth.map(|made| made.request.blocks).collect(),
        }
    };
    let others = Workload::ALL
        .into_iter()
        .map(move |(workload, name)| Trace {
            name: name.to_owned(),
            requests: workloads::requests(workload, SEED, requests),
        });
    std::iter::once_with(likeness).chain(others)
}
