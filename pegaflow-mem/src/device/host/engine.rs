// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The threads of the host device, and how they share a job.
//!
//! A job is cut into tasks (one block x some layers), layer-major. Threads claim tasks by a counter; whoever finishes the last one
//! ends the job. A cancelled job's tasks are claimed and skipped, so its end comes only when no thread is inside it.

use super::event::HostEvent;
use super::sys::{HostMemory, copy_piece};
use super::{Completion, CopyJob, Direction, HostSettings, Refused};
use crate::checksum::Kernel;
use crate::checksum::sys::{Store, fence_stores};
use crate::device::{CancelHandle, Completer, Outcome};
use crate::{Error, Result};
use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::thread::JoinHandle;

/// A task has about this many bytes, unless one layer of one block has more.
const TASK_BYTES: u64 = 256 << 10;

#[derive(Debug)]
pub(super) struct Engine {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
    kernel: Kernel,
    jobs_max: u32,
    stream_bytes_min: u32,
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<QueueState>,
    work: Condvar,
    /// Jobs that wait for their event, or run.
    jobs: Arc<AtomicU32>,
}

/// A job that waits for its event; whoever empties it first starts or ends the job.
type Parked = Mutex<Option<Arc<Job>>>;

#[derive(Debug, Default)]
struct QueueState {
    ready: VecDeque<Arc<Job>>,
    parked: Vec<Weak<Parked>>,
    closed: bool,
}

/// A job in the engine's hands.
#[derive(Debug)]
struct Job {
    direction: Direction,
    job: CopyJob,
    /// One per layer of the job; keeps the memory alive.
    memory: Vec<HostMemory>,
    layers: Range<u32>,
    group: u32,
    kernel: Kernel,
    store: Store,
    tasks: usize,
    next: AtomicUsize,
    unfinished: AtomicUsize,
    sums: Vec<AtomicU64>,
    /// Per layer: blocks still to be copied. Empty where no one asked for progress.
    blocks_left: Vec<AtomicU32>,
    layers_done: Mutex<u32>,
    error: Mutex<Option<Error>>,
    failed: AtomicBool,
    cancel: CancelHandle,
    /// Taken by whoever ends the job.
    ending: Mutex<Option<Ending>>,
}

/// What is left to do for a job: give its seat in the queue back, then report. In this order of fields when dropped, too.
#[derive(Debug)]
struct Ending {
    seat: Seat,
    completer: Completer,
}

/// One of the `jobs_max` seats.
#[derive(Debug)]
struct Seat(Arc<AtomicU32>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Engine {
    pub(super) fn new(settings: &HostSettings, kernel: Kernel) -> Result<Self> {
        let queue = Arc::new(Queue::default());
        let mut engine = Self {
            queue,
            threads: Vec::new(),
            kernel,
            jobs_max: settings.jobs_max,
            stream_bytes_min: settings.stream_bytes_min,
        };
        for n in 0..settings.threads {
            let queue = engine.queue.clone();
            let thread = std::thread::Builder::new()
                .name(format!("pegaflow-copy-{n}"))
                .spawn(move || queue.work())
                .map_err(|e| Error::os("start a copy thread", e))?;
            engine.threads.push(thread);
        }
        Ok(engine)
    }

    pub(super) fn submit(
        &self,
        direction: Direction,
        mut job: CopyJob,
        memory: Vec<HostMemory>,
    ) -> std::result::Result<Completion, Box<Refused>> {
        let seat = match self.queue.admit(self.jobs_max) {
            Ok(seat) => seat,
            Err(error) => return Err(Refused::new(error, job)),
        };
        let (completer, completion) = Completion::new();
        let store = if job.layout.shape().inner_bytes >= self.stream_bytes_min {
            Store::Streaming
        } else {
            Store::Cached
        };
        // Taken out: the event will own the job, which must not own the event.
        let after = job.after.take();
        let ending = Ending { seat, completer };
        let job = Arc::new(Job::new(
            direction,
            job,
            memory,
            (self.kernel, store),
            ending,
        ));
        match after.as_ref().and_then(|e| e.get::<HostEvent>()) {
            Some(event) => self.queue.park(event, job),
            None => self.queue.push(job),
        }
        Ok(completion)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let parked = {
            let mut state = lock(&self.queue.state);
            state.closed = true;
            std::mem::take(&mut state.parked)
        };
        self.queue.work.notify_all();
        let jobs = parked.iter().filter_map(|p| lock(&*p.upgrade()?).take());
        jobs.for_each(|job| job.end(Some(Error::Closed)));
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Queue {
    fn admit(&self, limit: u32) -> Result<Seat> {
        let free = |n| (n < limit).then_some(n + 1);
        match self
            .jobs
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, free)
        {
            Ok(_) => Ok(Seat(self.jobs.clone())),
            Err(_) => Err(Error::Limit {
                what: "copy jobs",
                limit: limit as u64,
                setting: "jobs_max",
            }),
        }
    }

    /// Holds a job back until its event happens. A cancelled one goes to the threads at once, which skip its tasks: it must not
    /// wait for an event that may never come. If the event is dropped instead, so is the job.
    fn park(self: &Arc<Self>, event: &HostEvent, job: Arc<Job>) {
        let parked = Arc::new(Mutex::new(Some(job.clone())));
        {
            let mut state = lock(&self.state);
            state.parked.retain(|p| p.strong_count() > 0);
            state.parked.push(Arc::downgrade(&parked));
        }
        let queue = Arc::downgrade(self);
        let start = move |parked: &Parked| {
            let Some(job) = lock(parked).take() else {
                return;
            };
            match queue.upgrade() {
                Some(queue) => queue.push(job),
                None => job.end(Some(Error::Closed)),
            }
        };
        // Weak: the job owns its completer and so this hook; it must not own itself through it.
        let (weak, on_cancel) = (Arc::downgrade(&parked), start.clone());
        let hook = move || {
            if let Some(parked) = weak.upgrade() {
                on_cancel(&parked);
            }
        };
        let late = lock(&job.ending)
            .as_ref()
            .is_some_and(|e| !e.completer.on_cancel(hook));
        if late {
            start(&parked);
        }
        event.when_set(Box::new(move || start(&parked)));
    }

    fn push(&self, job: Arc<Job>) {
        let mut state = lock(&self.state);
        if state.closed || job.tasks == 0 {
            let error = state.closed.then_some(Error::Closed);
            drop(state);
            return job.end(error);
        }
        state.ready.push_back(job);
        drop(state);
        self.work.notify_all();
    }

    /// A thread's life: take tasks of the oldest job until there is none left, and the engine is closed.
    fn work(&self) {
        while let Some(job) = self.next_job() {
            while let Some(task) = job.claim() {
                let ran = catch_unwind(AssertUnwindSafe(|| job.run(task)));
                if ran.is_err() {
                    job.fail(Error::Closed);
                }
                if job.finished_one() {
                    job.end(None);
                }
            }
            self.retire(&job);
        }
    }

    fn next_job(&self) -> Option<Arc<Job>> {
        let mut state = lock(&self.state);
        loop {
            if let Some(job) = state.ready.front() {
                return Some(job.clone());
            }
            if state.closed {
                return None;
            }
            state = self.work.wait(state).unwrap_or_else(|e| e.into_inner());
        }
    }

    /// All tasks of the job are claimed: others need not look at it any more.
    fn retire(&self, job: &Arc<Job>) {
        let mut state = lock(&self.state);
        if state
            .ready
            .front()
            .is_some_and(|front| Arc::ptr_eq(front, job))
        {
            state.ready.pop_front();
        }
    }
}

impl Job {
    fn new(
        direction: Direction,
        job: CopyJob,
        memory: Vec<HostMemory>,
        (kernel, store): (Kernel, Store),
        ending: Ending,
    ) -> Self {
        let layers = job.layer_range();
        let shape = job.layout.shape();
        let layer_bytes =
            shape.parts as u64 * job.layout.slot().heads.len() as u64 * shape.inner_bytes as u64;
        let group = match job.progress {
            Some(_) => 1,
            None => (TASK_BYTES / layer_bytes).clamp(1, layers.len() as u64) as u32,
        };
        let tasks = job.blocks.len() * layers.len().div_ceil(group as usize);
        let blocks_left = match job.progress {
            Some(_) => layers
                .clone()
                .map(|_| AtomicU32::new(job.blocks.len() as u32))
                .collect(),
            None => Vec::new(),
        };
        Self {
            direction,
            memory,
            layers,
            group,
            kernel,
            store,
            tasks,
            next: AtomicUsize::new(0),
            unfinished: AtomicUsize::new(tasks),
            sums: (0..job.checksums()).map(|_| AtomicU64::new(0)).collect(),
            blocks_left,
            layers_done: Mutex::new(0),
            error: Mutex::new(None),
            failed: AtomicBool::new(false),
            cancel: ending.completer.cancel_handle(),
            ending: Mutex::new(Some(ending)),
            job,
        }
    }

    fn claim(&self) -> Option<usize> {
        let task = self.next.fetch_add(1, Ordering::Relaxed);
        (task < self.tasks).then_some(task)
    }

    /// Books a finished task; true for the last one of the job.
    fn finished_one(&self) -> bool {
        // Release: what this thread wrote is seen by the one that ends the job. Acquire: that one sees it all.
        self.unfinished.fetch_sub(1, Ordering::AcqRel) == 1
    }

    fn run(&self, task: usize) {
        if self.failed.load(Ordering::Relaxed) {
            return;
        }
        if self.cancel.is_cancelled() {
            self.fail(Error::Cancelled);
            return;
        }
        let blocks = self.job.blocks.len();
        let (group, block) = (task / blocks, task % blocks);
        let from = self.layers.start + group as u32 * self.group;
        let layers = from..(from + self.group).min(self.layers.end);
        if let Err(error) = self.copy(block, layers.clone()) {
            self.fail(error);
            return;
        }
        if let Some(left) = self.blocks_left.get((from - self.layers.start) as usize)
            && left.fetch_sub(1, Ordering::AcqRel) == 1
        {
            self.layer_done();
        }
    }

    /// Copies some layers of one block, and adds their checksums.
    fn copy(&self, block: usize, layers: Range<u32>) -> Result<()> {
        let pool = self.job.pool.pool();
        let save = self.direction == Direction::Save;
        let heads = self.job.layout.slot().checksums();
        let mut sums = vec![0u64; heads];
        for layer in layers {
            let memory = &self.memory[(layer - self.layers.start) as usize];
            let copy = self.job.blocks[block];
            for piece in self.job.layout.pieces_of(copy, layer..layer + 1)? {
                let sum = copy_piece(self.kernel, self.store, save, memory, pool, &piece)?;
                let total = &mut sums[piece.head as usize];
                *total = total.wrapping_add(sum);
            }
        }
        fence_stores();
        for (total, sum) in self.sums[block * heads..].iter().zip(sums) {
            total.fetch_add(sum, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Layers finish out of order; the counter tells how many are finished from the first on.
    fn layer_done(&self) {
        let Some(progress) = &self.job.progress else {
            return;
        };
        let mut done = lock(&self.layers_done);
        let before = *done;
        let finished = |n: u32| {
            self.blocks_left
                .get(n as usize)
                .is_some_and(|l| l.load(Ordering::Acquire) == 0)
        };
        while finished(*done) {
            *done += 1;
        }
        if *done > before {
            progress.set(*done);
        }
    }

    fn fail(&self, error: Error) {
        lock(&self.error).get_or_insert(error);
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Reports back. Only called when no thread runs a task of this job, now or later.
    fn end(&self, error: Option<Error>) {
        let Some(Ending { seat, completer }) = lock(&self.ending).take() else {
            return;
        };
        drop(seat);
        let error = error.or_else(|| lock(&self.error).take());
        let blocks = self.job.blocks.clone();
        completer.finish(match error {
            None => Outcome {
                result: Ok(()),
                checksums: self
                    .sums
                    .iter()
                    .map(|s| s.load(Ordering::Relaxed))
                    .collect(),
                bytes: self.job.bytes(),
                blocks,
            },
            Some(error) => Outcome {
                result: Err(error),
                checksums: Vec::new(),
                bytes: 0,
                blocks,
            },
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section here leaves whole values behind even if it panics.
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
