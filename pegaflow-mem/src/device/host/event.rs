// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The host's stand-in for a device event: set once, by the engine.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

type Hook = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    set: bool,
    hooks: Vec<Hook>,
}

/// Something that happens once. Clones are the same event.
#[derive(Clone, Default)]
pub struct HostEvent {
    state: Arc<Mutex<State>>,
}

impl HostEvent {
    /// An event that has not happened yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// It happens now: copies that wait for it may start.
    pub fn set(&self) {
        let mut state = self.lock();
        state.set = true;
        let hooks = std::mem::take(&mut state.hooks);
        drop(state);
        hooks.into_iter().for_each(|hook| hook());
    }

    /// Whether it happened.
    pub fn is_set(&self) -> bool {
        self.lock().set
    }

    /// Calls `hook` when it happens; at once if it did already.
    pub(in crate::device) fn when_set(&self, hook: Hook) {
        let mut state = self.lock();
        if !state.set {
            state.hooks.push(hook);
            return;
        }
        drop(state);
        hook();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl fmt::Debug for HostEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostEvent")
            .field("set", &self.is_set())
            .finish()
    }
}
