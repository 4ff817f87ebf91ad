// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A real node behind a [`Port`]: in this process, or a server's.
//!
//! One client finds prefixes, as an engine's scheduler does; a [`Worker`] for each rank loads and saves.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pegaflow_mem::device::Device;
use pegaflow_mem::device::host::{HostDevice, HostMemory, HostSettings};
use pegaflow_mem::{ErrorKind, SlabAllocator};
use pegaflow_meta::{BlockKey, GroupId, NamespaceId};

use super::engine::{Rank, engine_bytes, engine_layout};
use super::error::Error;
use super::port::{NodeFacts, Port, PortError, Saved};
use super::settings::ReplaySettings;
use crate::client::{Client, ClientSettings, Found, Lookup, NamespaceHandle, Status};
use crate::core::{BlockRef, CoreSettings, EvictionPolicy};
use crate::node::{NamespaceLayout, Node, NodeSettings, PoolFiles};
use crate::tier::SsdSettings;
use crate::worker::{LoadState, Save, Worker, WorkerSettings};

/// Where the node is.
#[derive(Debug, Clone, PartialEq)]
pub enum Place {
    /// In this process.
    Embedded {
        /// Bytes of its pool.
        ram_bytes: u64,
        /// Folder of the pool's files; anonymous memory without.
        pool_dir: Option<PathBuf>,
        /// Which of its blocks leave first.
        eviction: EvictionPolicy,
        /// Its SSD tier.
        ssd: SsdSettings,
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
    workers: Vec<Worker>,
    ranks: Vec<Rank>,
    block_bytes: u64,
    wait: Duration,
    // After the clients, which need it until they are dropped.
    runtime: tokio::runtime::Runtime,
}

impl NodePort {
    /// Connects to the node, or starts one, and sets up the workers.
    ///
    /// # Errors
    /// [`Error::Settings`], [`Error::Memory`], [`Error::Node`].
    pub fn open(place: &Place, settings: &ReplaySettings) -> Result<Self, Error> {
        let shape = settings.shape()?;
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
        let host = HostDevice::new(&HostSettings::default())?;
        let (mut layouts, mut ranks) = (vec![], vec![]);
        for slot in settings.slots()? {
            let blocks = settings.engine_blocks();
            let memory = HostMemory::zeroed(engine_bytes(&shape, &slot, blocks))?;
            let layout = Arc::new(engine_layout(shape, slot, memory.base(), blocks)?);
            host.register(memory.clone())?;
            ranks.push(Rank::new(layout.clone(), Arc::new(memory)));
            layouts.push(layout);
        }
        let device: Arc<dyn Device> = Arc::new(host);
        let worker = |layout| {
            let (client, settings) = (client.clone(), WorkerSettings::default());
            Worker::new(
                client,
                device.clone(),
                namespace.clone(),
                GROUP,
                layout,
                settings,
            )
        };
        let workers = layouts.into_iter().map(worker).collect::<Result<_, _>>();
        Ok(Self {
            workers: workers.map_err(|e| node_error("setting up a worker", e))?,
            client,
            namespace,
            ranks,
            block_bytes: shape.bytes(),
            wait: Duration::from_millis(settings.wait_ms.into()),
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
}

async fn open(place: &Place) -> crate::error::Result<Client> {
    match place {
        Place::Embedded {
            ram_bytes,
            pool_dir,
            eviction,
            ssd,
        } => {
            let files = pool_dir
                .clone()
                .map_or(PoolFiles::Anonymous, PoolFiles::Directory);
            let settings = NodeSettings {
                pool_bytes: *ram_bytes,
                files,
                core: CoreSettings {
                    eviction: *eviction,
                    ..CoreSettings::default()
                },
                ssd: ssd.clone(),
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
        let of_a_pool = blocks_in(stats.capacity_bytes / pools, self.block_bytes);
        Ok(NodeFacts {
            capacity_blocks: of_a_pool * pools,
        })
    }

    fn lookup(&self, keys: &[BlockKey]) -> Result<(u32, Self::Held), PortError> {
        let mut lookup = Lookup::prefix(&self.namespace, GROUP, keys);
        lookup.lease = Some(LEASE);
        lookup.ticket = !self.wait.is_zero();
        let found = self
            .runtime
            .block_on(self.client.lookup(&lookup))
            .map_err(port_error)?;
        let blocks = found.blocks.len();
        Ok((blocks as u32, (found, keys[..blocks].to_vec())))
    }

    fn wait(&self, (found, held): &mut Self::Held, keys: &[BlockKey]) -> Result<u32, PortError> {
        let (Some(ticket), Some(lease)) = (&found.ticket, &found.lease) else {
            return Ok(0);
        };
        let before = found.blocks.len();
        // Whatever has come by then is of use.
        let claimed = self.runtime.block_on(async {
            ticket.wait(self.wait).await;
            self.client.claim(lease).await
        });
        let claimed = claimed.map_err(port_error)?;
        found.blocks = claimed.blocks;
        held.extend_from_slice(&keys[before..found.blocks.len()]);
        Ok((found.blocks.len() - before) as u32)
    }

    fn load(
        &self,
        rank: u32,
        (found, keys): &Self::Held,
        blocks: Range<u32>,
        engine: u32,
    ) -> Result<u32, PortError> {
        let range = blocks.start as usize..blocks.end as usize;
        let rebased = |block: &BlockRef| BlockRef {
            key: block.key - blocks.start,
            ..*block
        };
        let refs = found.blocks[range.clone()].iter().map(rebased).collect();
        let engine = (engine..).take(range.len()).collect();
        let load = self.workers[rank as usize].load_refs(refs, keys[range].to_vec(), engine);
        let loaded = self.runtime.block_on(load).map_err(port_error)?;
        let good = loaded.prefix();
        match loaded.states.get(good) {
            Some(LoadState::Missing) => Err(PortError::Stale("a leased block is gone".into())),
            _ => Ok(good as u32),
        }
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
        let save = Save {
            parent,
            keys: keys.to_vec(),
            blocks: (engine..).take(keys.len()).collect(),
            after: None,
        };
        let saved = self
            .runtime
            .block_on(self.workers[rank as usize].save(save))
            .map_err(gone)?;
        Ok(Saved {
            written: saved.completed + saved.partial,
            had: saved.known,
            refused: saved.out_of_budget + saved.dropped,
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
