// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Pool to device: copy, compare, release.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use pegaflow_mem::BlockCopy;
use pegaflow_mem::device::{CopyJob, Outcome, PoolHandle};
use pegaflow_meta::BlockKey;

use super::{Inner, Running, Worker, check_lengths, to_its_end};
use crate::client::{Found, PoolView, Session};
use crate::core::{BlockRef, Place};
use crate::error::{Error, Result};

/// What became of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadState {
    /// The engine has it, byte for byte as it was saved.
    Loaded,
    /// Not found, or gone before it was copied.
    Missing,
    /// Its bytes were not what was saved. The node was told.
    Corrupt,
}

/// What became of a load: one state for each key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Loaded {
    /// In the order of the keys.
    pub states: Vec<LoadState>,
    /// Bytes copied.
    pub bytes: u64,
}

impl Loaded {
    /// How many blocks from the first one on the engine can use.
    #[must_use]
    pub fn prefix(&self) -> usize {
        let loaded = |state: &&LoadState| **state == LoadState::Loaded;
        self.states.iter().take_while(loaded).count()
    }
}

/// Copies of some blocks: a job for each pool, with the blocks it has.
struct Batch {
    running: Running,
    jobs: Vec<(PoolView, Vec<BlockRef>)>,
}

impl Worker {
    /// Copies what a lookup found to the engine's `blocks` (one for each key of the lookup), proves it, and
    /// releases the lease. Goes on to its end if the caller stops waiting.
    ///
    /// # Errors
    /// [`Error::Stale`] if the node went away since the lookup; [`Error::Memory`] if the device failed. The
    /// engine's blocks hold nothing it may use then.
    pub async fn load(
        &self,
        found: Found,
        keys: Vec<BlockKey>,
        blocks: Vec<u32>,
    ) -> Result<Loaded> {
        check_lengths(keys.len(), blocks.len())?;
        let inner = self.0.clone();
        to_its_end(async move {
            let loaded = inner
                .load(&found.session, &found.blocks, &keys, &blocks)
                .await;
            if let Some(lease) = &found.lease
                && let Err(error) = inner.client.release(lease).await
            {
                // It ended by itself: what was read under it was compared with its record afterwards.
                tracing::debug!(%error, "lease was over before the load");
            }
            loaded
        })
        .await
    }

    /// The same for blocks that somebody else looked up and holds a lease on, such as the scheduler of
    /// the engine.
    ///
    /// # Errors
    /// As [`load`](Self::load), and [`Error::Unavailable`].
    pub async fn load_refs(
        &self,
        refs: Vec<BlockRef>,
        keys: Vec<BlockKey>,
        blocks: Vec<u32>,
    ) -> Result<Loaded> {
        check_lengths(keys.len(), blocks.len())?;
        let inner = self.0.clone();
        let session = inner.client.session()?;
        to_its_end(async move { inner.load(&session, &refs, &keys, &blocks).await }).await
    }
}

/// For callers that copy themselves, say to let the engine start on the first layers while the others come.
impl Worker {
    /// A pool of the session as the worker's device knows it; made known to it at first use.
    ///
    /// # Errors
    /// [`Error::Memory`] if the device refuses.
    pub fn attach(&self, pool: &PoolView) -> Result<PoolHandle> {
        self.0.attach(pool)
    }

    /// What became of a block whose copy, with all layers of the slot, had the checksums `got`: one for each head.
    #[must_use]
    pub fn judge(
        &self,
        pool: &PoolView,
        key: BlockKey,
        block: &BlockRef,
        got: &[u64],
    ) -> LoadState {
        self.0.judge(pool, key, block, got)
    }
}

impl Inner {
    async fn load(
        &self,
        session: &Arc<Session>,
        refs: &[BlockRef],
        keys: &[BlockKey],
        blocks: &[u32],
    ) -> Result<Loaded> {
        if refs.iter().any(|block| block.key as usize >= keys.len()) {
            return Err(Error::protocol("a block of no key"));
        }
        let mut loaded = Loaded {
            states: vec![LoadState::Missing; keys.len()],
            bytes: 0,
        };
        let mut corrupt = vec![];
        let mut running = VecDeque::new();
        let jobs_max = self.settings.jobs_max.max(1) as usize;
        for refs in refs.chunks(self.job_blocks()) {
            if running.len() >= jobs_max
                && let Some(batch) = running.pop_front()
            {
                self.verify(batch, keys, &mut loaded, &mut corrupt).await?;
            }
            running.push_back(self.start_load(session, refs, blocks)?);
        }
        for batch in running {
            self.verify(batch, keys, &mut loaded, &mut corrupt).await?;
        }
        for block in corrupt {
            let key = keys[block.key as usize];
            tracing::error!(
                %key,
                place = ?block.place,
                generation = block.generation,
                group = self.group.0,
                block = block.key,
                of_blocks = keys.len(),
                heads = ?self.layout.slot().heads,
                "bytes of a block are not what was saved; it is computed again"
            );
            if let Err(error) = self.client.report_corrupt(key, &block).await {
                tracing::warn!(%error, %key, "the node could not be told of a corrupt block");
            }
        }
        Ok(loaded)
    }

    fn start_load(&self, session: &Session, refs: &[BlockRef], blocks: &[u32]) -> Result<Batch> {
        let mut running = Running::new(session.begin_copy()?);
        let mut jobs = vec![];
        let mut by_pool: BTreeMap<u8, Vec<BlockRef>> = BTreeMap::new();
        for block in refs {
            by_pool.entry(block.place.pool()).or_default().push(*block);
        }
        for (pool, refs) in by_pool {
            let view = session.pools().of(Place::new(pool, 0))?;
            let copy = |block: &BlockRef| BlockCopy {
                block: blocks[block.key as usize],
                place: block.place.offset(),
            };
            let copies = refs.iter().map(copy).collect();
            let job = CopyJob::new(self.layout.clone(), self.attach(view)?, copies);
            let started = self.device.load(job);
            running
                .completions
                .push(started.map_err(|refused| refused.error)?);
            jobs.push((view.clone(), refs));
        }
        Ok(Batch { running, jobs })
    }

    async fn verify(
        &self,
        batch: Batch,
        keys: &[BlockKey],
        loaded: &mut Loaded,
        corrupt: &mut Vec<BlockRef>,
    ) -> Result<()> {
        let outcomes = batch.running.finish().await;
        for (outcome, (pool, refs)) in outcomes.into_iter().zip(&batch.jobs) {
            let outcome: Outcome = outcome;
            outcome.result?;
            loaded.bytes += outcome.bytes;
            let heads = self.layout.slot().heads.len();
            for (block, got) in refs.iter().zip(outcome.checksums.chunks_exact(heads)) {
                let key = keys[block.key as usize];
                let state = self.judge(pool, key, block, got);
                if state == LoadState::Corrupt {
                    corrupt.push(*block);
                }
                loaded.states[block.key as usize] = state;
            }
        }
        Ok(())
    }

    fn judge(&self, pool: &PoolView, key: BlockKey, block: &BlockRef, got: &[u64]) -> LoadState {
        match pool.checksums(block.place.offset(), key, block.generation) {
            Some(saved) if self.is_same(&saved, got) => LoadState::Loaded,
            Some(_) => LoadState::Corrupt,
            None => LoadState::Missing,
        }
    }

    /// Whether the heads' checksums over the slot's layers are those that were saved. Checksums of
    /// layers add up, so those of the slot's stages are summed.
    fn is_same(&self, saved: &[u64], got: &[u64]) -> bool {
        let all = self.shape().heads as usize;
        let heads = self.layout.slot().heads.clone();
        heads.zip(got).all(|(head, got)| {
            let stages = self.stages.clone();
            let one = |stage: u32| saved.get(stage as usize * all + head as usize).copied();
            let sum = stages
                .map(one)
                .try_fold(0u64, |sum, one| Some(sum.wrapping_add(one?)));
            sum == Some(*got)
        })
    }
}
