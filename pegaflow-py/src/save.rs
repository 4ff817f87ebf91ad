// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Saves of one rank, one after the other, beside the engine's steps.
//!
//! Invariant: `through` rises only when nothing reads the blocks of a save any more, whatever became of it. A node that
//! does not answer costs one deadline; then saves are dropped for a while instead of waiting for theirs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use pegaflow_cache::worker::{Save, Saved};
use pegaflow_cache::{Error, ErrorKind};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::rank::Inner;

/// Saves that may wait. Over it they are dropped: the engine computes faster than its blocks can be copied away.
const QUEUED_MAX: usize = 4096;
/// How long saves are dropped after the node did not answer.
const PAUSE: Duration = Duration::from_secs(1);

/// A save and its number.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) number: u64,
    pub(crate) save: Save,
}

/// What became of saves.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Saves up to this number are over.
    pub(crate) through: u64,
    /// Blocks copied.
    pub(crate) saved: u64,
    /// Blocks that the node had.
    pub(crate) known: u64,
    /// Blocks that were not saved: no room, no answer, or too many waiting.
    pub(crate) refused: u64,
    /// Bytes copied.
    pub(crate) bytes: u64,
    /// Numbers of saves of which a block was refused.
    pub(crate) refused_saves: Vec<u64>,
    /// What went wrong last.
    pub(crate) error: Option<String>,
}

#[derive(Debug, Default)]
struct Progress {
    tally: Mutex<Tally>,
    moved: Condvar,
    queued: AtomicUsize,
    closing: AtomicBool,
}

/// Saves that wait, and the one that runs.
#[derive(Debug)]
pub(crate) struct Lane {
    queue: mpsc::UnboundedSender<Job>,
    progress: Arc<Progress>,
    last: Mutex<u64>,
}

impl Lane {
    pub(crate) fn start(runtime: &Runtime, inner: Arc<Inner>) -> Self {
        let (queue, jobs) = mpsc::unbounded_channel();
        let progress = Arc::new(Progress::default());
        runtime.spawn(run(inner, jobs, progress.clone()));
        Self {
            queue,
            progress,
            last: Mutex::new(0),
        }
    }

    pub(crate) fn push(&self, mut job: Job) {
        *self.last.lock() = job.number;
        if self.progress.queued.fetch_add(1, Ordering::Relaxed) >= QUEUED_MAX {
            // Goes through the queue without its blocks, so that numbers end in order.
            let dropped = job.save.keys.len() as u64;
            job.save = Save::default();
            let mut tally = self.progress.tally.lock();
            tally.refused += dropped;
            tally.refused_saves.push(job.number);
        }
        // The lane ends only with the runtime.
        let _ = self.queue.send(job);
    }

    /// What happened since the last call.
    pub(crate) fn take(&self) -> Tally {
        let mut tally = self.progress.tally.lock();
        let through = tally.through;
        std::mem::replace(
            &mut *tally,
            Tally {
                through,
                ..Tally::default()
            },
        )
    }

    /// Waits until the save `number` is over.
    pub(crate) fn settle(&self, number: u64) {
        let number = number.min(*self.last.lock());
        let mut tally = self.progress.tally.lock();
        while tally.through < number {
            self.progress.moved.wait(&mut tally);
        }
    }

    /// Drops what waits and waits for what runs.
    pub(crate) fn close(&self) {
        self.progress.closing.store(true, Ordering::Relaxed);
        self.settle(u64::MAX);
    }
}

async fn run(inner: Arc<Inner>, mut jobs: mpsc::UnboundedReceiver<Job>, progress: Arc<Progress>) {
    let mut quiet_until: Option<Instant> = None;
    while let Some(Job { number, save }) = jobs.recv().await {
        let blocks = save.keys.len() as u64;
        let closing = progress.closing.load(Ordering::Relaxed);
        let muted = quiet_until.is_some_and(|until| now() < until);
        let done = if blocks == 0 {
            Ok(Saved::default())
        } else if closing || muted {
            Ok(Saved {
                out_of_budget: blocks as u32,
                ..Saved::default()
            })
        } else {
            save_one(&inner, save).await
        };
        quiet_until = match &done {
            Err(error) if error.kind() == ErrorKind::Retry => Some(now() + PAUSE),
            _ => quiet_until.filter(|_| muted),
        };
        progress.queued.fetch_sub(1, Ordering::Relaxed);
        progress.add(number, blocks, done);
    }
}

async fn save_one(inner: &Inner, save: Save) -> Result<Saved, Error> {
    let worker = inner.worker().await?;
    inner.shared.reports_over().await;
    worker.save(save).await
}

impl Progress {
    fn add(&self, number: u64, blocks: u64, done: Result<Saved, Error>) {
        let mut tally = self.tally.lock();
        let refused = tally.refused;
        match done {
            Ok(saved) => {
                tally.saved += u64::from(saved.completed + saved.partial);
                tally.known += u64::from(saved.known);
                tally.refused += u64::from(saved.out_of_budget + saved.dropped);
                tally.bytes += saved.bytes;
            }
            Err(error) => {
                tally.refused += blocks;
                tally.error = Some(error.to_string());
            }
        }
        if tally.refused > refused {
            tally.refused_saves.push(number);
        }
        tally.through = number;
        self.moved.notify_all();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a shell: knows how long to leave a node alone"
)]
fn now() -> Instant {
    Instant::now()
}
