// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A job on its way through the device: what the caller gave, what the planner made of it, and how it ends.
//!
//! Invariant: a job is finished only after its word reached the end, or after its streams were found idle; then
//! nothing touches its memory any more.

use super::Uploaded;
use super::buffers::{DeviceBuffer, HostBuffer, Word};
use super::driver::RegisteredPool;
use crate::copy::{JobShape, Method};
use crate::device::{Completer, CopyJob, Direction, Outcome};
use crate::layout::BlockCopy;
use crate::{Error, Result};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A checked job.
pub(super) struct Job {
    pub direction: Direction,
    pub layout: Arc<Uploaded>,
    /// Entries in the order of their places, so that neighbours in the pool become one DMA copy.
    pub entries: Vec<BlockCopy>,
    /// For each entry, its place in the caller's list.
    order: Vec<u32>,
    pub shape: JobShape,
    /// First row of the job, counted from the slot's first layer.
    pub row_first: u32,
    pub method: Method,
    pub word: Arc<Word>,
    /// Where the checksums arrive; `None` without kernels.
    pub sums: Option<HostBuffer>,
    /// Where they are added up on the device; `None` if each chunk reports by itself.
    pub device_sums: Mutex<Option<DeviceBuffer>>,
    /// How to read `sums`: chunks per checksum of each row, or `None` if they are final.
    pub partials: Option<u32>,
    given: Mutex<Option<(CopyJob, Completer)>>,
    cancelled: AtomicBool,
    /// Set before the end is submitted, if steps were left out.
    stopped: AtomicBool,
}

/// What the caller gave, by entry and in order of places.
pub(super) fn sort_entries(job: &CopyJob) -> (Vec<BlockCopy>, Vec<u32>) {
    let blocks = &job.blocks;
    let mut order: Vec<u32> = (0..blocks.len() as u32).collect();
    if !blocks.is_sorted_by_key(|b| b.place) {
        order.sort_unstable_by_key(|i| blocks[*i as usize].place);
    }
    (order.iter().map(|i| blocks[*i as usize]).collect(), order)
}

/// Refuses jobs that would write a byte twice. `entries` are sorted by place.
pub(super) fn check_destinations(
    direction: Direction,
    entries: &[BlockCopy],
    block_bytes: u64,
) -> Result<()> {
    let twice = match direction {
        Direction::Save => entries
            .windows(2)
            .any(|w| w[1].place - w[0].place < block_bytes),
        Direction::Load => {
            let mut blocks: Vec<u32> = entries.iter().map(|e| e.block).collect();
            blocks.sort_unstable();
            blocks.windows(2).any(|w| w[0] == w[1])
        }
    };
    if twice {
        return Err(Error::Layout {
            what: "copy job",
            reason: "two of its blocks write the same bytes",
        });
    }
    Ok(())
}

/// The parts of a job that the planner fills in.
pub(super) struct Planned {
    pub layout: Arc<Uploaded>,
    pub entries: Vec<BlockCopy>,
    pub order: Vec<u32>,
    pub shape: JobShape,
    pub row_first: u32,
    pub method: Method,
    pub word: Word,
    pub sums: Option<HostBuffer>,
    pub device_sums: Option<DeviceBuffer>,
    pub partials: Option<u32>,
}

impl Job {
    pub(super) fn new(
        direction: Direction,
        given: CopyJob,
        completer: Completer,
        p: Planned,
    ) -> Arc<Self> {
        Arc::new(Self {
            direction,
            layout: p.layout,
            entries: p.entries,
            order: p.order,
            shape: p.shape,
            row_first: p.row_first,
            method: p.method,
            word: Arc::new(p.word),
            sums: p.sums,
            device_sums: Mutex::new(p.device_sums),
            partials: p.partials,
            given: Mutex::new(Some((given, completer))),
            cancelled: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        })
    }

    pub(super) fn heads(&self) -> usize {
        self.layout.layout().slot().heads.len()
    }

    /// Number of checksums.
    pub(super) fn count(&self) -> u64 {
        self.entries.len() as u64 * self.heads() as u64
    }

    /// Looks at the pool, while the job lives.
    pub(super) fn with_pool<T>(&self, look: impl FnOnce(&RegisteredPool) -> T) -> Option<T> {
        let given = self.given.lock();
        let (job, _) = given.as_ref()?;
        job.pool.registration::<RegisteredPool>().map(look)
    }

    /// Looks at the caller's other end, while the job lives.
    pub(super) fn with_completer(&self, look: impl FnOnce(&Completer)) {
        if let Some((_, completer)) = self.given.lock().as_ref() {
            look(completer);
        }
    }

    /// Asks to stop.
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// No more steps will be submitted, though some are left.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// Ends the job if its word says that all is done; whether it did.
    pub(super) fn finish_if_ended(&self) -> bool {
        let ended = self.word.ended();
        if ended {
            self.finish_as_planned();
        }
        ended
    }

    /// Ends the job, all of whose submitted work is done.
    pub(super) fn finish_as_planned(&self) {
        let stopped = self.stopped.load(Ordering::Acquire);
        self.finish(if stopped {
            Err(Error::Cancelled)
        } else {
            Ok(())
        });
    }

    /// Tells how many layers are done, where the caller asked for it.
    pub(super) fn tell(&self, layers: u32) {
        if let Some((
            CopyJob {
                progress: Some(progress),
                ..
            },
            _,
        )) = self.given.lock().as_ref()
        {
            progress.set(layers);
        }
    }

    /// Ends the job, once: later calls find it ended. Nothing touches its memory any more.
    pub(super) fn finish(&self, result: Result<()>) {
        let Some((given, completer)) = self.given.lock().take() else {
            return;
        };
        self.word.finish();
        let checksums = match &result {
            Ok(()) => self.checksums(&given),
            Err(_) => Ok(vec![]),
        };
        if matches!(result, Ok(()) | Err(Error::Cancelled))
            && let Some(sums) = self.device_sums.lock().as_mut()
        {
            // The end of the job has left zeros there.
            sums.mark_clean();
        }
        let result = result.and(checksums);
        let bytes = given.bytes();
        let outcome = match result {
            Ok(checksums) => {
                if let Some(progress) = &given.progress {
                    progress.set(given.layer_range().len() as u32);
                }
                Outcome {
                    result: Ok(()),
                    checksums,
                    bytes,
                    blocks: given.blocks,
                }
            }
            Err(error) => Outcome {
                result: Err(error),
                checksums: vec![],
                bytes: 0,
                blocks: given.blocks,
            },
        };
        completer.finish(outcome);
    }

    fn checksums(&self, given: &CopyJob) -> Result<Vec<u64>> {
        let heads = self.heads();
        let mut all = vec![0u64; self.count() as usize];
        let Some(sums) = &self.sums else {
            return self.checksums_by_cpu(given);
        };
        let memory = sums.memory();
        let rows = self.shape.rows as usize;
        for (entry, given_at) in self.order.iter().enumerate() {
            for head in 0..heads {
                let sum = match self.partials {
                    None => memory.number(entry * heads + head),
                    Some(chunks) => (0..rows)
                        .flat_map(|row| {
                            let run = (entry * rows + row) * heads + head;
                            run * chunks as usize..(run + 1) * chunks as usize
                        })
                        .fold(0u64, |sum, i| sum.wrapping_add(memory.number(i))),
                };
                all[*given_at as usize * heads + head] = sum;
            }
        }
        Ok(all)
    }

    /// Without kernels: from the pool's side of the copy.
    fn checksums_by_cpu(&self, given: &CopyJob) -> Result<Vec<u64>> {
        let heads = self.heads();
        let mut all = vec![0u64; self.count() as usize];
        let mut buffer = vec![];
        for (at, copy) in given.blocks.iter().enumerate() {
            for piece in given.layout.pieces_of(*copy, given.layer_range())? {
                buffer.resize(piece.bytes as usize, 0);
                given.pool.pool().copy_out(piece.pool, &mut buffer)?;
                let sum = &mut all[at * heads + piece.head as usize];
                *sum = sum.wrapping_add(crate::checksum::checksum(piece.position, &buffer));
            }
        }
        Ok(all)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // A lane ends every job; this is for a device that is torn down in between, after its streams went idle.
        self.finish(Err(Error::Closed));
    }
}
