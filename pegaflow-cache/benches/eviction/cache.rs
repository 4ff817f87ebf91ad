// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A core as a cache of block ids: one lookup and one save for each request, as an engine does.

use pegaflow_cache::core::{
    Answer, Core, CoreSettings, EvictionPolicy, GroupShape, LookupMode, LookupReply, LookupRequest,
    NamespaceIndex, NamespaceSpec, Now, ReserveReply, ReserveRequest, SessionId,
};
use pegaflow_cache::replay::baselines::Simulated;
use pegaflow_mem::{BlockShape, Slot};
use pegaflow_meta::{BlockKey, GroupId, GroupKind, NamespaceId};

const SESSION: SessionId = SessionId(1);
const SHAPE: BlockShape = BlockShape {
    layers: 1,
    parts: 1,
    heads: 1,
    inner_bytes: 4096,
};

/// The cache.
pub(crate) struct CoreCache {
    core: Core,
    namespace: NamespaceIndex,
    now: Now,
    keys: Vec<BlockKey>,
    found: LookupReply,
    reserved: ReserveReply,
}

impl CoreCache {
    pub(crate) fn new(eviction: EvictionPolicy, capacity: usize) -> Self {
        let settings = CoreSettings {
            eviction,
            blocks_max: capacity as u32,
            ..CoreSettings::default()
        };
        let mut core = Core::new(settings, [1, 2]).expect("the settings are valid");
        core.add_pool((capacity as u64 + 4096) * SHAPE.bytes())
            .expect("the first pool");
        let group = GroupShape {
            kind: GroupKind::FullAttention,
            block_tokens: 512,
            shape: SHAPE,
        };
        let spec = NamespaceSpec {
            id: NamespaceId([1; 32]),
            tenant: String::new(),
            groups: vec![group],
        };
        let namespace = core.register_namespace(&spec).expect("a valid namespace");
        core.open_session(SESSION, 0).expect("the first session");
        Self {
            core,
            namespace,
            now: Now(0),
            keys: vec![],
            found: LookupReply::default(),
            reserved: ReserveReply::default(),
        }
    }

    /// Which of these blocks are here; counts as no use.
    pub(crate) fn has(&mut self, blocks: &[u64]) -> Vec<bool> {
        self.keys = blocks.iter().map(|block| key(*block)).collect();
        self.look(LookupMode::Set, None);
        let mut has = vec![false; blocks.len()];
        self.found
            .blocks
            .iter()
            .for_each(|found| has[found.key as usize] = true);
        has
    }

    fn look(&mut self, mode: LookupMode, lease_ttl_ms: Option<u64>) {
        let request = LookupRequest {
            namespace: self.namespace,
            group: GroupId(0),
            keys: &self.keys,
            mode,
            lease_ttl_ms,
            ticket: None,
        };
        self.core
            .lookup(self.now, SESSION, &request, &mut self.found)
            .expect("a valid request");
    }

    fn save(&mut self, from: usize) {
        let request = ReserveRequest {
            namespace: self.namespace,
            group: GroupId(0),
            slot: &Slot::whole(&SHAPE),
            parent: from.checked_sub(1).map(|last| self.keys[last]),
            keys: &self.keys[from..],
        };
        let mut actions = vec![];
        self.core
            .reserve(
                self.now,
                SESSION,
                &request,
                &mut self.reserved,
                &mut actions,
            )
            .expect("a valid request");
        let Some(lease) = self.reserved.lease else {
            return;
        };
        let answers = (0..).zip(&self.reserved.answers);
        let places = answers.filter(|(_, answer)| matches!(answer, Answer::Place { .. }));
        let items: Vec<u32> = places.map(|(item, _)| item).collect();
        self.core
            .seal(self.now, SESSION, lease, &items, &mut actions)
            .expect("the lease is fresh");
    }
}

impl Simulated for CoreCache {
    fn request(&mut self, blocks: &[u64]) -> usize {
        self.now.0 += 1;
        self.keys = blocks.iter().map(|block| key(*block)).collect();
        self.look(LookupMode::Prefix, Some(60_000));
        let hits = self.found.blocks.len();
        if let Some(lease) = self.found.lease {
            self.core
                .release(SESSION, lease, &mut vec![])
                .expect("the lease lives");
        }
        if hits < blocks.len() {
            self.save(hits);
        }
        hits
    }
}

/// A key as even as a real one.
pub(crate) fn key(block: u64) -> BlockKey {
    let half = |seed: u64| {
        let mut z = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        u128::from(z ^ (z >> 31))
    };
    BlockKey((half(2 * block + 1) << 64 | half(2 * block + 2)).to_le_bytes())
}
