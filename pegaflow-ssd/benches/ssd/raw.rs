// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! One ring on this thread: as close to the device as the crate gets.

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use pegaflow_ssd::ring::{Ring, RingJob, RingSettings};
use pegaflow_ssd::{
    Arena, BlockFile, IoKind, OpenOptions, Piece, SystemFile, checksum, cpu_time_us,
};

use crate::{Figures, Job, Op};

/// Writes every byte once, so that the file system has nothing left to allocate. Returns how many there are.
pub(crate) fn lay_out(path: &Path) -> u64 {
    let file = SystemFile::open(&OpenOptions::new(path)).expect("the file can be opened");
    let bytes = file.bytes();
    drop(file);
    let time = Duration::from_secs(3600);
    let (block_bytes, depth) = (1 << 20, 16);
    drive(
        &Job {
            path,
            bytes,
            op: Op::Write,
            block_bytes,
            depth,
            ramp: Duration::ZERO,
            time,
            direct: true,
            huge_pages: true,
            checksums: false,
        },
        Some(bytes / block_bytes),
    );
    bytes
}

pub(crate) fn run(job: &Job<'_>) -> Figures {
    drive(job, None)
}

/// A thread that makes the store's checksums, of memory of its own and never in the ring's way.
struct Checksums {
    tell: mpsc::Sender<()>,
}

impl Checksums {
    fn start(block_bytes: u64) -> Self {
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            // More than the caches hold, as blocks from a drive are in none.
            let memory = vec![1u8; 256 << 20];
            let mut blocks = memory.chunks_exact(block_bytes as usize).cycle();
            while told.recv().is_ok() {
                std::hint::black_box(blocks.next().map(checksum));
            }
        });
        Self { tell }
    }

    fn one_more(&self) {
        // It listens for as long as `self` lives.
        let _ = self.tell.send(());
    }
}

#[allow(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn drive(job: &Job<'_>, ops_max: Option<u64>) -> Figures {
    let options = OpenOptions {
        direct: job.direct,
        lock_wait_ms: 1000,
        ..OpenOptions::new(job.path)
    };
    let file = Arc::new(SystemFile::open(&options).expect("the file can be opened"));
    let settings = RingSettings {
        entries: job.depth as u32,
        ..RingSettings::default()
    };
    let mut ring = Ring::new(file, &settings).expect("the benchmark needs io_uring");
    let arena = match job.huge_pages {
        true => Arena::new(job.block_bytes as usize, job.depth as usize),
        false => Arena::on_small_pages(job.block_bytes as usize, job.depth as usize),
    };
    let arena = arena.expect("memory");
    let checksums = job.checksums.then(|| Checksums::start(job.block_bytes));
    ring.register(&arena.region());
    let kind = if job.op == Op::Write {
        IoKind::Write
    } else {
        IoKind::Read
    };
    let (places, mut n, mut random) = (job.bytes / job.block_bytes, 0u64, 88172645463325252u64);
    let mut next = || {
        n += 1;
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (if job.op == Op::RandRead { random } else { n } % places) * job.block_bytes
    };
    let mut since = vec![Instant::now(); job.depth as usize];
    for (token, since) in since.iter_mut().enumerate() {
        let mut buf = arena.take(job.block_bytes as usize).expect("one for each");
        buf.fill(token as u8 + 1);
        let pieces = vec![Piece::whole(buf)];
        *since = Instant::now();
        ring.push(RingJob {
            token: token as u64,
            kind,
            at: next(),
            pieces,
        })
        .expect("room");
    }
    let (mut start, mut cpu, mut ramp) = (Instant::now(), cpu_time_us(), job.ramp);
    let (mut us, mut done) = (Vec::with_capacity(1 << 20), Vec::new());
    let mut ops = 0u64;
    while start.elapsed() < job.time + ramp && ops_max.is_none_or(|max| ops < max) {
        if !ramp.is_zero() && start.elapsed() >= ramp {
            (start, cpu, ramp, ops) = (Instant::now(), cpu_time_us(), Duration::ZERO, 0);
            us.clear();
        }
        ring.enter(1, None).expect("the ring works");
        ring.reap(&mut done);
        let now = Instant::now();
        for d in done.drain(..) {
            d.result.expect("the device works");
            let token = d.token as usize;
            us.push((now - since[token]).as_micros() as u32);
            since[token] = now;
            ops += 1;
            if let Some(checksums) = &checksums {
                checksums.one_more();
            }
            ring.push(RingJob {
                token: d.token,
                kind,
                at: next(),
                pieces: d.pieces,
            })
            .expect("room");
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    Figures::new(
        ops,
        ops * job.block_bytes,
        seconds,
        cpu_time_us() - cpu,
        &mut us,
    )
}
