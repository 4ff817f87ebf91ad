// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A worker that is killed while the GPU copies for it.

use super::fixture::Gpu;
use super::{Place, small};
use crate::device::{CopyJob, Device, Direction};
use crate::layout::{BlockCopy, BlockShape, Slot};
use crate::pool::shm::{Access, PoolSpec, SharedMemory};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

const SHAPE: BlockShape = BlockShape {
    layers: 4,
    parts: 2,
    heads: 2,
    inner_bytes: 64 << 10,
};
const BLOCK_BYTES: u64 = 1 << 20;
const BLOCKS: u32 = 32;
/// Where the worker counts what it has saved: behind all places.
const COUNT_AT: u64 = BLOCKS as u64 * BLOCK_BYTES;
const POOL_BYTES: u64 = COUNT_AT + (2 << 20);
/// Jobs that the worker keeps in flight.
const IN_FLIGHT: usize = 4;
/// Tell the worker where the pool is, and which driver to use.
const POOL: &str = "PEGAFLOW_MEM_TEST_KILLED_POOL";
const PLACE: &str = "PEGAFLOW_MEM_TEST_KILLED_PLACE";

fn every_block() -> Vec<BlockCopy> {
    assert_eq!(SHAPE.bytes(), BLOCK_BYTES);
    let place = |block: u32| u64::from(block) * BLOCK_BYTES;
    (0..BLOCKS)
        .map(|block| BlockCopy {
            block,
            place: place(block),
        })
        .collect()
}

/// Not a test of its own: the worker that the test below kills. It saves all blocks, again and again.
#[test]
fn worker() {
    let Some(path) = std::env::var_os(POOL).map(PathBuf::from) else {
        return;
    };
    let wanted = std::env::var(PLACE).expect("said");
    let places = [Place::Simulated, Place::Real];
    let place = places
        .into_iter()
        .find(|place| format!("{place:?}") == wanted);
    let api = place.and_then(Place::api).expect("the parent has it");
    let gpu = Gpu::new(api, &small());
    let memory = Arc::new(SharedMemory::attach_path(&path, Access::ReadWrite).expect("attach"));
    let pool = gpu.device.attach_pool(memory.clone()).expect("attached");
    let kv = gpu.layout(SHAPE, Slot::whole(&SHAPE), BLOCKS, 0);
    let save = || {
        let job = CopyJob::new(kv.clone(), pool.clone(), every_block());
        gpu.device.save(job).expect("accepted")
    };
    let mut running: std::collections::VecDeque<_> = (0..IN_FLIGHT).map(|_| save()).collect();
    let count = memory.word(COUNT_AT).expect("inside");
    while let Some(first) = running.pop_front() {
        first.wait().result.expect("saved");
        count.store(count.load() + 1).expect("writable");
        running.push_back(save());
    }
}

/// Ends the worker in any case.
struct Worker(Child);

impl Worker {
    fn start(pool: &Path, place: Place) -> Self {
        let this = std::env::current_exe().expect("this test");
        let name = concat!(module_path!(), "::worker");
        let name = name.split_once("::").expect("below a crate").1;
        let child = Command::new(this)
            .args(["--exact", name])
            .env(POOL, pool)
            .env(PLACE, format!("{place:?}"))
            .stdout(Stdio::null())
            .spawn();
        Self(child.expect("a process"))
    }

    /// Kills it at any moment, and returns when it is gone.
    fn kill(&mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("gone");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn when_a_killed_worker_is_gone_nothing_writes_to_its_places() {
    for place in [Place::Simulated, Place::Real] {
        let Some(api) = place.api() else { continue };
        let folder = tempfile::tempdir_in("/dev/shm").expect("tmpfs");
        let spec = PoolSpec::file(folder.path().join("pool"), POOL_BYTES);
        let memory = Arc::new(SharedMemory::create(&spec).expect("memory"));
        let count = memory.word(COUNT_AT).expect("inside");
        let mut worker = Worker::start(&folder.path().join("pool"), place);
        while count.load() < 3 {
            assert!(
                worker.0.try_wait().expect("asked").is_none(),
                "the worker ended by itself"
            );
            std::thread::yield_now();
        }
        worker.kill();
        memory.fill(0, COUNT_AT, 0x5A).expect("inside");
        // A device of our own takes a while to open and to copy: time for whatever might still come.
        let gpu = Gpu::new(api, &small());
        let own = gpu.pool(POOL_BYTES);
        let kv = gpu.layout(SHAPE, Slot::whole(&SHAPE), BLOCKS, 0);
        let job = CopyJob::new(kv.clone(), own, every_block());
        gpu.run(Direction::Save, &job).result.expect("saved");
        let mut found = vec![0; COUNT_AT as usize];
        memory.copy_out(0, &mut found).expect("inside");
        assert!(
            found.iter().all(|byte| *byte == 0x5A),
            "somebody still writes"
        );
        // The places serve others, from here on as ever.
        let pool = gpu.device.attach_pool(memory.clone()).expect("attached");
        let job = CopyJob::new(kv.clone(), pool, every_block());
        let saved = gpu.run(Direction::Save, &job);
        saved.result.expect("saved");
        assert_eq!(saved.checksums, gpu.sums(&kv, &job.blocks));
        let loaded = gpu.run(Direction::Load, &job);
        loaded.result.expect("loaded");
        assert_eq!(loaded.checksums, saved.checksums);
    }
}
