// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A core with one pool and one namespace, and calls that are short to write.

use crate::core::*;
use pegaflow_mem::{BlockShape, Slot};
use pegaflow_meta::{BlockKey, GroupId, GroupKind, NamespaceId};

/// Bytes of the rig's blocks: 2 layers of 2 parts of 4 heads.
pub(crate) const BLOCK_BYTES: u64 = 4096;

pub(crate) fn shape() -> BlockShape {
    BlockShape {
        layers: 2,
        parts: 2,
        heads: 4,
        inner_bytes: 256,
    }
}

pub(crate) fn key(n: u64) -> BlockKey {
    BlockKey((u128::from(n) + 1).to_le_bytes())
}

pub(crate) fn keys(range: std::ops::Range<u64>) -> Vec<BlockKey> {
    range.map(key).collect()
}

pub(crate) fn rank(rank: u32, ranks: u32) -> Slot {
    Slot::of_rank(&shape(), rank, ranks).expect("the rig's ranks divide 4 heads")
}

/// One namespace for `tenant` with groups of these kinds and tokens a block.
pub(crate) fn spec(tenant: &str, id: u8, groups: &[(GroupKind, u32)]) -> NamespaceSpec {
    let group = |&(kind, block_tokens)| GroupShape {
        kind,
        block_tokens,
        shape: shape(),
    };
    NamespaceSpec {
        id: NamespaceId([id; 32]),
        tenant: tenant.to_owned(),
        groups: groups.iter().map(group).collect(),
    }
}

pub(crate) struct Rig {
    pub(crate) core: Core,
    pub(crate) actions: Vec<Action>,
    pub(crate) namespace: NamespaceIndex,
    pub(crate) group: GroupId,
    pub(crate) now: Now,
}

pub(crate) const A: SessionId = SessionId(1);
pub(crate) const B: SessionId = SessionId(2);

impl Rig {
    /// A pool with room for `blocks`, and sessions A and B. Evicts by LRU: an order that is easily said.
    pub(crate) fn new(blocks: u64) -> Self {
        let settings = CoreSettings {
            eviction: EvictionPolicy::Lru,
            ..CoreSettings::default()
        };
        Self::with(settings, blocks)
    }

    pub(crate) fn with(settings: CoreSettings, blocks: u64) -> Self {
        let mut core = Core::new(settings, [1, 2]).expect("valid settings");
        core.add_pool(blocks * BLOCK_BYTES).expect("the first pool");
        let spec = spec("one", 1, &[(GroupKind::FullAttention, 16)]);
        let namespace = core.register_namespace(&spec).expect("a valid namespace");
        core.open_session(A, 0).expect("the first session");
        core.open_session(B, 0).expect("the second session");
        Self {
            core,
            actions: vec![],
            namespace,
            group: GroupId(0),
            now: Now(0),
        }
    }

    pub(crate) fn reserve_slot(
        &mut self,
        session: SessionId,
        slot: &Slot,
        parent: Option<BlockKey>,
        keys: &[BlockKey],
    ) -> Result<ReserveReply, Error> {
        let (namespace, group) = (self.namespace, self.group);
        let request = ReserveRequest {
            namespace,
            group,
            slot,
            parent,
            keys,
        };
        let mut reply = ReserveReply::default();
        self.core
            .reserve(self.now, session, &request, &mut reply, &mut self.actions)?;
        Ok(reply)
    }

    pub(crate) fn reserve(&mut self, session: SessionId, keys: &[BlockKey]) -> ReserveReply {
        self.reserve_slot(session, &rank(0, 1), None, keys)
            .expect("a valid request")
    }

    /// Seals every place of a reservation.
    pub(crate) fn seal(&mut self, session: SessionId, reply: &ReserveReply) -> SealReply {
        let is_place = |answer: &Answer| matches!(answer, Answer::Place { .. });
        let items: Vec<u32> = (0..)
            .zip(&reply.answers)
            .filter(|(_, a)| is_place(a))
            .map(|(i, _)| i)
            .collect();
        let Some(lease) = reply.lease else {
            return SealReply::default();
        };
        let sealed = self
            .core
            .seal(self.now, session, lease, &items, &mut self.actions);
        sealed.expect("the lease is fresh")
    }

    pub(crate) fn save(&mut self, session: SessionId, keys: &[BlockKey]) -> ReserveReply {
        let reply = self.reserve(session, keys);
        self.seal(session, &reply);
        reply
    }

    pub(crate) fn lookup(&mut self, session: SessionId, keys: &[BlockKey]) -> LookupReply {
        self.look(session, keys, LookupMode::Prefix, Some(1000), None)
    }

    /// How many of a prefix are ready; touches nothing.
    pub(crate) fn peek(&mut self, keys: &[BlockKey]) -> usize {
        self.look(A, keys, LookupMode::Prefix, None, None)
            .blocks
            .len()
    }

    pub(crate) fn look(
        &mut self,
        session: SessionId,
        keys: &[BlockKey],
        mode: LookupMode,
        lease_ttl_ms: Option<u64>,
        ticket: Option<TicketId>,
    ) -> LookupReply {
        let found = self.try_look(session, keys, mode, lease_ttl_ms, ticket);
        found.expect("a valid request")
    }

    pub(crate) fn try_look(
        &mut self,
        session: SessionId,
        keys: &[BlockKey],
        mode: LookupMode,
        lease_ttl_ms: Option<u64>,
        ticket: Option<TicketId>,
    ) -> Result<LookupReply, Error> {
        let (namespace, group) = (self.namespace, self.group);
        let request = LookupRequest {
            namespace,
            group,
            keys,
            mode,
            lease_ttl_ms,
            ticket,
        };
        let mut reply = LookupReply::default();
        self.core.lookup(self.now, session, &request, &mut reply)?;
        Ok(reply)
    }

    pub(crate) fn release(&mut self, session: SessionId, reply: &LookupReply) {
        if let Some(lease) = reply.lease {
            self.core
                .release(session, lease, &mut self.actions)
                .expect("the lease lives");
        }
    }

    /// Ends a test: everything is consistent.
    pub(crate) fn done(self) {
        self.core.check();
    }

    /// The actions since the last call.
    pub(crate) fn drain(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }
}
