// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Published eviction policies as simulators, and the offline optimum: what a node's policy is compared with.
//!
//! As in [`lru`](super::lru), a hit is a *prefix* hit and after a request all its blocks are in the cache. They know
//! nothing of prefixes otherwise: that is how they are published. They share nothing with the node's own policies.

mod arc;
mod optimum;
mod s3_fifo;
mod sieve;
#[cfg(test)]
mod tests;

pub use arc::Arc;
pub use optimum::optimum_hits;
pub use s3_fifo::S3Fifo;
pub use sieve::Sieve;

use super::lru::PrefixLru;

/// A simulated cache of blocks.
pub trait Simulated {
    /// Serves one request, given from the first block to the last: returns its prefix hits, then has its blocks in the
    /// cache as far as they fit.
    fn request(&mut self, blocks: &[u64]) -> usize;
}

impl Simulated for PrefixLru {
    fn request(&mut self, blocks: &[u64]) -> usize {
        Self::request(self, blocks)
    }
}
