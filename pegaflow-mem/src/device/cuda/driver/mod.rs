// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Owners for what the CUDA driver hands out: context, streams, events, memory, registrations, kernels.
//!
//! Everything unsafe about CUDA is in here and in the table of calls. Callers work with values that can only be made from
//! memory that is owned or was verified, so an address that was never checked cannot be given to a copy or a kernel.
//! Knows nothing of jobs, rings or thresholds.
//!
//! Invariant: a value that stands for memory is dropped only after the work on it is known to be finished; the lanes see
//! to that, and every `Drop` here relies on it.

mod engine;
mod memory;
mod module;
mod pool;
#[cfg(test)]
pub(super) mod sim;
mod stream;

pub use engine::{EngineEvent, EngineStream, Gate};
pub(super) use memory::{DeviceMemory, PinnedMemory, Registration, Span, VerifiedLayout};
pub(super) use module::{
    CHUNK_BYTES_MAX, Far, Function, Launch, Module, Publish, Signal, Sums, WORDS,
};
pub(super) use pool::RegisteredPool;
pub(super) use stream::{BatchScratch, Event, Row2d, Stream};

use super::ffi::{self, Api, CuDevice, CuResult, Handle, SUCCESS};
use crate::{Error, Result};
use std::ffi::{CStr, c_char, c_int};
use std::sync::Arc;

/// The primary context of one GPU in this process: the one that PyTorch and the CUDA runtime use too.
pub(super) struct Context {
    api: &'static Api,
    device: CuDevice,
    handle: Handle,
    facts: Facts,
}

/// What the driver says about a GPU.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// `cuda:N`.
    pub label: String,
    /// Marketing name.
    pub model: String,
    /// PCI address as in sysfs, lower case.
    pub pci: String,
    /// For example 13000.
    pub driver_version: i32,
    /// For example (9, 0).
    pub compute: (i32, i32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Kernels may use the host address of registered memory.
    pub host_pointer_works: bool,
    /// Bytes of device memory.
    pub memory_bytes: u64,
}

// SAFETY: cuda.h: driver API calls may be made from any thread once the context is current there; handles are plain values.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks internally.
unsafe impl Sync for Context {}

impl Context {
    /// Number of GPUs of the driver.
    pub(super) fn count(api: &'static Api) -> Result<u32> {
        let mut count = 0;
        // SAFETY: writes one int.
        let code = unsafe { (api.device_count)(&mut count) };
        fail(api, "cuda", "cuDeviceGetCount", code)?;
        Ok(count as u32)
    }

    /// What the driver says about GPU `ordinal`, without touching its context.
    pub(super) fn look(api: &'static Api, ordinal: u32) -> Result<Facts> {
        let (device, label) = Self::device(api, ordinal)?;
        Ok(Facts::read(api, device, label))
    }

    /// Retains the primary context of GPU `ordinal`; creates it if this process has none yet.
    pub(super) fn retain(api: &'static Api, ordinal: u32) -> Result<Arc<Self>> {
        let (device, label) = Self::device(api, ordinal)?;
        let facts = Facts::read(api, device, label);
        let mut handle = std::ptr::null_mut();
        // SAFETY: a valid device; writes one handle.
        let code = unsafe { (api.primary_context_retain)(&mut handle, device) };
        fail(api, &facts.label, "cuDevicePrimaryCtxRetain", code)?;
        Ok(Arc::new(Self {
            api,
            device,
            handle,
            facts,
        }))
    }

    fn device(api: &'static Api, ordinal: u32) -> Result<(CuDevice, String)> {
        let label = format!("cuda:{ordinal}");
        let mut device = 0;
        // SAFETY: writes one int.
        let code = unsafe { (api.device_get)(&mut device, ordinal as c_int) };
        fail(api, &label, "cuDeviceGet", code)?;
        Ok((device, label))
    }

    pub(super) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Whether one call can start many copies (driver 12.8 and newer).
    pub(super) fn has_batch(&self) -> bool {
        self.api.memcpy_batch_async.is_some()
    }

    /// Makes the context current on this thread until the guard goes; what was current before comes back.
    pub(super) fn enter(&self) -> Result<Entered<'_>> {
        // SAFETY: the handle is retained for the life of `self`.
        let code = unsafe { (self.api.context_push)(self.handle) };
        self.check("cuCtxPushCurrent", code)?;
        Ok(Entered {
            context: self,
            not_send: std::marker::PhantomData,
        })
    }

    /// The most urgent stream priority of the device.
    pub(super) fn priority_high(&self) -> i32 {
        let (mut low, mut high) = (0, 0);
        // SAFETY: writes two ints.
        let code = unsafe { (self.api.context_priorities)(&mut low, &mut high) };
        if code == SUCCESS { high } else { 0 }
    }

    /// Turns a driver's answer into an error that names the call.
    pub(super) fn check(&self, op: &'static str, code: CuResult) -> Result<()> {
        fail(self.api, &self.facts.label, op, code)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: balances the retain; nothing of ours is left in the context (every owner holds an `Arc` of it).
        unsafe { (self.api.primary_context_release)(self.device) };
    }
}

impl Facts {
    fn read(api: &Api, device: CuDevice, label: String) -> Self {
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: writes one int; an attribute the driver does not know is an error, read as 0.
            let code = unsafe { (api.device_attribute)(&mut value, which, device) };
            if code == SUCCESS { value } else { 0 }
        };
        let text = |call: unsafe extern "C" fn(*mut c_char, c_int, CuDevice) -> CuResult| {
            let mut buffer = [0 as c_char; 256];
            // SAFETY: the buffer has the length given, and the driver ends the text with NUL.
            let code = unsafe { call(buffer.as_mut_ptr(), 256, device) };
            if code != SUCCESS {
                return String::new();
            }
            // SAFETY: the buffer was zeroed and the driver wrote at most 255 bytes of text.
            unsafe { CStr::from_ptr(buffer.as_ptr()) }
                .to_string_lossy()
                .into_owned()
        };
        let (mut version, mut memory) = (0, 0usize);
        // SAFETY: each writes one number.
        unsafe {
            (api.driver_version)(&mut version);
            (api.device_total_memory)(&mut memory, device);
        }
        Self {
            label,
            model: text(api.device_name),
            pci: text(api.device_pci_bus_id).to_ascii_lowercase(),
            driver_version: version,
            compute: (
                attribute(ffi::ATTRIBUTE_COMPUTE_MAJOR),
                attribute(ffi::ATTRIBUTE_COMPUTE_MINOR),
            ),
            multiprocessors: attribute(ffi::ATTRIBUTE_MULTIPROCESSORS).max(1) as u32,
            host_pointer_works: attribute(ffi::ATTRIBUTE_HOST_POINTER_FOR_REGISTERED) != 0,
            memory_bytes: memory as u64,
        }
    }
}

fn fail(api: &Api, label: &str, op: &'static str, code: CuResult) -> Result<()> {
    if code == SUCCESS {
        return Ok(());
    }
    Err(Error::Device {
        device: label.to_owned(),
        op,
        reason: api.name_of(code),
    })
}

/// Keeps a context current on this thread.
pub(super) struct Entered<'a> {
    context: &'a Context,
    not_send: std::marker::PhantomData<*const ()>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: pops what `enter` pushed on this same thread (the guard cannot leave it).
        unsafe { (self.context.api.context_pop)(&mut popped) };
    }
}
