// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The benches `d2h` and `h2d`: blocks of scattered runs between a device and a pool, places at random on both sides,
//! checksums on. On the first GPU, or on the host device where there is none.
//!
//! Napkin: the floor of a batch is one contiguous copy of as many bytes in the same direction, measured in turn with
//! the batches themselves. What is over it is the gap between DMA pieces, the filling of the staging ring, and waking up.
//!
//! Flags: `--quick`, `--op NAME` (only points whose `op` contains it), `--seconds S` (for a point), `--pool-gib N` (how
//! large a pool `pool-ready` makes; left out otherwise), `--host` (the host device though there is a GPU).

#[cfg(feature = "cuda")]
mod gpu;
mod host;
mod measure;
mod point;
#[cfg(feature = "cuda")]
mod pools;
mod report;
mod sys;

use pegaflow_mem::device::Direction;
use point::Point;

/// What the command line asks for.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) quick: bool,
    pub(crate) host: bool,
    pub(crate) op: Option<String>,
    pub(crate) seconds: f64,
    pub(crate) pool_gib: Option<u64>,
}

impl Options {
    fn read() -> Self {
        let mut options = Self {
            quick: false,
            host: false,
            op: None,
            seconds: 0.6,
            pool_gib: None,
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--quick" => (options.quick, options.seconds) = (true, 0.02),
                "--host" => options.host = true,
                "--op" => options.op = args.next(),
                "--seconds" => options.seconds = parse(args.next()).unwrap_or(options.seconds),
                "--pool-gib" => options.pool_gib = parse(args.next()),
                _ => {}
            }
        }
        options
    }

    /// Whether points of this kind are wanted.
    pub(crate) fn wants(&self, op: &str) -> bool {
        self.op
            .as_ref()
            .is_none_or(|wanted| op.contains(wanted.as_str()))
    }
}

fn parse<T: std::str::FromStr>(text: Option<String>) -> Option<T> {
    text?.parse().ok()
}

pub(crate) fn main(bench: &'static str, direction: Direction) {
    let options = Options::read();
    #[cfg(feature = "cuda")]
    if !options.host {
        match pegaflow_mem::device::cuda::probe() {
            Ok(gpus) if !gpus.is_empty() => return gpu::run(bench, direction, &options, &gpus[0]),
            Ok(_) => eprintln!("no GPU; the host device it is"),
            Err(why) => eprintln!("{why}; the host device it is"),
        }
    }
    host::run(bench, direction, &options);
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The sweep over lengths of runs: layers are as many as a block of at most 8 MiB has, up to 32.
pub(crate) fn sweep(batch_bytes: u64) -> Vec<Point> {
    [4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB]
        .into_iter()
        .map(|run| {
            let layers = (8 * MIB / (2 * run)).clamp(1, 32) as u32;
            Point::new(run, layers, batch_bytes)
        })
        .collect()
}
