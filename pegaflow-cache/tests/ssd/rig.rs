// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A node with a small pool and an SSD tier, and one worker whose every byte follows from its key.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pegaflow_cache::client::{Client, Found, Lookup, NamespaceHandle, TicketState};
use pegaflow_cache::core::{BlockRef, CoreSettings, EvictionPolicy};
use pegaflow_cache::node::{NamespaceLayout, Node, NodeSettings, SsdStats};
use pegaflow_cache::replay::engine::{Rank, engine_bytes, engine_layout};
use pegaflow_cache::tier::SsdSettings;
use pegaflow_cache::worker::{LoadState, Save, Saved, Worker, WorkerSettings};
use pegaflow_mem::device::host::{HostDevice, HostMemory, HostSettings};
use pegaflow_mem::{BlockShape, Slot};
use pegaflow_meta::{BlockKey, GroupId, GroupKind, GroupSpec, Namespace, TenantSalt};

pub(crate) const GROUP: GroupId = GroupId(0);
/// 16 KiB a block.
pub(crate) const SHAPE: BlockShape = BlockShape {
    layers: 2,
    parts: 2,
    heads: 4,
    inner_bytes: 1024,
};
/// Blocks of the pool.
pub(crate) const POOL: u32 = 64;
/// Blocks of the engine.
const ENGINE: u32 = 128;
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Rig {
    pub(crate) node: Arc<Node>,
    pub(crate) client: Client,
    pub(crate) namespace: NamespaceHandle,
    engine: Engine,
}

/// A worker for one cache group, and what its bytes must be.
pub(crate) struct Engine {
    worker: Worker,
    rank: Rank,
}

impl Engine {
    pub(crate) fn new(client: &Client, namespace: &NamespaceHandle, group: GroupId) -> Self {
        let slot = Slot::whole(&SHAPE);
        let memory = HostMemory::zeroed(engine_bytes(&SHAPE, &slot, ENGINE)).expect("memory");
        let device = HostDevice::new(&HostSettings::default()).expect("a device");
        device.register(memory.clone()).expect("registers");
        let layout = engine_layout(SHAPE, slot, memory.base(), ENGINE).expect("fits");
        let (device, layout) = (Arc::new(device), Arc::new(layout));
        let (client, namespace) = (client.clone(), namespace.clone());
        let settings = WorkerSettings::default();
        let worker = Worker::new(client, device, namespace, group, layout.clone(), settings);
        Self {
            worker: worker.expect("fits the namespace"),
            rank: Rank::new(layout, Arc::new(memory)),
        }
    }

    /// Computes and saves these blocks.
    pub(crate) async fn save(&self, keys: Vec<BlockKey>) -> Saved {
        for (block, key) in (0..).zip(&keys) {
            self.rank.fill(key, block, &mut vec![]);
        }
        let save = Save {
            blocks: (0..keys.len() as u32).collect(),
            keys,
            ..Save::default()
        };
        self.worker.save(save).await.expect("saves")
    }

    /// Loads blocks that somebody holds, and checks every byte of what was loaded.
    pub(crate) async fn load(&self, refs: Vec<BlockRef>, keys: &[BlockKey]) -> Vec<LoadState> {
        let blocks = (0..keys.len() as u32).collect();
        let loaded = self.worker.load_refs(refs, keys.to_vec(), blocks).await;
        let states = loaded.expect("loads").states;
        for ((block, key), state) in (0..).zip(keys).zip(&states) {
            if *state == LoadState::Loaded {
                assert_eq!(self.rank.check(key, block, &mut vec![]), None, "{block}");
            }
        }
        states
    }
}

/// A pool of 64 blocks, and a tier on a file in `dir`.
pub(crate) fn settings(dir: &Path) -> NodeSettings {
    NodeSettings {
        pool_bytes: u64::from(POOL) * SHAPE.bytes(),
        tick_ms: 5,
        // The tests say what is left in the pool: easy by LRU.
        core: CoreSettings {
            eviction: EvictionPolicy::Lru,
            ..CoreSettings::default()
        },
        ssd: SsdSettings {
            path: dir.join("blocks").display().to_string(),
            bytes: 64 << 20,
            ..SsdSettings::default()
        },
        ..NodeSettings::default()
    }
}

pub(crate) fn namespace(tenant: &str) -> Namespace {
    Namespace {
        model: [1 + tenant.len() as u8; 32],
        weights: [2; 32],
        kv_dtype: "bfloat16".to_owned(),
        kv_quantisation: String::new(),
        hash_algorithm: "sha256".to_owned(),
        hash_seed: vec![],
        groups: vec![GroupSpec {
            kind: GroupKind::FullAttention,
            block_tokens: 16,
            layout: "hnd".to_owned(),
        }],
        tenant_salt: TenantSalt::default(),
    }
}

impl Rig {
    pub(crate) async fn new(settings: &NodeSettings) -> Self {
        Self::of(Node::start(settings).expect("starts")).await
    }

    pub(crate) async fn of(node: Arc<Node>) -> Self {
        Self::of_tenant(node, "").await
    }

    /// The worker of a tenant.
    pub(crate) async fn of_tenant(node: Arc<Node>, tenant: &str) -> Self {
        let client = Client::embedded(&node).expect("opens");
        let mut layout = NamespaceLayout::new(namespace(tenant), &[SHAPE]);
        layout.tenant = tenant.to_owned();
        let namespace = client.register_namespace(layout).await.expect("registers");
        Self {
            engine: Engine::new(&client, &namespace, GROUP),
            node,
            client,
            namespace,
        }
    }

    pub(crate) fn keys(&self, prompt: u32, blocks: u32) -> Vec<BlockKey> {
        let hash = |at: u32| [prompt.to_le_bytes(), at.to_le_bytes()].concat();
        (0..blocks)
            .map(|at| self.namespace.key(GROUP, &hash(at)))
            .collect()
    }

    /// Saves the blocks of a prompt.
    pub(crate) async fn save(&self, prompt: u32, blocks: u32) -> Saved {
        self.engine.save(self.keys(prompt, blocks)).await
    }

    /// Saves prompts `0..prompts`, and waits until the drive has them all.
    pub(crate) async fn fill(&self, prompts: u32, blocks: u32) {
        for prompt in 0..prompts {
            self.save(prompt, blocks).await;
            self.settled().await;
        }
        let written = self.stats().spilled_blocks;
        assert_eq!(written, u64::from(prompts * blocks), "{:?}", self.stats());
    }

    pub(crate) async fn look(&self, keys: &[BlockKey]) -> Found {
        let lookup = Lookup::prefix(&self.namespace, GROUP, keys).with_ticket();
        self.client.lookup(&lookup).await.expect("looks up")
    }

    /// All that a lookup gets, after waiting for its ticket.
    pub(crate) async fn wait(&self, found: Found) -> Found {
        let Some(ticket) = &found.ticket else {
            return found;
        };
        let done = ticket.wait(PATIENCE).await;
        assert!(matches!(done, TicketState::Done { .. }), "{done:?}");
        let lease = found.lease.as_ref().expect("a ticket has a lease");
        self.client.claim(lease).await.expect("claims")
    }

    /// Looks a prompt up, waits, loads what is there, and checks every byte. How many blocks.
    pub(crate) async fn load(&self, prompt: u32, blocks: u32) -> usize {
        let states = self.load_states(prompt, blocks).await;
        let loaded = |state: &&LoadState| **state == LoadState::Loaded;
        states.iter().take_while(loaded).count()
    }

    pub(crate) async fn load_states(&self, prompt: u32, blocks: u32) -> Vec<LoadState> {
        let keys = self.keys(prompt, blocks);
        let found = self.look(&keys).await;
        let found = self.wait(found).await;
        let states = self.engine.load(found.blocks, &keys).await;
        if let Some(lease) = &found.lease {
            self.client.release(lease).await.expect("releases");
        }
        states
    }

    pub(crate) fn stats(&self) -> SsdStats {
        self.node.ssd_stats().expect("there is a tier")
    }

    /// Waits until nothing moves between pool and drive.
    pub(crate) async fn settled(&self) {
        self.until("nothing moves", |rig| {
            let stats = rig.stats();
            stats.fetching_bytes + stats.spill_waiting_blocks + stats.spilling_bytes == 0
        })
        .await;
    }

    pub(crate) async fn until(&self, what: &str, f: impl Fn(&Self) -> bool) {
        let waited = async {
            while !f(self) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waited).await;
        assert!(waited.is_ok(), "{what}: {:?}", self.stats());
    }

    /// Whether the pool has any place that is leased, being written, or out of sight.
    pub(crate) async fn quiet(&self) {
        self.until("all places and leases are back", |rig| {
            let stats = rig.node.stats();
            stats.leases + stats.writing_blocks + stats.detached_blocks + stats.tickets == 0
        })
        .await;
    }
}
