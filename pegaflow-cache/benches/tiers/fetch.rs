// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A prefix that only SSD has, against the store's own reads of the same blocks.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pegaflow_cache::client::{Client, Lookup, NamespaceHandle, TicketState};
use pegaflow_cache::node::NodeSettings;
use pegaflow_cache::tier::share::Tag;
use pegaflow_cache::tier::{SpillAdmission, SsdSettings};
use pegaflow_mem::{PoolBuf, PoolSpec, SharedMemory};
use pegaflow_meta::BlockKey;
use pegaflow_ssd::{BlockStore, Buf, Device, Fetched, Get, Key, Region, SsdStore};

use crate::report::{Point, Times, now};
use crate::rig::{GROUP, Rig, Size, layout, settings};

/// Blocks that are looked up by themselves before the prefix.
const SINGLE: usize = 16;

pub(crate) fn run(dir: &Path, size: &Size) {
    let path = dir.join("fetch");
    // At most half of a pool is on its way from the drive.
    let pool_bytes = 2 * size.bytes() + (64 << 20);
    let mut with_ssd = settings(pool_bytes, Some(&path));
    let keys = on_ssd(&with_ssd, size);
    // What fills the pool in the rounds does not go to the drive.
    with_ssd.ssd.admission = SpillAdmission::SecondSave;
    let (mut whole, mut first, mut first_of_many) = (vec![], vec![], vec![]);
    let (mut store_whole, mut store_one) = (vec![], vec![]);
    for _ in 0..size.rounds {
        // One has the drive at a time, and they take turns.
        let (all, one) = store(&path, &with_ssd.ssd, &keys, size);
        store_whole.push(all);
        store_one.extend(one);
        let asker = Asker::new(&with_ssd, size);
        // The first makes sure that the drive is set up for the pool.
        for at in 0..=SINGLE {
            let (_, one) = asker.prefix(&keys[at..=at]);
            first.extend((at > 0).then_some(one));
        }
        let (all, of_many) = asker.prefix(&keys[SINGLE + 1..]);
        let share = (keys.len() - SINGLE - 1) as f64 / keys.len() as f64;
        whole.push(all.div_f64(share));
        first_of_many.push(of_many);
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
    let single = "a single read of the store";
    let store_one = Times::new(&store_one);
    point("single_block", 1, bytes, single).print(&Times::new(&first), &store_one);
    point("first_block", 1, bytes, single).print(&Times::new(&first_of_many), &store_one);
}

/// Saves a prefix and leaves it on the drive.
fn on_ssd(settings: &NodeSettings, size: &Size) -> Vec<BlockKey> {
    let rig = Rig::new(settings, size.shape);
    let keys = rig.keys(0, size.blocks);
    fill(&rig, settings.pool_bytes);
    assert_eq!(rig.save(&keys), size.blocks);
    rig.settle();
    assert_eq!(rig.stats().spilled_blocks, u64::from(size.blocks));
    keys
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

/// The store alone, into memory like the pool's: all blocks at once, and some one by one.
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
    let each = size.block_bytes() + pegaflow_ssd::PAGE as u64;
    let spec = PoolSpec {
        touch_threads: 2,
        ..PoolSpec::memfd("store", each * keys.len() as u64)
    };
    let memory = Arc::new(SharedMemory::create(&spec).expect("memory"));
    store.register(&Region::of_pool(memory.clone()));
    let get = |at: usize| {
        let place = PoolBuf::new(memory.clone(), at as u64 * each, each).expect("inside");
        Get::new(
            Key(Tag::of("").name(keys[at])),
            Buf::of_pool(place).expect("whole pages"),
        )
    };
    let read = |range: std::ops::Range<usize>| {
        let started = now();
        for ticket in store.get_batch(range.map(get).collect()) {
            let done = ticket.expect("room").wait();
            assert!(matches!(done.result, Ok(Fetched::Hit { .. })));
        }
        started.elapsed()
    };
    // The drive is set up for the memory before it counts.
    read(0..keys.len());
    let all = read(0..keys.len());
    let each = (0..16).map(|n| n * keys.len() / 16);
    (all, each.map(|at| read(at..at + 1)).collect())
}

/// A node whose pool is full of other blocks, as after some time, and who asks it.
struct Asker {
    client: Client,
    namespace: NamespaceHandle,
    runtime: tokio::runtime::Runtime,
}

impl Asker {
    fn new(settings: &NodeSettings, size: &Size) -> Self {
        let rig = Rig::new(settings, size.shape);
        let places = settings.pool_bytes / size.block_bytes();
        for (prompt, first) in (1..).zip((0..places).step_by(64)) {
            let count = places.min(first + 64) - first;
            rig.save(&rig.keys(prompt, count as u32));
        }
        rig.settle();
        let client = Client::embedded(&rig.node).expect("opens");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let registered = client.register_namespace(layout(size.shape));
        Self {
            namespace: runtime.block_on(registered).expect("registers"),
            runtime,
            client,
        }
    }

    /// Time until a whole prefix is ready, and until its first block is.
    fn prefix(&self, keys: &[BlockKey]) -> (Duration, Duration) {
        let lookup = Lookup::prefix(&self.namespace, GROUP, keys).with_ticket();
        let started = now();
        let found = self.runtime.block_on(self.client.lookup(&lookup));
        let found = found.expect("looks up");
        assert_eq!(found.blocks.len() + found.pending as usize, keys.len());
        let ticket = found.ticket.expect("they are on SSD");
        let mut first = None;
        let whole = loop {
            match ticket.poll() {
                TicketState::Waiting { ready: 0 } => std::thread::yield_now(),
                TicketState::Waiting { .. } => {
                    first.get_or_insert_with(|| started.elapsed());
                    std::thread::sleep(Duration::from_micros(200));
                }
                done => {
                    assert_eq!(
                        done,
                        TicketState::Done {
                            ready: keys.len() as u32
                        }
                    );
                    break started.elapsed();
                }
            }
        };
        let lease = found.lease.expect("it comes with a ticket");
        let released = self.runtime.block_on(self.client.release(&lease));
        released.expect("releases");
        (whole, first.unwrap_or(whole))
    }
}
