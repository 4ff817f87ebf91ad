// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A shell that only keeps books: it applies actions to a map of records, and panics at what would
//! lose or mix bytes in a real one.

use crate::core::*;
use pegaflow_meta::BlockKey;
use std::collections::{BTreeMap, HashMap};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) generation: u32,
    pub(super) key: BlockKey,
    pub(super) parent: Option<BlockKey>,
    pub(super) namespace: NamespaceIndex,
    pub(super) group: pegaflow_meta::GroupId,
    pub(super) bytes: u64,
    pub(super) sealed: bool,
}

/// What would be in the control file.
#[derive(Debug, Default)]
pub(super) struct Shell {
    pub(super) records: BTreeMap<Place, Record>,
    pub(super) slabs: BTreeMap<(u8, u32), (u32, u64)>,
    pub(super) moves: Vec<(Place, Place)>,
    pub(super) tickets: HashMap<TicketId, (u32, bool)>,
    pub(super) expired: Vec<LeaseId>,
    /// Bytes of a block, by namespace.
    pub(super) block_bytes: HashMap<NamespaceIndex, u64>,
    unit_bytes: u64,
}

impl Shell {
    /// For pools whose units have `unit_bytes` bytes.
    pub(super) fn new(unit_bytes: u64) -> Self {
        Self {
            unit_bytes,
            ..Self::default()
        }
    }

    pub(super) fn apply(&mut self, actions: &mut Vec<Action>) {
        for action in actions.drain(..) {
            self.apply_one(action);
        }
    }

    fn apply_one(&mut self, action: Action) {
        match action {
            Action::AssignSlab {
                pool,
                slab,
                units,
                place_bytes,
            } => {
                let old = self.slabs.insert((pool, slab), (units, place_bytes));
                assert_eq!(old, None, "a slab was assigned twice");
            }
            Action::ReleaseSlab { pool, slab } => {
                let (units, _) = self.slabs.remove(&(pool, slab)).expect("it was assigned");
                let start = u64::from(slab) * self.unit_bytes;
                let range = Place::new(pool, start)
                    ..Place::new(pool, start + u64::from(units) * self.unit_bytes);
                assert_eq!(
                    self.records.range(range).next(),
                    None,
                    "a slab left with its records"
                );
            }
            Action::BeginRecord {
                place,
                generation,
                namespace,
                group,
                key,
                parent,
                ..
            } => {
                let bytes = self.block_bytes[&namespace];
                let record = Record {
                    generation,
                    key,
                    parent,
                    namespace,
                    group,
                    bytes,
                    sealed: false,
                };
                self.put(place, record);
            }
            Action::JoinRecord {
                place, generation, ..
            } => {
                let sealed = self.at(place, generation).sealed;
                assert!(!sealed, "a sealed block is joined");
            }
            Action::SealRecord {
                place,
                generation,
                complete,
                ..
            } => {
                let record = self.at(place, generation);
                assert!(!record.sealed, "sealed twice");
                record.sealed = complete;
            }
            Action::EraseRecord { place, generation } => {
                let moving = self.moves.iter().any(|(_, to)| *to == place);
                assert!(!moving, "a place that is being copied to is erased");
                if let Some(record) = self.records.remove(&place) {
                    assert_eq!(record.generation, generation, "another use of the place");
                }
            }
            Action::MoveBlock {
                from,
                to,
                bytes,
                key,
                generation,
            } => {
                let record = *self.at(from, generation);
                assert!(record.sealed && record.key == key && record.bytes == bytes);
                self.assert_free(to, bytes);
                self.moves.push((from, to));
            }
            Action::WaitOver { ticket } => {
                let last = self.tickets.get(&ticket);
                assert!(last.is_none_or(|(_, done)| !done), "its wait was over");
            }
            Action::Ticket {
                ticket,
                ready,
                done,
            } => {
                let before = self
                    .tickets
                    .insert(ticket, (ready, done))
                    .unwrap_or_default();
                assert!(
                    before.0 <= ready && !before.1,
                    "a ticket goes forward until it is done"
                );
            }
            Action::WriteExpired { lease, .. } => self.expired.push(lease),
        }
    }

    /// Copies a block as a real shell would, or fails to; returns what to tell the core.
    pub(super) fn finish_move(&mut self, which: usize, copied: bool) -> Option<Place> {
        if self.moves.is_empty() {
            return None;
        }
        let (from, to) = self.moves.swap_remove(which % self.moves.len());
        if copied {
            // The source may be erased by now: then its record is gone, and so is the copy.
            if let Some(record) = self.records.get(&from).copied() {
                self.put(to, record);
            }
        }
        Some(from)
    }

    fn put(&mut self, place: Place, record: Record) {
        self.assert_free(place, record.bytes);
        self.records.insert(place, record);
    }

    /// No record, and no copy under way, overlaps these bytes.
    fn assert_free(&self, place: Place, bytes: u64) {
        let end = Place::new(place.pool(), place.offset() + bytes);
        if let Some((at, record)) = self.records.range(..end).next_back() {
            let clear = at.pool() != place.pool() || at.offset() + record.bytes <= place.offset();
            assert!(clear, "{place:?} was handed out over {record:?} at {at:?}");
        }
        for (_, to) in &self.moves {
            assert!(
                *to < place || *to >= end,
                "{place:?} was handed out over a copy"
            );
        }
    }

    fn at(&mut self, place: Place, generation: u32) -> &mut Record {
        let record = self.records.get_mut(&place).expect("there is a record");
        assert_eq!(record.generation, generation, "another use of {place:?}");
        record
    }
}
