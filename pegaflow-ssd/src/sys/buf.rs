// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Owned, page-aligned memory that moves into a transfer and comes back with its result.
//!
//! Invariant: a [`Buf`] is the only handle to its bytes, so a transfer that owns the `Buf` owns the memory until it is over.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::any::Any;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use parking_lot::Mutex;
use pegaflow_mem::{Access, PoolBuf, SharedMemory};

use super::PAGE;

/// Bytes of a huge page; wrong on some architectures, where arenas then lie on small ones.
const HUGE_PAGE: usize = 2 << 20;

/// A page-aligned run of memory that this value alone may touch.
///
/// `len` bytes are in use; `capacity` bytes belong to it. Transfers move whole pages, so bytes between `len` and the end of its
/// last page are overwritten (with zeroes before a write, with padding by a read).
pub struct Buf {
    ptr: NonNull<u8>,
    capacity: usize,
    len: usize,
    owner: Owner,
}

enum Owner {
    Heap,
    Arena(Arc<Arena>),
    Pool(PoolBuf),
    Other(#[expect(dead_code, reason = "kept alive, never looked at")] Box<dyn Any + Send + Sync>),
}

// SAFETY: `Buf` is the only handle to its bytes (see the module's invariant), so moving it to another thread moves the sole right to them.
unsafe impl Send for Buf {}
// SAFETY: `&Buf` only gives out `&[u8]` and plain numbers.
unsafe impl Sync for Buf {}

impl Buf {
    /// Zeroed memory from the heap: `len` bytes in use, capacity rounded up to whole pages.
    pub fn new(len: usize) -> Self {
        let capacity = len.max(1).next_multiple_of(PAGE);
        let layout = Self::layout(capacity);
        // SAFETY: `layout` has a size above zero.
        let ptr = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(ptr) else {
            handle_alloc_error(layout)
        };
        Self {
            ptr,
            capacity,
            len,
            owner: Owner::Heap,
        }
    }

    /// A copy of `bytes` in memory of its own.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buf = Self::new(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    /// A run of a pool, shared with other processes: the bytes in use are those of the run, which must begin on a page and have whole pages.
    ///
    /// Only one process may write a place at a time; that is the business of who hands places out. One that writes all the same spoils the
    /// block, which its checksum shows. Other processes may look on, so these bytes cannot be borrowed: use the pool's own copies.
    ///
    /// # Errors
    /// `InvalidInput` for a run that is not whole pages, `PermissionDenied` if the pool is mapped to be read only.
    pub fn of_pool(run: PoolBuf) -> io::Result<Self> {
        let (ptr, len) = (run.as_ptr(), run.len() as usize);
        if !(ptr.as_ptr() as usize | len).is_multiple_of(PAGE) || len == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if run.memory().access() != Access::ReadWrite {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(Self {
            ptr,
            capacity: len,
            len,
            owner: Owner::Pool(run),
        })
    }

    /// The run of a pool that this buffer was made of, if it was.
    pub fn pool_run(&self) -> Option<&PoolBuf> {
        match &self.owner {
            Owner::Pool(run) => Some(run),
            _ => None,
        }
    }

    /// Bytes in use.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no byte is in use.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes in use, also of a pool; for checksums and copies inside the crate.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.whole()[..self.len]
    }

    fn assert_private(&self) {
        let shared = matches!(self.owner, Owner::Pool(_));
        assert!(
            !shared,
            "bytes of a shared pool are copied, not borrowed (`pool_run`)"
        );
    }

    /// Memory that somebody else owns, for example a place of a shared pool.
    ///
    /// # Safety
    /// `ptr..ptr + capacity` must be valid, initialised memory for as long as `owner` lives, and nobody else may access it while
    /// this `Buf` lives. Pages beyond `len` inside `capacity` are written, too.
    ///
    /// # Errors
    /// `InvalidInput` if `ptr` is not page-aligned, `capacity` is not whole pages, or `len` is over it.
    pub unsafe fn from_raw(
        ptr: NonNull<u8>,
        capacity: usize,
        len: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> io::Result<Self> {
        let aligned = (ptr.as_ptr() as usize | capacity).is_multiple_of(PAGE);
        if !aligned || len > capacity {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self {
            ptr,
            capacity,
            len,
            owner: Owner::Other(owner),
        })
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, PAGE)
            .expect("a page is a power of two, and no Vec is larger")
    }

    /// Bytes that belong to this buffer.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Sets how many bytes are in use.
    ///
    /// # Panics
    /// If `len` is over the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(
            len <= self.capacity,
            "{len} bytes in a buffer of {}",
            self.capacity
        );
        self.len = len;
    }

    /// Zeroes what lies between the bytes in use and the end of the first `end` bytes.
    pub fn zero_to(&mut self, end: usize) {
        let from = self.len;
        self.whole_mut()[..end][from.min(end)..].fill(0);
    }

    /// All bytes that belong to this buffer, in use or not.
    pub(crate) fn whole(&self) -> &[u8] {
        // SAFETY: `ptr..ptr + capacity` is valid and initialised for the buffer's life (heap: zeroed at birth; arena: a zeroed
        // mapping kept by the Arc; other: the contract of `from_raw`), and `&self` keeps writers out.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.capacity) }
    }

    /// As [`Buf::whole`], to write.
    pub(crate) fn whole_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `whole`, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.capacity) }
    }

    /// Where the memory begins; for the ring only.
    pub(crate) fn address(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }
}

impl Deref for Buf {
    type Target = [u8];
    /// # Panics
    /// If the buffer is a run of a shared pool.
    fn deref(&self) -> &[u8] {
        self.assert_private();
        self.bytes()
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.assert_private();
        let len = self.len;
        &mut self.whole_mut()[..len]
    }
}

impl std::fmt::Debug for Buf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buf({} of {} bytes)", self.len, self.capacity)
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        match &self.owner {
            // SAFETY: allocated in `new` with this very layout, and nobody else has the pointer.
            Owner::Heap => unsafe { dealloc(self.ptr.as_ptr(), Self::layout(self.capacity)) },
            Owner::Arena(arena) => arena.give_back(self.ptr),
            Owner::Pool(_) | Owner::Other(_) => {}
        }
    }
}

/// One mapping cut into buffers of one size, which return to it when dropped. Its memory can be registered with a store.
#[derive(Debug)]
pub struct Arena {
    base: NonNull<u8>,
    bytes: usize,
    each: usize,
    free: Mutex<Vec<u32>>,
}

// SAFETY: the mapping is only reached through the `Buf`s cut from it, each of which is exclusive; the free list has its lock.
unsafe impl Send for Arena {}
// SAFETY: as above; `&Arena` gives out no reference to the memory.
unsafe impl Sync for Arena {}

impl Arena {
    /// Maps `count` buffers of `each` bytes (rounded up to whole pages). With huge pages where the kernel grants them.
    ///
    /// # Errors
    /// The operating system's, when memory is short.
    pub fn new(each: usize, count: usize) -> io::Result<Arc<Self>> {
        Self::map(each, count, true)
    }

    /// As [`Arena::new`], on pages of 4 KiB: every page is an entry in the device's list of addresses.
    ///
    /// # Errors
    /// As [`Arena::new`].
    pub fn on_small_pages(each: usize, count: usize) -> io::Result<Arc<Self>> {
        Self::map(each, count, false)
    }

    fn map(each: usize, count: usize, huge: bool) -> io::Result<Arc<Self>> {
        let each = each.max(1).next_multiple_of(PAGE);
        let bytes = each
            .checked_mul(count.max(1))
            .filter(|bytes| *bytes <= isize::MAX as usize - 2 * HUGE_PAGE)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let (base, bytes) = match huge && bytes >= HUGE_PAGE {
            true => map_aligned(bytes.next_multiple_of(HUGE_PAGE))?,
            false => (map_any(bytes)?, bytes),
        };
        let advice = if huge {
            libc::MADV_HUGEPAGE
        } else {
            libc::MADV_NOHUGEPAGE
        };
        // SAFETY: advice on the mapping made above; failure is harmless and ignored.
        unsafe { libc::madvise(base.as_ptr().cast(), bytes, advice) };
        let free = Mutex::new((0..count.max(1) as u32).rev().collect());
        Ok(Arc::new(Self {
            base,
            bytes,
            each,
            free,
        }))
    }

    /// A buffer with `len` bytes in use, or nothing when all are out or `len` is over their size. Its content is what its last user left.
    pub fn take(self: &Arc<Self>, len: usize) -> Option<Buf> {
        if len > self.each {
            return None;
        }
        let index = self.free.lock().pop()? as usize;
        // SAFETY: `index < count`, so the result lies inside the mapping.
        let ptr = unsafe { self.base.add(index * self.each) };
        Some(Buf {
            ptr,
            capacity: self.each,
            len,
            owner: Owner::Arena(self.clone()),
        })
    }

    /// The memory, to register with a store.
    pub fn region(self: &Arc<Self>) -> Region {
        Region {
            base: self.base.as_ptr() as usize,
            bytes: self.bytes,
            _owner: self.clone(),
        }
    }

    fn give_back(&self, ptr: NonNull<u8>) {
        let index = (ptr.as_ptr() as usize - self.base.as_ptr() as usize) / self.each;
        self.free.lock().push(index as u32);
    }
}

fn map_any(bytes: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches no memory of ours.
    let ptr = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if ptr == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(ptr.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

// A huge page must lie at a multiple of its size. The kernel aligns some mappings by itself, but not those of odd lengths.
fn map_aligned(bytes: usize) -> io::Result<(NonNull<u8>, usize)> {
    let wide = map_any(bytes + HUGE_PAGE)?;
    let head = wide.as_ptr().align_offset(HUGE_PAGE);
    // SAFETY: `head` is below `HUGE_PAGE`, so all of this lies inside the mapping just made, of which nobody else knows; what is given
    // back is its beginning and its end, in whole pages.
    unsafe {
        let base = wide.add(head);
        for (from, bytes) in [(wide, head), (base.add(bytes), HUGE_PAGE - head)] {
            if bytes > 0 {
                libc::munmap(from.as_ptr().cast(), bytes);
            }
        }
        Ok((base, bytes))
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length; every `Buf` and `Region` holds the Arc, so none is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Memory that transfers will often use. A ring pins it once instead of at every transfer.
#[derive(Clone)]
pub struct Region {
    base: usize,
    bytes: usize,
    _owner: Arc<dyn Any + Send + Sync>,
}

impl Region {
    /// A whole pool.
    pub fn of_pool(memory: Arc<SharedMemory>) -> Self {
        let base = memory.as_ptr().as_ptr() as usize;
        Self {
            base,
            bytes: memory.len() as usize,
            _owner: memory,
        }
    }

    /// Names memory kept alive by `owner`.
    ///
    /// # Safety
    /// `base..base + bytes` must stay mapped at this address for as long as `owner` lives.
    pub unsafe fn from_raw(
        base: NonNull<u8>,
        bytes: usize,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self {
            base: base.as_ptr() as usize,
            bytes,
            _owner: owner,
        }
    }

    /// A part of it, kept alive by the same owner.
    pub(crate) fn part(&self, at: usize, bytes: usize) -> Self {
        Self {
            base: self.base + at,
            bytes,
            _owner: self._owner.clone(),
        }
    }

    /// The address of its first byte; for the ring only.
    pub(crate) fn base(&self) -> usize {
        self.base
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether `bytes` bytes at `address` lie inside.
    pub(crate) fn holds(&self, address: usize, bytes: usize) -> bool {
        address >= self.base && address + bytes <= self.base + self.bytes
    }
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Region({} bytes)", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_an_arena_are_disjoint_and_return() {
        let arena = Arena::new(5000, 3).unwrap();
        let mut out: Vec<Buf> = (0..3).map(|_| arena.take(5000).unwrap()).collect();
        assert!(arena.take(1).is_none());
        for (i, b) in out.iter_mut().enumerate() {
            assert_eq!((b.capacity(), b.address() as usize % PAGE), (8192, 0));
            b.fill(i as u8 + 1);
        }
        for (i, b) in out.iter().enumerate() {
            assert!(b.iter().all(|x| *x == i as u8 + 1));
            assert!(arena.region().holds(b.address() as usize, b.capacity()));
        }
        drop(out);
        assert!(arena.take(8192).is_some());
        assert!(arena.take(8193).is_none());
    }

    #[test]
    fn an_arena_of_any_length_can_lie_on_huge_pages() {
        for (each, count) in [(1 << 20, 9), (PAGE, 513), (1_179_648, 12), (3 << 20, 1)] {
            let arena = Arena::new(each, count).unwrap();
            let base = arena.base.as_ptr() as usize;
            assert_eq!((base % HUGE_PAGE, arena.bytes % HUGE_PAGE), (0, 0));
            let mut all: Vec<Buf> = (0..count).map(|_| arena.take(each).unwrap()).collect();
            all.iter_mut().for_each(|b| b.fill(1));
            assert!(arena.take(1).is_none());
        }
    }

    #[test]
    fn a_buffer_keeps_its_tail_to_itself() {
        let mut b = Buf::copy_of(&[7; 100]);
        b.whole_mut()[100..200].fill(9);
        b.zero_to(4096);
        assert_eq!((&b[..], b.whole()[150]), (&[7u8; 100][..], 0));
        b.set_len(4096);
        assert_eq!(b.len(), 4096);
    }
}
