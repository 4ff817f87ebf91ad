// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Memory that copies and kernels may touch: ours, pinned, registered, or the engine's after a check.

use super::super::ffi;
use super::{Context, Stream};
use crate::layout::{BlockCopy, KvLayout, Run};
use crate::{Error, Result};
use std::any::Any;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

/// Bytes that the GPU may touch. Only this module makes them, from memory that it owns or has checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Span {
    pub(super) address: u64,
    pub(super) bytes: u64,
}

impl Span {
    pub(in super::super) fn address(&self) -> u64 {
        self.address
    }

    pub(in super::super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A part of it.
    pub(in super::super) fn part(&self, offset: u64, bytes: u64) -> Span {
        let end = offset
            .checked_add(bytes)
            .expect("a part's end fits 64 bits");
        assert!(end <= self.bytes, "a part lies inside its whole");
        Span {
            address: self.address + offset,
            bytes,
        }
    }

    /// Both as one, if `next` begins where this ends.
    pub(in super::super) fn join(&self, next: &Span) -> Option<Span> {
        (self.address + self.bytes == next.address).then(|| Span {
            address: self.address,
            bytes: self.bytes + next.bytes,
        })
    }
}

/// Device memory of our own: staging slots, checksums, layout tables.
pub(in super::super) struct DeviceMemory {
    context: Arc<Context>,
    address: u64,
    bytes: u64,
}

impl DeviceMemory {
    /// # Errors
    /// [`Error::Device`] when the GPU has no room; see [`is_out_of_memory`](Self::is_out_of_memory).
    pub(in super::super) fn new(context: &Arc<Context>, bytes: u64) -> Result<Self> {
        let mut address = 0;
        // SAFETY: the context is current (callers hold `enter`); writes one address.
        let code = unsafe { (context.api.memory_alloc)(&mut address, bytes as usize) };
        context.check("cuMemAlloc", code)?;
        Ok(Self {
            context: Arc::clone(context),
            address,
            bytes,
        })
    }

    pub(in super::super) fn span(&self) -> Span {
        Span {
            address: self.address,
            bytes: self.bytes,
        }
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let entered = self.context.enter();
        if entered.is_ok() {
            // SAFETY: owned, freed once, and quiet (see the module's invariant).
            unsafe { (self.context.api.memory_free)(self.address) };
        }
    }
}

/// Pinned host memory of our own, mapped into the GPU: checksums on their way back, progress words.
pub(in super::super) struct PinnedMemory {
    context: Arc<Context>,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: owned memory without thread affinity; the GPU and the CPU share it by volatile accesses only.
unsafe impl Send for PinnedMemory {}
// SAFETY: as above.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    pub(in super::super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        let mut start = std::ptr::null_mut();
        // SAFETY: the context is current (callers hold `enter`); writes one pointer.
        let code = unsafe {
            (context.api.host_alloc)(&mut start, bytes, ffi::HOST_PORTABLE | ffi::HOST_DEVICEMAP)
        };
        context.check("cuMemHostAlloc", code)?;
        let start = NonNull::new(start.cast()).expect("the driver allocated it");
        // SAFETY: `bytes` bytes at `start` are ours and nobody else knows of them yet.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Self {
            context: Arc::clone(context),
            start,
            bytes,
        })
    }

    /// As the GPU sees it: pinned allocations have one address for both.
    pub(in super::super) fn span(&self) -> Span {
        Span {
            address: self.start.as_ptr() as u64,
            bytes: self.bytes as u64,
        }
    }

    pub(super) fn word_address(&self, index: usize) -> u64 {
        assert!((index + 1) * 4 <= self.bytes, "the word lies inside");
        self.start.as_ptr() as u64 + index as u64 * 4
    }

    /// Word `index`, which the GPU may be writing: what was written before it is visible too.
    pub(in super::super) fn word(&self, index: usize) -> u32 {
        let address = self.word_address(index) as *const std::sync::atomic::AtomicU32;
        // SAFETY: inside the allocation, 4-aligned (the driver aligns to pages), and only ever accessed atomically or by the GPU.
        unsafe { (*address).load(std::sync::atomic::Ordering::Acquire) }
    }

    /// Sets word `index` from the CPU.
    pub(in super::super) fn set_word(&self, index: usize, value: u32) {
        let address = self.word_address(index) as *const std::sync::atomic::AtomicU32;
        // SAFETY: as in `word`.
        unsafe { (*address).store(value, std::sync::atomic::Ordering::Release) }
    }

    /// The 64-bit number at `index * 8`, written by the GPU before a word that was seen, or an event that was waited for.
    pub(in super::super) fn number(&self, index: usize) -> u64 {
        assert!((index + 1) * 8 <= self.bytes, "the number lies inside");
        // SAFETY: inside the allocation and 8-aligned; volatile because the GPU wrote it.
        unsafe { self.start.as_ptr().cast::<u64>().add(index).read_volatile() }
    }

    /// Copies bytes out that the GPU has written, before an event that was waited for.
    #[cfg(test)]
    pub(in super::super) fn get(&self, offset: usize, bytes: &mut [u8]) {
        assert!(offset + bytes.len() <= self.bytes, "the bytes lie inside");
        // SAFETY: inside the allocation, which no reference points into.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.start.as_ptr().add(offset),
                bytes.as_mut_ptr(),
                bytes.len(),
            );
        }
    }

    /// Copies bytes in, for the GPU to read later.
    pub(in super::super) fn put(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.bytes, "the bytes lie inside");
        // SAFETY: inside the allocation, which no reference points into.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.start.as_ptr().add(offset),
                bytes.len(),
            );
        }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        let entered = self.context.enter();
        if entered.is_ok() {
            // SAFETY: owned, freed once, and quiet (see the module's invariant).
            unsafe { (self.context.api.host_free)(self.start.as_ptr().cast()) };
        }
    }
}

/// Host memory that the driver has pinned for us; unpinned on drop. Keeps its owner mapped.
pub(in super::super) struct Registration {
    context: Arc<Context>,
    start: u64,
    /// False if someone else in the process had registered it: then it is not ours to take back.
    ours: bool,
    _owner: Arc<dyn Any + Send + Sync>,
}

impl Registration {
    /// Pins `bytes` bytes at `start`, which `owner` keeps mapped.
    ///
    /// # Errors
    /// [`Error::Device`] with the driver's reason, and the memlock limit where that is a likely cause.
    pub(in super::super) fn new(
        context: &Arc<Context>,
        owner: Arc<dyn Any + Send + Sync>,
        start: NonNull<u8>,
        bytes: u64,
        read_only: bool,
    ) -> Result<Self> {
        let flags = ffi::HOST_PORTABLE
            | ffi::HOST_DEVICEMAP
            | if read_only { ffi::HOST_READ_ONLY } else { 0 };
        // SAFETY: the context is current; the owner keeps `start..start + bytes` mapped (callers pass a part of its mapping).
        let code =
            unsafe { (context.api.host_register)(start.as_ptr().cast(), bytes as usize, flags) };
        let ours = code != ffi::ERROR_ALREADY_REGISTERED;
        if ours && code != ffi::SUCCESS {
            return Err(Error::Device {
                device: context.facts.label.clone(),
                op: "cuMemHostRegister",
                reason: format!("{}; {}", context.api.name_of(code), memlock(bytes)),
            });
        }
        let start = start.as_ptr() as u64;
        Ok(Self {
            context: Arc::clone(context),
            start,
            ours,
            _owner: owner,
        })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let entered = self.context.enter();
        if entered.is_ok() && self.ours {
            // SAFETY: registered by us, unregistered once, and quiet (see the module's invariant); the owner is dropped after.
            unsafe { (self.context.api.host_unregister)(self.start as *mut _) };
        }
    }
}

/// What the process may lock, in words for an error message.
fn memlock(bytes: u64) -> String {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: writes one struct.
    unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    let allowed = match limit.rlim_cur {
        libc::RLIM_INFINITY => String::from("unlimited"),
        n => format!("{n} bytes"),
    };
    format!(
        "pinning {bytes} bytes was refused; the memlock limit is {allowed} (`ulimit -l`, `LimitMEMLOCK=` of systemd, \
         `--ulimit memlock=-1` of a container), and the memory limit of the cgroup counts pinned pages too"
    )
}

/// An engine's KV layout whose memory was found on this GPU, with its strides uploaded for the kernels. Whoever made it
/// keeps the table's memory as long.
pub(in super::super) struct VerifiedLayout {
    context: Arc<Context>,
    layout: Arc<KvLayout>,
    table: Span,
}

impl VerifiedLayout {
    /// Checks every layer and uploads the strides through `pinned`, into `table` if it has room there.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] for memory that is not (or no longer) allocated on this GPU.
    pub(in super::super) fn new(
        context: &Arc<Context>,
        layout: Arc<KvLayout>,
        stream: &Stream,
        pinned: &PinnedMemory,
        table: Span,
    ) -> Result<Self> {
        check_memory(context, &layout, layout.slot().layers.clone())?;
        let bytes: Vec<u8> = layout
            .views()
            .iter()
            .flat_map(|v| [v.base, v.block_stride, v.part_stride, v.head_stride])
            .flat_map(u64::to_ne_bytes)
            .collect();
        pinned.put(0, &bytes);
        let table = table.part(0, bytes.len() as u64);
        stream.copy(table, pinned.span().part(0, bytes.len() as u64))?;
        stream.synchronize()?;
        Ok(Self {
            context: Arc::clone(context),
            layout,
            table,
        })
    }

    pub(in super::super) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Bytes that the strides of a layout take.
    pub(in super::super) fn table_bytes(layout: &KvLayout) -> u64 {
        layout.views().len() as u64 * 32
    }

    pub(in super::super) fn layout(&self) -> &Arc<KvLayout> {
        &self.layout
    }

    /// The uploaded strides, one view a layer of the slot.
    pub(super) fn table(&self) -> Span {
        self.table
    }

    /// Looks again whether the layers (absolute numbers) are still allocated: an engine may have freed them. About 0.1 us a layer.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(in super::super) fn check(&self, layers: Range<u32>) -> Result<()> {
        check_memory(&self.context, &self.layout, layers)
    }

    /// The runs of one block copy, with the engine's side as a span.
    ///
    /// # Errors
    /// As [`KvLayout::runs_of`].
    pub(in super::super) fn runs(
        &self,
        copy: BlockCopy,
        layers: Range<u32>,
    ) -> Result<impl Iterator<Item = (Span, Run)> + '_> {
        // Runs of a valid layout lie in the extents of its layers, and those were verified.
        let runs = self.layout.runs_of(copy, layers)?;
        Ok(runs.map(|run| {
            (
                Span {
                    address: run.device,
                    bytes: run.bytes,
                },
                run,
            )
        }))
    }
}

fn check_memory(context: &Context, layout: &KvLayout, layers: Range<u32>) -> Result<()> {
    let first = layout.slot().layers.start;
    for layer in layers {
        let (base, bytes) = layout.layer_extent((layer - first) as usize);
        let end = base + bytes;
        let mut at = base;
        // An extent may span several mappings that touch (expandable segments of PyTorch).
        while at < end {
            match range_of(context, at) {
                Some(range) if range.end > at => at = range.end,
                _ => {
                    return Err(Error::OutOfBounds {
                        what: "the KV memory on the GPU",
                        offset: base,
                        bytes,
                        len: at - base,
                    });
                }
            }
        }
    }
    Ok(())
}

/// The allocation or mapping of this GPU that holds `address`.
fn range_of(context: &Context, address: u64) -> Option<Range<u64>> {
    let (mut kind, mut ordinal) = (0u32, -1i32);
    let (mut start, mut bytes) = (0u64, 0usize);
    let mut attributes = [
        ffi::POINTER_MEMORY_TYPE,
        ffi::POINTER_DEVICE_ORDINAL,
        ffi::POINTER_RANGE_START,
        ffi::POINTER_RANGE_SIZE,
    ];
    let mut data = [
        (&raw mut kind).cast(),
        (&raw mut ordinal).cast(),
        (&raw mut start).cast(),
        (&raw mut bytes).cast(),
    ];
    // SAFETY: four attributes and four places of the types that cuda.h gives for them; any address may be asked about.
    let code = unsafe {
        (context.api.pointer_attributes)(4, attributes.as_mut_ptr(), data.as_mut_ptr(), address)
    };
    let here = code == ffi::SUCCESS
        && kind == ffi::MEMORY_TYPE_DEVICE
        && ordinal == context.device
        && bytes > 0;
    here.then(|| start..start + bytes as u64)
}
