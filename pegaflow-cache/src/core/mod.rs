// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The core of a node: what it keeps, who may touch it, and what leaves when room is needed.
//!
//! Pure: time comes in as [`Now`], effects go out as [`Action`]s, bytes are never seen. A shell holds
//! one [`Core`], applies the actions of a call in order before the next call, and does everything
//! else: sockets, shared memory, records, clocks.
//!
//! What always holds:
//! - A place is handed out only when no lease holds it and no process that was given it may still
//!   write to it.
//! - Only blocks whose slots are all written are ever returned by a lookup.
//! - A block with a reader, a writer, or a child in its prefix is not evicted.
//! - A call that returns an error has changed nothing.

mod action;
mod ahead;
pub(crate) mod block;
#[cfg(test)]
mod check;
mod claim;
mod counters;
mod demoted;
mod error;
mod evict;
mod fetch;
mod hint;
mod hybrid;
mod index;
mod lease;
mod life;
mod lookup;
mod moves;
mod namespace;
mod need;
mod places;
mod points;
#[cfg(test)]
mod reference;
mod reserve;
mod restore;
mod seal;
mod session;
mod settings;
mod spill;
mod tenant;
mod tick;
mod types;
mod wait;
mod write;

#[cfg(test)]
mod tests;

pub use action::Action;
pub use counters::{Counters, Stats};
pub use error::Error;
#[cfg(feature = "replay")]
pub use evict::PolicyHarness;
pub use fetch::{FetchRequest, Presence};
pub use hint::{HintRequest, Hinted};
pub use hybrid::{GroupKeys, HybridReply, HybridRequest};
pub use lookup::{BlockRef, LookupMode, LookupReply, LookupRequest};
pub use namespace::{GroupShape, NamespaceSpec};
pub use need::{GroupNeed, Points, points};
pub use points::{Awaited, GroupBlock};
pub use reserve::{Answer, ReserveReply, ReserveRequest};
pub use restore::{RestoredBlock, RestoredWrite};
pub use seal::SealReply;
pub use settings::{CoreSettings, EvictionPolicy, TenantSettings};
pub use types::{LeaseId, NamespaceIndex, Now, Place, SessionId, TenantIndex, TicketId};

use block::{BlockIdx, Blocks, ClassIdx};
use error::within;
use index::{Hash, Index};
use lease::Leases;
use namespace::Namespaces;
use pegaflow_meta::{BlockKey, GroupId, NamespaceId};
use places::Places;
use session::{Session, Sessions};
use std::collections::{HashMap, VecDeque};
use tenant::{Tenant, Tenants};
use write::Writes;

/// The state of one node.
#[derive(Debug)]
pub struct Core {
    settings: CoreSettings,
    index: Index,
    blocks: Blocks,
    writes: Writes,
    places: Places,
    namespaces: Namespaces,
    tenants: Tenants,
    sessions: Sessions,
    leases: Leases,
    /// Blocks that nobody writes and that miss a slot, with the time to give them up, oldest first.
    partials: VecDeque<(Now, BlockIdx, u32)>,
    /// Compaction in flight, by source.
    moves: HashMap<Place, moves::Moving>,
    /// Blocks held while they are written to another tier, by place.
    spills: HashMap<Place, BlockIdx>,
    /// Blocks by state, for gauges.
    sealed: u64,
    detached: u64,
    restoring: restore::Restoring,
    waits: wait::Waits,
    /// Room was refused or bought dearly for want of slabs of the right size.
    wants_compaction: bool,
    /// What the next save will need, until there is room for it.
    ahead: Option<ahead::Ahead>,
    /// Victims to come whose lines of the index are read already, most likely.
    victims_ahead: usize,
    scratch: Scratch,
}

/// Buffers that calls reuse, empty between calls.
#[derive(Debug, Default)]
struct Scratch {
    found: Vec<BlockIdx>,
    positions: Vec<u32>,
    blocks: Vec<BlockIdx>,
}

impl Core {
    /// An empty core without pools. `seed` is drawn at random by the shell and keeps clients from
    /// choosing hash buckets.
    ///
    /// # Errors
    /// [`Error::Bad`] for settings that cannot be.
    pub fn new(settings: CoreSettings, seed: [u64; 2]) -> Result<Self, Error> {
        settings.validate()?;
        Ok(Self {
            index: Index::new(seed),
            blocks: Blocks::new(settings.blocks_max),
            settings,
            writes: Writes::default(),
            places: Places::default(),
            namespaces: Namespaces::default(),
            tenants: Tenants::default(),
            sessions: Sessions::default(),
            leases: Leases::default(),
            partials: VecDeque::new(),
            moves: HashMap::new(),
            spills: HashMap::new(),
            sealed: 0,
            detached: 0,
            restoring: restore::Restoring::default(),
            waits: wait::Waits::default(),
            wants_compaction: false,
            ahead: None,
            victims_ahead: 0,
            scratch: Scratch::default(),
        })
    }

    /// Adds a pool of `capacity_bytes` bytes and returns its number, counted from 0.
    ///
    /// # Errors
    /// [`Error::Bad`] for more than 256 pools.
    pub fn add_pool(&mut self, capacity_bytes: u64) -> Result<u8, Error> {
        self.places.add_pool(capacity_bytes)
    }

    /// Registers a namespace, or finds it if it is registered. Indexes count up from 0 in the order
    /// of registration, so that a shell which registers the namespaces of an earlier life in that
    /// order gets the same ones.
    ///
    /// # Errors
    /// [`Error::Bad`] for a specification that cannot be; [`Error::NamespaceMismatch`] if it is
    /// registered with other shapes, or for another tenant; [`Error::OverLimit`].
    pub fn register_namespace(&mut self, spec: &NamespaceSpec) -> Result<NamespaceIndex, Error> {
        Namespaces::validate(spec)?;
        if let Some(index) = self.namespaces.by_id(&spec.id) {
            self.namespaces.check_same(index, spec)?;
            let class = self.namespaces.class_of(index, GroupId(0))?;
            let tenant = self.namespaces.class(class).tenant;
            if self.tenants.get(tenant).name != spec.tenant {
                let (id, what) = (spec.id, "the tenant");
                return Err(Error::NamespaceMismatch { id, group: 0, what });
            }
            return Ok(index);
        }
        within(
            "namespaces_max",
            self.namespaces.len() + 1,
            self.settings.namespaces_max,
        )?;
        self.namespaces.check_room(spec)?;
        let tenant = self.tenants.get_or_insert(&spec.tenant, &self.settings)?;
        self.namespaces
            .insert(spec, tenant, self.settings.namespaces_max)
    }

    /// The fingerprint of a registered namespace.
    #[must_use]
    pub fn namespace_id(&self, namespace: NamespaceIndex) -> Option<NamespaceId> {
        self.namespaces.id(namespace)
    }

    /// The settings in force.
    #[must_use]
    pub fn settings(&self) -> &CoreSettings {
        &self.settings
    }

    /// Opens a session. `near` is the pool whose memory is nearest to the client.
    ///
    /// # Errors
    /// [`Error::SessionExists`]; [`Error::OverLimit`].
    pub fn open_session(&mut self, session: SessionId, near: u8) -> Result<(), Error> {
        if self.sessions.contains_key(&session) {
            return Err(Error::SessionExists(session));
        }
        within(
            "sessions_max",
            self.sessions.len() + 1,
            self.settings.sessions_max,
        )?;
        self.sessions.insert(
            session,
            Session {
                near,
                ..Session::default()
            },
        );
        Ok(())
    }

    /// What happened so far, by tenant name.
    pub fn counters(&self) -> impl Iterator<Item = (&str, &Counters)> {
        self.tenants
            .iter()
            .map(|tenant| (tenant.name.as_str(), &tenant.counters))
    }

    /// Bytes in use and allowed, by tenant name.
    pub fn usage(&self) -> impl Iterator<Item = (&str, u64, Option<u64>)> {
        self.tenants
            .iter()
            .map(|t| (t.name.as_str(), t.used_bytes, t.limits.bytes_max))
    }

    /// How things stand now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            capacity_bytes: self.places.capacity_bytes(),
            used_bytes: self.tenants.iter().map(|tenant| tenant.used_bytes).sum(),
            sealed_blocks: self.sealed,
            writing_blocks: u64::from(self.blocks.len()) - self.sealed - self.detached,
            detached_blocks: self.detached,
            sessions: self.sessions.len() as u64,
            leases: self.leases.len() as u64,
            namespaces: self.namespaces.len() as u64,
            waiters: self.waits.len() as u64,
            moves: self.moves.len() as u64,
            pinned_bytes: self.tenants.iter().map(|tenant| tenant.pinned_bytes).sum(),
            metadata_bytes: self.metadata_bytes(),
        }
    }

    fn metadata_bytes(&self) -> u64 {
        let policies: usize = self.tenants.iter().map(|t| t.policy.bytes()).sum();
        let tables = self.index.bytes() + self.blocks.bytes() + policies;
        tables as u64 + self.places.metadata_bytes()
    }

    fn open(&self, session: SessionId) -> Result<&Session, Error> {
        let open = self
            .sessions
            .get(&session)
            .filter(|session| !session.closed);
        open.ok_or(Error::UnknownSession(session))
    }

    fn tenant_of(&mut self, class: ClassIdx) -> &mut Tenant {
        let tenant = self.namespaces.class(class).tenant;
        self.tenants.get_mut(tenant)
    }

    /// The block in the index under this key, whatever its class.
    fn find(&self, hash: Hash, key: &BlockKey) -> Option<BlockIdx> {
        self.index
            .find(hash, |idx| self.blocks.get(idx).key == *key)
    }

    /// The block in the index under this key, of this class.
    fn find_in(&self, class: ClassIdx, key: &BlockKey) -> Option<BlockIdx> {
        let found = self.find(self.index.hash(key), key)?;
        (self.blocks.get(found).class == class).then_some(found)
    }
}
