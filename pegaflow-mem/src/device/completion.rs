// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The two ends of a running copy: the device finishes it, the caller waits for it.
//!
//! Invariant: an [`Outcome`] exists only once nothing touches the job's memory any more.

use crate::layout::BlockCopy;
use crate::{Error, Result};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// How a copy ended. Nothing touches its memory any more.
#[derive(Debug)]
pub struct Outcome {
    /// Whether all bytes were copied. After an error, what the written side holds is unspecified.
    pub result: Result<()>,
    /// Checksums of what was copied: one per block and head of the slot, block by block. Empty after an error.
    pub checksums: Vec<u64>,
    /// Bytes copied; 0 after an error.
    pub bytes: u64,
    /// The job's blocks back.
    pub blocks: Vec<BlockCopy>,
}

#[derive(Default)]
struct State {
    outcome: Option<Outcome>,
    done: bool,
    waker: Option<Waker>,
    on_cancel: Option<Box<dyn FnOnce() + Send>>,
    on_wait: Option<Box<dyn FnOnce() + Send>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    finished: Condvar,
    cancelled: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while holding the lock leaves a state that is still whole: every change is one assignment.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// The caller's end of a copy: wait for it, poll it as a future, or cancel it. Dropping it lets the copy go on; its
/// memory stays owned until it is over.
pub struct Completion {
    shared: Arc<Shared>,
}

impl Completion {
    /// Both ends of a new copy.
    pub fn new() -> (Completer, Completion) {
        let shared = Arc::new(Shared::default());
        (
            Completer {
                shared: shared.clone(),
                finished: false,
            },
            Completion { shared },
        )
    }

    /// Whether the copy is over.
    pub fn is_done(&self) -> bool {
        self.shared.lock().done
    }

    /// Blocks until the copy is over.
    pub fn wait(self) -> Outcome {
        self.watch();
        let mut state = self.shared.lock();
        loop {
            if let Some(outcome) = state.outcome.take() {
                return outcome;
            }
            state = self
                .shared
                .finished
                .wait(state)
                .unwrap_or_else(|e| e.into_inner());
        }
    }

    /// Blocks until the copy is over, or `patience` has passed: then `Err` has the completion back, and the copy goes on.
    ///
    /// # Errors
    /// The completion itself, if the copy is not over.
    pub fn wait_for(self, patience: Duration) -> std::result::Result<Outcome, Self> {
        let state = self.shared.lock();
        let (mut state, _) = self
            .shared
            .finished
            .wait_timeout_while(state, patience, |s| !s.done)
            .unwrap_or_else(|e| e.into_inner());
        match state.outcome.take() {
            Some(outcome) => Ok(outcome),
            None => {
                drop(state);
                Err(self)
            }
        }
    }

    /// Lets the device use the waiting thread, where it asked for that.
    fn watch(&self) {
        let hook = self.shared.lock().on_wait.take();
        if let Some(hook) = hook {
            hook();
        }
    }

    /// Asks the device to stop. The outcome is [`Error::Cancelled`] if it did, and comes only when all is quiet.
    pub fn cancel(&self) {
        self.cancel_handle().cancel();
    }

    /// A handle that can cancel while someone else waits.
    pub fn cancel_handle(&self) -> CancelHandle {
        CancelHandle {
            shared: self.shared.clone(),
        }
    }
}

impl Future for Completion {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let mut state = self.shared.lock();
        match state.outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                assert!(!state.done, "polled after it was ready");
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion")
            .field("done", &self.is_done())
            .finish()
    }
}

/// Can ask for the end of a copy, and be asked whether someone did.
#[derive(Clone)]
pub struct CancelHandle {
    shared: Arc<Shared>,
}

impl CancelHandle {
    /// As [`Completion::cancel`]. Does nothing once the copy is over.
    pub fn cancel(&self) {
        let mut state = self.shared.lock();
        self.shared.cancelled.store(true, Ordering::Release);
        let hook = state.on_cancel.take();
        drop(state);
        if let Some(hook) = hook {
            hook();
        }
    }

    /// Whether the end was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.shared.cancelled.load(Ordering::Acquire)
    }
}

impl fmt::Debug for CancelHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelHandle")
            .field("cancelled", &self.is_cancelled())
            .finish()
    }
}

/// The device's end of a copy. Finish it when nothing touches the job's memory any more.
pub struct Completer {
    shared: Arc<Shared>,
    finished: bool,
}

impl Completer {
    /// Whether the caller asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.shared.cancelled.load(Ordering::Acquire)
    }

    /// The flag by itself, for threads that look at it often.
    pub fn cancel_handle(&self) -> CancelHandle {
        CancelHandle {
            shared: self.shared.clone(),
        }
    }

    /// Has `hook` called when the caller asks to stop, unless the copy is over by then. Replaces an earlier hook. False, and
    /// the hook is dropped, if the caller asked already.
    pub fn on_cancel(&self, hook: impl FnOnce() + Send + 'static) -> bool {
        let mut state = self.shared.lock();
        let in_time = !self.is_cancelled();
        if in_time {
            state.on_cancel = Some(Box::new(hook));
        }
        in_time
    }

    /// Has `hook` called on the thread of a caller that begins to wait without a time limit: a device may watch for the end
    /// there for a while, which saves a thread switch. The hook must not block for much longer than the copy takes.
    pub fn on_wait(&self, hook: impl FnOnce() + Send + 'static) {
        self.shared.lock().on_wait = Some(Box::new(hook));
    }

    /// Ends the copy.
    pub fn finish(mut self, outcome: Outcome) {
        self.finished = true;
        self.end(outcome);
    }

    fn end(&self, outcome: Outcome) {
        let mut state = self.shared.lock();
        state.outcome = Some(outcome);
        state.done = true;
        let hook = state.on_cancel.take();
        let watch = state.on_wait.take();
        let waker = state.waker.take();
        drop(state);
        drop((hook, watch));
        self.shared.finished.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Completer {
    fn drop(&mut self) {
        if !self.finished {
            // A device that forgets a job still must not leave its caller waiting.
            let result = Err(Error::Closed);
            self.end(Outcome {
                result,
                checksums: Vec::new(),
                bytes: 0,
                blocks: Vec::new(),
            });
        }
    }
}

impl fmt::Debug for Completer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completer")
            .field("cancelled", &self.is_cancelled())
            .finish()
    }
}
