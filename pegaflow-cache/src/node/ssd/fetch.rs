// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The thread that reads blocks from the drive into the pools, and makes them visible.
//!
//! Invariant: the place of a fetch is sealed or given up exactly once, after the drive has let go of
//! it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use pegaflow_mem::PoolBuf;
use pegaflow_mem::checksum::checksum;
use pegaflow_ssd::{BlockStore, Buf, Done, Error, Fetched, Get, Key, Ticket};

use super::trailer::{Trailer, run_bytes, trailer_bytes};
use super::{Fetching, Late, Tier};
use crate::core::{LeaseId, Now};
use crate::metrics;
use crate::node::Shared;
use crate::node::layout::GroupLayout;
use crate::node::state::{State, Sums, WriteLease};
use crate::tier::fetch::{FetchId, Job, TakeBack};

/// How often what the drive holds too long is looked at.
const PATIENCE: Duration = Duration::from_millis(100);
/// Blocks checked before they are made visible.
const CHECKED: usize = 4;
/// Reads handed to the store at once.
const BATCH: usize = 64;

/// The thread's state.
pub(super) struct Reader {
    shared: Arc<Shared>,
    tier: Arc<Tier>,
    reading: HashMap<FetchId, Reading>,
}

struct Reading {
    ticket: Ticket<Fetched>,
    since: Instant,
    ahead_bytes: u64,
    bytes: u64,
}

/// How a fetch ended.
enum End {
    /// The bytes are the block's.
    Good(Vec<u64>),
    /// There are none, or not the right ones: the place is free.
    Bad,
    /// The drive still holds the place.
    Late,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, tier: Arc<Tier>) -> Self {
        Self {
            shared,
            tier,
            reading: HashMap::new(),
        }
    }

    pub(super) fn run(mut self) {
        let inbox = self.tier.reader.clone();
        while let Some(answered) = inbox.wait(PATIENCE) {
            self.take_back();
            // Taking an answer checks its bytes: the first blocks need not wait for the rest.
            for ids in answered.chunks(CHECKED) {
                let ended = ids.iter().filter_map(|id| self.poll(FetchId(*id)));
                let ended = ended.collect();
                self.end_all(ended);
                self.begin();
                self.step();
            }
            self.begin();
            while !inbox.has_answers() && self.step() {}
            self.reap_late();
        }
    }

    /// Makes room for some blocks that lookups wait for, and begins their fetch. Whether there were any.
    fn step(&mut self) -> bool {
        let wanted = self.tier.fetches.lock().fetches.next_step().is_some();
        if wanted {
            self.shared.with(|state, now| self.tier.step(state, now));
            self.begin();
        }
        wanted
    }

    fn take_back(&mut self) {
        let backs = std::mem::take(&mut self.tier.fetches.lock().take_backs);
        let mut dropped = vec![];
        for back in backs {
            self.tier.counters.fetch_cancelled.fetch_add(1, Relaxed);
            match back {
                TakeBack::Drop(job) => dropped.push((job, End::Bad)),
                TakeBack::Cancel(id) => {
                    if let Some(reading) = self.reading.get(&id) {
                        reading.ticket.cancel();
                    }
                }
            }
        }
        self.apply(dropped);
    }

    /// Hands queued fetches to the store.
    fn begin(&mut self) {
        loop {
            let (next, mut ahead_bytes) = self.next_jobs();
            if next.is_empty() {
                return;
            }
            let (jobs, gets) = self.gets(next);
            let mut refused = vec![];
            for ((id, job), answer) in jobs.into_iter().zip(self.tier.store.get_batch(gets)) {
                match answer {
                    Ok(ticket) => self.wait_for(id, &job, ticket, ahead_bytes),
                    Err(back) => refused.push((
                        id,
                        Done {
                            bufs: back.bufs,
                            result: Err(back.error),
                        },
                    )),
                }
                ahead_bytes += job.bytes;
            }
            self.end_all(refused);
        }
    }

    /// What to read next, and the bytes that are being read before it.
    fn next_jobs(&self) -> (Vec<(FetchId, Job)>, u64) {
        let mut fetching = self.tier.fetches.lock();
        let reading = fetching.fetches.reading_bytes();
        let next = std::iter::from_fn(|| fetching.fetches.take()).take(BATCH);
        (next.collect(), reading)
    }

    /// What to ask the store for. The pool's place and a trailer are filled in one transfer. Takes no
    /// lock of the node: a lookup may have begun the fetch and hold it.
    fn gets(&self, next: Vec<(FetchId, Job)>) -> (Vec<(FetchId, Job)>, Vec<Get>) {
        let get = |(id, job): (FetchId, Job)| {
            let memory = self.tier.pools[usize::from(job.place.pool())].clone();
            let run = PoolBuf::new(memory, job.place.offset(), run_bytes(job.bytes));
            let run = run.ok().and_then(|run| Buf::of_pool(run).ok());
            debug_assert!(run.is_some(), "a place is whole pages of its pool");
            let trailer = self.tier.trailer_buf(trailer_bytes(job.checksums));
            let get = Get {
                key: Key(job.tag.name(job.key)),
                bufs: vec![run?, trailer],
                meta: false,
            };
            Some(((id, job), get))
        };
        next.into_iter().filter_map(get).unzip()
    }

    fn wait_for(&mut self, id: FetchId, job: &Job, ticket: Ticket<Fetched>, ahead_bytes: u64) {
        #[expect(clippy::disallowed_methods, reason = "the shell measures")]
        let since = Instant::now();
        let bytes = job.bytes;
        self.reading.insert(
            id,
            Reading {
                ticket,
                since,
                ahead_bytes,
                bytes,
            },
        );
        if let Some(ended) = self.poll(id) {
            self.end_all(vec![ended]);
        }
    }

    fn poll(&mut self, id: FetchId) -> Option<(FetchId, Done<Fetched>)> {
        let reading = self.reading.get_mut(&id)?;
        let done = self.tier.reader.poll(id.0, &mut reading.ticket)?;
        let reading = self.reading.remove(&id)?;
        if matches!(done.result, Ok(Fetched::Hit { .. })) {
            let took = reading.since.elapsed();
            metrics::SSD_FETCH_SECONDS.histogram(&[]).record(took);
            let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            let mut estimate = self.tier.estimate.lock();
            estimate.observe(reading.bytes, reading.ahead_bytes, us);
        }
        Some((id, done))
    }

    fn end_all(&mut self, ended: Vec<(FetchId, Done<Fetched>)>) {
        let mut ends = vec![];
        for (id, done) in ended {
            let mut fetching = self.tier.fetches.lock();
            let Fetching { fetches, .. } = &mut *fetching;
            if matches!(done.result, Err(Error::Cancelled)) && fetches.retry(id) {
                self.tier.reader.ring();
                continue;
            }
            let job = fetches.end(id);
            drop(fetching);
            ends.extend(job.map(|job| (job, self.judge(&job, done))));
        }
        self.apply(ends);
    }

    /// What the store's answer means, counted.
    fn judge(&self, job: &Job, done: Done<Fetched>) -> End {
        let (tier, counters) = (&self.tier, &self.tier.counters);
        let Done { bufs, result } = done;
        match result {
            Ok(Fetched::Hit { .. }) => {
                tier.breaker.lock().success();
                return self.verify(job, &bufs);
            }
            Ok(Fetched::Miss) => counters.fetch_missing.fetch_add(1, Relaxed),
            Err(Error::Cancelled) => 0,
            Err(Error::Corrupt { at, .. }) => {
                tracing::error!(key = %job.key, group = job.group.0, place = ?job.place, tier = "ssd", at, "block dropped: the drive returned bytes that are not what was written");
                counters.fetch_corrupt.fetch_add(1, Relaxed)
            }
            Err(error) => {
                let now = self.shared.now();
                if tier.breaker.lock().failure(now) {
                    tracing::warn!(%error, "the SSD tier keeps failing and is left alone for a while");
                }
                counters.fetch_failed.fetch_add(1, Relaxed)
            }
        };
        if bufs.is_empty() {
            tier.late.lock().insert(job.place, Late::Fetch(*job));
            return End::Late;
        }
        End::Bad
    }

    /// Whether the bytes are those of the block that was asked for.
    fn verify(&self, job: &Job, bufs: &[Buf]) -> End {
        let counters = &self.tier.counters;
        let known = self.shared.with(|state, _| {
            let layout = layout_of(state, job)?.clone();
            Some((layout, state.core.namespace_id(job.namespace)?))
        });
        let [run, trailer] = bufs else {
            return End::Bad;
        };
        let Some((layout, namespace)) = known else {
            return End::Bad;
        };
        let wanted = Trailer {
            bytes: job.bytes,
            key: job.key,
            namespace,
            group: job.group,
        };
        if wanted.is_foreign(trailer) {
            // Another's block under the same name is not theirs to drop.
            counters.fetch_missing.fetch_add(1, Relaxed);
            return End::Bad;
        }
        let sums = wanted.checksums_in(trailer, layout.checksums());
        let suspect = self.tier.suspects.lock().remove(&job.key);
        let good = sums.filter(|sums| !suspect || matches(run, &layout, sums));
        match good {
            Some(sums) => {
                counters.fetched_blocks.fetch_add(1, Relaxed);
                counters.fetched_bytes.fetch_add(job.bytes, Relaxed);
                self.tier.shares.lock().fetched(job.tag, job.bytes);
                End::Good(sums)
            }
            None => {
                tracing::error!(key = %job.key, group = job.group.0, place = ?job.place, tier = "ssd", "block dropped: its bytes are not those that its checksums were made of");
                counters.fetch_corrupt.fetch_add(1, Relaxed);
                self.tier.remove(job.key, job.tag);
                End::Bad
            }
        }
    }

    /// Makes good blocks visible and gives the places of bad ones up, under one lock.
    fn apply(&self, ends: Vec<(Job, End)>) {
        if ends.is_empty() {
            return;
        }
        self.shared.with(|state, now| {
            for (job, end) in &ends {
                match end {
                    End::Good(sums) => seal(state, now, &self.tier, job, sums),
                    End::Bad => give_up(state, now, &self.tier, job, true),
                    End::Late => give_up(state, now, &self.tier, job, false),
                }
            }
        });
    }

    /// Frees places that the drive has let go of after its deadline.
    fn reap_late(&self) {
        if self.tier.late.lock().is_empty() {
            return;
        }
        let back = self.tier.store.take_late();
        let runs = back.iter().filter_map(Buf::pool_run);
        self.shared.with(|state, now| {
            for run in runs {
                let of = |pool: &crate::node::pool::Pool| Arc::ptr_eq(&pool.data, run.memory());
                let Some(pool) = state.pools.iter().position(of) else {
                    continue;
                };
                let place = crate::core::Place::new(pool as u8, run.offset());
                match self.tier.late.lock().remove(&place) {
                    Some(Late::Fetch(job)) => give_up(state, now, &self.tier, &job, true),
                    Some(Late::Spill) => {
                        state.core.end_spill(place, &mut state.actions);
                        state.apply(None);
                    }
                    None => {}
                }
            }
        });
    }
}

fn layout_of<'a>(state: &'a State, job: &Job) -> Option<&'a GroupLayout> {
    state.group(job.namespace, job.group)
}

fn seal(state: &mut State, now: Now, tier: &Tier, job: &Job, sums: &[u64]) {
    let Some(layout) = layout_of(state, job) else {
        return give_up(state, now, tier, job, true);
    };
    let lease = WriteLease {
        session: tier.session,
        heads_all: layout.shape.heads,
        stages: 0..layout.stages(),
        heads: 0..layout.shape.heads,
        open: 0,
    };
    let State { core, actions, .. } = state;
    let sealed = core.seal(now, tier.session, job.lease, &[job.item], actions);
    debug_assert!(sealed.is_ok(), "{sealed:?}");
    core.note_copy(&job.key);
    state.apply(Some(Sums {
        lease: &lease,
        checksums: sums,
    }));
}

pub(super) fn give_up(state: &mut State, now: Now, tier: &Tier, job: &Job, quiesced: bool) {
    let State { core, actions, .. } = state;
    let lease: LeaseId = job.lease;
    let dropped = core.drop_items(now, tier.session, lease, &[job.item], quiesced, actions);
    debug_assert!(dropped.is_ok(), "{dropped:?}");
    state.apply(None);
}

/// Whether the bytes in the pool have these checksums.
fn matches(run: &Buf, layout: &GroupLayout, sums: &[u64]) -> bool {
    let (Some(run), shape) = (run.pool_run(), &layout.shape) else {
        return false;
    };
    let mut bytes = vec![0; shape.inner_bytes as usize];
    let mut sum_of = |layer: u32, part: u32, head: u32| {
        let row = u64::from(layer * shape.parts + part);
        let inner = u64::from(shape.inner_bytes);
        let at = (row * u64::from(shape.heads) + u64::from(head)) * inner;
        let read = run.memory().copy_out(run.offset() + at, &mut bytes);
        read.ok().map(|()| checksum(row * (inner / 8), &bytes))
    };
    let stages = (0..layout.stages())
        .flat_map(|stage| (0..shape.heads).map(move |head| (layout.stage_layers(stage), head)));
    stages.zip(sums).all(|((layers, head), want)| {
        let rows = layers.flat_map(|layer| (0..shape.parts).map(move |part| (layer, part)));
        let mut total = 0u64;
        for (layer, part) in rows {
            let Some(sum) = sum_of(layer, part, head) else {
                return false;
            };
            total = total.wrapping_add(sum);
        }
        total == *want
    })
}
