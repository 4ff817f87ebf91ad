// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! What every [`Device`] must do. Call [`suite`] in a test of each implementation.

use super::{CopyJob, Device, DeviceEvent, Outcome, PoolHandle, Progress};
use crate::checksum::portable;
use crate::layout::{BlockCopy, BlockShape, KvLayout, LayerView, Slot};
use crate::pool::shm::{PoolSpec, SharedMemory};
use crate::{Error, ErrorKind};
use std::sync::Arc;

/// A device, and the means to see its memory.
pub trait Fixture {
    /// The device under test.
    fn device(&self) -> Arc<dyn Device>;
    /// New zeroed device memory that layouts may point into, aligned to 256 bytes; its first address.
    fn alloc(&self, bytes: u64) -> u64;
    /// Writes device memory.
    fn write(&self, address: u64, bytes: &[u8]);
    /// Reads device memory.
    fn read(&self, address: u64, bytes: &mut [u8]);
    /// An event that has not happened, and what makes it happen.
    fn event(&self) -> (DeviceEvent, Box<dyn FnOnce() + Send>);
}

/// All cases, each on a fresh fixture. Panics at the first that does not hold.
pub fn suite(make: &dyn Fn() -> Box<dyn Fixture>) {
    for case in [
        round_trip,
        layers_add_up,
        ranks_share_a_block,
        wrong_jobs_come_back,
        an_empty_job_ends,
        nothing_starts_before_its_event,
        a_cancelled_job_is_quiet,
        a_dropped_completion_frees_nothing_early,
        progress_counts_layers,
        many_jobs_at_once,
    ] {
        case(&*make());
    }
}

const POOL_BYTES: u64 = 8 << 20;

fn attach(fixture: &dyn Fixture) -> PoolHandle {
    let pool = SharedMemory::create(&PoolSpec::memfd("conformance", POOL_BYTES)).expect("memory");
    fixture
        .device()
        .attach_pool(Arc::new(pool))
        .expect("attach")
}

fn byte(i: u64, seed: u64) -> u8 {
    ((i ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

/// Strides of one layer in the orders that engines use.
#[derive(Debug, Clone, Copy)]
enum Order {
    /// `[layer][block][part][head][inner]`
    Dense,
    /// `[layer][part][block][head][inner]`
    PartFirst,
    /// `[layer][block][part][head]` with room after each head, as for padded or interleaved heads.
    Gaps,
    /// `[block][layer][part][head][inner]`: all layers of a block together.
    CrossLayer,
}

const ORDERS: [Order; 4] = [
    Order::Dense,
    Order::PartFirst,
    Order::Gaps,
    Order::CrossLayer,
];

fn layout(
    fixture: &dyn Fixture,
    order: Order,
    shape: BlockShape,
    slot: Slot,
    blocks: u32,
) -> Arc<KvLayout> {
    let gap = if matches!(order, Order::Gaps) { 40 } else { 0 };
    let head_stride = shape.inner_bytes as u64 + gap;
    let row = head_stride * slot.heads.len() as u64;
    let (n, parts, layers) = (blocks as u64, shape.parts as u64, slot.layers.len() as u64);
    let (block_stride, part_stride, layer_stride) = match order {
        Order::Dense | Order::Gaps => (row * parts, row, row * parts * n),
        Order::PartFirst => (row, row * n, row * parts * n),
        Order::CrossLayer => (row * parts * layers, row, row * parts),
    };
    let base = fixture.alloc(row * parts * layers * n);
    let view = |l| LayerView {
        base: base + l * layer_stride,
        block_stride,
        part_stride,
        head_stride,
    };
    let views = (0..layers).map(view).collect();
    Arc::new(KvLayout::new(shape, slot, views, blocks).expect("valid"))
}

/// Fills all blocks of a layout with bytes that depend on block and place in the canonical block.
fn fill(fixture: &dyn Fixture, layout: &KvLayout, seed: u64) {
    for block in 0..layout.blocks() {
        let copy = BlockCopy { block, place: 0 };
        for run in layout.runs(copy).expect("exists") {
            let bytes = (0..run.bytes).map(|i| byte(run.pool + i, seed + block as u64));
            fixture.write(run.device, &bytes.collect::<Vec<u8>>());
        }
    }
}

/// What the slot of one block must look like in the pool (other bytes: `None`) and its checksums.
fn expected(layout: &KvLayout, block: u32, seed: u64) -> (Vec<Option<u8>>, Vec<u64>) {
    let mut bytes = vec![None; layout.shape().bytes() as usize];
    let mut sums = vec![0u64; layout.slot().checksums()];
    let copy = BlockCopy { block, place: 0 };
    for piece in layout
        .pieces_of(copy, layout.slot().layers.clone())
        .expect("exists")
    {
        let at = piece.pool..piece.pool + piece.bytes as u64;
        let data: Vec<u8> = at.clone().map(|i| byte(i, seed + block as u64)).collect();
        for (i, b) in at.zip(&data) {
            bytes[i as usize] = Some(*b);
        }
        let sum = &mut sums[piece.head as usize];
        *sum = sum.wrapping_add(portable(piece.position, &data));
    }
    (bytes, sums)
}

fn pool_bytes(pool: &PoolHandle, place: u64, bytes: u64) -> Vec<u8> {
    let mut out = vec![0; bytes as usize];
    pool.pool().copy_out(place, &mut out).expect("inside");
    out
}

fn device_bytes(fixture: &dyn Fixture, layout: &KvLayout, block: u32) -> Vec<u8> {
    let mut out = Vec::new();
    for run in layout.runs(BlockCopy { block, place: 0 }).expect("exists") {
        let mut bytes = vec![0; run.bytes as usize];
        fixture.read(run.device, &mut bytes);
        out.extend(bytes);
    }
    out
}

fn succeeded(outcome: Outcome, job: &CopyJob) -> Vec<u64> {
    outcome.result.expect("the copy succeeds");
    assert_eq!(outcome.bytes, job.bytes());
    assert_eq!(outcome.blocks, job.blocks, "the blocks come back");
    assert_eq!(outcome.checksums.len(), job.checksums());
    outcome.checksums
}

fn save(device: &dyn Device, job: &CopyJob) -> Vec<u64> {
    succeeded(device.save(job.clone()).expect("accepted").wait(), job)
}

fn load(device: &dyn Device, job: &CopyJob) -> Vec<u64> {
    succeeded(device.load(job.clone()).expect("accepted").wait(), job)
}

fn shapes() -> impl Iterator<Item = (BlockShape, u32, u32)> {
    let shape = |layers, parts, heads, inner_bytes| BlockShape {
        layers,
        parts,
        heads,
        inner_bytes,
    };
    // Shape, ranks, and the rank under test: odd sizes, an MLA-like one, runs of a page and more.
    [
        (shape(1, 1, 1, 8), 1, 0),
        (shape(3, 2, 4, 24), 2, 1),
        (shape(2, 1, 1, 18432), 1, 0),
        (shape(5, 2, 8, 4096), 4, 2),
        (shape(2, 2, 2, 1000), 1, 0),
        (shape(4, 2, 1, 65536), 1, 0),
    ]
    .into_iter()
}

fn round_trip(fixture: &dyn Fixture) {
    let device = fixture.device();
    let pool = attach(fixture);
    for (case, (shape, ranks, rank)) in shapes().enumerate() {
        for order in ORDERS {
            let slot = Slot::of_rank(&shape, rank, ranks).expect("even");
            let seed = case as u64 * 1000;
            let from = layout(fixture, order, shape, slot.clone(), 5);
            fill(fixture, &from, seed);
            pool.pool().fill(0, POOL_BYTES, 0xEE).expect("inside");
            let step = shape.bytes().next_multiple_of(4096) + 4096;
            let blocks: Vec<BlockCopy> = [4, 0, 2]
                .into_iter()
                .enumerate()
                .map(|(i, block)| BlockCopy {
                    block,
                    place: i as u64 * step,
                })
                .collect();
            let job = CopyJob::new(from.clone(), pool.clone(), blocks.clone());
            let sums = save(&*device, &job);
            for (i, copy) in blocks.iter().enumerate() {
                let (want, want_sums) = expected(&from, copy.block, seed);
                let got = pool_bytes(&pool, copy.place, step);
                for (at, byte) in got.iter().enumerate() {
                    let want = want.get(at).copied().flatten().unwrap_or(0xEE);
                    assert_eq!(
                        *byte, want,
                        "{order:?} {shape:?} block {} byte {at}",
                        copy.block
                    );
                }
                let heads = slot.checksums();
                assert_eq!(
                    sums[i * heads..(i + 1) * heads],
                    want_sums,
                    "{order:?} {shape:?}"
                );
            }
            // Back into other blocks of another memory; the ones not named stay zero.
            let to = layout(fixture, order, shape, slot, 5);
            let back: Vec<BlockCopy> = blocks
                .iter()
                .map(|c| BlockCopy {
                    block: (c.block + 1) % 5,
                    ..*c
                })
                .collect();
            let sums_back = load(&*device, &CopyJob::new(to.clone(), pool.clone(), back));
            assert_eq!(sums_back, sums);
            for block in 0..5 {
                let got = device_bytes(fixture, &to, block);
                let source = (block + 4) % 5;
                if [4, 0, 2].contains(&source) {
                    assert_eq!(
                        got,
                        device_bytes(fixture, &from, source),
                        "{order:?} {shape:?}"
                    );
                } else {
                    assert!(
                        got.iter().all(|b| *b == 0),
                        "{order:?} {shape:?}: a block not named"
                    );
                }
            }
        }
    }
}

fn layers_add_up(fixture: &dyn Fixture) {
    let device = fixture.device();
    let pool = attach(fixture);
    let shape = BlockShape {
        layers: 7,
        parts: 2,
        heads: 2,
        inner_bytes: 512,
    };
    let slot = Slot {
        layers: 1..6,
        heads: 0..2,
    };
    let kv = layout(fixture, Order::Dense, shape, slot, 2);
    fill(fixture, &kv, 3);
    let blocks: Vec<BlockCopy> = (0..2)
        .map(|b| BlockCopy {
            block: b,
            place: b as u64 * (1 << 20),
        })
        .collect();
    let mut job = CopyJob::new(kv, pool.clone(), blocks);
    let whole = save(&*device, &job);
    let mut sums = vec![0u64; job.checksums()];
    for layers in [1..2, 2..5, 5..6] {
        job.layers = Some(layers);
        for (sum, more) in sums.iter_mut().zip(save(&*device, &job)) {
            *sum = sum.wrapping_add(more);
        }
    }
    assert_eq!(sums, whole);
}

fn ranks_share_a_block(fixture: &dyn Fixture) {
    let device = fixture.device();
    let pool = attach(fixture);
    let shape = BlockShape {
        layers: 3,
        parts: 2,
        heads: 8,
        inner_bytes: 256,
    };
    let blocks = vec![
        BlockCopy {
            block: 1,
            place: 8192,
        },
        BlockCopy {
            block: 0,
            place: 1 << 20,
        },
    ];
    let mut by_block = [Vec::new(), Vec::new()];
    for rank in 0..4 {
        let slot = Slot::of_rank(&shape, rank, 4).expect("even");
        let kv = layout(fixture, Order::PartFirst, shape, slot, 2);
        fill(fixture, &kv, 9);
        let sums = save(&*device, &CopyJob::new(kv, pool.clone(), blocks.clone()));
        by_block[0].extend_from_slice(&sums[..2]);
        by_block[1].extend_from_slice(&sums[2..]);
    }
    let whole = layout(fixture, Order::Dense, shape, Slot::whole(&shape), 2);
    let sums = load(&*device, &CopyJob::new(whole.clone(), pool.clone(), blocks));
    assert_eq!(sums, by_block.concat(), "what four ranks saved, one loads");
    fill(fixture, &whole, 9);
    let again = save(
        &*device,
        &CopyJob::new(whole, pool, vec![BlockCopy { block: 1, place: 0 }]),
    );
    assert_eq!(again, sums[..8]);
}

fn wrong_jobs_come_back(fixture: &dyn Fixture) {
    let device = fixture.device();
    let pool = attach(fixture);
    let shape = BlockShape {
        layers: 2,
        parts: 2,
        heads: 2,
        inner_bytes: 64,
    };
    let kv = layout(fixture, Order::Dense, shape, Slot::whole(&shape), 3);
    let good = CopyJob::new(kv, pool.clone(), vec![BlockCopy { block: 0, place: 0 }]);
    let check = |change: &dyn Fn(&mut CopyJob)| {
        let mut job = good.clone();
        change(&mut job);
        let refused = device.load(job.clone()).expect_err("refused");
        assert_eq!(refused.error.kind(), ErrorKind::Invalid, "{refused}");
        assert_eq!(refused.job.blocks, job.blocks, "the job comes back");
        assert!(device.save(job).is_err());
    };
    check(&|job| job.blocks[0].block = 3);
    check(&|job| job.blocks[0].place = POOL_BYTES - 1);
    check(&|job| job.blocks[0].place = u64::MAX);
    check(&|job| job.layers = Some(1..3));
    check(&|job| job.layers = Some(1..1));
    let other = Arc::new(());
    check(&|job| {
        let pool = job.pool.pool().clone();
        job.pool = PoolHandle::new(super::DeviceId::unique(), pool, other.clone());
    });
    check(&|job| job.after = Some(DeviceEvent::new("not an event of any device")));
    let fd = pool.pool().fd().try_clone_to_owned().expect("dup");
    let reader = SharedMemory::attach_fd(fd, crate::pool::shm::Access::Read).expect("attach");
    // A device may refuse a read-only pool as a whole; if it takes it, then for loads only.
    if let Ok(reader) = device.attach_pool(Arc::new(reader)) {
        let job = CopyJob {
            pool: reader,
            ..good.clone()
        };
        let refused = device
            .save(job.clone())
            .expect_err("a save needs a pool that can be written");
        assert!(matches!(refused.error, Error::ReadOnly), "{refused}");
        load(&*device, &job);
    }
    save(&*device, &good);
}

fn an_empty_job_ends(fixture: &dyn Fixture) {
    let device = fixture.device();
    let shape = BlockShape {
        layers: 2,
        parts: 1,
        heads: 1,
        inner_bytes: 64,
    };
    let kv = layout(fixture, Order::Dense, shape, Slot::whole(&shape), 1);
    let job = CopyJob::new(kv, attach(fixture), Vec::new());
    assert!(save(&*device, &job).is_empty());
    assert!(load(&*device, &job).is_empty());
}

fn one_block(fixture: &dyn Fixture, pool: &PoolHandle) -> CopyJob {
    let shape = BlockShape {
        layers: 4,
        parts: 2,
        heads: 2,
        inner_bytes: 4096,
    };
    let kv = layout(fixture, Order::Dense, shape, Slot::whole(&shape), 4);
    fill(fixture, &kv, 1);
    CopyJob::new(
        kv,
        pool.clone(),
        vec![BlockCopy {
            block: 2,
            place: 1 << 20,
        }],
    )
}

fn nothing_starts_before_its_event(fixture: &dyn Fixture) {
    let device = fixture.device();
    let pool = attach(fixture);
    let mut job = one_block(fixture, &pool);
    let (event, set) = fixture.event();
    job.after = Some(event);
    let completion = device.save(job.clone()).expect("accepted");
    // The engine still writes the block: these are the bytes that must be saved.
    fill(fixture, &job.layout, 77);
    assert!(!completion.is_done());
    set();
    let sums = succeeded(completion.wait(), &job);
    let (want, want_sums) = expected(&job.layout, 2, 77);
    assert_eq!(sums, want_sums);
    let got = pool_bytes(&pool, 1 << 20, want.len() as u64);
    assert!(got.iter().zip(&want).all(|(got, want)| Some(*got) == *want));
}

fn a_cancelled_job_is_quiet(fixture: &dyn Fixture) {
    let device = fixture.device();
    let pool = attach(fixture);
    let mut job = one_block(fixture, &pool);
    let (event, set) = fixture.event();
    job.after = Some(event);
    let completion = device.save(job.clone()).expect("accepted");
    completion.cancel();
    completion.cancel();
    // A device may have to wait for the event before it can be sure; it may not touch the pool in any case.
    set();
    let outcome = completion.wait();
    assert!(
        matches!(outcome.result, Err(Error::Cancelled)),
        "{:?}",
        outcome.result
    );
    assert_eq!(outcome.blocks, job.blocks, "the blocks come back");
    assert!(outcome.checksums.is_empty());
    let got = pool_bytes(&pool, 1 << 20, 1 << 17);
    assert!(got.iter().all(|b| *b == 0), "nothing was copied");
    // In the middle: over or cancelled, but quiet afterwards either way.
    job.after = None;
    for _ in 0..50 {
        let completion = device.save(job.clone()).expect("accepted");
        completion.cancel();
        let outcome = completion.wait();
        assert!(matches!(outcome.result, Ok(()) | Err(Error::Cancelled)));
        pool.pool().fill(1 << 20, 1 << 17, 0x11).expect("inside");
        let other = CopyJob {
            blocks: vec![BlockCopy { block: 0, place: 0 }],
            ..job.clone()
        };
        save(&*device, &other);
        let got = pool_bytes(&pool, 1 << 20, 1 << 17);
        assert!(
            got.iter().all(|b| *b == 0x11),
            "a cancelled job wrote after its end"
        );
    }
}

fn a_dropped_completion_frees_nothing_early(fixture: &dyn Fixture) {
    let device = fixture.device();
    let pool = attach(fixture);
    let fd = pool.pool().fd().try_clone_to_owned().expect("dup");
    let watch = Arc::downgrade(pool.pool());
    let mut job = one_block(fixture, &pool);
    let (event, set) = fixture.event();
    job.after = Some(event);
    let (want, _) = expected(&job.layout, 2, 1);
    drop(device.save(job).expect("accepted"));
    drop(pool);
    assert!(watch.upgrade().is_some(), "the job owns the pool");
    set();
    // The copy happens all the same, into memory that is still there; then it is let go.
    while watch.strong_count() > 0 {
        std::thread::yield_now();
    }
    let seen = SharedMemory::attach_fd(fd, crate::pool::shm::Access::Read).expect("attach");
    let mut got = vec![0; want.len()];
    seen.copy_out(1 << 20, &mut got).expect("inside");
    assert!(got.iter().zip(&want).all(|(got, want)| Some(*got) == *want));
}

fn progress_counts_layers(fixture: &dyn Fixture) {
    let device = fixture.device();
    let pool = attach(fixture);
    let word = SharedMemory::create(&PoolSpec::memfd("progress", 4096)).expect("memory");
    let progress = Progress::new(Arc::new(word), 64).expect("inside");
    let mut job = one_block(fixture, &pool);
    save(&*device, &job);
    job.progress = Some(progress.clone());
    let (event, set) = fixture.event();
    job.after = Some(event);
    let completion = device.load(job.clone()).expect("accepted");
    assert_eq!(progress.layers(), 0);
    set();
    let mut last = 0;
    while last < 4 {
        let now = progress.layers();
        assert!(now >= last && now <= 4);
        last = now;
        std::thread::yield_now();
    }
    succeeded(completion.wait(), &job);
    assert_eq!(progress.layers(), 4);
}

fn many_jobs_at_once(fixture: &dyn Fixture) {
    let device = fixture.device();
    let pool = attach(fixture);
    let shape = BlockShape {
        layers: 3,
        parts: 2,
        heads: 2,
        inner_bytes: 2048,
    };
    let kv = layout(fixture, Order::PartFirst, shape, Slot::whole(&shape), 32);
    fill(fixture, &kv, 5);
    let job = |thread: u32, n: u32| {
        let block = |i: u32| {
            let block = (thread * 8 + n * 3 + i * 5) % 8 + thread * 8;
            BlockCopy {
                block,
                place: ((thread * 8 + n * 2 + i) as u64) * 32768,
            }
        };
        CopyJob::new(kv.clone(), pool.clone(), (0..2).map(block).collect())
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (device, job, kv) = (device.clone(), &job, &kv);
            scope.spawn(move || {
                let jobs: Vec<CopyJob> = (0..4).map(|n| job(thread, n)).collect();
                let running: Vec<_> = jobs
                    .iter()
                    .map(|j| device.save(j.clone()).expect("accepted"))
                    .collect();
                for (completion, job) in running.into_iter().zip(&jobs) {
                    let sums = succeeded(completion.wait(), job);
                    let want = job.blocks.iter().flat_map(|c| expected(kv, c.block, 5).1);
                    assert_eq!(sums, want.collect::<Vec<u64>>());
                }
            });
        }
    });
}
