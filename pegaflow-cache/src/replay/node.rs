// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A real node behind a [`Port`]: in this process, or a server's.
//!
//! Its workers copy as an engine's would: reserve, copy, seal; look up, copy, compare checksums, release. One
//! client serves all ranks, as the ranks of one process share it.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pegaflow_mem::device::host::{HostDevice, HostMemory, HostSettings};
use pegaflow_mem::device::{CopyJob, Device, Direction, Outcome, PoolHandle};
use pegaflow_mem::layout::{BlockCopy, KvLayout};
use pegaflow_mem::{ErrorKind, SlabAllocator};
use pegaflow_meta::{BlockKey, GroupId, NamespaceId};

use super::engine::{Rank, engine_bytes, engine_layout};
use super::error::Error;
use super::port::{NodeFacts, Port, PortError, Saved};
use super::settings::ReplaySettings;
use crate::client::{
    Client, ClientSettings, Found, Lookup, NamespaceHandle, PoolView, Reserve, Status,
};
use crate::core::Answer;
use crate::node::{NamespaceLayout, Node, NodeSettings, PoolFiles};

/// Where the node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In this process.
    Embedded {
        /// Bytes of its pool.
        ram_bytes: u64,
        /// Folder of the pool's files; anonymous memory without.
        pool_dir: Option<PathBuf>,
    },
    /// A server's.
    Remote {
        /// Its Unix socket.
        socket: PathBuf,
    },
}

const GROUP: GroupId = GroupId(0);
// Long against a copy of one chunk, short against a person's patience.
const LEASE: Duration = Duration::from_secs(30);
// A killed server is back within a fraction of a second; looking often costs little.
const RECONNECT_PAUSE_MS_MAX: u32 = 20;

/// A node and the workers that use it.
pub struct NodePort {
    client: Client,
    namespace: NamespaceHandle,
    device: HostDevice,
    layouts: Vec<Arc<KvLayout>>,
    ranks: Vec<Rank>,
    /// Attached pools, by what they were drawn at their making.
    pools: Mutex<Vec<([u8; 16], PoolHandle)>>,
    // After the client, which needs it until it is dropped.
    runtime: tokio::runtime::Runtime,
}

impl NodePort {
    /// Connects to the node, or starts one, and sets up the workers.
    ///
    /// # Errors
    /// [`Error::Settings`], [`Error::Memory`], [`Error::Node`].
    pub fn open(place: &Place, settings: &ReplaySettings) -> Result<Self, Error> {
        let shape = settings.shape()?;
        let device = HostDevice::new(&HostSettings::default())?;
        let (mut layouts, mut ranks) = (vec![], vec![]);
        for slot in settings.slots()? {
            let blocks = settings.engine_blocks();
            let memory = HostMemory::zeroed(engine_bytes(&shape, &slot, blocks))?;
            let layout = Arc::new(engine_layout(shape, slot, memory.base(), blocks)?);
            device.register(memory.clone())?;
            ranks.push(Rank::new(layout.clone(), Arc::new(memory)));
            layouts.push(layout);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|e| node_error("starting threads", e))?;
        let client = runtime
            .block_on(open(place))
            .map_err(|e| node_error("opening the node", e))?;
        let layout = NamespaceLayout::new(settings.namespace(), &[shape]);
        let namespace = runtime
            .block_on(client.register_namespace(layout))
            .map_err(|e| node_error("registering the namespace", e))?;
        let pools = Mutex::default();
        Ok(Self {
            client,
            namespace,
            device,
            layouts,
            ranks,
            pools,
            runtime,
        })
    }

    /// The workers' memory.
    pub fn ranks(&self) -> &[Rank] {
        &self.ranks
    }

    /// Names the blocks.
    pub fn namespace(&self) -> NamespaceId {
        self.namespace.id()
    }

    fn attach(&self, pool: &PoolView) -> Result<PoolHandle, PortError> {
        let mut pools = self.pools.lock();
        if let Some((_, handle)) = pools.iter().find(|(uuid, _)| *uuid == pool.uuid) {
            return Ok(handle.clone());
        }
        let handle = self.device.attach_pool(pool.data.clone()).map_err(fatal)?;
        pools.push((pool.uuid, handle.clone()));
        Ok(handle)
    }

    fn copy(
        &self,
        direction: Direction,
        rank: u32,
        pool: &PoolView,
        blocks: Vec<BlockCopy>,
    ) -> Result<Outcome, PortError> {
        let layout = self.layouts[rank as usize].clone();
        let job = CopyJob::new(layout, self.attach(pool)?, blocks);
        let copy = self.device.copy(direction, job).map_err(fatal)?;
        Ok(copy.wait())
    }

    // The checksums of this rank's heads that were saved with a block, if the block is still there.
    fn saved_sums(&self, rank: u32, found: &Found, block: u32, key: BlockKey) -> Option<Vec<u64>> {
        let at = &found.blocks[block as usize];
        let pool = found.session.pools().of(at.place).ok()?;
        let all = pool.checksums(at.place.offset(), key, at.generation)?;
        let heads = self.layouts[rank as usize].slot().heads.clone();
        all.get(heads.start as usize..heads.end as usize)
            .map(<[u64]>::to_vec)
    }
}

async fn open(place: &Place) -> crate::error::Result<Client> {
    match place {
        Place::Embedded {
            ram_bytes,
            pool_dir,
        } => {
            let files = pool_dir
                .clone()
                .map_or(PoolFiles::Anonymous, PoolFiles::Directory);
            let settings = NodeSettings {
                pool_bytes: *ram_bytes,
                files,
                ..NodeSettings::default()
            };
            Client::embedded(&Node::start(&settings)?)
        }
        Place::Remote { socket } => {
            let settings = ClientSettings {
                socket: socket.clone(),
                name: "pegaflow-replay".into(),
                reconnect_pause_ms_max: RECONNECT_PAUSE_MS_MAX,
                ..ClientSettings::default()
            };
            Client::connect(settings).await
        }
    }
}

impl Port for NodePort {
    type Held = (Found, Vec<BlockKey>);

    fn facts(&self) -> Result<NodeFacts, PortError> {
        let stats = self
            .runtime
            .block_on(self.client.stats())
            .map_err(port_error)?;
        let pools = self
            .client
            .session()
            .map_err(port_error)?
            .pools()
            .iter()
            .len()
            .max(1) as u64;
        let block_bytes = self.layouts[0].shape().bytes();
        let of_a_pool = blocks_in(stats.capacity_bytes / pools, block_bytes);
        Ok(NodeFacts {
            capacity_blocks: of_a_pool * pools,
        })
    }

    fn lookup(&self, keys: &[BlockKey]) -> Result<(u32, Self::Held), PortError> {
        let mut lookup = Lookup::prefix(&self.namespace, GROUP, keys);
        lookup.lease = Some(LEASE);
        let found = self
            .runtime
            .block_on(self.client.lookup(&lookup))
            .map_err(port_error)?;
        let blocks = found.blocks.len();
        Ok((blocks as u32, (found, keys[..blocks].to_vec())))
    }

    fn load(
        &self,
        rank: u32,
        (found, keys): &Self::Held,
        blocks: Range<u32>,
        engine: u32,
    ) -> Result<u32, PortError> {
        let range = blocks.start as usize..blocks.end as usize;
        let places: Vec<_> = found.blocks[range.clone()]
            .iter()
            .map(|b| b.place)
            .collect();
        let _guard = found.session.begin_copy().map_err(port_error)?;
        let mut sums = Vec::new();
        for (pool, run) in runs_of_a_pool(&places) {
            let copies = copies(engine + run.start as u32, &places[run]);
            let pool = found.session.pools().get(pool);
            let pool = pool.ok_or_else(|| PortError::Fatal("a block in no pool".into()))?;
            let outcome = self.copy(Direction::Load, rank, pool, copies)?;
            outcome.result.map_err(fatal)?;
            sums.extend(outcome.checksums);
        }
        let heads = self.layouts[rank as usize].slot().checksums();
        for (i, got) in sums.chunks(heads).enumerate() {
            let (block, key) = (blocks.start + i as u32, keys[range.start + i]);
            match self.saved_sums(rank, found, block, key) {
                Some(saved) if saved == got => {}
                Some(_) => {
                    let at = &found.blocks[block as usize];
                    let report = self.client.report_corrupt(key, at);
                    self.runtime.block_on(report).map_err(port_error)?;
                    return Ok(i as u32);
                }
                None => return Err(PortError::Stale("a leased block changed".into())),
            }
        }
        Ok(blocks.len() as u32)
    }

    fn release(&self, (found, _): Self::Held) {
        if let Some(lease) = &found.lease {
            // A node that is gone, or was, holds nothing.
            let _ = self.runtime.block_on(self.client.release(lease));
        }
    }

    fn save(
        &self,
        rank: u32,
        keys: &[BlockKey],
        parent: Option<BlockKey>,
        engine: u32,
    ) -> Result<Saved, PortError> {
        let slot = self.layouts[rank as usize].slot();
        let reserve = Reserve {
            namespace: &self.namespace,
            group: GROUP,
            slot,
            parent,
            keys,
        };
        let reservation = self
            .runtime
            .block_on(self.client.reserve(&reserve))
            .map_err(port_error)?;
        let (mut items, mut places) = (vec![], vec![]);
        for (item, answer) in (0..).zip(&reservation.answers) {
            if let Answer::Place { place, .. } = answer {
                items.push(item);
                places.push(*place);
            }
        }
        let refused = reservation.out_of_budget() as u32;
        let written = items.len() as u32;
        let had = keys.len() as u32 - written - refused;
        if items.is_empty() {
            return Ok(Saved {
                written,
                had,
                refused,
            });
        }
        let guard = reservation.begin_copy().map_err(gone)?;
        let mut sums = Vec::new();
        for (pool, run) in runs_of_a_pool(&places) {
            let blocks = items[run.clone()].iter().zip(&places[run]);
            let copies = blocks
                .map(|(i, p)| BlockCopy {
                    block: engine + i,
                    place: p.offset(),
                })
                .collect();
            let pool = reservation.session().pools().get(pool);
            let pool = pool.ok_or_else(|| PortError::Fatal("a place in no pool".into()))?;
            let outcome = self.copy(Direction::Save, rank, pool, copies)?;
            outcome.result.map_err(fatal)?;
            sums.extend(outcome.checksums);
        }
        drop(guard);
        let seal = self.client.seal(&reservation, &items, &sums);
        self.runtime.block_on(seal).map_err(gone)?;
        Ok(Saved {
            written,
            had,
            refused,
        })
    }

    fn reconnect(&self, timeout: Duration) -> Result<(), PortError> {
        let mut status = self.client.status();
        self.runtime
            .block_on(async {
                let back = status.wait_for(|s| matches!(s, Status::Connected { .. }));
                match tokio::time::timeout(timeout, back).await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(_)) | Err(_) => Err(()),
                }
            })
            .map_err(|()| PortError::Unavailable(format!("{:?}", *status.borrow())))
    }
}

// Neighbouring places of one pool, with its number.
fn runs_of_a_pool(places: &[crate::core::Place]) -> Vec<(u8, Range<usize>)> {
    let mut runs: Vec<(u8, Range<usize>)> = vec![];
    for (i, place) in places.iter().enumerate() {
        match runs.last_mut() {
            Some((pool, run)) if *pool == place.pool() => run.end = i + 1,
            _ => runs.push((place.pool(), i..i + 1)),
        }
    }
    runs
}

fn copies(engine: u32, places: &[crate::core::Place]) -> Vec<BlockCopy> {
    let copy = |(block, place): (u32, &crate::core::Place)| BlockCopy {
        block,
        place: place.offset(),
    };
    (engine..).zip(places).map(copy).collect()
}

/// How many blocks of `block_bytes` a pool of `pool_bytes` holds.
fn blocks_in(pool_bytes: u64, block_bytes: u64) -> u64 {
    let mut pool = SlabAllocator::new(pool_bytes);
    std::iter::from_fn(|| pool.alloc(block_bytes)).count() as u64
}

fn node_error(op: &'static str, error: impl ToString) -> Error {
    Error::Node {
        op,
        reason: error.to_string(),
    }
}

fn fatal(error: impl ToString) -> PortError {
    PortError::Fatal(error.to_string())
}

// While saving, a session that ended means that the node is gone.
fn gone(error: crate::error::Error) -> PortError {
    match port_error(error) {
        PortError::Stale(reason) => PortError::Unavailable(reason),
        other => other,
    }
}

fn port_error(error: crate::error::Error) -> PortError {
    use crate::error::Error as E;
    let reason = error.to_string();
    match &error {
        E::Unavailable { .. } | E::Timeout { .. } => PortError::Unavailable(reason),
        E::Stale { .. } => PortError::Stale(reason),
        _ => match error.kind() {
            ErrorKind::Retry => PortError::Unavailable(reason),
            ErrorKind::Busy => PortError::Refused(reason),
            ErrorKind::Closed => PortError::Stale(reason),
            _ => PortError::Fatal(reason),
        },
    }
}
