// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What a client asks and what it is answered.

use std::sync::Arc;
use std::time::Duration;

use pegaflow_mem::Slot;
use pegaflow_meta::{BlockKey, GroupId, NamespaceId};

use super::session::Session;
use super::ticket::Ticket;
use crate::core::{Answer, BlockRef, GroupKeys, LeaseId, LookupMode};
use crate::error::Result;
use crate::node::NamespaceLayout;

/// A namespace that is registered with the node, and will be again after it restarts.
#[derive(Debug, Clone)]
pub struct NamespaceHandle {
    pub(super) index: usize,
    pub(super) id: NamespaceId,
    pub(super) layout: Arc<NamespaceLayout>,
}

impl NamespaceHandle {
    /// Its fingerprint.
    #[must_use]
    pub fn id(&self) -> NamespaceId {
        self.id
    }

    /// What was registered.
    #[must_use]
    pub fn layout(&self) -> &NamespaceLayout {
        &self.layout
    }

    /// The key of the block which the engine calls `engine_hash`.
    #[must_use]
    pub fn key(&self, group: GroupId, engine_hash: &[u8]) -> BlockKey {
        BlockKey::derive(&self.id, group, engine_hash)
    }
}

/// What to look for.
#[derive(Debug, Clone, Copy)]
pub struct Lookup<'a> {
    /// Namespace of the keys.
    pub namespace: &'a NamespaceHandle,
    /// Cache group of the keys.
    pub group: GroupId,
    /// The keys, in the order of their prefix.
    pub keys: &'a [BlockKey],
    /// What counts as found.
    pub mode: LookupMode,
    /// Pin what is found for so long (at most as the node allows; zero for that); `None` only asks.
    pub lease: Option<Duration>,
    /// Give a ticket if blocks behind the ready ones are being written. Needs a lease.
    pub ticket: bool,
}

impl<'a> Lookup<'a> {
    /// The longest ready prefix, pinned as long as the node allows.
    #[must_use]
    pub fn prefix(namespace: &'a NamespaceHandle, group: GroupId, keys: &'a [BlockKey]) -> Self {
        Self {
            namespace,
            group,
            keys,
            mode: LookupMode::Prefix,
            lease: Some(Duration::ZERO),
            ticket: false,
        }
    }

    /// The same without pinning.
    #[must_use]
    pub fn without_lease(mut self) -> Self {
        self.lease = None;
        self
    }

    /// The same with a ticket for what is being written.
    #[must_use]
    pub fn with_ticket(mut self) -> Self {
        self.ticket = true;
        self
    }
}

/// What to look for in all groups of a hybrid model at once.
#[derive(Debug, Clone, Copy)]
pub struct HybridLookup<'a> {
    /// Namespace of the keys.
    pub namespace: &'a NamespaceHandle,
    /// The keys of every group of the namespace, in order.
    pub groups: &'a [GroupKeys<'a>],
    /// As in [`Lookup`].
    pub lease: Option<Duration>,
    /// Give a ticket if a longer prefix is being written, or lies on SSD. Needs a lease.
    pub ticket: bool,
}

impl<'a> HybridLookup<'a> {
    /// The longest ready prefix, pinned as long as the node allows.
    #[must_use]
    pub fn new(namespace: &'a NamespaceHandle, groups: &'a [GroupKeys<'a>]) -> Self {
        Self {
            namespace,
            groups,
            lease: Some(Duration::ZERO),
            ticket: false,
        }
    }

    /// The same with a ticket for what is being written, or lies on SSD.
    #[must_use]
    pub fn with_ticket(mut self) -> Self {
        self.ticket = true;
        self
    }
}

/// The right to read blocks, until it is released or its time is over. Not released by being
/// dropped: others may hold a copy.
#[derive(Debug, Clone)]
pub struct Lease {
    pub(super) id: LeaseId,
    pub(super) session: Arc<Session>,
}

impl Lease {
    /// Its number at the node.
    #[must_use]
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// The session that it belongs to.
    #[must_use]
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }
}

/// What a lookup found.
#[derive(Debug, Clone)]
pub struct Found {
    /// Pins the blocks; `None` if none was asked for, or nothing found.
    pub lease: Option<Lease>,
    /// The blocks that are ready: the first ones of a prefix, or some of a set.
    pub blocks: Vec<BlockRef>,
    /// Further ones that are being written.
    pub pending: u32,
    /// How many of these come from SSD.
    pub fetching: u32,
    /// Tells how far these are.
    pub ticket: Option<Ticket>,
    /// The session that answered.
    pub session: Arc<Session>,
}

/// What a lookup over all groups of a hybrid model found.
#[derive(Debug, Clone)]
pub struct HybridFound {
    /// Pins the blocks of all groups.
    pub lease: Option<Lease>,
    /// Tokens of the longest prefix that every group can start from.
    pub tokens: u64,
    /// What that would be if all that is being written, or with a ticket waited for, were ready.
    pub pending_tokens: u64,
    /// The blocks needed for `tokens`, group by group.
    pub groups: Vec<Vec<BlockRef>>,
    /// How many of the blocks waited for come from SSD.
    pub fetching: u32,
    /// Tells how many tokens the prefix has by now.
    pub ticket: Option<Ticket>,
    /// The session that answered.
    pub session: Arc<Session>,
}

/// What to make room for.
#[derive(Debug, Clone, Copy)]
pub struct Reserve<'a> {
    /// Namespace of the keys.
    pub namespace: &'a NamespaceHandle,
    /// Cache group of the keys.
    pub group: GroupId,
    /// The part of each block that will be written.
    pub slot: &'a Slot,
    /// The block before the first key in its prefix.
    pub parent: Option<BlockKey>,
    /// The blocks, in the order of their prefix.
    pub keys: &'a [BlockKey],
}

/// Places to write to. Seal or abort it; dropped without, its places come back when its time is
/// over and this process has ended.
#[derive(Debug)]
pub struct Reservation {
    pub(super) lease: Option<LeaseId>,
    /// For each key in order: a place, or why there is none.
    pub answers: Vec<Answer>,
    pub(super) session: Arc<Session>,
}

impl Reservation {
    /// How many keys were refused for want of room.
    #[must_use]
    pub fn out_of_budget(&self) -> usize {
        let refused = |answer: &&Answer| **answer == Answer::OutOfBudget;
        self.answers.iter().filter(refused).count()
    }

    /// Whether there is anything to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lease.is_none()
    }

    /// The session that it belongs to.
    #[must_use]
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// To be held while something is written to the places.
    ///
    /// # Errors
    /// [`Error::Stale`](crate::Error::Stale) if the session has ended.
    pub fn begin_copy(&self) -> Result<super::CopyGuard> {
        self.session.begin_copy()
    }
}
