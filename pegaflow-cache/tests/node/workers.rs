// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Workers of several shapes save and load the same blocks, byte for byte.

use std::sync::Arc;

use pegaflow_cache::client::{Client, Lookup, NamespaceHandle};
use pegaflow_cache::node::Node;
use pegaflow_cache::worker::{LoadState, Save, Saved, Worker, WorkerSettings};
use pegaflow_mem::device::host::{HostDevice, HostMemory, HostSettings};
use pegaflow_mem::{KvLayout, Slot};

use crate::support::*;

const BLOCKS: u32 = 24;

/// A worker and the memory of its engine.
struct Engine {
    worker: Worker,
    memory: HostMemory,
    slot: Slot,
}

impl Engine {
    fn new(client: &Client, namespace: &NamespaceHandle, slot: Slot) -> Self {
        let shape = namespace.layout().groups[0].shape;
        let memory = HostMemory::zeroed(u64::from(BLOCKS) * slot.bytes(&shape)).expect("memory");
        let device = HostDevice::new(&HostSettings::default()).expect("a device");
        device.register(memory.clone()).expect("registers");
        let layout = KvLayout::dense(shape, slot.clone(), memory.base(), BLOCKS);
        let settings = WorkerSettings {
            job_bytes_max: 5 * slot.bytes(&shape),
            jobs_max: 2,
            reserve_keys_max: 8,
        };
        let worker = Worker::new(
            client.clone(),
            Arc::new(device),
            namespace.clone(),
            GROUP,
            Arc::new(layout.expect("fits")),
            settings,
        );
        Self {
            worker: worker.expect("fits the namespace"),
            memory,
            slot,
        }
    }

    /// Calls `f` for each run of one head: its offset in the engine, and what it is.
    fn for_runs(&self, mut f: impl FnMut(u64, [u32; 4])) {
        let inner = u64::from(SHAPE.inner_bytes);
        let mut offset = 0;
        for layer in self.slot.layers.clone() {
            for block in 0..BLOCKS {
                for part in 0..SHAPE.parts {
                    for head in self.slot.heads.clone() {
                        f(offset, [layer, block, part, head]);
                        offset += inner;
                    }
                }
            }
        }
    }

    fn fill(&self) {
        self.for_runs(|offset, what| {
            self.memory.copy_in(offset, &bytes(what)).expect("inside");
        });
    }

    fn holds(&self, blocks: std::ops::Range<u32>) -> bool {
        let mut same = true;
        self.for_runs(|offset, what| {
            let mut got = vec![0; SHAPE.inner_bytes as usize];
            self.memory.copy_out(offset, &mut got).expect("inside");
            same &= !blocks.contains(&what[1]) || got == bytes(what);
        });
        same
    }

    async fn save(&self, range: std::ops::Range<u32>) -> Saved {
        let save = Save {
            keys: keys(self.worker.namespace(), range.clone()),
            blocks: range.collect(),
            ..Save::default()
        };
        self.worker.save(save).await.expect("saves")
    }

    async fn load(&self, range: std::ops::Range<u32>) -> Vec<LoadState> {
        let keys = keys(self.worker.namespace(), range.clone());
        let lookup = Lookup::prefix(self.worker.namespace(), GROUP, &keys);
        let found = self
            .worker
            .client()
            .lookup(&lookup)
            .await
            .expect("looks up");
        let loaded = self.worker.load(found, keys, range.collect()).await;
        loaded.expect("loads").states
    }
}

/// What a head's run of a block is filled with.
fn bytes(what: [u32; 4]) -> Vec<u8> {
    let [layer, block, part, head] = what;
    let seed = (((layer * 31 + block) * 31 + part) * 31 + head).wrapping_mul(0x9e37_79b9);
    (0..SHAPE.inner_bytes)
        .map(|at| (seed.wrapping_add(at * at) >> 11) as u8)
        .collect()
}

async fn client(stage_ends: &[u32]) -> (Client, NamespaceHandle) {
    let node = Node::start(&settings(8 << 20)).expect("starts");
    let client = Client::embedded(&node).expect("opens");
    let namespace = client
        .register_namespace(layout(1, SHAPE, stage_ends))
        .await;
    (client, namespace.expect("registers"))
}

#[tokio::test]
async fn workers_of_unlike_sizes_share_blocks() {
    let (client, namespace) = client(&[1]).await;
    let engine = |layers, heads| Engine::new(&client, &namespace, Slot { layers, heads });
    for (layers, heads) in [(0..1, 0..2), (0..1, 2..4), (1..2, 0..2), (1..2, 2..4)] {
        let saver = engine(layers, heads);
        saver.fill();
        let saved = saver.save(0..20).await;
        assert_eq!((saved.completed + saved.partial, saved.known), (20, 0));
        let again = saver.save(0..20).await;
        assert_eq!(
            (again.bytes, again.known),
            (0, 20),
            "nothing is copied twice"
        );
    }
    for (layers, heads) in [(0..2, 0..4), (0..2, 3..4), (0..1, 0..1), (1..2, 1..3)] {
        let loader = engine(layers, heads);
        assert_eq!(loader.load(0..20).await, [LoadState::Loaded; 20]);
        assert!(loader.holds(0..20), "byte for byte");
    }
    let stats = client.stats().await.expect("counts");
    assert_eq!((stats.leases, stats.corrupt), (0, 0));
}

#[tokio::test]
async fn a_corrupt_byte_is_a_miss_and_the_node_is_told() {
    let (client, namespace) = client(&[]).await;
    let engine = Engine::new(&client, &namespace, Slot::whole(&SHAPE));
    engine.fill();
    assert_eq!(engine.save(0..10).await.completed, 10);
    let keys = keys(&namespace, 0..10);
    let found = lookup(&client, &namespace, &keys).await;
    let block = found.blocks[4];
    let pool = found.session.pools().of(block.place).expect("a pool");
    let (at, mut byte) = (block.place.offset() + 5000, [0]);
    pool.data.copy_out(at, &mut byte).expect("inside");
    pool.data.copy_in(at, &[byte[0] ^ 1]).expect("inside");
    client
        .release(&found.lease.expect("asked for"))
        .await
        .expect("held");
    let states = engine.load(0..10).await;
    let mut want = [LoadState::Loaded; 10];
    want[4] = LoadState::Corrupt;
    assert_eq!(states, want);
    assert_eq!(client.stats().await.expect("counts").corrupt, 1);
    let states = engine.load(0..10).await;
    assert_eq!(states[..4], [LoadState::Loaded; 4]);
    assert_eq!(
        states[4..],
        [LoadState::Missing; 6],
        "it is gone, and so ends the prefix"
    );
    assert_eq!(engine.save(0..10).await.completed, 1, "and comes back");
    assert_eq!(engine.load(0..10).await, [LoadState::Loaded; 10]);
}

#[tokio::test]
async fn a_block_that_left_under_the_reader_is_a_miss() {
    let (client, namespace) = client(&[]).await;
    let engine = Engine::new(&client, &namespace, Slot::whole(&SHAPE));
    engine.fill();
    engine.save(0..4).await;
    let keys = keys(&namespace, 0..4);
    let found = lookup(&client, &namespace, &keys).await;
    client
        .release(found.lease.as_ref().expect("asked for"))
        .await
        .expect("held");
    let gone = found.blocks[2];
    client.report_corrupt(keys[2], &gone).await.expect("heard");
    let loaded = engine
        .worker
        .load_refs(found.blocks, keys, (0..4).collect())
        .await;
    let loaded = loaded.expect("loads");
    assert_eq!(loaded.prefix(), 2);
    assert_eq!(loaded.states[2], LoadState::Missing);
    assert_eq!(
        client.stats().await.expect("counts").corrupt,
        1,
        "told once, by us"
    );
}

#[tokio::test]
async fn a_full_pool_is_said_and_the_rest_is_saved() {
    let node = Node::start(&settings(1 << 20)).expect("starts");
    let client = Client::embedded(&node).expect("opens");
    let namespace = client.register_namespace(layout(1, SHAPE, &[])).await;
    let namespace = namespace.expect("registers");
    let all = keys(&namespace, 100..160);
    let held = reserve(&client, &namespace, &Slot::whole(&SHAPE), &all).await;
    let engine = Engine::new(&client, &namespace, Slot::whole(&SHAPE));
    engine.fill();
    let saved = engine.save(0..20).await;
    assert_eq!(saved.completed + saved.out_of_budget, 20);
    assert!(
        saved.completed >= 1 && saved.out_of_budget >= 10,
        "{saved:?}"
    );
    client.abort(&held, true).await.expect("held");
    let saved = engine.save(0..20).await;
    assert_eq!(
        (saved.completed + saved.known, saved.out_of_budget),
        (20, 0)
    );
}

#[tokio::test]
async fn a_worker_fits_its_namespace() {
    let (client, namespace) = client(&[]).await;
    let device = Arc::new(HostDevice::new(&HostSettings::default()).expect("a device"));
    let worker = |slot: Slot, shape| {
        let layout = KvLayout::dense(shape, slot, 1 << 20, 4).expect("a layout");
        let settings = WorkerSettings::default();
        let (client, namespace) = (client.clone(), namespace.clone());
        Worker::new(
            client,
            device.clone(),
            namespace,
            GROUP,
            Arc::new(layout),
            settings,
        )
    };
    let mut other = SHAPE;
    other.inner_bytes = 512;
    assert!(worker(Slot::whole(&other), other).is_err(), "other blocks");
    let part = Slot {
        layers: 0..1,
        heads: 0..4,
    };
    assert!(worker(part, SHAPE).is_err(), "no stage ends there");
    worker(Slot::whole(&SHAPE), SHAPE).expect("fits");
}
