// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The thread that writes sealed blocks from the pools to the drive.
//!
//! Invariant: a block under way is held in its pool until the drive has let go of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use pegaflow_mem::{PoolBuf, SharedMemory};
use pegaflow_ssd::{BlockStore, Buf, Done, Key, Put, Stored, Ticket};

use super::trailer::{Trailer, run_bytes};
use super::{Late, Tier};
use crate::control::record::checksums_of;
use crate::node::Shared;
use crate::node::state::State;
use crate::tier::spill::Candidate;

/// How long it sleeps at most.
const PATIENCE: Duration = Duration::from_secs(1);
/// Blocks handed to the store at once.
const BATCH: usize = 16;

/// The thread's state.
pub(super) struct Writer {
    shared: Arc<Shared>,
    tier: Arc<Tier>,
    writing: HashMap<u64, (Candidate, Ticket<Stored>)>,
    next: u64,
}

/// What is written for one block.
struct Held {
    block: Candidate,
    memory: Arc<SharedMemory>,
    trailer: Buf,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, tier: Arc<Tier>) -> Self {
        Self {
            shared,
            tier,
            writing: HashMap::new(),
            next: 0,
        }
    }

    pub(super) fn run(mut self) {
        let inbox = self.tier.writer.clone();
        while let Some(answered) = inbox.wait(PATIENCE) {
            let ended: Vec<_> = answered
                .into_iter()
                .filter_map(|id| self.poll(id))
                .collect();
            self.end_all(ended);
            self.begin();
        }
    }

    fn begin(&mut self) {
        loop {
            if self.tier.breaker.lock().is_open(self.shared.now()) {
                return;
            }
            let mut spill = self.tier.spill.lock();
            let next: Vec<_> = std::iter::from_fn(|| spill.take()).take(BATCH).collect();
            drop(spill);
            if next.is_empty() {
                return;
            }
            let held = self.hold(self.absent(next));
            let held = self.within_quota(held);
            self.put(held);
        }
    }

    /// Those of the blocks that the drive does not have.
    fn absent(&self, blocks: Vec<Candidate>) -> Vec<Candidate> {
        let names = blocks.iter().map(|block| Key(block.tag.name(block.key)));
        let keys: Vec<_> = names.collect();
        let found = self.tier.store.find(&keys);
        let (absent, known): (Vec<_>, Vec<_>) = blocks
            .into_iter()
            .zip(found)
            .partition(|(_, found)| found.is_none());
        if !known.is_empty() {
            self.shared.with(|state, _| {
                let keys = known.iter().map(|(block, _)| &block.key);
                keys.for_each(|key| state.core.note_copy(key));
            });
        }
        let counter = &self.tier.counters.spill_known;
        self.forget(&known, |(block, _)| block.bytes, counter);
        absent.into_iter().map(|(block, _)| block).collect()
    }

    /// Books blocks off that are not written.
    fn forget<T>(
        &self,
        blocks: &[T],
        bytes: impl Fn(&T) -> u64,
        counter: &std::sync::atomic::AtomicU64,
    ) {
        counter.fetch_add(blocks.len() as u64, Relaxed);
        let mut spill = self.tier.spill.lock();
        blocks.iter().for_each(|block| spill.done(bytes(block)));
    }

    /// Holds the blocks that the pools still have.
    fn hold(&self, blocks: Vec<Candidate>) -> Vec<Held> {
        if blocks.is_empty() {
            return vec![];
        }
        let (mut held, mut gone) = (vec![], vec![]);
        self.shared.with(|state, _| {
            for block in blocks {
                match hold(state, &block) {
                    Some(one) => held.push(one),
                    None => gone.push(block),
                }
            }
        });
        self.forget(&gone, |block| block.bytes, &self.tier.counters.spill_gone);
        held
    }

    /// Those that their tenants' quotas have room for. What must leave for them is removed.
    fn within_quota(&self, held: Vec<Held>) -> Vec<Held> {
        let mut leave = vec![];
        let mut shares = self.tier.shares.lock();
        let fits = |one: &Held| shares.begin(one.block.tag, on_drive(&one.block), &mut leave);
        let (within, over) = held.into_iter().partition::<Vec<_>, _>(fits);
        drop(shares);
        for name in leave {
            if let Err(error) = self.tier.store.remove(Key(name)) {
                tracing::debug!(%error, "a block stays on SSD over its tenant's quota for now");
            }
        }
        if !over.is_empty() {
            let counter = &self.tier.counters.spill_over_quota;
            self.forget(&over, |one| one.block.bytes, counter);
            self.shared.with(|state, _| {
                for one in &over {
                    state.core.end_spill(one.block.place, &mut state.actions);
                }
                state.apply(None);
            });
        }
        within
    }

    fn put(&mut self, held: Vec<Held>) {
        let mut refused = vec![];
        for Held {
            block,
            memory,
            trailer,
        } in held
        {
            let run = PoolBuf::new(memory, block.place.offset(), run_bytes(block.bytes));
            let Some(run) = run.ok().and_then(|run| Buf::of_pool(run).ok()) else {
                debug_assert!(false, "a place is whole pages of its pool");
                continue;
            };
            let put = Put {
                if_absent: true,
                ..Put::scattered(Key(block.tag.name(block.key)), vec![run, trailer])
            };
            match self.tier.store.put(put) {
                Ok(ticket) => self.wait_for(block, ticket),
                Err(back) => refused.push((
                    block,
                    Done {
                        bufs: back.bufs,
                        result: Err(back.error),
                    },
                )),
            }
        }
        self.end_all(refused);
    }

    fn wait_for(&mut self, block: Candidate, ticket: Ticket<Stored>) {
        let id = self.next;
        self.next += 1;
        self.writing.insert(id, (block, ticket));
        if let Some(ended) = self.poll(id) {
            self.end_all(vec![ended]);
        }
    }

    fn poll(&mut self, id: u64) -> Option<(Candidate, Done<Stored>)> {
        let (_, ticket) = self.writing.get_mut(&id)?;
        let done = self.tier.writer.poll(id, ticket)?;
        let (block, _) = self.writing.remove(&id)?;
        Some((block, done))
    }

    fn end_all(&self, ended: Vec<(Candidate, Done<Stored>)>) {
        if ended.is_empty() {
            return;
        }
        let (mut free, mut copied) = (vec![], vec![]);
        for (block, done) in ended {
            let stored = matches!(done.result, Ok(Stored::Stored));
            let bytes = on_drive(&block);
            self.tier.shares.lock().end(block.tag, bytes, stored);
            if let Ok(Stored::Stored | Stored::Present) = done.result {
                copied.push(block.key);
            }
            self.count(&block, &done);
            self.tier.spill.lock().done(block.bytes);
            match done.bufs.is_empty() {
                true => drop(self.tier.late.lock().insert(block.place, Late::Spill)),
                false => free.push(block.place),
            }
        }
        self.shared.with(|state, _| {
            copied.iter().for_each(|key| state.core.note_copy(key));
            for place in free {
                state.core.end_spill(place, &mut state.actions);
            }
            state.apply(None);
        });
    }

    fn count(&self, block: &Candidate, done: &Done<Stored>) {
        let counters = &self.tier.counters;
        match &done.result {
            Ok(Stored::Stored) => {
                self.tier.breaker.lock().success();
                counters.spilled_blocks.fetch_add(1, Relaxed);
                counters.spilled_bytes.fetch_add(block.bytes, Relaxed);
            }
            Ok(Stored::Present) => {
                counters.spill_known.fetch_add(1, Relaxed);
            }
            Ok(Stored::Declined) => {
                counters.spill_declined.fetch_add(1, Relaxed);
            }
            Err(error) => {
                counters.spill_failed.fetch_add(1, Relaxed);
                if self.tier.breaker.lock().failure(self.shared.now()) {
                    tracing::warn!(%error, "the SSD tier keeps failing and is left alone for a while");
                }
            }
        }
    }
}

/// Bytes of a block on the drive as a quota counts them beforehand; its trailer comes on top.
fn on_drive(block: &Candidate) -> u64 {
    run_bytes(block.bytes)
}

/// Holds one block and reads what its record says; none if the pool has it no more.
fn hold(state: &mut State, block: &Candidate) -> Option<Held> {
    let namespace = state.core.namespace_id(block.namespace)?;
    let pool = &state.pools[usize::from(block.place.pool())];
    let at = pool.record_at(block.place.offset())?;
    let sums = checksums_of(&*pool.control, at, block.key, block.generation)?;
    let memory = pool.data.clone();
    let trailer = Trailer {
        bytes: block.bytes,
        key: block.key,
        namespace,
        group: block.group,
    };
    let trailer = trailer.encode(&sums);
    let held = state.core.begin_spill(block.place, block.generation);
    held.then_some(Held {
        block: *block,
        memory,
        trailer,
    })
}
