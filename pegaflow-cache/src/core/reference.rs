// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What the core should do, said as simply as possible: lists that are searched from end to end, no
//! index, no log, no arena. Tests drive it and the core side by side.
//!
//! It covers one namespace with one group and one tenant, in a pool of equal places, and predicts
//! every answer exactly, evictions included.

use super::tests::rig::rank;
use super::{LookupMode, SealReply};
use pegaflow_mem::Slot;
use std::collections::BTreeMap;

pub(crate) type Key = u64;
pub(crate) type Uid = u64;
pub(crate) type LeaseNo = usize;

pub(crate) const WRITE_TTL_MS: u64 = 100;
pub(crate) const READ_TTL_MS: u64 = 70;
pub(crate) const PARTIAL_TTL_MS: u64 = 50;

/// The slots a worker may hold: everything, or one of two halves.
pub(crate) fn slot(which: u8) -> Slot {
    match which {
        0 => rank(0, 1),
        1 => rank(0, 2),
        _ => rank(1, 2),
    }
}

fn halves(which: u8) -> &'static [u8] {
    match which {
        0 => &[1, 2],
        1 => &[1],
        _ => &[2],
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Writing,
    Sealed,
    Detached,
    Abandoned,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Writing,
    Done,
    Quarantined,
}

#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) key: Key,
    pub(crate) state: State,
    slots: Vec<(u8, LeaseNo, Progress)>,
    parent: Option<Uid>,
    pins: u32,
    touched: u64,
    since: u64,
}

impl Block {
    fn is_quiet(&self) -> bool {
        self.slots
            .iter()
            .all(|(_, _, progress)| *progress == Progress::Done)
    }

    fn is_covered(&self) -> bool {
        let done = self
            .slots
            .iter()
            .filter(|(_, _, progress)| *progress == Progress::Done);
        done.flat_map(|(which, _, _)| halves(*which)).count() == 2
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Held {
    Read(Vec<Uid>),
    Write(Vec<Option<Uid>>),
    Quarantine(Vec<Option<Uid>>),
}

#[derive(Debug, Clone)]
pub(crate) struct Lease {
    pub(crate) client: usize,
    pub(crate) held: Held,
    until: u64,
}

/// An answer for one key of a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reserved {
    Have,
    InFlight,
    Place,
    Refused,
}

/// A client's session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    Open,
    Closed,
    Gone,
}

/// The whole node.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) capacity: usize,
    pub(crate) now: u64,
    pub(crate) blocks: BTreeMap<Uid, Block>,
    pub(crate) leases: BTreeMap<LeaseNo, Lease>,
    pub(crate) clients: [Client; 3],
    /// Sessions opened so far by each client.
    pub(crate) lives: [u64; 3],
    pub(crate) granted: LeaseNo,
    clock: u64,
    uids: Uid,
}

impl Model {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            now: 0,
            blocks: BTreeMap::new(),
            leases: BTreeMap::new(),
            clients: [Client::Open; 3],
            lives: [0; 3],
            granted: 0,
            clock: 0,
            uids: 0,
        }
    }

    pub(crate) fn is_open(&self, client: usize) -> bool {
        self.clients[client] == Client::Open
    }

    fn indexed(&self, uid: Uid) -> bool {
        let block = self.blocks.get(&uid);
        block.is_some_and(|block| matches!(block.state, State::Writing | State::Sealed))
    }

    fn find(&self, key: Key) -> Option<Uid> {
        let found = self
            .blocks
            .iter()
            .find(|(uid, b)| b.key == key && self.indexed(**uid));
        found.map(|(uid, _)| *uid)
    }

    fn block(&mut self, uid: Uid) -> &mut Block {
        self.blocks
            .get_mut(&uid)
            .expect("the model keeps what it refers to")
    }

    fn is_parent(&self, uid: Uid) -> bool {
        self.blocks
            .iter()
            .any(|(child, b)| b.parent == Some(uid) && self.indexed(*child))
    }

    fn touch(&mut self, uids: &[Uid]) {
        for uid in uids.iter().rev() {
            self.clock += 1;
            self.block(*uid).touched = self.clock;
        }
    }

    fn grant(&mut self, client: usize, held: Held, ttl_ms: u64) -> LeaseNo {
        self.granted += 1;
        let until = self.now + ttl_ms;
        self.leases.insert(
            self.granted,
            Lease {
                client,
                held,
                until,
            },
        );
        self.granted
    }

    /// How many of the keys are ready, how many pending, and the lease if one was given.
    pub(crate) fn lookup(
        &mut self,
        client: usize,
        keys: &[Key],
        mode: LookupMode,
        lease: bool,
    ) -> (Vec<u32>, u32, Option<LeaseNo>) {
        let (mut found, mut at, mut pending) = (vec![], vec![], 0);
        for (i, key) in (0..).zip(keys) {
            let uid = self.find(*key);
            let sealed = uid.is_some_and(|uid| self.blocks[&uid].state == State::Sealed);
            match (uid, mode) {
                (None, LookupMode::Prefix) => break,
                (None, LookupMode::Set) => {}
                (Some(_), LookupMode::Prefix) if pending > 0 => pending += 1,
                (Some(uid), _) if sealed => {
                    found.push(uid);
                    at.push(i);
                }
                (Some(_), _) => pending += 1,
            }
        }
        if !lease || found.is_empty() {
            return (at, pending, None);
        }
        found.iter().for_each(|uid| self.block(*uid).pins += 1);
        self.touch(&found);
        (
            at,
            pending,
            Some(self.grant(client, Held::Read(found), READ_TTL_MS)),
        )
    }

    pub(crate) fn reserve(
        &mut self,
        client: usize,
        which: u8,
        parent: Option<Key>,
        keys: &[Key],
    ) -> (Vec<Reserved>, Option<LeaseNo>) {
        let known: Vec<_> = keys.iter().map(|key| self.find(*key)).collect();
        let first = parent.and_then(|key| self.find(key));
        let named: Vec<Uid> = first
            .iter()
            .chain(known.iter().flatten())
            .copied()
            .collect();
        named.iter().for_each(|uid| self.block(*uid).pins += 1);
        let sealed = |uid: &Uid| self.blocks[uid].state == State::Sealed;
        let touched: Vec<_> = named.iter().copied().filter(sealed).collect();
        self.touch(&touched);
        let lease = self.granted + 1;
        let (mut above, mut full, mut answers, mut items) = (first, false, vec![], vec![]);
        for (key, known) in keys.iter().zip(known) {
            let (answer, uid) = match known {
                Some(uid) => (self.reserve_known(uid, which, lease, above), Some(uid)),
                None if full => (Reserved::Refused, None),
                None => self.reserve_new(*key, which, lease, above),
            };
            full |= answer == Reserved::Refused && known.is_none();
            answers.push(answer);
            items.push(uid.filter(|_| answer == Reserved::Place));
            above = uid;
        }
        named.iter().for_each(|uid| self.block(*uid).pins -= 1);
        let any = items.iter().any(Option::is_some);
        let lease = any.then(|| self.grant(client, Held::Write(items), WRITE_TTL_MS));
        (answers, lease)
    }

    fn reserve_known(
        &mut self,
        uid: Uid,
        which: u8,
        lease: LeaseNo,
        above: Option<Uid>,
    ) -> Reserved {
        let orphan = self.blocks[&uid]
            .parent
            .is_none_or(|parent| !self.indexed(parent));
        if above.is_some() && above != Some(uid) && orphan && !self.is_parent(uid) {
            self.block(uid).parent = above;
        }
        if self.blocks[&uid].state == State::Sealed {
            return Reserved::Have;
        }
        let wanted = halves(which);
        let now = self.now;
        let block = self.block(uid);
        let meets =
            |taken: &&(u8, LeaseNo, Progress)| halves(taken.0).iter().any(|h| wanted.contains(h));
        if let Some((taken, _, progress)) = block.slots.iter().find(meets) {
            let covers = wanted.iter().all(|half| halves(*taken).contains(half));
            let done = *progress == Progress::Done && covers;
            return if done {
                Reserved::Have
            } else {
                Reserved::InFlight
            };
        }
        block.slots.push((which, lease, Progress::Writing));
        block.since = now;
        Reserved::Place
    }

    fn reserve_new(
        &mut self,
        key: Key,
        which: u8,
        lease: LeaseNo,
        above: Option<Uid>,
    ) -> (Reserved, Option<Uid>) {
        if self.blocks.len() >= self.capacity {
            let leaf = |(uid, b): &(&Uid, &Block)| {
                b.state == State::Sealed && b.pins == 0 && !self.is_parent(**uid)
            };
            let oldest = self
                .blocks
                .iter()
                .filter(leaf)
                .min_by_key(|(_, b)| b.touched);
            let Some(victim) = oldest.map(|(uid, _)| *uid) else {
                return (Reserved::Refused, None);
            };
            self.blocks.remove(&victim);
        }
        self.uids += 1;
        let slots = vec![(which, lease, Progress::Writing)];
        let (state, since) = (State::Writing, self.now);
        let block = Block {
            key,
            state,
            slots,
            parent: above,
            pins: 0,
            touched: 0,
            since,
        };
        self.blocks.insert(self.uids, block);
        (Reserved::Place, Some(self.uids))
    }

    fn unpin(&mut self, uid: Uid) {
        let block = self.block(uid);
        block.pins -= 1;
        if block.pins == 0 && block.state == State::Detached {
            self.blocks.remove(&uid);
        }
    }

    /// False if it is no read lease of the client.
    pub(crate) fn release(&mut self, client: usize, no: LeaseNo) -> bool {
        let held = self.leases.get(&no).filter(|lease| lease.client == client);
        let Some(Held::Read(uids)) = held.map(|lease| lease.held.clone()) else {
            return false;
        };
        self.leases.remove(&no);
        uids.iter().for_each(|uid| self.unpin(*uid));
        true
    }

    /// The items of a write lease that are not finished; none if it is not one of the client's.
    pub(crate) fn open_items(&self, client: usize, no: LeaseNo) -> Option<Vec<u32>> {
        let lease = self
            .leases
            .get(&no)
            .filter(|lease| lease.client == client)?;
        let (Held::Write(items) | Held::Quarantine(items)) = &lease.held else {
            return None;
        };
        let open = (0..).zip(items).filter(|(_, item)| item.is_some());
        Some(open.map(|(at, _)| at).collect())
    }

    fn items(&mut self, no: LeaseNo) -> &mut Vec<Option<Uid>> {
        match &mut self.leases.get_mut(&no).expect("a lease that lives").held {
            Held::Write(items) | Held::Quarantine(items) => items,
            Held::Read(_) => unreachable!("a write lease was asked for"),
        }
    }

    pub(crate) fn seal(&mut self, no: LeaseNo, wanted: &[u32]) -> SealReply {
        let mut reply = SealReply::default();
        let mut visible = vec![];
        for item in wanted {
            let uid = self.items(no)[*item as usize].take().expect("an open item");
            let now = self.now;
            let block = self.block(uid);
            block.since = now;
            for slot in &mut block.slots {
                if slot.1 == no {
                    slot.2 = Progress::Done;
                }
            }
            if block.state == State::Abandoned {
                reply.dropped += 1;
                self.free_if_quiet(uid);
            } else if block.is_covered() {
                reply.completed += 1;
                visible.push(uid);
            } else {
                reply.partial += 1;
            }
        }
        visible
            .iter()
            .for_each(|uid| self.block(*uid).state = State::Sealed);
        self.touch(&visible);
        self.settle(no);
        reply
    }

    /// The lease ends with its last item, and lives anew before.
    fn settle(&mut self, no: LeaseNo) {
        let until = self.now + WRITE_TTL_MS;
        if self.items(no).iter().all(Option::is_none) {
            self.leases.remove(&no);
        } else if let Some(lease) = self.leases.get_mut(&no)
            && matches!(lease.held, Held::Write(_))
        {
            lease.until = until;
        }
    }

    fn free_if_quiet(&mut self, uid: Uid) {
        if self.blocks[&uid].is_quiet() {
            self.blocks.remove(&uid);
        }
    }

    pub(crate) fn abort(&mut self, no: LeaseNo, quiesced: bool) {
        if quiesced {
            self.end_write(no)
        } else {
            self.quarantine(no)
        }
    }

    fn end_write(&mut self, no: LeaseNo) {
        for uid in std::mem::take(self.items(no)).into_iter().flatten() {
            let now = self.now;
            let block = self.block(uid);
            block
                .slots
                .retain(|(_, lease, p)| *lease != no || *p == Progress::Done);
            block.since = now;
            if block.state == State::Abandoned {
                self.free_if_quiet(uid);
            } else if block.slots.is_empty() {
                self.blocks.remove(&uid);
            }
        }
        self.leases.remove(&no);
    }

    fn quarantine(&mut self, no: LeaseNo) {
        let items = std::mem::take(self.items(no));
        for uid in items.iter().flatten() {
            let block = self.block(*uid);
            block.state = State::Abandoned;
            for slot in &mut block.slots {
                if slot.1 == no && slot.2 == Progress::Writing {
                    slot.2 = Progress::Quarantined;
                }
            }
        }
        let lease = self.leases.get_mut(&no).expect("it was just there");
        (lease.held, lease.until) = (Held::Quarantine(items), u64::MAX);
    }

    /// Whether there is a visible block of that key, which is then dropped.
    pub(crate) fn corrupt(&mut self, key: Key) -> bool {
        let Some(uid) = self
            .find(key)
            .filter(|uid| self.blocks[uid].state == State::Sealed)
        else {
            return false;
        };
        let block = self.block(uid);
        block.state = State::Detached;
        if block.pins == 0 {
            self.blocks.remove(&uid);
        }
        true
    }

    fn leases_of(&self, client: usize) -> Vec<LeaseNo> {
        let own = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.client == client);
        own.map(|(no, _)| *no).collect()
    }

    pub(crate) fn close(&mut self, client: usize) {
        for no in self.leases_of(client) {
            match self.leases[&no].held {
                Held::Read(_) => drop(self.release(client, no)),
                Held::Write(_) => self.quarantine(no),
                Held::Quarantine(_) => {}
            }
        }
        self.clients[client] = Client::Closed;
    }

    pub(crate) fn gone(&mut self, client: usize) {
        if self.is_open(client) {
            self.close(client);
        }
        self.leases_of(client)
            .into_iter()
            .for_each(|no| self.end_write(no));
        self.clients[client] = Client::Gone;
    }

    pub(crate) fn open(&mut self, client: usize) {
        self.clients[client] = Client::Open;
        self.lives[client] += 1;
    }

    pub(crate) fn tick(&mut self, ms: u64) {
        self.now += ms;
        let due: Vec<_> = self
            .leases
            .iter()
            .filter(|(_, l)| l.until <= self.now)
            .collect();
        for (no, client) in due
            .iter()
            .map(|(no, lease)| (**no, lease.client))
            .collect::<Vec<_>>()
        {
            if !self.release(client, no) {
                self.quarantine(no);
            }
        }
        let now = self.now;
        self.blocks.retain(|_, b| {
            b.state != State::Writing || !b.is_quiet() || b.since + PARTIAL_TTL_MS > now
        });
    }

    /// Every place that is in use, visible or not.
    pub(crate) fn used(&self) -> usize {
        self.blocks.len()
    }

    pub(crate) fn count(&self, state: State) -> usize {
        self.blocks
            .values()
            .filter(|block| block.state == state)
            .count()
    }
}
