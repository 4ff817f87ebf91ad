// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A shared pool as the GPU sees it: registered chunk by chunk, when first touched.

use super::{Context, Registration, Span};
use crate::copy::plan::split_at_chunks;
use crate::pool::shm::{Access, SharedMemory};
use crate::{Error, Result};
use parking_lot::Mutex;
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A pool and the chunks of it that are pinned. Chunks are unpinned when the last job that holds the pool is quiet.
pub(in super::super) struct RegisteredPool {
    context: Arc<Context>,
    memory: Arc<SharedMemory>,
    chunk_bytes: u64,
    chunks: Vec<Mutex<Option<Registration>>>,
    registered: AtomicUsize,
}

impl RegisteredPool {
    /// Keeps the pool; pins nothing yet.
    pub(in super::super) fn new(
        context: &Arc<Context>,
        memory: Arc<SharedMemory>,
        chunk_bytes: u64,
    ) -> Self {
        let chunks = memory.len().div_ceil(chunk_bytes) as usize;
        Self {
            context: Arc::clone(context),
            memory,
            chunk_bytes,
            chunks: (0..chunks).map(|_| Mutex::new(None)).collect(),
            registered: AtomicUsize::new(0),
        }
    }

    /// Chunks pinned so far.
    #[cfg(test)]
    pub(in super::super) fn registered(&self) -> usize {
        self.registered.load(Ordering::Relaxed)
    }

    /// Number of chunks.
    pub(in super::super) fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Pins what of `offset..offset + bytes` is not pinned yet.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`]; the driver's refusal, with the limits that may be behind it.
    pub(in super::super) fn cover(&self, offset: u64, bytes: u64) -> Result<()> {
        let len = self.memory.len();
        let end = offset.checked_add(bytes).filter(|end| *end <= len);
        let Some(end) = end else {
            return Err(Error::OutOfBounds {
                what: "the pool",
                offset,
                bytes,
                len,
            });
        };
        if self.registered.load(Ordering::Acquire) == self.chunks.len() {
            return Ok(());
        }
        let (first, last) = (
            offset / self.chunk_bytes,
            end.saturating_sub(1) / self.chunk_bytes,
        );
        (first..=last).try_for_each(|chunk| self.register(chunk as usize))
    }

    /// Pins one chunk.
    pub(in super::super) fn register(&self, chunk: usize) -> Result<()> {
        let mut held = self.chunks[chunk].lock();
        if held.is_some() {
            return Ok(());
        }
        let start = chunk as u64 * self.chunk_bytes;
        let bytes = self.chunk_bytes.min(self.memory.len() - start);
        let owner: Arc<dyn Any + Send + Sync> = Arc::clone(&self.memory) as _;
        // SAFETY: `start` is inside the mapping, whose base this is.
        let address = unsafe { self.memory.as_ptr().add(start as usize) };
        let read_only = self.memory.access() == Access::Read;
        *held = Some(Registration::new(
            &self.context,
            owner,
            address,
            bytes,
            read_only,
        )?);
        self.registered.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// The whole pool, for kernels: they may cross from one chunk into the next, since each page is mapped. Touch only what
    /// [`cover`](Self::cover) accepted.
    pub(in super::super) fn whole(&self) -> Span {
        Span {
            address: self.memory.as_ptr().as_ptr() as u64,
            bytes: self.memory.len(),
        }
    }

    /// Bytes of the pool for the DMA engines: one span per chunk, since a copy may not cross from one into the next.
    pub(in super::super) fn spans(&self, offset: u64, bytes: u64) -> impl Iterator<Item = Span> {
        let whole = self.whole();
        split_at_chunks(offset, bytes, self.chunk_bytes).map(move |(at, len)| whole.part(at, len))
    }

    /// Whether a span of the pool is the first of its chunk: then it may not be joined to what is before it.
    pub(in super::super) fn begins_chunk(&self, span: &Span) -> bool {
        (span.address - self.whole().address).is_multiple_of(self.chunk_bytes)
    }

    /// Whether `offset..offset + bytes` lies in one chunk.
    pub(in super::super) fn in_one_chunk(&self, offset: u64, bytes: u64) -> bool {
        offset / self.chunk_bytes == (offset + bytes.max(1) - 1) / self.chunk_bytes
    }
}

impl Drop for RegisteredPool {
    fn drop(&mut self) {
        // The driver unpins only when all work of the context is done, some of which may wait for the very thread that
        // drops the pool: so another one waits.
        let chunks: Vec<_> = self
            .chunks
            .iter()
            .filter_map(|chunk| chunk.lock().take())
            .collect();
        if !chunks.is_empty() {
            let waiter = std::thread::Builder::new().name("pegaflow-unpin".into());
            // Without a thread they are dropped here, with the closure.
            let _ = waiter.spawn(move || drop(chunks));
        }
    }
}
