// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Small buffers that jobs borrow: checksums on the device, their copies on the host, and a word that tells the end.
//!
//! Pinning memory takes longer than most jobs, so buffers go back into a shelf. They are not freed before the device is:
//! freeing waits for all work of the context, and some of that may wait for the very thread that frees. Invariant:
//! checksum buffers that are handed out hold zeros, and a word only ever grows (modulo 2^32), so that a late waiter of an
//! earlier job is let through.

use super::driver::{Context, DeviceMemory, PinnedMemory, Span, Stream};
use crate::{Error, Result};
use parking_lot::Mutex;
use std::sync::Arc;

/// Words there are, which bounds the jobs in flight on a device.
pub(super) const WORDS: usize = 4096;
/// Smallest buffer.
const BYTES_MIN: u64 = 64 << 10;

/// The shelf of one device.
pub(super) struct Buffers {
    context: Arc<Context>,
    words: PinnedMemory,
    free_words: Mutex<Vec<(u32, u32)>>,
    host: Mutex<Vec<Vec<PinnedMemory>>>,
    /// With each, whether it holds zeros.
    device: Mutex<Vec<Vec<(DeviceMemory, bool)>>>,
}

fn class(bytes: u64) -> usize {
    bytes.max(BYTES_MIN).next_power_of_two().trailing_zeros() as usize
}

impl Buffers {
    pub(super) fn new(context: &Arc<Context>) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            context: Arc::clone(context),
            words: PinnedMemory::new(context, WORDS * 4)?,
            free_words: Mutex::new((0..WORDS as u32).map(|i| (i, 0)).collect()),
            host: Mutex::new((0..64).map(|_| vec![]).collect()),
            device: Mutex::new((0..64).map(|_| vec![]).collect()),
        }))
    }

    /// Puts a few buffers of the usual size on the shelves, so that the first jobs need not ask the driver.
    pub(super) fn stock(self: &Arc<Self>, stream: &Stream) -> Result<()> {
        let host: Vec<_> = (0..4).map(|_| self.host(0)).collect::<Result<_>>()?;
        let device: Vec<_> = (0..4)
            .map(|_| {
                let mut buffer = self.device(0, stream)?;
                buffer.mark_clean();
                Ok(buffer)
            })
            .collect::<Result<_>>()?;
        drop((host, device));
        Ok(())
    }

    /// The pinned memory that holds all words.
    pub(super) fn words(&self) -> &PinnedMemory {
        &self.words
    }

    /// A word for a job that will count to `count`.
    ///
    /// # Errors
    /// [`Error::Limit`] when [`WORDS`] jobs are in flight.
    pub(super) fn word(self: &Arc<Self>, count: u32) -> Result<Word> {
        let Some((index, base)) = self.free_words.lock().pop() else {
            return Err(Error::Limit {
                what: "copy jobs",
                limit: WORDS as u64,
                setting: "jobs in flight on a device",
            });
        };
        Ok(Word {
            buffers: Arc::clone(self),
            index,
            base,
            count,
        })
    }

    /// Pinned memory of at least `bytes`.
    pub(super) fn host(self: &Arc<Self>, bytes: u64) -> Result<HostBuffer> {
        let class = class(bytes);
        let memory = match self.host.lock()[class].pop() {
            Some(memory) => memory,
            None => PinnedMemory::new(&self.context, 1 << class)?,
        };
        Ok(HostBuffer {
            buffers: Arc::clone(self),
            class,
            memory: Some(memory),
        })
    }

    /// Device memory of at least `bytes`, all zeros before anything submitted to `stream` from now on.
    pub(super) fn device(self: &Arc<Self>, bytes: u64, stream: &Stream) -> Result<DeviceBuffer> {
        let class = class(bytes);
        let shelved = self.device.lock()[class].pop();
        let (memory, clean) = match shelved {
            Some(shelved) => shelved,
            None => (DeviceMemory::new(&self.context, 1 << class)?, false),
        };
        if !clean {
            stream.zero(memory.span())?;
            // Other streams must see the zeros too.
            stream.synchronize()?;
        }
        Ok(DeviceBuffer {
            buffers: Arc::clone(self),
            class,
            memory: Some(memory),
            clean: false,
        })
    }
}

/// A job's word: `base + n` when `n` layers are done, `base + count` at the end.
pub(super) struct Word {
    buffers: Arc<Buffers>,
    index: u32,
    base: u32,
    count: u32,
}

impl Word {
    pub(super) fn index(&self) -> usize {
        self.index as usize
    }

    /// The memory that holds it.
    pub(super) fn memory(&self) -> &PinnedMemory {
        &self.buffers.words
    }

    /// The value that stands for `n` of `count`.
    pub(super) fn value(&self, n: u32) -> u32 {
        self.base.wrapping_add(n.min(self.count))
    }

    /// The value that stands for the end.
    pub(super) fn end(&self) -> u32 {
        self.value(self.count)
    }

    /// How far it is.
    pub(super) fn reached(&self) -> u32 {
        self.buffers
            .words
            .word(self.index())
            .wrapping_sub(self.base)
            .min(self.count)
    }

    /// Whether the end is reached.
    pub(super) fn ended(&self) -> bool {
        self.reached() == self.count
    }

    /// Sets the end from the CPU: for jobs that will not reach it by themselves.
    pub(super) fn finish(&self) {
        self.buffers.words.set_word(self.index(), self.end());
    }
}

impl Drop for Word {
    fn drop(&mut self) {
        self.finish();
        self.buffers
            .free_words
            .lock()
            .push((self.index, self.end()));
    }
}

/// Borrowed pinned memory.
pub(super) struct HostBuffer {
    buffers: Arc<Buffers>,
    class: usize,
    memory: Option<PinnedMemory>,
}

impl HostBuffer {
    pub(super) fn memory(&self) -> &PinnedMemory {
        self.memory.as_ref().expect("held until dropped")
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        self.buffers.host.lock()[self.class].extend(self.memory.take());
    }
}

/// Borrowed device memory.
pub(super) struct DeviceBuffer {
    buffers: Arc<Buffers>,
    class: usize,
    memory: Option<DeviceMemory>,
    clean: bool,
}

impl DeviceBuffer {
    pub(super) fn span(&self) -> Span {
        self.memory.as_ref().expect("held until dropped").span()
    }

    /// Says that it holds zeros again, so that it may go back on the shelf.
    pub(super) fn mark_clean(&mut self) {
        self.clean = true;
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        let memory = self.memory.take().map(|memory| (memory, self.clean));
        self.buffers.device.lock()[self.class].extend(memory);
    }
}
