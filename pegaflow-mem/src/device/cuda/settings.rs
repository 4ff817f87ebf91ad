// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Settings of a CUDA device.

use crate::copy::Method;
use crate::{Error, Result};
use std::path::PathBuf;

/// Settings of [`CudaDevice`](super::CudaDevice).
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields, default))]
pub struct CudaSettings {
    /// Which GPU, as CUDA counts them in this process.
    pub ordinal: u32,
    /// Device memory for staging, both directions together, in bytes; 0 switches the staged way off. How it is cut into slots
    /// is measured.
    pub staging_bytes_max: u64,
    /// Pools are pinned in pieces of this many bytes, when first touched. A multiple of 2 MiB.
    pub register_bytes: u64,
    /// Pin a pool when it is attached, not piece by piece at first use: pinning can wait for the engine's work.
    pub pin_at_attach: bool,
    /// Always this way, where it is open; measured rates decide if not given.
    pub method: Option<Method>,
    /// Thread blocks of a kernel that reads or writes the pool itself: enough to fill the link, no more.
    pub direct_blocks: u32,
    /// Layers are signalled together until they have this many bytes.
    pub signal_bytes_min: u64,
    /// Jobs up to this many bytes go past the queue, where one launch does them.
    pub express_bytes_max: u64,
    /// Where measured rates are kept, by device and driver; nowhere if not given.
    pub cache_dir: Option<PathBuf>,
}

impl Default for CudaSettings {
    fn default() -> Self {
        Self {
            ordinal: 0,
            staging_bytes_max: 128 << 20,
            register_bytes: 1 << 30,
            pin_at_attach: false,
            method: None,
            direct_blocks: 16,
            signal_bytes_min: 4 << 20,
            express_bytes_max: 2 << 20,
            cache_dir: None,
        }
    }
}

impl CudaSettings {
    /// # Errors
    /// [`Error::Layout`] for values that cannot be.
    pub fn validate(&self) -> Result<()> {
        let fail = |reason| {
            Err(Error::Layout {
                what: "CUDA settings",
                reason,
            })
        };
        if self.register_bytes == 0 || !self.register_bytes.is_multiple_of(2 << 20) {
            return fail("register_bytes must be a multiple of 2 MiB");
        }
        if self.direct_blocks == 0 {
            return fail("direct_blocks must be at least 1");
        }
        Ok(())
    }
}
