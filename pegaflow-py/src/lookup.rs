// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Lookups that a scheduler starts in one step and may read in another.
//!
//! A lookup asks the node once. Blocks that are on their way (from SSD, or saved by somebody this moment) it follows by
//! its ticket, a word in shared memory; only when they are there it asks for their places.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use pegaflow_cache::client::{self, Lease, TicketState};
use pegaflow_cache::core::BlockRef;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::invalid;
use crate::node::Shared;

/// A lookup on its way.
#[pyclass(frozen)]
#[derive(Debug)]
pub(crate) struct Lookup {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
}

#[pymethods]
impl Lookup {
    /// What was found, or None while that is not known; waits for the node's word for at most `wait_us`.
    ///
    /// A node that has not answered after `patience_ms` has found nothing, and until it has answered no other lookup is
    /// waited for. Blocks that are on their way are given `fetch_ms` from the answer on, without being waited for here;
    /// then what is there by then is what was found.
    fn poll(&self, py: Python<'_>, wait_us: u64, patience_ms: u64, fetch_ms: u64) -> Option<Found> {
        let wait = Duration::from_micros(wait_us);
        let fetch = Duration::from_millis(fetch_ms);
        if self.slot.wants_claim(fetch) {
            py.detach(|| self.claim());
        }
        if let Some(found) = py.detach(|| self.slot.take(wait)) {
            return Some(found);
        }
        self.slot
            .give_up(&self.shared, Duration::from_millis(patience_ms))
    }

    /// What was found, for a caller with a thread of its own: waits for it, blocks on their way included, within the
    /// limits of `poll`. None if it was taken before, or cancelled.
    fn wait(&self, py: Python<'_>, patience_ms: u64, fetch_ms: u64) -> Option<Found> {
        loop {
            if let Some(found) =
                self.poll(py, patience_ms.saturating_mul(1_000), patience_ms, fetch_ms)
            {
                return Some(found);
            }
            match self.slot.awaited(Duration::from_millis(fetch_ms)) {
                Awaited::Answer => {}
                Awaited::Blocks(ticket, left) => {
                    py.detach(|| self.shared.runtime().block_on(ticket.wait(left)));
                }
                Awaited::Nothing => return None,
            }
        }
    }

    /// The answer is not wanted any more: its lease is given back, when it comes if it has not come.
    fn cancel(&self, py: Python<'_>) {
        if let Some(lease) = self.slot.cancel() {
            py.detach(|| self.shared.release(vec![lease]));
        }
    }
}

impl Lookup {
    /// A lookup whose answer `slot` gets.
    pub(crate) fn new(shared: Arc<Shared>, slot: Arc<Slot>) -> Self {
        Self { shared, slot }
    }

    /// Asks for the places of blocks that came after the answer.
    fn claim(&self) {
        let (shared, slot) = (self.shared.clone(), self.slot.clone());
        let Some(lease) = slot.begin_claim() else {
            return;
        };
        self.shared.start(async move {
            let found = match shared.client() {
                Ok(client) => client.claim(&lease).await,
                Err(error) => Err(error),
            };
            slot.put_claim(found);
        });
    }
}

/// Positions, places and generations.
type Columns<'py> = (
    Bound<'py, PyBytes>,
    Bound<'py, PyBytes>,
    Bound<'py, PyBytes>,
);

/// Blocks that a lookup found: the first ones of its keys.
#[pyclass(frozen)]
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) lease: Option<Lease>,
    places: Vec<u8>,
    generations: Vec<u8>,
    /// Of a lookup in all groups: which keys of its group the blocks are, and where each group's end.
    positions: Vec<u8>,
    group_ends: Vec<usize>,
    /// Of a lookup in all groups: tokens of the prefix that every group can start from.
    #[pyo3(get)]
    tokens: u64,
    /// There was no answer in time.
    #[pyo3(get)]
    given_up: bool,
    /// How many were there at once.
    #[pyo3(get)]
    at_once: usize,
    /// How many of the others came from SSD.
    #[pyo3(get)]
    from_ssd: usize,
    /// Microseconds until the node's answer.
    #[pyo3(get)]
    answer_us: u64,
    /// Microseconds from then on until the others were there.
    #[pyo3(get)]
    fetch_us: u64,
}

#[pymethods]
impl Found {
    /// How many.
    #[getter]
    fn ready(&self) -> usize {
        self.generations.len() / 4
    }

    /// Of a lookup in all groups, those of one: which keys they are (4 bytes each), places and generations.
    fn group<'py>(&self, py: Python<'py>, group: usize) -> PyResult<Columns<'py>> {
        let end = self.group_ends.get(group).copied();
        let end = end.ok_or_else(|| invalid("the lookup was not in such a group"))?;
        let start = group
            .checked_sub(1)
            .map_or(0, |before| self.group_ends[before]);
        Ok((
            PyBytes::new(py, &self.positions[4 * start..4 * end]),
            PyBytes::new(py, &self.places[8 * start..8 * end]),
            PyBytes::new(py, &self.generations[4 * start..4 * end]),
        ))
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

impl Found {
    fn put(&mut self, blocks: &[BlockRef]) {
        self.places.clear();
        self.generations.clear();
        self.add(blocks);
    }

    fn add(&mut self, blocks: &[BlockRef]) {
        for block in blocks {
            self.places.extend(block.place.to_bits().to_le_bytes());
            self.generations.extend(block.generation.to_le_bytes());
        }
    }
}

/// What the node answered: blocks, and others on their way.
#[derive(Debug)]
pub(crate) struct Answer {
    found: Found,
    ticket: Option<(client::Ticket, Arc<client::Session>)>,
    fetching: usize,
}

impl From<client::Found> for Answer {
    fn from(answer: client::Found) -> Self {
        let mut found = Found {
            at_once: answer.blocks.len(),
            lease: answer.lease,
            ..Found::default()
        };
        found.put(&answer.blocks);
        Self {
            found,
            ticket: answer.ticket.map(|ticket| (ticket, answer.session)),
            fetching: answer.fetching as usize,
        }
    }
}

impl From<client::HybridFound> for Answer {
    fn from(answer: client::HybridFound) -> Self {
        let mut found = Found {
            lease: answer.lease,
            tokens: answer.tokens,
            ..Found::default()
        };
        for group in &answer.groups {
            found.add(group);
            let positions = group.iter().flat_map(|block| block.key.to_le_bytes());
            found.positions.extend(positions);
            found.group_ends.push(found.positions.len() / 4);
        }
        found.at_once = found.ready();
        Self {
            found,
            ticket: None,
            fetching: 0,
        }
    }
}

/// Blocks on their way.
#[derive(Debug)]
struct Pending {
    found: Found,
    ticket: client::Ticket,
    session: Arc<client::Session>,
    fetching: usize,
    since: Instant,
}

impl Pending {
    /// How many blocks there are by now; none once the lease or the node is gone.
    fn ready(&self) -> (Option<u32>, bool) {
        match self.ticket.poll() {
            TicketState::Waiting { ready } if self.session.is_open() => (Some(ready), false),
            TicketState::Done { ready } => (Some(ready), true),
            TicketState::Waiting { .. } | TicketState::Gone => (None, true),
        }
    }

    /// With the blocks that came meanwhile, if the node has said which.
    fn end(mut self, claimed: pegaflow_cache::Result<client::Found>) -> Found {
        if let Ok(claimed) = claimed {
            self.found.put(&claimed.blocks);
            let gained = claimed.blocks.len().saturating_sub(self.found.at_once);
            self.found.from_ssd = gained.min(self.fetching);
        }
        self.found.fetch_us = micros(self.since);
        self.found
    }
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Asked,
    Pending(Box<Pending>),
    Claiming(Box<Pending>),
    Answered(Found),
    /// Taken, or not wanted any more.
    Over,
}

/// What a lookup waits for.
enum Awaited {
    /// The node's word.
    Answer,
    /// Blocks on their way, for so long at most.
    Blocks(client::Ticket, Duration),
    Nothing,
}

#[derive(Debug)]
struct State {
    stage: Stage,
    /// When the node was asked last.
    asked: Instant,
    /// Counted among those that the node owes an answer.
    late: bool,
    answered: bool,
}

/// Where an answer arrives.
#[derive(Debug)]
pub(crate) struct Slot {
    state: Mutex<State>,
    came: Condvar,
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                stage: Stage::Asked,
                asked: now(),
                late: false,
                answered: false,
            }),
            came: Condvar::new(),
        }
    }
}

impl Slot {
    /// The answer has come. A node that does not answer has nothing.
    pub(crate) async fn put(&self, shared: &Shared, answer: pegaflow_cache::Result<Answer>) {
        let unwanted = {
            let mut state = self.state.lock();
            state.answered = true;
            if state.late {
                shared.end_late();
            }
            if matches!(state.stage, Stage::Over) {
                answer.ok().and_then(|answer| answer.found.lease)
            } else {
                state.stage = Stage::of(answer, micros(state.asked));
                self.came.notify_all();
                None
            }
        };
        if let (Some(lease), Ok(client)) = (unwanted, shared.client()) {
            let _ = client.release(&lease).await;
        }
    }

    /// Whether blocks that were on their way are there, or `fetch` is over and some are.
    fn wants_claim(&self, fetch: Duration) -> bool {
        let mut state = self.state.lock();
        let Stage::Pending(pending) = &state.stage else {
            return false;
        };
        match pending.ready() {
            (Some(_), false) if pending.since.elapsed() < fetch => false,
            (Some(ready), _) if ready as usize > pending.found.at_once => true,
            (Some(_), _) => {
                state.end_pending();
                false
            }
            (None, _) => {
                state.stage = Stage::Answered(Found::default());
                false
            }
        }
    }

    fn awaited(&self, fetch: Duration) -> Awaited {
        match &self.state.lock().stage {
            Stage::Asked | Stage::Claiming(_) | Stage::Answered(_) => Awaited::Answer,
            Stage::Pending(pending) => {
                let left = fetch.saturating_sub(pending.since.elapsed());
                Awaited::Blocks(pending.ticket.clone(), left)
            }
            Stage::Over => Awaited::Nothing,
        }
    }

    fn begin_claim(&self) -> Option<Lease> {
        let mut state = self.state.lock();
        match std::mem::take(&mut state.stage) {
            Stage::Pending(pending) => {
                let lease = pending.found.lease.clone();
                state.stage = Stage::Claiming(pending);
                state.asked = now();
                lease
            }
            other => {
                state.stage = other;
                None
            }
        }
    }

    fn put_claim(&self, claimed: pegaflow_cache::Result<client::Found>) {
        let mut state = self.state.lock();
        state.stage = match std::mem::take(&mut state.stage) {
            Stage::Claiming(pending) => Stage::Answered(pending.end(claimed)),
            other => other,
        };
        self.came.notify_all();
    }

    fn take(&self, wait: Duration) -> Option<Found> {
        let mut state = self.state.lock();
        let asks = matches!(state.stage, Stage::Asked | Stage::Claiming(_));
        if asks && !wait.is_zero() {
            self.came.wait_for(&mut state, wait);
        }
        match std::mem::take(&mut state.stage) {
            Stage::Answered(found) => {
                state.stage = Stage::Over;
                Some(found)
            }
            other => {
                state.stage = other;
                None
            }
        }
    }

    /// What counts as found if the node has been silent for `patience`.
    fn give_up(&self, shared: &Shared, patience: Duration) -> Option<Found> {
        let mut state = self.state.lock();
        if state.asked.elapsed() < patience {
            return None;
        }
        match std::mem::take(&mut state.stage) {
            Stage::Asked => {
                state.late = true;
                shared.add_late();
                state.stage = Stage::Over;
                Some(Found {
                    given_up: true,
                    answer_us: micros(state.asked),
                    ..Found::default()
                })
            }
            // What was there at once is pinned.
            Stage::Claiming(pending) => {
                state.stage = Stage::Over;
                Some(pending.found)
            }
            other => {
                state.stage = other;
                None
            }
        }
    }

    /// The lease to give back, if one has come.
    fn cancel(&self) -> Option<Lease> {
        let mut state = self.state.lock();
        match std::mem::replace(&mut state.stage, Stage::Over) {
            Stage::Pending(pending) | Stage::Claiming(pending) => pending.found.lease,
            Stage::Answered(found) => found.lease,
            Stage::Asked | Stage::Over => None,
        }
    }
}

impl State {
    /// Nothing came of what was on its way, or nothing more is waited for.
    fn end_pending(&mut self) {
        self.stage = match std::mem::take(&mut self.stage) {
            Stage::Pending(pending) => {
                let mut found = pending.found;
                found.fetch_us = micros(pending.since);
                Stage::Answered(found)
            }
            other => other,
        };
    }
}

impl Stage {
    fn of(answer: pegaflow_cache::Result<Answer>, answer_us: u64) -> Self {
        let Ok(answer) = answer else {
            return Stage::Answered(Found {
                answer_us,
                ..Found::default()
            });
        };
        let found = Found {
            answer_us,
            ..answer.found
        };
        match answer.ticket.filter(|_| found.lease.is_some()) {
            Some((ticket, session)) => Stage::Pending(Box::new(Pending {
                found,
                ticket,
                session,
                fetching: answer.fetching,
                since: now(),
            })),
            None => Stage::Answered(found),
        }
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a shell: measures how long an engine has waited"
)]
fn now() -> Instant {
    Instant::now()
}
