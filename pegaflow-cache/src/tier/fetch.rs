// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What is on its way from another tier, and who waits for it.
//!
//! Each block is fetched once, however many lookups wait for it. A fetch that nobody waits for any
//! more is taken back. Room for a long prefix is made in steps: blocks that have none yet are promised.
//!
//! Invariant: a fetch is known from [`begin`](Fetches::begin) until [`end`](Fetches::end) has handed
//! its job back, so its place is given up exactly once.

use std::collections::{HashMap, VecDeque};

use pegaflow_meta::{BlockKey, GroupId};

use super::share::Tag;
use super::turns::Turns;
use super::window::Window;
use crate::core::{LeaseId, NamespaceIndex, Place, TicketId};

/// Blocks that room is made for at once, under the node's lock; and that wait for the drive with room
/// already made, so that it is not idle.
pub const STEP: usize = 64;

/// What a fetch is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Somebody waits for it.
    Lookup,
    /// Somebody will: computing is no alternative yet, and others go first.
    Prefetch,
}

/// Names one fetch. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FetchId(pub u64);

/// One block to fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// Its name.
    pub key: BlockKey,
    /// Namespace of the block.
    pub namespace: NamespaceIndex,
    /// Cache group of the block.
    pub group: GroupId,
    /// Its tenant.
    pub tag: Tag,
    /// Where it goes.
    pub place: Place,
    /// The write lease that holds the place.
    pub lease: LeaseId,
    /// Its number in the lease.
    pub item: u32,
    /// Bytes of the block.
    pub bytes: u64,
    /// Checksums that come with it.
    pub checksums: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Queued,
    Reading,
    TakenBack,
}

#[derive(Debug)]
struct Fetch {
    job: Job,
    /// The lookup in whose turn it is read.
    line: TicketId,
    stage: Stage,
    /// Lookups that wait for it.
    wanted: u32,
}

/// Blocks of a lookup that will be fetched, and have no place yet.
#[derive(Debug)]
pub struct Promise {
    /// The lookup's lease.
    pub lease: LeaseId,
    /// Namespace of the blocks.
    pub namespace: NamespaceIndex,
    /// Cache group of the blocks.
    pub group: GroupId,
    /// The block before the next one.
    pub parent: BlockKey,
    /// The blocks, in the order of their prefix.
    pub keys: VecDeque<BlockKey>,
    /// Bytes of each.
    pub block_bytes: u64,
}

/// Blocks to make room for next.
#[derive(Debug)]
pub struct Step {
    /// The lease of the lookup that waits for them.
    pub lease: LeaseId,
    /// Namespace of the blocks.
    pub namespace: NamespaceIndex,
    /// Cache group of the blocks.
    pub group: GroupId,
    /// The block before the first.
    pub parent: BlockKey,
    /// The blocks, in the order of their prefix.
    pub keys: Vec<BlockKey>,
}

/// What the shell must do for fetches that nobody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakeBack {
    /// It was not begun: give its place up.
    Drop(Job),
    /// It is being read: ask the source for it back; [`Fetches::end`] follows.
    Cancel(FetchId),
}

/// All fetches under way.
#[derive(Debug)]
pub struct Fetches {
    window: Window,
    table: HashMap<FetchId, Fetch>,
    by_key: HashMap<BlockKey, FetchId>,
    wants: HashMap<TicketId, Vec<FetchId>>,
    queue: Turns<FetchId>,
    promises: HashMap<TicketId, Promise>,
    /// Lookups with promises, in turn.
    promised: VecDeque<TicketId>,
    bytes: u64,
    next_id: u64,
}

impl Fetches {
    /// Nothing is under way. At most `window_bytes_max` bytes are read at once, or one block.
    #[must_use]
    pub fn new(window_bytes_max: u64) -> Self {
        Self {
            window: Window::new(window_bytes_max),
            table: HashMap::new(),
            by_key: HashMap::new(),
            wants: HashMap::new(),
            queue: Turns::default(),
            promises: HashMap::new(),
            promised: VecDeque::new(),
            bytes: 0,
            next_id: 0,
        }
    }

    /// Bytes of the blocks under way, and of those promised.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Blocks under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Whether a block of this name is under way.
    #[must_use]
    pub fn has(&self, key: &BlockKey) -> bool {
        self.by_key.contains_key(key)
    }

    /// Takes a block to fetch that is not under way, in the turn of the lookup behind `line`; `fresh`:
    /// that has had nothing yet. Nobody waits for it yet.
    pub fn begin(&mut self, job: Job, line: TicketId, fresh: bool) -> FetchId {
        let id = FetchId(self.next_id);
        self.next_id += 1;
        self.bytes += job.bytes;
        let known = self.by_key.insert(job.key, id);
        debug_assert!(known.is_none(), "{job:?} is under way");
        let stage = Stage::Queued;
        self.table.insert(
            id,
            Fetch {
                job,
                line,
                stage,
                wanted: 0,
            },
        );
        self.queue.push(line, id, job.bytes, fresh);
        id
    }

    /// The lookup behind `ticket` waits for these blocks as well, once there is room for them.
    pub fn promise(&mut self, ticket: TicketId, promise: Promise) {
        self.bytes += promise.keys.len() as u64 * promise.block_bytes;
        let known = self.promises.insert(ticket, promise);
        debug_assert!(known.is_none(), "{ticket:?} waits for two lookups");
        self.promised.push_back(ticket);
    }

    /// Whose promised blocks should get room next: the first in turn that has little left to read.
    #[must_use]
    pub fn next_step(&self) -> Option<TicketId> {
        let mut in_turn = self.promised.iter();
        in_turn
            .find(|ticket| self.queue.len_of(**ticket) < STEP)
            .copied()
    }

    /// Takes the next blocks that are promised to `ticket`, if it still waits for any.
    pub fn step(&mut self, ticket: TicketId) -> Option<Step> {
        let promise = self.promises.get_mut(&ticket)?;
        let keys: Vec<_> = promise.keys.drain(..STEP.min(promise.keys.len())).collect();
        let parent = promise.parent;
        promise.parent = keys.last().copied().unwrap_or(parent);
        self.bytes -= keys.len() as u64 * promise.block_bytes;
        let step = Step {
            lease: promise.lease,
            namespace: promise.namespace,
            group: promise.group,
            parent,
            keys,
        };
        let over = promise.keys.is_empty();
        self.promised.retain(|other| *other != ticket);
        match over {
            true => drop(self.promises.remove(&ticket)),
            false => self.promised.push_back(ticket),
        }
        Some(step)
    }

    /// Takes back what is still promised to `ticket`: how many blocks.
    pub fn take_back_promise(&mut self, ticket: TicketId) -> u32 {
        let Some(promise) = self.promises.remove(&ticket) else {
            return 0;
        };
        self.promised.retain(|other| *other != ticket);
        self.bytes -= promise.keys.len() as u64 * promise.block_bytes;
        promise.keys.len() as u32
    }

    /// The lookup behind `ticket` waits for those of `keys` that are under way; how many these are.
    pub fn want(&mut self, ticket: TicketId, keys: &[BlockKey]) -> u32 {
        if self.table.is_empty() {
            return 0;
        }
        let ids = keys.iter().filter_map(|key| self.by_key.get(key).copied());
        let ids: Vec<_> = ids.collect();
        for id in &ids {
            if let Some(fetch) = self.table.get_mut(id) {
                fetch.wanted += 1;
            }
        }
        let count = ids.len() as u32;
        if count > 0 {
            self.wants.entry(ticket).or_default().extend(ids);
        }
        count
    }

    /// The lookup behind `ticket` waits no more. Pushes what nobody else waits for.
    pub fn unwant(&mut self, ticket: TicketId, out: &mut Vec<TakeBack>) {
        self.take_back_promise(ticket);
        for id in self.wants.remove(&ticket).unwrap_or_default() {
            let Some(fetch) = self.table.get_mut(&id) else {
                continue;
            };
            fetch.wanted -= 1;
            if fetch.wanted > 0 {
                continue;
            }
            match fetch.stage {
                Stage::Queued => out.extend(self.forget(id).map(TakeBack::Drop)),
                Stage::Reading => {
                    fetch.stage = Stage::TakenBack;
                    out.push(TakeBack::Cancel(id));
                }
                Stage::TakenBack => {}
            }
        }
    }

    /// Bytes of the blocks being read.
    #[must_use]
    pub fn reading_bytes(&self) -> u64 {
        self.window.with_drive()
    }

    /// The next block to read, if the drive should get another now.
    pub fn take(&mut self) -> Option<(FetchId, Job)> {
        while let Some(id) = self.queue.front() {
            let Some(fetch) = self.table.get_mut(&id) else {
                self.queue.pop(false);
                continue;
            };
            if !self.window.ask(fetch.job.bytes) {
                return None;
            }
            self.queue.pop(true);
            fetch.stage = Stage::Reading;
            return Some((id, fetch.job));
        }
        None
    }

    /// A read that was taken back has ended without bytes. True: somebody wants the block after all,
    /// and it is queued again.
    pub fn retry(&mut self, id: FetchId) -> bool {
        let Some(fetch) = self.table.get_mut(&id).filter(|fetch| fetch.wanted > 0) else {
            return false;
        };
        fetch.stage = Stage::Queued;
        let (line, bytes) = (fetch.line, fetch.job.bytes);
        self.window.answered(bytes, true);
        self.queue.push(line, id, bytes, false);
        true
    }

    /// A read is over, whatever came of it.
    pub fn end(&mut self, id: FetchId) -> Option<Job> {
        self.forget(id)
    }

    fn forget(&mut self, id: FetchId) -> Option<Job> {
        let Fetch { job, stage, .. } = self.table.remove(&id)?;
        self.by_key.remove(&job.key);
        self.bytes -= job.bytes;
        if stage != Stage::Queued {
            self.window.answered(job.bytes, self.bytes > 0);
        }
        Some(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn job(key: u8) -> Job {
        Job {
            key: BlockKey([key; 16]),
            namespace: NamespaceIndex(0),
            group: GroupId(0),
            tag: Tag::of(""),
            place: Place::new(0, u64::from(key) << 12),
            lease: LeaseId(1),
            item: key.into(),
            bytes: 10,
            checksums: 1,
        }
    }

    const LINE: TicketId = TicketId(99);

    fn keys(keys: &[u8]) -> Vec<BlockKey> {
        keys.iter().map(|key| BlockKey([*key; 16])).collect()
    }

    #[test]
    fn a_thousand_lookups_cause_one_fetch_and_the_last_takes_it_back() {
        let mut fetches = Fetches::new(1 << 20);
        let id = fetches.begin(job(1), LINE, true);
        assert!((0..1000).all(|n| fetches.want(TicketId(n), &keys(&[1, 9])) == 1));
        assert_eq!(fetches.take(), Some((id, job(1))));
        assert_eq!(fetches.take(), None);
        let mut out = vec![];
        (0..999).for_each(|n| fetches.unwant(TicketId(n), &mut out));
        assert_eq!(out, []);
        fetches.unwant(TicketId(999), &mut out);
        assert_eq!(out, [TakeBack::Cancel(id)]);
        assert!(!fetches.retry(id), "nobody came meanwhile");
        assert_eq!((fetches.end(id), fetches.end(id)), (Some(job(1)), None));
        assert_eq!((fetches.bytes(), fetches.len()), (0, 0));
    }

    #[test]
    fn a_fetch_taken_back_too_early_goes_again() {
        let mut fetches = Fetches::new(1 << 20);
        let id = fetches.begin(job(1), LINE, true);
        fetches.want(TicketId(1), &keys(&[1]));
        fetches.take();
        let mut out = vec![];
        fetches.unwant(TicketId(1), &mut out);
        fetches.want(TicketId(2), &keys(&[1]));
        assert!(fetches.retry(id));
        assert_eq!(fetches.take(), Some((id, job(1))));
    }

    fn promise(blocks: u8) -> Promise {
        Promise {
            lease: LeaseId(1),
            namespace: NamespaceIndex(0),
            group: GroupId(0),
            parent: BlockKey([0; 16]),
            keys: (1..=blocks).map(|key| BlockKey([key; 16])).collect(),
            block_bytes: 10,
        }
    }

    #[test]
    fn room_is_made_in_steps_by_turns_while_little_waits() {
        let mut fetches = Fetches::new(1 << 20);
        let (a, b) = (TicketId(1), TicketId(2));
        fetches.promise(a, promise(100));
        fetches.promise(b, promise(3));
        assert_eq!((fetches.bytes(), fetches.next_step()), (1030, Some(a)));
        let step = fetches.step(a).expect("it waits");
        assert_eq!((step.parent, step.keys.len()), (BlockKey([0; 16]), STEP));
        for key in step.keys {
            fetches.begin(job(key.0[0]), a, false);
        }
        assert_eq!((fetches.bytes(), fetches.next_step()), (1030, Some(b)));
        assert_eq!(fetches.step(b).map(|step| step.keys.len()), Some(3));
        assert_eq!(fetches.next_step(), None, "enough of the first waits");
        assert!(fetches.take().is_some());
        assert_eq!(fetches.next_step(), Some(a));
        let step = fetches.step(a).expect("it waits");
        assert_eq!((step.parent, step.keys.len()), (BlockKey([64; 16]), 36));
        assert!(fetches.step(a).is_none(), "that was all");
        fetches.promise(a, promise(7));
        fetches.unwant(a, &mut vec![]);
        assert_eq!(fetches.take_back_promise(a), 0, "nobody waits any more");
        fetches.promise(a, promise(7));
        assert_eq!((fetches.take_back_promise(a), fetches.bytes()), (7, 640));
    }

    #[derive(Debug, Clone)]
    enum Op {
        Begin(u8),
        Want(u64, Vec<u8>),
        Unwant(u64),
        Next,
        End(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0u8..12).prop_map(Op::Begin),
            (0u64..6, prop::collection::vec(0u8..12, 0..6)).prop_map(|(t, k)| Op::Want(t, k)),
            (0u64..6).prop_map(Op::Unwant),
            Just(Op::Next),
            (0usize..12).prop_map(Op::End),
        ]
    }

    proptest! {
        /// Against a plain list of what is under way: every job comes back exactly once, bytes add up.
        #[test]
        fn every_job_comes_back_once(ops in prop::collection::vec(op(), 0..200)) {
            let (mut fetches, mut out) = (Fetches::new(1 << 20), vec![]);
            let mut under_way: BTreeMap<FetchId, (u8, bool)> = BTreeMap::new();
            for op in ops {
                match op {
                    Op::Begin(key) if under_way.values().all(|(k, _)| *k != key) => {
                        under_way.insert(fetches.begin(job(key), LINE, true), (key, false));
                    }
                    Op::Begin(_) => {}
                    Op::Want(ticket, wanted) => {
                        fetches.want(TicketId(ticket), &keys(&wanted));
                    }
                    Op::Unwant(ticket) => {
                        fetches.unwant(TicketId(ticket), &mut out);
                        for back in out.drain(..) {
                            match back {
                                TakeBack::Drop(job) => {
                                    let queued = under_way.iter().find(|(_, (k, _))| job.key.0[0] == *k);
                                    let (id, (_, reading)) = queued.map(|(i, v)| (*i, *v)).expect("under way");
                                    prop_assert!(!reading);
                                    under_way.remove(&id);
                                }
                                TakeBack::Cancel(id) => prop_assert!(under_way[&id].1),
                            }
                        }
                    }
                    Op::Next => {
                        let queued = under_way.iter().find(|(_, (_, reading))| !reading).map(|(id, _)| *id);
                        let next = fetches.take();
                        prop_assert_eq!(next.map(|(id, _)| id), queued);
                        if let Some(id) = queued {
                            under_way.get_mut(&id).expect("found").1 = true;
                        }
                    }
                    Op::End(n) => {
                        let reading = under_way.iter().filter(|(_, (_, r))| *r).map(|(id, _)| *id).nth(n);
                        if let Some(id) = reading {
                            let key = under_way.remove(&id).expect("found").0;
                            prop_assert_eq!(fetches.end(id), Some(job(key)));
                        }
                    }
                }
                prop_assert_eq!(fetches.len(), under_way.len());
                prop_assert_eq!(fetches.bytes(), 10 * under_way.len() as u64);
                let reading = under_way.values().filter(|(_, reading)| *reading).count();
                prop_assert_eq!(fetches.reading_bytes(), 10 * reading as u64);
            }
        }
    }
}
