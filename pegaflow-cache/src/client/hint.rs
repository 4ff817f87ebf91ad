// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What an engine or an agent can tell a node of blocks to come or to go.

use std::time::Duration;

use pegaflow_meta::{BlockKey, GroupId};

use super::types::{Lease, NamespaceHandle};
use crate::rpc::proto as pb;
use crate::rpc::proto::hint_request::Hint as Wire;

/// The blocks that a hint is about.
#[derive(Debug, Clone, Copy)]
pub struct HintBlocks<'a> {
    /// Namespace of the keys.
    pub namespace: &'a NamespaceHandle,
    /// Cache group of the keys.
    pub group: GroupId,
    /// The keys, in the order of their prefix.
    pub keys: &'a [BlockKey],
}

/// A hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hint {
    /// Keep blocks in the pool for so long, at most as the node allows; zero for that. They are let go
    /// when [`Hinted::lease`] is released, and when the session ends.
    Pin {
        /// How long.
        ttl: Duration,
    },
    /// They are of no more use: they leave before others, unless they are used again.
    Demote,
    /// They will be asked for: bring what is on SSD into the pool.
    Prefetch,
    /// This branch of a tree of prefixes is over: from the last key up, blocks leave the pool until one
    /// that another branch shares. Copies on SSD stay until they leave by age.
    ReleaseBranch,
}

impl Hint {
    pub(super) fn to_wire(self) -> Wire {
        match self {
            Self::Pin { ttl } => Wire::Pin(pb::Pin {
                ttl_ms: super::ttl_ms(Some(ttl)),
            }),
            Self::Demote => Wire::Demote(pb::Demote {}),
            Self::Prefetch => Wire::Prefetch(pb::Prefetch {}),
            Self::ReleaseBranch => Wire::ReleaseBranch(pb::ReleaseBranch {}),
        }
    }
}

/// What became of the blocks of a hint: each is counted once.
#[derive(Debug, Clone)]
pub struct Hinted {
    /// Of a pin: ends it before its time. `None` if nothing is pinned.
    pub lease: Option<Lease>,
    /// Blocks that it was done to; of a prefetch, those in the pool already.
    pub done: u32,
    /// Of a prefetch: blocks on their way.
    pub coming: u32,
    /// Blocks that are not in the pool; of a prefetch, that cannot be brought there.
    pub absent: u32,
    /// Blocks that it was not done to: over the tenant's budget of pins, or shared by another branch.
    pub refused: u32,
}
