// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The words that clients look at while they wait for blocks: one page or more of shared memory.
//!
//! Invariant: a word changes its generation before it serves another lookup, so an old ticket reads
//! as gone.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use pegaflow_mem::SharedMemory;

use crate::client::ticket::{GENERATION_MASK, encode};
use crate::control::words::Words;
use crate::core::{LeaseId, Now, TicketId};

/// Words in use end this long after their lease can have, in milliseconds.
const GRACE_MS: u64 = 1_000;

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    generation: u32,
    used: bool,
    lease: Option<LeaseId>,
    end: Now,
}

/// All tickets of a node.
#[derive(Debug)]
pub(super) struct Tickets {
    memory: Arc<SharedMemory>,
    entries: Vec<Entry>,
    free: Vec<u32>,
    ends: BTreeSet<(Now, u32)>,
    by_lease: HashMap<LeaseId, TicketId>,
}

impl Tickets {
    pub(super) fn new(memory: Arc<SharedMemory>, max: u32) -> Self {
        Self {
            memory,
            entries: vec![Entry::default(); max as usize],
            free: (0..max).rev().collect(),
            ends: BTreeSet::new(),
            by_lease: HashMap::new(),
        }
    }

    pub(super) fn memory(&self) -> &Arc<SharedMemory> {
        &self.memory
    }

    pub(super) fn in_use(&self) -> u64 {
        (self.entries.len() - self.free.len()) as u64
    }

    pub(super) fn max(&self) -> u32 {
        self.entries.len() as u32
    }

    /// A word for a lookup that may wait until `until`.
    pub(super) fn take(&mut self, until: Now) -> Option<TicketId> {
        let index = self.free.pop()?;
        let entry = &mut self.entries[index as usize];
        *entry = Entry {
            generation: (entry.generation + 1) & GENERATION_MASK,
            used: true,
            lease: None,
            end: Now(until.0.saturating_add(GRACE_MS)),
        };
        self.ends.insert((entry.end, index));
        Some(TicketId(
            u64::from(entry.generation) << 32 | u64::from(index),
        ))
    }

    /// The ticket waits for `lease`, which pins `ready` blocks by now.
    pub(super) fn bind(&mut self, ticket: TicketId, lease: LeaseId, ready: u32) {
        if let Some(index) = self.index(ticket) {
            self.entries[index as usize].lease = Some(lease);
            self.by_lease.insert(lease, ticket);
            self.put(ticket, ready, false);
        }
    }

    /// Says how far a ticket is.
    pub(super) fn put(&self, ticket: TicketId, ready: u32, done: bool) {
        if let Some(index) = self.index(ticket) {
            let generation = (ticket.0 >> 32) as u32;
            let word = encode(done, generation, ready);
            self.memory.store(index.into(), word);
        }
    }

    /// Gives a word back.
    pub(super) fn give(&mut self, ticket: TicketId) {
        let Some(index) = self.index(ticket) else {
            return;
        };
        self.memory.store(index.into(), 0);
        let entry = &mut self.entries[index as usize];
        entry.used = false;
        self.ends.remove(&(entry.end, index));
        if let Some(lease) = entry.lease.take() {
            self.by_lease.remove(&lease);
        }
        self.free.push(index);
    }

    /// Gives back the words whose leases must have ended by now.
    pub(super) fn expire(&mut self, now: Now) {
        while let Some((end, index)) = self.ends.first().copied() {
            if end > now {
                return;
            }
            let generation = self.entries[index as usize].generation;
            self.give(TicketId(u64::from(generation) << 32 | u64::from(index)));
        }
    }

    /// Whose ticket it is.
    pub(super) fn lease_of(&self, ticket: TicketId) -> Option<LeaseId> {
        self.entries[self.index(ticket)? as usize].lease
    }

    /// Ends the ticket of a lease that was released.
    pub(super) fn lease_ended(&mut self, lease: LeaseId) {
        if let Some(ticket) = self.by_lease.get(&lease).copied() {
            self.give(ticket);
        }
    }

    /// The ticket's word, if the ticket is still in use.
    fn index(&self, ticket: TicketId) -> Option<u32> {
        let index = ticket.0 as u32;
        let entry = self.entries.get(index as usize)?;
        (entry.used && u64::from(entry.generation) == ticket.0 >> 32).then_some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::ticket::{TicketState, decode};

    #[test]
    fn a_word_serves_one_lookup_at_a_time() {
        let memory = Arc::new(super::super::files::anonymous("t", 4096).expect("memory"));
        let mut tickets = Tickets::new(memory.clone(), 1);
        let state = |ticket: TicketId| decode(memory.load(0), (ticket.0 >> 32) as u32);
        let first = tickets.take(Now(10)).expect("there is one");
        assert_eq!(tickets.take(Now(10)), None, "there is only one");
        tickets.bind(first, LeaseId(7), 2);
        assert_eq!(state(first), TicketState::Waiting { ready: 2 });
        tickets.put(first, 5, true);
        assert_eq!(state(first), TicketState::Done { ready: 5 });
        tickets.lease_ended(LeaseId(7));
        assert_eq!(state(first), TicketState::Gone);
        let second = tickets.take(Now(10)).expect("given back");
        tickets.bind(second, LeaseId(8), 0);
        tickets.put(first, 9, true);
        assert_eq!(state(first), TicketState::Gone);
        assert_eq!(state(second), TicketState::Waiting { ready: 0 });
        tickets.expire(Now(10 + GRACE_MS - 1));
        assert_eq!(tickets.in_use(), 1);
        tickets.expire(Now(10 + GRACE_MS));
        assert_eq!((tickets.in_use(), state(second)), (0, TicketState::Gone));
        tickets.give(second);
        assert_eq!(tickets.free.len(), 1, "given back once");
    }
}
