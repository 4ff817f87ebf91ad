// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A node with or without an SSD tier, called directly.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pegaflow_cache::core::{Answer, LookupMode, NamespaceIndex, SessionId};
use pegaflow_cache::node::{
    Client, LookupCall, NamespaceLayout, Node, NodeSettings, ReserveCall, SsdStats,
};
use pegaflow_cache::tier::SsdSettings;
use pegaflow_mem::{BlockShape, Slot};
use pegaflow_meta::{BlockKey, GroupId, GroupKind, GroupSpec, Namespace, TenantSalt};

pub(crate) const GROUP: GroupId = GroupId(0);

/// How large the points are.
pub(crate) struct Size {
    pub(crate) shape: BlockShape,
    /// Blocks of the prefix on SSD.
    pub(crate) blocks: u32,
    pub(crate) rounds: u32,
    pub(crate) lookups: u32,
    pub(crate) saves: u32,
}

impl Size {
    /// A prefix of 1 GiB in blocks of 1 MiB.
    pub(crate) fn full() -> Self {
        Self {
            shape: shape(16 << 10),
            blocks: 1024,
            rounds: 7,
            lookups: 4000,
            saves: 300,
        }
    }

    pub(crate) fn quick() -> Self {
        Self {
            shape: shape(2 << 10),
            blocks: 128,
            rounds: 3,
            lookups: 200,
            saves: 10,
        }
    }

    pub(crate) fn block_bytes(&self) -> u64 {
        self.shape.bytes()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.block_bytes() * u64::from(self.blocks)
    }
}

fn shape(inner_bytes: u32) -> BlockShape {
    BlockShape {
        layers: 4,
        parts: 2,
        heads: 8,
        inner_bytes,
    }
}

pub(crate) fn layout(shape: BlockShape) -> NamespaceLayout {
    let namespace = Namespace {
        model: [1; 32],
        weights: [0; 32],
        kv_dtype: "bfloat16".to_owned(),
        kv_quantisation: String::new(),
        hash_algorithm: "bench".to_owned(),
        hash_seed: vec![],
        groups: vec![GroupSpec {
            kind: GroupKind::FullAttention,
            block_tokens: 16,
            layout: "bench".to_owned(),
        }],
        tenant_salt: TenantSalt::default(),
    };
    NamespaceLayout::new(namespace, &[shape])
}

/// Settings of a node with `pool_bytes`, and a tier on the file at `ssd`.
pub(crate) fn settings(pool_bytes: u64, ssd: Option<&Path>) -> NodeSettings {
    NodeSettings {
        pool_bytes,
        touch_threads: 2,
        ssd: SsdSettings {
            path: ssd
                .map(|path| path.display().to_string())
                .unwrap_or_default(),
            bytes: 4 << 30,
            ..SsdSettings::default()
        },
        ..NodeSettings::default()
    }
}

pub(crate) struct Rig {
    pub(crate) node: Arc<Node>,
    pub(crate) session: SessionId,
    pub(crate) namespace: NamespaceIndex,
    pub(crate) shape: BlockShape,
    id: pegaflow_meta::NamespaceId,
}

impl Rig {
    pub(crate) fn new(settings: &NodeSettings, shape: BlockShape) -> Self {
        let node = Node::start(settings).expect("starts");
        let session = node.open_session(&Client::Embedded, None).expect("opens");
        let layout = layout(shape);
        let namespace = node
            .register_namespace(session, &layout)
            .expect("registers");
        Self {
            id: layout.namespace.fingerprint().expect("valid"),
            node,
            session,
            namespace,
            shape,
        }
    }

    pub(crate) fn keys(&self, prompt: u32, count: u32) -> Vec<BlockKey> {
        let hash = |at: u32| [prompt.to_le_bytes(), at.to_le_bytes()].concat();
        (0..count)
            .map(|at| BlockKey::derive(&self.id, GROUP, &hash(at)))
            .collect()
    }

    /// Reserves and seals, without copying. How many became visible.
    pub(crate) fn save(&self, keys: &[BlockKey]) -> u32 {
        let slot = Slot::whole(&self.shape);
        let call = ReserveCall {
            namespace: self.namespace,
            group: GROUP,
            slot: &slot,
            parent: None,
            keys,
        };
        let (lease, items) = self
            .node
            .reserve(self.session, &call, |reply| {
                let places = (0..).zip(&reply.answers);
                let places = places.filter(|(_, a)| matches!(a, Answer::Place { .. }));
                (reply.lease, places.map(|(at, _)| at).collect::<Vec<u32>>())
            })
            .expect("reserves");
        let Some(lease) = lease else { return 0 };
        let sums = vec![1; items.len() * self.shape.heads as usize];
        let sealed = self.node.seal(self.session, lease, &items, &sums);
        sealed.expect("seals").completed
    }

    pub(crate) fn call<'a>(&self, keys: &'a [BlockKey]) -> LookupCall<'a> {
        LookupCall {
            namespace: self.namespace,
            group: GROUP,
            keys,
            mode: LookupMode::Prefix,
            lease_ttl_ms: Some(60_000),
            ticket: true,
        }
    }

    /// Looks up and releases; how many blocks were ready.
    pub(crate) fn lookup(&self, keys: &[BlockKey]) -> usize {
        let found = self.node.lookup(self.session, &self.call(keys), |refs| {
            (refs.lease, refs.blocks.len())
        });
        let (lease, ready) = found.expect("looks up");
        if let Some(lease) = lease {
            self.node.release(self.session, lease).expect("releases");
        }
        ready
    }

    pub(crate) fn stats(&self) -> SsdStats {
        self.node.ssd_stats().expect("there is a tier")
    }

    /// Waits until nothing moves between pool and drive.
    pub(crate) fn settle(&self) {
        loop {
            let stats = self.stats();
            if stats.fetching_bytes + stats.spill_waiting_blocks + stats.spilling_bytes == 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
