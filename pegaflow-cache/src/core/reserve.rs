// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Reservations: for every key, whether it must be copied, and where to.
//!
//! Several ranks reserve different slots of one block and join the same place; a slot that somebody
//! has written, or is writing, is not given out again.
//!
//! Invariant: a request never evicts a block that it names.

use super::block::{BlockIdx, ClassIdx, NewBlock, State};
use super::error::{Error, within};
use super::evict::Lost;
use super::lease::Kind;
use super::life::seconds;
use super::lookup::BATCH;
use super::write::{Progress, Rect, SlotWrite, WriteIdx};
use super::{Action, Core, LeaseId, NamespaceIndex, Now, Place, SessionId};
use pegaflow_mem::Slot;
use pegaflow_meta::{BlockKey, GroupId};

/// What to reserve.
#[derive(Debug, Clone, Copy)]
pub struct ReserveRequest<'a> {
    /// Namespace of the keys.
    pub namespace: NamespaceIndex,
    /// Cache group of the keys.
    pub group: GroupId,
    /// The part of each block that the caller will write.
    pub slot: &'a Slot,
    /// The block before `keys[0]` in its prefix; none if that is the first.
    pub parent: Option<BlockKey>,
    /// Blocks in the order of the prefix: each is the parent of the next.
    pub keys: &'a [BlockKey],
}

/// The answer for one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Sealed, or this slot of it is written: nothing to copy.
    Have,
    /// Somebody else is writing this slot: nothing to copy, not readable yet.
    InFlight,
    /// Copy the slot into the block at this place, then seal.
    Place {
        /// Where the block (not the slot) begins.
        place: Place,
        /// The use of the place.
        generation: u32,
    },
    /// No room now: this block is not saved.
    OutOfBudget,
}

/// The answer to a reservation. Kept by the caller, so that its buffer serves many.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReserveReply {
    /// The right to write to the places; none if there are none. Its items are counted as the keys.
    pub lease: Option<LeaseId>,
    /// One answer a key.
    pub answers: Vec<Answer>,
    /// How many of them are places.
    pub places: u32,
}

/// What does not change from key to key.
struct Request {
    now: Now,
    session: SessionId,
    lease: LeaseId,
    class: ClassIdx,
    rect: Rect,
    slot_bytes: u64,
    near: u8,
}

/// What a request may still take.
struct Budget {
    /// Blocks that it may evict.
    evictions: u32,
    /// Slots that its session may still reserve.
    slots: u64,
}

impl Core {
    /// Reserves places for the blocks that are not there yet.
    ///
    /// Room is made by eviction. Once there is none, all further new keys are answered
    /// [`Answer::OutOfBudget`].
    ///
    /// # Errors
    /// [`Error::UnknownSession`], [`Error::UnknownNamespace`], [`Error::UnknownGroup`],
    /// [`Error::Bad`] for a slot outside the block, [`Error::DuplicateKey`], [`Error::ForeignKey`],
    /// [`Error::OverLimit`] for keys or leases.
    pub fn reserve(
        &mut self,
        now: Now,
        session: SessionId,
        request: &ReserveRequest<'_>,
        reply: &mut ReserveReply,
        actions: &mut Vec<Action>,
    ) -> Result<(), Error> {
        let class = self.reserve_places(now, session, request, reply, actions)?;
        self.count_reserve(class, reply);
        self.expect_again(class, reply.places);
        Ok(())
    }

    /// As [`reserve`](Self::reserve), without counting: also for blocks that come from another tier.
    pub(super) fn reserve_places(
        &mut self,
        now: Now,
        session: SessionId,
        request: &ReserveRequest<'_>,
        reply: &mut ReserveReply,
        actions: &mut Vec<Action>,
    ) -> Result<ClassIdx, Error> {
        let class = self.namespaces.class_of(request.namespace, request.group)?;
        within(
            "request_keys_max",
            request.keys.len(),
            self.settings.request_keys_max,
        )?;
        self.check_lease_room(session, true)?;
        let near = self.open(session)?.near;
        let shape = self.namespaces.class(class).shape.shape;
        if request.slot.validate(&shape).is_err() {
            return Err(Error::Bad {
                what: "slot",
                reason: "must lie inside the block, and not be empty",
            });
        }
        let mut known = self.find_known(class, request.keys)?;
        reply.answers.clear();
        (reply.lease, reply.places) = (None, 0);
        let deadline = Now(now.0.saturating_add(self.settings.write_lease_ttl_ms));
        let lease = self.leases.insert(session, Kind::Write, class, deadline);
        let slot_bytes = request.slot.bytes(&shape);
        let rect = Rect::new(request.slot);
        let fixed = Request {
            now,
            session,
            lease,
            class,
            rect,
            slot_bytes,
            near,
        };
        let items = self.reserve_all(&fixed, request, &known, reply, actions);
        known.clear();
        self.scratch.found = known;
        self.keep_lease(&fixed, items, reply);
        Ok(class)
    }

    /// The blocks of all keys that are in the index. Refuses what can never be reserved.
    fn find_known(&mut self, class: ClassIdx, keys: &[BlockKey]) -> Result<Vec<BlockIdx>, Error> {
        self.check_distinct(keys)?;
        let mut known = std::mem::take(&mut self.scratch.found);
        known.clear();
        let mut batch = [BlockIdx::NONE; BATCH];
        for keys in keys.chunks(BATCH) {
            self.probe_all(keys, &mut batch);
            let found = &batch[..keys.len()];
            let is_foreign =
                |idx: &BlockIdx| !idx.is_none() && self.blocks.get(*idx).class != class;
            if let Some(at) = found.iter().position(is_foreign) {
                known.clear();
                self.scratch.found = known;
                return Err(Error::ForeignKey(keys[at]));
            }
            known.extend_from_slice(found);
        }
        Ok(known)
    }

    pub(super) fn check_distinct(&mut self, keys: &[BlockKey]) -> Result<(), Error> {
        let size = (keys.len() * 2).next_power_of_two();
        let seen = &mut self.scratch.positions;
        seen.clear();
        seen.resize(size, u32::MAX);
        for (i, key) in keys.iter().enumerate() {
            let mut at = self.index.hash(key).low() & (size - 1);
            while let Some(other) = keys.get(seen[at] as usize) {
                if other == key {
                    return Err(Error::DuplicateKey(*key));
                }
                at = (at + 1) & (size - 1);
            }
            seen[at] = i as u32;
        }
        Ok(())
    }

    /// Answers every key, and returns the lease's items.
    fn reserve_all(
        &mut self,
        fixed: &Request,
        request: &ReserveRequest<'_>,
        known: &[BlockIdx],
        reply: &mut ReserveReply,
        actions: &mut Vec<Action>,
    ) -> Vec<BlockIdx> {
        let first_parent = request
            .parent
            .and_then(|key| self.find_in(fixed.class, &key));
        self.hold(fixed, known, first_parent);
        let mut items = self.leases.take_blocks(fixed.lease);
        let mut above = (first_parent, request.parent);
        let mut budget = Budget {
            evictions: self.settings.request_evictions_max,
            slots: self.slots_left(fixed),
        };
        for (key, known) in request.keys.iter().zip(known) {
            let (answer, idx) = match known.is_none() {
                false => self.reserve_known(fixed, *known, above.0, &budget, actions),
                true => self.reserve_new(fixed, *key, above, &mut budget, actions),
            };
            reply.answers.push(answer);
            let is_place = matches!(answer, Answer::Place { .. });
            reply.places += u32::from(is_place);
            budget.slots -= u64::from(is_place);
            items.push(idx.filter(|_| is_place).unwrap_or(BlockIdx::NONE));
            above = (idx, Some(*key));
        }
        self.unhold(known, first_parent);
        self.charge(fixed, reply.places);
        items
    }

    /// Pins what the request names while it makes room, and touches it.
    fn hold(&mut self, fixed: &Request, known: &[BlockIdx], parent: Option<BlockIdx>) {
        let touched_s = seconds(fixed.now);
        let mut sealed = std::mem::take(&mut self.scratch.blocks);
        for idx in parent.iter().chain(known).filter(|idx| !idx.is_none()) {
            let block = self.blocks.get_mut(*idx);
            block.pins += 1;
            block.touched_s = touched_s;
            if block.state == State::Sealed {
                sealed.push(*idx);
            }
        }
        let tenant = self.namespaces.class(fixed.class).tenant;
        let tenant = self.tenants.get_mut(tenant);
        tenant.demoted.forget(&sealed);
        tenant.policy.refresh(&mut self.blocks, &sealed);
        sealed.clear();
        self.scratch.blocks = sealed;
    }

    fn unhold(&mut self, known: &[BlockIdx], parent: Option<BlockIdx>) {
        for idx in parent.iter().chain(known).filter(|idx| !idx.is_none()) {
            let block = self.blocks.get_mut(*idx);
            block.pins -= 1;
            self.ripen(*idx, Lost::Pin);
        }
    }

    fn reserve_known(
        &mut self,
        fixed: &Request,
        idx: BlockIdx,
        above: Option<BlockIdx>,
        budget: &Budget,
        actions: &mut Vec<Action>,
    ) -> (Answer, Option<BlockIdx>) {
        self.adopt(idx, above);
        let block = *self.blocks.get(idx);
        if block.state == State::Sealed {
            return (Answer::Have, Some(idx));
        }
        let write = self.writes.get_mut(WriteIdx(block.policy[0]));
        if let Some(other) = write.overlaps(fixed.rect) {
            let done = other.progress == Progress::Done && other.rect.covers(fixed.rect);
            return (
                if done { Answer::Have } else { Answer::InFlight },
                Some(idx),
            );
        }
        if write.slots.len() >= self.settings.block_slots_max as usize || budget.slots == 0 {
            return (Answer::OutOfBudget, Some(idx));
        }
        let (place, generation, session) = (block.place, block.generation, fixed.session);
        let write = self.writes.get_mut(WriteIdx(block.policy[0]));
        if write.slots.iter().all(|slot| slot.session != session) {
            actions.push(Action::JoinRecord {
                place,
                generation,
                session,
            });
        }
        write.slots.push(fixed.slot_write());
        write.since = fixed.now;
        (Answer::Place { place, generation }, Some(idx))
    }

    /// Gives a block without a parent the one that the request names. Only leaves are adopted: so
    /// parents never form a ring.
    fn adopt(&mut self, idx: BlockIdx, above: Option<BlockIdx>) {
        let Some(above) = above.filter(|above| *above != idx) else {
            return;
        };
        if self.blocks.get(idx).children == 0 && self.blocks.parent(idx).is_none() {
            self.blocks.link(idx, above);
        }
    }

    fn reserve_new(
        &mut self,
        fixed: &Request,
        key: BlockKey,
        above: (Option<BlockIdx>, Option<BlockKey>),
        budget: &mut Budget,
        actions: &mut Vec<Action>,
    ) -> (Answer, Option<BlockIdx>) {
        let refused = (Answer::OutOfBudget, None);
        let Budget { evictions, slots } = budget;
        if *evictions == 0 || *slots == 0 {
            return refused;
        }
        let Some(place) = self.make_room(fixed.now, fixed.class, fixed.near, evictions, actions)
        else {
            *evictions = 0;
            return refused;
        };
        let (class, session) = (fixed.class, fixed.session);
        let idx = self.blocks.insert(NewBlock { key, place, class });
        let idx = idx.expect("`make_room` leaves room in the arena");
        self.places.set_owner(place, idx);
        self.index.insert(self.index.hash(&key), idx);
        if let Some(above) = above.0 {
            self.blocks.link(idx, above);
        }
        let class = self.namespaces.class(class);
        let (namespace, group) = (class.namespace, class.group);
        let write = self.writes.insert(fixed.now, idx, &class.shape.shape);
        self.writes.get_mut(write).slots.push(fixed.slot_write());
        let block = self.blocks.get_mut(idx);
        block.policy[0] = write.0;
        let (generation, parent) = (block.generation, above.1);
        actions.push(Action::BeginRecord {
            place,
            generation,
            namespace,
            group,
            session,
            key,
            parent,
        });
        (Answer::Place { place, generation }, Some(idx))
    }

    /// Slots that the session's limit still allows.
    fn slots_left(&self, fixed: &Request) -> u64 {
        let reserved = self.sessions.get(&fixed.session);
        let reserved = reserved.map_or(u64::MAX, |session| session.reserved_bytes);
        let limit = self.settings.session_reserved_bytes_max;
        limit.saturating_sub(reserved) / fixed.slot_bytes
    }

    /// Books slots on the session.
    fn charge(&mut self, fixed: &Request, slots: u32) {
        if let Some(session) = self.sessions.get_mut(&fixed.session) {
            session.reserved_bytes += fixed.slot_bytes * u64::from(slots);
        }
    }

    pub(super) fn uncharge(&mut self, session: SessionId, bytes: u64) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.reserved_bytes -= bytes;
        }
    }

    /// Keeps the lease if it holds anything.
    fn keep_lease(&mut self, fixed: &Request, items: Vec<BlockIdx>, reply: &mut ReserveReply) {
        if let Some(session) = self.sessions.get_mut(&fixed.session) {
            session.leases += 1;
        }
        if reply.places == 0 {
            self.end_lease(fixed.lease, items);
        } else {
            reply.lease = Some(fixed.lease);
            if let Some(lease) = self.leases.get_mut(fixed.lease) {
                (lease.blocks, lease.open) = (items, reply.places);
                lease.item_bytes = fixed.slot_bytes;
            }
        }
    }

    fn count_reserve(&mut self, class: ClassIdx, reply: &ReserveReply) {
        let refused = reply
            .answers
            .iter()
            .filter(|a| **a == Answer::OutOfBudget)
            .count() as u64;
        let all = reply.answers.len() as u64;
        let counters = &mut self.tenant_of(class).counters;
        counters.reserves += 1;
        counters.reserved_blocks += u64::from(reply.places);
        counters.refused_blocks += refused;
        counters.deduplicated_blocks += all - refused - u64::from(reply.places);
    }
}

impl Request {
    fn slot_write(&self) -> SlotWrite {
        let Self {
            rect,
            session,
            lease,
            ..
        } = *self;
        SlotWrite {
            rect,
            session,
            lease,
            progress: Progress::Writing,
        }
    }
}
