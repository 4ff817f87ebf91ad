// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The drive, bare and through the store. `--fio`: every bare point alternates with fio running the same job on the same file.
//!
//! Napkin: a bare transfer is one entry in and one out of a ring, about a microsecond of our own beside the kernel's four, so what fio reaches
//! we reach. Through the store a block of 1 MiB costs a header of 4 KiB (0.4 %), a summary of 56 bytes, and a checksum at over 10 GB/s (100 us of a
//! core, hidden behind the device); a hand-over between threads of about 10 us at each end disappears in a queue of 8.
//!
//! `PEGAFLOW_BENCH_SSD` names the file or device to use (overwritten!); without it, a file of at most 2 GiB is made in the target folder.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark prints its result"
)]

mod fio;
mod raw;
mod recover;
mod steady;
mod store;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// One kind of work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Op {
    Read,
    RandRead,
    Write,
}

/// One point of the matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job<'a> {
    pub(crate) path: &'a Path,
    pub(crate) bytes: u64,
    pub(crate) op: Op,
    pub(crate) block_bytes: u64,
    pub(crate) depth: u64,
    /// Not measured: until a drive's burst allowance is used up.
    pub(crate) ramp: Duration,
    pub(crate) time: Duration,
    pub(crate) direct: bool,
    /// Buffers on pages of 2 MiB, which fio has not: fewer addresses for the device.
    pub(crate) huge_pages: bool,
    /// Beside the bare ring, another thread makes the checksums that the store would.
    pub(crate) checksums: bool,
}

/// What one run of a point measured.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    pub(crate) gb_per_s: f64,
    pub(crate) ops_per_s: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) cpu_us_per_op: f64,
}

impl Figures {
    pub(crate) fn new(ops: u64, bytes: u64, seconds: f64, cpu_us: u64, us: &mut [u32]) -> Self {
        us.sort_unstable();
        let at = |share: f64| us.get(((us.len() as f64 * share) as usize).min(us.len().max(1) - 1));
        let at = |share| at(share).map_or(0.0, |us| f64::from(*us));
        Self {
            gb_per_s: bytes as f64 / seconds / 1e9,
            ops_per_s: ops as f64 / seconds,
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            cpu_us_per_op: cpu_us as f64 / ops.max(1) as f64,
        }
    }
}

/// One round of a point.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    ours: Figures,
    floor: Option<Figures>,
    /// The floor while another thread makes as many checksums: what the machine then leaves for its drive.
    beside_checksums: Option<Figures>,
}

impl Job<'_> {
    /// Counted in operations, not bytes.
    fn small(&self) -> bool {
        self.block_bytes < 64 << 10
    }
}

pub(crate) struct Bench {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) ramp: Duration,
    pub(crate) time: Duration,
    pub(crate) rounds: usize,
    pub(crate) fio: bool,
    pub(crate) only: Option<String>,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(i) = args.iter().position(|a| a == "--fill-and-die") {
        recover::fill_and_die(
            Path::new(&args[i + 1]),
            args[i + 2].parse().expect("a number"),
        );
    }
    let quick = args.iter().any(|a| a == "--quick");
    let after = |name: &str| {
        args.iter()
            .position(|a| a == name)
            .and_then(|i| args.get(i + 1))
    };
    let named = std::env::var_os("PEGAFLOW_BENCH_SSD").map(PathBuf::from);
    let made = named
        .is_none()
        .then(|| made_file(if quick { 128 } else { 2048 } * MIB));
    let path = named.or(made.clone()).expect("one of the two");
    let bench = Bench {
        bytes: raw::lay_out(&path),
        path,
        ramp: Duration::from_millis(if quick { 10 } else { 1000 }),
        time: Duration::from_millis(if quick { 60 } else { 1000 }),
        rounds: if quick { 1 } else { 5 },
        fio: args.iter().any(|a| a == "--fio") && fio::there(),
        only: after("--only").cloned(),
    };
    bench.bare();
    bench.through_the_store();
    if bench.wants("steady") {
        steady::run(&bench);
    }
    if made.is_some() && bench.wants("open") {
        recover::run(&bench, if quick { 20_000 } else { 1_000_000 });
    }
    if let Some(path) = made {
        let _ = std::fs::remove_file(path);
    }
}

fn made_file(bytes: u64) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = folder.join(format!("ssd-bench-{}", std::process::id()));
    let file = std::fs::File::create(&path).expect("the target folder can be written");
    file.set_len(bytes).expect("there is room");
    path
}

impl Bench {
    pub(crate) fn wants(&self, what: &str) -> bool {
        self.only.as_deref().is_none_or(|only| what.contains(only))
    }

    fn job(&self, op: Op, block_bytes: u64, depth: u64) -> Job<'_> {
        Job {
            path: &self.path,
            bytes: self.bytes,
            op,
            block_bytes,
            depth,
            ramp: self.ramp,
            time: self.time,
            direct: true,
            huge_pages: true,
            checksums: false,
        }
    }

    fn bare(&self) {
        for (op, block_bytes, depth) in [
            (Op::Read, 256 << 10, 8),
            (Op::Read, 1 << 20, 8),
            (Op::Read, 4 << 20, 16),
            (Op::Write, 256 << 10, 8),
            (Op::Write, 1 << 20, 8),
            (Op::Write, 4 << 20, 16),
            (Op::RandRead, 4096, 32),
        ] {
            let job = self.job(op, block_bytes, depth);
            let name = format!("raw_{}", name(op));
            if self.wants(&name) {
                for huge_pages in [false, true] {
                    let job = Job { huge_pages, ..job };
                    let fio = |j: &Job<'_>| self.fio.then(|| fio::run(j));
                    let rounds = self.alternate(&job, raw::run, fio, |_| None);
                    self.report(&name, &job, "fio, same job and file", &rounds);
                }
            }
        }
    }

    fn through_the_store(&self) {
        for (op, block_bytes, depth) in [
            (Op::Write, 1 << 20, 8),
            (Op::Write, 4 << 20, 16),
            (Op::RandRead, 1 << 20, 8),
            (Op::RandRead, 4 << 20, 16),
            (Op::RandRead, 4096, 32),
        ] {
            let job = self.job(op, block_bytes, depth);
            let name = format!("store_{}", name(op));
            if self.wants(&name) {
                let rounds = self.against_bare(&job);
                self.report(&name, &job, "bare ring, same work", &rounds);
            }
        }
        if self.wants("store_mixed") {
            store::mixed(self);
        }
    }

    // Reads: the floor reads the same part of the device.
    fn against_bare(&self, job: &Job<'_>) -> Vec<Round> {
        if job.op == Op::Write {
            return self.against_ring(job, job.bytes, store::write);
        }
        let blocks = store::prepare(job);
        let bytes = blocks * job.block_bytes;
        self.against_ring(job, bytes, |j| store::read(j, blocks))
    }

    fn against_ring(
        &self,
        job: &Job<'_>,
        bytes: u64,
        ours: impl Fn(&Job<'_>) -> Figures,
    ) -> Vec<Round> {
        let ring = |j: &Job<'_>, checksums| {
            let j = Job {
                bytes,
                checksums,
                ..*j
            };
            raw::run(&j)
        };
        let beside = |j: &Job<'_>| (!j.small()).then(|| ring(j, true));
        self.alternate(job, ours, |j| Some(ring(j, false)), beside)
    }

    // They take turns, so that whatever else the machine does hits all.
    fn alternate(
        &self,
        job: &Job<'_>,
        ours: impl Fn(&Job<'_>) -> Figures,
        floor: impl Fn(&Job<'_>) -> Option<Figures>,
        beside: impl Fn(&Job<'_>) -> Option<Figures>,
    ) -> Vec<Round> {
        let round = |i| {
            let mut round = Round::default();
            for turn in 0..3 {
                match (i + turn) % 3 {
                    0 => round.ours = ours(job),
                    1 => round.floor = floor(job),
                    _ => round.beside_checksums = beside(job),
                }
            }
            round
        };
        (0..self.rounds).map(round).collect()
    }

    fn report(&self, op: &str, job: &Job<'_>, what: &str, rounds: &[Round]) {
        let of = |f: fn(&Figures) -> f64| median(rounds.iter().map(|r| f(&r.ours)));
        let of_some = |which: fn(&Round) -> Option<Figures>, f: fn(&Figures) -> f64| {
            let all: Vec<f64> = rounds.iter().filter_map(|r| Some(f(&which(r)?))).collect();
            (!all.is_empty()).then(|| median(all.into_iter()))
        };
        let floor = |f| of_some(|r| r.floor, f);
        let speed = if job.small() {
            |f: &Figures| f.ops_per_s
        } else {
            |f: &Figures| f.gb_per_s
        };
        let share = floor(speed).map(|floor| of(speed) / floor);
        let beside = of_some(|r| r.beside_checksums, |f| f.gb_per_s);
        let mut line = json!({
            "bench": "ssd",
            "settings": {"op": op, "block_bytes": job.block_bytes, "depth": job.depth, "direct": job.direct, "huge_pages": job.huge_pages},
            "machine": machine(self),
            "gb_per_s": of(|f| f.gb_per_s),
            "ops_per_s": of(|f| f.ops_per_s),
            "p50_us": of(|f| f.p50_us),
            "p99_us": of(|f| f.p99_us),
            "p999_us": of(|f| f.p999_us),
            "floor": floor(|f| f.gb_per_s).map(|gb| json!({"what": what, "gb_per_s": gb, "us": floor(|f| f.p99_us)})),
            "floor_share": share,
            "cpu_s_per_gb": of(|f| f.cpu_us_per_op) / 1e6 / (job.block_bytes as f64 / 1e9),
            "cpu_us_per_op": of(|f| f.cpu_us_per_op),
            "floor_cpu_us_per_op": floor(|f| f.cpu_us_per_op).unwrap_or(-1.0),
        });
        if let Some(beside) = beside {
            line["floor_beside_checksums_gb_per_s"] = json!(beside);
            line["share_beside_checksums"] = json!(of(speed) / beside);
        }
        println!("{line}");
        eprintln!(
            "{op} {} KiB x {} (huge pages: {}): {:.3} GB/s, {:.0} ops/s, p99 {:.0} us, {:.1} us CPU an op; share {:?} (floor p99 {:?} us, CPU {:?} us; beside checksums {:?} GB/s)",
            job.block_bytes >> 10,
            job.depth,
            job.huge_pages,
            of(|f| f.gb_per_s),
            of(|f| f.ops_per_s),
            of(|f| f.p99_us),
            of(|f| f.cpu_us_per_op),
            share,
            floor(|f| f.p99_us),
            floor(|f| f.cpu_us_per_op),
            beside,
        );
    }
}

fn name(op: Op) -> &'static str {
    match op {
        Op::Read => "read",
        Op::RandRead => "randread",
        Op::Write => "write",
    }
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = values.collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(0.0)
}

pub(crate) fn machine(bench: &Bench) -> Value {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({"cpus": cpus, "cpu": model.map(|(_, name)| name), "kernel": kernel.trim(), "file_bytes": bench.bytes})
}
