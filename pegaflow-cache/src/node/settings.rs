// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What a node is told when it starts.

use std::path::PathBuf;

use pegaflow_mem::HugePages;

use super::trace::TraceSettings;
use crate::core::CoreSettings;
use crate::error::{Error, Result};
use crate::tier::SsdSettings;

/// Where a node keeps its pools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolFiles {
    /// Anonymous memory: gone with the node and its clients.
    Anonymous,
    /// Files in this folder: the next node that starts there finds the blocks again.
    Directory(PathBuf),
}

/// What a node is told when it starts.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeSettings {
    /// Its name, for logs and for people who look at `/proc`.
    pub name: String,
    /// Where it keeps its pools.
    pub files: PoolFiles,
    /// Bytes of all pools together.
    pub pool_bytes: u64,
    /// Pages of the pools' data.
    pub pages: HugePages,
    /// NUMA nodes to make a pool on, one each; empty for one pool wherever memory is.
    pub numa_nodes: Vec<u32>,
    /// Threads that touch all memory of a new pool before the node starts; 0 leaves it to first use.
    pub touch_threads: u32,
    /// Threads that read the records of an existing pool.
    pub recover_threads: u32,
    /// Most lookups that may wait on tickets at once.
    pub tickets_max: u32,
    /// How often leases are looked through for expired ones, in milliseconds.
    pub tick_ms: u32,
    /// The SSD tier.
    pub ssd: SsdSettings,
    /// Which lookups are traced in the log.
    pub trace: TraceSettings,
    /// Limits of the core.
    pub core: CoreSettings,
}

impl Default for NodeSettings {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            files: PoolFiles::Anonymous,
            pool_bytes: 4 << 30,
            pages: HugePages::Auto,
            numa_nodes: vec![],
            touch_threads: 0,
            recover_threads: 4,
            tickets_max: 4096,
            tick_ms: 100,
            ssd: SsdSettings::default(),
            trace: TraceSettings::default(),
            core: CoreSettings::default(),
        }
    }
}

/// The smallest pool there is.
pub const POOL_BYTES_MIN: u64 = 1 << 20;
/// The most pools of one node: what one hand-over can pass.
pub const POOLS_MAX: usize = 64;
/// The most tickets: 8 MiB of shared words.
pub const TICKETS_MAX: u32 = 1 << 20;
/// The longest time between two looks at what has expired, in milliseconds.
pub const TICK_MS_MAX: u32 = 10_000;

impl NodeSettings {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// [`Error::Setting`] for a value that cannot be; whatever the core says of its part.
    pub fn validate(&self) -> Result<()> {
        let pools = self.numa_nodes.len().max(1);
        if pools > POOLS_MAX {
            return Err(Error::Setting {
                setting: "numa_nodes",
                why: format!("{pools} pools, {POOLS_MAX} at most"),
            });
        }
        if self.pool_bytes / (pools as u64) < POOL_BYTES_MIN {
            return Err(Error::Setting {
                setting: "pool_bytes",
                why: format!(
                    "{} bytes for {pools} pools, each needs at least {POOL_BYTES_MIN}",
                    self.pool_bytes
                ),
            });
        }
        for (setting, value, max) in [
            ("tickets_max", self.tickets_max, TICKETS_MAX),
            ("tick_ms", self.tick_ms, TICK_MS_MAX),
        ] {
            if !(1..=max).contains(&value) {
                let why = format!("{value}; write 1 to {max}");
                return Err(Error::Setting { setting, why });
            }
        }
        self.ssd.validate()?;
        Ok(self.core.validate()?)
    }
}
