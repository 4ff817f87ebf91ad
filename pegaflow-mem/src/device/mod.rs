// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Devices: who copies KV blocks between an engine's memory and a pool.
//!
//! A [`CopyJob`] moves into the device and its parts come back in the [`Outcome`]. Nothing a job touches is freed, and nothing is
//! reported as finished, failed or cancelled, before no thread, DMA or kernel can touch it any more: the pool's mapping and the device's memory are owned by
//! the job until then, whatever happens to the [`Completion`].
//!
//! [`conformance`] (feature `testing`) is what every device must pass.

mod completion;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(any(test, feature = "testing"))]
pub mod faulty;
pub mod host;
mod job;

use crate::pool::shm::SharedMemory;
use crate::{Error, Result};
use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use completion::{CancelHandle, Completer, Completion, Outcome};
pub use job::{CopyJob, Direction, Progress};

/// Copies blocks between device memory and pools.
pub trait Device: Send + Sync + fmt::Debug {
    /// What it is, for people.
    fn name(&self) -> &str;

    /// Makes a pool known to the device (a GPU registers its memory, once). The pool stays mapped and registered as long as the
    /// handle, or a job that uses it, lives.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver refuses.
    fn attach_pool(&self, pool: Arc<SharedMemory>) -> Result<PoolHandle>;

    /// Copies blocks from the device into the pool.
    ///
    /// # Errors
    /// A job that cannot be started comes back, untouched: see [`CopyJob::check`], and [`Error::Limit`], [`Error::Foreign`],
    /// [`Error::Closed`].
    fn save(&self, job: CopyJob) -> std::result::Result<Completion, Box<Refused>> {
        self.copy(Direction::Save, job)
    }

    /// Copies blocks from the pool to the device. The outcome has the checksums of what was copied: the caller compares.
    ///
    /// # Errors
    /// As [`save`](Self::save).
    fn load(&self, job: CopyJob) -> std::result::Result<Completion, Box<Refused>> {
        self.copy(Direction::Load, job)
    }

    /// [`save`](Self::save) or [`load`](Self::load).
    ///
    /// # Errors
    /// As [`save`](Self::save).
    fn copy(
        &self,
        direction: Direction,
        job: CopyJob,
    ) -> std::result::Result<Completion, Box<Refused>>;
}

// Devices are used as `dyn Device`.
const _: Option<&dyn Device> = None;

/// A job that did not start, and why.
#[derive(Debug)]
pub struct Refused {
    /// Why not.
    pub error: Error,
    /// The job, as it came.
    pub job: CopyJob,
}

impl Refused {
    /// Boxes the pair.
    pub fn new(error: Error, job: CopyJob) -> Box<Self> {
        Box::new(Self { error, job })
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Refused {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl From<Box<Refused>> for Error {
    fn from(refused: Box<Refused>) -> Self {
        refused.error
    }
}

/// Tells devices of one process apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceId(u64);

impl DeviceId {
    /// A number no other device of this process has.
    pub fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A pool that is attached to a device.
#[derive(Clone)]
pub struct PoolHandle {
    device: DeviceId,
    pool: Arc<SharedMemory>,
    registration: Arc<dyn Any + Send + Sync>,
}

impl PoolHandle {
    /// For implementors of [`Device`]: `registration` undoes itself when dropped, and keeps what it needs for that (the pool) alive.
    pub fn new(
        device: DeviceId,
        pool: Arc<SharedMemory>,
        registration: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self {
            device,
            pool,
            registration,
        }
    }

    /// The pool's memory.
    pub fn pool(&self) -> &Arc<SharedMemory> {
        &self.pool
    }

    /// The device it is attached to.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// What the device keeps for the pool, if it is a `T`.
    pub fn registration<T: Any>(&self) -> Option<&T> {
        self.registration.downcast_ref()
    }
}

impl fmt::Debug for PoolHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolHandle")
            .field("device", &self.device)
            .field("pool", &self.pool)
            .finish()
    }
}

/// Work of the engine that a copy must wait for. Each device has its own kind, and refuses others.
#[derive(Clone)]
pub struct DeviceEvent(Arc<dyn Any + Send + Sync>);

impl DeviceEvent {
    /// Wraps a device's own event.
    pub fn new<T: Any + Send + Sync>(event: T) -> Self {
        Self(Arc::new(event))
    }

    /// The device's own event, if it is a `T`.
    pub fn get<T: Any>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }
}

impl fmt::Debug for DeviceEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeviceEvent")
    }
}
