// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The one place where an address or a handle from Python becomes something to use.

use std::ptr::NonNull;

use pegaflow_mem::device::cuda::EngineStream;
use pegaflow_mem::device::host::HostMemory;
use pyo3::prelude::*;

use crate::error::invalid;

/// The engine's memory as the copy engine wants it.
pub(crate) fn engine_memory(address: u64, bytes: u64) -> PyResult<HostMemory> {
    let ptr = NonNull::new(address as *mut u8).ok_or_else(|| invalid("memory at address 0"))?;
    // SAFETY: the caller (the engine's process, through `Worker`) names storage of its KV tensors, which the engine
    // keeps for its whole life, and closes the rank before it lets go of it.
    Ok(unsafe { HostMemory::foreign(ptr, bytes, Box::new(())) })
}

/// A stream of the engine, as PyTorch's `stream.cuda_stream`.
pub(crate) fn engine_stream(handle: u64) -> EngineStream {
    // SAFETY: the caller names its current stream, which PyTorch keeps as long as the process lives.
    unsafe { EngineStream::from_raw(handle) }
}
