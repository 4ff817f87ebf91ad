// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Memory that several processes map: a memfd, or a file in `/dev/shm`, on hugetlbfs or anywhere else. Mode 0600.
//!
//! Any process that has it mapped may write at any time, so this module never lends a `&[u8]`: bytes are copied in and
//! out, and a race gives unspecified bytes (which checksums catch), not undefined behaviour. Words for coordination
//! are [`SharedWord`]s: atomic.
//!
//! Knows nothing of blocks. Invariant: the mapping lives as long as any handle, and its size never changes.

mod create;
mod pages;
pub(crate) mod sys;
#[cfg(test)]
mod tests;

use crate::copy;
use crate::{Error, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

pub use create::{Backing, PoolSpec};
pub use pages::HugePages;
use sys::Mapping;

/// What a holder may do with the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Map for reading only; writes are refused here, and trap in hardware elsewhere.
    Read,
    /// Map for reading and writing.
    ReadWrite,
}

/// Which pages a pool really has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageKind {
    /// 4 KiB (or what the machine's base page is).
    Base,
    /// Base pages that the kernel may join.
    Transparent,
    /// Reserved huge pages of this many bytes.
    Huge(u64),
    /// Not known: the memory was attached, not created, and does not lie on hugetlbfs.
    Unknown,
}

/// Memory shared between processes.
#[derive(Debug)]
pub struct SharedMemory {
    map: Mapping,
    fd: OwnedFd,
    path: Option<PathBuf>,
    access: Access,
    pages: PageKind,
    notes: Vec<String>,
}

impl SharedMemory {
    /// Creates zeroed memory. See [`PoolSpec`].
    ///
    /// # Errors
    /// [`Error::HugePages`] if the pages asked for cannot be had, [`Error::Os`] for anything else; no file is left behind.
    pub fn create(spec: &PoolSpec) -> Result<Self> {
        create::create(spec, Path::new("/sys"))
    }

    /// Maps memory that another process handed over.
    ///
    /// # Errors
    /// [`Error::Os`] if it cannot be mapped so, or is empty.
    pub fn attach_fd(fd: OwnedFd, access: Access) -> Result<Self> {
        create::attach(fd, None, access)
    }

    /// Maps a file that [`create`](Self::create) made, perhaps in an earlier life of this process.
    ///
    /// # Errors
    /// [`Error::Os`] if there is none, it is no regular file, belongs to another user or is open to others, or cannot be mapped.
    pub fn attach_path(path: &Path, access: Access) -> Result<Self> {
        create::attach_path(path, access)
    }

    /// Bytes of the memory.
    pub fn len(&self) -> u64 {
        self.map.len() as u64
    }

    /// False: empty memory cannot be made.
    pub fn is_empty(&self) -> bool {
        self.map.len() == 0
    }

    /// What this holder may do.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The pages it has.
    pub fn pages(&self) -> PageKind {
        self.pages
    }

    /// What could not be had and was done without, in words for a log.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The file, if it has a name.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The descriptor, to be handed to other processes.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The NUMA node on which the page at `offset` lies.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`], or [`Error::Os`] where the kernel does not say.
    pub fn node_at(&self, offset: u64) -> Result<u32> {
        self.check(offset, 1)?;
        self.map
            .node_at(offset as usize)
            .map_err(|e| Error::os("get_mempolicy", e))
    }

    /// The first byte, for devices that need addresses. Whoever dereferences it proves that access; see the module page
    /// for what others may do meanwhile.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.map.as_ptr()
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`], [`Error::ReadOnly`].
    pub fn copy_in(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let dst = self.writable(offset, bytes.len() as u64)?;
        // SAFETY: `dst..+len` was just checked to lie in the mapping and be writable; `bytes` cannot overlap it, as no slice of the mapping exists.
        unsafe { copy::sys::copy(bytes.as_ptr(), dst, bytes.len()) };
        Ok(())
    }

    /// Reads `bytes.len()` bytes from `offset`.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`].
    pub fn copy_out(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let src = self.check(offset, bytes.len() as u64)?;
        // SAFETY: `src..+len` was just checked to lie in the mapping; `bytes` cannot overlap it, as no slice of the mapping exists.
        unsafe { copy::sys::copy(src, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Copies `len` bytes inside this memory, or to another.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`], [`Error::ReadOnly`]; [`Error::Layout`] if source and destination overlap.
    pub fn copy_to(&self, offset: u64, to: &SharedMemory, to_offset: u64, len: u64) -> Result<()> {
        let src = self.check(offset, len)?;
        let dst = to.writable(to_offset, len)?;
        if (src as usize).abs_diff(dst as usize) < len as usize {
            let reason = "source and destination overlap";
            return Err(Error::Layout {
                what: "copy",
                reason,
            });
        }
        // SAFETY: both ranges were just checked, and do not overlap as addresses. (Two mappings of one file may overlap as
        // memory: then bytes are unspecified, as with any concurrent writer.)
        unsafe { copy::sys::copy(src, dst, len as usize) };
        Ok(())
    }

    /// Sets `len` bytes at `offset` to `byte`.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`], [`Error::ReadOnly`].
    pub fn fill(&self, offset: u64, len: u64, byte: u8) -> Result<()> {
        let dst = self.writable(offset, len)?;
        // SAFETY: `dst..+len` was just checked to lie in the mapping and be writable.
        unsafe { copy::sys::fill(dst, len as usize, byte) };
        Ok(())
    }

    /// The word at `offset` (a multiple of 8), shared with all who map this memory.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`], [`Error::Misaligned`].
    pub fn word(&self, offset: u64) -> Result<SharedWord<'_>> {
        Ok(SharedWord {
            word: &self.words(offset, 1)?[0],
            writable: self.access == Access::ReadWrite,
        })
    }

    /// Reads words from `offset` (a multiple of 8), each whole, with what their writer did before it stored them.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`], [`Error::Misaligned`].
    pub fn load_words(&self, offset: u64, out: &mut [u64]) -> Result<()> {
        let words = self.words(offset, out.len())?;
        for (out, word) in out.iter_mut().zip(words) {
            *out = word.load(Ordering::Relaxed);
        }
        fence(Ordering::Acquire);
        Ok(())
    }

    /// Writes words from `offset` (a multiple of 8), each whole, after everything this thread wrote before; among
    /// themselves they may be seen in any order.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`], [`Error::Misaligned`], [`Error::ReadOnly`].
    pub fn store_words(&self, offset: u64, values: &[u64]) -> Result<()> {
        if self.access == Access::Read {
            return Err(Error::ReadOnly);
        }
        let words = self.words(offset, values.len())?;
        fence(Ordering::Release);
        for (word, value) in words.iter().zip(values) {
            word.store(*value, Ordering::Relaxed);
        }
        Ok(())
    }

    /// `count` words at `offset`. To be stored to only if [`Access::ReadWrite`].
    fn words(&self, offset: u64, count: usize) -> Result<&[AtomicU64]> {
        if !offset.is_multiple_of(8) {
            return Err(Error::Misaligned { offset, align: 8 });
        }
        let ptr = self.check(offset, count as u64 * 8)?;
        // SAFETY: inside the mapping, which `self` keeps for the reference's life; aligned, as mappings start at pages; all
        // accesses from safe code in this process are atomic or made by `copy::sys`.
        Ok(unsafe { std::slice::from_raw_parts(ptr.cast(), count) })
    }

    /// Checks a range and returns its first byte.
    pub(crate) fn check(&self, offset: u64, bytes: u64) -> Result<*const u8> {
        let len = self.len();
        if offset > len || bytes > len - offset {
            return Err(Error::OutOfBounds {
                what: "shared memory",
                offset,
                bytes,
                len,
            });
        }
        Ok(self.map.as_ptr().as_ptr().wrapping_add(offset as usize))
    }

    /// Checks a range for writing and returns its first byte.
    pub(crate) fn writable(&self, offset: u64, bytes: u64) -> Result<*mut u8> {
        if self.access == Access::Read {
            return Err(Error::ReadOnly);
        }
        self.check(offset, bytes).map(<*const u8>::cast_mut)
    }
}

/// A 64-bit word that several processes see.
#[derive(Debug, Clone, Copy)]
pub struct SharedWord<'a> {
    word: &'a AtomicU64,
    writable: bool,
}

impl SharedWord<'_> {
    /// Reads it; what the writer did before its [`store`](Self::store) is seen after.
    pub fn load(&self) -> u64 {
        // A relaxed load and a fence: the only kind of atomic read that is defined on read-only pages.
        let value = self.word.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        value
    }

    /// Writes it, after everything this thread wrote before.
    ///
    /// # Errors
    /// [`Error::ReadOnly`].
    pub fn store(&self, value: u64) -> Result<()> {
        self.check()?;
        self.word.store(value, Ordering::Release);
        Ok(())
    }

    /// Writes `new` if it is `current`; returns what it was, as `Ok` if it was written.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] (outer).
    pub fn compare_exchange(
        &self,
        current: u64,
        new: u64,
    ) -> Result<std::result::Result<u64, u64>> {
        self.check()?;
        Ok(self
            .word
            .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire))
    }

    fn check(&self) -> Result<()> {
        if self.writable {
            Ok(())
        } else {
            Err(Error::ReadOnly)
        }
    }
}

/// A run of a pool that travels with a request, for example through a disk's queue: it keeps the pool mapped.
///
/// It is a place, not a right: who may write there is the node's business (leases).
#[derive(Debug, Clone)]
pub struct PoolBuf {
    memory: Arc<SharedMemory>,
    offset: u64,
    len: u64,
}

impl PoolBuf {
    /// `len` bytes at `offset` of a pool.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`].
    pub fn new(memory: Arc<SharedMemory>, offset: u64, len: u64) -> Result<Self> {
        memory.check(offset, len)?;
        Ok(Self {
            memory,
            offset,
            len,
        })
    }

    /// The pool.
    pub fn memory(&self) -> &Arc<SharedMemory> {
        &self.memory
    }

    /// Byte offset in the pool.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True for a run of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first byte, as [`SharedMemory::as_ptr`].
    pub fn as_ptr(&self) -> NonNull<u8> {
        let ptr = self
            .memory
            .as_ptr()
            .as_ptr()
            .wrapping_add(self.offset as usize);
        NonNull::new(ptr).expect("inside a mapping")
    }

    /// Writes the run's first bytes; as [`SharedMemory::copy_in`].
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if `bytes` is longer than the run, [`Error::ReadOnly`].
    pub fn copy_in(&self, bytes: &[u8]) -> Result<()> {
        self.check(bytes.len())?;
        self.memory.copy_in(self.offset, bytes)
    }

    /// Reads the run's first bytes; as [`SharedMemory::copy_out`].
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if `bytes` is longer than the run.
    pub fn copy_out(&self, bytes: &mut [u8]) -> Result<()> {
        self.check(bytes.len())?;
        self.memory.copy_out(self.offset, bytes)
    }

    fn check(&self, bytes: usize) -> Result<()> {
        let bytes = bytes as u64;
        if bytes > self.len {
            return Err(Error::OutOfBounds {
                what: "pool run",
                offset: 0,
                bytes,
                len: self.len,
            });
        }
        Ok(())
    }
}
