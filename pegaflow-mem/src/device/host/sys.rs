// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Memory that the host device may touch, and the copy of one piece.

use crate::checksum::sys::{Kernel, Store};
use crate::copy::sys::copy;
use crate::layout::Piece;
use crate::pool::shm::{Access, SharedMemory, sys::Mapping};
use crate::{Error, Result};
use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

enum Owner {
    Anonymous(Mapping),
    Shared(Arc<SharedMemory>),
    Foreign {
        ptr: NonNull<u8>,
        len: u64,
        _owner: Box<dyn Any + Send + Sync>,
    },
}

// SAFETY: the pointer of `Foreign` may be used from any thread, as `HostMemory::foreign` demands; the other kinds are Send by themselves.
unsafe impl Send for Owner {}
// SAFETY: `&Owner` only gives out the pointer and the length.
unsafe impl Sync for Owner {}

/// Memory of this process that stands for device memory. Clones are the same memory; it lives as long as any of them.
///
/// As with pools, bytes are copied in and out and never lent, since copies may run meanwhile.
#[derive(Clone)]
pub struct HostMemory {
    owner: Arc<Owner>,
}

impl HostMemory {
    /// New zeroed memory.
    ///
    /// # Errors
    /// [`Error::Os`] if there is none.
    pub fn zeroed(bytes: u64) -> Result<Self> {
        let map = Mapping::anonymous(bytes as usize).map_err(|e| Error::os("mmap", e))?;
        Ok(Self {
            owner: Arc::new(Owner::Anonymous(map)),
        })
    }

    /// Memory shared with another process.
    pub fn shared(memory: Arc<SharedMemory>) -> Self {
        Self {
            owner: Arc::new(Owner::Shared(memory)),
        }
    }

    /// Memory that something else owns, for example a tensor of an engine that runs on the CPU.
    ///
    /// # Safety
    /// Until `owner` is dropped, `ptr..+len` must stay mapped, readable and writable from any thread. Others may access it meanwhile only
    /// in ways that tolerate a concurrent copy: the engine's own ordering (events, waiting for outcomes) sees to that.
    pub unsafe fn foreign(ptr: NonNull<u8>, len: u64, owner: Box<dyn Any + Send + Sync>) -> Self {
        Self {
            owner: Arc::new(Owner::Foreign {
                ptr,
                len,
                _owner: owner,
            }),
        }
    }

    /// The address of its first byte, which layouts count from.
    pub fn base(&self) -> u64 {
        self.as_ptr() as u64
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        match &*self.owner {
            Owner::Anonymous(map) => map.len() as u64,
            Owner::Shared(memory) => memory.len(),
            Owner::Foreign { len, .. } => *len,
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether copies may write to it.
    pub fn is_writable(&self) -> bool {
        !matches!(&*self.owner, Owner::Shared(memory) if memory.access() == Access::Read)
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`], [`Error::ReadOnly`].
    pub fn copy_in(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let dst = self.check(offset, bytes.len())?;
        if !self.is_writable() {
            return Err(Error::ReadOnly);
        }
        // SAFETY: `dst..+len` was just checked; `bytes` is apart, as no slice of this memory exists on our side.
        unsafe { copy(bytes.as_ptr(), dst, bytes.len()) };
        Ok(())
    }

    /// Reads `bytes.len()` bytes from `offset`.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`].
    pub fn copy_out(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let src = self.check(offset, bytes.len())?;
        // SAFETY: as in `copy_in`.
        unsafe { copy(src, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn as_ptr(&self) -> *mut u8 {
        match &*self.owner {
            Owner::Anonymous(map) => map.as_ptr().as_ptr(),
            Owner::Shared(memory) => memory.as_ptr().as_ptr(),
            Owner::Foreign { ptr, .. } => ptr.as_ptr(),
        }
    }

    fn check(&self, offset: u64, bytes: usize) -> Result<*mut u8> {
        let (bytes, len) = (bytes as u64, self.len());
        if offset > len || bytes > len - offset {
            return Err(Error::OutOfBounds {
                what: "host memory",
                offset,
                bytes,
                len,
            });
        }
        Ok(self.as_ptr().wrapping_add(offset as usize))
    }
}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostMemory")
            .field("base", &self.base())
            .field("len", &self.len())
            .finish()
    }
}

/// Copies one piece and returns its checksum. Bounds are checked again here: this is the last safe place.
pub(super) fn copy_piece(
    kernel: Kernel,
    store: Store,
    save: bool,
    memory: &HostMemory,
    pool: &SharedMemory,
    piece: &Piece,
) -> Result<u64> {
    let bytes = piece.bytes as usize;
    // An address below the base wraps to an offset far beyond the end, which `check` refuses.
    let device = memory.check(piece.device.wrapping_sub(memory.base()), bytes)?;
    let words = bytes / 8;
    if save {
        let dst = pool.writable(piece.pool, bytes as u64)?;
        // SAFETY: both ranges were just checked and are kept by the references; a pool and device memory are different mappings. `kernel` is `Kernel::best()`.
        Ok(unsafe { kernel.copy_sum(piece.position, device, dst, words, store) })
    } else {
        if !memory.is_writable() {
            return Err(Error::ReadOnly);
        }
        let src = pool.check(piece.pool, bytes as u64)?;
        // SAFETY: as above, the other way.
        Ok(unsafe { kernel.copy_sum(piece.position, src, device, words, store) })
    }
}
