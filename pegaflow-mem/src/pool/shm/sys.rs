// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The system calls under shared memory: open, map, bind to a NUMA node, touch.

use crate::{Error, Result};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;

/// Bytes mapped into this process; unmapped when dropped. Gives out raw pointers only: others may write at any time.
#[derive(Debug)]
pub(crate) struct Mapping {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is not tied to the thread that made it: any thread may access or unmap it (mmap(2) knows no threads).
unsafe impl Send for Mapping {}
// SAFETY: `&Mapping` gives a pointer and a length, which are plain values; who dereferences proves that access by itself.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd` from its start, shared.
    pub(super) fn shared(fd: BorrowedFd<'_>, len: usize, writable: bool) -> io::Result<Self> {
        let prot = if writable {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        // SAFETY: a null hint lets the kernel choose addresses that nothing uses, so no memory of ours is replaced; `fd` is open.
        let ptr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                prot,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        Self::from_mmap(ptr, len)
    }

    /// Maps `len` zeroed bytes that only this process sees.
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: as in `shared`; an anonymous mapping takes no file.
        let ptr = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        let mapping = Self::from_mmap(ptr, len)?;
        // Only a hint: without huge pages everything works the same, slower.
        let _ = mapping.advise(0, len, libc::MADV_HUGEPAGE);
        Ok(mapping)
    }

    fn from_mmap(ptr: *mut libc::c_void, len: usize) -> io::Result<Self> {
        if ptr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let ptr = NonNull::new(ptr.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { ptr, len })
    }

    pub(crate) fn as_ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// madvise(2) on `len` bytes at `offset`, both multiples of the page size (checked: inside the mapping).
    pub(super) fn advise(&self, offset: usize, len: usize, advice: i32) -> io::Result<()> {
        assert!(
            offset <= self.len && len <= self.len - offset,
            "inside the mapping"
        );
        // SAFETY: the range lies in our own mapping; the advices used here (hugepage, dontdump, populate) change no content.
        let rc = unsafe { libc::madvise(self.ptr.as_ptr().add(offset).cast(), len, advice) };
        if rc == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Asks for memory of NUMA node `node`, with other nodes as the way out when it is full.
    pub(super) fn prefer_node(&self, node: u32) -> io::Result<()> {
        const MPOL_PREFERRED: libc::c_long = 1;
        let mut mask = [0u64; 16];
        let word = mask
            .get_mut(node as usize / 64)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        *word |= 1 << (node % 64);
        // SAFETY: the range is our own mapping; `mask` has the 1024 bits that `maxnode` (exclusive, plus one) announces.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.ptr.as_ptr(),
                self.len,
                MPOL_PREFERRED,
                mask.as_ptr(),
                mask.len() * 64 + 1,
                0,
            )
        };
        if rc == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// The NUMA node that the page at `offset` is on; it is faulted in if need be.
    pub(super) fn node_at(&self, offset: usize) -> io::Result<u32> {
        const MPOL_F_NODE: libc::c_long = 1;
        const MPOL_F_ADDR: libc::c_long = 2;
        assert!(offset < self.len, "inside the mapping");
        let mut node = -1i32;
        // SAFETY: `node` takes one int, which is what the call writes with these flags; the address lies in our mapping.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_get_mempolicy,
                &raw mut node,
                std::ptr::null_mut::<u64>(),
                0,
                self.ptr.as_ptr().add(offset),
                MPOL_F_NODE | MPOL_F_ADDR,
            )
        };
        if rc == 0 {
            Ok(node as u32)
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `ptr..ptr+len` is exactly what mmap returned, and no borrow of it outlives `self`.
        unsafe { libc::munmap(self.ptr.as_ptr().cast(), self.len) };
    }
}

/// Creates an anonymous file in memory, 0600, sealed against any change of its size later by [`seal`].
pub(super) fn memfd(name: &str, huge_log2: Option<u32>) -> Result<OwnedFd> {
    let name = CString::new(name.replace('\0', "_")).expect("no zero bytes are left");
    let huge = huge_log2.map_or(0, |log2| libc::MFD_HUGETLB | log2 << libc::MFD_HUGE_SHIFT);
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | huge;
    // SAFETY: `name` is a C string; the call returns a new descriptor or -1.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    let fd = owned(fd, "memfd_create")?;
    // SAFETY: `fd` is open.
    let rc = unsafe { libc::fchmod(fd.as_raw_fd(), 0o600) };
    if rc == 0 {
        Ok(fd)
    } else {
        Err(Error::last_os("fchmod"))
    }
}

/// Fixes a memfd's size for good: no holder can shrink it under a reader.
pub(super) fn seal(fd: BorrowedFd<'_>) -> Result<()> {
    let seals = libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    // SAFETY: `fd` is open; the command takes one int.
    let rc = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) };
    if rc == 0 {
        Ok(())
    } else {
        Err(Error::last_os("seal"))
    }
}

/// Opens a file without following a final symbolic link.
pub(super) fn open(path: &Path, flags: i32) -> Result<OwnedFd> {
    let c_path = CString::new(path.as_os_str().as_bytes())
        .map_err(|e| Error::os("open", e.into()).at(path))?;
    let flags = flags | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    // SAFETY: `c_path` is a C string; the mode is used with O_CREAT only.
    let fd = unsafe { libc::open(c_path.as_ptr(), flags, 0o600) };
    owned(fd, "open").map_err(|e| e.at(path))
}

fn owned(fd: i32, op: &'static str) -> Result<OwnedFd> {
    if fd < 0 {
        return Err(Error::last_os(op));
    }
    // SAFETY: the call just returned this descriptor, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Type and size figures of the file system that `fd` lies on.
pub(super) struct FileSystem {
    pub(super) is_hugetlbfs: bool,
    pub(super) is_memory: bool,
    pub(super) block_bytes: u64,
    pub(super) available_bytes: u64,
}

pub(super) fn file_system(fd: BorrowedFd<'_>) -> io::Result<FileSystem> {
    const HUGETLBFS_MAGIC: u32 = 0x958458f6;
    const TMPFS_MAGIC: u32 = 0x01021994;
    let mut out = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `out` has room for what the call writes.
    let rc = unsafe { libc::fstatfs(fd.as_raw_fd(), out.as_mut_ptr()) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it filled `out`.
    let s = unsafe { out.assume_init() };
    let block_bytes = s.f_bsize as u64;
    Ok(FileSystem {
        is_hugetlbfs: s.f_type as u32 == HUGETLBFS_MAGIC,
        is_memory: s.f_type as u32 == TMPFS_MAGIC,
        block_bytes,
        available_bytes: s.f_bavail.saturating_mul(block_bytes),
    })
}

/// The effective user of this process.
pub(super) fn effective_user() -> u32 {
    // SAFETY: the call has no arguments and cannot fail.
    unsafe { libc::geteuid() }
}
