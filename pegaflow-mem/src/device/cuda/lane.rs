// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! One direction of a GPU: a queue of jobs, a bounded window of submitted work, and a thread that keeps it full.
//!
//! Whoever submits a job also submits its first steps, so an idle lane starts without a thread switch. The thread
//! sleeps in the driver until the oldest work is finished, then submits more. A cancelled job gets no further steps;
//! it is finished when those it had are.
//!
//! Invariant: a job leaves the lane only when its last mark has passed, or after its streams were found idle.

use super::EngineEvent;
use super::buffers::Buffers;
use super::driver::{Context, Event, Signal, Span, Stream};
use super::issue::{Issuer, Turn};
use super::job::Job;
use super::kernels::Kernels;
use crate::copy::Step;
use crate::device::{DeviceEvent, Direction};
use crate::{Error, Result};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Bytes that may be submitted and unfinished. Between one and two milliseconds of the fastest link there is: enough for the
/// thread to wake up in, and the most that a cancelled job still copies.
const WINDOW_BYTES: u64 = 96 << 20;
/// Steps that may be unfinished, so that small ones do not fill the driver's queue.
const WINDOW_STEPS: usize = 256;
/// A mark is set once as many bytes or steps were submitted: it makes a DMA engine drain.
const MARK_BYTES: u64 = 32 << 20;
const MARK_STEPS: usize = 16;
/// How often the thread asks whether the oldest mark has passed. The window covers many times this.
const MARK_LOOK: Duration = Duration::from_micros(500);

/// One direction of a GPU.
pub(super) struct Lane {
    context: Arc<Context>,
    kernels: Option<Arc<Kernels>>,
    buffers: Arc<Buffers>,
    state: Mutex<State>,
    wake: Condvar,
    express: Mutex<Express>,
    /// The thread sleeps without a time limit: it must be woken to see an express job.
    asleep: AtomicBool,
    /// Bytes accepted and not finished, for estimates.
    backlog: AtomicU64,
}

struct State {
    issuer: Issuer,
    queue: VecDeque<Running>,
    marks: VecDeque<Mark>,
    /// Bytes and steps that are submitted and not known to be finished.
    window: (u64, usize),
    events: Vec<Arc<Event>>,
    closed: bool,
}

/// Small direct jobs: one launch each, on a stream of their own, past the queue.
pub(super) struct Express {
    pub stream: Stream,
    pub arrivals: Span,
    pub places: Vec<(u32, u64)>,
    pending: VecDeque<(Arc<Event>, Arc<Job>)>,
    events: Vec<Arc<Event>>,
}

impl Express {
    pub(super) fn new(stream: Stream, arrivals: Span) -> Self {
        Self {
            stream,
            arrivals,
            places: vec![],
            pending: VecDeque::new(),
            events: vec![],
        }
    }

    /// Ends what is done, oldest first.
    fn retire(&mut self) {
        while let Some((event, job)) = self.pending.front() {
            let over = job.finish_if_ended()
                || match event.done() {
                    Ok(done) => {
                        if done {
                            job.finish_as_planned();
                        }
                        done
                    }
                    Err(error) => {
                        job.finish(Err(error));
                        true
                    }
                };
            if !over {
                return;
            }
            let (event, _) = self.pending.pop_front().expect("it was there");
            self.events.push(event);
        }
    }
}

/// How often the thread looks after express jobs that nobody waits for.
const EXPRESS_LOOK: Duration = Duration::from_micros(500);
/// How often the thread looks whether the engine's events have passed, while nothing else is to do.
const EVENT_LOOK: Duration = Duration::from_micros(50);
/// For how many looks it goes on after the last one.
const EXPRESS_LOOKS: u32 = 100;

/// A job that is being submitted.
struct Running {
    job: Arc<Job>,
    steps: VecDeque<Step>,
    after: Option<DeviceEvent>,
    /// Rows of one signalled group; the word counts layers.
    parts: u32,
    signals: bool,
    /// Whether anything of it was submitted.
    begun: bool,
    /// Bytes of the step before; of another job's it is not known.
    before: u64,
    /// Whether its last step brings its checksums to the host.
    published: bool,
    /// Bytes and steps since its last mark.
    unmarked: (u64, usize),
}

impl Running {
    /// Whether the engine's work before it is done, or it need not run any more. A job that waits does not hold up others.
    fn may_run(&mut self) -> bool {
        let event = self.after.as_ref().and_then(|a| a.get::<EngineEvent>());
        // An event that cannot be asked is as good as passed: the job's own work will report what is wrong.
        if event.is_none_or(|e| e.done().unwrap_or(true)) {
            self.after = None;
        }
        self.after.is_none() || self.job.is_cancelled()
    }
}

/// A point in the stream of work.
struct Mark {
    event: Arc<Event>,
    covers: (u64, usize),
    job: Arc<Job>,
    what: Passed,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Passed {
    Step,
    Layers(u32),
    End,
}

/// What a lane needs to know of a job to run it.
pub(super) struct Submission {
    pub job: Arc<Job>,
    pub steps: Vec<Step>,
    pub after: Option<DeviceEvent>,
    /// Whether layers are signalled as they are done.
    pub signals: bool,
}

impl Lane {
    pub(super) fn new(
        context: &Arc<Context>,
        kernels: Option<Arc<Kernels>>,
        buffers: &Arc<Buffers>,
        issuer: Issuer,
        express: Express,
    ) -> Arc<Self> {
        Arc::new(Self {
            context: Arc::clone(context),
            kernels,
            buffers: Arc::clone(buffers),
            state: Mutex::new(State {
                issuer,
                queue: VecDeque::new(),
                marks: VecDeque::new(),
                window: (0, 0),
                events: vec![],
                closed: false,
            }),
            wake: Condvar::new(),
            express: Mutex::new(express),
            asleep: AtomicBool::new(false),
            backlog: AtomicU64::new(0),
        })
    }

    /// Queues a job and submits what the window allows. The context is current.
    pub(super) fn submit(&self, submission: Submission) {
        let Submission {
            job,
            steps,
            after,
            signals,
        } = submission;
        self.backlog.fetch_add(job.shape.bytes(), Ordering::Relaxed);
        let parts = job.layout.layout().shape().parts;
        let mut state = self.state.lock();
        let steps = steps.into();
        state.queue.push_back(Running {
            job,
            steps,
            after,
            parts,
            signals,
            begun: false,
            before: u64::MAX,
            published: false,
            unmarked: (0, 0),
        });
        self.pump(&mut state);
        drop(state);
        self.wake.notify_one();
    }

    /// Runs a job of one launch at once. `start` submits it to the express stream.
    pub(super) fn submit_express(
        &self,
        job: Arc<Job>,
        start: impl FnOnce(&mut Express) -> Result<()>,
    ) {
        let mut express = self.express.lock();
        express.retire();
        let started = start(&mut express).and_then(|()| {
            let event = match express.events.pop() {
                Some(event) => event,
                None => Arc::new(Event::new(&self.context)?),
            };
            express.stream.record(&event)?;
            Ok(event)
        });
        match started {
            Ok(event) => express.pending.push_back((event, job)),
            Err(error) => {
                let _ = express.stream.synchronize();
                job.finish(Err(error));
            }
        }
        drop(express);
        if self.asleep.swap(false, Ordering::AcqRel) {
            drop(self.state.lock());
            self.wake.notify_one();
        }
    }

    /// Bytes that are ahead of a job submitted now.
    pub(super) fn backlog(&self) -> u64 {
        self.backlog.load(Ordering::Relaxed)
    }

    /// Runs `use_it` on the issuer.
    pub(super) fn with_issuer<T>(&self, use_it: impl FnOnce(&mut Issuer) -> T) -> T {
        use_it(&mut self.state.lock().issuer)
    }

    /// The lane's thread: until it is closed and empty.
    pub(super) fn run(&self) {
        let Ok(_current) = self.context.enter() else {
            return self.abandon();
        };
        let mut state = self.state.lock();
        let mut looks = 0;
        loop {
            if let Some(mark) = state.marks.front() {
                match mark.event.done() {
                    Ok(true) => self.pass(&mut state),
                    Ok(false) => {
                        MutexGuard::unlocked(&mut state, || std::thread::sleep(MARK_LOOK));
                        continue;
                    }
                    Err(error) => self.fail_all(&mut state, error),
                }
                self.pump(&mut state);
            } else if state.queue.is_empty() && state.closed && self.express_idle() {
                return;
            } else if state.queue.is_empty() {
                self.rest(&mut state, &mut looks);
            } else {
                // Jobs that wait for the engine: only it can tell when they may run.
                self.wake.wait_for(&mut state, EVENT_LOOK);
                self.pump(&mut state);
            }
        }
    }

    /// Looks after express jobs, or sleeps until there is something to do.
    fn rest(&self, state: &mut MutexGuard<'_, State>, looks: &mut u32) {
        if !self.express_idle() {
            *looks = EXPRESS_LOOKS;
        }
        if *looks > 0 {
            *looks -= 1;
            self.wake.wait_for(state, EXPRESS_LOOK);
            return;
        }
        self.asleep.store(true, Ordering::Release);
        if self.express_idle() {
            self.wake.wait(state);
        }
        self.asleep.store(false, Ordering::Release);
        *looks = EXPRESS_LOOKS;
    }

    fn express_idle(&self) -> bool {
        let mut express = self.express.lock();
        express.retire();
        express.pending.is_empty()
    }

    /// No more jobs; the thread ends when those there are finished.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_all();
    }

    /// Submits steps while the window has room.
    fn pump(&self, state: &mut State) {
        while state.window.0 < WINDOW_BYTES && state.window.1 < WINDOW_STEPS {
            // A job that has begun goes on until its last step: only one at a time has steps without a mark.
            let begun = state.queue.iter().position(|r| r.begun);
            let next = begun.or_else(|| state.queue.iter_mut().position(Running::may_run));
            let Some(next) = next else {
                return;
            };
            let mut running = state.queue.remove(next).expect("it was found there");
            if !running.begun && running.job.is_cancelled() {
                self.forget(&running.job);
                running.job.finish(Err(Error::Cancelled));
                continue;
            }
            running.begun = true;
            match self.advance(state, &mut running) {
                Ok(true) => {}
                Ok(false) => state.queue.insert(next, running),
                Err(error) => {
                    state.window.0 -= running.unmarked.0;
                    state.window.1 -= running.unmarked.1;
                    self.fail(state, &running.job, error);
                }
            }
        }
    }

    /// Wakes the thread: a job was cancelled that may not have begun.
    pub(super) fn nudge(&self) {
        drop(self.state.lock());
        self.wake.notify_one();
    }

    /// Submits one step of a job, or its end; true if that was all.
    fn advance(&self, state: &mut State, running: &mut Running) -> Result<bool> {
        let kernels = self.kernels.as_deref();
        let job = Arc::clone(&running.job);
        if job.is_cancelled() && !running.steps.is_empty() {
            running.steps.clear();
            job.stop();
        }
        let Some(step) = running.steps.pop_front() else {
            let end = self.end_of(&job);
            state.issuer.end(&job, kernels, end, running.published)?;
            self.mark(state, running, Passed::End)?;
            return Ok(true);
        };
        let turn = Turn {
            meanwhile: match job.direction {
                Direction::Save => state.window.0.min(running.before),
                Direction::Load => running.steps.front().map_or(0, |next| next.bytes),
            },
            end: running.steps.is_empty().then(|| self.end_of(&job)),
        };
        running.published = state.issuer.step(&job, &step, kernels, turn)?;
        running.before = step.bytes;
        state.window.0 += step.bytes;
        state.window.1 += 1;
        running.unmarked.0 += step.bytes;
        running.unmarked.1 += 1;
        let next_row = running.steps.front().map(|s| s.rows.start);
        match next_row {
            Some(next) if running.signals && next >= step.rows.end => {
                let layers = step.rows.end / running.parts;
                let word = &job.word;
                state.issuer.last(&job).write_word(
                    self.buffers.words(),
                    word.index(),
                    word.value(layers),
                )?;
                self.mark(state, running, Passed::Layers(layers))?;
            }
            _ if running.unmarked.0 >= MARK_BYTES || running.unmarked.1 >= MARK_STEPS => {
                self.mark(state, running, Passed::Step)?;
            }
            _ => {}
        }
        Ok(false)
    }

    /// How the host learns that a job is done.
    fn end_of(&self, job: &Job) -> Signal<'_> {
        Signal {
            memory: self.buffers.words(),
            word: job.word.index(),
            value: job.word.end(),
        }
    }

    fn mark(&self, state: &mut State, running: &mut Running, what: Passed) -> Result<()> {
        let event = match state.events.pop() {
            Some(event) => event,
            None => Arc::new(Event::new(&self.context)?),
        };
        state.issuer.last(&running.job).record(&event)?;
        let (covers, job) = (
            std::mem::take(&mut running.unmarked),
            Arc::clone(&running.job),
        );
        state.marks.push_back(Mark {
            event,
            covers,
            job,
            what,
        });
        Ok(())
    }

    /// The oldest mark has passed.
    fn pass(&self, state: &mut State) {
        let Some(mark) = state.marks.pop_front() else {
            return;
        };
        state.window.0 -= mark.covers.0;
        state.window.1 -= mark.covers.1;
        state.events.push(mark.event);
        match mark.what {
            Passed::Step => {}
            Passed::Layers(layers) => mark.job.tell(layers),
            Passed::End => {
                self.forget(&mark.job);
                mark.job.finish_as_planned();
            }
        }
    }

    /// A step could not be submitted: what was is waited for, then the job ends with the error.
    fn fail(&self, state: &mut State, job: &Arc<Job>, error: Error) {
        // An error here is the same that is reported already; either way the streams are idle afterwards.
        let _ = state.issuer.kernel.synchronize();
        let _ = state.issuer.dma.synchronize();
        self.forget(job);
        job.finish(Err(error));
    }

    /// The GPU reported a failure: it is that of the context, so all jobs end.
    fn fail_all(&self, state: &mut State, error: Error) {
        let _ = state.issuer.kernel.synchronize();
        let _ = state.issuer.dma.synchronize();
        let text = error.to_string();
        let marks: Vec<_> = state.marks.drain(..).map(|m| m.job).collect();
        let queued: Vec<_> = state.queue.drain(..).map(|r| r.job).collect();
        state.window = (0, 0);
        for job in marks.into_iter().chain(queued) {
            self.forget(&job);
            job.finish(Err(Error::Device {
                device: self.context.facts().label.clone(),
                op: "copy",
                reason: text.clone(),
            }));
        }
    }

    fn forget(&self, job: &Job) {
        let bytes = job.shape.bytes();
        let _ = self
            .backlog
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |b| {
                Some(b.saturating_sub(bytes))
            });
    }

    /// The context cannot be entered: nothing was ever submitted.
    fn abandon(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let queued: Vec<_> = state.queue.drain(..).collect();
        for running in queued {
            running.job.finish(Err(Error::Closed));
        }
    }
}
