// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Leases: who may touch which places, and until when.
//!
//! Knows nothing of blocks' states: it keeps what a lease holds, and finds the leases that are over.
//!
//! Invariant: every lease is in the table exactly as long as it holds a pin or a slot.

use super::block::{BlockIdx, ClassIdx};
use super::points::Reach;
use super::types::{LeaseId, Now, SessionId};
use std::collections::BTreeSet;

/// What a lease holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Pins on sealed blocks.
    Read,
    /// Slots of blocks being written, by item.
    Write,
    /// As `Write`, but its session may do nothing with it but say that it is quiet.
    Quarantine,
}

/// One lease.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) session: SessionId,
    pub(crate) kind: Kind,
    pub(crate) class: ClassIdx,
    deadline: Now,
    /// Reading: the pinned blocks. Writing: by item, none where there is nothing (left) to write.
    pub(crate) blocks: Vec<BlockIdx>,
    /// Writing: items that are not finished.
    pub(crate) open: u32,
    /// Writing: bytes of the slot of one item.
    pub(crate) item_bytes: u64,
    /// Reading: the ticket that will add blocks, in the table of waits.
    pub(crate) wait: Option<u32>,
    /// Reading for a hint: bytes booked as pinned on the tenant.
    pub(crate) pinned_bytes: u64,
    /// Reading: which prefix of a hybrid model its blocks make, where they come by and by.
    pub(crate) reach: Option<Box<Reach>>,
    number: u32,
    used: bool,
}

impl Lease {
    /// How far a reader is: the blocks it has, of a hybrid lookup the tokens they make.
    pub(crate) fn progress(&self) -> u32 {
        match &self.reach {
            Some(reach) => u32::try_from(reach.tokens(self.blocks.len())).unwrap_or(u32::MAX),
            None => self.blocks.len() as u32,
        }
    }
}

/// All leases of a node. Entries are reused with their buffers.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    table: Vec<Lease>,
    free: Vec<u32>,
    deadlines: BTreeSet<(Now, LeaseId)>,
}

/// Buffers above this many entries are given back to the system when a lease ends.
const KEEP_MAX: usize = 4096;

impl Leases {
    pub(crate) fn len(&self) -> usize {
        self.table.len() - self.free.len()
    }

    /// A new lease without blocks.
    pub(crate) fn insert(
        &mut self,
        session: SessionId,
        kind: Kind,
        class: ClassIdx,
        deadline: Now,
    ) -> LeaseId {
        let at = self.free.pop().unwrap_or(self.table.len() as u32);
        if at as usize == self.table.len() {
            let blocks = Vec::new();
            self.table.push(Lease {
                session,
                kind,
                class,
                deadline,
                blocks,
                open: 0,
                item_bytes: 0,
                wait: None,
                pinned_bytes: 0,
                reach: None,
                number: 0,
                used: false,
            });
        }
        let lease = &mut self.table[at as usize];
        lease.number = lease.number.wrapping_add(1);
        (lease.session, lease.kind, lease.class) = (session, kind, class);
        (lease.deadline, lease.open, lease.wait, lease.used) = (deadline, 0, None, true);
        let id = LeaseId(u64::from(lease.number) << 32 | u64::from(at));
        self.deadlines.insert((deadline, id));
        id
    }

    pub(crate) fn get(&self, id: LeaseId) -> Option<&Lease> {
        let lease = self.table.get(id.0 as u32 as usize)?;
        (lease.used && u64::from(lease.number) == id.0 >> 32).then_some(lease)
    }

    pub(crate) fn get_mut(&mut self, id: LeaseId) -> Option<&mut Lease> {
        let lease = self.table.get_mut(id.0 as u32 as usize)?;
        (lease.used && u64::from(lease.number) == id.0 >> 32).then_some(lease)
    }

    /// Takes the blocks out of a lease, to walk them while the core changes. Give them back by
    /// [`remove`](Self::remove) or [`put_blocks`](Self::put_blocks).
    pub(crate) fn take_blocks(&mut self, id: LeaseId) -> Vec<BlockIdx> {
        self.get_mut(id)
            .map(|lease| std::mem::take(&mut lease.blocks))
            .unwrap_or_default()
    }

    pub(crate) fn put_blocks(&mut self, id: LeaseId, blocks: Vec<BlockIdx>) {
        if let Some(lease) = self.get_mut(id) {
            lease.blocks = blocks;
        }
    }

    /// Sets a lease's deadline anew.
    pub(crate) fn renew(&mut self, id: LeaseId, deadline: Now) {
        let Some(lease) = self.get_mut(id) else {
            return;
        };
        let old = std::mem::replace(&mut lease.deadline, deadline);
        self.deadlines.remove(&(old, id));
        self.deadlines.insert((deadline, id));
    }

    /// Takes a lease's deadline away: it lives until it is ended.
    pub(crate) fn stop_clock(&mut self, id: LeaseId) {
        let Some(lease) = self.get(id) else { return };
        let entry = (lease.deadline, id);
        self.deadlines.remove(&entry);
    }

    /// Ends a lease; `buffer` is its blocks' vector, kept for another.
    pub(crate) fn remove(&mut self, id: LeaseId, mut buffer: Vec<BlockIdx>) {
        self.stop_clock(id);
        if let Some(lease) = self.get_mut(id) {
            buffer.clear();
            buffer.shrink_to(KEEP_MAX);
            lease.blocks = buffer;
            (lease.used, lease.reach, lease.pinned_bytes) = (false, None, 0);
            self.free.push(id.0 as u32);
        }
    }

    /// A lease whose time is over.
    pub(crate) fn next_expired(&self, now: Now) -> Option<LeaseId> {
        self.deadlines
            .first()
            .filter(|(deadline, _)| *deadline <= now)
            .map(|(_, id)| *id)
    }

    /// The leases of one session. Walks the whole table: for the end of sessions.
    pub(crate) fn of_session(&self, session: SessionId) -> Vec<LeaseId> {
        let used = self
            .table
            .iter()
            .enumerate()
            .filter(|(_, l)| l.used && l.session == session);
        used.map(|(at, l)| LeaseId(u64::from(l.number) << 32 | at as u64))
            .collect()
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.table.iter().filter(|lease| lease.used)
    }
}
