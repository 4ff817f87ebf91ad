// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The matrix on the host device, where there is no GPU.

use super::measure::{in_turn, now};
use super::point::Point;
use super::report::{Line, Machine};
use super::{KIB, MIB, Options, sweep};
use pegaflow_mem::device::host::{HostDevice, HostMemory, HostSettings};
use pegaflow_mem::device::{CopyJob, Device, Direction};
use pegaflow_mem::{PoolSpec, SharedMemory};
use std::sync::Arc;
use std::time::Duration;

pub(crate) fn run(bench: &'static str, direction: Direction, options: &Options) {
    let scale = if options.quick { 1 } else { 8 };
    let (kv_bytes, pool_bytes, batch_bytes) =
        (64 * MIB * scale, 64 * MIB * scale, 16 * MIB * scale);
    let memory = |name: &str, bytes| {
        let spec = PoolSpec {
            touch_threads: 2,
            ..PoolSpec::memfd(name, bytes)
        };
        Arc::new(SharedMemory::create(&spec).expect("memory"))
    };
    let settings = HostSettings::default();
    let device = HostDevice::new(&settings).expect("the host device starts");
    let kv = memory("kv", kv_bytes);
    let near = HostMemory::shared(Arc::clone(&kv));
    let base = near.base();
    device.register(near).expect("registered");
    let far = memory("pool", pool_bytes);
    let pool = device.attach_pool(Arc::clone(&far)).expect("attached");
    let cpus = std::thread::available_parallelism().map_or(0, |n| n.get());
    let machine = Machine(vec![
        ("device".into(), device.name().into()),
        ("cpus".into(), cpus.to_string()),
        ("pages".into(), format!("{:?}", far.pages())),
    ]);
    let floor = |bytes: u64| {
        let begun = now();
        std::thread::scope(|scope| {
            let threads = settings.threads as u64;
            let share = bytes / threads / 4096 * 4096;
            for i in 0..threads {
                let (kv, far) = (&kv, &far);
                scope.spawn(move || {
                    let (from, to) = if direction == Direction::Save {
                        (kv, far)
                    } else {
                        (far, kv)
                    };
                    from.copy_to(i * share, to, i * share, share)
                        .expect("inside");
                });
            }
        });
        begun.elapsed()
    };
    let mut points: Vec<(&str, Point)> = vec![];
    points.extend(sweep(batch_bytes).into_iter().map(|p| ("sweep", p)));
    let part = |row| Point {
        heads_all: 8,
        ..Point::new(row, 16, batch_bytes / 8)
    };
    points.extend([("heads", part(4 * KIB)), ("heads", part(16 * KIB))]);
    points.push(("latency", Point::new(64 * KIB, 1, 0)));
    for (op, point) in points.into_iter().filter(|(op, _)| options.wants(op)) {
        let layout = point.layout(base, kv_bytes);
        let jobs = point.jobs(&layout, &pool, 4);
        let (floors, copies) = in_turn(
            options.seconds,
            || floor(point.bytes()),
            |i| copy(&device, direction, &jobs[i % 4]),
        );
        let rate = |us: f64| point.bytes() as f64 / us / 1e3;
        Line {
            bench,
            settings: vec![
                ("op", op.to_owned()),
                ("method", "host".to_owned()),
                ("run_bytes", point.run_bytes.to_string()),
                ("layers", point.layers.to_string()),
                ("heads", format!("{} of {}", point.heads, point.heads_all)),
                ("batch_bytes", point.bytes().to_string()),
            ],
            gb_per_s: Some(rate(copies.p50())),
            p50_us: copies.at(0.5),
            p99_us: copies.at(0.99),
            p999_us: copies.at(0.999),
            floor: Some((
                "contiguous memcpy, as many threads, no checksum".into(),
                Some(rate(floors.p50())),
                floors.at(0.5),
            )),
            floor_share: Some(floors.p50() / copies.p50()),
            ..Line::default()
        }
        .print(&machine);
    }
}

fn copy(device: &HostDevice, direction: Direction, job: &CopyJob) -> Duration {
    let job = job.clone();
    let begun = now();
    let outcome = device.copy(direction, job).expect("accepted").wait();
    let time = begun.elapsed();
    outcome.result.expect("copied");
    time
}
