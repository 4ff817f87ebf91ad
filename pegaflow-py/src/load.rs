// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! A load under way: one copy for each pool, layer after layer, judged when it is over.
//!
//! Invariant: a block that is not named as failed has the bytes that were saved.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use pegaflow_cache::client::{CopyGuard, PoolView};
use pegaflow_cache::core::{BlockRef, Place};
use pegaflow_cache::meta::BlockKey;
use pegaflow_cache::worker::LoadState;
use pegaflow_mem::BlockCopy;
use pegaflow_mem::device::cuda::Gate;
use pegaflow_mem::device::{Completion, CopyJob, DeviceEvent, Outcome};
use pyo3::prelude::*;

use crate::error::{cache, memory};
use crate::rank::Inner;
use crate::sys::engine_stream;

/// Blocks on their way from the pool to the engine.
#[pyclass(frozen)]
#[derive(Debug)]
pub(crate) struct Loading {
    inner: Arc<Inner>,
    keys: Vec<BlockKey>,
    copies: Mutex<Vec<Copy>>,
}

/// The copies out of one pool.
struct Copy {
    pool: PoolView,
    refs: Vec<BlockRef>,
    gate: Option<Gate>,
    state: State,
    _guard: CopyGuard,
}

enum State {
    Running(Completion),
    Over(Outcome),
    /// For the moment between the two.
    Turning,
}

impl std::fmt::Debug for Copy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Copy")
            .field("blocks", &self.refs.len())
            .finish_non_exhaustive()
    }
}

#[pymethods]
impl Loading {
    /// Lets the engine's `stream` go on only when the first `layers` layers (all, if None) are there. For an engine in
    /// host memory: waits until all are.
    #[pyo3(signature = (stream, layers=None))]
    fn hold(&self, py: Python<'_>, stream: Option<u64>, layers: Option<u32>) {
        py.detach(|| {
            for copy in self.copies.lock().iter_mut() {
                let held = match (&copy.gate, stream) {
                    (Some(gate), Some(stream)) => gate.hold(engine_stream(stream), layers).is_ok(),
                    _ => false,
                };
                if !held {
                    copy.wait();
                }
            }
        });
    }

    /// Whether it is over.
    fn done(&self) -> bool {
        self.copies.lock().iter().all(Copy::is_over)
    }

    /// Waits until it is over. Returns the positions of the blocks that are not there as they were saved.
    fn finish(&self, py: Python<'_>) -> Vec<u32> {
        py.detach(|| {
            let mut failed = vec![];
            for copy in self.copies.lock().iter_mut() {
                copy.wait();
                self.judge(copy, &mut failed);
            }
            failed.sort_unstable();
            failed
        })
    }
}

impl Loading {
    pub(crate) fn start(
        inner: &Arc<Inner>,
        keys: Vec<BlockKey>,
        refs: Vec<BlockRef>,
        blocks: &[u32],
        stream: Option<u64>,
        by_layer: bool,
    ) -> PyResult<Self> {
        let after = inner.device.event(stream)?;
        let mut by_pool: BTreeMap<u8, Vec<BlockRef>> = BTreeMap::new();
        for block in refs {
            by_pool.entry(block.place.pool()).or_default().push(block);
        }
        let copies = by_pool.into_iter();
        let copies = copies
            .map(|(pool, refs)| Copy::start(inner, pool, refs, blocks, after.clone(), by_layer));
        Ok(Self {
            copies: Mutex::new(copies.collect::<PyResult<_>>()?),
            inner: inner.clone(),
            keys,
        })
    }

    fn judge(&self, copy: &Copy, failed: &mut Vec<u32>) {
        let heads = self.inner.layout.slot().heads.len();
        let outcome = match (&copy.state, self.inner.worker_now()) {
            (State::Over(outcome), Ok(worker)) if outcome.result.is_ok() => Some((outcome, worker)),
            _ => None,
        };
        let Some((outcome, worker)) = outcome else {
            failed.extend(copy.refs.iter().map(|block| block.key));
            return;
        };
        for (block, got) in copy.refs.iter().zip(outcome.checksums.chunks_exact(heads)) {
            let key = self.keys[block.key as usize];
            let state = worker.judge(&copy.pool, key, block, got);
            if state != LoadState::Loaded {
                failed.push(block.key);
            }
            if state == LoadState::Corrupt {
                self.inner.shared.report_corrupt(key, *block);
            }
        }
    }
}

impl Copy {
    fn start(
        inner: &Inner,
        pool: u8,
        refs: Vec<BlockRef>,
        blocks: &[u32],
        after: Option<DeviceEvent>,
        by_layer: bool,
    ) -> PyResult<Self> {
        let worker = inner.worker_now().map_err(cache)?;
        let session = worker.client().session().map_err(cache)?;
        let guard = session.begin_copy().map_err(cache)?;
        let view = session.pools().of(Place::new(pool, 0)).map_err(cache)?;
        let copies = refs.iter().map(|block| BlockCopy {
            block: blocks[block.key as usize],
            place: block.place.offset(),
        });
        let handle = worker.attach(view).map_err(cache)?;
        let mut job = CopyJob::new(inner.layout.clone(), handle, copies.collect());
        job.after = after;
        let (completion, gate) = inner.device.load(job, by_layer).map_err(memory)?;
        Ok(Self {
            pool: view.clone(),
            refs,
            gate,
            state: State::Running(completion),
            _guard: guard,
        })
    }

    fn is_over(&self) -> bool {
        match &self.state {
            State::Running(completion) => completion.is_done(),
            State::Over(_) | State::Turning => true,
        }
    }

    fn wait(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Turning) {
            State::Running(completion) => State::Over(completion.wait()),
            other => other,
        };
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // The guard tells the node that the copy runs: it must not go first.
        self.wait();
    }
}
