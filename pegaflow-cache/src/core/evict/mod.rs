// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Which block leaves first, behind one trait.
//!
//! A policy orders the *sealed* blocks of one tenant. It never removes anything itself: the core asks
//! for the next victim, and decides.
//!
//! Contract: between `insert` and `remove` the two `policy` words of a block belong to the policy.
//! `victim` returns only blocks that are evictable at that moment, and finds one if there is one.
//! Blocks that are pinned or have children may be passed over; `ripe` says that such a block has
//! become evictable.

mod gittins;
#[cfg(feature = "replay")]
mod harness;
mod log;
mod lru;

#[cfg(feature = "replay")]
pub use harness::PolicyHarness;

use super::block::{BlockIdx, Blocks};
use super::settings::EvictionPolicy;
use pegaflow_meta::BlockKey;
use std::fmt::Debug;

/// What one lookup asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    /// How many keys it named.
    pub(crate) keys: usize,
    /// The blocks it found, from the root to the leaf.
    pub(crate) found: &'a [BlockIdx],
    /// The keys after those found, where it asked for a prefix.
    pub(crate) missing: &'a [BlockKey],
}

/// What kept a block until now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// A child, which has just left.
    Child,
    /// A pin.
    Pin,
}

/// An eviction policy.
pub(crate) trait Eviction: Debug + Send {
    /// Blocks became visible: of one chain from the leaf to the root, or single ones. Counts as their
    /// first touch.
    fn insert(&mut self, blocks: &mut Blocks, chain: &[BlockIdx]);

    /// A lookup used the blocks it found, and would have used those it misses.
    fn request(&mut self, blocks: &mut Blocks, request: &Request<'_>);

    /// Blocks of a prefix, from the root to the leaf, serve a request that counted already: they are
    /// saved once more by whoever computed them, or handed to a lookup that waited for them.
    fn refresh(&mut self, blocks: &mut Blocks, chain: &[BlockIdx]);

    /// A block is about to leave, whatever the reason. It may be the current victim or any other.
    fn remove(&mut self, blocks: &mut Blocks, block: BlockIdx);

    /// A block lost its last child or its last pin.
    fn ripe(&mut self, blocks: &mut Blocks, block: BlockIdx, lost: Lost);

    /// Another tier has a copy of the block: among equals it leaves first. Nothing to do where no two
    /// blocks are equal.
    fn copied(&mut self, _: &mut Blocks, _: BlockIdx) {}

    /// The block that should leave next. Asking again without a change gives the same block.
    fn victim(&mut self, blocks: &mut Blocks) -> Option<BlockIdx>;

    /// Panics unless the policy tracks exactly these blocks.
    #[cfg(test)]
    fn check(&self, blocks: &Blocks, tracked: &[BlockIdx]);

    /// Bytes of the policy's own tables.
    fn bytes(&self) -> usize;
}

/// Makes a policy by its name in the settings. `id` tells the policies over one arena apart.
pub(crate) fn make(policy: EvictionPolicy, id: u32) -> Box<dyn Eviction> {
    match policy {
        EvictionPolicy::Lru => Box::new(lru::Lru::new(id)),
        EvictionPolicy::Gittins => Box::new(gittins::Gittins::new()),
    }
}
