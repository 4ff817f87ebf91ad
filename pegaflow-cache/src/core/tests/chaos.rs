// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Tenants with quotas, blocks of unlike sizes, two pools and compaction, under random calls. Nothing
//! is predicted here: the shell's books and the core's own recount must agree at every step, and a
//! core restored from the books must know the same blocks.

use super::rig::{key, spec};
use super::shell::Shell;
use crate::core::*;
use pegaflow_mem::{BlockShape, Slot};
use pegaflow_meta::{BlockKey, GroupId, GroupKind};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Op {
    Save {
        session: u64,
        namespace: usize,
        chain: u64,
        len: u64,
        seal: u8,
    },
    Seal {
        lease: usize,
    },
    Abort {
        lease: usize,
        quiesced: bool,
    },
    Read {
        session: u64,
        namespace: usize,
        chain: u64,
        len: u64,
    },
    Release {
        lease: usize,
    },
    Die {
        session: u64,
    },
    Corrupt {
        namespace: usize,
        chain: u64,
        at: u64,
    },
    EvictAhead {
        namespace: usize,
        blocks: u64,
        max: u32,
    },
    Compact,
    Moved {
        which: usize,
        copied: bool,
    },
    Tick {
        ms: u64,
    },
    Restart,
}

fn ops() -> impl Strategy<Value = Op> {
    let session = || 0..3u64;
    let namespace = || 0..NAMESPACES.len();
    prop_oneof![
        8 => (session(), namespace(), 0..6u64, 1..9u64, 0..4u8).prop_map(
            |(session, namespace, chain, len, seal)| Op::Save { session, namespace, chain, len, seal }),
        3 => any::<usize>().prop_map(|lease| Op::Seal { lease }),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(lease, quiesced)| Op::Abort { lease, quiesced }),
        4 => (session(), namespace(), 0..6u64, 1..9u64).prop_map(
            |(session, namespace, chain, len)| Op::Read { session, namespace, chain, len }),
        4 => any::<usize>().prop_map(|lease| Op::Release { lease }),
        1 => session().prop_map(|session| Op::Die { session }),
        1 => (namespace(), 0..6u64, 0..8u64).prop_map(
            |(namespace, chain, at)| Op::Corrupt { namespace, chain, at }),
        2 => (namespace(), 1..20u64, 1..6u32).prop_map(
            |(namespace, blocks, max)| Op::EvictAhead { namespace, blocks, max }),
        2 => Just(Op::Compact),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(which, copied)| Op::Moved { which, copied }),
        2 => (0..60u64).prop_map(|ms| Op::Tick { ms }),
        1 => Just(Op::Restart),
    ]
}

/// Tenant, and inner bytes of a block of 2 layers, 2 parts, 4 heads.
const NAMESPACES: [(&str, u32); 3] = [("one", 256), ("two", 256), ("two", 1280)];
const POOL_BYTES: u64 = 24 * 4096;
const QUOTA_BYTES: u64 = 8 * 4096;

fn specs() -> impl Iterator<Item = NamespaceSpec> {
    (1..).zip(NAMESPACES).map(|(id, (tenant, inner_bytes))| {
        let mut spec = spec(tenant, id, &[(GroupKind::FullAttention, 16)]);
        spec.groups[0].shape = BlockShape {
            layers: 2,
            parts: 2,
            heads: 4,
            inner_bytes,
        };
        spec
    })
}

struct World {
    core: Core,
    shell: Shell,
    actions: Vec<Action>,
    now: Now,
    sessions: [SessionId; 3],
    next_session: u64,
    reads: Vec<(SessionId, LeaseId)>,
    writes: Vec<(SessionId, LeaseId, Vec<u32>)>,
}

fn new_core(eviction: EvictionPolicy) -> Core {
    let mut settings = CoreSettings {
        read_lease_ttl_max_ms: 90,
        write_lease_ttl_ms: 100,
        partial_block_ttl_ms: 50,
        moves_max: 3,
        eviction,
        ..CoreSettings::default()
    };
    let quota = TenantSettings {
        bytes_max: Some(QUOTA_BYTES),
        ..TenantSettings::default()
    };
    settings.tenants.insert("one".to_owned(), quota);
    let mut core = Core::new(settings, [5, 6]).expect("valid settings");
    for _ in 0..2 {
        core.add_pool(POOL_BYTES).expect("two pools");
    }
    for spec in specs() {
        core.register_namespace(&spec).expect("valid namespaces");
    }
    core
}

impl World {
    fn new(eviction: EvictionPolicy) -> Self {
        let mut shell = Shell::new(4096);
        for (index, spec) in (0..).map(NamespaceIndex).zip(specs()) {
            shell
                .block_bytes
                .insert(index, spec.groups[0].shape.bytes());
        }
        let mut world = Self {
            core: new_core(eviction),
            shell,
            actions: vec![],
            now: Now(0),
            sessions: [0, 1, 2].map(SessionId),
            next_session: 3,
            reads: vec![],
            writes: vec![],
        };
        world.open_all();
        world
    }

    fn open_all(&mut self) {
        for session in self.sessions {
            self.core
                .open_session(session, (session.0 % 2) as u8)
                .expect("a new session");
        }
    }

    fn key(namespace: usize, chain: u64, at: u64) -> BlockKey {
        key(namespace as u64 * 1000 + chain * 100 + at)
    }

    fn keys(namespace: usize, chain: u64, len: u64) -> Vec<BlockKey> {
        (0..len).map(|at| Self::key(namespace, chain, at)).collect()
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Save {
                session,
                namespace,
                chain,
                len,
                seal,
            } => {
                self.save(session, namespace, &Self::keys(namespace, chain, len), seal);
            }
            Op::Seal { lease } => {
                if let Some((session, lease, items)) = pick(&mut self.writes, lease) {
                    let actions = &mut self.actions;
                    // Late, or from before a restart: then it is refused.
                    drop(self.core.seal(self.now, session, lease, &items, actions));
                }
            }
            Op::Abort { lease, quiesced } => {
                if let Some((session, lease, _)) = pick(&mut self.writes, lease) {
                    drop(
                        self.core
                            .abort(self.now, session, lease, quiesced, &mut self.actions),
                    );
                }
            }
            Op::Read {
                session,
                namespace,
                chain,
                len,
            } => {
                let reply = self.find(
                    session,
                    namespace,
                    &Self::keys(namespace, chain, len),
                    Some(80),
                );
                let session = self.sessions[session as usize];
                self.reads.extend(reply.lease.map(|lease| (session, lease)));
            }
            Op::Release { lease } => {
                if let Some((session, lease)) = pick(&mut self.reads, lease) {
                    drop(self.core.release(session, lease, &mut self.actions));
                }
            }
            Op::Die { session } => self.die(session),
            Op::Corrupt {
                namespace,
                chain,
                at,
            } => {
                let key = Self::key(namespace, chain, at);
                let reply = self.find(0, namespace, &[key], None);
                if let Some(BlockRef {
                    place, generation, ..
                }) = reply.blocks.first().copied()
                {
                    let (session, actions) = (self.sessions[0], &mut self.actions);
                    let dropped = self
                        .core
                        .report_corrupt(session, &key, place, generation, actions);
                    assert_eq!(dropped, Ok(true));
                }
            }
            Op::EvictAhead {
                namespace,
                blocks,
                max,
            } => {
                let namespace = NamespaceIndex(namespace as u32);
                let class = self.core.namespaces.class_of(namespace, GroupId(0));
                self.core.want_room(class.expect("it is known"), blocks);
                self.core.evict_ahead(self.now, max, &mut self.actions);
            }
            Op::Compact => drop(self.core.compact(8, &mut self.actions)),
            Op::Moved { which, copied } => {
                if let Some(from) = self.shell.finish_move(which, copied) {
                    self.core
                        .move_done(from, copied, &mut self.actions)
                        .expect("it was planned");
                }
            }
            Op::Tick { ms } => {
                self.now.0 += ms;
                self.core.tick(self.now, &mut self.actions);
            }
            Op::Restart => self.restart(),
        }
        self.shell.apply(&mut self.actions);
    }

    fn save(&mut self, session: u64, namespace: usize, keys: &[BlockKey], seal: u8) {
        let session = self.sessions[session as usize];
        let shape = specs().nth(namespace).expect("a namespace").groups[0].shape;
        let slot = match seal {
            0 | 1 => Slot::whole(&shape),
            rank => Slot::of_rank(&shape, u32::from(rank) - 2, 2).expect("4 heads"),
        };
        let (namespace, group) = (NamespaceIndex(namespace as u32), GroupId(0));
        let request = ReserveRequest {
            namespace,
            group,
            slot: &slot,
            parent: None,
            keys,
        };
        let mut reply = ReserveReply::default();
        let reserved =
            self.core
                .reserve(self.now, session, &request, &mut reply, &mut self.actions);
        reserved.expect("a valid request");
        let place =
            |(at, answer): (u32, &Answer)| matches!(answer, Answer::Place { .. }).then_some(at);
        let items: Vec<u32> = (0..).zip(&reply.answers).filter_map(place).collect();
        let Some(lease) = reply.lease else { return };
        if seal == 1 {
            self.writes.push((session, lease, items));
            return;
        }
        self.shell.apply(&mut self.actions);
        let sealed = self
            .core
            .seal(self.now, session, lease, &items, &mut self.actions);
        sealed.expect("a fresh lease");
    }

    fn find(
        &mut self,
        session: u64,
        namespace: usize,
        keys: &[BlockKey],
        ttl: Option<u64>,
    ) -> LookupReply {
        let request = LookupRequest {
            namespace: NamespaceIndex(namespace as u32),
            group: GroupId(0),
            keys,
            mode: LookupMode::Prefix,
            lease_ttl_ms: ttl,
            ticket: None,
        };
        let mut reply = LookupReply::default();
        let session = self.sessions[session as usize];
        self.core
            .lookup(self.now, session, &request, &mut reply)
            .expect("a valid request");
        for block in &reply.blocks {
            let record = &self.shell.records[&block.place];
            assert!(record.sealed && record.key == keys[block.key as usize]);
            assert_eq!(record.generation, block.generation);
        }
        reply
    }

    fn die(&mut self, session: u64) {
        let dead = self.sessions[session as usize];
        self.core
            .process_gone(self.now, dead, &mut self.actions)
            .expect("it lives");
        self.sessions[session as usize] = SessionId(self.next_session);
        self.core
            .open_session(SessionId(self.next_session), 0)
            .expect("a new session");
        self.next_session += 1;
    }

    /// A new core from the books alone, unsealed places of living writers still in quarantine.
    fn restart(&mut self) {
        let moves = std::mem::take(&mut self.shell.moves);
        assert!(moves.len() <= 3, "within `moves_max`");
        self.core = new_core(self.core.settings().eviction);
        for ((pool, slab), (units, place_bytes)) in &self.shell.slabs {
            self.core
                .restore_slab(*pool, *slab, *units, *place_bytes)
                .expect("as it was");
        }
        self.open_all();
        let now = self.now;
        let mut gone = vec![];
        for (place, record) in &self.shell.records {
            let (namespace, group) = (record.namespace, record.group);
            if !record.sealed {
                let session = self.sessions[0];
                let (place, generation) = (*place, record.generation);
                let write = RestoredWrite {
                    place,
                    namespace,
                    group,
                    session,
                    generation,
                };
                self.core.restore_write(now, &write).expect("as it was");
                continue;
            }
            let (key, parent, generation) = (record.key, record.parent, record.generation);
            let block = RestoredBlock {
                place: *place,
                namespace,
                group,
                key,
                parent,
                generation,
            };
            if !self.core.restore_block(now, &block).expect("as it was") {
                gone.push(*place);
            }
        }
        self.core.finish_restore();
        gone.iter()
            .for_each(|place| _ = self.shell.records.remove(place));
        self.reads.clear();
        self.writes.clear();
    }

    fn check(&self) {
        self.core.check();
        for (tenant, used, max) in self.core.usage() {
            assert!(
                max.is_none_or(|max| used <= max),
                "{tenant} uses {used} of {max:?}"
            );
        }
    }
}

fn pick<T>(from: &mut Vec<T>, at: usize) -> Option<T> {
    if from.is_empty() {
        None
    } else {
        Some(from.swap_remove(at % from.len()))
    }
}

proptest! {
    #[test]
    fn books_and_core_agree(
        ops in prop::collection::vec(ops(), 1..120),
        eviction in prop::sample::select(&[EvictionPolicy::Lru, EvictionPolicy::Gittins][..]),
    ) {
        let mut world = World::new(eviction);
        for op in &ops {
            world.apply(op);
            world.check();
        }
        for session in 0..3 {
            world.die(session);
        }
        world.now.0 += 1000;
        world.core.tick(world.now, &mut world.actions);
        world.check();
        prop_assert_eq!(world.core.stats().writing_blocks + world.core.stats().leases, 0);
    }
}
