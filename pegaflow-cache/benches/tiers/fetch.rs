// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A prefix that only SSD has, against the store's own reads of the same blocks.

use std::path::Path;
use std::time::Duration;

use pegaflow_cache::tier::SsdSettings;
use pegaflow_meta::BlockKey;
use pegaflow_ssd::{Arena, BlockStore, Device, Fetched, Get, Key, SsdStore};

use crate::report::{Point, Times, now};
use crate::rig::{Rig, Size, settings};

pub(crate) fn run(dir: &Path, size: &Size) {
    let path = dir.join("fetch");
    let pool_bytes = 2 * size.bytes() + (64 << 20);
    let with_ssd = settings(pool_bytes, Some(&path));
    let rig = Rig::new(&with_ssd, size.shape);
    let keys = rig.keys(0, size.blocks);
    fill(&rig, pool_bytes);
    assert_eq!(rig.save(&keys), size.blocks);
    rig.settle();
    assert_eq!(rig.stats().spilled_blocks, u64::from(size.blocks));
    drop(rig);
    let (mut whole, mut first) = (vec![], vec![]);
    let (mut store_whole, mut store_one) = (vec![], vec![]);
    for _ in 0..size.rounds {
        // One has the drive at a time, and they take turns.
        let (all, one) = store(&path, &with_ssd.ssd, &keys, size);
        store_whole.push(all);
        store_one.extend(one);
        let rig = Rig::new(&with_ssd, size.shape);
        for at in 0..8 {
            first.push(first_block(&rig, &keys[at..=at]));
        }
        let (all, of_many) = prefix(&rig, &keys[8..]);
        whole.push(all.mul_f64(keys.len() as f64 / (keys.len() - 8) as f64));
        first.push(of_many);
    }
    let blocks = keys.len() as u64;
    let floor = "the store's own reads of the same blocks";
    let point = |op, blocks, bytes, floor| Point {
        op,
        blocks,
        bytes,
        floor,
    };
    point("fetch", blocks, size.bytes(), floor)
        .print(&Times::new(&whole), &Times::new(&store_whole));
    let bytes = size.block_bytes();
    point("first_block", 1, bytes, "a single read of the store")
        .print(&Times::new(&first), &Times::new(&store_one));
}

/// Puts something into the pool that is not zeroes.
fn fill(rig: &Rig, pool_bytes: u64) {
    let bytes: Vec<u8> = (0..1u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let pool = rig.node.pools().get(0).expect("a pool");
    for at in (0..pool_bytes - bytes.len() as u64).step_by(bytes.len()) {
        pool.data.copy_in(at, &bytes).expect("inside");
    }
}

/// The store alone: all blocks at once, and some one by one.
fn store(
    path: &Path,
    ssd: &SsdSettings,
    keys: &[BlockKey],
    size: &Size,
) -> (Duration, Vec<Duration>) {
    let settings = pegaflow_ssd::Settings {
        read_queue_bytes_max: 4 << 30,
        ..pegaflow_ssd::Settings::default()
    };
    let store = SsdStore::open(settings, &[Device::file(path, ssd.bytes)]).expect("opens");
    let each = size.block_bytes() as usize + pegaflow_ssd::PAGE;
    let arena = Arena::new(each, keys.len()).expect("memory");
    store.register(&arena.region());
    let get = |key: &BlockKey| Get::new(Key(key.0), arena.take(each).expect("one a block"));
    // The memory is touched before it counts.
    let warm = |keys: &[BlockKey]| {
        let tickets = store.get_batch(keys.iter().map(get).collect());
        for ticket in tickets {
            let done = ticket.expect("room").wait();
            assert!(matches!(done.result, Ok(Fetched::Hit { .. })));
        }
    };
    warm(keys);
    let started = now();
    warm(keys);
    let all = started.elapsed();
    let one = |at: usize| {
        let started = now();
        warm(&keys[at..=at]);
        started.elapsed()
    };
    (all, (0..16).map(|n| one(n * keys.len() / 16)).collect())
}

/// Time until one block is ready.
fn first_block(rig: &Rig, keys: &[BlockKey]) -> Duration {
    prefix(rig, keys).1
}

/// Time until a whole prefix is ready, and until its first block is.
fn prefix(rig: &Rig, keys: &[BlockKey]) -> (Duration, Duration) {
    let started = now();
    let found = rig.node.lookup(rig.session, &rig.call(keys), |refs| {
        assert_eq!(refs.blocks.len() + refs.pending as usize, keys.len());
        refs.lease.expect("a lease")
    });
    let lease = found.expect("looks up");
    let mut first = None;
    loop {
        let ready = rig.node.claim(rig.session, lease, |refs| refs.blocks.len());
        let ready = ready.expect("the lease lives");
        if ready > 0 {
            first.get_or_insert_with(|| started.elapsed());
        }
        if ready == keys.len() {
            break;
        }
        // As a scheduler looks at its ticket between steps, only more often. A look costs the node time.
        let pause = if first.is_some() { 1000 } else { 20 };
        std::thread::sleep(Duration::from_micros(pause));
    }
    let whole = started.elapsed();
    rig.node.release(rig.session, lease).expect("releases");
    (whole, first.expect("some are ready"))
}
