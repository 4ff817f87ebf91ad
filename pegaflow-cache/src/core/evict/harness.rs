// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A policy over an arena, without a core around it: to measure what a decision costs.

use super::{Eviction, Lost, Request, make};
use crate::core::block::{BlockIdx, Blocks, ClassIdx, NewBlock, State};
use crate::core::settings::EvictionPolicy;
use crate::core::types::Place;
use pegaflow_meta::BlockKey;

/// A policy and its blocks.
#[derive(Debug)]
pub struct PolicyHarness {
    blocks: Blocks,
    policy: Box<dyn Eviction>,
}

impl PolicyHarness {
    /// An empty one.
    #[must_use]
    pub fn new(policy: EvictionPolicy) -> Self {
        Self {
            blocks: Blocks::new(u32::MAX),
            policy: make(policy, 0),
        }
    }

    /// A request for a prefix that is not there, and its blocks saved.
    pub fn save(&mut self, keys: &[BlockKey]) {
        let request = Request {
            keys: keys.len(),
            found: &[],
            missing: keys,
        };
        self.policy.request(&mut self.blocks, &request);
        let mut chain: Vec<BlockIdx> = Vec::with_capacity(keys.len());
        for key in keys {
            let new = NewBlock {
                key: *key,
                place: Place::new(0, 0),
                class: ClassIdx(0),
            };
            let idx = self.blocks.insert(new).expect("the arena has no limit");
            if let Some(above) = chain.last() {
                self.blocks.link(idx, *above);
            }
            self.blocks.get_mut(idx).state = State::Sealed;
            chain.push(idx);
        }
        chain.reverse();
        self.policy.insert(&mut self.blocks, &chain);
    }

    /// Evicts at most that many blocks; returns how many.
    pub fn evict(&mut self, blocks: usize) -> usize {
        (0..blocks).take_while(|_| self.evict_one()).count()
    }

    fn evict_one(&mut self) -> bool {
        let Some(victim) = self.policy.victim(&mut self.blocks) else {
            return false;
        };
        self.policy.remove(&mut self.blocks, victim);
        if let Some(parent) = self.blocks.unlink(victim)
            && self.blocks.get(parent).is_evictable()
        {
            self.policy.ripe(&mut self.blocks, parent, Lost::Child);
        }
        self.blocks.remove(victim);
        true
    }

    /// Bytes of the policy's own tables.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.policy.bytes()
    }
}
