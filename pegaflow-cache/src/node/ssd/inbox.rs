// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! How a thread of the tier is told that there is something to do: a bell, the numbers of requests
//! that are answered, and the end.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use pegaflow_ssd::{Done, Ticket};

#[derive(Debug, Default)]
struct State {
    answered: Vec<u64>,
    rung: bool,
    stop: bool,
}

/// One thread's inbox.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    told: Condvar,
}

struct Answered {
    id: u64,
    inbox: Arc<Inbox>,
}

impl Wake for Answered {
    fn wake(self: Arc<Self>) {
        self.inbox.tell(|state| state.answered.push(self.id));
    }
}

impl Inbox {
    fn tell(&self, f: impl FnOnce(&mut State)) {
        f(&mut self.state.lock());
        self.told.notify_one();
    }

    /// There is something to do.
    pub(super) fn ring(&self) {
        self.tell(|state| state.rung = true);
    }

    /// The thread is to end.
    pub(super) fn stop(&self) {
        self.tell(|state| state.stop = true);
    }

    /// Whether requests are answered, or the thread is to end.
    pub(super) fn has_answers(&self) -> bool {
        let state = self.state.lock();
        state.stop || !state.answered.is_empty()
    }

    /// Waits for one of these, `patience` at most. The requests that are answered; none to end.
    pub(super) fn wait(&self, patience: Duration) -> Option<Vec<u64>> {
        let mut state = self.state.lock();
        let idle = |state: &mut State| !state.rung && !state.stop && state.answered.is_empty();
        self.told.wait_while_for(&mut state, idle, patience);
        state.rung = false;
        (!state.stop).then(|| std::mem::take(&mut state.answered))
    }

    /// The answer to request `id` if it is there; else the inbox is told when it is.
    pub(super) fn poll<T>(self: &Arc<Self>, id: u64, ticket: &mut Ticket<T>) -> Option<Done<T>> {
        let inbox = self.clone();
        let waker = Waker::from(Arc::new(Answered { id, inbox }));
        match Pin::new(ticket).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        }
    }
}
