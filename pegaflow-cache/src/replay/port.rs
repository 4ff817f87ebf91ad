// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A node as the replay sees it: the few calls of a scheduler and its workers.
//!
//! Small on purpose, so that the driver can be tested against a node that loses connections, forgets and lies.

use std::ops::Range;
use std::time::Duration;

use pegaflow_meta::BlockKey;

/// Why a call did not do what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PortError {
    /// The node is gone (killed, restarting): wait for it, then start over with the lookup.
    #[error("the node is unavailable: {0}")]
    Unavailable(String),
    /// What was looked up is gone meanwhile: start over with the lookup.
    #[error("the lease has ended: {0}")]
    Stale(String),
    /// The node has no room or time for this: go on without.
    #[error("refused: {0}")]
    Refused(String),
    /// A fault that a replay must not pass over.
    #[error("{0}")]
    Fatal(String),
}

/// What became of the blocks of one save, by number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Saved {
    /// Copied into the pool and sealed by this rank.
    pub written: u32,
    /// Already there, or being written by somebody else.
    pub had: u32,
    /// No room for them.
    pub refused: u32,
}

/// What a node says about itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Blocks of the replayed shape that the pool can hold.
    pub capacity_blocks: u64,
}

/// The node, shared by all threads of a replay.
pub trait Port: Send + Sync {
    /// A found prefix, held in the pool until released.
    type Held: Send;

    /// What the node says about itself.
    ///
    /// # Errors
    /// Any [`PortError`].
    fn facts(&self) -> Result<NodeFacts, PortError>;

    /// Finds and holds the longest resident prefix of `keys`; returns its length in blocks as well.
    ///
    /// # Errors
    /// Any [`PortError`].
    fn lookup(&self, keys: &[BlockKey]) -> Result<(u32, Self::Held), PortError>;

    /// Waits for blocks behind the found prefix that are on their way, if the node said that there are any; they
    /// are held as well from then on. Returns how many came.
    ///
    /// # Errors
    /// Any [`PortError`].
    fn wait(&self, held: &mut Self::Held, keys: &[BlockKey]) -> Result<u32, PortError>;

    /// Copies rank `rank`'s part of `blocks` (numbers within the prefix) into its engine blocks from `engine`
    /// on. Returns how many of them, from the first, have the bytes that were saved; the next one, if any, was
    /// found damaged and has been reported.
    ///
    /// # Errors
    /// Any [`PortError`].
    fn load(
        &self,
        rank: u32,
        held: &Self::Held,
        blocks: Range<u32>,
        engine: u32,
    ) -> Result<u32, PortError>;

    /// Gives up the prefix. Never fails: a node that is gone holds nothing.
    fn release(&self, held: Self::Held);

    /// Saves rank `rank`'s part of the blocks `keys`, which lie in its engine blocks from `engine` on, after
    /// the block `parent` of the same prompt.
    ///
    /// # Errors
    /// Any [`PortError`].
    fn save(
        &self,
        rank: u32,
        keys: &[BlockKey],
        parent: Option<BlockKey>,
        engine: u32,
    ) -> Result<Saved, PortError>;

    /// Waits until the node answers again.
    ///
    /// # Errors
    /// The last refusal, after `timeout`.
    fn reconnect(&self, timeout: Duration) -> Result<(), PortError>;
}
