// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! What the pool's memory is and where it lies: pages, NUMA node, and how long a large one takes to be ready.

use super::KIB;
use super::gpu::{Rig, copy};
use super::measure::{in_turn, micros, now};
use super::point::Point;
use super::report::Line;
use pegaflow_mem::device::Device;
use pegaflow_mem::device::cuda::lab::Lab;
use pegaflow_mem::topology::Topology;
use pegaflow_mem::{HugePages, PoolSpec, SharedMemory};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

impl Rig<'_> {
    /// The same on ordinary pages.
    pub(super) fn pages(&self) {
        let plain = pool(self.pool.len() / 4, HugePages::None, None);
        let pages = format!("{:?}", plain.pages());
        self.elsewhere("pages", ("pages", pages), plain);
    }

    /// The same with the pool on each NUMA node that has memory; the GPU is near to one of them.
    pub(super) fn numa(&self) {
        let nodes = Topology::read(Path::new("/sys")).nodes;
        for node in nodes.iter().filter(|node| node.memory_bytes > 0) {
            let there = pool(self.pool.len() / 4, HugePages::Auto, Some(node.id));
            self.elsewhere("numa", ("node", node.id.to_string()), there);
        }
    }

    /// A point with the pool in other memory than that of the other points.
    fn elsewhere(&self, op: &'static str, what: (&'static str, String), memory: Arc<SharedMemory>) {
        Lab::force(&self.auto, None);
        let handle = self.auto.attach_pool(memory).expect("attached");
        self.auto.pin_pool(&handle, 4).expect("pinned");
        let point = Point::new(64 * KIB, 32, self.batch_bytes);
        let jobs = self.jobs_on(&point, &handle);
        let (floor, times) = in_turn(
            self.options.seconds,
            || self.contiguous(&[self.direction], point.bytes()),
            |i| copy(&self.auto, self.direction, &jobs[i % jobs.len()]),
        );
        let mut settings = self.settings(op, &point, "auto");
        settings.push(what);
        let floor_is = "one contiguous DMA copy (pool of the other points)";
        self.line(settings, point.bytes(), &floor, &times, floor_is);
    }

    /// A large pool: made, touched, attached and pinned.
    pub(super) fn pool_ready(&self) {
        let Some(gib) = self.options.pool_gib else {
            return;
        };
        for (pages, gib) in [
            (HugePages::Auto, gib),
            (HugePages::Auto, gib),
            (HugePages::None, gib / 4),
        ] {
            let begun = now();
            let memory = pool(gib << 30, pages, None);
            let touched = begun.elapsed();
            let device = &self.auto;
            let handle = device.attach_pool(Arc::clone(&memory)).expect("attached");
            device.pin_pool(&handle, 8).expect("pinned");
            let ready = begun.elapsed();
            eprintln!(
                "pool of {gib} GiB on {:?}: touched {touched:?}, ready {ready:?}",
                memory.pages()
            );
            Line {
                bench: self.bench,
                settings: vec![
                    ("op", "pool-ready".to_owned()),
                    ("threads", "8".to_owned()),
                    ("pages", format!("{:?}", memory.pages())),
                    ("batch_bytes", (gib << 30).to_string()),
                ],
                gb_per_s: Some((gib << 30) as f64 / ready.as_secs_f64() / 1e9),
                p50_us: Some(micros(ready)),
                ..Line::default()
            }
            .print(&self.machine);
            // Unpinning has a thread of its own; the next pool needs the room.
            drop(handle);
            while Arc::strong_count(&memory) > 1 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

pub(super) fn pool(bytes: u64, pages: HugePages, node: Option<u32>) -> Arc<SharedMemory> {
    let spec = PoolSpec {
        pages,
        node,
        touch_threads: 8,
        ..PoolSpec::memfd("bench", bytes)
    };
    Arc::new(SharedMemory::create(&spec).expect("memory for the pool"))
}
