// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The SSD tier of a node: the store, and two threads that move blocks between it and the pools.
//!
//! A fetch is a writer of the core like a client: it has a session, reserves places, and seals them
//! when the bytes are there. A spill is a reader: it holds a sealed block while it is written. Bytes
//! go straight between drive and pool.
//!
//! Locks are taken in this order: the node's, then one of the tier's. Nothing of the tier waits for
//! the drive under a lock.

mod fetch;
mod inbox;
mod plan;
mod points;
mod share;
mod spill;
mod stats;
mod trailer;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use pegaflow_mem::SharedMemory;
use pegaflow_meta::BlockKey;
use pegaflow_ssd::settings::{Admission, IoSettings, Settings};
use pegaflow_ssd::{Arena, BlockStore, Buf, Device, PAGE, Region, SsdStore};

pub use stats::SsdStats;

use super::Shared;
use super::state::State;
use crate::core::{Place, SessionId, TicketId};
use crate::error::{Error, Result};
use crate::tier::breaker::Breaker;
use crate::tier::estimate::Estimate;
use crate::tier::fetch::{Fetches, Job, TakeBack};
use crate::tier::share::{Shares, Usage};
use crate::tier::spill::{Candidate, Spill};
use crate::tier::{Source, SpillAdmission, SsdSettings};
use inbox::Inbox;
use stats::Counters;

/// How often a drive that is in use is tried, half a second each.
const OPEN_TRIES: u32 = 20;
/// Keys that are remembered for `ssd.admission = "second_save"`.
const REMEMBERED_KEYS: u32 = 1 << 20;
/// Blocks whose bytes clients found wrong, and that are verified when they come from the drive.
const SUSPECTS_MAX: usize = 1 << 16;
/// Room in the store's queues beyond what the tier's own budgets let through.
const QUEUE_SLACK_BYTES: u64 = 512 << 20;

/// Bytes of reads handed to each drive: as many as it has under way at once by default, and as many
/// again, so that it need not wait for this tier's thread.
const READ_BYTES_MAX: u64 = 128 << 20;
/// Trailers of blocks being read that need no memory of their own.
const TRAILERS: usize = 256;

/// What the tier's threads, the node's calls and its janitor share.
pub(super) struct Tier {
    store: SsdStore,
    /// Who fetches, as the core knows it.
    session: SessionId,
    /// The memory of each pool.
    pools: Vec<Arc<SharedMemory>>,
    settings: SsdSettings,
    fetch_bytes_max: u64,
    fetches: Mutex<Fetching>,
    /// Memory for trailers of blocks being read; none if there was none to be had.
    trailers: Option<Arc<Arena>>,
    spill: Mutex<Spill>,
    /// Taken last of all: the store's own lock may be held.
    shares: Arc<Mutex<Shares>>,
    estimate: Mutex<Estimate>,
    breaker: Mutex<Breaker>,
    /// Blocks to verify against their own checksums when they come from the drive.
    suspects: Mutex<HashSet<BlockKey>>,
    /// Places that the drive still holds after it was given up.
    late: Mutex<HashMap<Place, Late>>,
    reader: Arc<Inbox>,
    writer: Arc<Inbox>,
    counters: Counters,
}

#[derive(Debug)]
struct Fetching {
    fetches: Fetches,
    take_backs: Vec<TakeBack>,
}

/// Whose place the drive still holds.
#[derive(Debug, Clone, Copy)]
enum Late {
    Fetch(Job),
    Spill,
}

impl std::fmt::Debug for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tier").finish_non_exhaustive()
    }
}

/// The threads. They end when this is dropped, and the store is closed with its last handle.
#[derive(Debug)]
pub(super) struct Threads {
    tier: Arc<Tier>,
    threads: Vec<JoinHandle<()>>,
}

/// Opens the store on the drives of the settings.
///
/// # Errors
/// [`Error::Ssd`].
pub(super) fn open(settings: &SsdSettings) -> Result<SsdStore> {
    let devices: Vec<_> = settings
        .paths()
        .map(|path| Device::file(path, settings.bytes))
        .collect();
    let store = open_unlocked(settings, &devices)?;
    for report in store.recovery() {
        tracing::info!(?report, "opened a drive of the SSD tier");
    }
    Ok(store)
}

/// The transfers of a process that was killed end when the drive has ended them, and its lock with
/// them: on a busy drive that takes a while.
fn open_unlocked(settings: &SsdSettings, devices: &[Device]) -> Result<SsdStore> {
    // Each try waits for some time by itself.
    for _ in 1..OPEN_TRIES {
        match SsdStore::open(store_settings(settings), devices) {
            Err(pegaflow_ssd::Error::InUse { path }) => {
                tracing::info!(path = %path.display(), "waits for the drive of an earlier server");
            }
            opened => return Ok(opened?),
        }
    }
    Ok(SsdStore::open(store_settings(settings), devices)?)
}

fn store_settings(settings: &SsdSettings) -> Settings {
    // Small stores, as in tests, have small segments; a block must fit in one.
    let segment_bytes = (settings.bytes / 32).clamp(1 << 20, 64 << 20);
    Settings {
        segment_bytes: 1 << segment_bytes.ilog2(),
        reclaim: share::named(settings.reclaim),
        admission: match settings.admission {
            SpillAdmission::All => Admission::All,
            SpillAdmission::SecondSave => Admission::SecondTouch {
                remembered_keys: REMEMBERED_KEYS,
            },
        },
        write_queue_bytes_max: settings.spill_bytes_max.saturating_add(QUEUE_SLACK_BYTES),
        read_queue_bytes_max: settings.fetch_bytes_max.saturating_add(QUEUE_SLACK_BYTES),
        io: IoSettings {
            deadline_ms: settings.deadline_ms,
            ..IoSettings::default()
        },
        ..Settings::default()
    }
}

fn trailers(store: &SsdStore) -> Option<Arc<Arena>> {
    let arena = Arena::new(PAGE, TRAILERS).ok()?;
    store.register(&arena.region());
    Some(arena)
}

impl Tier {
    /// The tier over an open store. `recovered` are blocks of an earlier run that the pools have.
    pub(super) fn new(
        store: SsdStore,
        settings: &SsdSettings,
        session: SessionId,
        state: &State,
        recovered: Vec<Candidate>,
    ) -> Self {
        let pools = state.pools.iter().map(|pool| pool.data.clone());
        let pools: Vec<_> = pools.collect();
        for pool in &pools {
            store.register(&Region::of_pool(pool.clone()));
        }
        let capacity = state.core.stats().capacity_bytes;
        // What is held for the drive cannot make room for saves.
        let spill_bytes_max = settings.spill_bytes_max.min(capacity / 4);
        let mut spill = Spill::new(settings.spill_blocks_max, spill_bytes_max);
        for block in recovered {
            spill.offer(block);
        }
        let tenants = &state.core.settings().tenants;
        let shares = Arc::new(Mutex::new(Shares::new(tenants)));
        share::attach(&store, settings.reclaim, &shares);
        Self {
            session,
            shares,
            pools,
            fetch_bytes_max: settings.fetch_bytes_max.min(capacity / 2),
            settings: settings.clone(),
            fetches: Mutex::new(Fetching {
                fetches: Fetches::new(READ_BYTES_MAX * settings.paths().count().max(1) as u64),
                take_backs: vec![],
            }),
            trailers: trailers(&store),
            spill: Mutex::new(spill),
            estimate: Mutex::new(Estimate::of(Source::Ssd)),
            breaker: Mutex::default(),
            suspects: Mutex::default(),
            late: Mutex::default(),
            reader: Arc::default(),
            writer: Arc::default(),
            counters: Counters::default(),
            store,
        }
    }

    /// Whether it is the session by which the tier fetches.
    pub(super) fn is_own(&self, session: SessionId) -> bool {
        session == self.session
    }

    /// A block was sealed by a client. [`ring_writer`](Self::ring_writer) must follow.
    pub(super) fn sealed(&self, block: Candidate) {
        let counters = &self.counters;
        if !self.takes(block.bytes) {
            counters.spill_unfit.fetch_add(1, Relaxed);
        } else if !self.spill.lock().offer(block) {
            counters.spill_queue_full.fetch_add(1, Relaxed);
        }
    }

    /// Blocks may have been offered. Not under the node's lock, which the thread that writes needs first.
    pub(super) fn ring_writer(&self) {
        self.writer.ring();
    }

    /// Nobody looks at the ticket any more.
    pub(super) fn wait_over(&self, ticket: TicketId) {
        let mut fetching = self.fetches.lock();
        let Fetching {
            fetches,
            take_backs,
        } = &mut *fetching;
        fetches.unwant(ticket, take_backs);
        if !take_backs.is_empty() {
            self.reader.ring();
        }
    }

    /// A client found the bytes of the block's copy in the pool wrong. What the drive has of it may
    /// be better, or a copy of the same.
    pub(super) fn suspect(&self, key: BlockKey) {
        let mut suspects = self.suspects.lock();
        if suspects.len() < SUSPECTS_MAX {
            suspects.insert(key);
        }
    }

    /// Whether blocks of this size can be kept on the drive: whole pages of a pool, and small
    /// enough for a segment.
    fn takes(&self, bytes: u64) -> bool {
        let pages = trailer::run_bytes(bytes);
        bytes >= pegaflow_ssd::PAGE as u64 && pages < self.store.block_bytes_max()
    }

    /// Memory for a trailer of so many bytes.
    fn trailer_buf(&self, bytes: usize) -> Buf {
        let kept = self.trailers.as_ref().and_then(|arena| arena.take(bytes));
        kept.unwrap_or_else(|| Buf::new(bytes))
    }

    /// What each tenant of the configuration has on the drive and moved so far; others, without a name.
    pub(super) fn tenants(&self) -> Vec<(Option<String>, Usage)> {
        let shares = self.shares.lock();
        let usage = shares.usage();
        usage
            .map(|(name, usage)| (name.map(str::to_owned), usage))
            .collect()
    }

    /// Figures.
    pub(super) fn stats(&self) -> SsdStats {
        let (fetching, waiting, writing) = {
            let spill = self.spill.lock();
            let fetching = self.fetches.lock().fetches.bytes();
            (fetching, spill.waiting() as u64, spill.under_way_bytes())
        };
        self.counters
            .stats(fetching, waiting, writing, self.store.stats())
    }
}

impl Threads {
    pub(super) fn tier(&self) -> &Tier {
        &self.tier
    }

    pub(super) fn start(shared: &Arc<Shared>, tier: &Arc<Tier>) -> Result<Self> {
        let mut threads = Self {
            tier: tier.clone(),
            threads: vec![],
        };
        let reader = fetch::Reader::new(shared.clone(), tier.clone());
        threads.spawn("pegaflow-fetch", move || reader.run())?;
        let writer = spill::Writer::new(shared.clone(), tier.clone());
        threads.spawn("pegaflow-spill", move || writer.run())?;
        tier.writer.ring();
        Ok(threads)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(name.to_owned());
        let thread = thread
            .spawn(run)
            .map_err(Error::os("start the thread", name.as_ref()))?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.tier.reader.stop();
        self.tier.writer.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the SSD tier panicked");
            }
        }
    }
}
