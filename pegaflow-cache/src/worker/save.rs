// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Device to pool: reserve, copy, seal.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use pegaflow_mem::BlockCopy;
use pegaflow_mem::device::{CopyJob, DeviceEvent};
use pegaflow_meta::BlockKey;

use super::{Inner, Running, Worker, check_lengths, to_its_end};
use crate::client::{Reservation, Reserve};
use crate::core::{Answer, Place};
use crate::error::{Error, Result};

/// What to save.
#[derive(Debug, Clone, Default)]
pub struct Save {
    /// The block before the first key in its prefix.
    pub parent: Option<BlockKey>,
    /// The blocks, in the order of their prefix.
    pub keys: Vec<BlockKey>,
    /// Where the engine has them: its block indexes, one for each key.
    pub blocks: Vec<u32>,
    /// Copy after this work of the engine.
    pub after: Option<DeviceEvent>,
}

/// What became of a save. Each key is counted once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Saved {
    /// Copied, and visible now.
    pub completed: u32,
    /// Copied; visible when other workers have copied theirs.
    pub partial: u32,
    /// There already, or being copied by somebody else.
    pub known: u32,
    /// Refused for want of room.
    pub out_of_budget: u32,
    /// Copied, and given up by the node meanwhile.
    pub dropped: u32,
    /// Bytes copied.
    pub bytes: u64,
}

/// One item of a reservation: which key, where to.
#[derive(Debug, Clone, Copy)]
struct Item {
    item: u32,
    copy: BlockCopy,
    pool: u8,
}

/// Copies of some items.
struct Batch {
    items: Vec<u32>,
    running: Running,
    /// For each job its stage and the positions of its blocks in `items`.
    jobs: Vec<(u32, Vec<usize>)>,
}

impl Worker {
    /// Saves blocks that the node does not have. Goes on to its end if the caller stops waiting.
    ///
    /// # Errors
    /// [`Error::Unavailable`] and [`Error::Stale`] if the node went away; [`Error::Memory`] if the device
    /// failed. What was sealed by then stays.
    pub async fn save(&self, save: Save) -> Result<Saved> {
        check_lengths(save.keys.len(), save.blocks.len())?;
        let inner = self.0.clone();
        to_its_end(async move { inner.save(&save).await }).await
    }
}

impl Inner {
    async fn save(self: Arc<Self>, save: &Save) -> Result<Saved> {
        let mut saved = Saved::default();
        let mut parent = save.parent;
        let each = self.settings.reserve_keys_max.max(1) as usize;
        for (keys, blocks) in save.keys.chunks(each).zip(save.blocks.chunks(each)) {
            let reserve = Reserve {
                namespace: &self.namespace,
                group: self.group,
                slot: self.layout.slot(),
                parent,
                keys,
            };
            let reservation = self.client.reserve(&reserve).await?;
            let items = items(&reservation, blocks);
            saved.known += (keys.len() - items.len() - reservation.out_of_budget()) as u32;
            let done = self
                .copy_and_seal(&reservation, &items, save, &mut saved)
                .await;
            if let Err(error) = done {
                // All copies are over by now, whatever happened to them.
                let _ = self.client.abort(&reservation, true).await;
                return Err(error);
            }
            parent = keys.last().copied();
            if reservation.out_of_budget() > 0 {
                // What follows a gap in a prefix is of no use, and must not push the prefix out.
                break;
            }
        }
        let seen = saved.completed + saved.partial + saved.known + saved.dropped;
        saved.out_of_budget = save.keys.len() as u32 - seen;
        Ok(saved)
    }

    async fn copy_and_seal(
        &self,
        reservation: &Reservation,
        items: &[Item],
        save: &Save,
        saved: &mut Saved,
    ) -> Result<()> {
        let mut running = VecDeque::new();
        let jobs_max = self.settings.jobs_max.max(1) as usize;
        for items in items.chunks(self.job_blocks()) {
            if running.len() >= jobs_max
                && let Some(batch) = running.pop_front()
            {
                self.seal(reservation, batch, saved).await?;
            }
            running.push_back(self.start(reservation, items, save)?);
        }
        for batch in running {
            self.seal(reservation, batch, saved).await?;
        }
        Ok(())
    }

    /// Starts the copies of some items: a job for each pool and stage.
    fn start(&self, reservation: &Reservation, items: &[Item], save: &Save) -> Result<Batch> {
        let mut running = Running::new(reservation.begin_copy()?);
        let mut jobs = vec![];
        let mut by_pool: BTreeMap<u8, Vec<usize>> = BTreeMap::new();
        for (at, item) in items.iter().enumerate() {
            by_pool.entry(item.pool).or_default().push(at);
        }
        for (pool, at) in by_pool {
            let view = reservation.session().pools().of(Place::new(pool, 0))?;
            let handle = self.attach(view)?;
            for stage in self.stages.clone() {
                let copies = at.iter().map(|at| items[*at].copy).collect();
                let mut job = CopyJob::new(self.layout.clone(), handle.clone(), copies);
                job.layers = Some(self.group_layout().stage_layers(stage));
                job.after = save.after.clone();
                let started = self.device.save(job);
                running
                    .completions
                    .push(started.map_err(|refused| refused.error)?);
                jobs.push((stage, at.clone()));
            }
        }
        Ok(Batch {
            items: items.iter().map(|item| item.item).collect(),
            running,
            jobs,
        })
    }

    /// Waits for the copies and makes their blocks visible.
    async fn seal(&self, reservation: &Reservation, batch: Batch, saved: &mut Saved) -> Result<()> {
        let heads = self.layout.slot().heads.len();
        let each = self.stages.len() * heads;
        let mut checksums = vec![0; batch.items.len() * each];
        for (outcome, (stage, at)) in batch.running.finish().await.into_iter().zip(&batch.jobs) {
            outcome.result?;
            if outcome.checksums.len() != at.len() * heads {
                return Err(Error::protocol("the device left checksums out"));
            }
            let row = (stage - self.stages.start) as usize * heads;
            for (at, sums) in at.iter().zip(outcome.checksums.chunks_exact(heads)) {
                checksums[at * each + row..][..heads].copy_from_slice(sums);
            }
            saved.bytes += outcome.bytes;
        }
        let sealed = self
            .client
            .seal(reservation, &batch.items, &checksums)
            .await?;
        saved.completed += sealed.completed;
        saved.partial += sealed.partial;
        saved.dropped += sealed.dropped;
        Ok(())
    }
}

fn items(reservation: &Reservation, blocks: &[u32]) -> Vec<Item> {
    let answers = reservation.answers.iter().zip(blocks).zip(0..);
    let item = |((answer, block), item): ((&Answer, &u32), u32)| match answer {
        Answer::Place { place, .. } => Some(Item {
            item,
            copy: BlockCopy {
                block: *block,
                place: place.offset(),
            },
            pool: place.pool(),
        }),
        _ => None,
    };
    answers.filter_map(item).collect()
}
