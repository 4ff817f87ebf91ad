// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! One worker of an engine: its KV memory on one side, the node's pools on the other.
//!
//! A save reserves, copies with checksums, and seals; a load copies, compares with the checksums of the
//! record, and releases. Both go on to their end when their caller stops waiting, so no place is freed
//! and no lease ends under a copy that still runs.
//!
//! Invariant: a block that is said to be loaded has the bytes that were saved. What cannot be proven
//! is a miss.

mod load;
mod save;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use pegaflow_mem::device::{Completion, Device, Outcome, PoolHandle};
use pegaflow_mem::{BlockShape, KvLayout};
use pegaflow_meta::GroupId;

pub use load::{LoadState, Loaded};
pub use save::{Save, Saved};

use crate::client::{Client, CopyGuard, NamespaceHandle, PoolView};
use crate::describe::settings;
use crate::error::{Error, Result};
use crate::node::GroupLayout;

settings! {
    /// How much a worker does at once.
    pub struct WorkerSettings {
        /// Bytes of one copy job. Sealing of one job overlaps with the copy of the next.
        pub job_bytes_max: u64 = 32 << 20,
        /// Copy jobs under way at once, for each save or load.
        pub jobs_max: u32 = 3,
        /// Keys of one reservation.
        pub reserve_keys_max: u32 = 4096,
    }
}

/// Saves and loads blocks of one cache group for one slot of one device.
#[derive(Debug, Clone)]
pub struct Worker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Client,
    device: Arc<dyn Device>,
    namespace: NamespaceHandle,
    group: GroupId,
    layout: Arc<KvLayout>,
    /// Stages that the slot covers.
    stages: Range<u32>,
    /// Pools as the device knows them, by what they are.
    pools: Mutex<HashMap<[u8; 16], PoolHandle>>,
    settings: WorkerSettings,
}

impl Worker {
    /// A worker whose KV of `group` lies as `layout` says, in memory that `device` knows.
    ///
    /// # Errors
    /// [`Error::Protocol`] if the layout's blocks are not those of the namespace, or its slot cuts a
    /// stage.
    pub fn new(
        client: Client,
        device: Arc<dyn Device>,
        namespace: NamespaceHandle,
        group: GroupId,
        layout: Arc<KvLayout>,
        settings: WorkerSettings,
    ) -> Result<Self> {
        let known = namespace.layout().groups.get(usize::from(group.0));
        let known = known.ok_or_else(|| Error::protocol("the namespace has no such group"))?;
        if known.shape != *layout.shape() {
            return Err(Error::protocol(format_args!(
                "the worker's blocks are {:?}, the namespace's {:?}",
                layout.shape(),
                known.shape
            )));
        }
        let stages = known.stages_of(layout.slot())?;
        Ok(Self(Arc::new(Inner {
            client,
            device,
            namespace,
            group,
            layout,
            stages,
            pools: Mutex::default(),
            settings,
        })))
    }

    /// The client that it asks with.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.0.client
    }

    /// The namespace of its blocks.
    #[must_use]
    pub fn namespace(&self) -> &NamespaceHandle {
        &self.0.namespace
    }

    /// Its cache group.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.0.group
    }
}

impl Inner {
    fn shape(&self) -> &BlockShape {
        self.layout.shape()
    }

    fn group_layout(&self) -> &GroupLayout {
        &self.namespace.layout().groups[usize::from(self.group.0)]
    }

    /// Blocks of one copy job.
    fn job_blocks(&self) -> usize {
        let slot = self.layout.slot().bytes(self.shape()).max(1);
        usize::try_from(self.settings.job_bytes_max / slot)
            .unwrap_or(usize::MAX)
            .max(1)
    }

    /// The pool as the device knows it; made known to it at first use.
    fn attach(&self, pool: &PoolView) -> Result<PoolHandle> {
        let mut pools = self.pools.lock();
        if let Some(handle) = pools.get(&pool.uuid) {
            return Ok(handle.clone());
        }
        let handle = self.device.attach_pool(pool.data.clone())?;
        pools.insert(pool.uuid, handle.clone());
        Ok(handle)
    }
}

/// Copies under way, and the session's word that they are. Dropped before its end, it waits for it.
#[derive(Debug)]
struct Running {
    completions: Vec<Completion>,
    _guard: CopyGuard,
}

impl Running {
    fn new(guard: CopyGuard) -> Self {
        Self {
            completions: vec![],
            _guard: guard,
        }
    }

    /// The outcomes, in the order of the jobs, once nothing touches their memory any more.
    async fn finish(mut self) -> Vec<Outcome> {
        let mut outcomes = vec![];
        for completion in &mut self.completions {
            outcomes.push(completion.await);
        }
        self.completions.clear();
        outcomes
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for completion in self.completions.drain(..) {
            // A completion that has been read has nothing left to wait for.
            if !completion.is_done() {
                completion.wait();
            }
        }
    }
}

fn check_lengths(keys: usize, blocks: usize) -> Result<()> {
    if keys == blocks {
        return Ok(());
    }
    Err(Error::protocol(format_args!(
        "{keys} keys for {blocks} blocks of the engine"
    )))
}

/// Runs work to its end even if nobody waits for it any more.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    use tracing::Instrument;
    let span = tracing::Span::current();
    match tokio::spawn(work.instrument(span)).await {
        Ok(done) => done,
        Err(error) => Err(Error::unavailable(error)),
    }
}
