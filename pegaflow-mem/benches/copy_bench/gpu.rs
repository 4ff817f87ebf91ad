// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The matrix on a GPU.

use super::measure::{Times, in_turn, micros, now};
use super::point::Point;
use super::pools::pool;
use super::report::{Line, Machine};
use super::sys::cpu_seconds;
use super::{KIB, MIB, Options, sweep};
use pegaflow_mem::device::cuda::lab::{Bound, Lab};
use pegaflow_mem::device::cuda::{CudaDevice, CudaSettings, GpuFacts};
use pegaflow_mem::device::{CopyJob, Device, Direction, PoolHandle};
use pegaflow_mem::{HugePages, SharedMemory};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The engine's KV and the pool: many times what a batch takes, so that places are far apart.
const KV_BYTES: u64 = 4 << 30;
const POOL_BYTES: u64 = 8 << 30;
const JOBS: usize = 4;

/// What all points share.
pub(super) struct Rig<'a> {
    pub(super) bench: &'static str,
    pub(super) direction: Direction,
    pub(super) options: &'a Options,
    pub(super) machine: Machine,
    pub(super) auto: Arc<CudaDevice>,
    lab: Arc<Lab>,
    pub(super) pool: Arc<SharedMemory>,
    handle: PoolHandle,
    pub(super) batch_bytes: u64,
}

pub(crate) fn run(bench: &'static str, direction: Direction, options: &Options, gpu: &GpuFacts) {
    let rig = Rig::new(bench, direction, options, gpu);
    let wants = |op| options.wants(op);
    let all: [(&str, &dyn Fn()); 12] = [
        ("sweep", &|| rig.sweep()),
        ("batch", &|| rig.batches()),
        ("layers", &|| rig.layers()),
        ("heads", &|| rig.heads()),
        ("neighbours", &|| rig.neighbours()),
        ("duplex", &|| rig.duplex()),
        ("beside", &|| rig.beside()),
        ("latency", &|| rig.latency()),
        ("cpu", &|| rig.cpu()),
        ("pages", &|| rig.pages()),
        ("numa", &|| rig.numa()),
        ("pool-ready", &|| rig.pool_ready()),
    ];
    all.iter()
        .filter(|(op, _)| wants(op))
        .for_each(|(_, points)| points());
}

fn open() -> Arc<CudaDevice> {
    Arc::new(CudaDevice::open(&CudaSettings::default()).expect("the GPU opens"))
}

impl<'a> Rig<'a> {
    fn new(
        bench: &'static str,
        direction: Direction,
        options: &'a Options,
        gpu: &GpuFacts,
    ) -> Self {
        let small = if options.quick { 8 } else { 1 };
        let auto = open();
        let begun = now();
        drop(open());
        let opening = micros(begun.elapsed()) / 1e3;
        eprintln!("a second opening, which measures too: {opening:.0} ms");
        for direction in [Direction::Save, Direction::Load] {
            eprintln!("{direction:?} {:?}", auto.rates(direction));
        }
        let lab =
            Arc::new(Lab::new(&auto, KV_BYTES / small, (1 << 30) / small).expect("device memory"));
        let pool = pool(POOL_BYTES / small, HugePages::Auto, None);
        let mut machine = vec![
            ("gpu".to_owned(), gpu.model.clone()),
            ("driver".to_owned(), gpu.driver_version.to_string()),
            ("pages".to_owned(), format!("{:?}", pool.pages())),
        ];
        machine.push((
            "cpus".into(),
            std::thread::available_parallelism()
                .map_or(0, |n| n.get())
                .to_string(),
        ));
        let handle = auto.attach_pool(Arc::clone(&pool)).expect("attached");
        auto.pin_pool(&handle, 8).expect("pinned");
        Self {
            bench,
            direction,
            options,
            machine: Machine(machine),
            auto,
            lab,
            pool,
            handle,
            batch_bytes: if options.quick { 32 * MIB } else { 256 * MIB },
        }
    }

    fn jobs(&self, point: &Point, method: &str) -> (Arc<CudaDevice>, Vec<CopyJob>) {
        Lab::force(&self.auto, method.parse().ok());
        (Arc::clone(&self.auto), self.jobs_on(point, &self.handle))
    }

    pub(super) fn jobs_on(&self, point: &Point, handle: &PoolHandle) -> Vec<CopyJob> {
        let small = if self.options.quick { 8 } else { 1 };
        let layout = point.layout(self.lab.base(), KV_BYTES / small);
        point.jobs(&layout, handle, JOBS)
    }

    pub(super) fn contiguous(&self, directions: &[Direction], bytes: u64) -> Duration {
        let pool = &self.handle;
        self.lab
            .contiguous(directions, pool, bytes)
            .expect("copied")
    }

    pub(super) fn settings(
        &self,
        op: &'static str,
        point: &Point,
        method: &str,
    ) -> Vec<(&'static str, String)> {
        vec![
            ("op", op.to_owned()),
            ("method", method.to_owned()),
            ("run_bytes", point.run_bytes.to_string()),
            ("layers", point.layers.to_string()),
            ("heads", format!("{} of {}", point.heads, point.heads_all)),
            ("neighbours", point.neighbours.to_string()),
            ("batch_bytes", point.bytes().to_string()),
        ]
    }

    /// One direction, in turn with the contiguous copy.
    fn point(&self, op: &'static str, point: Point, method: &str) {
        let (device, jobs) = self.jobs(&point, method);
        let bytes = point.bytes();
        let (floor, copy) = in_turn(
            self.options.seconds,
            || self.contiguous(&[self.direction], bytes),
            |i| copy(&device, self.direction, &jobs[i % jobs.len()]),
        );
        self.line(
            self.settings(op, &point, method),
            bytes,
            &floor,
            &copy,
            "one contiguous DMA copy",
        );
    }

    pub(super) fn line(
        &self,
        settings: Vec<(&'static str, String)>,
        bytes: u64,
        floor: &Times,
        copy: &Times,
        what: &str,
    ) {
        let rate = |t: &Times| bytes as f64 / t.p50() / 1e3;
        Line {
            bench: self.bench,
            settings,
            gb_per_s: Some(rate(copy)),
            p50_us: copy.at(0.5),
            p99_us: copy.at(0.99),
            p999_us: copy.at(0.999),
            floor: Some((what.to_owned(), Some(rate(floor)), floor.at(0.5))),
            floor_share: Some(rate(copy) / rate(floor)),
            ..Line::default()
        }
        .print(&self.machine);
    }

    fn sweep(&self) {
        for point in sweep(self.batch_bytes) {
            for method in ["auto", "staged", "batch", "direct", "plain"] {
                self.point("sweep", point, method);
            }
        }
    }

    fn batches(&self) {
        for bytes in [4 * MIB, 16 * MIB, 64 * MIB, 1024 * MIB] {
            for run in [16 * KIB, 64 * KIB] {
                if bytes <= self.batch_bytes || !self.options.quick {
                    self.point("batch", Point::new(run, 32, bytes), "auto");
                }
            }
        }
    }

    fn layers(&self) {
        for (run, layers) in [
            (4 * KIB, 1),
            (4 * KIB, 8),
            (4 * KIB, 80),
            (64 * KIB, 1),
            (64 * KIB, 4),
            (64 * KIB, 80),
        ] {
            self.point("layers", Point::new(run, layers, self.batch_bytes), "auto");
        }
    }

    /// A worker that holds some of the heads: short rows in the pool too.
    fn heads(&self) {
        for row in [4 * KIB, 16 * KIB, 32 * KIB, 64 * KIB] {
            let heads = if row <= 16 * KIB { 1 } else { 2 };
            for method in ["auto", "staged", "direct"] {
                let point = Point {
                    heads,
                    heads_all: 8,
                    ..Point::new(row, 16, self.batch_bytes / 2)
                };
                self.point("heads", point, method);
            }
        }
    }

    fn neighbours(&self) {
        for run in [4 * KIB, 16 * KIB] {
            let point = Point {
                neighbours: 8,
                ..Point::new(run, 32, self.batch_bytes)
            };
            self.point("neighbours", point, "auto");
        }
    }

    /// Both directions at once, each its own blocks; GB/s in all.
    fn duplex(&self) {
        for run in [4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB] {
            let point = Point::new(
                run,
                (8 * MIB / (2 * run)).clamp(1, 32) as u32,
                self.batch_bytes,
            );
            for method in ["auto", "batch", "direct"] {
                let (device, jobs) = self.jobs(&point, method);
                let bytes = point.bytes();
                let both = [Direction::Save, Direction::Load];
                let (floor, copy) = in_turn(
                    self.options.seconds,
                    || self.contiguous(&both, bytes),
                    |i| {
                        let begun = now();
                        let running = both.map(|d| {
                            let job = jobs[(i + d as usize) % jobs.len()].clone();
                            device.copy(d, job).expect("accepted")
                        });
                        for completion in running {
                            completion.wait().result.expect("copied");
                        }
                        begun.elapsed()
                    },
                );
                let settings = self.settings("duplex", &point, method);
                self.line(
                    settings,
                    2 * bytes,
                    &floor,
                    &copy,
                    "two contiguous DMA copies at once",
                );
            }
        }
    }

    /// Copies beside a compute loop in the same process: what each loses.
    fn beside(&self) {
        let point = Point::new(64 * KIB, 32, self.batch_bytes);
        for (bound, what) in [(Bound::Fma, "fma"), (Bound::Hbm, "hbm")] {
            let mut dma_rate = None;
            for method in ["contiguous", "auto", "staged", "batch", "direct"] {
                let alone = self.load_alone(bound);
                let (times, loop_rate) = self.load_with(bound, &point, method);
                let rate = point.bytes() as f64 / times.p50() / 1e3;
                let dma = *dma_rate.get_or_insert(rate);
                let named = |op: &'static str| {
                    let mut settings = self.settings(op, &point, method);
                    settings.push(("beside", what.to_owned()));
                    settings
                };
                Line {
                    bench: self.bench,
                    settings: named("beside"),
                    gb_per_s: Some(rate),
                    p50_us: times.at(0.5),
                    p99_us: times.at(0.99),
                    floor: Some((
                        "one contiguous DMA copy beside the same loop".into(),
                        Some(dma),
                        None,
                    )),
                    floor_share: Some(rate / dma),
                    ..Line::default()
                }
                .print(&self.machine);
                Line {
                    bench: self.bench,
                    settings: named("loop beside"),
                    ops_per_s: Some(loop_rate),
                    floor: Some((
                        format!("the loop alone, {alone:.1} kernels/s"),
                        None,
                        Some(1e6 / alone),
                    )),
                    floor_share: Some(loop_rate / alone),
                    gpu_ms_per_gb: Some((1.0 - loop_rate / alone).max(0.0) / rate * 1e3),
                    ..Line::default()
                }
                .print(&self.machine);
            }
        }
    }

    fn load_alone(&self, bound: Bound) -> f64 {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let load = scope.spawn(|| self.lab.run_load(bound, &stop).expect("it runs"));
            std::thread::sleep(Duration::from_secs_f64(self.options.seconds));
            stop.store(true, Ordering::Release);
            load.join().expect("no panic")
        })
    }

    fn load_with(&self, bound: Bound, point: &Point, method: &str) -> (Times, f64) {
        let dma = method == "contiguous";
        let (device, jobs) = self.jobs(point, if dma { "auto" } else { method });
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let copies = scope.spawn(|| {
                let (mut times, mut i) = (vec![], 0);
                while !stop.load(Ordering::Acquire) {
                    times.push(micros(if dma {
                        self.contiguous(&[self.direction], point.bytes())
                    } else {
                        copy(&device, self.direction, &jobs[i % jobs.len()])
                    }));
                    i += 1;
                }
                Times::new(times)
            });
            std::thread::sleep(Duration::from_millis(50));
            let end = AtomicBool::new(false);
            let rate = std::thread::scope(|inner| {
                let load = inner.spawn(|| self.lab.run_load(bound, &end).expect("it runs"));
                std::thread::sleep(Duration::from_secs_f64(self.options.seconds));
                end.store(true, Ordering::Release);
                load.join().expect("no panic")
            });
            stop.store(true, Ordering::Release);
            (copies.join().expect("no panic"), rate)
        })
    }

    /// From submitting to seeing the end: one run, and small batches.
    fn latency(&self) {
        for (run, layers, blocks) in [
            (64 * KIB, 1, 1),
            (4 * KIB, 1, 1),
            (64 * KIB, 4, 1),
            (16 * KIB, 32, 1),
        ] {
            let mut point = Point::new(run, layers, 0);
            point.batch_bytes = point.slot_bytes() * blocks;
            let single = layers == 1;
            if single {
                // One part: a block is a single run.
                point.batch_bytes = point.slot_bytes();
            }
            let (device, mut jobs) = self.jobs(&point, "auto");
            if single {
                jobs = self.single_runs(run);
            }
            let bytes = if single { run } else { point.bytes() };
            let (floor, copy) = in_turn(
                self.options.seconds,
                || self.contiguous(&[self.direction], bytes),
                |i| copy(&device, self.direction, &jobs[i % jobs.len()]),
            );
            let mut settings = self.settings("latency", &point, "auto");
            settings.retain(|s| s.0 != "batch_bytes");
            settings.push(("batch_bytes", bytes.to_string()));
            self.line(
                settings,
                bytes,
                &floor,
                &copy,
                "one contiguous DMA copy, no checksum",
            );
        }
    }

    fn single_runs(&self, run: u64) -> Vec<CopyJob> {
        use pegaflow_mem::{BlockCopy, BlockShape, KvLayout, Slot};
        let shape = BlockShape {
            layers: 1,
            parts: 1,
            heads: 1,
            inner_bytes: run as u32,
        };
        let layout =
            KvLayout::dense(shape, Slot::whole(&shape), self.lab.base(), 1000).expect("valid");
        let layout = Arc::new(layout);
        let pool = &self.handle;
        let one = |i: u64| BlockCopy {
            block: (i * 37 % 1000) as u32,
            place: (i * 71 % 1000) * run,
        };
        (0..64)
            .map(|i| CopyJob::new(layout.clone(), pool.clone(), vec![one(i)]))
            .collect()
    }

    /// Processor time: per GB when callers wait, per run when they do not.
    fn cpu(&self) {
        for run in [4 * KIB, 16 * KIB, 64 * KIB] {
            for method in ["auto", "batch", "plain"] {
                let point = Point::new(run, 32, 4 * self.batch_bytes);
                let (device, jobs) = self.jobs(&point, method);
                copy(&device, self.direction, &jobs[0]);
                let (cpu, begun) = (cpu_seconds(), now());
                let mut n = 0;
                while begun.elapsed().as_secs_f64() < self.options.seconds || n < 2 {
                    copy(&device, self.direction, &jobs[n % jobs.len()]);
                    n += 1;
                }
                let (wall, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
                let gb = (n as u64 * point.bytes()) as f64 / 1e9;
                self.cpu_line("cpu, caller waits", &point, method, gb, cpu, wall, n);
                // Nobody waits: what remains is submitting, and the lane's thread.
                let job = jobs[0].clone();
                let cpu = cpu_seconds();
                let begun = now();
                let running = device.copy(self.direction, job).expect("accepted");
                while !running.is_done() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                let (wall, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
                let gb = point.bytes() as f64 / 1e9;
                self.cpu_line("cpu, nobody waits", &point, method, gb, cpu, wall, 1);
            }
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one line, named by its only callers"
    )]
    fn cpu_line(
        &self,
        op: &'static str,
        point: &Point,
        method: &str,
        gb: f64,
        cpu: f64,
        wall: f64,
        n: usize,
    ) {
        let runs = point.runs() as f64 * n as f64;
        eprintln!(
            "{op} {method} {} KiB: {:.4} CPU s/GB, {:.1} ns a run, {:.1} % of a core at {:.1} GB/s",
            point.run_bytes / 1024,
            cpu / gb,
            cpu / runs * 1e9,
            cpu / wall * 100.0,
            gb / wall
        );
        Line {
            bench: self.bench,
            settings: self.settings(op, point, method),
            // GB and runs per second of processor time; us of processor time a run.
            gb_per_s: Some(gb / cpu),
            ops_per_s: Some(runs / cpu),
            p50_us: Some(cpu / runs * 1e6),
            ..Line::default()
        }
        .print(&self.machine);
    }
}

pub(super) fn copy(device: &CudaDevice, direction: Direction, job: &CopyJob) -> Duration {
    let job = job.clone();
    let begun = now();
    let outcome = device.copy(direction, job).expect("accepted").wait();
    let time = begun.elapsed();
    outcome.result.expect("copied");
    time
}
