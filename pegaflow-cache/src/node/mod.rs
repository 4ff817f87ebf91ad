// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A node: the core, its pools in shared memory, and the thread that keeps time for it.
//!
//! Embedded in an engine's process or served by `pegaflow-server`, it is the same [`Node`]. It opens
//! no socket: `rpc` does. It never touches the bytes of a block, except to move one to another
//! place when room must be joined.

mod calls;
mod files;
mod hint;
mod hybrid;
mod janitor;
mod layout;
mod pool;
pub mod process;
mod recover;
mod sessions;
mod settings;
mod ssd;
mod state;
mod tickets;
mod trace;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use pegaflow_mem::SharedMemory;
use pegaflow_ssd::SsdStore;
use tokio::sync::mpsc;

pub use calls::{LookupCall, Refs, ReserveCall};
pub use hint::Hint;
pub use hybrid::{HybridCall, HybridRefs};
pub use layout::{GroupLayout, NamespaceLayout};
pub use settings::{NodeSettings, POOL_BYTES_MIN, POOLS_MAX, PoolFiles, TICK_MS_MAX, TICKETS_MAX};
pub use ssd::SsdStats;
pub use trace::TraceSettings;

use crate::client::pools::{PoolView, Pools};
use crate::control::superblock::set_incarnation;
use crate::core::{Core, Now, SessionId};
use crate::error::{Error, Result};
use crate::rpc::observe::Calls;
use crate::rpc::proto as pb;
use crate::tier::SsdSettings;
use janitor::Janitor;
use pool::Pool;
use process::{Process, Watch};
use sessions::Sessions;
use state::State;
use tickets::Tickets;

/// A running node. Stops when its last handle is dropped; pools in files stay.
#[derive(Debug)]
pub struct Node {
    shared: Arc<Shared>,
    janitor: Janitor,
    views: Pools,
    tickets: Arc<SharedMemory>,
    name: String,
    started: Started,
    calls: Calls,
    /// Ends before the store is closed, and that before the lock is given back.
    tier: Option<ssd::Threads>,
    // Last, so that nothing of this node runs any more when another may begin.
    _lock: files::Lock,
}

/// What the janitor's thread and the node share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    epoch: Instant,
    incarnation: u64,
}

/// What a start found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Started {
    /// Blocks of an earlier run that are here again.
    pub blocks_recovered: u64,
    /// Blocks of an earlier run that were not sealed, and are dropped.
    pub blocks_unsealed: u64,
    /// Of these, places that stay out of use until a living process is quiet or gone.
    pub places_quarantined: u64,
    /// Records that made no sense, and were erased.
    pub records_damaged: u64,
    /// How long it took, in microseconds.
    pub micros: u64,
}

/// Who opens a session.
#[derive(Debug)]
pub enum Client {
    /// Another process; it is watched.
    Process(Process),
    /// This process, which says itself when its copies are over.
    Embedded,
    /// Somebody who shares no memory with the node, and so cannot write to it.
    Remote,
}

impl Shared {
    fn now(&self) -> Now {
        let now = self.epoch.elapsed().as_millis();
        Now(u64::try_from(now).unwrap_or(u64::MAX))
    }

    fn with<R>(&self, f: impl FnOnce(&mut State, Now) -> R) -> R {
        let mut state = self.state.lock();
        f(&mut state, self.now())
    }
}

impl Node {
    /// Starts a node on the pools of an earlier one, or on new ones.
    ///
    /// # Errors
    /// [`Error::Setting`] for settings that cannot be; [`Error::PoolInUse`] if another server has the
    /// pool; [`Error::Memory`] and [`Error::Os`] if memory or files cannot be had.
    pub fn start(settings: &NodeSettings) -> Result<Arc<Self>> {
        Self::start_with(settings, None)
    }

    /// As [`start`](Self::start), with this store for the SSD tier instead of that of the settings:
    /// on anything that has bytes at offsets.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_on(settings: &NodeSettings, store: SsdStore) -> Result<Arc<Self>> {
        Self::start_with(settings, Some(store))
    }

    fn start_with(settings: &NodeSettings, store: Option<SsdStore>) -> Result<Arc<Self>> {
        settings.validate()?;
        #[expect(clippy::disallowed_methods, reason = "the shell's clock starts here")]
        let epoch = Instant::now();
        let lock = files::lock(&settings.files)?;
        // Before any place is handed out: the store's lock ends with the last transfer of a killed
        // process, which may still write to the pools.
        let store = match store {
            None if settings.ssd.is_on() => Some(ssd::open(&settings.ssd)?),
            other => other,
        };
        let files = (0..settings.numa_nodes.len().max(1)).map(|pool| files::open(settings, pool));
        let files = files.collect::<Result<Vec<_>>>()?;
        let mut state = new_state(settings, &files, epoch)?;
        let found: Vec<_> = files.iter().map(|files| files.found.is_ok()).collect();
        let threads = settings.recover_threads as usize;
        let mut recovery = recover::recover(&mut state, &found, threads, Now(0), store.is_some())?;
        let incarnation = u64::from_le_bytes(files::random());
        for pool in &state.pools {
            set_incarnation(&*pool.control, incarnation);
        }
        let started = Started {
            blocks_recovered: recovery.blocks,
            blocks_unsealed: recovery.unsealed,
            places_quarantined: recovery.quarantined,
            records_damaged: recovery.damaged,
            micros: u64::try_from(epoch.elapsed().as_micros()).unwrap_or(u64::MAX),
        };
        log_start(settings, &files, &started);
        state.tier = store
            .map(|store| new_tier(&mut state, store, &settings.ssd, &mut recovery))
            .transpose()?;
        let tier = state.tier.clone();
        let views = state.pools.iter();
        let views = views.map(|pool| PoolView::new(pool.data.clone(), pool.control.clone()));
        let views = Pools::new(views.collect::<Result<_>>()?);
        let tickets = state.tickets.memory().clone();
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            epoch,
            incarnation,
        });
        let janitor = Janitor::start(shared.clone(), settings.tick_ms, recovery.watches)?;
        let tier = tier.map(|tier| ssd::Threads::start(&shared, &tier));
        Ok(Arc::new(Self {
            shared,
            janitor,
            views,
            tickets,
            name: settings.name.clone(),
            started,
            calls: Calls::new(),
            tier: tier.transpose()?,
            _lock: lock,
        }))
    }

    /// What the start found.
    #[must_use]
    pub fn started(&self) -> Started {
        self.started
    }

    /// Names this run of the node.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.shared.incarnation
    }

    /// The metrics of its calls.
    pub(crate) fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The pools, as a client in this process sees them.
    #[must_use]
    pub fn pools(&self) -> &Pools {
        &self.views
    }

    /// The memory of the tickets.
    pub(crate) fn tickets(&self) -> &Arc<SharedMemory> {
        &self.tickets
    }

    /// Opens a session. Events of the session go to `events`.
    ///
    /// # Errors
    /// [`Error::Core`] over the limit of sessions; [`Error::Os`] if the client cannot be watched;
    /// [`Error::Unavailable`] if it is gone already.
    pub fn open_session(
        &self,
        client: &Client,
        events: Option<mpsc::Sender<pb::SessionEvent>>,
    ) -> Result<SessionId> {
        let (process, watch) = match client {
            Client::Process(process) => (*process, Some(watch(*process)?)),
            Client::Embedded | Client::Remote => (own_process()?, None),
        };
        let has_memory = !matches!(client, Client::Remote);
        let session = self
            .shared
            .with(|state, _| add_session(state, process, has_memory, events))?;
        if let Some(pidfd) = watch {
            self.janitor.watch(session, pidfd);
        }
        Ok(session)
    }

    /// The session's lifeline is cut. What it was reading is released; what it was writing stays out of
    /// use until its process is gone, or it says that it is quiet.
    pub fn close_session(&self, session: SessionId) {
        let wrote = self.shared.with(|state, now| {
            let held = state.sessions.get_mut(session);
            let held = held.filter(|held| !held.closed)?;
            held.closed = true;
            let closed = state.core.close_session(now, session, &mut state.actions);
            debug_assert!(closed.is_ok(), "{closed:?}");
            state.apply(None);
            Some(state.writes.values().any(|lease| lease.session == session))
        });
        if wrote == Some(false) {
            self.session_gone(session);
        }
    }

    /// Whose an open session is.
    pub(crate) fn owner_of(&self, session: SessionId) -> Option<Process> {
        self.shared.with(|state, _| {
            let held = state.sessions.get(session).filter(|held| !held.closed);
            held.map(|held| held.entry.process)
        })
    }

    /// Nothing of the session touches the pools any more: it is forgotten.
    pub fn session_gone(&self, session: SessionId) {
        self.janitor.unwatch(session);
        self.shared.session_gone(session);
    }

    /// Tells all clients that the node is about to stop.
    pub fn announce_stop(&self) {
        self.shared.with(|state, _| {
            for (_, session) in state.sessions.iter() {
                session.tell(pb::SessionEvent {
                    kind: pb::session_event::Kind::Stopping.into(),
                    lease: 0,
                });
            }
        });
    }

    /// The hello of a session: the pools, in the order of [`handover`](Self::handover).
    pub(crate) fn describe_pools(&self) -> Vec<pb::Pool> {
        self.shared.with(|state, _| {
            let describe = |(index, pool): (usize, &Pool)| pb::Pool {
                uuid: pool.uuid.to_vec().into(),
                index: index as u32,
                capacity_bytes: pool.geometry.capacity_bytes,
                control_bytes: pool.geometry.file_bytes(),
                numa_node: None,
            };
            state.pools.iter().enumerate().map(describe).collect()
        })
    }

    /// The files that a client needs: data and control of each pool, then the tickets. Only data can
    /// be written to.
    pub(crate) fn handover(&self) -> Result<Vec<OwnedFd>> {
        self.shared.with(|state, _| {
            let mut files = vec![];
            for pool in &state.pools {
                let data = pool.data.fd().try_clone_to_owned();
                files.push(data.map_err(Error::os("copy the descriptor of", "pool".as_ref()))?);
                files.push(files::read_only(&pool.control)?);
            }
            files.push(files::read_only(&self.tickets)?);
            Ok(files)
        })
    }

    /// The limits that clients are told.
    pub(crate) fn limits(&self) -> pb::Limits {
        self.shared.with(|state, _| {
            let settings = state.core.settings();
            let ttl_ms = settings.read_lease_ttl_max_ms;
            pb::Limits {
                keys_max: settings.request_keys_max,
                frame_bytes_max: crate::rpc::FRAME_BYTES_MAX,
                lease_ttl_ms_max: u32::try_from(ttl_ms).unwrap_or(u32::MAX),
                tickets: state.tickets.max(),
            }
        })
    }
}

/// Blocks evicted ahead of need under one lock: some 20 us.
const EVICT_AHEAD_BLOCKS: u32 = 64;

impl Shared {
    fn evict_ahead(&self) -> bool {
        self.with(|state, now| {
            let State { core, actions, .. } = state;
            let more = core.evict_ahead(now, EVICT_AHEAD_BLOCKS, actions);
            state.apply(None);
            more
        })
    }

    fn session_gone(&self, session: SessionId) {
        self.with(|state, now| {
            if state.sessions.get(session).is_some() {
                let gone = state.core.process_gone(now, session, &mut state.actions);
                debug_assert!(gone.is_ok(), "{gone:?}");
                state.apply(None);
                state.forget_session(session);
            } else {
                end_left_over(state, now, session);
            }
        });
    }
}

/// A session of an earlier run is quiet.
fn end_left_over(state: &mut State, now: Now, session: SessionId) {
    let (entry, over) = state.sessions.left_over_quiet(session);
    for waiting in over {
        let gone = state.core.process_gone(now, waiting, &mut state.actions);
        debug_assert!(gone.is_ok(), "{gone:?}");
        state.apply(None);
    }
    if let Some(entry) = entry {
        state.erase_entry(entry);
    }
}

/// Opens a session of `process`, and writes it down.
fn add_session(
    state: &mut State,
    process: Process,
    has_memory: bool,
    events: Option<mpsc::Sender<pb::SessionEvent>>,
) -> Result<SessionId> {
    let session = SessionId(u64::from_le_bytes(files::random()));
    state.core.open_session(session, 0)?;
    let Some(entry) = state.sessions.insert(session, process, has_memory, events) else {
        let limit = crate::control::geometry::SESSIONS;
        let (what, setting) = ("sessions, with those of earlier runs", "sessions_max");
        return Err(Error::Limit {
            what,
            limit,
            setting,
        });
    };
    let pool = &state.pools[0];
    entry.write(&*pool.control, &pool.geometry);
    Ok(session)
}

/// The SSD tier of a node that is about to start.
fn new_tier(
    state: &mut State,
    store: SsdStore,
    settings: &SsdSettings,
    recovery: &mut recover::Recovery,
) -> Result<Arc<ssd::Tier>> {
    let session = add_session(state, own_process()?, true, None)?;
    let sealed = std::mem::take(&mut recovery.sealed);
    let tier = ssd::Tier::new(store, settings, session, state, sealed);
    Ok(Arc::new(tier))
}

fn own_process() -> Result<Process> {
    Process::current().map_err(Error::os("read", "/proc/self/stat".as_ref()))
}

fn watch(process: Process) -> Result<OwnedFd> {
    match process.watch() {
        Ok(Watch::Alive(pidfd)) => Ok(pidfd),
        Ok(Watch::Gone) => Err(Error::unavailable("the client is gone")),
        Err(error) => Err(Error::os("watch the client by", "pidfd".as_ref())(error)),
    }
}

fn new_state(settings: &NodeSettings, files: &[files::Files], epoch: Instant) -> Result<State> {
    let seed = files::random::<16>();
    let seed = u128::from_le_bytes(seed);
    let mut core = Core::new(settings.core.clone(), [seed as u64, (seed >> 64) as u64])?;
    for pool in files {
        core.add_pool(pool.superblock.geometry.capacity_bytes)?;
    }
    let pools: Vec<_> = files.iter().map(Pool::new).collect();
    let bytes = u64::from(settings.tickets_max) * 8;
    let tickets = files::anonymous("pegaflow-tickets", bytes.next_multiple_of(4096))?;
    Ok(State {
        core,
        namespaces_end: pools[0].geometry.namespaces(),
        pools,
        tickets: Tickets::new(Arc::new(tickets), settings.tickets_max),
        sessions: Sessions::default(),
        namespaces: vec![],
        writes: HashMap::new(),
        moves: vec![],
        actions: vec![],
        lookup: Default::default(),
        hybrid: Default::default(),
        reserve: Default::default(),
        prefetches: HashMap::new(),
        prefetches_over: vec![],
        tier: None,
        traces: trace::Traces::new(settings.trace.clone()),
        epoch,
        recovered: 0,
        dropped_unsealed: 0,
    })
}

fn log_start(settings: &NodeSettings, files: &[files::Files], started: &Started) {
    for (index, pool) in files.iter().enumerate() {
        let bytes = pool.superblock.geometry.capacity_bytes;
        match &pool.found {
            Ok(()) => tracing::info!(pool = index, bytes, "found the pool of an earlier server"),
            Err(why) => tracing::info!(pool = index, bytes, why, "starts with an empty pool"),
        }
    }
    tracing::info!(
        name = settings.name,
        blocks = started.blocks_recovered,
        unsealed = started.blocks_unsealed,
        quarantined = started.places_quarantined,
        damaged = started.records_damaged,
        micros = started.micros,
        "node started"
    );
}
