// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! NVIDIA GPUs: copies between an engine's KV memory and shared pools, in the engine's own process and context.
//!
//! The driver is opened at run time; without one [`probe`] says so and everything else of the crate works as before. A
//! device uses the primary context (the one of PyTorch and the CUDA runtime), streams of its own with high priority, and
//! never synchronises more than its own work. Which way a batch takes is decided by [`crate::copy::method`] from rates
//! that [`calibrate`] measured on this very device.
//!
//! Knows nothing of leases, keys or the node. Invariant: what a job touches stays pinned, mapped and allocated until the
//! GPU is known to be done with it; an engine's memory is checked before each job, but an engine that frees it while a
//! copy runs makes the context unusable (CUDA cannot prevent that), as it would with its own kernels.

mod buffers;
mod calibrate;
mod driver;
mod ffi;
mod issue;
mod job;
mod kernels;
#[doc(hidden)]
pub mod lab;
mod lane;
mod plan;
mod ring;
mod settings;
#[cfg(test)]
mod tests;

use super::{Completion, CopyJob, Device, DeviceId, Direction, PoolHandle, Refused};
use crate::copy::{Method, Rates};
use crate::pool::shm::SharedMemory;
use crate::{Error, Result};
use buffers::{Buffers, DeviceBuffer};
use driver::{Context, DeviceMemory, RegisteredPool, Stream, VerifiedLayout};
use ffi::Api;
use issue::Issuer;
use kernels::Kernels;
use lane::{Express, Lane};
use parking_lot::Mutex;
use std::fmt;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

pub use driver::{EngineEvent, EngineStream, Gate};
pub use settings::CudaSettings;

/// What the driver says about this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuFacts {
    /// Number that [`CudaSettings::ordinal`] takes.
    pub ordinal: u32,
    /// Marketing name.
    pub model: String,
    /// PCI address as in sysfs.
    pub pci: String,
    /// NUMA node it hangs on, where the machine says so.
    pub numa_node: Option<u32>,
    /// Bytes of device memory.
    pub memory_bytes: u64,
    /// Compute capability.
    pub compute: (i32, i32),
    /// CUDA version of the driver, for example 13000.
    pub driver_version: i32,
    /// What will not work, and why; empty if all does.
    pub limits: Vec<String>,
}

/// Looks for GPUs, without creating a context.
///
/// # Errors
/// [`Error::Unsupported`] with the reason: no driver, or one that does not start.
pub fn probe() -> Result<Vec<GpuFacts>> {
    let api = open_driver()?;
    (0..Context::count(api)?)
        .map(|ordinal| Ok(facts_of(ordinal, &Context::look(api, ordinal)?)))
        .collect()
}

fn open_driver() -> Result<&'static Api> {
    ffi::driver().map_err(|reason| Error::Unsupported {
        what: "CUDA",
        reason,
    })
}

fn facts_of(ordinal: u32, facts: &driver::Facts) -> GpuFacts {
    let mut limits = vec![];
    if facts.compute < kernels::COMPUTE_MIN {
        limits.push("too old for the copy kernels: plain DMA, checksums by the CPU".to_owned());
    }
    if facts.driver_version < 12_080 {
        limits.push("driver older than CUDA 12.8: one call per DMA copy".to_owned());
    }
    if !facts.host_pointer_works {
        limits.push("kernels cannot use host addresses: no direct copies".to_owned());
    }
    GpuFacts {
        ordinal,
        model: facts.model.clone(),
        pci: facts.pci.clone(),
        numa_node: numa_node(&facts.pci),
        memory_bytes: facts.memory_bytes,
        compute: facts.compute,
        driver_version: facts.driver_version,
        limits,
    }
}

/// The NUMA node of a PCI device; `None` where the kernel says -1 or nothing.
fn numa_node(pci: &str) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/sys/bus/pci/devices/{pci}/numa_node")).ok()?;
    text.trim().parse().ok()
}

/// One GPU.
pub struct CudaDevice {
    inner: Arc<Inner>,
    threads: Vec<JoinHandle<()>>,
}

/// What jobs, lanes and waiters share.
struct Inner {
    id: DeviceId,
    name: String,
    settings: CudaSettings,
    context: Arc<Context>,
    kernels: Option<Arc<Kernels>>,
    /// Why there are no kernels.
    kernels_refused: Option<String>,
    buffers: Arc<Buffers>,
    save: Arc<Lane>,
    load: Arc<Lane>,
    /// Uploads of layouts.
    setup: Mutex<Setup>,
    rates: [Rates; 2],
    /// The method of the settings; benchmarks change it.
    method: Mutex<Option<Method>>,
    _arrivals: DeviceMemory,
}

struct Setup {
    stream: Stream,
    layouts: Vec<(Weak<crate::layout::KvLayout>, Arc<Uploaded>)>,
}

/// A layout that was checked, and the buffer that its strides are in.
struct Uploaded {
    verified: VerifiedLayout,
    _table: DeviceBuffer,
}

impl std::ops::Deref for Uploaded {
    type Target = VerifiedLayout;

    fn deref(&self) -> &VerifiedLayout {
        &self.verified
    }
}

/// Bytes between the counters of kernels on different streams.
const ARRIVALS_STEP: u64 = 128;

impl CudaDevice {
    /// Opens a GPU: retains its primary context, loads the kernels, measures (or reads from the cache) which way of copying
    /// pays when.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without a driver or for an ordinal that does not exist; [`Error::Device`] if the driver refuses.
    pub fn open(settings: &CudaSettings) -> Result<Self> {
        Self::with_driver(open_driver()?, settings)
    }

    fn with_driver(api: &'static Api, settings: &CudaSettings) -> Result<Self> {
        settings.validate()?;
        let count = Context::count(api)?;
        if settings.ordinal >= count {
            let reason = format!("there are {count} GPUs");
            return Err(Error::Unsupported {
                what: "this GPU",
                reason,
            });
        }
        let context = Context::retain(api, settings.ordinal)?;
        let current = context.enter()?;
        let (kernels, kernels_refused) = match Kernels::load(&context) {
            Ok(kernels) => (Some(Arc::new(kernels)), None),
            Err(why) => (None, Some(why.to_string())),
        };
        let buffers = Buffers::new(&context)?;
        let arrivals = DeviceMemory::new(&context, 16 * ARRIVALS_STEP)?;
        let setup = Setup {
            stream: Stream::new(&context)?,
            layouts: vec![],
        };
        setup.stream.zero(arrivals.span())?;
        setup.stream.synchronize()?;
        buffers.stock(&setup.stream)?;
        if let Some(kernels) = &kernels {
            kernels.warm_up(&setup.stream)?;
        }
        let rates = calibrate::rates(&context, kernels.as_deref(), settings);
        let lane = |index: u64| -> Result<Arc<Lane>> {
            let word = |i: u64| arrivals.span().part((index * 4 + i) * ARRIVALS_STEP, 4);
            let arrivals = [word(0), word(2)];
            let mut issuer = Issuer::new(&context, arrivals, settings.direct_blocks)?;
            // Now, not at first use: allocating may wait for the engine's work.
            let ring = rates[index as usize].ring;
            if let (true, Some((bytes, slots))) = (kernels.is_some(), ring) {
                issuer.set_ring(&context, bytes, slots as usize);
            }
            let express = Express::new(Stream::new(&context)?, word(1));
            Ok(Lane::new(
                &context,
                kernels.clone(),
                &buffers,
                issuer,
                express,
            ))
        };
        let facts = context.facts();
        let name = format!("{} ({}, {})", facts.label, facts.model, facts.pci);
        let (save, load) = (lane(0)?, lane(1)?);
        drop(current);
        let inner = Arc::new(Inner {
            id: DeviceId::unique(),
            name,
            settings: settings.clone(),
            kernels,
            kernels_refused,
            buffers,
            save,
            load,
            setup: Mutex::new(setup),
            rates,
            method: Mutex::new(settings.method),
            _arrivals: arrivals,
            context,
        });
        let threads = [("save", &inner.save), ("load", &inner.load)]
            .into_iter()
            .map(|(name, lane)| spawn(&format!("pegaflow-{name}"), lane))
            .collect::<Result<_>>()?;
        Ok(Self { inner, threads })
    }

    /// What the driver says about it, and what will not work.
    pub fn facts(&self) -> GpuFacts {
        let mut facts = facts_of(self.inner.settings.ordinal, self.inner.context.facts());
        if let Some(why) = &self.inner.kernels_refused {
            facts.limits.push(format!("copy kernels: {why}"));
        }
        facts
    }

    /// Measured rates of a direction.
    pub fn rates(&self, direction: Direction) -> &Rates {
        &self.inner.rates[direction as usize]
    }

    /// Marks the work that the engine's stream has now, for [`CopyJob::after`].
    ///
    /// # Errors
    /// [`Error::Device`] if the driver refuses.
    pub fn event(&self, stream: EngineStream) -> Result<super::DeviceEvent> {
        let _current = self.inner.context.enter()?;
        EngineEvent::record(&self.inner.context, stream).map(super::DeviceEvent::new)
    }

    /// As [`Device::copy`], with a gate for the engine's streams. With `signals`, layers pass the gate as they are done.
    ///
    /// # Errors
    /// As [`Device::copy`].
    pub fn submit(
        &self,
        direction: Direction,
        job: CopyJob,
        signals: bool,
    ) -> std::result::Result<(Completion, Gate), Box<Refused>> {
        self.inner.submit(direction, job, signals)
    }

    /// Pins all of a pool now, on `threads` threads, instead of piece by piece at first use.
    ///
    /// # Errors
    /// [`Error::Foreign`] for a pool of another device; the driver's refusal.
    pub fn pin_pool(&self, pool: &PoolHandle, threads: usize) -> Result<()> {
        let registered = pool
            .registration::<RegisteredPool>()
            .filter(|_| pool.device() == self.inner.id);
        let registered = registered.ok_or(Error::Foreign { what: "the pool" })?;
        let next = std::sync::atomic::AtomicUsize::new(0);
        let work = || -> Result<()> {
            let _current = self.inner.context.enter()?;
            loop {
                let chunk = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if chunk >= registered.chunks() {
                    return Ok(());
                }
                registered.register(chunk)?;
            }
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .try_for_each(|w| w.join().expect("pinning does not panic"))
        })
    }
}

fn spawn(name: &str, lane: &Arc<Lane>) -> Result<JoinHandle<()>> {
    let lane = Arc::clone(lane);
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread
        .spawn(move || lane.run())
        .map_err(|e| Error::os("starting a copy thread", e))
}

impl Device for CudaDevice {
    fn name(&self) -> &str {
        &self.inner.name
    }

    fn attach_pool(&self, pool: Arc<SharedMemory>) -> Result<PoolHandle> {
        let chunk_bytes = self.inner.settings.register_bytes;
        let registered = RegisteredPool::new(&self.inner.context, Arc::clone(&pool), chunk_bytes);
        if self.inner.settings.pin_at_attach {
            let _current = self.inner.context.enter()?;
            (0..registered.chunks()).try_for_each(|chunk| registered.register(chunk))?;
        }
        Ok(PoolHandle::new(self.inner.id, pool, Arc::new(registered)))
    }

    fn copy(
        &self,
        direction: Direction,
        job: CopyJob,
    ) -> std::result::Result<Completion, Box<Refused>> {
        let signals = job.progress.is_some();
        self.inner
            .submit(direction, job, signals)
            .map(|(completion, _)| completion)
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        self.inner.save.close();
        self.inner.load.close();
        for thread in self.threads.drain(..) {
            // A panic of the thread was reported by its own message; its jobs end when they are dropped.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaDevice")
            .field("name", &self.inner.name)
            .finish_non_exhaustive()
    }
}
