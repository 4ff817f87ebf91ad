// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The host device: its "device memory" is memory of this process, its own or another's that is mapped here.
//!
//! A bounded number of threads copies; each piece is copied and summed in one pass. Jobs start in the order in which they
//! become ready, and several threads work on one job.

mod engine;
mod event;
mod sys;
#[cfg(test)]
mod tests;

use super::{Completion, CopyJob, Device, DeviceId, Direction, PoolHandle, Refused};
use crate::checksum::Kernel;
use crate::pool::shm::SharedMemory;
use crate::{Error, Result};
use engine::Engine;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

pub use event::HostEvent;
pub use sys::HostMemory;

/// Settings of the host device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields, default))]
pub struct HostSettings {
    /// Threads that copy. At least 1.
    pub threads: u32,
    /// Jobs that may wait or run at once. Over it: [`Error::Limit`].
    pub jobs_max: u32,
    /// Runs of at least this many bytes are stored past the CPU's caches.
    pub stream_bytes_min: u32,
}

impl Default for HostSettings {
    fn default() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        Self {
            threads: cpus.min(4),
            jobs_max: 1024,
            stream_bytes_min: 2048,
        }
    }
}

/// Copies between this process's memory and pools.
#[derive(Debug)]
pub struct HostDevice {
    id: DeviceId,
    name: String,
    /// Registered memory by its first address.
    regions: Mutex<BTreeMap<u64, HostMemory>>,
    engine: Engine,
}

impl HostDevice {
    /// Starts the copying threads.
    ///
    /// # Errors
    /// [`Error::Os`] if threads cannot be started; [`Error::Layout`] for zero threads or jobs.
    pub fn new(settings: &HostSettings) -> Result<Self> {
        if settings.threads == 0 || settings.jobs_max == 0 {
            let reason = "threads and jobs_max must be at least 1";
            return Err(Error::Layout {
                what: "host device settings",
                reason,
            });
        }
        let kernel = Kernel::best();
        Ok(Self {
            id: DeviceId::unique(),
            name: format!("host ({} threads, {kernel:?})", settings.threads),
            regions: Mutex::default(),
            engine: Engine::new(settings, kernel)?,
        })
    }

    /// Makes memory known, so that layouts may point into it. Its addresses begin at [`HostMemory::base`].
    ///
    /// # Errors
    /// [`Error::InUse`] if it overlaps memory that is registered.
    pub fn register(&self, memory: HostMemory) -> Result<()> {
        let mut regions = self.lock();
        let (base, end) = (memory.base(), memory.base() + memory.len());
        let before = regions.range(..end).next_back();
        if before.is_some_and(|(at, m)| at + m.len() > base) {
            return Err(Error::InUse { place: base });
        }
        regions.insert(base, memory);
        Ok(())
    }

    /// Forgets memory; copies that use it already end as they would have, and own it until then.
    ///
    /// # Errors
    /// [`Error::Foreign`] if none is registered at `base`.
    pub fn unregister(&self, base: u64) -> Result<()> {
        let gone = self.lock().remove(&base);
        gone.map(|_| ())
            .ok_or(Error::Foreign { what: "the memory" })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, HostMemory>> {
        self.regions.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The registered memory that each layer of the job lies in.
    fn memory_of(&self, job: &CopyJob) -> Result<Vec<HostMemory>> {
        let regions = self.lock();
        let first = job.layout.slot().layers.start;
        let layers = job.layer_range();
        let find = |index: u32| {
            let (base, len) = job.layout.layer_extent((index - first) as usize);
            let (_, memory) = regions.range(..=base).next_back()?;
            (base + len <= memory.base() + memory.len()).then(|| memory.clone())
        };
        let found: Option<Vec<HostMemory>> = layers.map(find).collect();
        found.ok_or(Error::Foreign {
            what: "a layer's device memory",
        })
    }

    fn admit(&self, direction: Direction, job: &CopyJob) -> Result<Vec<HostMemory>> {
        job.check(self.id, direction)?;
        let memory = self.memory_of(job)?;
        if direction == Direction::Load && memory.iter().any(|m| !m.is_writable()) {
            return Err(Error::ReadOnly);
        }
        if job
            .after
            .as_ref()
            .is_some_and(|e| e.get::<HostEvent>().is_none())
        {
            return Err(Error::Foreign { what: "the event" });
        }
        Ok(memory)
    }
}

impl Device for HostDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn attach_pool(&self, pool: Arc<SharedMemory>) -> Result<PoolHandle> {
        Ok(PoolHandle::new(self.id, pool, Arc::new(())))
    }

    fn copy(
        &self,
        direction: Direction,
        job: CopyJob,
    ) -> std::result::Result<Completion, Box<Refused>> {
        match self.admit(direction, &job) {
            Ok(memory) => self.engine.submit(direction, job, memory),
            Err(error) => Err(Refused::new(error, job)),
        }
    }
}
