// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Counts the copies that run under one session, so that its end can be told from its quiet.
//!
//! Invariant: once a gate is closed nobody enters, and it is quiet only when everybody left. So
//! after [`Gate::quiet`] returns, no copy of the session touches the pool, ever again.

use std::fmt;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

#[derive(Default)]
struct State {
    closed: bool,
    inside: u64,
    /// What is to be done when it is quiet.
    then: Option<Box<dyn FnOnce() + Send>>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("closed", &self.closed)
            .field("inside", &self.inside)
            .finish_non_exhaustive()
    }
}

/// Lets copies in until it is closed.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    empty: Notify,
}

/// A copy under way. The session's places stay reserved until it is dropped.
#[derive(Debug)]
pub struct CopyGuard(Arc<Gate>);

impl Gate {
    /// Starts a copy, or `None` if the session has ended.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Option<CopyGuard> {
        let mut state = self.state.lock();
        if state.closed {
            return None;
        }
        state.inside += 1;
        Some(CopyGuard(self.clone()))
    }

    /// Lets nobody in any more.
    pub fn close(&self) {
        self.close_then(|| {});
    }

    /// Lets nobody in any more, and calls `then` once everybody has left: now, or from the last
    /// copy's thread.
    pub fn close_then(&self, then: impl FnOnce() + Send + 'static) {
        let mut state = self.state.lock();
        state.closed = true;
        state.then = Some(Box::new(then));
        self.check_quiet(state);
    }

    fn check_quiet(&self, mut state: MutexGuard<'_, State>) {
        if !state.closed || state.inside > 0 {
            return;
        }
        let then = state.then.take();
        drop(state);
        self.empty.notify_waiters();
        if let Some(then) = then {
            then();
        }
    }

    /// Whether the gate is closed and everybody left.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let state = self.state.lock();
        state.closed && state.inside == 0
    }

    /// Waits until the gate is closed and everybody left.
    pub async fn quiet(&self) {
        loop {
            let notified = self.empty.notified();
            tokio::pin!(notified);
            // Registers before looking, so that a notification between the two is not lost.
            notified.as_mut().enable();
            if self.is_quiet() {
                return;
            }
            notified.await;
        }
    }
}

impl Drop for CopyGuard {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.inside -= 1;
        self.0.check_quiet(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closed_gate_is_quiet_when_the_last_copy_ends() {
        let gate = Arc::new(Gate::default());
        let first = gate.enter().expect("open");
        let second = gate.enter().expect("open");
        assert!(!gate.is_quiet());
        gate.close();
        assert!(gate.enter().is_none());
        drop(first);
        assert!(!gate.is_quiet());
        let waiter = tokio::spawn({
            let gate = gate.clone();
            async move { gate.quiet().await }
        });
        tokio::task::yield_now().await;
        drop(second);
        waiter.await.expect("it is quiet");
        gate.quiet().await;
    }

    #[tokio::test]
    async fn an_empty_gate_is_quiet_once_closed() {
        let gate = Arc::new(Gate::default());
        assert!(!gate.is_quiet());
        gate.close();
        gate.quiet().await;
    }
}
