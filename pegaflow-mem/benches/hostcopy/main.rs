// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Save and load of 128 MiB on the host device, checksums on, against plain copies of the same bytes by the same number of
//! threads between the same memories, taken in turns.
//!
//! Napkin: every byte is read once and written once, past the cache; the checksum adds four vector instructions per 64 bytes, hidden
//! behind memory. So the floor is the machine's copy rate, and what may be lost is the start of each run (a page or more, where the hardware's prefetch begins
//! anew) and waking the threads: tens of microseconds in tens of milliseconds.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark prints its result"
)]

mod sys;

use pegaflow_mem::device::host::{HostDevice, HostSettings};
use pegaflow_mem::device::{CopyJob, Device, Direction};
use pegaflow_mem::{BlockCopy, BlockShape, KvLayout, LayerView, PoolSpec, SharedMemory, Slot};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};
use sys::Memory;

struct Point {
    direction: Direction,
    run_bytes: u32,
    layers: u32,
    threads: u32,
}

struct Bench {
    bytes: u64,
    rounds: usize,
    memory: Memory,
    pool: Arc<SharedMemory>,
}

fn main() {
    // Cargo passes `--bench`; unknown flags are for other benchmarks.
    let quick = std::env::args().any(|a| a == "--quick");
    let bytes: u64 = if quick { 16 << 20 } else { 128 << 20 };
    let spec = PoolSpec {
        touch_threads: 2,
        ..PoolSpec::memfd("hostcopy", bytes)
    };
    let pool = Arc::new(SharedMemory::create(&spec).expect("memory for the pool"));
    let rounds = if quick { 3 } else { 21 };
    let bench = Bench {
        bytes,
        rounds,
        memory: Memory::new(bytes as usize),
        pool,
    };
    for threads in [1, 2] {
        let settings = HostSettings {
            threads,
            ..HostSettings::default()
        };
        let host = HostDevice::new(&settings).expect("threads");
        host.register(bench.memory.to_host())
            .expect("the only memory");
        for (layers, run_bytes) in matrix(quick) {
            for direction in [Direction::Save, Direction::Load] {
                bench.run(
                    &host,
                    &Point {
                        direction,
                        run_bytes,
                        layers,
                        threads,
                    },
                );
            }
        }
    }
}

/// Layers, and bytes of a run. A block has two parts (K, V) that the engine keeps apart, so each run stands alone.
fn matrix(quick: bool) -> Vec<(u32, u32)> {
    let kib = |k: u32| k << 10;
    if quick {
        return vec![(32, kib(4)), (1, kib(1024))];
    }
    let mut points: Vec<_> = [4, 16, 64, 256, 1024].map(|k| (32, kib(k))).into();
    points.extend([(1, kib(16)), (61, kib(16)), (61, kib(64))]);
    points
}

impl Bench {
    fn run(&self, host: &HostDevice, point: &Point) {
        let job = self.job(host, point);
        let save = point.direction == Direction::Save;
        let ours = || {
            let outcome = host
                .copy(point.direction, job.clone())
                .expect("accepted")
                .wait();
            outcome.result.expect("copied");
            assert_eq!(outcome.checksums.len(), job.checksums());
        };
        let plain = || sys::plain_copy(self.memory, &self.pool, save, point.threads as usize);
        ours();
        plain();
        let (mut measured, mut floor) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            measured.push(time(ours));
            floor.push(time(plain));
        }
        self.report(point, &job, measured, floor);
    }

    fn job(&self, host: &HostDevice, point: &Point) -> CopyJob {
        let shape = BlockShape {
            layers: point.layers,
            parts: 2,
            heads: 1,
            inner_bytes: point.run_bytes,
        };
        let blocks = (self.bytes / shape.bytes()) as u32;
        // [layer][part][block]: neighbours in a block are far apart in the engine.
        let run = point.run_bytes as u64;
        let base = self.memory.to_host().base();
        let view = |layer: u64| LayerView {
            base: base + layer * 2 * run * blocks as u64,
            block_stride: run,
            part_stride: run * blocks as u64,
            head_stride: run,
        };
        let views = (0..point.layers as u64).map(view).collect();
        let layout = KvLayout::new(shape, Slot::whole(&shape), views, blocks).expect("valid");
        let pool = host.attach_pool(self.pool.clone()).expect("attach");
        // Both sides shuffled: an odd step and its like visit every index once when the count is a power of two; else nearly.
        let place = |i: u32| (i as u64 * 7919 % blocks as u64) * shape.bytes();
        let copies = (0..blocks).map(|i| BlockCopy {
            block: i,
            place: place(i),
        });
        CopyJob::new(Arc::new(layout), pool, copies.collect())
    }

    fn report(&self, point: &Point, job: &CopyJob, measured: Vec<Duration>, floor: Vec<Duration>) {
        let bytes = job.bytes() as f64;
        let (measured, floor) = (sorted_us(measured), sorted_us(floor));
        let at = |share: f64| measured[((measured.len() - 1) as f64 * share).round() as usize];
        let floor_us = floor[floor.len() / 2] * bytes / self.bytes as f64;
        let op = if point.direction == Direction::Save {
            "save"
        } else {
            "load"
        };
        let line = json!({
            "bench": "hostcopy",
            "settings": {
                "op": op, "keys": job.blocks.len(), "layers": point.layers, "run_bytes": point.run_bytes,
                "bytes": job.bytes(), "threads": point.threads,
            },
            "machine": machine(),
            "gb_per_s": bytes / at(0.5) / 1e3,
            "ops_per_s": job.blocks.len() as f64 / at(0.5) * 1e6,
            "p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999),
            "floor": {
                "what": format!("memcpy by {} threads", point.threads),
                "gb_per_s": bytes / floor_us / 1e3,
                "us": floor_us,
            },
            "floor_share": floor_us / at(0.5),
        });
        println!("{line}");
        eprintln!(
            "{op} {:>7} B runs, {:>2} layers, {} threads: {:6.2} GB/s, memcpy {:6.2}, share {:.2}",
            point.run_bytes,
            point.layers,
            point.threads,
            bytes / at(0.5) / 1e3,
            bytes / floor_us / 1e3,
            floor_us / at(0.5)
        );
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn time(work: impl Fn()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn sorted_us(times: Vec<Duration>) -> Vec<f64> {
    let mut us: Vec<f64> = times.iter().map(|t| t.as_secs_f64() * 1e6).collect();
    us.sort_by(f64::total_cmp);
    us
}

fn machine() -> serde_json::Value {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let kernel = format!("{:?}", pegaflow_mem::checksum::Kernel::best());
    json!({"cpus": cpus, "cpu": model.map(|(_, name)| name), "checksum": kernel})
}
