// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A pool and an engine's memory that another process made, mapped here: what the one saves, the other sees.

use pegaflow_mem::device::host::{HostDevice, HostMemory, HostSettings};
use pegaflow_mem::device::{CopyJob, Device};
use pegaflow_mem::{Access, BlockCopy, BlockShape, KvLayout, PoolSpec, SharedMemory, Slot};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

const SHAPE: BlockShape = BlockShape {
    layers: 3,
    parts: 2,
    heads: 2,
    inner_bytes: 2048,
};
const BLOCKS: u32 = 4;
const PLACE: u64 = 1 << 16;
/// Tells the child process where the files are.
const DIRECTORY: &str = "PEGAFLOW_MEM_TEST_DIRECTORY";

fn byte(i: u64) -> u8 {
    (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

fn save(engine: SharedMemory, pool: SharedMemory) -> Vec<u64> {
    let host = HostDevice::new(&HostSettings::default()).expect("threads");
    let memory = HostMemory::shared(Arc::new(engine));
    host.register(memory.clone()).expect("the only memory");
    let layout = KvLayout::dense(SHAPE, Slot::whole(&SHAPE), memory.base(), BLOCKS).expect("valid");
    let pool = host.attach_pool(Arc::new(pool)).expect("attach");
    let blocks = vec![BlockCopy {
        block: 2,
        place: PLACE,
    }];
    let outcome = host
        .save(CopyJob::new(Arc::new(layout), pool, blocks))
        .expect("accepted")
        .wait();
    outcome.result.expect("copied");
    outcome.checksums
}

/// Not a test of its own: what the child process of the test below does.
#[test]
fn child() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else {
        return;
    };
    let attach = |name, access| SharedMemory::attach_path(&directory.join(name), access);
    // It may read the engine's memory, and write the pool.
    let engine = attach("engine", Access::Read).expect("attach");
    let pool = attach("pool", Access::ReadWrite).expect("attach");
    let sums = save(engine, pool);
    let pool = attach("pool", Access::ReadWrite).expect("attach");
    for (i, sum) in sums.iter().enumerate() {
        pool.word(i as u64 * 8)
            .expect("inside")
            .store(*sum)
            .expect("writable");
    }
}

#[test]
fn another_process_saves_for_us() {
    let directory = tempfile::tempdir_in("/dev/shm").expect("tmpfs");
    let create = |name: &str, bytes| {
        let spec = PoolSpec {
            touch_threads: 1,
            ..PoolSpec::file(directory.path().join(name), bytes)
        };
        SharedMemory::create(&spec).expect("memory")
    };
    let pool = create("pool", 1 << 20);
    let engine = create("engine", SHAPE.bytes() * BLOCKS as u64);
    let bytes: Vec<u8> = (0..engine.len()).map(byte).collect();
    engine.copy_in(0, &bytes).expect("inside");
    run_child(directory.path());

    // The block in the pool is in canonical order; the engine keeps [layer][block].
    let mut got = vec![0; SHAPE.bytes() as usize];
    pool.copy_out(PLACE, &mut got).expect("inside");
    let layer = SHAPE.layer_bytes();
    let want =
        (0..3).flat_map(|l| (0..layer).map(move |i| byte((l * BLOCKS as u64 + 2) * layer + i)));
    assert_eq!(got, want.collect::<Vec<u8>>());
    let theirs: Vec<u64> = (0..2)
        .map(|i| pool.word(i * 8).expect("inside").load())
        .collect();
    assert_eq!(
        theirs,
        save(engine, pool),
        "both processes compute the same checksums"
    );
}

fn run_child(directory: &Path) {
    let mut child = Command::new(std::env::current_exe().expect("this test"));
    child.args(["--exact", "child"]).env(DIRECTORY, directory);
    let output = child.output().expect("a child process");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}
