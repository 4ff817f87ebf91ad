// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A promise and its keeper: the answer to a request, once.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::error::Result;
use crate::sys::Buf;

/// How a request ended.
#[derive(Debug)]
pub struct Done<T> {
    /// The buffers, as they came. Empty only after [`crate::Error::Deadline`]: the device still holds them; they come back through
    /// [`crate::SsdStore::take_late`] once it lets go.
    pub bufs: Vec<Buf>,
    /// The outcome.
    pub result: Result<T>,
}

type Cancel = Box<dyn FnOnce() + Send>;

/// An answer, or the work that makes it, to be done by whoever takes it.
enum Answer<T> {
    Done(Done<T>),
    Work(Box<dyn FnOnce() -> Done<T> + Send>),
}

impl<T> Answer<T> {
    fn take(self) -> Done<T> {
        match self {
            Self::Done(done) => done,
            Self::Work(work) => work(),
        }
    }
}

struct State<T> {
    done: Option<Answer<T>>,
    waker: Option<Waker>,
    cancel: Option<Cancel>,
    cancelled: bool,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    ready: Condvar,
}

/// Waits for an answer; whoever takes a fetched block checks its bytes on the way. Dropping it gives up the answer, not the request: the buffers are freed when the device is done with them.
#[must_use = "dropping a ticket throws its buffers away when they come back"]
pub struct Ticket<T> {
    shared: Arc<Shared<T>>,
}

/// Gives the answer.
pub(crate) struct Promise<T> {
    shared: Arc<Shared<T>>,
}

/// A promise and its ticket.
pub(crate) fn promise<T>() -> (Promise<T>, Ticket<T>) {
    let state = State {
        done: None,
        waker: None,
        cancel: None,
        cancelled: false,
    };
    let shared = Arc::new(Shared {
        state: Mutex::new(state),
        ready: Condvar::new(),
    });
    (
        Promise {
            shared: shared.clone(),
        },
        Ticket { shared },
    )
}

impl<T> Promise<T> {
    pub(crate) fn keep(self, bufs: Vec<Buf>, result: Result<T>) {
        self.answer(Answer::Done(Done { bufs, result }));
    }

    /// Leaves the last of the work to the thread that takes the answer: the device's own has other requests to serve.
    pub(crate) fn keep_by(self, work: impl FnOnce() -> Done<T> + Send + 'static) {
        self.answer(Answer::Work(Box::new(work)));
    }

    fn answer(self, answer: Answer<T>) {
        let mut state = self.shared.state.lock();
        state.done = Some(answer);
        state.cancel = None;
        let waker = state.waker.take();
        drop(state);
        self.shared.ready.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Through which the way to take the request back can be set later.
    pub(crate) fn canceller(&self) -> Canceller<T> {
        Canceller {
            shared: self.shared.clone(),
        }
    }

    /// Whether somebody wants the request back.
    pub(crate) fn cancelled(&self) -> bool {
        self.shared.state.lock().cancelled
    }
}

/// Says how a request is taken back.
pub(crate) struct Canceller<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Canceller<T> {
    pub(crate) fn set(self, cancel: Cancel) {
        let mut state = self.shared.state.lock();
        if state.done.is_none() && !state.cancelled {
            state.cancel = Some(cancel);
        }
    }
}

impl<T> Ticket<T> {
    /// Waits for the answer.
    pub fn wait(self) -> Done<T> {
        let mut state = self.shared.state.lock();
        loop {
            if let Some(answer) = state.done.take() {
                drop(state);
                return answer.take();
            }
            self.shared.ready.wait(&mut state);
        }
    }

    /// Waits so long at most.
    ///
    /// # Errors
    /// The ticket itself: the request goes on, and so do its buffers. Wait again, or [`Ticket::cancel`] and wait.
    pub fn wait_for(self, time: Duration) -> std::result::Result<Done<T>, Self> {
        let mut state = self.shared.state.lock();
        if state.done.is_none() {
            self.shared
                .ready
                .wait_while_for(&mut state, |s| s.done.is_none(), time);
        }
        let done = state.done.take();
        drop(state);
        done.map(Answer::take).ok_or(self)
    }

    /// Asks for the request back. It still ends, with `Cancelled` or as if nothing was asked: only then the buffers are free.
    pub fn cancel(&self) {
        let mut state = self.shared.state.lock();
        state.cancelled = true;
        let cancel = state.cancel.take();
        drop(state);
        if let Some(cancel) = cancel {
            cancel();
        }
    }
}

impl<T> Future for Ticket<T> {
    type Output = Done<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Done<T>> {
        let mut state = self.shared.state.lock();
        match state.done.take() {
            Some(answer) => {
                drop(state);
                Poll::Ready(answer.take())
            }
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<T> std::fmt::Debug for Ticket<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ticket")
    }
}
