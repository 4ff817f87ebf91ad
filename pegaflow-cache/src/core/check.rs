// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What must hold between any two calls, recounted from scratch. For tests.

use super::Core;
use super::block::{Block, BlockIdx, State};
use super::lease::Kind;
use super::write::WriteIdx;
use std::collections::{HashMap, HashSet};

impl Core {
    /// Panics if anything that is kept twice disagrees, or a place has two owners.
    pub(crate) fn check(&self) {
        self.check_counts();
        self.check_pins();
        self.check_links();
        self.check_places();
        self.check_writes();
        self.check_sessions();
        self.check_policies();
    }

    fn all(&self) -> Vec<(BlockIdx, Block)> {
        self.blocks
            .iter()
            .map(|(idx, block)| (idx, *block))
            .collect()
    }

    fn check_counts(&self) {
        let count = |wanted: &[State]| {
            self.blocks
                .iter()
                .filter(|(_, block)| wanted.contains(&block.state))
                .count()
        };
        assert_eq!(self.sealed, count(&[State::Sealed]) as u64, "sealed");
        assert_eq!(
            self.detached,
            count(&[State::Detached, State::Abandoned]) as u64,
            "detached"
        );
        assert_eq!(
            self.index.len(),
            count(&[State::Sealed, State::Writing]),
            "indexed"
        );
        assert_eq!(
            self.writes.len(),
            count(&[State::Writing, State::Abandoned]),
            "writes"
        );
        assert_eq!(
            self.blocks.len() as usize,
            self.blocks.iter().count(),
            "blocks"
        );
        for (idx, block) in self.blocks.iter() {
            let found = self.find(self.index.hash(&block.key), &block.key);
            let indexed = matches!(block.state, State::Sealed | State::Writing);
            assert_eq!(found == Some(idx), indexed, "{idx:?} {block:?}");
        }
    }

    fn check_pins(&self) {
        let mut pins: HashMap<BlockIdx, u32> = HashMap::new();
        let readers = self.leases.iter().filter(|lease| lease.kind == Kind::Read);
        let read = readers.flat_map(|lease| lease.blocks.iter().copied());
        let moving = self.moves.values().map(|moving| moving.idx);
        for idx in read.chain(moving).chain(self.spills.values().copied()) {
            *pins.entry(idx).or_default() += 1;
        }
        for (idx, block) in self.blocks.iter() {
            assert_eq!(
                block.pins,
                pins.remove(&idx).unwrap_or(0),
                "pins of {idx:?} {block:?}"
            );
            assert!(
                block.state != State::Detached || block.pins > 0,
                "nobody holds {idx:?}"
            );
        }
        assert!(pins.is_empty(), "pins on freed blocks: {pins:?}");
    }

    fn check_links(&self) {
        let mut children: HashMap<BlockIdx, u32> = HashMap::new();
        for (idx, block) in self.blocks.iter() {
            if matches!(block.state, State::Sealed | State::Writing)
                && let Some(parent) = self.blocks.parent(idx)
            {
                *children.entry(parent).or_default() += 1;
            }
        }
        for (idx, block) in self.blocks.iter() {
            if matches!(block.state, State::Sealed | State::Writing) {
                let counted = children.get(&idx).copied().unwrap_or(0);
                assert_eq!(block.children, counted, "children of {idx:?}");
            }
        }
    }

    fn check_places(&self) {
        let mut used: HashMap<&str, u64> = HashMap::new();
        let mut places = HashSet::new();
        for (idx, block) in self.all() {
            assert!(
                places.insert(block.place),
                "two blocks at {:?}",
                block.place
            );
            assert_eq!(
                self.places.owner(block.place),
                Some(idx),
                "owner of {:?}",
                block.place
            );
        }
        for (_, block) in self.blocks.iter() {
            let class = self.namespaces.class(block.class);
            *used
                .entry(&self.tenants.get(class.tenant).name)
                .or_default() += class.place_bytes;
        }
        for tenant in self.tenants.iter() {
            let counted = used.get(tenant.name.as_str()).copied().unwrap_or(0);
            assert_eq!(tenant.used_bytes, counted, "bytes of {}", tenant.name);
        }
        let moving: u64 = self
            .moves
            .values()
            .map(|moving| self.place_bytes(moving.idx))
            .sum();
        let total = used.values().sum::<u64>() + moving;
        assert_eq!(
            self.places.live_bytes(),
            total,
            "bytes handed out and bytes accounted for"
        );
    }

    fn place_bytes(&self, idx: BlockIdx) -> u64 {
        self.namespaces
            .class(self.blocks.get(idx).class)
            .place_bytes
    }

    fn check_writes(&self) {
        for (idx, block) in self.blocks.iter() {
            if !matches!(block.state, State::Writing | State::Abandoned) {
                continue;
            }
            let write = self.writes.get(WriteIdx(block.policy[0]));
            assert_eq!(write.block, idx);
            assert!(!write.is_covered(), "{idx:?} should be sealed");
            let abandoned = block.state == State::Abandoned;
            assert!(!abandoned || !write.is_quiet(), "{idx:?} should be free");
            assert!(!write.slots.is_empty(), "{idx:?} was never reserved");
            assert!(
                !abandoned || write.waiters.is_empty(),
                "{idx:?} will never be ready"
            );
        }
    }

    fn check_sessions(&self) {
        for (id, session) in &self.sessions {
            let own = || self.leases.iter().filter(|lease| lease.session == *id);
            assert_eq!(session.leases as usize, own().count(), "leases of {id:?}");
            let reserved: u64 = own()
                .map(|lease| u64::from(lease.open) * lease.item_bytes)
                .sum();
            assert_eq!(session.reserved_bytes, reserved, "bytes reserved by {id:?}");
        }
        for lease in self.leases.iter() {
            assert!(
                self.sessions.contains_key(&lease.session),
                "a lease of nobody"
            );
            let open = lease.blocks.iter().filter(|idx| !idx.is_none()).count();
            assert!(
                lease.kind == Kind::Read || lease.open as usize == open,
                "{lease:?}"
            );
        }
    }

    fn check_policies(&self) {
        for tenant in self.tenants.iter() {
            let own = |block: &Block| {
                let class = self.namespaces.class(block.class);
                block.state == State::Sealed && self.tenants.get(class.tenant).name == tenant.name
            };
            let tracked: Vec<_> = self
                .blocks
                .iter()
                .filter(|(_, b)| own(b))
                .map(|(idx, _)| idx)
                .collect();
            tenant.policy.check(&self.blocks, &tracked);
            tenant.demoted.check(&self.blocks, &tracked);
            let of_tenant = |class: super::ClassIdx| {
                let class = self.namespaces.class(class);
                self.tenants.get(class.tenant).name == tenant.name
            };
            let pins = self.leases.iter().filter(|lease| of_tenant(lease.class));
            let pinned: u64 = pins.map(|lease| lease.pinned_bytes).sum();
            assert_eq!(tenant.pinned_bytes, pinned, "pinned by {}", tenant.name);
        }
    }
}
