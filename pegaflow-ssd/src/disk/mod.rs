// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! One device: transfers in, answers out, in any order. Two ways to run it, io_uring and threads, behind one trait.
//!
//! Knows nothing of blocks. Invariant: every transfer is answered exactly once, and with its memory unless the device still holds it.

mod fault;
mod guard;
mod inflight;
mod sched;
mod threads;
mod uring;

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::settings::{Backend, IoSettings};
use crate::sys::{BlockFile, Region};
use crate::transfer::Transfer;

pub use fault::{Fault, FaultFile, FaultPlan};
pub use guard::{Guard, Part};
pub use sched::Scheduler;
pub use threads::ThreadDisk;
pub use uring::UringDisk;

/// What a device is and how it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskInfo {
    /// Bytes it has.
    pub bytes: u64,
    /// Bytes of a sector.
    pub sector_bytes: u32,
    /// Whether transfers go past the page cache.
    pub direct: bool,
    /// Which backend runs it: `io_uring` or `threads`.
    pub backend: &'static str,
    /// What a user should know, for example what was asked for and is not there, and why.
    pub notes: Vec<String>,
}

/// What is on its way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskLoad {
    /// Transfers waiting for their turn.
    pub queued: u64,
    /// Bytes of them.
    pub queued_bytes: u64,
    /// Transfers with the device.
    pub inflight: u64,
    /// Bytes of them.
    pub inflight_bytes: u64,
    /// Bytes of reads that may be with the device now; moves with how long they take there.
    pub read_limit_bytes: u64,
    /// Bytes of writes that may be with the device now; moves with the reads' latency.
    pub write_limit_bytes: u64,
}

/// A device that takes transfers without ever waiting for earlier ones.
pub trait Disk: Send + Sync {
    /// Takes transfers. Each is answered through its `done`, on another thread, also after a failure or when the device is closed.
    fn submit(&self, transfers: Vec<Transfer>);

    /// Takes a transfer back if the device has not finished it. It is answered either way.
    fn cancel(&self, id: u64);

    /// Names memory that transfers will often use.
    fn register(&self, region: &Region);

    /// What it is.
    fn info(&self) -> DiskInfo;

    /// What is on its way.
    fn load(&self) -> DiskLoad;

    /// Starts anew beside transfers that do not return: later ones are not stuck behind them.
    fn replace(&self);
}

/// Opens the backend that the settings ask for.
///
/// # Errors
/// [`Error::Unsupported`] if io_uring was asked for and the system forbids it.
pub fn open(file: Arc<dyn BlockFile>, settings: &IoSettings) -> Result<Arc<dyn Disk>> {
    if settings.backend == Backend::Threads || file.descriptor().is_none() {
        if settings.backend == Backend::Uring {
            return Err(Error::Unsupported(
                "io_uring needs a file of the system".into(),
            ));
        }
        return Ok(Arc::new(ThreadDisk::new(file, settings, Vec::new())));
    }
    match UringDisk::new(file.clone(), settings) {
        Ok(disk) => Ok(Arc::new(disk)),
        Err(e) if settings.backend == Backend::Auto => {
            let note = format!(
                "no io_uring ({e}), transfers run on {} threads",
                settings.threads
            );
            Ok(Arc::new(ThreadDisk::new(file, settings, vec![note])))
        }
        Err(e) => Err(Error::Unsupported(format!("io_uring: {e}"))),
    }
}

#[cfg(test)]
mod tests;
