// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Lookups that a scheduler starts in one step and may read in another.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use pegaflow_cache::client::{self, Lease};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::node::Shared;

/// A lookup on its way.
#[pyclass(frozen)]
#[derive(Debug)]
pub(crate) struct Lookup {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    started: Instant,
}

#[pymethods]
impl Lookup {
    /// What was found, or None while the node has not answered; waits for at most `wait_us`. `patience_ms` after its
    /// start a lookup that still has no answer has found nothing, and until it has one no other is waited for.
    fn poll(&self, py: Python<'_>, wait_us: u64, patience_ms: u64) -> Option<Found> {
        let wait = Duration::from_micros(wait_us);
        if let Some(found) = py.detach(|| self.slot.take(wait)) {
            return Some(found);
        }
        if self.started.elapsed() < Duration::from_millis(patience_ms) {
            return None;
        }
        self.slot.give_up(&self.shared);
        Some(Found {
            given_up: true,
            ..Found::default()
        })
    }

    /// The answer is not wanted any more: its lease is given back when it comes.
    fn cancel(&self) {
        self.slot.state.lock().unwanted = true;
    }
}

impl Lookup {
    /// A lookup whose answer `slot` gets.
    pub(crate) fn new(shared: Arc<Shared>, slot: Arc<Slot>) -> Self {
        Self {
            shared,
            slot,
            started: now(),
        }
    }
}

/// Blocks that a lookup found: the first ones of its keys.
#[pyclass(frozen)]
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) lease: Option<Lease>,
    places: Vec<u8>,
    generations: Vec<u8>,
    /// There was no answer in time.
    #[pyo3(get)]
    given_up: bool,
}

#[pymethods]
impl Found {
    /// How many.
    #[getter]
    fn ready(&self) -> usize {
        self.generations.len() / 4
    }

    /// Where they are: 8 bytes each, for `Rank.load`.
    #[getter]
    fn places<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.places)
    }

    /// The use of each place: 4 bytes each, for `Rank.load`.
    #[getter]
    fn generations<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.generations)
    }
}

impl From<client::Found> for Found {
    fn from(found: client::Found) -> Self {
        let mut out = Found {
            lease: found.lease,
            ..Found::default()
        };
        for block in &found.blocks {
            out.places.extend(block.place.to_bits().to_le_bytes());
            out.generations.extend(block.generation.to_le_bytes());
        }
        out
    }
}

#[derive(Debug, Default)]
struct State {
    found: Option<Found>,
    unwanted: bool,
    /// Counted among those that the node owes an answer.
    late: bool,
    answered: bool,
}

/// Where an answer arrives.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    state: Mutex<State>,
    came: Condvar,
}

impl Slot {
    /// The answer has come. A node that does not answer has nothing.
    pub(crate) async fn put(&self, shared: &Shared, found: pegaflow_cache::Result<client::Found>) {
        let found = found.map_or_else(|_| Found::default(), Found::from);
        let unwanted = {
            let mut state = self.state.lock();
            state.answered = true;
            if state.late {
                shared.end_late();
            }
            if state.unwanted {
                found.lease
            } else {
                state.found = Some(found);
                self.came.notify_all();
                None
            }
        };
        if let (Some(lease), Ok(client)) = (unwanted, shared.client()) {
            let _ = client.release(&lease).await;
        }
    }

    fn take(&self, wait: Duration) -> Option<Found> {
        let mut state = self.state.lock();
        if state.found.is_none() && !wait.is_zero() {
            self.came.wait_for(&mut state, wait);
        }
        state.found.take()
    }

    fn give_up(&self, shared: &Shared) {
        let mut state = self.state.lock();
        state.unwanted = true;
        if !state.answered && !state.late {
            state.late = true;
            shared.add_late();
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a shell: measures how long an engine has waited"
)]
fn now() -> Instant {
    Instant::now()
}
