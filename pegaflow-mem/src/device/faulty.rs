// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A device that fails on purpose, around one that works. For tests of those who use devices.

use super::host::HostEvent;
use super::{Completer, Completion, CopyJob, Device, Direction, Outcome, PoolHandle, Refused};
use crate::pool::shm::SharedMemory;
use crate::{Error, Result};
use std::collections::VecDeque;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};

/// What goes wrong with one job.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Nothing.
    None,
    /// It is refused, as by a full queue.
    Refuse,
    /// It runs, and is then reported as failed.
    Fail,
    /// It starts only when this happens (or the job is cancelled: then it does not run).
    Hold(HostEvent),
    /// One byte in the pool is flipped: after a save, before a load. It is the first byte of the slot in the job's first block.
    Flip,
}

/// A device with a list of faults: each job takes the next one; when the list is empty, nothing goes wrong.
#[derive(Debug)]
pub struct FaultyDevice {
    inner: Arc<dyn Device>,
    name: String,
    plan: Mutex<VecDeque<Fault>>,
}

impl FaultyDevice {
    /// Wraps a device; no faults so far.
    pub fn new(inner: Arc<dyn Device>) -> Self {
        let name = format!("faulty {}", inner.name());
        Self {
            inner,
            name,
            plan: Mutex::default(),
        }
    }

    /// Adds faults for the jobs to come.
    pub fn plan(&self, faults: impl IntoIterator<Item = Fault>) {
        self.lock().extend(faults);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Fault>> {
        self.plan.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Starts the job and hands its outcome on, changed by `change`.
    fn forward(
        &self,
        direction: Direction,
        job: CopyJob,
        change: impl FnOnce(&mut Outcome) + Send + 'static,
    ) -> std::result::Result<Completion, Box<Refused>> {
        let inner = self.inner.copy(direction, job)?;
        let (completer, completion) = Completion::new();
        let cancel = inner.cancel_handle();
        completer.on_cancel(move || cancel.cancel());
        spawn(move || {
            let mut outcome = inner.wait();
            change(&mut outcome);
            completer.finish(outcome);
        });
        Ok(completion)
    }

    fn hold(&self, gate: &HostEvent, direction: Direction, job: CopyJob) -> Completion {
        let (completer, completion) = Completion::new();
        let (open, opened) = sync_channel(2);
        let open = Arc::new(open);
        // Weak: only the gate keeps the channel open, so that a gate that is gone is noticed.
        let cancelled = Arc::downgrade(&open);
        completer.on_cancel(move || {
            let _ = cancelled.upgrade().map(|open| open.try_send(()));
        });
        gate.when_set(Box::new(move || {
            let _ = open.try_send(());
        }));
        let inner = self.inner.clone();
        spawn(move || {
            // An error means that the gate is gone and can never open: then the job does not run either.
            let opened = opened.recv().is_ok();
            run_held(&*inner, opened, direction, job, completer);
        });
        completion
    }
}

fn run_held(
    inner: &dyn Device,
    opened: bool,
    direction: Direction,
    job: CopyJob,
    completer: Completer,
) {
    let not_run = |error, blocks| Outcome {
        result: Err(error),
        checksums: Vec::new(),
        bytes: 0,
        blocks,
    };
    if completer.is_cancelled() || !opened {
        return completer.finish(not_run(Error::Cancelled, job.blocks));
    }
    match inner.copy(direction, job) {
        Ok(completion) => {
            let cancel = completion.cancel_handle();
            let hook = cancel.clone();
            if !completer.on_cancel(move || hook.cancel()) {
                cancel.cancel();
            }
            completer.finish(completion.wait());
        }
        Err(refused) => completer.finish(not_run(refused.error, refused.job.blocks)),
    }
}

impl Device for FaultyDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn attach_pool(&self, pool: Arc<SharedMemory>) -> Result<PoolHandle> {
        self.inner.attach_pool(pool)
    }

    fn copy(
        &self,
        direction: Direction,
        job: CopyJob,
    ) -> std::result::Result<Completion, Box<Refused>> {
        let fault = self.lock().pop_front().unwrap_or(Fault::None);
        match fault {
            Fault::None => self.inner.copy(direction, job),
            Fault::Refuse => {
                let error = Error::Limit {
                    what: "copy jobs",
                    limit: 0,
                    setting: "jobs_max",
                };
                Err(Refused::new(error, job))
            }
            Fault::Fail => self.forward(direction, job, |outcome| {
                outcome.result = Err(Error::Device {
                    device: "faulty".to_owned(),
                    op: "copy",
                    reason: "told to fail".to_owned(),
                });
                outcome.checksums.clear();
                outcome.bytes = 0;
            }),
            Fault::Hold(gate) => Ok(self.hold(&gate, direction, job)),
            Fault::Flip => {
                let (pool, at) = (job.pool.pool().clone(), first_byte(&job));
                if direction == Direction::Load {
                    flip(&pool, at);
                    return self.inner.copy(direction, job);
                }
                self.forward(direction, job, move |_| flip(&pool, at))
            }
        }
    }
}

fn first_byte(job: &CopyJob) -> Option<u64> {
    let head = job.layout.slot().heads.start;
    let offset = job.layout.shape().offset(job.layer_range().start, 0, head);
    job.blocks.first().map(|b| b.place.saturating_add(offset))
}

fn flip(pool: &SharedMemory, at: Option<u64>) {
    let Some(at) = at else { return };
    let mut byte = [0];
    // Outside the pool the job itself is refused, or was.
    if pool.copy_out(at, &mut byte).is_ok() {
        let _ = pool.copy_in(at, &[!byte[0]]);
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().name("pegaflow-faulty".to_owned());
    thread.spawn(work).expect("tests can start threads");
}
